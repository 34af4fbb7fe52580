//! The network between the nodes: it delays, drops, repeats, reorders, and falls apart.

use std::collections::BTreeSet;

use crate::clock::{MICRO, MILLI, Nanos, SECOND};
use crate::random::Random;

/// How badly messages fare at present.
#[derive(Clone, Copy, Debug)]
struct Weather {
    drop_per_mille: u64,
    repeat_per_mille: u64,
    /// Messages that turn up seconds later.
    stray_per_mille: u64,
    delay_max: Nanos,
}

const CALM: Weather =
    Weather { drop_per_mille: 1, repeat_per_mille: 1, stray_per_mille: 0, delay_max: 3 * MILLI };

/// Directed links between nodes, by their places in the world.
#[derive(Debug)]
pub struct Network {
    nodes: usize,
    cut: BTreeSet<(usize, usize)>,
    weather: Weather,
}

impl Network {
    pub fn new(nodes: usize) -> Self {
        Self { nodes, cut: BTreeSet::new(), weather: CALM }
    }

    /// There is one node more.
    pub fn grow(&mut self) {
        self.nodes += 1;
    }

    /// After how long each copy of a message arrives that is sent now.
    pub fn carry(&self, random: &mut Random, from: usize, to: usize) -> Vec<Nanos> {
        let weather = self.weather;
        if !self.is_open(from, to) || random.chance(weather.drop_per_mille) {
            return Vec::new();
        }
        let copies = 1 + usize::from(random.chance(weather.repeat_per_mille));
        (0..copies)
            .map(|_| {
                if random.chance(weather.stray_per_mille) {
                    random.within(SECOND / 2, 8 * SECOND)
                } else {
                    random.skewed(100 * MICRO, weather.delay_max)
                }
            })
            .collect()
    }

    /// After how long what is sent on a connection arrives; never where that breaks it.
    pub fn carry_stream(&self, random: &mut Random, from: usize, to: usize) -> Option<Nanos> {
        let weather = self.weather;
        let is_lost = !self.is_open(from, to) || random.chance(weather.drop_per_mille / 5);
        (!is_lost).then(|| random.skewed(100 * MICRO, weather.delay_max))
    }

    pub fn is_open(&self, from: usize, to: usize) -> bool {
        !self.cut.contains(&(from, to))
    }

    /// Nothing passes between `side` and the others; only what goes out of it (or into it) is lost
    /// where `one_way`.
    pub fn partition(&mut self, side: &BTreeSet<usize>, one_way: Option<Direction>) {
        for inside in side.iter().copied() {
            for outside in (0..self.nodes).filter(|node| !side.contains(node)) {
                if one_way != Some(Direction::Out) {
                    self.cut.insert((outside, inside));
                }
                if one_way != Some(Direction::In) {
                    self.cut.insert((inside, outside));
                }
            }
        }
    }

    /// One link is cut, in both directions.
    pub fn cut_link(&mut self, a: usize, b: usize) {
        self.cut.extend([(a, b), (b, a)]);
    }

    /// Every link works again. Returns the pairs that had been cut.
    pub fn heal(&mut self) -> BTreeSet<(usize, usize)> {
        std::mem::take(&mut self.cut)
    }

    pub fn storm(&mut self, random: &mut Random) {
        self.weather = Weather {
            drop_per_mille: random.within(0, 200),
            repeat_per_mille: random.within(0, 200),
            stray_per_mille: random.within(0, 40),
            delay_max: random.within(5 * MILLI, 400 * MILLI),
        };
    }

    pub fn calm(&mut self) {
        self.weather = CALM;
    }
}

/// Which messages of a one-way partition are lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Out,
    In,
}
