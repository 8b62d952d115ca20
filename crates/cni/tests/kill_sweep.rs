//! the plugin is killed in front of each system call of ADD, DEL and GC. Whatever that
//! leaves: no address is on two pods, one GC (or the DEL that a runtime sends) brings back all
//! that is not in use, and the next ADD works.

mod lab;
mod tracer;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;

use lab::{LabNode, Pod, call_plugin};
use netlink::Netns;
use serde_json::{Value, json};
use tracer::Run;

/// Calls of one command that the sweep may find; an ADD makes a few hundred.
const CALLS_MAX: usize = 5_000;
/// Points that all sweeps must have together for the requirement, and each at least.
const POINTS_MIN: usize = 200;

/// A node with a pod that lives through everything, on so few addresses that one lost is missed.
struct Sweep {
    node: LabNode,
    config: Value,
    survivor: Pod,
    survivor_address: IpAddr,
}

impl Sweep {
    fn new() -> Self {
        let node = LabNode::alone("node1", Ipv4Addr::new(172, 30, 0, 2).into());
        let config = json!({
            "cniVersion": "1.1.0",
            "name": "flatnet",
            "type": "flatnet",
            "dataDir": node.scratch.0.join("records"),
            "bridge": "cni0",
            "ipam": {
                "type": "host-local",
                "dataDir": node.scratch.0,
                "ranges": [
                    [{ "subnet": "10.244.1.0/24", "rangeEnd": "10.244.1.4" }],
                    [{ "subnet": "fd00:1::/64", "rangeEnd": "fd00:1::4" }],
                ],
                "routes": [{ "dst": "0.0.0.0/0" }],
            },
        });
        let survivor = Pod::new("survivor");
        let result = survivor.call("ADD", &node.namespace, &config).expect("ADD");
        let survivor_address = first_address(&result);
        Self { node, config, survivor, survivor_address }
    }

    fn call(&self, pod: &Pod, command: &str) -> Result<Value, Value> {
        pod.call(command, &self.node.namespace, &self.config)
    }

    /// Runs a command under the tracer; `None` as the stop lets it end.
    fn run(&self, command: &str, pod: &Pod, living: &[&Pod], stop_at: Option<usize>) -> Run {
        let path = pod.path();
        let environment: BTreeMap<&str, &str> = match command {
            "GC" => BTreeMap::from([("CNI_COMMAND", "GC"), ("CNI_PATH", "/opt/cni/bin")]),
            _ => BTreeMap::from([
                ("CNI_COMMAND", command),
                ("CNI_CONTAINERID", pod.id.as_str()),
                ("CNI_IFNAME", "eth0"),
                ("CNI_NETNS", path.as_str()),
                ("CNI_PATH", "/opt/cni/bin"),
            ]),
        };
        let input = self.with_living(living).to_string();
        let traced = || {
            let mut program = Command::new(env!("CARGO_BIN_EXE_flatnet-cni"));
            program.env_clear().envs(&environment);
            tracer::run(&mut program, &input, stop_at, |_, _| {})
        };
        self.node.namespace.run(traced).expect("the node's namespace")
    }

    fn collect(&self, living: &[&Pod]) {
        let environment = [("CNI_COMMAND", "GC"), ("CNI_PATH", "/opt/cni/bin")];
        let answer = call_plugin(&self.node.namespace, &environment, &self.with_living(living));
        assert_eq!(answer, Ok(Value::Null));
    }

    fn with_living(&self, living: &[&Pod]) -> Value {
        let mut config = self.config.clone();
        let entries = living.iter().map(|pod| json!({ "containerID": pod.id, "ifname": "eth0" }));
        config["cni.dev/valid-attachments"] = entries.collect();
        config
    }

    /// All that is reserved is what these pods have, and no other pod's link is on the node.
    fn assert_only(&self, pods: &[&Pod], when: &str) {
        let reserved: BTreeSet<IpAddr> =
            self.node.reserved().iter().map(|name| name.parse().expect("an address")).collect();
        let used: BTreeSet<IpAddr> =
            pods.iter().flat_map(|pod| addresses(&pod.namespace)).collect();
        assert_eq!(reserved, used, "{when}: the reservations are those of the living");
        let records = std::fs::read_dir(self.node.scratch.0.join("records/flatnet"));
        let records: BTreeSet<String> = records
            .expect("records")
            .flatten()
            .filter_map(|entry| {
                entry.file_name().to_str()?.strip_suffix("-eth0.json").map(str::to_owned)
            })
            .collect();
        let names: BTreeSet<String> = pods.iter().map(|pod| pod.id.clone()).collect();
        assert_eq!(records, names, "{when}: the records");
        let links = self.node.netlink().links().expect("links");
        let ends = links.iter().filter(|link| link.kind == "veth").count();
        assert_eq!(ends, pods.len(), "{when}: the node's ends of pod links");
    }
}

