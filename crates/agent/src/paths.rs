//! The path self-test between this node and all others: what is tested when. What it means is
//! decided in [`plan::paths`].
//!
//! A pair is tested when either node comes, when the way between the two changes, and slowly ever
//! after. What does not work is tested again sooner, ever later until this node was mended or the
//! peer is heard again, and believed when it is found twice. While a pair takes a detour, the way
//! that it goes past is tried beside it, and taken again when it has worked for a whole period. A
//! task of its own: the network never waits for it.

mod avoided;
mod exchange;
mod keeper;
mod packet;
mod pair;
mod stream;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use model::ClusterConfig;
use model::overlay::of_family;
use plan::NodeFacts;
use plan::network::{NetworkPlan, Peer, gateway, least_mtu};
use plan::paths::{Observation, State, is_tried_beside};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use avoided::Avoided;
use exchange::Exchange;
pub use keeper::PathRow;
pub(crate) use keeper::{Keeper, count};
use packet::Side;
use pair::PairTarget;

/// Pairs that are tested at once.
const TESTS_MAX: usize = 8;
/// Tests that are begun in a second, also where each is answered at once. A pair that works costs
/// three exchanges of a request and an answer, any pair no more than [`pair::EXCHANGES_MAX`]: with
/// 500 peers a node that starts asks for ten seconds, and then about one of them a second.
const TESTS_A_SECOND: u32 = 50;
/// A pair that works is looked at again after this.
pub(crate) const PERIOD: Duration = Duration::from_secs(600);
/// A pair is tested this long after it came or changed, and at most as long again: both ends need
/// a moment for their part, and 500 nodes do not ask one at once.
const SETTLE: Duration = Duration::from_secs(1);
/// What was found wrong is tested again after this, doubling up to the period.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// An own address that is not there yet is tried again after this.
const LISTEN_RETRY: Duration = Duration::from_secs(1);
/// A detour's pair is tested so many times in a period: what it goes past must work each time for a
/// whole period until it is taken again.
const TRIALS_A_PERIOD: u32 = 10;
/// Each return that proved wrong doubles the time that the next one waits, so many times at most.
const RETURN_DOUBLINGS_MAX: u32 = 6;
/// So many times in a row something is found wrong until it is believed.
const BELIEVED_ROUNDS: u32 = 2;

/// What there is to test.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Targets(BTreeMap<String, PairTarget>);

/// What was found, by peer.
pub(crate) type Found = Arc<BTreeMap<String, Observation>>;

/// The task's two ends.
pub(crate) struct Paths {
    pub(crate) targets: watch::Sender<Targets>,
    pub(crate) found: watch::Receiver<Found>,
    /// Told when something of this node's network was mended.
    pub(crate) mended: Arc<Notify>,
}

impl Targets {
    /// The pairs of a plan. A peer without addresses of both ends' family is not tested: the plan
    /// says why its pods are not reached.
    pub(crate) fn of(
        plan: &NetworkPlan,
        facts: &NodeFacts,
        node_addresses: &[IpAddr],
        config: &ClusterConfig,
    ) -> Self {
        let pair = |(name, peer): (&String, &Peer)| {
            let own = of_family(node_addresses, model::Family::of(&peer.address))?;
            let own_range = plan.pod_ranges.first()?;
            let is_v4 = own_range.addr().is_ipv4();
            let range = peer.pod_ranges.iter().find(|range| range.addr().is_ipv4() == is_v4)?;
            let nodes = (own, peer.address);
            let pods = (gateway(own_range)?.addr(), gateway(range)?.addr());
            let avoided = peer.avoided.filter(|_| is_tried_beside(plan, peer));
            let ends = (node_addresses, peer.addresses.as_slice());
            let target = PairTarget {
                way: peer.path.overlay(),
                nodes,
                pods,
                nodes_mtu: facts.uplink_mtu,
                pods_mtu: plan.promised_mtu,
                least_mtu: least_mtu(&plan.pod_ranges),
                avoided: avoided.and_then(|way| Avoided::of(way, ends, pods, config)),
            };
            Some((name.clone(), target))
        };
        Self(plan.peers.iter().filter_map(pair).collect())
    }

    fn own(&self) -> Vec<(IpAddr, Side)> {
        let both = |pair: &PairTarget| [(pair.nodes.0, Side::Nodes), (pair.pods.0, Side::Pods)];
        let mut own: Vec<(IpAddr, Side)> = self.0.values().flat_map(both).collect();
        own.sort_unstable();
        own.dedup();
        own
    }

