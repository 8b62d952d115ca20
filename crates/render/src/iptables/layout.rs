//! Which chains there are, after the layout that operators know from kube-proxy, under names of our
//! own: chains called `KUBE-…` are kube-proxy's, which flushes them.
//!
//! ```text
//! nat PREROUTING, OUTPUT ─▶ SERVICES ─▶ SVC-port ─▶ SEP-endpoint        ClusterIPs
//!                              │  │        ▲  ▲
//!                              │  └▶ FW-port ─▶ EXT-port ─▶ SVL-port    external addresses
//!                              └───▶ NODEPORTS ──▲                      node ports
//! nat POSTROUTING ─▶ POSTROUTING                                        what MARK-MASQ marked
//! filter INPUT, FORWARD, OUTPUT, of new flows ─▶ FIREWALL ─▶ FW-port    sources not served
//! ```
//!
//! Where ours differs:
//! - Beyond [`tree::LEAF_RULES_MAX`] rules, lists by address or port branch (`NET-…`, `NPT-…`).
//! - Refusals and answers to pings are not here: the nftables table beside has them
//!   ([`crate::nft::Role::Beside`]), and forgets pings that shall be answered no more.
//! - Node ports answer at the node's own addresses by name, never at `--dst-type LOCAL`: the DNS
//!   address on `lo` would expose them.
//! - Only dispatching rules have comments: each costs the kernel 256 bytes.
//! - There is no FORWARD chain that accepts: it would pass by the rules of others. For pods behind
//!   a chain that drops by policy see [`crate::edge::firewall`].
//!
//! Session affinity remembers as many clients an endpoint as the module `xt_recent` was loaded for
//! (`ip_list_tot`, 100 unless set); beyond them the oldest is forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use model::{ClusterConfig, Family, NamespacedName, Protocol};
use plan::services::{
    Backends, Frontend, FrontendPlan, RangeFrontend, RangeScope, Scheduling, ServicePlan,
};
use plan::{Desired, NodeFacts};

use super::language::{
    CHANCE_ONE, ChainName, Comment, Fixed, Hook, Kind, Match, Rule, Table, TableId, TableName,
    Target,
};
use super::tree;
use crate::owned::MARK_MASQUERADE;

/// What one Service adds to the tables of one family: a function of its plan, and of the frontends
/// that others have.
#[derive(Debug, Default)]
pub struct Addition {
    /// Chains of nat of this Service alone.
    pub nat: BTreeMap<ChainName, Vec<Rule>>,
    /// Chains of filter.
    pub filter: BTreeMap<ChainName, Vec<Rule>>,
    /// Rules of nat by destination address.
    pub by_address: BTreeMap<u128, Vec<Rule>>,
    /// Rules of nat by node port.
    pub by_node_port: BTreeMap<Protocol, BTreeMap<u128, Vec<Rule>>>,
    /// Rules of the firewall.
    pub firewall: Vec<Rule>,
}

/// All frontends of one port of a Service, in one family.
struct Port<'a> {
    /// Such as `shop/web:http`.
    name: String,
    /// What its chains are named by.
    id: String,
    protocol: Protocol,
    sites: Vec<Site<'a>>,
}

/// One frontend.
struct Site<'a> {
    at: At,
    first: u16,
    last: u16,
    plan: &'a FrontendPlan,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    ClusterIp(IpAddr),
    External(IpAddr),
    Node,
}

