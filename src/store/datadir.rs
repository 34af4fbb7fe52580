//! The data directory: whose replica it is, who works on it, and where in it everything is.
//!
//! ```text
//! LOCK         locked while a daemon works on the directory; holds its process id
//! genesis      the record that every member of the cluster starts from
//! identity     cluster, node, nonce and address, and whether the replica has ever run, as TOML
//! boot         under which boot and mount the state was last written
//! log/         the Raft log
//! logged       what is known to be in the log (`log/promised.rs`)
//! current      the name of the directory that holds the state
//! state-<n>/   the state (sled); built whole in a new directory, then switched to
//! files/       backing files
//! checksums/   checksums of the blocks of quiet ones
//! mounts       where the daemon has mounted
//! diverged     the last entry up to which files are believed, where this replica was found to differ (`divergence.rs`)
//! ends         why the last daemons ended that could not go on (`ends.rs`)
//! peers        where the other members were last known to listen
//! removed      this node is no member any more (`removal.rs`)
//! recovering   the id of the cluster that the directory is becoming (`refound.rs`)
//! stages/      what copies between backing files read again after a crash
//! snapshots/   the snapshot file
//! ```

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::identity::{Identity, read_identity, write_identity};
use super::{durable, headroom, sys};
use crate::store::StoreError;
use crate::types::ClusterId;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const STATE: &str = "state-";
const REFOUNDING: &str = "recovering";

/// What must be the same for bytes that were never fsynced to be there still: the kernel's boot, the
/// mount, and the directory itself (a copy is another one). Unknown is never the same as anything.
#[derive(Clone, Debug, Default)]
pub struct BootIdentity(Option<String>);

/// A data directory that no other daemon works on while this value lives.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// Unlocked when it is closed, also when the process is killed.
    _lock: File,
    identity: Identity,
    boot: BootIdentity,
    same_boot: bool,
    has_started: AtomicBool,
}

impl BootIdentity {
    /// As the kernel gives it (`/proc/sys/kernel/random/boot_id`, `statx(2)` with
    /// `STATX_MNT_ID_UNIQUE`); unknown where it does not.
    #[must_use]
    pub fn of(dir: &Path) -> Self {
        let boot = std::fs::read_to_string(BOOT_ID).ok();
        let mount = sys::mount_and_inode(dir).ok().flatten();
        let both = boot.zip(mount);
        Self(both.map(|(boot, (mount, ino))| format!("{} {mount} {ino}\n", boot.trim())))
    }

    /// A made-up one, for tests.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self(Some(format!("{name}\n")))
    }
}

impl DataDir {
    /// Makes a data directory for a new replica; `path` must be empty or absent.
    ///
    /// # Errors
    /// When it is not empty, in use, or the disk refuses.
    pub fn create(path: &Path, identity: Identity) -> Result<Self, StoreError> {
        std::fs::create_dir_all(path).map_err(StoreError::io("create", path))?;
        let lock = lock(path)?;
        if let Some(found) = anything_but_lock(path)? {
            return Err(StoreError::NotEmpty { path: path.to_owned(), found });
        }
        write_identity(path, &identity, false)?;
        durable::sync_parent(&path.canonicalize().map_err(StoreError::io("resolve", path))?)?;
        let boot = BootIdentity::of(path);
        let (path, has_started) = (path.to_owned(), AtomicBool::new(false));
        Ok(Self { path, _lock: lock, identity, boot, same_boot: false, has_started })
    }

