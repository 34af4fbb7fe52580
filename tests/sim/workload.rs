//! The clients: each does one thing after the other, and writes down what it did and saw.

use quorumfs::fs::proto::{self, command::Op};
use quorumfs::types::{Ino, LogIndex, ProposalKey};

use crate::clock::{MICRO, MILLI, SECOND};
use crate::history::{Answer, Call, NAMES, RenameMode, SLOTS, SomeSlots, Subject};
use crate::node::NodeEvent;
use crate::random::Random;
use crate::world::{Event, World};

/// Operations on a subject, before the next one of its kind takes its place.
const ROUND: u64 = 70;
/// Files with slots: more than a run comes to.
const SLOT_FILES: usize = 100;

#[derive(Debug)]
pub struct Client {
    pub node: usize,
    pub current: Option<Current>,
    /// Operations that were answered.
    pub answered: u64,
}

/// What a client waits for.
#[derive(Clone, Copy, Debug)]
pub struct Current {
    /// Its place in the history.
    pub operation: usize,
    pub subject: Subject,
    pub call: Call,
    /// Once it is proposed.
    pub key: Option<ProposalKey>,
    /// The last entry that the daemon had received when it came there.
    pub since: Option<LogIndex>,
}

impl Client {
    pub fn new(node: usize) -> Self {
        Self { node, current: None, answered: 0 }
    }

    pub fn proposed(&mut self, key: ProposalKey, call: Call) {
        let current = self.current.as_mut().expect("it waits for this");
        current.key = Some(key);
        current.call = call;
    }
}

/// Inodes that exist from the start, and how often they were used.
#[derive(Debug)]
pub struct Subjects {
    registers: Vec<(Ino, u64)>,
    directories: Vec<(Ino, u64)>,
    pub logs: Vec<Ino>,
    /// Those that are used at a time are neighbours.
    slots: Vec<Ino>,
    slots_used: u64,
    /// Values and tags are never used twice.
    last_value: u64,
}

impl Subjects {
    /// They, and the commands that make them.
    pub fn new() -> (Self, Vec<proto::Command>) {
        let names = ["r0", "r1", "d0", "d1", "l0", "l1"];
        let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
        let slots = (0..SLOT_FILES).map(|number| format!("s{number}"));
        let names: Vec<String> = names.into_iter().chain(slots).collect();
        let inos: Vec<Ino> = (2..).map(Ino).take(names.len()).collect();
        let subjects = Self {
            registers: vec![(inos[0], 0), (inos[1], 0)],
            directories: vec![(inos[2], 0), (inos[3], 0)],
            logs: vec![inos[4], inos[5]],
            slots: inos[6..].to_vec(),
            slots_used: 0,
            last_value: 0,
        };
        let open = proto::SessionOpen { node: 1, nonce: 1, strong: true, ..Default::default() };
        let end = proto::SessionEnd { session: 1, expired: false };
        let mut ops = vec![(0, Op::SessionOpen(open))];
        ops.extend(names.iter().zip(&inos).map(|(name, ino)| (1, make(name, *ino))));
        ops.push((0, Op::SessionEnd(end)));
        let commands = ops.into_iter().zip(0..).map(|((session, op), seq)| proto::Command {
            volume: 1,
            session,
            seq,
            op: Some(op),
            ..proto::Command::default()
        });
        (subjects, commands.collect())
    }

    /// What a client does next.
    fn choose(&mut self, random: &mut Random) -> (Subject, Call) {
        self.last_value += 1;
        let value = self.last_value;
        match random.below(100) {
            0..12 => (self.register(random), Call::Set(value)),
            12..27 => (self.register(random), Call::Get),
            27..39 => {
                let (wait_for_roster, staged) = (random.chance(750), random.chance(300));
                let call = Call::Append { tag: value, wait_for_roster, staged };
                (Subject::Log { file: random.pick(&self.logs) }, call)
            }
            39..43 => (Subject::Log { file: random.pick(&self.logs) }, Call::Size),
            43..50 => (self.names(random), Call::Lookup(random.index(NAMES))),
            50..57 => {
                let call =
                    Call::Make { name: random.index(NAMES), ino: 0, directory: random.chance(300) };
                (self.names(random), call)
            }
            57..63 => {
                let (from, mode) = (random.index(NAMES), random.below(3));
                let to = (from + 1 + random.index(NAMES - 1)) % NAMES;
                let modes = [RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange];
                let mode = modes[usize::try_from(mode).expect("small")];
                (self.names(random), Call::Rename { from, to, mode })
            }
            63..69 => {
                let call =
                    Call::Remove { name: random.index(NAMES), directory: random.chance(300) };
                (self.names(random), call)
            }
            69..86 => {
                let some = u8::try_from(random.within(1, (1 << SLOTS) - 1)).expect("a bit each");
                let (slots, staged) = (SomeSlots(some), random.chance(650));
                (self.slots(), Call::Fill { slots, value, staged })
            }
            86..97 => (self.slots(), Call::Peek),
            97..99 => (self.slots(), Call::Punch(random.index(SLOTS))),
            _ => (self.slots(), Call::Cut),
        }
    }

