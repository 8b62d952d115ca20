//! What the change of one endpoint costs (G5): with our backends from the bytes of the API's event
//! to the end of the last write, through all that an agent's loop does; with kube-proxy's layouts
//! from the finished text of its partial synchronisation, by the programs that it runs.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use kernel::Linux;
use kernel::bpf::node::NodeServices;
use model::kinds::{Endpoint, EndpointPort, SERVICE_NAME_LABEL, ServicePort};
use model::layout::UPLINK;
use model::world::Object;
use model::{ClusterConfig, EndpointSlice, Service, ServiceBackend};
use netlink::{LinkChange, Netlink, Netns, VethSpec};
use plan::NodeFacts;
use reconcile::Event;
use testkit::node::NodeLoop;

use crate::kube_proxy::{self, Layout};
use crate::lab::{Mode, Node};
use crate::{NFT_PEER_MAX, PORT, cpu_ms, endpoints, frontend, part};

/// Changes that count; one before them does not.
const ROUNDS: usize = 9;
/// The endpoint that comes and goes.
const OTHER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 200, 0, 7)), PORT);

/// Prints a line for each way, and how ours stand to the others.
pub fn measure(number: u32, cgroup: &Path) {
    println!("{:<44}{:>12}{:>16}", "one endpoint changes, ms", "wall, p50", "processor, p50");
    let [ebpf, nft, _] = [ServiceBackend::Ebpf, ServiceBackend::Nftables, ServiceBackend::Iptables]
        .map(|backend| {
            let node = Node::new(Mode::Routed);
            let services = NodeServices::at(&node.file_system).in_cgroup(cgroup);
            let cost = node.run(|| by_backend(number, backend, services));
            print_row(&format!("{backend:?}").to_lowercase(), cost)
        });
    let [iptables_peer, nft_peer] = [Layout::Iptables, Layout::Nftables].map(|layout| {
        let name = format!("kube-proxy's layout of {layout:?}").to_lowercase();
        if layout == Layout::Nftables && number > NFT_PEER_MAX {
            println!("{name:<44}{:>28}", "left out");
            return f64::NAN;
        }
        let namespace = Netns::create().expect("a network namespace");
        let cost = namespace.run(|| by_kube_proxy(number, layout)).expect("the namespace");
        print_row(&name, cost)
    });
    println!(
        "processor: eBPF ÷ partial iptables-restore {} (G5 ≤ 1/100), nftables ÷ kube-proxy's {} \
         (G5 ≤ 1/20); wall of both: G5 ≤ 1 ms\n",
        part(ebpf, iptables_peer),
        part(nft, nft_peer)
    );
}

/// Answers the processor time, the median.
fn print_row(name: &str, mut cost: [Vec<f64>; 2]) -> f64 {
    cost.iter_mut().for_each(|all| all.sort_by(f64::total_cmp));
    let [wall, processor] = cost.map(|all| all[all.len() / 2]);
    println!("{name:<44}{wall:>12.2}{processor:>16.2}");
    processor
}

/// Wall and processor time of each change, in milliseconds.
fn by_backend(number: u32, backend: ServiceBackend, services: NodeServices) -> [Vec<f64>; 2] {
    make_uplink();
    let config = ClusterConfig { service_backend: backend, ..ClusterConfig::default() };
    let facts = NodeFacts {
        name: "node1".into(),
        uplink: UPLINK.into(),
        uplink_mtu: 1500,
        addresses: vec![[172, 30, 0, 2].into()],
        ..NodeFacts::default()
    };
    let kernel = Linux::with_ebpf(services).expect("the kernel");
    let mut node = NodeLoop::new(config.clone(), facts, kernel);
    let mut objects = vec![Object::Node(testkit::objects::node(1, &config).into())];
    for one in 0..number {
        objects.push(Object::Service(service(one).into()));
        objects.push(Object::EndpointSlice(slice(one, &endpoints(one)).into()));
    }
    node.list(&objects);
    let settled = node.settle().expect("the loop converges");
    assert_eq!(settled.failures, Vec::<String>::new());
    let middle = number / 2;
    let mut cost = [vec![], vec![]];
    for round in 0..=ROUNDS {
        let bytes = serde_json::to_vec(&slice(middle, &changed(middle, round))).expect("a slice");
        let (start, before) = (Instant::now(), cpu_ms());
        let slice: EndpointSlice = serde_json::from_slice(&bytes).expect("a slice");
        node.handle(Event::Present(Object::EndpointSlice(Arc::new(slice))));
        let settled = node.settle().expect("the loop converges");
        if round > 0 {
            cost[0].push(start.elapsed().as_secs_f64() * 1000.0);
            cost[1].push(cpu_ms() - before);
        }
        assert!(!settled.ops.is_empty() && settled.failures.is_empty(), "{settled:?}");
    }
    cost
}

fn by_kube_proxy(number: u32, layout: Layout) -> [Vec<f64>; 2] {
    let mut services = crate::as_of_kube_proxy(number, &|one| endpoints(one));
    if layout == Layout::Iptables {
        layout.write(kube_proxy::IPTABLES_JUMPS);
    }
    layout.write(&layout.all(&services));
    let middle = number / 2;
    let mut cost = [vec![], vec![]];
    for round in 0..=ROUNDS {
        let now = changed(middle, round);
        let before = std::mem::replace(&mut services[middle as usize].endpoints, now);
        let text = layout.change(&services, middle as usize, &before);
        let (start, before) = (Instant::now(), cpu_ms());
        layout.write(&text);
        if round > 0 {
            cost[0].push(start.elapsed().as_secs_f64() * 1000.0);
            cost[1].push(cpu_ms() - before);
        }
    }
    cost
}

/// The endpoints after so many changes: the first one is another, and itself again.
fn changed(number: u32, round: usize) -> Vec<SocketAddr> {
    let mut all = endpoints(number);
    if round.is_multiple_of(2) {
        all[0] = OTHER;
    }
    all
}

fn make_uplink() {
    let mut net = Netlink::open().expect("a socket");
    net.create_veth(&VethSpec::new(UPLINK, "far")).expect("an uplink");
    for name in [UPLINK, "far"] {
        let index = net.require_link(name).expect("the link").index;
        net.change_link(index, &LinkChange::up()).expect("up");
    }
    let index = net.require_link(UPLINK).expect("the uplink").index;
    net.add_address(index, "172.30.0.2/24".parse().expect("a prefix")).expect("an address");
}

fn service(number: u32) -> Service {
    let (address, port) = frontend(number);
    let mut service = Service::default();
    service.metadata.namespace = "shop".into();
    service.metadata.name = format!("web-{number}");
    service.spec.cluster_ips = vec![address.to_string()];
    service.spec.ports = vec![ServicePort { port, ..ServicePort::default() }];
    service
}

fn slice(number: u32, endpoints: &[SocketAddr]) -> EndpointSlice {
    let mut slice = EndpointSlice::default();
    slice.metadata.namespace = "shop".into();
    slice.metadata.name = format!("web-{number}-1");
    slice.metadata.labels.insert(SERVICE_NAME_LABEL.into(), format!("web-{number}"));
    slice.address_type = "IPv4".into();
    slice.ports = vec![EndpointPort { port: Some(PORT), ..EndpointPort::default() }];
    let endpoint = |at: &SocketAddr| Endpoint {
        addresses: vec![at.ip().to_string()],
        node_name: "node1".into(),
        ..Endpoint::default()
    };
    slice.endpoints = endpoints.iter().map(endpoint).collect();
    slice
}
