//! Judges blocks of files: what is rotten, or what the disk cannot read, is missing from then on, and fetched
//! from a peer as everything that is missing.
//!
//! Blocks are judged only of a file that is [`Steady`]: an overwritten block is not rot.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::fetch::{Fetched, Given, Wanted};
use super::handle::{Handle, NodeError};
use crate::fs::{proto, query};
use crate::store::{self, PAGE_BLOCKS, Steady, StoreError, blocks_of, says_it_lacks};
use crate::types::{ByteRange, Generation, Ino, LogIndex, SessionId};

/// How often a file that changes is looked at again before it is left alone.
const ATTEMPTS: usize = 50;
/// Between two looks.
const AGAIN: Duration = Duration::from_millis(1);
/// How long a peer may be behind who asks it.
const BEHIND: Duration = Duration::from_secs(1);

/// What a peer, or this node itself, is asked about blocks of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Examined {
    /// Which inode.
    pub ino: Ino,
    /// Which life of its bytes.
    pub generation: Generation,
    /// Exactly this data_version.
    pub version: LogIndex,
    /// The first block.
    pub first: u64,
    /// How many.
    pub count: u64,
}

/// What a replica found of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// The CRC-32C that it should have as far as the replica knows: the one that was kept, else that of its bytes.
    pub sum: Option<u32>,
    /// Whether its bytes are there, and are that.
    pub whole: bool,
    /// Whether that was found only now.
    pub rotten: bool,
}

/// What became of bytes that a peer gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// They are here now.
    Kept,
    /// Not all of them, for now.
    NoRoom,
    /// They are not what is known of the file here.
    Wrong,
    /// They complete this block, which is not what is known of it then: all of it is missing now.
    Misfit(ByteRange),
}

/// What is to be said of a file now.
#[derive(Clone, Copy, Debug)]
pub(super) enum Look {
    /// There is no such file, or it has no bytes.
    Nothing,
    /// It changes at this moment.
    Changing,
    Steady(Steady),
}

impl Handle {
    /// Looks at a file, in order to judge its bytes.
    pub(super) fn look_at(&self, ino: Ino) -> Result<Look, StoreError> {
        let (inode, applied) = {
            let state = self.state();
            (query::inode(&state, ino)?, state.applied())
        };
        let Some(inode) = inode.filter(|inode| inode.kind() == proto::Kind::Regular) else {
            return Ok(Look::Nothing);
        };
        if inode.size == 0 {
            return Ok(Look::Nothing);
        }
        let key = (ino, Generation(inode.generation));
        let version = LogIndex(inode.data_version);
        let steady = self.files().steady(key, version, inode.size, applied);
        Ok(steady.filter(|_| self.has_replayed()).map_or(Look::Changing, Look::Steady))
    }

    /// Whether the state has come to what the files were when the last process died: they may be ahead of it
    /// before; and whether it may be shown at all. The entry that opens a session of this process comes after all that the
    /// last one can have applied.
    pub(super) fn has_replayed(&self) -> bool {
        let replayed = &self.0.replayed;
        if !replayed.load(Ordering::Relaxed) && self.session() != SessionId::CLUSTER {
            replayed.store(true, Ordering::Relaxed);
        }
        replayed.load(Ordering::Relaxed) && self.is_sound()
    }

    /// Blocks of a file are not what they should be: they are missing from now on. False where the file has
    /// changed meanwhile.
    pub(super) fn condemn(
        &self,
        file: &Steady,
        blocks: &[u64],
        why: &'static str,
    ) -> Result<bool, StoreError> {
        if blocks.is_empty() || !self.files().condemn(file, blocks)? {
            return Ok(blocks.is_empty());
        }
        let ino = file.key.0;
        let (first, count) = (file.block(blocks[0]).start, blocks.len());
        tracing::warn!(%ino, offset = first, blocks = count, "{why}: fetching it from a peer");
        for block in blocks {
            // Programs may have been given what was there.
            for (_, observer) in self.0.observers.all().iter() {
                observer.condemned(ino, file.block(*block));
            }
        }
        Ok(true)
    }

