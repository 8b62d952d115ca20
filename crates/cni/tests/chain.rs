//! Our plugin among the reference plugins (Debian's `containernetworking-plugins`), in every
//! position, through our runtime side.

mod lab;

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cni::config::ValidAttachment;
use cni::fault::Fault;
use cni::runtime_side::{Driver, List, Target};
use lab::{LabNode, PATIENCE, Pod, udp_echo};
use netlink::{BridgeSpec, LinkChange, Netlink, Netns, VethSpec, sysctl};
use serde_json::{Value, json};

/// Where Debian puts the reference plugins.
const REFERENCE_PLUGINS: &str = "/usr/lib/cni";

/// How long an answer is waited for that must not come.
const SILENCE: Duration = Duration::from_millis(400);

/// A node with a list of plugins, and pods on it.
struct Bench {
    node: LabNode,
    list: List,
    driver: Driver,
}

impl Bench {
    fn new(plugins: impl FnOnce(&LabNode) -> Value) -> Self {
        let node = LabNode::alone("node1", Ipv4Addr::new(172, 30, 0, 2).into());
        assert!(
            PathBuf::from(REFERENCE_PLUGINS).join("bridge").is_file(),
            "install Debian's containernetworking-plugins"
        );
        let own = node.scratch.0.join("plugins");
        fs::create_dir_all(&own).expect("a directory");
        let program = env!("CARGO_BIN_EXE_flatnet-cni");
        std::os::unix::fs::symlink(program, own.join("flatnet")).expect("installed");
        let driver = Driver {
            plugin_path: vec![own, REFERENCE_PLUGINS.into()],
            cache_directory: node.scratch.0.join("cache"),
        };
        let list = json!({ "cniVersion": "1.0.0", "name": "net", "plugins": plugins(&node) });
        let list = List::from_value(list).expect("a list");
        Self { node, list, driver }
    }

    fn target(&self, pod: &Pod, capabilities: Value) -> Target {
        Target {
            container_id: pod.id.clone(),
            namespace: pod.path().into(),
            interface: "eth0".into(),
            arguments: vec![("IgnoreUnknown".into(), "1".into())],
            capabilities: capabilities.as_object().cloned().expect("an object"),
        }
    }

    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.node.namespace.run(work).expect("the node's namespace")
    }

    fn add(&self, target: &Target) -> Result<Value, Fault> {
        self.inside(|| self.driver.add(&self.list, target))
    }

    fn check(&self, target: &Target) -> Result<(), Fault> {
        self.inside(|| self.driver.check(&self.list, target))
    }

    fn del(&self, target: &Target) -> Result<(), Fault> {
        self.inside(|| self.driver.del(&self.list, target))
    }

    /// What is left of pods: veths, and files of all kinds of state but locks and hints.
    fn left(&self) -> Vec<String> {
        let links = self.node.netlink().links().expect("links").into_iter();
        let mut left: Vec<String> =
            links.filter(|link| link.kind == "veth").map(|link| link.name).collect();
        let state = ["net", "records/net", "cache/results"];
        for directory in state.map(|name| self.node.scratch.0.join(name)) {
            let names = fs::read_dir(directory).into_iter().flatten().flatten();
            let names = names.filter_map(|entry| entry.file_name().into_string().ok());
            let is_state = |name: &String| {
                !name.starts_with('.')
                    && !name.starts_with("last_reserved_ip")
                    && !["lock", "boot"].contains(&name.as_str())
            };
            left.extend(names.filter(is_state));
        }
        left
    }
}

fn ranges(node: &LabNode, kind: &str) -> Value {
    json!({
        "type": kind, "dataDir": node.scratch.0, "subnet": "10.244.1.0/24",
        "routes": [{ "dst": "0.0.0.0/0" }],
    })
}

fn bridge(node: &LabNode, ipam: &str) -> Value {
    json!({
        "type": "bridge", "bridge": "br0", "isGateway": true, "ipam": ranges(node, ipam),
    })
}

fn ours(node: &LabNode) -> Value {
    json!({ "type": "flatnet", "dataDir": node.scratch.0.join("records") })
}

