//! What the containers and the token may do.

use std::fs;

use anyhow::{Context, Result, ensure};

use super::kubelet::{NAMESPACE, ask_with_token};
use super::machine::NAME;
use super::world::{EBPF, World};

/// Capability numbers (linux/capability.h).
const NET_BIND_SERVICE: u64 = 10;
const NET_ADMIN: u64 = 12;
const PERFMON: u64 = 38;
const BPF: u64 = 39;

pub fn processes(world: &World) -> Result<()> {
    let pods = [world.pod.borrow(), world.dns.borrow()];
    let process = |container: &str| {
        let number = pods.iter().find_map(|pod| pod.process(container).ok());
        number.with_context(|| format!("{container} does not run"))
    };
    let of_agent = match world.backend {
        EBPF => 1 << NET_ADMIN | 1 << BPF | 1 << PERFMON,
        _ => 1 << NET_ADMIN,
    };
    // The worker has given up its one capability once it has port 53.
    let rows = [("agent", of_agent, of_agent), ("dns", 0, 1 << NET_BIND_SERVICE)];
    for (container, effective, bounding) in rows {
        let status = fs::read_to_string(format!("/proc/{}/status", process(container)?))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.map(str::trim).with_context(|| format!("no {name}"))
        };
        let capabilities =
            |name: &str| Ok::<_, anyhow::Error>(u64::from_str_radix(field(name)?, 16)?);
        ensure!(capabilities("CapEff:")? == effective, "{container}: {status}");
        ensure!(capabilities("CapPrm:")? == effective, "{container}: {status}");
        ensure!(capabilities("CapBnd:")? & !bounding == 0, "{container}: {status}");
        ensure!(field("NoNewPrivs:")? == "1", "{container}: {status}");
    }
    // What anybody may send questions to sees neither the token nor the node's keys.
    let sees = |container: &str, path: &str| -> Result<bool> {
        Ok(fs::exists(format!("/proc/{}/root{path}", process(container)?))?)
    };
    for path in ["/var/run/secrets/kubernetes.io/serviceaccount/token", "/var/lib/cni"] {
        ensure!(sees("agent", path)?, "{path}: else the next line would prove nothing");
        ensure!(!sees("dns", path)?, "the DNS worker sees {path}");
    }
    ensure!(!sees("dns", "/var/lib/flatnet/wireguard")?, "the DNS worker sees the keys");
    Ok(())
}

/// Requests and what the API server answers to each.
pub fn token(world: &World) -> Result<()> {
    let own = format!("/api/v1/nodes/{NAME}");
    let status = format!("{own}/status");
    let secrets = format!("/api/v1/namespaces/{NAMESPACE}/secrets");
    let account = format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts/flatnet/token");
    let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    let daemon_set = format!("/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/flatnet");
    let config = format!("/api/v1/namespaces/{NAMESPACE}/configmaps/flatnet");
    let rows = [
        // What it does is allowed: the others are not refused for another reason.
        ("GET", own.as_str(), 200),
        ("GET", "/api/v1/nodes", 200),
        ("GET", "/api/v1/services", 200),
        ("GET", "/apis/discovery.k8s.io/v1/endpointslices", 200),
        // Cluster DNS knows pods by their addresses, as CoreDNS does.
        ("GET", "/api/v1/pods", 200),
        // And which namespaces have names may follow from their labels.
        ("GET", "/api/v1/namespaces", 200),
        ("PATCH", &status, 200),
        ("PATCH", &own, 403),
        ("PUT", &own, 403),
        ("DELETE", &own, 403),
        ("PUT", &status, 403),
        ("POST", "/api/v1/nodes", 403),
        ("GET", "/api/v1/secrets", 403),
        ("GET", &secrets, 403),
        ("POST", &secrets, 403),
        ("POST", &account, 403),
        ("GET", "/api/v1/namespaces/default/pods/any", 403),
        ("DELETE", "/api/v1/namespaces/default/pods/any", 403),
        ("POST", "/api/v1/namespaces/default/pods", 403),
        ("GET", &config, 403),
        ("PATCH", &config, 403),
        ("POST", "/api/v1/namespaces/default/services", 403),
        ("PATCH", "/api/v1/namespaces/default/services/kubernetes", 403),
        ("DELETE", "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes", 403),
        ("GET", "/api/v1/events", 403),
        ("DELETE", "/api/v1/namespaces/default/events", 403),
        ("GET", &daemon_set, 403),
        ("DELETE", &daemon_set, 403),
        ("GET", roles, 403),
        ("POST", roles, 403),
        ("PATCH", "/apis/rbac.authorization.k8s.io/v1/clusterroles/flatnet", 403),
    ];
    for (method, path, expected) in rows {
        let request = (method, path, "{}");
        let code = ask_with_token(&world.cluster, &world.machine, &world.server, request)?;
        ensure!(code == expected, "{method} {path}: {code} is not {expected}");
    }
    Ok(())
}
