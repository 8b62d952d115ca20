//! Pods of several containers, and what happens when a part of a pod dies.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{eventually, workspace};
use serde_json::Value;

use super::world::{NAMESPACE, World};

/// How long a restart may take, first back-off included.
const RESTART: Duration = Duration::from_secs(40);

pub fn patterns(world: &World) -> Result<()> {
    let apply = |file: &str| -> Result<()> {
        let manifest = std::fs::read_to_string(workspace().join("examples").join(file))?;
        world.cluster.apply(&manifest).map(drop)
    };
    apply("shop/shop.yaml")?;
    for file in ["sidecar", "adapter", "ambassador"] {
        apply(&format!("patterns/{file}.yaml"))?;
    }
    for pod in ["sidecar", "adapter", "ambassador"] {
        world.cluster.pod_ready("default", pod)?;
    }
    for deployment in ["api", "front", "store"] {
        world.cluster.rolled_out("shop", deployment)?;
    }
    let logs = |pod: &str, container: &str, word: &str| {
        eventually(&format!("{container} of {pod} says {word}"), Duration::from_secs(10), || {
            let text = world.cluster.kubectl(&["logs", pod, "-c", container])?;
            ensure!(text.contains(word), "{text}");
            Ok(())
        })
    };
    logs("sidecar", "shipper", "order ")?;
    logs("adapter", "adapter", "shop_orders_total ")?;
    let curl = [
        "exec",
        "ambassador",
        "-c",
        "app",
        "--",
        "curl",
        "-s",
        "--max-time",
        "5",
        "http://localhost:9000/",
    ];
    // Its node may hear a moment later of the Service's pods.
    eventually("the ambassador reaches the API", RESTART, || {
        let answer = world.cluster.kubectl(&curl)?;
        ensure!(answer.contains("\"api-"), "{answer}");
        Ok(())
    })?;
    let pods = ["sidecar", "adapter", "ambassador"];
    let mut delete = vec!["delete", "pod", "--now"];
    delete.extend(pods);
    world.cluster.kubectl(&delete)?;
    world.cluster.kubectl(&["delete", "namespace", "shop"]).map(drop)
}

pub fn port_conflict(world: &World) -> Result<()> {
    world.cluster.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: conflict, namespace: lab}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: first, image: localhost/toolbox, args: [serve, --http, "8080"]}
  - {name: second, image: localhost/host, command: [sh, -c, "sleep 1; exec /usr/bin/env -i /bin/sh -c 'curl -s localhost:8080 && exit 7'"]}
"#,
    )?;
    // The second container reaches the first over localhost, and so ends with its own code.
    eventually("the second container ends with code 7", RESTART, || {
        let pod = world.cluster.get(NAMESPACE, "pod", "conflict")?;
        let code = state_of(&pod, "second").and_then(exit_code);
        ensure!(code == Some(7), "{}", pod["status"]);
        Ok(())
    })?;
    world.cluster.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: taken, namespace: lab}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: first, image: localhost/toolbox, args: [serve, --http, "8080"]}
  - {name: second, image: localhost/toolbox, args: [serve, --http, "8080"]}
"#,
    )?;
    eventually("one of two listeners fails", RESTART, || {
        let pod = world.cluster.get(NAMESPACE, "pod", "taken")?;
        let failed = ["first", "second"]
            .iter()
            .filter(|name| state_of(&pod, name).and_then(exit_code).is_some_and(|code| code != 0))
            .count();
        ensure!(failed == 1, "{}", pod["status"]);
        Ok(())
    })?;
    world
        .cluster
        .kubectl(&["delete", "pod", "-n", NAMESPACE, "conflict", "taken", "--now"])
        .map(drop)
}

fn state_of<'a>(pod: &'a Value, container: &str) -> Option<&'a Value> {
    let statuses = pod["status"]["containerStatuses"].as_array()?;
    statuses.iter().find(|status| status["name"] == container)
}

/// The code of the container's last end.
fn exit_code(status: &Value) -> Option<i64> {
    let states = ["/state/terminated/exitCode", "/lastState/terminated/exitCode"];
    states.iter().find_map(|pointer| status.pointer(pointer)?.as_i64())
}

pub fn crash(world: &World) -> Result<()> {
    world.cluster.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: crash, namespace: lab}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: stable, image: localhost/toolbox, args: [serve, --http, "8080"]}
  - {name: unstable, image: localhost/toolbox, args: [crash-after, "500"]}
"#,
    )?;
    let before = eventually("the pod has an address", RESTART, || world.pod_ip("crash"))?;
    eventually("the container was started again twice", RESTART, || {
        let pod = world.cluster.get(NAMESPACE, "pod", "crash")?;
        let restarts =
            state_of(&pod, "unstable").and_then(|status| status["restartCount"].as_i64());
        ensure!(restarts >= Some(2), "{}", pod["status"]);
        Ok(())
    })?;
    let pod = world.cluster.get(NAMESPACE, "pod", "crash")?;
    ensure!(pod["status"]["podIP"] == before.as_str(), "the address changed: {}", pod["status"]);
    let stable = state_of(&pod, "stable").context("no status")?;
    ensure!(stable["restartCount"] == 0, "the other container was disturbed: {stable}");
    world.cluster.kubectl(&["delete", "pod", "-n", NAMESPACE, "crash", "--now"]).map(drop)
}

pub fn killed_pause(world: &World) -> Result<()> {
    world.cluster.apply(&super::world::echo_pod("sandboxed", "node2"))?;
    world.cluster.pod_ready(NAMESPACE, "sandboxed")?;
    let uid = world.cluster.field(NAMESPACE, "pod", "sandboxed", "/metadata/uid")?;
    let pause = pause_of(&uid).context("the pod has no pause process")?;
    ensure!(
        std::process::Command::new("kill").args(["-9", &pause.to_string()]).status()?.success()
    );
    eventually("the container runs again in a new sandbox", RESTART, || {
        let pod = world.cluster.get(NAMESPACE, "pod", "sandboxed")?;
        ensure!(pause_of(&uid).is_some_and(|now| now != pause), "no new pause process");
        ensure!(e2e::cluster::is_ready(&pod), "{}", pod["status"]);
        let address = pod["status"]["podIP"].as_str().context("no address")?;
        world.toolbox_json("echo-node1", &["http", &format!("http://{address}:8080/")])?;
        Ok(())
    })?;
    world.cluster.kubectl(&["delete", "pod", "-n", NAMESPACE, "sandboxed", "--now"]).map(drop)
}

/// The pod's pause process: the one of its program in the pod's cgroup.
fn pause_of(uid: &str) -> Option<u32> {
    std::fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let program = std::fs::read_link(entry.path().join("exe")).ok()?;
        if program.file_name()? != "flatnet-pause" {
            return None;
        }
        let cgroups = std::fs::read_to_string(entry.path().join("cgroup")).ok()?;
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        cgroups.contains(uid).then_some(pid)
    })
}
