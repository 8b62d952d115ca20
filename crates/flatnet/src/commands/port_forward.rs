//! `flatnet port-forward`: ports of pods on this machine, as `kubectl port-forward` has them, but
//! with UDP, and going on with another pod when that of a Service or Deployment goes.

mod carry;
mod ports;
mod session;
mod target;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use client::{Client, Endpoint, HttpsTransport, Kubeconfig, ResourcePath, WatchEvent, WatchSpec};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::watch;

use super::ClusterName;
use crate::output::{Format, print};
use carry::{Binding, Listener};
use ports::{Port, Protocol};
use session::Session;
use target::{Absent, Found, Target};

/// First wait before another pod is looked for again, milliseconds; doubled up to the limit.
const RETRY_MS: u64 = 100;
/// Longest such wait, milliseconds.
const RETRY_LIMIT_MS: u64 = 2_000;

/// Arguments of `flatnet port-forward`.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  flatnet port-forward svc/web 8080:80\n  flatnet port-forward -n kube-system svc/kube-dns 5353:53/udp 5353:53\n  flatnet port-forward deploy/web :8080 --output json"
)]
pub struct Arguments {
    /// pod/NAME, svc/NAME, deploy/NAME, or the name of a pod.
    target: String,
    /// Ports: a number or a name, with a port of this machine before it where that is another.
    #[arg(required = true, value_name = "[LOCAL:]PORT[/udp]")]
    ports: Vec<String>,
    /// The namespace.
    #[arg(long, short, default_value = "default")]
    namespace: String,
    /// Addresses of this machine to listen on.
    #[arg(long, value_delimiter = ',', default_value = "localhost")]
    address: Vec<String>,
    /// The cluster and who you are in it; without it `$KUBECONFIG`, then ~/.kube/config.
    #[arg(long, value_name = "FILE", conflicts_with = "name")]
    kubeconfig: Option<PathBuf>,
    /// A cluster of this machine, as its administrator.
    #[arg(long)]
    name: Option<String>,
    /// How to print where it listens.
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
}

/// Where a port is had.
#[derive(Serialize)]
struct Listening {
    address: SocketAddr,
    port: u16,
    protocol: Protocol,
}

/// Forwards until it is interrupted, or the pod is gone that was named.
///
/// # Errors
/// What is wrong with the arguments, that no pod is ready, that a port is taken; and for a pod, its
/// end.
pub fn run(arguments: Arguments) -> Result<()> {
    let target = Target::parse(&arguments.target)?;
    let ports: Vec<Port> =
        arguments.ports.iter().map(|text| Port::parse(text)).collect::<Result<_>>()?;
    let kubeconfig = kubeconfig(&arguments)?;
    let endpoint = Kubeconfig::read(&kubeconfig)?.endpoint()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = Client::with_transport(Arc::new(HttpsTransport::new(endpoint.clone())));
        let follower = Follower { client, endpoint, namespace: arguments.namespace, target, ports };
        let first = follower.find().await.map_err(Absent::into_error)?;
        let binding = follower.bind(&first).await?;
        let listeners =
            listen(&carry::addresses(&arguments.address)?, &follower.ports, &first.ports).await?;
        show(arguments.output, &listeners, &first.ports, &follower.ports)?;
        let (bound, bindings) = watch::channel(Some(binding));
        for (index, listener) in listeners {
            tokio::spawn(listener.serve(bindings.clone(), index));
        }
        tokio::select! {
            ended = follower.follow(first, &bound) => ended,
            interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
        }
    })
}

fn kubeconfig(arguments: &Arguments) -> Result<PathBuf> {
    if let Some(file) = &arguments.kubeconfig {
        return Ok(file.clone());
    }
    if let Some(name) = &arguments.name {
        return Ok(ClusterName { name: name.clone() }.load()?.0.kubeconfig());
    }
    let named = std::env::var_os("KUBECONFIG").filter(|files| !files.is_empty());
    if let Some(files) = named {
        let first = std::env::split_paths(&files).next();
        return first.context("$KUBECONFIG names no file");
    }
    let home = std::env::var_os("HOME")
        .context("no cluster is named: --kubeconfig FILE, --name CLUSTER or $KUBECONFIG does")?;
    Ok(PathBuf::from(home).join(".kube/config"))
}

