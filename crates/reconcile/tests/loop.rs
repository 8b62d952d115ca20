//! The loop over an honest fake kernel: invariants 1, 2, 3, 6 and 14.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use model::kinds::{NodeAddress, SCHEDULING_ANNOTATION, SERVICE_NAME_LABEL, ZONE_LABEL};
use model::packet::{Entry, Packet, Verdict};
use model::world::{Kind, Object};
use model::{
    ClusterConfig, EndpointSlice, NamespacedName, Node, Protocol, Service, ServiceCidr, Timestamp,
};
use plan::NodeFacts;
use plan::zone::{Exposed, Exposure, Namespaces, ServiceKind};
use reconcile::{
    Effect, Event, HOLD, HOLD_MINIMUM_OBJECTS, KINDS, List, OBSERVE_PERIOD, Reconciler,
    TRIGGER_TIME_ANNOTATION,
};
use render::Kernel;
use render::fake::FakeKernel;
use render::inventory::RowKind;

/// More turns than any settled loop needs.
const TURNS_MAX: usize = 64;

struct Machine {
    reconciler: Reconciler,
    kernel: FakeKernel,
    now: Duration,
    conflists: Vec<String>,
    zones: usize,
    /// Whom DNS answers, each time that it was told.
    dns_clients: Vec<BTreeSet<IpNet>>,
    damage: Vec<RowKind>,
}

impl Machine {
    fn new(kernel: FakeKernel) -> Self {
        let reconciler = Reconciler::new(ClusterConfig::default());
        Self {
            reconciler,
            kernel,
            now: Duration::ZERO,
            conflists: vec![],
            zones: 0,
            dns_clients: vec![],
            damage: vec![],
        }
    }

    /// A machine whose lists are complete.
    fn synced(kernel: FakeKernel) -> Self {
        let mut machine = Self::new(kernel);
        machine.handle(Event::Facts(facts()));
        machine.list(Kind::Node, vec![node("node1", 2, 1), node("node2", 3, 2)]);
        machine.list(Kind::Service, vec![service("web")]);
        machine.list(Kind::EndpointSlice, vec![slice("web")]);
        machine.list(Kind::ServiceCidr, vec![]);
        machine.settle();
        machine
    }

    fn handle(&mut self, event: Event) {
        self.reconciler.handle(event, self.now);
    }

    fn list(&mut self, kind: Kind, objects: Vec<Object>) {
        self.handle(Event::Listed(List::new(kind, objects)));
    }

    /// Carries effects out until there are none.
    fn settle(&mut self) {
        for _ in 0..TURNS_MAX {
            let effects = self.reconciler.poll(self.now);
            if effects.is_empty() {
                return;
            }
            self.carry_out(effects);
        }
        panic!("the loop does not settle: {:?}", self.reconciler.status());
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            let answer = match effect {
                Effect::Observe => Event::Observed(self.kernel.observe()),
                Effect::Apply(ops) => Event::Applied(self.kernel.apply(&ops)),
                Effect::ForgetFlows(stray) => {
                    Event::FlowsForgotten(self.kernel.forget_flows(&stray))
                }
                Effect::WriteConflist(text) => {
                    self.conflists.push(text);
                    continue;
                }
                Effect::PublishZone(changes) => {
                    self.zones += 1;
                    self.dns_clients.extend(changes.clients);
                    continue;
                }
                Effect::TellDamage(rows) => {
                    self.damage.extend(rows.into_iter().map(|row| row.kind));
                    continue;
                }
            };
            self.handle(answer);
        }
    }
}

fn facts() -> NodeFacts {
    NodeFacts {
        name: "node1".into(),
        uplink: "eth0".into(),
        uplink_mtu: 1500,
        addresses: vec!["172.30.0.2".parse().expect("an address")],
        ..NodeFacts::default()
    }
}

fn node(name: &str, address: u8, range: u8) -> Object {
    let mut node = Node::default();
    node.metadata.name = name.into();
    node.spec.pod_cidrs = vec![format!("10.244.{range}.0/24").parse().expect("a range")];
    node.status.addresses =
        vec![NodeAddress { kind: "InternalIP".into(), address: format!("172.30.0.{address}") }];
    Object::Node(Arc::new(node))
}

