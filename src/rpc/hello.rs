//! Who may speak to this daemon.

use tonic::Status;

use super::peer::Hello;
use super::{FORMAT, removal};
use crate::node::Handle;
use crate::types::{ClusterId, NodeId};

/// Refuses who speaks another format, belongs to another cluster, means another node, or is no member any more (with
/// `PERMISSION_DENIED`, which nobody else answers). Answers who it is.
pub(super) fn admit(own: ClusterId, handle: &Handle, hello: &Hello) -> Result<NodeId, Status> {
    let from = recognize(own, handle, hello)?;
    if handle.members().is_removed(from) {
        return Err(removal::refuse(handle, from));
    }
    Ok(from)
}

/// The same for what is heard from former members, too.
pub(super) fn recognize(own: ClusterId, handle: &Handle, hello: &Hello) -> Result<NodeId, Status> {
    check(own, hello.format, &hello.cluster)?;
    let (node, from) = (handle.node(), NodeId(hello.node));
    // A node that has lost its state asks whoever there is.
    if hello.to != 0 && hello.to != node.0 {
        return Err(Status::failed_precondition(format!(
            "this daemon is node {node}, not node {}: if the disk of that one is lost, remove it (quorumfs member \
             remove {}); otherwise correct `listen` or `advertise` in the configuration of one of them",
            hello.to, hello.to
        )));
    }
    Ok(from)
}

/// Refuses who speaks another format, or belongs to another cluster.
pub(super) fn check(own: ClusterId, format: u32, cluster: &[u8]) -> Result<(), Status> {
    if format != FORMAT {
        return Err(Status::failed_precondition(format!(
            "this daemon speaks format {FORMAT} of the peer protocol, the caller {format}: run the same \
             version of quorumfs on both"
        )));
    }
    if cluster != own.0 {
        return Err(Status::failed_precondition(format!(
            "this daemon belongs to cluster {own}: correct `cluster` in the caller's configuration, or \
             the address by which it was called"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{ClusterId, FORMAT, check};

    #[test]
    fn who_speaks_another_format_or_is_of_another_cluster_is_told_what_to_do() {
        let own = ClusterId([1; 16]);
        assert!(check(own, FORMAT, &[1; 16]).is_ok());
        for format in [FORMAT - 1, FORMAT + 1] {
            let refused = check(own, format, &[1; 16]).unwrap_err();
            assert!(refused.message().contains("the same version"), "{refused}");
            assert!(refused.message().contains(&format!("the caller {format}")), "{refused}");
        }
        let refused = check(own, FORMAT, &[2; 16]).unwrap_err();
        assert!(refused.message().contains("correct `cluster`"), "{refused}");
    }
}
