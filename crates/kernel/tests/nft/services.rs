//! Services of every kind with real packets, in both families.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use model::kinds::{
    LoadBalancerIngress, PORT_RANGES_ANNOTATION, Service, ServiceType, TrafficPolicy,
    WEIGHTS_ANNOTATION,
};
use model::{Family, Protocol};
use netlink::Netns;
use render::nft::{NftObserved, NftOp, Role, diff, diff_touched, render_as, update};
use testkit::lab::probe::{Answer, PATIENCE, SILENCE, Servers, ask};

use crate::lab::{Lab, NODE, NODE_V6, OUTSIDE, POD1, POD1_V6, POD2, POD2_V6, service, socket};

/// A load balancer's address; the machine outside reaches it by way of the node.
const VIP: &str = "198.51.100.7";
const NODE_PORT: u16 = 30080;
const BOTH: [Family; 2] = [Family::V4, Family::V6];
const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

fn put(from: &Netns, protocol: Protocol, to: SocketAddr) -> Answer {
    asked(from, protocol, to, PATIENCE)
}

fn asked(
    from: &Netns,
    protocol: Protocol,
    to: SocketAddr,
    patience: std::time::Duration,
) -> Answer {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => "0.0.0.0".parse().expect("an address"),
        SocketAddr::V6(_) => "::".parse().expect("an address"),
    };
    from.run(|| ask(protocol, SocketAddr::new(any, 0), to, patience)).expect("the namespace")
}

fn served(by: SocketAddr, saw: &str) -> Answer {
    Answer::Served { by, saw: saw.parse().expect("an address") }
}

fn of(family: Family, v4: &'static str, v6: &'static str) -> &'static str {
    match family {
        Family::V4 => v4,
        Family::V6 => v6,
    }
}

/// A load balancer Service with the address [`VIP`].
pub fn balanced(protocol: Protocol) -> Service {
    let mut web = service("web", "10.96.0.20", protocol, 80, NODE_PORT);
    web.spec.kind = ServiceType::LoadBalancer;
    let ingress = LoadBalancerIngress { ip: VIP.into(), ip_mode: None };
    web.status.load_balancer.ingress = vec![ingress];
    web
}

/// S-14, S-10 (SCTP): every protocol in either family, from every kind of client.
#[test]
fn every_protocol_is_served_and_refused_in_both_families() {
    let servers = Servers::start();
    for family in BOTH {
        let mut lab = Lab::dual_stack();
        let mut driver = lab.driver();
        let address = of(family, "10.96.0.20", "fd00:10:96::20");
        for protocol in PROTOCOLS {
            let endpoint = socket(of(family, POD2, POD2_V6), 8080);
            let web = || service("web", address, protocol, 80, NODE_PORT);
            lab.set_service(web(), &[endpoint]);
            lab.converge(&mut driver);
            servers.listen(&lab.pod2, protocol, endpoint).expect("a server");
            let cluster_ip = socket(address, 80);
            let node_port = socket(of(family, NODE, NODE_V6), NODE_PORT);
            let near = of(family, "10.244.0.5", "fd00:10:244::2:1");
            let rows = [
                (&lab.pod1, cluster_ip, of(family, POD1, POD1_V6)),
                (&lab.outside, cluster_ip, near),
                (&lab.node, cluster_ip, near),
                (&lab.outside, node_port, near),
                (&lab.pod1, node_port, near),
                // To itself.
                (&lab.pod2, cluster_ip, near),
            ];
            for (client, to, source) in rows {
                let answer = put(client, protocol, to);
                assert_eq!(answer, served(endpoint, source), "{protocol} to {to}");
            }
            lab.set_service(web(), &[]);
            lab.converge(&mut driver);
            for to in [cluster_ip, node_port] {
                assert_eq!(put(&lab.outside, protocol, to), Answer::Refused, "{protocol} to {to}");
            }
        }
    }
}

