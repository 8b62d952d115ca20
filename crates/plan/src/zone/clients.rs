//! Whom the cluster's DNS answers beside pods with addresses of the cluster's ranges.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use model::{NamespacedName, World};

/// The Service whose endpoints are the API servers.
const API_SERVERS: (&str, &str) = ("default", "kubernetes");

/// The ranges of the machines that make up the cluster: addresses and pod ranges of nodes,
/// and the API servers, of which some are no nodes (in a cluster of `flatnet up` that is the host).
/// A function of the `World` (invariant 1).
pub fn clients(world: &World) -> BTreeSet<IpNet> {
    let mut ranges = BTreeSet::new();
    for node in world.nodes() {
        // Names of nodes stand among their addresses, and are passed over.
        let addresses = node.status.addresses.iter();
        ranges.extend(addresses.filter_map(|one| one.address.parse::<IpAddr>().ok()).map(single));
        ranges.extend(node.spec.pod_cidrs.iter().map(IpNet::trunc));
    }
    let (namespace, name) = API_SERVERS;
    for slice in world.slices_of(&NamespacedName::new(namespace, name)) {
        ranges.extend(slice.endpoints.iter().filter_map(|one| one.address()).map(single));
    }
    ranges
}

/// Whether a Service's endpoints are among the clients.
pub fn is_of_clients(service: &NamespacedName) -> bool {
    (service.namespace.as_str(), service.name.as_str()) == API_SERVERS
}

fn single(address: IpAddr) -> IpNet {
    IpNet::from(address.to_canonical())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use model::world::{Kind, List, Object};
    use model::{EndpointSlice, Node};
    use serde_json::json;

    use super::*;

    fn slice(of: &str, address: &str) -> Object {
        let slice: EndpointSlice = serde_json::from_value(json!({
            "metadata": {
                "name": of,
                "namespace": "default",
                "labels": {"kubernetes.io/service-name": of},
            },
            "addressType": "IPv4",
            "endpoints": [{"addresses": [address]}],
            "ports": [],
        }))
        .expect("a slice");
        Object::EndpointSlice(Arc::new(slice))
    }

    ///
    #[test]
    fn clients_are_nodes_their_pods_and_api_servers_and_no_endpoint_of_others() {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": "node1"},
            "spec": {"podCIDRs": ["10.244.1.0/24", "fd00:1::/64"]},
            "status": {"addresses": [
                {"type": "InternalIP", "address": "172.30.0.2"},
                {"type": "ExternalIP", "address": "2001:db8::2"},
                {"type": "Hostname", "address": "node1"},
            ]},
        }))
        .expect("a Node");
        let mut world = World::default();
        world.replace(List::new(Kind::Node, [Object::Node(Arc::new(node))]));
        let slices = vec![slice("kubernetes", "172.30.0.1"), slice("web", "198.51.100.7")];
        world.replace(List::new(Kind::EndpointSlice, slices));
        let expected = ["10.244.1.0/24", "172.30.0.1/32", "172.30.0.2/32"];
        let expected = expected.into_iter().chain(["2001:db8::2/128", "fd00:1::/64"]);
        let expected: BTreeSet<IpNet> = expected.map(|it| it.parse().expect("a range")).collect();
        assert_eq!(clients(&world), expected);
    }
}
