//! `flatnet up --demo`: deploys `examples/shop` and shows it answering.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use client::{Client, ClientError, PatchKind, ResourcePath};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use model::Service;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::cluster::memory;
use crate::cluster::paths::Paths;
use crate::cluster::spec::ClusterSpec;
use crate::cluster::supervisor::{self, node_place};
use crate::output::{Progress, table};

/// What is deployed: the very file that people can read and apply.
const SHOP: &str = include_str!("../../../examples/shop/shop.yaml");
/// The shop's namespace.
const NAMESPACE: &str = "shop";
/// The Deployments that must be complete.
const DEPLOYMENTS: [&str; 3] = ["api", "front", "store"];
/// How long the shop may take.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the first try for the first answer waits, and each further one twice as long as the one
/// before: what comes to a Service's address before its rules is swallowed, as the data path does
/// with any address that no Service has, and TCP repeats itself only after a second.
const FIRST_TRY_TIMEOUT: Duration = Duration::from_millis(50);
/// The cluster is asked this often.
const PERIOD: Duration = Duration::from_millis(5);
/// Requests that show how the Service spreads them.
const REQUESTS: usize = 60;
/// The largest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// What the demo saw.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    first_answer_ms: u128,
    cluster_url: String,
    node_urls: Vec<String>,
    answers_by_pod: BTreeMap<String, usize>,
    dns: Vec<(String, String)>,
    memory_kilobytes: u64,
}

/// What an API pod says of itself.
#[derive(Deserialize)]
struct Answer {
    pod: String,
    node: String,
}

/// Deploys the shop and asks it in every way.
///
/// # Errors
/// When it does not answer in time.
pub async fn run(
    paths: &Paths,
    spec: &ClusterSpec,
    client: &Client,
    progress: &mut Progress,
) -> Result<Outcome> {
    deploy(client).await?;
    progress.done("shop deployed");
    let service = ResourcePath::new("v1", "services").namespace(NAMESPACE).name("front");
    let service: Service = client.get(&service).await?;
    let address = service.cluster_ips().next().context("Service shop/front has no address")?;
    let node_port = service.spec.ports.first().map(|port| port.node_port).unwrap_or_default();
    let cluster = SocketAddr::new(address, 80);

    let deadline = Instant::now() + TIMEOUT;
    first_answer(cluster, deadline).await?;
    let first_answer_ms = progress.elapsed_ms();
    progress.done("first answer through a Service");
    wait_complete(client, deadline).await?;
    progress.done("all replicas available");

    let mut answers_by_pod = BTreeMap::new();
    for _ in 0..REQUESTS {
        let answer = ask(cluster).await.with_context(|| format!("asking http://{cluster}"))?;
        *answers_by_pod.entry(format!("{} on {}", answer.pod, answer.node)).or_default() += 1;
    }
    let mut node_urls = Vec::new();
    for node in &spec.nodes {
        let node_address = node.addresses.first().context("a node without an address")?;
        let url = SocketAddr::new(*node_address, node_port);
        ask(url).await.with_context(|| format!("asking node port http://{url}"))?;
        node_urls.push(format!("http://{url}"));
    }
    let names = ["front.shop", "store.shop"];
    let dns = names.iter().map(|name| resolve(paths, spec, name)).collect::<Result<_>>()?;
    progress.done("shop checked: Service, node ports, names");
    let supervisor = supervisor::report(paths)?.context("no supervisor reports")?.supervisor;
    let memory_kilobytes = memory::own_kilobytes(paths, supervisor);
    Ok(Outcome {
        first_answer_ms,
        cluster_url: format!("http://{cluster}"),
        node_urls,
        answers_by_pod,
        dns,
        memory_kilobytes,
    })
}

/// For people.
pub fn text(outcome: &Outcome) -> String {
    let rows: Vec<[String; 2]> = outcome
        .answers_by_pod
        .iter()
        .map(|(pod, count)| [pod.clone(), count.to_string()])
        .collect();
    let mut text = format!(
        "\nThe shop answers, {} ms after the start of this command:\n\n  curl {}\n",
        outcome.first_answer_ms, outcome.cluster_url
    );
    for url in &outcome.node_urls {
        text.push_str(&format!("  curl {url}\n"));
    }
    text.push_str(&format!("\n{}\n", table(["ANSWERED-BY", "REQUESTS"], &rows)));
    for (name, addresses) in &outcome.dns {
        text.push_str(&format!("{name} resolves to {addresses}\n"));
    }
    text.push_str(&format!("\n{}\n", memory::sentence(outcome.memory_kilobytes)));
    text
}

