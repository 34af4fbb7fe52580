//! Takes the tree out of a stopped node's data directory, as ordinary files.

use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::attributes;
use super::files::{self, Compared};
use super::names::names_after;
use super::stopped::Stopped;
use crate::fs::proto::{self, Kind};
use crate::fs::query::{self, DirEntry};
use crate::store::{State, StoreError};
use crate::types::{Ino, LogIndex};

/// Why nothing, or not the whole tree, was taken out.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The replica cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The target is no place for it.
    #[error(
        "{path} is not empty (it holds {found}): name an empty directory, or one that does not exist"
    )]
    NotEmpty {
        /// The target.
        path: PathBuf,
        /// A name in it.
        found: String,
    },
    /// It would change what must stay as it is.
    #[error("{path} is within the data directory: name a directory elsewhere")]
    Within {
        /// The target.
        path: PathBuf,
    },
    /// The target's file system refuses.
    #[error("cannot {action} {path}: {source}")]
    Target {
        /// What was being done, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Bytes of a file that are not on this node: a hole outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MissingRange {
    /// Which file, below the target.
    pub path: String,
    /// The first byte.
    pub start: u64,
    /// One past the last.
    pub end: u64,
}

/// What could not be made outside, or lacks something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// What, below the target.
    pub path: String,
    /// What of it, and why.
    pub what: String,
}

/// What was taken out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Exported {
    /// The last entry of the log that is in it.
    pub index: u64,
    /// The last entry of the log.
    pub last_index: u64,
    /// Why the tree may not be that of the cluster, as sentences; empty where nothing is known against it.
    pub doubts: Vec<String>,
    /// Files whose bytes this replica may have changed in the wrong place, since it was equal to the others last.
    pub doubted: Vec<String>,
    /// Directories, without the root.
    pub directories: u64,
    /// Regular files, each once.
    pub files: u64,
    /// Their bytes, holes as well.
    pub bytes: u64,
    /// Further names of files.
    pub hard_links: u64,
    /// Symbolic links, pipes, sockets and devices.
    pub others: u64,
    /// What this node does not have.
    pub missing: Vec<MissingRange>,
    /// What could not be made as it was, or is not what its checksums say.
    pub failed: Vec<Failure>,
}

/// Writes the tree of a stopped replica to `target`, which is empty or does not exist. Durable on return.
///
/// # Errors
/// When the replica cannot be read, or nothing can be written to `target`. What goes wrong with one file is in the
/// report, and the rest goes on.
pub fn export(stopped: &Stopped<'_>, target: &Path) -> Result<Exported, ExportError> {
    let state = &stopped.recovered.state;
    let mut report = Exported {
        index: state.applied().0,
        last_index: stopped.recovered.log.last_index().0,
        ..Exported::default()
    };
    let since = stopped.data.diverged()?;
    report.doubts.extend(since.map(differs));
    report.doubts.extend(stopped.recovered.doubt()?.map(no_majority));
    let root = open_target(stopped, target)?;
    let inode = query::inode(&state.read(), Ino::ROOT).map_err(ExportError::Store)?;
    let inode = inode.unwrap_or_default();
    let shown = target.to_owned();
    let root = Directory::new(Ino::ROOT, inode, root, target.to_owned(), shown);
    let mut export = Export { stopped, state, since, linked: HashMap::new(), report: &mut report };
    export.tree(root)?;
    let synced = File::open(target).and_then(|dir| Ok(rustix::fs::syncfs(dir)?));
    synced.map_err(target_error("sync", target))?;
    Ok(report)
}

fn differs(since: LogIndex) -> String {
    format!(
        "this replica was found to differ from the others, and was equal to them last at entry {since}: the tree is what its \
         snapshot file and log lead to, but bytes of files that changed since then may be wrong"
    )
}

fn no_majority(index: LogIndex) -> String {
    format!(
        "the voters differed at entry {index}, and no majority of them agreed: the tree of another node may be the right one"
    )
}

