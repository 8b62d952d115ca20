//! The plugin's program on one node, called as container runtimes call it.

mod lab;

use std::net::Ipv4Addr;
use std::sync::Mutex;

use lab::{LabNode, Pod, call_plugin, udp_echo};
use netlink::{BridgeSpec, LinkChange, Netlink, Netns, Route, VethSpec, sysctl};
use serde_json::{Value, json};

/// Pods that are added and removed at once.
const PARALLEL: usize = 64;

fn node() -> LabNode {
    LabNode::alone("node1", Ipv4Addr::new(172, 30, 0, 2).into())
}

fn config(node: &LabNode) -> Value {
    json!({
        "cniVersion": "1.1.0",
        "name": "flatnet",
        "type": "flatnet",
        "dataDir": node.scratch.0.join("records"),
        "bridge": "cni0",
        "mtu": 1450,
        "ipam": {
            "type": "host-local",
            "dataDir": node.scratch.0,
            "ranges": [[{ "subnet": "10.244.1.0/24", "gateway": "10.244.1.1" }]],
            "routes": [{ "dst": "0.0.0.0/0" }],
        },
    })
}

fn with(config: &Value, key: &str, value: Value) -> Value {
    let mut config = config.clone();
    config[key] = value;
    config
}

fn code(error: &Value) -> u64 {
    error["code"].as_u64().unwrap_or_else(|| panic!("an error document: {error}"))
}

/// The node's ends of pod links.
fn node_ends(netlink: &mut Netlink) -> Vec<String> {
    let links = netlink.links().expect("links");
    links.into_iter().filter(|link| link.kind == "veth").map(|link| link.name).collect()
}

/// CNI-09: both interfaces, the one in the pod with its sandbox, and the address on that one.
#[test]
fn add_makes_what_its_result_says_and_del_takes_it_back() {
    let node = node();
    let pod = Pod::new("c1");
    let result = pod.call("ADD", &node.namespace, &config(&node)).expect("ADD");

    let mut inside = pod.netlink();
    let eth0 = inside.require_link("eth0").expect("the interface");
    assert!(eth0.up && inside.require_link("lo").expect("loopback").up);
    assert_eq!(eth0.mtu, 1450);
    let mac = "0a:58:0a:f4:01:02";
    assert_eq!(eth0.mac, mac.parse().ok());
    let addresses = inside.addresses(Some(eth0.index)).expect("addresses");
    let wanted = "10.244.1.2/24".parse().expect("a prefix");
    assert!(addresses.iter().any(|found| found.address == wanted), "{addresses:?}");
    let routes = inside.routes(None).expect("routes");
    let default = routes.iter().find(|route| route.destination.prefix_len() == 0);
    assert_eq!(default.and_then(|route| route.gateway), "10.244.1.1".parse().ok());

    let mut netlink = node.netlink();
    let ends = node_ends(&mut netlink);
    let near = netlink.require_link(&ends[0]).expect("the node's end");
    let bridge = netlink.require_link("cni0").expect("the bridge");
    assert_eq!((near.master, near.hairpin, near.up), (Some(bridge.index), Some(true), true));
    assert_eq!(near.alias.as_deref(), Some("flatnet:c1"));

    let expected = json!({
        "cniVersion": "1.1.0",
        "interfaces": [
            { "name": near.name, "mac": near.mac.expect("a MAC"), "mtu": 1450 },
            { "name": "eth0", "mac": mac, "mtu": 1450, "sandbox": pod.path() },
        ],
        "ips": [{ "interface": 1, "address": "10.244.1.2/24", "gateway": "10.244.1.1" }],
        "routes": [{ "dst": "0.0.0.0/0" }],
        "dns": {},
    });
    assert_eq!(result, expected);
    let gateway = "10.244.1.1".parse::<std::net::IpAddr>().expect("an address");
    let seen = udp_echo(&node.namespace, &pod.namespace, "10.244.1.2".parse().expect("an IP"), 100);
    assert_eq!(seen, gateway, "node and pod talk without an agent");

    assert_eq!(pod.call("DEL", &node.namespace, &config(&node)), Ok(Value::Null));
    assert_eq!(inside.link("eth0").expect("an answer"), None);
    assert_eq!((node_ends(&mut netlink), node.reserved()), (vec![], vec![]));
}

