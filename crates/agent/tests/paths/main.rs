//! The path self-test between two nodes with real agents, tunnels and pods, on a wire with faults:
//! each is named, and what can be avoided is (issue 3, item 4; features.md, table F, 11). Needs
//! root.

mod lab;
#[path = "../real/server.rs"]
#[allow(dead_code)] // these tests use a part of it
mod server;

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use model::layout::{PATH_TEST_PORT, UPLINK, VXLAN_LINK};
use model::overlay::DETOURS_ANNOTATION;
use model::{Family, Overlay};
use serde_json::Value;

use lab::{Lab, eventually, run_in, with_two_nodes, with_two_nodes_of};

/// So many tests of a pair see it mended under way.
const TESTS_MENDED: u32 = 4;
const OUT: &str = "from node1 (172.30.0.2) to node2 (172.30.0.3)";

/// A chain on the wire that drops nothing yet.
fn filter(lab: &Lab) {
    lab.on_wire("nft add table bridge fault");
    lab.on_wire("nft add chain bridge fault forward { type filter hook forward priority 0 ; }");
}

async fn told(lab: &Lab, parts: &[&str]) {
    eventually(&format!("an Event tells {parts:?}"), async || {
        lab.events().await.iter().any(|event| parts.iter().all(|part| event.contains(part)))
    })
    .await;
}

async fn found(lab: &Lab, node: usize, state: &str, way: &str) {
    eventually(&format!("node{}: {state} by {way}", node + 1), async || {
        let path = lab.path(node).await;
        path.state == state && path.way == way
    })
    .await;
}

#[test]
fn a_sound_wire_is_said_to_be_sound() {
    for (family, overlay, mtu) in [
        (Family::V4, Overlay::Vxlan, 1450),
        (Family::V6, Overlay::Vxlan, 1430),
        (Family::V4, Overlay::HostGw, 1500),
        (Family::V6, Overlay::HostGw, 1500),
    ] {
        a_sound_wire(family, overlay, mtu);
    }
}

fn a_sound_wire(family: Family, overlay: Overlay, mtu: u32) {
    with_two_nodes_of(family, overlay, async |lab| {
        lab.start_agents();
        for node in [0, 1] {
            found(lab, node, "works", overlay.as_str()).await;
            let path = lab.path(node).await;
            assert_eq!(path.mtu, Some(mtu), "{overlay} within {family:?}");
            assert!(path.rtt_us.is_some_and(|rtt_us| rtt_us > 0));
        }
        eventually("the condition", async || {
            let condition = lab.condition("node2").await;
            condition["status"] == "True" && condition["reason"] == "AllPathsWork"
        })
        .await;
        let metrics = lab.nodes[0].ask("/metrics").await.expect("metrics");
        assert!(metrics.contains("flatnet_paths{state=\"works\"} 1"), "{metrics}");
        let node = lab.node("node1").await;
        assert_eq!(node["metadata"]["annotations"][DETOURS_ANNOTATION], Value::Null);
    });
}

fn close_tunnel(lab: &Lab, ports: &[&str]) {
    for port in ports {
        let rule = format!("iifname {port} udp dport 8472 drop");
        lab.on_wire(&format!("nft add rule bridge fault forward {rule}"));
    }
}

/// A packet filter that lets the tunnel through in one direction only, or in none.
fn a_blocked_tunnel(family: Family, ports: &[&str], direction: &str, end: impl AsyncFnOnce(&Lab)) {
    with_two_nodes_of(family, Overlay::Vxlan, async |lab| {
        filter(lab);
        close_tunnel(lab, ports);
        lab.start_agents();
        told(lab, &["UDP port 8472 is dropped", direction]).await;
        // Both take the direct way: they are on one segment.
        for node in [0, 1] {
            found(lab, node, "works", "host-gw (detour)").await;
        }
        let pods = [lab.nodes[0].add_pod("one"), lab.nodes[1].add_pod("two")];
        assert!(pods[0].reaches(&pods[1], 3000) && pods[1].reaches(&pods[0], 3000));
        for name in ["node1", "node2"] {
            eventually("the condition says what to open", async || {
                let condition = lab.condition(name).await;
                let message = condition["message"].as_str().unwrap_or_default();
                condition["status"] == "True"
                    && condition["reason"] == "FaultsAvoided"
                    && message.contains("open UDP port 8472")
            })
            .await;
        }
        // A restart keeps the way, and loses no packet to another trial.
        lab.nodes[0].stop();
        lab.nodes[0].start();
        found(lab, 0, "works", "host-gw (detour)").await;
        assert!(pods[0].reaches(&pods[1], 100));

        end(lab).await;
        for node in [0, 1] {
            found(lab, node, "works", "vxlan").await;
        }
        assert!(pods[0].reaches(&pods[1], 3000) && pods[1].reaches(&pods[0], 3000));
    });
}

