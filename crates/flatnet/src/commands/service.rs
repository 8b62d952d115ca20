//! `flatnet service`: Services as the nodes see them: what clients get, which endpoints there are,
//! and why one is not used. And what implements them.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use agent::{
    AgentStatus, Answer, EndpointReport, FrontendReport, KernelObject, NodeServices, ServiceReport,
};
use anyhow::{Context, Result, bail};
use model::ServiceBackend;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::ask::Agents;
use super::{ClusterName, require_root};
use crate::cluster::supervisor::{self, ProcessReport, Report};
use crate::output::{Format, print, table};

/// Something is wrong with a Service that is shown.
const EXIT_WRONG: u8 = 1;
/// How long all agents may take to come back with another backend.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the supervisor may take to tell of an agent that it has started again.
const REPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// Agents are asked this often whether they have.
const CHANGE_POLL: Duration = Duration::from_millis(50);

/// Arguments of `flatnet service`.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  flatnet service list --name flatnet\n  flatnet service show shop/web --name flatnet --node node1\n  flatnet service show web -n shop --output yaml   # on a node of a real cluster\n  flatnet service backend iptables --name flatnet\n\nExit codes: 0 all is well, 1 something is wrong with a Service that is shown."
)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// List Services with their endpoints.
    List(Asked),
    /// Show what one Service is at each node.
    Show {
        /// NAME, or NAMESPACE/NAME.
        service: String,
        #[command(flatten)]
        asked: Asked,
    },
    /// Say what implements Services in a cluster of this machine, or change it: established
    /// connections go on.
    Backend {
        /// auto, nftables, iptables, ipvs or ebpf.
        backend: Option<ServiceBackend>,
        #[command(flatten)]
        cluster: ClusterName,
    },
}

#[derive(clap::Args)]
struct Asked {
    /// Services of this namespace. Without it: for `list` of all, for `show` of `default`.
    #[arg(long, short)]
    namespace: Option<String>,
    #[command(flatten)]
    agents: Agents,
    /// How to print.
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
}

