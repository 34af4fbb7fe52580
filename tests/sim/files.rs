//! Backing files and stages of a node: what `store::Files` does, over a file system in memory. Where bytes are, and
//! which may go there, is decided by the real [`Layout`].

mod adopt;

use std::collections::BTreeMap;

use quorumfs::fs::{FileEffect, StagedPiece};
use quorumfs::store::{Away, Layout};
use quorumfs::types::{ByteRange, LogIndex, SessionId, StageId};
use rangemap::RangeSet;

use crate::drive::{Drive, Key, Name};
use crate::random::Random;

/// Bytes that are merged at once: less than a piece, so that merges are cut in the middle.
const CHUNK: u64 = 16;

type Layouts = BTreeMap<Key, Layout>;

/// What has come of a stage, as the daemon knows.
#[derive(Clone, Debug, Default)]
struct Arrived {
    received: RangeSet<u64>,
    /// What of it is on disk.
    synced: RangeSet<u64>,
    /// Where it goes, once that is known.
    target: Option<Target>,
    /// The connection by which it came is lost: unless it is sent again, nothing more comes.
    is_over: bool,
}

#[derive(Clone, Debug)]
struct Target {
    key: Key,
    index: LogIndex,
    pieces: Vec<StagedPiece>,
}

/// What a power loss leaves of the layouts: they as they were when a sync began, and the entry up to which all
/// effects were in it.
#[derive(Clone, Debug, Default)]
struct Image {
    layouts: Layouts,
    synced: LogIndex,
    /// Stages that can go once it is durable.
    retired: Vec<LogIndex>,
}

/// See the module's documentation.
#[derive(Clone, Debug, Default)]
pub struct Files {
    drive: Drive,
    layouts: Layouts,
    arriving: BTreeMap<StageId, Arrived>,
    /// Stages that nothing needs, but a replay from the last image may.
    retired: Vec<LogIndex>,
    image: Image,
    /// The entry whose effects were begun last, and the last one that wrote a stage and ended.
    begun: LogIndex,
    ended: LogIndex,
    /// Effects below are carried out.
    resume: LogIndex,
    done: LogIndex,
    /// The newest entry whose effects were ever begun: bytes may be as new.
    newest: LogIndex,
    /// Steps that are left before the process dies.
    left: Option<u64>,
    counts: Counts,
}

/// What stages met.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub placed: u64,
    /// Of some something, of some nothing had come when they were written.
    pub partial: u64,
    pub absent: u64,
}

impl Files {
    /// The process has died, and with `power_lost` the machine's power.
    pub fn crash(&mut self, power_lost: bool, random: &mut Random) {
        self.arriving.clear();
        self.left = None;
        if power_lost {
            self.drive.lose_power(random);
            self.layouts = self.image.layouts.clone();
            self.resume = self.image.synced.next();
            // What an earlier process had begun counts no more.
            (self.begun, self.ended) = (self.resume, LogIndex(0));
        } else if self.begun == self.ended && self.begun > LogIndex(0) {
            self.resume = self.begun.next();
        } else {
            self.resume = self.begun;
        }
        self.done = LogIndex(self.resume.0.saturating_sub(1)).max(self.image.synced);
        self.note_placed();
        let needed = self.needed();
        let written = self.drive.names().filter_map(|name| match name {
            Name::Written(index) => Some(index),
            Name::Backing(_) | Name::Fresh(_) => None,
        });
        self.retired = written.filter(|index| !needed.contains(index)).collect();
    }

    /// The process dies after so many more steps of carrying out effects or merging.
    pub fn die_after(&mut self, steps: u64) {
        self.left = Some(steps);
    }

    /// Whether no bytes are newer than the state at `applied`: false while entries are applied again.
    pub fn are_of(&self, applied: LogIndex) -> bool {
        self.newest <= applied
    }

    /// Whether it has died in the middle.
    pub fn died(&self) -> bool {
        self.left == Some(0)
    }

    /// It has not died.
    pub fn die_never(&mut self) {
        self.left = None;
    }

    fn step(&mut self) -> bool {
        match &mut self.left {
            None => true,
            Some(left) => {
                *left = left.saturating_sub(1);
                *left > 0
            }
        }
    }

    // ------------------------------------------------------------ effects

