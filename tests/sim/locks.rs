//! Programs that lock files, and what their daemons do for them: the delegate's part is the real one.
//!
//! Two programs on each node lock two files, hold the locks for a while, and sometimes hold one and ask
//! for the other. Checked at every grant: nobody else has a lock that is in the way, of those whose
//! session is live; and once all is over, nothing is locked any more.

use std::collections::BTreeMap;

use quorumfs::consensus::{Input, Wait};
use quorumfs::fs::proto::{self, LockAnswer, LockMode, command::Op};
use quorumfs::fs::{Change, Delegations, Local, View as _, WHOLE_FILE, keys};
use quorumfs::types::{Ino, LogIndex, ProposalKey, Seq, SessionId};

use crate::clock::{MICRO, MILLI, Nanos, SECOND};
use crate::node::NodeEvent;
use crate::state::View;
use crate::world::World;

/// What a daemon knows of locks.
#[derive(Debug, Default)]
pub struct Locks {
    delegations: Delegations,
    /// Answers to queued requests that came before it was known that they are queued.
    answers: BTreeMap<Seq, LockAnswer>,
    /// Commands on their way. At most one about an inode, but for returns.
    pub commands: BTreeMap<ProposalKey, Task>,
    /// Inodes whose turn a program has, while it does something about them.
    turns: BTreeMap<Ino, usize>,
}

/// What a command is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    Request { locker: usize },
    Unlock { locker: usize, ino: Ino },
    Cancel { locker: usize },
    Return { ino: Ino },
}

/// A program that locks files.
#[derive(Debug)]
pub struct Locker {
    node: usize,
    /// Events of earlier steps are void.
    step: u64,
    doing: Doing,
    /// What it believes that it has, in which session.
    has: BTreeMap<Ino, (SessionId, bool)>,
}

/// What it is at.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Doing {
    Nothing,
    /// It asks, or is in the queue.
    Asking {
        ino: Ino,
        exclusive: bool,
        mode: LockMode,
        queued: Option<Seq>,
    },
    Releasing {
        ino: Ino,
    },
    /// Nobody knows whether these commands will be applied: it may have a lock, and is to have none.
    Undoing {
        ino: Ino,
        unanswered: Vec<Seq>,
    },
    /// It does not want to wait any longer.
    Cancelling {
        ino: Ino,
        exclusive: bool,
        mode: LockMode,
        seq: Seq,
    },
}

impl Locker {
    pub fn new(node: u64) -> Self {
        let node = usize::try_from(node).expect("few");
        Self { node, step: 0, doing: Doing::Nothing, has: BTreeMap::new() }
    }
}

impl Doing {
    fn ino(&self) -> Ino {
        match self {
            Self::Nothing => unreachable!("it is about no inode"),
            Self::Asking { ino, .. }
            | Self::Releasing { ino }
            | Self::Undoing { ino, .. }
            | Self::Cancelling { ino, .. } => *ino,
        }
    }
}

/// Whether nothing is locked, waited for or delegated.
fn no_locks(view: &View) -> bool {
    let all = keys::all_locks();
    view.scan(&all.from, &all.to, 1).expect("nothing rots here").is_empty()
}

impl World {
    pub fn lockers_rest(&self) -> bool {
        self.lockers.iter().all(|one| one.doing == Doing::Nothing && one.has.is_empty())
            && self.members().all(|node| {
                node.daemon.as_ref().is_some_and(|daemon| daemon.mount.locks.commands.is_empty())
            })
            && self.members().all(|node| no_locks(&node.state.view))
    }

    pub fn start_lockers(&mut self, node: usize) {
        for locker in lockers_of(node) {
            self.goes_on_in(locker, SECOND);
        }
    }

    /// The daemon is dead, and what it knew.
    pub fn forget_lockers(&mut self, node: usize) {
        for locker in lockers_of(node) {
            let locker = &mut self.lockers[locker];
            locker.step += 1;
            locker.doing = Doing::Nothing;
            locker.has.clear();
        }
    }