/// A Service's frontends by its ports, as far as it has them.
fn ports<'a>(
    family: Family,
    service: &str,
    plan: &'a ServicePlan,
    has: &mut dyn FnMut(&Frontend) -> bool,
) -> Vec<Port<'a>> {
    let mut ports: BTreeMap<(String, Protocol, bool), Vec<Site<'a>>> = BTreeMap::new();
    let of_family = plan.frontends.iter().filter(|(frontend, _)| frontend.family() == family);
    for (frontend, plan) in of_family.filter(|(frontend, _)| has(frontend)) {
        let (at, port) = match *frontend {
            Frontend::ClusterIp { address, port, .. } => (At::ClusterIp(address), port),
            Frontend::External { address, port, .. } => (At::External(address), port),
            Frontend::NodePort { port, .. } => (At::Node, port),
        };
        let key = (plan.port_name.clone(), frontend.protocol(), false);
        ports.entry(key).or_default().push(Site { at, first: port, last: port, plan });
    }
    for (range, plan) in plan.ranges.iter().filter(|(it, _)| Family::of(&it.address) == family) {
        let RangeFrontend { scope, address, protocol, first, last } = *range;
        let at = match scope {
            RangeScope::ClusterIp => At::ClusterIp(address),
            RangeScope::External => At::External(address),
        };
        let key = (plan.port_name.clone(), protocol, true);
        ports.entry(key).or_default().push(Site { at, first, last, plan });
    }
    let named = ports.into_iter().map(|((port, protocol, ranged), sites)| {
        let name = if port.is_empty() { service.into() } else { format!("{service}:{port}") };
        // kube-proxy hashes the name and the protocol; ranges are ours.
        let id = format!("{name}{}", protocol.to_string().to_lowercase());
        let id = if ranged { format!("{id} range") } else { id };
        Port { name, id, protocol, sites }
    });
    named.collect()
}

/// What the rules of one family depend on besides the Services.
#[derive(Debug)]
pub struct Layout<'a> {
    family: Family,
    /// The ranges of this node's pods.
    own_pods: Vec<IpNet>,
    /// The node's own addresses.
    addresses: Vec<IpAddr>,
    config: &'a ClusterConfig,
}

impl<'a> Layout<'a> {
    /// Of one family.
    pub fn new(
        family: Family,
        desired: &Desired,
        config: &'a ClusterConfig,
        facts: &NodeFacts,
    ) -> Self {
        let in_family = |ranges: &[IpNet]| -> Vec<IpNet> {
            let ranges = ranges.iter().copied();
            ranges.filter(|range| Family::of(&range.addr()) == family).collect()
        };
        let own = desired.network.as_ref().map_or(&[][..], |network| &network.pod_ranges);
        let addresses = facts.addresses.iter().copied();
        Self {
            family,
            own_pods: in_family(own),
            addresses: addresses.filter(|address| Family::of(address) == family).collect(),
            config,
        }
    }

    /// What a Service adds. `has` says which frontends it has: others may claim them too.
    pub fn addition(
        &self,
        service: &NamespacedName,
        plan: &ServicePlan,
        mut has: impl FnMut(&Frontend) -> bool,
    ) -> Addition {
        let mut builder = Builder { layout: self, added: Addition::default() };
        for port in ports(self.family, &service.to_string(), plan, &mut has) {
            builder.add_port(&port);
        }
        builder.added
    }

    /// The tables without any Service; the lists are still empty.
    pub fn base(&self) -> [(TableId, Table); 2] {
        let id = |name| TableId { family: self.family, name };
        [(id(TableName::Nat), self.nat()), (id(TableName::Filter), self.filter())]
    }

    /// The chain where all begins, around the list by address.
    pub fn services(&self, by_address: Vec<Rule>) -> Vec<Rule> {
        let clear = Rule::new([], Target::ClearMark(MARK_MASQUERADE));
        [clear].into_iter().chain(by_address).chain(self.at_node_addresses()).collect()
    }

    fn nat(&self) -> Table {
        let mark = Rule::new([], Target::SetMark(MARK_MASQUERADE));
        let mut others = Vec::new();
        if !self.config.masquerade_all {
            let own = self.own_pods.iter();
            others.extend(own.map(|pods| Rule::new([Match::Source(*pods)], Target::Return)));
        }
        others.push(Rule::new([], Fixed::MarkMasquerade));
        let chains = [
            (Fixed::Services, self.services(vec![])),
            (Fixed::NodePorts, vec![]),
            (Fixed::MarkMasquerade, vec![mark]),
            (Fixed::MarkOthers, others),
            (Fixed::Postrouting, self.postrouting()),
        ];
        let jump = |chain: Fixed| vec![Rule::new([], chain)];
        let hooks = BTreeMap::from([
            (Hook::Prerouting, jump(Fixed::Services)),
            (Hook::Output, jump(Fixed::Services)),
            (Hook::Postrouting, jump(Fixed::Postrouting)),
        ]);
        let chains = chains.into_iter().map(|(chain, rules)| (chain.into(), rules));
        Table { chains: chains.collect(), hooks }
    }