    pub fn carry_out_all(&mut self, index: LogIndex, effects: &[FileEffect]) {
        if self.died() {
            return;
        }
        if effects.is_empty() || index < self.resume {
            // Stages may have come for a session whose end is replayed.
            let ends =
                effects.iter().filter(|effect| matches!(effect, FileEffect::EndStages { .. }));
            ends.for_each(|end| self.carry_out(end));
            return self.pass(index);
        }
        self.begun = index;
        self.newest = self.newest.max(index);
        for effect in effects {
            if !self.step() {
                return;
            }
            self.carry_out(effect);
        }
        if self.died() {
            return;
        }
        if effects.iter().any(|effect| matches!(effect, FileEffect::Stage { .. })) {
            self.ended = index;
        }
        self.done = self.done.max(index);
    }

    fn carry_out(&mut self, effect: &FileEffect) {
        match effect {
            FileEffect::Write { ino, generation, offset, data } => {
                let key = (*ino, *generation);
                self.drive.write(Name::Backing(key), *offset, data);
                self.clear(key, ByteRange::at(*offset, data.len() as u64));
            }
            FileEffect::Stage { index, ino, generation, stage, pieces } => {
                let target =
                    Target { key: (*ino, *generation), index: *index, pieces: pieces.clone() };
                self.write_stage(*stage, &target);
            }
            FileEffect::EndStages { session } => self.end(*session),
            FileEffect::Truncate { ino, generation, size } => {
                let key = (*ino, *generation);
                self.clear(key, ByteRange::from(*size));
                self.drive.resize(Name::Backing(key), *size);
            }
            FileEffect::Allocate { .. } => {}
            FileEffect::Zero { ino, generation, range, .. } => {
                let key = (*ino, *generation);
                // No stage becomes a file that others have changed before: a replay would change it then.
                self.drive.write(Name::Backing(key), 0, &[]);
                self.drive.zero(Name::Backing(key), *range);
                self.clear(key, *range);
            }
            FileEffect::Copy { .. } => unreachable!("nobody copies here"),
            FileEffect::Remove { ino, generation } | FileEffect::Renew { ino, generation, .. } => {
                let key = (*ino, *generation);
                self.forget(key);
                self.drive.remove(Name::Backing(key));
            }
        }
    }

    fn write_stage(&mut self, id: StageId, target: &Target) {
        let Target { key, index, .. } = *target;
        let (fresh, written) = (Name::Fresh(id), Name::Written(index));
        let received = if let Some(arrived) = self.arriving.get(&id) {
            arrived.received.clone()
        } else if self.drive.has(fresh) {
            self.proven(fresh, &target.pieces)
        } else if self.drive.has(written) {
            self.proven(written, &target.pieces)
        } else {
            return self.find_again(target);
        };
        if self.drive.has(fresh) {
            self.drive.rename(fresh, written);
        }
        for piece in &target.pieces {
            if !self.step() {
                return;
            }
            self.set(key, piece.range(), Away::Missing { version: index });
        }
        // Whatever comes from here on is only taken where it is still missing.
        if let Some(arrived) = self.arriving.get_mut(&id) {
            arrived.target = Some(target.clone());
        }
        for came in received {
            if !self.step() {
                return;
            }
            self.fill(target, ByteRange { start: came.start, end: came.end }, None);
        }
        if self.is_complete(target) {
            let arrived = self.arriving.get(&id);
            let is_durable = arrived.is_some_and(|arrived| arrived.synced == arrived.received);
            self.give_up_stage(id);
            if is_durable {
                self.place(key, index);
            }
        } else {
            self.counts.partial += 1;
            if self.arriving.get(&id).is_some_and(|arrived| arrived.is_over) {
                self.give_up_stage(id);
            }
        }
    }

    /// There is no stage. It was the backing file already when power was lost, and durable before that; or it never
    /// came.
    fn find_again(&mut self, target: &Target) {
        let Target { key, index, pieces } = target;
        let is_placed = self.drive.is_marked(Name::Backing(*key), *index);
        self.counts.absent += u64::from(!is_placed);
        for piece in pieces {
            if is_placed {
                // What the last sync knew of is older.
                self.clear(*key, piece.range());
            } else {
                self.set(*key, piece.range(), Away::Missing { version: *index });
            }
        }
    }