fn open_target(stopped: &Stopped<'_>, target: &Path) -> Result<File, ExportError> {
    refuse_within(stopped.data.path(), target)?;
    fs::create_dir_all(target).map_err(target_error("create", target))?;
    for entry in fs::read_dir(target).map_err(target_error("list", target))? {
        let name = entry.map_err(target_error("list", target))?.file_name();
        // A new file system has it in its root.
        if name != "lost+found" {
            let found = name.to_string_lossy().into_owned();
            return Err(ExportError::NotEmpty { path: target.to_owned(), found });
        }
    }
    File::open(target).map_err(target_error("open", target))
}

/// Before anything of it is made.
fn refuse_within(data: &Path, target: &Path) -> Result<(), ExportError> {
    let data = data.canonicalize().map_err(target_error("resolve", data))?;
    let absolute = std::path::absolute(target).map_err(target_error("resolve", target))?;
    let existing = absolute.ancestors().find_map(|path| path.canonicalize().ok());
    if existing.is_some_and(|existing| existing.starts_with(&data)) {
        return Err(ExportError::Within { path: target.to_owned() });
    }
    Ok(())
}

fn target_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ExportError {
    move |source| ExportError::Target { action, path: path.to_owned(), source }
}

/// A directory that is being filled.
struct Directory {
    ino: Ino,
    inode: proto::Inode,
    /// Names in it are reached through this, however long their paths are.
    handle: File,
    /// Where it is itself, while its parent is open.
    place: PathBuf,
    /// What people call it.
    shown: PathBuf,
    after: u64,
    page: VecDeque<DirEntry>,
}

impl Directory {
    fn new(ino: Ino, inode: proto::Inode, handle: File, place: PathBuf, shown: PathBuf) -> Self {
        Self { ino, inode, handle, place, shown, after: 0, page: VecDeque::new() }
    }

    /// The next name; nothing where there is none.
    fn next(&mut self, state: &State) -> Result<Option<DirEntry>, StoreError> {
        if self.page.is_empty() {
            self.page = names_after(state, self.ino, self.after)?.into();
            self.after = self.page.back().map_or(self.after, |last| last.cookie);
        }
        Ok(self.page.pop_front())
    }

    fn place_of(&self, name: &[u8]) -> PathBuf {
        let fd = self.handle.as_raw_fd();
        Path::new("/proc/self/fd").join(fd.to_string()).join(OsStr::from_bytes(name))
    }
}

struct Export<'a> {
    stopped: &'a Stopped<'a>,
    state: &'a State,
    /// The last entry up to which the files are to be believed, where that is not all.
    since: Option<LogIndex>,
    /// The first name of each file that has several.
    linked: HashMap<Ino, PathBuf>,
    report: &'a mut Exported,
}

