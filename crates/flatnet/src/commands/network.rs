//! `flatnet links`, `flatnet routes`, `flatnet node status`: what is programmed on a node, what
//! shall be, and what differs.

use std::process::ExitCode;

use agent::{AccelerationStatus, AgentStatus, ForwardingStatus, MapRow, PathRow};
use anyhow::Result;
use model::{DnsFastPath, PortRange};
use render::inventory::{Row, RowKind};
use serde::Serialize;

use super::ask::Agents;
use crate::output::{Format, print, table};

/// Something differs from what shall be.
const EXIT_DIFFERENT: u8 = 1;
/// Kinds that `flatnet links` shows.
const LINKS: &[RowKind] = &[RowKind::Link, RowKind::Address, RowKind::Wireguard, RowKind::Program];
/// Kinds that `flatnet routes` shows.
const ROUTES: &[RowKind] = &[RowKind::Route, RowKind::Neighbour, RowKind::Forwarding];

/// Arguments of `flatnet links`, `flatnet routes` and `flatnet node status`.
#[derive(clap::Args)]
#[command(after_help = "Exit codes: 0 all is as it shall be, 1 something differs or is wrong.")]
pub struct Arguments {
    #[command(flatten)]
    agents: Agents,
    /// How to print.
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
}

/// What one node says.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeReport {
    #[serde(flatten)]
    status: AgentStatus,
    rows: Vec<Row>,
}

/// `flatnet links`.
pub fn links(arguments: Arguments) -> ExitCode {
    finish(show(&arguments, LINKS))
}

/// `flatnet routes`.
pub fn routes(arguments: Arguments) -> ExitCode {
    finish(show(&arguments, ROUTES))
}

/// `flatnet node status`.
pub fn status(arguments: &Arguments) -> ExitCode {
    finish(show_status(arguments))
}