    /// What of a stage's pieces its checksums prove. Here each piece lies in one block.
    fn proven(&self, name: Name, pieces: &[StagedPiece]) -> RangeSet<u64> {
        let is_proven = |piece: &&StagedPiece| {
            let bytes = self.drive.read(name, piece.staged);
            piece.staged.end <= self.drive.len(name) && crc32c::crc32c(&bytes) == piece.checksums[0]
        };
        pieces.iter().filter(is_proven).map(|piece| piece.staged.start..piece.staged.end).collect()
    }

    // ------------------------------------------------------------ stages

    /// Bytes of a stage arrive.
    pub fn stage(&mut self, id: StageId, offset: u64, data: &[u8]) {
        let came = ByteRange::at(offset, data.len() as u64);
        let arrived = self.arriving.entry(id).or_default();
        let Some(target) = arrived.target.clone() else {
            arrived.is_over = false;
            arrived.received.insert(came.start..came.end);
            self.drive.write(Name::Fresh(id), offset, data);
            return;
        };
        self.fill(&target, came, Some(data));
        if self.is_complete(&target) {
            self.give_up_stage(id);
        }
    }

    /// Bytes that have been added to a stage; nothing where it is not fresh.
    pub fn read_stage(&self, id: StageId, range: ByteRange) -> Option<Vec<u8>> {
        let is_fresh = self.arriving.get(&id).is_some_and(|arrived| arrived.target.is_none());
        is_fresh.then(|| self.drive.read(Name::Fresh(id), range))
    }

    /// Makes what has come of a stage durable; false where it is not there.
    pub fn sync_stage(&mut self, id: StageId) -> bool {
        let Some(arrived) = self.arriving.get_mut(&id) else { return false };
        arrived.synced = arrived.received.clone();
        let name = arrived.target.as_ref().map_or(Name::Fresh(id), |to| Name::Written(to.index));
        if self.drive.has(name) {
            self.drive.sync_file(name);
        }
        true
    }

    /// Whether a power loss would leave these bytes of a stage that is not written.
    pub fn has_durably(&self, id: StageId, pieces: &[(u64, Vec<u8>)]) -> bool {
        pieces.iter().all(|(at, data)| self.drive.has_durably(Name::Fresh(id), *at, data))
    }

    /// Deletes a stage that its session will not write.
    pub fn abandon_stage(&mut self, id: StageId) {
        self.arriving.remove(&id);
        self.drive.remove(Name::Fresh(id));
    }

    /// Nothing more comes of a stage: what of it was written, and has not come, stays missing.
    pub fn give_up_stage(&mut self, id: StageId) {
        match self.arriving.get_mut(&id) {
            Some(Arrived { target: None, is_over, .. }) => *is_over = true,
            Some(_) => drop(self.arriving.remove(&id)),
            None => {}
        }
    }

