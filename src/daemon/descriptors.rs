//! How many descriptors this process may have open: many programs are started with room for 1,024.

use anyhow::{Context, Result, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What the caches of descriptors, the spare files, the log and the connections come to; see `docs/limits.md`.
const NEEDED: u64 = 4096;
/// More is of no use.
const ENOUGH: u64 = 1 << 16;

/// Raises the limit of this process as far as it may, and as is of use. Its guardian inherits it.
pub(super) fn raise_limit() -> Result<()> {
    let Rlimit { current, mut maximum } = getrlimit(Resource::Nofile);
    if maximum.is_some_and(|maximum| maximum < ENOUGH) {
        // Root may have as many as it wants, unless it was left without that capability.
        let all = Rlimit { current, maximum: Some(ENOUGH) };
        if setrlimit(Resource::Nofile, all).is_ok() {
            maximum = Some(ENOUGH);
        }
    }
    let may = maximum.unwrap_or(u64::MAX);
    ensure!(
        may >= NEEDED,
        "this process may have no more than {may} files open, and a daemon needs {NEEDED}: raise the hard limit \
         (LimitNOFILE= of the service, or ulimit -Hn)"
    );
    let wanted = may.min(ENOUGH);
    if current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    let raised = Rlimit { current: Some(wanted), maximum };
    setrlimit(Resource::Nofile, raised).context("cannot raise the number of files that may be open")
}

#[cfg(test)]
mod tests {
    use super::{NEEDED, Resource, getrlimit, raise_limit};

    #[test]
    fn the_soft_limit_is_raised() {
        raise_limit().expect("where tests run there is room");
        assert!(getrlimit(Resource::Nofile).current.is_none_or(|now| now >= NEEDED));
        raise_limit().expect("it is high enough");
    }
}
