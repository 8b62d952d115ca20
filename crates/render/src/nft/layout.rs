//! What our table looks like, and why.
//!
//! ```text
//! nat hooks     frontend ─map─▶ class ─vmap─▶ chain n1, n2, … ─▶ frontend·random slot ─map─▶ endpoint
//! filter hooks  frontend ─map─▶ class ─vmap─▶ reject or drop
//! ```
//!
//! Chains are shared by all frontends with the same number of slots, so that a Service costs
//! map entries only: ten thousand Services load in a third of a second, and an endpoint changes at
//! the cost of one entry. A class is a small number between the frontend and its chain, since
//! changing a verdict costs the kernel a walk over the whole verdict map. What few Services ask
//! for (session affinity, source ranges, port ranges) has a chain of its own.
//!
//! Views have such maps of their own (see `plan::services` for who gets what): ClusterIPs; external
//! addresses; node ports; and the latter two again for clients outside the cluster, where a Local
//! policy makes a difference. Node ports are keyed by protocol and port, with a set of the node's
//! addresses beside, never `fib daddr type local`: the DNS address on `lo` would expose node ports.
//!
//! A packet that finds a class but misses its slot, for the moment of a commit, is dropped: its
//! sender tries again.
//!
//! Here is what does not depend on the Services. What each of them adds is in [`super::fragment`].

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::IpNet;
use model::{ClusterConfig, Family, PackedMap, Protocol};
use plan::{Desired, NodeFacts};

use super::language::{
    BaseChain, Chain, ChainType, ConnectionState, DataType, Datum, Field, Hook, Name, Rule, Set,
    SetSpec, Statement, Table, Tuple, Type, Value, Verdict,
};
use super::packed::Elements;
use super::tunnel::TunnelGuard;
use super::{Role, TableProgram};
use crate::owned::{
    EBPF_ZONE, MARK_EBPF, MARK_MASQUERADE, PRIORITY_BEFORE_IPVS, PRIORITY_DNAT, PRIORITY_FILTER,
    PRIORITY_RAW, PRIORITY_SNAT,
};

/// The set of the node's own addresses, at which node ports answer.
pub const NODE_ADDRESSES: &str = "node-addresses";
/// The set of ClusterIPs: ports of theirs that no Service has are refused.
pub const CLUSTER_ADDRESSES: &str = "cluster-addresses";
/// The set of ClusterIPs that answer an ICMP echo.
pub const ANSWERS_PING: &str = "answers-ping";
/// The set of endpoints on this node, each beside itself.
pub const HAIRPIN: &str = "hairpin";
/// Where the filter hooks refuse.
pub const REJECT: &str = "refuse";
const DNS_SERVICE: &str = "dns-service";
const REFUSALS: &str = "refusals";
const REFUSE_SERVICES: &str = "refuse-services";
const REFUSE_NODE_PORTS: &str = "refuse-node-ports";

/// The frontends that share maps: same key, same treatment of the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum View {
    /// Addresses of Services.
    ClusterIp,
    /// Addresses that lead to the cluster from outside.
    External,
    /// The same under `externalTrafficPolicy: Local`, for clients outside the cluster.
    ExternalOutside,
    /// Node ports.
    NodePort,
    /// Node ports under `externalTrafficPolicy: Local`, for clients outside the cluster.
    NodePortOutside,
}

impl View {
    /// All views.
    pub const ALL: [Self; 5] = [
        Self::ClusterIp,
        Self::External,
        Self::ExternalOutside,
        Self::NodePort,
        Self::NodePortOutside,
    ];

    /// The view of all clients of the same frontends.
    pub fn of_all_clients(self) -> Self {
        match self {
            Self::ClusterIp => Self::ClusterIp,
            Self::External | Self::ExternalOutside => Self::External,
            Self::NodePort | Self::NodePortOutside => Self::NodePort,
        }
    }

