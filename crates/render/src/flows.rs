//! Where tracked flows of UDP may lead, by all Services of a plan. Changes name the flows that go
//! with them (each backend's diff); a process that died between a change and that left flows that no
//! change names any more. So a new process compares all of them once (R-18, invariant 14).
//!
//! What is not seen by it: flows to an address of a load balancer that went in that very moment,
//! which nobody knows any more, and flows whose source would be treated in another way now.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use model::{ClusterConfig, Family, Protocol, ServiceBackend};
use plan::services::{Frontend, FrontendPlan, ServicePlan};
use plan::{Desired, NodeFacts};

use crate::nft::StaleFlows;

/// All tracked flows of UDP to Services that lead elsewhere than they may, by family. With Services
/// in eBPF, whose programs judge their flows packet by packet, those to frontends with source
/// ranges. A pure function of its arguments.
pub fn stray(desired: &Desired, config: &ClusterConfig, facts: &NodeFacts) -> Vec<StaleFlows> {
    let has_all = config.service_backend != ServiceBackend::Ebpf;
    let networks = || config.service_cidrs.iter().chain(&config.external_ip_ranges);
    let families: BTreeSet<Family> =
        config.service_cidrs.iter().map(|range| Family::of(&range.addr())).collect();
    let of_family = |family| {
        let is_own = |range: &&IpNet| Family::of(&range.addr()) == family;
        let mut flows = StaleFlows::none(family);
        let nodes: Vec<IpAddr> = node_addresses(family, config, facts).collect();
        if has_all {
            flows.networks = networks().filter(is_own).copied().collect();
            let (first, last) = config.node_port_range;
            let nodes = nodes.iter();
            flows.ranges = nodes.map(|node| ((*node, first, last), [*node].into())).collect();
        }
        let is_judged = |plan: &FrontendPlan| has_all || plan.source_ranges.is_some();
        for plan in desired.services.values() {
            add(&mut flows, plan, &nodes, is_judged);
        }
        flows
    };
    families.into_iter().map(of_family).filter(|flows| !flows.is_none()).collect()
}

fn node_addresses<'a>(
    family: Family,
    config: &'a ClusterConfig,
    facts: &'a NodeFacts,
) -> impl Iterator<Item = IpAddr> + 'a {
    let own = facts.addresses.iter().copied();
    own.filter(move |one| Family::of(one) == family && config.has_node_ports_at(*one))
}

fn add(
    flows: &mut StaleFlows,
    plan: &ServicePlan,
    nodes: &[IpAddr],
    is_judged: impl Fn(&FrontendPlan) -> bool,
) {
    let family = flows.family;
    let is_own =
        |frontend: &Frontend| frontend.family() == family && frontend.protocol() == Protocol::Udp;
    let frontends = plan.frontends.iter();
    let frontends = frontends.filter(|(frontend, plan)| is_own(frontend) && is_judged(plan));
    for (frontend, plan) in frontends {
        let places: Vec<SocketAddr> = match *frontend {
            Frontend::ClusterIp { address, port, .. }
            | Frontend::External { address, port, .. } => {
                vec![SocketAddr::new(address, port)]
            }
            Frontend::NodePort { port, .. } => {
                nodes.iter().map(|node| SocketAddr::new(*node, port)).collect()
            }
        };
        for place in places {
            let allowed = endpoints(plan);
            // Without endpoints it may be somebody's own, such as DNS at its address.
            let own = allowed.is_empty().then_some(place);
            // What several Services claim is the first one's by one backend's rules or another's.
            flows.frontends.entry(place).or_default().extend(allowed.into_iter().chain(own));
        }
    }
    for (range, plan) in plan.ranges.iter().filter(|(_, plan)| is_judged(plan)) {
        if Family::of(&range.address) == family && range.protocol == Protocol::Udp {
            let allowed = endpoints(plan).into_iter().map(|endpoint| endpoint.ip());
            let place = flows.ranges.entry((range.address, range.first, range.last)).or_default();
            place.extend(allowed.chain([range.address]));
        }
    }
}

