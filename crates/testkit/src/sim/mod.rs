//! A whole cluster in one thread and in virtual time, by one seed: the real store, the real
//! controllers and one real node loop a node, on fake kernels. People change things, watches lag
//! and misbehave, kernels refuse, agents and controllers die.
//!
//! At every step no kernel refuses an operation that was not made to fail. After quiet, every
//! packet at every node gets what the API means, and the endpoints of every Service are its ready
//! pods.

pub mod agent;
pub mod api;
pub mod users;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use controllers::StepResult;
use controllers::{Batch, Config, Job, Kind as ApiKind, Manager};
use model::{ClusterConfig, Family, Timestamp, World};
use oracle::service::Rule::{ClusterIp, NodePort};
use reconcile::KINDS;
use serde_json::{Value, json};
use store::{EventType, WatchEvent, Watcher};

use crate::random::{self, Choices, Generator};
use crate::{objects, verdict};
use agent::{Agent, FAULTS, Fault};
use api::Api;

/// Nodes of a simulated cluster.
const NODES: u8 = 3;
/// When simulated clusters begin (an arbitrary second).
const BEGIN: Timestamp = Timestamp::from_seconds(1_800_000_000);
/// Virtual time of one step.
const STEP: Duration = Duration::from_millis(7);
/// Steps without news after which a cluster is not quiet but lost.
const QUIET_STEPS_MAX: usize = 50_000;
/// Virtual time that controllers may take to come to rest.
const QUIET_AFTER: Duration = Duration::from_secs(20);
/// Packets looked at, at every node after quiet.
const PACKETS: usize = 60;
/// Longer than any list is held back.
const PAST_EVERY_HOLD: Duration = Duration::from_secs(90);

/// What a run showed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Things that people did.
    pub actions: usize,
    /// Faults by name.
    pub faults: BTreeMap<String, usize>,
    /// Operations that kernels took.
    pub operations: usize,
    /// Packets compared, and how many of them a Service decided.
    pub packets: usize,
    /// Of these, decided by a Service.
    pub by_services: usize,
}

/// Runs a cluster for some steps, lets it come to rest and checks it.
///
/// # Errors
/// What is wrong; the caller knows the seed, which is all that is needed to see it again.
pub fn run(seed: u64, steps: usize) -> Result<Report> {
    let mut simulation = Simulation::new(seed)?;
    for step in 0..steps {
        simulation.step().with_context(|| format!("at step {step}"))?;
    }
    simulation.come_to_rest()?;
    simulation.check()?;
    Ok(simulation.report)
}

struct Simulation {
    random: Generator,
    config: ClusterConfig,
    api: Api,
    manager: Manager,
    manager_watches: BTreeMap<ApiKind, Watcher>,
    agents: Vec<Agent>,
    report: Report,
}

impl Simulation {
    fn new(seed: u64) -> Result<Self> {
        let config = objects::config();
        let mut api = Api::new(&config, BEGIN, seed ^ 0x5eed);
        for name in ["default", "kube-system", "kube-node-lease"] {
            let made = api.create(ApiKind::Namespace, "", json!({"metadata": {"name": name}}));
            made.map_err(|status| anyhow!("{status:?}"))?;
        }
        for number in 1..=NODES {
            let made = api.create(ApiKind::Node, "", node(number));
            made.map_err(|status| anyhow!("{status:?}"))?;
        }
        let manager = Manager::new(manager_config(&config, BEGIN));
        let mut simulation = Self {
            random: Generator::new(seed),
            manager,
            manager_watches: BTreeMap::new(),
            agents: Vec::new(),
            report: Report::default(),
            config,
            api,
        };
        simulation.restart_controllers()?;
        for number in 1..=NODES {
            let agent = Agent::start(&simulation.api, &simulation.config, number)?;
            simulation.agents.push(agent);
        }
        Ok(simulation)
    }

