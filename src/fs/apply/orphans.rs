//! Inodes without a name, from when they lose the last one until nobody holds them.

use prost::Message;

use super::context::{Context, Inode, Step, Stop};
use super::locks;
use crate::fs::applied::{Change, FileEffect};
use crate::fs::keys;
use crate::fs::pages::Pages;
use crate::fs::proto;
use crate::fs::query;
use crate::fs::record::{self, Records};
use crate::fs::view::ViewMut;
use crate::types::{Generation, Ino, SessionId};

const PAGE: usize = 64;

pub(super) fn release<V: ViewMut + Records>(
    context: &mut Context<'_, V>,
    op: &proto::ReleaseOrphans,
) -> Step<proto::Outcome, V> {
    for &ino in &op.inos {
        let ino = Ino(ino);
        if let Some(orphan) = query::orphan(context.view, ino).map_err(Stop::View)? {
            let_go(context, ino, orphan, context.session)?;
        }
    }
    Ok(proto::Outcome::default())
}

/// Lets go of all orphans that an ended session may have held.
pub(super) fn release_all<V: ViewMut + Records>(
    context: &mut Context<'_, V>,
    session: SessionId,
) -> Step<(), V> {
    let mut pages = Pages::new(keys::orphans(Ino(0)), PAGE);
    while let Some(page) = pages.next(context.view).map_err(Stop::View)? {
        for (key, value) in page {
            let orphan = record::decode(&key, &value).map_err(|e| Stop::View(e.into()))?;
            if let Some(keys::Parsed::Orphan { ino }) = keys::parse(&key) {
                let_go(context, ino, orphan, session)?;
            }
        }
    }
    Ok(())
}

/// Takes one name from an inode whose dentry is gone already; the last one makes it an orphan. A
/// directory has but one.
pub(super) fn drop_name<V: ViewMut + Records>(
    context: &mut Context<'_, V>,
    mut inode: Inode,
) -> Step<(), V> {
    let links = inode.record.nlink;
    inode.record.nlink = if inode.is_directory() { 0 } else { links.saturating_sub(1) };
    context.stamp(&mut inode);
    context.save(&inode);
    if inode.record.nlink > 0 {
        return Ok(());
    }
    let sessions = query::session_ids(context.view).map_err(Stop::View)?;
    if sessions.is_empty() {
        return remove(context, &inode);
    }
    let orphan = proto::Orphan { holders: sessions.into_iter().map(u64::from).collect() };
    context.view.put(keys::orphan(inode.ino), orphan.encode_to_vec());
    context.note(Change::Orphaned { ino: inode.ino });
    Ok(())
}

fn let_go<V: ViewMut + Records>(
    context: &mut Context<'_, V>,
    ino: Ino,
    mut orphan: proto::Orphan,
    session: SessionId,
) -> Step<(), V> {
    let Ok(place) = orphan.holders.binary_search(&session.0) else { return Ok(()) };
    orphan.holders.remove(place);
    if orphan.holders.is_empty() {
        let inode = context.referenced_inode(ino)?;
        return remove(context, &inode);
    }
    context.view.put(keys::orphan(ino), orphan.encode_to_vec());
    Ok(())
}

fn remove<V: ViewMut + Records>(context: &mut Context<'_, V>, inode: &Inode) -> Step<(), V> {
    let ino = inode.ino;
    context.delete_range(keys::xattrs(ino))?;
    context.view.delete(keys::orphan(ino));
    locks::forget(context, ino)?;
    context.view.delete(keys::inode(ino));
    if inode.is_regular() {
        let generation = Generation(inode.record.generation);
        context.order(FileEffect::Remove { ino, generation });
    }
    context.note(Change::Removed { ino });
    Ok(())
}