fn service(name: &str) -> Object {
    let text = format!(
        r#"{{"metadata":{{"namespace":"shop","name":"{name}"}},
            "spec":{{"clusterIPs":["10.96.1.{}"],"ports":[{{"port":80,"protocol":"TCP"}}]}}}}"#,
        name.bytes().map(u32::from).sum::<u32>() % 250 + 1
    );
    Object::Service(Arc::new(serde_json::from_str::<Service>(&text).expect("a Service")))
}

fn slice(service: &str) -> Object {
    let text = format!(
        r#"{{"metadata":{{"namespace":"shop","name":"{service}-1","labels":{{"{SERVICE_NAME_LABEL}":"{service}"}}}},
            "addressType":"IPv4","ports":[{{"name":"","port":8080,"protocol":"TCP"}}],
            "endpoints":[{{"addresses":["10.244.1.5"],"nodeName":"node1"}}]}}"#
    );
    Object::EndpointSlice(Arc::new(serde_json::from_str::<EndpointSlice>(&text).expect("a slice")))
}

fn key(name: &str) -> NamespacedName {
    NamespacedName::new("shop", name)
}

#[test]
fn nothing_happens_before_every_kind_was_listed() {
    let mut machine = Machine::new(FakeKernel::default());
    machine.handle(Event::Facts(facts()));
    machine.list(Kind::Node, vec![node("node1", 2, 1)]);
    machine.list(Kind::Service, vec![service("web")]);
    machine.settle();
    assert!(machine.kernel.applied.is_empty());
    assert_eq!(machine.reconciler.deadline(), None);
    machine.list(Kind::EndpointSlice, vec![slice("web")]);
    machine.settle();
    assert!(machine.kernel.applied.is_empty());
    machine.list(Kind::ServiceCidr, vec![]);
    machine.settle();
    assert!(!machine.kernel.applied.is_empty());
    assert!(machine.reconciler.status().converged);
}

#[test]
fn the_conflist_is_written_once_the_network_is_there() {
    let mut machine = Machine::synced(FakeKernel::default());
    assert_eq!(machine.conflists.len(), 1);
    machine.handle(Event::Present(service("other")));
    machine.settle();
    assert_eq!(machine.conflists.len(), 1, "a Service changes nothing about CNI");
}

#[test]
fn a_restart_with_nothing_changed_writes_nothing() {
    let first = Machine::synced(FakeKernel::default());
    let state = first.kernel.state;
    let second = Machine::synced(FakeKernel { state: state.clone(), ..FakeKernel::default() });
    assert_eq!(second.kernel.applied, []);
    assert_eq!(second.kernel.state, state);
}

#[test]
fn repeats_and_reversals_of_the_watch_end_at_the_same_state() {
    let plain = Machine::synced(FakeKernel::default());
    let mut noisy = Machine::synced(FakeKernel::default());
    let before = noisy.kernel.applied.len();
    noisy.handle(Event::Present(service("web")));
    noisy.handle(Event::Absent { kind: Kind::Service, key: key("web") });
    noisy.handle(Event::Absent { kind: Kind::Service, key: key("web") });
    noisy.handle(Event::Present(service("web")));
    noisy.settle();
    assert_eq!(noisy.kernel.state, plain.kernel.state);
    assert_eq!(noisy.kernel.applied.len(), before, "the end state was there already");
}

