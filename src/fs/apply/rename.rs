//! rename, with the flags of renameat2(2).

use super::context::{Context, Inode, Slot, Step, check_name};
use super::orphans;
use super::unlink::check_empty;
use crate::fs::errno::Errno;
use crate::fs::limits::LINK_MAX;
use crate::fs::proto;
use crate::fs::record::Records;
use crate::fs::view::ViewMut;
use crate::types::Ino;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Replace,
    NoReplace,
    Exchange,
}

/// What a rename works on, once the names are looked up.
struct Rename {
    parent: Inode,
    /// `None` where it is the same directory: each record is held once.
    new_parent: Option<Inode>,
    slot: Slot,
    new_slot: Slot,
    source: Inode,
    target: Option<Inode>,
}

pub(super) fn rename<V: ViewMut + Records>(
    context: &mut Context<'_, V>,
    op: &proto::Rename,
) -> Step<proto::Outcome, V> {
    let mode = Mode::from_flags(op.flags)?;
    check_name(&op.name)?;
    check_name(&op.new_name)?;
    if let Some(rename) = look_up(context, op, mode)? {
        rename.check_cycle(context, mode)?;
        rename.check_kinds(context, mode)?;
        rename.check_links(mode)?;
        rename.check_durable(op, mode)?;
        rename.carry_out(context, mode)?;
    }
    Ok(proto::Outcome::default())
}

impl Mode {
    fn from_flags(flags: u32) -> Result<Self, Errno> {
        match flags {
            0 => Ok(Self::Replace),
            1 => Ok(Self::NoReplace),
            2 => Ok(Self::Exchange),
            _ => Err(Errno::EINVAL),
        }
    }
}

/// Finds both names; `None` where they mean the same inode, so that nothing is to be done.
fn look_up<V: ViewMut + Records>(
    context: &Context<'_, V>,
    op: &proto::Rename,
    mode: Mode,
) -> Step<Option<Rename>, V> {
    let parent = context.directory(Ino(op.parent))?;
    let mut new_parent = None;
    if op.new_parent != op.parent {
        new_parent = Some(context.directory(Ino(op.new_parent))?);
    }
    let slot = context.slot(&parent, &op.name)?;
    let new_slot = context.slot(new_parent.as_ref().unwrap_or(&parent), &op.new_name)?;
    let dentry = slot.dentry.ok_or(Errno::ENOENT)?;
    match (mode, new_slot.dentry) {
        (Mode::NoReplace, Some(_)) => return Err(Errno::EEXIST.into()),
        (Mode::Exchange, None) => return Err(Errno::ENOENT.into()),
        (_, Some(new_dentry)) if new_dentry.ino == dentry.ino => return Ok(None),
        (Mode::Replace | Mode::NoReplace | Mode::Exchange, _) => {}
    }
    let source = context.referenced_inode(Ino(dentry.ino))?;
    let target = match new_slot.dentry {
        Some(new_dentry) => Some(context.referenced_inode(Ino(new_dentry.ino))?),
        None => None,
    };
    Ok(Some(Rename { parent, new_parent, slot, new_slot, source, target }))
}

impl Rename {
    /// No directory may come to lie below itself.
    fn check_cycle<V: ViewMut + Records>(
        &self,
        context: &Context<'_, V>,
        mode: Mode,
    ) -> Step<(), V> {
        let Some(new_parent) = &self.new_parent else { return Ok(()) };
        if self.source.is_directory() && is_below(context, new_parent, self.source.ino)? {
            return Err(Errno::EINVAL.into());
        }
        if let (Mode::Exchange, Some(target)) = (mode, &self.target)
            && target.is_directory()
            && is_below(context, &self.parent, target.ino)?
        {
            return Err(Errno::EINVAL.into());
        }
        Ok(())
    }

