//! System calls that the standard library does not offer. The only unsafe code of the store.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::types::ByteRange;

/// Starts to write dirty pages of a file to the disk (`sync_file_range(2)`), without waiting for it. Makes nothing
/// durable; where it fails, whoever does finds out.
pub(super) fn start_write_back(file: &File) {
    // SAFETY: no memory is passed.
    unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}

/// Starts to read the first bytes of a file (`posix_fadvise(2)`), without waiting for them.
pub(super) fn will_need(file: &File, len: u64) {
    let len = i64::try_from(len).unwrap_or(i64::MAX);
    // SAFETY: no memory is passed.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, len, libc::POSIX_FADV_WILLNEED) };
}

/// Fills `buffer`, with zeros from the end of the file on.
pub(super) fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(more) => done += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    buffer[done..].fill(0);
    Ok(())
}

/// `RESOLVE_CACHED` of `openat2(2)`, which libc lacks.
const RESOLVE_CACHED: u64 = 0x20;

/// Reads what the page cache holds, as `preadv2(2)` with `RWF_NOWAIT`: fewer bytes than asked for
/// where it holds no more, `WouldBlock` where it holds none.
pub(super) fn read_nowait(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let offset = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    let part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: `part` describes `buffer`, which is borrowed mutably for the whole call.
    let read =
        unsafe { libc::preadv2(file.as_raw_fd(), &raw const part, 1, offset, libc::RWF_NOWAIT) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

/// Opens for reading and writing where no disk has to be asked, as `openat2(2)` with
/// `RESOLVE_CACHED` (Linux 5.12): `WouldBlock` where it would.
pub(super) fn open_nowait(path: &Path) -> io::Result<File> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: all-zero is a valid `open_how`: no flags.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = u64::from((libc::O_RDWR | libc::O_CLOEXEC).cast_unsigned());
    how.resolve = RESOLVE_CACHED;
    // SAFETY: `path` is NUL-terminated and `how` has the size that is given; both outlive the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_openat2,
            libc::AT_FDCWD,
            path.as_ptr(),
            &raw const how,
            size_of::<libc::open_how>(),
        )
    };
    match i32::try_from(fd) {
        // SAFETY: the kernel has just given this descriptor to us and to nobody else.
        Ok(fd) if fd >= 0 => Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) })),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Space and inodes of the file system that `file` is on, as `fstatvfs(3)`.
pub(super) fn statvfs(file: &File) -> io::Result<libc::statvfs> {
    let mut answer = MaybeUninit::uninit();
    // SAFETY: `answer` has room for one `statvfs`.
    if unsafe { libc::fstatvfs(file.as_raw_fd(), answer.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so it has filled `answer`.
    Ok(unsafe { answer.assume_init() })
}

/// `struct fiemap` with room for extents (linux/fiemap.h), which libc lacks.
#[repr(C)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    extents: [FiemapExtent; FIEMAP_EXTENTS],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct FiemapExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

const FIEMAP_EXTENTS: usize = 64;
/// `_IOWR('f', 11, struct fiemap)`
const FS_IOC_FIEMAP: libc::Ioctl = 0xc020_660b_u32 as libc::Ioctl;

/// How many bytes of a range have space on the disk, written or not.
pub(super) fn mapped_bytes(file: &File, range: ByteRange) -> io::Result<u64> {
    let mut mapped = 0;
    let mut at = range.start;
    while at < range.end {
        // SAFETY: all-zero is a valid `Fiemap`: integers only.
        let mut map: Fiemap = unsafe { std::mem::zeroed() };
        map.start = at;
        map.length = range.end - at;
        map.extent_count = u32::try_from(FIEMAP_EXTENTS).expect("a small number");
        // SAFETY: `map` has room for as many extents as it says, and outlives the call.
        if unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP, &raw mut map) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let found = usize::try_from(map.mapped_extents).unwrap_or(0).min(FIEMAP_EXTENTS);
        for extent in &map.extents[..found] {
            let end = (extent.logical + extent.length).min(range.end);
            mapped += end.saturating_sub(extent.logical.max(at));
            at = at.max(end);
        }
        if found < FIEMAP_EXTENTS {
            break;
        }
    }
    Ok(mapped)
}

/// Makes the whole file system that `file` is on durable, as `syncfs(2)`.
pub(super) fn syncfs(file: &File) -> io::Result<()> {
    // SAFETY: no memory is involved.
    match unsafe { libc::syncfs(file.as_raw_fd()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The unique id of the mount that `path` is on (`statx(2)` with `STATX_MNT_ID_UNIQUE`, Linux 6.8),
/// and the inode number of `path`; nothing where the kernel has no such ids.
pub(super) fn mount_and_inode(path: &Path) -> io::Result<Option<(u64, u64)>> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mask = libc::STATX_MNT_ID_UNIQUE | libc::STATX_INO;
    let mut answer = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: `path` is NUL-terminated, and `answer` has room for one `statx`.
    let failed =
        unsafe { libc::statx(libc::AT_FDCWD, path.as_ptr(), 0, mask, answer.as_mut_ptr()) } != 0;
    if failed {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all-zero is a valid `statx`, and the call has filled in the rest.
    let answer = unsafe { answer.assume_init() };
    Ok((answer.stx_mask & mask == mask).then_some((answer.stx_mnt_id, answer.stx_ino)))
}

/// Lets the calling thread come after all others: it reads from the disk only where nobody else does
/// (`ioprio_set(2)`, the idle class), and its processor time is the last (`setpriority(2)`).
pub fn run_idly() {
    const WHO_PROCESS: libc::c_long = 1;
    const CLASS_IDLE: libc::c_long = 3 << 13;
    // Others wait for the locks that it takes: it must not wait for ever while it has one.
    let _ = rustix::process::setpriority_process(None, 10);
    // SAFETY: no memory is involved; 0 is the calling thread.
    let _ = unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, CLASS_IDLE) };
}
