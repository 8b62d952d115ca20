//! Laws of pools: nodes that race for blocks, with views of the API that are late, while pods
//! come and go.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use ipam::REUSE_DELAY_S;
use ipam::pools::{Claim, Pool, Step, Use, decide};
use ipnet::IpNet;
use model::Timestamp;
use proptest::prelude::*;

const NODES: usize = 4;
/// Turns in which a waiting pod must have an address, where the pool has a block left: the claim,
/// and one refused claim for every other block.
const TURNS_MAX: usize = 20;

#[derive(Clone, Debug)]
enum Event {
    PodComes(usize),
    PodGoes(usize),
    /// A node reads the claims that there are.
    Looks(usize),
    /// A node decides, by what it read last, and acts.
    Acts(usize),
    TimePasses(i64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0..NODES).prop_map(Event::PodComes),
        5 => (0..NODES).prop_map(Event::PodGoes),
        3 => (0..NODES).prop_map(Event::Looks),
        6 => (0..NODES).prop_map(Event::Acts),
        1 => (1..2 * REUSE_DELAY_S).prop_map(Event::TimePasses),
    ]
}

#[derive(Default)]
struct Node {
    name: String,
    blocks: BTreeMap<IpNet, Use>,
    seen: BTreeSet<IpNet>,
}

/// The API server: names are unique, and that is all.
#[derive(Default)]
struct Cluster {
    leases: BTreeMap<String, Claim>,
    nodes: Vec<Node>,
    now: Timestamp,
    /// When the last address of a block was given back, by any node.
    released: BTreeMap<IpNet, Timestamp>,
}

impl Cluster {
    fn new() -> Self {
        let node = |number| Node { name: format!("node{number}"), ..Node::default() };
        Self { nodes: (0..NODES).map(node).collect(), ..Self::default() }
    }

    /// Gives a pod an address of the first open block with room; whether there was one.
    fn add_pod(&mut self, pool: &Pool, node: usize) -> bool {
        let usable = pool.usable();
        let blocks = self.nodes[node].blocks.values_mut();
        let room = blocks.into_iter().find(|block| !block.closed && block.held < usable);
        room.map(|block| block.held += 1).is_some()
    }

    fn remove_pod(&mut self, node: usize) {
        let now = self.now;
        let used = self.nodes[node].blocks.values_mut().find(|block| block.held > 0);
        if let Some(block) = used {
            block.held -= 1;
            block.last_release = Some(now);
            self.released.insert(block.block, now);
        }
    }

    fn look(&mut self, node: usize) {
        self.nodes[node].seen = self.leases.values().map(|claim| claim.block).collect();
    }

    fn act(&mut self, pool: &Pool, index: usize) -> Step {
        let now = self.now;
        let node = &mut self.nodes[index];
        let uses: Vec<Use> = node.blocks.values().cloned().collect();
        let step = decide(pool, &node.name, &uses, &node.seen, now);
        match &step {
            Step::Nothing | Step::Exhausted => {}
            Step::Close(block) => node.blocks.get_mut(block).expect("its own").closed = true,
            Step::Reopen(block) => node.blocks.get_mut(block).expect("its own").closed = false,
            Step::GiveBack(block) => {
                let given = node.blocks.remove(block).expect("its own");
                assert_eq!((given.held, given.closed), (0, true), "only when nobody has any of it");
                let claim =
                    Claim { block: *block, pool: pool.name.clone(), node: node.name.clone() };
                assert_eq!(self.leases.remove(&claim.name()), Some(claim), "its own claim");
            }
            Step::Claim(block) => {
                let claim =
                    Claim { block: *block, pool: pool.name.clone(), node: node.name.clone() };
                node.seen.insert(*block);
                // Creating is atomic: the second one is refused.
                if let Entry::Vacant(free) = self.leases.entry(claim.name()) {
                    free.insert(claim);
                    // R-10 holds from node to node too.
                    if let Some(at) = self.released.get(block) {
                        let rested = now.seconds() - at.seconds();
                        assert!(rested >= REUSE_DELAY_S, "{block} after {rested} s");
                    }
                    let fresh = Use { block: *block, held: 0, last_release: None, closed: false };
                    node.blocks.insert(*block, fresh);
                }
            }
        }
        step
    }

