//! Limits that outcomes depend on. Part of the format: changing one needs a new feature level.

/// How commands and records are encoded, and what applying a command does. There is one level until the first release; see
/// `docs/formats.md`.
pub const FEATURE_LEVEL: u32 = 1;

/// Bytes of a name in a directory.
pub const NAME_MAX: usize = 255;
/// Bytes of a symlink's target.
pub const TARGET_MAX: usize = 4095;
/// Names of a file; subdirectories of a directory, plus 2.
pub const LINK_MAX: u32 = 65_000;
/// Bytes of a file: what ext4 with blocks of 4 KiB can hold. A file that a replica's own file system
/// cannot hold would stop that replica.
pub const SIZE_MAX: u64 = (1 << 44) - 4096;
/// Bytes that one command copies from file to file.
pub const COPY_MAX: u64 = 8 << 20;
/// Ranges of lost bytes that one command gives up.
pub const LOST_MAX: usize = 1024;
/// Bytes of a stage that have a checksum together.
pub const CHECKSUM_BLOCK: u64 = 128 << 10;
/// Bytes of an extended attribute's name.
pub const XATTR_NAME_MAX: usize = 255;
/// Bytes of an extended attribute's value.
pub const XATTR_VALUE_MAX: usize = 64 * 1024;
/// Bytes of an ACL: what a kernel with the smallest pages reads.
pub const ACL_MAX: usize = 4096;
/// Size of a directory, whatever is in it.
pub const DIRECTORY_SIZE: u64 = 4096;
/// Outcomes that are kept for a session, and by how much commands may overtake each other.
pub const OUTCOME_WINDOW: u64 = 1024;
/// Answered commands whose outcomes are forgotten together, so that the session's record is written
/// once for many commands.
pub const PRUNE_BATCH: u64 = 64;
/// Inode numbers that a session starts with.
pub const FIRST_GRANT: u64 = 4096;
/// Inode numbers that a session can ask for at once.
pub const GRANT_MAX: u64 = 1 << 20;
/// Ranges of inode numbers that a session has at once; a new one drops the oldest.
pub const GRANTS_KEPT: usize = 16;
/// One past the largest inode number: bit 63 belongs to the mount's aliases.
pub const INO_END: u64 = 1 << 63;
/// Locks of an inode, and requests that wait for some.
pub const LOCKS_MAX: usize = 4096;
/// Ended sessions of a node that are remembered, so that no late copy of the command that opened one
/// opens it again.
pub const TOMBSTONES_KEPT: usize = 8;
