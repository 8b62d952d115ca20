//! Who may come in (FW), what of the node a pod may reach, and what is sent away under the
//! node's address (BR ipMasq).

use std::process::Command;

use model::Protocol;
use model::attachment::{Firewall, IngressPolicy, Masquerade, NodePort};
use netlink::{Netlink, Netns, sysctl};

use crate::clients::{Server, ask_tcp, is_silent};
use crate::lab::{FAR, GATEWAY, Lab, NODE, OUTSIDE, OUTSIDE6, attach, net};

const METADATA: &str = "169.254.169.254";

fn answer(name: &str, client: impl ToString) -> Option<String> {
    Some(format!("{name} {}", client.to_string()))
}

#[test]
fn an_ingress_policy_lets_in_answers_and_whom_it_names() {
    let lab = Lab::new();
    let mut edge = lab.edge();
    let _a = Server::start(&lab.a.namespace, "a", 80);
    let _far = Server::start(&lab.outside, "far", 80);
    // What is bridged takes part in netfilter, as the agent sets it.
    let switch = || sysctl::write("net/bridge/bridge-nf-call-iptables", "1");
    lab.node.run(switch).expect("node").expect("a switch");
    let to = format!("{}:80", lab.a.address());
    let clients = [
        ("outside", &lab.outside),
        ("routed", &lab.routed.namespace),
        ("bridge", &lab.b.namespace),
    ];
    for (policy, allowed) in [
        (IngressPolicy::Open, &["outside", "routed", "bridge"][..]),
        (IngressPolicy::SameBridge, &["bridge"]),
        (IngressPolicy::Isolated, &[]),
    ] {
        let mut attachment = lab.a.attachment.clone();
        attachment.edge.firewall = Some(Firewall { ingress_policy: policy });
        attach(&mut edge, &attachment);
        for (name, from) in clients {
            let passes = !is_silent(from, &to);
            assert_eq!(passes, allowed.contains(&name), "{policy:?} from {name}");
        }
        // Answers, and the node itself, as under the reference plugin.
        assert_eq!(ask_tcp(&lab.a.namespace, &format!("{FAR}:80")), answer("far", lab.a.address()));
        assert_eq!(ask_tcp(&lab.node, &to), answer("a", GATEWAY));
        edge.detach(&attachment).expect("detach");
    }
}

#[test]
fn a_pod_reaches_of_the_node_what_is_listed_and_no_metadata() {
    let lab = Lab::new();
    let mut edge = lab.edge();
    let _open = Server::start(&lab.node, "node", 53);
    let _kubelet = Server::start(&lab.node, "kubelet", 10250);
    let _metadata = Server::start(&lab.outside, "metadata", 80);
    add_address(&lab.outside, "eth0", &format!("{METADATA}/32"));
    let mut attachment = lab.a.attachment.clone();
    let kubelet = format!("{NODE}:10250");
    let kubelet6 = format!("[{}%2]:10250", "fe80::858:aff:fe32:1");
    let metadata = format!("{METADATA}:80");
    attach(&mut edge, &attachment);
    assert!(!is_silent(&lab.a.namespace, &kubelet), "the attack itself does not work");
    assert!(!is_silent(&lab.a.namespace, &metadata), "the attack itself does not work");
    edge.detach(&attachment).expect("detach");

    attachment.edge.metadata_blocked = true;
    attachment.edge.node_ports = Some(vec![NodePort { protocol: Protocol::Tcp, port: 53 }]);
    attach(&mut edge, &attachment);
    assert!(is_silent(&lab.a.namespace, &kubelet));
    assert!(is_silent(&lab.a.namespace, "[fd50::1]:10250"));
    assert!(is_silent(&lab.a.namespace, &kubelet6), "by the link-local address");
    assert!(is_silent(&lab.a.namespace, &metadata));
    assert_eq!(ask_tcp(&lab.a.namespace, &format!("{NODE}:53")), answer("node", lab.a.address()));
    // The others, and what is not the node, as before.
    assert!(!is_silent(&lab.b.namespace, &kubelet));
    assert!(!is_silent(&lab.b.namespace, &metadata));
    assert_eq!(
        ask_tcp(&lab.a.namespace, &format!("{FAR}:80")),
        answer("metadata", lab.a.address())
    );
}

#[test]
fn what_a_pod_sends_away_has_the_nodes_address_but_for_the_exceptions() {
    let lab = Lab::new();
    let mut edge = lab.edge();
    let _far = Server::start(&lab.outside, "far", 80);
    let mut a = lab.a.attachment.clone();
    a.edge.masquerade =
        Some(Masquerade { except: vec![net("10.50.0.0/24"), net("172.31.0.0/24")] });
    let mut b = lab.b.attachment.clone();
    b.edge.masquerade = Some(Masquerade { except: vec![net("10.50.0.0/24")] });
    attach(&mut edge, &a);
    // Another list of exceptions: the element alone is refused, and everything written.
    edge.attach(&b, || vec![a.clone(), b.clone()]).expect("rules");
    for (name, pod, to, seen) in [
        ("far away", &lab.a, FAR, NODE.to_owned()),
        ("to an exception", &lab.a, OUTSIDE, lab.a.address().to_string()),
        ("no exception of this pod's", &lab.b, OUTSIDE, NODE.to_owned()),
        ("not its own", &lab.routed, FAR, lab.routed.address().to_string()),
    ] {
        let client = &pod.namespace;
        assert_eq!(ask_tcp(client, &format!("{to}:80")), answer("far", seen), "{name}");
    }
    edge.detach(&a).expect("detach");
    assert_eq!(ask_tcp(&lab.a.namespace, &format!("{FAR}:80")), answer("far", lab.a.address()));
}

