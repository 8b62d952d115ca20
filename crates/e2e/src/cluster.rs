//! A cluster that `flatnet up` made, and what people do with it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{eventually, program, workspace};

/// How long a Deployment or pod of the tests may take to be ready.
pub const READY: Duration = Duration::from_secs(60);

/// Clusters of the suites. That of `./x chaos` is none: it may run beside them.
const NAMES: [&str; 13] = [
    "e2e",
    "e2e-dsr",
    "e2e-dual",
    "e2e-ebpf",
    "e2e-gw",
    "e2e-hybrid",
    "e2e-refused",
    "e2e-six",
    "e2e-xdp",
    "harm",
    "nofailover",
    "pods",
    "real",
];

/// Names of other clusters that this program has started.
static STARTED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Whether a cluster of this name is a suite's, or one that this program started.
pub fn is_of_suites(name: &str) -> bool {
    let started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
    NAMES.contains(&name) || started.contains(name)
}

/// A running cluster. It is taken down when the value is dropped.
pub struct Cluster {
    /// Its name on this machine.
    pub name: String,
    /// The nodes' names.
    pub nodes: Vec<String>,
}

/// Which kubectl.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kubectl {
    /// Debian's 1.20, unpacked by `./x kubectl`.
    Old,
    /// The machine's own, where it is 1.30 or newer.
    New,
}

impl Cluster {
    /// Takes down what a killed run of a suite left, before it is looked at what the machine has.
    ///
    /// # Errors
    /// What `flatnet down` says.
    pub fn take_down_leftovers() -> Result<()> {
        NAMES.iter().try_for_each(|name| flatnet(&["down", "--name", name]).map(drop))
    }

    /// Starts a cluster.
    ///
    /// # Errors
    /// What `flatnet up` says.
    pub fn up(name: &str, arguments: &[&str]) -> Result<Self> {
        STARTED.lock().unwrap_or_else(PoisonError::into_inner).insert(name.into());
        // A run that was killed may have left one.
        flatnet(&["down", "--name", name])?;
        let mut all = vec!["up", "--name", name, "--output", "json"];
        all.extend(arguments);
        let outcome: Value = serde_json::from_str(&flatnet(&all)?).context("the answer of `up`")?;
        let nodes = outcome["nodes"].as_array().context("no nodes in the answer of `up`")?;
        let nodes = nodes.iter().filter_map(|node| node["name"].as_str().map(Into::into)).collect();
        Ok(Self { name: name.into(), nodes })
    }

    /// Stops the cluster, and keeps its objects until it is taken down for good.
    ///
    /// # Errors
    /// What `flatnet down` says.
    pub fn keep(self) -> Result<()> {
        let name = self.name.clone();
        std::mem::forget(self);
        flatnet(&["down", "--name", &name, "--keep"]).map(drop)
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        PathBuf::from("/var/lib/flatnet").join(&self.name).join("kubeconfig")
    }

    /// A kubectl command for this cluster.
    pub fn kubectl_command(&self, which: Kubectl, arguments: &[&str]) -> Command {
        let program = match which {
            Kubectl::Old => workspace().join("target/tools/kubectl-1.20/usr/bin/kubectl"),
            Kubectl::New => "kubectl".into(),
        };
        let mut command = Command::new(program);
        let cache = workspace().join("target/tmp/kube-cache").join(&self.name);
        command.arg("--kubeconfig").arg(self.kubeconfig()).arg("--cache-dir").arg(cache);
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs Debian's kubectl and answers its standard output.
    ///
    /// # Errors
    /// Its standard error, when it fails.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.kubectl_by(Kubectl::Old, arguments)
    }

    /// The same with either kubectl.
    ///
    /// # Errors
    /// Its standard error, when it fails.
    pub fn kubectl_by(&self, which: Kubectl, arguments: &[&str]) -> Result<String> {
        let output = self.kubectl_command(which, arguments).output().context("starting kubectl")?;
        text_of(output).with_context(|| format!("kubectl {}", arguments.join(" ")))
    }

    /// Applies a manifest given as text.
    ///
    /// # Errors
    /// kubectl's.
    pub fn apply(&self, manifest: &str) -> Result<String> {
        self.apply_by(Kubectl::Old, manifest)
    }