    /// Opens the data directory of a replica.
    ///
    /// # Errors
    /// When there is none, it is in use, came from a newer version, or cannot be read.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_under(path, BootIdentity::of(path))
    }

    /// The same under a given boot identity.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_under(path: &Path, boot: BootIdentity) -> Result<Self, StoreError> {
        let data = Self::open_any(path, boot)?;
        match data.refounding()? {
            Some(_) => Err(StoreError::Refounding { path: path.to_owned() }),
            None => Ok(data),
        }
    }

    /// The same to make a new cluster of it, which may have been begun.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_to_refound(path: &Path) -> Result<Self, StoreError> {
        Self::open_any(path, BootIdentity::of(path))
    }

    fn open_any(path: &Path, boot: BootIdentity) -> Result<Self, StoreError> {
        if !Self::holds_replica(path) {
            return Err(StoreError::NoReplica { path: path.to_owned() });
        }
        let lock = lock(path)?;
        let (identity, has_started) = read_identity(path)?;
        // What is not text is no boot that anybody knows.
        let recorded = read_optional(&path.join("boot"))?;
        let same_boot = recorded.is_some() && recorded == boot.0;
        let (path, has_started) = (path.to_owned(), AtomicBool::new(has_started));
        Ok(Self { path, _lock: lock, identity, boot, same_boot, has_started })
    }

    /// A copy of this data directory: what is the same boot for one is for the other.
    pub(super) fn copied_to(&self, path: &Path) -> Result<Self, StoreError> {
        Self::open_under(path, self.boot.clone())
    }

    /// Whether there is a replica at `path`.
    #[must_use]
    pub fn holds_replica(path: &Path) -> bool {
        path.join("identity").exists()
    }

    /// Whose replica it is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Writes another identity, as after a change of address. Durable on return.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn set_identity(&mut self, identity: Identity) -> Result<(), StoreError> {
        write_identity(&self.path, &identity, self.has_started())?;
        self.identity = identity;
        Ok(())
    }

    /// Whether the replica is known to have run, so that it must have a log.
    #[must_use]
    pub fn has_started(&self) -> bool {
        self.has_started.load(Ordering::Relaxed)
    }

    /// From now on it has. Durable on return: its votes are in its log, and nowhere else.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(super) fn record_start(&self) -> Result<(), StoreError> {
        if !self.has_started() {
            write_identity(&self.path, &self.identity, true)?;
            self.has_started.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The cluster that the directory is becoming; nothing where that was not begun.
    ///
    /// # Errors
    /// When the disk refuses, or it cannot be made out.
    pub fn refounding(&self) -> Result<Option<ClusterId>, StoreError> {
        let path = self.path.join(REFOUNDING);
        let Some(text) = read_optional(&path)? else { return Ok(None) };
        text.trim().parse().map(Some).map_err(|what: &str| StoreError::Corrupt {
            path,
            offset: None,
            what: what.to_owned(),
            advice: "remove this file and run `quorumfs recover` again",
        })
    }

    /// From now on the directory is becoming that cluster, or the one that it was becoming already; answers which.
    pub(super) fn begin_refounding(&self, cluster: ClusterId) -> Result<ClusterId, StoreError> {
        if let Some(begun) = self.refounding()? {
            return Ok(begun);
        }
        durable::replace(&self.path.join(REFOUNDING), format!("{cluster}\n").as_bytes())?;
        Ok(cluster)
    }

    /// It is that cluster now.
    pub(super) fn end_refounding(&self) -> Result<(), StoreError> {
        let path = self.path.join(REFOUNDING);
        std::fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
        durable::sync_dir(&self.path)
    }

    /// Whether nothing but the process has died since the state was written last: what it had handed
    /// to the kernel is there, synced or not.
    #[must_use]
    pub fn same_boot(&self) -> bool {
        self.same_boot
    }

    /// Says that the current state may be trusted as long as this boot and mount last. Only after the
    /// state was found good or built anew.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn record_boot(&self) -> Result<(), StoreError> {
        match &self.boot.0 {
            Some(boot) => durable::replace(&self.path.join("boot"), boot.as_bytes()),
            None => self.distrust_state(),
        }
    }

    /// Has the next start build the state anew from the snapshot file and the log.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn distrust_state(&self) -> Result<(), StoreError> {
        distrust_state(&self.path)
    }

    /// Removes what is half done and of no use to a start: it may be what fills the disk.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn remove_leftovers(&self) -> Result<(), StoreError> {
        self.remove_other_states()?;
        for (dir, is_left) in [
            (self.snapshots_dir(), is_half_a_snapshot as fn(&str) -> bool),
            (self.stages_dir(), |name| Path::new(name).extension().is_some_and(|end| end == "tmp")),
            (self.path.clone(), |name| name.starts_with("log.mending") || name == headroom::TRIAL),
        ] {
            let Ok(entries) = std::fs::read_dir(&dir) else { continue };
            for path in entries.flatten().map(|entry| entry.path()) {
                let name = path.file_name().and_then(|name| name.to_str());
                if name.is_some_and(is_left) {
                    let removed = if path.is_dir() {
                        std::fs::remove_dir_all(&path)
                    } else {
                        std::fs::remove_file(&path)
                    };
                    removed.map_err(StoreError::io("remove", &path))?;
                }
            }
        }
        Ok(())
    }

    /// Where the directory is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the Raft log is.
    #[must_use]
    pub fn log_dir(&self) -> PathBuf {
        self.path.join("log")
    }

    /// Where it is said what is in the log.
    pub(super) fn logged(&self) -> PathBuf {
        self.path.join("logged")
    }

    /// Where the backing files are.
    #[must_use]
    pub fn files_dir(&self) -> PathBuf {
        self.path.join("files")
    }

    /// Where it is that replays of copies find what they read.
    #[must_use]
    pub fn stages_dir(&self) -> PathBuf {
        self.path.join("stages")
    }

    /// Where the snapshot file is.
    #[must_use]
    pub fn snapshots_dir(&self) -> PathBuf {
        self.path.join("snapshots")
    }

    /// Where the state is; nothing before the first one was switched to.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn current_state(&self) -> Result<Option<PathBuf>, StoreError> {
        let name = read_optional(&self.path.join("current"))?;
        let name = name.as_deref().map(str::trim).filter(|name| state_number(name).is_some());
        Ok(name.map(|name| self.path.join(name)).filter(|path| path.is_dir()))
    }

    /// A directory to build a new state in. It does not exist, and counts only after
    /// [`Self::switch_state`].
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn new_state_dir(&self) -> Result<PathBuf, StoreError> {
        let names = self.state_dirs()?;
        let last = names.iter().filter_map(|path| state_number(path.file_name()?.to_str()?)).max();
        Ok(self.path.join(format!("{STATE}{}", last.unwrap_or(0) + 1)))
    }

    /// Makes the state in `dir`, which came from [`Self::new_state_dir`], the current one. Durable on
    /// return; after a crash it is either this one or the one before.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn switch_state(&self, dir: &Path) -> Result<(), StoreError> {
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        durable::replace(&self.path.join("current"), format!("{name}\n").as_bytes())
    }

    /// No state is the current one, and none takes any room: whoever builds one anew has no use for them. Where the replica
    /// has a log, from then on nothing but `identity` says so, should that be gone. A start that finds no state builds one: it
    /// does not matter where this is cut short.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(super) fn remove_states(&self, has_log: bool) -> Result<(), StoreError> {
        if has_log && !self.state_dirs()?.is_empty() {
            self.record_start()?;
        }
        // First: what is left of a state must not be taken for one.
        self.forget_state()?;
        if let Err(error) = self.remove_other_states() {
            tracing::info!(%error, "an old state stays for now");
        }
        Ok(())
    }

    /// No state is the current one: it is built anew. Durable on return.
    ///
    /// # Errors
    /// When the disk refuses.
    pub(super) fn forget_state(&self) -> Result<(), StoreError> {
        let current = self.path.join("current");
        match std::fs::remove_file(&current) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(source) => Err(StoreError::io("remove", &current)(source)),
            Ok(()) => durable::sync_dir(&self.path),
        }
    }

    /// Removes every state but the current one. The caller has closed them.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn remove_other_states(&self) -> Result<(), StoreError> {
        let current = self.current_state()?;
        for path in self.state_dirs()? {
            if Some(&path) != current.as_ref() {
                std::fs::remove_dir_all(&path).map_err(StoreError::io("remove", &path))?;
            }
        }
        Ok(())
    }

    fn state_dirs(&self) -> Result<Vec<PathBuf>, StoreError> {
        let entries = std::fs::read_dir(&self.path).map_err(StoreError::io("list", &self.path))?;
        let mut dirs = Vec::new();
        for entry in entries {
            let entry = entry.map_err(StoreError::io("list", &self.path))?;
            if entry.file_name().to_str().and_then(state_number).is_some() {
                dirs.push(entry.path());
            }
        }
        Ok(dirs)
    }
}

