//! R-19: endpoints that leave, with Services in each backend: new connections go elsewhere at once,
//! and those that a removed pod had are told of its end.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Cluster, Kubectl};
use e2e::eventually;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Patch, PatchParams};
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::backends::{BACKENDS, DEFAULT, change};
use super::world::{NAMESPACE, World};

/// The Service, whose endpoints the test itself writes.
const SERVICE: &str = "leaving";
/// Its endpoints: pods of the world.
const PODS: [&str; 2] = ["echo-node1", "echo-node2"];
/// How often one leaves and the other comes.
const ROUNDS: usize = 10;
/// The time between two connections.
const INTERVAL_MS: &str = "2";
/// More connections than all rounds take.
const CONNECTIONS: &str = "100000";
/// So many in a row that reach the other one say that nobody is led to the one that left.
const ELSEWHERE: usize = 50;
/// R-19 gives 200 ms from the event to the last of them, which is printed; a busy machine may need
/// so long for half of the rounds, and for each of them.
const HALF_WITHIN: Duration = Duration::from_secs(2);
const EACH_WITHIN: Duration = Duration::from_secs(20);
/// The pod that is removed while it has connections.
pub const REMOVED: &str = "removed";
/// How long clients of it go on, and how long nothing may come before they call it silence.
const LOAD_S: &str = "8";
const SILENT_MS: &str = "5000";
/// How long the clients are left alone before its end.
const LOADED: Duration = Duration::from_secs(2);

/// An endpoint that terminates gets no new connections.
pub fn new_connections_go_elsewhere(world: &World) -> Result<()> {
    let slice = Slice::make(world)?;
    for backend in BACKENDS {
        change(world, backend)?;
        slice.serve_by(PODS[0])?;
        let clients = Clients::start(world)?;
        let mut times = Vec::new();
        for round in 0..ROUNDS {
            let [stays, leaves] = [PODS[(round + 1) % 2], PODS[round % 2]];
            let began = Instant::now();
            slice.serve_by(stays)?;
            times.push(clients.last_at(leaves, began)?);
        }
        times.sort();
        let (half, last) = (times[ROUNDS / 2], times[ROUNDS - 1]);
        println!(
            "    {backend}: the last new connection {} ms after the change, {} ms at most",
            half.as_millis(),
            last.as_millis()
        );
        ensure!(half <= HALF_WITHIN, "{backend}: connections went on to what left: {times:?}");
    }
    change(world, DEFAULT)?;
    let gone = ["delete", "-n", NAMESPACE, "service,endpointslice", SERVICE];
    world.cluster.kubectl(&gone).map(drop)
}

/// Who has a connection to a pod that is removed is told so, and does not wait.
pub fn removed_endpoints_are_told(world: &World) -> Result<()> {
    for backend in BACKENDS {
        change(world, backend)?;
        world.cluster.apply(POD)?;
        let url = format!("http://{}/", world.service("/spec/clusterIP")?);
        world.reaches(REMOVED)?;
        let words = ["load", &url, "--keep-alive", "--concurrency", "40", "--rate", "400"];
        let rest = ["--duration-s", LOAD_S, "--timeout-ms", SILENT_MS];
        let mut command = in_client(&world.cluster, &[&words[..], &rest].concat());
        let load = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        std::thread::sleep(LOADED);
        let end = ["delete", "pod", "-n", NAMESPACE, REMOVED, "--force", "--grace-period=0"];
        world.cluster.kubectl(&end)?;
        let output = load.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let result: Value = serde_json::from_str(&text)
            .with_context(|| format!("{text} {}", String::from_utf8_lossy(&output.stderr)))?;
        println!("    {backend}: {} streams told, errors {}", result["resent"], result["errors"]);
        let errors = result["errors"].as_object().with_context(|| result.to_string())?;
        let silent: Vec<_> = errors.keys().filter(|error| error.contains("timeout")).collect();
        ensure!(silent.is_empty(), "{backend}: clients of what is gone waited: {result}");
        ensure!(result["by_pod"][REMOVED] != Value::Null, "nobody came to it: {result}");
        ensure!(result["resent"].as_u64() > Some(0), "nobody was told of its end: {result}");
    }
    change(world, DEFAULT)
}

/// A Service without selector, and its EndpointSlice.
struct Slice {
    runtime: Runtime,
    slices: Api<EndpointSlice>,
    addresses: [String; 2],
}

