//! What is on this replica's disk: the Raft log, the cache of the state, backing files, snapshot
//! files, and the data directory that holds them.
//!
//! The truth is the last snapshot file plus the log since; the state in sled is a cache of it that
//! answers queries. Called by `node`, whose driver is the only one that writes; queries come from
//! any thread. Nothing in here decides what may be acknowledged or read: it says what is durable.

mod adopt;
mod ahead;
mod answers;
mod beneath;
mod blocks;
mod cached;
mod checksums;
mod contained;
mod datadir;
mod divergence;
mod doubted;
mod durable;
mod ends;
mod error;
mod export;
mod files;
#[cfg(test)]
mod formats_tests;
mod genesis;
mod headroom;
mod identity;
mod layout;
mod layout_notes;
mod layouts;
mod lent;
mod log;
mod marks;
mod merge;
mod mount_list;
mod peer_list;
mod pins;
mod point;
mod received;
mod recent;
mod records;
mod recover;
mod refound;
mod refused;
mod removal;
mod replay;
mod reread;
mod retrace;
mod room;
mod scratch;
mod snapshot;
mod space;
mod spares;
mod stages;
mod state;
mod sweep;
mod sys;
#[cfg(test)]
pub(crate) mod test_replica;
mod unfinished;

pub use adopt::{
    Adopted, Belief, Known, belief, first_state_of_files, says_it_lacks, still_doubted,
};
pub use blocks::{BlockReader, Steady, blocks_of, parted};
pub use checksums::PAGE_BLOCKS;
pub use contained::is_contained;
pub use datadir::{BootIdentity, DataDir, distrust_state};
pub use divergence::put_ledger;
pub use ends::{End, EndKind, LOOP, WINDOW, crash_loop, forget_ends, record_end, recorded_ends};
pub use error::StoreError;
pub use export::Export;
pub use files::Files;
pub use genesis::{found_cluster, join_cluster, joining_nonce};
pub use identity::Identity;
pub use layout::{Away, Layout};
pub use lent::Lending;
pub use log::{LogOptions, RaftLog};
pub use mount_list::{record_mounts, recorded_mounts};
pub use peer_list::{record_peers, recorded_peers};
pub use point::AppliedPoint;
pub use received::Received;
pub use recover::{Rebuilt, Recovered, make_room, recover, replace_snapshot};
pub use refound::{Leaving, is_refounded, refound};
pub use refused::is_broken;
pub use removal::record_removed;
pub use retrace::{Following, Retraced};
pub use scratch::Scratch;
pub use snapshot::{
    SnapshotHeader, SnapshotPairs, latest_snapshot, prepare_snapshot, put_snapshot, read_snapshot,
    write_snapshot,
};
pub use space::Seek;
pub use stages::checksum_blocks;
pub use state::{InMemory, NotInMemory, State, StateRead};
pub use sweep::{Swept, Unreferenced};
pub use sys::run_idly;