    /// Whether the target can give way.
    fn check_kinds<V: ViewMut + Records>(
        &self,
        context: &Context<'_, V>,
        mode: Mode,
    ) -> Step<(), V> {
        let Some(target) = &self.target else { return Ok(()) };
        if mode == Mode::Exchange {
            return Ok(());
        }
        match (self.source.is_directory(), target.is_directory()) {
            (true, false) => Err(Errno::ENOTDIR.into()),
            (false, true) => Err(Errno::EISDIR.into()),
            (true, true) => check_empty(context, target.ino),
            (false, false) => Ok(()),
        }
    }

    /// How many subdirectories each parent gains.
    fn gains(&self, mode: Mode) -> (i32, i32) {
        let leaves = i32::from(self.source.is_directory());
        let met = i32::from(self.target.as_ref().is_some_and(Inode::is_directory));
        match mode {
            Mode::Exchange => (met - leaves, leaves - met),
            Mode::Replace | Mode::NoReplace => (-leaves, leaves - met),
        }
    }

    fn check_links(&self, mode: Mode) -> Result<(), Errno> {
        let Some(new_parent) = &self.new_parent else { return Ok(()) };
        let (gain, new_gain) = self.gains(mode);
        let full = |parent: &Inode, gain| gain > 0 && parent.record.nlink >= LINK_MAX;
        if full(&self.parent, gain) || full(new_parent, new_gain) {
            return Err(Errno::EMLINK);
        }
        Ok(())
    }

    /// What may be in memory only takes the place of nothing: a power loss would leave neither.
    fn check_durable(&self, op: &proto::Rename, mode: Mode) -> Result<(), Errno> {
        let Some(target) = self.target.as_ref().filter(|_| op.only_durable) else { return Ok(()) };
        let met = (mode == Mode::Exchange).then_some(target);
        let is_on_disks = |inode: &Inode| {
            let version = inode.record.data_version;
            let mut known = op.durable.iter().filter(|known| known.ino == inode.ino.0);
            !inode.is_regular() || known.any(|known| known.data_version >= version)
        };
        let mut moved = [Some(&self.source), met].into_iter().flatten();
        if moved.all(is_on_disks) { Ok(()) } else { Err(Errno::ECANCELED) }
    }

    fn carry_out<V: ViewMut + Records>(
        self,
        context: &mut Context<'_, V>,
        mode: Mode,
    ) -> Step<(), V> {
        let (gain, new_gain) = self.gains(mode);
        let Self { mut parent, mut new_parent, slot, new_slot, source, target } = self;
        let to = new_parent.as_ref().map_or(parent.ino, |new_parent| new_parent.ino);
        let swapped = target.as_ref().filter(|_| mode == Mode::Exchange).map(Inode::dentry);
        context.set_slot(slot, swapped);
        context.set_slot(new_slot, Some(source.dentry()));

        move_to(context, source, to);
        match (mode, target) {
            (Mode::Exchange, Some(target)) => move_to(context, target, parent.ino),
            (_, Some(target)) => orphans::drop_name(context, target)?,
            (_, None) => {}
        }

        let links = &mut parent.record.nlink;
        *links = links.saturating_add_signed(gain);
        let links = &mut new_parent.as_mut().unwrap_or(&mut parent).record.nlink;
        *links = links.saturating_add_signed(new_gain);
        for mut parent in [Some(parent), new_parent].into_iter().flatten() {
            context.stamp_names(&mut parent);
            context.save(&parent);
        }
        Ok(())
    }
}

fn move_to<V: ViewMut + Records>(context: &mut Context<'_, V>, mut inode: Inode, parent: Ino) {
    if inode.is_directory() {
        inode.record.parent = parent.0;
    }
    context.stamp(&mut inode);
    context.save(&inode);
}

/// Whether `inode` is `ancestor` or somewhere below it.
fn is_below<V: ViewMut + Records>(
    context: &Context<'_, V>,
    inode: &Inode,
    ancestor: Ino,
) -> Step<bool, V> {
    let (mut at, mut parent) = (inode.ino, inode.record.parent);
    while at != Ino::ROOT {
        if at == ancestor {
            return Ok(true);
        }
        at = Ino(parent);
        parent = context.referenced_inode(at)?.record.parent;
    }
    Ok(false)
}