/// Takes all ports on all addresses. A machine without IPv6 has no `::1`.
async fn listen(
    addresses: &[std::net::IpAddr],
    ports: &[Port],
    numbers: &[u16],
) -> Result<Vec<(usize, Listener)>> {
    let mut listeners = Vec::new();
    for (index, (port, number)) in ports.iter().zip(numbers).enumerate() {
        let mut local = port.local_for(*number);
        let mut any = false;
        for address in addresses {
            match Listener::bind(SocketAddr::new(*address, local), port.protocol).await {
                Ok(listener) => {
                    // What was free in one family is the same in the other.
                    local = listener.address()?.port();
                    listeners.push((index, listener));
                    any = true;
                }
                Err(error) if any && address.is_loopback() => {
                    eprintln!("flatnet: {error:#}");
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(listeners)
}

fn show(
    format: Format,
    listeners: &[(usize, Listener)],
    numbers: &[u16],
    ports: &[Port],
) -> Result<()> {
    let mut all = Vec::new();
    for (index, listener) in listeners {
        let (Some(port), Some(named)) = (numbers.get(*index), ports.get(*index)) else { continue };
        let address = listener.address()?;
        all.push(Listening { address, port: *port, protocol: named.protocol });
    }
    print(format, &all, || {
        let line = |one: &Listening| {
            let suffix = one.protocol.suffix();
            format!("Forwarding from {} -> {}{suffix}\n", one.address, one.port)
        };
        all.iter().map(line).collect()
    })
}

/// Looks for pods and keeps one bound.
struct Follower {
    client: Client,
    endpoint: Endpoint,
    namespace: String,
    target: Target,
    ports: Vec<Port>,
}

impl Follower {
    async fn find(&self) -> Result<Found, Absent> {
        self.target.find(&self.client, &self.namespace, &self.ports).await
    }

    async fn bind(&self, found: &Found) -> Result<Binding> {
        let session = Session::open(&self.endpoint, &self.namespace, &found.pod)
            .await
            .with_context(|| format!("forwarding to pod {}", found.pod))?;
        let wants_datagrams = self.ports.iter().any(|port| port.protocol == Protocol::Udp);
        if wants_datagrams && !session.takes_datagrams() {
            bail!(
                "this API server forwards TCP alone: UDP needs that of `flatnet up`, and `kubectl \
                 debug` or a Service of type NodePort are other ways"
            );
        }
        Ok(Binding { session, ports: found.ports.clone().into() })
    }

    /// Binds another pod whenever the present one takes no new connections. Ends with the pod where
    /// no other may take over.
    async fn follow(&self, first: Found, bound: &watch::Sender<Option<Binding>>) -> Result<()> {
        let mut present = first;
        loop {
            let session = bound.borrow().as_ref().map(|binding| Arc::clone(&binding.session));
            let pod = present.pod.clone();
            let has_ended = match session {
                Some(session) if self.target.has_others() => tokio::select! {
                    () = session.ended() => true,
                    () = self.no_longer_ready(&pod) => session.has_ended(),
                },
                Some(session) => {
                    session.ended().await;
                    true
                }
                None => true,
            };
            if !self.target.has_others() {
                bail!("lost connection to pod {pod}");
            }
            if has_ended {
                bound.send_replace(None);
            }
            eprintln!("flatnet: pod {pod} takes no new connections; another is looked for");
            let (found, binding) = self.next(&present, bound).await;
            if let Some(binding) = binding {
                eprintln!("flatnet: new connections go to pod {}", found.pod);
                bound.send_replace(Some(binding));
            }
            present = found;
        }
    }

    /// The next pod, sooner or later. No binding when it is the present one, which is ready again.
    async fn next(
        &self,
        present: &Found,
        bound: &watch::Sender<Option<Binding>>,
    ) -> (Found, Option<Binding>) {
        let mut said = String::new();
        let mut wait_ms = RETRY_MS;
        loop {
            let why = match self.find().await {
                Ok(found) => {
                    let is_bound = found == *present
                        && bound.borrow().as_ref().is_some_and(|one| !one.session.has_ended());
                    if is_bound {
                        return (found, None);
                    }
                    match self.bind(&found).await {
                        Ok(binding) => return (found, Some(binding)),
                        Err(error) => error,
                    }
                }
                Err(absent) => absent.into_error(),
            };
            // Once, however often it is found.
            let why = format!("{why:#}; trying again");
            if said != why {
                eprintln!("flatnet: {why}");
                said = why;
            }
            tokio::time::sleep(Duration::from_millis(wait_ms)).await;
            wait_ms = (wait_ms * 2).min(RETRY_LIMIT_MS);
        }
    }

    /// Returns once a pod is not ready, is leaving, or is gone.
    async fn no_longer_ready(&self, pod: &str) {
        let path = ResourcePath::new("v1", "pods").namespace(self.namespace.clone());
        let spec = WatchSpec::new(path).field_selector(format!("metadata.name={pod}"));
        let mut watcher = self.client.watch::<Value>(spec);
        loop {
            match watcher.next().await {
                WatchEvent::Listed(pods) if !pods.iter().any(target::is_ready) => return,
                WatchEvent::Applied(pod) if !target::is_ready(&pod) => return,
                WatchEvent::Deleted(_) => return,
                // While the API server is away, the session tells whether the pod is there.
                _ => {}
            }
        }
    }
}