    /// Stages that are not written.
    pub fn fresh_stages(&self) -> impl Iterator<Item = StageId> + '_ {
        self.drive.names().filter_map(|name| match name {
            Name::Fresh(id) => Some(id),
            Name::Backing(_) | Name::Written(_) => None,
        })
    }

    /// Deletes what sessions have staged that are over.
    pub fn keep_stages(&mut self, is_kept: impl Fn(SessionId) -> bool) {
        let fresh: Vec<StageId> = self.fresh_stages().collect();
        self.arriving.retain(|id, arrived| arrived.target.is_some() || is_kept(id.session));
        for id in fresh.into_iter().filter(|id| !is_kept(id.session)) {
            self.drive.remove(Name::Fresh(id));
        }
    }

    fn end(&mut self, session: SessionId) {
        self.arriving.retain(|id, _| id.session != session);
        let fresh: Vec<StageId> = self.fresh_stages().collect();
        for id in fresh.into_iter().filter(|id| id.session == session) {
            self.drive.remove(Name::Fresh(id));
        }
    }

    fn is_complete(&self, target: &Target) -> bool {
        let waits = |piece: &StagedPiece| {
            let layout = self.layouts.get(&target.key);
            layout.is_some_and(|l| !l.waiting_for(piece.range(), target.index).is_empty())
        };
        !target.pieces.iter().any(waits)
    }

    fn fill(&mut self, target: &Target, came: ByteRange, data: Option<&[u8]>) {
        let Target { key, index, pieces } = target;
        for piece in pieces {
            let start = came.start.max(piece.staged.start);
            let end = came.end.min(piece.staged.end);
            if start >= end {
                continue;
            }
            let shift = piece.staged.start.wrapping_sub(piece.at);
            let range = ByteRange { start, end }.moved(shift.wrapping_neg());
            let Some(layout) = self.layouts.get(key) else { continue };
            for part in layout.waiting_for(range, *index) {
                if let Some(data) = data {
                    let staged = part.moved(shift);
                    let at = |at: u64| usize::try_from(at - came.start).expect("within what came");
                    let data = &data[at(staged.start)..at(staged.end)];
                    self.drive.write(Name::Written(*index), staged.start, data);
                }
                self.set(*key, part, Away::Staged { index: *index, shift });
            }
        }
    }

    // ------------------------------------------------------------ merging

    /// The stage becomes the backing file, where there is none, and the stage is all that the file has.
    fn place(&mut self, key: Key, index: LogIndex) -> bool {
        if self.layouts.get(&key).and_then(Layout::is_one_stage) != Some(index) {
            return false;
        }
        let (from, to) = (Name::Written(index), Name::Backing(key));
        if !self.drive.has(from) || self.drive.has(to) {
            return false;
        }
        self.drive.mark(from, index);
        self.drive.rename(from, to);
        self.counts.placed += 1;
        if self.step() {
            self.forget(key);
        }
        true
    }

    /// After a crash: stages that are not where the layouts say. They have become the backing file since; or that
    /// is gone, too, which a replay will find.
    fn note_placed(&mut self) {
        for key in self.layouts.keys().copied().collect::<Vec<_>>() {
            for index in self.layouts[&key].stages() {
                if self.drive.has(Name::Written(index)) {
                    continue;
                }
                let is_placed = self.drive.is_marked(Name::Backing(key), index);
                let of_it = |(_, away): &(ByteRange, Away)| away.is_of(index);
                let Some(layout) = self.layouts.get(&key) else { break };
                for (part, _) in layout.away().filter(of_it).collect::<Vec<_>>() {
                    if is_placed {
                        self.clear(key, part);
                    } else {
                        self.set(key, part, Away::Missing { version: index });
                    }
                }
            }
        }
    }

    /// Merges one chunk of some stage into its file; false where there is nothing to merge.
    pub fn merge_some(&mut self) -> bool {
        for key in self.layouts.keys().copied().collect::<Vec<_>>() {
            if self.place_durably(key) || self.merge_chunk(key) {
                return true;
            }
        }
        false
    }

    fn place_durably(&mut self, key: Key) -> bool {
        let Some(index) = self.layouts.get(&key).and_then(Layout::is_one_stage) else {
            return false;
        };
        if self.drive.has(Name::Written(index)) && !self.drive.has(Name::Backing(key)) {
            self.drive.sync_file(Name::Written(index));
        }
        self.place(key, index)
    }

    fn merge_chunk(&mut self, key: Key) -> bool {
        let chunk = self.layouts[&key].to_merge(ByteRange::from(0), CHUNK);
        let Some((chunk, index, shift)) = chunk else { return false };
        let bytes = self.read_written(index, chunk.moved(shift));
        let half = bytes.len() / 2;
        self.drive.write(Name::Backing(key), chunk.start, &bytes[..half]);
        if self.step() {
            self.drive.write(Name::Backing(key), chunk.start + half as u64, &bytes[half..]);
            if self.step() {
                self.clear(key, chunk);
            }
        }
        true
    }

    fn read_written(&self, index: LogIndex, range: ByteRange) -> Vec<u8> {
        let name = Name::Written(index);
        assert!(
            range.end <= self.drive.len(name),
            "bytes of a file are only in stage {index}, which is gone"
        );
        self.drive.read(name, range)
    }

    // ------------------------------------------------------------ reading and fetching

    /// Bytes of a file; nothing where some are missing.
    pub fn read(&self, key: Key, range: ByteRange) -> Option<Vec<u8>> {
        let Some(layout) = self.layouts.get(&key) else {
            return Some(self.drive.read(Name::Backing(key), range));
        };
        let mut bytes = Vec::new();
        for (part, away) in layout.parts(range) {
            bytes.extend(match away {
                None => self.drive.read(Name::Backing(key), part),
                Some(Away::Staged { index, shift }) => self.read_written(index, part.moved(shift)),
                Some(Away::Missing { .. } | Away::Doubted { .. }) => return None,
            });
        }
        Some(bytes)
    }

    /// The bytes of a range, each with whether it is here.
    pub fn present(&self, key: Key, range: ByteRange) -> Vec<(ByteRange, Vec<u8>)> {
        let parts = self.layouts.get(&key).map_or_else(|| vec![(range, None)], |l| l.parts(range));
        let here = parts.into_iter().map(|(part, _)| part);
        here.filter_map(|part| Some((part, self.read(key, part)?))).collect()
    }

    /// What is missing, and will not come by itself.
    pub fn to_fetch(&self) -> Vec<(Key, ByteRange, LogIndex)> {
        let comes = |key, version| {
            let mut targets = self.arriving.values().filter_map(|arrived| arrived.target.as_ref());
            targets.any(|target| target.key == key && target.index == version)
        };
        let missing = |(key, layout): (&Key, &Layout)| {
            let key = *key;
            layout.missing(ByteRange::from(0)).map(move |(part, version)| (key, part, version))
        };
        let all = self.layouts.iter().flat_map(missing);
        all.filter(|(key, _, version)| !comes(*key, *version)).collect()
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    pub fn lacks_nothing(&self) -> bool {
        let lacks = |layout: &Layout| layout.missing(ByteRange::from(0)).next().is_some();
        !self.layouts.values().any(lacks)
    }

    pub fn is_in_place(&self) -> bool {
        self.layouts.is_empty()
    }

    /// Bytes of a version of the file have come from a peer, and this replica has applied that version. Returns
    /// how many parts they filled.
    pub fn install(&mut self, key: Key, offset: u64, data: &[u8], version: LogIndex) -> usize {
        let Some(layout) = self.layouts.get(&key) else { return 0 };
        let lacking = layout.lacking(ByteRange::at(offset, data.len() as u64), version);
        for part in &lacking {
            let at = |at: u64| usize::try_from(at - offset).expect("within what came");
            self.drive.write(Name::Backing(key), part.start, &data[at(part.start)..at(part.end)]);
            self.clear(key, *part);
        }
        lacking.len()
    }

    // ------------------------------------------------------------ syncing

    /// What is going to be durable once the file system has been synced whole after this call.
    pub fn begin_sync(&mut self) -> Sync {
        let needed = self.needed();
        let unneeded = std::mem::take(&mut self.retired).into_iter();
        let (retired, later) =
            unneeded.filter(|index| !needed.contains(index)).partition(|index| *index <= self.done);
        self.retired = later;
        Sync(Image { layouts: self.layouts.clone(), synced: self.done, retired })
    }

    /// The file system has been synced; `kept` says whether the process has lived to note it.
    pub fn end_sync(&mut self, Sync(image): Sync, kept: bool) {
        self.drive.sync();
        // One sync comes after the other: what began before a snapshot was installed has ended before it.
        if kept && image.synced >= self.image.synced {
            self.image = image;
            for index in std::mem::take(&mut self.image.retired) {
                self.drive.remove(Name::Written(index));
            }
        }
    }

    // ------------------------------------------------------------ layouts

    fn needed(&self) -> Vec<LogIndex> {
        self.layouts.values().flat_map(Layout::stages).collect()
    }

    fn set(&mut self, key: Key, range: ByteRange, away: Away) {
        self.change(key, |layout| layout.set(range, away));
    }

    fn clear(&mut self, key: Key, range: ByteRange) {
        self.change(key, |layout| layout.clear(range));
    }

    fn forget(&mut self, key: Key) {
        self.change(key, |layout| *layout = Layout::default());
    }

    fn change(&mut self, key: Key, change: impl FnOnce(&mut Layout)) {
        let layout = self.layouts.entry(key).or_default();
        let before = layout.stages();
        change(layout);
        let after = layout.stages();
        self.retired.extend(before.into_iter().filter(|index| !after.contains(index)));
        if layout.is_in_place() {
            self.layouts.remove(&key);
        }
    }
}

/// A sync that is under way.
#[derive(Debug)]
pub struct Sync(Image);
