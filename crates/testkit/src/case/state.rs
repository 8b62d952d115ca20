//! The expected state of a node in short: what it does with each frontend and each peer, by name.

use std::collections::BTreeSet;
use std::net::SocketAddr;

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
    if let Some(network) = &desired.network {
        let peers: Vec<&str> = network.peers.keys().map(String::as_str).collect();
        let way = if network.tunnel.is_some() { "tunnels" } else { "routes" };
        let peers = if peers.is_empty() { "none".into() } else { peers.join(", ") };
        lines.push(format!("{way} to {peers}, MTU {}", network.mtu));
    }
    let found = findings.iter().map(|one| format!("finding: {}: {}", one.about, one.message));
    lines.extend(found);
    lines
}

fn frontend_line(service: &str, frontend: &Frontend, plan: &FrontendPlan, names: &Names) -> String {
    let place = match frontend {
        Frontend::ClusterIp { protocol, port, .. } => format!("{service} {port}/{protocol}"),
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
