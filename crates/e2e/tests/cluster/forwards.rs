//! What the API server sends on: use of nodes and pods as `kubectl top` shows it, requests to pods,
//! Services and nodes, and `flatnet port-forward`.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{eventually, program};
use serde_json::Value;

use super::kubectl::clients;
use super::world::{NAMESPACE, World};

/// Longest wait for an answer through a forwarded port.
const ANSWER: Duration = Duration::from_secs(5);
/// Longest wait until new connections go to another pod.
const MOVED: Duration = Duration::from_secs(30);

/// Two pods and their Service, which one scenario may take away.
const PODS: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: forwarded, namespace: lab}
spec:
  replicas: 2
  selector: {matchLabels: {app: forwarded}}
  template:
    metadata: {labels: {app: forwarded}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: echo
        image: localhost/toolbox
        args: [serve, --http, "8080", --udp, "9090"]
        ports: [{name: http, containerPort: 8080}]
        readinessProbe: {httpGet: {path: /ready, port: http}, periodSeconds: 1}
        env:
        - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
---
apiVersion: v1
kind: Service
metadata: {name: forwarded, namespace: lab}
spec:
  selector: {app: forwarded}
  ports:
  - {name: http, port: 80, targetPort: http}
  - {name: echo, port: 80, targetPort: 9090, protocol: UDP}
"#;

pub fn top(world: &World) -> Result<()> {
    for client in clients(world) {
        let kubectl = |arguments: &[&str]| world.cluster.kubectl_by(client, arguments);
        let nodes = kubectl(&["top", "nodes"])?;
        for node in &world.cluster.nodes {
            let line = nodes.lines().find(|line| line.starts_with(&format!("{node} ")));
            let line = line.with_context(|| format!("{client:?}: no {node} in {nodes}"))?;
            ensure!(line.contains("m ") && line.contains("Mi"), "{client:?}: {line}");
        }
        // A pod that has just started has no rate yet.
        eventually("every pod is measured", ANSWER * 4, || {
            let pods = kubectl(&["top", "pods", "-n", NAMESPACE, "--containers"])?;
            for node in &world.cluster.nodes {
                let of_pod = |line: &&str| line.starts_with(&format!("echo-{node} "));
                let line = pods.lines().find(of_pod).with_context(|| pods.clone())?;
                ensure!(line.contains(" echo ") && line.contains("Mi"), "{line}");
            }
            Ok(())
        })?;
    }
    Ok(())
}

pub fn sent_on(world: &World) -> Result<()> {
    let raw = |path: &str| world.cluster.kubectl(&["get", "--raw", path]);
    let lab = format!("/api/v1/namespaces/{NAMESPACE}");
    for place in
        ["services/web:80", "services/http:web:http", "pods/echo-node1:8080", "pods/echo-node1"]
    {
        let answer = raw(&format!("{lab}/{place}/proxy/some/where?x=1"))?;
        let answer: Value = serde_json::from_str(&answer).with_context(|| answer.clone())?;
        let pod = answer["pod"].as_str().unwrap_or_default();
        ensure!(pod.starts_with("echo-node"), "{place}: {answer}");
        let path = answer["path"].as_str().unwrap_or_default();
        ensure!(path.starts_with("/some/where"), "{place}: {answer}");
    }
    let node = &world.cluster.nodes[0];
    let metrics = raw(&format!("/api/v1/nodes/{node}/proxy/metrics/resource"))?;
    let wanted = format!("{{container=\"echo\",namespace=\"{NAMESPACE}\",pod=\"echo-{node}\"}} ");
    for family in ["container_cpu_usage_seconds_total", "container_memory_working_set_bytes"] {
        ensure!(metrics.contains(&format!("{family}{wanted}")), "{family}: {metrics}");
    }
    let refused = raw(&format!("{lab}/pods/echo-node1:1/proxy/")).expect_err("nobody listens");
    ensure!(format!("{refused:#}").contains("connection refused"), "{refused:#}");
    Ok(())
}

/// `flatnet port-forward`. It ends with this value.
struct Forward {
    child: Child,
    tcp: SocketAddr,
    udp: SocketAddr,
}

impl Forward {
    fn start(world: &World) -> Result<Self> {
        let mut command = Command::new(program("flatnet"));
        command.args(["port-forward", "--name", &world.cluster.name, "-n", NAMESPACE]);
        command.args(["svc/forwarded", ":http", ":80/udp", "--address", "127.0.0.1"]);
        command.args(["--output", "json"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let output = BufReader::new(child.stdout.take().context("no output")?);
        let mut said = String::new();
        for line in output.lines() {
            let line = line?;
            said.push_str(&line);
            if line == "]" {
                break;
            }
        }
        let listening: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
        let address = |index: usize, protocol: &str| -> Result<SocketAddr> {
            let one = &listening[index];
            ensure!(one["protocol"] == protocol, "{listening}");
            Ok(one["address"].as_str().context("no address")?.parse()?)
        };
        let (tcp, udp) = (address(0, "TCP")?, address(1, "UDP")?);
        Ok(Self { child, tcp, udp })
    }

    /// The pod that answers a connection.
    fn pod_of_connection(&self) -> Result<String> {
        let mut stream = TcpStream::connect(self.tcp)?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        pod_of(&answer)
    }

    /// The pod that answers a datagram of a new client.
    fn pod_of_datagram(&self) -> Result<String> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.set_read_timeout(Some(ANSWER))?;
        socket.send_to(b"hello", self.udp)?;
        let mut buffer = [0; 2048];
        let count = socket.recv(&mut buffer)?;
        pod_of(&String::from_utf8_lossy(&buffer[..count]))
    }
}

fn pod_of(answer: &str) -> Result<String> {
    let pod = answer.split_once("\"pod\":\"").and_then(|(_, rest)| rest.split('"').next());
    Ok(pod.with_context(|| format!("no pod in {answer:?}"))?.to_owned())
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn survives_pods(world: &World) -> Result<()> {
    let kubectl = |arguments: &[&str]| world.cluster.kubectl(arguments);
    world.cluster.apply(PODS)?;
    kubectl(&["rollout", "status", "-n", NAMESPACE, "deploy/forwarded", "--timeout=60s"])?;
    let mut forward = Forward::start(world)?;
    let first = forward.pod_of_connection()?;
    ensure!(forward.pod_of_datagram()? == first, "one pod is bound at a time");
    kubectl(&["delete", "pod", "-n", NAMESPACE, &first, "--wait=false"])?;
    let second = eventually("new connections go to another pod", MOVED, || {
        let pod = forward.pod_of_connection()?;
        ensure!(pod != first, "{pod} still answers");
        Ok(pod)
    })?;
    eventually("datagrams go there too", MOVED, || {
        let pod = forward.pod_of_datagram()?;
        ensure!(pod == second, "{pod} answers and not {second}");
        Ok(())
    })?;
    forward.child.kill()?;
    let mut told = String::new();
    forward.child.stderr.take().context("no errors")?.read_to_string(&mut told)?;
    ensure!(told.contains(&format!("new connections go to pod {second}")), "{told}");
    kubectl(&["delete", "deploy/forwarded", "svc/forwarded", "-n", NAMESPACE]).map(drop)
}
