//! `quorumfs member`: who belongs to the cluster.

use anyhow::Result;
use clap::Subcommand;

use crate::cli::client::Admin;
use crate::cli::status::{AddressArgs, Member};
use crate::rpc::admin::MemberStatus;
use crate::types::NodeId;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists the members.
    List(ListArgs),
    /// Announces a member; it joins when its daemon is started with an empty data directory.
    ///
    /// Whoever has `cluster` and `peers` in its configuration may join without it. It says the id beforehand, and lets a
    /// node stay without a vote.
    Add(AddArgs),
    /// Takes a node out of the cluster, for good: its data directory is of no use any more.
    Remove(RemoveArgs),
    /// Gives a learner a vote, as soon as it holds everything.
    Promote(NodeArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    at: AddressArgs,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct AddArgs {
    #[command(flatten)]
    at: AddressArgs,
    /// Where its daemon is going to listen (HOST:PORT).
    address: String,
    /// It gets no vote before it is promoted.
    #[arg(long)]
    learner: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct NodeArgs {
    #[command(flatten)]
    at: AddressArgs,
    /// The node's id.
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    node: u64,
}

#[derive(Debug, clap::Args)]
pub(crate) struct RemoveArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Also where too few of the others are in reach to agree on anything afterwards. To agree on this takes a quorum of those
    /// who vote now in any case.
    #[arg(long)]
    force: bool,
}

pub(crate) async fn run(command: &Command) -> Result<()> {
    match command {
        Command::List(args) => list(args).await,
        Command::Add(args) => {
            let mut admin = Admin::connect(&args.at.addr).await?;
            let node = admin.add_member(&args.address, args.learner).await?;
            println!("node {node} may join at {}", args.address);
            Ok(())
        }
        Command::Remove(RemoveArgs { node, force }) => {
            let mut admin = Admin::connect(&node.at.addr).await?;
            admin.remove_member(NodeId(node.node), *force).await?;
            println!("node {} is no member any more", node.node);
            Ok(())
        }
        Command::Promote(args) => {
            let mut admin = Admin::connect(&args.at.addr).await?;
            let is_it = |m: &MemberStatus| m.node == args.node && m.kind == "voter";
            if admin.status().await?.members.iter().any(is_it) {
                println!("node {} has a vote already", args.node);
                return Ok(());
            }
            admin.promote_member(NodeId(args.node)).await?;
            println!("node {} gets a vote as soon as it holds everything", args.node);
            Ok(())
        }
    }
}

async fn list(args: &ListArgs) -> Result<()> {
    let status = Admin::connect(&args.at.addr).await?.status().await?;
    let members: Vec<_> = status.members.into_iter().map(Member::from).collect();
    if args.json {
        println!("{}", serde_json::to_string_pretty(&members)?);
        return Ok(());
    }
    println!("{:>4}  {:<10}  {:<9}  {:>8}  address", "node", "kind", "connected", "lag");
    for Member { node, address, kind, connected, lag, .. } in members {
        let connected = if connected { "yes" } else { "no" };
        let leads = if node == status.leader { " (leads)" } else { "" };
        println!("{node:>4}  {kind:<10}  {connected:<9}  {lag:>8}  {address}{leads}");
    }
    Ok(())
}