    /// Ports are chosen for what leaves the cluster only. The programs take them for protocols that
    /// have ports only, and Services have these.
    fn postrouting(&self) -> Vec<Rule> {
        let anywhere = || Target::Masquerade { ports: None };
        let mut rules = vec![
            Rule::new([Match::WithoutMark(MARK_MASQUERADE)], Target::Return),
            Rule::new([], Target::ClearMark(MARK_MASQUERADE)),
        ];
        if let Some(ports) = self.config.masquerade_ports {
            let config = self.config;
            let own = [&config.pod_cidrs, &config.node_cidrs, &config.service_cidrs];
            let own = own.into_iter().flatten().copied();
            let own = own.filter(|range| Family::of(&range.addr()) == self.family);
            rules.extend(own.map(|range| Rule::new([Match::Destination(range)], anywhere())));
            rules.extend([Protocol::Tcp, Protocol::Udp, Protocol::Sctp].map(|protocol| {
                let target = Target::Masquerade { ports: Some(ports) };
                Rule::new([Match::Protocol(protocol)], target)
            }));
        }
        rules.push(Rule::new([], anywhere()));
        rules
    }

    fn filter(&self) -> Table {
        let new = || vec![Rule::new([Match::NewFlow], Fixed::Firewall)];
        let hooks = [Hook::Input, Hook::Forward, Hook::Output].map(|hook| (hook, new()));
        Table { chains: [(Fixed::Firewall.into(), vec![])].into(), hooks: hooks.into() }
    }

    /// Node ports come last: an external address may be the node's, and wins.
    fn at_node_addresses(&self) -> impl Iterator<Item = Rule> {
        let open = self.addresses.iter().filter(|&&it| self.config.has_node_ports_at(it));
        open.map(|&address| Rule::new([Match::Destination(IpNet::from(address))], Fixed::NodePorts))
    }
}

struct Builder<'a> {
    layout: &'a Layout<'a>,
    added: Addition,
}