#[test]
fn routers_and_redirects_cannot_teach_a_pod_or_its_node_end() {
    let node = node();
    let pod = Pod::new("c1");
    pod.call("ADD", &node.namespace, &config(&node)).expect("ADD");
    let keys = [
        "net/ipv6/conf/eth0/accept_ra",
        "net/ipv6/conf/eth0/autoconf",
        "net/ipv6/conf/eth0/accept_redirects",
        "net/ipv4/conf/eth0/accept_redirects",
        "net/ipv4/conf/all/accept_redirects",
    ];
    let values = pod.namespace.run(|| keys.map(|key| sysctl::read(key).expect("a value")));
    assert_eq!(values.expect("inside"), ["0"; 5]);
    let end = node_ends(&mut node.netlink()).remove(0);
    let disabled =
        node.namespace.run(|| sysctl::read(&format!("net/ipv6/conf/{end}/disable_ipv6")));
    assert_eq!(disabled.expect("inside").expect("a value"), "1");
}

#[test]
fn del_succeeds_however_often_and_in_whatever_state() {
    let node = node();
    let config = config(&node);
    let pod = Pod::new("c1");
    assert_eq!(pod.call("DEL", &node.namespace, &config), Ok(Value::Null), "never added");
    pod.call("ADD", &node.namespace, &config).expect("ADD");
    for attempt in ["first", "second"] {
        assert_eq!(pod.call("DEL", &node.namespace, &config), Ok(Value::Null), "{attempt}");
    }

    let gone = Pod::new("c2");
    gone.call("ADD", &node.namespace, &config).expect("ADD");
    let id = gone.id.clone();
    drop(gone);
    for namespace in ["", "/proc/1/fd/99999"] {
        let environment = [
            ("CNI_COMMAND", "DEL"),
            ("CNI_CONTAINERID", id.as_str()),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", namespace),
        ];
        let answer = call_plugin(&node.namespace, &environment, &config);
        assert_eq!(answer, Ok(Value::Null), "with CNI_NETNS {namespace:?}");
    }
    assert_eq!((node_ends(&mut node.netlink()), node.reserved()), (vec![], vec![]));
}

#[test]
fn del_frees_only_its_own_address() {
    let node = node();
    let config = config(&node);
    let (one, two) = (Pod::new("c1"), Pod::new("c2"));
    one.call("ADD", &node.namespace, &config).expect("ADD");
    let result = two.call("ADD", &node.namespace, &config).expect("ADD");
    let foreign = with(&config, "prevResult", result);
    one.call("DEL", &node.namespace, &foreign).expect("DEL with another's result");
    assert_eq!(node.reserved(), ["10.244.1.3"]);
    assert!(two.netlink().link("eth0").expect("an answer").is_some());
}

#[test]
fn an_interface_that_exists_is_refused_and_left_alone() {
    let node = node();
    let config = config(&node);
    let pod = Pod::new("c1");
    let mut inside = pod.netlink();
    inside
        .create_bridge(&BridgeSpec { name: "eth0".into(), ..BridgeSpec::default() })
        .expect("a foreign link");
    let error = pod.call("ADD", &node.namespace, &config).expect_err("CNI-10");
    assert_eq!(code(&error), 101);
    assert_eq!((node_ends(&mut node.netlink()), node.reserved()), (vec![], vec![]));
    assert_eq!(inside.require_link("eth0").expect("still there").kind, "bridge");

    let added = Pod::new("c2");
    added.call("ADD", &node.namespace, &config).expect("ADD");
    let twice = added.call("ADD", &node.namespace, &config).expect_err("twice");
    assert_eq!(code(&twice), 101);
    assert_eq!(node.reserved(), ["10.244.1.2"], "the first ADD holds");
    assert!(added.netlink().link("eth0").expect("an answer").is_some());
}