    /// What the names of its chains begin with.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::ClusterIp => "cluster-ip",
            Self::External => "external",
            Self::ExternalOutside => "external-outside",
            Self::NodePort => "node-port",
            Self::NodePortOutside => "node-port-outside",
        }
    }

    /// The map from frontend to class: the switch of each frontend.
    pub fn classes(self) -> &'static str {
        match self {
            Self::ClusterIp => "cluster-ip-frontends",
            Self::External => "external-frontends",
            Self::ExternalOutside => "external-outside-frontends",
            Self::NodePort => "node-port-frontends",
            Self::NodePortOutside => "node-port-outside-frontends",
        }
    }

    /// The map from frontend and slot to endpoint.
    pub fn endpoints(self) -> &'static str {
        match self {
            Self::ClusterIp => "cluster-ip-endpoints",
            Self::External => "external-endpoints",
            Self::ExternalOutside => "external-outside-endpoints",
            Self::NodePort => "node-port-endpoints",
            Self::NodePortOutside => "node-port-outside-endpoints",
        }
    }

    /// The map from class to chain.
    pub fn verdicts(self) -> &'static str {
        match self {
            Self::ClusterIp => "cluster-ip-classes",
            Self::External => "external-classes",
            Self::ExternalOutside => "external-outside-classes",
            Self::NodePort => "node-port-classes",
            Self::NodePortOutside => "node-port-outside-classes",
        }
    }

    /// The map from frontend to its own chain, and the chain that asks it.
    pub fn own(self) -> &'static str {
        match self {
            Self::ClusterIp => "cluster-ip-own",
            Self::External => "external-own",
            Self::ExternalOutside => "external-outside-own",
            Self::NodePort => "node-port-own",
            Self::NodePortOutside => "node-port-outside-own",
        }
    }

    /// What of a packet is its frontend.
    pub fn fields(self) -> Vec<Field> {
        match self {
            Self::ClusterIp | Self::External | Self::ExternalOutside => frontend_fields(),
            Self::NodePort | Self::NodePortOutside => {
                vec![Field::Protocol, Field::DestinationPort]
            }
        }
    }

    fn key_types(self, family: Family) -> Vec<Type> {
        match self {
            Self::ClusterIp | Self::External | Self::ExternalOutside => {
                vec![Type::Address(family), Type::Protocol, Type::Port]
            }
            Self::NodePort | Self::NodePortOutside => vec![Type::Protocol, Type::Port],
        }
    }
}

/// Frontends that are ranges of ports, of ClusterIPs and external addresses together: an address
/// is one or the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RangeView {
    /// For all clients that the other view does not name.
    All,
    /// Under `externalTrafficPolicy: Local`, for clients outside the cluster.
    Outside,
}

impl RangeView {
    /// Both views.
    pub const ALL: [Self; 2] = [Self::All, Self::Outside];

    /// The interval map from frontend to its own chain.
    pub fn chains(self) -> &'static str {
        match self {
            Self::All => "ranges",
            Self::Outside => "ranges-outside",
        }
    }

    /// The interval map from frontend to its refusal.
    pub fn refusals(self) -> &'static str {
        match self {
            Self::All => "range-refusals",
            Self::Outside => "range-refusals-outside",
        }
    }

    /// The map from frontend and slot to endpoint. No rule asks it: a fresh process reads in it
    /// where tracked flows may lead.
    pub fn endpoints(self) -> &'static str {
        match self {
            Self::All => "range-endpoints",
            Self::Outside => "range-outside-endpoints",
        }
    }
}

/// What a frontend does, as the number that its map holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Refused in the filter hooks.
    Reject,
    /// Dropped in the filter hooks.
    Drop,
    /// The frontend has a chain of its own.
    Own,
    /// As [`Class::Reject`], for whom its own chain lets pass.
    OwnReject,
    /// As [`Class::Drop`], for whom its own chain lets pass.
    OwnDrop,
    /// Another backend's.
    Elsewhere,
    /// One of `count` slots by chance.
    Endpoints {
        /// How many slots; none where IPVS chooses.
        count: u32,
        /// What becomes of the source.
        source: Source,
    },
}

/// How a chain to endpoints treats the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// Kept for everybody.
    Kept,
    /// Kept for pods of this node, masqueraded for others.
    KeptForPods,
    /// Masqueraded for everybody.
    Masqueraded,
}

