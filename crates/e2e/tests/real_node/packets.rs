//! Packets of and to pods of the machine.

use anyhow::{Result, ensure};
use e2e::cluster::READY;
use e2e::eventually;
use serde_json::{Value, json};

use super::machine::ADDRESS;
use super::world::{DNS, NAMESPACE, REMOTE, World};

/// Who answered must be `pod`, and must have seen `client`.
fn sees(answer: &Value, pod: &str, client: &str) -> Result<()> {
    ensure!(answer["pod"] == pod && answer["client"] == client, "{pod}, {client}: {answer}");
    Ok(())
}

fn url(address: &str) -> String {
    format!("http://{address}:8080/")
}

/// Both ways, untranslated, and on one machine.
pub fn pods(world: &World) -> Result<()> {
    let remote = world.pod_ip(REMOTE)?;
    for node in &world.cluster.nodes {
        let pod = format!("echo-{node}");
        let address = world.pod_ip(&pod)?;
        sees(&world.toolbox(REMOTE, &["http", &url(&address)])?, &pod, &remote)?;
        sees(&world.cluster_toolbox(&pod, &["http", &url(&remote)])?, REMOTE, &address)?;
    }
    let beside = world.add_pod("beside", &json!({}))?;
    sees(&world.toolbox("beside", &["http", &url(&remote)])?, REMOTE, &beside)?;
    world.delete_pod("beside")
}

/// ClusterIP, from a pod of the machine and from the machine itself, and to a pod there.
pub fn services(world: &World) -> Result<()> {
    let cluster_ip =
        |name: &str| world.cluster.field(NAMESPACE, "service", name, "/spec/clusterIP");
    let echo = cluster_ip("echo")?;
    let by_service = format!("http://{echo}/");
    eventually("the Service leads to a pod of the cluster", READY, || {
        let answer = world.toolbox(REMOTE, &["http", &by_service])?;
        ensure!(answer["client"] == world.pod_ip(REMOTE)?, "{answer}");
        ensure!(answer["pod"].as_str().is_some_and(|pod| pod.starts_with("echo-")), "{answer}");
        Ok(())
    })?;
    world.machine.run(&["curl", "-sf", "--max-time", "5", &by_service])?;
    let to_machine = format!("http://{}/", cluster_ip(REMOTE)?);
    eventually("the Service leads to the pod of the machine", READY, || {
        let answer = world.cluster_toolbox("echo-node1", &["http", &to_machine])?;
        sees(&answer, REMOTE, &world.pod_ip("echo-node1")?)
    })
}

/// The DaemonSet's second container answers, over UDP and TCP; in the cluster its own worker.
pub fn names(world: &World) -> Result<()> {
    let echo = world.cluster.field(NAMESPACE, "service", "echo", "/spec/clusterIP")?;
    let name = format!("echo.{NAMESPACE}.svc.cluster.local");
    let server = format!("@{DNS}");
    eventually("a Service's name is answered", READY, || {
        for transport in ["+notcp", "+tcp"] {
            let words = ["dig", "+short", "+time=2", "+tries=1", transport, &server, &name];
            let answer = world.in_pod(REMOTE, &words)?;
            ensure!(answer.trim() == echo, "{transport}: {answer:?} is not {echo}");
        }
        let answer = world.cluster.exec(NAMESPACE, "echo-node1", &["toolbox", "dns", &name])?;
        ensure!(answer.contains(&echo), "{answer}");
        Ok(())
    })
}

/// From the machine, from another node, and from a pod of the cluster.
pub fn host_ports(world: &World) -> Result<()> {
    let mapping = json!({
        "portMappings": [{ "hostPort": 8089, "containerPort": 8080, "protocol": "tcp" }],
    });
    world.add_pod("public", &mapping)?;
    world.serve("public")?;
    let by_port = format!("http://{ADDRESS}:8089/");
    let curl = ["curl", "-sf", "--max-time", "5", &by_port];
    eventually("the port leads to the pod", READY, || {
        for text in [world.machine.run(&curl)?, world.cluster.on_node("node1", &curl)?] {
            let answer: Value = serde_json::from_str(&text)?;
            ensure!(answer["pod"] == "public", "{answer}");
        }
        let answer = world.cluster_toolbox("echo-node2", &["http", &by_port])?;
        ensure!(answer["pod"] == "public", "{answer}");
        Ok(())
    })?;
    world.delete_pod("public")?;
    ensure!(world.machine.run(&curl).is_err(), "the port outlives its pod");
    Ok(())
}
