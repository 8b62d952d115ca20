//! `flatnet links`, `flatnet routes`, `flatnet node status`: what is programmed on a node, what
//! shall be, and what differs.

use std::process::ExitCode;

use agent::AgentStatus;
use anyhow::Result;
use render::inventory::{Row, RowKind};
use serde::Serialize;

use super::ask::Agents;
use crate::output::{Format, print, table};

/// Something differs from what shall be.
const EXIT_DIFFERENT: u8 = 1;
/// Kinds that `flatnet links` shows.
const LINKS: &[RowKind] = &[RowKind::Link, RowKind::Address, RowKind::Wireguard];
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
                status.services.to_string(),
                format!("{different} of {}", report.rows.len()),
                status.repairs.values().sum::<u64>().to_string(),
            ]
        })
        .collect();
    let header = ["NODE", "UPLINK", "SYNCED", "READY", "PEERS", "SERVICES", "DIFFERENT", "REPAIRS"];
    let mut text = table(header, &lines);
    let pools: Vec<[String; 4]> = reports
        .iter()
        .flat_map(|report| {
            let node = &report.status.node;
            report.status.pools.iter().map(move |pool| {
                let (held, free) = (pool.held.to_string(), pool.free.to_string());
                [node.clone(), pool.range.clone(), held, free]
            })
        })
        .collect();
    if !pools.is_empty() {
        text.push('\n');
        text.push_str(&table(["NODE", "RANGE", "HELD", "FREE"], &pools));
    }
    if reports.iter().any(|report| report.rows.iter().any(|row| row.different)) {
        text.push('\n');
        text.push_str(&rows_text(reports, |row| row.different));
    }
    for report in reports {
        for problem in &report.status.problems {
            text.push_str(&format!("\n{}: {problem}", report.status.node));
        }
    }
    text.trim_end().to_owned() + "\n"
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
    }
}
