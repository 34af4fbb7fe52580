//! What can be wrong with a mount point, and what the kernel's table of mounts says about it.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::mount_error::MountError;
use super::sys;

/// What kind of FUSE mount ours are.
pub(super) const SUBTYPE: &str = "quorumfs";
/// The type of our mounts in the kernel's table.
pub(super) const FS_TYPE: &str = "fuse.quorumfs";
/// A mount that answers nothing for so long is alive and stuck.
const PROBE_DEADLINE: Duration = Duration::from_secs(2);
/// Cuts read requests fourfold against the default of 128.
const READ_AHEAD_KIB: &str = "1024";

/// One line of `/proc/self/mountinfo` (`proc_pid_mountinfo(5)`).
#[derive(Debug, PartialEq, Eq)]
struct MountLine {
    /// `major:minor`, the name of its directory in `/sys/class/bdi`.
    device: String,
    point: PathBuf,
    fs_type: String,
}

/// Makes sure that something can be mounted at `path`, and answers its absolute form. What an
/// earlier daemon left there, dead, is removed.
pub(super) fn prepare(path: &Path) -> Result<PathBuf, MountError> {
    let missing = |source| MountError::MissingMountPoint { path: path.into(), source };
    let point = absolute(path).map_err(missing)?;
    // The last line is the mount on top.
    while let Some(mounted) = find(&point) {
        if !mounted.is_ours() || !is_dead(&point) {
            let fs_type = mounted.fs_type;
            return Err(MountError::AlreadyMounted { path: point, fs_type });
        }
        tracing::info!(path = %point.display(), "removing a dead quorumfs mount");
        sys::detach(&point, false)
            .map_err(|source| MountError::DeadMount { path: point.clone(), source })?;
    }
    let metadata = fs::metadata(&point).map_err(missing)?;
    if !metadata.is_dir() {
        return Err(MountError::NotADirectory { path: point });
    }
    if let Err(source) = fs::OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        return Err(MountError::NoFuseDevice { source });
    }
    Ok(point)
}

/// What the kernel calls the uppermost mount at `point`.
pub(super) fn device(point: &Path) -> Option<String> {
    find(point).map(|mounted| mounted.device)
}

/// Whether the uppermost mount at `point` is that one.
pub(super) fn is_there(point: &Path, device: &str) -> bool {
    find(point).is_some_and(|mounted| mounted.device == device)
}

/// Breaks the connection of a mount: whatever waits for it fails. Only where fusectl is mounted.
pub(super) fn abort(device: &str) {
    let Some((_, minor)) = device.split_once(':') else { return };
    let setting = format!("/sys/fs/fuse/connections/{minor}/abort");
    if let Err(error) = fs::write(&setting, "1") {
        tracing::debug!(%setting, %error, "the connection lives until its last file is closed");
    }
}

/// Lets the kernel read further ahead; where it may not, everything works, slower.
pub(super) fn raise_read_ahead(device: &str) {
    let setting = format!("/sys/class/bdi/{device}/read_ahead_kb");
    if let Err(error) = fs::write(&setting, READ_AHEAD_KIB) {
        tracing::info!(%setting, %error, "read-ahead stays small");
    }
}

impl MountLine {
    fn is_ours(&self) -> bool {
        self.fs_type == FS_TYPE
    }
}

/// The absolute path of a mount point, without asking what is mounted there: a dead mount answers nothing.
///
/// # Errors
/// When its parent cannot be found.
pub fn absolute(path: &Path) -> io::Result<PathBuf> {
    // Its attributes would be those of what is mounted there.
    let is_link = fs::read_link(path).is_ok();
    match (path.file_name(), path.parent()) {
        (Some(name), Some(parent)) if !is_link => {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            Ok(parent.canonicalize()?.join(name))
        }
        _ => path.canonicalize(),
    }
}

/// Whether the daemon behind a mount is gone. Asked on a thread of its own: one that is alive may be
/// stuck, and then never answers.
fn is_dead(point: &Path) -> bool {
    let (answer, answered) = crossbeam_channel::bounded(1);
    let point = point.to_owned();
    std::thread::spawn(move || {
        let error = fs::metadata(point).err().and_then(|error| error.raw_os_error());
        // Nobody listens after the deadline.
        let _ = answer.send(matches!(error, Some(libc::ECONNABORTED | libc::ENOTCONN)));
    });
    answered.recv_timeout(PROBE_DEADLINE).unwrap_or(false)
}

fn find(point: &Path) -> Option<MountLine> {
    let table = fs::read("/proc/self/mountinfo").ok()?;
    let mut from_the_last = table.rsplit(|byte| *byte == b'\n').filter_map(parse);
    from_the_last.find(|line| line.point == point)
}

fn parse(line: &[u8]) -> Option<MountLine> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = String::from_utf8(fields.nth(2)?.to_vec()).ok()?;
    let point = unescape(fields.nth(1)?);
    let fs_type = fields.skip_while(|field| *field != b"-").nth(1)?;
    Some(MountLine { device, point, fs_type: String::from_utf8_lossy(fs_type).into_owned() })
}

/// Blanks and backslashes are written in octal, as `\040`.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [byte, tail @ ..] = rest {
        let octal = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let escaped = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        if let (b'\\', Some(escaped)) = (byte, escaped) {
            bytes.push(escaped);
            rest = &tail[3..];
        } else {
            bytes.push(*byte);
            rest = tail;
        }
    }
    std::ffi::OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::{FS_TYPE, MountError, MountLine, Path, fs, parse, prepare};

    /// The line that a dead mount is recognised by, with and without optional fields.
    #[test]
    fn mountinfo() {
        let line =
            br"98 29 0:52 / /mnt/my\040data rw,relatime shared:33 - fuse.quorumfs 127.0.0.1:1:/ rw";
        let wanted = MountLine {
            device: "0:52".into(),
            point: "/mnt/my data".into(),
            fs_type: FS_TYPE.into(),
        };
        assert!(wanted.is_ours());
        assert_eq!(parse(line), Some(wanted));
        let bare = parse(b"1 1 8:1 / / rw - ext4 /dev/root rw").expect("a line");
        assert_eq!((bare.fs_type.as_str(), bare.point), ("ext4", "/".into()));
        assert_eq!(parse(b""), None);
    }

    /// Each thing that is wrong with a mount point has its own sentence.
    #[test]
    fn what_is_wrong() {
        let dir = tempfile::tempdir().expect("a directory");
        let missing = prepare(&dir.path().join("missing")).expect_err("missing");
        assert!(matches!(missing, MountError::MissingMountPoint { .. }), "{missing}");
        let file = dir.path().join("file");
        fs::write(&file, "").expect("written");
        let not_a_directory = prepare(&file).expect_err("a file");
        assert!(matches!(not_a_directory, MountError::NotADirectory { .. }));
        let mounted = prepare(Path::new("/proc")).expect_err("procfs is there");
        assert!(
            matches!(&mounted, MountError::AlreadyMounted { fs_type, .. } if fs_type == "proc")
        );
    }
}
