//! The expected state of a node in short: what it does with each frontend and each peer, by name.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use model::Overlay;
use plan::network::NetworkPlan;
use plan::services::{Backends, Frontend, FrontendPlan};
use plan::{Desired, Finding};

use super::names::Names;

/// Prints what a node shall hold, one fact a line.
pub fn print(desired: &Desired, findings: &[Finding], names: &Names) -> Vec<String> {
    let mut lines = Vec::new();
    for (key, service) in &desired.services {
        for (frontend, plan) in &service.frontends {
            lines.push(frontend_line(&key.to_string(), frontend, plan, names));
        }
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

fn frontend_line(service: &str, frontend: &Frontend, plan: &FrontendPlan, names: &Names) -> String {
    let place = match frontend {
        Frontend::ClusterIp { protocol, port, .. } => format!("{service} {port}/{protocol}"),
        Frontend::External { address, protocol, port } => {
            format!("{service} at {address} {port}/{protocol}")
        }
        Frontend::NodePort { protocol, port, .. } => {
            format!("{service} node port {port}/{protocol}")
        }
    };
    let mut line = format!("{place} -> {}", backends(&plan.backends, names));
    if let Some(outside) = &plan.outside {
        line.push_str(&format!("; from outside -> {}", backends(outside, names)));
    }
    if let Some(timeout_s) = plan.affinity_timeout_s {
        line.push_str(&format!("; a client stays for {timeout_s} s"));
    }
    line
}

fn backends(backends: &Backends, names: &Names) -> String {
    let list = |endpoints: &BTreeSet<SocketAddr>| -> String {
        let printed: Vec<String> = endpoints.iter().map(|address| names.print(*address)).collect();
        printed.join(", ")
    };
    match backends {
        Backends::Endpoints(endpoints) => list(endpoints),
        Backends::Reject => "reject".into(),
        Backends::Drop => "drop".into(),
    }
}
