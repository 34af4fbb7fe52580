//! A program that does what a test says, one line at a time: it holds files and locks of its own.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::PATIENCE;

/// A running `locker.py`, or another one of its kind. Killed when dropped.
#[derive(Debug)]
pub struct Program {
    child: Child,
    input: ChildStdin,
    answers: Receiver<String>,
}

impl Program {
    pub fn start() -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/locker.py");
        Self::spawn(Command::new("python3").arg(script))
    }

    /// One that prints a line for each that it reads.
    pub fn spawn(command: &mut Command) -> Self {
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = piped.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let input = child.stdin.take().expect("piped");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let (send, answers) = channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, input, answers }
    }

    /// One that has a file open under the name `f`.
    pub fn with(path: &Path) -> Self {
        let mut program = Self::start();
        assert_eq!(program.ask(&format!("open f {}", path.display())), "ok");
        program
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Says something, without waiting for the answer.
    pub fn tell(&mut self, line: &str) {
        writeln!(self.input, "{line}").expect("it listens");
    }

    /// The next answer.
    pub fn answer(&mut self) -> String {
        self.answers.recv_timeout(PATIENCE).expect("an answer")
    }

    /// The next answer, if it comes within the time.
    pub fn answer_within(&mut self, limit: Duration) -> Option<String> {
        match self.answers.recv_timeout(limit) {
            Ok(answer) => Some(answer),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => panic!("the program has ended"),
        }
    }

    pub fn ask(&mut self, line: &str) -> String {
        self.tell(line);
        self.answer()
    }

    /// Sends it SIGKILL, and does not wait.
    pub fn begin_to_kill(&mut self) {
        self.child.kill().expect("it runs");
    }

    /// Whether it has ended by then, together with its children, all of which print where it does.
    pub fn is_gone_by(&mut self, deadline: Instant) -> bool {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.answers.recv_timeout(left) {
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => return false,
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        // It has closed its output, so it is about to.
        loop {
            if self.child.try_wait().expect("it is ours").is_some() {
                return true;
            }
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Kills it and waits until it is gone: not before a system call that it is in has ended.
    pub fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
