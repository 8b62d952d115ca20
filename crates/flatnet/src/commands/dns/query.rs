//! `flatnet dns query`: why a name gets the answer that it gets.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

use agent::FastPathAnswer;
use anyhow::{Context, Result, bail};
use dns::message::kind_number;
use dns::{Explanation, Name};
use model::{NamespacedName, layout};
use serde::Serialize;

use crate::commands::ask::{Agents, ask_all, below, in_run_of};
use crate::output::{Format, print};

/// Arguments of `flatnet dns query`.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  flatnet dns query web.shop.svc.cluster.local --name lab\n  flatnet dns query example.com.shop.svc.cluster.local AAAA --from shop/web-0"
)]
pub struct Arguments {
    /// The full name.
    #[arg(value_name = "NAME")]
    asked: String,
    /// The record type.
    #[arg(default_value = "A")]
    kind: String,
    /// The pod that asks, as NAMESPACE/NAME or by its address: its namespace decides the search
    /// path, and its node who answers. Without it, the name is answered for as it is.
    #[arg(long, value_name = "POD")]
    from: Option<From>,
    #[command(flatten)]
    nodes: Agents,
    /// How to print.
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
enum From {
    Address(IpAddr),
    Pod(NamespacedName),
}

impl FromStr for From {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
                Ok(Self::Pod(NamespacedName::new(namespace, name)))
            }
            _ => Err("name a pod as NAMESPACE/NAME, or by its address".into()),
        }
    }
}

/// What one node says.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeExplanation {
    /// Whether the kernel answers before the worker; `None`: no pod asks, or the agent does not
    /// answer.
    kernel: Option<FastPathAnswer>,
    #[serde(flatten)]
    worker: Explanation,
}

/// Prints what would be answered, and each step to it.
///
/// # Errors
/// When the name or the type is none, there is no such pod, or a worker does not answer.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let name: Name = arguments.asked.parse().with_context(|| arguments.asked.clone())?;
    let kind = kind_number(&arguments.kind)
        .with_context(|| format!("{} is no record type", arguments.kind))?;
    let mut roots = arguments.nodes.roots_of("dns")?;
    let from = match &arguments.from {
        None => None,
        Some(From::Address(address)) => Some(*address),
        Some(From::Pod(pod)) => {
            let (root, address) = find_pod(&roots, pod)?;
            roots = vec![root];
            Some(address)
        }
    };
    let mut explanations = Vec::new();
    for root in &roots {
        let socket = in_run_of(root, layout::DNS_CONTROL_SOCKET);
        let asker = from.unwrap_or(IpAddr::from([127, 0, 0, 1]));
        let asked: Vec<Explanation> =
            ask_all(vec![socket], &format!("/query/{name}/{kind}/{asker}"))?;
        let kernel = from.and_then(|from| ask_kernel(root, &name, &arguments.kind, from));
        explanations.extend(
            asked.into_iter().map(|worker| NodeExplanation { kernel: kernel.clone(), worker }),
        );
    }
    print(arguments.output, &explanations, || {
        explanations.iter().map(text).collect::<Vec<_>>().join("\n")
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Names are answered without an agent too: then nobody knows.
fn ask_kernel(root: &Path, name: &Name, kind: &str, from: IpAddr) -> Option<FastPathAnswer> {
    let question = format!("/names/{name}/{}/{from}", kind.to_ascii_uppercase());
    let socket = in_run_of(root, layout::AGENT_SOCKET);
    ask_all(vec![socket], &question).ok().and_then(|mut all| all.pop())
}

/// The node where a pod is, and its first address, by the plugin's records.
fn find_pod(roots: &[PathBuf], pod: &NamespacedName) -> Result<(PathBuf, IpAddr)> {
    let boot_id = cni::records::boot_id()?;
    for root in roots {
        let directory = below(root, layout::CNI_RECORD_DIRECTORY);
        for attachment in cni::records::of_all_networks(&directory)? {
            let is_it = attachment.boot_id == boot_id && attachment.pod.as_ref() == Some(pod);
            if let Some(address) = attachment.addresses.first().filter(|_| is_it) {
                return Ok((root.clone(), address.addr()));
            }
        }
    }
    bail!(
        "no node that was asked has a pod {pod} with a network of its own: for a pod of the node's \
         network, name the node's address"
    )
}

fn text(NodeExplanation { kernel, worker: explanation }: &NodeExplanation) -> String {
    let asker = match &explanation.namespace {
        Some(namespace) => format!("asked by a pod of the namespace {namespace}\n"),
        None => "asked by no pod with an address of its own: no search path\n".into(),
    };
    let mut text = asker;
    let mut line = |line: &str| {
        text.push_str(line);
        text.push('\n');
    };
    if let Some(kernel) = kernel {
        let who = if kernel.answers { "in the kernel" } else { "by the worker" };
        line(&format!("answered {who}: {}", kernel.reason));
    }
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
        let worker = Explanation {
            namespace: Some("shop".into()),
            steps: vec!["x.: does not exist".into()],
            upstream: vec!["example.com.".into()],
            code: Some("NXDOMAIN".into()),
            records: vec![],
        };
        let mut explanation = NodeExplanation { kernel: None, worker };
        assert_eq!(
            text(&explanation),
            "asked by a pod of the namespace shop\nx.: does not exist\n\
             asked of upstream servers: example.com.\nif none of them exists: NXDOMAIN\n"
        );
        let reason = "the kernel has no such name".to_owned();
        explanation.kernel = Some(FastPathAnswer { reason, ..FastPathAnswer::default() });
        assert!(text(&explanation).contains("\nanswered by the worker: the kernel has no such"));
    }

    #[test]
    fn a_name_is_asked_of_a_cluster_by_its_name() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            arguments: Arguments,
        }
        let words =
            ["query", "web.shop.svc.cluster.local", "--name", "lab", "--from", "shop/web-0"];
        let line = <Line as clap::Parser>::try_parse_from(words).expect("a line");
        assert_eq!(line.arguments.asked, "web.shop.svc.cluster.local");
        assert_eq!(line.arguments.kind, "A");
    }

    #[test]
    fn who_asks_is_a_pod_or_an_address() {
        let pod = From::Pod(NamespacedName::new("shop", "web-0"));
        assert_eq!("shop/web-0".parse(), Ok(pod));
        assert_eq!("10.244.1.5".parse(), Ok(From::Address([10, 244, 1, 5].into())));
        for wrong in ["web-0", "/web-0", "shop/", ""] {
            assert!(wrong.parse::<From>().is_err(), "{wrong}");
        }
    }
}
