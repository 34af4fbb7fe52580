//! raft-rs logs through `slog`; this brings its lines to `tracing`.

use std::fmt::{self, Write as _};

use slog::{Drain, KV, Key, Level, Logger, Never, OwnedKVList, Record, Serializer};

/// A logger for raft-rs. Its lines have the target `raft`.
pub fn raft_logger() -> Logger {
    Logger::root(ToTracing, slog::o!())
}

struct ToTracing;

impl Drain for ToTracing {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), Never> {
        macro_rules! forward {
            ($level:ident) => {
                if tracing::enabled!(target: "raft", tracing::Level::$level) {
                    let line = Line::of(record, values);
                    tracing::event!(target: "raft", tracing::Level::$level, "{line}");
                }
            };
        }
        match record.level() {
            Level::Critical | Level::Error => forward!(ERROR),
            Level::Warning => forward!(WARN),
            Level::Info => forward!(INFO),
            Level::Debug => forward!(DEBUG),
            Level::Trace => forward!(TRACE),
        }
        Ok(())
    }
}

/// A message and its values, as `message key=value …`.
struct Line(String);

impl Line {
    fn of(record: &Record<'_>, values: &OwnedKVList) -> Self {
        let mut line = Self(record.msg().to_string());
        // A value that cannot be printed is left out: there is nobody to tell.
        let _ = record.kv().serialize(record, &mut line);
        let _ = values.serialize(record, &mut line);
        line
    }
}

impl Serializer for Line {
    fn emit_arguments(&mut self, key: Key, value: &fmt::Arguments<'_>) -> slog::Result {
        write!(self.0, " {key}={value}").map_err(slog::Error::from)
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