impl Export<'_> {
    /// A directory gets its attributes when everything is in it.
    fn tree(&mut self, root: Directory) -> Result<(), ExportError> {
        let mut open = vec![root];
        while let Some(directory) = open.last_mut() {
            let Some(entry) = directory.next(self.state)? else {
                let done = open.pop().expect("it was just looked at");
                self.give(&done.place, &done.shown, done.ino, &done.inode)?;
                continue;
            };
            let (place, shown) = (
                directory.place_of(&entry.name),
                directory.shown.join(OsStr::from_bytes(&entry.name)),
            );
            let Some(inode) =
                query::inode(&self.state.read(), entry.ino).map_err(ExportError::Store)?
            else {
                self.fail(&shown, "its inode is missing".to_owned());
                continue;
            };
            if inode.kind() != Kind::Directory {
                self.leaf(entry.ino, &inode, &place, &shown)?;
                continue;
            }
            match make_directory(&place) {
                Ok(handle) => {
                    self.report.directories += 1;
                    open.push(Directory::new(entry.ino, inode, handle, place, shown));
                }
                Err(error) => self.refused(&shown, error)?,
            }
        }
        Ok(())
    }

    /// Something that is no directory.
    fn leaf(
        &mut self,
        ino: Ino,
        inode: &proto::Inode,
        place: &Path,
        shown: &Path,
    ) -> Result<(), ExportError> {
        if let Some(first) = self.linked.get(&ino) {
            match fs::hard_link(first, place) {
                Ok(()) => self.report.hard_links += 1,
                Err(error) => self.refused(shown, error)?,
            }
            return Ok(());
        }
        let made = match inode.kind() {
            Kind::Regular => self.regular(ino, inode, place, shown)?,
            _ => self.special(inode, place, shown)?,
        };
        if made {
            self.give(place, shown, ino, inode)?;
            if inode.nlink > 1 {
                self.linked.insert(ino, shown.to_owned());
            }
        }
        Ok(())
    }

    fn special(
        &mut self,
        inode: &proto::Inode,
        place: &Path,
        shown: &Path,
    ) -> Result<bool, ExportError> {
        if let Err(error) = attributes::make_special(place, inode) {
            self.refused(shown, error)?;
            return Ok(false);
        }
        self.report.others += 1;
        Ok(true)
    }

    fn regular(
        &mut self,
        ino: Ino,
        inode: &proto::Inode,
        place: &Path,
        shown: &Path,
    ) -> Result<bool, ExportError> {
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(place);
        let file = match made {
            Ok(file) => file,
            Err(error) => {
                self.refused(shown, error)?;
                return Ok(false);
            }
        };
        self.report.files += 1;
        self.report.bytes += inode.size;
        if self.since.is_some_and(|since| inode.data_version > since.0) {
            self.report.doubted.push(shown.to_string_lossy().into_owned());
        }
        let files = &self.stopped.recovered.files;
        match files.copy_out(files::key(ino, inode), inode.size, &file) {
            Ok(missing) => {
                let path = shown.to_string_lossy();
                let missing = missing.into_iter().map(|range| MissingRange {
                    path: path.clone().into_owned(),
                    start: range.start,
                    end: range.end,
                });
                self.report.missing.extend(missing);
                self.compare(ino, inode, shown);
            }
            Err(error) if error.is_full() => return Err(error.into()),
            // Half of it may be worth a lot.
            Err(error) => {
                let error = self.stopped.scratch.name(error);
                self.fail(shown, format!("not all of its bytes: {error}"));
            }
        }
        Ok(true)
    }

    /// What was copied may be rotten here, or cut off.
    fn compare(&mut self, ino: Ino, inode: &proto::Inode, shown: &Path) {
        let files = &self.stopped.recovered.files;
        match Compared::of(files, self.state.applied(), (ino, inode)) {
            Ok(compared) => {
                if let Some(problem) = compared.problem() {
                    self.fail(shown, problem);
                }
            }
            Err(error) => self.fail(shown, format!("not compared with its checksums: {error}")),
        }
    }

    fn give(
        &mut self,
        place: &Path,
        shown: &Path,
        ino: Ino,
        inode: &proto::Inode,
    ) -> Result<(), ExportError> {
        let mut xattrs = Vec::new();
        {
            let read = self.state.read();
            for name in query::xattr_names(&read, ino)? {
                if let Some(value) = query::xattr(&read, ino, &name)? {
                    xattrs.push((name, value));
                }
            }
        }
        for (what, error) in attributes::give(place, inode, &xattrs) {
            self.fail(shown, format!("{what}: {error}"));
        }
        Ok(())
    }

    /// What one name cannot have, others may; a full disk takes nothing more.
    fn refused(&mut self, shown: &Path, error: io::Error) -> Result<(), ExportError> {
        if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) {
            return Err(target_error("create", shown)(error));
        }
        self.fail(shown, format!("not made: {error}"));
        Ok(())
    }

    fn fail(&mut self, shown: &Path, what: String) {
        self.report.failed.push(Failure { path: shown.to_string_lossy().into_owned(), what });
    }
}

fn make_directory(place: &Path) -> io::Result<File> {
    // Its own permissions come when it is full.
    fs::DirBuilder::new().mode(0o700).create(place)?;
    File::open(place)
}
