//! `flatnet dns query`: why a name gets the answer that it gets.

use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::{Context, Result};
use dns::message::kind_number;
use dns::{Explanation, Name};
use model::layout;

use crate::commands::ask::{Agents, ask_all};
use crate::output::{Format, print};

/// Arguments of `flatnet dns query`.
#[derive(clap::Args)]
pub struct Arguments {
    /// The full name.
    name: String,
    /// The record type.
    #[arg(default_value = "A")]
    kind: String,
    /// The address of the pod that asks: its namespace decides the search path. Without it, the
    /// name is answered for as it is.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    from: IpAddr,
    #[command(flatten)]
    nodes: Agents,
    /// How to print.
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
}

/// Prints what the DNS workers would answer from the cluster's zone, and each step to it.
///
/// # Errors
/// When the name or the type is none, or a worker does not answer.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let name: Name = arguments.name.parse().with_context(|| arguments.name.clone())?;
    let kind = kind_number(&arguments.kind)
        .with_context(|| format!("{} is no record type", arguments.kind))?;
    let sockets = arguments.nodes.sockets_of("dns", layout::DNS_CONTROL_SOCKET)?;
    let question = format!("/query/{name}/{kind}/{}", arguments.from);
    let explanations: Vec<Explanation> = ask_all(sockets, &question)?;
    print(arguments.output, &explanations, || {
        explanations.iter().map(text).collect::<Vec<_>>().join("\n")
    })?;
    Ok(ExitCode::SUCCESS)
}

fn text(explanation: &Explanation) -> String {
    let asker = match &explanation.namespace {
        Some(namespace) => format!("asked by a pod of the namespace {namespace}\n"),
        None => "asked by no pod with an address of its own: no search path\n".into(),
    };
    let mut text = asker;
    let mut line = |line: &str| {
        text.push_str(line);
        text.push('\n');
    };
    explanation.steps.iter().for_each(|step| line(step));
    for name in &explanation.upstream {
        line(&format!("asked of upstream servers: {name}"));
    }
    if let Some(code) = &explanation.code {
        let when = if explanation.upstream.is_empty() { "" } else { "if none of them exists: " };
        line(&format!("{when}{code}"));
    }
    explanation.records.iter().for_each(|record| line(record));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_is_a_line() {
        let explanation = Explanation {
            namespace: Some("shop".into()),
            steps: vec!["x.: does not exist".into()],
            upstream: vec!["example.com.".into()],
            code: Some("NXDOMAIN".into()),
            records: vec![],
        };
        assert_eq!(
            text(&explanation),
            "asked by a pod of the namespace shop\nx.: does not exist\n\
             asked of upstream servers: example.com.\nif none of them exists: NXDOMAIN\n"
        );
    }
}
