//! the power fails at any write of ADD, DEL and GC. Of what was written only that is
//! certain which was synced; the rest is lost, torn or there. In each such state: reservations
//! are whole, one GC frees what nobody has and keeps what somebody has, and the next ADD works.

mod lab;
mod tracer;
mod write_log;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;

use lab::{LabNode, Pod, call_plugin};
use serde_json::{Value, json};
use write_log::{State, WriteLog};

/// Cuts that a command must have for the test to mean something.
const CUTS_MIN: usize = 5;

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
        "ipam": {
            "type": "host-local",
            "dataDir": node.scratch.0,
            "ranges": [[{ "subnet": "10.244.1.0/29" }], [{ "subnet": "fd00:1::/125" }]],
        },
    })
}

fn with_living(node: &LabNode, living: &[&str]) -> Value {
    let mut config = config(node);
    let entries = living.iter().map(|id| json!({ "containerID": id, "ifname": "eth0" }));
    config["cni.dev/valid-attachments"] = entries.collect();
    config
}

fn collect(node: &LabNode, living: &[&str]) {
    let environment = [("CNI_COMMAND", "GC"), ("CNI_PATH", "/opt/cni/bin")];
    let answer = call_plugin(&node.namespace, &environment, &with_living(node, living));
    assert_eq!(answer, Ok(Value::Null));
}

/// Carries out a command for the pod `victim`, while `survivor` has addresses too; answers what
/// it wrote.
fn log_of(command: &str) -> WriteLog {
    let node = node();
    let [survivor, victim] = ["survivor", "victim"].map(Pod::new);
    survivor.call("ADD", &node.namespace, &config(&node)).expect("ADD");
    if command != "ADD" {
        victim.call("ADD", &node.namespace, &config(&node)).expect("ADD");
    }
    let mut log = WriteLog::new(&node.scratch.0);
    let input = with_living(&node, &["survivor"]).to_string();
    let path = victim.path();
    let mut environment = vec![("CNI_COMMAND", command), ("CNI_PATH", "/opt/cni/bin")];
    if command != "GC" {
        environment.extend([
            ("CNI_CONTAINERID", "victim"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", path.as_str()),
        ]);
    }
    let traced = || {
        let mut program = Command::new(env!("CARGO_BIN_EXE_flatnet-cni"));
        program.env_clear().envs(environment);
        tracer::run(&mut program, &input, None, |call, returned| log.observe(call, returned))
    };
    let run = node.namespace.run(traced).expect("the node's namespace");
    assert!(run.success, "{command}: {}", run.output);
    let left = State::read(&node.scratch.0);
    assert!(
        log.states_after(log.len()).contains(&left),
        "{command}: the log lacks something that was written"
    );
    log
}

/// Addresses and owners in a state.
fn reservations(state: &State) -> BTreeSet<(IpAddr, String)> {
    let named = state.names.iter().filter_map(|(path, inode)| {
        let address = path.file_name()?.to_str()?.parse().ok()?;
        let content = String::from_utf8_lossy(state.contents.get(inode)?).into_owned();
        Some((address, content))
    });
    named.collect()
}

/// After the cut the machine starts again: a node without any link, and the files.
fn assert_recovers(state: &State, when: &str) {
    for (address, owner) in reservations(state) {
        let whole = ["survivor\r\neth0", "victim\r\neth0"].contains(&owner.as_str());
        assert!(whole, "{when}: the reservation of {address} is torn: {owner:?}");
    }
    let node = node();
    state.write(&node.scratch.0);
    let of_survivor = |found: BTreeSet<(IpAddr, String)>| -> BTreeSet<IpAddr> {
        found.into_iter().filter(|one| one.1.starts_with("survivor")).map(|one| one.0).collect()
    };
    let kept = of_survivor(reservations(state));
    assert_eq!(kept.len(), 2, "{when}: what was durable before stays");
    collect(&node, &["survivor"]);
    let reserved = |path: &Path| -> BTreeSet<IpAddr> {
        reservations(&State::read(path)).into_iter().map(|one| one.0).collect()
    };
    assert_eq!(reserved(&node.scratch.0), kept, "{when}: after one GC");
    let next = Pod::new("next");
    let answer = next.call("ADD", &node.namespace, &config(&node));
    let answer = answer.unwrap_or_else(|error| panic!("{when}: the next ADD: {error}"));
    for entry in answer["ips"].as_array().expect("addresses") {
        let text = entry["address"].as_str().and_then(|text| text.split('/').next());
        let address: IpAddr = text.and_then(|text| text.parse().ok()).expect("an address");
        assert!(!kept.contains(&address), "{when}: {address} is the survivor's");
    }
    collect(&node, &[]);
    assert_eq!(reserved(&node.scratch.0), BTreeSet::new(), "{when}: nobody lives");
}

fn cut_everywhere(command: &str) -> WriteLog {
    let log = log_of(command);
    assert!(log.len() >= CUTS_MIN, "{command} makes only {} changes", log.len());
    let mut seen = BTreeSet::new();
    for cut in 0..=log.len() {
        for state in log.states_after(cut) {
            if seen.insert(state.clone()) {
                assert_recovers(&state, &format!("{command} cut after change {cut}"));
            }
        }
    }
    log
}

fn owners(state: &State) -> BTreeSet<String> {
    reservations(state).into_iter().map(|one| one.1).collect()
}

#[test]
fn a_power_cut_during_add_tears_and_loses_nothing_and_what_was_answered_stays() {
    let log = cut_everywhere("ADD");
    for state in log.states_after(log.len()) {
        assert!(owners(&state).contains("victim\r\neth0"), "answered, and lost: {state:?}");
    }
}

#[test]
fn a_power_cut_during_del_tears_and_loses_nothing_and_what_was_answered_stays() {
    let log = cut_everywhere("DEL");
    for state in log.states_after(log.len()) {
        assert!(!owners(&state).contains("victim\r\neth0"), "given back, and back: {state:?}");
    }
}

#[test]
fn a_power_cut_during_gc_tears_and_loses_nothing_and_what_was_answered_stays() {
    let log = cut_everywhere("GC");
    for state in log.states_after(log.len()) {
        assert!(!owners(&state).contains("victim\r\neth0"), "given back, and back: {state:?}");
    }
}