/// Invariant 1, and G5's other half: what is kept up to date Service by Service is what a rendering
/// from scratch makes, and the kernel holds that, also when an operation fails in between.
#[test]
fn what_is_kept_up_to_date_equals_what_is_rendered_anew() {
    let mut machine = Machine::synced(FakeKernel::default());
    let absent = |name: &str| Event::Absent { kind: Kind::Service, key: key(name) };
    let steps: [Vec<Event>; 6] = [
        vec![Event::Present(service("api")), Event::Present(slice("api"))],
        vec![absent("web")],
        vec![Event::Present(service("web")), absent("api"), Event::Present(service("db"))],
        vec![Event::Present(node("node3", 4, 3)), Event::Present(slice("db"))],
        vec![Event::Facts(NodeFacts { uplink_mtu: 1400, ..facts() }), absent("db")],
        vec![Event::Present(service("api"))],
    ];
    for (number, step) in steps.into_iter().enumerate() {
        machine.kernel.faults.insert(number % 2, 16);
        for event in step {
            machine.handle(event);
        }
        for _ in 0..2 {
            machine.settle();
            machine.now =
                machine.reconciler.deadline().expect("a retry or a look").max(machine.now);
        }
        let config = ClusterConfig::default();
        let mut facts = facts();
        facts.uplink_mtu = if number < 4 { 1500 } else { 1400 };
        let (desired, _) = plan::node(machine.reconciler.world(), &config, &facts);
        let anew = render::render(&desired, &config, &facts);
        assert_eq!(machine.reconciler.program(), &anew, "after step {number}");
        machine.settle();
        assert_eq!(render::diff(&anew, &machine.kernel.state), [], "after step {number}");
        assert!(machine.reconciler.status().converged, "after step {number}");
    }
}

#[test]
fn a_failed_operation_is_retried_and_stops_no_other() {
    let mut machine = Machine::synced(FakeKernel::default());
    machine.kernel.faults.insert(0, 16);
    machine.handle(Event::Present(node("node3", 4, 3)));
    machine.settle();
    let status = machine.reconciler.status();
    assert!(!status.converged && status.failures.len() == 1, "{status:?}");
    let deadline = machine.reconciler.deadline().expect("a retry");
    assert!(deadline > machine.now, "not at once");
    machine.now = deadline;
    machine.settle();
    assert!(machine.reconciler.status().converged);
    assert_eq!(machine.reconciler.status().failures, Vec::<String>::new());
}

/// R-18: what a process left between a change and its flows is compared once by the next, and again
/// where that, or a change's own, failed.
#[test]
fn flows_are_compared_once_and_after_each_failure() {
    let mut machine = Machine::synced(FakeKernel::default());
    machine.now += 2 * OBSERVE_PERIOD;
    machine.settle();
    assert_eq!(machine.kernel.judged.len(), 1, "once a process");

    let kernel = FakeKernel { judged: vec![], flow_faults: vec![4, 5], ..machine.kernel };
    let mut machine = Machine::synced(kernel);
    assert_eq!(machine.kernel.judged.len(), 1, "not before its time");
    assert_eq!(machine.reconciler.status().failures, ["injected fault"]);
    let mut waits = vec![];
    while let Some(until) = machine.reconciler.deadline().filter(|_| waits.len() < 2) {
        waits.push(until - machine.now);
        machine.now = until;
        machine.settle();
    }
    assert_eq!(machine.kernel.judged.len(), 3, "until it succeeds");
    assert!(waits[0] < waits[1], "{waits:?}");
    assert_eq!(machine.reconciler.status().failures, [""; 0]);
}

#[test]
fn what_others_removed_comes_back() {
    let mut machine = Machine::synced(FakeKernel::default());
    let whole = machine.kernel.state.clone();
    machine.kernel.state = FakeKernel::default().state;
    machine.handle(Event::KernelChanged);
    machine.settle();
    assert_eq!(machine.kernel.state, whole);
}

/// R-22: what others broke is counted and named; what changes by our own work is not damage.
#[test]
fn damage_is_named_once_and_our_own_changes_are_none() {
    let mut machine = Machine::synced(FakeKernel::default());
    machine.handle(Event::Present(node("node3", 4, 3)));
    machine.settle();
    machine.handle(Event::KernelChanged);
    machine.settle();
    assert_eq!(machine.damage, []);
    let link = machine.kernel.state.net.state.links.remove("flatnet.1");
    assert!(link.is_some(), "the default overlay has a tunnel link");
    let routes = machine.kernel.state.net.state.routes.len();
    machine.kernel.state.net.state.routes.clear();
    machine.handle(Event::KernelChanged);
    machine.settle();
    let count = |kind| machine.damage.iter().filter(|damage| **damage == kind).count();
    assert_eq!((count(RowKind::Link), count(RowKind::Route)), (1, routes));
    let told = machine.damage.len();
    machine.handle(Event::KernelChanged);
    machine.settle();
    assert_eq!(machine.damage.len(), told, "mended, and not told again");
    let totals = machine.reconciler.status().damage_total;
    assert_eq!(totals.values().sum::<u64>(), told as u64);
    assert!(machine.reconciler.inventory().iter().all(|row| !row.different));
}

