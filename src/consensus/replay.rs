//! Which membership entries of a log lead to, where no replica is running that would say so.

use raft::eraftpb::{ConfChange, ConfChangeV2, ConfState, Entry, EntryType};
use raft::storage::MemStorage;
use raft::{RawNode, Storage};

use super::core::CoreError;
use crate::types::LogIndex;

/// The membership behind an entry, with that before it; nothing where the entry does not change it.
///
/// # Errors
/// When the entry holds something else than a change, or one that cannot follow.
pub fn membership_after(before: &ConfState, entry: &Entry) -> Result<Option<ConfState>, CoreError> {
    if entry.get_entry_type() == EntryType::EntryNormal {
        return Ok(None);
    }
    let storage = MemStorage::new_with_conf_state(before.clone());
    // Whose it is means nothing to the membership.
    let config = raft::Config { id: u64::MAX, ..raft::Config::default() };
    let logger = slog::Logger::root(slog::Discard, slog::o!());
    let mut node = RawNode::new(&config, storage, &logger)?;
    change_membership(&mut node, entry).map(Some)
}

/// Has raft-rs take in an entry that changes the membership.
pub(super) fn change_membership<S: Storage>(
    node: &mut RawNode<S>,
    entry: &Entry,
) -> Result<ConfState, CoreError> {
    let undecodable = |_| CoreError::Undecodable { index: LogIndex(entry.index) };
    if entry.get_entry_type() == EntryType::EntryConfChange {
        let mut change = ConfChange::default();
        protobuf::Message::merge_from_bytes(&mut change, &entry.data).map_err(undecodable)?;
        return Ok(node.apply_conf_change(&change)?);
    }
    let mut change = ConfChangeV2::default();
    protobuf::Message::merge_from_bytes(&mut change, &entry.data).map_err(undecodable)?;
    Ok(node.apply_conf_change(&change)?)
}

#[cfg(test)]
mod tests {
    use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType};

    use super::{ConfChangeV2, ConfState, Entry, EntryType, membership_after};

    fn entry(changes: &[(ConfChangeType, u64)]) -> Entry {
        let single = |(kind, node): &(ConfChangeType, u64)| {
            let mut single = ConfChangeSingle { node_id: *node, ..ConfChangeSingle::default() };
            single.set_change_type(*kind);
            single
        };
        let mut change = ConfChangeV2::default();
        if !changes.is_empty() {
            change.set_transition(ConfChangeTransition::Explicit);
        }
        change.set_changes(changes.iter().map(single).collect::<Vec<_>>().into());
        let data = protobuf::Message::write_to_bytes(&change).unwrap().into();
        let mut entry = Entry { data, ..Entry::default() };
        entry.set_entry_type(EntryType::EntryConfChangeV2);
        entry
    }

    #[test]
    fn a_joint_change_is_followed_through() {
        let before = ConfState::from((vec![1, 2], vec![3]));
        assert_eq!(membership_after(&before, &Entry::default()).unwrap(), None);
        let change = entry(&[(ConfChangeType::AddNode, 3), (ConfChangeType::RemoveNode, 1)]);
        let joint = membership_after(&before, &change).unwrap().unwrap();
        let mut voters = joint.get_voters().to_vec();
        voters.sort_unstable();
        assert_eq!(voters, [2, 3]);
        assert!(joint.get_voters_outgoing().contains(&1), "until it is left");
        let after = membership_after(&joint, &entry(&[])).unwrap().unwrap();
        assert!(after.get_voters_outgoing().is_empty());
        assert_eq!(after.get_voters().len(), 2);
    }
}
