//! Random numbers that a seed determines, and the schedule that is made of them.

use anyhow::{Context, Result, ensure};

use super::world::World;

/// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
pub struct Random(u64);

impl Random {
    /// The sequence of a seed.
    pub fn from_seed(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number of a range.
    pub fn within(&mut self, range: std::ops::Range<u64>) -> u64 {
        range.start + self.next() % (range.end - range.start)
    }
}

/// What breaks at a tick.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Blow {
    /// kill -9 of the agent.
    Kill,
    /// One of the kinds of damage, by number.
    Damage(u64),
    /// Nothing.
    None,
}

/// One tick: what breaks on which node, and then how many pods go and come there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tick {
    /// The node, from 0.
    pub node: usize,
    /// What breaks.
    pub blow: Blow,
    /// Pods that are deleted, the oldest first.
    pub deletes: u64,
    /// Pods that are added.
    pub adds: u64,
    /// Whether namespaces are gone before their pods are deleted, as after a crash.
    pub namespaces_first: bool,
}

/// Pods that come or go at a tick, at most.
const PODS_MAX: u64 = 20;

impl Tick {
    /// The next tick of a sequence.
    pub fn next(random: &mut Random) -> Self {
        Self {
            node: random.within(0..2) as usize,
            blow: match random.within(0..10) {
                0..=2 => Blow::Kill,
                3..=7 => Blow::Damage(random.within(0..1 << 16)),
                _ => Blow::None,
            },
            deletes: random.within(0..PODS_MAX + 1),
            adds: random.within(0..PODS_MAX + 1),
            namespaces_first: random.within(0..4) == 0,
        }
    }
}

/// A value of the command line; words that begin with a dash choose no scenario.
pub fn option<T: std::str::FromStr>(name: &str) -> Result<Option<T>> {
    let word = std::env::args().find_map(|word| word.strip_prefix(name).map(str::to_owned));
    let parse = |word: String| word.parse().ok().with_context(|| format!("{name}{word}"));
    word.map(parse).transpose()
}

/// The schedule is a function of the seed.
pub fn replays(_: &World) -> Result<()> {
    let schedule = |seed| {
        let mut random = Random::from_seed(seed);
        (0..1000).map(|_| Tick::next(&mut random)).collect::<Vec<_>>()
    };
    ensure!(schedule(7) == schedule(7), "the same seed gave two schedules");
    ensure!(schedule(7) != schedule(8), "two seeds gave one schedule");
    let ticks = schedule(7);
    for blow in [Blow::Kill, Blow::None] {
        ensure!(ticks.iter().any(|tick| tick.blow == blow), "{blow:?} never happens");
    }
    Ok(())
}