async fn deploy(client: &Client) -> Result<()> {
    for document in serde_yaml_ng::Deserializer::from_str(SHOP) {
        let object = Value::deserialize(document).context("reading examples/shop/shop.yaml")?;
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or("");
        let collection = match text("/kind") {
            "Namespace" => ResourcePath::new("v1", "namespaces"),
            "Service" => ResourcePath::new("v1", "services").namespace(NAMESPACE),
            "Deployment" => ResourcePath::new("apps/v1", "deployments").namespace(NAMESPACE),
            kind => bail!("examples/shop/shop.yaml holds a {kind}, which the demo does not deploy"),
        };
        let name = text("/metadata/name").to_owned();
        let created: Result<Value, ClientError> = client.create(&collection, &object).await;
        match created {
            Ok(_) => {}
            Err(error) if error.is_already_exists() => {
                let path = collection.name(name);
                let _: Value = client.patch(&path, PatchKind::Merge, &object).await?;
            }
            Err(error) => return Err(error).context(format!("deploying {name}")),
        }
    }
    Ok(())
}

async fn first_answer(address: SocketAddr, deadline: Instant) -> Result<()> {
    let mut last = String::new();
    let mut patience = FIRST_TRY_TIMEOUT;
    while Instant::now() < deadline {
        match timeout(patience, request(address)).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => last = format!("{error:#}"),
            Err(_) => {
                last = format!("no answer within {} ms", patience.as_millis());
                patience = (patience * 2).min(REQUEST_TIMEOUT);
            }
        }
        sleep(PERIOD).await;
    }
    bail!("the shop does not answer at http://{address}: {last}; see `kubectl get pods -n shop`")
}

async fn wait_complete(client: &Client, deadline: Instant) -> Result<()> {
    let mut waiting = DEPLOYMENTS.to_vec();
    while Instant::now() < deadline {
        let mut still = Vec::new();
        for name in waiting {
            let path = ResourcePath::new("apps/v1", "deployments").namespace(NAMESPACE).name(name);
            let deployment: Value = client.get(&path).await?;
            let number = |pointer: &str| deployment.pointer(pointer).and_then(Value::as_i64);
            let wanted = number("/spec/replicas").unwrap_or(1);
            if number("/status/availableReplicas").unwrap_or_default() < wanted {
                still.push(name);
            }
        }
        if still.is_empty() {
            return Ok(());
        }
        waiting = still;
        sleep(PERIOD).await;
    }
    bail!("Deployments {} are not complete; see `kubectl get pods -n shop`", waiting.join(", "))
}

async fn ask(address: SocketAddr) -> Result<Answer> {
    timeout(REQUEST_TIMEOUT, request(address)).await.context("no answer in time")?
}

async fn request(address: SocketAddr) -> Result<Answer> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request =
        hyper::Request::get("/").header("host", address.to_string()).body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let code = response.status();
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    connection.abort();
    if !code.is_success() {
        bail!("answer {code}");
    }
    Ok(serde_json::from_slice(&body.map_err(anyhow::Error::msg)?.to_bytes())?)
}

/// Asks the first node's DNS from within that node, as its pods do.
fn resolve(paths: &Paths, spec: &ClusterSpec, name: &str) -> Result<(String, String)> {
    let full = format!("{name}.svc.{}", spec.config.cluster_domain);
    let server = *spec.dns_addresses().first().context("no DNS address")?;
    let kind = if server.is_ipv4() { "A" } else { "AAAA" };
    let node = spec.nodes.first().context("a cluster without nodes")?;
    let mut command = Command::new(std::env::current_exe()?.with_file_name("flatnet-toolbox"));
    command.args(["dns", &full, kind, "--server", &server.to_string()]);
    node_place(paths, &node.name)?.enter_in(&mut command, vec![])?;
    let output = command.output().context("starting flatnet-toolbox")?;
    if !output.status.success() {
        bail!("{full} does not resolve: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let answer = String::from_utf8_lossy(&output.stdout);
    Ok((full, answer.split_whitespace().collect::<Vec<_>>().join(" ")))
}