#[test]
fn an_add_that_fails_late_leaves_nothing() {
    let node = node();
    let mut config = config(&node);
    config["ipam"]["routes"] = json!([{ "dst": "192.0.2.0/24", "gw": "203.0.113.9" }]);
    let pod = Pod::new("c1");
    let error = pod.call("ADD", &node.namespace, &config).expect_err("no way to the gateway");
    assert_eq!(code(&error), 100);
    assert!(error["details"].as_str().is_some_and(|text| text.contains("192.0.2.0/24")), "{error}");
    assert_eq!((node_ends(&mut node.netlink()), node.reserved()), (vec![], vec![]));
    assert_eq!(pod.netlink().link("eth0").expect("an answer"), None);
}

#[test]
fn what_a_killed_add_left_is_no_obstacle() {
    let node = node();
    let config = config(&node);
    let pod = Pod::new("c1");
    pod.call("ADD", &node.namespace, &config).expect("ADD");
    let name = node_ends(&mut node.netlink()).remove(0);
    pod.call("DEL", &node.namespace, &config).expect("DEL");

    let mut netlink = node.netlink();
    netlink.create_veth(&VethSpec::new(&name, "orphan")).expect("a pair without an alias");
    pod.call("ADD", &node.namespace, &config).expect("ADD");
    assert_eq!(netlink.link("orphan").expect("an answer"), None);
    pod.call("DEL", &node.namespace, &config).expect("DEL");

    // An address that was reserved before the kill is given back by the DEL that must follow.
    std::fs::write(node.scratch.0.join("flatnet/10.244.1.9"), "c1\r\neth0").expect("reserved");
    let error = pod.call("ADD", &node.namespace, &config).expect_err("a second address");
    assert!(error["msg"].as_str().is_some_and(|text| text.contains("10.244.1.9")), "{error}");
    pod.call("DEL", &node.namespace, &config).expect("DEL");
    pod.call("ADD", &node.namespace, &config).expect("ADD");

    pod.call("DEL", &node.namespace, &config).expect("DEL");
    netlink.create_veth(&VethSpec::new(&name, "peer")).expect("a pair");
    let link = netlink.require_link(&name).expect("the link").index;
    let alias = LinkChange { alias: Some("another program's"), ..LinkChange::default() };
    netlink.change_link(link, &alias).expect("an alias");
    let error = pod.call("ADD", &node.namespace, &config).expect_err("a foreign link");
    assert!(error["msg"].as_str().is_some_and(|text| text.contains("another program")), "{error}");
    assert!(netlink.link("peer").expect("an answer").is_some(), "never touched");
}

#[test]
fn a_bridge_that_is_none_and_a_namespace_that_is_none_are_refused() {
    let node = node();
    let config = config(&node);
    node.netlink().create_veth(&VethSpec::new("cni0", "cni1")).expect("a pair");
    let pod = Pod::new("c1");
    let error = pod.call("ADD", &node.namespace, &config).expect_err("no bridge");
    assert!(
        error["msg"].as_str().is_some_and(|text| text.contains("cni0 is no bridge")),
        "{error}"
    );
    assert_eq!(node.reserved(), Vec::<String>::new());

    let rows = [("/proc/1/fd/99999", 3), ("/dev/null", 4), ("/proc/self/ns/net", 4)];
    for (namespace, expected) in rows {
        let environment = [
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", namespace),
        ];
        let error = call_plugin(&node.namespace, &environment, &config).expect_err(namespace);
        assert_eq!(code(&error), expected, "{namespace}: {error}");
    }
}

