//! Case files with real packets in network namespaces, through the driver of every backend. Needs
//! root, and fails without.
//!
//! Each run takes all that its [`Sample`] always takes and a part of the others, which its seed
//! chooses: `FLATNET_SEED=N` chooses as a run did that printed N. `FLATNET_CASE=NAME` runs one, and
//! `FLATNET_BACKEND=ebpf` runs the chosen ones by that backend alone. IPVS, which this machine's
//! kernel may lack, has a sample of its own.

mod flows;
mod many;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use model::{LoadBalancerMode, Overlay, Protocol, ServiceBackend};
use netlink::{LinkChange, Netlink, Netns, VethSpec};
use testkit::backend;
use testkit::case::{self, Case};
use testkit::emulated::Feature;
use testkit::lab::probe::{Answer, PATIENCE, Servers, ask};
use testkit::lab::{Lab, run};
use testkit::random::Generator;

/// The only case whose tunnels some kernels lack.
const IP_IN_IP: &str = include_str!("../../../../cases/network/pod-to-pod-kept-ipip.case");
/// The backends of an ordinary run.
const ORDINARY: Sample = Sample {
    backends: &[ServiceBackend::Nftables, ServiceBackend::Iptables],
    always: &["network", "upstream"],
    one_in: 4,
};
/// Of eBPF, whose maps and loaded programs other tests hold to the same, what programs and rules
/// beside them judge together (source ranges of the node's own), and some.
const BY_EBPF: Sample = Sample {
    backends: &[ServiceBackend::Ebpf],
    always: &[
        "load-balancer-source-ranges-admit-outside",
        "load-balancer-source-ranges-admit-pods",
        "load-balancer-source-ranges-admit-the-node",
        "load-balancer-source-ranges-exclude-outside",
        "load-balancer-source-ranges-external-local",
        "port-range-behind-source-ranges",
        "source-ranges-change-live",
        "source-ranges-for-datagrams-of-the-node",
        "source-ranges-of-both-families",
    ],
    one_in: 64,
};
/// Fewer in the emulated kernel, whose code is interpreted: what kube-proxy does by name, cases in
/// which IPVS needs more than its servers, and some.
const BY_IPVS: Sample = Sample {
    backends: &[ServiceBackend::Ipvs],
    always: &[
        "upstream",
        "clusterip-becomes-externalname",
        "maglev-of-a-range",
        "node-port-passes-to-another-service",
        "tcp-port-becomes-udp",
    ],
    one_in: 16,
};
/// Labs at the same time: they wait more than they work.
const LABS: usize = 4;

/// Which cases run.
struct Sample {
    /// By each of these.
    backends: &'static [ServiceBackend],
    /// Cases that run, and directories of which every case does.
    always: &'static [&'static str],
    /// Of the others one case in so many.
    one_in: usize,
}

#[test]
fn real_packets_do_what_every_case_says() {
    ensure_no_fault(&chosen(&ORDINARY));
}

#[test]
fn real_packets_do_what_cases_say_by_ebpf() {
    ensure_no_fault(&chosen(&BY_EBPF));
}

#[test]
fn real_packets_do_what_cases_say_by_ipvs() {
    if testkit::deferred!(Feature::Ipvs) {
        return;
    }
    ensure_no_fault(&chosen(&BY_IPVS));
}

fn ensure_no_fault(chosen: &[Case]) {
    let (next, packets) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..LABS {
            scope.spawn(|| {
                while let Some(case) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let backend = backend::name(case.settings.config.service_backend);
                    let name = format!("{} by {backend}", case.name);
                    let faults = match run::run(case) {
                        Ok((faults, sent)) => {
                            packets.fetch_add(sent, Ordering::Relaxed);
                            faults
                        }
                        Err(error) => vec![format!("{error:#}")],
                    };
                    let mut failed = failed.lock().expect("no lab panics");
                    failed.extend(faults.iter().map(|fault| format!("{name}: {fault}")));
                }
            });
        }
    });
    let failed = failed.into_inner().expect("no lab panics");
    assert!(failed.is_empty(), "{} faults:\n  {}", failed.len(), failed.join("\n  "));
    println!("{} cases, {packets:?} connections and datagrams", chosen.len());
}