/// S-04, S-06: the address of a load balancer is served as a node port is, also to pods.
#[test]
fn a_load_balancers_address_follows_the_external_policy() {
    let servers = Servers::start();
    let mut lab = Lab::new();
    let mut driver = lab.driver();
    let endpoint = socket(POD2, 8080);
    servers.listen(&lab.pod2, Protocol::Tcp, endpoint).expect("a server");
    let vip = socket(VIP, 80);
    let near = "10.244.0.5";
    for (policy, outside, pod) in
        [(TrafficPolicy::Cluster, near, near), (TrafficPolicy::Local, OUTSIDE, POD1)]
    {
        let mut web = balanced(Protocol::Tcp);
        web.spec.external_traffic_policy = policy;
        lab.set_service(web, &[endpoint]);
        lab.converge(&mut driver);
        for (client, source) in [(&lab.outside, outside), (&lab.pod1, pod), (&lab.node, near)] {
            assert_eq!(put(client, Protocol::Tcp, vip), served(endpoint, source), "{policy:?}");
        }
    }
    lab.set_service(balanced(Protocol::Tcp), &[]);
    lab.converge(&mut driver);
    for client in [&lab.outside, &lab.pod1, &lab.node] {
        assert_eq!(put(client, Protocol::Tcp, vip), Answer::Refused);
    }
}

/// S-04: `loadBalancerSourceRanges` holds at the load balancer's address for everybody, pods and
/// the node included, and at no other.
#[test]
fn who_is_in_no_source_range_is_dropped_at_the_load_balancers_address() {
    let servers = Servers::start();
    let mut lab = Lab::new();
    let mut driver = lab.driver();
    let endpoint = socket(POD2, 8080);
    servers.listen(&lab.pod2, Protocol::Tcp, endpoint).expect("a server");
    // Wide before narrow: the kernel takes no interval that overlaps with one that stays.
    let rows: [(&[&str], [bool; 3]); 6] = [
        (&[], [true, true, true]),
        (&["172.16.0.0/12", "172.30.0.0/24"], [true, false, true]),
        (&["172.30.0.9/32"], [true, false, false]),
        (&["10.244.0.0/16", "192.0.2.0/24"], [false, true, false]),
        (&["0.0.0.0/0"], [true, true, true]),
        (&["192.0.2.0/24", "fd00::/8"], [false, false, false]),
    ];
    for (ranges, allowed) in rows {
        let mut web = balanced(Protocol::Tcp);
        web.spec.load_balancer_source_ranges = ranges.iter().map(ToString::to_string).collect();
        lab.set_service(web, &[endpoint]);
        lab.converge(&mut driver);
        assert_eq!(lab.converge(&mut driver), [], "what is written is read back");
        for (client, allowed) in [&lab.outside, &lab.pod1, &lab.node].into_iter().zip(allowed) {
            let patience = if allowed { PATIENCE } else { SILENCE };
            let answer = asked(client, Protocol::Tcp, socket(VIP, 80), patience);
            let expected = if allowed { served(endpoint, "10.244.0.5") } else { Answer::Silence };
            assert_eq!(answer, expected, "{ranges:?}");
            // Neither the ClusterIP nor the node port asks.
            for to in [socket("10.96.0.20", 80), socket(NODE, NODE_PORT)] {
                let answer = put(client, Protocol::Tcp, to);
                assert!(matches!(answer, Answer::Served { .. }), "{to}: {answer:?}");
            }
        }
    }
}

/// Port ranges: the port is kept, ports beside the range are refused, and a client with a fixed
/// port follows the endpoint (S-10).
#[test]
fn a_range_of_ports_leads_to_the_same_ports() {
    let servers = Servers::start();
    for family in BOTH {
        let mut lab = Lab::dual_stack();
        let mut driver = lab.driver();
        let address = of(family, "10.96.0.20", "fd00:10:96::20");
        let pods = [(&lab.pod1, of(family, POD1, POD1_V6)), (&lab.pod2, of(family, POD2, POD2_V6))];
        for (namespace, pod) in pods {
            for (protocol, port) in
                [(Protocol::Udp, 9000), (Protocol::Udp, 9100), (Protocol::Tcp, 9005)]
            {
                servers.listen(namespace, protocol, socket(pod, port)).expect("a server");
            }
        }
        let pods = pods.map(|(_, pod)| pod);
        let mut web = service("web", address, Protocol::Tcp, 80, 0);
        let ranges = "udp:9000-9100,tcp:9005-9005".to_owned();
        web.metadata.annotations.insert(PORT_RANGES_ANNOTATION.into(), ranges);
        let any: SocketAddr = of(family, "0.0.0.0:0", "[::]:0").parse().expect("an address");
        let fixed = lab.outside.run(|| std::net::UdpSocket::bind(any)).expect("outside");
        let fixed = fixed.expect("a socket").local_addr().expect("a port").port();
        for pod in [pods[0], pods[1], pods[0]] {
            lab.set_service(web.clone(), &[socket(pod, 8080)]);
            lab.converge(&mut driver);
            assert_eq!(lab.converge(&mut driver), [], "what is written is read back");
            for (protocol, port) in
                [(Protocol::Udp, 9000), (Protocol::Udp, 9100), (Protocol::Tcp, 9005)]
            {
                let by = socket(pod, port);
                let source = SocketAddr::new(any.ip(), fixed);
                let answer = lab
                    .outside
                    .run(|| ask(protocol, source, socket(address, port), PATIENCE))
                    .expect("outside");
                let Answer::Served { by: found, .. } = answer else { panic!("{answer:?}") };
                assert_eq!(found, by);
            }
            for (protocol, port) in [(Protocol::Udp, 9101), (Protocol::Tcp, 9004)] {
                let answer = put(&lab.outside, protocol, socket(address, port));
                assert_eq!(answer, Answer::Refused, "{protocol} {port}");
            }
        }
        lab.set_service(web, &[]);
        lab.converge(&mut driver);
        assert_eq!(put(&lab.outside, Protocol::Udp, socket(address, 9050)), Answer::Refused);
    }
}

