//! `flatnet dns top`: names and clients that ask most.

use std::process::ExitCode;

use agent::{AgentStatus, FastPathStatus};
use anyhow::Result;
use dns::Top;
use model::layout;
use serde::Serialize;

use crate::commands::ask::{Agents, ask_all, in_run_of};
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

/// What one node counted.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeTop {
    #[serde(flatten)]
    worker: Top,
    /// `None`: the agent does not answer.
    kernel: Option<FastPathStatus>,
}

/// Prints what the DNS workers counted since their start, and the kernel in their place.
///
/// # Errors
/// When a worker does not answer.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut tops = Vec::new();
    for root in arguments.nodes.roots_of("dns")? {
        let socket = in_run_of(&root, layout::DNS_CONTROL_SOCKET);
        let workers: Vec<Top> = ask_all(vec![socket], "/top")?;
        // Names are answered without an agent too.
        let agent = ask_all(vec![in_run_of(&root, layout::AGENT_SOCKET)], "/status");
        let status: Option<AgentStatus> = agent.ok().and_then(|mut all| all.pop());
        for mut worker in workers {
            worker.names.truncate(arguments.rows);
            worker.clients.truncate(arguments.rows);
            let kernel = status.as_ref().map(|status| status.dns_fast_path.clone());
            tops.push(NodeTop { worker, kernel });
        }
    }
    print(arguments.output, &tops, || tops.iter().map(text).collect::<Vec<_>>().join("\n"))?;
    Ok(ExitCode::SUCCESS)
}

fn text(NodeTop { worker: top, kernel }: &NodeTop) -> String {
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
        "{} questions answered by the worker\n{}\n\n{}\n{}\n{}",
        top.answered,
        kernel_text(kernel.as_ref()),
        table(["NAME", "ASKED", "FAILED", "MISSING", "MEAN", "SLOWEST"], &names),
        table(["CLIENT", "ASKED", "FAILED", "OVER LIMIT"], &clients),
        table(["SERVER", "STATE"], &servers)
    )
}

fn kernel_text(kernel: Option<&FastPathStatus>) -> String {
    let Some(kernel) = kernel else {
        return "the agent does not answer: nobody says what the kernel answered".into();
    };
    let counts = format!(
        "{} answered by the kernel at pods' links, {} passed on",
        kernel.answered(),
        kernel.passed()
    );
    match kernel.answering {
        true => counts,
        false => format!("{counts}; it does not answer now: {}", kernel.reason),
    }
}

fn milliseconds(us: u64) -> String {
    format!("{:.1} ms", us as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_answered_stands_beside_what_the_worker_did() {
        let questions = [("answered".to_owned(), 5), ("no_data".into(), 1)];
        let mut kernel =
            FastPathStatus { questions: questions.into(), ..FastPathStatus::default() };
        kernel.answering = true;
        let mut top = NodeTop { worker: Top::default(), kernel: Some(kernel) };
        assert!(text(&top).contains("6 answered by the kernel at pods' links, 0 passed on\n"));
        top.kernel = None;
        assert!(text(&top).contains("the agent does not answer"));
    }
}
