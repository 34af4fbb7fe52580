//! What goes wrong, for how long, and how it is undone. Each fault hits a few nodes; the others must go on.

use std::fs::{self, File};
use std::thread;
use std::time::Duration;

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::process::Signal;

use super::machines::Machines;
use super::network::Way;

/// Of the mounts' sessions: the default of the configuration.
pub const SESSION_TTL: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    LeaderCutOff,
    FollowerCutOff,
    /// Two of five, one of them the leader, who still hear each other.
    MinorityCutOff,
    /// The leader hears nobody.
    LeaderDeaf,
    /// The leader is heard by nobody.
    LeaderMute,
    /// One packet in ten to and from the leader is lost.
    LossyLeader,
    /// The leader sends no more than some megabits a second.
    NarrowLeader,
    LeaderPaused,
    FollowerPaused,
    /// For so long that everybody else has gone on.
    FollowerPausedForLong,
    /// Daemons are killed and started again, one after the other.
    Killed,
    /// Below its reserve: the node keeps no new bytes, and goes on.
    DiskNearlyFull,
    /// To the last block: the node stops, and is started again when there is room.
    DiskFull,
    ClockAhead,
    ClockBehind,
}

/// Those of the network, and those of machines: one of each can be in force at once.
pub const OF_NETWORK: [Fault; 7] = [
    Fault::LeaderCutOff,
    Fault::FollowerCutOff,
    Fault::MinorityCutOff,
    Fault::LeaderDeaf,
    Fault::LeaderMute,
    Fault::LossyLeader,
    Fault::NarrowLeader,
];
pub const OF_MACHINES: [Fault; 8] = [
    Fault::LeaderPaused,
    Fault::FollowerPaused,
    Fault::FollowerPausedForLong,
    Fault::Killed,
    Fault::DiskNearlyFull,
    Fault::DiskFull,
    Fault::ClockAhead,
    Fault::ClockBehind,
];

const BOTH: [Way; 2] = [Way::In, Way::Out];

impl Fault {
    /// Whether it can be made here.
    pub fn is_possible(self) -> bool {
        !matches!(self, Self::ClockAhead | Self::ClockBehind) || super::machines::has_clocks()
    }

    /// How long it has to last at least to be what it is.
    pub fn least(self) -> Duration {
        match self {
            Self::LeaderPaused | Self::FollowerPaused => 2 * SESSION_TTL,
            Self::FollowerPausedForLong => 10 * SESSION_TTL,
            Self::LeaderCutOff | Self::LeaderDeaf | Self::LeaderMute | Self::MinorityCutOff => {
                3 * SESSION_TTL / 2
            }
            _ => Duration::from_secs(2),
        }
    }

    /// The nodes that it hits.
    pub fn victims(self, machines: &Machines) -> Vec<u64> {
        match self {
            Self::DiskNearlyFull | Self::DiskFull | Self::ClockAhead | Self::ClockBehind => {
                vec![machines.special()]
            }
            Self::MinorityCutOff => {
                let leader = machines.leader();
                vec![leader, machines.others(&[leader])[0]]
            }
            Self::FollowerCutOff | Self::FollowerPaused | Self::FollowerPausedForLong => {
                machines.others(&[machines.leader()]).split_off(1)[..1].to_vec()
            }
            Self::Killed => {
                let leader = machines.leader();
                vec![machines.others(&[leader])[0], leader]
            }
            _ => vec![machines.leader()],
        }
    }

    /// Makes it, for so long, and undoes it. The nodes may not yet have recovered.
    pub fn happen(self, machines: &Machines, victims: &[u64], long: Duration) {
        self.begin(machines, victims);
        if self == Self::Killed {
            kill_in_turn(machines, victims, long);
        } else {
            thread::sleep(long);
        }
        self.end(machines, victims);
    }

    fn begin(self, machines: &Machines, victims: &[u64]) {
        let rest = machines.others(victims);
        let lose = |ways: &[Way], percent| {
            for node in victims {
                machines.network.lose(*node, &rest, ways, percent);
            }
        };
        match self {
            Self::LeaderCutOff | Self::FollowerCutOff | Self::MinorityCutOff => lose(&BOTH, 100),
            Self::LeaderDeaf => lose(&[Way::In], 100),
            Self::LeaderMute => lose(&[Way::Out], 100),
            Self::LossyLeader => lose(&BOTH, 10),
            Self::NarrowLeader => {
                machines.network.narrow(victims[0], 4, Duration::from_millis(200));
            }
            Self::LeaderPaused | Self::FollowerPaused | Self::FollowerPausedForLong => {
                for node in victims {
                    machines.signal(*node, Signal::STOP);
                }
            }
            Self::Killed => {}
            Self::DiskNearlyFull => fill(machines, 16 << 20),
            Self::DiskFull => fill(machines, 0),
            Self::ClockAhead => machines.set_clock(3600),
            Self::ClockBehind => machines.set_clock(-3600),
        }
    }

    fn end(self, machines: &Machines, victims: &[u64]) {
        match self {
            Self::LeaderCutOff
            | Self::FollowerCutOff
            | Self::MinorityCutOff
            | Self::LeaderDeaf
            | Self::LeaderMute
            | Self::LossyLeader
            | Self::NarrowLeader => {
                for node in victims {
                    machines.network.heal(*node);
                }
            }
            Self::LeaderPaused | Self::FollowerPaused | Self::FollowerPausedForLong => {
                for node in victims {
                    machines.signal(*node, Signal::CONT);
                }
            }
            Self::Killed => {}
            Self::DiskNearlyFull => empty(machines),
            Self::DiskFull => {
                empty(machines);
                // It has stopped, or is about to.
                machines.kill(machines.special());
                machines.start(machines.special());
            }
            Self::ClockAhead | Self::ClockBehind => machines.set_clock(0),
        }
    }
}

/// Each comes back before the next one goes.
fn kill_in_turn(machines: &Machines, victims: &[u64], long: Duration) {
    let each = long / u32::try_from(2 * victims.len()).expect("few");
    for node in victims {
        machines.kill(*node);
        thread::sleep(each);
        machines.start(*node);
        machines.until_serving(*node);
        thread::sleep(each);
    }
}

/// Leaves so many bytes.
fn fill(machines: &Machines, left: u64) {
    let space = || statvfs(machines.disk()).expect("statvfs").f_bavail * 4096;
    let filler = File::create(machines.disk().join("filler")).expect("a name has room");
    let (mut filled, mut step) = (0, space().saturating_sub(left));
    // What is written meanwhile takes room, too.
    while step >= 4096 {
        match fallocate(&filler, FallocateFlags::empty(), filled, step) {
            Ok(()) => {
                filled += step;
                step = space().saturating_sub(left);
            }
            Err(rustix::io::Errno::NOSPC) => step /= 2,
            Err(error) => panic!("fallocate: {error}"),
        }
    }
}

fn empty(machines: &Machines) {
    fs::remove_file(machines.disk().join("filler")).expect("it was filled");
}