    /// One step of somebody.
    fn step(&mut self) -> Result<()> {
        self.api.now = self.api.now.after(STEP);
        match self.random.below(20) {
            0 | 1 => {
                self.report.actions += 1;
                users::act(&mut self.api, &mut self.random)
            }
            2..=5 => users::run_pods(&mut self.api, &mut self.random).map(|_| ()),
            6..=9 => self.step_controllers().map(|_| ()),
            10 if self.random.below(8) == 0 => self.restart_controllers(),
            10..=18 => {
                let index = self.random.below(self.agents.len());
                self.step_agent(index)
            }
            _ => {
                let index = self.random.below(self.agents.len());
                let fault = FAULTS[self.random.below(FAULTS.len())];
                *self.report.faults.entry(format!("{fault:?}")).or_default() += 1;
                let agent = self.agents.get_mut(index).context("an agent")?;
                if fault == Fault::Crash {
                    agent.node.now = since_begin(self.api.now);
                }
                agent.fail(&self.api, fault, &mut self.random)
            }
        }
    }

    fn step_agent(&mut self, index: usize) -> Result<()> {
        let agent = self.agents.get_mut(index).context("an agent")?;
        agent.node.now = agent.node.now.max(since_begin(self.api.now));
        if self.random.below(2) == 0 {
            let kind = KINDS[self.random.below(KINDS.len())];
            agent.deliver(&self.api, kind, &mut self.random)?;
        }
        if let Some(did) = agent.node.step() {
            self.report.operations += did.ops.len();
            if !agent.is_disturbed {
                check_refusals(&did.failures)?;
            }
            agent.is_disturbed &= !did.observed;
        }
        Ok(())
    }

    /// The controllers take in some news or do some writes; answers whether there were any.
    fn step_controllers(&mut self) -> Result<bool> {
        let kinds: Vec<ApiKind> = self.manager_watches.keys().copied().collect();
        let first = self.random.below(kinds.len());
        let mut moved = false;
        for offset in 0..kinds.len() {
            let kind = kinds[(first + offset) % kinds.len()];
            if self.take_in(kind)? {
                moved = true;
                break;
            }
        }
        if let Some(job) = self.manager.next(self.api.now) {
            self.perform(job);
            moved = true;
        }
        Ok(moved)
    }

    fn take_in(&mut self, kind: ApiKind) -> Result<bool> {
        let watcher = self.manager_watches.get_mut(&kind).context("every kind is watched")?;
        let count = 1 + self.random.below(4);
        let Ok(events) = self.api.store.watch_next(watcher, count) else {
            self.list_for_manager(kind)?;
            return Ok(true);
        };
        for event in &events {
            if let WatchEvent::Object(what, object) = event {
                let value = object.value.clone();
                match what {
                    EventType::Deleted => self.manager.deleted(kind, value, self.api.now),
                    _ => self.manager.applied(kind, value, self.api.now),
                }
            }
        }
        Ok(!events.is_empty())
    }

    fn perform(&mut self, job: Job) {
        let mut results = Vec::new();
        while let Some(batch) = job.next_batch(&results) {
            match batch {
                Batch::Perform(count) => {
                    for step in job.steps.iter().skip(results.len()).take(count) {
                        results.push(self.api.perform(&step.write));
                    }
                }
                Batch::Skip(count) => results.extend(vec![StepResult::NotTried; count]),
            }
        }
        self.manager.finished(job, results, self.api.now);
    }

    fn restart_controllers(&mut self) -> Result<()> {
        self.manager = Manager::new(manager_config(&self.config, self.api.now));
        api::watched().try_for_each(|kind| self.list_for_manager(kind))
    }

    fn list_for_manager(&mut self, kind: ApiKind) -> Result<()> {
        let (values, revision) = self.api.list(kind).map_err(|status| anyhow!("{status:?}"))?;
        self.manager.listed(kind, values, revision, self.api.now);
        let watcher = self.api.watch(kind, revision).map_err(|status| anyhow!("{status:?}"))?;
        self.manager_watches.insert(kind, watcher);
        Ok(())
    }

    /// No more people, no more faults: everybody finishes what is to be done.
    fn come_to_rest(&mut self) -> Result<()> {
        let end = self.api.now.after(QUIET_AFTER);
        for _ in 0..QUIET_STEPS_MAX {
            let moved =
                users::run_pods(&mut self.api, &mut self.random)? | self.step_controllers()?;
            if moved {
                continue;
            }
            match self.manager.next_deadline().filter(|next| *next <= end) {
                Some(next) => self.api.now = self.api.now.max(next).after(STEP),
                None => return self.settle_agents(),
            }
        }
        bail!("the control plane does not come to rest within {QUIET_STEPS_MAX} steps")
    }