    /// The session has ended while its daemon lives.
    pub fn locks_ended(&mut self, node: usize) {
        let locks = &mut self.nodes[node].daemon.as_mut().expect("it runs").mount.locks;
        for key in std::mem::take(locks).commands.into_keys() {
            self.input_later(node, Input::Abandon { key });
        }
        self.forget_lockers(node);
        self.start_lockers(node);
    }

    /// What was applied and is shown.
    pub fn follow_locks(&mut self, node: usize, changes: &[Change]) {
        let own = self.nodes[node].daemon.as_ref().expect("it runs").mount.session;
        for change in changes {
            let about_locks = matches!(
                change,
                Change::LocksDelegated { .. }
                    | Change::LocksRecalled { .. }
                    | Change::LocksReturned { .. }
                    | Change::LockAnswered { .. }
            );
            if about_locks {
                self.remark(node, || format!("{change:?}"));
            }
            match change {
                Change::LocksDelegated { ino, session, at, held } if Some(*session) == own => {
                    self.coverage.count("locks: delegated");
                    self.locks(node).delegations.delegate(*ino, *at, held.clone());
                }
                Change::LocksRecalled { ino, session } if Some(*session) == own => {
                    self.recall_locks(node, *ino);
                }
                Change::LocksReturned { ino, session } if Some(*session) == own => {
                    self.coverage.count("locks: returned");
                    self.locks(node).delegations.returned(*ino);
                }
                Change::LockAnswered { session, seq, answer, .. } if Some(*session) == own => {
                    let waits = |one: &Locker| match one.doing {
                        Doing::Asking { queued, .. } => queued == Some(*seq),
                        _ => false,
                    };
                    match lockers_of(node).into_iter().find(|one| waits(&self.lockers[*one])) {
                        Some(locker) => self.lock_answered(node, locker, *answer, "queue"),
                        None => drop(self.locks(node).answers.insert(*seq, *answer)),
                    }
                }
                _ => {}
            }
        }
    }

    fn recall_locks(&mut self, node: usize, ino: Ino) {
        if self.locks(node).delegations.recall(ino) {
            self.coverage.count("locks: recalled");
            let flushing = self.random.skewed(10 * MICRO, 500 * MILLI);
            self.after(flushing, node, NodeEvent::ReturnLocks { ino });
        }
    }

    pub fn return_locks(&mut self, node: usize, ino: Ino) {
        let Some(back) = self.locks(node).delegations.to_return(ino) else { return };
        self.propose_about_locks(node, Task::Return { ino }, Op::ReturnLocks(back));
    }

    /// A program does its next thing, or looks again whether it can be done now.
    pub fn locker_goes_on(&mut self, node: usize, locker: usize, step: u64) {
        if self.lockers[locker].step != step {
            return;
        }
        let daemon = self.nodes[node].daemon.as_ref().expect("it runs");
        let now = self.nodes[node].clock.local(self.now);
        let live = daemon.mount.session.is_some() && daemon.mount.gate.may_serve(now, LogIndex(0));
        if !live {
            self.goes_on_in(locker, 20 * MILLI);
            return;
        }
        match self.lockers[locker].doing.clone() {
            Doing::Nothing => self.choose_lock(node, locker),
            Doing::Asking { ino, exclusive, mode, queued: None } => {
                self.ask(node, locker, ino, exclusive, mode);
            }
            Doing::Asking { ino, exclusive, mode, queued: Some(seq) } => {
                if self.has_turn(node, locker, ino) {
                    let doing = Doing::Cancelling { ino, exclusive, mode, seq };
                    self.lockers[locker].doing = doing;
                    self.cancel(node, locker, ino, seq);
                }
            }
            Doing::Releasing { ino } => self.release(node, locker, ino),
            Doing::Undoing { ino, unanswered } => match unanswered.last() {
                Some(seq) => self.cancel(node, locker, ino, *seq),
                None => self.release(node, locker, ino),
            },
            Doing::Cancelling { .. } => unreachable!("its command has a deadline"),
        }
    }

