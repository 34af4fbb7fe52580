//! Shared memory, and the descriptors that a process was given without being asked.
#![allow(unsafe_code, reason = "the kernel's own interface; one call each")]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags};

/// Numbers in memory that two processes share. Pages that were never written take no memory.
#[derive(Debug)]
pub(super) struct SharedNumbers {
    start: NonNull<AtomicU64>,
    len: usize,
    memory: OwnedFd,
}

// SAFETY: only atomics are reached through the pointer, and the mapping lives as long as self.
unsafe impl Send for SharedNumbers {}
// SAFETY: as above.
unsafe impl Sync for SharedNumbers {}

impl SharedNumbers {
    /// So many zeros.
    pub(super) fn new(len: usize) -> io::Result<Self> {
        let memory = rustix::fs::memfd_create(c"quorumfs-guardian", MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&memory, (len * size_of::<AtomicU64>()) as u64)?;
        Self::map(memory, len)
    }

    /// Those of another process.
    pub(super) fn of(memory: OwnedFd) -> io::Result<Self> {
        let bytes = usize::try_from(rustix::fs::fstat(&memory)?.st_size).unwrap_or(0);
        Self::map(memory, bytes / size_of::<AtomicU64>())
    }

    fn map(memory: OwnedFd, len: usize) -> io::Result<Self> {
        let (access, bytes) = (ProtFlags::READ | ProtFlags::WRITE, len * size_of::<AtomicU64>());
        // SAFETY: a new mapping at an address that the kernel chooses touches no memory of ours.
        let start = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), bytes, access, MapFlags::SHARED, &memory, 0)?
        };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, len, memory })
    }

    pub(super) fn numbers(&self) -> &[AtomicU64] {
        // SAFETY: so many were mapped, at an address of whole pages; nobody makes the memory smaller.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl AsFd for SharedNumbers {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }
}

impl Drop for SharedNumbers {
    fn drop(&mut self) {
        let bytes = self.len * size_of::<AtomicU64>();
        // SAFETY: the mapping is ours alone, and no reference into it outlives self.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), bytes) };
    }
}

/// Whoever stops the daemon's group stops the daemon: this process ends after it, by itself.
pub(super) fn ignore_requests_to_end() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        // SAFETY: ignoring a signal runs no code of ours.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Closes what was inherited beside standard input, output and error. To be called first in a process: libraries
/// open files without close-on-exec, and a log's lock must not outlive the daemon that took it.
///
/// # Errors
/// When the kernel refuses it.
pub fn close_inherited() -> io::Result<()> {
    // SAFETY: this process has opened nothing yet that anybody could rely on.
    let result = unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