    fn avoided(&self) -> BTreeMap<String, Avoided> {
        let avoided = self.0.iter().filter_map(|(name, pair)| Some((name, pair.avoided.as_ref()?)));
        avoided.map(|(name, avoided)| (name.clone(), avoided.clone())).collect()
    }

    fn known(&self) -> BTreeMap<(IpAddr, Side), String> {
        let both = |(name, pair): (&String, &PairTarget)| {
            [(pair.nodes.1, Side::Nodes), (pair.pods.1, Side::Pods)].map(|key| (key, name.clone()))
        };
        self.0.iter().flat_map(both).collect()
    }
}

/// Starts the task.
pub(crate) fn spawn(config: &ClusterConfig, period: Duration, tasks: &mut JoinSet<()>) -> Paths {
    let (targets, wanted) = watch::channel(Targets::default());
    let (told, found) = watch::channel(Found::default());
    let mended = Arc::new(Notify::new());
    let tester = Tester {
        exchange: Exchange::new(config.tunnels.path_test_port),
        period,
        pairs: BTreeMap::new(),
        running: JoinSet::new(),
        allowance: Allowance::default(),
        listen_at: None,
        told,
    };
    tasks.spawn(tester.run(wanted, Arc::clone(&mended)));
    Paths { targets, found, mended }
}

struct Tester {
    exchange: Exchange,
    period: Duration,
    pairs: BTreeMap<String, Pair>,
    running: JoinSet<(String, PairTarget, Observation)>,
    allowance: Allowance,
    /// When own addresses are tried again that were not there.
    listen_at: Option<Instant>,
    told: watch::Sender<Found>,
}

/// What is left of the tests of a second.
#[derive(Default)]
struct Allowance {
    /// When the second began, and the tests in it.
    second: Option<(Instant, u32)>,
}

impl Allowance {
    /// When the next test may begin.
    fn next(&self, now: Instant) -> Instant {
        let used_up = self.second.filter(|(_, begun)| *begun >= TESTS_A_SECOND);
        used_up.map_or(now, |(began, _)| now.max(began + Duration::from_secs(1)))
    }

    fn take(&mut self, now: Instant) {
        let present = self
            .second
            .filter(|(began, _)| now.saturating_duration_since(*began) < Duration::from_secs(1));
        let (began, begun) = present.unwrap_or((now, 0));
        self.second = Some((began, begun.saturating_add(1)));
    }
}

struct Pair {
    target: PairTarget,
    /// The next test; `None` while one runs.
    due: Option<Instant>,
    /// Tests in a row that found something wrong.
    wrong: u32,
    /// What the last test found.
    last: Option<State>,
    /// Since when the way that is avoided has worked each time.
    avoided_worked_since: Option<Instant>,
    /// Returns from detours in a row after which the first way did not work.
    wrong_returns: u32,
}

impl Pair {
    fn of(target: PairTarget, before: Option<&Self>) -> Self {
        let returns = before.is_some_and(|before| before.target.avoided.is_some());
        let returned = u32::from(returns && target.avoided.is_none());
        let wrong_returns = before.map_or(0, |before| before.wrong_returns);
        Self {
            target,
            due: Some(Instant::now() + SETTLE + jitter(SETTLE)),
            wrong: 0,
            last: None,
            avoided_worked_since: None,
            wrong_returns: wrong_returns.saturating_add(returned),
        }
    }

    /// Takes in what a test found; answers whether it is believed. Something wrong has to be found
    /// twice, and what the node acts on for good the same both times: between the two the way may
    /// have changed.
    fn is_believed(&mut self, state: State) -> bool {
        let again = self.last.replace(state) == Some(state);
        if state == State::Works {
            self.wrong = 0;
            return true;
        }
        self.wrong = self.wrong.saturating_add(1);
        self.wrong >= BELIEVED_ROUNDS && (again || !state.blames_links())
    }

    /// What does not work is tested soon, for it may again; and later as if it were found anew.
    fn retest_soon(&mut self) {
        if self.wrong > 0 {
            self.wrong = 1;
            let soon = Instant::now() + SETTLE + jitter(SETTLE);
            self.due = self.due.map(|due| due.min(soon));
        }
    }