    fn choose_lock(&mut self, node: usize, locker: usize) {
        if !self.working || self.random.chance(100) {
            for ino in self.locks(node).delegations.grown_idle() {
                self.recall_locks(node, ino);
            }
        }
        let files = self.subjects.logs.clone();
        let held = self.lockers[locker].has.keys().next().copied();
        if let Some(ino) = held
            && (!self.working || self.random.chance(600))
        {
            self.lockers[locker].doing = Doing::Releasing { ino };
            self.release(node, locker, ino);
        } else if self.working {
            let ino = self.random.pick(&files);
            let exclusive = self.random.chance(600);
            let mode = match self.random.below(10) {
                0 => LockMode::Test,
                1..=4 => LockMode::Try,
                _ => LockMode::Wait,
            };
            let doing = Doing::Asking { ino, exclusive, mode, queued: None };
            self.lockers[locker].doing = doing;
            self.ask(node, locker, ino, exclusive, mode);
        } else {
            self.rest(node, locker);
        }
    }

    fn ask(&mut self, node: usize, locker: usize, ino: Ino, exclusive: bool, mode: LockMode) {
        if !exclusive && mode != LockMode::Test {
            // From the moment that it wants no more, it does not count on more.
            self.lockers[locker].has.entry(ino).and_modify(|(_, exclusive)| *exclusive = false);
        }
        let session = self.lock_session(node);
        let wanted = proto::Lock {
            session: session.0,
            owner: locker as u64,
            start: 0,
            end: WHOLE_FILE,
            exclusive,
            pid: 0,
        };
        match self.locks(node).delegations.request(ino, &wanted, mode) {
            Local::Done(answer, _) => self.lock_answered(node, locker, answer, "delegate"),
            Local::HasToWait => {
                self.recall_locks(node, ino);
                self.goes_on_in(locker, 5 * MILLI);
            }
            Local::Returning => self.goes_on_in(locker, 5 * MILLI),
            Local::NotHere => {
                if self.has_turn(node, locker, ino) {
                    let lock = Some(wanted);
                    let request = proto::RequestLock { ino: ino.0, lock, mode: mode.into() };
                    let task = Task::Request { locker };
                    self.propose_about_locks(node, task, Op::RequestLock(request));
                }
            }
        }
    }

    fn release(&mut self, node: usize, locker: usize, ino: Ino) {
        self.remark(node, || format!("locker {locker}: releases inode {ino}"));
        // From the moment that it wants to release it, it does not count on it.
        self.lockers[locker].has.remove(&ino);
        let session = self.lock_session(node);
        let owner = (session.0, locker as u64);
        match self.locks(node).delegations.release(ino, owner, 0, WHOLE_FILE) {
            Local::Done(..) => self.rest(node, locker),
            Local::Returning | Local::HasToWait => self.goes_on_in(locker, 5 * MILLI),
            Local::NotHere => {
                if self.has_turn(node, locker, ino) {
                    let owner = locker as u64;
                    let unlock = proto::Unlock { ino: ino.0, owner, start: 0, end: WHOLE_FILE };
                    let task = Task::Unlock { locker, ino };
                    self.propose_about_locks(node, task, Op::Unlock(unlock));
                }
            }
        }
    }

    fn cancel(&mut self, node: usize, locker: usize, ino: Ino, seq: Seq) {
        let cancel = proto::CancelLock { ino: ino.0, seq: seq.0 };
        self.propose_about_locks(node, Task::Cancel { locker }, Op::CancelLock(cancel));
    }

    /// Whether it may say something about an inode now; it looks again later where not.
    fn has_turn(&mut self, node: usize, locker: usize, ino: Ino) -> bool {
        let turn = *self.locks(node).turns.entry(ino).or_insert(locker);
        if turn != locker {
            self.goes_on_in(locker, 2 * MILLI);
        }
        turn == locker
    }

