//! The kernel's table of mounts. Nothing here looks at a mounted directory itself, which could hang.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, StatxFlags};

/// One line of `/proc/self/mountinfo` (`proc_pid_mountinfo(5)`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MountLine {
    /// The number of the mount; used again once it is gone.
    pub(crate) id: u64,
    /// `major:minor`, the name of its directory in `/sys/class/bdi`.
    pub(crate) device: String,
    /// Where it is, without symbolic links.
    pub(crate) point: PathBuf,
    /// Its type, as `fuse.quorumfs`.
    pub(crate) fs_type: String,
    /// What was mounted.
    pub(crate) source: String,
}

/// All mounts of this process's namespace, in the order in which they were made.
pub(crate) fn all() -> io::Result<Vec<MountLine>> {
    let table = fs::read("/proc/self/mountinfo")?;
    Ok(table.split(|byte| *byte == b'\n').filter_map(parse).collect())
}

/// The uppermost mount at `point`.
pub(crate) fn top(point: &Path) -> io::Result<Option<MountLine>> {
    // The last line is the mount on top.
    Ok(all()?.into_iter().rfind(|line| line.point == point))
}

/// The number of the uppermost mount at `point` that no other mount is ever given (Linux 6.8). What is mounted there is not
/// asked; what is on the way is.
pub(crate) fn unique_id(point: &Path) -> Option<u64> {
    // Not named by rustix yet: STATX_MNT_ID_UNIQUE.
    const UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::SYMLINK_NOFOLLOW;
    let answer = rustix::fs::statx(rustix::fs::CWD, point, flags, UNIQUE).ok()?;
    (answer.stx_mask & UNIQUE.bits() != 0).then_some(answer.stx_mnt_id)
}

fn parse(line: &[u8]) -> Option<MountLine> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let device = String::from_utf8(fields.nth(1)?.to_vec()).ok()?;
    let point = unescape(fields.nth(1)?).into();
    // Optional fields end at a lone `-`.
    let mut after = fields.skip_while(|field| *field != b"-").skip(1);
    let fs_type = String::from_utf8_lossy(after.next()?).into_owned();
    let source = unescape(after.next()?).to_string_lossy().into_owned();
    Some(MountLine { id, device, point, fs_type, source })
}

/// Blanks, tabs, newlines and backslashes are written as `\` and three octal digits.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [byte, tail @ ..] = rest {
        let octal = tail.get(..3).and_then(|digits| str::from_utf8(digits).ok());
        let escaped = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        if let (b'\\', Some(escaped)) = (byte, escaped) {
            bytes.push(escaped);
            rest = &tail[3..];
        } else {
            bytes.push(*byte);
            rest = tail;
        }
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::{MountLine, parse};

    /// The line that a dead mount is recognised by, with and without optional fields.
    #[test]
    fn lines_are_read_whatever_is_in_the_path() {
        let line = b"98 29 0:52 / /mnt/my\\040data rw,relatime master:1 shared:33 - fuse.quorumfs 127.0.0.1:1:/x\\040y rw";
        let wanted = MountLine {
            id: 98,
            device: "0:52".into(),
            point: "/mnt/my data".into(),
            fs_type: "fuse.quorumfs".into(),
            source: "127.0.0.1:1:/x y".into(),
        };
        assert_eq!(parse(line), Some(wanted));
        let bare = parse(b"1 1 8:1 / /mnt\\x rw - ext4 /dev/root rw").expect("a line");
        assert_eq!((bare.fs_type.as_str(), bare.point), ("ext4", "/mnt\\x".into()));
        assert_eq!(parse(b""), None);
    }
}