#[test]
fn many_adds_and_dels_at_once_share_no_address_and_leave_nothing() {
    let node = node();
    let config = config(&node);
    let pods: Vec<Pod> = (0..PARALLEL).map(|number| Pod::new(&format!("c{number}"))).collect();
    let addresses = Mutex::new(std::collections::BTreeSet::new());
    let all = |command: &str| {
        std::thread::scope(|scope| {
            for pod in &pods {
                let (node, config, addresses) = (&node, &config, &addresses);
                scope.spawn(move || {
                    let result = pod.call(command, &node.namespace, config);
                    let result = result.unwrap_or_else(|error| panic!("{command}: {error}"));
                    if let Some(address) = result["ips"][0]["address"].as_str() {
                        let fresh = addresses.lock().expect("the set").insert(address.to_owned());
                        assert!(fresh, "{address} was given twice");
                    }
                });
            }
        });
    };
    all("ADD");
    assert_eq!(addresses.lock().expect("the set").len(), PARALLEL);
    assert_eq!(node_ends(&mut node.netlink()).len(), PARALLEL);
    all("DEL");
    assert_eq!((node_ends(&mut node.netlink()), node.reserved()), (vec![], vec![]));
}

#[test]
fn an_exhausted_range_is_named_and_frees_with_a_del() {
    let node = node();
    let mut config = config(&node);
    config["ipam"]["ranges"] = json!([[{ "subnet": "10.9.0.0/30" }]]);
    let (one, two) = (Pod::new("c1"), Pod::new("c2"));
    one.call("ADD", &node.namespace, &config).expect("the only address");
    let error = two.call("ADD", &node.namespace, &config).expect_err("none left");
    assert_eq!(code(&error), 102);
    let message = error["msg"].as_str().unwrap_or_default();
    assert!(message.contains("no IP addresses available") && message.contains("10.9.0.1-10.9.0.2"));
    assert_eq!(node_ends(&mut node.netlink()).len(), 1);
    let status = [("CNI_COMMAND", "STATUS")];
    let error = call_plugin(&node.namespace, &status, &config).expect_err("unable");
    assert_eq!(code(&error), 50);
    one.call("DEL", &node.namespace, &config).expect("DEL");
    assert_eq!(call_plugin(&node.namespace, &status, &config), Ok(Value::Null));
    two.call("ADD", &node.namespace, &config).expect("free again");
}

/// A protocol of routes that is not ours.
const LATER_PLUGIN: u8 = 4;

/// Changes one thing that CHECK looks at.
type Damage = fn(&LabNode, &Pod);

fn default_route(netlink: &mut Netlink) -> Route {
    let mut routes = netlink.routes(None).expect("routes").into_iter();
    routes.find(|route| route.destination.prefix_len() == 0).expect("a default route")
}

/// CNI-18.
#[test]
fn check_passes_after_add_and_names_each_damage() {
    let rows: [(&str, Damage); 9] = [
        ("node's link veth", |_, pod| change(&mut pod.netlink(), "eth0", Netlink::delete_link)),
        ("eth0 is gone", |_, pod| {
            change(&mut pod.netlink(), "eth0", |netlink, index| {
                let down = LinkChange { up: Some(false), ..LinkChange::default() };
                netlink.change_link(index, &down)?;
                netlink.change_link(index, &LinkChange { name: Some("eth9"), ..LinkChange::up() })
            });
        }),
        ("eth0 is down", |_, pod| {
            change(&mut pod.netlink(), "eth0", |netlink, index| {
                netlink.change_link(index, &LinkChange { up: Some(false), ..LinkChange::default() })
            });
        }),
        ("another MAC", |_, pod| {
            change(&mut pod.netlink(), "eth0", |netlink, index| {
                let mac = "0a:58:00:00:00:01".parse().ok();
                netlink.change_link(index, &LinkChange { mac, ..LinkChange::default() })
            });
        }),
        ("address 10.244.1.2/24 is missing", |_, pod| {
            change(&mut pod.netlink(), "eth0", |netlink, index| {
                netlink.delete_address(index, "10.244.1.2/24".parse().expect("a prefix"))
            });
        }),
        ("route to 0.0.0.0/0", |_, pod| {
            let mut netlink = pod.netlink();
            let default = default_route(&mut netlink);
            netlink.delete_route(&default).expect("removed");
        }),
        ("route to 0.0.0.0/0", |_, pod| {
            let mut netlink = pod.netlink();
            let default = default_route(&mut netlink);
            netlink.delete_route(&default).expect("removed");
            let gateway = "10.244.1.77".parse().ok();
            netlink.add_route(&Route { gateway, ..default }).expect("another default route");
        }),
        ("no port of the bridge", |node, _| {
            let mut netlink = node.netlink();
            let end = node_ends(&mut netlink).remove(0);
            change(&mut netlink, &end, |netlink, index| {
                netlink.change_link(index, &LinkChange { master: Some(0), ..LinkChange::default() })
            });
        }),
        ("reservation of 10.244.1.2", |node, _| {
            std::fs::remove_file(node.scratch.0.join("flatnet/10.244.1.2")).expect("removed");
        }),
    ];
    for (expected, damage) in rows {
        let node = node();
        let pod = Pod::new("c1");
        let result = pod.call("ADD", &node.namespace, &config(&node)).expect("ADD");
        let check = with(&config(&node), "prevResult", result);
        assert_eq!(pod.call("CHECK", &node.namespace, &check), Ok(Value::Null));
        // A later plugin of the list may add to what is there.
        change(&mut pod.netlink(), "eth0", |netlink, index| {
            netlink.add_address(index, "10.99.0.1/24".parse().expect("a prefix"))?;
            let more = "10.98.0.0/16".parse().expect("a prefix");
            netlink.add_route(&Route::on_link(more, index, LATER_PLUGIN))
        });
        assert_eq!(pod.call("CHECK", &node.namespace, &check), Ok(Value::Null));
        damage(&node, &pod);
        let error = pod.call("CHECK", &node.namespace, &check).expect_err(expected);
        let said = format!("{} {}", error["msg"], error["details"]);
        assert!(said.contains(expected), "{said} should say {expected:?}");
    }
}

