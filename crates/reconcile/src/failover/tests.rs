//! The machine in a small network whose time passes as fast as the tests want.

use super::*;

const MS: Duration = Duration::from_millis(1);
/// Within this a silent node is left out (issue 4, item 5).
const WITHIN: Duration = Duration::from_secs(1);

/// Where the endpoints are, in the one test that has this node.
const ENDPOINTS_NODE: &str = "node9999";

/// What answers, and how the machine has been told so far.
struct Net {
    machine: Failover,
    now: Now,
    peers: Vec<String>,
    /// Nodes that answer nothing.
    dead: BTreeSet<String>,
    /// Nodes whose firewall swallows echo requests.
    no_echo: BTreeSet<String>,
    known: BTreeSet<SocketAddr>,
    dead_endpoints: BTreeSet<SocketAddr>,
    /// Handshakes without an answer, as the kernel lists them.
    flows: BTreeMap<u64, SocketAddr>,
    looked_at: Now,
    /// What is on its way back.
    coming: Vec<(Now, Act, bool)>,
    beats: usize,
    probes: usize,
}

impl Net {
    fn of(peers: usize) -> Self {
        Self::after(peers, &Unreachable::default())
    }

    fn after(peers: usize, remembered: &Unreachable) -> Self {
        let mut net = Self {
            machine: Failover::new(remembered),
            now: Duration::from_secs(100),
            peers: (0..peers).map(|number| format!("node{number:04}")).collect(),
            dead: BTreeSet::new(),
            no_echo: BTreeSet::new(),
            known: (1..=100).map(endpoint).collect(),
            dead_endpoints: BTreeSet::new(),
            flows: BTreeMap::new(),
            looked_at: Now::ZERO,
            coming: vec![],
            beats: 0,
            probes: 0,
        };
        net.follow();
        net
    }

    fn follow(&mut self) {
        let in_question = self.machine.in_question();
        let (lost, endpoints) = in_question
            .intersection(&self.known)
            .partition(|_| self.machine.unreachable().nodes.contains(ENDPOINTS_NODE));
        let targets = Targets { peers: self.peers.iter().cloned().collect(), endpoints, lost };
        self.machine.follow(&targets, self.now);
    }

    fn node(&self, number: usize) -> String {
        self.peers[number].clone()
    }

    fn kill(&mut self, numbers: std::ops::Range<usize>) {
        let names: Vec<String> = numbers.map(|number| self.node(number)).collect();
        self.dead.extend(names);
    }

    fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.now += 5 * MS;
            self.step();
        }
    }

    fn step(&mut self) {
        let (due, later) =
            std::mem::take(&mut self.coming).into_iter().partition(|(at, ..)| *at <= self.now);
        self.coming = later;
        let due: Vec<(Now, Act, bool)> = due;
        for (_, act, answered) in due {
            match act {
                Act::Beat { peer, number } => self.machine.heard(&peer, number, self.now),
                Act::Confirm(peer) => self.machine.confirmed(&peer, answered, self.now),
                Act::Probe(endpoint) => self.machine.probed(endpoint, answered, self.now),
            }
        }
        if self.looked_at + 200 * MS <= self.now {
            self.looked_at = self.now;
            self.machine.handshakes(&self.flows, self.now);
            self.follow();
        }
        for act in self.machine.poll(self.now) {
            self.carry_out(act);
        }
    }

    fn carry_out(&mut self, act: Act) {
        let answers = match &act {
            Act::Beat { peer, .. } => !self.dead.contains(peer) && !self.no_echo.contains(peer),
            Act::Confirm(peer) => !self.dead.contains(peer),
            Act::Probe(endpoint) => !self.dead_endpoints.contains(endpoint),
        };
        let is_beat = matches!(act, Act::Beat { .. });
        self.beats += usize::from(is_beat);
        self.probes += usize::from(!is_beat);
        match answers {
            true => self.coming.push((self.now + MS, act, true)),
            false if is_beat => {}
            false => self.coming.push((self.now + PROBE_TIMEOUT, act, false)),
        }
    }

    fn out(&self) -> Vec<String> {
        self.machine.unreachable().nodes.into_iter().collect()
    }

    fn out_endpoints(&self) -> Vec<SocketAddr> {
        self.machine.unreachable().endpoints.into_iter().collect()
    }
}