fn with(config: Value, key: &str, value: Value) -> Value {
    let mut config = config;
    config[key] = value;
    config
}

fn address_of(result: &Value) -> IpAddr {
    let text = result["ips"][0]["address"].as_str().expect("an address");
    text.split('/').next().and_then(|text| text.parse().ok()).expect("an address")
}

/// CNI-11: behind the reference bridge we add what happens at the edge, and the result is equal.
#[test]
fn behind_the_reference_bridge_the_result_is_equal() {
    let plain = Bench::new(|node| json!([bridge(node, "host-local")]));
    let chained = Bench::new(|node| {
        let capabilities = json!({ "portMappings": true, "bandwidth": true });
        json!([bridge(node, "host-local"), with(ours(node), "capabilities", capabilities)])
    });
    let capabilities = json!({
        "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }],
        "bandwidth": { "egressRate": 8_000_000, "egressBurst": 800_000 },
    });
    let pod = Pod::new("c1");
    let target = chained.target(&pod, capabilities);
    let result = chained.add(&target).expect("ADD");
    let alone = Pod::new("c1");
    let expected = plain.add(&plain.target(&alone, json!({}))).expect("ADD");
    // Links have random names and addresses there; all else is the same.
    let shape = |result: &Value| {
        let mut result = result.clone();
        for interface in result["interfaces"].as_array_mut().expect("interfaces") {
            for key in ["name", "mac", "sandbox"] {
                interface[key] = json!("");
            }
        }
        result
    };
    assert_eq!(shape(&result), shape(&expected));
    let peer = result["interfaces"][1]["name"].as_str().expect("the node's end").to_owned();
    let record = fs::read(chained.node.scratch.0.join("records/net/c1-eth0.json"));
    let record: Value = serde_json::from_slice(&record.expect("a record")).expect("JSON");
    assert_eq!(record["link"], json!({ "mode": "chained", "name": peer, "bridge": "br0" }));
    assert_eq!(record["edge"]["hostPorts"][0]["hostPort"], 8080);
    assert_eq!(record["addresses"], json!(["10.244.1.2/24"]));
    assert_eq!(chained.check(&target), Ok(()));
    udp_echo(&chained.node.namespace, &pod.namespace, address_of(&result), 100);
    assert_eq!(chained.del(&target), Ok(()));
    assert_eq!(chained.left(), [] as [&str; 0]);
}

/// CNI-11, TU: what we change of another's interface is in the result, and undone by DEL.
#[test]
fn what_a_chained_plugin_changes_is_in_the_result() {
    let bench = Bench::new(|node| {
        let own = with(ours(node), "mac", json!("0a:58:00:00:00:77"));
        json!([bridge(node, "host-local"), with(own, "txQLen", json!(77))])
    });
    let pod = Pod::new("c1");
    let target = bench.target(&pod, json!({}));
    let result = bench.add(&target).expect("ADD");
    let own = result["interfaces"].as_array().expect("interfaces");
    let own = own.iter().find(|one| one["name"] == "eth0").expect("the pod's");
    assert_eq!(own["mac"], "0a:58:00:00:00:77");
    let eth0 = pod.netlink().require_link("eth0").expect("the interface");
    assert_eq!((eth0.mac, eth0.transmit_queue_length), ("0a:58:00:00:00:77".parse().ok(), 77));
    assert_eq!(bench.check(&target), Ok(()));
    assert_eq!(bench.del(&target), Ok(()));
    assert_eq!(bench.left(), [] as [&str; 0]);
}

