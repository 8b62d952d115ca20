//! The agent on a node of a real cluster, with the embedded API server behind a guard that allows
//! what the shipped role allows. Needs root.

mod node;
mod pools;
mod server;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use agent::rbac::RULES;
use client::{ListOptions, ResourcePath};
use kernel::nft::NftDriver;
use model::overlay::WIREGUARD_KEY_ANNOTATION;
use model::{Family, MacAddress, Protocol, layout};
use netlink::{Monitor, sysctl};
use render::Kernel;
use serde_json::Value;

use node::{NAME, Node, PATIENCE, Running, UPLINK, eventually, modified, on_a_node, run};
use server::Right;

/// Where the flows of a full table lead to.
const FULL_OF_PORT: u16 = 9;
const TCP_TIMEOUT: &str = "net/netfilter/nf_conntrack_tcp_timeout_";
/// damage is mended within this time.
const REPAIR_LIMIT: Duration = Duration::from_secs(1);

async fn condition(node: &Node) -> Value {
    let path = ResourcePath::new("v1", "nodes").name(NAME);
    let object: Value = node.server.admin.get(&path).await.expect("the Node");
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = conditions.into_iter().find(|one| one["type"] == "NetworkUnavailable");
    found.unwrap_or(Value::Null)
}

async fn events(node: &Node) -> Vec<Value> {
    let path = ResourcePath::new("v1", "events");
    node.server.admin.list(&path, &ListOptions::default()).await.expect("events").items
}

/// X-30 and issue 3, item 7: with the shipped role and no more, and every right of it is used.
#[test]
fn a_node_gets_its_network_with_the_shipped_role_alone() {
    on_a_node(async |node| {
        let agent = node.start_agent().await;
        let status = node.status().await.expect("a status");
        assert_eq!(status.uplink, UPLINK, "found by the Node's address");
        assert_eq!((status.peers, status.problems.as_slice()), (1, &[][..]));

        // The configuration comes last: its presence says that pods can be added.
        let plugin = node.directory.join("bin").join(layout::CNI_PLUGIN);
        let list = node.directory.join("net.d").join(layout::CNI_CONFIGURATION_FILE);
        assert!(modified(&plugin) <= modified(&list));
        let (one, other) = (node.add_pod("one"), node.add_pod("other"));
        assert!(one.reaches(&other) && other.reaches(&one));

        eventually("the Node says that it has a network", PATIENCE, async || {
            let condition = condition(node).await;
            condition["status"] == "False" && condition["reason"] == "FlatnetIsUp"
        })
        .await;

        // What an operator must know becomes an Event, once.
        node.register("node3", "172.30.0.4", "10.244.2.0/24").await;
        // The node is new for a moment and has no address yet: that may be an Event before this one.
        eventually("the conflict of ranges is an Event", PATIENCE, async || {
            events(node).await.iter().any(|event| {
                let about = event["involvedObject"]["name"] == "node3";
                about && event["message"].as_str().is_some_and(|text| text.contains("overlaps"))
            })
        })
        .await;
        let told = events(node).await;

        {
            let log = node.server.log.lock().expect("the log");
            assert_eq!((&log.denied, &log.foreign_writes), (&vec![], &vec![]));
            assert_eq!(log.used, rights(), "every right is used, and no other");
        }
        agent.stop().await;
        let again = node.start_agent().await;
        eventually("the Node is looked at again", PATIENCE, async || {
            condition(node).await["reason"] == "FlatnetIsUp"
        })
        .await;
        assert_eq!(events(node).await, told, "a restart tells nothing twice");
        again.stop().await;
    });
}

fn rights() -> BTreeSet<Right> {
    let mut rights = BTreeSet::new();
    for rule in RULES {
        for resource in rule.resources {
            let all = rule
                .verbs
                .iter()
                .map(|verb| (rule.group.to_owned(), (*resource).to_owned(), (*verb).to_owned()));
            rights.extend(all);
        }
    }
    rights
}