fn endpoint(last: u8) -> SocketAddr {
    SocketAddr::from(([10, 244, 1, last], 8080))
}

#[test]
fn a_dead_node_is_left_out_within_a_second_and_comes_back_when_it_answers() {
    for peers in [1, 2, 5, 100] {
        let mut net = Net::of(peers);
        net.run(3 * WITHIN);
        assert_eq!(net.out(), [""; 0], "{peers} peers");
        net.kill(0..1);
        net.run(WITHIN - 50 * MS);
        assert_eq!(net.out(), [net.node(0)], "{peers} peers");
        net.run(60 * WITHIN);
        assert_eq!(net.out(), [net.node(0)], "{peers} peers");
        net.dead.clear();
        net.run(WITHIN);
        assert_eq!(net.out(), [""; 0], "{peers} peers");
    }
}

#[test]
fn most_peers_silent_at_once_is_our_own_fault_and_changes_nothing() {
    // Peers, how many of them die at once, whether they are left out.
    for (peers, dying, left_out) in
        [(1, 1, true), (2, 1, true), (2, 2, false), (4, 2, true), (4, 3, false), (9, 9, false)]
    {
        let mut net = Net::of(peers);
        net.run(WITHIN);
        net.kill(0..dying);
        net.run(5 * WITHIN);
        let expected = if left_out { dying } else { 0 };
        assert_eq!(net.out().len(), expected, "{dying} of {peers}");
    }
    // Who was left out before stays so while we are cut off.
    let mut net = Net::of(5);
    net.run(WITHIN);
    net.kill(0..1);
    net.run(2 * WITHIN);
    net.kill(1..5);
    net.run(5 * WITHIN);
    assert_eq!(net.out(), [net.node(0)]);
    // And what endpoints seem to be is not judged meanwhile.
    net.dead_endpoints.insert(endpoint(1));
    net.flows.insert(1, endpoint(1));
    net.run(2 * WITHIN);
    assert_eq!(net.out_endpoints(), []);
}

#[test]
fn silence_of_echo_alone_leaves_nobody_out() {
    let mut net = Net::of(3);
    // The first never carries echo, the second stops to.
    net.no_echo.insert(net.node(0));
    net.run(WITHIN);
    net.no_echo.insert(net.node(1));
    net.run(10 * WITHIN);
    assert_eq!(net.out(), [""; 0]);
    // The second dies: its handshakes tell. Of the first nothing is known.
    net.kill(0..2);
    net.run(2 * WITHIN);
    assert_eq!(net.out(), [net.node(1)]);
    net.dead.clear();
    net.run(5 * WITHIN);
    assert_eq!(net.out(), [""; 0], "it answers handshakes again");
}

#[test]
fn lost_packets_and_our_own_stand_still_leave_nobody_out() {
    let mut net = Net::of(4);
    net.run(WITHIN);
    for _ in 0..20 {
        // One beat and the handshake that follows it are lost.
        net.dead.insert(net.node(2));
        net.run(BEAT_PERIOD);
        net.dead.clear();
        net.run(WITHIN);
        assert_eq!(net.out(), [""; 0]);
    }
    for _ in 0..20 {
        // We read nothing for long, and what came meanwhile is read after the poll.
        net.now += 3 * WITHIN;
        for act in net.machine.poll(net.now) {
            net.carry_out(act);
        }
        net.run(BEAT_PERIOD / 2);
        assert_eq!(net.out(), [""; 0]);
    }
}

