//! The search path of a pod, gone at its first question; names of pods; and how answers are
//! explained. D-05, D-08.

use std::net::IpAddr;

use dns::feed::Change;
use dns::message::{kind, rcode_name};
use dns::{
    Action, Client, Explanation, Index, Name, Rules, Transport, answer, explain, parse_response,
    query,
};
use model::NamespacedName;
use plan::zone::{PodNames, PodRecords, ServiceRecords, Zone};

const POD: &str = "10.244.1.5";
const NODE: &str = "172.30.0.2";
const STRANGER: &str = "192.0.2.1";

fn index() -> Index {
    let zone = Zone {
        domain: "cluster.local".into(),
        reverse_ranges: vec!["10.244.0.0/16".parse().expect("a range")],
        ..Zone::default()
    };
    let mut index = Index::new(zone, 1);
    let cluster_ip = |address: &str| ServiceRecords::ClusterIp {
        addresses: vec![address.parse().expect("an address")],
        ports: vec![],
    };
    let external = |target: &str| ServiceRecords::ExternalName { target: Some(target.into()) };
    for (namespace, name, records) in [
        ("shop", "web", cluster_ip("10.96.0.1")),
        ("bank", "ledger", cluster_ip("10.96.0.2")),
        ("bank", "docs", external("docs.example")),
    ] {
        index.apply(Change::of_service(&NamespacedName::new(namespace, name), Some(&records)));
    }
    for (address, namespaces, is_own) in
        [(POD, vec!["shop"], true), (NODE, vec!["shop"], false), ("fd00::5", vec!["shop"], true)]
    {
        let namespaces = namespaces.into_iter().map(Box::from).collect();
        let names = Some(PodNames { namespaces, is_own });
        index.apply(Change::Pod { address: address.parse().expect("an address"), names });
    }
    index
}

fn client(address: &str) -> Client {
    Client { transport: Transport::Udp, address: address.parse().expect("an address") }
}

/// The code and the answers, or the names to ask others for.
fn ask(rules: &Rules, from: &str, name: &str, number: u16) -> String {
    let message = query(0, &name.parse().expect("a name"), number, true);
    let mut reply = Vec::new();
    match answer(&message, Some(&index()), rules, client(from), &mut reply) {
        Action::Drop => "dropped".into(),
        Action::Forward(_) => {
            let told = told(rules, from, name, number);
            format!("ask {} else {}", told.upstream.join(" "), told.code.unwrap_or_default())
        }
        Action::Reply => {
            let response = parse_response(&reply).expect("a response");
            assert_eq!(response.name.to_string().trim_end_matches('.'), name, "the case is kept");
            let mut owner = name.to_owned() + ".";
            let data = response.answers.iter().map(|record| {
                assert!(record.owner.to_string().eq_ignore_ascii_case(&owner), "{name}: {owner}");
                if record.kind == kind::CNAME {
                    owner = record.data_text();
                }
                record.data_text()
            });
            let data: Vec<String> = data.collect();
            [&[rcode_name(response.rcode)], data.as_slice()].concat().join(" ")
        }
    }
}

fn told(rules: &Rules, from: &str, name: &str, number: u16) -> Explanation {
    let name: Name = name.parse().expect("a name");
    explain(&name, number, Some(&index()), rules, client(from))
}

#[test]
fn the_first_name_of_a_search_path_is_answered_for_the_one_that_exists() {
    let on = Rules::default();
    let off = Rules { search_path: false, ..Rules::default() };
    let host = Rules { host_search: vec!["lan".parse().expect("a name")], ..Rules::default() };
    let first = |base: &str| format!("{base}.shop.svc.cluster.local");
    for (rules, from, name, number, expected) in [
        // What exists by itself is itself, in either family.
        (&on, POD, first("web"), kind::A, "NOERROR 10.96.0.1"),
        (&on, POD, first("web"), kind::AAAA, "NOERROR"),
        // Another namespace's Service; its absent family ends the chain too.
        (
            &on,
            POD,
            first("ledger.bank"),
            kind::A,
            "NOERROR ledger.bank.svc.cluster.local. 10.96.0.2",
        ),
        (
            &on,
            POD,
            first("Ledger.bank"),
            kind::A,
            "NOERROR ledger.bank.svc.cluster.local. 10.96.0.2",
        ),
        (&on, POD, first("ledger.bank"), kind::AAAA, "NOERROR ledger.bank.svc.cluster.local."),
        (
            &on,
            "fd00::5",
            first("ledger.bank"),
            kind::A,
            "NOERROR ledger.bank.svc.cluster.local. 10.96.0.2",
        ),
        // Below the domain, and the full name itself.
        (
            &on,
            POD,
            first("ledger.bank.svc"),
            kind::A,
            "NOERROR ledger.bank.svc.cluster.local. 10.96.0.2",
        ),
        (
            &on,
            POD,
            first("ledger.bank.svc.cluster.local"),
            kind::A,
            "NOERROR ledger.bank.svc.cluster.local. 10.96.0.2",
        ),
        // Names of others, in one question; if they have none, the client hears of its own name.
        (&on, POD, first("example.com"), kind::A, "ask example.com. else NXDOMAIN"),
        (&on, POD, first("example.com"), kind::AAAA, "ask example.com. else NXDOMAIN"),
        (
            &host,
            POD,
            first("example.com"),
            kind::A,
            "ask example.com.lan. example.com. else NXDOMAIN",
        ),
        // The node's domains come before the name as it is, which is the cluster's own here.
        (
            &host,
            POD,
            first("ledger.bank.svc.cluster.local"),
            kind::A,
            "ask ledger.bank.svc.cluster.local.lan. else NOERROR",
        ),
        // An alias at the end of the path leads to others.
        (&on, POD, first("docs.bank"), kind::A, "ask docs.example. else "),
        // Names that are not the first of the client's chain.
        (&on, POD, "ledger.bank.bank.svc.cluster.local".into(), kind::A, "NXDOMAIN"),
        (&on, POD, "example.com.svc.cluster.local".into(), kind::A, "NXDOMAIN"),
        (&on, POD, "x.xshop.svc.cluster.local".into(), kind::A, "NXDOMAIN"),
        (&on, POD, first("none.bank.svc.cluster.local"), kind::A, "NXDOMAIN"),
        // Other types, clients and settings.
        (&on, POD, first("example.com"), kind::TXT, "NXDOMAIN"),
        (&on, NODE, first("ledger.bank"), kind::A, "NXDOMAIN"),
        (&on, STRANGER, first("ledger.bank"), kind::A, "NXDOMAIN"),
        (&off, POD, first("ledger.bank"), kind::A, "NXDOMAIN"),
    ] {
        assert_eq!(ask(rules, from, &name, number), expected, "{name} from {from}");
    }
}

