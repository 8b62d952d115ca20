//! What is written and read back, and what becomes of others' rules.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use kernel::iptables::{IptablesDriver, Variant};
use model::{Family, NamespacedName, Protocol};
use plan::services::{
    Backends, Frontend, FrontendPlan, RangeFrontend, RangeScope, Scheduling, ServicePlan,
};
use render::iptables::language::{
    ChainName, Comment, Fixed, Kind, Match, Rule, TableId, TableName, Target,
};
use render::iptables::{Command, IptablesObserved, IptablesOp, IptablesProgram, Transaction, text};

use crate::common::{Addresses, DEADLINE, SILENCE, Server, answered, ask, service, to};
use crate::lab::{EACH, Lab};

/// Services with all that a plan can say.
fn everything(at: &Addresses) -> BTreeMap<NamespacedName, ServicePlan> {
    let ends = |port| [at.pod1, at.pod2].map(|address| SocketAddr::new(address, port));
    let local = Backends::Endpoints([SocketAddr::new(at.pod2, 8080)].into());
    let weights = ends(8080).into_iter().zip([3, 1]).collect();
    let plan = FrontendPlan {
        port_name: "http".into(),
        outside: Some(local),
        affinity_timeout_s: Some(10_800),
        source_ranges: None,
        scheduling: Scheduling::Weighted(weights),
        ..to(&[at.pod1, at.pod2])
    };
    let mut web = service(at.vip, Protocol::Tcp, 80, 30080, &plan);
    web.answers_ping.insert(at.vip);
    let everywhere = if at.vip.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
    for (address, ranges) in [
        (at.external, vec!["10.0.0.0/8", "fd00::/8"]),
        (at.node, vec![everywhere]),
        (at.outside, vec![]),
    ] {
        let frontend = Frontend::External { address, protocol: Protocol::Tcp, port: 80 };
        let ranges = ranges.into_iter().map(|range| range.parse().expect("a range")).collect();
        let plan = FrontendPlan { source_ranges: Some(ranges), ..plan.clone() };
        web.frontends.insert(frontend, plan);
    }
    let mut dns = service(at.other_vip, Protocol::Udp, 53, 30053, &to(&[]));
    for (first, last) in [(1, 52), (54, 65_535)] {
        let range = RangeFrontend {
            scope: RangeScope::ClusterIp,
            address: at.other_vip,
            protocol: Protocol::Udp,
            first,
            last,
        };
        let endpoints = Backends::Endpoints(ends(0).into());
        dns.ranges.insert(range, FrontendPlan::new(endpoints));
    }
    let dropped = FrontendPlan::new(Backends::Drop);
    let lost = service(at.unknown_vip, Protocol::Sctp, 80, 30081, &dropped);
    let named = [("web", web), ("dns", dns), ("lost", lost)];
    named.map(|(name, plan)| (NamespacedName::new("shop", name), plan)).into()
}

/// Invariants 4 and 14: `Lab::bring` compares what is read back after every change.
#[test]
fn what_is_written_is_read_back_and_others_keep_their_rules() {
    for (variant, family) in EACH {
        let mut lab = Lab::new(variant, family);
        let at = lab.addresses();
        lab.run("-t nat -N KUBE-SERVICES");
        lab.run("-t nat -A PREROUTING -m comment --comment \"kubernetes\" -j KUBE-SERVICES");
        lab.run("-t nat -A KUBE-SERVICES -p tcp --dport 9 -j MARK --set-mark 0x8000/0x8000");
        lab.run("-t filter -P FORWARD DROP");
        lab.run("-t filter -A FORWARD -p tcp -m limit --limit 5/sec -j ACCEPT");
        let others = lab.saved();
        let mut driver = lab.driver();
        assert_eq!(driver.observe().expect("observe"), IptablesObserved::default());

        lab.desired.services = everything(&at);
        lab.converge(&mut driver);
        assert!(lab.saved().is_superset(&others), "{variant:?} {family}: {:#?}", lab.saved());
        // A fresh process recognises everything and writes nothing.
        let open = || lab.node.run(|| IptablesDriver::open().expect("a driver")).expect("node");
        assert_eq!(lab.converge(&mut open()), []);
        assert_eq!(open().variant(), variant);

        lab.bring(&mut driver, &IptablesProgram::default());
        assert_eq!(lab.saved(), others, "{variant:?} {family}");
    }
}

/// The legacy variant is taken only where others use it and nobody uses the other.
#[test]
fn a_driver_takes_the_variant_that_is_in_use() {
    let lab = Lab::new(Variant::Legacy, Family::V4);
    let open = || lab.node.run(|| IptablesDriver::open().expect("a driver")).expect("node");
    assert_eq!(open().variant(), Variant::Nft);
    lab.run("-t filter -A FORWARD -j ACCEPT");
    assert_eq!(open().variant(), Variant::Legacy);
    let other = Lab { variant: Variant::Nft, ..lab };
    other.run("-t filter -A FORWARD -j ACCEPT");
    let open = || other.node.run(|| IptablesDriver::open().expect("a driver")).expect("node");
    assert_eq!(open().variant(), Variant::Nft);
}

