//! The addresses at which clients outside the cluster find a Service, and who may use them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use model::{ClusterConfig, Family, Service};

use super::Findings;
use super::endpoints::fault_of;
use crate::NodeFacts;

/// Addresses, and the clients that each is for; `None`: everybody.
pub(super) type ExternalAddresses = BTreeMap<IpAddr, Option<BTreeSet<IpNet>>>;

/// The addresses of load balancers and the allowed `externalIPs`, of the families that the Service
/// has. Source ranges are for load balancers alone.
pub(super) fn addresses(
    service: &Service,
    families: &BTreeSet<Family>,
    config: &ClusterConfig,
    facts: &NodeFacts,
    findings: &mut Findings,
) -> ExternalAddresses {
    let mut found = ExternalAddresses::new();
    for text in &service.spec.external_ips {
        let allowed = |address: IpAddr| {
            let mut ranges = config.external_ip_ranges.iter();
            if ranges.any(|range| range.contains(&address)) {
                Ok(())
            } else {
                Err("no range of the cluster's externalIpRanges holds it; ask who runs the cluster")
            }
        };
        match usable(text, families, config).and_then(|one| allowed(one).map(|()| one)) {
            Ok(address) => {
                found.insert(address, None);
            }
            Err(reason) => left_out(service, "externalIPs", text, reason, findings),
        }
    }
    let clients = source_ranges(service, findings);
    for text in service.load_balancer_vips() {
        match usable(text, families, config) {
            Ok(address) => {
                let clients = clients.as_ref().map(|clients| admitted(clients, address, facts));
                found.insert(address, clients);
            }
            Err(reason) => {
                left_out(service, "status.loadBalancer.ingress", text, reason, findings);
            }
        }
    }
    found
}

fn usable(
    text: &str,
    families: &BTreeSet<Family>,
    config: &ClusterConfig,
) -> Result<IpAddr, &'static str> {
    let address: IpAddr = text.parse().map_err(|_| "it is no address")?;
    if fault_of(address).is_some() {
        return Err("it is a loopback, link-local, unspecified or multicast address");
    }
    // Such a Service would take over pods or other Services.
    if config.is_pod_address(address)
        || config.service_cidrs.iter().any(|range| range.contains(&address))
    {
        return Err("it lies in the cluster's range of pods or of Services");
    }
    if !families.contains(&Family::of(&address)) {
        return Err("the Service has no ClusterIP of that family, and so no endpoints for it");
    }
    Ok(address)
}

fn left_out(service: &Service, field: &str, text: &str, reason: &str, findings: &mut Findings) {
    let message = format!("{field} {text:?} is left out: {reason}");
    findings.add(format!("Service {}", service.metadata.key()), message);
}

/// The clients that `loadBalancerSourceRanges` names. A text that is no range admits nobody: when
/// all are wrong, the addresses are closed (invariant 7).
fn source_ranges(service: &Service, findings: &mut Findings) -> Option<BTreeSet<IpNet>> {
    let texts = &service.spec.load_balancer_source_ranges;
    if texts.is_empty() {
        return None;
    }
    let mut ranges = BTreeSet::new();
    for text in texts {
        match text.trim().parse::<IpNet>() {
            Ok(range) => {
                ranges.insert(range.trunc());
            }
            Err(_) => {
                let reason = "it is no range such as 192.0.2.0/24, and admits nobody";
                left_out(service, "loadBalancerSourceRanges", text, reason, findings);
            }
        }
    }
    Some(ranges)
}

/// The clients of one load balancer's address. A node that may use it may also come from the
/// address itself: some load balancers put it on nodes, whose own packets then have it as source.
fn admitted(clients: &BTreeSet<IpNet>, address: IpAddr, facts: &NodeFacts) -> BTreeSet<IpNet> {
    let family = Family::of(&address);
    let mut own = facts.addresses.iter().filter(|own| Family::of(own) == family);
    let node_may = own.any(|own| clients.iter().any(|range| range.contains(own)));
    let of_family = clients.iter().filter(|range| Family::of(&range.addr()) == family).copied();
    of_family.chain(node_may.then(|| IpNet::from(address))).collect()
}