    fn propose_about_locks(&mut self, node: usize, task: Task, op: Op) {
        let mount = &mut self.nodes[node].daemon.as_mut().expect("it runs").mount;
        if mount.session.is_none() {
            return;
        }
        let key = mount.next_key();
        mount.locks.commands.insert(key, task);
        self.remark(node, || format!("{key:?}: {op:?}"));
        let mount = &mut self.nodes[node].daemon.as_mut().expect("it runs").mount;
        let lowest = mount.lowest_unanswered();
        let data = self.encode(node, key, lowest, op);
        self.input_later(node, Input::Propose { key, data, wait: Wait::Here });
        let deadline = self.random.within(SECOND / 2, 4 * SECOND);
        self.after(deadline, node, NodeEvent::LockDeadline { key });
        if let Task::Request { locker } | Task::Unlock { locker, .. } | Task::Cancel { locker } =
            task
        {
            // Nothing but the answer, or the deadline, takes it on.
            self.lockers[locker].step += 1;
        }
    }

    pub fn lock_command_done(&mut self, node: usize, key: ProposalKey, outcome: &proto::Outcome) {
        let task = self.locks(node).commands.remove(&key).expect("the caller has seen it");
        // Of a session that has ended; what follows from that comes by itself.
        if outcome.errno != 0 {
            return;
        }
        match task {
            Task::Return { .. } => {}
            Task::Unlock { locker, .. } => self.rest(node, locker),
            Task::Request { locker } => self.requested(node, locker, key.seq, outcome.lock()),
            Task::Cancel { locker } => self.cancelled(node, locker, outcome.lock()),
        }
    }

    fn requested(&mut self, node: usize, locker: usize, seq: Seq, answer: LockAnswer) {
        if answer != LockAnswer::Queued {
            self.lock_answered(node, locker, answer, "log");
            return;
        }
        if let Some(answer) = self.locks(node).answers.remove(&seq) {
            self.lock_answered(node, locker, answer, "queue");
            return;
        }
        let Doing::Asking { queued, .. } = &mut self.lockers[locker].doing else {
            unreachable!("its request was not given up")
        };
        *queued = Some(seq);
        self.give_turn(node, locker);
        let patience = self.random.within(10 * MILLI, 3 * SECOND);
        self.goes_on_in(locker, patience);
    }

    fn cancelled(&mut self, node: usize, locker: usize, answer: LockAnswer) {
        match self.lockers[locker].doing.clone() {
            Doing::Undoing { ino, mut unanswered } => {
                let seq = unanswered.pop().expect("it was cancelled");
                self.locks(node).answers.remove(&seq);
                if answer == LockAnswer::Cancelled {
                    self.coverage.count("locks: cancelled, outcome unknown");
                }
                self.lockers[locker].doing = Doing::Undoing { ino, unanswered };
                self.goes_on_in(locker, MICRO);
            }
            Doing::Cancelling { .. } if answer == LockAnswer::Cancelled => {
                self.coverage.count("locks: cancelled in the queue");
                self.rest(node, locker);
            }
            Doing::Cancelling { ino, exclusive, mode, seq } => {
                let answer = self.locks(node).answers.remove(&seq);
                let answer = answer.expect("what is not in the queue any more was answered");
                let doing = Doing::Asking { ino, exclusive, mode, queued: Some(seq) };
                self.lockers[locker].doing = doing;
                self.lock_answered(node, locker, answer, "queue");
            }
            doing => unreachable!("{doing:?} cancels nothing"),
        }
    }

    /// Nobody knows what becomes of the command.
    pub fn give_up_lock_command(&mut self, node: usize, key: ProposalKey) {
        let mount = &mut self.nodes[node].daemon.as_mut().expect("it runs").mount;
        let Some(task) = mount.locks.commands.remove(&key) else { return };
        self.command_given_up(node, key);
        let (locker, ino) = match task {
            Task::Return { ino } => {
                self.return_locks(node, ino);
                return;
            }
            Task::Unlock { locker, ino } => (locker, ino),
            Task::Request { locker } | Task::Cancel { locker } => {
                (locker, self.lockers[locker].doing.ino())
            }
        };
        let seq = match (task, self.lockers[locker].doing.clone()) {
            (Task::Cancel { .. }, Doing::Cancelling { seq, .. }) => vec![seq],
            (Task::Cancel { .. }, _) => Vec::new(),
            _ => vec![key.seq],
        };
        let mut unanswered = match self.lockers[locker].doing.clone() {
            Doing::Undoing { unanswered, .. } => unanswered,
            _ => Vec::new(),
        };
        unanswered.extend(seq);
        self.lockers[locker].has.remove(&ino);
        self.lockers[locker].doing = Doing::Undoing { ino, unanswered };
        self.goes_on_in(locker, MILLI);
    }