/// Whatever a client may get at a frontend, wherever it is.
fn endpoints(plan: &FrontendPlan) -> BTreeSet<SocketAddr> {
    let outside = plan.outside.iter().flat_map(|outside| outside.endpoints());
    plan.backends.endpoints().chain(outside).copied().collect()
}

#[cfg(test)]
mod tests {
    use model::NamespacedName;
    use plan::services::Backends;

    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn plan(protocol: Protocol, backends: Backends, outside: Option<Backends>) -> ServicePlan {
        let address = "10.96.0.20".parse().expect("an address");
        let cluster_ip = Frontend::ClusterIp { address, protocol, port: 53 };
        let node_port = Frontend::NodePort { family: Family::V4, protocol, port: 30_053 };
        let plan = FrontendPlan { outside, ..FrontendPlan::new(backends) };
        ServicePlan {
            frontends: [(cluster_ip, plan.clone()), (node_port, plan)].into_iter().collect(),
            ..ServicePlan::default()
        }
    }

    fn config() -> ClusterConfig {
        ClusterConfig {
            service_cidrs: vec!["10.96.0.0/16".parse().expect("a range")],
            ..ClusterConfig::default()
        }
    }

    fn judged(services: Vec<ServicePlan>, config: &ClusterConfig) -> Vec<StaleFlows> {
        let named = services.into_iter().enumerate();
        let named = named
            .map(|(number, plan)| (NamespacedName::new("default", format!("web-{number}")), plan));
        let facts = NodeFacts { addresses: vec![at("172.30.0.2:1").ip()], ..NodeFacts::default() };
        stray(&Desired { services: named.collect(), ..Desired::default() }, config, &facts)
    }

    #[test]
    fn flows_may_lead_to_whatever_any_client_may_get() {
        let own = Backends::Endpoints([at("10.244.1.9:53")].into());
        let all = Backends::Endpoints([at("10.244.1.9:53"), at("10.244.2.9:53")].into());
        let flows = &judged(vec![plan(Protocol::Udp, own, Some(all))], &config())[0];
        let allowed: BTreeSet<SocketAddr> = [at("10.244.1.9:53"), at("10.244.2.9:53")].into();
        for frontend in ["10.96.0.20:53", "172.30.0.2:30053"] {
            assert_eq!(flows.frontends[&at(frontend)], allowed, "{frontend}");
        }
        assert_eq!(flows.networks, config().service_cidrs);
        let node = at("172.30.0.2:1").ip();
        assert_eq!(flows.ranges[&(node, 30_000, 32_767)], [node].into(), "the node's own");
    }

    #[test]
    fn what_nobody_leads_anywhere_may_be_somebodys_own() {
        let flows = judged(vec![plan(Protocol::Udp, Backends::Reject, None)], &config());
        let place = at("10.96.0.20:53");
        assert_eq!(flows[0].frontends[&place], [place].into());
    }

    #[test]
    fn other_protocols_are_not_judged() {
        let tcp = plan(Protocol::Tcp, Backends::Reject, None);
        assert!(judged(vec![tcp], &config())[0].frontends.is_empty());
    }

    #[test]
    fn of_services_in_ebpf_those_with_source_ranges_are_judged() {
        let ebpf = ClusterConfig { service_backend: ServiceBackend::Ebpf, ..config() };
        let endpoint = at("10.244.1.9:53");
        let mut service = plan(Protocol::Udp, Backends::Endpoints([endpoint].into()), None);
        assert_eq!(judged(vec![service.clone()], &ebpf), []);
        let external = |last| Frontend::External {
            address: [192, 0, 2, last].into(),
            protocol: Protocol::Udp,
            port: 53,
        };
        let open = FrontendPlan::new(Backends::Endpoints([endpoint].into()));
        let nobody = FrontendPlan { source_ranges: Some(BTreeSet::new()), ..open.clone() };
        service.frontends.extend([(external(1), open), (external(2), nobody)]);
        let flows = StaleFlows {
            frontends: [(at("192.0.2.2:53"), [endpoint].into())].into(),
            ..StaleFlows::none(Family::V4)
        };
        assert_eq!(judged(vec![service], &ebpf), [flows]);
    }
}