/// R-12: while the API server is away nothing changes, and the list on its return, which says
/// the same, writes nothing.
#[test]
fn a_list_after_an_outage_that_says_the_same_writes_nothing() {
    let mut machine = Machine::synced(FakeKernel::default());
    let written = machine.kernel.applied.len();
    machine.now += Duration::from_secs(600);
    machine.settle();
    machine.list(Kind::Node, vec![node("node1", 2, 1), node("node2", 3, 2)]);
    machine.list(Kind::Service, vec![service("web")]);
    machine.list(Kind::EndpointSlice, vec![slice("web")]);
    machine.list(Kind::ServiceCidr, vec![]);
    machine.settle();
    assert_eq!(machine.kernel.applied.len(), written);
}

#[test]
fn a_list_that_lost_most_objects_is_held_with_an_alarm_and_then_counts() {
    let mut machine = Machine::synced(FakeKernel::default());
    let many: Vec<Object> =
        (0..HOLD_MINIMUM_OBJECTS).map(|index| service(&format!("s{index}"))).collect();
    machine.list(Kind::Service, many.clone());
    machine.settle();
    machine.list(Kind::Service, vec![]);
    machine.settle();
    assert_eq!(machine.reconciler.world().services().count(), many.len());
    assert_eq!(machine.reconciler.status().held.len(), 1);
    // A change that arrives meanwhile counts on both sides.
    machine.handle(Event::Present(service("new")));
    machine.now += HOLD;
    machine.settle();
    assert_eq!(machine.reconciler.world().services().count(), 1);
    assert_eq!(machine.reconciler.status().held, Vec::<String>::new());
}

#[test]
fn a_whole_list_cancels_the_hold() {
    let mut machine = Machine::synced(FakeKernel::default());
    let many: Vec<Object> =
        (0..HOLD_MINIMUM_OBJECTS).map(|index| service(&format!("s{index}"))).collect();
    machine.list(Kind::Service, many.clone());
    machine.list(Kind::Service, vec![]);
    machine.list(Kind::Service, many.clone());
    machine.now += HOLD * 2;
    machine.settle();
    assert_eq!(machine.reconciler.world().services().count(), many.len());
}

#[test]
fn the_zone_is_published_when_it_changes_and_only_then() {
    let mut machine = Machine::synced(FakeKernel::default());
    let published = machine.zones;
    let mut labelled = node("node2", 3, 2);
    if let Object::Node(node) = &mut labelled {
        Arc::make_mut(node).metadata.labels.insert("disk".into(), "fast".into());
    }
    machine.handle(Event::Present(labelled));
    machine.settle();
    assert_eq!(machine.zones, published, "nodes have no names");
    machine.handle(Event::Present(service("other")));
    machine.settle();
    assert_eq!(machine.zones, published + 1);
}

/// G11: names wait for nothing that the shell does with the kernel, also when a look at it is due.
#[test]
fn the_zone_goes_out_before_the_kernel_is_looked_at_or_changed() {
    let mut machine = Machine::synced(FakeKernel::default());
    for (what, due) in [("a look is due", OBSERVE_PERIOD), ("rules are due", Duration::ZERO)] {
        machine.now += due;
        machine.handle(Event::Present(service(&what.replace(' ', "-"))));
        let effects = machine.reconciler.poll(machine.now);
        let is_zone = |effect: &Effect| matches!(effect, Effect::PublishZone(_));
        let is_slow = |effect: &Effect| matches!(effect, Effect::Observe | Effect::Apply(_));
        assert_eq!(effects.iter().position(is_zone), Some(0), "{what}: {effects:?}");
        assert_eq!(effects.iter().position(is_slow), Some(1), "{what}: {effects:?}");
        let Effect::PublishZone(changes) = &effects[0] else { panic!("{what}") };
        assert_eq!(changes.services.len(), 1, "{what}");
        machine.carry_out(effects);
        machine.settle();
    }
}