/// Runs one or the other.
pub fn run(arguments: Arguments) -> ExitCode {
    let all_well = match &arguments.action {
        Action::List(asked) => list(asked),
        Action::Show { service, asked } => show(service, asked),
        Action::Backend { backend, cluster } => change_backend(*backend, cluster).map(|()| true),
    };
    match all_well {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(EXIT_WRONG),
        Err(error) => {
            eprintln!("flatnet: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn list(asked: &Asked) -> Result<bool> {
    let mut nodes: Vec<NodeServices> = asked.agents.ask("/services")?;
    for node in &mut nodes {
        let wanted = |service: &ServiceReport| {
            asked.namespace.as_ref().is_none_or(|namespace| *namespace == service.namespace)
        };
        node.services.retain(wanted);
    }
    print(asked.output, &nodes, || list_text(&nodes))?;
    Ok(is_well(&nodes))
}

fn show(service: &str, asked: &Asked) -> Result<bool> {
    let (namespace, name) = match (service.split_once('/'), &asked.namespace) {
        (Some((namespace, _)), Some(other)) if namespace != other => {
            bail!("{service} is not in the namespace {other}: leave out one of the two")
        }
        (Some(both), _) => both,
        (None, namespace) => (namespace.as_deref().unwrap_or("default"), service),
    };
    let question = format!("/services/{}", segments(namespace, name)?);
    let mut nodes: Vec<NodeServices> = asked.agents.ask(&question)?;
    nodes.retain(|node| !node.services.is_empty());
    if nodes.is_empty() {
        bail!(
            "no node knows a Service {namespace}/{name}: `kubectl get services --all-namespaces` \
             shows what the API has"
        );
    }
    print(asked.output, &nodes, || show_text(&nodes))?;
    Ok(is_well(&nodes))
}

/// Names of Services are DNS labels (RFC 1123): nothing else gets into the question.
fn segments(namespace: &str, name: &str) -> Result<String> {
    let is_label = |text: &str| {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        !text.is_empty() && text.len() <= 63 && text.chars().all(allowed)
    };
    match is_label(namespace) && is_label(name) {
        true => Ok(format!("{namespace}/{name}")),
        false => bail!("{namespace}/{name} is no name of a Service: use NAMESPACE/NAME"),
    }
}

/// Agents read the cluster's configuration when they start: their supervisor starts them again.
fn change_backend(wanted: Option<ServiceBackend>, cluster: &ClusterName) -> Result<()> {
    require_root("asking an agent")?;
    let (paths, mut spec) = cluster.load()?;
    let agents = Agents::of_cluster(&cluster.name);
    if let Some(wanted) = wanted {
        let backend = agent::service_backend(wanted)?;
        let report = || {
            supervisor::report(&paths)?.with_context(|| format!("cluster {0} does not run: `flatnet up --name {0} --service-backend {wanted}` starts it with this backend", cluster.name))
        };
        report()?;
        spec.config.service_backend = wanted;
        spec.save(&paths)?;
        let statuses = || agents.ask("/status").unwrap_or_default();
        if !all_have(backend, &statuses(), spec.nodes.len()) {
            let ended = end_agents(report, |pid| kill(Pid::from_raw(pid), Signal::SIGTERM))?;
            wait_for(backend, spec.nodes.len(), &ended, report, statuses)?;
        }
    }
    let statuses: Vec<AgentStatus> = agents.ask("/status")?;
    let lines: Vec<[String; 3]> = statuses
        .into_iter()
        .map(|it| [it.node, it.service_backend.to_string(), it.services.to_string()])
        .collect();
    print!("{}", table(["NODE", "BACKEND", "SERVICES"], &lines));
    Ok(())
}

/// Ends all agents that may have read the configuration of before. One that the supervisor names and
/// that is gone has a successor, which it names a moment later, and which may have read it too; one
/// without a process has yet to read it. Answers which process of each was ended.
fn end_agents(
    report: impl Fn() -> Result<Report>,
    end: impl Fn(i32) -> nix::Result<()>,
) -> Result<BTreeMap<String, i32>> {
    let deadline = Instant::now() + REPORT_TIMEOUT;
    let mut ended = BTreeMap::new();
    loop {
        let mut gone = None;
        for process in report()?.processes.into_iter().filter(|it| it.name.starts_with("agent/")) {
            let Some(pid) = process.pid.filter(|_| !ended.contains_key(&process.name)) else {
                continue;
            };
            match end(pid) {
                Ok(()) => drop(ended.insert(process.name, pid)),
                Err(nix::Error::ESRCH) => gone = Some((process.name, pid)),
                Err(error) => {
                    return Err(error).with_context(|| format!("restarting {}", process.name));
                }
            }
        }
        let Some((name, pid)) = gone else { return Ok(ended) };
        if Instant::now() > deadline {
            bail!(
                "{name} ended (it was process {pid}), and the supervisor has not started it again \
                 within {} s: `flatnet status` says whether the supervisor runs",
                REPORT_TIMEOUT.as_secs()
            );
        }
        std::thread::sleep(CHANGE_POLL);
    }
}

/// Waits until the successors of the agents that were `ended` have the backend: what those
/// themselves still answer counts for nothing.
fn wait_for(
    backend: ServiceBackend,
    nodes: usize,
    ended: &BTreeMap<String, i32>,
    report: impl Fn() -> Result<Report>,
    statuses: impl Fn() -> Vec<AgentStatus>,
) -> Result<()> {
    let deadline = Instant::now() + CHANGE_TIMEOUT;
    loop {
        // Those that start again do not answer for a moment.
        if all_gone(ended, &report()?) && all_have(backend, &statuses(), nodes) {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!(
                "not every agent has changed to {backend} within {} s: `flatnet status` and the \
                 agents' logs say why",
                CHANGE_TIMEOUT.as_secs()
            );
        }
        std::thread::sleep(CHANGE_POLL);
    }
}

/// Whether the supervisor has heard of the end of all that were ended: no question reaches them.
fn all_gone(ended: &BTreeMap<String, i32>, report: &Report) -> bool {
    let is_there = |process: &ProcessReport| ended.get(&process.name).copied() == process.pid;
    !report.processes.iter().any(|process| process.pid.is_some() && is_there(process))
}

fn all_have(backend: ServiceBackend, statuses: &[AgentStatus], nodes: usize) -> bool {
    let has = |it: &&AgentStatus| it.converged && it.service_backend == backend;
    statuses.iter().filter(has).count() == nodes
}

fn is_well(nodes: &[NodeServices]) -> bool {
    nodes.iter().flat_map(|node| &node.services).all(|service| service.findings.is_empty())
}

/// A line a Service: endpoints are the same at all nodes, and what is wrong is told of each.
fn list_text(nodes: &[NodeServices]) -> String {
    let mut lines: Vec<[String; 7]> = Vec::new();
    let mut problems: Vec<String> = Vec::new();
    for service in nodes.iter().flat_map(|node| &node.services) {
        for finding in &service.findings {
            let problem = format!("{}/{}: {finding}", service.namespace, service.name);
            if !problems.contains(&problem) {
                problems.push(problem);
            }
        }
        let line = list_line(service);
        if !lines.iter().any(|other| other[..2] == line[..2]) {
            lines.push(line);
        }
    }
    lines.sort();
    let header = ["NAMESPACE", "NAME", "TYPE", "ADDRESSES", "PORTS", "ENDPOINTS", "STATE"];
    let mut text = table(header, &lines);
    if !problems.is_empty() {
        text.push_str(&format!("\n{}\n", problems.join("\n")));
    }
    text
}

fn list_line(service: &ServiceReport) -> [String; 7] {
    let ready = service.endpoints.iter().filter(|endpoint| endpoint.state == "Ready").count();
    [
        service.namespace.clone(),
        service.name.clone(),
        service.kind.clone(),
        or_dash(service.cluster_ips.join(",")),
        or_dash(service.ports.join(",")),
        format!("{ready} of {} ready", service.endpoints.len()),
        if service.findings.is_empty() { "ok" } else { "WRONG" }.to_owned(),
    ]
}

fn show_text(nodes: &[NodeServices]) -> String {
    let mut text = String::new();
    let of_nodes = || nodes.iter().flat_map(|node| Some((&node.node, node.services.first()?)));
    if let Some((_, service)) = of_nodes().next() {
        text.push_str(&head_text(service));
    }
    let frontends: Vec<[String; 5]> = of_nodes()
        .flat_map(|(node, service)| service.frontends.iter().map(|it| frontend_line(node, it)))
        .collect();
    if !frontends.is_empty() {
        let header = ["NODE", "FRONTEND", "ADDRESS", "CLIENTS GET", "FROM OUTSIDE"];
        text.push_str(&format!("\n{}", table(header, &frontends)));
    }
    let endpoints: Vec<[String; 11]> = of_nodes()
        .flat_map(|(node, service)| service.endpoints.iter().map(|it| endpoint_line(node, it)))
        .collect();
    if !endpoints.is_empty() {
        let header = [
            "NODE", "ENDPOINT", "PORTS", "TARGET", "ON NODE", "STATE", "USED", "FLOWS", "PACKETS",
            "BYTES", "RTT",
        ];
        text.push_str(&format!("\n{}", table(header, &endpoints)));
    }
    let objects: Vec<[String; 5]> = of_nodes()
        .flat_map(|(node, service)| service.objects.iter().map(|it| object_line(node, it)))
        .collect();
    if !objects.is_empty() {
        let header = ["NODE", "IN", "OBJECT", "ENTRY OR RULE", "IN KERNEL"];
        text.push_str(&format!("\n{}", table(header, &objects)));
    }
    for (node, service) in of_nodes() {
        for finding in &service.findings {
            text.push_str(&format!("\n{node}: {finding}\n"));
        }
    }
    text
}

fn head_text(service: &ServiceReport) -> String {
    let affinity = service
        .session_affinity_seconds
        .map_or("none".to_owned(), |seconds| format!("ClientIP, {seconds} s"));
    let rows = [
        ("Service", format!("{}/{}", service.namespace, service.name)),
        ("Type", service.kind.clone()),
        ("Addresses", or_dash(service.cluster_ips.join(", "))),
        ("Ports", or_dash(service.ports.join(", "))),
        ("Internal traffic policy", service.internal_traffic_policy.clone()),
        (
            "External traffic policy",
            or_dash(service.external_traffic_policy.clone().unwrap_or_default()),
        ),
        ("Session affinity", affinity),
        ("Scheduling", or_dash(service.scheduling.clone())),
    ];
    rows.map(|(name, value)| format!("{:<26}{value}\n", format!("{name}:"))).concat()
}

fn frontend_line(node: &str, frontend: &FrontendReport) -> [String; 5] {
    let ranges = frontend.source_ranges.as_ref();
    let only = ranges.map(|ranges| format!(" (only {})", ranges.join(", "))).unwrap_or_default();
    [
        node.to_owned(),
        frontend.kind.clone(),
        frontend.address.clone(),
        format!("{}{only}", answer_text(&frontend.backends)),
        frontend.outside.as_ref().map_or("the same".to_owned(), answer_text),
    ]
}

fn answer_text(answer: &Answer) -> String {
    match answer {
        Answer::Endpoints(endpoints) => {
            endpoints.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        }
        Answer::Refused => "refused: no endpoint".to_owned(),
        Answer::Dropped => "dropped: no endpoint on this node".to_owned(),
    }
}

fn endpoint_line(node: &str, endpoint: &EndpointReport) -> [String; 11] {
    let silent = if endpoint.answers { "" } else { ", no answer" };
    let number = |number: Option<u64>| or_dash(number.map(|it| it.to_string()).unwrap_or_default());
    [
        node.to_owned(),
        endpoint.address.clone(),
        endpoint.ports.join(","),
        or_dash(endpoint.target.clone()),
        or_dash(endpoint.node.clone()),
        format!("{}{silent}", endpoint.state),
        if endpoint.used { "yes" } else { "no" }.to_owned(),
        number(endpoint.flows),
        number(endpoint.packets),
        number(endpoint.bytes),
        or_dash(endpoint.round_trip_us.map(round_trip_text).unwrap_or_default()),
    ]
}

fn round_trip_text(microseconds: u64) -> String {
    format!("{}.{:03} ms", microseconds / 1000, microseconds % 1000)
}

fn object_line(node: &str, object: &KernelObject) -> [String; 5] {
    [
        node.to_owned(),
        object.within.clone(),
        object.object.clone(),
        object.text.clone(),
        if object.present { "yes" } else { "NO" }.to_owned(),
    ]
}

fn or_dash(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn service() -> ServiceReport {
        let endpoint = |address: &str, state: &str, used: bool| EndpointReport {
            address: address.into(),
            ports: vec!["8080/TCP".into()],
            target: "web-a".into(),
            node: "node1".into(),
            state: state.into(),
            used,
            answers: used,
            flows: used.then_some(7),
            round_trip_us: used.then_some(1_042),
            ..EndpointReport::default()
        };
        ServiceReport {
            namespace: "shop".into(),
            name: "web".into(),
            kind: "NodePort".into(),
            cluster_ips: vec!["10.96.0.7".into()],
            ports: vec!["80:30080/TCP".into()],
            internal_traffic_policy: "Cluster".into(),
            external_traffic_policy: Some("Local".into()),
            frontends: vec![FrontendReport {
                kind: "NodePort".into(),
                address: "IPv4:30080/TCP".into(),
                backends: Answer::Endpoints(vec!["10.244.1.5:8080".parse().expect("an address")]),
                outside: Some(Answer::Dropped),
                source_ranges: None,
            }],
            endpoints: vec![
                endpoint("10.244.1.5", "Ready", true),
                endpoint("10.244.1.6", "NotReady", false),
            ],
            objects: vec![KernelObject {
                within: "nftables ip flatnet".into(),
                object: "map cluster-ip-frontends".into(),
                text: "10.96.0.7 . tcp . 80 : 0x1".into(),
                present: false,
            }],
            ..ServiceReport::default()
        }
    }

    fn nodes(findings: &[&str]) -> Vec<NodeServices> {
        let findings: Vec<String> = findings.iter().map(|&finding| finding.into()).collect();
        ["node1", "node2"]
            .map(|node| NodeServices {
                node: node.into(),
                services: vec![ServiceReport { findings: findings.clone(), ..service() }],
            })
            .into()
    }

    #[test]
    fn the_list_has_a_line_a_service_and_says_each_fault_once() {
        let text = list_text(&nodes(&[]));
        let line = text.lines().nth(1).expect("a line");
        let words = line.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(words, "shop web NodePort 10.96.0.7 80:30080/TCP 1 of 2 ready ok");
        assert_eq!(text.lines().count(), 2, "{text}");
        let text = list_text(&nodes(&["port 80 matches nothing"]));
        assert_eq!(text.matches("shop/web: port 80 matches nothing").count(), 1, "{text}");
        assert!(text.contains("WRONG") && !is_well(&nodes(&["x"])) && is_well(&nodes(&[])));
    }

    #[test]
    fn a_service_is_shown_with_what_clients_get_at_each_node() {
        let text = show_text(&nodes(&[]));
        for expected in [
            "External traffic policy:  Local\n",
            "Session affinity:         none\n",
            "NotReady",
            "dropped: no endpoint on this node",
        ] {
            assert!(text.contains(expected), "{expected} is not in\n{text}");
        }
        assert_eq!(text.matches("IPv4:30080/TCP").count(), 2, "a line a node:\n{text}");
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let lines: Vec<String> = text.lines().map(words).collect();
        for expected in [
            "node1 10.244.1.5 8080/TCP web-a node1 Ready yes 7 - - 1.042 ms",
            "node2 10.244.1.6 8080/TCP web-a node1 NotReady, no answer no - - - -",
            "node2 nftables ip flatnet map cluster-ip-frontends 10.96.0.7 . tcp . 80 : 0x1 NO",
        ] {
            assert!(lines.iter().any(|line| line == expected), "{expected} is not in\n{text}");
        }
    }

    /// A report that names agents by number: gone ones by negative numbers.
    fn of_agents(pids: &[Option<i32>]) -> Report {
        let process = |(number, pid): (usize, &Option<i32>)| ProcessReport {
            name: format!("agent/node{number}"),
            pid: *pid,
            restarts: 0,
            last_exit: None,
        };
        let mut processes: Vec<ProcessReport> = pids.iter().enumerate().map(process).collect();
        processes.push(ProcessReport { name: "runtime/node1".into(), ..processes[0].clone() });
        Report { supervisor: 1, processes }
    }

    #[test]
    fn an_agent_that_died_just_now_is_ended_by_its_next_process() {
        // The first report is of before: the agent of node1 is gone, that of node2 waits.
        let reports = RefCell::new(vec![
            of_agents(&[Some(10), Some(12), Some(13)]),
            of_agents(&[Some(10), Some(-11), Some(13)]),
            of_agents(&[Some(10), Some(-11), None]),
        ]);
        let ended = RefCell::new(vec![]);
        let report = || Ok(reports.borrow_mut().pop().expect("no more reports are needed"));
        let end = |pid| match pid {
            ..0 => Err(nix::Error::ESRCH),
            _ => {
                ended.borrow_mut().push(pid);
                Ok(())
            }
        };
        let told = end_agents(report, end).expect("all ended");
        assert_eq!(*ended.borrow(), [10, 13, 12], "each once");
        let expected = [("agent/node0", 10), ("agent/node1", 12), ("agent/node2", 13)];
        assert_eq!(told, expected.map(|(name, pid)| (name.to_owned(), pid)).into());

        let refused = end_agents(|| Ok(of_agents(&[Some(10)])), |_| Err(nix::Error::EPERM));
        assert!(format!("{:#}", refused.expect_err("refused")).contains("agent/node0"));
    }

    #[test]
    fn an_agent_that_was_told_to_end_does_not_answer_for_its_successor() {
        let ended =
            BTreeMap::from([("agent/node0".to_owned(), 10), ("agent/node1".to_owned(), 11)]);
        // One ends and is started again, then the other; the first goes on to answer meanwhile.
        let reports = RefCell::new(vec![
            of_agents(&[Some(20), Some(21)]),
            of_agents(&[Some(20), None]),
            of_agents(&[Some(20), Some(11)]),
            of_agents(&[Some(10), Some(11)]),
        ]);
        let asked = RefCell::new(0);
        let statuses = || {
            *asked.borrow_mut() += 1;
            let of = |converged| AgentStatus {
                converged,
                service_backend: ServiceBackend::Ebpf,
                ..AgentStatus::default()
            };
            // While nobody runs on one of them, only the other answers.
            vec![of(true); reports.borrow().last().map_or(2, |_| 1)]
        };
        let report = || Ok(reports.borrow_mut().pop().expect("no more reports are needed"));
        wait_for(ServiceBackend::Ebpf, 2, &ended, report, statuses).expect("both have it");
        assert_eq!((reports.borrow().len(), *asked.borrow()), (0, 2), "asked when both are gone");
    }

    #[test]
    fn agents_that_have_the_backend_are_those_that_have_made_it() {
        let of = |service_backend, converged| AgentStatus {
            service_backend,
            converged,
            ..AgentStatus::default()
        };
        let (nftables, ebpf) = (ServiceBackend::Nftables, ServiceBackend::Ebpf);
        for (statuses, expected) in [
            (vec![of(ebpf, true), of(ebpf, true)], true),
            (vec![of(ebpf, true), of(nftables, true)], false),
            (vec![of(ebpf, true), of(ebpf, false)], false),
            (vec![of(ebpf, true)], false),
        ] {
            assert_eq!(all_have(ebpf, &statuses, 2), expected, "{statuses:?}");
        }
    }

    #[test]
    fn only_names_of_services_are_asked_for() {
        assert_eq!(segments("shop", "web-1").expect("a name"), "shop/web-1");
        for (namespace, name) in [("", "web"), ("shop", ""), ("shop", "a/b"), ("shop", "web?x")] {
            assert!(segments(namespace, name).is_err(), "{namespace}/{name}");
        }
    }
}