impl Builder<'_> {
    fn add_port(&mut self, port: &Port<'_>) {
        let internal = port.sites.iter().find(|site| matches!(site.at, At::ClusterIp(_)));
        let external = port.sites.iter().find(|site| !matches!(site.at, At::ClusterIp(_)));
        let internal_kind = match (internal, external) {
            (Some(internal), Some(external))
                if internal.plan.backends != external.plan.backends =>
            {
                Kind::Internal
            }
            _ => Kind::Service,
        };
        if let Some(internal) = internal {
            self.add_choice(internal_kind, port, internal.plan, &internal.plan.backends, true);
        }
        if let Some(external) = external {
            if internal.is_none() || internal_kind == Kind::Internal {
                let plan = external.plan;
                self.add_choice(Kind::Service, port, plan, &plan.backends, false);
            }
            self.add_external(port, external.plan);
        }
        for site in &port.sites {
            match site.at {
                At::ClusterIp(address) => {
                    self.add_cluster_ip(internal_kind, port, site, address);
                }
                At::External(address) => self.add_external_address(port, site, address),
                At::Node => self.add_node_port(port, site),
            }
        }
    }

    /// The chain that chooses an endpoint; none without endpoints. `marks`: clients of the
    /// ClusterIP come here.
    fn add_choice(
        &mut self,
        kind: Kind,
        port: &Port<'_>,
        plan: &FrontendPlan,
        backends: &Backends,
        marks: bool,
    ) {
        let Backends::Endpoints(endpoints) = backends else { return };
        let mut rules = Vec::new();
        for site in port.sites.iter().filter(|_| marks) {
            if let At::ClusterIp(address) = site.at {
                rules.push(Rule::new(self.to(port, site, address), Fixed::MarkOthers));
            }
        }
        let chains: Vec<(SocketAddr, ChainName)> = endpoints
            .iter()
            .map(|&endpoint| (endpoint, self.add_endpoint(port, plan, endpoint)))
            .collect();
        if let Some(timeout_s) = plan.affinity_timeout_s {
            for (_, endpoint) in &chains {
                let known = Match::Remembered { endpoint: endpoint.clone(), timeout_s };
                rules.push(Rule::new([known], endpoint.clone()));
            }
        }
        let weights: Vec<u32> =
            endpoints.iter().map(|endpoint| weight(&plan.scheduling, endpoint)).collect();
        for ((_, endpoint), chance) in chains.into_iter().zip(chances(&weights)) {
            rules.push(Rule::new(chance.map(Match::Chance), endpoint));
        }
        self.added.nat.insert(ChainName::keyed(kind, &port.id), rules);
    }

    /// The chain of one endpoint. One that reaches itself would be answered past us: its source
    /// becomes the node's (hairpin).
    fn add_endpoint(
        &mut self,
        port: &Port<'_>,
        plan: &FrontendPlan,
        endpoint: SocketAddr,
    ) -> ChainName {
        let name = ChainName::keyed(Kind::Endpoint, &format!("{}{endpoint}", port.id));
        let itself = Match::Source(IpNet::from(endpoint.ip()));
        let remember = plan.affinity_timeout_s.map(|_| Match::Remember { endpoint: name.clone() });
        let matches = [Match::Protocol(port.protocol)].into_iter().chain(remember);
        let number = Some(endpoint.port()).filter(|&number| number != 0);
        let translate = Target::Translate { address: endpoint.ip(), port: number };
        let rules = vec![Rule::new([itself], Fixed::MarkMasquerade), Rule::new(matches, translate)];
        self.added.nat.insert(name.clone(), rules);
        name
    }

    /// What comes to node ports and external addresses (see the table in `plan::services`).
    fn add_external(&mut self, port: &Port<'_>, plan: &FrontendPlan) {
        let Backends::Endpoints(_) = &plan.backends else { return };
        let service = ChainName::keyed(Kind::Service, &port.id);
        let rules = match &plan.outside {
            None => vec![Rule::new([], Fixed::MarkMasquerade), Rule::new([], service)],
            Some(outside) => {
                let own = self.layout.own_pods.iter();
                let mut rules: Vec<Rule> =
                    own.map(|pods| Rule::new([Match::Source(*pods)], service.clone())).collect();
                rules.push(Rule::new([Match::FromThisNode], Fixed::MarkMasquerade));
                rules.push(Rule::new([Match::FromThisNode], service));
                // Untranslated, it is dropped in the filter table.
                let others = match outside {
                    Backends::Endpoints(_) => Target::Jump(ChainName::keyed(Kind::Local, &port.id)),
                    Backends::Reject | Backends::Drop => Target::Accept,
                };
                rules.push(Rule::new([], others));
                self.add_choice(Kind::Local, port, plan, outside, false);
                rules
            }
        };
        self.added.nat.insert(ChainName::keyed(Kind::External, &port.id), rules);
    }

    fn add_cluster_ip(&mut self, kind: Kind, port: &Port<'_>, site: &Site<'_>, address: IpAddr) {
        if let Backends::Endpoints(_) = &site.plan.backends {
            let chain = ChainName::keyed(kind, &port.id);
            let rule = Rule::new(self.named(port, site, address), chain);
            self.added.by_address.entry(tree::key_of(address)).or_default().push(rule);
        }
    }

    fn add_external_address(&mut self, port: &Port<'_>, site: &Site<'_>, address: IpAddr) {
        let firewall = site.plan.source_ranges.as_ref().map(|ranges| {
            let name = ChainName::keyed(Kind::Firewall, &port.id);
            self.add_firewall(port, site, address, &name, ranges);
            name
        });
        let target = match &site.plan.backends {
            Backends::Endpoints(_) => {
                let external = || ChainName::keyed(Kind::External, &port.id);
                Some(Target::Jump(firewall.unwrap_or_else(external)))
            }
            // A node port of the same number must not have it.
            _ => self.layout.addresses.contains(&address).then_some(Target::Accept),
        };
        if let Some(target) = target {
            let rule = Rule::new(self.named(port, site, address), target);
            self.added.by_address.entry(tree::key_of(address)).or_default().push(rule);
        }
    }

    /// Sources elsewhere leave the nat table untranslated, and the filter table drops them.
    fn add_firewall(
        &mut self,
        port: &Port<'_>,
        site: &Site<'_>,
        address: IpAddr,
        name: &ChainName,
        ranges: &BTreeSet<IpNet>,
    ) {
        let of_family =
            ranges.iter().filter(|range| Family::of(&range.addr()) == self.layout.family);
        let sources: Vec<Match> = of_family.map(|range| Match::Source(range.trunc())).collect();
        let rules = |served: Target, others: Target| -> Vec<Rule> {
            let served = sources.iter().map(|source| Rule::new([source.clone()], served.clone()));
            served.chain([Rule::new([], others)]).collect()
        };
        if let Backends::Endpoints(_) = &site.plan.backends {
            let external = Target::Jump(ChainName::keyed(Kind::External, &port.id));
            self.added.nat.insert(name.clone(), rules(external, Target::Accept));
        }
        self.added.filter.insert(name.clone(), rules(Target::Return, Target::Drop));
        self.added.firewall.push(Rule::new(self.to(port, site, address), name.clone()));
    }

    fn add_node_port(&mut self, port: &Port<'_>, site: &Site<'_>) {
        if let Backends::Endpoints(_) = &site.plan.backends {
            let ports = Match::Ports { first: site.first, last: site.last };
            let named = [Match::Protocol(port.protocol), ports, comment(port)];
            let rule = Rule::new(named, ChainName::keyed(Kind::External, &port.id));
            let ports = self.added.by_node_port.entry(port.protocol).or_default();
            ports.entry(u128::from(site.first)).or_default().push(rule);
        }
    }

    fn to(&self, port: &Port<'_>, site: &Site<'_>, address: IpAddr) -> Vec<Match> {
        to_port(address, port.protocol, site.first, site.last)
    }

    fn named(&self, port: &Port<'_>, site: &Site<'_>, address: IpAddr) -> Vec<Match> {
        let mut matches = self.to(port, site, address);
        matches.push(comment(port));
        matches
    }
}

