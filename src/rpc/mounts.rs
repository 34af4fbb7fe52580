//! What the admin service asks of a daemon's mounts. The daemon implements it: `rpc` knows no mounts.

use std::path::PathBuf;

use super::admin::{MountInfo, MountRequest};

/// Why a mount was not made, changed or taken away: one sentence for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MountsError {
    /// What was asked for makes no sense.
    #[error("{0}")]
    Usage(String),
    /// It was tried, or could not be.
    #[error("{0}")]
    Failed(String),
    /// There is no such mount of this daemon.
    #[error("{} is not a mount of this daemon", .0.display())]
    Unknown(PathBuf),
}

/// The mounts of a daemon.
#[tonic::async_trait]
pub trait Mounts: Send + Sync {
    /// Mounts, or changes a mount where the options say so.
    async fn mount(&self, request: MountRequest) -> Result<(), MountsError>;

    /// Takes a mount away.
    async fn unmount(&self, point: PathBuf, lazy: bool) -> Result<(), MountsError>;

    /// All that there are.
    async fn list(&self) -> Vec<MountInfo>;

    /// The one of the configuration, and whether it serves.
    fn configured(&self) -> Option<(PathBuf, bool)>;

    /// Whether the daemon has a guardian at present.
    fn is_guarded(&self) -> bool;

    /// Whether the kernel has dentry epochs, as far as a mount has found out.
    fn has_epochs(&self) -> bool;
}
