//! Wall-clock times between records, the clock and fuser; and relatime's rule.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::fs::proto::{Inode, Time};

/// relatime renews an access time older than this.
const RELATIME_SECONDS: i64 = 24 * 60 * 60;

/// The present time.
pub(super) fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time { seconds: seconds(since), nanos: since.subsec_nanos() }
}

/// A record's time as fuser wants it.
pub(super) fn to_system(time: Time) -> SystemTime {
    let whole = Duration::from_secs(time.seconds.unsigned_abs());
    let nanos = Duration::from_nanos(u64::from(time.nanos));
    let at = if time.seconds < 0 {
        UNIX_EPOCH.checked_sub(whole)
    } else {
        UNIX_EPOCH.checked_add(whole)
    };
    at.and_then(|at| at.checked_add(nanos)).unwrap_or(UNIX_EPOCH)
}

/// A time that fuser decoded from a request.
///
/// fuser 0.18 subtracts the nanoseconds of times before 1970 instead of adding them
/// (`system_time_from_time`), so they are read back the same wrong way.
pub(super) fn from_fuser(time: SystemTime) -> Time {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Time { seconds: seconds(after), nanos: after.subsec_nanos() },
        Err(before) => {
            let before = before.duration();
            Time { seconds: -seconds(before), nanos: before.subsec_nanos() }
        }
    }
}

/// The later of two times.
pub(super) fn later(a: Time, b: Time) -> Time {
    if (a.seconds, a.nanos) >= (b.seconds, b.nanos) { a } else { b }
}

/// Whether relatime renews the access time at an open: where it is not after the last change, or a
/// day old.
pub(super) fn wants_touch(inode: &Inode, now: Time) -> bool {
    let key = |time: &Option<Time>| time.map_or((0, 0), |time| (time.seconds, time.nanos));
    let atime = key(&inode.atime);
    atime <= key(&inode.mtime)
        || atime <= key(&inode.ctime)
        || atime.0.saturating_add(RELATIME_SECONDS) <= now.seconds
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::{Duration, Inode, Time, UNIX_EPOCH, from_fuser, to_system, wants_touch};

    fn at(seconds: i64) -> Time {
        Time { seconds, nanos: 5 }
    }

    /// The rule of mount(8), relatime.
    #[test]
    fn relatime() {
        let now = Time { seconds: 1_000_000, nanos: 0 };
        let inode = |atime, mtime, ctime| Inode {
            atime: Some(at(atime)),
            mtime: Some(at(mtime)),
            ctime: Some(at(ctime)),
            ..Inode::default()
        };
        assert!(!wants_touch(&inode(999_000, 998_000, 998_500), now));
        assert!(wants_touch(&inode(999_000, 999_000, 998_500), now), "read before it was written");
        assert!(wants_touch(&inode(999_000, 998_000, 999_001), now), "attributes changed since");
        assert!(wants_touch(&inode(900_000, 1, 1), now), "more than a day old");
    }

    /// Times before 1970 with a fraction survive fuser's decoding and encoding.
    #[test]
    fn times_before_1970() {
        let time = Time { seconds: -2, nanos: 250_000_000 };
        let decoded_by_fuser = UNIX_EPOCH - Duration::new(2, 250_000_000);
        assert_eq!(from_fuser(decoded_by_fuser), time);
        let encoded = UNIX_EPOCH.duration_since(to_system(time)).expect("before 1970");
        assert_eq!(encoded, Duration::from_millis(1750));
    }
}