/// Weights are slots: as many for each endpoint as its share.
#[test]
fn weights_are_shares_of_the_slots() {
    let mut lab = Lab::new();
    let mut web = service("web", "10.96.0.20", Protocol::Tcp, 80, 0);
    let weights = format!("{POD1}=10,{POD2}=30");
    web.metadata.annotations.insert(WEIGHTS_ANNOTATION.into(), weights);
    lab.set_service(web, &[socket(POD1, 8080), socket(POD2, 8080)]);
    let mut driver = lab.driver();
    lab.converge(&mut driver);
    let observed = driver.observe().expect("observe");
    let table = observed.tables.values().next().expect("a table");
    let slots = table.sets["cluster-ip-endpoints"].elements.values();
    let mut found: Vec<_> =
        slots.filter_map(|datum| render::nft::layout::endpoint_of(&datum)).collect();
    found.sort();
    let [one, other] = [socket(POD1, 8080), socket(POD2, 8080)];
    assert_eq!(found, [one, other, other, other]);
}

/// kube-proxy's `--nodeport-addresses` and `--masquerade-all`.
#[test]
fn node_ports_answer_where_configured_and_masquerade_may_hide_pods() {
    let servers = Servers::start();
    let mut lab = Lab::new();
    let mut driver = lab.driver();
    let endpoint = socket(POD2, 8080);
    servers.listen(&lab.pod2, Protocol::Tcp, endpoint).expect("a server");
    lab.set_service(service("web", "10.96.0.20", Protocol::Tcp, 80, NODE_PORT), &[endpoint]);
    let rows = [("172.30.0.0/24", false, true), ("10.0.0.0/8", true, false)];
    for (range, masquerade_all, answers) in rows {
        lab.config.node_port_addresses = vec![range.parse().expect("a range")];
        lab.config.masquerade_all = masquerade_all;
        lab.converge(&mut driver);
        let answer = put(&lab.outside, Protocol::Tcp, socket(NODE, NODE_PORT));
        assert_eq!(matches!(answer, Answer::Served { .. }), answers, "{range}: {answer:?}");
        let answer = put(&lab.pod1, Protocol::Tcp, socket("10.96.0.20", 80));
        let source = if masquerade_all { "10.244.0.5" } else { POD1 };
        assert_eq!(answer, served(endpoint, source));
    }
}

