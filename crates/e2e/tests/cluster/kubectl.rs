//! What kubectl users see, with Debian's 1.20 and a newer one where the machine has it.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Kubectl, text_of};
use e2e::processes::signal;
use e2e::{eventually, workspace};

use super::world::{NAMESPACE, World};

/// The newest kubectl on the machine, when it is 1.30 or newer.
fn newer(world: &World) -> Option<Kubectl> {
    let mut command =
        world.cluster.kubectl_command(Kubectl::New, &["version", "--client", "-o", "json"]);
    let output = command.output().ok()?;
    let version: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    let minor = version.pointer("/clientVersion/minor")?.as_str()?;
    let minor: u32 = minor.trim_end_matches('+').parse().ok()?;
    (minor >= 30).then_some(Kubectl::New)
}

/// Debian's kubectl, and the newer one.
pub fn clients(world: &World) -> Vec<Kubectl> {
    let mut clients = vec![Kubectl::Old];
    match newer(world) {
        Some(newer) => clients.push(newer),
        None => println!("    no kubectl 1.30 or newer here: recorded requests stand in for it"),
    }
    clients
}

pub fn manifests(world: &World) -> Result<()> {
    let manifests =
        std::fs::read_to_string(workspace().join("crates/e2e/tests/data/manifests.yaml"))?;
    for client in clients(world) {
        let first = world.cluster.apply_by(client, &manifests)?;
        ensure!(first.lines().all(|line| line.ends_with(" created")), "{first}");
        let second = world.cluster.apply_by(client, &manifests)?;
        for line in second.lines() {
            // The real server answers so too: these carry fields that it stores differently.
            let differs = [
                "secret/sec",
                "networkpolicy.networking.k8s.io/deny",
                "endpointslice.discovery.k8s.io/manual",
            ];
            let expected = if differs.iter().any(|name| line.starts_with(name)) {
                "configured"
            } else {
                "unchanged"
            };
            ensure!(line.ends_with(expected), "{line:?} should be {expected}");
        }
        let services = world.cluster.kubectl_by(client, &["get", "svc", "-n", "recorded"])?;
        let header = services.lines().next().unwrap_or_default();
        let columns: Vec<&str> = header.split_whitespace().collect();
        ensure!(
            columns == ["NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE"],
            "{header}"
        );
        ensure!(services.contains("<pending>") && services.contains("example.org"), "{services}");
        world.cluster.kubectl_by(client, &["delete", "ns", "recorded", "--timeout=60s"])?;
        world.cluster.kubectl_by(client, &["delete", "ingressclass", "ours"])?;
    }
    Ok(())
}

pub fn troubleshooting_chain(world: &World) -> Result<()> {
    for client in clients(world) {
        let kubectl = |arguments: &[&str]| world.cluster.kubectl_by(client, arguments);
        let service = kubectl(&["describe", "svc", "web", "-n", NAMESPACE])?;
        let address = world.cluster_ip("web")?;
        for word in ["Selector:", "app=echo", "Type:", "NodePort", &address, "Endpoints:", ":8080"]
        {
            ensure!(service.contains(word), "describe svc lacks {word:?}: {service}");
        }
        let pods = kubectl(&["get", "pods", "-n", NAMESPACE, "-o", "wide", "--show-labels"])?;
        for word in
            ["READY", "NOMINATED NODE", "READINESS GATES", "LABELS", "app=echo", "1/1", "Running"]
        {
            ensure!(pods.contains(word), "get pods lacks {word:?}: {pods}");
        }
        let slices = kubectl(&["get", "endpointslices", "-n", NAMESPACE])?;
        ensure!(slices.contains("ADDRESSTYPE") && slices.contains("web-"), "{slices}");
        let pod = kubectl(&["describe", "pod", "echo-node1", "-n", NAMESPACE])?;
        for word in
            ["Node:", "IP:", "Started", "Ready", "Readiness:", "Conditions:", "Created container"]
        {
            ensure!(pod.contains(word), "describe pod lacks {word:?}: {pod}");
        }
        let node = kubectl(&["describe", "node", "node1"])?;
        for word in ["InternalIP:", "PodCIDR:", "echo-node1", "Kernel Version:", "KubeletReady"] {
            ensure!(node.contains(word), "describe node lacks {word:?}: {node}");
        }
        let events = kubectl(&["get", "events", "-n", NAMESPACE])?;
        ensure!(events.contains("Started") && events.contains("pod/echo-node1"), "{events}");
        let nodes = kubectl(&["get", "nodes", "-o", "wide"])?;
        ensure!(nodes.lines().filter(|line| line.contains(" Ready ")).count() == 3, "{nodes}");
        kubectl(&["get", "all", "-A"])?;
        let error = kubectl(&["get", "svc", "nope", "-n", NAMESPACE]).expect_err("no such Service");
        let said = format!("{error:#}");
        ensure!(said.contains("services \"nope\" not found"), "{said}");
    }
    Ok(())
}

