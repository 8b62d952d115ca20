//! The cluster, the machine with flatnet on it, and pods on both.

use std::cell::RefCell;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Cluster, Kubectl, READY, flatnet, text_of};
use e2e::{eventually, program};
use serde_json::{Value, json};

use super::kubelet::{self, Pod};
use super::machine::{Machine, NAME};

/// The namespace of the pods.
pub const NAMESPACE: &str = "lab";
/// A pod of the machine, that of a Service too.
pub const REMOTE: &str = "remote";
const POD_RANGE: &str = "10.76.0.0/16";
const SERVICE_RANGE: &str = "10.77.0.0/16";
const NODE_RANGE: &str = "172.29.76.0/24";
/// The address of cluster DNS in that range.
pub const DNS: &str = "10.77.0.10";
/// The DaemonSet of DNS workers.
pub const DNS_DAEMON_SET: &str = "flatnet-dns";
/// The backends of Services that the machine has in turn.
pub const NFTABLES: &str = "nftables";
/// See [`NFTABLES`].
pub const EBPF: &str = "ebpf";
/// The configuration that runtimes wait for.
pub const CONFLIST: &str = "/etc/cni/net.d/10-flatnet.conflist";

/// Fields are dropped in this order.
pub struct World {
    servers: RefCell<Vec<Child>>,
    /// The agent's pod on the machine.
    pub pod: RefCell<Pod>,
    /// The DNS worker's.
    pub dns: RefCell<Pod>,
    /// The machine.
    pub machine: Machine,
    /// The cluster.
    pub cluster: Cluster,
    /// The Node's pod range.
    pub range: String,
    /// The API server's URL by its host address.
    pub server: String,
    /// What was on the machine before flatnet.
    pub before: String,
    /// What implements Services, by its flag.
    pub backend: &'static str,
}

impl World {
    /// Starts everything as a cluster's administrator and a kubelet do.
    pub fn up(backend: &'static str) -> Result<Self> {
        kubelet::clear_logs()?;
        kubelet::make_image()?;
        let ranges =
            ["--pod-cidr", POD_RANGE, "--service-cidr", SERVICE_RANGE, "--node-cidr", NODE_RANGE];
        let flags_of_both = [&ranges[..], &["--service-backend", backend]].concat();
        let cluster = Cluster::up("real", &[&["--nodes", "2"], &flags_of_both[..]].concat())?;
        let slice = cluster.get("default", "endpointslice", "kubernetes")?;
        let address = slice["endpoints"][0]["addresses"][0].as_str().context("no API server")?;
        let server = format!("https://{address}:{}", slice["ports"][0]["port"]);
        let machine = Machine::start(&cluster, address)?;
        let before = machine.everything()?;
        let range = kubelet::register(&cluster)?;
        let mut flags = vec!["manifests", "--api-server", &server];
        flags.extend(flags_of_both);
        // The cluster's own nodes have an agent each, and a second one is forbidden.
        let manifests = flatnet(&flags)?;
        let chosen = manifests.replace("kubernetes.io/os: linux", kubelet::CHOSEN);
        ensure!(chosen != manifests, "no DaemonSet names its nodes: {manifests}");
        let manifests = chosen;
        cluster.apply(&manifests)?;
        let again = cluster.apply(&manifests)?;
        let unchanged = again.lines().all(|line| line.ends_with(" unchanged"));
        ensure!(unchanged && again.lines().count() == 6, "applied twice: {again}");

        let pod = Pod::prepare(&cluster, &machine, "flatnet")?;
        let dns = Pod::prepare(&cluster, &machine, DNS_DAEMON_SET)?;
        let said = pod.initialize(&machine)?;
        ensure!(said.contains("br_netfilter is there"), "modules: {said}");
        let world = Self {
            servers: RefCell::default(),
            pod: RefCell::new(pod),
            dns: RefCell::new(dns),
            machine,
            cluster,
            range,
            server,
            before,
            backend,
        };
        ensure!(world.machine.shell(&format!("! test -e {CONFLIST}")).is_ok(), "too early");
        // In any order: each waits for the other.
        world.dns.borrow_mut().start(&world.machine, "dns")?;
        world.pod.borrow_mut().start(&world.machine, "agent")?;
        world.ready()?;
        world.add_pods()?;
        Ok(world)
    }

    /// Waits until the agent's readiness probe succeeds.
    pub fn ready(&self) -> Result<()> {
        let probe = self.pod.borrow().readiness("agent")?;
        eventually("the agent is ready", READY, || {
            let runs = self.pod.borrow_mut().ensure_runs("agent");
            runs.with_context(|| self.last_words())?;
            let curl = ["curl", "-sf", "--max-time", "5", &probe];
            self.machine.run(&curl).with_context(|| self.last_words())
        })
        .map(drop)
    }

    fn last_words(&self) -> String {
        let log = self.pod.borrow().log("agent").unwrap_or_default();
        log.lines().last().unwrap_or("the agent says nothing").to_owned()
    }