/// See [`DataDir::distrust_state`]: of a data directory that this process has locked.
///
/// # Errors
/// When the disk refuses.
pub fn distrust_state(data: &Path) -> Result<(), StoreError> {
    let boot = data.join("boot");
    match std::fs::remove_file(&boot) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(source) => Err(StoreError::io("remove", &boot)(source)),
        // It need not be durable: after a power loss the boot is another one.
        Ok(()) => Ok(()),
    }
}

fn is_half_a_snapshot(name: &str) -> bool {
    name == "snap-of-a-peer" || Path::new(name).extension().is_some_and(|end| end == "tmp")
}

fn state_number(name: &str) -> Option<u64> {
    name.strip_prefix(STATE)?.parse().ok()
}

fn lock(dir: &Path) -> Result<File, StoreError> {
    let path = dir.join("LOCK");
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = open.map_err(StoreError::io("open", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            // Only for the message.
            let _ = file.read_to_string(&mut pid);
            let pid = if pid.trim().is_empty() { "unknown" } else { pid.trim() }.to_owned();
            return Err(StoreError::InUse { path: dir.to_owned(), pid });
        }
        Err(TryLockError::Error(source)) => return Err(StoreError::io("lock", &path)(source)),
    }
    let pid = format!("{}\n", std::process::id());
    let written = file.set_len(0).and_then(|()| file.write_all(pid.as_bytes()));
    written.map_err(StoreError::io("write", &path))?;
    Ok(file)
}