/// Chains of ours in the variant that is not used any more go, others' stay.
#[test]
fn nothing_of_ours_is_left_in_the_other_variant() {
    for (variant, family) in EACH {
        let mut lab = Lab::new(variant, family);
        let at = lab.addresses();
        lab.serve("web", service(at.vip, Protocol::Tcp, 80, 30080, &to(&[at.pod2])));
        let whole = lab.observe();
        let mut other = Lab {
            variant: if variant == Variant::Nft { Variant::Legacy } else { Variant::Nft },
            ..lab
        };
        other.run("-t nat -N KUBE-SERVICES");
        let others = other.saved();
        other.converge(&mut other.driver());
        assert_eq!(other.observe(), whole);
        let open = || IptablesDriver::open().expect("a driver");
        let driver = other.node.run(open).expect("node");
        assert_eq!(driver.variant(), Variant::Nft);
        let (used, left) = (Variant::Nft, Variant::Legacy);
        other.variant = left;
        assert_eq!(other.observe(), IptablesObserved::default(), "{variant:?} {family}");
        if variant == Variant::Nft {
            assert_eq!(other.saved(), others);
        }
        other.variant = used;
        assert_eq!(other.observe(), whole, "{variant:?} {family}");
    }
}

/// S-02: whatever of ours is deleted by hand is seen, and comes back.
#[test]
fn rules_that_somebody_flushed_are_missed_and_come_back() {
    for (variant, family) in EACH {
        let mut lab = Lab::new(variant, family);
        let at = lab.addresses();
        let _server = Server::start(&lab.pod2, "pod2", 8080);
        lab.serve("web", service(at.vip, Protocol::Tcp, 80, 0, &to(&[at.pod2])));
        let whole = lab.observe();
        let choice = ChainName::keyed(Kind::Service, "shop/webtcp").to_string();
        for damage in [
            "-t nat -F PREROUTING".to_string(),
            "-t nat -F".into(),
            format!("-t nat -F {choice}"),
            format!("-t nat -I {choice} -p tcp -m limit --limit 1/hour -j RETURN"),
            "-t nat -A FLATNET-SERVICES -j FLATNET-SERVICES-OLD".into(),
            "-t filter -D FORWARD 1".into(),
            "-t filter -A INPUT -m conntrack --ctstate NEW -j FLATNET-FIREWALL".into(),
        ] {
            if damage.ends_with("OLD") {
                lab.run("-t nat -N FLATNET-SERVICES-OLD");
            }
            let mut driver = lab.driver();
            driver.observe().expect("observe");
            lab.run(&damage);
            // The nft variant tells of it itself.
            assert_eq!(driver.has_changed(), variant == Variant::Legacy, "{family}: {damage}");
            assert_ne!(lab.observe(), whole, "{variant:?} {family}: {damage}");
            lab.converge(&mut lab.driver());
            assert_eq!(lab.observe(), whole, "{variant:?} {family}: {damage}");
            let answer = ask(&lab.pod1, Protocol::Tcp, at.vip, 80, DEADLINE);
            assert_eq!(answer, answered("pod2", at.pod1), "{variant:?} {family}: {damage}");
        }
    }
}

/// One line that the program refuses undoes the whole table, and the error names the object.
#[test]
fn a_transaction_takes_effect_as_a_whole_or_not_at_all() {
    for (variant, family) in EACH {
        let mut lab = Lab::new(variant, family);
        let at = lab.addresses();
        lab.serve("web", service(at.vip, Protocol::Tcp, 80, 0, &to(&[at.pod2])));
        let before = lab.saved();
        let table = TableId { family, name: TableName::Nat };
        let services = ChainName::from(Fixed::Services);
        let nowhere = ChainName::keyed(Kind::Service, "nowhere");
        let commands = vec![
            Command::Write(services.clone()),
            Command::Append(services.clone(), Rule::new([], Target::Return)),
            Command::Append(services, Rule::new([], nowhere)),
        ];
        let op = IptablesOp::Transaction(Transaction { table, commands });
        let error = lab.driver().apply(&op).expect_err("a chain that is not there");
        assert!(error.message.contains("nat") && error.message.contains("SERVICES"), "{error}");
        assert_eq!(lab.saved(), before, "{variant:?} {family}");
        lab.observe().apply(&op).expect_err("the model of the kernel agrees");
    }
}

