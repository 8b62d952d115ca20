//! What our table looks like.
//!
//! ```text
//! nat hooks     frontend ─map─▶ class ─vmap─▶ chain n1, n2, … ─▶ frontend·random slot ─map─▶ endpoint
//! filter hooks  frontend ─map─▶ class ─vmap─▶ reject or drop
//! ```
//!
//! Chains are shared by all frontends with the same number of endpoints, so that a Service costs
//! map entries only: ten thousand Services load in a third of a second, and an endpoint changes at
//! the cost of one entry. A class is a small number between the frontend and its chain, since
//! changing a verdict costs the kernel a walk over the whole verdict map.
//!
//! Three views have such maps of their own (see `plan::services` for who gets what):
//! ClusterIPs; node ports; node ports for clients outside the cluster where a Local policy makes a
//! difference. Node ports are keyed by protocol and port, with a set of the node's addresses
//! beside, never `fib daddr type local`: the DNS address on `lo` would expose node ports.
//!
//! A packet that finds a class but misses its slot, for the moment of a commit, is dropped: its
//! sender tries again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::IpNet;
use model::{ClusterConfig, Family, Protocol};
use plan::services::{Backends, Frontend, FrontendPlan};
use plan::{Desired, NodeFacts};

use super::TableProgram;
use super::language::{
    BaseChain, Chain, ChainType, ConnectionState, DataType, Datum, Field, Hook, Name, Rule, Set,
    SetSpec, Statement, Tuple, Type, Value, Verdict,
};
use super::tunnel::TunnelGuard;
use crate::owned::{
    MARK_MASK, MARK_MASQUERADE, PRIORITY_DNAT, PRIORITY_FILTER, PRIORITY_RAW, PRIORITY_SNAT,
};

/// Clients that one endpoint of a frontend with session affinity remembers. A client beyond them is
/// served, but gets a new endpoint each time.
pub const STICKY_CLIENTS_MAX: u32 = 65_536;

/// The set of the node's own addresses, at which node ports answer.
pub const NODE_ADDRESSES: &str = "node-addresses";
const CLUSTER_ADDRESSES: &str = "cluster-addresses";
const DNS_SERVICE: &str = "dns-service";
const HAIRPIN: &str = "hairpin";
const REFUSALS: &str = "refusals";
const REJECT: &str = "refuse";
const REFUSE_CLUSTER_IPS: &str = "refuse-cluster-ips";
const REFUSE_NODE_PORTS: &str = "refuse-node-ports";

/// The frontends that share maps: same key, same treatment of the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum View {
    /// Addresses of Services.
    ClusterIp,
    /// Node ports.
    NodePort,
    /// Node ports under `externalTrafficPolicy: Local`, for clients outside the cluster.
    NodePortOutside,
}

impl View {
    /// All views.
    pub const ALL: [Self; 3] = [Self::ClusterIp, Self::NodePort, Self::NodePortOutside];

    fn prefix(self) -> &'static str {
        match self {
            Self::ClusterIp => "cluster-ip",
            Self::NodePort => "node-port",
            Self::NodePortOutside => "node-port-outside",
        }
    }

    /// The map from frontend to class: the switch of each frontend.
    pub fn classes(self) -> Name {
        format!("{}-frontends", self.prefix())
    }

    /// The map from frontend and slot to endpoint.
    pub fn endpoints(self) -> Name {
        format!("{}-endpoints", self.prefix())
    }

    fn verdicts(self) -> Name {
        format!("{}-classes", self.prefix())
    }

    fn sticky(self) -> Name {
        format!("{}-sticky", self.prefix())
    }

    fn fields(self) -> Vec<Field> {
        match self {
            Self::ClusterIp => {
                vec![Field::DestinationAddress, Field::Protocol, Field::DestinationPort]
            }
            Self::NodePort | Self::NodePortOutside => {
                vec![Field::Protocol, Field::DestinationPort]
            }
        }
    }

    fn key_types(self, family: Family) -> Vec<Type> {
        match self {
            Self::ClusterIp => vec![Type::Address(family), Type::Protocol, Type::Port],
            Self::NodePort | Self::NodePortOutside => vec![Type::Protocol, Type::Port],
        }
    }
}

