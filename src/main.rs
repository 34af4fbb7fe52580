//! The `quorumfs` command.

fn main() {}