/// The guard itself: without it the tests above would prove nothing.
#[test]
fn the_guard_refuses_what_the_role_does_not_allow() {
    on_a_node(async |node| {
        let client = client::Client::from_service_account(&node.server.url, &node.server.account)
            .expect("a client");
        let secrets = ResourcePath::new("v1", "secrets");
        let refused = client.list::<Value>(&secrets, &ListOptions::default()).await;
        assert_eq!(refused.expect_err("refused").status().map(|status| status.code), Some(403));
        let nodes = ResourcePath::new("v1", "nodes").name("node2");
        let refused = client.delete(&nodes, &Default::default()).await;
        assert_eq!(refused.expect_err("refused").status().map(|status| status.code), Some(403));
        assert_eq!(node.server.log.lock().expect("the log").denied.len(), 2);
    });
}

/// The node's key is made once, and stands on its Node for all others to read.
#[test]
fn the_wireguard_key_of_a_node_is_published_and_stays() {
    on_a_node(async |node| {
        let mut options = node.options();
        options.config.overlay = model::Overlay::Wireguard;
        let path = ResourcePath::new("v1", "nodes").name(NAME);
        let annotation = async || {
            let object: Value = node.server.admin.get(&path).await.expect("the Node");
            let found = object["metadata"]["annotations"][WIREGUARD_KEY_ANNOTATION].as_str();
            found.and_then(|text| text.parse::<model::WireguardKey>().ok())
        };
        assert_eq!(annotation().await, None);
        for _ in 0..2 {
            let agent = Running::start(options.clone());
            eventually("the key is published", PATIENCE, async || annotation().await.is_some())
                .await;
            agent.stop().await;
        }
        let key = annotation().await.expect("a key");
        let stored = kernel::wireguard::KeyStore::at(node.places().wireguard_keys);
        assert_eq!(
            stored.load_or_make().expect("the node's key"),
            key,
            "one key, also after a restart"
        );
        let mode = std::fs::metadata(node.places().wireguard_keys).expect("there").permissions();
        assert_eq!(mode.mode() & 0o777, 0o700);
    });
}

/// A kubeconfig may hold a token, in itself or in a file beside it.
#[test]
fn a_kubeconfig_with_a_token_works() {
    on_a_node(async |node| {
        let file = node.server.account.join("kubeconfig");
        for user in ["token: first", "tokenFile: token"] {
            let text = format!(
                "current-context: a\ncontexts: [{{name: a, context: {{cluster: a, user: a}}}}]\n\
                 clusters: [{{name: a, cluster: {{server: '{}', certificate-authority: ca.crt}}}}]\n\
                 users: [{{name: a, user: {{{user}}}}}]\n",
                node.server.url
            );
            std::fs::write(&file, text).expect("written");
            let client = client::Client::from_kubeconfig(&file).await.expect("a client");
            let path = ResourcePath::new("v1", "nodes").name(NAME);
            let _: Value = client.get(&path).await.expect("an answer");
        }
    });
}

/// Tokens of ServiceAccounts live an hour: the next one is read from the file.
#[test]
fn a_token_that_was_replaced_is_read_again() {
    on_a_node(async |node| {
        let client = client::Client::from_service_account(&node.server.url, &node.server.account)
            .expect("a client");
        let path = ResourcePath::new("v1", "nodes").name(NAME);
        let _: Value = client.get(&path).await.expect("the first token");
        node.server.rotate("second");
        let refused = client.get::<Value>(&path).await.expect_err("the old token");
        assert_eq!(refused.status().map(|status| status.code), Some(401));
        let _: Value = client.get(&path).await.expect("the new token");
        assert_eq!(node.server.log.lock().expect("the log").unauthorized, 1);
    });
}

