//! for rules at pods' edges: each damage is repaired and named, nothing is written
//! without one, and nothing foreign is touched.

use std::process::Command;

use kernel::nft::NftDriver;
use model::attachment::{Firewall, IngressPolicy, Masquerade, PortMapping};
use model::{Attachment, Protocol};
use render::nft::language::{LinkName, Value};
use render::nft::{Command as NftCommand, Transaction};

use crate::lab::{Lab, net};

/// Three pods that need everything.
fn records(lab: &Lab) -> Vec<Attachment> {
    let mut records = [&lab.a, &lab.b, &lab.routed].map(|pod| pod.attachment.clone());
    for (host_port, record) in (8080..).zip(&mut records) {
        record.edge.extra_sources = vec![net("203.0.113.0/29"), net("fd99::/64")];
        record.edge.masquerade = Some(Masquerade { except: vec![net("10.50.0.0/16")] });
        record.edge.firewall = Some(Firewall { ingress_policy: IngressPolicy::SameBridge });
        record.edge.metadata_blocked = true;
        record.edge.node_ports = Some(vec![]);
        record.edge.host_ports = vec![PortMapping {
            host_port,
            container_port: 80,
            protocol: Protocol::Tcp,
            host_ip: None,
            snat: true,
            masquerade_all: true,
        }];
    }
    records.to_vec()
}

fn nft(lab: &Lab, arguments: &[&str]) -> String {
    let run = || Command::new("nft").args(arguments).output().expect("nft");
    let output = lab.node.run(run).expect("the node");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn one_by_one_or_together_is_the_same_and_a_second_repair_writes_nothing() {
    let lab = Lab::new();
    let mut edge = lab.edge();
    let records = records(&lab);
    for index in 0..records.len() {
        edge.attach(&records[index], || records[..=index].to_vec()).expect("rules");
    }
    let singly = edge.observe().expect("observe");
    assert_eq!(edge.repair(&records).expect("repair"), [""; 0]);
    for record in &records {
        assert_eq!(edge.check(record).expect("check"), [""; 0]);
    }
    nft(&lab, &["flush", "ruleset"]);
    assert_eq!(edge.repair(&records).expect("repair").len(), singly.tables.len());
    assert_eq!(edge.observe().expect("observe"), singly);
    // A fresh process takes them for its own.
    assert_eq!(lab.edge().repair(&records).expect("repair"), [""; 0]);
    // What people ask with must not stumble over them.
    assert!(nft(&lab, &["list", "ruleset"]).contains("flatnet-host-ports"));

    for record in &records {
        edge.detach(record).expect("no rules");
        edge.detach(record).expect("twice is no error");
    }
    let left = edge.observe().expect("observe");
    let elements = left.tables.values().flat_map(|table| table.sets.values());
    assert_eq!(elements.map(|set| set.elements.len()).sum::<usize>(), 0);
    edge.repair(&[]).expect("repair");
    assert_eq!(nft(&lab, &["list", "ruleset"]), "");
}

#[test]
fn each_damage_is_repaired_and_named() {
    let lab = Lab::new();
    let mut edge = lab.edge();
    let records = records(&lab);
    edge.repair(&records).expect("repair");
    let whole = edge.observe().expect("observe");
    nft(&lab, &["add table inet foreign; add chain inet foreign mine"]);
    let foreign = nft(&lab, &["list table inet foreign"]);
    let stray = "add element arp flatnet-pods pods { stray }";
    for (damage, named) in [
        ("delete table ip flatnet-host-ports", "table ip flatnet-host-ports was missing"),
        (
            "flush chain bridge flatnet-pods from-pods",
            "chain from-pods of table bridge flatnet-pods",
        ),
        (
            "flush set bridge flatnet-pods sources-v6",
            "set sources-v6 of table bridge flatnet-pods lacked 4 elements",
        ),
        ("add rule ip flatnet-pods from-pods accept", "chain from-pods of table ip flatnet-pods"),
        (
            "add chain ip6 flatnet-firewall odd",
            "chain odd of table ip6 flatnet-firewall was unused",
        ),
        (stray, "set pods of table arp flatnet-pods had 1 elements too many"),
    ] {
        nft(&lab, &[damage]);
        let found = edge.damages(&records).expect("damages");
        let damages = edge.repair(&records).expect("repair");
        assert_eq!(found, damages);
        assert_eq!(damages.len(), 1, "{damage}: {damages:?}");
        assert!(damages[0].contains(named), "{damage}: {damages:?}");
        assert_eq!(edge.observe().expect("observe"), whole, "{damage}");
    }
    assert_eq!(nft(&lab, &["list table inet foreign"]), foreign);
}

#[test]
fn a_pod_comes_after_others_flushed_or_left_halves() {
    let lab = Lab::new();
    let mut edge = lab.edge();
    let records = records(&lab);
    let [first, second, _] = records.as_slice() else { panic!("three pods") };
    edge.attach(first, || vec![first.clone()]).expect("rules");
    nft(&lab, &["flush", "ruleset"]);
    edge.attach(second, || records[..2].to_vec()).expect("rules");
    assert_eq!(edge.repair(&records[..2]).expect("repair"), [""; 0]);
    // Killed after some of its elements.
    remove_some(&lab, second);
    assert!(!edge.check(second).expect("check").is_empty());
    edge.attach(second, || records[..2].to_vec()).expect("rules");
    assert_eq!(edge.repair(&records[..2]).expect("repair"), [""; 0]);
    remove_some(&lab, second);
    edge.detach(second).expect("the rest goes");
    assert_eq!(edge.damages(&records[..1]).expect("damages"), [""; 0]);
}

/// Removes one element of a pod's, as a plugin of another version might.
fn remove_some(lab: &Lab, pod: &Attachment) {
    let link = pod.link.node_end().expect("a link");
    let table = render::edge::spoofing::tables().remove(0);
    let keys = vec![vec![Value::Link(LinkName::new(link))]];
    let commands = vec![NftCommand::DeleteElements("pods".into(), keys)];
    let mut driver = lab.node.run(|| NftDriver::open().expect("a driver")).expect("node");
    driver.commit(&[Transaction { table, commands }]).expect("one less");
}

#[test]
fn the_first_of_two_pods_keeps_a_port_that_both_records_claim() {
    let lab = Lab::new();
    let mut edge = lab.edge();
    let [a, mut b, _] = records(&lab).try_into().expect("three pods");
    b.edge.host_ports = a.edge.host_ports.clone();
    let both = [a.clone(), b.clone()];
    edge.repair(&both).expect("repair");
    assert_eq!(edge.check(&a).expect("check"), [""; 0]);
    assert_eq!(edge.repair(&both).expect("repair"), [""; 0]);
    edge.detach(&b).expect("detach");
    assert_eq!(edge.check(&a).expect("check"), [""; 0]);
}