    fn assert_laws(&self) {
        let mut held = BTreeSet::new();
        for node in &self.nodes {
            for block in node.blocks.keys() {
                assert!(held.insert(*block), "{block} is on two nodes");
                let lease = self.leases.values().find(|claim| claim.block == *block);
                assert_eq!(lease.map(|claim| &claim.node), Some(&node.name));
            }
        }
        assert_eq!(held.len(), self.leases.len(), "no claim is forgotten");
    }
}

fn pool() -> Pool {
    Pool {
        name: "all".into(),
        cidr: "10.0.0.0/26".parse().expect("a range"),
        block_size: 29,
        namespace_selector: Default::default(),
        node_selector: Default::default(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_block_is_on_two_nodes_and_who_waits_is_served(
        events in prop::collection::vec(event(), 1..120)
    ) {
        let pool = pool();
        let mut cluster = Cluster::new();
        for event in events {
            match event {
                Event::PodComes(node) => {
                    cluster.add_pod(&pool, node);
                }
                Event::PodGoes(node) => cluster.remove_pod(node),
                Event::Looks(node) => cluster.look(node),
                Event::Acts(node) => {
                    cluster.act(&pool, node);
                }
                Event::TimePasses(seconds) => {
                    cluster.now = Timestamp::from_seconds(cluster.now.seconds() + seconds);
                }
            }
            cluster.assert_laws();
        }
        // Liveness: with fresh views, a pod gets an address, or every block is taken.
        for node in 0..NODES {
            let served = (0..TURNS_MAX).any(|_| {
                cluster.look(node);
                cluster.act(&pool, node);
                cluster.assert_laws();
                cluster.add_pod(&pool, node)
            });
            let full = cluster.leases.len() as u128 == pool.block_count();
            prop_assert!(served || full, "node {} waits, and {:?}", node, cluster.leases);
        }
        // And it settles: no node goes on opening and closing.
        cluster.now = Timestamp::from_seconds(cluster.now.seconds() + REUSE_DELAY_S);
        for node in 0..NODES {
            let quiet = (0..TURNS_MAX).any(|_| {
                cluster.look(node);
                matches!(cluster.act(&pool, node), Step::Nothing | Step::Exhausted)
            });
            prop_assert!(quiet, "node {} never comes to rest", node);
        }
    }
}

#[test]
fn nodes_that_start_at_once_each_get_a_block() {
    let pool = pool();
    let mut cluster = Cluster::new();
    // Everyone decides by an empty view; who is refused looks again.
    for _ in 0..TURNS_MAX {
        for node in 0..NODES {
            cluster.act(&pool, node);
        }
    }
    cluster.assert_laws();
    assert!(cluster.nodes.iter().all(|node| !node.blocks.is_empty()));
}

#[test]
fn a_node_that_runs_out_borrows_and_gives_back_when_its_pods_are_gone() {
    let pool = pool();
    let mut cluster = Cluster::new();
    let mut pods = 0;
    while pods < 3 * pool.usable() {
        cluster.look(0);
        cluster.act(&pool, 0);
        pods += u128::from(cluster.add_pod(&pool, 0));
    }
    assert!(cluster.leases.len() >= 3, "{:?}", cluster.leases);
    for _ in 0..pods {
        cluster.remove_pod(0);
    }
    cluster.look(0);
    assert_eq!(cluster.act(&pool, 0), Step::Nothing, "addresses rest first");
    cluster.now = Timestamp::from_seconds(REUSE_DELAY_S);
    for _ in 0..TURNS_MAX {
        cluster.look(0);
        cluster.act(&pool, 0);
    }
    assert_eq!(cluster.leases.len(), 1, "one stays for the next pod");
}