///
#[test]
fn a_second_agent_of_the_node_refuses_and_the_first_goes_on() {
    on_a_node(async |node| {
        let agent = node.start_agent().await;
        let (_stop, stopping) = tokio::sync::watch::channel(false);
        let error = agent::run(node.options(), stopping).await.expect_err("refused").to_string();
        assert!(error.contains("another agent works on this node"), "{error}");
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        assert!(node.status().await.is_some_and(|status| status.converged));
        agent.stop().await;
    });
}

/// R-05, and SIGTERM leaves everything where it is.
#[test]
fn a_restart_with_nothing_changed_writes_nothing() {
    on_a_node(async |node| {
        let agent = node.start_agent().await;
        let (one, other) = (node.add_pod("one"), node.add_pod("other"));
        // The plugin's writes have been looked at.
        eventually("the loop is at rest", PATIENCE, async || {
            node.status().await.is_some_and(|status| status.converged)
        })
        .await;
        agent.stop().await;
        assert!(one.reaches(&other), "without an agent");
        let groups = [
            libc::RTNLGRP_LINK,
            libc::RTNLGRP_IPV4_IFADDR,
            libc::RTNLGRP_IPV6_IFADDR,
            libc::RTNLGRP_IPV4_ROUTE,
            libc::RTNLGRP_IPV6_ROUTE,
            libc::RTNLGRP_IPV4_RULE,
            libc::RTNLGRP_IPV6_RULE,
            libc::RTNLGRP_IPV4_NETCONF,
        ];
        let mut route = Monitor::open(libc::NETLINK_ROUTE, &groups).expect("a monitor");
        let mut rules = Monitor::open(libc::NETLINK_NETFILTER, &[7]).expect("a monitor");
        // Duplicate address detection of the links may still be under way.
        eventually("the kernel is at rest", PATIENCE, async || {
            tokio::time::sleep(Duration::from_millis(200)).await;
            route.read().expect("notices").notices.is_empty()
        })
        .await;
        let plugin = modified(&node.directory.join("bin").join(layout::CNI_PLUGIN));
        let agent = node.start_agent().await;
        let status = node.status().await.expect("a status");
        assert_eq!(status.operations_total, 0);
        assert_eq!(route.read().expect("notices").notices, []);
        assert_eq!(rules.read().expect("notices").notices, []);
        assert_eq!(plugin, modified(&node.directory.join("bin").join(layout::CNI_PLUGIN)));
        // The monitors do hear: one change is told.
        run("ip route del 10.244.2.0/24");
        assert!(!route.read().expect("notices").notices.is_empty());
        agent.stop().await;
    });
}

/// Not every machine has the program that sets offloads.
const OFFLOAD: &str = "ethtool --offload tx-checksum-ip-generic off";

fn damage(command: &str) {
    match command.strip_prefix(OFFLOAD) {
        Some(link) => netlink::offload::set_tx_checksum(link.trim(), false).expect("set"),
        None => drop(run(command)),
    }
}

/// does the damage, which must be mended in time.
async fn mended_in_time(
    what: &str,
    mut damage: impl FnMut(),
    mut is_whole: impl AsyncFnMut() -> bool,
) {
    damage();
    let damaged = Instant::now();
    eventually(what, REPAIR_LIMIT, &mut is_whole).await;
    println!("{what}: {:?}", damaged.elapsed());
}

/// without the API server everything runs on, damage is mended, and pods can be added.
#[test]
fn without_the_api_server_everything_goes_on() {
    on_a_node(async |node| {
        let agent = node.start_agent().await;
        let one = node.add_pod("one");
        node.server.cut().await;
        let other = node.add_pod("other");
        assert!(one.reaches(&other));
        let route = || run("ip route show 10.244.2.0/24");
        let damage = || drop(run("ip route del 10.244.2.0/24"));
        mended_in_time("the route", damage, async || !route().is_empty()).await;
        eventually("nothing is left to do", PATIENCE, async || {
            node.status().await.is_some_and(|status| status.ready && status.converged)
        })
        .await;
        let before = node.status().await.expect("a status");
        node.register("node4", "172.30.0.5", "10.244.4.0/24").await;
        node.server.restore().await;
        eventually("the new node", PATIENCE, async || {
            node.status().await.is_some_and(|status| status.peers == 2)
        })
        .await;
        let after = node.status().await.expect("a status");
        assert_eq!(after.repairs, before.repairs, "nothing was taken down meanwhile");
        assert!(one.reaches(&other));
        agent.stop().await;
    });
}

