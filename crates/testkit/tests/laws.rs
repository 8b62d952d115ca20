//! Laws of the pure path that hold for every world, shown on many small random ones.
//!
//! A failing input is printed by proptest, shrunk; `PROPTEST_CASES` and `PROPTEST_RNG_SEED` steer
//! it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use model::packet::{Entry, Packet, Verdict};
use model::world::{Kind, Object};
use model::{ClusterConfig, Family, NamespacedName, World};
use proptest::prelude::*;
use reconcile::Event;
use render::Kernel;
use render::fake::FakeKernel;
use render::nft::TraceError;
use testkit::node::NodeLoop;
use testkit::random::{self, Choices};
use testkit::{objects, verdict};

/// Random worlds for each law.
const WORLDS: u32 = 500;
/// Bytes that decide one world, its packets and its events.
const BYTES: usize = 300;

/// A pod of the node that is looked at, which serves nothing.
const INSIDE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 244, 1, 99)), 40000);

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..BYTES)
}

fn config() -> ProptestConfig {
    ProptestConfig { cases: WORLDS, failure_persistence: None, ..ProptestConfig::default() }
}

fn node(kernel: FakeKernel) -> NodeLoop<FakeKernel> {
    let config = config_of_worlds();
    let facts = objects::facts(1, &config);
    NodeLoop::new(config, facts, kernel)
}

fn world_of(bytes: &[u8]) -> Vec<Object> {
    let (config, mut choices) = (config_of_worlds(), Choices::new(bytes));
    let nodes = random::nodes(&mut choices, &config).into_iter();
    nodes.chain(random::services(&mut choices, &config)).collect()
}

/// One configuration for all worlds: those before and after a change belong to one cluster.
fn config_of_worlds() -> ClusterConfig {
    let ranges = ["198.51.100.0/24", "2001:db8:51::/48"];
    ClusterConfig {
        external_ip_ranges: ranges.iter().filter_map(|text| text.parse().ok()).collect(),
        ..objects::config_of(&[Family::V4, Family::V6])
    }
}

fn key(object: &Object) -> (Kind, NamespacedName) {
    (object.kind(), object.key())
}

/// The events from one world to another, in an order that the bytes decide, some of them repeated
/// and some preceded by a value that was already overtaken.
fn events(choices: &mut Choices<'_>, from: &[Object], to: &[Object]) -> Vec<Event> {
    let present: BTreeSet<_> = to.iter().map(key).collect();
    let mut last: Vec<Event> = to.iter().cloned().map(Event::Present).collect();
    for object in from.iter().filter(|object| !present.contains(&key(object))) {
        let (kind, key) = key(object);
        last.push(Event::Absent { kind, key });
    }
    let mut events = Vec::new();
    for object in from.iter().filter(|_| choices.once_in(3)) {
        events.push(Event::Present(object.clone()));
    }
    while !last.is_empty() {
        let event = last.swap_remove(choices.below(last.len()));
        if choices.once_in(5) {
            events.push(event.clone());
        }
        events.push(event);
    }
    events
}

fn packets(choices: &mut Choices<'_>, world: &World, count: usize) -> Vec<Packet> {
    let config = config_of_worlds();
    let facts = objects::facts(1, &config);
    (0..count).map(|_| random::packet(choices, world, &config, &facts)).collect()
}

fn destinations(traced: &Result<Verdict, TraceError>) -> BTreeSet<SocketAddr> {
    match traced {
        Ok(Verdict::Pass { destinations, .. }) => destinations.clone(),
        Ok(Verdict::Reject | Verdict::Drop) | Err(_) => BTreeSet::new(),
    }
}

