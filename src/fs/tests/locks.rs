//! Locks in the replicated state: who gets which, in which order, and when they are delegated.

use std::collections::BTreeMap;

use super::{Applied, Change, Ino, Op, ROOT, World, proto, release, session_end, unlink};
use crate::fs::proto::{LockAnswer, LockMode};
use crate::types::{LogIndex, Seq, SessionId};

/// A state with a file and some sessions that lock it.
struct Locking {
    world: World,
    file: u64,
    seqs: BTreeMap<u64, u64>,
}

impl Locking {
    fn new() -> Self {
        let mut world = World::new();
        let file = world.file(ROOT, "file");
        let seqs = BTreeMap::from([(world.session, world.seq)]);
        Self { world, file, seqs }
    }

    fn session(&mut self, node: u64) -> u64 {
        let session = self.world.cluster(super::session_open(node, 100 + node)).outcome.id;
        self.seqs.insert(session, 0);
        session
    }

    fn run(&mut self, session: u64, op: Op) -> Applied {
        self.world.session = session;
        self.world.seq = self.seqs[&session];
        let applied = self.world.ok(op);
        self.seqs.insert(session, self.world.seq);
        applied
    }

    fn ask(&mut self, who: (u64, u64), file: u64, mode: LockMode) -> Applied {
        let lock = proto::Lock { owner: who.1, end: 9, exclusive: true, ..proto::Lock::default() };
        let request = proto::RequestLock { ino: file, lock: Some(lock), mode: mode.into() };
        self.run(who.0, Op::RequestLock(request))
    }

    fn answer(&mut self, who: (u64, u64), mode: LockMode) -> LockAnswer {
        let file = self.file;
        self.ask(who, file, mode).outcome.lock()
    }

    fn unlock(&mut self, who: (u64, u64), file: u64) -> Vec<Change> {
        let unlock = proto::Unlock { ino: file, owner: who.1, start: 0, end: 9 };
        self.run(who.0, Op::Unlock(unlock)).changes
    }

    /// The delegate returns the lock of these owners.
    fn give_back(&mut self, session: u64, at: u64, owners: &[u64]) -> Vec<Change> {
        let lock =
            |&owner| proto::Lock { session, owner, end: 9, exclusive: true, ..<_>::default() };
        let held = owners.iter().map(lock).collect();
        let back = proto::ReturnLocks { ino: self.file, delegated_at: at, held };
        self.run(session, Op::ReturnLocks(back)).changes
    }
}

fn answered(session: u64, seq: u64, answer: LockAnswer) -> Change {
    Change::LockAnswered { session: SessionId(session), seq: Seq(seq), answer, conflict: None }
}

/// Who is alone keeps the locks; another's request calls them back, and is decided by what comes back.
#[test]
fn delegated_and_recalled() {
    let mut locking = Locking::new();
    let (one, file) = (locking.world.session, locking.file);
    let two = locking.session(2);
    let granted = locking.ask((one, 5), file, LockMode::Try);
    assert_eq!(granted.outcome.lock(), LockAnswer::Granted);
    let at = locking.world.index;
    let [Change::LocksDelegated { session, at: since, held, .. }] = &granted.changes[..] else {
        panic!("{granted:?}")
    };
    assert_eq!((*session, *since, held.len()), (SessionId(one), LogIndex(at), 1));

    let asked = locking.ask((two, 5), file, LockMode::Try);
    assert_eq!(asked.outcome.lock(), LockAnswer::Queued, "nobody knows here what the delegate has");
    let recalled = Change::LocksRecalled { ino: Ino(file), session: SessionId(one) };
    assert_eq!(asked.changes, [recalled]);
    let again = locking.ask((two, 6), file, LockMode::Wait);
    assert!(again.changes.is_empty(), "asked once");

    assert!(locking.give_back(one, at - 1, &[]).is_empty(), "a late copy of an earlier return");
    let changes = locking.give_back(one, at, &[5]);
    let returned = Change::LocksReturned { ino: Ino(file), session: SessionId(one) };
    assert_eq!(changes[0], returned);
    let [_, Change::LockAnswered { answer: LockAnswer::Refused, conflict: Some(lock), .. }] =
        &changes[..]
    else {
        panic!("{changes:?}")
    };
    assert_eq!(lock.owner_key(), (one, 5));
    assert_eq!(locking.unlock((one, 5), file), [answered(two, 2, LockAnswer::Granted)]);
}

