//! `flatnet dns top`: names and clients that ask most.

use std::process::ExitCode;

use anyhow::Result;
use dns::Top;
use model::layout;

use crate::commands::ask::{Agents, ask_all};
use crate::output::{Format, print, table};

/// Arguments of `flatnet dns top`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    nodes: Agents,
    /// Rows of each table.
    #[arg(long, default_value_t = 15)]
    rows: usize,
    /// How to print.
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
}

/// Prints what the DNS workers counted since their start.
///
/// # Errors
/// When a worker does not answer.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let sockets = arguments.nodes.sockets_of("dns", layout::DNS_CONTROL_SOCKET)?;
    let mut tops: Vec<Top> = ask_all(sockets, "/top")?;
    for top in &mut tops {
        top.names.truncate(arguments.rows);
        top.clients.truncate(arguments.rows);
    }
    print(arguments.output, &tops, || tops.iter().map(text).collect::<Vec<_>>().join("\n"))?;
    Ok(ExitCode::SUCCESS)
}

fn text(top: &Top) -> String {
    let names = top.names.iter().map(|name| {
        let asked = match name.at_most_too_many {
            0 => name.asked.to_string(),
            _ => format!("~{}", name.asked),
        };
        [
            name.name.clone(),
            asked,
            name.failed.to_string(),
            name.missing.to_string(),
            milliseconds(name.mean_us),
            milliseconds(name.slowest_us),
        ]
    });
    let clients = top.clients.iter().map(|client| {
        [
            client.client.to_string(),
            client.asked.to_string(),
            client.failed.to_string(),
            client.limited.to_string(),
        ]
    });
    let servers = top.servers.iter().map(|server| {
        let state = match (server.is_loop, server.is_down) {
            (true, _) => "asks back",
            (false, true) => "down",
            (false, false) => "up",
        };
        [server.server.clone(), state.into()]
    });
    let names: Vec<_> = names.collect();
    let clients: Vec<_> = clients.collect();
    let servers: Vec<_> = servers.collect();
    format!(
        "{} questions answered\n\n{}\n{}\n{}",
        top.answered,
        table(["NAME", "ASKED", "FAILED", "MISSING", "MEAN", "SLOWEST"], &names),
        table(["CLIENT", "ASKED", "FAILED", "OVER LIMIT"], &clients),
        table(["SERVER", "STATE"], &servers)
    )
}

fn milliseconds(us: u64) -> String {
    format!("{:.1} ms", us as f64 / 1000.0)
}
