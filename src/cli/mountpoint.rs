//! Mount points as the kernel lists them. Nothing here looks at a mounted directory itself, which
//! could hang.

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::cli::sys;

/// A mount of this process's namespace.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) path: PathBuf,
    pub(crate) kind: String,
    pub(crate) source: String,
}

/// All mounts, in the order in which they were made.
pub(crate) fn mounts() -> Result<Vec<Mount>> {
    let list = fs::read("/proc/self/mountinfo").context("cannot read the list of mounts")?;
    Ok(list.split(|byte| *byte == b'\n').filter_map(parse).collect())
}

/// Whether anything is mounted on `path`, as [`resolve`] gives it.
pub(crate) fn is_mounted(path: &Path) -> Result<bool> {
    Ok(mounts()?.iter().any(|mount| mount.path == path))
}

/// Whether the uppermost mount on `path` is one of FUSE.
pub(crate) fn is_fuse(path: &Path) -> Result<bool> {
    let mounts = mounts()?;
    let top = mounts.iter().rfind(|mount| mount.path == path);
    Ok(top.is_some_and(|mount| mount.kind == "fuse" || mount.kind.starts_with("fuse.")))
}

/// The path as the kernel lists it: its parent without symbolic links, itself not looked at.
pub(crate) fn resolve(path: &Path) -> Result<PathBuf> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(path.to_owned());
    };
    match fs::canonicalize(parent) {
        Ok(parent) => Ok(parent.join(name)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(path.to_owned()),
        Err(error) => Err(error).with_context(|| format!("cannot look at {}", parent.display())),
    }
}

/// Takes away every mount on `path`, in use or not.
pub(crate) fn unmount(path: &Path) -> Result<()> {
    // Mounts can lie on top of each other; nobody stacks them this high.
    for _ in 0..16 {
        if !is_mounted(path)? {
            return Ok(());
        }
        if let Err(error) = sys::unmount_lazily(path) {
            ensure!(
                error.raw_os_error() == Some(libc::EPERM) && unmount_as_user(path),
                "cannot unmount {}: {error}",
                path.display()
            );
        }
    }
    ensure!(!is_mounted(path)?, "cannot unmount {}: it is mounted again", path.display());
    Ok(())
}

fn unmount_as_user(path: &Path) -> bool {
    Command::new("fusermount3")
        .args(["-u", "-z", "--"])
        .arg(path)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// One line of `proc_pid_mountinfo(5)`: the path is the fifth field, type and source follow a lone `-`.
fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let path = unescape(fields.nth(4)?);
    let mut after = fields.skip_while(|field| *field != b"-").skip(1);
    let kind = String::from_utf8_lossy(after.next()?).into_owned();
    let source = unescape(after.next()?).to_string_lossy().into_owned();
    Some(Mount { path, kind, source })
}

/// Blanks, tabs, newlines and backslashes are written as `\` and three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, after @ ..] = rest {
        let octal = after
            .get(..3)
            .filter(|_| *first == b'\\')
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(octal.unwrap_or(*first));
        rest = if octal.is_some() { &after[3..] } else { after };
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::{Mount, parse};

    #[test]
    fn lines_are_read_whatever_is_in_the_path() {
        let line = b"36 35 98:0 / /mnt/a\\040b rw,noatime master:1 shared:2 - fuse.quorumfs h:1:/x\\040y rw";
        let (kind, source) = ("fuse.quorumfs".into(), "h:1:/x y".into());
        let mount = Mount { path: "/mnt/a b".into(), kind, source };
        assert_eq!(parse(line), Some(mount));
        assert_eq!(parse(b""), None);
        let plain = parse(b"36 35 98:0 / /mnt\\x rw - ext4 /dev/sda rw").expect("a mount");
        assert_eq!(plain.path.to_str(), Some("/mnt\\x"));
    }
}
