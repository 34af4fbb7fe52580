//! How the last daemons on a data directory ended of their own accord: a panic, or what they could not go on with. A
//! daemon that would do so again and again stays down, with the last reason.
//!
//! Only a daemon writes here, and only what made it end: who is stopped, killed, or loses power leaves nothing, so an
//! operator's `kill -9` in a loop counts nothing. Nothing tells that from the kernel's killing for want of memory, so such loops
//! are for whoever starts the daemon to bound, as `scripts/quorumfs.service` does. A line is `SECONDS KIND REASON`, the time since 1970. A line that
//! cannot be made out is skipped: the file is the only copy of nothing.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::durable;
use crate::store::StoreError;

const FILE: &str = "ends";
/// Lines that are kept.
const KEPT: usize = 20;
/// So many ends within [`WINDOW`] are a loop.
pub const LOOP: usize = 5;
/// See [`LOOP`]. A start that has much to replay takes minutes.
pub const WINDOW: Duration = Duration::from_secs(3600);

/// What made a daemon end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndKind {
    /// Its replica could not go on: the disk refused, or what is on it is not what was written.
    Failed,
    /// A thread panicked.
    Panicked,
    /// The disk was full. That is no loop: the next start waits until there is room.
    Full,
}

impl EndKind {
    const ALL: [(Self, &str); 3] =
        [(Self::Failed, "failed"), (Self::Panicked, "panicked"), (Self::Full, "full")];

    fn name(self) -> &'static str {
        let found = Self::ALL.iter().find(|(kind, _)| *kind == self);
        found.map(|(_, name)| *name).expect("all are there")
    }
}

/// One end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// When, since 1970.
    pub at: Duration,
    /// What kind of end.
    pub kind: EndKind,
    /// A sentence.
    pub reason: String,
}

/// The ends that were recorded last, the oldest first.
///
/// # Errors
/// When the disk cannot read the file.
pub fn recorded_ends(data: &Path) -> Result<Vec<End>, StoreError> {
    let path = data.join(FILE);
    match std::fs::read(&path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).lines().filter_map(parse).collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(StoreError::io("read", &path)(source)),
    }
}

/// Records that the daemon on `data` ends: in the file itself where there is no room for another one, which costs at most some of
/// the older lines.
///
/// # Errors
/// When the disk refuses, which may be why it ends.
pub fn record_end(data: &Path, kind: EndKind, reason: &str) -> Result<(), StoreError> {
    // Where it cannot be read it begins anew.
    let mut ends = recorded_ends(data).unwrap_or_default();
    ends.push(End { at: now(), kind, reason: reason.to_owned() });
    let line = |end: &End| {
        let reason = end.reason.split_whitespace().collect::<Vec<_>>().join(" ");
        format!("{} {} {reason}\n", end.at.as_secs(), end.kind.name())
    };
    let from = ends.len().saturating_sub(KEPT);
    let text: String = ends[from..].iter().map(line).collect();
    let path = data.join(FILE);
    match durable::replace(&path, text.as_bytes()) {
        Err(error) if error.is_full() => {
            std::fs::write(&path, text).map_err(StoreError::io("write", &path))
        }
        replaced => replaced,
    }
}

/// Forgets all ends.
///
/// # Errors
/// When the disk refuses.
pub fn forget_ends(data: &Path) -> Result<(), StoreError> {
    let path = data.join(FILE);
    match std::fs::remove_file(&path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(StoreError::io("remove", &path)(source))
        }
        _ => Ok(()),
    }
}

/// The last end, where the daemons on a directory end again and again.
#[must_use]
pub fn crash_loop(ends: &[End]) -> Option<&End> {
    crash_loop_at(ends, now())
}

