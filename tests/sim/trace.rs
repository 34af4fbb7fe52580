//! What happened, as a hash that two runs of a seed share, and as text for whoever replays one.

use std::fmt::Write as _;
use std::io::Write;

use crate::clock::{MICRO, Nanos};

/// Every event of a run goes through here, printed or not.
pub struct Trace {
    hash: u64,
    out: Option<Box<dyn Write>>,
}

impl Trace {
    pub fn silent() -> Self {
        Self { hash: 0xcbf2_9ce4_8422_2325, out: None }
    }

    /// Prints to the file that `QUORUMFS_TRACE` names, else to stderr.
    pub fn printed() -> Self {
        let out: Box<dyn Write> = match std::env::var_os("QUORUMFS_TRACE") {
            Some(path) => Box::new(std::io::BufWriter::new(
                std::fs::File::create(path).expect("QUORUMFS_TRACE names a file to write"),
            )),
            None => Box::new(std::io::stderr()),
        };
        Self { out: Some(out), ..Self::silent() }
    }

    /// `node` did or met `what`; the values are part of the hash.
    pub fn note(&mut self, at: Nanos, node: u64, what: &str, values: &[(&str, u64)]) {
        self.mix(at);
        self.mix(node);
        for byte in what.bytes() {
            self.mix(u64::from(byte));
        }
        for (_, value) in values {
            self.mix(*value);
        }
        if let Some(out) = &mut self.out {
            let mut line = format!("{:>12.6} n{node} {what}", to_seconds(at));
            for (name, value) in values {
                let _ = write!(line, " {name}={value}");
            }
            let _ = writeln!(out, "{line}");
        }
    }

    /// Something that only a reader wants: not part of the hash.
    pub fn remark(&mut self, at: Nanos, node: u64, text: impl FnOnce() -> String) {
        if let Some(out) = &mut self.out {
            let _ = writeln!(out, "{:>12.6} n{node}   {}", to_seconds(at), text());
        }
    }

    pub fn hash(&self) -> u64 {
        self.hash
    }

    fn mix(&mut self, value: u64) {
        self.hash = (self.hash ^ value).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(29);
    }
}

#[allow(clippy::cast_precision_loss)] // Only printed.
fn to_seconds(at: Nanos) -> f64 {
    (at / MICRO) as f64 / 1e6
}
