//! `flatnet ipam` as people call it, on a directory of the test and pods in namespaces of their
//! own. Needs root.

use std::fs;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::process::Command;

use ipam::{Ask, Directory, RangeSet, Withheld};
use model::attachment::PodLink;
use model::{Attachment, NamespacedName, Timestamp};
use netlink::{LinkChange, Netlink, Netns, VethSpec};
use serde_json::{Value, json};

const NETWORK: &str = "lab";

/// A node with a network whose ranges have few addresses.
struct Node {
    namespace: Netns,
    place: PathBuf,
    ranges: Value,
}

/// A pod of it; gone with the value.
struct Pod {
    namespace: Netns,
    record: Attachment,
}

impl Node {
    fn new(test: &str) -> Self {
        let name = format!("flatnet-ipam-command-{test}-{}", std::process::id());
        let place = std::env::temp_dir().join(name);
        let _ = fs::remove_dir_all(&place);
        for directory in ["net.d", "records/lab"] {
            fs::create_dir_all(place.join(directory)).expect("a directory");
        }
        let ranges = json!([[{ "subnet": "10.77.0.0/28" }]]);
        let list = json!({
            "cniVersion": "1.1.0",
            "name": NETWORK,
            "plugins": [
                {
                    "type": "flatnet",
                    "dataDir": place.join("records"),
                    "ipam": {
                        "type": "host-local",
                        "dataDir": place.join("networks"),
                        "ranges": ranges,
                        "reserved": ["10.77.0.8"],
                    },
                },
                { "type": "portmap", "capabilities": { "portMappings": true } },
            ],
        });
        fs::write(place.join("net.d/10-lab.conflist"), list.to_string()).expect("written");
        let namespace = Netns::create().expect("a network namespace (these tests need root)");
        Self { namespace, place, ranges }
    }

    fn directory(&self) -> Directory {
        Directory::open(&self.place.join("networks"), NETWORK).expect("the directory")
    }

    fn reserve(&self, id: &str) -> IpAddr {
        let sets: Vec<RangeSet> = serde_json::from_value(self.ranges.clone()).expect("ranges");
        let ask = Ask {
            sets: &sets,
            withheld: &Withheld::default(),
            container_id: id,
            interface: "eth0",
            requested: &[],
        };
        self.directory().reserve(&ask).expect("an address")[0].address
    }

    /// A pod as the plugin leaves it: reservation, record, link and address.
    fn add_pod(&self, id: &str) -> Pod {
        let address = self.reserve(id);
        let namespace = Netns::create().expect("a network namespace");
        let end = format!("veth{id}");
        let mut node = Netlink::open_in(&self.namespace).expect("a socket");
        node.create_veth(&VethSpec::new(&end, "eth0").peer_in(&namespace)).expect("a link");
        let mut inside = Netlink::open_in(&namespace).expect("a socket");
        let link = inside.require_link("eth0").expect("the link").index;
        let prefix = format!("{address}/28").parse().expect("a prefix");
        inside.add_address(link, prefix).expect("its address");
        inside.change_link(link, &LinkChange::up()).expect("up");
        let record = Attachment {
            network: NETWORK.into(),
            container_id: id.into(),
            interface: "eth0".into(),
            namespace: format!("/proc/{}/fd/{}", std::process::id(), namespace.as_fd().as_raw_fd()),
            pod: Some(NamespacedName { namespace: "shop".into(), name: format!("web-{id}") }),
            link: PodLink::Routed { name: end },
            addresses: vec![prefix],
            ..Attachment::default()
        };
        self.write(&record);
        Pod { namespace, record }
    }

    fn write(&self, record: &Attachment) {
        let name = format!("{}-{}.json", record.container_id, record.interface);
        let text = serde_json::to_string(record).expect("JSON");
        fs::write(self.place.join("records/lab").join(name), text).expect("written");
    }