/// besides the mode of the socket, the agent asks who connects.
#[test]
fn only_root_is_told_what_is_private() {
    on_a_node(async |node| {
        let agent = node.start_agent().await;
        let run = node.places().run;
        let socket = run.join(agent::STATUS_SOCKET);
        let mode = |path: &std::path::Path| {
            std::fs::metadata(path).expect("there").permissions().mode() & 0o777
        };
        assert_eq!((mode(&run), mode(&socket)), (0o700, 0o600));
        // Without that defence everybody can connect.
        let open = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(&run, open.clone()).expect("set");
        std::fs::set_permissions(&socket, open).expect("set");
        let ask = async |user: &str| {
            let socket = socket.display().to_string();
            let output = tokio::process::Command::new("setpriv")
                .args(["--reuid", user, "--clear-groups", "curl", "-s", "--unix-socket"])
                .args([socket.as_str(), "http://agent/status"])
                .output();
            String::from_utf8(output.await.expect("curl runs").stdout).expect("text")
        };
        assert!(ask("0").await.contains("\"node\":\"node1\""));
        assert_eq!(ask("65534").await, "");
        agent.stop().await;
    });
}

/// What somebody does, and the kind of repair that follows.
fn damages(pod_link: &str) -> Vec<(&'static str, String)> {
    let vtep = MacAddress::of_vtep("172.30.0.3".parse().expect("an address"));
    let bridge = layout::BRIDGE;
    let tunnel = layout::VXLAN_LINK;
    let rows = [
        ("route", "ip route del 10.244.2.0/24".to_owned()),
        ("link", format!("ip link del {tunnel}")),
        ("link", format!("ip link set {bridge} down")),
        ("link", format!("ip link set {bridge} mtu 1300")),
        ("link", format!("ip link set {pod_link} nomaster")),
        ("link", format!("{OFFLOAD} {tunnel}")),
        ("address", format!("ip addr flush dev {bridge}")),
        ("neighbour", format!("ip neigh del 10.244.2.0 dev {tunnel}")),
        ("forwarding", format!("bridge fdb del {vtep} dev {tunnel} dst 172.30.0.3")),
        ("nftables", "nft flush ruleset".to_owned()),
        ("nftables", "nft delete table ip flatnet".to_owned()),
        ("nftables", "nft flush chain ip flatnet nat-postrouting".to_owned()),
        ("sysctl", "sysctl -qw net.ipv4.ip_forward=0".to_owned()),
        ("sysctl", format!("sysctl -qw net.ipv4.conf.{bridge}.send_redirects=1")),
        ("sysctl", "sysctl -qw net.ipv4.icmp_ratemask=6168".to_owned()),
    ];
    rows.into_iter().collect()
}

/// The node's end of the only pod's link.
fn pod_link() -> String {
    let links = run("ip -o link show master cni0");
    let link = links.split(": ").nth(1).and_then(|name| name.split('@').next());
    link.expect("the pod's link").to_owned()
}