/// In front of the reference plugins we are a main plugin like any other.
#[test]
fn the_reference_plugins_follow_us() {
    let bench = Bench::new(|node| {
        json!([
            with(with(ours(node), "ipam", ranges(node, "host-local")), "isGateway", json!(true)),
            { "type": "bandwidth", "capabilities": { "bandwidth": true } },
            { "type": "tuning", "sysctl": { "net.core.somaxconn": "500" } },
            { "type": "portmap", "capabilities": { "portMappings": true }, "snat": true },
        ])
    });
    let capabilities = json!({
        "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }],
        "bandwidth": { "ingressRate": 8_000_000, "ingressBurst": 800_000 },
    });
    let pod = Pod::new("c1");
    let target = bench.target(&pod, capabilities);
    let result = bench.add(&target).expect("ADD");
    assert_eq!(address_of(&result), IpAddr::from([10, 244, 1, 2]));
    let limit = || netlink::sysctl::read("net/core/somaxconn").expect("a value");
    assert_eq!(pod.namespace.run(limit).expect("inside"), "500");
    // The reference portmap looks for rules of both families in CHECK, and so fails by itself.
    let mut document = bench.list.document().clone();
    document["plugins"].as_array_mut().expect("plugins").retain(|one| one["type"] != "portmap");
    let list = List::from_value(document).expect("a list");
    let checked = bench.inside(|| bench.driver.check(&list, &target));
    assert_eq!(checked, Ok(()), "later plugins' additions do not matter");
    assert_eq!(bench.del(&target), Ok(()));
    assert_eq!(bench.del(&target), Ok(()), "twice");
    assert_eq!(bench.left(), [] as [&str; 0]);
}

/// CNI-13, CNI-14: other people's IPAM plugins give our pods their addresses.
#[test]
fn addresses_come_from_the_reference_static_plugin() {
    let bench = Bench::new(|node| {
        let ipam = json!({
            "type": "static",
            "addresses": [
                { "address": "10.9.0.5/24", "gateway": "10.9.0.1" },
                { "address": "fd00:9::5/64" },
            ],
            "routes": [{ "dst": "0.0.0.0/0" }],
        });
        json!([with(with(ours(node), "ipam", ipam), "isGateway", json!(true))])
    });
    let pod = Pod::new("c1");
    let target = bench.target(&pod, json!({}));
    let result = bench.add(&target).expect("ADD");
    assert_eq!(result["ips"][0]["interface"], 1);
    udp_echo(&bench.node.namespace, &pod.namespace, address_of(&result), 100);
    assert_eq!(bench.check(&target), Ok(()));
    assert_eq!(bench.del(&target), Ok(()));
    assert_eq!(bench.left(), [] as [&str; 0]);
}

/// Our IPAM serves the reference bridge, with the very result and files of host-local.
#[test]
fn our_ipam_serves_the_reference_bridge_as_host_local_does() {
    let mut seen = BTreeMap::new();
    for ipam in ["host-local", "flatnet"] {
        let bench = Bench::new(|node| json!([bridge(node, ipam)]));
        let pod = Pod::new("c1");
        let target = bench.target(&pod, json!({}));
        let mut result = bench.add(&target).expect("ADD");
        result["interfaces"] = json!([]);
        let file = bench.node.scratch.0.join("net/10.244.1.2");
        seen.insert(ipam, (result, fs::read(file).expect("a reservation")));
        assert_eq!(bench.check(&target), Ok(()));
        assert_eq!(bench.del(&target), Ok(()));
        assert_eq!(bench.left(), [] as [&str; 0], "{ipam}");
    }
    assert_eq!(seen["host-local"], seen["flatnet"]);
}

/// A list that names us twice is refused, and the first ADD undone.
#[test]
fn a_list_that_names_us_twice_is_refused() {
    let bench = Bench::new(|node| {
        let main = with(ours(node), "ipam", ranges(node, "host-local"));
        json!([main, ours(node)])
    });
    let pod = Pod::new("c1");
    let target = bench.target(&pod, json!({}));
    let fault = bench.add(&target).expect_err("twice");
    assert!(fault.code == 7 && fault.message.contains("made the interface itself"), "{fault}");
    assert_eq!(bench.del(&target), Ok(()));
    assert_eq!(bench.left(), [] as [&str; 0]);
}