/// What has names is chosen while the loop runs, and all Services are told anew, in one piece.
#[test]
fn another_choice_of_names_tells_the_whole_zone() {
    let mut machine = Machine::synced(FakeKernel::default());
    let exposure = Exposure {
        namespaces: Namespaces::Named(["bank".to_owned()].into()),
        ..Exposure::default()
    };
    let exposed = Exposed { exposure, ..Exposed::default() };
    let mut told = |exposed: &Exposed| {
        machine.handle(Event::Exposed(exposed.clone()));
        let changes = machine.reconciler.poll(machine.now).into_iter().find_map(|it| match it {
            Effect::PublishZone(changes) => Some(changes),
            _ => None,
        });
        machine.settle();
        changes
    };
    let hidden = told(&exposed).expect("a zone");
    assert_eq!(hidden.exposed, exposed);
    assert_eq!(hidden.services.get(&key("web")).map(|it| it.records.is_some()), Some(false));
    assert_eq!(hidden.services[&key("web")].kind, Some(ServiceKind::ClusterIp));
    assert_eq!(told(&exposed), None, "as before");
    let shown = told(&Exposed::default()).expect("a zone");
    assert_eq!(shown.services.get(&key("web")).map(|it| it.records.is_some()), Some(true));
    assert_eq!(machine.reconciler.services().len(), 1, "packets go to Services without names");
}

/// S-12: a Service's endpoints by zone follow the label of this node, though no Service changed.
#[test]
fn a_node_that_moves_to_another_zone_has_other_endpoints() {
    let mut machine = Machine::synced(FakeKernel::default());
    let endpoint = |last: u8, zone| {
        format!(
            r#"{{"addresses":["10.244.2.{last}"],"hints":{{"forZones":[{{"name":"{zone}"}}]}}}}"#
        )
    };
    let text = format!(
        r#"{{"metadata":{{"namespace":"shop","name":"web-1","labels":{{"{SERVICE_NAME_LABEL}":"web"}}}},
            "addressType":"IPv4","ports":[{{"port":8080}}],"endpoints":[{},{}]}}"#,
        endpoint(1, "a"),
        endpoint(2, "b"),
    );
    let slice: EndpointSlice = serde_json::from_str(&text).expect("a slice");
    machine.handle(Event::Present(Object::EndpointSlice(Arc::new(slice))));
    let mut program_in = |zone: &str| {
        let Object::Node(node) = node("node1", 2, 1) else { panic!("a node") };
        let mut node = (*node).clone();
        node.metadata.labels.insert(ZONE_LABEL.into(), zone.into());
        machine.handle(Event::Present(Object::Node(Arc::new(node))));
        machine.settle();
        machine.reconciler.program().clone()
    };
    let in_a = program_in("a");
    assert_ne!(program_in("b"), in_a);
    assert_eq!(program_in("a"), in_a);
}

/// A backend that cannot do what a Service asks for says so, and serves it all the same.
#[test]
fn what_the_backend_cannot_do_is_found_and_served_at_random() {
    let mut machine = Machine::synced(FakeKernel::default());
    let plain = machine.kernel.state.clone();
    for (word, refused) in [("least-connection", true), ("maglev", true), ("random", false)] {
        let Object::Service(web) = service("web") else { panic!("a Service") };
        let mut web = (*web).clone();
        web.metadata.annotations.insert(SCHEDULING_ANNOTATION.into(), word.into());
        machine.handle(Event::Present(Object::Service(Arc::new(web))));
        machine.settle();
        let findings = machine.reconciler.status().findings;
        let found = findings.iter().any(|one| {
            one.about == "Service shop/web" && one.message.contains("is not possible with")
        });
        assert_eq!(found, refused, "{word}: {findings:?}");
        assert_eq!(machine.kernel.state, plain, "{word}");
    }
}

#[test]
fn every_kind_that_the_loop_waits_for_can_be_listed() {
    let mut machine = Machine::new(FakeKernel::default());
    machine.handle(Event::Facts(facts()));
    for kind in KINDS {
        assert!(!machine.reconciler.status().synced);
        machine.list(kind, vec![]);
    }
    assert!(machine.reconciler.status().synced);
}