/// What [`update`] and [`diff_touched`] write is in the kernel what a rendering from scratch wants.
#[test]
fn changes_one_by_one_leave_what_a_rendering_from_scratch_wants() {
    let mut lab = Lab::dual_stack();
    let mut driver = lab.driver();
    lab.converge(&mut driver);
    let mut believed = driver.observe().expect("observe");
    let mut before = lab.desired();
    let mut program = lab.program();
    let all = [POD1, POD2].map(|pod| socket(pod, 8080));
    let mut narrow = balanced(Protocol::Udp);
    narrow.spec.load_balancer_source_ranges = vec!["172.30.0.9/32".into()];
    let mut wide = narrow.clone();
    wide.spec.load_balancer_source_ranges = vec!["172.16.0.0/12".into()];
    let mut ranged = service("web", "10.96.0.20", Protocol::Udp, 80, 0);
    ranged.metadata.annotations.insert(PORT_RANGES_ANNOTATION.into(), "all".into());
    let mut sticky = service("other", "fd00:10:96::20", Protocol::Tcp, 80, 30081);
    sticky.spec.session_affinity = model::kinds::SessionAffinity::ClientIP;
    let v6 = [socket(POD1_V6, 8080)];
    let steps: [(Service, &[SocketAddr]); 8] = [
        (narrow.clone(), &all),
        (wide, &all[..1]),
        (sticky.clone(), &v6),
        (ranged.clone(), &all),
        (sticky, &[]),
        (ranged, &all[1..]),
        (narrow, &[]),
        (service("web", "10.96.0.20", Protocol::Udp, 80, 0), &all),
    ];
    for (number, (service, endpoints)) in steps.into_iter().enumerate() {
        let key = service.metadata.key();
        lab.set_service(service, endpoints);
        let desired = lab.desired();
        let former = [(key.clone(), before.services.get(&key).cloned())].into();
        let (config, facts) = (&lab.config, &lab.facts);
        let touched = update(&mut program, Role::Backend, &desired, config, facts, &former);
        for op in diff_touched(&program, &believed, &touched) {
            driver.apply(&op).unwrap_or_else(|error| panic!("step {number}: {error}"));
            believed.apply(&op).expect("the model of the kernel agrees");
        }
        assert_eq!(driver.observe().expect("observe"), believed, "step {number}");
        assert_eq!(diff(&lab.program(), &believed), [], "step {number}");
        before = desired;
    }
}

/// A connection through a Service, a word each way.
struct Stream {
    client: std::net::TcpStream,
    server: std::net::TcpStream,
}

impl Stream {
    fn open(lab: &Lab, to: SocketAddr) -> Self {
        let bind = || std::net::TcpListener::bind(socket(POD2, 8081)).expect("a listener");
        let listener = lab.pod2.run(bind).expect("the pod");
        let connect = || std::net::TcpStream::connect_timeout(&to, PATIENCE);
        let client = lab.outside.run(connect).expect("outside").expect("a connection");
        let (server, _) = listener.accept().expect("the client");
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(SILENCE)).expect("a timeout");
        }
        Self { client, server }
    }

    fn carries(&mut self) -> bool {
        use std::io::{Read, Write};
        let mut word = [0; 4];
        self.client.write_all(b"ping").is_ok()
            && self.server.read_exact(&mut word).is_ok()
            && self.server.write_all(b"pong").is_ok()
            && self.client.read_exact(&mut word).is_ok()
    }
}

/// The keeper: another backend takes new flows over while the old ones live on; without our nat
/// chains they would end.
#[test]
fn established_flows_live_on_beside_another_backend() {
    let mut lab = Lab::new();
    let mut driver = lab.driver();
    let web = service("web", "10.96.0.20", Protocol::Tcp, 80, 0);
    lab.set_service(web, &[socket(POD2, 8081)]);
    lab.converge(&mut driver);
    let mut stream = Stream::open(&lab, socket("10.96.0.20", 80));
    assert!(stream.carries());
    for role in [Role::Beside, Role::Backend, Role::Beside] {
        let wanted = render_as(role, &lab.desired(), &lab.config, &lab.facts);
        let observed = driver.observe().expect("observe");
        for op in diff(&wanted, &observed) {
            driver.apply(&op).unwrap_or_else(|error| panic!("{error}"));
            assert!(stream.carries(), "after {op:?}");
        }
        let after = driver.observe().expect("observe");
        assert_eq!(diff(&wanted, &after), Vec::<NftOp>::new());
        let kept: BTreeSet<&str> = ["nat-prerouting", "nat-output", "nat-postrouting"].into();
        let chains = &after.tables.values().next().expect("a table").chains;
        assert!(kept.iter().all(|name| chains.contains_key(*name)));
    }
    // With the chains goes the translation of the answers.
    let nothing = render::nft::NftProgram::default();
    let observed: NftObserved = driver.observe().expect("observe");
    for op in diff(&nothing, &observed) {
        driver.apply(&op).unwrap_or_else(|error| panic!("{error}"));
    }
    assert!(!stream.carries(), "nothing was kept by the chains");
}
