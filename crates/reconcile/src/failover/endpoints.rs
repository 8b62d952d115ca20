//! Single endpoints: suspected by the handshakes of others, judged by our own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use super::Act;
use super::{
    ENDPOINTS_MAX, FLOWS_MAX, HANDSHAKE_PATIENCE, PROBE_PAUSE, PROBES_MAX, RETRY_FIRST,
    RETRY_LIMIT, Relapses,
};
use crate::Now;

/// Answers in a row after which an endpoint is back for the first time.
const ANSWERS_ASKED: u32 = 1;

#[derive(Debug, Default)]
pub(super) struct Endpoints {
    /// Where unanswered handshakes lead to, and since when they are seen.
    pub(super) flows: BTreeMap<u64, (SocketAddr, Now)>,
    /// Of these, what went unanswered for longer than [`HANDSHAKE_PATIENCE`].
    old: BTreeMap<u64, SocketAddr>,
    suspects: BTreeSet<SocketAddr>,
    /// What of it the API knows.
    known: BTreeSet<SocketAddr>,
    /// What went with its node.
    lost: BTreeSet<SocketAddr>,
    all: BTreeMap<SocketAddr, Endpoint>,
}

#[derive(Debug, Default)]
struct Endpoint {
    out: bool,
    probing: bool,
    /// The next probe not before this.
    due: Now,
    /// Unanswered probes in a row.
    failures: u32,
    /// Answers in a row while left out.
    answers: u32,
    relapses: Relapses,
}

impl Endpoints {
    pub(super) fn new(out: &BTreeSet<SocketAddr>) -> Self {
        let endpoint = || Endpoint { out: true, ..Endpoint::default() };
        let all = out.iter().take(ENDPOINTS_MAX).map(|address| (*address, endpoint())).collect();
        Self { known: out.clone(), all, ..Self::default() }
    }

    pub(super) fn follow(&mut self, known: &BTreeSet<SocketAddr>, lost: &BTreeSet<SocketAddr>) {
        self.all.retain(|address, endpoint| !endpoint.out || known.contains(address));
        self.known.clone_from(known);
        self.lost.clone_from(lost);
    }

    pub(super) fn handshakes(&mut self, unanswered: &BTreeMap<u64, SocketAddr>, now: Now) {
        // A number may be another flow's by now.
        self.flows.retain(|flow, (to, _)| unanswered.get(flow) == Some(to));
        for (flow, to) in unanswered {
            if self.flows.len() >= FLOWS_MAX {
                break;
            }
            self.flows.entry(*flow).or_insert((*to, now));
        }
        let old = |(_, (_, at)): &(&u64, &(SocketAddr, Now))| *at + HANDSHAKE_PATIENCE <= now;
        self.old = self.flows.iter().filter(old).map(|(flow, (to, _))| (*flow, *to)).collect();
        self.suspects = self.old.values().copied().collect();
    }

    pub(super) fn abandoned(&self) -> BTreeSet<u64> {
        let is_out = |to| self.all.get(to).is_some_and(|endpoint: &Endpoint| endpoint.out);
        let is_left_out = |to| is_out(to) || self.lost.contains(to);
        self.old.iter().filter(|(_, to)| is_left_out(to)).map(|(flow, _)| *flow).collect()
    }

    pub(super) fn probed(&mut self, address: SocketAddr, answered: bool, cut_off: bool, now: Now) {
        let Some(endpoint) = self.all.get_mut(&address) else { return };
        endpoint.probing = false;
        if !answered {
            endpoint.answers = 0;
            endpoint.due = now + endpoint.wait();
            endpoint.failures = endpoint.failures.saturating_add(1);
            if !endpoint.out && !cut_off {
                endpoint.out = true;
                endpoint.relapses.left_out(now);
            }
            return;
        }
        endpoint.failures = 0;
        endpoint.due = now + PROBE_PAUSE;
        if !endpoint.out {
            return;
        }
        endpoint.answers += 1;
        if endpoint.answers >= endpoint.relapses.answers_asked(ANSWERS_ASKED) {
            endpoint.out = false;
            endpoint.answers = 0;
            endpoint.relapses.back(now);
        } else {
            endpoint.due = now + RETRY_FIRST;
        }
    }

    pub(super) fn poll(&mut self, now: Now) -> Vec<Act> {
        self.all.retain(|_, endpoint| !endpoint.is_forgotten(now));
        for suspect in self.suspects.intersection(&self.known) {
            if self.all.len() >= ENDPOINTS_MAX {
                break;
            }
            self.all.entry(*suspect).or_default();
        }
        let mut running = self.probing();
        let mut acts = Vec::new();
        for (address, endpoint) in &mut self.all {
            let asked = endpoint.out || self.suspects.contains(address);
            let known = self.known.contains(address);
            if !asked || !known || endpoint.probing || endpoint.due > now {
                continue;
            }
            if running >= PROBES_MAX {
                break;
            }
            running += 1;
            endpoint.probing = true;
            acts.push(Act::Probe(*address));
        }
        acts
    }

    pub(super) fn deadline(&self) -> Option<Now> {
        // The end of a probe makes room for the next.
        if self.probing() >= PROBES_MAX {
            return None;
        }
        let waiting = self.all.values().filter(|endpoint| endpoint.out && !endpoint.probing);
        waiting.map(|endpoint| endpoint.due).min()
    }

    fn probing(&self) -> usize {
        self.all.values().filter(|endpoint| endpoint.probing).count()
    }

    pub(super) fn left_out(&self) -> BTreeSet<SocketAddr> {
        let out = self.all.iter().filter(|(_, endpoint)| endpoint.out);
        out.map(|(address, _)| *address).collect()
    }

    pub(super) fn in_question(&self) -> BTreeSet<SocketAddr> {
        let out = self.left_out();
        let room = ENDPOINTS_MAX.saturating_sub(out.len());
        let suspects: Vec<SocketAddr> =
            self.suspects.difference(&out).take(room).copied().collect();
        out.into_iter().chain(suspects).collect()
    }
}

impl Endpoint {
    /// Until the next probe after one that went unanswered.
    fn wait(&self) -> Now {
        RETRY_FIRST.saturating_mul(1 << self.failures.min(8)).min(RETRY_LIMIT)
    }

    fn is_forgotten(&self, now: Now) -> bool {
        !self.out && !self.probing && self.due <= now && self.relapses.are_past(now)
    }
}