fn further_range(range: &str) -> Object {
    let mut object = ServiceCidr::default();
    object.metadata.name = "more".into();
    object.spec.cidrs = vec![range.into()];
    Object::ServiceCidr(Arc::new(object))
}

/// S-13: what a pod sends to an address of a range that has no Service is stopped as in the
/// configured range, and is not masqueraded; without the range it leaves for the outside.
#[test]
fn a_range_of_services_that_comes_at_run_time_is_guarded_like_the_first_one() {
    let mut machine = Machine::synced(FakeKernel::default());
    let packet = Packet {
        entry: Entry::Pod,
        source: "10.244.1.5:40000".parse().expect("a pod"),
        destination: "10.200.0.9:80".parse().expect("an address"),
        protocol: Protocol::Tcp,
    };
    let is_stopped = |machine: &Machine| {
        let nft = &machine.kernel.state.nft;
        let verdict = render::nft::trace(nft, &packet, &ClusterConfig::default(), &facts());
        verdict.expect("rules that can be followed") == Verdict::Drop
    };
    assert!(!is_stopped(&machine));
    let zones = machine.zones;
    machine.handle(Event::Present(further_range("10.200.0.0/24")));
    machine.settle();
    assert!(is_stopped(&machine));
    assert_eq!(machine.zones, zones + 1, "reverse names of the range are ours");
    assert!(machine.reconciler.status().converged);
    let written = machine.kernel.applied.len();
    machine.handle(Event::Present(further_range("10.200.0.0/24")));
    machine.settle();
    assert_eq!(machine.kernel.applied.len(), written, "nothing new");
    machine.handle(Event::Present(further_range("10.244.9.0/24")));
    machine.settle();
    assert!(!is_stopped(&machine));
    let findings = machine.reconciler.status().findings;
    assert!(findings.iter().any(|found| found.about == "ServiceCIDR more"), "{findings:?}");
    let key = NamespacedName::new("", "more");
    machine.handle(Event::Absent { kind: Kind::ServiceCidr, key });
    machine.settle();
    assert_eq!(machine.reconciler.status().findings, []);
}

/// The numbers behind kube-proxy's counters: a change counts when it comes, is pending until the
/// kernel holds it, and its trigger time is told then and once.
#[test]
fn changes_are_counted_and_pending_until_the_kernel_holds_them() {
    let mut machine = Machine::synced(FakeKernel::default());
    let counts = |machine: &Machine| machine.reconciler.changes();
    let start = counts(&machine);
    assert_eq!((start.services_total, start.endpoints_total), (1, 1), "of the lists");
    assert_eq!((start.services_pending, start.endpoints_pending), (0, 0));
    assert_eq!(machine.reconciler.take_programmed().count(), 0, "lists tell no latency");
    let Object::EndpointSlice(changed) = slice("web") else { panic!("a slice") };
    let mut changed = EndpointSlice::clone(&changed);
    changed.endpoints[0].addresses = vec!["10.244.1.6".into()];
    let time = "2026-11-21T10:00:00.25Z";
    changed.metadata.annotations.insert(TRIGGER_TIME_ANNOTATION.into(), time.into());
    let changed = Object::EndpointSlice(Arc::new(changed));
    machine.handle(Event::Present(changed.clone()));
    machine.handle(Event::Present(service("db")));
    let now = counts(&machine);
    assert_eq!((now.services_total, now.services_pending), (2, 1));
    assert_eq!((now.endpoints_total, now.endpoints_pending), (2, 1));
    assert_eq!(machine.reconciler.take_programmed().count(), 0, "the kernel has it not yet");
    // As long as the kernel refuses, they stay pending.
    machine.kernel.faults.insert(0, 16);
    machine.settle();
    assert_eq!(counts(&machine).endpoints_pending, 1);
    machine.now += Duration::from_secs(60);
    machine.settle();
    let now = counts(&machine);
    assert_eq!((now.services_pending, now.endpoints_pending), (0, 0));
    let programmed: Vec<Timestamp> = machine.reconciler.take_programmed().collect();
    assert_eq!(programmed, [Timestamp::parse(time).expect("a time")]);
    machine.handle(Event::Present(changed));
    machine.settle();
    assert_eq!(counts(&machine).endpoints_total, 2, "the same again is no change");
    assert_eq!(machine.reconciler.take_programmed().count(), 0);
}

