//! What rules at pods' edges cost on a node with many pods: the time of one pod's coming and going
//! (G6, G7), in a network namespace of its own. Needs root.
//!
//! ```text
//! ./x bench edge
//! ```

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use kernel::edge::Edge;
use model::attachment::{Masquerade, PodLink, PortMapping};
use model::{Attachment, MacAddress, NamespacedName, Protocol};
use netlink::{LinkChange, Netlink, Netns};

/// Pods that are there already.
const PODS: u8 = 250;
/// Comings and goings of one measurement.
const ROUNDS: usize = 301;
const PLUGIN_ROUNDS: usize = 21;
/// After which the kernel has freed what was removed.
const PAUSE: Duration = Duration::from_millis(50);

/// What a pod has beside anti-spoofing.
type Change = fn(&mut Attachment);

fn main() {
    let namespace = Netns::create().expect("a network namespace (this needs root)");
    namespace.run(measure).expect("the namespace");
}

fn measure() {
    let mut edge = Edge::open().expect("an edge");
    let mut netlink = Netlink::open().expect("netlink");
    let lo = netlink.require_link("lo").expect("lo").index;
    netlink.change_link(lo, &LinkChange::up()).expect("lo up");
    let kinds: [(&str, Change); 4] = [
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
    println!("Time of one call, {PODS} pods, median of {ROUNDS} ");
    let heads = ["attach", "detach", "whole ADD", "whole DEL"].map(|head| format!("{head:>12}"));
    println!("{:<32}{}", "", heads.concat());
    for (name, change) in kinds {
        let mut pods: Vec<Attachment> = (1..=PODS).map(|last| pod(last, masquerade)).collect();
        let pod = pod(PODS + 1, change);
        pods.push(pod.clone());
        edge.repair(&pods).expect("rules");
        edge.detach(&pod).expect("one less");
        // A node always tracks some flow, and then the kernel looks through its whole table.
        let [from, to] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").expect("a socket"));
        from.send_to(b"a flow", to.local_addr().expect("an address")).expect("a datagram");
        let (mut attach, mut detach) = (vec![], vec![]);
        for _ in 0..ROUNDS {
            attach.push(time(|| edge.attach(&pod, Vec::new).expect("attach")));
            detach.push(time(|| edge.detach(&pod).expect("detach")));
        }
        // As a plugin does it: with a socket of its own, once the kernel is through with others'.
        let (mut first, mut last) = (vec![], vec![]);
        for _ in 0..PLUGIN_ROUNDS {
            std::thread::sleep(PAUSE);
            first.push(time(|| {
                Edge::open().expect("an edge").attach(&pod, Vec::new).expect("attach");
            }));
            std::thread::sleep(PAUSE);
            last.push(time(|| Edge::open().expect("an edge").detach(&pod).expect("detach")));
        }
        let cells = [attach, detach, first, last].map(|times| format!("{:>12.1?}", median(times)));
        println!("{name:<32}{}", cells.concat());
        edge.repair(&[]).expect("nothing left");
    }
}

fn masquerade(pod: &mut Attachment) {
    let except = vec!["10.50.0.0/16".parse().expect("a prefix")];
    pod.edge.masquerade = Some(Masquerade { except });
}

fn pod(last: u8, change: Change) -> Attachment {
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

/// The kernel answers within the call, so that the time of a call is its CPU time, on a machine with
/// a core to spare: the median is.
fn time(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
