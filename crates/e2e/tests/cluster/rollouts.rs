//! S-07, S-16: pods move to another node, another set of pods takes over, their number changes,
//! while clients in the cluster, clients outside, and a load balancer outside that follows the
//! health checks of `externalTrafficPolicy: Local` go on. Not one request may fail.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::balancer::{Balanced, Balancer, Health};
use e2e::cluster::flatnet;
use e2e::eventually;
use e2e::load::{Generator, Load};
use e2e::outside::Outside;
use e2e::processes::converged;

use super::services;
use super::world::{NAMESPACE, NODE_RANGE, World};

/// How long the loads last: longer than what is done meanwhile, on a busy machine too.
const LOAD_S: u64 = 25;
/// How long pods answer on when they shall end: longer than all that leave a node take. Where only
/// pods that end are left, they get the connections, also those that end just then (KEP-1669).
const DRAIN_MS: u64 = 9000;
/// Requests a second of each load.
const RATE: u64 = 150;
/// Health checks follow what the API says within this, and the load balancer them.
const FOLLOWED: Duration = Duration::from_secs(5);
/// The node to which the load balancer and the clients outside come, the one that the pods leave,
/// and the one that they move to.
const NODES: [&str; 3] = ["node1", "node2", "node3"];
/// The Service of the load balancer.
const LOCAL: &str = "rollout-local";

/// By nftables, and whatever else the cluster has by default.
pub fn by_default(world: &World) -> Result<()> {
    replaced_under_load(world)
}

/// The same with Services in eBPF, and what else is worth asking then.
pub fn with_ebpf(world: &World) -> Result<()> {
    change(world, "ebpf")?;
    let checked = replaced_under_load(world).and_then(|()| services::internal_policy_local(world));
    change(world, "nftables")?;
    checked
}

/// Changes the backend of Services, and waits until all nodes have it.
fn change(world: &World, backend: &str) -> Result<()> {
    flatnet(&["service", "backend", backend, "--name", &world.cluster.name])?;
    world.cluster.nodes.iter().try_for_each(|node| {
        let status = converged(&world.cluster, node)?;
        ensure!(status["serviceBackend"] == backend, "{status}");
        Ok(())
    })
}

fn replaced_under_load(world: &World) -> Result<()> {
    let [_, from, to] = NODES;
    let green = deployment("green", 2, to);
    world.cluster.apply(&[&deployment("blue", 4, from), &green, SERVICES].concat())?;
    for color in ["blue", "green"] {
        world.cluster.rolled_out(NAMESPACE, &format!("rollout-{color}"))?;
    }
    let outside = Outside::attach(&world.cluster, NODE_RANGE)?;
    let checks = Checks::of(world, &outside)?;
    checks.become_those_of([0, 4, 0])?;
    let loads = Loads::start(world, &outside)?;
    let began = Instant::now();
    let changed = change_all(world, &checks, &loads.balancer);
    let took = began.elapsed();
    let outcome = loads.finish();
    changed.context("under load")?;
    ensure!(took.as_secs() < LOAD_S, "it took {took:?}: longer than the load of {LOAD_S} s");
    let outcome = outcome?;
    ensure!(outcome.failed == 0, "connections by the load balancer failed: {outcome:#?}");
    println!(
        "    load balancer: {} connections, none failed; the changes took {} ms",
        outcome.requests,
        took.as_millis()
    );
    let used: Vec<bool> = checks.nodes.iter().map(|it| outcome.by_node.contains_key(it)).collect();
    ensure!(used == [false, true, true], "the load balancer should follow the pods: {outcome:?}");
    let colors = ["blue", "green"].map(|color| {
        let prefix = format!("rollout-{color}-");
        outcome.by_pod.keys().filter(|pod| pod.starts_with(&prefix)).count()
    });
    ensure!(colors[0] > 4 && colors[1] > 2, "pods were not replaced: {outcome:?}");
    let all = ["delete", "-n", NAMESPACE, "deployment,service", "-l", "of=rollout"];
    world.cluster.kubectl(&all).map(drop)
}

/// What happens under load. Each time the health checks say how many endpoints a node has; pods
/// that end are none, though they still answer (KEP-1669).
fn change_all(world: &World, checks: &Checks, balancer: &Balancer) -> Result<()> {
    let [_, _, to] = NODES;
    world.cluster.apply(&deployment("blue", 4, to))?;
    world.cluster.rolled_out(NAMESPACE, "rollout-blue")?;
    checks.become_those_of([0, 0, 4]).context("after the pods moved")?;
    // Until the load balancer has asked again it sends to the node that the pods left. Those that
    // end there answer, as long as the Service selects them.
    eventually("the load balancer follows the pods", FOLLOWED, || {
        let nodes = balancer.sends_to();
        ensure!(nodes == BTreeSet::from([checks.nodes[2]]), "it sends to {nodes:?}");
        Ok(())
    })?;
    for service in ["rollout", LOCAL] {
        let green = r#"{"spec": {"selector": {"color": "green"}}}"#;
        world.cluster.kubectl(&["patch", "service", "-n", NAMESPACE, service, "-p", green])?;
    }
    checks.become_those_of([0, 0, 2]).context("after green took over from blue")?;
    for replicas in ["6", "1"] {
        let to = format!("--replicas={replicas}");
        world.cluster.kubectl(&["scale", "-n", NAMESPACE, "deployment/rollout-green", &to])?;
        world.cluster.rolled_out(NAMESPACE, "rollout-green")?;
        checks.become_those_of([0, 0, replicas.parse()?])?;
    }
    Ok(())
}