fn anything_but_lock(dir: &Path) -> Result<Option<String>, StoreError> {
    for entry in std::fs::read_dir(dir).map_err(StoreError::io("list", dir))? {
        let name = entry.map_err(StoreError::io("list", dir))?.file_name();
        // What joining leaves behind when it is killed, and what ext4 puts into a new root directory.
        let ours = ["LOCK", "identity.tmp", "genesis", "genesis.tmp", "snapshots", "joining"];
        if name != "lost+found" && !ours.iter().any(|ours| name == *ours) {
            return Ok(Some(name.to_string_lossy().into_owned()));
        }
    }
    Ok(None)
}

pub(super) fn read_optional(path: &Path) -> Result<Option<String>, StoreError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(StoreError::io("read", path)(source)),
    }
}

#[cfg(test)]
mod tests {
    use super::{BootIdentity, DataDir, Identity};
    use crate::store::StoreError;
    use crate::types::{ClusterId, NodeId};

    fn identity() -> Identity {
        Identity {
            cluster: ClusterId([0xab; 16]),
            node: NodeId(3),
            nonce: u64::MAX,
            address: "host:7000".to_owned(),
        }
    }

    #[test]
    fn an_identity_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        assert!(matches!(DataDir::open(&path), Err(StoreError::NoReplica { .. })));
        let mut created = DataDir::create(&path, identity()).unwrap();
        assert_eq!(created.identity(), &identity());
        let moved = Identity { address: "other:1".to_owned(), ..identity() };
        created.set_identity(moved.clone()).unwrap();
        drop(created);
        assert_eq!(DataDir::open(&path).unwrap().identity(), &moved);
        let again = DataDir::create(&path, identity()).unwrap_err();
        assert!(matches!(again, StoreError::NotEmpty { .. }), "{again}");
        assert_eq!(DataDir::open(&path).unwrap().identity(), &moved);
    }

    #[test]
    fn a_second_daemon_is_told_who_the_first_is() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataDir::create(dir.path(), identity()).unwrap();
        let error = DataDir::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        drop(first);
        DataDir::open(dir.path()).unwrap();
    }

    #[test]
    fn a_newer_or_damaged_identity_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(DataDir::create(dir.path(), identity()).unwrap());
        let path = dir.path().join("identity");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("format = 2", "format = 3\nregion = \"x\"")).unwrap();
        let error = DataDir::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("written by a newer version"), "{error}");
        std::fs::write(&path, text.replace("abab", "abxy")).unwrap();
        let error = DataDir::open(dir.path()).unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    }

    #[test]
    fn only_the_same_boot_and_mount_are_the_same() {
        let dir = tempfile::tempdir().unwrap();
        drop(DataDir::create(dir.path(), identity()).unwrap());
        let open = |boot| DataDir::open_under(dir.path(), boot).unwrap();
        let first = || BootIdentity::named("first");
        assert!(!open(first()).same_boot(), "nothing was recorded");
        assert!(!open(first()).same_boot(), "opening alone records nothing");
        open(first()).record_boot().unwrap();
        assert!(open(first()).same_boot());
        assert!(!open(BootIdentity::named("second")).same_boot());
        assert!(!open(BootIdentity::default()).same_boot());
        open(first()).distrust_state().unwrap();
        assert!(!open(first()).same_boot());
        open(BootIdentity::default()).record_boot().unwrap();
        assert!(!open(BootIdentity::default()).same_boot(), "unknown is never the same");
        let real = || BootIdentity::of(dir.path());
        open(real()).record_boot().unwrap();
        assert_eq!(open(real()).same_boot(), real().0.is_some());
    }

    #[test]
    fn a_state_counts_only_after_the_switch() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::create(dir.path(), identity()).unwrap();
        assert_eq!(data.current_state().unwrap(), None);
        let first = data.new_state_dir().unwrap();
        std::fs::create_dir(&first).unwrap();
        assert_eq!(data.current_state().unwrap(), None);
        data.switch_state(&first).unwrap();
        assert_eq!(data.current_state().unwrap(), Some(first.clone()));
        let second = data.new_state_dir().unwrap();
        assert_ne!(first, second);
        std::fs::create_dir(&second).unwrap();
        assert_eq!(data.current_state().unwrap(), Some(first.clone()));
        data.switch_state(&second).unwrap();
        data.remove_other_states().unwrap();
        assert!(!first.exists());
        assert_eq!(data.current_state().unwrap(), Some(second));
    }
}
