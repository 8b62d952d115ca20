//! `flatnet status`: what runs and what is wrong.

use std::collections::BTreeMap;
use std::process::ExitCode;

use agent::AgentStatus;
use anyhow::Result;
use client::{Client, ListOptions, ResourcePath};
use model::Node;
use serde::Serialize;

use super::ask::{self, ANSWER_TIMEOUT};
use super::{ClusterName, require_root};
use crate::cluster::memory;
use crate::cluster::paths::Paths;
use crate::cluster::spec::ClusterSpec;
use crate::cluster::supervisor::{self, ProcessReport};
use crate::output::{Format, print, table};

/// Something is wrong.
const EXIT_PROBLEMS: u8 = 1;
/// There is no such cluster, or it does not run; as for services of the init system.
const EXIT_NOT_RUNNING: u8 = 3;

/// Arguments of `flatnet status`.
#[derive(clap::Args)]
#[command(
    after_help = "Exit codes: 0 all is well, 1 something is wrong, 3 the cluster does not run.\n\nExample:\n  flatnet status --output json"
)]
pub struct Arguments {
    #[command(flatten)]
    cluster: ClusterName,
    /// How to print.
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Outcome {
    name: String,
    processes: Vec<ProcessReport>,
    nodes: Vec<NodeOutcome>,
    memory_kilobytes: u64,
    problems: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeOutcome {
    name: String,
    ready: bool,
    #[serde(flatten)]
    agent: Option<AgentStatus>,
}

/// Prints what runs. The exit code says whether all is well.
pub fn run(arguments: Arguments) -> ExitCode {
    match ask(&arguments) {
        Ok(None) => {
            eprintln!(
                "cluster {} does not run: start it with `flatnet up`",
                arguments.cluster.name
            );
            ExitCode::from(EXIT_NOT_RUNNING)
        }
        Ok(Some(outcome)) => match print(arguments.output, &outcome, || text(&outcome)) {
            Ok(()) if outcome.problems.is_empty() => ExitCode::SUCCESS,
            Ok(()) => ExitCode::from(EXIT_PROBLEMS),
            Err(_) => ExitCode::FAILURE,
        },
        Err(error) => {
            eprintln!("flatnet: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn ask(arguments: &Arguments) -> Result<Option<Outcome>> {
    require_root("looking into a cluster")?;
    let paths = arguments.cluster.paths()?;
    let Some(spec) = ClusterSpec::load(&paths)? else { return Ok(None) };
    let (true, Some(report)) = (supervisor::is_running(&paths)?, supervisor::report(&paths)?)
    else {
        return Ok(None);
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut problems = Vec::new();
    for process in report.processes.iter().filter(|process| process.pid.is_none()) {
        let exit = process.last_exit.as_deref().unwrap_or("never started");
        let log = paths.logs().join(format!("{}.log", process.name.replace('/', "-")));
        problems.push(format!("{} does not run ({exit}); see {}", process.name, log.display()));
    }
    let nodes = runtime.block_on(nodes(&paths, &spec, &report.processes, &mut problems));
    let memory_kilobytes = memory::own_kilobytes(&paths, report.supervisor);
    let name = paths.name().to_owned();
    Ok(Some(Outcome { name, processes: report.processes, nodes, memory_kilobytes, problems }))
}

async fn nodes(
    paths: &Paths,
    spec: &ClusterSpec,
    processes: &[ProcessReport],
    problems: &mut Vec<String>,
) -> Vec<NodeOutcome> {
    let known = match tokio::time::timeout(ANSWER_TIMEOUT, api_nodes(paths)).await {
        Ok(Ok(known)) => known,
        Ok(Err(error)) => {
            problems.push(format!("the API server does not answer: {error:#}"));
            BTreeMap::new()
        }
        Err(_) => {
            problems.push("the API server does not answer in time".into());
            BTreeMap::new()
        }
    };
    let mut outcomes = Vec::new();
    for node in &spec.nodes {
        let ready = known.get(&node.name).copied().unwrap_or_default();
        if !ready && !known.is_empty() {
            problems.push(format!("node {} is not ready: kubectl describe node {0}", node.name));
        }
        let unit = format!("agent/{}", node.name);
        let pid = processes.iter().find(|process| process.name == unit).and_then(|p| p.pid);
        let agent = match pid {
            None => None,
            Some(pid) => {
                match tokio::time::timeout(
                    ANSWER_TIMEOUT,
                    ask::ask::<AgentStatus>(&ask::socket_of(pid), "/status"),
                )
                .await
                {
                    Ok(Ok(status)) => Some(status),
                    Ok(Err(error)) => {
                        problems
                            .push(format!("the agent of {} does not answer: {error:#}", node.name));
                        None
                    }
                    Err(_) => {
                        problems
                            .push(format!("the agent of {} does not answer in time", node.name));
                        None
                    }
                }
            }
        };
        if let Some(status) = &agent {
            problems.extend(status.problems.iter().map(|text| format!("{}: {text}", node.name)));
        }
        outcomes.push(NodeOutcome { name: node.name.clone(), ready, agent });
    }
    outcomes
}

async fn api_nodes(paths: &Paths) -> Result<BTreeMap<String, bool>> {
    let client = Client::from_kubeconfig(&paths.kubeconfig()).await?;
    let path = ResourcePath::new("v1", "nodes");
    let list = client.list::<Node>(&path, &ListOptions::default()).await?;
    Ok(list.items.iter().map(|node| (node.name().to_owned(), node.is_ready())).collect())
}

fn text(outcome: &Outcome) -> String {
    let processes: Vec<[String; 4]> = outcome
        .processes
        .iter()
        .map(|process| {
            let pid = process.pid.map_or("-".into(), |pid| pid.to_string());
            let exit = process.last_exit.clone().unwrap_or_else(|| "-".into());
            [process.name.clone(), pid, process.restarts.to_string(), exit]
        })
        .collect();
    let nodes: Vec<[String; 7]> = outcome
        .nodes
        .iter()
        .map(|node| {
            let yes = |value: bool| if value { "yes" } else { "no" }.to_owned();
            let agent = node.agent.clone().unwrap_or_default();
            [
                node.name.clone(),
                yes(node.ready),
                yes(agent.synced),
                yes(agent.converged),
                agent.services.to_string(),
                agent.pods.to_string(),
                agent.repairs.values().sum::<u64>().to_string(),
            ]
        })
        .collect();
    let mut text = table(["PROCESS", "PID", "RESTARTS", "LAST-EXIT"], &processes);
    text.push('\n');
    let header = ["NODE", "READY", "SYNCED", "CONVERGED", "SERVICES", "PODS", "REPAIRS"];
    text.push_str(&table(header, &nodes));
    text.push_str(&format!("\n{}\n", memory::sentence(outcome.memory_kilobytes)));
    if outcome.problems.is_empty() {
        text.push_str("Nothing is wrong.\n");
    } else {
        text.push_str("\nProblems:\n");
        for problem in &outcome.problems {
            text.push_str(&format!("  {problem}\n"));
        }
    }
    text
}
