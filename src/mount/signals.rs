//! Whether a thread that waits has a signal to handle, or is to end: `proc_pid_status(5)` says which signals are
//! pending for the thread (`SigPnd`) and its process (`ShdPnd`), blocked (`SigBlk`), ignored (`SigIgn`) and caught
//! (`SigCgt`). The kernel would tell us, but the library does not pass it on.

use std::io::ErrorKind;

/// Signals that end nobody who does nothing about them (signal(7)).
const HARMLESS: [i32; 8] = [
    libc::SIGCHLD,
    libc::SIGCONT,
    libc::SIGSTOP,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGURG,
    libc::SIGWINCH,
];

/// What is known of a thread's signals, one bit each; bit 0 is signal 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Signals {
    pending: u64,
    blocked: u64,
    ignored: u64,
    caught: u64,
}

/// Whether a thread has a signal to handle, or is gone. Not where it is not known (0).
pub(super) fn is_interrupted(thread: u32) -> bool {
    look(thread, Signals::interrupt)
}

/// Whether a thread has a signal that ends its process, or is gone. Not where it is not known (0).
pub(super) fn is_dying(thread: u32) -> bool {
    look(thread, Signals::end)
}

fn look(thread: u32, judge: impl FnOnce(Signals) -> bool) -> bool {
    if thread == 0 {
        return false;
    }
    match std::fs::read_to_string(format!("/proc/{thread}/status")) {
        Ok(status) => judge(Signals::parse(&status)),
        Err(error) => is_gone(&error),
    }
}

/// A thread that ends while its file is read is not found any more (ESRCH).
fn is_gone(error: &std::io::Error) -> bool {
    error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

impl Signals {
    fn parse(status: &str) -> Self {
        let mut signals = Self::default();
        for line in status.lines() {
            let Some((name, value)) = line.split_once(":\t") else { continue };
            let mask = || u64::from_str_radix(value.trim(), 16).unwrap_or_default();
            match name {
                "SigPnd" | "ShdPnd" => signals.pending |= mask(),
                "SigBlk" => signals.blocked = mask(),
                "SigIgn" => signals.ignored = mask(),
                "SigCgt" => signals.caught = mask(),
                _ => {}
            }
        }
        signals
    }

    fn interrupt(self) -> bool {
        self.pending & !(self.blocked | self.ignored) != 0
    }

    /// SIGKILL always does. For most of the others that nobody catches the kernel adds it.
    fn end(self) -> bool {
        let harmless = HARMLESS.into_iter().fold(0, |mask, signal| mask | bit(signal));
        let kept_off = self.blocked | self.ignored | self.caught | harmless;
        self.pending & (bit(libc::SIGKILL) | !kept_off) != 0
    }
}

fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

#[cfg(test)]
mod tests {
    use super::{Signals, bit, is_dying, is_interrupted};

    fn status(pending: u64, shared: u64, rest: Signals) -> Signals {
        let Signals { pending: _, blocked, ignored, caught } = rest;
        Signals::parse(&format!(
            "Name:\tSigPnd:\nState:\tD (disk sleep)\nSigQ:\t0/31\nSigPnd:\t{pending:016x}\nShdPnd:\t{shared:016x}\n\
             SigBlk:\t{blocked:016x}\nSigIgn:\t{ignored:016x}\nSigCgt:\t{caught:016x}\n"
        ))
    }

    /// Signals count unless they are blocked or ignored, whether sent to the thread or to the process.
    #[test]
    fn what_interrupts() {
        let none = Signals::default();
        let blocked = Signals { blocked: 0x100, ..none };
        let ignored = Signals { ignored: 0x100, ..none };
        assert!(!status(0, 0, none).interrupt());
        assert!(status(0x100, 0, none).interrupt());
        assert!(status(0, 0x4000, blocked).interrupt());
        assert!(!status(0x100, 0, blocked).interrupt());
        assert!(!status(0, 0x100, ignored).interrupt());
    }

    /// Only what ends the process does, and SIGKILL whatever the masks say.
    #[test]
    fn what_ends_a_process() {
        let none = Signals::default();
        let (term, kill) = (bit(libc::SIGTERM), bit(libc::SIGKILL));
        assert!(!status(0, 0, none).end());
        assert!(status(term, 0, none).end() && status(0, term, none).end());
        for kept_off in [
            Signals { blocked: u64::MAX, ..none },
            Signals { ignored: u64::MAX, ..none },
            Signals { caught: u64::MAX, ..none },
        ] {
            assert!(!status(term, term, kept_off).end());
            assert!(status(kill, 0, kept_off).end() && status(0, kill, kept_off).end());
        }
        for harmless in [libc::SIGCHLD, libc::SIGSTOP, libc::SIGTSTP, libc::SIGWINCH, libc::SIGCONT]
        {
            assert!(!status(bit(harmless), bit(harmless), none).end(), "{harmless}");
        }
        let realtime = 1 << 63;
        assert!(status(realtime, 0, none).end());
    }

    #[test]
    fn threads_that_cannot_be_seen_have_no_signals() {
        assert!(!is_dying(0) && !is_interrupted(0));
        assert!(!is_dying(std::process::id()), "this one");
        // No pid is as large as this (proc_sys_kernel(5), pid_max).
        assert!(is_dying(1 << 23) && is_interrupted(1 << 23));
    }
}
