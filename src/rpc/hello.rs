//! Who may speak to this daemon.

use tonic::Status;

use super::FORMAT;
use crate::types::ClusterId;

/// Refuses who speaks a newer format, or belongs to another cluster.
pub(super) fn check(own: ClusterId, format: u32, cluster: &[u8]) -> Result<(), Status> {
    if format > FORMAT {
        return Err(Status::failed_precondition(format!(
            "this daemon speaks format {FORMAT} of the peer protocol, the caller {format}: update \
             this one first"
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
