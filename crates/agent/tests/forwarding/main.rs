//! eBPF forwarding by real agents: it comes with Services in eBPF, forwards what it shall, is put
//! back when somebody takes it off, goes when another backend comes, and leaves nothing. Needs root.

#[path = "../paths/lab.rs"]
#[allow(dead_code)] // these tests use a part of it
mod lab;
mod mounts;
#[path = "../real/server.rs"]
#[allow(dead_code)] // the same
mod server;

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use agent::ForwardingStatus;
use client::{DeleteOptions, ResourcePath};
use model::{ClusterConfig, Family, Overlay, ServiceBackend};
use serde_json::{Value, json};

use lab::{Lab, Machine, Pod, eventually, with_two_nodes_as};
use mounts::Mounts;

/// The Service of these tests, in front of a port of one pod.
const CLUSTER_IP: &str = "10.96.0.80";
const PORT: u16 = 80;
const TARGET: u16 = 8080;
const NODE_PORT: u16 = 30_080;
/// Where the second node has it.
const FAR_NODE: &str = "172.30.0.3";
/// The Node's condition.
const CONDITION: &str = "FlatnetForwarding";
/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// In a pod: no handshake with its servers ends.
const HOLD_ANSWERS_BACK: [&str; 3] = [
    "nft add table inet held",
    "nft add chain inet held output { type filter hook output priority 0 ; }",
    "nft add rule inet held output tcp flags & ( syn | ack ) == ( syn | ack ) drop",
];
const LET_ANSWERS_GO: &str = "nft delete table inet held";
///
const REPAIR_LIMIT: Duration = Duration::from_secs(1);
/// So often is the same damage done; the machine may have something else to do at most of these.
const DAMAGES: usize = 10;
/// A group of others, and how many datagrams go to everybody.
const GROUP: Ipv4Addr = Ipv4Addr::new(239, 1, 2, 3);
const TO_ALL: usize = 20;

/// Packets between pods of one node and of two, by tunnel and by next hop.
#[test]
fn packets_between_pods_are_forwarded_by_either_way_between_nodes() {
    for (overlay, way) in [(Overlay::Vxlan, "to_tunnel"), (Overlay::HostGw, "to_next_hop")] {
        with_forwarding(config(overlay), async |lab| {
            let [one, two] = ["one", "two"].map(|name| lab.nodes[0].add_pod(name));
            let far = lab.nodes[1].add_pod("far");
            has_pods(lab, 0, 2, 0).await;
            has_pods(lab, 1, 1, 0).await;
            are_counted(lab, 0, "to_pod", || one.reaches(&two, 100)).await;
            are_counted(lab, 0, way, || one.reaches(&far, 100)).await;
            are_counted(lab, 1, "to_pod", || two.reaches(&far, 100)).await;
            are_counted(lab, 1, way, || far.reaches(&one, 100)).await;
            // What is cut into fragments is the kernel's.
            assert!(one.reaches(&far, 3000) && far.reaches(&one, 3000) && one.reaches(&two, 3000));
            for name in ["node1", "node2"] {
                eventually("the condition", async || {
                    lab.condition_of(name, CONDITION).await["reason"] == "EbpfForwards"
                })
                .await;
            }
        });
    }
}

