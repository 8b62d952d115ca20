//! What one Service adds to a table: a function of its plan alone, so that a Service that changes
//! is taken out and put in again without a look at the others.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use model::{Family, FlatSet};
use plan::services::{Backends, Frontend, FrontendPlan, RangeFrontend, RangeScope, ServicePlan};

use super::Role;
use super::language::{
    DataType, Datum, Field, Name, Set, SetSpec, Statement, Tuple, Type, Value, Verdict,
};
use super::layout::{
    ANSWERS_PING, CLUSTER_ADDRESSES, Class, HAIRPIN, Layout, REJECT, RangeView, Source, View,
    in_set,
};
use super::packed::Elements;
use super::slots::{Shares, shares};
use crate::ipvs;

/// Clients that one endpoint of a frontend with session affinity remembers. A client beyond them is
/// served, but gets a new endpoint each time.
pub const STICKY_CLIENTS_MAX: u32 = 65_536;

/// What belongs to one frontend in one view, or to none.
#[derive(Debug, Default)]
pub struct Fragment {
    /// The frontend, of which one Service can have it.
    pub claim: Option<Claim>,
    /// What is added.
    pub parts: Vec<Part>,
}

/// A frontend that only one Service can have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The key in the view's map of classes.
    Frontend(View, Tuple),
    /// The key in the view's interval maps.
    Range(RangeView, Tuple),
}

/// One addition to a table.
#[derive(Debug)]
pub enum Part {
    /// An element that no other Service has.
    Element(&'static str, Tuple, Datum),
    /// An element that several Services may have.
    Shared(&'static str, Tuple),
    /// The endpoints of a frontend, in a map of slots.
    Endpoints(&'static str, Tuple, Shares),
    /// The chain that all frontends of a view with as many slots go to.
    CountChain(View, u32, Source),
    /// A chain of this Service alone.
    Chain(Name, Vec<Vec<Statement>>),
    /// A set of this Service alone, with its elements.
    Set(Name, Set),
}

/// What a Service adds to the table.
pub fn fragments(layout: &Layout<'_>, plan: &ServicePlan) -> Vec<Fragment> {
    let mut writer = Writer { layout, fragments: Vec::new(), parts: Vec::new() };
    for (frontend, plan) in &plan.frontends {
        if frontend.family() == layout.family {
            writer.add_frontend(frontend, plan);
        }
    }
    for (range, plan) in &plan.ranges {
        if Family::of(&range.address) == layout.family {
            writer.add_range(range, plan);
        }
    }
    for &address in plan.answers_ping.iter().filter(|one| Family::of(one) == layout.family) {
        writer.parts.push(Part::Shared(ANSWERS_PING, vec![Value::Address(address)]));
    }
    if layout.role.translates() {
        for &address in plan.local_addresses.iter().filter(|one| Family::of(one) == layout.family) {
            writer.add_hairpin(address);
        }
    }
    writer.finish(None);
    writer.fragments
}

struct Writer<'a> {
    layout: &'a Layout<'a>,
    fragments: Vec<Fragment>,
    parts: Vec<Part>,
}

/// A frontend in one view.
struct Place<'a> {
    key: Tuple,
    protocol: u8,
    backends: &'a Backends,
    plan: &'a FrontendPlan,
    source: Source,
    /// Whether IPVS can choose its endpoints.
    is_by_ipvs: bool,
}

/// A chain of one frontend.
struct OwnChain<'a> {
    name: Name,
    protocol: u8,
    plan: &'a FrontendPlan,
    source: Source,
    /// Ports of ranges are kept: endpoints have none.
    keeps_port: bool,
}

