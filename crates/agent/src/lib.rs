//! The node agent: carries the API's objects and the node's facts into [`reconcile`], and its
//! effects into the kernel, the CNI configuration and the DNS worker.
//!
//! ```text
//! watch: nodes ─┐                            ┌─▶ kernel (same thread, synchronous)
//! watch: services ─┼─ one bounded queue ─▶ loop ─┼─▶ /etc/cni/net.d/10-flatnet.conflist
//! watch: slices ─┘        ▲                  ├─▶ feed ─▶ DNS worker (unix socket)
//!            node facts, timer               └─▶ status ─▶ health (unix socket, loopback)
//! ```
//!
//! One thread. What happens is decided in `reconcile`; nothing here decides.

mod conflist;
mod facts;
mod feed;
mod health;
mod watches;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use client::Client;
use model::ClusterConfig;
use reconcile::{Effect, Event, Reconciler};
use render::Kernel;
use tokio::sync::{mpsc, watch};

pub use health::AgentStatus;

/// Events that wait for the loop; the watches pause when it is full.
const QUEUE_EVENTS: usize = 1024;
/// Events taken in before the loop plans: bursts collapse into one plan.
const BURST_EVENTS: usize = 4096;
/// Plans in a row before other tasks get their turn.
const TURNS_MAX: usize = 8;
/// The node's links and addresses are read this often.
const FACTS_PERIOD: Duration = Duration::from_secs(5);

/// How an agent is called.
#[derive(Clone, Debug)]
pub struct Options {
    /// The node's name in the API.
    pub node_name: String,
    /// Where the API server is and who we are.
    pub kubeconfig: PathBuf,
    /// Ranges, overlay, names.
    pub config: ClusterConfig,
    /// The link to the other nodes.
    pub uplink: String,
    /// The directory of our sockets.
    pub run_directory: PathBuf,
    /// Where the CNI configuration goes.
    pub cni_configuration_directory: PathBuf,
}

/// Runs the agent until `shutdown` is set. What is in the kernel stays there (invariant 14).
///
/// # Errors
/// When the kernel, the sockets or the kubeconfig cannot be opened.
pub async fn run(options: Options, mut shutdown: watch::Receiver<bool>) -> Result<()> {
    let client = Client::from_kubeconfig(&options.kubeconfig)
        .await
        .with_context(|| format!("reading {}", options.kubeconfig.display()))?;
    let mut agent = Agent::open(&options)?;
    let (events, mut queue) = mpsc::channel(QUEUE_EVENTS);
    watches::spawn(&client, &events);
    let feed = feed::serve(&options.run_directory)?;
    let status = health::serve(&options.run_directory)?;
    let mut facts_timer = tokio::time::interval(FACTS_PERIOD);
    tracing::info!(node = options.node_name, "the agent runs");
    loop {
        let now = agent.now();
        let wait = agent.reconciler.deadline().map(|at| at.saturating_sub(now));
        tokio::select! {
            _ = shutdown.changed() => return Ok(()),
            Some(event) = queue.recv() => agent.take_in(event, &mut queue),
            _ = facts_timer.tick() => agent.read_facts(),
            () = sleep(wait) => {}
        }
        let zones = agent.work(&options);
        if let Some(zone) = zones {
            feed.send_replace(Some(zone));
        }
        status.send_replace(agent.status());
    }
}

async fn sleep(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}

struct Agent {
    node_name: String,
    uplink: String,
    reconciler: Reconciler,
    kernel: kernel::Linux,
    started: Instant,
    facts_error: Option<String>,
    conflist_error: Option<String>,
}

impl Agent {
    fn open(options: &Options) -> Result<Self> {
        Ok(Self {
            node_name: options.node_name.clone(),
            uplink: options.uplink.clone(),
            reconciler: Reconciler::new(options.config.clone()),
            kernel: kernel::Linux::open()
                .context("opening the kernel (is CAP_NET_ADMIN missing?)")?,
            started: Instant::now(),
            facts_error: None,
            conflist_error: None,
        })
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn take_in(&mut self, first: Event, queue: &mut mpsc::Receiver<Event>) {
        let now = self.now();
        self.reconciler.handle(first, now);
        for _ in 0..BURST_EVENTS {
            match queue.try_recv() {
                Ok(event) => self.reconciler.handle(event, now),
                Err(_) => return,
            }
        }
    }

    fn read_facts(&mut self) {
        let now = self.now();
        match facts::read(&self.node_name, &self.uplink) {
            Ok(facts) => {
                self.facts_error = None;
                self.reconciler.handle(Event::Facts(facts), now);
            }
            Err(error) => {
                tracing::warn!("{error:#}");
                self.facts_error = Some(format!("{error:#}"));
            }
        }
    }

    /// Carries out effects until there are none. Answers the zone to publish, the newest only.
    fn work(&mut self, options: &Options) -> Option<Arc<plan::zone::Zone>> {
        let mut zone = None;
        for _ in 0..TURNS_MAX {
            let effects = self.reconciler.poll(self.now());
            if effects.is_empty() {
                break;
            }
            for effect in effects {
                match effect {
                    Effect::Observe => {
                        let observed = self.kernel.observe();
                        self.reconciler.handle(Event::Observed(observed), self.now());
                    }
                    Effect::Apply(ops) => {
                        let results = self.kernel.apply(&ops);
                        log_failures(&results);
                        self.reconciler.handle(Event::Applied(results), self.now());
                    }
                    Effect::WriteConflist(text) => {
                        let written = conflist::write(&options.cni_configuration_directory, &text);
                        self.conflist_error = written.err().map(|error| format!("{error:#}"));
                    }
                    Effect::PublishZone(new) => zone = Some(new),
                }
            }
        }
        zone
    }

    fn status(&self) -> AgentStatus {
        let status = self.reconciler.status();
        let mut problems: Vec<String> = status.failures;
        problems.extend(self.facts_error.clone());
        problems.extend(self.conflist_error.clone());
        problems.extend(status.held);
        let findings =
            status.findings.iter().map(|found| format!("{}: {}", found.about, found.message));
        problems.extend(findings);
        AgentStatus {
            node: self.node_name.clone(),
            synced: status.synced,
            converged: status.converged,
            services: status.services,
            operations_total: status.operations_total,
            problems,
        }
    }
}

fn log_failures(results: &[Result<(), render::OpError>]) {
    for error in results.iter().filter_map(|result| result.as_ref().err()) {
        tracing::warn!(errno = error.errno, "{}", error.message);
    }
}
