//! RENAME. What takes the place of a file has to be on disks, which the command says: only who applies it knows what is
//! replaced.

use super::core::Core;
use super::errors::OpError;
use super::kernel_names::Removing;
use super::names::Place;
use crate::fs::proto::command::Op;
use crate::fs::proto::{self, Kind, OnDisks};
use crate::fs::query;
use crate::node::Deadline;
use crate::types::{Ino, LogIndex};

/// The only flags of renameat2(2) that there are here.
const FLAGS: u32 = libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE;
/// How often a file that is being written is brought to disks and found to have more bytes.
const INSISTENCE: usize = 16;

/// What is known of a file that gets another name.
#[derive(Debug)]
enum Bytes {
    /// On the disks of a quorum.
    OnDisks(OnDisks),
    /// In memory, as far as is known here.
    Loose,
    /// Some could not be committed.
    Lost { errno: i32 },
}

impl Core {
    /// RENAME, by a thread.
    pub(super) async fn rename(
        &self,
        thread: u32,
        from: Place,
        to: Place,
        flags: u32,
    ) -> Result<Removing, OpError> {
        if flags & !FLAGS != 0 {
            return Err(OpError::Errno(libc::EINVAL));
        }
        let (removing, changing) = self.begin_removal(&[&from, &to], thread).await?;
        let deadline = Deadline::current();
        let (mut attempts, mut lost) = (0, None);
        loop {
            let moved = self.commit_moved(&from, &to, flags).await?;
            lost = lost.or_else(|| moved.iter().find_map(Bytes::lost));
            let op = Op::Rename(proto::Rename {
                parent: from.parent.0,
                name: from.name.clone(),
                new_parent: to.parent.0,
                new_name: to.name.clone(),
                flags,
                only_durable: true,
                durable: claims(&moved, attempts),
            });
            match self.mutate(&[from.parent, to.parent], op).await {
                Ok(_) => {
                    changing.renamed(flags & libc::RENAME_EXCHANGE != 0);
                    return Ok(removing);
                }
                // It would have replaced what was not known here, or has bytes that were not. They are known now.
                Err(OpError::Errno(libc::ECANCELED)) => {}
                Err(error) => return Err(error),
            }
            if let Some(errno) = lost {
                return Err(OpError::Errno(errno));
            }
            self.node.check(&deadline)?;
            attempts += 1;
        }
    }

    /// Commits what was written to a file that is renamed (to both that are exchanged), and brings it to disks where it is known
    /// to replace something: a file must not lose to a crash both what it replaced and what was written to it.
    async fn commit_moved(
        &self,
        from: &Place,
        to: &Place,
        flags: u32,
    ) -> Result<Vec<Bytes>, OpError> {
        let (source, target) = self.query(|state| {
            let source = query::lookup(state, from.parent, &from.name)?;
            Ok((source, query::lookup(state, to.parent, &to.name)?))
        })?;
        let replaces = target.is_some();
        let target = target.filter(|_| flags & libc::RENAME_EXCHANGE != 0);
        let mut moved = Vec::new();
        for dentry in [source, target].into_iter().flatten() {
            if dentry.kind() == Kind::Regular {
                moved.push(self.commit_renamed(Ino(dentry.ino), replaces).await?);
            }
        }
        Ok(moved)
    }

    async fn commit_renamed(&self, ino: Ino, replaces: bool) -> Result<Bytes, OpError> {
        if let Some(buffer) = self.open.buffer(ino) {
            let (before, _) = buffer.lock().failures();
            self.commit(&buffer).await;
            let (failures, errno) = buffer.lock().failures();
            if failures > before {
                // What is there is better than what is left of this one. An fsync has still to say so.
                return if replaces {
                    Err(OpError::Errno(errno))
                } else {
                    Ok(Bytes::Lost { errno })
                };
            }
        }
        let version = if replaces {
            Some(self.node.make_durable(ino).await?)
        } else {
            self.node.on_disks(ino)?
        };
        let on_disks = |version: LogIndex| OnDisks { ino: ino.0, data_version: version.0 };
        Ok(version.map_or(Bytes::Loose, |version| Bytes::OnDisks(on_disks(version))))
    }
}

impl Bytes {
    fn lost(&self) -> Option<i32> {
        match self {
            Self::Lost { errno } => Some(*errno),
            Self::OnDisks(_) | Self::Loose => None,
        }
    }
}

/// What the command says of the disks. Whoever writes a file all the time does not keep it from its name: what came after the
/// first attempt is as good as written under the new one.
fn claims(moved: &[Bytes], attempts: usize) -> Vec<OnDisks> {
    let claim = |bytes: &Bytes| match *bytes {
        Bytes::OnDisks(known) if attempts < INSISTENCE => Some(known),
        Bytes::OnDisks(known) => Some(OnDisks { data_version: u64::MAX, ..known }),
        Bytes::Loose | Bytes::Lost { .. } => None,
    };
    moved.iter().filter_map(claim).collect()
}

#[cfg(test)]
mod tests {
    use super::{Bytes, INSISTENCE, OnDisks, claims};

    /// What is not on disks, or is lost, is never said to be there.
    #[test]
    fn only_what_is_on_disks_is_claimed() {
        let known = |ino, data_version| OnDisks { ino, data_version };
        let moved = [Bytes::OnDisks(known(5, 20)), Bytes::Loose, Bytes::Lost { errno: 5 }];
        for attempts in [0, INSISTENCE - 1] {
            assert_eq!(claims(&moved, attempts), [known(5, 20)]);
        }
        assert_eq!(claims(&moved, INSISTENCE), [known(5, u64::MAX)]);
        assert_eq!(moved.iter().map(Bytes::lost).collect::<Vec<_>>(), [None, None, Some(5)]);
    }
}
