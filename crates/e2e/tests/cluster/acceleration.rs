//! A cluster whose nodes send on before the kernel's stack (XDP) what only passes them.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Cluster, text_of};
use e2e::eventually;
use e2e::load::{Generator, Load};
use e2e::outside::{ADDRESS, Outside};
use e2e::workspace;
use netlink::{Netns, offload};

use super::failover::{self, OWN_RANGE};
use super::services;
use super::world::{NAMESPACE, World};

const NAME: &str = "e2e-xdp";
/// The node to which clients outside come.
const ENTRANCE: &str = "node1";
/// How long the load lasts, and how much it sends.
const LOAD_S: u64 = 4;
const RATE: u64 = 400;
/// Connections that are kept open.
const STREAMS: &str = "8";
/// Programs are attached within this.
const ATTACHED: Duration = Duration::from_secs(20);
/// Requests of the load that may pass the stack, in parts of a hundred: the beginning and end of
/// each connection do.
const PASSED_PERCENT: u64 = 10;
/// A Service whose only pod is on another node.
const AWAY: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: away, namespace: lab}\nspec:\n  \
    type: NodePort\n  selector: {pod: echo-node2}\n  ports: [{port: 80, targetPort: http}]\n";
/// Does nothing. It is what the ports of the network between nodes need to take what XDP sends.
const PASS: &str = "__attribute__((section(\"xdp\"), used)) int pass(void *frame) { return 2; }\n\
                    char _license[] __attribute__((section(\"license\"), used)) = \"GPL\";\n";

/// `best-effort` leaves links of such nodes out, as documented, and all works without; `native` has
/// them, and clients outside reach all ports of all nodes, packets pass the stack by, and what falls
/// silent is left out.
pub fn accelerated(_: &World) -> Result<()> {
    let effort = cluster("best-effort")?;
    ensure!(!is_attached(&effort.cluster, ENTRANCE)?, "best effort should leave out veth");
    says(&effort.cluster, ENTRANCE, "False", "veth")?;
    ask(&effort, &Outside::attach(&effort.cluster, OWN_RANGE)?)?;
    drop(effort);

    let world = cluster("native")?;
    let outside = Outside::attach(&world.cluster, OWN_RANGE)?;
    prepare_links(&world.cluster, &outside)?;
    for node in &world.cluster.nodes {
        eventually(&format!("{node} has the program"), ATTACHED, || {
            ensure!(is_attached(&world.cluster, node)?, "no program of XDP");
            Ok(())
        })?;
        says(&world.cluster, node, "True", "eth0")?;
    }
    ask(&world, &outside)?;
    passes_the_stack_by(&world, &outside)?;
    failover::cut_node_with_outside(&world, &outside)
}

fn cluster(mode: &str) -> Result<World> {
    let flags = ["--service-backend", "ebpf", "--overlay", "host-gw"];
    failover::own_cluster(NAME, &[&flags[..], &["--service-acceleration", mode]].concat())
}

/// Each node's ports, by TCP and UDP, lead to all pods.
fn ask(world: &World, outside: &Outside) -> Result<()> {
    services::ask_node_ports(world, outside)
}

/// Whether a node has a program of XDP in its driver.
fn is_attached(cluster: &Cluster, node: &str) -> Result<bool> {
    let link = cluster.on_node(node, &["ip", "link", "show", "eth0"])?;
    Ok(link.contains("prog/xdp") && !link.contains("xdpgeneric"))
}

/// What the Node's condition says of it, with a word of why.
fn says(cluster: &Cluster, node: &str, status: &str, word: &str) -> Result<()> {
    eventually(&format!("{node} says {status}"), ATTACHED, || {
        let object = cluster.get("", "node", node)?;
        let all = object["status"]["conditions"].as_array().context("no conditions")?;
        let own = all.iter().find(|one| one["type"] == "FlatnetServiceAcceleration");
        let own = own.with_context(|| format!("not among {all:?}"))?;
        let message = own["message"].as_str().unwrap_or_default();
        ensure!(own["status"] == status && message.contains(word), "{own}");
        Ok(())
    })
}

/// Links as physical ones are: checksums are whole, and the far end takes what XDP sends.
fn prepare_links(cluster: &Cluster, outside: &Outside) -> Result<()> {
    let directory = workspace().join("target/tmp");
    std::fs::create_dir_all(&directory)?;
    let (source, object) = (directory.join("pass.c"), directory.join("pass.o"));
    std::fs::write(&source, PASS)?;
    let words = ["-target", "bpf", "-O2", "-g", "-c", "-o"];
    let clang = Command::new("clang").args(words).args([&object, &source]).output();
    text_of(clang.context("starting clang")?)?;
    for node in &cluster.nodes {
        let network = format!("{}-net", cluster.name);
        let ip = ["netns", "exec", &network, "ip", "link", "set", "dev", node, "xdpdrv", "obj"];
        let output = Command::new("ip").args(ip).arg(&object).args(["sec", "xdp"]).output()?;
        text_of(output).with_context(|| format!("a program at the port of {node}"))?;
        let namespace = Netns::open(Path::new(&format!("/run/netns/{}-{node}", cluster.name)))?;
        namespace.run(|| offload::set_tx_checksum("eth0", false))??;
    }
    outside.network()?.run(|| offload::set_tx_checksum("eth0", false))??;
    Ok(())
}

/// A load over connections that stay open: none fails, and nearly none of its packets is seen where
/// all pass that the stack gets.
fn passes_the_stack_by(world: &World, outside: &Outside) -> Result<()> {
    let count = format!(
        "nft 'table ip seen {{ counter sent {{ }}; chain arrives {{ type filter hook prerouting priority -310; \
         ip saddr {ADDRESS} counter name sent; }}; }}'"
    );
    world.cluster.on_node(ENTRANCE, &["sh", "-c", &count])?;
    world.cluster.apply(AWAY)?;
    let port = world.cluster.field(NAMESPACE, "service", "away", "/spec/ports/0/nodePort")?;
    let url = format!("http://{}:{port}/", world.node_ip(ENTRANCE)?);
    eventually("the Service answers", ATTACHED, || {
        outside.toolbox(&["http", &url, "--timeout-ms", "1000"])
    })?;
    let words = ["load", &url, "--concurrency", STREAMS, "--keep-alive"].map(str::to_owned);
    let generator = Generator { name: "streams", words: words.to_vec(), rate: RATE };
    let load = Load::start_by(vec![generator], LOAD_S, |toolbox| outside.command(toolbox))?;
    let outcome = load.finish()?;
    ensure!(outcome.failed == 0 && outcome.cut == 0, "{outcome:?}");
    let seen =
        world.cluster.on_node(ENTRANCE, &["nft", "list", "counter", "ip", "seen", "sent"])?;
    let mut words = seen.split_whitespace().skip_while(|word| *word != "packets").skip(1);
    let seen: u64 = words.next().with_context(|| seen.clone())?.parse()?;
    println!("    {} requests, {seen} packets of them passed the stack", outcome.requests);
    // A request is one packet at least.
    let most = outcome.requests * PASSED_PERCENT / 100;
    ensure!(seen <= most, "{seen} packets of {} requests passed the stack", outcome.requests);
    world.cluster.on_node(ENTRANCE, &["nft", "delete", "table", "ip", "seen"]).map(drop)
}
