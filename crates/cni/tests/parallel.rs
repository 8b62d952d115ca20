//! CNI-24: many ADDs and DELs at once, through our runtime side as a container runtime would.

mod lab;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::Ipv4Addr;

use cni::runtime_side::{Driver, List, Target};
use lab::{LabNode, Pod};
use serde_json::json;

const CONTAINERS: usize = 64;
/// Each container gets so many interfaces: 256 in all.
const INTERFACES: usize = 4;

#[test]
fn hundreds_of_adds_at_once_share_no_address_and_leave_nothing() {
    let node = LabNode::alone("node1", Ipv4Addr::new(172, 30, 0, 2).into());
    let plugins = node.scratch.0.join("plugins");
    fs::create_dir_all(&plugins).expect("a directory");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_flatnet-cni"), plugins.join("flatnet"))
        .expect("installed");
    let driver =
        Driver { plugin_path: vec![plugins], cache_directory: node.scratch.0.join("cache") };
    let list = List::from_value(json!({
        "cniVersion": "1.1.0",
        "name": "flatnet",
        "plugins": [{
            "type": "flatnet",
            "dataDir": node.scratch.0.join("records"),
            "ipam": {
                "type": "host-local", "dataDir": node.scratch.0,
                "ranges": [[{ "subnet": "10.244.0.0/22" }], [{ "subnet": "fd00:1::/64" }]],
            },
        }],
    }))
    .expect("a list");
    let pods: Vec<Pod> = (0..CONTAINERS).map(|number| Pod::new(&format!("c{number}"))).collect();
    let targets: Vec<Target> = pods
        .iter()
        .flat_map(|pod| (0..INTERFACES).map(move |number| target(pod, number)))
        .collect();

    let results = at_once(&node, &targets, |target| driver.add(&list, target));
    let mut owners: BTreeMap<String, &Target> = BTreeMap::new();
    for (target, result) in targets.iter().zip(results) {
        let result = result.unwrap_or_else(|fault| panic!("{target:?}: {fault}"));
        for entry in result["ips"].as_array().expect("addresses") {
            let address = entry["address"].as_str().expect("an address").to_owned();
            if let Some(other) = owners.insert(address.clone(), target) {
                panic!("{address} was given to {other:?} and to {target:?}");
            }
        }
    }
    assert_eq!(owners.len(), 2 * targets.len());
    assert_eq!(node.reserved().len(), 2 * targets.len());
    // What the pods have is what the results say.
    for pod in &pods {
        let addresses = pod.netlink().addresses(None).expect("addresses");
        let own: BTreeSet<String> = addresses.iter().map(|one| one.address.to_string()).collect();
        let said = owners.iter().filter(|(_, target)| target.container_id == pod.id);
        for (address, _) in said {
            assert!(own.contains(address), "{} lacks {address}", pod.id);
        }
    }

    let results = at_once(&node, &targets, |target| driver.del(&list, target));
    for (target, result) in targets.iter().zip(results) {
        result.unwrap_or_else(|fault| panic!("{target:?}: {fault}"));
    }
    let links = node.netlink().links().expect("links");
    let ends: Vec<_> = links.into_iter().filter(|link| link.kind == "veth").collect();
    assert_eq!((ends.len(), node.reserved().len()), (0, 0));
    for directory in ["records/flatnet", "cache/results"] {
        assert_eq!(state(&node, directory), [] as [&str; 0], "{directory}");
    }
}

fn target(pod: &Pod, number: usize) -> Target {
    Target {
        container_id: pod.id.clone(),
        namespace: pod.path().into(),
        interface: format!("net{number}"),
        ..Target::default()
    }
}

/// Runs work for every target at one time, each on a thread in the node's namespace.
fn at_once<T: Send>(
    node: &LabNode,
    targets: &[Target],
    work: impl Fn(&Target) -> T + Sync,
) -> Vec<T> {
    std::thread::scope(|scope| {
        let work = &work;
        let start = |target| {
            scope.spawn(move || node.namespace.run(|| work(target)).expect("the node's namespace"))
        };
        let running: Vec<_> = targets.iter().map(start).collect();
        running.into_iter().map(|thread| thread.join().expect("ended")).collect()
    })
}

/// Files of state; locks and notes may stay.
fn state(node: &LabNode, directory: &str) -> Vec<String> {
    let entries = fs::read_dir(node.scratch.0.join(directory)).expect("the directory");
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| !name.starts_with('.') && !["lock", "boot"].contains(&&**name)).collect()
}
