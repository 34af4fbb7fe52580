//! Where this node's daemon has mounted: read after it died, to take away what it left behind.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::{StoreError, durable};

/// The format, then paths, each ended by a NUL.
const FILE: &str = "mounts";
const FORMAT: u64 = 1;

/// The mount points that were recorded last in a data directory.
///
/// # Errors
/// When the disk refuses, or a newer version wrote it.
pub fn recorded_mounts(data: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let path = data.join(FILE);
    let list = match std::fs::read(&path) {
        Ok(list) => list,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(StoreError::io("read", &path)(source)),
    };
    let (formats, points): (Vec<_>, Vec<_>) = list
        .split(|byte| *byte == 0)
        .filter(|part| !part.is_empty())
        .partition(|part| !part.starts_with(b"/"));
    let format = formats.first().and_then(|format| std::str::from_utf8(format).ok()?.parse().ok());
    if let Some(found) = format.filter(|found| *found > FORMAT) {
        return Err(StoreError::Newer { path, what: "format", found, supported: FORMAT });
    }
    let points = points.into_iter();
    Ok(points.map(|point| OsString::from_vec(point.to_vec()).into()).collect())
}

/// Records the mount points. To be called before one is mounted on.
///
/// # Errors
/// When the disk refuses.
pub fn record_mounts(data: &Path, points: &[PathBuf]) -> Result<(), StoreError> {
    let mut list = format!("{FORMAT}\0").into_bytes();
    for point in points {
        list.extend_from_slice(point.as_os_str().as_bytes());
        list.push(0);
    }
    durable::replace(&data.join(FILE), &list)
}

#[cfg(test)]
mod tests {
    use super::{PathBuf, record_mounts, recorded_mounts};

    #[test]
    fn any_path_can_be_recorded() {
        let data = tempfile::tempdir().expect("a directory");
        assert!(recorded_mounts(data.path()).expect("none yet").is_empty());
        let points = ["/mnt/a b", "/mnt/two\nlines"].map(PathBuf::from);
        record_mounts(data.path(), &points).expect("written");
        assert_eq!(recorded_mounts(data.path()).expect("read"), points);
        record_mounts(data.path(), &[]).expect("written");
        assert!(recorded_mounts(data.path()).expect("read").is_empty());
    }
}