/// the kernel tells nobody of it, so the agent looks often enough. Damage that follows a
/// repair at once stays for a whole period of looking.
#[test]
fn what_somebody_takes_off_is_put_back_within_a_second() {
    with_forwarding(config(Overlay::Vxlan), async |lab| {
        let [one, two] = ["one", "two"].map(|name| lab.nodes[0].add_pod(name));
        has_pods(lab, 0, 2, 0).await;
        let whole = all_attached(lab).await;
        let links = bpf(&lab.nodes[0]).join("flatnet/v1/links");
        let mut took = Vec::new();
        for number in 0..=DAMAGES {
            let damaged = Instant::now();
            for pin in &whole {
                fs::remove_file(links.join(pin)).expect("detached");
            }
            while attached(&lab.nodes[0]) != whole {
                assert!(damaged.elapsed() < lab::PATIENCE, "it stays off");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            // The first one follows no repair.
            if number > 0 {
                took.push(damaged.elapsed());
            }
        }
        println!("{took:?}");
        assert!(took.iter().min() <= Some(&REPAIR_LIMIT), "{took:?}");
        repaired(lab, 4 * took.len() as u64).await;
        are_counted(lab, 0, "to_pod", || one.reaches(&two, 100)).await;
    });
}

/// groups and broadcasts are the kernel's path's, whose rules at the pod's edge drop them.
#[test]
fn what_a_pod_sends_to_everybody_reaches_no_other() {
    with_forwarding(config(Overlay::Vxlan), async |lab| {
        let pods = ["one", "two"].map(|name| lab.nodes[0].add_pod(name));
        has_pods(lab, 0, 2, 0).await;
        let groups = [GROUP, Ipv4Addr::BROADCAST];
        for group in groups {
            assert_eq!(heard(&pods, group), 0, "{group}");
        }
        let status = lab.nodes[0].status().await.expect("the status").forwarding;
        assert!(status.ebpf && status.pods == 2, "{status:?}");
        // Without that defence they come; nobody repairs it meanwhile.
        lab.nodes[0].stop();
        lab.nodes[0].run("nft delete table bridge flatnet-pods");
        for group in groups {
            assert_eq!(heard(&pods, group), TO_ALL, "{group}: the attack itself does not work");
        }
    });
}

/// How many of [`TO_ALL`] datagrams of the first pod to everybody come to the second.
fn heard([one, two]: &[Pod; 2], group: Ipv4Addr) -> usize {
    let IpAddr::V4(own) = two.address else { panic!("{}", two.address) };
    let listen = || {
        let socket = UdpSocket::bind(("0.0.0.0", TARGET)).expect("bound");
        socket.join_multicast_v4(&GROUP, &own).expect("joined");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        socket
    };
    let listener = two.namespace.run(listen).expect("the pod");
    let open = || UdpSocket::bind((one.address, 0)).expect("bound");
    let sender = one.namespace.run(open).expect("the pod");
    sender.set_broadcast(true).expect("broadcasts");
    for _ in 0..TO_ALL {
        sender.send_to(b"all", (group, TARGET)).expect("sent");
    }
    // It comes last: what is cut into fragments takes the kernel's path too.
    sender.send_to(&[0; 3000], (two.address, TARGET)).expect("sent");
    let mut heard = 0;
    while listener.recv(&mut [0; 4000]).expect("the last one comes") < 3000 {
        heard += 1;
    }
    heard
}

/// of each kind of damage, and of a restart. What is not ours stays.
#[test]
fn what_somebody_takes_off_is_put_back_and_nothing_is_left_after_uninstall() {
    with_forwarding(config(Overlay::Vxlan), async |lab| {
        let [one, two] = ["one", "two"].map(|name| lab.nodes[0].add_pod(name));
        has_pods(lab, 0, 2, 0).await;
        let whole = all_attached(lab).await;
        let links = bpf(&lab.nodes[0]).join("flatnet/v1/links");
        let maps = bpf(&lab.nodes[0]).join("flatnet/v1/maps");
        for pin in &whole {
            fs::remove_file(links.join(pin)).expect("detached");
        }
        repaired(lab, 4).await;
        assert_eq!(attached(&lab.nodes[0]), whole);
        // With their pins all programs are gone, and the maps.
        fs::remove_dir_all(&maps).expect("removed");
        repaired(lab, 5).await;
        has_pods(lab, 0, 2, 0).await;
        are_counted(lab, 0, "to_pod", || one.reaches(&two, 100)).await;
        let rows = lab.nodes[0].ask("/network").await.expect("an answer");
        let rows: Vec<Value> = serde_json::from_str(&rows).expect("rows");
        let programs = rows.iter().filter(|row| row["kind"] == "program");
        assert_eq!(programs.clone().count(), 4, "{rows:?}");
        assert!(programs.clone().all(|row| row["different"] == false), "{rows:?}");

        let before = attached(&lab.nodes[0]);
        lab.nodes[0].stop();
        assert_eq!(attached(&lab.nodes[0]), before, "they go on without the agent");
        assert!(one.reaches(&two, 100));
        lab.nodes[0].start();
        forwards(lab, 0, true).await;
        has_pods(lab, 0, 2, 0).await;
        assert_eq!(attached(&lab.nodes[0]), before);
        let repairs = lab.nodes[0].status().await.expect("the status").repairs;
        assert_eq!(repairs.get("ebpf-forwarding"), None, "a restart repairs nothing");

        let machine = &mut lab.nodes[0];
        machine.stop();
        // The machine's mounts are seen by a thread of its own: this one takes them away later.
        let uninstall = || {
            mounts::enter(&machine.directory);
            machine.namespace.run(|| agent::uninstall(&machine.options.places, true))
        };
        let ended = std::thread::scope(|scope| scope.spawn(uninstall).join());
        let removed = ended.expect("a thread").expect("the node").expect("nothing hinders");
        assert!(removed.iter().any(|line| line.contains("forward packets of pods")), "{removed:?}");
        assert!(!bpf(machine).join("flatnet").exists());
    });
}

/// A connection between pods, and one by a Service, while the node changes to nftables and back:
/// what nftables translates keeps its pod with the kernel's path as long as it is there.
#[test]
fn connections_go_on_from_backend_to_backend() {
    with_forwarding(config(Overlay::Vxlan), async |lab| {
        let [one, two] = ["one", "two"].map(|name| lab.nodes[0].add_pod(name));
        let far = lab.nodes[1].add_pod("far");
        has_pods(lab, 0, 2, 0).await;
        for pod in [&two, &far] {
            serve(pod);
        }
        let mut streams = Vec::new();
        for endpoint in [&two, &far] {
            let direct = Stream::open(&one, SocketAddr::new(endpoint.address, TARGET));
            streams.push((endpoint.address, direct.expect("a connection")));
            serve_by(lab, endpoint).await;
            streams.push((endpoint.address, reach_service(&one, endpoint).await));
        }
        for backend in [ServiceBackend::Nftables, ServiceBackend::Ebpf] {
            change_to(lab, backend).await;
            let ebpf = backend == ServiceBackend::Ebpf;
            streams.push((far.address, Stream::open(&one, service()).expect("a connection")));
            if ebpf {
                // The client of what nftables translates, whose endpoint is elsewhere.
                has_pods(lab, 0, 1, 1).await;
            }
            for (number, (server, stream)) in streams.iter_mut().enumerate() {
                for _ in 0..20 {
                    let said = stream.ask();
                    let said = said.unwrap_or_else(|error| panic!("{backend} {number}: {error}"));
                    assert_eq!(said, (*server, one.address), "{backend}, {number}");
                }
            }
        }
    });
}

/// Connection tracking has seen a first SYN and nothing since: to it the next packet that it sees
/// would be invalid, and the rules of nftables drop that.
#[test]
fn connections_go_on_whose_handshake_the_kernel_began_and_ebpf_ended() {
    with_forwarding(config(Overlay::Vxlan), async |lab| {
        let [one, two] = ["one", "two"].map(|name| lab.nodes[0].add_pod(name));
        let far = lab.nodes[1].add_pod("far");
        change_to(lab, ServiceBackend::Nftables).await;
        let servers = [&two, &far];
        let connecting = servers.map(|server| {
            serve(server);
            for command in HOLD_ANSWERS_BACK {
                lab::run_in(&server.namespace, command);
            }
            connect(&one, SocketAddr::new(server.address, TARGET))
        });
        half_seen(lab, servers.len()).await;
        change_to(lab, ServiceBackend::Ebpf).await;
        has_pods(lab, 0, 2, 0).await;
        for server in servers {
            lab::run_in(&server.namespace, LET_ANSWERS_GO);
        }
        let mut streams =
            connecting.map(|one| one.join().expect("a thread").expect("a connection"));
        half_seen(lab, servers.len()).await;
        change_to(lab, ServiceBackend::Nftables).await;
        for (server, stream) in servers.iter().zip(&mut streams) {
            assert_eq!(stream.ask().expect("an answer"), (server.address, one.address));
        }
    });
}

/// Waits until connection tracking of the first node knows so many handshakes to servers, of which
/// it saw the beginning.
async fn half_seen(lab: &Lab, count: usize) {
    eventually(&format!("{count} handshakes half seen"), async || {
        let tracked = lab.nodes[0].run("cat /proc/self/net/nf_conntrack");
        let to_servers = tracked.lines().filter(|line| line.contains(&format!("dport={TARGET}")));
        to_servers.filter(|line| line.contains("SYN_SENT")).count() == count
    })
    .await;
}

/// A node port of the other node, in front of a pod there and of one here: what comes back has that
/// node's own address within its tunnel.
#[test]
fn a_node_port_of_another_node_answers_pods() {
    for overlay in [Overlay::Vxlan, Overlay::HostGw] {
        with_forwarding(config(overlay), async |lab| {
            let [one, two] = ["one", "two"].map(|name| lab.nodes[0].add_pod(name));
            let far = lab.nodes[1].add_pod("far");
            has_pods(lab, 0, 2, 0).await;
            has_pods(lab, 1, 1, 0).await;
            let node_port = SocketAddr::new(FAR_NODE.parse().expect("an address"), NODE_PORT);
            for endpoint in [&two, &far] {
                serve(endpoint);
                serve_by(lab, endpoint).await;
                eventually(&format!("{} answers for {node_port}", endpoint.address), async || {
                    let said = Stream::open(&one, node_port).and_then(|mut stream| stream.ask());
                    said.is_ok_and(|(server, _)| server == endpoint.address)
                })
                .await;
            }
        });
    }
}

/// Where the programs cannot be loaded, whatever the cause: packets and Services go on, and the
/// Node says by which path.
#[test]
fn where_the_kernel_refuses_packets_take_its_own_path_and_the_node_says_so() {
    with_forwarding(config(Overlay::Vxlan), async |lab| {
        let [one, two] = ["one", "two"].map(|name| lab.nodes[0].add_pod(name));
        has_pods(lab, 0, 2, 0).await;
        serve(&two);
        serve_by(lab, &two).await;
        reach_service(&one, &two).await;
        lab.nodes[0].stop();
        let top = bpf(&lab.nodes[0]).join("flatnet/v1");
        fs::remove_dir_all(&top).expect("removed");
        // Something else has the place of a map.
        fs::create_dir_all(top.join("maps/pods")).expect("a directory");
        lab.nodes[0].start();
        eventually("the condition", async || {
            let condition = lab.condition_of("node1", CONDITION).await;
            condition["status"] == "False" && condition["reason"] == "KernelForwards"
        })
        .await;
        let status = lab.nodes[0].status().await.expect("the status");
        assert!(!status.forwarding.ebpf && status.forwarding.reason.contains("pods"), "{status:?}");
        assert!(status.problems.contains(&status.forwarding.reason), "{status:?}");
        eventually("an Event says so too", async || {
            lab.events().await.contains(&status.forwarding.reason)
        })
        .await;
        assert!(one.reaches(&two, 100) && two.reaches(&one, 3000));
        let said = Stream::open(&one, service()).and_then(|mut stream| stream.ask());
        assert_eq!(said.expect("an answer"), (two.address, one.address));
    });
}

/// Only where it is asked for, and gone when it is not any more.
#[test]
fn the_socket_fast_path_comes_and_goes_with_the_configuration() {
    let with_sockets = ClusterConfig { socket_fast_path: true, ..config(Overlay::Vxlan) };
    with_forwarding(with_sockets, async |lab| {
        let is_pinned = |lab: &Lab| {
            let entries = fs::read_dir(bpf(&lab.nodes[0]).join("flatnet/v1")).expect("pins");
            let mut names = entries.flatten().map(|entry| entry.file_name());
            names.any(|name| name.to_string_lossy().starts_with("sockets-"))
        };
        assert!(status(lab, 0).await.socket_fast_path && is_pinned(lab));
        lab.nodes[0].stop();
        lab.nodes[0].options.config.socket_fast_path = false;
        lab.nodes[0].start();
        forwards(lab, 0, true).await;
        assert!(!status(lab, 0).await.socket_fast_path && !is_pinned(lab));
        assert_eq!(lab.nodes[0].status().await.expect("the status").problems, [""; 0]);
    });
}

fn config(overlay: Overlay) -> ClusterConfig {
    ClusterConfig { overlay, service_backend: ServiceBackend::Ebpf, ..ClusterConfig::default() }
}

/// Two nodes with agents of the eBPF backend, and what their machines have mounted.
fn with_forwarding(config: ClusterConfig, test: impl AsyncFnOnce(&mut Lab)) {
    with_two_nodes_as(Family::V4, config, async |lab| {
        let _mounts: Vec<Mounts> =
            lab.nodes.iter().map(|node| Mounts::make(&node.directory)).collect();
        lab.nodes.iter_mut().for_each(|node| node.prepare = mounts::enter);
        lab.start_agents();
        for node in [0, 1] {
            forwards(lab, node, true).await;
        }
        test(lab).await;
        lab.nodes.iter_mut().for_each(Machine::stop);
    });
}

fn service() -> SocketAddr {
    SocketAddr::new(CLUSTER_IP.parse().expect("an address"), PORT)
}

/// The first node's agent starts anew with another backend of Services.
async fn change_to(lab: &mut Lab, backend: ServiceBackend) {
    lab.nodes[0].stop();
    lab.nodes[0].options.config.service_backend = backend;
    lab.nodes[0].start();
    let ebpf = backend == ServiceBackend::Ebpf;
    forwards(lab, 0, ebpf).await;
    eventually("programs, or none", async || attached(&lab.nodes[0]).is_empty() != ebpf).await;
}

async fn status(lab: &Lab, node: usize) -> ForwardingStatus {
    lab.nodes[node].status().await.unwrap_or_default().forwarding
}

async fn forwards(lab: &Lab, node: usize, ebpf: bool) {
    eventually(&format!("node{}: eBPF forwards: {ebpf}", node + 1), async || {
        let status = lab.nodes[node].status().await.unwrap_or_default();
        status.ready && status.converged && status.forwarding.ebpf == ebpf
    })
    .await;
}

/// Waits until a node has so many pods by eBPF and by the kernel's own path. The agent may read a
/// pod's record while the plugin still makes its link: it says so, and attaches a little later.
async fn has_pods(lab: &Lab, node: usize, by_ebpf: usize, by_kernel: usize) {
    eventually(&format!("{by_ebpf} pods by eBPF, {by_kernel} by the kernel"), async || {
        let status = lab.nodes[node].status().await.unwrap_or_default();
        let pods = (status.forwarding.pods, status.forwarding.pods_by_kernel);
        pods == (by_ebpf, by_kernel) && status.problems.is_empty()
    })
    .await;
}

async fn packets(lab: &Lab, node: usize, what: &str) -> u64 {
    status(lab, node).await.packets.get(what).copied().unwrap_or_default()
}

/// Packets between pods are counted where they shall go: what is sent meanwhile makes it so.
async fn are_counted(lab: &Lab, node: usize, what: &str, send: impl Fn() -> bool) {
    let before = packets(lab, node, what).await;
    assert!(send(), "{what}: the datagram arrives");
    eventually(&format!("node{}: {what}", node + 1), async || {
        packets(lab, node, what).await > before
    })
    .await;
}

/// Answers on each connection with its own address and who the client is, until that ends.
fn serve(pod: &Pod) {
    let own = SocketAddr::new(pod.address, TARGET);
    let listener = pod.namespace.run(|| TcpListener::bind(own)).expect("the pod").expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let peer = stream.peer_addr().expect("a client").ip();
                let answer = format!("{} {peer}", own.ip());
                let mut piece = [0; 64];
                while stream.read(&mut piece).is_ok_and(|bytes| bytes > 0) {
                    if stream.write_all(answer.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

/// A connection that takes long to be made.
fn connect(pod: &Pod, to: SocketAddr) -> JoinHandle<io::Result<Stream>> {
    let connect = move || {
        let stream = TcpStream::connect_timeout(&to, lab::PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Stream(stream))
    };
    pod.namespace.run(|| std::thread::spawn(connect)).expect("the pod")
}

/// A connection of a pod.
struct Stream(TcpStream);

impl Stream {
    fn open(pod: &Pod, to: SocketAddr) -> io::Result<Self> {
        let connect = || TcpStream::connect_timeout(&to, PATIENCE);
        let stream = pod.namespace.run(connect).expect("the pod")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(stream))
    }

    /// Who answers, and who the client is to it.
    fn ask(&mut self) -> io::Result<(IpAddr, IpAddr)> {
        let mut piece = [0; 64];
        self.0.write_all(b"who?")?;
        let bytes = self.0.read(&mut piece)?;
        let text = String::from_utf8_lossy(&piece[..bytes]);
        let (server, client) = text.split_once(' ').ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok((server.parse().expect("an address"), client.parse().expect("an address")))
    }
}

/// Makes the Service and lets one pod be its endpoint.
async fn serve_by(lab: &Lab, pod: &Pod) {
    let services = ResourcePath::new("v1", "services").namespace("default");
    let service = json!({
        "metadata": { "name": "echo" },
        "spec": {
            "type": "NodePort",
            "clusterIP": CLUSTER_IP,
            "ports": [{ "port": PORT, "targetPort": TARGET, "nodePort": NODE_PORT }],
        },
    });
    // The second time it is there.
    let _: Result<Value, _> = lab.server.admin.create(&services, &service).await;
    let slices = ResourcePath::new("discovery.k8s.io/v1", "endpointslices").namespace("default");
    let slice = json!({
        "metadata": { "name": "echo", "labels": { "kubernetes.io/service-name": "echo" } },
        "addressType": "IPv4",
        "ports": [{ "port": TARGET, "protocol": "TCP" }],
        "endpoints": [{ "addresses": [pod.address], "conditions": { "ready": true } }],
    });
    let _ = lab.server.admin.delete(&slices.clone().name("echo"), &DeleteOptions::default()).await;
    let _: Value = lab.server.admin.create(&slices, &slice).await.expect("a slice");
}

/// The Service leads a pod to an endpoint soon.
async fn reach_service(client: &Pod, endpoint: &Pod) -> Stream {
    let mut found = None;
    eventually(&format!("the Service leads to {}", endpoint.address), async || {
        let opened = Stream::open(client, service());
        let answered = opened.and_then(|mut stream| Ok((stream.ask()?, stream)));
        let right = answered.ok().filter(|(said, _)| *said == (endpoint.address, client.address));
        found = right.map(|(_, stream)| stream);
        found.is_some()
    })
    .await;
    found.expect("it was found")
}

/// Waits until so many things were put back since the agent started.
async fn repaired(lab: &Lab, count: u64) {
    eventually(&format!("{count} repairs"), async || {
        let status = lab.nodes[0].status().await.unwrap_or_default();
        status.repairs.get("ebpf-forwarding").is_some_and(|repairs| *repairs >= count)
    })
    .await;
}

/// The pins of all that is attached on the first node, which has two pods, a tunnel, an uplink.
async fn all_attached(lab: &Lab) -> BTreeSet<String> {
    eventually("four links", async || attached(&lab.nodes[0]).len() == 4).await;
    attached(&lab.nodes[0])
}

/// The pins of what is attached on a node.
fn attached(node: &Machine) -> BTreeSet<String> {
    let links = bpf(node).join("flatnet/v1/links");
    let entries = fs::read_dir(links).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn bpf(node: &Machine) -> PathBuf {
    mounts::bpf(&node.directory)
}