impl Writer<'_> {
    fn finish(&mut self, claim: Option<Claim>) {
        let parts = std::mem::take(&mut self.parts);
        self.fragments.push(Fragment { claim, parts });
    }

    fn add_frontend(&mut self, frontend: &Frontend, plan: &FrontendPlan) {
        let number = frontend.protocol().number();
        let protocol = Value::Protocol(number);
        let is_by_ipvs = ipvs::is_possible(frontend, plan);
        let (key, all, outside) = match *frontend {
            Frontend::ClusterIp { address, port, .. } => {
                self.add_cluster_address(address);
                let key = vec![Value::Address(address), protocol, Value::Port(port)];
                (key, View::ClusterIp, None)
            }
            Frontend::External { address, port, .. } => {
                let key = vec![Value::Address(address), protocol, Value::Port(port)];
                (key, View::External, Some(View::ExternalOutside))
            }
            Frontend::NodePort { port, .. } => {
                (vec![protocol, Value::Port(port)], View::NodePort, Some(View::NodePortOutside))
            }
        };
        let source = match (outside, &plan.outside) {
            (None, _) => self.cluster_ip_source(),
            (Some(_), None) => Source::Masqueraded,
            (Some(view), Some(outside)) => {
                let (key, source) = (key.clone(), Source::Kept);
                let place =
                    Place { key, protocol: number, backends: outside, plan, source, is_by_ipvs };
                self.add_view(view, place);
                Source::KeptForPods
            }
        };
        let backends = &plan.backends;
        let place = Place { key, protocol: number, backends, plan, source, is_by_ipvs };
        self.add_view(all, place);
    }

    fn add_range(&mut self, range: &RangeFrontend, plan: &FrontendPlan) {
        let source = match (range.scope, &plan.outside) {
            (RangeScope::ClusterIp, _) => {
                self.add_cluster_address(range.address);
                self.cluster_ip_source()
            }
            (RangeScope::External, None) => Source::Masqueraded,
            (RangeScope::External, Some(outside)) => {
                self.add_range_view(RangeView::Outside, range, outside, plan, Source::Kept);
                Source::KeptForPods
            }
        };
        self.add_range_view(RangeView::All, range, &plan.backends, plan, source);
    }

    fn cluster_ip_source(&self) -> Source {
        if self.layout.config.masquerade_all { Source::Masqueraded } else { Source::KeptForPods }
    }

    fn add_cluster_address(&mut self, address: IpAddr) {
        self.parts.push(Part::Shared(CLUSTER_ADDRESSES, vec![Value::Address(address)]));
        // Nobody else claims it: an address has one Service.
        self.finish(None);
    }

    /// A pod of this node that is an endpoint may reach itself.
    fn add_hairpin(&mut self, address: IpAddr) {
        self.parts.push(Part::Shared(HAIRPIN, vec![Value::Address(address); 2]));
    }

    /// Slices of others may not name the node of their endpoints.
    fn add_hairpins(&mut self, endpoints: &FlatSet<SocketAddr>) {
        for address in endpoints.iter().map(SocketAddr::ip) {
            if self.layout.own_pods.iter().any(|own| own.contains(&address)) {
                self.add_hairpin(address);
            }
        }
    }

    fn add_view(&mut self, view: View, place: Place<'_>) {
        let role = self.layout.role;
        let is_elsewhere = role.leaves_to_another(place.protocol, place.plan);
        let class = match (role, place.backends) {
            (_, Backends::Endpoints(_)) if is_elsewhere => Class::Elsewhere,
            (_, Backends::Reject) if is_elsewhere => Class::Reject,
            (_, Backends::Drop) if is_elsewhere => Class::Drop,
            (Role::BeforeIpvs, Backends::Endpoints(endpoints)) if place.is_by_ipvs => {
                self.add_hairpins(endpoints);
                let (count, source) = (0, place.source);
                self.parts.push(Part::CountChain(view, count, source));
                Class::Endpoints { count, source }
            }
            _ => self.add_translation(view, &place),
        };
        let number = Datum::Values(vec![Value::Number(class.number())]);
        self.parts.push(Part::Element(view.classes(), place.key.clone(), number));
        self.finish(Some(Claim::Frontend(view, place.key)));
    }

    fn add_translation(&mut self, view: View, place: &Place<'_>) -> Class {
        let Place { ref key, protocol, backends, plan, source, .. } = *place;
        let count = match backends {
            Backends::Endpoints(endpoints) => {
                self.add_hairpins(endpoints);
                let shares = shares(endpoints, &plan.scheduling);
                let count = shares.values().sum();
                self.parts.push(Part::Endpoints(view.endpoints(), key.clone(), shares));
                Some(count)
            }
            Backends::Reject | Backends::Drop => None,
        };
        let sticky = count.is_some() && plan.affinity_timeout_s.is_some();
        if !sticky && plan.source_ranges.is_none() {
            return match (backends, count) {
                (Backends::Drop, _) => Class::Drop,
                (_, None) => Class::Reject,
                (_, Some(count)) => {
                    self.parts.push(Part::CountChain(view, count, source));
                    Class::Endpoints { count, source }
                }
            };
        }
        let name = own_name(view.own(), key);
        let own = OwnChain { name, protocol, plan, source, keeps_port: false };
        let mut rules = self.source_guard(&own);
        match (backends, count) {
            (Backends::Endpoints(endpoints), _) if sticky => {
                rules.extend(self.endpoint_chains(&own, endpoints));
            }
            (_, Some(count)) => rules.extend(self.layout.slot_rules(view, count, source)),
            (_, None) => {}
        }
        self.add_own_chain(view.own(), key.clone(), own.name, rules);
        match backends {
            Backends::Endpoints(_) => Class::Own,
            Backends::Reject => Class::OwnReject,
            Backends::Drop => Class::OwnDrop,
        }
    }

    /// Ports of a range have a chain of their own in any case: the key of a slot would need the
    /// range that the packet's port lies in.
    fn add_range_view(
        &mut self,
        view: RangeView,
        range: &RangeFrontend,
        backends: &Backends,
        plan: &FrontendPlan,
        source: Source,
    ) {
        let protocol = Value::Protocol(range.protocol.number());
        let start = [Value::Address(range.address), protocol];
        let key: Tuple =
            start.into_iter().chain([Value::PortRange(range.first, range.last)]).collect();
        let is_elsewhere = self.layout.role.leaves_to_another(range.protocol.number(), plan);
        let refusal = match backends {
            Backends::Reject => Some(Verdict::Goto(REJECT.into())),
            Backends::Drop => Some(Verdict::Drop),
            Backends::Endpoints(_) if is_elsewhere => Some(Verdict::Accept),
            Backends::Endpoints(_) => None,
        };
        if let Some(refusal) = refusal {
            let refusal = Datum::Verdict(refusal);
            self.parts.push(Part::Element(view.refusals(), key.clone(), refusal));
        }
        if !is_elsewhere {
            let name = own_name(view.chains(), &key);
            let protocol = range.protocol.number();
            let own = OwnChain { name, protocol, plan, source, keeps_port: true };
            let mut rules = self.source_guard(&own);
            if let Backends::Endpoints(endpoints) = backends {
                self.add_hairpins(endpoints);
                let ports = [Value::Port(range.first), Value::Port(range.last)];
                let frontend = start.into_iter().chain(ports).collect();
                let shares = shares(endpoints, &plan.scheduling);
                self.parts.push(Part::Endpoints(view.endpoints(), frontend, shares));
                rules.extend(self.endpoint_chains(&own, endpoints));
            }
            self.add_own_chain(view.chains(), key.clone(), own.name, rules);
        }
        self.finish(Some(Claim::Range(view, key)));
    }

    fn add_own_chain(
        &mut self,
        map: &'static str,
        key: Tuple,
        name: Name,
        rules: Vec<Vec<Statement>>,
    ) {
        self.parts.push(Part::Chain(name.clone(), rules));
        self.parts.push(Part::Element(map, key, Datum::Verdict(Verdict::Goto(name))));
    }

    /// Who is in none of the source ranges is dropped, whatever the backends are.
    fn source_guard(&mut self, own: &OwnChain<'_>) -> Vec<Vec<Statement>> {
        let Some(ranges) = &own.plan.source_ranges else { return vec![] };
        let family = self.layout.family;
        let ranges = ranges.iter().copied().filter(|range| Family::of(&range.addr()) == family);
        // The kernel wants no overlaps.
        let ranges = IpNet::aggregate(&ranges.collect());
        let name = format!("{}-sources", own.name);
        // Two parts, since the kernel keeps intervals of one part in another form.
        let spec = SetSpec {
            key: vec![Type::Protocol, Type::Network(family)],
            data: DataType::None,
            filled_by_packets_max: None,
        };
        let member =
            |range| (vec![Value::Protocol(own.protocol), Value::Network(range)], Datum::Member);
        let members = ranges.into_iter().map(member);
        self.parts.push(Part::Set(name.clone(), Set { spec, elements: members.collect() }));
        let key = vec![Field::Protocol, Field::SourceAddress];
        let stranger = Statement::NotIn { key, set: name };
        vec![vec![stranger, Statement::Verdict(Verdict::Drop)]]
    }

    /// A chain for each endpoint. With session affinity also a set of the clients that stay with
    /// it: a client that is in no set gets an endpoint by chance, and with an endpoint goes its
    /// set, so that its clients choose anew.
    fn endpoint_chains(
        &mut self,
        own: &OwnChain<'_>,
        endpoints: &FlatSet<SocketAddr>,
    ) -> Vec<Vec<Statement>> {
        let mut rules = Vec::new();
        let mut slots = Elements::new();
        let mut modulus: u32 = 0;
        for (endpoint, share) in shares(endpoints, &own.plan.scheduling) {
            let name =
                format!("{}-{}-{}", own.name, endpoint.ip(), endpoint.port()).replace(':', "_");
            let goto = Verdict::Goto(name.clone());
            if own.plan.affinity_timeout_s.is_some() {
                let known = in_set(vec![Field::SourceAddress], &name);
                rules.push(vec![known, Statement::Verdict(goto.clone())]);
            }
            for _ in 0..share {
                slots.insert(&vec![Value::Number(modulus)], &Datum::Verdict(goto.clone()));
                modulus += 1;
            }
            self.add_endpoint_chain(name, own, endpoint);
        }
        let spec = SetSpec {
            key: vec![Type::Number],
            data: DataType::Verdict,
            filled_by_packets_max: None,
        };
        let map = format!("{}-slots", own.name);
        self.parts.push(Part::Set(map.clone(), Set { spec, elements: slots }));
        rules.push(vec![Statement::VerdictOf { key: vec![Field::Random { modulus }], map }]);
        rules.push(vec![Statement::Verdict(Verdict::Drop)]);
        rules
    }

    /// The chain and the clients of one endpoint, under the same name.
    fn add_endpoint_chain(&mut self, name: Name, own: &OwnChain<'_>, endpoint: SocketAddr) {
        let translate = || {
            if own.keeps_port {
                return vec![Statement::TranslateAddress(endpoint.ip())];
            }
            vec![Statement::LoadEndpoint(endpoint), Statement::TranslateDestination]
        };
        let mut rules: Vec<Vec<Statement>> = self.layout.mark(own.source).into_iter().collect();
        if let Some(timeout_s) = own.plan.affinity_timeout_s {
            let spec = SetSpec {
                key: vec![Type::Address(self.layout.family)],
                data: DataType::None,
                filled_by_packets_max: Some(STICKY_CLIENTS_MAX),
            };
            let clients = Set { spec, elements: Elements::new() };
            self.parts.push(Part::Set(name.clone(), clients));
            let remember = Statement::Remember { set: name.clone(), timeout_s };
            // Without it: too many clients to remember, served all the same.
            rules.push([remember].into_iter().chain(translate()).collect());
        }
        rules.push(translate());
        self.parts.push(Part::Chain(name, rules));
    }
}

/// Such as `cluster-ip-own-10.96.0.7-tcp-80`, within the 255 bytes that the kernel allows; the
/// colons of IPv6 would need quotes in nft's own language.
fn own_name(prefix: &str, key: &Tuple) -> Name {
    let parts: Vec<String> = key.iter().map(Value::to_string).collect();
    format!("{prefix}-{}", parts.join("-").replace(':', "_"))
}
