//! The path self-test between two nodes with real agents, by tunnels that the machine's own kernel
//! may lack (issue 3, item 4). Needs root.

#[path = "../paths/lab.rs"]
#[allow(dead_code)] // these tests use a part of it
mod lab;
#[path = "../real/server.rs"]
#[allow(dead_code)] // the same
mod server;

use std::time::{Duration, Instant};

use model::overlay::DETOURS_ANNOTATION;
use model::{Family, Overlay};
use testkit::emulated::Feature;

use lab::{Lab, eventually, with_two_nodes_of};

/// IP in IP is another protocol within each family.
#[test]
fn a_detour_past_ip_in_ip_ends_by_itself_when_the_tunnel_passes_both_ways_again() {
    if testkit::deferred!(Feature::Ipip, Feature::Ip6Tunnel) {
        return;
    }
    a_detour_ends(Family::V4, "ip protocol 4", "IP protocol 4");
    a_detour_ends(Family::V6, "ip6 nexthdr 41", "IP protocol 41");
}

/// A wire that lets the tunnel through in no direction, then in one, then in both: the detour is
/// taken, held as long as one direction is closed, and ended by the nodes themselves.
fn a_detour_ends(family: Family, tunnel: &'static str, name: &str) {
    with_two_nodes_of(family, Overlay::Ipip, async |lab| {
        lab.on_wire("nft add table bridge fault");
        // Before br_netfilter, behind which Linux 6.1 calls no hook of priority 0 any more.
        let hook = "{ type filter hook forward priority -200 ; }";
        lab.on_wire(&format!("nft add chain bridge fault forward {hook}"));
        close(lab, "port2", tunnel);
        close(lab, "port3", tunnel);
        lab.start_agents();
        both_work_by(lab, "host-gw (detour)").await;
        let told = format!("{name} is dropped");
        eventually("an Event says what is dropped", async || {
            lab.events().await.iter().any(|event| event.contains(&told))
        })
        .await;
        let pods = [lab.nodes[0].add_pod("one"), lab.nodes[1].add_pod("two")];
        assert!(pods[0].reaches(&pods[1], 3000) && pods[1].reaches(&pods[0], 3000));

        // One direction is not enough: three times as long as it would have to work, it stays.
        lab.on_wire("nft flush chain bridge fault forward");
        close(lab, "port3", tunnel);
        let until = Instant::now() + 3 * lab::PATH_TEST_PERIOD;
        while Instant::now() < until {
            for node in [0, 1] {
                assert_eq!(lab.path(node).await.way, "host-gw (detour)");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        lab.on_wire("nft flush chain bridge fault forward");
        both_work_by(lab, "ipip").await;
        assert!(pods[0].reaches(&pods[1], 3000) && pods[1].reaches(&pods[0], 3000));
        for name in ["node1", "node2"] {
            eventually(&format!("{name} takes the detour back"), async || {
                let node = lab.node(name).await;
                let detours = node["metadata"]["annotations"][DETOURS_ANNOTATION].as_str();
                detours.is_none_or(str::is_empty)
            })
            .await;
        }
    });
}

fn close(lab: &Lab, port: &str, tunnel: &str) {
    lab.on_wire(&format!("nft add rule bridge fault forward iifname {port} {tunnel} counter drop"));
}

async fn both_work_by(lab: &Lab, way: &str) {
    for node in [0, 1] {
        eventually(&format!("node{}: works by {way}", node + 1), async || {
            let path = lab.path(node).await;
            path.state == "works" && path.way == way
        })
        .await;
    }
}