/// The cases of this run, once for each backend.
fn chosen(sample: &Sample) -> Vec<Case> {
    let only = std::env::var("FLATNET_CASE").ok();
    let seed = std::env::var("FLATNET_SEED").ok().and_then(|text| text.parse().ok());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock");
    let seed: u64 = seed.unwrap_or(now.as_secs());
    println!("FLATNET_SEED={seed} chooses these cases again");
    let mut random = Generator::new(seed);
    let mut is_chosen = |path: &Path| {
        let is_in_turn = random.below(sample.one_in) == 0;
        let directory = path.parent().and_then(Path::file_name).unwrap_or_default();
        let name = path.file_stem().unwrap_or_default();
        match &only {
            Some(only) => name == only.as_str(),
            None => {
                let mut always = sample.always.iter();
                is_in_turn || always.any(|always| directory == *always || name == *always)
            }
        }
    };
    let mut paths: Vec<PathBuf> = case::find(&case::directory()).expect("the cases");
    paths.retain(|path| is_chosen(path));
    let backends = match std::env::var("FLATNET_BACKEND") {
        Ok(name) => vec![name.parse().expect("a backend of Services")],
        Err(_) => sample.backends.to_vec(),
    };
    let mut chosen = Vec::new();
    for path in paths {
        let (case, _) = Case::file(&path).expect("a case");
        // Nobody at the lab's other nodes understands what is handed on; two nodes that do are in
        // `kernel/tests/service_nat/direct.rs`.
        if case.settings.config.load_balancer_mode != LoadBalancerMode::Snat {
            continue;
        }
        for &backend in &backends {
            let mut case = case.clone();
            case.settings.config.service_backend = backend;
            if case.settings.config.overlay == Overlay::Ipip {
                continue;
            }
            chosen.push(case);
        }
    }
    assert!(!chosen.is_empty(), "no case has the name {only:?}");
    chosen
}

#[test]
fn real_packets_travel_within_ip_in_ip() {
    if testkit::deferred!(Feature::Ipip) {
        return;
    }
    let case = Case::parse("pod-to-pod-kept-ipip", IP_IN_IP).expect("a case");
    assert_eq!(case.settings.config.overlay, Overlay::Ipip);
    let (faults, packets) = run::run(&case).expect("a lab");
    assert_eq!(faults, Vec::<String>::new());
    assert!(packets > 0);
}

/// The attack of `loopback-from-neighbour-dropped` works on a machine without our guard: the case
/// shows the guard, not a mistake in the attack.
#[test]
fn an_unguarded_machine_answers_on_loopback() {
    let attacker = Netns::create().expect("network namespaces need root");
    let victim = Netns::create().expect("a namespace");
    let mut net = Netlink::open_in(&attacker).expect("a socket");
    net.create_veth(&VethSpec::new("eth0", "eth0").peer_in(&victim)).expect("a link");
    let [near, far] = ["192.0.2.1", "192.0.2.2"].map(|text| text.parse::<IpAddr>().expect("one"));
    for (namespace, address) in [(&attacker, near), (&victim, far)] {
        let mut net = Netlink::open_in(namespace).expect("a socket");
        let lo = net.require_link("lo").expect("lo").index;
        net.change_link(lo, &LinkChange::up()).expect("lo up");
        let eth0 = net.require_link("eth0").expect("eth0").index;
        net.add_address(eth0, ipnet::IpNet::new(address, 24).expect("a prefix")).expect("added");
        net.change_link(eth0, &LinkChange::up()).expect("eth0 up");
    }
    Lab::expose_loopback(&attacker, "eth0", far, &victim).expect("exposed");
    let servers = Servers::start();
    let loopback: SocketAddr = "127.0.0.1:8080".parse().expect("an address");
    servers.listen(&victim, Protocol::Udp, loopback).expect("a server");
    let answer = attacker
        .run(|| ask(Protocol::Udp, SocketAddr::new(near, 0), loopback, PATIENCE))
        .expect("the attacker's namespace");
    assert_eq!(answer, Answer::Served { by: loopback, saw: near });
}