pub fn exec(world: &World) -> Result<()> {
    for client in clients(world) {
        let target = ["exec", "-n", NAMESPACE, "tools"];
        let with = |rest: &[&str]| -> Command {
            let arguments: Vec<&str> = target.iter().chain(rest).copied().collect();
            world.cluster.kubectl_command(client, &arguments)
        };
        let status = with(&["--", "sh", "-c", "exit 3"]).status()?;
        ensure!(status.code() == Some(3), "exit code of exec: {status}");
        let mut child =
            with(&["-i", "--", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        child.stdin.take().context("no stdin")?.write_all(b"hello\n")?;
        let text = text_of(child.wait_with_output()?)?;
        ensure!(text == "hello\n", "{text:?}");
        // A terminal: `script` gives kubectl one.
        let line =
            format!("{:?}", with(&["-it", "--", "sh", "-c", "test -t 0 && curl -s http://web/"]));
        let output = Command::new("script")
            .args(["-qec", &line.replace('"', "'"), "/dev/null"])
            .stdin(Stdio::null())
            .output()?;
        let text = text_of(output)?;
        ensure!(text.contains("echo-node"), "exec -it: {text}");
    }
    Ok(())
}

pub fn logs(world: &World) -> Result<()> {
    world.cluster.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: talker, namespace: lab}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: one, image: localhost/host, command: [sh, -c, "for i in 1 2 3; do echo line $i; done; sleep 600"]}
  - {name: two, image: localhost/host, command: [sh, -c, "echo other; sleep 600"]}
"#,
    )?;
    world.cluster.pod_ready(NAMESPACE, "talker")?;
    for client in clients(world) {
        let logs = |rest: &[&str]| {
            let arguments: Vec<&str> =
                ["logs", "-n", NAMESPACE, "talker"].iter().chain(rest).copied().collect();
            world.cluster.kubectl_by(client, &arguments)
        };
        eventually("all lines are there", Duration::from_secs(5), || {
            let text = logs(&["-c", "one"])?;
            ensure!(text == "line 1\nline 2\nline 3\n", "{text:?}");
            Ok(())
        })?;
        ensure!(logs(&["-c", "one", "--tail=1"])? == "line 3\n");
        ensure!(logs(&["-c", "two"])? == "other\n");
        ensure!(logs(&["-c", "one", "--timestamps"])?.lines().all(|line| line.starts_with("20")));
    }
    world.cluster.kubectl(&["delete", "pod", "-n", NAMESPACE, "talker", "--now"]).map(drop)
}

/// Kinds that the user defines, as controllers bring them: `get`, `scale` and refusals are those of
/// any kind, also by an API server that has started again since.
pub fn custom_resources(world: &World) -> Result<()> {
    for client in clients(world) {
        let kubectl = |arguments: &[&str]| world.cluster.kubectl_by(client, arguments);
        world.cluster.apply_by(client, BACKUPS)?;
        kubectl(&[
            "wait",
            "--for=condition=Established",
            "crd/backups.lab.example",
            "--timeout=20s",
        ])?;
        world.cluster.apply_by(client, BACKUP)?;
        let refused = world.cluster.apply_by(client, &BACKUP.replace("keep: 3", "keep: 0"));
        let said = refused.unwrap_or_else(|error| format!("{error:#}"));
        ensure!(said.contains("spec.keep in body should be greater than or equal to 1"), "{said}");
        kubectl(&["scale", "-n", NAMESPACE, "backup/nightly", "--replicas=5"])?;
        restart_api_server(world)?;
        let rows = kubectl(&["get", "bk", "-n", NAMESPACE])?;
        let words: Vec<&str> = rows.split_whitespace().collect();
        ensure!(words == ["NAME", "KEEP", "PLACE", "nightly", "5", "here"], "{rows}");
        kubectl(&["delete", "crd", "backups.lab.example", "--timeout=30s"])?;
        let gone = kubectl(&["get", "backups", "-n", NAMESPACE]);
        let said = gone.unwrap_or_else(|error| format!("{error:#}"));
        // By a cache of what the server has, or without.
        let words = ["the server doesn't have a resource type", "could not find the requested"];
        ensure!(words.iter().any(|word| said.contains(word)), "{said}");
    }
    Ok(())
}

/// kill -9, and the next one answers.
pub fn restart_api_server(world: &World) -> Result<()> {
    let before = world.cluster.process("controlplane")?;
    signal(before, "KILL")?;
    eventually("the API server is back", Duration::from_secs(15), || {
        ensure!(world.cluster.process("controlplane")? != before, "still the old one");
        world.cluster.kubectl(&["get", "--raw", "/readyz"])
    })
    .map(drop)
}

const BACKUPS: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: backups.lab.example}
spec:
  group: lab.example
  scope: Namespaced
  names: {plural: backups, singular: backup, kind: Backup, shortNames: [bk]}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            required: [keep]
            properties:
              keep: {type: integer, minimum: 1}
              place: {type: string, default: here}
          status: {type: object, properties: {kept: {type: integer}}}
    subresources:
      status: {}
      scale: {specReplicasPath: .spec.keep, statusReplicasPath: .status.kept}
    additionalPrinterColumns:
    - {name: Keep, type: integer, jsonPath: .spec.keep}
    - {name: Place, type: string, jsonPath: .spec.place}
"#;

const BACKUP: &str = r#"
apiVersion: lab.example/v1
kind: Backup
metadata: {name: nightly, namespace: lab}
spec: {keep: 3}
"#;