/// The addresses that others may send to, in a pod.
fn addresses(pod: &Netns) -> BTreeSet<IpAddr> {
    let mut netlink = netlink::Netlink::open_in(pod).expect("a socket in the pod");
    let found = netlink.addresses(None).expect("addresses");
    let global = |address: &IpAddr| match address {
        IpAddr::V4(address) => !address.is_loopback(),
        IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local(),
    };
    found.into_iter().map(|found| found.address.addr()).filter(global).collect()
}

fn assert_apart(one: &Pod, other: &Pod, when: &str) {
    let (left, right) = (addresses(&one.namespace), addresses(&other.namespace));
    let double: Vec<&IpAddr> = left.intersection(&right).collect();
    assert!(double.is_empty(), "{when}: {double:?} is on {} and {}", one.id, other.id);
}

fn first_address(result: &Value) -> IpAddr {
    let text = result["ips"][0]["address"].as_str().and_then(|text| text.split('/').next());
    text.and_then(|text| text.parse().ok()).expect("an address")
}

/// Kills a command at every call; answers how many points there were.
fn sweep(command: &str) -> usize {
    let sweep = Sweep::new();
    for stop_at in 1..CALLS_MAX {
        let victim = Pod::new(&format!("victim{stop_at}"));
        if command != "ADD" {
            sweep.call(&victim, "ADD").expect("ADD before");
        }
        let run = sweep.run(command, &victim, &[&sweep.survivor], Some(stop_at));
        let Some(number) = run.killed_at else {
            assert!(run.success, "{command} without a kill: {}", run.output);
            return stop_at - 1;
        };
        let when = format!("{command} killed at call {stop_at} (number {number})");

        let neighbour = Pod::new(&format!("neighbour{stop_at}"));
        let result = sweep.call(&neighbour, "ADD");
        result.unwrap_or_else(|error| panic!("{when}: the next ADD: {error}"));
        // There are three addresses. Where the victim's was given back, this one gets it.
        let intruder = Pod::new(&format!("intruder{stop_at}"));
        let was_free = sweep.call(&intruder, "ADD").is_ok();
        let others = [&sweep.survivor, &victim, &neighbour];
        for (index, pod) in others.iter().enumerate() {
            for other in others[index + 1..].iter().chain([&&intruder]) {
                assert_apart(pod, other, &when);
            }
        }
        if was_free {
            sweep.call(&intruder, "DEL").unwrap_or_else(|error| panic!("{when}: DEL: {error}"));
        }

        // A runtime sends either.
        if stop_at % 2 == 0 {
            sweep.collect(&[&sweep.survivor, &neighbour]);
        } else {
            sweep.call(&victim, "DEL").unwrap_or_else(|error| panic!("{when}: DEL: {error}"));
        }
        sweep.assert_only(&[&sweep.survivor, &neighbour], &when);
        let again = sweep.call(&victim, "ADD");
        again.unwrap_or_else(|error| panic!("{when}: the victim's next ADD: {error}"));
        for pod in [&victim, &neighbour] {
            sweep.call(pod, "DEL").unwrap_or_else(|error| panic!("{when}: DEL: {error}"));
        }
        sweep.assert_only(&[&sweep.survivor], &when);
        let kept = addresses(&sweep.survivor.namespace);
        assert!(kept.contains(&sweep.survivor_address), "{when}: the survivor keeps its address");
    }
    panic!("{command} makes more than {CALLS_MAX} calls");
}

#[test]
fn a_kill_at_any_call_of_add_loses_and_doubles_nothing() {
    let points = sweep("ADD");
    assert!(points >= POINTS_MIN, "only {points} points");
}

#[test]
fn a_kill_at_any_call_of_del_loses_and_doubles_nothing() {
    let points = sweep("DEL");
    assert!(points >= POINTS_MIN / 4, "only {points} points");
}

#[test]
fn a_kill_at_any_call_of_gc_loses_and_doubles_nothing() {
    let points = sweep("GC");
    assert!(points >= POINTS_MIN / 4, "only {points} points");
}