    /// Exit code, standard output, standard error.
    fn call(&self, arguments: &[&str]) -> (i32, String, String) {
        let run = || {
            Command::new(env!("CARGO_BIN_EXE_flatnet"))
                .arg("ipam")
                .args(arguments)
                .arg("--config-directory")
                .arg(self.place.join("net.d"))
                .output()
                .expect("flatnet runs")
        };
        let output = self.namespace.run(run).expect("the node's namespace");
        let text = |bytes| String::from_utf8(bytes).expect("text");
        (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let (_, text, error) = self.call(&[arguments, &["--output", "json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|_| panic!("JSON: {text:?} {error}"))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.place);
    }
}

#[test]
fn show_says_of_each_address_who_has_it_or_why_else() {
    let node = Node::new("show");
    let _pod = node.add_pod("c1");
    node.reserve("c2");
    let released_at = Timestamp::from_seconds(4_000_000_000); // rests for longer than the test
    node.reserve("c3");
    node.directory().release("c3", "eth0", released_at).expect("released");

    let (code, text, error) = node.call(&["show"]);
    assert_eq!((code, error.as_str()), (0, ""));
    let lines: Vec<&str> = text.lines().collect();
    let column = lines[0].find("HOLDER").expect("a header");
    let expected = [
        ("10.77.0.0", "network", ""),
        ("10.77.0.1", "gateway", ""),
        ("10.77.0.2", "held", "shop/web-c1 (c1)"),
        ("10.77.0.3", "held", "c2"),
        ("10.77.0.4", "free, rests until 2096-10-02T07:07:10Z", ""),
        ("10.77.0.15", "broadcast", ""),
    ];
    for ((address, state, holder), line) in expected.iter().zip(&lines[1..]) {
        assert!(line.starts_with(&format!("{address} ")), "{line}");
        assert!(line.contains(state), "{line} should say {state}");
        let cell = line.get(column..).unwrap_or_default();
        assert!(cell.starts_with(holder), "{line}: {cell:?} should be {holder:?}");
    }
    assert!(text.contains("10.77.0.1-10.77.0.14   lab       2      10     1"), "{text}");

    for (address, state) in
        [("10.77.0.8", "reserved"), ("10.77.0.9", "free"), ("10.77.0.2", "held")]
    {
        let found = node.json(&["show", address]);
        assert_eq!(found["addresses"][0]["state"], state, "{address}: {found}");
    }
    let held = node.json(&["show", "10.77.0.2"]);
    assert_eq!(held["addresses"][0]["pod"], json!({ "namespace": "shop", "name": "web-c1" }));
    let (code, _, error) = node.call(&["show", "192.0.2.1"]);
    assert!(code == 1 && error.contains("is of no network of this node; it has lab"), "{error}");
    let elsewhere = ["show", "--node", "node1", "--name", "no-such-cluster"];
    let (code, _, error) = node.call(&elsewhere);
    assert!(code == 1 && error.contains("there is no cluster no-such-cluster"), "{error}");
    let (code, yaml, _) = node.call(&["show", "10.77.0.2", "-o", "yaml"]);
    assert!(code == 0 && yaml.contains("containerID: c1"), "{yaml}");
}

#[test]
fn check_is_quiet_when_all_is_well_and_names_each_kind_of_damage() {
    type Damage = fn(&Node, &mut Pod);
    let rows: [(&str, Damage); 5] = [
        ("leaked by pod shop/web-c1", |node, pod| {
            pod.record.namespace = "/proc/1/fd/99999".into();
            node.write(&pod.record);
        }),
        ("which lost it", |_, pod| {
            let mut inside = Netlink::open_in(&pod.namespace).expect("a socket");
            let link = inside.require_link("eth0").expect("the link").index;
            inside.delete_address(link, pod.record.addresses[0]).expect("removed");
        }),
        ("two pods have it", |node, pod| {
            let record = Attachment { container_id: "c9".into(), ..pod.record.clone() };
            node.write(&record);
        }),
        ("given twice", |node, pod| {
            let address = pod.record.addresses[0].addr().to_string();
            fs::remove_file(node.place.join("networks/lab").join(address)).expect("removed");
        }),
        ("names no container", |node, _| {
            fs::write(node.place.join("networks/lab/10.77.0.9"), "").expect("torn");
        }),
    ];
    for (index, (expected, damage)) in rows.into_iter().enumerate() {
        let node = Node::new(&format!("check{index}"));
        let mut pod = node.add_pod("c1");
        let (code, text, error) = node.call(&["check"]);
        assert_eq!((code, error.as_str()), (0, ""), "{text}");
        assert_eq!(text, "nothing is wrong with the 1 held addresses\n");
        assert_eq!(node.json(&["check"]), json!([]));
        damage(&node, &mut pod);
        let (code, text, error) = node.call(&["check"]);
        assert_eq!((code, error.as_str()), (1, ""), "{text}");
        assert!(text.contains(expected), "{text} should say {expected:?}");
    }
}

#[test]
fn release_spares_the_living_unless_it_is_forced() {
    let node = Node::new("release");
    let mut pod = node.add_pod("c1");
    let address = pod.record.addresses[0].addr().to_string();
    let release = |arguments: &[&str]| node.call(&[&["release"], arguments].concat());
    let is_held = |address: &str| {
        let address = address.parse::<IpAddr>().expect("an address");
        node.directory().reservations().expect("listed").contains_key(&address)
    };

    let (code, _, error) = release(&[&address]);
    assert!(code == 1 && error.contains("container c1 lives"), "{error}");
    assert!(is_held(&address));
    let unknown = node.reserve("other").to_string();
    let (code, _, error) = release(&[&unknown]);
    assert!(code == 1 && error.contains("no record"), "{error}");
    assert!(is_held(&unknown));
    let (code, text, error) = release(&[&unknown, "--force"]);
    assert_eq!((code, error.as_str()), (0, ""));
    assert_eq!(text, format!("released {unknown} of lab (other)\n"));
    assert!(!is_held(&unknown));

    pod.record.namespace = "/proc/1/fd/99999".into();
    node.write(&pod.record);
    let found = node.json(&["release", &address]);
    assert_eq!(found[0]["containerID"], "c1");
    assert!(!is_held(&address));
    let (code, _, error) = release(&[&address]);
    assert!(code == 1 && error.contains("nobody holds"), "{error}");
    let (code, _, error) = release(&["10.77.0.1"]);
    assert!(code == 1 && error.contains("flatnet ipam show 10.77.0.1"), "{error}");
}