#[test]
fn what_comes_and_goes_is_asked_for_more_each_time_and_forgiven_later() {
    let mut net = Net::of(3);
    net.run(WITHIN);
    let mut took = vec![];
    for _ in 0..8 {
        net.kill(0..1);
        net.run(2 * WITHIN);
        assert_eq!(net.out(), [net.node(0)]);
        net.dead.clear();
        let began = net.now;
        while !net.out().is_empty() {
            net.run(20 * MS);
            assert!(net.now - began < 20 * WITHIN, "it comes back");
        }
        took.push(net.now - began);
    }
    assert!(took[0] < WITHIN && took[1] > took[0] && took[3] > 2 * took[1], "{took:?}");
    assert!(took[7] < took[6] + BEAT_PERIOD, "no more than {RELAPSES_MAX} times: {took:?}");
    net.run(STABLE + WITHIN);
    net.kill(0..1);
    net.run(2 * WITHIN);
    net.dead.clear();
    net.run(WITHIN);
    assert_eq!(net.out(), [""; 0]);
}

#[test]
fn beats_of_all_together_are_bounded() {
    for (peers, a_second) in [(2, 10), (200, 1_000), (5_000, 1_000)] {
        let mut net = Net::of(peers);
        net.run(5 * WITHIN);
        let most = 5 * a_second + peers;
        assert!((4 * a_second..=most).contains(&net.beats), "{peers} peers: {}", net.beats);
    }
}

#[test]
fn a_silent_endpoint_is_left_out_within_a_second_and_comes_back_when_it_answers() {
    let mut net = Net::of(2);
    net.run(WITHIN);
    net.dead_endpoints.insert(endpoint(1));
    net.flows.insert(1, endpoint(1));
    net.run(WITHIN - 50 * MS);
    assert_eq!(net.out_endpoints(), [endpoint(1)]);
    // Its client went elsewhere: it stays out by our own probes.
    net.flows.clear();
    net.run(30 * WITHIN);
    assert_eq!(net.out_endpoints(), [endpoint(1)]);
    net.dead_endpoints.clear();
    net.run(RETRY_LIMIT + WITHIN);
    assert_eq!(net.out_endpoints(), []);
    // What the API does not know any more is forgotten.
    net.dead_endpoints.insert(endpoint(1));
    net.flows.insert(2, endpoint(1));
    net.run(2 * WITHIN);
    assert_eq!(net.out_endpoints(), [endpoint(1)]);
    net.known.clear();
    net.run(WITHIN);
    assert_eq!(net.out_endpoints(), []);
}

/// A pod sends handshakes that nobody answers, towards the endpoint of somebody else. With the
/// probe believed whatever it says, the attack succeeds.
#[test]
fn handshakes_of_an_attacker_leave_no_living_endpoint_out() {
    for defence in [true, false] {
        let mut net = Net::of(2);
        net.run(WITHIN);
        if !defence {
            net.dead_endpoints.insert(endpoint(1));
        }
        for round in 0..100 {
            net.flows = (0..50).map(|flow| (round / 4 * 50 + flow, endpoint(1))).collect();
            net.run(100 * MS);
        }
        assert_eq!(net.out_endpoints().is_empty(), defence);
        assert!(net.probes <= 20, "{} probes in ten seconds", net.probes);
    }
}

