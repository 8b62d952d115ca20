//! The node agent: carries the API's objects and the node's facts into [`reconcile`], and its
//! effects into the kernel, the CNI configuration and the DNS worker.
//!
//! ```text
//! watch: nodes ─┐                                ┌─▶ kernel (same thread, synchronous)
//! watch: services ─┤                             ├─▶ plugin, then 10-flatnet.conflist
//! watch: slices ─┼─ one bounded queue ─▶ loop ─┼─▶ feed ─▶ DNS worker (unix socket)
//! kernel's notices ─┤        ▲                   ├─▶ status ─▶ health (unix socket, loopback)
//! canary, timers ─┘    facts                     ├─▶ report ─▶ Node condition, Events
//!                                                ├─▶ names ─▶ kernel (answers of DNS)
//!                                                └─▶ forwarding ─▶ kernel (packets of pods)
//! ```
//!
//! One thread. What happens is decided in `reconcile`; nothing here decides.

mod acceleration;
mod addressing;
mod blocks;
mod conntrack;
mod edges;
mod facts;
mod failover;
mod feed;
mod fill;
mod forwarding;
mod health;
mod install;
mod lacking;
mod lock;
mod measure;
mod metrics;
mod monitor;
mod names;
mod options;
mod parameters;
mod paths;
mod pools;
pub mod rbac;
mod report;
mod service_health;
mod services;
mod settling;
mod turn;
mod uninstall;
mod watches;

use std::time::Duration;

use anyhow::{Context, Result};
use reconcile::Event;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

pub use kernel::service_backend;

pub use acceleration::AccelerationStatus;
pub use conntrack::ConntrackFill;
pub use fill::MapRow;
pub use forwarding::ForwardingStatus;
pub use health::{AgentStatus, Pool, STATUS_SOCKET};
pub use names::{FastPathAnswer, FastPathStatus};
pub use options::{Api, Options, Places};
pub use paths::PathRow;
pub use render::implementation::KernelObject;
pub use services::{Answer, EndpointReport, FrontendReport, NodeServices, ServiceReport};
pub use uninstall::uninstall;

use addressing::Addressing;
use blocks::{Claimed, Keeper, View};
use turn::Agent;

/// Events that wait for the loop; the watches pause when it is full.
const QUEUE_EVENTS: usize = 1024;
/// The node's links and addresses are read this often, whatever the kernel tells.
const FACTS_PERIOD: Duration = Duration::from_secs(5);
/// What sends no notification is looked at this often (R-22).
const CANARY_PERIOD: Duration = Duration::from_millis(500);

/// Runs the agent until `shutdown` is set. What is in the kernel stays there (invariant 14).
///
/// # Errors
/// When another agent has the node, or the kernel, the sockets or the credentials cannot be opened.
pub async fn run(mut options: Options, mut shutdown: watch::Receiver<bool>) -> Result<()> {
    let _lock = lock::take(&options.places.run)?;
    install::remember(&options.places.run, &options.config)?;
    options.config.service_backend = service_backend(options.config.service_backend)?;
    let client = options.api.client().await?;
    let (questions, mut asked) = mpsc::channel(health::QUESTIONS_MAX);
    // They end with us.
    let mut tasks = JoinSet::new();
    let feed = feed::Feed::serve(&options.places.run, &options.config, &client, &mut tasks)?;
    let chooses_addresses = options.config.agent_chooses_addresses();
    let (view, viewed) = watch::channel(View::default());
    let (claims, mut claimed) = watch::channel(Claimed::default());
    let addressing = Addressing {
        client: client.clone(),
        config: options.config.clone(),
        view: viewed.clone(),
        claimed: claimed.clone(),
    };
    let names = names::spawn(&options, &feed, &mut tasks);
    let served = (addressing, names.clone());
    let told = health::serve(&options.places.run, questions, served, &mut tasks)?;
    let reports = report::spawn(client.clone(), options.node_name.clone(), &mut tasks);
    let (events, mut queue) = mpsc::channel::<Event>(QUEUE_EVENTS);
    watches::spawn(&client, &events, &mut tasks);
    let keeper = Keeper {
        client,
        node: options.node_name.clone(),
        pools: options.config.pools.clone(),
        ipam: options.places.ipam.clone(),
        view: viewed,
        claimed: claims,
    };
    tasks.spawn(keeper.run());
    tasks.spawn(async { match memory::keep_giving_back().await {} });
    tracing::info!(node = options.node_name, "the agent runs");
    let paths = paths::spawn(&options.config, options.path_test_period, &mut tasks);
    let (paths, failover) = (paths::Keeper::new(paths), failover_of(&options, &mut tasks));
    let (status, mut exposed) = (told.status, feed.exposed());
    let mut agent =
        Agent::open(options, told.measures, paths, failover).context("opening the kernel")?;
    let listeners = Listeners { feed, names, reports, status, view, chooses_addresses };
    let (mut facts_timer, mut canary) = (timer(FACTS_PERIOD), timer(CANARY_PERIOD));
    loop {
        let wait = agent.wait();
        let mut heard_us = None;
        tokio::select! {
            _ = shutdown.changed() => return Ok(()),
            Some(event) = queue.recv() => {
                heard_us = Some(feed::unix_us());
                agent.take_in(event, &mut queue);
            }
            heard = agent.monitor.heard() => {
                agent.hear(heard?);
                continue;
            }
            Some(question) = asked.recv() => agent.answer(question),
            Ok(()) = claimed.changed() => agent.claimed = claimed.borrow_and_update().clone(),
            Ok(()) = exposed.changed() => agent.expose(exposed.borrow_and_update().clone()),
            () = agent.paths.heard() => {}
            () = agent.failover.heard() => {}
            () = agent.forwarding.written() => {}
            _ = facts_timer.tick() => agent.read_node(),
            _ = canary.tick() => if !agent.look() { continue },
            () = sleep(wait) => {}
        }
        agent.follow_paths();
        agent.follow_failover();
        listeners.tell(&mut agent, heard_us).await;
    }
}

fn timer(period: Duration) -> tokio::time::Interval {
    let mut timer = tokio::time::interval(period);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    timer
}

fn failover_of(options: &Options, tasks: &mut JoinSet<()>) -> failover::Keeper {
    match options.config.failover {
        true => failover::spawn(&options.config, &options.places.run, tasks),
        false => failover::Keeper::default(),
    }
}

/// Who hears of each turn.
struct Listeners {
    feed: feed::Feed,
    names: names::FastPath,
    reports: watch::Sender<report::Report>,
    status: watch::Sender<AgentStatus>,
    view: watch::Sender<View>,
    /// Whether anybody looks at the view.
    chooses_addresses: bool,
}

impl Listeners {
    /// Does the turn's work, and tells what came of it. `heard_us`: when the API told what it is
    /// about, in microseconds since 1970.
    async fn tell(&self, agent: &mut Agent, heard_us: Option<u64>) {
        agent.work(&self.feed, heard_us.unwrap_or_else(feed::unix_us)).await;
        let mut report = agent.report();
        report.conditions.extend(self.names.condition());
        self.reports.send_if_modified(|present| {
            let changed = *present != report;
            *present = report;
            changed
        });
        if self.chooses_addresses {
            self.view.send_replace(agent.view());
        }
        let mut status = agent.status();
        status.problems.extend(self.names.problem());
        self.status.send_replace(status);
    }
}

async fn sleep(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}