/// each kind of damage is mended within a second, by notification where the kernel has one
/// and by the canary where it has none, and counted by its kind.
#[test]
fn damage_is_mended_within_a_second_and_counted() {
    on_a_node(async |node| {
        let agent = node.start_agent().await;
        let pod = node.add_pod("pod");
        let pod_link = pod_link();
        let [mut kernel, mut looking] =
            [(); 2].map(|()| kernel::Linux::open().expect("the kernel"));
        for (kind, command) in damages(&pod_link) {
            let whole = kernel.observe().expect("what is there");
            let before = node.status().await.expect("a status").repairs;
            let damage = || {
                damage(&command);
                let changed = kernel.observe().expect("read") != whole;
                assert!(changed, "{command} changes something");
            };
            mended_in_time(&command, damage, async || {
                looking.observe().is_ok_and(|present| present == whole)
            })
            .await;
            eventually("the repair is counted", PATIENCE, async || {
                let after = node.status().await.expect("a status").repairs;
                after.get(kind).copied().unwrap_or(0) > before.get(kind).copied().unwrap_or(0)
            })
            .await;
        }
        assert!(node.rows().await.iter().all(|row| !row.different));
        let other = node.add_pod("other");
        assert!(pod.reaches(&other));
        eventually("repairs are Events of the Node", PATIENCE, async || {
            events(node).await.iter().any(|event| event["reason"] == "FlatnetRepaired")
        })
        .await;

        // Files come back too.
        let list = node.directory.join("net.d").join(layout::CNI_CONFIGURATION_FILE);
        let remove = || std::fs::remove_file(&list).expect("removed");
        mended_in_time("the configuration", remove, async || list.exists()).await;
        agent.stop().await;
    });
}

/// R-22, the other half: what belongs to others is theirs, whatever they do with it.
#[test]
fn foreign_objects_are_neither_read_back_nor_touched() {
    on_a_node(async |node| {
        let agent = node.start_agent().await;
        run("ip link add foreign0 type bridge");
        run("ip route add 192.0.2.0/24 dev lo");
        run("nft add table ip foreign");
        run("nft add chain ip foreign input");
        let rules = run("nft list table ip foreign");
        eventually("the loop had time", PATIENCE, async || {
            tokio::time::sleep(Duration::from_millis(600)).await;
            true
        })
        .await;
        let status = node.status().await.expect("a status");
        assert_eq!(status.repairs, Default::default());
        run("ip link show foreign0");
        assert_eq!(run("ip route show 192.0.2.0/24").lines().count(), 1);
        assert_eq!(run("nft list table ip foreign"), rules);
        agent.stop().await;
    });
}