/// Locks go to whoever has waited longest.
#[test]
fn first_come_first_served() {
    let mut locking = Locking::new();
    let (one, file) = (locking.world.session, locking.file);
    let [two, three] = [2, 3].map(|node| locking.session(node));
    assert_eq!(locking.answer((one, 1), LockMode::Try), LockAnswer::Granted);
    let at = locking.world.index;
    assert_eq!(locking.answer((two, 1), LockMode::Wait), LockAnswer::Queued);
    locking.give_back(one, at, &[1]);
    assert_eq!(locking.answer((three, 1), LockMode::Wait), LockAnswer::Queued);
    assert_eq!(locking.answer((one, 2), LockMode::Wait), LockAnswer::Queued);
    assert_eq!(locking.answer((one, 2), LockMode::Try), LockAnswer::Refused);
    assert_eq!(locking.answer((one, 2), LockMode::Test), LockAnswer::Refused);
    assert_eq!(locking.unlock((one, 1), file), [answered(two, 1, LockAnswer::Granted)]);
    assert_eq!(locking.unlock((two, 1), file), [answered(three, 1, LockAnswer::Granted)]);
    let ended = locking.world.cluster(session_end(three)).changes;
    assert!(matches!(&ended[..], [Change::LockAnswered { answer: LockAnswer::Granted, .. }, _]));
}

/// Two that wait for each other, and three in a ring: the one that would close the ring is told.
#[test]
fn deadlocks() {
    let mut locking = Locking::new();
    let one = locking.world.session;
    let [two, three] = [2, 3].map(|node| locking.session(node));
    locking.world.session = one;
    locking.world.seq = locking.seqs[&one];
    locking.world.next_ino = locking.file + 1;
    let files = [locking.file, locking.world.file(ROOT, "b"), locking.world.file(ROOT, "c")];
    locking.seqs.insert(one, locking.world.seq);
    let owners = [(one, 1), (two, 1), (three, 1)];
    for (owner, file) in owners.into_iter().zip(files) {
        assert_eq!(locking.ask(owner, file, LockMode::Try).outcome.lock(), LockAnswer::Granted);
        // Delegated until a test of another owner calls it back.
        let at = locking.world.index;
        let other = (if owner.0 == one { two } else { one }, 77);
        locking.ask(other, file, LockMode::Test);
        locking.file = file;
        locking.give_back(owner.0, at, &[1]);
    }
    let [a, b, c] = files;
    let mut wait = |owner, file| locking.ask(owner, file, LockMode::Wait).outcome.lock();
    assert_eq!(wait(owners[0], b), LockAnswer::Queued);
    assert_eq!(wait(owners[1], c), LockAnswer::Queued);
    assert_eq!(wait(owners[2], a), LockAnswer::Deadlock);
    assert_eq!(wait((three, 2), a), LockAnswer::Queued, "that is no ring");
}