/// X-18's lesson for rules as text: what a name says stays a name. The same words without the
/// defence do become a rule.
#[test]
fn the_name_of_a_port_cannot_become_a_rule() {
    let evil = "http\"\n-A INPUT -p udp -j ACCEPT\n-A FLATNET-SERVICES -m comment --comment \"";
    for (variant, family) in EACH {
        let mut lab = Lab::new(variant, family);
        let at = lab.addresses();
        let named = FrontendPlan { port_name: evil.into(), ..to(&[at.pod2]) };
        lab.serve("web", service(at.vip, Protocol::Tcp, 80, 30080, &named));
        let is_hit = |lab: &Lab| lab.saved().contains("-A INPUT -p udp -j ACCEPT");
        assert!(!is_hit(&lab), "{variant:?} {family}");

        let harmless = Rule::new([Match::Comment(Comment::new("NAME"))], Target::Return);
        let text = format!(
            "*nat\n:FLATNET-SERVICES - [0:0]\n-A FLATNET-SERVICES {}\nCOMMIT\n",
            text::print(family, &harmless)
        );
        lab.restore(&text.replace("NAME", evil));
        assert!(is_hit(&lab), "{variant:?} {family}: the attack would not work anyway");
    }
}

/// A first load so large that the nft variant reads the table first, in tables that nobody has made
/// yet, and in tables of others.
#[test]
fn a_large_first_load_makes_what_it_needs() {
    for (variant, family) in EACH {
        for others in [0, 1] {
            let mut lab = Lab::new(variant, family);
            let at = lab.addresses();
            if others == 1 {
                lab.run("-t nat -A POSTROUTING -p tcp --dport 9 -j RETURN");
            }
            let before = lab.saved();
            for number in 0..900_u16 {
                let address: std::net::IpAddr = match at.vip {
                    std::net::IpAddr::V4(_) => {
                        let [third, fourth] = (number + 300).to_be_bytes();
                        [10, 96, third, fourth].into()
                    }
                    std::net::IpAddr::V6(_) => [0xfd00, 0x96, 0, 0, 0, 0, 0, number + 300].into(),
                };
                let plan = service(address, Protocol::Tcp, 80, 0, &to(&[at.pod2]));
                let name = NamespacedName::new("shop", format!("web-{number}"));
                lab.desired.services.insert(name, plan);
            }
            let ops = lab.converge(&mut lab.driver());
            let commands = ops.iter().map(|op| match op {
                IptablesOp::Transaction(transaction) => transaction.commands.len(),
                IptablesOp::ForgetFlows(_) => 0,
            });
            let most = commands.max().unwrap_or_default();
            assert!(most >= text::READ_FIRST_COMMANDS_MIN, "{most} commands are no large load");
            assert!(lab.saved().is_superset(&before), "{variant:?} {family}: others' rules stay");
            lab.bring(&mut lab.driver(), &IptablesProgram::default());
            assert_eq!(lab.saved(), before, "{variant:?} {family}");
        }
    }
}

/// Ten times what one chain holds: the tree is read back, and every branch leads where it shall.
#[test]
fn many_services_branch_and_all_are_reached() {
    for (variant, family) in EACH {
        let mut lab = Lab::new(variant, family);
        let at = lab.addresses();
        let _server = Server::start(&lab.pod2, "pod2", 8080);
        let addresses: Vec<std::net::IpAddr> = (0..320_u16)
            .map(|number| match at.vip {
                std::net::IpAddr::V4(_) => {
                    let [third, fourth] = (number * 13 + 300).to_be_bytes();
                    [10, 96, third, fourth].into()
                }
                std::net::IpAddr::V6(_) => [0xfd00, 0x96, 0, 0, 0, 0, 0, number * 13 + 300].into(),
            })
            .collect();
        for (number, &address) in (0..).zip(&addresses) {
            let plan = service(address, Protocol::Tcp, 80, 30_000 + number, &to(&[at.pod2]));
            let name = NamespacedName::new("shop", format!("web-{number}"));
            lab.desired.services.insert(name, plan);
        }
        lab.converge(&mut lab.driver());
        lab.refuse();
        for (number, &address) in (0..).zip(&addresses).step_by(17) {
            let answer = ask(&lab.pod1, Protocol::Tcp, address, 80, DEADLINE);
            assert_eq!(answer, answered("pod2", at.pod1), "{address}");
            let answer = ask(&lab.outside, Protocol::Tcp, at.node, 30_000 + number, DEADLINE);
            assert_eq!(answer, answered("pod2", at.gateway2), "{number}");
        }
        let silent = ask(&lab.pod1, Protocol::Tcp, at.vip, 80, SILENCE);
        assert_eq!(silent, crate::common::Answer::Nothing);
        // One endpoint changes: its own two chains and the choice, nothing else.
        let key = NamespacedName::new("shop", "web-7");
        let other = service(addresses[7], Protocol::Tcp, 80, 30_007, &to(&[at.pod1]));
        lab.desired.services.insert(key, other);
        let ops = lab.converge(&mut lab.driver());
        let [IptablesOp::Transaction(Transaction { commands, .. })] = ops.as_slice() else {
            panic!("{ops:?}");
        };
        assert!(commands.len() <= 8, "{commands:?}");
    }
}