/// The health checks of all nodes, asked over the wire from outside of the cluster.
struct Checks<'a> {
    outside: &'a Outside,
    nodes: [IpAddr; 3],
    port: u16,
}

impl<'a> Checks<'a> {
    fn of(world: &World, outside: &'a Outside) -> Result<Self> {
        let mut nodes = [IpAddr::from([0, 0, 0, 0]); 3];
        for (address, node) in nodes.iter_mut().zip(NODES) {
            *address = world.node_ip(node)?.parse()?;
        }
        Ok(Self { outside, nodes, port: port(world, LOCAL, "/spec/healthCheckNodePort")? })
    }

    fn become_those_of(&self, local_endpoints: [u64; 3]) -> Result<()> {
        let network = self.outside.network()?;
        for (node, count) in self.nodes.iter().zip(local_endpoints) {
            let expected = Health::of(&format!("{NAMESPACE}/{LOCAL}"), count);
            eventually(&format!("{node} says {expected:?}"), FOLLOWED, || {
                let health = Health::ask(&network, SocketAddr::new(*node, self.port))?;
                ensure!(health == expected, "{health:?}");
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// Clients in the cluster by ClusterIP, clients outside by a port of a node without endpoints
/// (policy Cluster), and the load balancer by ports of nodes with endpoints (policy Local).
struct Loads {
    steady: [Load; 2],
    balancer: Balancer,
}

impl Loads {
    fn start(world: &World, outside: &Outside) -> Result<Self> {
        let checks = Checks::of(world, outside)?;
        let generator = |name, url: String| {
            let words = ["load", &url, "--concurrency", "8"].map(str::to_owned).to_vec();
            vec![Generator { name, words, rate: RATE }]
        };
        let by_address = format!("http://{}/", world.cluster_ip("rollout")?);
        let node_port = port(world, "rollout", "/spec/ports/0/nodePort")?;
        let by_node_port = format!("http://{}:{node_port}/", checks.nodes[0]);
        let in_pod = generator("by ClusterIP", by_address);
        let from_outside = generator("outside by NodePort", by_node_port);
        let local_port = port(world, LOCAL, "/spec/ports/0/nodePort")?;
        Ok(Self {
            steady: [
                Load::start(&world.cluster, NAMESPACE, "echo-node1", in_pod, LOAD_S)?,
                Load::start_by(from_outside, LOAD_S, |toolbox| outside.command(toolbox))?,
            ],
            balancer: Balancer::start(outside, &checks.nodes, local_port, checks.port)?,
        })
    }

    fn finish(self) -> Result<Balanced> {
        for load in self.steady {
            let outcome = load.finish()?;
            ensure!(outcome.failed == 0, "requests failed: {outcome:?}");
        }
        self.balancer.finish()
    }
}

fn port(world: &World, service: &str, pointer: &str) -> Result<u16> {
    Ok(world.cluster.field(NAMESPACE, "service", service, pointer)?.parse()?)
}

fn deployment(color: &str, replicas: usize, node: &str) -> String {
    format!(
        r#"---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: rollout-{color}, namespace: {NAMESPACE}, labels: {{of: rollout}}}}
spec:
  replicas: {replicas}
  strategy: {{rollingUpdate: {{maxSurge: 2, maxUnavailable: 0}}}}
  selector: {{matchLabels: {{app: rollout, color: {color}}}}}
  template:
    metadata: {{labels: {{app: rollout, color: {color}}}}}
    spec:
      nodeSelector: {{kubernetes.io/hostname: {node}}}
      terminationGracePeriodSeconds: 20
      containers:
      - name: web
        image: localhost/toolbox
        args: [serve, --http, "8080", --drain-ms, "{DRAIN_MS}"]
        ports: [{{name: http, containerPort: 8080}}]
        readinessProbe: {{httpGet: {{path: /ready, port: http}}, periodSeconds: 1}}
"#
    )
}

/// The load balancer's Service has no address of its own: it comes to the node port.
const SERVICES: &str = r#"---
apiVersion: v1
kind: Service
metadata: {name: rollout, namespace: lab, labels: {of: rollout}}
spec:
  type: NodePort
  selector: {app: rollout, color: blue}
  ports: [{port: 80, targetPort: http}]
---
apiVersion: v1
kind: Service
metadata: {name: rollout-local, namespace: lab, labels: {of: rollout}}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  selector: {app: rollout, color: blue}
  ports: [{port: 80, targetPort: http}]
"#;