/// CNI-22, CNI-23 with plugins that are not ours: a list of 1.1.0 may hold plugins that are
/// asked for STATUS and GC, and GC deletes what was added and lives no more.
#[test]
fn gc_of_a_list_deletes_what_lives_no_more() {
    let mut bench =
        Bench::new(|node| json!([with(ours(node), "ipam", ranges(node, "host-local"))]));
    let mut document = bench.list.document().clone();
    document["cniVersion"] = json!("1.1.0");
    bench.list = List::from_value(document).expect("a list");
    let pods = ["lives", "dead"].map(Pod::new);
    for pod in &pods {
        bench.add(&bench.target(pod, json!({}))).expect("ADD");
    }
    let fault = bench.add(&bench.target(&pods[0], json!({}))).expect_err("added already");
    assert!(fault.message.contains("is on the network net already"), "{fault}");
    assert_eq!(bench.inside(|| bench.driver.status(&bench.list)), Ok(()));
    let living = [ValidAttachment { container_id: "lives".into(), interface: "eth0".into() }];
    assert_eq!(bench.inside(|| bench.driver.gc(&bench.list, &living)), Ok(()));
    let mut left = bench.left();
    left.retain(|name| !name.starts_with("veth"));
    left.sort();
    assert_eq!(left, ["10.244.1.2", "lives-eth0.json", "net-lives-eth0"]);
    assert_eq!(bench.inside(|| bench.driver.gc(&bench.list, &[])), Ok(()));
    assert_eq!(bench.left(), [] as [&str; 0]);
}

/// FW: who may come in to a pod holds between pods of one bridge too, also on a node that hands no
/// bridged packet to its rules; alone, and behind the reference bridge, whose firewall plugin we are
/// then.
#[test]
fn ingress_policies_hold_between_pods_of_one_bridge() {
    let firewall =
        |config: Value, policy: &str| with(config, "firewall", json!({ "ingressPolicy": policy }));
    for (policy, passes) in [("open", true), ("same-bridge", true), ("isolated", false)] {
        for chained in [false, true] {
            let bench = Bench::new(|node| match chained {
                true => json!([bridge(node, "host-local"), firewall(ours(node), policy)]),
                false => {
                    let alone = with(ours(node), "bridge", json!("br0"));
                    json!([firewall(with(alone, "ipam", ranges(node, "host-local")), policy)])
                }
            });
            let never = || sysctl::write("net/bridge/bridge-nf-call-iptables", "0");
            bench.inside(never).expect("the switch");
            let (one, two) = (Pod::new("c1"), Pod::new("c2"));
            let result = bench.add(&bench.target(&one, json!({}))).expect("ADD");
            bench.add(&bench.target(&two, json!({}))).expect("ADD");
            let name = format!("{policy}, chained: {chained}");
            let to = address_of(&result);
            // Answers come in, whoever may begin.
            let gateway = "10.244.1.1".parse().expect("an address");
            udp_echo(&one.namespace, &bench.node.namespace, gateway, 100);
            assert_eq!(begins(&two, &one, to), passes, "{name}");
            if !passes {
                let switch = ["link", "set", "br0", "type", "bridge", "nf_call_iptables", "0"];
                let off = || Command::new("ip").args(switch).status().expect("ip").success();
                assert!(bench.inside(off));
                assert!(begins(&two, &one, to), "{name}: not what decides");
            }
        }
    }
}

/// Whether a connection between pods can begin.
fn begins(client: &Pod, server: &Pod, to: IpAddr) -> bool {
    let bind = || TcpListener::bind((to, 0)).expect("bound");
    let listener = server.namespace.run(bind).expect("inside");
    let address = listener.local_addr().expect("its address");
    let connect = || TcpStream::connect_timeout(&address, SILENCE).is_ok();
    client.namespace.run(connect).expect("inside")
}

/// A program that runs until the value is dropped.
struct Daemon(Child);

