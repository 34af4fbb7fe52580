//! `quorumfs leader transfer`: hands leadership over.

use anyhow::Result;
use clap::Subcommand;

use crate::cli::client::Admin;
use crate::cli::status::AddressArgs;
use crate::types::NodeId;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Hands leadership over to a node, or to any that is up to date; whichever daemon is asked passes it on.
    Transfer(TransferArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct TransferArgs {
    #[command(flatten)]
    at: AddressArgs,
    /// The id of the node that is to lead.
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    node: Option<u64>,
}

pub(crate) async fn run(command: &Command) -> Result<()> {
    match command {
        Command::Transfer(args) => {
            let mut admin = Admin::connect(&args.at.addr).await?;
            let leader = admin.transfer_leader(args.node.map(NodeId)).await?;
            println!("node {leader} leads");
            Ok(())
        }
    }
}