/// A clock that was set back must not make old ends new ones.
fn crash_loop_at(ends: &[End], now: Duration) -> Option<&End> {
    let counts = |end: &&End| end.kind != EndKind::Full && end.at.abs_diff(now) <= WINDOW;
    let mut recent = ends.iter().filter(counts);
    let last = recent.next_back()?;
    (recent.count() + 1 >= LOOP).then_some(last)
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn parse(line: &str) -> Option<End> {
    let mut parts = line.splitn(3, ' ');
    let at = Duration::from_secs(parts.next()?.parse().ok()?);
    let name = parts.next()?;
    let (kind, _) = EndKind::ALL.into_iter().find(|(_, known)| *known == name)?;
    Some(End { at, kind, reason: parts.next()?.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::{
        Duration, End, EndKind, KEPT, LOOP, WINDOW, crash_loop, crash_loop_at, forget_ends,
        record_end, recorded_ends,
    };

    fn end(at: u64, kind: EndKind) -> End {
        End { at: Duration::from_secs(at), kind, reason: format!("at {at}") }
    }

    #[test]
    fn ends_are_kept_until_they_are_forgotten() {
        let data = tempfile::tempdir().unwrap();
        assert_eq!(recorded_ends(data.path()).unwrap(), []);
        for number in 0..KEPT + 3 {
            record_end(data.path(), EndKind::Failed, &format!("no\ndisk {number}")).unwrap();
        }
        let ends = recorded_ends(data.path()).unwrap();
        assert_eq!(ends.len(), KEPT);
        assert_eq!(ends[0].reason, "no disk 3");
        assert_eq!(crash_loop(&ends), ends.last());
        forget_ends(data.path()).unwrap();
        forget_ends(data.path()).unwrap();
        assert_eq!(recorded_ends(data.path()).unwrap(), []);
    }

    #[test]
    fn some_ends_within_a_while_are_a_loop() {
        use EndKind::{Failed, Full, Panicked};
        let now = Duration::from_secs(1_000_000);
        let mut ends: Vec<_> = (1..LOOP as u64).map(|n| end(999_000 + n, Panicked)).collect();
        assert_eq!(crash_loop_at(&ends, now), None);
        ends.insert(0, end(999_999 - WINDOW.as_secs(), Failed));
        ends.push(end(999_500, Full));
        assert_eq!(crash_loop_at(&ends, now), None, "too long ago, and a full disk");
        ends.push(end(999_600, Failed));
        assert_eq!(crash_loop_at(&ends, now).map(|end| end.at.as_secs()), Some(999_600));
        assert_eq!(crash_loop_at(&ends, Duration::from_secs(900_000)), None, "of another time");
    }

    /// It says why it stays down, which systemd does not know; and whoever lives for an hour each time is bounded all the same.
    #[test]
    fn systemd_gives_up_later_than_a_daemon_does() {
        let unit = include_str!("../../scripts/quorumfs.service");
        let setting = |name: &str| -> u64 {
            let line = unit.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            line.unwrap_or_else(|| panic!("no {name}")).parse().unwrap()
        };
        let (seconds, starts) = (setting("StartLimitIntervalSec"), setting("StartLimitBurst"));
        assert!(starts > 2 * LOOP as u64);
        assert!(seconds / starts >= WINDOW.as_secs());
        assert!(unit.lines().any(|line| line == "RestartPreventExitStatus=3"));
    }

    /// Whatever becomes of the file, a daemon starts.
    #[test]
    fn a_damaged_record_is_skipped() {
        let data = tempfile::tempdir().unwrap();
        for _ in 0..LOOP {
            record_end(data.path(), EndKind::Panicked, "why").unwrap();
        }
        let path = data.path().join("ends");
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut bytes = whole.clone();
                bytes[at] ^= 1 << bit;
                std::fs::write(&path, &bytes).unwrap();
                assert!(recorded_ends(data.path()).unwrap().len() >= LOOP - 2);
            }
            std::fs::write(&path, &whole[..at]).unwrap();
            assert!(recorded_ends(data.path()).unwrap().len() <= LOOP);
        }
    }
}
