//! What this node does when others say that it was removed, which it cannot know itself where it was away, or applies nothing.
//!
//! One peer may be wrong, and a node that ends over it does so for good. So most of those who vote, as whoever says it has
//! them, must say the same. That is not a majority of the members that this node knows: after long these may all be gone,
//! and were replaced. A quorum of those who are members now has applied the removal, and each of them says so when it is asked.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::fatal::Fatal;
use super::{Handle, clock};
use crate::types::{Monotonic, NodeId};

/// A word counts for so long. Whoever is refused by a peer tries again within a second.
const COUNTS: Duration = Duration::from_secs(15);

/// What a peer says to a node that is no member any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// Who says so.
    pub by: NodeId,
    /// Who has a vote, as far as it knows, and where they listen.
    pub voters: Vec<(NodeId, String)>,
}

/// What such a word comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// This peer has said so before.
    Again,
    /// It has not; others must say it, too.
    First,
    /// Most of those say so who must know.
    Certain,
}

/// Who has said so lately.
#[derive(Debug, Default)]
pub struct Removals(BTreeMap<NodeId, (Monotonic, BTreeSet<NodeId>)>);

impl Removals {
    /// Takes in what a peer says.
    pub fn hear(&mut self, now: Monotonic, removal: &Removal) -> Heard {
        self.0.retain(|_, (said, _)| now.since(*said) < COUNTS);
        let voters = removal.voters.iter().map(|(node, _)| *node).collect();
        let before = self.0.insert(removal.by, (now, voters));
        let is_certain = self.0.values().any(|(_, voters)| {
            let agree = voters.iter().filter(|voter| self.0.contains_key(voter)).count();
            agree > voters.len() / 2
        });
        match before {
            _ if is_certain => Heard::Certain,
            Some(_) => Heard::Again,
            None => Heard::First,
        }
    }

    /// The same, of one of the peers that are asked in turn: those who must know are asked from now on, too.
    pub fn hear_of_asked(
        &mut self,
        now: Monotonic,
        removal: Removal,
        asked: &mut Vec<String>,
    ) -> Heard {
        let heard = self.hear(now, &removal);
        for (_, address) in removal.voters {
            if !asked.contains(&address) {
                asked.push(address);
            }
        }
        heard
    }

    /// Who says so now.
    fn by(&self, now: Monotonic) -> Vec<NodeId> {
        let lately = self.0.iter().filter(|(_, (said, _))| now.since(*said) < COUNTS);
        lately.map(|(node, _)| *node).collect()
    }
}

impl Handle {
    /// A peer says that this node is no member any more: those who must know are asked, and once it is certain this
    /// replica ends.
    pub fn told_of_removal(&self, removal: &Removal) {
        let heard = self.0.removals.lock().hear(clock::monotonic(), removal);
        match heard {
            Heard::Certain => return self.0.fail(Fatal::removed(self.0.node)),
            Heard::First => tracing::error!(
                peer = removal.by.0,
                "it says that this node was removed from the cluster: asking the others"
            ),
            Heard::Again => {}
        }
        // They refuse this node's streams, or do not.
        for (node, address) in &removal.voters {
            if !self.0.transport.is_connected(*node) {
                self.0.transport.learn(*node, address);
            }
        }
    }

    /// Says who says that this node was removed, where it is not certain.
    #[must_use]
    pub fn said_to_be_removed(&self) -> Option<String> {
        let said = self.0.removals.lock().by(clock::monotonic());
        let nodes: Vec<_> = said.iter().map(ToString::to_string).collect();
        (!nodes.is_empty()).then(|| {
            format!(
                "this node was removed from the cluster, by the word of {}: once most of the voters say so, its daemon ends",
                nodes.join(", ")
            )
        })
    }

    /// Who votes, and where they listen: what [`Removal::voters`] has. Waits for nothing.
    #[must_use]
    pub fn voters(&self) -> Vec<(NodeId, String)> {
        let members = self.members();
        let votes = |node: &u64| members.placed.voters.contains(node);
        let known = members.list.iter().filter(|member| votes(&member.node));
        known.map(|member| (NodeId(member.node), member.address.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{COUNTS, Duration, Heard, Monotonic, NodeId, Removal, Removals};

    fn word(by: u64, voters: &[u64]) -> Removal {
        let voters = voters.iter().map(|node| (NodeId(*node), format!("n{node}:1"))).collect();
        Removal { by: NodeId(by), voters }
    }

    fn at(seconds: u64) -> Monotonic {
        Monotonic(0) + Duration::from_secs(seconds)
    }

    #[test]
    fn one_of_two_is_not_believed_however_often_it_says_so() {
        let mut removals = Removals::default();
        assert_eq!(removals.hear(at(0), &word(2, &[1, 2])), Heard::First);
        assert_eq!(removals.hear(at(1), &word(2, &[1, 2])), Heard::Again);
        assert_eq!(removals.by(at(1)), [NodeId(2)]);
        assert_eq!(removals.hear(at(2), &word(1, &[1, 2])), Heard::Certain);
    }

    /// All that this node has known but one are replaced: the new ones count.
    #[test]
    fn those_who_vote_now_are_asked() {
        let mut removals = Removals::default();
        assert_eq!(removals.hear(at(0), &word(2, &[2, 4, 5])), Heard::First);
        // This one has not heard of 5 yet.
        assert_eq!(removals.hear(at(0), &word(4, &[2, 4])), Heard::Certain);
        let mut removals = Removals::default();
        assert_eq!(removals.hear(at(0), &word(2, &[2, 4, 5])), Heard::First);
        assert_eq!(removals.hear(at(0), &word(9, &[2, 4, 5])), Heard::First, "it has no vote");
        assert_eq!(removals.hear(at(0), &word(5, &[2, 4, 5])), Heard::Certain);
    }

    #[test]
    fn those_who_must_know_are_asked_once() {
        let mut asked = vec!["n2:1".to_owned()];
        let mut removals = Removals::default();
        let mut hear = |word| removals.hear_of_asked(at(0), word, &mut asked);
        assert_eq!(hear(word(2, &[2, 4, 5])), Heard::First);
        assert_eq!(hear(word(4, &[2, 4, 5])), Heard::Certain);
        assert_eq!(asked, ["n2:1", "n4:1", "n5:1"]);
    }

    #[test]
    fn the_only_one_that_is_left_is_believed() {
        assert_eq!(Removals::default().hear(at(0), &word(1, &[1])), Heard::Certain);
        assert_eq!(Removals::default().hear(at(0), &word(1, &[])), Heard::First);
    }

    /// It may have been wrong, and be well again.
    #[test]
    fn an_old_word_does_not_count() {
        let mut removals = Removals::default();
        removals.hear(at(0), &word(2, &[1, 2]));
        let later = at(0) + COUNTS;
        assert_eq!(removals.by(later), []);
        assert_eq!(removals.hear(later, &word(1, &[1, 2])), Heard::First);
    }
}