/// `no_local_endpoints_total`: ports, by the policy that leaves them without an endpoint here.
#[test]
fn ports_without_a_local_endpoint_are_counted_by_policy() {
    let with_policies = |internal: &str, external: &str| {
        let text = format!(
            r#"{{"metadata":{{"namespace":"shop","name":"web"}},"spec":{{"type":"NodePort",
            "clusterIPs":["10.96.1.7"],"internalTrafficPolicy":"{internal}",
            "externalTrafficPolicy":"{external}","ports":[
            {{"name":"a","port":80,"nodePort":30080,"protocol":"TCP"}},
            {{"name":"b","port":81,"nodePort":30081,"protocol":"TCP"}}]}}}}"#
        );
        Object::Service(Arc::new(serde_json::from_str::<Service>(&text).expect("a Service")))
    };
    let endpoints_on = |node: &str| {
        let text = format!(
            r#"{{"metadata":{{"namespace":"shop","name":"web-1",
            "labels":{{"{SERVICE_NAME_LABEL}":"web"}}}},"addressType":"IPv4","ports":[
            {{"name":"a","port":8080,"protocol":"TCP"}},{{"name":"b","port":8081,"protocol":"TCP"}}],
            "endpoints":[{{"addresses":["10.244.2.5"],"nodeName":"{node}"}}]}}"#
        );
        let slice = serde_json::from_str::<EndpointSlice>(&text).expect("a slice");
        Object::EndpointSlice(Arc::new(slice))
    };
    let mut machine = Machine::synced(FakeKernel::default());
    for (internal, external, node, expected) in [
        ("Cluster", "Cluster", "node2", (0, 0)),
        ("Local", "Cluster", "node2", (2, 0)),
        ("Local", "Local", "node2", (2, 2)),
        ("Cluster", "Local", "node2", (0, 2)),
        ("Local", "Local", "node1", (0, 0)),
    ] {
        machine.handle(Event::Present(with_policies(internal, external)));
        machine.handle(Event::Present(endpoints_on(node)));
        machine.settle();
        let counts = machine.reconciler.changes();
        let counted = (counts.no_local_internal, counts.no_local_external);
        assert_eq!(counted, expected, "internal {internal}, external {external}, on {node}");
    }
    machine.handle(Event::Present(endpoints_on("node2")));
    machine.settle();
    machine.handle(Event::Absent { kind: Kind::Service, key: key("web") });
    machine.settle();
    let counts = machine.reconciler.changes();
    assert_eq!((counts.no_local_internal, counts.no_local_external), (0, 0));
}

/// X-26: the DNS worker hears of the machines of the cluster with its first zone, and again only when
/// they are others.
#[test]
fn dns_hears_whom_it_answers_when_nodes_or_api_servers_change() {
    let set = |ranges: &[&str]| -> BTreeSet<IpNet> {
        ranges.iter().map(|range| range.parse().expect("a range")).collect()
    };
    let of_nodes = ["10.244.1.0/24", "10.244.2.0/24", "172.30.0.2/32", "172.30.0.3/32"];
    let mut machine = Machine::synced(FakeKernel::default());
    assert_eq!(machine.dns_clients, [set(&of_nodes)]);
    machine.handle(Event::Present(slice("web-2")));
    machine.settle();
    assert_eq!(machine.dns_clients.len(), 1, "another Service's endpoints are nobody's clients");
    let mut gone = node("node2", 3, 2);
    if let Object::Node(node) = &mut gone {
        Arc::make_mut(node).status.addresses.clear();
    }
    machine.list(Kind::Node, vec![node("node1", 2, 1), gone]);
    machine.settle();
    let fewer = set(&of_nodes[..3]);
    assert_eq!(machine.dns_clients.last(), Some(&fewer));
}