fn finish(as_it_shall_be: Result<bool>) -> ExitCode {
    match as_it_shall_be {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(EXIT_DIFFERENT),
        Err(error) => {
            eprintln!("flatnet: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn show(arguments: &Arguments, kinds: &[RowKind]) -> Result<bool> {
    let mut reports = ask(arguments)?;
    for report in &mut reports {
        report.rows.retain(|row| kinds.contains(&row.kind));
    }
    print(arguments.output, &reports, || rows_text(&reports, |_| true))?;
    Ok(reports.iter().all(|report| report.rows.iter().all(|row| !row.different)))
}

fn show_status(arguments: &Arguments) -> Result<bool> {
    let reports = ask(arguments)?;
    print(arguments.output, &reports, || status_text(&reports))?;
    let well = |report: &NodeReport| {
        report.status.problems.is_empty() && report.rows.iter().all(|row| !row.different)
    };
    Ok(reports.iter().all(well))
}

fn ask(arguments: &Arguments) -> Result<Vec<NodeReport>> {
    let rows: Vec<Vec<Row>> = arguments.agents.ask("/network")?;
    // After the rows: it tells of what they showed.
    let statuses: Vec<AgentStatus> = arguments.agents.ask("/status")?;
    let reports = statuses.into_iter().zip(rows);
    Ok(reports.map(|(status, rows)| NodeReport { status, rows }).collect())
}

fn rows_text(reports: &[NodeReport], choose: impl Fn(&Row) -> bool) -> String {
    let absent = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
    let mut lines = Vec::new();
    for report in reports {
        for row in report.rows.iter().filter(|row| choose(row)) {
            lines.push([
                report.status.node.clone(),
                row.kind.name().to_owned(),
                row.name.clone(),
                if row.different { "DIFFERENT" } else { "ok" }.to_owned(),
                absent(&row.wanted),
                // The same text twice helps nobody.
                if row.different { absent(&row.present) } else { String::new() },
            ]);
        }
    }
    table(["NODE", "KIND", "NAME", "STATE", "WANTED", "PRESENT"], &lines)
}

fn status_text(reports: &[NodeReport]) -> String {
    let mut tables = vec![nodes_text(reports)];
    let pools = cells(reports, |node, status| {
        let pools = status.pools.iter();
        pools
            .map(|pool| {
                [node.into(), pool.range.clone(), pool.held.to_string(), pool.free.to_string()]
            })
            .collect()
    });
    tables.extend(shown(["NODE", "RANGE", "HELD", "FREE"], &pools));
    let masquerade = cells(reports, |node, status| {
        let row = |ports: &PortRange| [node.into(), ports.to_string()];
        status.masquerade_ports.iter().map(row).collect()
    });
    tables.extend(shown(["NODE", "PORTS TOWARDS OUTSIDE"], &masquerade));
    let repairs = cells(reports, |node, status| {
        let repairs = status.repairs.iter();
        repairs.map(|(kind, count)| [node.into(), kind.clone(), count.to_string()]).collect()
    });
    tables.extend(shown(["NODE", "REPAIRED", "COUNT"], &repairs));
    let dns = cells(reports, |node, status| {
        let path = &status.dns_fast_path;
        let is_shown = path.answering || path.wanted != DnsFastPath::Off;
        let row = || {
            let state = if path.answering { "answers" } else { "left to the worker" };
            let counts = [path.links as u64, path.answered(), path.passed()];
            let [links, answered, passed] = counts.map(|count| count.to_string());
            [node.into(), state.into(), links, answered, passed, path.reason.clone()]
        };
        is_shown.then(row).into_iter().collect()
    });
    let header = ["NODE", "DNS IN KERNEL", "LINKS", "ANSWERED", "PASSED ON", "WHY"];
    tables.extend(shown(header, &dns));
    let forwarding = cells(reports, |node, status| {
        let wanted = status.forwarding.wanted.then(|| forwarding_cells(node, &status.forwarding));
        wanted.into_iter().collect()
    });
    let header = ["NODE", "FORWARDING", "PODS", "PODS BY KERNEL", "REMOTE RANGES", "WHY"];
    tables.extend(shown(header, &forwarding));
    tables.extend(acceleration_text(reports));
    tables.extend(maps_text(reports));
    let paths = cells(reports, |node, status| {
        status.paths.iter().map(|path| path_cells(node, path)).collect()
    });
    tables.extend(shown(["NODE", "PEER", "WAY", "MTU", "RTT", "STATE"], &paths));
    let left_out = cells(reports, |node, status| {
        let nodes = status.unreachable.nodes.iter().map(|name| ("node", name.clone()));
        let endpoints = status.unreachable.endpoints.iter();
        let endpoints = endpoints.map(|address| ("endpoint", address.to_string()));
        nodes.chain(endpoints).map(|(kind, name)| [node.into(), kind.into(), name]).collect()
    });
    tables.extend(shown(["NODE", "LEFT OUT", "SINCE IT DOES NOT ANSWER"], &left_out));
    if reports.iter().any(|report| report.rows.iter().any(|row| row.different)) {
        tables.push(rows_text(reports, |row| row.different));
    }
    let mut text = tables.join("\n");
    for report in reports {
        for problem in &report.status.problems {
            text.push_str(&format!("\n{}: {problem}", report.status.node));
        }
    }
    text.trim_end().to_owned() + "\n"
}

/// The table, where it has lines.
fn shown<const N: usize>(header: [&str; N], lines: &[[String; N]]) -> Option<String> {
    (!lines.is_empty()).then(|| table(header, lines))
}

/// Lines of a table about parts of nodes, each behind its node's name.
fn cells<const N: usize>(
    reports: &[NodeReport],
    parts: impl Fn(&str, &AgentStatus) -> Vec<[String; N]>,
) -> Vec<[String; N]> {
    reports.iter().flat_map(|report| parts(&report.status.node, &report.status)).collect()
}

fn nodes_text(reports: &[NodeReport]) -> String {
    let lines: Vec<[String; 8]> = reports
        .iter()
        .map(|report| {
            let status = &report.status;
            let yes = |value: bool| if value { "yes" } else { "no" }.to_owned();
            let different = report.rows.iter().filter(|row| row.different).count();
            [
                status.node.clone(),
                status.uplink.clone(),
                yes(status.synced),
                yes(status.ready),
                status.peers.to_string(),
                status.pods.to_string(),
                status.services.to_string(),
                format!("{different} of {}", report.rows.len()),
            ]
        })
        .collect();
    let header = ["NODE", "UPLINK", "SYNCED", "READY", "PEERS", "PODS", "SERVICES", "DIFFERENT"];
    table(header, &lines)
}

/// The path that packets of a node's pods take.
fn forwarding_cells(node: &str, forwarding: &ForwardingStatus) -> [String; 6] {
    let path = if forwarding.ebpf { "ebpf" } else { "kernel" };
    let counts = [forwarding.pods, forwarding.pods_by_kernel, forwarding.remotes];
    let [pods, by_kernel, remotes] = counts.map(|count| count.to_string());
    [node.into(), path.into(), pods, by_kernel, remotes, forwarding.reason.clone()]
}

/// Whether drivers of uplinks send on packets of Services.
fn acceleration_text(reports: &[NodeReport]) -> Option<String> {
    let accelerated = cells(reports, |node, status| {
        let row = |it: &AccelerationStatus| {
            let state = if it.native { "native" } else { "off" };
            [node.into(), it.uplink.clone(), state.into(), it.sent.to_string(), it.reason.clone()]
        };
        status.service_acceleration.iter().map(row).collect()
    });
    shown(["NODE", "UPLINK", "XDP", "SENT ON", "WHY"], &accelerated)
}

/// How full the maps of Services are. Empty ones tell nothing.
fn maps_text(reports: &[NodeReport]) -> Option<String> {
    let maps = cells(reports, |node, status| {
        let row = |map: &MapRow| {
            let [entries, entries_max] =
                [map.entries, map.entries_max.into()].map(|count| count.to_string());
            [node.into(), map.name.clone(), entries, entries_max]
        };
        status.ebpf_maps.iter().filter(|map| map.entries > 0).map(row).collect()
    });
    (!maps.is_empty()).then(|| table(["NODE", "EBPF MAP", "ENTRIES", "OF"], &maps))
}

/// The path to one other node, as the self-test found it.
fn path_cells(node: &str, path: &PathRow) -> [String; 6] {
    let known = |value: Option<String>| value.unwrap_or_else(|| "-".into());
    [
        node.to_owned(),
        path.peer.clone(),
        path.way.clone(),
        known(path.mtu.map(|mtu| mtu.to_string())),
        known(path.rtt_us.map(|rtt_us| format!("{rtt_us} us"))),
        path.state.clone(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(different: bool) -> NodeReport {
        let present = if different { None } else { Some("via 10.244.2.0".to_owned()) };
        let row = Row {
            kind: RowKind::Route,
            name: "10.244.2.0/24".into(),
            wanted: Some("via 10.244.2.0".into()),
            present,
            different,
        };
        let status = AgentStatus { node: "node1".into(), ..AgentStatus::default() };
        NodeReport { status, rows: vec![row] }
    }

    #[test]
    fn what_differs_is_shown_beside_what_shall_be() {
        let text = rows_text(&[report(true)], |_| true);
        assert!(text.contains("DIFFERENT") && text.contains("via 10.244.2.0   -"), "{text}");
        let text = rows_text(&[report(false)], |_| true);
        assert!(text.contains("ok") && text.matches("via").count() == 1, "{text}");
    }

    #[test]
    fn the_status_counts_what_differs_and_names_it() {
        let mut broken = report(true);
        broken.status.problems.push("the uplink is missing".into());
        let text = status_text(&[broken]);
        assert!(text.contains("1 of 1") && text.contains("node1: the uplink is missing"), "{text}");
        assert!(!status_text(&[report(false)]).contains("10.244.2.0/24"));
        let mut mended = report(false);
        mended.status.repairs.insert("pod-edge".into(), 3);
        let text = status_text(&[mended]);
        assert!(text.contains("node1   pod-edge   3"), "{text}");
    }

    #[test]
    fn the_status_shows_the_source_ports_towards_outside() {
        let mut node = report(false);
        node.status.masquerade_ports = PortRange::new(40_000, 49_999);
        let text = status_text(&[node]);
        assert!(text.contains("PORTS TOWARDS OUTSIDE\nnode1   40000-49999"), "{text}");
        assert!(!status_text(&[report(false)]).contains("PORTS TOWARDS OUTSIDE"));
    }

    #[test]
    fn the_status_shows_what_fail_over_leaves_out() {
        let mut silent = report(false);
        silent.status.unreachable.nodes.push("node2".into());
        silent.status.unreachable.endpoints.push("10.244.2.7:8080".parse().expect("one"));
        let text = status_text(&[silent]);
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let lines: Vec<String> = text.lines().map(words).collect();
        for expected in ["node1 node node2", "node1 endpoint 10.244.2.7:8080"] {
            assert!(lines.iter().any(|line| line == expected), "{text}");
        }
        assert!(!status_text(&[report(false)]).contains("LEFT OUT"));
    }

    #[test]
    fn the_status_shows_what_the_kernel_answers_for_dns() {
        let mut node = report(false);
        let path = &mut node.status.dns_fast_path;
        (path.answering, path.links) = (true, 4);
        path.questions = [("answered".into(), 7), ("passed_name".into(), 2)].into();
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let text = status_text(&[node]);
        assert!(words(&text).contains("node1 answers 4 7 2"), "{text}");
        let mut node = report(false);
        node.status.dns_fast_path.reason = "no such helper".into();
        let text = status_text(&[node]);
        assert!(words(&text).contains("left to the worker 0 0 0 no such helper"), "{text}");
        let mut node = report(false);
        node.status.dns_fast_path.wanted = DnsFastPath::Off;
        assert!(!status_text(&[node]).contains("DNS IN KERNEL"));
    }

    #[test]
    fn the_status_shows_how_full_the_maps_of_services_are() {
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let mut node = report(false);
        let map = |name: &str, entries| MapRow { name: name.into(), entries, entries_max: 1024 };
        node.status.ebpf_maps = vec![map("flows", 12), map("maglev", 0)];
        let text = status_text(&[node]);
        assert!(words(&text).contains("node1 flows 12 1024"), "{text}");
        assert!(!text.contains("maglev"), "{text}");
    }

    #[test]
    fn the_status_shows_whether_the_uplinks_driver_sends_on() {
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let mut node = report(false);
        assert!(!status_text(std::slice::from_ref(&node)).contains("XDP"), "nobody asked for it");
        let native = AccelerationStatus {
            uplink: "eth0".into(),
            native: true,
            sent: 12,
            ..AccelerationStatus::default()
        };
        let off = AccelerationStatus {
            uplink: "eth0".into(),
            reason: "its driver has no XDP".into(),
            ..AccelerationStatus::default()
        };
        for (status, expected) in
            [(native, "node1 eth0 native 12"), (off, "node1 eth0 off 0 its driver has no XDP")]
        {
            node.status.service_acceleration = Some(status);
            let text = status_text(std::slice::from_ref(&node));
            assert!(words(&text).contains(expected), "{text}");
        }
    }

    #[test]
    fn the_status_shows_which_path_packets_of_pods_take() {
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let mut node = report(false);
        let forwarding = &mut node.status.forwarding;
        (forwarding.wanted, forwarding.ebpf) = (true, true);
        (forwarding.pods, forwarding.pods_by_kernel, forwarding.remotes) = (7, 1, 2);
        let text = status_text(&[node]);
        assert!(words(&text).contains("node1 ebpf 7 1 2"), "{text}");
        let mut node = report(false);
        node.status.forwarding.wanted = true;
        node.status.forwarding.reason = "no such helper".into();
        let text = status_text(&[node]);
        assert!(words(&text).contains("node1 kernel 0 0 0 no such helper"), "{text}");
        assert!(!status_text(&[report(false)]).contains("FORWARDING"));
    }

    #[test]
    fn the_status_shows_the_path_to_each_node() {
        let mut tested = report(false);
        let path = |peer: &str, rtt_us: Option<u32>| PathRow {
            peer: peer.into(),
            way: "vxlan".into(),
            mtu: rtt_us.map(|_| 1450),
            rtt_us,
            state: if rtt_us.is_some() { "works" } else { "silent" }.into(),
        };
        tested.status.paths = vec![path("node2", Some(210)), path("node3", None)].into();
        let text = status_text(&[tested]);
        let line = |peer: &str| text.lines().find(|line| line.contains(peer)).unwrap_or_default();
        let words = |peer| line(peer).split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(words("node2"), "node1 node2 vxlan 1450 210 us works", "{text}");
        assert_eq!(words("node3"), "node1 node3 vxlan - - silent", "{text}");
        assert!(!status_text(&[report(false)]).contains("RTT"));
    }
}