/// hostPorts and anti-spoofing come back when somebody flushes all rules.
#[test]
fn rules_at_the_edges_of_pods_come_back() {
    on_a_node(async |node| {
        let agent = node.start_agent().await;
        let pod = node.add_pod_with("pod", |config| {
            let port =
                serde_json::json!({ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" });
            config["runtimeConfig"] = serde_json::json!({ "portMappings": [port] });
        });
        let rules = || {
            let text = run("nft -s list ruleset");
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        let whole = rules();
        assert!(whole.iter().any(|line| line.contains("8080")), "the port of the node is there");
        for command in ["nft flush ruleset", "nft delete table bridge flatnet-pods"] {
            let damage = || {
                run(command);
                assert_ne!(rules().len(), whole.len());
            };
            mended_in_time(command, damage, async || rules() == whole).await;
        }
        let link = pod_link();
        let is_up = || run(&format!("ip -o link show {link} up")).contains(&link);
        let damage = || {
            run(&format!("ip link set {link} down"));
            assert!(!is_up());
        };
        mended_in_time("the pod's link", damage, async || is_up()).await;
        let repairs = node.status().await.expect("a status").repairs;
        assert!(repairs.contains_key("pod-edge"), "{repairs:?}");
        assert!(pod.reaches(&node.add_pod("other")));
        agent.stop().await;
    });
}

#[test]
fn running_pods_follow_the_mtu_of_the_network() {
    on_a_node(async |node| {
        let agent = node.start_agent().await;
        let pod = node.add_pod("pod");
        let mtu = || {
            let mut netlink = netlink::Netlink::open_in(&pod.namespace).expect("the pod");
            netlink.require_link("eth0").expect("its link").mtu
        };
        let before = mtu();
        run(&format!("ip link set {UPLINK} mtu 1400"));
        eventually("the pod's MTU", PATIENCE, async || mtu() == before - 100).await;
        agent.stop().await;
    });
}

/// What is on a machine, as its administrator sees it.
fn dump() -> String {
    let commands = [
        "ip -o link",
        "ip -o addr",
        "ip route show table all",
        "ip -6 route show table all",
        "ip rule",
        "nft list ruleset",
    ];
    commands.map(|command| format!("{command}\n{}", run(command))).concat()
}

/// R-23, issue 5, item 5: the address beside the Service's is there, is taken away again, and
/// stays where it was somebody else's.
#[test]
fn the_node_local_dns_address_goes_unless_it_was_there_before() {
    for was_there in [false, true] {
        on_a_node(async move |node| {
            let present = || run("ip -4 addr show dev lo").contains("169.254.20.10/32");
            if was_there {
                run("ip addr add 169.254.20.10/32 dev lo");
            }
            let agent = node.start_agent().await;
            eventually("the address is there", PATIENCE, async || present()).await;
            agent.stop().await;
            agent::uninstall(&node.places(), true).expect("removed");
            assert_eq!(present(), was_there);
            assert!(!run("ip -4 addr show dev lo").contains("10.96.0.10"));
        });
    }
}

/// Issue 5, item 5: another address for names, or none, and the one before is not left behind. What
/// somebody else put on loopback stays, also where it is the very address.
#[test]
fn a_former_node_local_dns_address_goes_with_the_configuration() {
    on_a_node(async |node| {
        let own = |addresses: &[&str]| {
            let mut options = node.options();
            let addresses = addresses.iter().map(|text| text.parse().expect("an address"));
            options.config.node_local_dns = addresses.collect();
            options
        };
        run("ip addr add 169.254.20.12/32 dev lo");
        let rows: [(&[&str], &[&str]); 4] = [
            (&["169.254.20.10"], &["10.96.0.10", "169.254.20.10"]),
            (&["169.254.20.11"], &["10.96.0.10", "169.254.20.11"]),
            (&["169.254.20.12"], &["10.96.0.10"]),
            (&[], &["10.96.0.10"]),
        ];
        for (addresses, expected) in rows {
            let agent = Running::start(own(addresses));
            let mut expected = [expected, &["169.254.20.12"]].concat();
            expected.sort_unstable();
            let what = format!("{expected:?} are on loopback");
            eventually(&what, PATIENCE, async || {
                let text = run("ip -4 -o addr show dev lo");
                let present = text.lines().filter_map(|line| line.split_whitespace().nth(3));
                let mut present: Vec<&str> =
                    present.filter_map(|address| address.strip_suffix("/32")).collect();
                present.sort_unstable();
                present == expected
            })
            .await;
            agent.stop().await;
        }
    });
}

/// a node whose connection tracking fills says so, in the API, its status and its metrics, and
/// takes it back when there is room. The limit is the machine's; the flows are this namespace's.
#[test]
fn connection_tracking_that_fills_is_an_alarm_until_it_has_room() {
    on_a_node(async |node| {
        let agent = node.start_agent().await;
        let pressure = async || {
            let path = ResourcePath::new("v1", "nodes").name(NAME);
            let object: Value = node.server.admin.get(&path).await.expect("the Node");
            let conditions = object["status"]["conditions"].as_array().cloned();
            let mut conditions = conditions.unwrap_or_default().into_iter();
            let found = conditions.find(|one| one["type"] == "FlatnetConntrackPressure");
            found.map_or(Value::Null, |found| found["status"].clone())
        };
        let told = async || {
            let is_it = |event: &Value| event["reason"] == "FlatnetConntrackPressure";
            events(node).await.iter().any(is_it)
        };
        eventually("there is room", PATIENCE, async || pressure().await == "False").await;
        assert!(!told().await);
        let fill = async || {
            let status = node.status().await.expect("a status");
            status.conntrack.expect("flows are tracked")
        };
        let limit = fill().await.limit;
        fill_connection_tracking(limit * 91 / 100);
        assert!(fill().await.entries > limit * 9 / 10, "{:?}", fill().await);
        eventually("the Node says so", PATIENCE, async || pressure().await == "True").await;
        eventually("an Event says so", PATIENCE, async || told().await).await;
        let problems = node.status().await.expect("a status").problems;
        assert!(problems.iter().any(|one| one.contains("nf_conntrack_max")), "{problems:?}");

        let mut flows = NftDriver::open().expect("netlink");
        flows.forget_flows_to_port(Family::V4, Protocol::Udp, FULL_OF_PORT).expect("forgotten");
        eventually("there is room again", PATIENCE, async || pressure().await == "False").await;
        agent.stop().await;
    });
}

/// A flow for each address of loopback that a datagram goes to.
fn fill_connection_tracking(flows: u64) {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let first = u32::from(std::net::Ipv4Addr::new(127, 1, 0, 0));
    for number in 0..u32::try_from(flows).expect("a limit of this machine") {
        let to = std::net::Ipv4Addr::from(first + number);
        // Nobody listens there, of which the socket may hear.
        let _ = socket.send_to(b"", (to, FULL_OF_PORT));
    }
}

/// nothing of ours is left, everything of others is as it was, and twice is fine.
#[test]
fn uninstall_leaves_the_node_as_it_was() {
    on_a_node(async |node| {
        for command in [
            "ip link add foreign0 type bridge",
            "ip link set foreign0 up",
            "ip addr add 192.0.2.1/24 dev foreign0",
            "ip addr add 192.0.2.77/32 dev lo",
            "ip route add 198.51.100.0/24 dev foreign0",
            "nft add table ip foreign",
            "nft add chain ip foreign input { type filter hook input priority 0 ; }",
        ] {
            run(command);
        }
        let foreign = node.directory.join("net.d").join("99-foreign.conf");
        std::fs::create_dir_all(foreign.parent().expect("a directory")).expect("made");
        std::fs::write(&foreign, "{}").expect("written");
        // Addresses that the kernel makes by itself come late.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let before = dump();
        let times = ["established", "close_wait"].map(|state| format!("{TCP_TIMEOUT}{state}"));
        let read = || times.each_ref().map(|key| sysctl::read(key).expect("tracked"));
        sysctl::write(&times[0], "7777").expect("written");
        sysctl::write(&times[1], "77").expect("written");

        let agent = node.start_agent().await;
        assert_eq!(read(), ["86400", "3600"], "S-11: kube-proxy's");
        sysctl::write(&times[0], "1").expect("written");
        eventually("it is put back", PATIENCE, async || read()[0] == "86400").await;
        let _pods = [node.add_pod("one"), node.add_pod("other")];
        assert_ne!(dump(), before);
        let error = agent::uninstall(&node.places(), false).expect_err("the agent runs");
        assert!(error.to_string().contains("another agent works on this node"), "{error}");
        agent.stop().await;
        let removed = agent::uninstall(&node.places(), false).expect("removed");
        assert!(removed.iter().any(|line| line == "link cni0"), "{removed:?}");
        assert_eq!(dump(), before);
        assert_eq!(read(), ["7777", "77"], "{removed:?}");
        assert!(foreign.exists() && node.places().ipam.exists());
        assert_eq!(std::fs::read_dir(foreign.parent().expect("one")).expect("read").count(), 1);
        assert!(!node.places().cni_plugin.join(layout::CNI_PLUGIN).exists());
        assert!(!node.places().run.exists());

        let purged = agent::uninstall(&node.places(), true).expect("removed");
        assert!(purged.iter().all(|line| line.starts_with('/')), "files only: {purged:?}");
        assert!(!node.places().records.exists());
        assert_eq!(agent::uninstall(&node.places(), true).expect("twice"), Vec::<String>::new());
        assert_eq!(dump(), before);
    });
}
