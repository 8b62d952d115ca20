//! Questions to agents: of this node, or of the nodes of a cluster on this machine.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::StatusCode;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use model::layout;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::{ClusterName, require_root};
use crate::cluster::supervisor;

/// The largest answer of an agent that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// How long API server and agents may take to answer.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Which agents.
#[derive(clap::Args, Clone, Debug)]
pub struct Agents {
    /// A cluster of this machine; without it, the agent of this node is asked.
    #[arg(long)]
    name: Option<String>,
    /// One of that cluster's nodes; without it, all are asked.
    #[arg(long, requires = "name")]
    node: Option<String>,
}

impl Agents {
    /// All of a cluster of this machine.
    pub fn of_cluster(name: &str) -> Self {
        Self { name: Some(name.to_owned()), node: None }
    }

    /// The sockets of the agents.
    ///
    /// # Errors
    /// When there is no such cluster or node, or it does not run.
    pub fn sockets(&self) -> Result<Vec<PathBuf>> {
        self.sockets_of("agent", agent::STATUS_SOCKET)
    }

    /// The sockets of another process of the nodes.
    ///
    /// # Errors
    /// As [`Agents::sockets`].
    pub fn sockets_of(&self, component: &str, socket: &str) -> Result<Vec<PathBuf>> {
        let in_run = |root: PathBuf| in_run_of(&root, socket);
        Ok(self.roots_of(component)?.into_iter().map(in_run).collect())
    }

    /// The file systems of the nodes, as a process of theirs sees them.
    ///
    /// # Errors
    /// As [`Agents::sockets`].
    pub fn roots_of(&self, component: &str) -> Result<Vec<PathBuf>> {
        require_root("asking a node's processes")?;
        let Some(name) = &self.name else { return Ok(vec!["/".into()]) };
        let (paths, spec) = ClusterName { name: name.clone() }.load()?;
        let report = supervisor::report(&paths)?
            .with_context(|| format!("cluster {name} does not run: start it with `flatnet up`"))?;
        let wanted = |node: &str| self.node.as_deref().is_none_or(|only| only == node);
        let mut roots = Vec::new();
        for node in spec.nodes.iter().filter(|node| wanted(&node.name)) {
            let unit = format!("{component}/{}", node.name);
            let process = report.processes.iter().find(|process| process.name == unit);
            let pid = process.and_then(|process| process.pid).with_context(|| {
                format!("the {component} of {} does not run: `flatnet status` says why", node.name)
            })?;
            roots.push(root_of(pid));
        }
        if roots.is_empty() {
            let names: Vec<&str> = spec.nodes.iter().map(|node| node.name.as_str()).collect();
            bail!("there is no such node: the nodes are {}", names.join(", "));
        }
        Ok(roots)
    }

    /// Asks all of them the same.
    ///
    /// # Errors
    /// The first agent's that does not answer.
    pub fn ask<T: DeserializeOwned>(&self, question: &str) -> Result<Vec<T>> {
        ask_all(self.sockets()?, question)
    }
}

/// Asks all of them the same.
///
/// # Errors
/// The first one's that does not answer.
pub fn ask_all<T: DeserializeOwned>(sockets: Vec<PathBuf>, question: &str) -> Result<Vec<T>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut answers = Vec::new();
        for socket in sockets {
            let asked = tokio::time::timeout(ANSWER_TIMEOUT, ask(&socket, question)).await;
            let answer = asked.with_context(|| {
                format!("the agent at {} does not answer in time", socket.display())
            })?;
            answers.push(answer?);
        }
        Ok(answers)
    })
}

/// The socket of an agent through its own view of the file system: it lies in the node's `/run`.
pub fn socket_of(pid: i32) -> PathBuf {
    in_run_of(&root_of(pid), agent::STATUS_SOCKET)
}

/// A socket in a node's `/run`.
pub fn in_run_of(root: &Path, socket: &str) -> PathBuf {
    below(root, layout::RUN_DIRECTORY).join(socket)
}

/// A path of a node's file system.
pub fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

fn root_of(pid: i32) -> PathBuf {
    format!("/proc/{pid}/root").into()
}

/// One question to one agent.
///
/// # Errors
/// When no agent listens, or its answer is none.
pub async fn ask<T: DeserializeOwned>(socket: &Path, question: &str) -> Result<T> {
    let stream = UnixStream::connect(socket).await.with_context(|| {
        format!("no agent answers at {}: does it run on this node?", socket.display())
    })?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request =
        hyper::Request::get(question).header("host", "agent").body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let code = response.status();
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX);
    let body = body.collect().await.map_err(anyhow::Error::msg)?.to_bytes();
    connection.abort();
    if code != StatusCode::OK {
        bail!("the agent answers {code}: {}", String::from_utf8_lossy(&body));
    }
    Ok(serde_json::from_slice(&body)?)
}