impl Class {
    /// The number in the maps.
    pub fn number(self) -> u32 {
        match self {
            Self::Reject => 0x8000_0000,
            Self::Drop => 0x8000_0001,
            Self::Own => 0x8000_0002,
            Self::OwnReject => 0x8000_0003,
            Self::OwnDrop => 0x8000_0004,
            Self::Elsewhere => 0x8000_0005,
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

/// All that the table of one family depends on besides the Services.
pub struct Layout<'a> {
    pub(super) family: Family,
    pub(super) role: Role,
    /// The cluster's range of pods in this family.
    pods: Option<IpNet>,
    /// The part of it that this node's pods have.
    pub(super) own_pods: Vec<IpNet>,
    desired: &'a Desired,
    pub(super) config: &'a ClusterConfig,
    facts: &'a NodeFacts,
}

impl<'a> Layout<'a> {
    /// Of a node's plan.
    pub fn new(
        family: Family,
        role: Role,
        desired: &'a Desired,
        config: &'a ClusterConfig,
        facts: &'a NodeFacts,
    ) -> Self {
        let pods = in_family(family, &config.pod_cidrs).next();
        let own = desired.network.as_ref().map_or(&[][..], |network| &network.pod_ranges);
        let own_pods = in_family(family, own).collect();
        Self { family, role, pods, own_pods, desired, config, facts }
    }

    /// The table without any Service.
    pub fn base(&self) -> TableProgram {
        let mut builder = Builder { layout: self, table: Table::default() };
        builder.add_static_sets();
        builder.add_raw_chains();
        builder.add_nat_chains();
        builder.add_filter_chains();
        let table = builder.table;
        let maps = View::ALL.map(View::endpoints).into_iter();
        let maps = maps.chain(RangeView::ALL.map(RangeView::endpoints));
        let maps = maps.filter(|map| table.sets.contains_key(*map));
        let endpoints = maps.map(|map| (map.into(), PackedMap::new())).collect();
        TableProgram { table, endpoints, ..TableProgram::default() }
    }

    /// The rules that send a frontend of a view to one of its slots; one without slots, to whoever
    /// comes next.
    pub fn slot_rules(&self, view: View, count: u32, source: Source) -> Vec<Vec<Statement>> {
        let mut key = view.fields();
        key.push(Field::Random { modulus: count });
        let load = Statement::Load { key, map: view.endpoints().into() };
        let mut rules: Vec<Vec<Statement>> = self.mark(source).into_iter().collect();
        if count == 0 {
            rules.push(vec![Statement::Verdict(Verdict::Accept)]);
            return rules;
        }
        rules.push(vec![load, Statement::TranslateDestination]);
        rules.push(vec![Statement::Verdict(Verdict::Drop)]);
        rules
    }

    /// The rule that marks whose source is not kept.
    pub fn mark(&self, source: Source) -> Option<Vec<Statement>> {
        let mark = Statement::SetMark(MARK_MASQUERADE);
        match source {
            Source::Kept => None,
            Source::KeptForPods => {
                Some(self.not_from_own_pods().into_iter().chain([mark]).collect())
            }
            Source::Masqueraded => Some(vec![mark]),
        }
    }

    /// A chain that others go to.
    pub fn chain(&self, rules: Vec<Vec<Statement>>) -> Chain {
        let rules = rules.into_iter().map(|rule| Rule::new(self.family, rule)).collect();
        Chain { base: None, rules }
    }

    /// From anybody but this node's pods. Another node's pod is a stranger here: with its source
    /// kept, an endpoint elsewhere would answer it past this node, untranslated.
    fn not_from_own_pods(&self) -> Vec<Statement> {
        self.own_pods.iter().map(|pods| outside_of(Field::SourceAddress, *pods)).collect()
    }

    /// The statement, for clients outside of this node's pods.
    fn only_outside(&self, then: Statement) -> Vec<Statement> {
        self.not_from_own_pods().into_iter().chain([then]).collect()
    }

    fn own_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.facts.addresses.iter().copied().filter(|one| Family::of(one) == self.family)
    }
}

struct Builder<'a> {
    layout: &'a Layout<'a>,
    table: Table,
}

