//! A Python in some directory, told one line of code at a time.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use super::program::Program;

/// A running Python; what its lines define stays. Killed when dropped.
#[derive(Debug)]
pub struct Python(Program);

impl Python {
    pub fn start(program: impl AsRef<OsStr>, dir: &Path) -> Self {
        const LOOP: &str = "import sys\nfor line in sys.stdin: exec(line, globals())";
        let mut python = Command::new(program);
        Self(Program::spawn(python.args(["-u", "-c", LOOP]).current_dir(dir)))
    }

    /// Runs one line of code, which must not fail.
    pub fn does(&mut self, code: &str) {
        self.begins(code);
        self.is_done();
    }

    /// The same, to be waited for with [`Self::is_done`].
    pub fn begins(&mut self, code: &str) {
        self.tell(&format!("{code}; print('done')"));
    }

    /// Whether it is, if that comes within the time.
    pub fn is_done_within(&mut self, limit: std::time::Duration) -> bool {
        self.0.answer_within(limit).is_some_and(|answer| answer == "done")
    }

    pub fn is_done(&mut self) {
        assert_eq!(self.0.answer(), "done");
    }

    /// Runs code that prints a line.
    pub fn says(&mut self, code: &str) -> String {
        self.0.ask(code)
    }

    /// Runs code that prints nothing, without waiting.
    pub fn tell(&mut self, code: &str) {
        self.0.tell(code);
    }

    pub fn kill(self) {
        self.0.kill();
    }
}
