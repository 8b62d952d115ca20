//! The other nodes: asked regularly, by an echo request that their kernels answer.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Act, BEAT_PERIOD, BEATS_A_SECOND_MAX, MISSED_BEATS, PROBE_PAUSE, Relapses};
use crate::Now;

/// Beats that are due within this are sent together.
const SLACK: Duration = Duration::from_millis(10);
/// Answers in a row after which a node is back for the first time.
const ANSWERS_ASKED: u32 = 2;
/// An answer to a beat so many beats ago is as good as none.
const LATE_BEATS: u64 = 3;
/// So many nodes must be silent until it may be we who are cut off: of two nodes neither can say
/// which of them is, and of the other one little is lost.
const SILENT_MIN: usize = 2;

#[derive(Debug, Default)]
pub(super) struct Nodes {
    peers: BTreeMap<String, Peer>,
}

#[derive(Debug, Default)]
struct Peer {
    due: Now,
    /// Numbers of the last beats that were sent and answered.
    sent: u64,
    answered: u64,
    /// Beats in a row that went a whole period without an answer.
    missed: u32,
    /// Only who has answered before can fall silent: the network may carry no echo at all.
    has_answered: bool,
    /// Whether the handshake was unanswered since the last sign of life.
    refuted: bool,
    confirming: bool,
    /// The next handshake not before this.
    confirm_at: Now,
    out: bool,
    /// Answers in a row while left out.
    answers: u32,
    relapses: Relapses,
}

impl Nodes {
    pub(super) fn new(out: &BTreeSet<String>) -> Self {
        let peer = || Peer { out: true, has_answered: true, ..Peer::default() };
        Self { peers: out.iter().map(|name| (name.clone(), peer())).collect() }
    }

    pub(super) fn follow(&mut self, names: &BTreeSet<String>, now: Now) {
        self.peers.retain(|name, _| names.contains(name));
        let (period, count) = (self.period(names.len()), names.len().max(1) as f64);
        for (index, name) in names.iter().enumerate() {
            self.peers.entry(name.clone()).or_insert_with(|| Peer {
                // Spread over a period.
                due: now + period.mul_f64(index as f64 / count),
                ..Peer::default()
            });
        }
    }

    pub(super) fn heard(&mut self, name: &str, number: u64, now: Now) {
        let Some(peer) = self.peers.get_mut(name) else { return };
        let is_fresh = number > peer.answered && number <= peer.sent;
        if !is_fresh || number + LATE_BEATS < peer.sent {
            return;
        }
        peer.answered = number;
        peer.missed = 0;
        peer.has_answered = true;
        peer.live(now);
    }

    pub(super) fn confirmed(&mut self, name: &str, answered: bool, now: Now) {
        let Some(peer) = self.peers.get_mut(name) else { return };
        peer.confirming = false;
        peer.confirm_at = now + PROBE_PAUSE;
        if answered {
            peer.live(now);
        } else if peer.missed > 0 {
            peer.refuted = true;
            self.judge(name, now);
        }
    }

    /// We stood still, and read no answers.
    pub(super) fn forgive(&mut self) {
        for peer in self.peers.values_mut() {
            peer.answered = peer.sent;
            peer.missed = 0;
            peer.refuted = false;
        }
    }

    pub(super) fn poll(&mut self, now: Now) -> Vec<Act> {
        let period = self.period(self.peers.len());
        let is_due = |(_, peer): &(&String, &Peer)| peer.due <= now + SLACK;
        let due: Vec<String> =
            self.peers.iter().filter(is_due).map(|(name, _)| name.clone()).collect();
        let mut acts = Vec::new();
        for name in due {
            let Some(peer) = self.peers.get_mut(&name) else { continue };
            let next = peer.due + period;
            peer.due = if next > now { next } else { now + period };
            if peer.sent > peer.answered {
                peer.missed = peer.missed.saturating_add(1);
            }
            peer.sent += 1;
            acts.push(Act::Beat { peer: name.clone(), number: peer.sent });
            let in_doubt = peer.missed > 0 && peer.has_answered;
            if in_doubt && !peer.confirming && (peer.confirm_at <= now || peer.is_new_doubt()) {
                peer.confirming = true;
                acts.push(Act::Confirm(name.clone()));
            }
            self.judge(&name, now);
        }
        acts
    }

    pub(super) fn deadline(&self) -> Option<Now> {
        self.peers.values().map(|peer| peer.due).min()
    }

    pub(super) fn left_out(&self) -> BTreeSet<String> {
        let out = self.peers.iter().filter(|(_, peer)| peer.out);
        out.map(|(name, _)| name.clone()).collect()
    }

    /// Whether it is rather we who are cut off.
    pub(super) fn are_most_silent(&self) -> bool {
        let judged = || self.peers.values().filter(|peer| peer.has_answered && !peer.out);
        let silent = judged().filter(|peer| peer.missed > 0).count();
        silent >= SILENT_MIN && silent * 2 > judged().count()
    }

    fn judge(&mut self, name: &str, now: Now) {
        let cut_off = self.are_most_silent();
        let Some(peer) = self.peers.get_mut(name) else { return };
        if !peer.has_answered || !peer.refuted || peer.missed < MISSED_BEATS {
            return;
        }
        peer.answers = 0;
        if !peer.out && !cut_off {
            peer.out = true;
            peer.relapses.left_out(now);
        }
    }

    fn period(&self, count: usize) -> Duration {
        let allowed = Duration::from_secs(1).mul_f64(count as f64 / f64::from(BEATS_A_SECOND_MAX));
        BEAT_PERIOD.max(allowed)
    }
}

impl Peer {
    /// The first beat is missed: what was confirmed before says nothing of now.
    fn is_new_doubt(&self) -> bool {
        self.missed == 1 && !self.out
    }

    /// A sign of life.
    fn live(&mut self, now: Now) {
        self.refuted = false;
        if !self.out {
            return;
        }
        self.answers += 1;
        if self.answers >= self.relapses.answers_asked(ANSWERS_ASKED) {
            self.out = false;
            self.answers = 0;
            self.relapses.back(now);
        }
    }
}