/// What a frontend does, as the number that its map holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    /// Refused in the filter hooks.
    Reject,
    /// Dropped in the filter hooks.
    Drop,
    /// Session affinity: the frontend has a chain of its own.
    Sticky,
    /// One of `count` slots by chance.
    Endpoints { count: u32, source: Source },
}

/// How a chain to endpoints treats the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    /// Kept for everybody.
    Kept,
    /// Kept for pods, masqueraded for others.
    KeptForPods,
    /// Masqueraded for everybody.
    Masqueraded,
}

impl Class {
    fn number(self) -> u32 {
        match self {
            Self::Reject => 0x8000_0000,
            Self::Drop => 0x8000_0001,
            Self::Sticky => 0x8000_0002,
            Self::Endpoints { count, source } => {
                let source = match source {
                    Source::Kept => 0,
                    Source::KeptForPods => 1,
                    Source::Masqueraded => 2,
                };
                // Counts stay far below 2^24: a slice has 1,000 endpoints at most.
                source << 24 | count
            }
        }
    }
}

/// Our table of one family.
pub fn table(
    family: Family,
    desired: &Desired,
    config: &ClusterConfig,
    facts: &NodeFacts,
) -> TableProgram {
    let mut builder = Builder::new(family, desired, config, facts);
    builder.add_static_sets();
    builder.add_raw_chains();
    builder.add_nat_chains();
    builder.add_filter_chains(desired);
    for service in desired.services.values() {
        for (frontend, plan) in &service.frontends {
            if frontend.family() == family {
                builder.add_frontend(frontend, plan);
            }
        }
        for &address in &service.local_addresses {
            if Family::of(&address) == family {
                builder.add_hairpin(address);
            }
        }
    }
    builder.program
}

struct Builder<'a> {
    family: Family,
    /// The cluster's range of pods in this family.
    pods: Option<IpNet>,
    /// The part of it that this node's pods have.
    own_pods: Vec<IpNet>,
    config: &'a ClusterConfig,
    facts: &'a NodeFacts,
    program: TableProgram,
}

impl<'a> Builder<'a> {
    fn new(
        family: Family,
        desired: &Desired,
        config: &'a ClusterConfig,
        facts: &'a NodeFacts,
    ) -> Self {
        let pods = in_family(family, &config.pod_cidrs).next();
        let own = desired.network.as_ref().map_or(&[][..], |network| &network.pod_ranges);
        let own_pods = in_family(family, own).collect();
        Self { family, pods, own_pods, config, facts, program: TableProgram::default() }
    }