proptest! {
    #![proptest_config(config())]

    /// Whatever way the events took, the plan is that of the present objects (invariants 1 and 2).
    #[test]
    fn incremental_is_from_scratch_in_any_order(one in bytes(), other in bytes(), order in bytes()) {
        let (from, to) = (world_of(&one), world_of(&other));
        let mut choices = Choices::new(&order);
        let mut node = node(FakeKernel::default());
        node.list(&from);
        prop_assert!(node.settle().is_ok());
        for event in events(&mut choices, &from, &to) {
            node.handle(event);
            if choices.once_in(4) {
                node.step();
            }
        }
        let settled = node.settle();
        prop_assert!(settled.is_ok(), "{:?}", settled);
        prop_assert_eq!(settled.map(|settled| settled.failures), Ok(vec![]));
        let mut world = World::default();
        for object in to {
            world.set(object);
        }
        prop_assert_eq!(node.reconciler.world(), &world);
        let (desired, _) = plan::node(&world, &node.config, &node.facts);
        let program = render::render(&desired, &node.config, &node.facts);
        prop_assert_eq!(node.reconciler.program(), &program);
    }

    /// What was applied reads back as what was wanted, and a fresh agent has nothing to do
    /// (invariant 14).
    #[test]
    fn what_is_applied_is_there(one in bytes(), other in bytes()) {
        let mut before = node(FakeKernel::default());
        before.list(&world_of(&one));
        prop_assert!(before.settle().is_ok());
        let mut after = node(before.kernel.clone());
        after.list(&world_of(&other));
        let settled = after.settle();
        prop_assert_eq!(settled.map(|settled| settled.failures), Ok(vec![]));
        let mut third = node(after.kernel.clone());
        third.list(&world_of(&other));
        prop_assert_eq!(third.settle().map(|settled| settled.ops), Ok(vec![]));
    }

    /// The rules and the API mean the same for every packet (invariant 13).
    #[test]
    fn rules_agree_with_the_oracle(world in bytes(), choices in bytes()) {
        let mut node = node(FakeKernel::default());
        node.list(&world_of(&world));
        prop_assert!(node.settle().is_ok());
        let world = node.reconciler.world();
        for packet in packets(&mut Choices::new(&choices), world, 12) {
            let meant = verdict::by_oracle(world, &node.config, &node.facts, &packet);
            let traced = verdict::by_nft(&node.kernel.state.nft, &node.config, &node.facts, &packet);
            prop_assert_eq!(&traced, &Ok(meant.verdict), "{:?} by {}", packet, meant.rule);
        }
    }

    /// A crash between any two operations leaves a kernel that a fresh agent can go on from; and
    /// on the way a packet reaches nobody whom neither the old nor the new state reaches, and
    /// packets that the change does not concern pass as before (invariants 5 and 14).
    #[test]
    fn no_prefix_of_a_change_dangles_or_strays(
        one in bytes(), other in bytes(), choices in bytes(),
    ) {
        let mut old = node(FakeKernel::default());
        old.list(&world_of(&one));
        prop_assert!(old.settle().is_ok());
        let mut new = node(old.kernel.clone());
        new.list(&world_of(&other));
        let ops = new.settle().map(|settled| settled.ops).unwrap_or_default();
        let mut choices = Choices::new(&choices);
        let mut packets = packets(&mut choices, old.reconciler.world(), 4);
        packets.extend(self::packets(&mut choices, new.reconciler.world(), 4));
        let mut partial = old.kernel.clone();
        for op in &ops {
            let result = partial.apply(std::slice::from_ref(op));
            prop_assert_eq!(&result[..], &[Ok(())][..], "{:?}", op);
            for packet in &packets {
                let trace_in = |kernel: &FakeKernel, packet: &Packet| {
                    verdict::by_nft(&kernel.state.nft, &new.config, &new.facts, packet)
                };
                let [before, now, after] =
                    [&old.kernel, &partial, &new.kernel].map(|kernel| trace_in(kernel, packet));
                if before == after && matches!(before, Ok(Verdict::Pass { .. })) {
                    prop_assert_eq!(&now, &before, "{:?} during {:?}", packet, op);
                    continue;
                }
                // A node port's views for clients from outside and for the node's own change one
                // after the other: in between a client may get an endpoint of the other view.
                let inside = Packet { entry: Entry::Pod, source: INSIDE, ..packet.clone() };
                let reached = |kernel: &FakeKernel, packet: &Packet| {
                    destinations(&trace_in(kernel, packet))
                };
                let allowed: BTreeSet<SocketAddr> = [&old.kernel, &new.kernel]
                    .into_iter()
                    .flat_map(|kernel| [reached(kernel, packet), reached(kernel, &inside)])
                    .flatten()
                    .collect();
                prop_assert!(
                    now.is_ok() && destinations(&now).is_subset(&allowed),
                    "{:?} gets {:?} between {:?} and {:?}", packet, now, before, after
                );
            }
            let mut fresh = node(partial.clone());
            fresh.list(&world_of(&other));
            let settled = fresh.settle();
            prop_assert_eq!(settled.map(|settled| settled.failures), Ok(vec![]));
        }
    }
}