fn change(
    netlink: &mut Netlink,
    link: &str,
    change: impl Fn(&mut Netlink, u32) -> Result<(), netlink::Error>,
) {
    let index = netlink.require_link(link).expect("the link").index;
    change(netlink, index).expect("changed");
}

#[test]
fn gc_removes_all_but_the_living() {
    let node = node();
    let config = config(&node);
    let pods = ["c1", "c2", "c3"].map(Pod::new);
    for pod in &pods {
        pod.call("ADD", &node.namespace, &config).expect("ADD");
    }
    let environment = [("CNI_COMMAND", "GC"), ("CNI_PATH", "/opt/cni/bin")];
    let living = json!([{ "containerID": "c2", "ifname": "eth0" }]);
    let config = with(&config, "cni.dev/valid-attachments", living);
    assert_eq!(call_plugin(&node.namespace, &environment, &config), Ok(Value::Null));
    assert_eq!(node.reserved(), ["10.244.1.3"]);
    let there = pods.each_ref().map(|pod| pod.netlink().link("eth0").expect("an answer").is_some());
    assert_eq!(there, [false, true, false]);
}

#[test]
fn versions_are_listed_obeyed_and_refused() {
    let nowhere = Netns::current().expect("own");
    let version = |config: Value| call_plugin(&nowhere, &[("CNI_COMMAND", "VERSION")], &config);
    let supported = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
    for asked in ["0.4.0", "1.0.0", "9.9.9"] {
        let expected = json!({ "cniVersion": asked, "supportedVersions": supported });
        assert_eq!(version(json!({ "cniVersion": asked })), Ok(expected));
    }
    let node = node();
    for (number, asked) in supported.into_iter().enumerate() {
        let pod = Pod::new(&format!("c{number}"));
        let config = with(&config(&node), "cniVersion", json!(asked));
        let result = pod.call("ADD", &node.namespace, &config).expect(asked);
        assert_eq!(result["cniVersion"], asked);
        assert_eq!(result.get("ip4").is_some(), asked < "0.3.0", "{asked}");
    }
    let pod = Pod::new("late");
    let new = with(&config(&node), "cniVersion", json!("2.0.0"));
    assert_eq!(code(&pod.call("ADD", &node.namespace, &new).expect_err("too new")), 1);
    let old = with(&config(&node), "cniVersion", json!("0.3.1"));
    let error = pod.call("CHECK", &node.namespace, &old).expect_err("too old for CHECK");
    assert_eq!((code(&error), error["cniVersion"].as_str()), (1, Some("0.3.1")));
}