    fn add_static_sets(&mut self) {
        self.add_set(NODE_ADDRESSES, vec![Type::Address(self.family)], DataType::None);
        self.add_set(CLUSTER_ADDRESSES, vec![Type::Address(self.family)], DataType::None);
        self.add_set(HAIRPIN, vec![Type::Address(self.family); 2], DataType::None);
        self.add_set(REFUSALS, vec![Type::Number], DataType::Verdict);
        for view in View::ALL {
            let mut slot_key = view.key_types(self.family);
            slot_key.push(Type::Number);
            self.add_set(
                &view.classes(),
                view.key_types(self.family),
                DataType::Values(vec![Type::Number]),
            );
            self.add_set(&view.verdicts(), vec![Type::Number], DataType::Verdict);
            self.add_set(
                &view.endpoints(),
                slot_key,
                DataType::Values(endpoint_types(self.family)),
            );
            self.add_set(&view.sticky(), view.key_types(self.family), DataType::Verdict);
            self.program.endpoints.insert(view.endpoints(), BTreeMap::new());
            // What is refused leaves the nat hooks untranslated; the filter hooks answer.
            for class in [Class::Reject, Class::Drop] {
                self.add_verdict(&view.verdicts(), class, Verdict::Accept);
            }
            self.add_verdict(&view.verdicts(), Class::Sticky, Verdict::Goto(view.sticky()));
        }
        self.add_verdict(REFUSALS, Class::Reject, Verdict::Goto(REJECT.into()));
        self.add_verdict(REFUSALS, Class::Drop, Verdict::Drop);
        for &address in &self.facts.addresses {
            if Family::of(&address) == self.family {
                let key = vec![Value::Address(address)];
                self.add_element(NODE_ADDRESSES, key, Datum::Member);
            }
        }
        if let Some(address) = self.config.dns_address(self.family) {
            let key = vec![Type::Address(self.family), Type::Protocol, Type::Port];
            self.add_set(DNS_SERVICE, key, DataType::None);
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let protocol = Value::Protocol(protocol.number());
                let key = vec![Value::Address(address), protocol, Value::Port(53)];
                self.add_element(DNS_SERVICE, key, Datum::Member);
            }
        }
    }

    /// Before connection tracking: the loopback guard, and DNS untracked, since a flow per query
    /// would fill the table of connections.
    fn add_raw_chains(&mut self) {
        let mut prerouting = Vec::new();
        if self.family == Family::V4 {
            // CVE-2020-8558: with route_localnet set by whomever, neighbours would reach what
            // listens on the node's loopback only. IPv6 has no such switch.
            let loopback = IpNet::from(ipnet::Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8));
            prerouting.push(vec![
                Statement::NotFromLoopback,
                inside(Field::DestinationAddress, loopback),
                Statement::Verdict(Verdict::Drop),
            ]);
        }
        let mut output = Vec::new();
        if self.config.dns_address(self.family).is_some() {
            let query = vec![Field::DestinationAddress, Field::Protocol, Field::DestinationPort];
            let answer = vec![Field::SourceAddress, Field::Protocol, Field::SourcePort];
            for key in [query, answer] {
                let rule = vec![in_set(key, DNS_SERVICE), Statement::NoTrack];
                prerouting.push(rule.clone());
                output.push(rule);
            }
        }
        self.add_base("raw-prerouting", ChainType::Filter, Hook::Prerouting, prerouting);
        self.add_base("raw-output", ChainType::Filter, Hook::Output, output);
    }

    fn add_nat_chains(&mut self) {
        let at_node = || in_set(vec![Field::DestinationAddress], NODE_ADDRESSES);
        let clear = vec![Statement::ClearMark(MARK_MASK)];
        let cluster_ips = vec![dispatch(View::ClusterIp)];
        let node_ports = vec![at_node(), dispatch(View::NodePort)];
        let outside: Vec<Statement> = [at_node()]
            .into_iter()
            .chain(self.not_from_own_pods())
            .chain([dispatch(View::NodePortOutside)])
            .collect();
        let prerouting = vec![clear.clone(), cluster_ips.clone(), outside, node_ports.clone()];
        self.add_base("nat-prerouting", ChainType::Nat, Hook::Prerouting, prerouting);
        let output = vec![clear, cluster_ips, node_ports];
        self.add_base("nat-output", ChainType::Nat, Hook::Output, output);

        let mut postrouting = vec![
            vec![
                Statement::HasMark(MARK_MASQUERADE),
                Statement::ClearMark(MARK_MASQUERADE),
                Statement::Masquerade,
            ],
            vec![
                in_set(vec![Field::SourceAddress, Field::DestinationAddress], HAIRPIN),
                Statement::Masquerade,
            ],
        ];
        if let Some(pods) = self.pods {
            let ranges = [&self.config.pod_cidrs, &self.config.node_cidrs];
            let ranges = ranges.into_iter().chain([&self.config.service_cidrs]);
            let elsewhere = ranges
                .flat_map(|ranges| in_family(self.family, ranges))
                .map(|range| outside_of(Field::DestinationAddress, range));
            let from_pods = [inside(Field::SourceAddress, pods)];
            let to_outside =
                from_pods.into_iter().chain(elsewhere).chain([Statement::Masquerade]).collect();
            postrouting.push(to_outside);
        }
        self.add_base("nat-postrouting", ChainType::Nat, Hook::Postrouting, postrouting);
        for view in View::ALL {
            let rule = Statement::VerdictOf { key: view.fields(), map: view.sticky() };
            self.add_chain(view.sticky(), None, vec![vec![rule]]);
        }
    }

    fn add_filter_chains(&mut self, desired: &Desired) {
        let new = || Statement::StateIs(ConnectionState::New);
        let jump = |chain: &str| Statement::Verdict(Verdict::Jump(chain.into()));
        let cluster_ips = vec![new(), jump(REFUSE_CLUSTER_IPS)];
        let node_ports = vec![
            new(),
            in_set(vec![Field::DestinationAddress], NODE_ADDRESSES),
            jump(REFUSE_NODE_PORTS),
        ];
        let guard = TunnelGuard::new(self.family, desired, self.config);
        let mut input = guard.on_input();
        input.extend(self.dns_guard());
        input.extend(self.invalid_from_pods());
        input.extend([cluster_ips.clone(), node_ports]);
        self.add_base("filter-input", ChainType::Filter, Hook::Input, input);
        let mut forward = guard.on_forward();
        forward.extend(self.invalid_from_pods());
        forward.push(cluster_ips.clone());
        self.add_base("filter-forward", ChainType::Filter, Hook::Forward, forward);
        let mut output = guard.on_output();
        output.extend(self.dns_guard());
        output.push(cluster_ips);
        self.add_base("filter-output", ChainType::Filter, Hook::Output, output);

        self.program.table.sets.extend(guard.sets());
        for (chain, rules) in guard.chains() {
            self.add_chain(chain.into(), None, rules);
        }
        self.add_refuse_cluster_ips();
        let refuse = |view: View| Statement::Dispatch {
            key: view.fields(),
            classes: view.classes(),
            verdicts: REFUSALS.into(),
        };
        let outside =
            self.not_from_own_pods().into_iter().chain([refuse(View::NodePortOutside)]).collect();
        let rules = vec![outside, vec![refuse(View::NodePort)]];
        self.add_chain(REFUSE_NODE_PORTS.into(), None, rules);
        // TCP always by a reset: ICMP errors are rate limited, and refused connects would hang.
        let tcp = Statement::ProtocolIs(Protocol::Tcp.number());
        let rules =
            vec![vec![tcp, Statement::RejectWithReset], vec![Statement::RejectWithUnreachable]];
        self.add_chain(REJECT.into(), None, rules);
    }

    /// An unknown port of a Service's address is refused; an address without a Service is dropped,
    /// since it may be one that this node has not heard of yet. Neither may be routed on: the
    /// packet would travel in a circle between node and router.
    fn add_refuse_cluster_ips(&mut self) {
        let view = View::ClusterIp;
        let drop = || Statement::Verdict(Verdict::Drop);
        let known = Statement::HasEntry { key: view.fields(), map: view.classes() };
        let mut rules = vec![
            vec![Statement::Dispatch {
                key: view.fields(),
                classes: view.classes(),
                verdicts: REFUSALS.into(),
            }],
            // Got its endpoints between the two hooks.
            vec![known, drop()],
            vec![
                in_set(vec![Field::DestinationAddress], CLUSTER_ADDRESSES),
                Statement::Verdict(Verdict::Goto(REJECT.into())),
            ],
        ];
        for range in in_family(self.family, &self.config.service_cidrs) {
            rules.push(vec![inside(Field::DestinationAddress, range), drop()]);
        }
        self.add_chain(REFUSE_CLUSTER_IPS.into(), None, rules);
    }

    /// Whatever listens on all of the node's addresses must not answer at the DNS address. DNS
    /// itself is untracked and so never new. Only what is new is refused: the node's own clients
    /// come from this very address, and the reset must reach them.
    fn dns_guard(&self) -> Vec<Vec<Statement>> {
        let Some(address) = self.config.dns_address(self.family) else { return vec![] };
        vec![vec![
            Statement::StateIs(ConnectionState::New),
            inside(Field::DestinationAddress, IpNet::from(address)),
            Statement::Verdict(Verdict::Goto(REJECT.into())),
        ]]
    }

    /// A pod's packet that belongs to no tracked flow would keep its own source on the way to a
    /// client that knows only the Service's address, and the client would reset the connection.
    /// Only from pods: both directions of their flows are seen here.
    fn invalid_from_pods(&self) -> Vec<Vec<Statement>> {
        let Some(pods) = self.pods else { return vec![] };
        vec![vec![
            Statement::StateIs(ConnectionState::Invalid),
            inside(Field::SourceAddress, pods),
            Statement::Verdict(Verdict::Drop),
        ]]
    }

    /// From anybody but this node's pods. Another node's pod is a stranger here: with its source
    /// kept, an endpoint elsewhere would answer it past this node, untranslated.
    fn not_from_own_pods(&self) -> Vec<Statement> {
        self.own_pods.iter().map(|pods| outside_of(Field::SourceAddress, *pods)).collect()
    }

    /// A pod of this node that is an endpoint may reach itself.
    fn add_hairpin(&mut self, address: IpAddr) {
        self.add_element(HAIRPIN, vec![Value::Address(address); 2], Datum::Member);
    }

    fn add_frontend(&mut self, frontend: &Frontend, plan: &FrontendPlan) {
        let protocol = Value::Protocol(frontend.protocol().number());
        match *frontend {
            Frontend::ClusterIp { address, port, .. } => {
                let key = vec![Value::Address(address), protocol, Value::Port(port)];
                let member = vec![Value::Address(address)];
                self.add_element(CLUSTER_ADDRESSES, member, Datum::Member);
                let view = View::ClusterIp;
                self.add_view(view, key, &plan.backends, plan, Source::KeptForPods);
            }
            // Not rendered yet: no plan has one.
            Frontend::External { .. } => {}
            Frontend::NodePort { port, .. } => {
                let key = vec![protocol, Value::Port(port)];
                let source = match &plan.outside {
                    None => Source::Masqueraded,
                    Some(outside) => {
                        let view = View::NodePortOutside;
                        self.add_view(view, key.clone(), outside, plan, Source::Kept);
                        Source::KeptForPods
                    }
                };
                self.add_view(View::NodePort, key, &plan.backends, plan, source);
            }
        }
    }

    /// One frontend in one view. Of two Services that claim the same frontend, which the API
    /// server prevents, the first by name has it.
    fn add_view(
        &mut self,
        view: View,
        key: Tuple,
        backends: &Backends,
        plan: &FrontendPlan,
        source: Source,
    ) {
        let classes = view.classes();
        if self.program.table.sets.get(&classes).is_some_and(|set| set.elements.contains_key(&key))
        {
            return;
        }
        let class = match backends {
            Backends::Reject => Class::Reject,
            Backends::Drop => Class::Drop,
            Backends::Endpoints(endpoints) => {
                let count = u32::try_from(endpoints.len()).unwrap_or(u32::MAX);
                for address in endpoints.iter().map(SocketAddr::ip) {
                    // Slices of others may not name the node.
                    if self.own_pods.iter().any(|own| own.contains(&address)) {
                        self.add_hairpin(address);
                    }
                }
                let slots = self.program.endpoints.entry(view.endpoints()).or_default();
                slots.insert(key.clone(), endpoints.clone());
                match plan.affinity_timeout_s {
                    None => {
                        self.add_count_chain(view, count, source);
                        Class::Endpoints { count, source }
                    }
                    Some(timeout_s) => {
                        let sticky = StickyFrontend { view, key: &key, source, timeout_s };
                        self.add_sticky_chain(&sticky, endpoints);
                        Class::Sticky
                    }
                }
            }
        };
        let number = Datum::Values(vec![Value::Number(class.number())]);
        self.add_element(&classes, key, number);
    }

    /// The chain that all frontends of a view with `count` endpoints share.
    fn add_count_chain(&mut self, view: View, count: u32, source: Source) {
        let kept = match (view, source) {
            (View::NodePort, Source::KeptForPods) => "-kept",
            _ => "",
        };
        let name = format!("{}{kept}-n{count}", view.prefix());
        if self.program.table.chains.contains_key(&name) {
            return;
        }
        let mut rules: Vec<Vec<Statement>> = self.mark(source).into_iter().collect();
        rules.push(vec![load_random(view, count), Statement::TranslateDestination]);
        rules.push(vec![Statement::Verdict(Verdict::Drop)]);
        self.add_chain(name.clone(), None, rules);
        let class = Class::Endpoints { count, source };
        self.add_verdict(&view.verdicts(), class, Verdict::Goto(name));
    }

    /// Session affinity: the frontend has a chain of its own, and for each endpoint a chain and a
    /// set of the clients that stay with it. A client that is in no set gets an endpoint by
    /// chance. With an endpoint goes its set, so that its clients choose anew.
    fn add_sticky_chain(&mut self, sticky: &StickyFrontend<'_>, endpoints: &BTreeSet<SocketAddr>) {
        let name = sticky.name();
        let slots = format!("{name}-slots");
        self.add_set(&slots, vec![Type::Number], DataType::Verdict);
        let mut rules = Vec::new();
        for (slot, &endpoint) in (0_u32..).zip(endpoints) {
            let own = format!("{name}-{}-{}", endpoint.ip(), endpoint.port()).replace(':', "_");
            self.add_sticky_endpoint(&own, sticky, endpoint);
            let goto = Verdict::Goto(own.clone());
            let known = in_set(vec![Field::SourceAddress], &own);
            rules.push(vec![known, Statement::Verdict(goto.clone())]);
            self.add_element(&slots, vec![Value::Number(slot)], Datum::Verdict(goto));
        }
        let modulus = u32::try_from(endpoints.len()).unwrap_or(u32::MAX);
        let by_chance = Statement::VerdictOf { key: vec![Field::Random { modulus }], map: slots };
        rules.push(vec![by_chance]);
        rules.push(vec![Statement::Verdict(Verdict::Drop)]);
        self.add_chain(name.clone(), None, rules);
        let verdict = Datum::Verdict(Verdict::Goto(name));
        self.add_element(&sticky.view.sticky(), sticky.key.clone(), verdict);
    }

    /// The chain and the clients of one endpoint, under the same name.
    fn add_sticky_endpoint(
        &mut self,
        name: &str,
        sticky: &StickyFrontend<'_>,
        endpoint: SocketAddr,
    ) {
        let spec = SetSpec {
            key: vec![Type::Address(self.family)],
            data: DataType::None,
            filled_by_packets_max: Some(STICKY_CLIENTS_MAX),
        };
        let clients = Set { spec, elements: BTreeMap::new() };
        self.program.table.sets.insert(name.into(), clients);
        let remember = Statement::Remember { set: name.into(), timeout_s: sticky.timeout_s };
        let translate = || [Statement::LoadEndpoint(endpoint), Statement::TranslateDestination];
        let mut rules: Vec<Vec<Statement>> = self.mark(sticky.source).into_iter().collect();
        rules.push([remember].into_iter().chain(translate()).collect());
        // Too many clients to remember: served all the same.
        rules.push(translate().to_vec());
        self.add_chain(name.into(), None, rules);
    }

    fn mark(&self, source: Source) -> Option<Vec<Statement>> {
        let mark = Statement::SetMark(MARK_MASQUERADE);
        match source {
            Source::Kept => None,
            Source::KeptForPods => {
                Some(self.not_from_own_pods().into_iter().chain([mark]).collect())
            }
            Source::Masqueraded => Some(vec![mark]),
        }
    }

    fn add_base(
        &mut self,
        name: &str,
        chain_type: ChainType,
        hook: Hook,
        rules: Vec<Vec<Statement>>,
    ) {
        let priority = match (chain_type, hook) {
            (ChainType::Nat, Hook::Postrouting) => PRIORITY_SNAT,
            (ChainType::Nat, _) => PRIORITY_DNAT,
            (ChainType::Filter, _) if name.starts_with("raw-") => PRIORITY_RAW,
            (ChainType::Filter, _) => PRIORITY_FILTER,
        };
        let base = BaseChain { chain_type, hook, priority };
        self.add_chain(name.into(), Some(base), rules);
    }

    fn add_chain(&mut self, name: Name, base: Option<BaseChain>, rules: Vec<Vec<Statement>>) {
        let rules = rules.into_iter().map(|rule| Rule::new(self.family, rule)).collect();
        self.program.table.chains.insert(name, Chain { base, rules });
    }

    fn add_set(&mut self, name: &str, key: Vec<Type>, data: DataType) {
        let spec = SetSpec { key, data, filled_by_packets_max: None };
        let set = Set { spec, elements: BTreeMap::new() };
        self.program.table.sets.insert(name.into(), set);
    }

    fn add_element(&mut self, set: &str, key: Tuple, datum: Datum) {
        if let Some(set) = self.program.table.sets.get_mut(set) {
            set.elements.insert(key, datum);
        }
    }

    fn add_verdict(&mut self, map: &str, class: Class, verdict: Verdict) {
        let key = vec![Value::Number(class.number())];
        self.add_element(map, key, Datum::Verdict(verdict));
    }
}