#[test]
fn a_client_that_wants_no_recursion_hears_of_the_name_alone() {
    let name = "example.com.shop.svc.cluster.local".parse().expect("a name");
    let mut message = query(0, &name, kind::A, true);
    message[2] &= 0xFE;
    let mut reply = Vec::new();
    let action = answer(&message, Some(&index()), &Rules::default(), client(POD), &mut reply);
    assert_eq!(action, Action::Reply);
    assert_eq!(parse_response(&reply).map(|response| response.rcode), Some(3));
}

/// D-05
#[test]
fn pods_have_names_by_the_mode_that_is_chosen() {
    let mode = |pods| Rules { pods: Some(pods), search_path: false, ..Rules::default() };
    use PodRecords::{Disabled, Insecure, Verified};
    for (pods, name, number, expected) in [
        (Verified, "10-244-1-5.shop.pod.cluster.local", kind::A, "NOERROR 10.244.1.5"),
        (Verified, "10-244-1-5.shop.pod.cluster.local", kind::AAAA, "NOERROR"),
        (Verified, "fd00--5.shop.pod.cluster.local", kind::AAAA, "NOERROR fd00::5"),
        (Verified, "fd00-0--5.shop.pod.cluster.local", kind::AAAA, "NXDOMAIN"),
        (Verified, "172-30-0-2.shop.pod.cluster.local", kind::A, "NOERROR 172.30.0.2"),
        (Verified, "10-244-1-5.bank.pod.cluster.local", kind::A, "NXDOMAIN"),
        (Verified, "10-244-1-6.shop.pod.cluster.local", kind::A, "NXDOMAIN"),
        (Verified, "shop.pod.cluster.local", kind::A, "NOERROR"),
        (Verified, "bank.pod.cluster.local", kind::A, "NXDOMAIN"),
        (Verified, "pod.cluster.local", kind::A, "NOERROR"),
        (Verified, "x.10-244-1-5.shop.pod.cluster.local", kind::A, "NXDOMAIN"),
        (
            Verified,
            "5.1.244.10.in-addr.arpa",
            kind::PTR,
            "NOERROR 10-244-1-5.shop.pod.cluster.local.",
        ),
        (Insecure, "10-244-1-6.any.pod.cluster.local", kind::A, "NOERROR 10.244.1.6"),
        (Insecure, "fd00--6.any.pod.cluster.local", kind::AAAA, "NOERROR fd00::6"),
        (Insecure, "10-244-1.any.pod.cluster.local", kind::A, "NXDOMAIN"),
        (Insecure, "10-244-1-256.any.pod.cluster.local", kind::A, "NXDOMAIN"),
        (Insecure, "5.1.244.10.in-addr.arpa", kind::PTR, "NXDOMAIN"),
        (Disabled, "10-244-1-5.shop.pod.cluster.local", kind::A, "NXDOMAIN"),
        (Disabled, "pod.cluster.local", kind::A, "NXDOMAIN"),
    ] {
        assert_eq!(ask(&mode(pods), STRANGER, name, number), expected, "{name} {pods:?}");
    }
}

#[test]
fn an_answer_is_explained_by_the_steps_to_it() {
    let rules = Rules::default();
    let found = told(&rules, POD, "ledger.bank.shop.svc.cluster.local", kind::A);
    assert_eq!(found.namespace.as_deref(), Some("shop"));
    assert_eq!(
        found.steps,
        [
            "ledger.bank.shop.svc.cluster.local.: does not exist",
            "search path: ledger.bank.svc.cluster.local.: 1 addresses",
        ]
    );
    assert_eq!(found.records.len(), 2);
    let forwarded = told(&rules, POD, "docs.bank.svc.cluster.local", kind::A);
    assert_eq!(forwarded.upstream, ["docs.example."]);
    assert_eq!(forwarded.steps[1], "docs.example.: not of the cluster");
    let nobody = explain(&Name::root(), kind::A, None, &rules, client(POD));
    assert_eq!(nobody.code.as_deref(), Some("SERVFAIL"));
    let from: IpAddr = STRANGER.parse().expect("an address");
    assert_eq!(index().pods_at(from), None);
}