    fn settle_agents(&mut self) -> Result<()> {
        for agent in &mut self.agents {
            for kind in KINDS {
                while agent.deliver(&self.api, kind, &mut self.random)? {}
            }
            // Faults that were laid and not met, and lists that are held back, end with time.
            agent.node.kernel.faults.clear();
            for _ in 0..2 {
                let settled = agent.node.settle().map_err(anyhow::Error::msg)?;
                if !agent.is_disturbed {
                    check_refusals(&settled.failures)?;
                }
                agent.is_disturbed = false;
                agent.node.now += PAST_EVERY_HOLD;
            }
        }
        Ok(())
    }

    fn check(&mut self) -> Result<()> {
        let mut world = World::default();
        for kind in KINDS {
            for mut object in agent::list(&self.api, kind)?.0 {
                reconcile::narrow(&mut object);
                world.set(object);
            }
        }
        self.check_endpoints(&world)?;
        for agent in &mut self.agents {
            let name = &agent.node.facts.name;
            ensure!(
                *agent.node.reconciler.world() == world,
                "{name}: the loop's objects are not those of the API"
            );
            let kernel = agent.node.kernel.state.clone();
            for _ in 0..PACKETS {
                let bytes = random::bytes(self.random.next(), 32);
                let packet = random::packet(
                    &mut Choices::new(&bytes),
                    &world,
                    &self.config,
                    &agent.node.facts,
                );
                let meant = verdict::by_oracle(&world, &self.config, &agent.node.facts, &packet);
                let traced = verdict::by_nft(&kernel.nft, &self.config, &agent.node.facts, &packet);
                ensure!(
                    traced.as_ref() == Ok(&meant.verdict),
                    "{name}: {packet:?}: the API means {} by {}, the rules say {traced:?}",
                    meant.verdict,
                    meant.rule
                );
                self.report.packets += 1;
                let rule = &meant.rule;
                self.report.by_services +=
                    usize::from(matches!(rule, ClusterIp(..) | NodePort(..)));
            }
        }
        Ok(())
    }

    /// The ready endpoints of each Service are exactly its ready pods.
    fn check_endpoints(&self, world: &World) -> Result<()> {
        let (pods, _) = self.api.list(ApiKind::Pod).map_err(|status| anyhow!("{status:?}"))?;
        for service in world.services() {
            let selector = &service.spec.selector;
            let wanted: BTreeSet<String> = pods
                .iter()
                .filter(|pod| {
                    selector.iter().all(|(key, value)| {
                        pod["metadata"]["labels"][key.as_str()] == value.as_str()
                    })
                })
                .filter(|pod| {
                    let conditions = pod["status"]["conditions"].as_array();
                    let ready = conditions.into_iter().flatten();
                    let mut ready =
                        ready.filter(|one| one["type"] == "Ready" && one["status"] == "True");
                    ready.next().is_some() || service.spec.publish_not_ready_addresses
                })
                .filter_map(|pod| pod["status"]["podIP"].as_str().map(String::from))
                .collect();
            let key = service.metadata.key();
            let found: BTreeSet<String> = world
                .slices_of(&key)
                .flat_map(|slice| slice.endpoints)
                .filter(|endpoint| endpoint.conditions.is_ready())
                .flat_map(|endpoint| endpoint.addresses)
                .collect();
            ensure!(found == wanted, "{key}: endpoints {found:?}, ready pods {wanted:?}");
        }
        Ok(())
    }
}

fn manager_config(cluster: &ClusterConfig, started: Timestamp) -> Config {
    Config::new(cluster.clone(), "CA".into(), started)
}

fn node(number: u8) -> Value {
    json!({
        "metadata": {"name": format!("node{number}")},
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": objects::node_address(number, Family::V4).to_string()},
            ],
            "conditions": [{"type": "Ready", "status": "True"}],
            "allocatable": {"pods": "110"},
        },
    })
}

fn since_begin(now: Timestamp) -> Duration {
    now.since(BEGIN)
}

/// A fake kernel refuses what Linux refuses: only faults that were laid may show up, and what
/// depended on the operations that they hit.
fn check_refusals(failures: &[String]) -> Result<()> {
    match failures.first() {
        Some(failure) if !failures.iter().any(|one| one.starts_with("injected fault")) => {
            bail!("the kernel refused: {failure}")
        }
        _ => Ok(()),
    }
}