    fn lock_answered(&mut self, node: usize, locker: usize, answer: LockAnswer, by: &str) {
        let Doing::Asking { ino, exclusive, mode, .. } = self.lockers[locker].doing else {
            unreachable!("it has asked")
        };
        self.coverage.count(match (answer, by) {
            (LockAnswer::Granted, "delegate") => "locks: granted by the delegate",
            (LockAnswer::Granted, "queue") => "locks: granted from the queue",
            (LockAnswer::Granted, _) => "locks: granted in the log",
            (LockAnswer::Deadlock, _) => "locks: deadlocks",
            _ => "locks: refused",
        });
        self.remark(node, || {
            format!("locker {locker}: {answer:?} by the {by}, inode {ino} {exclusive} {mode:?}")
        });
        if answer == LockAnswer::Granted && !self.nodes[node].has_lease(self.now) {
            // The session may have ended since: the program is not told, and lets it go.
            self.coverage.count("locks: granted without a lease");
            self.lockers[locker].doing = Doing::Releasing { ino };
            self.goes_on_in(locker, MILLI);
            return;
        }
        if answer == LockAnswer::Granted {
            let session = self.lock_session(node);
            self.check_locks(locker, ino, exclusive);
            self.lockers[locker].has.insert(ino, (session, exclusive));
        } else {
            assert!(
                mode != LockMode::Wait || answer == LockAnswer::Deadlock,
                "{answer:?} for one that waits"
            );
        }
        self.rest(node, locker);
    }

    /// Panics where somebody has a lock that is in the way, in a session that may still act on it.
    fn check_locks(&self, locker: usize, ino: Ino, exclusive: bool) {
        for (other, one) in self.lockers.iter().enumerate().filter(|(other, _)| *other != locker) {
            let Some((session, theirs)) = one.has.get(&ino) else { continue };
            let node = &self.nodes[one.node];
            let own = node.daemon.as_ref().and_then(|daemon| daemon.mount.session);
            let live = own == Some(*session) && node.has_lease(self.now);
            assert!(
                !live || !(exclusive || *theirs),
                "locker {locker} is granted inode {ino} while locker {other} has it"
            );
        }
    }

    fn rest(&mut self, node: usize, locker: usize) {
        self.give_turn(node, locker);
        self.lockers[locker].doing = Doing::Nothing;
        let pause = self.random.skewed(MILLI, 300 * MILLI);
        self.goes_on_in(locker, pause);
    }

    fn give_turn(&mut self, node: usize, locker: usize) {
        self.locks(node).turns.retain(|_, turn| *turn != locker);
    }

    fn goes_on_in(&mut self, locker: usize, delay: Nanos) {
        let one = &mut self.lockers[locker];
        one.step += 1;
        let (node, step) = (one.node, one.step);
        self.after(delay, node, NodeEvent::Locker { locker, step });
    }

    fn remark(&mut self, node: usize, what: impl FnOnce() -> String) {
        let id = self.nodes[node].id.0;
        self.trace.remark(self.now, id, what);
    }

    fn lock_session(&self, node: usize) -> SessionId {
        let daemon = self.nodes[node].daemon.as_ref().expect("it runs");
        daemon.mount.session.expect("locks end with it")
    }

    fn locks(&mut self, node: usize) -> &mut Locks {
        &mut self.nodes[node].daemon.as_mut().expect("it runs").mount.locks
    }
}

fn lockers_of(node: usize) -> [usize; 2] {
    [2 * node, 2 * node + 1]
}