    fn slots(&mut self) -> Subject {
        self.slots_used += 1;
        let (round, other) = (self.slots_used / 2 / ROUND, self.slots_used % 2);
        let place = usize::try_from(2 * round + other).expect("a run is short");
        Subject::Slots { file: self.slots[place] }
    }

    fn register(&mut self, random: &mut Random) -> Subject {
        let place = random.index(self.registers.len());
        let (file, used) = &mut self.registers[place];
        *used += 1;
        Subject::Register { file: *file, round: *used / ROUND }
    }

    fn names(&mut self, random: &mut Random) -> Subject {
        let place = random.index(self.directories.len());
        let (directory, used) = &mut self.directories[place];
        *used += 1;
        Subject::Names { directory: *directory, round: *used / ROUND }
    }
}

fn make(name: &str, ino: Ino) -> Op {
    let kind = if name.starts_with('d') { proto::Kind::Directory } else { proto::Kind::Regular };
    Op::Make(proto::Make {
        parent: Ino::ROOT.0,
        name: name.as_bytes().to_vec().into(),
        ino: ino.0,
        kind: kind.into(),
        mode: 0o755,
        ..proto::Make::default()
    })
}

impl World {
    pub fn begin_operation(&mut self, client: usize) {
        if !self.working || self.clients[client].current.is_some() {
            return;
        }
        let node = self.clients[client].node;
        if self.nodes[node].daemon.is_none() {
            self.think(client);
            return;
        }
        let (subject, call) = self.subjects.choose(&mut self.random);
        let operation = self.history.invoke(client, subject, call);
        let current = Current { operation, subject, call, key: None, since: None };
        self.clients[client].current = Some(current);
        let now = self.nodes[node].clock.local(self.now);
        let mount = &self.nodes[node].daemon.as_ref().expect("just seen").mount;
        // The kernel needs no daemon for what it keeps, not even a running one.
        if let Some(answer) = mount.kernel_answer(now, subject, call) {
            self.coverage.count("reads served by the kernel");
            self.finish(client, Some(answer));
            return;
        }
        let deadline = self.random.within(2 * SECOND, 6 * SECOND);
        self.after(deadline, node, NodeEvent::Deadline { client, operation });
        let delay = self.random.within(MICRO, 50 * MICRO);
        self.after(delay, node, NodeEvent::Attempt { client, operation });
    }

    /// A client's operation is over: with an answer, or nobody knows how.
    pub fn finish(&mut self, client: usize, answer: Option<Answer>) {
        let Some(current) = self.clients[client].current.take() else { return };
        let target = &self.nodes[self.clients[client].node];
        assert!(
            answer.is_none() || target.is_sound(),
            "node {} serves although it is off",
            target.id
        );
        // What a replica says that is wrong and does not know it yet, nobody can believe; what was proposed through it
        // may have happened.
        let is_answered = answer.is_some();
        let answer = answer.filter(|_| !target.is_off());
        let node = self.nodes[self.clients[client].node].id.0;
        let operation = current.operation;
        self.trace.note(
            self.now,
            node,
            if answer.is_some() { "answer" } else { "no answer" },
            &[("client", client as u64), ("operation", operation as u64)],
        );
        self.trace.remark(self.now, node, || format!("{current:?}: {answer:?}"));
        match answer {
            Some(answer) => {
                self.history.answer(operation, answer);
            }
            None if current.key.is_none() => self.history.void(operation),
            None => self.coverage.count("unknown outcomes"),
        }
        self.clients[client].answered += u64::from(is_answered);
        self.think(client);
    }

    fn think(&mut self, client: usize) {
        let delay = self.random.skewed(MILLI, 400 * MILLI);
        // What comes of operations of a replica that is wrong nobody can judge: a history of many takes for ever.
        let is_off = self.nodes[self.clients[client].node].is_off();
        let rest = if is_off { self.random.within(SECOND, 3 * SECOND) } else { 0 };
        self.schedule(delay + rest, Event::Client { client });
    }
}
