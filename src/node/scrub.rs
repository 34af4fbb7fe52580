//! `quorumfs scrub`: reads files on all replicas, compares what it finds, and has what is rotten healed.
//!
//! The node that is asked walks through the files; each replica reads its own blocks and compares them with its
//! checksums ([`super::blocks`]), and this one compares what they say ([`super::scrub_file`]). Whoever asks can go
//! away at any time: what was found missing by then is fetched all the same.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::handle::Handle;
use crate::fs::{proto, query};
use crate::store::StoreError;
use crate::types::{Ino, NodeId};

/// How often it is said how far it is.
const EVERY: Duration = Duration::from_millis(250);
/// Files that are examined at once.
const AT_ONCE: usize = 4;
/// Names that are looked at together.
const PAGE: usize = 128;

/// What is to be scrubbed, and how fast.
#[derive(Clone, Debug)]
pub struct ScrubOptions {
    /// A file or a directory, by its path below the root of the file system; empty for everything.
    pub path: Vec<u8>,
    /// Bytes of files in a second at most.
    pub rate: Option<u64>,
}

/// How far a scrub is.
#[derive(Clone, Debug, Default)]
pub struct ScrubReport {
    /// Files that are done.
    pub files: u64,
    /// Of so many, as far as they have been counted.
    pub files_total: u64,
    /// Bytes that are done.
    pub bytes: u64,
    /// Of so many.
    pub bytes_total: u64,
    /// Whether they have all been counted.
    pub counted: bool,
    /// Blocks that were rotten, on whatever replica.
    pub found: u64,
    /// Those of them that are what they should be again.
    pub healed: u64,
    /// What could not be healed, or not be judged.
    pub unhealed: u64,
    /// Files that changed all the time and were left out.
    pub skipped: u64,
    /// Nodes that did not answer for all files.
    pub unasked: BTreeSet<NodeId>,
    /// What was found just now.
    pub finding: Option<ScrubFinding>,
    /// Nothing more comes.
    pub done: bool,
}

/// Something that is not well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScrubFinding {
    /// Path of the file below the root of the file system.
    pub path: Vec<u8>,
    /// Its inode.
    pub ino: Ino,
    /// Where in it, in bytes.
    pub offset: u64,
    /// What, as a sentence.
    pub what: String,
    /// Whether it is well again.
    pub healed: bool,
}

/// A file that is to be examined.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) ino: Ino,
    pub(super) path: Vec<u8>,
    pub(super) size: u64,
}

/// A scrub that runs.
pub(super) struct Scrub {
    pub(super) handle: Handle,
    rate: Option<u64>,
    /// When more may be read.
    next: Mutex<Instant>,
    pub(super) report: Mutex<ScrubReport>,
    reports: mpsc::Sender<ScrubReport>,
}

impl Handle {
    /// Scrubs. The reports end with one that says so; it stops where they are no longer wanted. Nothing where there
    /// is no such file.
    ///
    /// # Errors
    /// When this replica cannot read its own state.
    pub fn scrub(
        &self,
        options: &ScrubOptions,
    ) -> Result<Option<mpsc::Receiver<ScrubReport>>, StoreError> {
        let Some(walk) = Walk::from(self, &options.path)? else { return Ok(None) };
        let (reports, received) = mpsc::channel(16);
        let scrub = Arc::new(Scrub {
            handle: self.clone(),
            rate: options.rate,
            next: Mutex::new(Instant::now()),
            report: Mutex::default(),
            reports,
        });
        self.0.runtime.spawn(async move {
            tokio::select! {
                () = scrub.run(walk) => scrub.tell(None, true).await,
                () = scrub.tell_now_and_then() => {}
                () = scrub.reports.closed() => tracing::info!("a scrub was interrupted"),
            }
        });
        Ok(Some(received))
    }
}

impl Scrub {
    async fn run(self: &Arc<Self>, walk: Walk) {
        let (scrub, to_count) = (self.clone(), walk.clone());
        let counting = tokio::task::spawn_blocking(move || scrub.count(to_count));
        let (checked, counted) = tokio::join!(self.check(walk), counting);
        let counted = counted.unwrap_or(Ok(()));
        if let Err(error) = checked.and(counted) {
            let what = format!("this node cannot go on: {error}");
            self.failed(&Found { ino: Ino::ROOT, path: Vec::new(), size: 0 }, 0, what).await;
        }
    }

    /// Goes through the names once, to say what there is to do.
    fn count(&self, mut walk: Walk) -> Result<(), StoreError> {
        while let Some(page) = walk.next(&self.handle)? {
            if self.reports.is_closed() {
                break;
            }
            let mut report = self.report.lock();
            report.files_total += page.len() as u64;
            report.bytes_total += page.iter().map(|file| file.size).sum::<u64>();
        }
        self.report.lock().counted = true;
        Ok(())
    }