    /// An echo pod on each node of the cluster, and [`REMOTE`] on the machine; each behind a
    /// Service.
    fn add_pods(&self) -> Result<()> {
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": NAMESPACE },
        });
        self.cluster.apply(&namespace.to_string())?;
        for node in &self.cluster.nodes {
            self.cluster.apply(&pod(&format!("echo-{node}"), "echo", node).to_string())?;
        }
        for name in ["echo", REMOTE] {
            self.cluster.apply(&service(name).to_string())?;
        }
        self.cluster.apply(&pod(REMOTE, REMOTE, NAME).to_string())?;
        let address = self.add_pod(REMOTE, &json!({}))?;
        self.serve(REMOTE)?;
        self.say_of_remote(&address, "True")?;
        for node in &self.cluster.nodes {
            self.cluster.pod_ready(NAMESPACE, &format!("echo-{node}"))?;
        }
        Ok(())
    }

    /// Writes the status of the machine's pod, as its kubelet does: its address, and whether it is
    /// ready.
    pub fn say_of_remote(&self, address: &str, ready: &str) -> Result<()> {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{REMOTE}/status");
        eventually("the pod's status is written", READY, || {
            let mut object = self.cluster.get(NAMESPACE, "pod", REMOTE)?;
            object["status"]["phase"] = json!("Running");
            object["status"]["podIP"] = json!(address);
            object["status"]["podIPs"] = json!([{ "ip": address }]);
            object["status"]["conditions"] = json!([{ "type": "Ready", "status": ready }]);
            kubelet::send(&self.cluster, "replace", &path, &object)
        })
        .map(drop)
    }

    /// Adds a pod to the machine, as a container runtime does. Answers its address.
    pub fn add_pod(&self, name: &str, capabilities: &Value) -> Result<String> {
        self.machine.run(&["ip", "netns", "add", name])?;
        let capabilities = capabilities.to_string();
        let words = ["cni", "add", "flatnet", name, "-o", "json", "--capabilities", &capabilities];
        let result: Value = serde_json::from_str(&self.machine.flatnet(&words)?)?;
        let address = result["ips"][0]["address"].as_str().and_then(|text| text.split('/').next());
        Ok(address.with_context(|| format!("no address: {result}"))?.to_owned())
    }

    /// Takes such a pod away.
    pub fn delete_pod(&self, name: &str) -> Result<()> {
        self.machine.flatnet(&["cni", "del", "flatnet", name])?;
        self.machine.run(&["ip", "netns", "delete", name]).map(drop)
    }

    /// Starts the echo server in a pod of the machine; it ends with this value.
    pub fn serve(&self, name: &str) -> Result<()> {
        let toolbox = program("flatnet-toolbox").display().to_string();
        let variable = format!("POD_NAME={name}");
        let child = self
            .machine
            .command(&["ip", "netns", "exec", name, "env", &variable, &toolbox])
            .args(["serve", "--http", "8080", "--udp", "9090"])
            .stdout(Stdio::null())
            .spawn()?;
        self.servers.borrow_mut().push(child);
        Ok(())
    }

    /// Ends all echo servers of the machine.
    pub fn stop_servers(&self) {
        stop(&mut self.servers.borrow_mut());
    }

    /// Runs a program in a pod of the machine.
    pub fn in_pod(&self, name: &str, words: &[&str]) -> Result<String> {
        self.machine.run(&[&["ip", "netns", "exec", name], words].concat())
    }

    /// What a toolbox command says in a pod of the machine.
    pub fn toolbox(&self, name: &str, words: &[&str]) -> Result<Value> {
        let text = text_of(self.toolbox_command(name).args(words).output()?)?;
        serde_json::from_str(&text).with_context(|| text.clone())
    }

    /// The toolbox in a pod of the machine.
    pub fn toolbox_command(&self, name: &str) -> Command {
        let toolbox = program("flatnet-toolbox").display().to_string();
        self.machine.command(&["ip", "netns", "exec", name, &toolbox])
    }

    /// The toolbox in a pod of the cluster.
    pub fn cluster_toolbox_command(&self, name: &str) -> Command {
        let words = ["exec", "-n", NAMESPACE, name, "--", "toolbox"];
        self.cluster.kubectl_command(Kubectl::Old, &words)
    }

    /// What a toolbox command says in a pod of the cluster.
    pub fn cluster_toolbox(&self, name: &str, words: &[&str]) -> Result<Value> {
        let text = text_of(self.cluster_toolbox_command(name).args(words).output()?)?;
        serde_json::from_str(&text).with_context(|| text.clone())
    }

    /// A pod's address.
    pub fn pod_ip(&self, pod: &str) -> Result<String> {
        self.cluster.field(NAMESPACE, "pod", pod, "/status/podIP")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop_servers();
    }
}

fn stop(servers: &mut Vec<Child>) {
    for mut server in servers.drain(..) {
        let _ = server.kill();
        let _ = server.wait();
    }
}

/// A pod that says who it is over HTTP (8080) and UDP (9090).
fn pod(name: &str, app: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": NAMESPACE, "labels": { "app": app } },
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "echo",
                "image": "localhost/toolbox",
                "args": ["serve", "--http", "8080", "--udp", "9090"],
                "env": [{ "name": "POD_NAME", "value": name }],
            }],
        },
    })
}

fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": name, "namespace": NAMESPACE },
        "spec": {
            "selector": { "app": name },
            "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }],
        },
    })
}
