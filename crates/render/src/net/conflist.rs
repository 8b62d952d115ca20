//! The CNI network configuration list of a node: how the agent tells the plugin what it planned.

use std::path::Path;

use model::layout;
use plan::network::NetworkPlan;
use serde_json::{Value, json};

/// The version of the CNI specification that the list is written in: the newest that every
/// runtime in use today understands.
const CNI_VERSION: &str = "1.0.0";
/// The versions that runtimes may choose from which know this key: GC and STATUS came with 1.1.0.
const CNI_VERSIONS: [&str; 2] = [CNI_VERSION, "1.1.0"];

/// The text of the configuration list. The same plan gives the same bytes.
pub fn conflist(plan: &NetworkPlan) -> String {
    let node_ranges = || plan.pod_ranges.iter().filter(|range| !plan.blocks.contains(range));
    let ranges: Vec<Value> = node_ranges()
        .zip(&plan.gateways)
        .map(|(range, gateway)| json!([{ "subnet": range, "gateway": gateway.addr() }]))
        .collect();
    let routes: Vec<Value> = node_ranges()
        .map(|range| json!({ "dst": if range.addr().is_ipv4() { "0.0.0.0/0" } else { "::/0" } }))
        .collect();
    let mut ipam = json!({ "type": "host-local", "ranges": ranges, "routes": routes });
    if plan.agent_chooses_addresses {
        let socket = Path::new(layout::RUN_DIRECTORY).join(layout::AGENT_SOCKET);
        // Only our plugin knows the key.
        ipam["type"] = layout::CNI_PLUGIN.into();
        ipam["agentSocket"] = json!(socket);
    }
    let list = json!({
        "cniVersion": CNI_VERSION,
        "cniVersions": CNI_VERSIONS,
        "name": layout::CNI_NETWORK,
        "plugins": [{
            "type": layout::CNI_PLUGIN,
            "capabilities": { "portMappings": true, "bandwidth": true, "ips": true, "mac": true },
            "bridge": layout::BRIDGE,
            "mtu": plan.mtu,
            "ipam": ipam,
        }],
    });
    format!("{list:#}\n")
}
