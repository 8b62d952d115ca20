//! What does not answer this node, as a state machine: observations and the time in, probes to send
//! and the set of [`Unreachable`] out.
//!
//! ```text
//!   node:      echo unanswered ─▶ doubtful ─▶ TCP to the node unanswered too ─▶ left out
//!   endpoint:  handshake unanswered ─▶ suspected ─▶ own handshake unanswered too ─▶ left out
//!              left out ─▶ answers so many times in a row ─▶ back
//! ```
//!
//! What was on its way to an endpoint when that is left out is not lost: the flows of its unanswered
//! handshakes are forgotten, and the next repetition is led elsewhere.
//!
//! Nothing is left out by what others send or do not send: suspicion by traffic is confirmed by a
//! probe of our own, so a pod that sends handshakes nobody answers changes nothing for others. Only
//! silence counts: a refusal comes from a living machine. Probes are answered by the other machine's
//! kernel, so that a stopped agent there says nothing. Three errors of our own are provided for:
//!
//! - *It is we who are cut off*: when most nodes fall silent at once nobody is newly left out. A
//!   rule for each endpoint of the cluster would be written, twice, and help nobody.
//! - *We stood still*: answers that were not read in time are nobody's silence.
//! - *It comes and goes*: each relapse doubles what is asked before the next return.
//!
//! Left out is different from gone: where nobody else is left, plans keep what is unreachable, and
//! established connections stay where they are.

mod endpoints;
mod nodes;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use model::Unreachable;

use crate::Now;
use endpoints::Endpoints;
use nodes::Nodes;

/// Each other node is asked this often, as long as [`BEATS_A_SECOND_MAX`] allows.
pub const BEAT_PERIOD: Duration = Duration::from_millis(200);
/// Echo requests to all other nodes together in a second: with more than 200 nodes each is asked
/// less often.
pub const BEATS_A_SECOND_MAX: u32 = 1_000;
/// So many echo requests in a row go unanswered until a node may be left out.
pub const MISSED_BEATS: u32 = 2;
/// A handshake that is unanswered for this long makes its endpoint suspect.
pub const HANDSHAKE_PATIENCE: Duration = Duration::from_millis(200);
/// An own handshake has failed after this: longer than any way within a cluster, twice.
pub const PROBE_TIMEOUT: Duration = Duration::from_millis(400);
/// Unanswered handshakes that are remembered; of more nothing is concluded.
pub const FLOWS_MAX: usize = 4_096;
/// Endpoints that are suspected or left out at once; further ones stay in.
pub const ENDPOINTS_MAX: usize = 256;
/// Own handshakes under way at once.
pub const PROBES_MAX: usize = 64;
/// Who proved to be alive is not probed again for this long, whatever traffic says.
pub const PROBE_PAUSE: Duration = Duration::from_secs(1);
/// What is left out is probed again after this, doubling up to the limit.
pub const RETRY_FIRST: Duration = Duration::from_millis(250);
/// The longest time between two probes of what is left out.
pub const RETRY_LIMIT: Duration = Duration::from_secs(2);
/// A return that holds for this long is none that could relapse.
pub const STABLE: Duration = Duration::from_secs(60);
/// What is asked for a return doubles so many times at most.
pub const RELAPSES_MAX: u32 = 5;
/// Later than this the machine's own work was late, and silence says nothing.
pub const STALL: Duration = Duration::from_millis(150);

/// What there is to watch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Targets {
    /// The other nodes, by name.
    pub peers: BTreeSet<String>,
    /// Of [`Failover::in_question`], what the API knows as an endpoint with a TCP port.
    pub endpoints: BTreeSet<SocketAddr>,
    /// Of [`Failover::in_question`], endpoints with a TCP port on nodes that are left out: nobody
    /// asks them, and what led to them is abandoned.
    pub lost: BTreeSet<SocketAddr>,
}