/// Of two handshakes with a dead endpoint the older made it suspect. Both are told when it is left
/// out and they are old enough; what leads to the living, never.
#[test]
fn handshakes_with_what_is_left_out_are_told_to_be_forgotten() {
    let mut net = Net::of(2);
    net.dead_endpoints.insert(endpoint(1));
    net.flows = [(1, endpoint(1)), (2, endpoint(2))].into();
    net.run(WITHIN / 2);
    assert_eq!(net.machine.abandoned(), [].into(), "nothing is left out yet");
    net.run(WITHIN / 2 - 50 * MS);
    assert_eq!(net.machine.abandoned(), [1].into());
    net.flows.insert(3, endpoint(1));
    net.run(210 * MS);
    assert_eq!(net.machine.abandoned(), [1].into(), "one that is new may be answered yet");
    net.run(210 * MS);
    assert_eq!(net.machine.abandoned(), [1, 3].into());
    net.flows.remove(&1);
    net.run(210 * MS);
    assert_eq!(net.machine.abandoned(), [3].into());
    net.dead_endpoints.clear();
    net.run(RETRY_LIMIT + WITHIN);
    assert_eq!(net.machine.abandoned(), [].into(), "it is back");
    // With its node an endpoint is lost that nobody asks.
    net.peers.push(ENDPOINTS_NODE.into());
    net.run(WITHIN);
    net.dead.insert(ENDPOINTS_NODE.into());
    net.run(WITHIN);
    assert_eq!((net.out_endpoints(), net.machine.abandoned()), (vec![], [2, 3].into()));
}

#[test]
fn new_handshakes_and_addresses_that_are_no_endpoints_are_not_looked_into() {
    let mut net = Net::of(2);
    net.known.clear();
    net.dead_endpoints.insert(endpoint(1));
    net.flows.insert(1, endpoint(1));
    net.run(3 * WITHIN);
    assert_eq!((net.probes, net.out_endpoints()), (0, vec![]));
    // An endpoint under load: at each look others are under way.
    net.known.insert(endpoint(2));
    for round in 0..100 {
        net.flows = [(round, endpoint(2))].into();
        net.run(200 * MS);
    }
    assert_eq!(net.probes, 0);
}

#[test]
fn however_many_are_suspected_the_work_is_bounded() {
    let mut net = Net::of(2);
    let address = |number: u32| SocketAddr::from((std::net::Ipv4Addr::from(number), 80));
    net.known = (0..20_000).map(address).collect();
    net.dead_endpoints = net.known.clone();
    net.flows = (0..20_000).map(|number| (number.into(), address(number))).collect();
    net.run(10 * WITHIN);
    assert!(net.machine.endpoints.flows.len() <= FLOWS_MAX);
    assert_eq!(net.out_endpoints().len(), ENDPOINTS_MAX);
    let most = PROBES_MAX * 10 * 1_000 / PROBE_TIMEOUT.as_millis() as usize;
    assert!(net.probes <= most, "{} probes", net.probes);
}

#[test]
fn after_a_restart_what_was_left_out_stays_so_until_it_answers() {
    let nodes = ["node0000".to_owned()].into();
    let remembered = Unreachable { nodes, endpoints: [endpoint(1)].into() };
    for answers in [false, true] {
        let mut net = Net::after(3, &remembered);
        assert_eq!(net.machine.unreachable(), remembered);
        if !answers {
            net.kill(0..1);
            net.dead_endpoints.insert(endpoint(1));
        }
        net.run(2 * WITHIN);
        assert_eq!(net.machine.unreachable().is_empty(), answers);
    }
}

/// However nodes die and come back: who is dead for a second is left out, unless most are silent,
/// and nobody who never died is.
#[test]
fn random_deaths_leave_out_the_dead_and_nobody_else() {
    for seed in 0..30_u64 {
        let mut state = seed;
        let mut below = |count: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % count
        };
        let mut net = Net::of(7);
        net.run(WITHIN);
        for _ in 0..20 {
            // At most three of the first four: the others are most of those that are left.
            net.dead.clear();
            for _ in 0..below(4) {
                let name = net.node(below(4) as usize);
                net.dead.insert(name);
            }
            for _ in 0..below(30) {
                net.run(100 * MS);
                assert!(net.out().iter().all(|name| net.peers[..4].contains(name)), "seed {seed}");
            }
            net.run(WITHIN);
            let out: BTreeSet<String> = net.out().into_iter().collect();
            assert!(out.is_superset(&net.dead), "seed {seed}: {out:?} of {:?}", net.dead);
        }
        net.dead.clear();
        net.run(30 * WITHIN);
        assert_eq!(net.out(), [""; 0], "seed {seed}");
    }
}