    async fn check(&self, mut walk: Walk) -> Result<(), StoreError> {
        loop {
            let handle = self.handle.clone();
            let walked = tokio::task::spawn_blocking(move || {
                let page = walk.next(&handle);
                (page, walk)
            });
            // The daemon is stopping.
            let Ok((page, rest)) = walked.await else { return Ok(()) };
            let Some(page) = page? else { return Ok(()) };
            walk = rest;
            stream::iter(page)
                .for_each_concurrent(AT_ONCE, |file| async move { self.file(&file).await })
                .await;
        }
    }

    /// Waits until so many bytes more may be read.
    pub(super) async fn take_turn(&self, bytes: u64) {
        let Some(rate) = self.rate else { return };
        let turn = {
            let mut next = self.next.lock();
            let turn = (*next).max(Instant::now());
            *next = turn + Duration::from_secs(1).mul_f64(per_second(bytes, rate));
            turn
        };
        tokio::time::sleep_until(turn.into()).await;
    }

    /// Something could not be healed, or not be judged.
    pub(super) async fn failed(&self, file: &Found, offset: u64, what: String) {
        self.report.lock().unhealed += 1;
        let (path, ino) = (file.path.clone(), file.ino);
        self.tell(Some(ScrubFinding { path, ino, offset, what, healed: false }), false).await;
    }

    /// A block was rotten, and is well again.
    pub(super) async fn healed(&self, file: &Found, offset: u64, what: String) {
        self.report.lock().healed += 1;
        let (path, ino) = (file.path.clone(), file.ino);
        self.tell(Some(ScrubFinding { path, ino, offset, what, healed: true }), false).await;
    }

    async fn tell(&self, finding: Option<ScrubFinding>, done: bool) {
        let report = ScrubReport { finding, done, ..self.report.lock().clone() };
        // Whoever asked may be gone: the scrub ends then.
        let _ = self.reports.send(report).await;
    }

    async fn tell_now_and_then(&self) {
        loop {
            self.tell(None, false).await;
            tokio::time::sleep(EVERY).await;
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "a duration")]
fn per_second(bytes: u64, rate: u64) -> f64 {
    bytes as f64 / rate as f64
}

/// The files below a directory, one page of names after the other. Names that move meanwhile may be missed.
#[derive(Clone, Debug)]
pub(super) struct Walk {
    /// A file by itself.
    single: Option<Found>,
    /// Directories that it is in: path, and the cookie after which it goes on.
    inside: Vec<(Ino, Vec<u8>, u64)>,
    /// Files with several names that it has met.
    met: HashSet<Ino>,
}

impl Walk {
    /// From a file or a directory on; nothing where there is none.
    pub(super) fn from(handle: &Handle, path: &[u8]) -> Result<Option<Self>, StoreError> {
        let state = handle.state();
        let Some(ino) = query::resolve(&state, path)? else { return Ok(None) };
        let Some(inode) = query::inode(&state, ino)? else { return Ok(None) };
        let path = path.to_vec();
        let mut walk = Self { single: None, inside: Vec::new(), met: HashSet::new() };
        if inode.kind() == proto::Kind::Directory {
            walk.inside.push((ino, path, 0));
        } else {
            walk.single = Some(Found { ino, path, size: inode.size });
        }
        Ok(Some(walk))
    }

    /// The files of the next names, perhaps none; nothing at the end.
    pub(super) fn next(&mut self, handle: &Handle) -> Result<Option<Vec<Found>>, StoreError> {
        if let Some(single) = self.single.take() {
            return Ok(Some(vec![single]));
        }
        let Some((directory, path, after)) = self.inside.pop() else { return Ok(None) };
        let state = handle.state();
        let mut entries = query::readdir(&state, directory, after, PAGE)?.into_iter();
        let mut found = Vec::new();
        while let Some(entry) = entries.next() {
            let mut below = path.clone();
            if !below.is_empty() {
                below.push(b'/');
            }
            below.extend_from_slice(&entry.name);
            match entry.kind {
                proto::Kind::Directory => {
                    // First what is in it, then what comes after it.
                    self.inside.push((directory, path, entry.cookie));
                    self.inside.push((entry.ino, below, 0));
                    return Ok(Some(found));
                }
                proto::Kind::Regular => {
                    let Some(inode) = query::inode(&state, entry.ino)? else { continue };
                    if inode.nlink < 2 || self.met.insert(entry.ino) {
                        found.push(Found { ino: entry.ino, path: below, size: inode.size });
                    }
                }
                _ => {}
            }
            if entries.len() == 0 {
                self.inside.push((directory, path, entry.cookie));
                break;
            }
        }
        Ok(Some(found))
    }
}
