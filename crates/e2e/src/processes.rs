//! Programs that a test starts in a node's namespaces and can signal by their own process id, and
//! the supervisor held still, so that the tests alone decide when agents run.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cluster::Cluster;
use crate::{eventually, program, workspace};

/// How long an agent may take to read everything and to be at rest, on a busy machine too.
pub const CONVERGED: Duration = Duration::from_secs(60);

/// How long an agent may take to answer, on a busy machine too.
const ANSWERED: Duration = Duration::from_secs(30);

/// A process on a node. It is killed when the value is dropped.
pub struct OnNode {
    /// Its process id.
    pub pid: i64,
    child: Child,
    output: PathBuf,
}

impl OnNode {
    /// Starts a shell command there, which its program replaces; `name` names the file of what it
    /// says.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(cluster: &Cluster, node: &str, name: &str, command: &str) -> Result<Self> {
        let directory = workspace().join("target/tmp");
        std::fs::create_dir_all(&directory)?;
        let output = directory.join(format!("{}-{node}-{name}.log", cluster.name));
        let file = File::create(&output)?;
        let mut child = Command::new(program("flatnet"))
            .args(["node", "--name", &cluster.name, node, "--", "sh", "-c"])
            .arg(format!("echo $$; exec {command} >{} 2>&1", output.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(file)
            .spawn()
            .context("starting flatnet node")?;
        let mut line = String::new();
        let stdout = child.stdout.take().context("no stdout")?;
        BufReader::new(stdout).read_line(&mut line)?;
        let pid = line.trim().parse().with_context(|| format!("the shell said {line:?}"))?;
        Ok(Self { pid, child, output })
    }

    /// What it has said until now.
    ///
    /// # Errors
    /// The file system's.
    pub fn said(&self) -> Result<String> {
        Ok(std::fs::read_to_string(&self.output)?)
    }

    /// Waits for its end and answers whether it succeeded.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn ended(&mut self, limit: Duration) -> Result<bool> {
        eventually("the process ends", limit, || {
            self.child.try_wait()?.context("it runs").map(|status| status.success())
        })
    }

    /// kill -9.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn kill(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        if self.child.try_wait()?.is_none() {
            signal(self.pid, "KILL")?;
            self.child.wait()?;
        }
        Ok(())
    }
}

impl Drop for OnNode {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// The cluster's supervisor does nothing while this lives: what dies stays dead.
pub struct Held<'a> {
    cluster: &'a Cluster,
    supervisor: i64,
}

impl<'a> Held<'a> {
    /// Stops the supervisor, and then kills the agents of these nodes.
    ///
    /// # Errors
    /// When one of them does not run.
    pub fn hold(cluster: &'a Cluster, nodes: &[&str]) -> Result<Self> {
        let supervisor = report(cluster)?["supervisor"].as_i64().context("no supervisor")?;
        let names = nodes.iter().map(|node| format!("agent/{node}"));
        let agents: Vec<i64> = names.map(|name| cluster.process(&name)).collect::<Result<_>>()?;
        signal(supervisor, "STOP")?;
        let held = Self { cluster, supervisor };
        for pid in agents {
            signal(pid, "KILL")?;
            // Until then it has its lock. Nobody reaps it: its parent is stopped.
            eventually("the agent is dead", CONVERGED, || {
                let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
                ensure!(stat.contains(") Z "), "{stat}");
                Ok(())
            })?;
        }
        Ok(held)
    }

    /// Starts an agent as the supervisor would.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn agent(&self, node: &str) -> Result<OnNode> {
        start_agent(self.cluster, node)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Err(error) = signal(self.supervisor, "CONT") {
            eprintln!("the supervisor stays stopped: {error:#}");
        }
    }
}

/// Starts one more agent of a node.
///
/// # Errors
/// When it cannot be started.
pub fn start_agent(cluster: &Cluster, node: &str) -> Result<OnNode> {
    let agent = program("flatnet");
    let name = &cluster.name;
    let command = format!("{} agent --name {name} --node-name {node}", agent.display());
    OnNode::start(cluster, node, "agent", &command)
}

/// What the agent of a node says of itself, whoever started it.
///
/// # Errors
/// When none answers.
pub fn agent_status(cluster: &Cluster, node: &str) -> Result<Value> {
    // Another process of the node leads to the files that the node sees.
    let report = report(cluster)?;
    let runtime = format!("runtime/{node}");
    let processes = report["processes"].as_array().context("no processes")?;
    let process = processes.iter().find(|process| process["name"] == runtime.as_str());
    let pid = process.and_then(|process| process["pid"].as_i64()).context("no runtime")?;
    let mut socket = UnixStream::connect(format!("/proc/{pid}/root/run/flatnet/agent.sock"))
        .with_context(|| format!("the agent of {node} does not answer"))?;
    socket.set_read_timeout(Some(ANSWERED))?;
    socket.write_all(b"GET /status HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).with_context(|| format!("the agent of {node} is silent"))?;
    let (_, body) = answer.split_once("\r\n\r\n").with_context(|| answer.clone())?;
    serde_json::from_str(body).with_context(|| answer.clone())
}

/// What the supervisor says of its processes.
fn report(cluster: &Cluster) -> Result<Value> {
    let report = format!("/run/flatnet/{}/status.json", cluster.name);
    Ok(serde_json::from_str(&std::fs::read_to_string(report)?)?)
}

/// Waits until an agent has read everything and has nothing to do.
///
/// # Errors
/// When it does not come to rest.
pub fn converged(cluster: &Cluster, node: &str) -> Result<Value> {
    eventually(&format!("the agent of {node} is at rest"), CONVERGED, || {
        let status = agent_status(cluster, node)?;
        let rests = ["synced", "converged", "ready"].iter().all(|name| status[*name] == true);
        let quiet = status["problems"].as_array().is_some_and(Vec::is_empty);
        ensure!(rests && quiet, "{status}");
        Ok(status)
    })
}

/// Sends a signal, named as `kill` names it.
///
/// # Errors
/// When there is no such process.
pub fn signal(pid: i64, name: &str) -> Result<()> {
    let status = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status()?;
    ensure!(status.success(), "kill -{name} {pid}: {status}");
    Ok(())
}
