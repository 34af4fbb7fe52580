//! What a member is to be.

/// What a member is to be in the Raft group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Suffrage {
    /// It is sent everything, and has no vote.
    Learner,
    /// It votes once it holds everything.
    Voter,
}