/// What the shell shall do, and answer when it has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Act {
    /// Send an echo request with this number to a node; its answer is [`Failover::heard`].
    Beat {
        /// The node.
        peer: String,
        /// The number that the answer carries.
        number: u64,
    },
    /// Try a handshake with a node's own address; always followed by [`Failover::confirmed`].
    Confirm(String),
    /// Try a handshake with an endpoint; always followed by [`Failover::probed`].
    Probe(SocketAddr),
}

/// The state machine.
#[derive(Debug)]
pub struct Failover {
    nodes: Nodes,
    endpoints: Endpoints,
    /// When it wanted to be polled again.
    expected: Option<Now>,
}

impl Failover {
    /// A machine that goes on from what was unreachable before a restart: it stays left out until
    /// it answers (invariant 14).
    pub fn new(remembered: &Unreachable) -> Self {
        Self {
            nodes: Nodes::new(&remembered.nodes),
            endpoints: Endpoints::new(&remembered.endpoints),
            expected: None,
        }
    }

    /// From now on these are watched; what is not among them is forgotten.
    pub fn follow(&mut self, targets: &Targets, now: Now) {
        self.nodes.follow(&targets.peers, now);
        self.endpoints.follow(&targets.endpoints, &targets.lost);
    }

    /// A node answered an echo request.
    pub fn heard(&mut self, peer: &str, number: u64, now: Now) {
        self.nodes.heard(peer, number, now);
    }

    /// Whether a node's own address answered a handshake.
    pub fn confirmed(&mut self, peer: &str, answered: bool, now: Now) {
        self.nodes.confirmed(peer, answered, now);
    }

    /// The handshakes that are unanswered now, by an identity that lasts as long as they do.
    pub fn handshakes(&mut self, unanswered: &BTreeMap<u64, SocketAddr>, now: Now) {
        self.endpoints.handshakes(unanswered, now);
    }

    /// Whether an endpoint answered a handshake of ours.
    pub fn probed(&mut self, endpoint: SocketAddr, answered: bool, now: Now) {
        self.endpoints.probed(endpoint, answered, self.nodes.are_most_silent(), now);
    }

    /// What is to be done now.
    pub fn poll(&mut self, now: Now) -> Vec<Act> {
        if self.expected.is_some_and(|expected| now.saturating_sub(expected) > STALL) {
            self.nodes.forgive();
        }
        let mut acts = self.nodes.poll(now);
        acts.extend(self.endpoints.poll(now));
        self.expected = self.deadline();
        acts
    }

    /// When [`Failover::poll`] is due although nothing happens.
    pub fn deadline(&self) -> Option<Now> {
        [self.nodes.deadline(), self.endpoints.deadline()].into_iter().flatten().min()
    }

    /// What gets no new connections.
    pub fn unreachable(&self) -> Unreachable {
        Unreachable { nodes: self.nodes.left_out(), endpoints: self.endpoints.left_out() }
    }

    /// Handshakes without an answer that a Service led to what is left out: to be forgotten, so
    /// that they are led elsewhere. Told again as long as they are there.
    pub fn abandoned(&self) -> BTreeSet<u64> {
        self.endpoints.abandoned()
    }

    /// What is suspected or left out, to be held against the API's endpoints.
    pub fn in_question(&self) -> BTreeSet<SocketAddr> {
        self.endpoints.in_question()
    }
}

/// How often something came back and fell silent again.
#[derive(Clone, Copy, Debug, Default)]
struct Relapses {
    count: u32,
    /// When it came back last.
    back_at: Option<Now>,
}

impl Relapses {
    fn left_out(&mut self, now: Now) {
        let soon = self.back_at.is_some_and(|at| now.saturating_sub(at) < STABLE);
        self.count = if soon { (self.count + 1).min(RELAPSES_MAX) } else { 0 };
    }

    fn back(&mut self, now: Now) {
        self.back_at = Some(now);
    }

    /// Whether nothing needs to be remembered any more.
    fn are_past(&self, now: Now) -> bool {
        self.back_at.is_none_or(|at| now.saturating_sub(at) >= STABLE)
    }

    /// Answers in a row that are asked before a return.
    fn answers_asked(&self, least: u32) -> u32 {
        least << self.count
    }
}
