//! The replicated state machine against a plain model of a POSIX tree: random commands of two nodes,
//! with retries, must have the model's outcomes and leave the model's tree.

#[path = "model/acls.rs"]
mod acls;
#[path = "model/actions.rs"]
mod actions;
#[path = "model/likeness.rs"]
mod likeness;
#[path = "model/replica.rs"]
mod replica;
#[path = "model/tree.rs"]
mod tree;

use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, proptest};

use actions::{Action, action};
use replica::Replica;
use tree::Tree;

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 4, ..ProptestConfig::default() })]

    #[test]
    fn random_commands_do_what_posix_says(actions in vec(action(), 1..120)) {
        run(&actions);
    }
}

fn run(actions: &[Action]) {
    let mut replica = Replica::new();
    let mut tree = Tree::new();
    let opened = [Action::Open { node: 0 }, Action::Open { node: 1 }];
    for (index, action) in (1..).zip(opened.iter().chain(actions)) {
        actions::take(&mut replica, &mut tree, index, action);
        replica.check();
        tree.assert_like(&replica);
    }
    replica.check_history();
}