/// A ring that closes while the locks are away is found when they are back.
#[test]
fn deadlock_over_delegated_locks() {
    let mut locking = Locking::new();
    let (one, a) = (locking.world.session, locking.file);
    let two = locking.session(2);
    locking.world.session = one;
    locking.world.seq = locking.seqs[&one];
    locking.world.next_ino = a + 1;
    let b = locking.world.file(ROOT, "b");
    locking.seqs.insert(one, locking.world.seq);
    locking.ask((one, 1), a, LockMode::Try);
    let at_a = locking.world.index;
    locking.ask((two, 1), b, LockMode::Try);
    let at_b = locking.world.index;
    assert_eq!(locking.ask((one, 1), b, LockMode::Wait).outcome.lock(), LockAnswer::Queued);
    assert_eq!(locking.ask((two, 1), a, LockMode::Wait).outcome.lock(), LockAnswer::Queued);
    let seq = locking.seqs[&two];
    assert_eq!(locking.give_back(one, at_a, &[1]).len(), 1, "what has b is not known yet");
    locking.file = b;
    let changes = locking.give_back(two, at_b, &[1]);
    let deadlock = answered(one, locking.seqs[&one] - 1, LockAnswer::Deadlock);
    assert_eq!(changes[1..], [deadlock], "the one whose queue came back last");
    assert_eq!(locking.unlock((one, 1), a), [answered(two, seq, LockAnswer::Granted)]);
}

/// The locks of a session end with it, delegated or not, and so does its waiting.
#[test]
fn a_session_ends() {
    let mut locking = Locking::new();
    let (one, file) = (locking.world.session, locking.file);
    let [two, three] = [2, 3].map(|node| locking.session(node));
    locking.ask((one, 1), file, LockMode::Try);
    locking.ask((two, 1), file, LockMode::Wait);
    locking.ask((three, 1), file, LockMode::Wait);
    let changes = locking.world.cluster(session_end(two)).changes;
    assert!(matches!(changes[..], [Change::SessionEnded { .. }]));
    let changes = locking.world.cluster(session_end(one)).changes;
    assert_eq!(changes[0], answered(three, 1, LockAnswer::Granted));
}

/// A request that was given up is never granted: not the one that waits, nor the one that is applied
/// only after it was given up.
#[test]
fn cancelled() {
    let mut locking = Locking::new();
    let (one, file) = (locking.world.session, locking.file);
    let two = locking.session(2);
    let cancel = |seq| Op::CancelLock(proto::CancelLock { ino: file, seq });
    locking.ask((one, 1), file, LockMode::Try);
    let at = locking.world.index;
    locking.ask((two, 1), file, LockMode::Wait);
    assert_eq!(locking.run(two, cancel(1)).outcome.lock(), LockAnswer::Cancelled);
    // The recall is under way, and its return answers nobody.
    assert_eq!(locking.give_back(one, at, &[]).len(), 1);

    // Number 3 is overtaken by the one that cancels it.
    locking.world.session = two;
    locking.world.seq = locking.seqs[&two];
    let lock = proto::Lock { owner: 1, end: 9, exclusive: true, ..proto::Lock::default() };
    let mode = LockMode::Try.into();
    let request = proto::RequestLock { ino: file, lock: Some(lock), mode };
    let late = locking.world.command(Op::RequestLock(request));
    locking.seqs.insert(two, locking.world.seq);
    assert_eq!(late.seq, 3);
    let mut overtaking = locking.world.command(cancel(late.seq));
    overtaking.lowest_unanswered = late.seq;
    let outcome = locking.world.apply(&overtaking).outcome;
    assert_eq!(outcome.lock(), LockAnswer::Cancelled);
    let applied = locking.world.apply(&late);
    assert_eq!(applied.outcome.lock(), LockAnswer::Cancelled);
    assert!(applied.changes.is_empty());
    locking.seqs.insert(two, locking.world.seq);
    assert_eq!(locking.answer((one, 1), LockMode::Try), LockAnswer::Granted);
    let already = locking.seqs[&one];
    assert_eq!(locking.run(one, cancel(already)).outcome.lock(), LockAnswer::Unspecified);
}

/// Locks go with the inode.
#[test]
fn a_file_goes() {
    let mut locking = Locking::new();
    let (one, file) = (locking.world.session, locking.file);
    locking.ask((one, 1), file, LockMode::Try);
    locking.run(one, unlink(ROOT, "file"));
    let changes = locking.run(one, release(file)).changes;
    assert!(changes.iter().any(|change| matches!(change, Change::LocksReturned { .. })));
}
