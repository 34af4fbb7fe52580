//! Seeds that found something once. They lose their meaning when the simulation itself draws otherwise;
//! keep them as long as they are cheap.

use crate::replayed_seed;
use crate::run;
use crate::trace::Trace;

fn pinned(seeds: &[u64]) {
    if replayed_seed().is_none() {
        for seed in seeds {
            run(*seed, Trace::silent());
        }
    }
}

/// A leader cut its log by what members said that they had applied, beyond what it knew them to hold.
#[test]
fn the_log_is_kept_that_a_leader_may_send_again() {
    pinned(&[45, 48]);
}

/// A stale refusal took raft-rs back behind what a peer had acknowledged, and behind the cut.
#[test]
fn a_stale_refusal_does_not_ask_for_entries_that_were_cut() {
    pinned(&[46]);
}

/// A stage of which a part had come when its connection was lost was written later, and waited for: nobody fetched
/// the rest.
#[test]
fn what_a_lost_connection_left_of_a_stage_is_fetched() {
    pinned(&[136]);
}

/// A stage became the file before it was on disk, and a power loss left zeros in it beside later writes.
#[test]
fn a_stage_becomes_a_file_only_once_it_is_durable() {
    pinned(&[14, 113]);
}

/// After a power loss, what the last sync knew hid the bytes of a stage that had become the file since.
#[test]
fn a_placed_stage_hides_what_the_last_sync_knew() {
    pinned(&[8, 27]);
}

/// A hole was made again in a file that a later stage had become.
#[test]
fn a_replay_makes_no_hole_in_a_later_stage() {
    pinned(&[2, 6]);
}

/// A file's bytes were in a stage, says the last sync, but the stage had become the file and was removed with it.
#[test]
fn a_stage_that_was_removed_with_its_file_stops_nobody() {
    pinned(&[20]);
}

/// A process died between the end of a session and its stages' removal, which stayed for ever.
#[test]
fn stages_of_sessions_that_are_over_go() {
    pinned(&[68, 75]);
}

/// A process that died after a power loss, before it had carried anything out, hid from the next one what was lost.
#[test]
fn what_a_power_loss_took_is_carried_out_again() {
    pinned(&[1, 22]);
}

/// A log that was too large was cut behind a snapshot, of which the core had not heard that it was applied.
#[test]
fn the_log_is_not_cut_beyond_what_the_core_has_applied() {
    pinned(&[211]);
}

/// A node that was still applying again what its files had already gave bytes that were newer than it said: only here,
/// where nobody looked whether it had done with that.
#[test]
fn who_still_replays_gives_no_bytes() {
    pinned(&[229]);
}

/// A leader that had applied its own removal made raft-rs look for its place.
#[test]
fn a_leader_without_a_place_becomes_a_follower() {
    pinned(&[5, 24]);
}

/// A node that was removed and kept its place, since only it had some bytes, was not asked for them.
#[test]
fn who_leaves_is_asked_for_bytes() {
    pinned(&[160]);
}

/// An opening of a session by a daemon that had died ended the session of the next one.
#[test]
fn a_late_opening_ends_no_session() {
    pinned(&[299]);
}
