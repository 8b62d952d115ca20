//! What rules at pods' edges cost on a node with many pods: the CPU time of one pod's coming and
//! going (G6, G7), in a network namespace of its own. Needs root.
//!
//! ```text
//! ./x bench edge
//! ```

use std::time::Duration;

use kernel::edge::Edge;
use model::attachment::{Masquerade, PodLink, PortMapping};
use model::{Attachment, MacAddress, NamespacedName, Protocol};
use netlink::Netns;
use nix::time::{ClockId, clock_gettime};

/// Pods that are there already.
const PODS: u8 = 250;
/// Comings and goings of one measurement.
const ROUNDS: usize = 301;

fn main() {
    let namespace = Netns::create().expect("a network namespace (this needs root)");
    namespace.run(measure).expect("the namespace");
}

fn measure() {
    let mut edge = Edge::open().expect("an edge");
    let kinds: [(&str, fn(&mut Attachment)); 4] = [
        ("anti-spoofing", |_| {}),
        ("and masquerade", masquerade),
        ("and masquerade, two families", |pod| {
            masquerade(pod);
            pod.addresses.push("fd50::fe/64".parse().expect("a prefix"));
        }),
        ("and masquerade, a host port", |pod| {
            masquerade(pod);
            pod.edge.host_ports = vec![PortMapping {
                host_port: 8080,
                container_port: 80,
                protocol: Protocol::Tcp,
                host_ip: None,
                snat: true,
                masquerade_all: false,
            }];
        }),
    ];
    println!("CPU time of one call, {PODS} pods, median of {ROUNDS} ");
    println!("{:<40}{:>14}{:>14}{:>20}", "", "attach", "detach", "open and attach");
    for (name, change) in kinds {
        let mut pods: Vec<Attachment> = (1..=PODS).map(|last| pod(last, masquerade)).collect();
        let pod = pod(PODS + 1, change);
        pods.push(pod.clone());
        edge.repair(&pods).expect("rules");
        edge.detach(&pod).expect("one less");
        let (mut attach, mut detach, mut whole) = (vec![], vec![], vec![]);
        for _ in 0..ROUNDS {
            attach.push(cpu_time(|| edge.attach(&pod, Vec::new).expect("attach")));
            detach.push(cpu_time(|| edge.detach(&pod).expect("detach")));
            whole.push(cpu_time(|| {
                Edge::open().expect("an edge").attach(&pod, Vec::new).expect("attach");
            }));
            edge.detach(&pod).expect("detach");
        }
        let [attach, detach, whole] = [attach, detach, whole].map(median);
        println!("{name:<40}{attach:>14.1?}{detach:>14.1?}{whole:>20.1?}");
        edge.repair(&[]).expect("nothing left");
    }
}

fn masquerade(pod: &mut Attachment) {
    let except = vec!["10.50.0.0/16".parse().expect("a prefix")];
    pod.edge.masquerade = Some(Masquerade { except });
}

fn pod(last: u8, change: fn(&mut Attachment)) -> Attachment {
    let address = format!("10.50.0.{last}/24").parse::<ipnet::IpNet>().expect("a prefix");
    let link = PodLink::Bridge { name: format!("veth{last:08x}"), bridge: "cni0".into() };
    let mut pod = Attachment {
        network: "pods".into(),
        container_id: format!("container-{last}"),
        interface: "eth0".into(),
        pod: Some(NamespacedName::new("shop", format!("web-{last}"))),
        link,
        mac: MacAddress::of_pod_address(address.addr()),
        addresses: vec![address],
        ..Attachment::default()
    };
    change(&mut pod);
    pod
}

/// Of this thread, the kernel's part included.
fn cpu_time(work: impl FnOnce()) -> Duration {
    let now = || Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("a clock"));
    let before = now();
    work();
    now().saturating_sub(before)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
