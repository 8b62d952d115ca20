//! Packets and their meaning, by tables.

use std::sync::Arc;

use super::*;
use model::Protocol;
use model::kinds::{
    Conditions, Endpoint as SliceEndpoint, EndpointPort, EndpointSlice, SERVICE_NAME_LABEL,
    ServiceType,
};
use model::world::Object;

const NODE_ADDRESSES: [IpAddr; 1] = [IpAddr::V4(std::net::Ipv4Addr::new(172, 30, 0, 2))];

/// A node port Service and endpoints given as (address, node, ready, serving, terminating).
fn world(
    external: TrafficPolicy,
    internal: TrafficPolicy,
    endpoints: &[(&str, &str, bool, bool, bool)],
) -> World {
    let mut service = Service::default();
    service.metadata.namespace = "shop".into();
    service.metadata.name = "web".into();
    service.spec.kind = ServiceType::NodePort;
    service.spec.cluster_ips = vec!["10.96.0.20".into()];
    service.spec.external_traffic_policy = external;
    service.spec.internal_traffic_policy = internal;
    service.spec.ports = vec![ServicePort { port: 80, node_port: 30080, ..ServicePort::default() }];
    let mut slice = EndpointSlice::default();
    slice.metadata.namespace = "shop".into();
    slice.metadata.name = "web-1".into();
    slice.metadata.labels.insert(SERVICE_NAME_LABEL.into(), "web".into());
    slice.address_type = "IPv4".into();
    slice.ports = vec![EndpointPort { port: Some(8080), ..EndpointPort::default() }];
    for (address, node, ready, serving, terminating) in endpoints {
        slice.endpoints.push(SliceEndpoint {
            addresses: vec![address.to_string()],
            node_name: node.to_string(),
            conditions: Conditions {
                ready: Some(*ready),
                serving: Some(*serving),
                terminating: Some(*terminating),
            },
            ..SliceEndpoint::default()
        });
    }
    let mut world = World::default();
    world.set(Object::Service(Arc::new(service)));
    world.set(Object::EndpointSlice(Arc::new(slice)));
    world
}

fn ask(world: &World, entry: Entry, source: &str, destination: &str) -> String {
    let packet = Packet {
        entry,
        source: format!("{source}:40000").parse().expect("a source"),
        destination: destination.parse().expect("a destination"),
        protocol: Protocol::Tcp,
    };
    let node = Node { name: "node1", addresses: &NODE_ADDRESSES };
    verdict(world, &ClusterConfig::default(), node, &packet).to_string()
}

const READY_HERE: (&str, &str, bool, bool, bool) = ("10.244.1.5", "node1", true, true, false);
const READY_THERE: (&str, &str, bool, bool, bool) = ("10.244.2.5", "node2", true, true, false);
const LEAVING_HERE: (&str, &str, bool, bool, bool) = ("10.244.1.6", "node1", false, true, true);

#[test]
fn who_is_masqueraded_follows_client_and_policy() {
    use TrafficPolicy::{Cluster, Local};
    let both = "10.244.1.5:8080, 10.244.2.5:8080";
    let here = "10.244.1.5:8080";
    let rows = [
        (Cluster, Cluster, Entry::Pod, "10.244.1.9", "10.96.0.20:80", both, ""),
        (Cluster, Cluster, Entry::Pod, "10.244.1.9", "172.30.0.2:30080", both, ", masqueraded"),
        (Cluster, Cluster, Entry::Local, "172.30.0.2", "10.96.0.20:80", both, ", masqueraded"),
        (Cluster, Cluster, Entry::Uplink, "192.0.2.1", "10.96.0.20:80", both, ", masqueraded"),
        (Cluster, Cluster, Entry::Uplink, "192.0.2.1", "172.30.0.2:30080", both, ", masqueraded"),
        (Local, Cluster, Entry::Uplink, "192.0.2.1", "172.30.0.2:30080", here, ""),
        (Local, Cluster, Entry::Pod, "10.244.1.9", "172.30.0.2:30080", both, ""),
        (Local, Cluster, Entry::Local, "172.30.0.2", "172.30.0.2:30080", both, ", masqueraded"),
        (Cluster, Local, Entry::Pod, "10.244.1.9", "10.96.0.20:80", here, ""),
        (Cluster, Local, Entry::Local, "172.30.0.2", "10.96.0.20:80", here, ", masqueraded"),
    ];
    for (external, internal, entry, from, to, destinations, source) in rows {
        let world = world(external, internal, &[READY_HERE, READY_THERE]);
        let expected = format!("pass to {destinations}{source}");
        assert_eq!(ask(&world, entry, from, to), expected, "{entry:?} {from} to {to}");
    }
}

#[test]
fn terminating_endpoints_serve_only_without_ready_ones() {
    use TrafficPolicy::{Cluster, Local};
    let leaving = [LEAVING_HERE];
    let mixed = [LEAVING_HERE, READY_THERE];
    let pod = |world: &World| ask(world, Entry::Pod, "10.244.1.9", "10.96.0.20:80");
    assert_eq!(pod(&world(Cluster, Cluster, &leaving)), "pass to 10.244.1.6:8080");
    assert_eq!(pod(&world(Cluster, Cluster, &mixed)), "pass to 10.244.2.5:8080");
    assert_eq!(pod(&world(Cluster, Local, &mixed)), "pass to 10.244.1.6:8080");
}

#[test]
fn nothing_here_drops_and_nothing_anywhere_refuses() {
    use TrafficPolicy::{Cluster, Local};
    let pod = |world: &World| ask(world, Entry::Pod, "10.244.1.9", "10.96.0.20:80");
    assert_eq!(pod(&world(Cluster, Local, &[READY_THERE])), "drop");
    assert_eq!(pod(&world(Cluster, Local, &[])), "reject");
    assert_eq!(pod(&world(Cluster, Cluster, &[])), "reject");
}

#[test]
fn addresses_outside_the_api_pass_or_stop() {
    let world = world(TrafficPolicy::Cluster, TrafficPolicy::Cluster, &[READY_HERE]);
    let rows = [
        (Entry::Pod, "10.244.1.9", "10.96.0.20:81", "reject"),
        (Entry::Pod, "10.244.1.9", "10.96.9.9:80", "drop"),
        (Entry::Pod, "10.244.1.9", "10.96.0.10:53", "pass to 10.96.0.10:53"),
        (Entry::Pod, "10.244.1.9", "10.96.0.10:9153", "reject"),
        (Entry::Pod, "10.244.1.9", "10.244.3.3:80", "pass to 10.244.3.3:80"),
        (Entry::Pod, "10.244.1.9", "203.0.113.1:443", "pass to 203.0.113.1:443, masqueraded"),
        (Entry::Uplink, "192.0.2.1", "127.0.0.1:80", "drop"),
        (Entry::Local, "127.0.0.1", "127.0.0.1:80", "pass to 127.0.0.1:80"),
        (Entry::Local, "172.30.0.2", "203.0.113.1:443", "pass to 203.0.113.1:443"),
    ];
    for (entry, from, to, expected) in rows {
        assert_eq!(ask(&world, entry, from, to), expected, "{entry:?} {from} to {to}");
    }
    let itself = ask(&world, Entry::Pod, "10.244.1.5", "10.96.0.20:80");
    assert_eq!(itself, "pass to 10.244.1.5:8080, masqueraded towards {10.244.1.5}");
}