fn to_port(address: IpAddr, protocol: Protocol, first: u16, last: u16) -> Vec<Match> {
    vec![
        Match::Destination(IpNet::from(address)),
        Match::Protocol(protocol),
        Match::Ports { first, last },
    ]
}

fn comment(port: &Port<'_>) -> Match {
    Match::Comment(Comment::new(&port.name))
}

fn weight(scheduling: &Scheduling, endpoint: &SocketAddr) -> u32 {
    match scheduling {
        Scheduling::Weighted(weights) => weights.get(endpoint).copied().unwrap_or(1).into(),
        // What iptables cannot do is done at random (`super::unsupported`).
        Scheduling::Random
        | Scheduling::LeastConnection
        | Scheduling::Maglev
        | Scheduling::Ipvs(..) => 1,
    }
}

/// The chance of each to be chosen once those before were not; the last is always.
fn chances(weights: &[u32]) -> Vec<Option<u32>> {
    let mut left: u64 = weights.iter().copied().map(u64::from).sum();
    let mut chances = Vec::new();
    for &weight in weights {
        let certain = left <= u64::from(weight);
        let chance = (u64::from(CHANCE_ONE) * u64::from(weight) + left / 2) / left.max(1);
        chances.push((!certain).then(|| u32::try_from(chance).unwrap_or(CHANCE_ONE)));
        left = left.saturating_sub(weight.into());
    }
    chances
}