    /// Takes in whether what is avoided works now; answers whether it has for long enough.
    fn has_avoided_worked(&mut self, works: bool, period: Duration, now: Instant) -> bool {
        if !works {
            self.avoided_worked_since = None;
            return false;
        }
        let since = *self.avoided_worked_since.get_or_insert(now);
        let asked = period.saturating_mul(1 << self.wrong_returns.min(RETURN_DOUBLINGS_MAX));
        now.duration_since(since) >= asked
    }
}

impl Tester {
    async fn run(mut self, mut wanted: watch::Receiver<Targets>, mended: Arc<Notify>) {
        loop {
            self.start_due();
            let wait = self.wait();
            tokio::select! {
                changed = wanted.changed() => match changed {
                    Ok(()) => {
                        let targets = wanted.borrow_and_update().clone();
                        self.take_over(&targets);
                    }
                    Err(_) => return,
                },
                Some(tested) = self.running.join_next() => match tested {
                    Ok((peer, target, found)) => self.take_in(&peer, &target, found),
                    Err(error) => tracing::warn!("a test of a path ended early: {error}"),
                },
                () = mended.notified() => self.pairs.values_mut().for_each(Pair::retest_soon),
                peer = self.exchange.returned() => {
                    self.pairs.get_mut(&peer).into_iter().for_each(Pair::retest_soon);
                }
                () = tokio::time::sleep(wait) => {
                    if self.listen_at.is_some_and(|at| at <= Instant::now()) {
                        let targets = wanted.borrow().clone();
                        self.listen(&targets);
                    }
                }
            }
        }
    }

    fn take_over(&mut self, targets: &Targets) {
        self.listen(targets);
        self.exchange.know(targets.known(), targets.avoided());
        self.pairs.retain(|peer, _| targets.0.contains_key(peer));
        self.told.send_if_modified(|found| {
            let gone = found.keys().any(|peer| !targets.0.contains_key(peer));
            if gone {
                Arc::make_mut(found).retain(|peer, _| targets.0.contains_key(peer));
            }
            gone
        });
        for (peer, target) in &targets.0 {
            let before = self.pairs.get(peer);
            if before.is_none_or(|pair| pair.target != *target) {
                self.pairs.insert(peer.clone(), Pair::of(target.clone(), before));
            }
        }
    }

    fn listen(&mut self, targets: &Targets) {
        let listening = self.exchange.listen(&targets.own());
        let again = || Instant::now() + LISTEN_RETRY;
        self.listen_at = listening.as_ref().err().map(|_| again());
        if let Err(error) = listening {
            tracing::debug!("the path self-test does not listen yet: {error:#}");
        }
    }

    fn start_due(&mut self) {
        let now = Instant::now();
        for (peer, pair) in &mut self.pairs {
            if self.running.len() >= TESTS_MAX || self.allowance.next(now) > now {
                return;
            }
            if pair.due.is_none_or(|due| due > now) {
                continue;
            }
            let (nodes, pods) = (pair.target.nodes, pair.target.pods);
            let nodes = self.exchange.line(nodes.0, nodes.1, Side::Nodes, peer);
            let pods = self.exchange.line(pods.0, pods.1, Side::Pods, peer);
            let (Some(nodes), Some(pods)) = (nodes, pods) else {
                pair.due = Some(now + LISTEN_RETRY);
                continue;
            };
            pair.due = None;
            self.allowance.take(now);
            let (peer, target) = (peer.clone(), pair.target.clone());
            self.running.spawn(async move {
                let found = pair::test(target.clone(), nodes, pods).await;
                (peer, target, found)
            });
        }
    }

    fn take_in(&mut self, peer: &str, target: &PairTarget, mut found: Observation) {
        // What was tested may not be the way any more: then its next test stands already.
        let Some(pair) = self.pairs.get_mut(peer).filter(|pair| pair.target == *target) else {
            return;
        };
        let state = found.state();
        let works = state == State::Works;
        let believed = pair.is_believed(state);
        let backoff = RETRY_FIRST.saturating_mul(1 << pair.wrong.saturating_sub(1).min(16));
        let usual = match target.avoided {
            Some(_) => self.period / TRIALS_A_PERIOD,
            None => self.period,
        };
        let wait = if works { usual } else { backoff.min(usual) };
        if works && target.avoided.is_none() {
            pair.wrong_returns = 0;
        }
        let (now, works_now) = (Instant::now(), found.avoided_works);
        found.avoided_works = pair.has_avoided_worked(works_now, self.period, now);
        pair.due = Some(Instant::now() + wait + jitter(wait / 4));
        // None that answers is missed: both ends would go on waking each other.
        self.exchange.miss(peer, found.pods.rtt_us.is_none());
        if !believed {
            return;
        }
        let before = self.told.borrow().get(peer).cloned();
        // A peer that does not answer any more says nothing about sizes.
        found.pods.mtu = found.pods.mtu.or(before.as_ref().and_then(|before| before.pods.mtu));
        if before.as_ref().map(Observation::state) != Some(state) {
            tracing::info!(peer, state = state.as_str(), way = %found.way, "a path was tested");
        }
        self.told.send_modify(|all| {
            Arc::make_mut(all).insert(peer.to_owned(), found);
        });
    }