    /// As [`crate::store::Files::read`]; what the disk cannot read is missing. Waits for the disk.
    ///
    /// # Errors
    /// When the local file system cannot read for another reason, or the file changes all the time.
    pub fn read_bytes(
        &self,
        ino: Ino,
        generation: Generation,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<bool, StoreError> {
        let mut attempts = 0;
        loop {
            let failed = match self.files().read(ino, generation, offset, buffer) {
                Err(error) if is_unreadable(&error) => error,
                // Of a file that is gone there are zeros.
                Ok(true) if buffer.first() == Some(&0) => {
                    return Ok(!self.condemn_gone((ino, generation))?);
                }
                other => return other,
            };
            attempts += 1;
            let range = ByteRange::at(offset, buffer.len() as u64);
            if self.condemn_unreadable((ino, generation), range)? {
                return Ok(false);
            }
            if attempts == ATTEMPTS {
                return Err(failed);
            }
            std::thread::sleep(AGAIN);
        }
    }

    /// Condemns a file that has a size and no backing file; false where it is not so, or the file changes.
    fn condemn_gone(&self, key: (Ino, Generation)) -> Result<bool, StoreError> {
        if !self.files().is_gone(key)? {
            return Ok(false);
        }
        let Look::Steady(file) = self.look_at(key.0)? else { return Ok(false) };
        if file.key != key || !self.files().is_gone(key)? {
            return Ok(false);
        }
        let all: Vec<_> = (0..file.blocks()).collect();
        self.condemn(&file, &all, "its backing file is gone")
    }

    /// Condemns the blocks of a range that the disk cannot read; false where the file changes.
    fn condemn_unreadable(
        &self,
        key: (Ino, Generation),
        range: ByteRange,
    ) -> Result<bool, StoreError> {
        let Look::Steady(file) = self.look_at(key.0)? else { return Ok(false) };
        if file.key != key {
            return Ok(false);
        }
        let mut reader = self.files().read_blocks(&file);
        let mut unreadable = Vec::new();
        for block in blocks_of(ByteRange { end: range.end.min(file.size), ..range }) {
            if reader.sum(block)?.is_none() {
                unreadable.push(block);
            }
        }
        Ok(!unreadable.is_empty()
            && self.condemn(&file, &unreadable, "the disk cannot read a block")?)
    }

    /// Bytes for a peer, of a version that it can use. Where checksums are known, whole blocks are what they should be:
    /// what is not is missing here from now on.
    pub(super) fn read_for_peer(&self, wanted: &Wanted) -> Result<Given, StoreError> {
        for _ in 0..ATTEMPTS {
            // Before: what is applied meanwhile it does not see.
            let (is_ready, applied) = (self.has_replayed(), self.0.state.applied());
            let knows = says_it_lacks(is_ready, applied, wanted.version);
            let lacks = if knows { Given::Lacks } else { Given::NotNow };
            let file = match self.look_at(wanted.ino)? {
                Look::Nothing => return Ok(lacks),
                Look::Changing => {
                    std::thread::sleep(AGAIN);
                    continue;
                }
                Look::Steady(file) => file,
            };
            if file.key.1 != wanted.generation || file.version < wanted.version {
                return Ok(lacks);
            }
            let asked = wanted.range;
            let blocks = blocks_of(ByteRange { end: asked.end.min(file.size), ..asked });
            // Whole blocks, and all that was asked for: what lies behind the end is zeros.
            let whole = ByteRange {
                start: file.block(blocks.start).start.min(asked.start),
                end: asked.end.max(file.block(blocks.end.saturating_sub(1)).end),
            };
            let missing = self.files().missing(file.key, whole);
            let comes = |(_, version): &(_, LogIndex)| self.files().is_arriving(file.key, *version);
            let lacks = if missing.iter().any(comes) { Given::NotNow } else { lacks };
            let here = if wanted.apart { first_here(&missing, whole, asked) } else { Some(whole) };
            let Some(here) = here else { return Ok(lacks) };
            let mut data = vec![0; length(here.len())];
            if !self.read_bytes(wanted.ino, wanted.generation, here.start, &mut data)? {
                if wanted.apart {
                    continue;
                }
                return Ok(lacks);
            }
            let rotten = self.files().rotten(&file, here.start, &data);
            // What was read while it changed may be of either version.
            if !self.files().is_still(&file) {
                continue;
            }
            if !rotten.is_empty() {
                self.condemn(&file, &rotten, "a block is not what its checksum says")?;
                if wanted.apart {
                    continue;
                }
                return Ok(lacks);
            }
            let start = here.start.max(asked.start);
            data.truncate(length(here.end.min(asked.end) - here.start));
            data.drain(..length(start - here.start));
            let fetched = Fetched { version: file.version, start, data: data.into() };
            return Ok(Given::Bytes(fetched));
        }
        Ok(Given::NotNow)
    }

    /// Bytes have come from a peer, of a version that is applied here: they fill what is missing.
    pub(super) fn take_fetched(
        &self,
        wanted: &Wanted,
        fetched: &Fetched,
    ) -> Result<Taken, StoreError> {
        let (offset, version) = (fetched.start, fetched.version);
        let mut completing = None;
        if let Look::Steady(file) = self.look_at(wanted.ino)?
            && (file.key.1, file.version) == (wanted.generation, version)
        {
            if !self.files().rotten(&file, offset, &fetched.data).is_empty() {
                return Ok(Taken::Wrong);
            }
            if !store::parted(&file, fetched.range()).is_empty() {
                // Two parts of a block that come at once would each find that the other one is missing.
                completing = Some(self.0.fetching.completing.lock());
                let misfits = self.files().misfits(&file, offset, &fetched.data)?;
                let why = "a block is not what its checksum says, with the rest that a peer has";
                if let [first, ..] = misfits[..]
                    && self.condemn(&file, &misfits, why)?
                {
                    return Ok(Taken::Misfit(file.block(first)));
                }
            }
        }
        let key = (wanted.ino, wanted.generation);
        let kept = self.files().install(key, offset, &fetched.data, version)?;
        drop(completing);
        Ok(if kept { Taken::Kept } else { Taken::NoRoom })
    }

    /// No peer has bytes that are missing here: where nothing is known of a file (its image was damaged), they may be in
    /// it all the same. Says whether some were found.
    pub(super) fn find_here(
        &self,
        key: (Ino, Generation),
        range: ByteRange,
    ) -> Result<bool, StoreError> {
        match self.look_at(key.0)? {
            Look::Steady(file) if file.key == key => self.files().find_here(&file, range),
            Look::Steady(_) | Look::Nothing | Look::Changing => Ok(false),
        }
    }

    /// Reads blocks from the disk and says what they are; what is not what it should be is missing from then on.
    /// Nothing where this replica does not have that version, or the file changes.
    ///
    /// # Errors
    /// When the local file system has trouble.
    pub async fn examine(&self, asked: Examined) -> Result<Option<Vec<Block>>, NodeError> {
        // A peer may have applied what this node is about to.
        if !tokio::time::timeout(BEHIND, self.until_applied(asked.version)).await.unwrap_or(false) {
            return Ok(None);
        }
        let handle = self.clone();
        let examined = tokio::task::spawn_blocking(move || handle.examine_here(asked));
        Ok(examined.await.map_err(|_| NodeError::Stopping)??)
    }

    fn examine_here(&self, asked: Examined) -> Result<Option<Vec<Block>>, StoreError> {
        let Some(file) = self.steady_version(asked)? else { return Ok(None) };
        self.condemn_gone(file.key)?;
        let files = self.files();
        let mut reader = files.read_blocks(&file);
        let mut page = None;
        let (mut found, mut rotten) = (Vec::new(), Vec::new());
        for block in asked.first..asked.first.saturating_add(asked.count).min(file.blocks()) {
            let number = block / PAGE_BLOCKS;
            if page.as_ref().is_none_or(|(known, _)| *known != number) {
                page = Some((number, files.checksums_of(&file, number)));
            }
            let sums = page.as_ref().and_then(|(_, sums)| sums.as_ref());
            let kept = sums.map(|sums| sums[length(block % PAGE_BLOCKS)]);
            let is_away = !files.is_whole(file.key, file.block(block));
            let sum = if is_away { None } else { reader.sum(block)? };
            let whole = sum.is_some() && kept.is_none_or(|kept| sum == Some(kept));
            if !whole && !is_away {
                rotten.push(block);
            }
            found.push(Block { sum: kept.or(sum), whole, rotten: !whole && !is_away });
        }
        let is_still = files.is_still(&file)
            && self.condemn(&file, &rotten, "a block is not what its checksum says")?;
        Ok(is_still.then_some(found))
    }

    /// A majority of the replicas has another block than this one: where that is so, what is here is missing from
    /// now on. Says whether it was so.
    ///
    /// # Errors
    /// When the local file system has trouble.
    pub async fn outvoted(&self, asked: Examined, sum: u32) -> Result<bool, NodeError> {
        let handle = self.clone();
        let judged = tokio::task::spawn_blocking(move || handle.outvoted_here(asked, sum));
        Ok(judged.await.map_err(|_| NodeError::Stopping)??)
    }

    fn outvoted_here(&self, asked: Examined, sum: u32) -> Result<bool, StoreError> {
        let Some(file) = self.steady_version(asked)? else { return Ok(false) };
        if asked.first >= file.blocks() {
            return Ok(false);
        }
        let kept = self.files().checksums_of(&file, asked.first / PAGE_BLOCKS);
        if kept.is_some_and(|sums| sums[length(asked.first % PAGE_BLOCKS)] != sum) {
            // They were made of what had rotten already.
            self.files().forget_checksums(file.key)?;
        }
        if !self.files().is_whole(file.key, file.block(asked.first)) {
            return Ok(true);
        }
        let own = self.files().read_blocks(&file).sum(asked.first)?;
        if own == Some(sum) || !self.files().is_still(&file) {
            return Ok(false);
        }
        self.condemn(&file, &[asked.first], "the other replicas have another block")
    }

    fn steady_version(&self, asked: Examined) -> Result<Option<Steady>, StoreError> {
        for _ in 0..ATTEMPTS {
            match self.look_at(asked.ino)? {
                Look::Nothing => return Ok(None),
                Look::Changing => std::thread::sleep(AGAIN),
                Look::Steady(file) => {
                    let is_asked = file.key.1 == asked.generation && file.version == asked.version;
                    return Ok(is_asked.then_some(file));
                }
            }
        }
        Ok(None)
    }
}

/// The first part of `whole` of which nothing is missing and that has bytes that were asked for. In all of it whole blocks
/// can be judged.
fn first_here(
    missing: &[(ByteRange, LogIndex)],
    whole: ByteRange,
    asked: ByteRange,
) -> Option<ByteRange> {
    let ends = missing.iter().map(|(gap, _)| gap.end);
    let starts = missing.iter().map(|(gap, _)| gap.start).chain([whole.end]);
    let here = [whole.start].into_iter().chain(ends).zip(starts);
    let mut here = here.map(|(start, end)| ByteRange { start, end });
    here.find(|here| here.start.max(asked.start) < here.end.min(asked.end))
}

/// What the disk cannot read: a bad sector.
fn is_unreadable(error: &StoreError) -> bool {
    matches!(error, StoreError::Io { source, .. } if store::is_broken(source))
}

fn length(bytes: u64) -> usize {
    usize::try_from(bytes).expect("at most some blocks")
}

#[cfg(test)]
mod tests {
    use super::{ByteRange, LogIndex, first_here};

    fn range(start: u64, end: u64) -> ByteRange {
        ByteRange { start, end }
    }

    #[test]
    fn what_is_here_of_it_is_found_first_part_first() {
        let whole = range(0, 100);
        let of = |gaps: &[(u64, u64)], asked| {
            let gaps: Vec<_> = gaps.iter().map(|(s, e)| (range(*s, *e), LogIndex(1))).collect();
            first_here(&gaps, whole, asked)
        };
        assert_eq!(of(&[], range(20, 30)), Some(whole), "blocks can be proven");
        assert_eq!(of(&[(25, 40)], range(20, 30)), Some(range(0, 25)));
        assert_eq!(of(&[(0, 25)], range(20, 30)), Some(range(25, 100)));
        assert_eq!(of(&[(0, 25), (28, 100)], range(20, 30)), Some(range(25, 28)));
        assert_eq!(of(&[(20, 30)], range(20, 30)), None);
        assert_eq!(of(&[(10, 22), (22, 40)], range(20, 30)), None);
        assert_eq!(of(&[(10, 22), (24, 26)], range(20, 30)), Some(range(22, 24)));
        assert_eq!(of(&[(0, 100)], range(20, 30)), None);
    }
}
