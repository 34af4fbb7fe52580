//! What the log asks of raft-engine: its settings, its keys, and that it never takes the process down.

use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Deref;
use std::path::Path;

use raft::eraftpb::{Entry, HardState};
use raft_engine::{Config, Engine, LogBatch, MessageExt, ReadableSize, RecoveryMode};

use crate::store::StoreError;
use crate::store::contained::{contain, contain_everywhere};
use crate::store::error::REJOIN;
use crate::store::room::is_full;
use crate::types::{LogIndex, Term, VolumeId};

pub(super) const VOLUME: u64 = VolumeId::FIRST.0;
/// Encoded hard state.
pub(super) const HARD_STATE: &[u8] = b"hard_state";
/// Index and term of the last entry that was cut off: twice 8 bytes, little-endian.
pub(super) const TRUNCATED: &[u8] = b"truncated";

/// What a person does about a log that the engine gives up on.
const GAVE_UP: &str = "where that panic says that the system refused something (an fsync, a thread), mend that and start the \
     daemon again; otherwise move this data directory away and join the cluster as a new node: the other nodes hold \
     everything that was acknowledged";

/// How the log uses its disk.
#[derive(Clone, Copy, Debug)]
pub struct LogOptions {
    /// Bytes after which a new file is begun.
    pub file_bytes: u64,
    /// Bytes of files beyond which cutting the log gives files back.
    pub purge_bytes: u64,
    /// Whether files are filled with zeros before they are needed, and used again after: an fsync of
    /// a fresh file also has to record where its blocks are (measured: about twice the time). Costs
    /// 1.5 times `purge_bytes` of space, written at the first start.
    pub prefill: bool,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { file_bytes: 32 << 20, purge_bytes: 64 << 20, prefill: true }
    }
}

pub(super) struct EntryCodec;

impl MessageExt for EntryCodec {
    type Entry = Entry;

    fn index(entry: &Entry) -> u64 {
        entry.index
    }
}

/// An engine that is closed when it is dropped.
pub(super) struct OpenEngine(Option<Engine>);

impl OpenEngine {
    /// It reads all files, on threads of its own: nothing else runs that may panic meanwhile.
    pub(super) fn open(dir: &Path, options: LogOptions) -> Result<Self, StoreError> {
        let _of_its_threads = contain_everywhere();
        let open = || Engine::open(config(dir, options));
        match contained("open", dir, open) {
            // Records that are whole, and contradict each other.
            Err(StoreError::LogPanicked { path, .. }) => Err(StoreError::Corrupt {
                path,
                offset: None,
                what: "its engine gave up on it (see its panic above)".to_owned(),
                advice: GAVE_UP,
            }),
            opened => opened.map(|engine| Self(Some(engine))),
        }
    }
}

impl Deref for OpenEngine {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        self.0.as_ref().expect("it is there until this is dropped")
    }
}

impl Drop for OpenEngine {
    fn drop(&mut self) {
        // It syncs its last file, and panics where that fails. What counts was synced before.
        let engine = self.0.take();
        if contain(|| drop(engine)).is_err() {
            tracing::error!("the Raft log cannot be closed");
        }
    }
}

fn config(dir: &Path, options: LogOptions) -> Config {
    Config {
        dir: dir.to_string_lossy().into_owned(),
        // See `check`.
        recovery_mode: RecoveryMode::TolerateTailCorruption,
        batch_compression_threshold: ReadableSize(0),
        target_file_size: ReadableSize(options.file_bytes),
        purge_threshold: ReadableSize(options.purge_bytes),
        enable_log_recycle: options.prefill,
        prefill_for_recycle: options.prefill,
        ..Config::default()
    }
}

/// Fills the file that the engine writes to with zeros to its full size. The engine prepares those that
/// come after it, but this one it takes as it is; without this, each fsync that comes to a fresh block
/// of it waits for a commit of the file system's journal (measured: 1.5 ms in place of 0.2). Where there is no room it goes
/// without. What the file holds is durable on return.
pub(super) fn prefill_current_file(dir: &Path, file_bytes: u64) -> Result<(), StoreError> {
    let mut current = None;
    for entry in std::fs::read_dir(dir).map_err(StoreError::io("list", dir))? {
        let path = entry.map_err(StoreError::io("list", dir))?.path();
        if path.extension().is_some_and(|extension| extension == "raftlog") {
            current = current.max(Some(path));
        }
    }
    let Some(path) = current else { return Ok(()) };
    let fill = || {
        let mut file = OpenOptions::new().write(true).open(&path)?;
        let end = file.seek(SeekFrom::End(0))?;
        let mut zeros = std::io::repeat(0).take(file_bytes.saturating_sub(end));
        match std::io::copy(&mut zeros, &mut file) {
            Err(error) if is_full(&error) => {
                // What is left of the disk is for what has to be written.
                file.set_len(end)?;
                tracing::warn!("no room to prepare the Raft log: its fsyncs are slower for now");
            }
            filled => drop(filled?),
        }
        file.sync_all()
    };
    fill().map_err(StoreError::io("prepare", &path))
}

/// Runs a call of raft-engine. It panics where an fsync fails, and on some damage.
pub(super) fn contained<T>(
    action: &'static str,
    dir: &Path,
    call: impl FnOnce() -> raft_engine::Result<T>,
) -> Result<T, StoreError> {
    use raft_engine::Error;
    match contain(call) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(
            source @ (Error::Corruption(_)
            | Error::Codec(_)
            | Error::Protobuf(_)
            | Error::EntryCompacted
            | Error::EntryNotFound),
        )) => Err(damaged(dir, source.to_string())),
        Ok(Err(source)) => Err(StoreError::Log { action, path: dir.to_owned(), source }),
        Err(_) => Err(StoreError::LogPanicked { action, path: dir.to_owned() }),
    }
}

pub(super) fn damaged(dir: &Path, what: String) -> StoreError {
    StoreError::Corrupt { path: dir.to_owned(), offset: None, what, advice: REJOIN }
}

pub(super) fn put_hard_state(
    batch: &mut LogBatch,
    hard_state: &HardState,
) -> raft_engine::Result<()> {
    batch.put_message(VOLUME, HARD_STATE.to_vec(), hard_state)
}

pub(super) fn encode_truncated(index: LogIndex, term: Term) -> Vec<u8> {
    [index.0.to_le_bytes(), term.0.to_le_bytes()].concat()
}

pub(super) fn decode_truncated(bytes: &[u8]) -> Option<(u64, u64)> {
    let (index, term) = bytes.split_first_chunk()?;
    Some((u64::from_le_bytes(*index), u64::from_le_bytes(term.try_into().ok()?)))
}