    fn wait(&self) -> Duration {
        let free = self.running.len() < TESTS_MAX;
        let due = self.pairs.values().filter(|_| free).filter_map(|pair| pair.due).min();
        let due = due.map(|due| due.max(self.allowance.next(Instant::now())));
        let next = [due, self.listen_at].into_iter().flatten().min();
        next.map_or(self.period, |next| next.saturating_duration_since(Instant::now()))
    }
}

/// Up to that long, so that nodes that do the same thing do not do it at the same time.
fn jitter(most: Duration) -> Duration {
    let mut bytes = [0; 4];
    // Without randomness without jitter.
    if getrandom::fill(&mut bytes).is_err() {
        return Duration::ZERO;
    }
    most.mul_f64(f64::from(u32::from_ne_bytes(bytes)) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use model::Overlay;

    use super::*;

    fn targets(count: u8) -> Targets {
        let address = |third, last| IpAddr::from(Ipv4Addr::new(127, 0, third, last));
        let pair = |last| PairTarget {
            way: Overlay::Vxlan,
            nodes: (address(1, 1), address(2, last)),
            pods: (address(3, 1), address(4, last)),
            nodes_mtu: 1500,
            pods_mtu: 1450,
            least_mtu: 576,
            avoided: None,
        };
        Targets((1..=count).map(|last| (format!("node{last}"), pair(last))).collect())
    }

    /// Nobody answers at loopback's other addresses.
    #[tokio::test]
    async fn however_many_nodes_are_silent_only_a_few_are_asked_at_once() {
        let (told, _found) = watch::channel(Found::default());
        let mut tester = Tester {
            exchange: Exchange::new(0),
            period: PERIOD,
            pairs: BTreeMap::new(),
            running: JoinSet::new(),
            allowance: Allowance::default(),
            listen_at: None,
            told,
        };
        tester.take_over(&targets(200));
        tester.start_due();
        assert_eq!(tester.running.len(), 0, "they settle first");
        for pair in tester.pairs.values_mut() {
            pair.due = Some(Instant::now());
        }
        tester.start_due();
        tester.start_due();
        assert_eq!(tester.running.len(), TESTS_MAX);
        assert_eq!(tester.wait(), PERIOD, "the end of a test wakes it");
        // What was found counts when it was found twice.
        for round in 1..=BELIEVED_ROUNDS {
            let (peer, target, found) = tester.running.join_next().await.expect("one").expect("it");
            assert_eq!(found.state(), State::Silent);
            for _ in 0..round {
                tester.take_in(&peer, &target, found.clone());
            }
            assert_eq!(tester.told.borrow().contains_key(&peer), round >= BELIEVED_ROUNDS);
        }
        // A node that is gone is forgotten, with all that was found of it.
        tester.take_over(&targets(0));
        assert!(tester.pairs.is_empty() && tester.told.borrow().is_empty());
    }

    #[test]
    fn what_is_wrong_is_believed_the_second_time_and_what_links_are_blamed_for_when_it_is_the_same()
    {
        use State::{BadChecksum, BadSegments, BlockedOut, Silent, Works};
        for rounds in [
            &[(Works, true), (Silent, false), (Works, true)][..],
            &[(Silent, false), (Silent, true), (BlockedOut, true), (BlockedOut, true)],
            // The node was off, and came back in the middle of a test.
            &[(Silent, false), (Silent, true), (BadChecksum, false), (Works, true)],
            &[(BlockedOut, false), (BadSegments, false), (BadChecksum, false)],
            &[(BadChecksum, false), (BadChecksum, true), (BadChecksum, true)],
            &[(BadSegments, false), (Works, true), (BadSegments, false), (BadSegments, true)],
        ] {
            let target = targets(1).0.pop_first().expect("a pair").1;
            let mut pair = Pair::of(target, None);
            let found = rounds.iter().map(|(state, _)| (*state, pair.is_believed(*state)));
            assert_eq!(found.collect::<Vec<_>>(), rounds);
        }
    }

    /// As after an hour in which the peer was off.
    #[test]
    fn what_does_not_work_is_tested_soon_once_something_was_mended() {
        let target = targets(1).0.pop_first().expect("a pair").1;
        let (now, later) = (Instant::now(), Instant::now() + PERIOD);
        for (wrong, due, soon) in
            [(12, Some(later), true), (0, Some(later), false), (12, None, false)]
        {
            let mut pair = Pair { wrong, due, ..Pair::of(target.clone(), None) };
            pair.retest_soon();
            assert_eq!(pair.wrong, wrong.min(1), "what is found then counts as if it were new");
            let is_soon = pair.due.is_some_and(|due| due <= now + 3 * SETTLE);
            assert_eq!(is_soon, soon, "{wrong} times wrong");
            assert_eq!(pair.due.is_none(), due.is_none(), "a test that runs goes on");
        }
    }

    #[test]
    fn a_detour_ends_when_what_it_avoids_has_worked_for_a_period_and_later_after_a_mistake() {
        let plain = targets(1).0.pop_first().expect("a pair").1;
        let ends = (&[plain.nodes.0][..], &[plain.nodes.1][..]);
        let config = ClusterConfig::default();
        let avoided = Avoided::of(Overlay::Vxlan, ends, plain.pods, &config);
        let detour = PairTarget { avoided, way: Overlay::HostGw, ..plain.clone() };
        let began = Instant::now();
        let mut pair = Pair::of(detour.clone(), None);
        let at = |pair: &mut Pair, works, seconds| {
            pair.has_avoided_worked(works, PERIOD, began + Duration::from_secs(seconds))
        };
        for (seconds, works, ends) in [
            (0, true, false),
            (599, true, false),
            (600, true, true),
            // Once not, and the time runs anew.
            (601, false, false),
            (602, true, false),
            (1201, true, false),
            (1202, true, true),
        ] {
            assert_eq!(at(&mut pair, works, seconds), ends, "after {seconds} s");
        }
        // The way was taken again, and did not work: the next time it must for longer.
        let returned = Pair::of(plain, Some(&pair));
        let mut again = Pair::of(detour, Some(&returned));
        assert_eq!((pair.wrong_returns, returned.wrong_returns, again.wrong_returns), (0, 1, 1));
        for (seconds, ends) in [(0, false), (600, false), (1199, false), (1200, true)] {
            assert_eq!(at(&mut again, true, seconds), ends, "after {seconds} s");
        }
        again.wrong_returns = u32::MAX;
        assert!(!at(&mut again, true, 600 << (RETURN_DOUBLINGS_MAX - 1)));
        assert!(at(&mut again, true, 600 << RETURN_DOUBLINGS_MAX));
    }

    /// However fast each test ends.
    #[tokio::test]
    async fn with_many_nodes_only_so_many_tests_begin_in_a_second() {
        let (told, _found) = watch::channel(Found::default());
        let mut tester = Tester {
            exchange: Exchange::new(0),
            period: PERIOD,
            pairs: BTreeMap::new(),
            running: JoinSet::new(),
            allowance: Allowance::default(),
            listen_at: None,
            told,
        };
        tester.take_over(&targets(200));
        let begin_all = |tester: &mut Tester| {
            for pair in tester.pairs.values_mut() {
                pair.due = Some(Instant::now());
            }
            let mut begun = 0;
            for _ in 0..500 {
                tester.start_due();
                begun += tester.running.len();
                tester.running = JoinSet::new();
            }
            begun
        };
        // This second's start is ahead, so that the test may take as long as it likes.
        let ahead = Instant::now() + Duration::from_secs(60);
        tester.allowance.second = Some((ahead, 0));
        assert_eq!(begin_all(&mut tester), TESTS_A_SECOND as usize);
        assert_eq!(begin_all(&mut tester), 0);
        let wait = tester.wait();
        assert!(wait > Duration::ZERO && wait <= Duration::from_secs(61), "{wait:?}");
        // The next second has as many.
        let later = ahead + Duration::from_secs(1);
        assert_eq!(tester.allowance.next(later), later);
        tester.allowance.take(later);
        assert_eq!(tester.allowance.second, Some((later, 1)));
    }
}