impl Slice {
    fn make(world: &World) -> Result<Self> {
        let addresses = [world.pod_ip(PODS[0])?, world.pod_ip(PODS[1])?];
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": SERVICE, "namespace": NAMESPACE},
            "spec": {"ports": [{"port": 80, "targetPort": 8080}]},
        });
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": SERVICE, "namespace": NAMESPACE,
                "labels": {"kubernetes.io/service-name": SERVICE},
            },
            "addressType": "IPv4",
            "ports": [{"port": 8080, "protocol": "TCP"}],
            "endpoints": [],
        });
        world.cluster.apply(&format!("{service}\n{slice}"))?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let slices = runtime.block_on(async {
            let kubeconfig = Kubeconfig::read_from(world.cluster.kubeconfig())?;
            let options = KubeConfigOptions::default();
            let config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
            anyhow::Ok(Api::namespaced(Client::try_from(config)?, NAMESPACE))
        })?;
        Ok(Self { runtime, slices, addresses })
    }

    /// This pod is ready, and the other one terminates and still serves.
    fn serve_by(&self, pod: &str) -> Result<()> {
        let endpoint = |(name, address): (&&str, &String)| {
            let ready = *name == pod;
            json!({
                "addresses": [address],
                "conditions": {"ready": ready, "serving": true, "terminating": !ready},
            })
        };
        let endpoints: Vec<Value> = PODS.iter().zip(&self.addresses).map(endpoint).collect();
        let patch = Patch::Merge(json!({"endpoints": endpoints}));
        let parameters = PatchParams::default();
        let patched = self.slices.patch(SERVICE, &parameters, &patch);
        self.runtime.block_on(patched).map(drop).context("changing the EndpointSlice")
    }
}

/// Who answered a new connection, and when the test heard of it.
type Heard = Vec<(Instant, String)>;

/// New connections without end, from a pod.
struct Clients {
    program: Child,
    heard: Arc<Mutex<Heard>>,
    reader: Option<JoinHandle<()>>,
}

impl Clients {
    /// Starts them, and waits until they are answered.
    fn start(world: &World) -> Result<Self> {
        let address = world.cluster.field(NAMESPACE, "service", SERVICE, "/spec/clusterIP")?;
        let url = format!("http://{address}/");
        let words = ["http", &url, "--count", CONNECTIONS, "--interval-ms", INTERVAL_MS];
        let mut program = in_client(&world.cluster, &words).stdout(Stdio::piped()).spawn()?;
        let output = program.stdout.take().context("no output")?;
        let heard: Arc<Mutex<Heard>> = Arc::default();
        let told = Arc::clone(&heard);
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                // `200 POD 314 bytes 271 us`
                let pod = line.split(' ').nth(1).unwrap_or_default().to_owned();
                told.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), pod));
            }
        });
        let clients = Self { program, heard, reader: Some(reader) };
        clients.last_at(PODS[1], Instant::now())?;
        Ok(clients)
    }

    /// Waits until nobody reaches a pod any more, and answers how long after a moment the last one
    /// did.
    fn last_at(&self, pod: &str, since: Instant) -> Result<Duration> {
        eventually(&format!("new connections leave {pod}"), EACH_WITHIN, || {
            let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
            let after = || heard.iter().rev().take_while(|(at, _)| *at > since);
            let elsewhere = after().take_while(|(_, name)| name != pod);
            ensure!(elsewhere.take(ELSEWHERE).count() == ELSEWHERE, "some still reach it");
            let last = after().find(|(_, name)| name == pod);
            Ok(last.map_or(Duration::ZERO, |(at, _)| at.duration_since(since)))
        })
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// The toolbox in the world's client.
fn in_client(cluster: &Cluster, words: &[&str]) -> std::process::Command {
    let exec = ["exec", "-n", NAMESPACE, "client", "--", "toolbox"];
    let mut command = cluster.kubectl_command(Kubectl::Old, &[&exec, words].concat());
    command.stdin(Stdio::null());
    command
}

/// One more endpoint of the world's Service, which says nothing to its clients before it ends.
pub const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: removed, namespace: lab, labels: {app: echo}}
spec:
  nodeName: node2
  containers:
  - name: echo
    image: localhost/toolbox
    args: [serve, --http, "8080", --udp, "9090", --drain-ms, "0"]
    ports:
    - {name: http, containerPort: 8080}
    readinessProbe: {httpGet: {path: /ready, port: http}, periodSeconds: 1, timeoutSeconds: 5}
"#;
