//! What can be wrong with mounting and unmounting: one sentence each.

use std::io;
use std::path::PathBuf;

/// Why a mount could not be made or unmade.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// There are enough of them.
    #[error("this daemon has {most} mounts, and makes no more: unmount one that nobody needs")]
    TooMany {
        /// How many there can be.
        most: usize,
    },
    /// The directory is not there.
    #[error("the mount point {} cannot be used: create the directory first", path.display())]
    MissingMountPoint {
        /// As it was given.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is something else.
    #[error("the mount point {} is not a directory", path.display())]
    NotADirectory {
        /// The mount point.
        path: PathBuf,
    },
    /// Something is there already.
    #[error("a file system ({fs_type}) is already mounted at {}: unmount it first", path.display())]
    AlreadyMounted {
        /// The mount point.
        path: PathBuf,
        /// The type of what is there.
        fs_type: String,
    },
    /// The remains of an earlier daemon cannot be removed.
    #[error("a dead quorumfs mount at {} cannot be removed: run 'umount -l' on it", path.display())]
    DeadMount {
        /// The mount point.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// No FUSE.
    #[error(
        "/dev/fuse cannot be opened: load the kernel module fuse, or give the container access"
    )]
    NoFuseDevice {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The kernel refused the mount.
    #[error(
        "cannot mount at {}: run as root, or install fusermount3 and set user_allow_other in \
         /etc/fuse.conf",
        path.display()
    )]
    Refused {
        /// The mount point.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A thread or a descriptor could not be had.
    #[error("cannot serve the mount at {}", path.display())]
    Serve {
        /// The mount point.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The directory to show as the root is not there.
    #[error("there is no directory \"/{subtree}\" in the file system")]
    NoSubtree {
        /// As it was given.
        subtree: String,
    },
    /// The file system does not answer.
    #[error("the file system does not answer: {reason}")]
    NoAnswer {
        /// Why.
        reason: String,
    },
    /// The daemon is stopping.
    #[error("the daemon is stopping")]
    Stopping,
    /// Programs have files of it open.
    #[error("{} is busy: programs still use it", path.display())]
    Busy {
        /// The mount point.
        path: PathBuf,
    },
    /// The kernel does not change the mount.
    #[error("cannot remount {}", path.display())]
    Remount {
        /// The mount point.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The mount could not be taken away.
    #[error("cannot unmount {}: run 'umount -l' on it", path.display())]
    Unmount {
        /// The mount point.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}