    /// The same with either kubectl.
    ///
    /// # Errors
    /// kubectl's.
    pub fn apply_by(&self, which: Kubectl, manifest: &str) -> Result<String> {
        use std::io::Write;
        let mut child = self
            .kubectl_command(which, &["apply", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting kubectl")?;
        child.stdin.take().context("no stdin")?.write_all(manifest.as_bytes())?;
        text_of(child.wait_with_output()?).context("kubectl apply")
    }

    /// One object.
    ///
    /// # Errors
    /// When it is absent.
    pub fn get(&self, namespace: &str, kind: &str, name: &str) -> Result<Value> {
        let text = self.kubectl(&["get", "-n", namespace, kind, name, "-o", "json"])?;
        Ok(serde_json::from_str(&text)?)
    }

    /// All objects of a kind with these labels.
    ///
    /// # Errors
    /// kubectl's.
    pub fn list(&self, namespace: &str, kind: &str, selector: &str) -> Result<Vec<Value>> {
        let text = self.kubectl(&["get", "-n", namespace, kind, "-l", selector, "-o", "json"])?;
        let mut list: Value = serde_json::from_str(&text)?;
        Ok(list["items"].as_array_mut().map(std::mem::take).unwrap_or_default())
    }

    /// The field of an object at a JSON pointer, as text.
    ///
    /// # Errors
    /// When the object or the field is absent.
    pub fn field(&self, namespace: &str, kind: &str, name: &str, pointer: &str) -> Result<String> {
        let object = self.get(namespace, kind, name)?;
        match object.pointer(pointer) {
            Some(Value::String(text)) if !text.is_empty() => Ok(text.clone()),
            Some(value @ (Value::Number(_) | Value::Bool(_))) => Ok(value.to_string()),
            _ => bail!("{kind} {name} has no {pointer}"),
        }
    }

    /// Waits until a Deployment has all its replicas available.
    ///
    /// # Errors
    /// kubectl's, with what the pods say.
    pub fn rolled_out(&self, namespace: &str, deployment: &str) -> Result<()> {
        let target = format!("deployment/{deployment}");
        let timeout = format!("--timeout={}s", READY.as_secs());
        self.kubectl(&["rollout", "status", "-n", namespace, &target, &timeout])
            .map(drop)
            .with_context(|| self.kubectl(&["get", "pods", "-A", "-o", "wide"]).unwrap_or_default())
    }

    /// Waits until a pod is ready.
    ///
    /// # Errors
    /// What the pod says of itself.
    pub fn pod_ready(&self, namespace: &str, pod: &str) -> Result<Value> {
        eventually(&format!("pod {namespace}/{pod} is ready"), READY, || {
            let object = self.get(namespace, "pod", pod)?;
            ensure!(is_ready(&object), "{}", object["status"]);
            Ok(object)
        })
    }

    /// Waits until a pod has ended, and answers its logs.
    ///
    /// # Errors
    /// When it fails or does not end in time.
    pub fn pod_logs_at_end(&self, namespace: &str, pod: &str, limit: Duration) -> Result<String> {
        eventually(&format!("pod {namespace}/{pod} ends"), limit, || {
            let phase = self.field(namespace, "pod", pod, "/status/phase")?;
            ensure!(phase == "Succeeded" || phase == "Failed", "phase {phase}");
            Ok(())
        })?;
        self.kubectl(&["logs", "-n", namespace, pod])
    }

    /// Runs a command in a pod's container and answers its standard output.
    ///
    /// # Errors
    /// Its standard error, when it fails.
    pub fn exec(&self, namespace: &str, pod: &str, command: &[&str]) -> Result<String> {
        let mut arguments = vec!["exec", "-n", namespace, pod, "--"];
        arguments.extend(command);
        self.kubectl(&arguments)
    }

    /// Runs a command in a node's namespaces.
    ///
    /// # Errors
    /// Its standard error, when it fails.
    pub fn on_node(&self, node: &str, command: &[&str]) -> Result<String> {
        let mut arguments = vec!["node", "--name", &self.name, node, "--"];
        arguments.extend(command);
        flatnet(&arguments)
    }

    /// What `flatnet status` says; also when something is wrong.
    ///
    /// # Errors
    /// When it says nothing.
    pub fn status(&self) -> Result<Value> {
        let output = Command::new(program("flatnet"))
            .args(["status", "--name", &self.name, "--output", "json"])
            .output()?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// The process id of one of the cluster's processes, such as `agent/node1`.
    ///
    /// # Errors
    /// When it does not run.
    pub fn process(&self, name: &str) -> Result<i64> {
        let status = self.status()?;
        let processes = status["processes"].as_array().context("no processes")?;
        let process = processes.iter().find(|process| process["name"] == name);
        process
            .and_then(|process| process["pid"].as_i64())
            .with_context(|| format!("{name} does not run"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::env::var_os("E2E_KEEP").is_some() {
            return;
        }
        if let Err(error) = flatnet(&["down", "--name", &self.name]) {
            eprintln!("cluster {} stays: {error:#}", self.name);
        }
    }
}

/// Whether the condition `Ready` of a pod, or of a node, is true.
pub fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// Runs `flatnet` and answers its standard output.
///
/// # Errors
/// Its standard error, when it fails.
pub fn flatnet(arguments: &[&str]) -> Result<String> {
    let program = program("flatnet");
    let output = Command::new(&program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {} (`./x build` makes it)", program.display()))?;
    text_of(output).with_context(|| format!("flatnet {}", arguments.join(" ")))
}

/// Standard output of a command that succeeded.
///
/// # Errors
/// Its standard error and exit code, when it did not.
pub fn text_of(output: Output) -> Result<String> {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(stdout);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    bail!("{}: {} {}", output.status, stderr.trim(), stdout.trim())
}