impl Daemon {
    fn start(namespace: &Netns, program: &str, arguments: &[String]) -> Self {
        let spawn = || {
            let mut command = Command::new(program);
            command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
            command.spawn().unwrap_or_else(|error| panic!("cannot start {program}: {error}"))
        };
        Self(namespace.run(spawn).expect("the namespace"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server of leases on the segment of the bridge `br0`: its namespace, itself, and its list.
fn lease_server(bench: &Bench) -> (Netns, Daemon, PathBuf) {
    let server = Netns::create().expect("a network namespace (these tests need root)");
    let mut node = bench.node.netlink();
    node.create_bridge(&BridgeSpec { name: "br0".into(), ..BridgeSpec::default() }).expect("br0");
    let bridge = node.require_link("br0").expect("br0").index;
    let uplink = VethSpec::new("uplink", "eth0").peer_in(&server).master(bridge);
    node.create_veth(&uplink).expect("a wire");
    let mut there = Netlink::open_in(&server).expect("a socket");
    let eth0 = there.require_link("eth0").expect("eth0").index;
    there.add_address(eth0, "10.7.0.1/24".parse().expect("a prefix")).expect("an address");
    for (netlink, name) in
        [(&mut node, "br0"), (&mut bench.node.netlink(), "uplink"), (&mut there, "eth0")]
    {
        let index = netlink.require_link(name).expect("the link").index;
        netlink.change_link(index, &LinkChange::up()).expect("up");
    }
    let leases = bench.node.scratch.0.join("leases");
    let arguments = [
        "--keep-in-foreground --conf-file=/dev/null --port=0 --no-ping --user=root --pid-file=",
        "--interface=eth0 --bind-interfaces --dhcp-authoritative",
        "--dhcp-range=10.7.0.50,10.7.0.60,255.255.255.0,2m --dhcp-option=3,10.7.0.1",
        &format!("--dhcp-leasefile={}", leases.display()),
    ];
    let arguments: Vec<String> =
        arguments.iter().flat_map(|line| line.split(' ')).map(str::to_owned).collect();
    let daemon = Daemon::start(&server, "dnsmasq", &arguments);
    (server, daemon, leases)
}

/// CNI-12, CNI-13, BR: addresses that the reference `dhcp` plugin leases over the pod's interface
/// from a server on the segment, and gives back.
#[test]
fn addresses_are_leased_by_the_reference_dhcp_plugin() {
    let socket = |node: &LabNode| node.scratch.0.join("dhcp.sock").display().to_string();
    let bench = Bench::new(|node| {
        let ipam = json!({ "type": "dhcp", "daemonSocketPath": socket(node) });
        json!([with(with(ours(node), "bridge", json!("br0")), "ipam", ipam)])
    });
    let (server, _leases, list) = lease_server(&bench);
    let pod = Pod::new("c1");
    let target = bench.target(&pod, json!({}));
    // Nobody leases, nor can be told that nothing is needed: only the note of that stays.
    assert!(bench.add(&target).is_err());
    assert_eq!(bench.left(), ["uplink", "c1-eth0.json"]);
    let socket = socket(&bench.node);
    let arguments = ["daemon".to_owned(), "-socketpath".to_owned(), socket.clone()];
    let program = format!("{REFERENCE_PLUGINS}/dhcp");
    let _daemon = Daemon::start(&bench.node.namespace, &program, &arguments);
    wait_for("the daemon's socket", || PathBuf::from(&socket).exists());

    let result = bench.add(&target).expect("ADD");
    let address = address_of(&result);
    assert!(address.to_string().starts_with("10.7.0."), "{result}");
    let leased = || fs::read_to_string(&list).unwrap_or_default().contains(&address.to_string());
    wait_for("the server's note of the lease", leased);
    assert_eq!(udp_echo(&pod.namespace, &server, "10.7.0.1".parse().expect("it"), 100), address);
    let defaults = pod.netlink().routes(None).expect("routes").into_iter();
    let defaults: Vec<_> = defaults.filter(|route| route.destination.prefix_len() == 0).collect();
    assert_eq!(defaults.len(), 1, "{defaults:?}");
    assert_eq!(bench.check(&target), Ok(()));
    // It may say nothing but what it leased.
    let mut inside = pod.netlink();
    let eth0 = inside.require_link("eth0").expect("eth0").index;
    inside.add_address(eth0, "10.7.0.99/24".parse().expect("a prefix")).expect("a claim");
    let claim = || TcpStream::connect_timeout(&"10.7.0.99:9".parse().expect("it"), SILENCE);
    let refused = server.run(claim).expect("inside").expect_err("nobody listens");
    assert_ne!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "the claim is believed");

    assert_eq!(bench.del(&target), Ok(()));
    assert_eq!(bench.left(), ["uplink"]);
    wait_for("the server's note of the release", || !leased());
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