/// FW, R-22, R-23: both kinds of iptables, each with a policy of its own.
#[test]
fn pods_pass_a_chain_of_iptables_that_drops_by_policy_and_its_own_rules_stay_first() {
    for program in ["iptables", "iptables-legacy"] {
        passes_a_chain_of(program);
    }
}

fn passes_a_chain_of(program: &str) {
    let lab = Lab::new();
    let mut edge = lab.edge();
    let _far = Server::start(&lab.outside, "far", 80);
    let far = format!("{FAR}:80");
    let iptables = |arguments| run(&lab.node, program, arguments);
    iptables("-P FORWARD DROP");
    iptables("-A FORWARD -p tcp --dport 81 -j DROP");
    let foreign = iptables("-S");
    let mut a = lab.a.attachment.clone();
    attach(&mut edge, &a);
    assert!(is_silent(&lab.a.namespace, &far), "the policy of {program} does not work");
    edge.detach(&a).expect("detach");
    a.edge.firewall = Some(Firewall::default());
    attach(&mut edge, &a);
    assert_eq!(ask_tcp(&lab.a.namespace, &far), answer("far", lab.a.address()));
    assert!(is_silent(&lab.a.namespace, &format!("{FAR}:81")), "an administrator's rule is passed");
    assert!(is_silent(&lab.b.namespace, &far), "for another pod");
    // What iptables shows begins with what was there, and shows ours.
    let with_ours = iptables("-S");
    assert!(
        with_ours.starts_with(foreign.trim_end()) && with_ours.contains("10.50.0.2"),
        "{with_ours}"
    );
    let all = std::slice::from_ref(&a);
    assert_eq!(edge.repair(all).expect("repair"), [""; 0]);
    assert_eq!(edge.check(&a).expect("check"), [""; 0]);
    // somebody flushes it. CNI-18: a rule that is missing shows.
    iptables("-F FORWARD");
    assert_eq!(edge.check(&a).expect("check").len(), 1);
    assert_eq!(edge.damages(all).expect("damages").len(), 1);
    assert_eq!(edge.repair(all).expect("repair").len(), 1);
    assert_eq!(ask_tcp(&lab.a.namespace, &far), answer("far", lab.a.address()));
    // nothing of ours is left.
    iptables("-A FORWARD -p tcp --dport 81 -j DROP");
    edge.detach(&a).expect("detach");
    assert_eq!(iptables("-S"), foreign);
}

/// FW: a table of both families. Our rules there are each about one.
#[test]
fn pods_of_both_families_pass_a_chain_of_a_table_for_both_that_drops_by_policy() {
    let lab = Lab::new();
    let mut edge = lab.edge();
    let _far = Server::start(&lab.outside, "far", 80);
    let chain = "add chain inet site forward { type filter hook forward priority 0; policy drop; }";
    nft(&lab.node, &[&format!("add table inet site; {chain}")]);
    let foreign = nft(&lab.node, &["list table inet site"]);
    let far = [format!("{FAR}:80"), format!("[{OUTSIDE6}]:80")];
    let mut a = lab.a.attachment.clone();
    for to in &far {
        assert!(is_silent(&lab.a.namespace, to), "the policy does not work");
    }
    a.edge.firewall = Some(Firewall::default());
    attach(&mut edge, &a);
    for (to, seen) in far.iter().zip([lab.a.address(), lab.a.address6()]) {
        assert_eq!(ask_tcp(&lab.a.namespace, to), answer("far", seen));
        assert!(is_silent(&lab.b.namespace, to), "for another pod");
    }
    assert_eq!(edge.check(&a).expect("check"), [""; 0]);
    nft(&lab.node, &["flush chain inet site forward"]);
    assert_eq!(edge.check(&a).expect("check").len(), 1);
    assert_eq!(edge.repair(std::slice::from_ref(&a)).expect("repair").len(), 1);
    assert_eq!(edge.repair(std::slice::from_ref(&a)).expect("repair"), [""; 0]);
    assert_eq!(ask_tcp(&lab.a.namespace, &far[1]), answer("far", lab.a.address6()));
    edge.detach(&a).expect("detach");
    assert_eq!(nft(&lab.node, &["list table inet site"]), foreign);
}

fn run(namespace: &Netns, program: &str, arguments: &str) -> String {
    let run = || Command::new(program).args(arguments.split(' ')).output().expect(program);
    let output = namespace.run(run).expect("the namespace");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_foreign_policy_to_drop_is_found_and_left_alone() {
    let lab = Lab::new();
    let mut edge = lab.edge();
    assert_eq!(edge.foreign_drops().expect("chains"), []);
    let chain = "add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }";
    nft(&lab.node, &[&format!("add table ip filter; {chain}")]);
    let foreign = || nft(&lab.node, &["list table ip filter"]);
    let before = foreign();
    attach(&mut edge, &lab.a.attachment);
    edge.repair(&[]).expect("repair");
    let found = edge.foreign_drops().expect("chains");
    let [drop] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(
        (drop.family, drop.table.as_str(), drop.chain.as_str()),
        ("ip", "filter", "FORWARD")
    );
    assert_eq!(foreign(), before);
}

fn nft(namespace: &Netns, arguments: &[&str]) -> String {
    let run = || Command::new("nft").args(arguments).output().expect("nft");
    let output = namespace.run(run).expect("the namespace");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn add_address(namespace: &Netns, link: &str, address: &str) {
    let mut netlink = Netlink::open_in(namespace).expect("netlink");
    let index = netlink.require_link(link).expect("the link").index;
    netlink.add_address(index, net(address)).expect("an address");
}