struct StickyFrontend<'a> {
    view: View,
    key: &'a Tuple,
    source: Source,
    timeout_s: u32,
}

impl StickyFrontend<'_> {
    /// Such as `cluster-ip-sticky-10.96.0.7-tcp-80`, within the 255 bytes that the kernel allows;
    /// the colons of IPv6 would need quotes in nft's own language.
    fn name(&self) -> Name {
        let parts: Vec<String> = self.key.iter().map(Value::to_string).collect();
        format!("{}-{}", self.view.sticky(), parts.join("-").replace(':', "_"))
    }
}

fn in_family(family: Family, ranges: &[IpNet]) -> impl Iterator<Item = IpNet> {
    ranges.iter().copied().filter(move |range| Family::of(&range.addr()) == family)
}

/// The types of an endpoint entry's value.
pub fn endpoint_types(family: Family) -> Vec<Type> {
    vec![Type::Address(family), Type::Port]
}

fn inside(field: Field, range: IpNet) -> Statement {
    Statement::InRange { field, range, outside: false }
}

fn outside_of(field: Field, range: IpNet) -> Statement {
    Statement::InRange { field, range, outside: true }
}

fn in_set(key: Vec<Field>, set: &str) -> Statement {
    Statement::In { key, set: set.into() }
}

fn dispatch(view: View) -> Statement {
    Statement::Dispatch { key: view.fields(), classes: view.classes(), verdicts: view.verdicts() }
}

fn load_random(view: View, count: u32) -> Statement {
    let mut key = view.fields();
    key.push(Field::Random { modulus: count });
    Statement::Load { key, map: view.endpoints() }
}

/// The address of an endpoint entry's value, for whoever reads the maps.
pub fn endpoint_of(datum: &Datum) -> Option<SocketAddr> {
    match datum {
        Datum::Values(values) => match values.as_slice() {
            [Value::Address(address), Value::Port(port)] => Some(SocketAddr::new(*address, *port)),
            _ => None,
        },
        _ => None,
    }
}

/// The value of an endpoint entry.
pub fn endpoint_datum(address: IpAddr, port: u16) -> Datum {
    Datum::Values(vec![Value::Address(address), Value::Port(port)])
}