#[test]
fn a_tunnel_port_that_is_closed_in_one_direction_is_named_with_it_and_avoided() {
    a_blocked_tunnel(Family::V4, &["port2"], OUT, async |lab| {
        // The operator opens the port and says so.
        lab.on_wire("nft flush chain bridge fault forward");
        for name in ["node1", "node2"] {
            lab.annotate(name, DETOURS_ANNOTATION, Value::Null).await;
        }
    });
}

#[test]
fn a_tunnel_port_that_is_closed_in_both_directions_is_named_and_avoided() {
    for family in [Family::V4, Family::V6] {
        a_tunnel_closed_in_both_directions(family);
    }
}

fn a_tunnel_closed_in_both_directions(family: Family) {
    // Either end names its own direction, and the first to do so changes the way for both.
    a_blocked_tunnel(family, &["port2", "port3"], "from node", async |lab| {
        // One direction is not enough: three times as long as it would have to work, it stays.
        lab.on_wire("nft flush chain bridge fault forward");
        close_tunnel(lab, &["port3"]);
        let until = Instant::now() + 3 * lab::PATH_TEST_PERIOD;
        while Instant::now() < until {
            for node in [0, 1] {
                assert_eq!(lab.path(node).await.way, "host-gw (detour)");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // With both open the nodes return by themselves, and say so.
        lab.on_wire("nft flush chain bridge fault forward");
        for name in ["node1", "node2"] {
            eventually("the detour is taken back", async || {
                let node = lab.node(name).await;
                let detours = node["metadata"]["annotations"][DETOURS_ANNOTATION].as_str();
                detours.is_none_or(str::is_empty)
            })
            .await;
            eventually("the condition", async || {
                lab.condition(name).await["reason"] == "AllPathsWork"
            })
            .await;
        }
    });
}

/// As where a cloud's network lets a machine send only what bears its own address.
#[test]
fn a_direct_way_on_which_pod_addresses_are_dropped_is_avoided_until_they_pass_again() {
    for (family, pods) in
        [(Family::V4, "ip saddr 10.244.0.0/16"), (Family::V6, "ip6 saddr fd00:10:244::/48")]
    {
        with_two_nodes_of(family, Overlay::HostGw, async |lab| {
            for node in &lab.nodes {
                // A namespace has what the first one has: filtering by reverse path is not meant.
                for link in ["all", UPLINK] {
                    node.run(&format!("sysctl -qw net.ipv4.conf.{link}.rp_filter=0"));
                }
            }
            filter(lab);
            let close = |lab: &Lab, port: &str| {
                let rule = format!("iifname {port} {pods} drop");
                lab.on_wire(&format!("nft add rule bridge fault forward {rule}"));
            };
            close(lab, "port2");
            close(lab, "port3");
            lab.start_agents();
            told(lab, &["traffic of pod addresses is dropped"]).await;
            for node in [0, 1] {
                found(lab, node, "works", "vxlan (detour)").await;
            }
            // One direction is not enough: three times as long as it would have to work, it stays.
            lab.on_wire("nft flush chain bridge fault forward");
            close(lab, "port3");
            let until = Instant::now() + 3 * lab::PATH_TEST_PERIOD;
            while Instant::now() < until {
                for node in [0, 1] {
                    assert_eq!(lab.path(node).await.way, "vxlan (detour)");
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            lab.on_wire("nft flush chain bridge fault forward");
            for node in [0, 1] {
                found(lab, node, "works", "host-gw").await;
            }
        });
    }
}

/// A fault that comes and goes, and the MTU that node1's pods shall have meanwhile.
fn a_narrow_wire(fault: impl Fn(&Lab), repair: impl Fn(&Lab), mtu: u32) {
    with_two_nodes(Overlay::Vxlan, async |lab| {
        lab.start_agents();
        for node in [0, 1] {
            found(lab, node, "works", "vxlan").await;
        }
        let pods = [lab.nodes[0].add_pod("one"), lab.nodes[1].add_pod("two")];
        assert_eq!(pods[0].mtu(), 1450);
        // Where the module is loaded, it would take packets apart on the wire.
        if run_in(&lab.wire, "sysctl -a").contains("net.bridge.bridge-nf-call-iptables") {
            lab.on_wire("sysctl -qw net.bridge.bridge-nf-call-iptables=0");
        }
        fault(lab);
        assert!(pods[0].reaches(&pods[1], 1000), "small packets pass");
        assert!(!pods[0].reaches(&pods[1], 3000), "large ones do not");
        found(lab, 0, "small-mtu", "vxlan").await;
        eventually("the running pod follows", async || pods[0].mtu() == mtu).await;
        assert!(pods[0].reaches(&pods[1], 3000));
        assert_eq!(lab.nodes[0].add_pod("new").mtu(), mtu);
        let outer = format!("carries {} bytes", mtu + 50);
        told(lab, &[OUT, &outer, "raise the MTU"]).await;
        // What pods send in fragments, and what the node itself sends.
        let route = lab.nodes[0].run("ip route show 10.244.2.0/24");
        assert!(route.contains(&format!("mtu {mtu}")), "{route}");
        assert!(lab.nodes[0].status().await.is_some_and(|status| status.converged));
        repair(lab);
        found(lab, 0, "works", "vxlan").await;
        eventually("the pod has its MTU back", async || pods[0].mtu() == 1450).await;
        assert!(!lab.nodes[0].run("ip route show 10.244.2.0/24").contains("mtu"));
    });
}

#[test]
fn a_wire_that_swallows_large_packets_in_one_direction_makes_pods_send_smaller_ones() {
    let fault = |lab: &Lab| {
        filter(lab);
        lab.on_wire("nft add rule bridge fault forward iifname port2 meta length > 1380 drop");
    };
    let repair = |lab: &Lab| lab.on_wire("nft delete table bridge fault");
    a_narrow_wire(fault, repair, 1330);
}

#[test]
fn a_link_on_the_way_that_is_narrower_than_both_ends_makes_pods_send_smaller_packets() {
    // Linux lets a frame pass that is by one VLAN tag larger.
    let set = |mtu| move |lab: &Lab| lab.on_wire(&format!("ip link set port3 mtu {mtu}"));
    a_narrow_wire(set(1400), set(1500), 1354);
}

#[test]
fn wrong_checksums_are_told_from_lost_packets_and_the_kernel_writes_them_itself() {
    with_two_nodes(Overlay::Vxlan, async |lab| {
        // As a broken driver does, wherever there is a checksum.
        let node = &lab.nodes[0];
        node.run("nft add table ip fault");
        node.run("nft add chain ip fault output { type filter hook output priority 0 ; }");
        node.run(&format!(
            "nft add rule ip fault output oifname {VXLAN_LINK} udp dport {PATH_TEST_PORT} \
             udp checksum != 0 udp checksum set 0x1"
        ));
        // Where the link below does not do it, the kernel writes the checksum on the way out.
        let off = || netlink::offload::set_tx_checksum(UPLINK, false);
        node.namespace.run(off).expect("the node").expect("set");
        lab.start_agents();
        found(lab, 0, "bad-checksum", "vxlan").await;
        told(lab, &[OUT, "wrong checksums", "driver"]).await;
        found(lab, 1, "bad-checksum-in", "vxlan").await;
        let offload = || lab.nodes[0].namespace.run(|| netlink::offload::tx_checksum(VXLAN_LINK));
        eventually("the offload is off", async || {
            offload().is_ok_and(|read| read.is_ok_and(|on| !on))
        })
        .await;
        eventually("the condition", async || {
            let condition = lab.condition("node1").await;
            condition["status"] == "False" && condition["reason"] == "PathsBroken"
        })
        .await;
        // The other end's packets are right.
        let there = lab.nodes[1].namespace.run(|| netlink::offload::tx_checksum(VXLAN_LINK));
        assert_eq!(there.expect("the node"), Ok(true));
    });
}

/// a way that breaks and is mended while it is tested, over and over. What is sent last gets
/// through each time, and nothing is blamed for what came before.
#[test]
fn a_way_that_is_mended_in_the_middle_of_a_test_has_no_wrong_checksums() {
    mended_in_the_middle(
        &[
            "oifname flatnet.1 udp dport PORT udp checksum 0 update @mended { ip daddr } \
             counter name tried",
            "oifname flatnet.1 udp dport PORT udp checksum != 0 ip daddr != @mended drop",
        ],
        "bad-checksum",
    );
}

/// The same of streams: what carries them is whole when the largest datagram comes.
#[test]
fn a_way_that_is_mended_in_the_middle_of_a_test_loses_no_segments() {
    mended_in_the_middle(
        &[
            "oifname flatnet.1 udp dport PORT meta length 1450 ip daddr @broken update @mended \
             { ip daddr } counter name tried",
            "oifname flatnet.1 meta l4proto tcp meta length > 1600 ip daddr != @mended update \
             @broken { ip daddr } drop",
        ],
        "bad-segments",
    );
}

/// The rules drop what leaves node1's gateway until something else has passed, and again before
/// what was found wrong is tested again: some tests of a pair go through that.
fn mended_in_the_middle(rules: &[&str], never: &str) {
    with_two_nodes(Overlay::Vxlan, async |lab| {
        let node = &lab.nodes[0];
        node.run("nft add table ip fault");
        node.run("nft add counter ip fault tried");
        for (set, lasts) in [("mended", "500ms"), ("broken", "900ms")] {
            let kind =
                format!("type ipv4_addr ; size 16 ; flags dynamic,timeout ; timeout {lasts} ;");
            node.run(&format!("nft add set ip fault {set} {{ {kind} }}"));
        }
        node.run("nft add chain ip fault output { type filter hook output priority 0 ; }");
        for rule in rules {
            let rule = rule.replace("PORT", &PATH_TEST_PORT.to_string());
            node.run(&format!("nft add rule ip fault output {rule}"));
        }
        lab.start_agents();
        for node in [0, 1] {
            found(lab, node, "works", "vxlan").await;
        }
        eventually("it was mended in the middle of some tests", async || {
            for node in [0, 1] {
                let state = lab.path(node).await.state;
                assert!(!state.starts_with(never), "node{}: {state}", node + 1);
            }
            let counter = lab.nodes[0].run("nft list counter ip fault tried");
            let count = counter.split_whitespace().skip_while(|word| *word != "packets").nth(1);
            let count: u32 = count.and_then(|count| count.parse().ok()).expect("a count");
            count >= TESTS_MENDED
        })
        .await;
        // Nothing stays of it either.
        for node in &lab.nodes {
            let offload = node.namespace.run(|| netlink::offload::tx_checksum(VXLAN_LINK));
            assert_eq!(offload.expect("the node"), Ok(true));
        }
    });
}

/// As a network card does that cannot cut apart what is within a tunnel.
#[test]
fn lost_trains_of_segments_are_told_from_lost_packets_and_the_kernel_cuts_them_itself() {
    for family in [Family::V4, Family::V6] {
        with_two_nodes_of(family, Overlay::Vxlan, async |lab| {
            lab.start_agents();
            for node in [0, 1] {
                found(lab, node, "works", "vxlan").await;
            }
            let node = &lab.nodes[0];
            node.run("nft add table netdev fault");
            node.run(&format!(
                "nft add chain netdev fault out {{ type filter hook egress device {UPLINK} priority 0 ; }}"
            ));
            node.run("nft add rule netdev fault out udp dport 8472 meta length > 1600 drop");
            told(lab, &["from node1", "streams crawl", "update the driver"]).await;
            // The tunnel link gives whole trains to nobody any more.
            let offload =
                || lab.nodes[0].namespace.run(|| netlink::offload::tx_checksum(VXLAN_LINK));
            eventually("the offload is off", async || {
                offload().is_ok_and(|read| read.is_ok_and(|on| !on))
            })
            .await;
            found(lab, 0, "works", "vxlan").await;
            // The other end's are not lost.
            found(lab, 1, "works", "vxlan").await;
            let there = lab.nodes[1].namespace.run(|| netlink::offload::tx_checksum(VXLAN_LINK));
            assert_eq!(there.expect("the node"), Ok(true));
        });
    }
}

/// Whichever of them this machine's kernel lacks.
#[test]
fn what_the_kernel_lacks_is_named_in_the_nodes_condition_and_in_an_event() {
    for (overlay, link, load) in [
        (Overlay::Vxlan, "vxlan id 1 dstport 4789", "modprobe vxlan"),
        (Overlay::Ipip, "ipip local 172.30.0.2", "modprobe ipip"),
        (Overlay::Wireguard, "wireguard", "modprobe wireguard"),
    ] {
        with_two_nodes(overlay, async |lab| {
            let add = || {
                let mut ip = std::process::Command::new("ip");
                ip.args("link add trial type".split(' ')).args(link.split(' ')).status()
            };
            let added = lab.wire.run(add).expect("the wire").expect("ip");
            let (status, reason, said) = match added.success() {
                true => ("True", "AllFeaturesPresent", "what the network needs"),
                false => ("False", "FeatureMissing", load),
            };
            lab.nodes[0].start();
            eventually(&format!("{overlay}: {reason}"), async || {
                let condition = lab.condition_of("node1", "FlatnetKernelReady").await;
                let message = condition["message"].as_str().unwrap_or_default();
                condition["status"] == status
                    && condition["reason"] == reason
                    && message.contains(said)
            })
            .await;
            if !added.success() {
                told(lab, &["the kernel lacks", load]).await;
            }
        });
    }
}

/// A request of 64 bytes and more, between nodes.
fn request(size: usize) -> Vec<u8> {
    let mut bytes = b"flatpath\x01\x00\x00\x00".to_vec();
    bytes.resize(size, 0);
    bytes
}

/// Sends requests from an address and port of its own; answers what came back.
fn ask(namespace: &netlink::Netns, from: &str, requests: &[Vec<u8>]) -> Vec<usize> {
    let work = || {
        let socket = UdpSocket::bind((from, 0)).expect("bound");
        socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
        let mut answers = vec![];
        let mut buffer = [0; 2048];
        for request in requests {
            socket.send_to(request, ("172.30.0.2", PATH_TEST_PORT)).expect("sent");
        }
        while let Ok(length) = socket.recv(&mut buffer) {
            answers.push(length);
        }
        answers
    };
    namespace.run(work).expect("the namespace")
}

/// X-26's kind: nobody can have this test send more than he sends himself, nor to others.
#[test]
fn the_responder_cannot_be_abused() {
    with_two_nodes(Overlay::Vxlan, async |lab| {
        lab.nodes[0].start();
        let there = std::sync::Arc::clone(&lab.nodes[1].namespace);
        // A known node is answered, with 64 bytes whatever the size.
        eventually("the agent listens", async || ask(&there, "172.30.0.3", &[request(64)]) == [64])
            .await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(ask(&there, "172.30.0.3", &[request(1400)]), [64]);
        // Less than an answer is no request, and neither is another side, version or an answer.
        assert_eq!(ask(&there, "172.30.0.3", &[request(63)]), [0; 0]);
        for (index, value) in [(8, 2), (9, 1), (10, 1)] {
            let mut wrong = request(64);
            wrong[index] = value;
            assert_eq!(ask(&there, "172.30.0.3", &[wrong]), [0; 0], "byte {index}");
        }
        // A flood is answered at a bounded rate: two seconds' worth at most.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let flood = vec![request(64); 1000];
        let answers = ask(&there, "172.30.0.3", &flood);
        assert!((50..=200).contains(&answers.len()), "{}", answers.len());
        assert!(answers.iter().all(|length| *length == 64));
        // A stranger is not answered; as a node it is: the defence, and it without.
        let stranger = lab.machine(9);
        assert_eq!(ask(&stranger, "172.30.0.9", &[request(64)]), [0; 0]);
        lab.register("node9", "172.30.0.9", 9).await;
        eventually("a node is answered", async || {
            ask(&stranger, "172.30.0.9", &[request(64)]) == [64]
        })
        .await;
    });
}