impl Builder<'_> {
    fn add_static_sets(&mut self) {
        let family = self.layout.family;
        self.add_set(NODE_ADDRESSES, vec![Type::Address(family)], DataType::None);
        self.add_set(CLUSTER_ADDRESSES, vec![Type::Address(family)], DataType::None);
        self.add_set(ANSWERS_PING, vec![Type::Address(family)], DataType::None);
        self.add_set(REFUSALS, vec![Type::Number], DataType::Verdict);
        for view in View::ALL {
            let class = DataType::Values(vec![Type::Number]);
            self.add_set(view.classes(), view.key_types(family), class);
        }
        let range = vec![Type::Address(family), Type::Protocol, Type::PortRange];
        for view in RangeView::ALL {
            self.add_set(view.refusals(), range.clone(), DataType::Verdict);
        }
        if self.layout.role.translates() {
            self.add_translation_sets(&range);
        }
        for class in [Class::Reject, Class::OwnReject] {
            self.add_verdict(REFUSALS, class, Verdict::Goto(REJECT.into()));
        }
        for class in [Class::Drop, Class::OwnDrop] {
            self.add_verdict(REFUSALS, class, Verdict::Drop);
        }
        let layout = self.layout;
        for address in layout.own_addresses() {
            if layout.config.has_node_ports_at(address) {
                self.add_element(NODE_ADDRESSES, vec![Value::Address(address)], Datum::Member);
            }
        }
        if layout.config.dns_address(family).is_some() {
            let key = vec![Type::Address(family), Type::Protocol, Type::Port];
            self.add_set(DNS_SERVICE, key, DataType::None);
        }
        for address in layout.config.dns_addresses(family) {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let protocol = Value::Protocol(protocol.number());
                let key = vec![Value::Address(address), protocol, Value::Port(53)];
                self.add_element(DNS_SERVICE, key, Datum::Member);
            }
        }
    }

    fn add_translation_sets(&mut self, range: &[Type]) {
        let family = self.layout.family;
        self.add_set(HAIRPIN, vec![Type::Address(family); 2], DataType::None);
        let endpoint = || DataType::Values(endpoint_types(family));
        for view in View::ALL {
            let mut slot_key = view.key_types(family);
            slot_key.push(Type::Number);
            self.add_set(view.verdicts(), vec![Type::Number], DataType::Verdict);
            self.add_set(view.endpoints(), slot_key, endpoint());
            self.add_set(view.own(), view.key_types(family), DataType::Verdict);
            // What is refused leaves the nat hooks untranslated; the filter hooks answer.
            for class in [Class::Reject, Class::Drop] {
                self.add_verdict(view.verdicts(), class, Verdict::Accept);
            }
            for class in [Class::Own, Class::OwnReject, Class::OwnDrop] {
                self.add_verdict(view.verdicts(), class, Verdict::Goto(view.own().into()));
            }
        }
        for view in RangeView::ALL {
            let ports = [Type::Port; 2];
            let key = [Type::Address(family), Type::Protocol].into_iter().chain(ports);
            let key = key.chain([Type::Number]).collect();
            self.add_set(view.chains(), range.to_vec(), DataType::Verdict);
            self.add_set(view.endpoints(), key, endpoint());
        }
    }

    /// Before connection tracking: the loopback guard, and DNS untracked, since a flow per query
    /// would fill the table of connections; and what eBPF masquerades on the way, also while that
    /// drains and the Services are ours.
    fn add_raw_chains(&mut self) {
        let mut prerouting =
            vec![vec![Statement::HasMark(MARK_EBPF), Statement::TrackInZone(EBPF_ZONE)]];
        if self.layout.family == Family::V4 {
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
        if self.layout.config.dns_address(self.layout.family).is_some() {
            let answer = vec![Field::SourceAddress, Field::Protocol, Field::SourcePort];
            for key in [frontend_fields(), answer] {
                // Every packet passes here, and a comparison costs it less than a look-up.
                for address in self.layout.config.dns_addresses(self.layout.family) {
                    let its = inside(key[0], IpNet::from(address));
                    let rule = vec![its, in_set(key.clone(), DNS_SERVICE), Statement::NoTrack];
                    prerouting.push(rule.clone());
                    output.push(rule);
                }
            }
        }
        self.add_base("raw-prerouting", ChainType::Filter, Hook::Prerouting, prerouting);
        self.add_base("raw-output", ChainType::Filter, Hook::Output, output);
    }

    /// The base chains stay also while another backend has the Services: while a nat chain is
    /// there, the kernel goes on translating the flows that began under our rules.
    fn add_nat_chains(&mut self) {
        let layout = self.layout;
        let mut prerouting = Vec::new();
        let mut output = Vec::new();
        if layout.role.translates() {
            prerouting = self.translations(true);
            output = self.translations(false);
            for view in View::ALL {
                let rule = Statement::VerdictOf { key: view.fields(), map: view.own().into() };
                self.add_chain(view.own(), vec![vec![rule]]);
            }
        }
        // Redirection would go to the address of the link that the packet came in over, and links
        // to pods may have none.
        if let Some(node) = layout.own_addresses().next() {
            let echo = Statement::EchoRequest(layout.family);
            let asked = in_set(vec![Field::DestinationAddress], ANSWERS_PING);
            let rule = vec![echo, asked, Statement::TranslateAddress(node)];
            prerouting.push(rule.clone());
            output.push(rule);
        }
        self.add_base("nat-prerouting", ChainType::Nat, Hook::Prerouting, prerouting);
        self.add_base("nat-output", ChainType::Nat, Hook::Output, output);
        let postrouting = self.source_translations();
        self.add_base("nat-postrouting", ChainType::Nat, Hook::Postrouting, postrouting);
    }

    /// What the first packet of a flow goes through, on its way in or out.
    fn translations(&self, incoming: bool) -> Vec<Vec<Statement>> {
        let layout = self.layout;
        let at_node = || in_set(vec![Field::DestinationAddress], NODE_ADDRESSES);
        let range = |view: RangeView| Statement::VerdictOf {
            key: frontend_fields(),
            map: view.chains().into(),
        };
        let mut rules = vec![vec![Statement::ClearMark(MARK_MASQUERADE)]];
        rules.push(vec![dispatch(View::ClusterIp)]);
        if incoming {
            rules.push(layout.only_outside(dispatch(View::ExternalOutside)));
        }
        rules.push(vec![dispatch(View::External)]);
        if incoming {
            rules.push(layout.only_outside(range(RangeView::Outside)));
        }
        rules.push(vec![range(RangeView::All)]);
        if incoming {
            let outside = layout.only_outside(dispatch(View::NodePortOutside));
            rules.push([at_node()].into_iter().chain(outside).collect());
        }
        rules.push(vec![at_node(), dispatch(View::NodePort)]);
        rules
    }

    fn source_translations(&self) -> Vec<Vec<Statement>> {
        let Layout { family, pods, config, .. } = *self.layout;
        let own = [&config.pod_cidrs, &config.node_cidrs, &config.service_cidrs];
        let beyond = |ranges: &[&Vec<IpNet>]| -> Vec<Statement> {
            let ranges = ranges.iter().flat_map(|ranges| in_family(family, ranges));
            ranges.map(|range| outside_of(Field::DestinationAddress, range)).collect()
        };
        let anywhere = || Statement::Masquerade { ports: None };
        let outside = || Statement::Masquerade { ports: config.masquerade_ports };
        // Also beside another backend: a packet may be on its way that our rules have marked.
        let marked = [Statement::HasMark(MARK_MASQUERADE), Statement::ClearMark(MARK_MASQUERADE)];
        // What eBPF masquerades gets its source after this: with one from here, nobody would know
        // whose the answers are.
        let accept = Statement::Verdict(Verdict::Accept);
        let mut rules = vec![vec![Statement::HasMark(MARK_EBPF), accept]];
        if config.masquerade_ports.is_some() {
            rules.push([beyond(&own), marked.to_vec(), vec![outside()]].concat());
        }
        rules.push(marked.into_iter().chain([anywhere()]).collect());
        if self.layout.role.translates() {
            let itself = vec![Field::SourceAddress, Field::DestinationAddress];
            rules.push(vec![in_set(itself, HAIRPIN), anywhere()]);
        }
        if let Some(pods) = pods {
            let [of_pods, of_nodes, of_services] = own;
            let kept = [of_pods, of_nodes, of_services, &config.non_masquerade_cidrs];
            let from_pods = vec![inside(Field::SourceAddress, pods)];
            rules.push([from_pods, beyond(&kept), vec![outside()]].concat());
        }
        rules
    }

    fn add_filter_chains(&mut self) {
        let layout = self.layout;
        let new = || Statement::StateIs(ConnectionState::New);
        let jump = |chain: &str| Statement::Verdict(Verdict::Jump(chain.into()));
        let services = self.judged_as_services();
        let at_node = in_set(vec![Field::DestinationAddress], NODE_ADDRESSES);
        let node_ports = vec![new(), at_node, jump(REFUSE_NODE_PORTS)];
        let guard = TunnelGuard::new(layout.family, layout.desired, layout.config);
        let mut input = guard.on_input();
        input.extend(self.dns_guard());
        input.extend(self.invalid_from_pods());
        input.extend(services.clone());
        input.push(node_ports);
        self.add_base("filter-input", ChainType::Filter, Hook::Input, input);
        let mut forward = guard.on_forward();
        forward.extend(self.invalid_from_pods());
        forward.extend(services.clone());
        self.add_base("filter-forward", ChainType::Filter, Hook::Forward, forward);
        let mut output = guard.on_output();
        // DNS first: what is refused at its address is no Service.
        let mut judged = self.dns_guard();
        judged.extend(services);
        // IPVS itself refuses who comes to a server that only waits for its last connections.
        match layout.role {
            Role::BeforeIpvs => {
                let chain = "filter-output-before-ipvs";
                self.add_base(chain, ChainType::Filter, Hook::Output, judged);
            }
            Role::Backend | Role::Beside | Role::BesideEbpf => output.extend(judged),
        }
        self.add_base("filter-output", ChainType::Filter, Hook::Output, output);

        self.table.sets.extend(guard.sets());
        for (chain, rules) in guard.chains() {
            self.add_chain(chain, rules);
        }
        self.add_refuse_services();
        let outside = layout.only_outside(refuse(View::NodePortOutside));
        self.add_chain(REFUSE_NODE_PORTS, vec![outside, vec![refuse(View::NodePort)]]);
        // TCP always by a reset: ICMP errors are rate limited, and refused connects would hang.
        let tcp = Statement::ProtocolIs(Protocol::Tcp.number());
        let rules =
            vec![vec![tcp, Statement::RejectWithReset], vec![Statement::RejectWithUnreachable]];
        self.add_chain(REJECT, rules);
    }

    /// What goes through [`REFUSE_SERVICES`]: flows whose destination is their own. What was led to
    /// an endpoint is spared the look-ups, but for what others' rules led to a Service's address.
    fn judged_as_services(&self) -> Vec<Vec<Statement>> {
        let Layout { family, config, .. } = *self.layout;
        let untranslated = Statement::StateIs(ConnectionState::Untranslated);
        let services = in_family(family, &config.service_cidrs);
        let services = services.map(|range| inside(Field::DestinationAddress, range));
        let judged = std::iter::once(untranslated).chain(services);
        let jump = || Statement::Verdict(Verdict::Jump(REFUSE_SERVICES.into()));
        judged.map(|which| vec![Statement::StateIs(ConnectionState::New), which, jump()]).collect()
    }

    /// An unknown port of a Service's address is refused; an address without a Service is dropped,
    /// since it may be one that this node has not heard of yet. Neither may be routed on: the
    /// packet would travel in a circle between node and router.
    fn add_refuse_services(&mut self) {
        let layout = self.layout;
        let drop = || Statement::Verdict(Verdict::Drop);
        // Got or lost its endpoints between the two hooks, or is a source that iptables does not
        // serve. What eBPF translates was never here, and IPVS takes what is for the node after
        // these hooks.
        let known = |view: View| {
            let entry = Statement::HasEntry { key: view.fields(), map: view.classes().into() };
            let then = match layout.role {
                Role::Backend | Role::Beside => Verdict::Drop,
                Role::BeforeIpvs | Role::BesideEbpf => Verdict::Accept,
            };
            vec![entry, Statement::Verdict(then)]
        };
        let range = |view: RangeView| Statement::VerdictOf {
            key: frontend_fields(),
            map: view.refusals().into(),
        };
        let mut rules = vec![
            vec![refuse(View::ClusterIp)],
            layout.only_outside(refuse(View::ExternalOutside)),
            vec![refuse(View::External)],
            layout.only_outside(range(RangeView::Outside)),
            vec![range(RangeView::All)],
            known(View::ClusterIp),
            known(View::External),
            vec![
                in_set(vec![Field::DestinationAddress], CLUSTER_ADDRESSES),
                Statement::Verdict(Verdict::Goto(REJECT.into())),
            ],
        ];
        for range in in_family(layout.family, &layout.config.service_cidrs) {
            rules.push(vec![inside(Field::DestinationAddress, range), drop()]);
        }
        self.add_chain(REFUSE_SERVICES, rules);
    }

    /// Whatever listens on all of the node's addresses must not answer at the Service's address.
    /// DNS itself is untracked and so never new. Only what is new is refused: the node's own
    /// clients come from this very address, and the reset must reach them. The addresses beside it
    /// are the node's as others are; a NodeLocal DNSCache that is still there is probed at them.
    fn dns_guard(&self) -> Vec<Vec<Statement>> {
        let Layout { family, config, .. } = *self.layout;
        let Some(address) = config.dns_address(family) else { return vec![] };
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
        let Some(pods) = self.layout.pods else { return vec![] };
        vec![vec![
            Statement::StateIs(ConnectionState::Invalid),
            inside(Field::SourceAddress, pods),
            Statement::Verdict(Verdict::Drop),
        ]]
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
            (ChainType::Filter, _) if name.ends_with("-before-ipvs") => PRIORITY_BEFORE_IPVS,
            (ChainType::Filter, _) => PRIORITY_FILTER,
        };
        let base = Some(BaseChain { chain_type, hook, priority });
        let chain = Chain { base, ..self.layout.chain(rules) };
        self.table.chains.insert(name.into(), chain);
    }

    fn add_chain(&mut self, name: &str, rules: Vec<Vec<Statement>>) {
        self.table.chains.insert(name.into(), self.layout.chain(rules));
    }

    fn add_set(&mut self, name: &str, key: Vec<Type>, data: DataType) {
        let spec = SetSpec { key, data, filled_by_packets_max: None };
        self.table.sets.insert(name.into(), Set { spec, elements: Elements::new() });
    }

    fn add_element(&mut self, set: &str, key: Tuple, datum: Datum) {
        if let Some(set) = self.table.sets.get_mut(set) {
            set.elements.insert(&key, &datum);
        }
    }

    fn add_verdict(&mut self, map: &str, class: Class, verdict: Verdict) {
        let key = vec![Value::Number(class.number())];
        self.add_element(map, key, Datum::Verdict(verdict));
    }
}

fn in_family(family: Family, ranges: &[IpNet]) -> impl Iterator<Item = IpNet> {
    ranges.iter().copied().filter(move |range| Family::of(&range.addr()) == family)
}

/// Address, protocol and port that a packet is for.
pub fn frontend_fields() -> Vec<Field> {
    vec![Field::DestinationAddress, Field::Protocol, Field::DestinationPort]
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

/// The key stands in a set.
pub fn in_set(key: Vec<Field>, set: &str) -> Statement {
    Statement::In { key, set: Name::from(set) }
}

fn dispatch(view: View) -> Statement {
    let (classes, verdicts) = (view.classes().into(), view.verdicts().into());
    Statement::Dispatch { key: view.fields(), classes, verdicts }
}

fn refuse(view: View) -> Statement {
    let (classes, verdicts) = (view.classes().into(), REFUSALS.into());
    Statement::Dispatch { key: view.fields(), classes, verdicts }
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
