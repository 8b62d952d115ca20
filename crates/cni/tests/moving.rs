//! Moving a live node from the reference plugins (as flannel and bridge + host-local use them) to
//! flatnet and back, as `docs/moving.md` tells it: running pods keep their addresses and talk to
//! new ones, no address is given twice, and pods of before are removed by the plugin of now.

mod lab;

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use cni::runtime_side::{Driver, List, Target};
use lab::{LabNode, Pod, udp_echo};
use serde_json::{Value, json};

/// Where Debian puts the reference plugins.
const REFERENCE_PLUGINS: &str = "/usr/lib/cni";
/// flannel's network, and so the directory of its addresses.
const FLANNEL_NETWORK: &str = "cbr0";
const RANGE: &str = "10.244.1.0/24";

/// A node whose list of plugins can change.
struct MovingNode {
    node: LabNode,
    driver: Driver,
}

impl MovingNode {
    fn new() -> Self {
        let node = LabNode::alone("node1", Ipv4Addr::new(172, 30, 0, 2).into());
        let reference = PathBuf::from(REFERENCE_PLUGINS);
        assert!(reference.join("bridge").is_file(), "install Debian's containernetworking-plugins");
        let own = node.scratch.0.join("plugins");
        fs::create_dir_all(&own).expect("a directory");
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_flatnet-cni"), own.join("flatnet"))
            .expect("installed");
        let driver = Driver {
            plugin_path: vec![own, reference],
            cache_directory: node.scratch.0.join("cache"),
        };
        Self { node, driver }
    }

    /// What flannel's own plugin delegates to on each node.
    fn before(&self) -> List {
        let data = self.node.scratch.0.join("networks");
        let ipam = json!({
            "type": "host-local", "dataDir": data, "subnet": RANGE,
            "routes": [{ "dst": "0.0.0.0/0" }],
        });
        let bridge = json!({
            "type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "ipam": ipam,
        });
        list(FLANNEL_NETWORK, bridge)
    }

    fn after(&self) -> List {
        let data = self.node.scratch.0.join("networks");
        let records = self.node.scratch.0.join("records");
        let ipam = json!({
            "type": "host-local", "dataDir": data, "ranges": [[{ "subnet": RANGE }]],
            "routes": [{ "dst": "0.0.0.0/0" }],
        });
        list(
            "flatnet",
            json!({ "type": "flatnet", "bridge": "cni0", "dataDir": records, "ipam": ipam }),
        )
    }

    fn target(&self, pod: &Pod) -> Target {
        Target {
            container_id: pod.id.clone(),
            namespace: pod.path().into(),
            interface: "eth0".into(),
            arguments: vec![],
            capabilities: serde_json::Map::new(),
        }
    }

    fn add(&self, list: &List, pod: &Pod) -> IpAddr {
        let target = self.target(pod);
        let added = self.node.namespace.run(|| self.driver.add(list, &target)).expect("inside");
        let result: Value = added.unwrap_or_else(|fault| panic!("ADD of {}: {fault:?}", pod.id));
        let text = result["ips"][0]["address"].as_str().expect("an address");
        text.split('/').next().and_then(|text| text.parse().ok()).expect("an address")
    }

    fn delete(&self, list: &List, pod: &Pod) {
        let target = self.target(pod);
        let deleted = self.node.namespace.run(|| self.driver.del(list, &target)).expect("inside");
        deleted.unwrap_or_else(|fault| panic!("DEL of {}: {fault:?}", pod.id));
    }

    /// The addresses that files say are taken.
    fn taken(&self, network: &str) -> BTreeSet<IpAddr> {
        let directory = self.node.scratch.0.join("networks").join(network);
        let names = fs::read_dir(directory).into_iter().flatten().flatten();
        names.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }

    /// The one step by hand that the page asks for: `cp -a FROM/. TO/`.
    fn carry_over(&self, from: &str, to: &str) {
        let networks = self.node.scratch.0.join("networks");
        fs::create_dir_all(networks.join(to)).expect("a directory");
        copy_files(&networks.join(from), &networks.join(to));
    }
}

fn copy_files(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("a directory").flatten() {
        fs::copy(entry.path(), to.join(entry.file_name())).expect("copied");
    }
}

fn list(name: &str, plugin: Value) -> List {
    let list = json!({ "cniVersion": "1.0.0", "name": name, "plugins": [plugin] });
    List::from_value(list).expect("a list")
}

#[test]
fn a_live_node_moves_from_bridge_and_host_local_to_flatnet_and_back() {
    let moving = MovingNode::new();
    let (before, after) = (moving.before(), moving.after());
    let [old_one, old_two, new_one, new_two, last] =
        ["old-1", "old-2", "new-1", "new-2", "last"].map(Pod::new);
    let one = moving.add(&before, &old_one);
    let two = moving.add(&before, &old_two);

    moving.carry_over(FLANNEL_NETWORK, "flatnet");
    let three = moving.add(&after, &new_one);
    let four = moving.add(&after, &new_two);
    let all = BTreeSet::from([one, two, three, four]);
    assert_eq!(all.len(), 4, "no address twice: {all:?}");
    // Both ways, between the plugin of before and that of now, on one bridge.
    assert_eq!(udp_echo(&new_one.namespace, &old_one.namespace, one, 100), three);
    assert_eq!(udp_echo(&old_one.namespace, &new_one.namespace, three, 100), one);
    // A runtime deletes by the list that is there now.
    moving.delete(&after, &old_one);
    assert_eq!(moving.taken("flatnet"), BTreeSet::from([two, three, four]));

    moving.carry_over("flatnet", FLANNEL_NETWORK);
    let stale = moving.node.scratch.0.join("networks").join(FLANNEL_NETWORK).join(one.to_string());
    fs::remove_file(stale).expect("what was released meanwhile");
    let five = moving.add(&before, &last);
    assert!(![two, three, four].contains(&five), "{five} is another pod's");
    assert_eq!(udp_echo(&last.namespace, &new_one.namespace, three, 100), five);
    moving.delete(&before, &new_one);
    assert_eq!(moving.taken(FLANNEL_NETWORK), BTreeSet::from([two, four, five]));
}
