//! The expected state of a node in short: what it does with each frontend and each peer, by name.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use model::{Family, FlatSet, Overlay};
use plan::network::NetworkPlan;
use plan::services::{Backends, Frontend, FrontendPlan, RangeFrontend, RangeScope, Scheduling};
use plan::{Desired, Finding};

use super::names::Names;

/// Prints what a node shall hold, one fact a line.
pub fn print(desired: &Desired, findings: &[Finding], names: &Names) -> Vec<String> {
    let mut lines = Vec::new();
    for (key, service) in &desired.services {
        let key = key.to_string();
        for (frontend, plan) in &service.frontends {
            lines.push(format!("{key} {}", frontend_line(&place(frontend, names), plan, names)));
        }
        for (range, plan) in &service.ranges {
            let RangeFrontend { address, protocol, first, last, .. } = range;
            let at = match range.scope {
                RangeScope::ClusterIp => family_of(*address, names).to_string(),
                RangeScope::External => format!("at {} ", names.print_address(*address)),
            };
            let place = format!("{at}{first}-{last}/{protocol}");
            lines.push(format!("{key} {}", frontend_line(&place, plan, names)));
        }
        lines.extend(
            service.answers_ping.iter().map(|address| {
                format!("{key} {}answers echo requests", family_of(*address, names))
            }),
        );
        lines.extend(service.health_check.iter().map(|check| {
            format!("{key} health at port {}: {} endpoints here", check.port, check.local_endpoints)
        }));
    }
    lines.extend(desired.network.as_ref().map(network_line));
    let found = findings.iter().map(|one| format!("finding: {}: {}", one.about, one.message));
    lines.extend(found);
    lines
}

/// The peers by the way to them, such as `tunnels to node2; routes to node3, MTU 1450`.
fn network_line(network: &NetworkPlan) -> String {
    let mut ways: BTreeMap<Overlay, Vec<&str>> = BTreeMap::new();
    for (name, peer) in &network.peers {
        ways.entry(peer.path.overlay()).or_default().push(name);
    }
    let way = |(overlay, peers): (&Overlay, &Vec<&str>)| {
        let word = match overlay {
            Overlay::Vxlan => "tunnels",
            Overlay::HostGw => "routes",
            Overlay::Ipip => "IP-in-IP tunnels",
            Overlay::Wireguard => "encrypted tunnels",
            Overlay::Native => "nothing of ours",
        };
        format!("{word} to {}", peers.join(", "))
    };
    let mut words: Vec<String> = ways.iter().map(way).collect();
    if words.is_empty() {
        words.push("no ways to other nodes".into());
    }
    format!("{}, MTU {}", words.join("; "), network.mtu)
}

fn place(frontend: &Frontend, names: &Names) -> String {
    match frontend {
        Frontend::ClusterIp { address, protocol, port } => {
            format!("{}{port}/{protocol}", family_of(*address, names))
        }
        Frontend::External { address, protocol, port } => {
            format!("at {} {port}/{protocol}", names.print_address(*address))
        }
        Frontend::NodePort { family, protocol, port } => {
            let family = if *family == names.first_family() { "" } else { family_suffix(*family) };
            format!("node port {family}{port}/{protocol}")
        }
    }
}

/// Nothing for the first family.
fn family_of(address: IpAddr, names: &Names) -> &'static str {
    match Family::of(&address) {
        family if family == names.first_family() => "",
        family => family_suffix(family),
    }
}

fn family_suffix(family: Family) -> &'static str {
    match family {
        Family::V4 => "v4 ",
        Family::V6 => "v6 ",
    }
}

fn frontend_line(place: &str, plan: &FrontendPlan, names: &Names) -> String {
    let mut line = format!("{place} -> {}", backends(&plan.backends, names));
    if let Some(outside) = &plan.outside {
        line.push_str(&format!("; from outside -> {}", backends(outside, names)));
    }
    if let Some(timeout_s) = plan.affinity_timeout_s {
        line.push_str(&format!("; a client stays for {timeout_s} s"));
    }
    if let Some(ranges) = &plan.source_ranges {
        let ranges: Vec<String> = ranges.iter().map(ToString::to_string).collect();
        let whom = if ranges.is_empty() { "nobody".to_string() } else { ranges.join(", ") };
        line.push_str(&format!("; only for {whom}"));
    }
    match &plan.scheduling {
        Scheduling::Random => {}
        Scheduling::LeastConnection => line.push_str("; by least connections"),
        Scheduling::Maglev => line.push_str("; by Maglev"),
        Scheduling::Ipvs(scheduler, _) => line.push_str(&format!("; by {scheduler}")),
        Scheduling::Weighted(weights) => {
            let weight = |(address, weight): (&SocketAddr, &u16)| {
                format!("{} {weight}", names.print(*address))
            };
            let weights: Vec<String> = weights.iter().map(weight).collect();
            line.push_str(&format!("; weights {}", weights.join(", ")));
        }
    }
    line
}

fn backends(backends: &Backends, names: &Names) -> String {
    let list = |endpoints: &FlatSet<SocketAddr>| -> String {
        let printed: Vec<String> = endpoints.iter().map(|address| names.print(*address)).collect();
        printed.join(", ")
    };
    match backends {
        Backends::Endpoints(endpoints) => list(endpoints),
        Backends::Reject => "reject".into(),
        Backends::Drop => "drop".into(),
    }
}
