//! The node's loop as a state machine: events and the time in, effects and the next deadline out.
//!
//! ```text
//! Event ─▶ handle ─▶ World, dirty keys ─▶ poll ─▶ plan ─▶ render ─▶ diff ─▶ Effect::Apply
//!   ▲                                                                          │
//!   └────────────── Event::Applied, one result an op ◀──────── the shell ──────┘
//! ```
//!
//! It acts at its own pace: events only mark things dirty, and at most one batch of operations is
//! under way. The shell (`agent`, or the simulator) carries the events in and the effects out;
//! what happens is decided here.

mod backoff;
mod changes;
pub mod failover;
mod hold;
mod list;
mod narrow;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use model::world::{DirtyKey, Kind, Object};
use model::{ClusterConfig, NamespacedName, Timestamp, Unreachable, World};
use plan::network::NetworkPlan;
use plan::services::ServicePlan;
use plan::zone::{Exposed, ServiceKind, ServiceNews, ZoneChanges};
use plan::{Desired, Finding, NodeFacts};
use render::implementation::{self, KernelObject};
use render::inventory::{self, Row, RowKind};
use render::nft::StaleFlows;
use render::{Observed, Op, OpError, Program, Touched};

use backoff::Backoff;
use changes::Changes;
pub use changes::{ChangeCounts, TRIGGER_TIME_ANNOTATION, TRIGGER_TIMES_MAX};
use hold::Held;
pub use hold::{HOLD, HOLD_MINIMUM_OBJECTS};
pub use list::{List, Pages};
pub use narrow::narrow;

/// Every kind whose first complete list must be there before anything existing is changed
/// (invariant 3).
pub const KINDS: [Kind; 4] = [Kind::Node, Kind::Service, Kind::EndpointSlice, Kind::ServiceCidr];

/// The kernel is read back this often even when nothing says that it changed.
pub const OBSERVE_PERIOD: Duration = Duration::from_secs(10);

/// A point in time: since any fixed moment of the shell's choice, never going back.
pub type Now = Duration;

/// All that can happen to the loop. One closed list: what is not here triggers no work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A complete list of one kind.
    Listed(List),
    /// An object is present with this value.
    Present(Object),
    /// An object is absent.
    Absent {
        /// Its kind.
        kind: Kind,
        /// Its name.
        key: NamespacedName,
    },
    /// What the node's own links say.
    Facts(NodeFacts),
    /// What does not answer this node, as [`failover`] found.
    Unreachable(Unreachable),
    /// What has names, as the node's DNS worker is configured.
    Exposed(Exposed),
    /// The answer to [`Effect::Observe`].
    Observed(Result<Observed, OpError>),
    /// The answer to [`Effect::Apply`]: one result an op.
    Applied(Vec<Result<(), OpError>>),
    /// The answer to [`Effect::ForgetFlows`].
    FlowsForgotten(Result<(), OpError>),
    /// Somebody changed the kernel: read it back.
    KernelChanged,
}

/// What the shell shall do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Read the kernel back and answer [`Event::Observed`].
    Observe,
    /// Carry out these ops and answer [`Event::Applied`].
    Apply(Arc<[Op]>),
    /// Forget tracked flows that lead elsewhere than Services do, now that the kernel holds these, and
    /// answer [`Event::FlowsForgotten`]: a process before this one, or an operation that failed, may
    /// have left some that no change names.
    ForgetFlows(Vec<StaleFlows>),
    /// Write the CNI configuration: the network is in the kernel, pods can be added.
    WriteConflist(String),
    /// Tell the DNS worker what changed; the first time, everything.
    PublishZone(ZoneChanges),
    /// Tell the operator what somebody else broke; it is being put back.
    TellDamage(Vec<Row>),
}

/// What the operator may ask; printed from the values that the loop uses (invariant 12).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Whether every kind was listed once.
    pub synced: bool,
    /// Whether the kernel holds what was planned last.
    pub converged: bool,
    /// Faults found while planning.
    pub findings: Vec<Finding>,
    /// Operations that failed last time, with the kernel's reason.
    pub failures: Vec<String>,
    /// Alarms of lists that are held back.
    pub held: Vec<String>,
    /// Services in the kernel.
    pub services: usize,
    /// Operations carried out since the start.
    pub operations_total: u64,
    /// What others broke since the start, by kind; each is put back.
    pub damage_total: BTreeMap<RowKind, u64>,
    /// Other nodes whose pods this node has a way to.
    pub peers: usize,
}

/// The loop's state.
#[derive(Debug)]
pub struct Reconciler {
    /// As it was given.
    configured: ClusterConfig,
    /// The same with the ranges of Services that objects add.
    config: ClusterConfig,
    world: World,
    facts: Option<NodeFacts>,
    listed: BTreeSet<Kind>,
    held: BTreeMap<Kind, Held>,
    dirty: BTreeSet<DirtyKey>,
    topology_zone: Option<String>,
    desired: Desired,
    findings: BTreeMap<DirtyKey, Vec<Finding>>,
    program: Program,
    /// Where the program may differ from what is believed.
    touched: Touched,
    /// Whether the program must be rendered anew: what every part of it depends on has changed.
    outdated: bool,
    believed: Option<Observed>,
    underway: Underway,
    backoff: Backoff,
    observe_at: Now,
    /// Flows may be left that no change names.
    flows_due: bool,
    failures: Vec<String>,
    conflist: Option<String>,
    /// What has names.
    exposed: Exposed,
    /// What the DNS worker was not told yet.
    zone_changes: Option<ZoneChanges>,
    /// Whom DNS answers, as the worker was told.
    dns_clients: BTreeSet<IpNet>,
    changes: Changes,
    operations_total: u64,
    damage: Vec<Row>,
    damage_total: BTreeMap<RowKind, u64>,
}

#[derive(Debug, PartialEq, Eq)]
enum Underway {
    Nothing,
    Observing,
    Applying(Arc<[Op]>),
}

impl Reconciler {
    /// A loop that knows nothing yet.
    pub fn new(config: ClusterConfig) -> Self {
        // Also an empty zone is an answer: names do not exist, where silence is a failure.
        let zone_changes = Some(ZoneChanges::none(&config, &Exposed::default()));
        Self {
            configured: config.clone(),
            config,
            world: World::default(),
            facts: None,
            listed: BTreeSet::new(),
            held: BTreeMap::new(),
            dirty: BTreeSet::new(),
            topology_zone: None,
            desired: Desired::default(),
            findings: BTreeMap::new(),
            program: Program::default(),
            touched: Touched::everything(),
            outdated: true,
            believed: None,
            underway: Underway::Nothing,
            backoff: Backoff::default(),
            observe_at: Now::ZERO,
            flows_due: true,
            failures: Vec::new(),
            conflist: None,
            exposed: Exposed::default(),
            zone_changes,
            dns_clients: BTreeSet::new(),
            changes: Changes::default(),
            operations_total: 0,
            damage: Vec::new(),
            damage_total: BTreeMap::new(),
        }
    }

    /// Takes one event in. Work is done by [`Reconciler::poll`].
    pub fn handle(&mut self, event: Event, now: Now) {
        match event {
            Event::Listed(list) => self.listed(list.into_objects(), now),
            Event::Present(mut object) => {
                let trigger = changes::trigger_of(&object);
                narrow(&mut object);
                if let Some(held) = self.held.get_mut(&object.kind()) {
                    held.list.set(object.clone());
                }
                let kind = object.kind();
                let dirty = self.world.set(object);
                if !dirty.is_empty() {
                    self.changes.note_trigger(trigger);
                }
                self.changes.note(kind, &dirty);
                self.touch(dirty);
            }
            Event::Absent { kind, key } => {
                if let Some(held) = self.held.get_mut(&kind) {
                    held.list.remove(&key);
                }
                let dirty = self.world.remove(kind, &key);
                self.changes.note(kind, &dirty);
                self.touch(dirty);
            }
            Event::Facts(facts) => {
                if self.facts.as_ref() != Some(&facts) {
                    // Every plan reads the facts.
                    self.facts = Some(facts);
                    self.outdated = true;
                    self.touch_everything();
                }
            }
            Event::Unreachable(unreachable) => {
                let dirty = self.world.set_unreachable(unreachable);
                self.touch(dirty);
            }
            Event::Exposed(exposed) => self.expose(exposed),
            Event::Observed(result) => self.observed(result, now),
            Event::Applied(results) => self.applied(results, now),
            Event::FlowsForgotten(result) => self.flows_forgotten(result, now),
            Event::KernelChanged => self.observe_at = now,
        }
    }

    /// Does what can be done now and says what the shell shall do. Call it after every batch of
    /// events and when [`Reconciler::deadline`] has come.
    pub fn poll(&mut self, now: Now) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.release_held(now);
        if !self.is_synced() {
            return effects;
        }
        self.plan_dirty();
        // Names wait for nothing that the kernel takes: reading it back, and rules, take the shell
        // milliseconds.
        effects.extend(self.zone_effect());
        if self.underway == Underway::Nothing && self.observe_at <= now {
            self.underway = Underway::Observing;
            self.observe_at = now + OBSERVE_PERIOD;
            effects.push(Effect::Observe);
        }
        if self.underway == Underway::Nothing && self.backoff.is_over(now) {
            let ops: Arc<[Op]> = self.wanted_ops().into();
            if ops.is_empty() {
                if self.believed.is_some() {
                    self.touched = Touched::nothing();
                    self.changes.finish();
                }
                effects.extend(self.conflist_effect());
                match self.flows_effect() {
                    Some(effect) => effects.push(effect),
                    None => self.backoff.succeed(),
                }
            } else {
                self.underway = Underway::Applying(ops.clone());
                effects.push(Effect::Apply(ops));
            }
        }
        if !self.damage.is_empty() {
            effects.push(Effect::TellDamage(std::mem::take(&mut self.damage)));
        }
        effects
    }

    /// When [`Reconciler::poll`] must be called again although nothing happens.
    pub fn deadline(&self) -> Option<Now> {
        let held = self.held.values().map(|held| held.until).min();
        // While the shell is at work, its answer wakes the loop.
        let idle = self.is_synced() && self.underway == Underway::Nothing;
        let observe = idle.then_some(self.observe_at);
        let retry = if idle { self.backoff.until() } else { None };
        [held, observe, retry].into_iter().flatten().min()
    }

    /// What the operator may ask.
    pub fn status(&self) -> Status {
        Status {
            synced: self.is_synced(),
            converged: self.underway == Underway::Nothing
                && self.believed.is_some()
                && self.dirty.is_empty()
                && self.wanted_ops().is_empty(),
            findings: self.findings.values().flatten().cloned().collect(),
            failures: self.failures.clone(),
            held: self.held.values().map(|held| held.alarm.clone()).collect(),
            services: self.desired.services.len(),
            operations_total: self.operations_total,
            damage_total: self.damage_total.clone(),
            peers: self.desired.network.as_ref().map_or(0, |network| network.peers.len()),
        }
    }

    /// What shall be in the kernel beside what is, as read back last; nothing before the first
    /// reading.
    pub fn inventory(&self) -> Vec<Row> {
        let observed = self.believed.as_ref().filter(|_| self.is_synced());
        observed.map_or_else(Vec::new, |observed| inventory::inventory(&self.program, observed))
    }

    /// The kernel objects that implement a Service, as read back last; none before the first
    /// reading.
    pub fn implementation(&self, service: &NamespacedName) -> Vec<KernelObject> {
        let (Some(observed), Some(facts)) = (&self.believed, &self.facts) else { return vec![] };
        let kernel = (&self.program, observed);
        implementation::of_service(service, &self.desired, &self.config, facts, kernel)
    }

    /// What the node's network shall be, as planned last.
    pub fn network(&self) -> Option<&NetworkPlan> {
        self.desired.network.as_ref()
    }

    /// What each Service shall be at this node, as planned last.
    pub fn services(&self) -> &BTreeMap<NamespacedName, ServicePlan> {
        &self.desired.services
    }

    /// What became of the changes that the API told.
    pub fn changes(&self) -> ChangeCounts {
        self.changes.counts()
    }

    /// When what triggered those changes of EndpointSlices happened that the kernel has come to
    /// hold since this was asked last.
    pub fn take_programmed(&mut self) -> impl Iterator<Item = Timestamp> {
        self.changes.take_programmed().into_iter()
    }

    /// Whether a kind was listed completely once.
    pub fn is_listed(&self, kind: Kind) -> bool {
        self.listed.contains(&kind)
    }

    /// The current objects.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// What the kernel shall hold, as planned last.
    pub fn program(&self) -> &Program {
        &self.program
    }

    fn is_synced(&self) -> bool {
        self.facts.is_some() && KINDS.iter().all(|kind| self.listed.contains(kind))
    }

    fn listed(&mut self, list: model::world::List, now: Now) {
        let kind = list.kind();
        let first = self.listed.insert(kind);
        let present = self.world.len_of(kind);
        self.held.remove(&kind);
        if !first && hold::is_suspicious(present, list.len()) {
            self.held.insert(kind, Held::new(present, list, now));
            return;
        }
        let dirty = self.world.replace(list);
        self.changes.note(kind, &dirty);
        self.touch(dirty);
        if first {
            // Also an empty list is news: there may be something to clean up.
            self.touch([DirtyKey::Network]);
        }
    }

    fn release_held(&mut self, now: Now) {
        let due: Vec<Kind> =
            self.held.iter().filter(|(_, held)| held.until <= now).map(|(kind, _)| *kind).collect();
        for kind in due {
            if let Some(held) = self.held.remove(&kind) {
                let dirty = self.world.replace(held.list);
                self.changes.note(kind, &dirty);
                self.touch(dirty);
            }
        }
    }

    fn touch(&mut self, keys: impl IntoIterator<Item = DirtyKey>) {
        self.dirty.extend(keys);
    }

    fn touch_everything(&mut self) {
        let services = self.world.keys(Kind::Service).into_iter();
        let keys: Vec<DirtyKey> =
            services.map(DirtyKey::Service).chain([DirtyKey::Network]).collect();
        self.touch(keys);
    }

    /// Plans of Services read the zone of this node, which a label of its Node says.
    fn follow_zone(&mut self) {
        let Some(facts) = &self.facts else { return };
        let zone = plan::services::zone(&self.world, facts).map(str::to_owned);
        if zone != self.topology_zone {
            self.topology_zone = zone;
            self.touch_everything();
        }
    }

    /// Plans and rules read the ranges of Services, to which objects add (S-13).
    fn follow_service_ranges(&mut self) -> Vec<Finding> {
        let (config, found) = plan::service_ranges::extended(&self.world, &self.configured);
        if config != self.config {
            self.config = config;
            self.renew_zone();
            self.outdated = true;
            self.touch_everything();
        }
        found
    }

    /// All names are told anew.
    fn expose(&mut self, exposed: Exposed) {
        if self.exposed != exposed {
            self.exposed = exposed;
            self.renew_zone();
            self.touch_everything();
        }
    }

    /// What holds for the whole zone has changed.
    fn renew_zone(&mut self) {
        let changes = ZoneChanges::none(&self.config, &self.exposed);
        self.zone_changes.get_or_insert_with(|| changes.clone()).merge(changes);
    }

    /// What changed in the zone since it was told last.
    fn changes_of_zone(&mut self) -> &mut ZoneChanges {
        let (config, exposed) = (&self.config, &self.exposed);
        self.zone_changes.get_or_insert_with(|| ZoneChanges::none(config, exposed))
    }

    /// DNS answers the machines of the cluster (X-26), which Nodes tell, and the endpoints of the API
    /// servers.
    fn follow_dns_clients(&mut self) {
        let says_clients = |key: &DirtyKey| match key {
            DirtyKey::Network => true,
            DirtyKey::Service(name) => plan::zone::is_of_clients(name),
            DirtyKey::Pod(_) => false,
        };
        if !self.dirty.iter().any(says_clients) {
            return;
        }
        let clients = plan::zone::clients(&self.world);
        if clients != self.dns_clients {
            self.dns_clients = clients.clone();
            self.changes_of_zone().clients = Some(clients);
        }
    }

    fn plan_dirty(&mut self) {
        self.follow_dns_clients();
        let mut range_findings = Vec::new();
        if self.dirty.contains(&DirtyKey::Network) {
            self.follow_zone();
            range_findings = self.follow_service_ranges();
        }
        if self.facts.is_none() || self.dirty.is_empty() {
            return;
        }
        let dirty = std::mem::take(&mut self.dirty);
        // Names go soon and plans stay: made in turns, each would lie in a hole of the other.
        self.follow_names(&dirty);
        let planned = dirty.len();
        let mut before = BTreeMap::new();
        for key in dirty {
            let found = match &key {
                DirtyKey::Network => {
                    let mut found = std::mem::take(&mut range_findings);
                    found.extend(self.plan_network());
                    found
                }
                DirtyKey::Service(name) => self.plan_service(name, &mut before),
                DirtyKey::Pod(_) => vec![],
            };
            if found.is_empty() {
                self.findings.remove(&key);
            } else {
                self.findings.insert(key, found);
            }
        }
        if planned > self.desired.services.len() / 2 {
            // The leaves of a tree that has grown in the order of its keys are half empty, those of
            // one that is made at once are full.
            let services = std::mem::take(&mut self.desired.services);
            self.desired.services = services.into_iter().collect();
        }
        let Some(facts) = &self.facts else { return };
        if std::mem::take(&mut self.outdated) {
            self.program = render::render(&self.desired, &self.config, facts);
            self.touched = Touched::everything();
        } else {
            let (desired, config) = (&self.desired, &self.config);
            let touched = render::update(&mut self.program, desired, config, facts, &before);
            self.touched.merge(touched);
        }
    }

    fn plan_network(&mut self) -> Vec<Finding> {
        let Some(facts) = &self.facts else { return vec![] };
        let (plan, found) = plan::network::plan(&self.world, &self.config, facts);
        if plan != self.desired.network {
            self.desired.network = plan;
            self.outdated = true;
        }
        found
    }

    /// What names the Services have now.
    fn follow_names(&mut self, dirty: &BTreeSet<DirtyKey>) {
        for key in dirty {
            let DirtyKey::Service(name) = key else { continue };
            let records = plan::zone::service_records(&self.world, name, &self.exposed);
            let kind = self.world.service(name).as_ref().and_then(ServiceKind::of);
            self.changes_of_zone().services.insert(name.clone(), ServiceNews { records, kind });
        }
    }

    /// Notes the former plan, if it was another, where the program follows change by change.
    fn plan_service(
        &mut self,
        name: &NamespacedName,
        before: &mut BTreeMap<NamespacedName, Option<ServicePlan>>,
    ) -> Vec<Finding> {
        let Some(facts) = &self.facts else { return vec![] };
        let (plan, mut found) = plan::services::plan(&self.world, &self.config, facts, name);
        let unsupported = plan
            .iter()
            .flat_map(|plan| render::unsupported(self.config.service_backend, name, plan));
        found.extend(unsupported);
        if self.desired.services.get(name) == plan.as_ref() {
            return found;
        }
        let former = match plan {
            Some(plan) => self.desired.services.insert(name.clone(), plan),
            None => self.desired.services.remove(name),
        };
        self.changes.replan(former.as_ref(), self.desired.services.get(name));
        if !self.outdated {
            before.insert(name.clone(), former);
        }
        found
    }

    fn wanted_ops(&self) -> Vec<Op> {
        match &self.believed {
            Some(believed) if self.is_synced() => {
                render::diff_touched(&self.program, believed, &self.touched)
            }
            _ => vec![],
        }
    }

    fn observed(&mut self, result: Result<Observed, OpError>, now: Now) {
        self.underway = Underway::Nothing;
        match result {
            // What was read back goes as it came, and what is believed stays where it lies.
            Ok(observed) if self.believed.as_ref() == Some(&observed) => self.damage.clear(),
            Ok(observed) => {
                self.touched = Touched::everything();
                if let Some(believed) = &self.believed {
                    self.damage = inventory::damage(&self.program, believed, &observed);
                    for row in &self.damage {
                        *self.damage_total.entry(row.kind).or_default() += 1;
                    }
                }
                self.believed = Some(observed);
            }
            Err(error) => {
                // Nothing may be concluded: ask again, and write nothing meanwhile.
                self.believed = None;
                self.failures = vec![error.message];
                self.backoff.fail(now);
                self.observe_at = self.backoff.until().unwrap_or(now);
            }
        }
    }

    fn applied(&mut self, results: Vec<Result<(), OpError>>, now: Now) {
        let Underway::Applying(ops) = std::mem::replace(&mut self.underway, Underway::Nothing)
        else {
            return;
        };
        let mut failures = Vec::new();
        for (op, result) in ops.iter().zip(&results) {
            match result {
                Ok(()) => {
                    self.operations_total += 1;
                    let believed = self.believed.as_mut().map(|believed| believed.apply(op));
                    if let Some(Err(error)) = believed {
                        failures.push(format!("the kernel took what it should refuse: {error}"));
                    }
                }
                Err(error) => {
                    self.flows_due |= op.forgets_flows();
                    failures.push(error.message.clone());
                }
            }
        }
        if failures.is_empty() {
            self.backoff.succeed();
        } else {
            // What is believed may be wrong: look again before the retry (invariant 6). And nothing
            // that changes later may name what was made for an operation that failed.
            self.touched = Touched::everything();
            self.backoff.fail(now);
            self.observe_at = self.backoff.until().unwrap_or(now);
        }
        self.failures = failures;
    }

    fn flows_forgotten(&mut self, result: Result<(), OpError>, now: Now) {
        match result {
            Ok(()) => self.failures.clear(),
            Err(error) => {
                self.flows_due = true;
                self.failures = vec![error.message];
                self.backoff.fail(now);
            }
        }
    }

    fn flows_effect(&mut self) -> Option<Effect> {
        let facts = self.facts.as_ref().filter(|_| self.believed.is_some() && self.flows_due)?;
        let stray = render::flows::stray(&self.desired, &self.config, facts);
        self.flows_due = false;
        (!stray.is_empty()).then_some(Effect::ForgetFlows(stray))
    }

    fn conflist_effect(&mut self) -> Option<Effect> {
        self.believed.as_ref()?;
        let text = render::net::conflist(self.desired.network.as_ref()?);
        if self.conflist.as_ref() == Some(&text) {
            return None;
        }
        self.conflist = Some(text.clone());
        Some(Effect::WriteConflist(text))
    }

    fn zone_effect(&mut self) -> Option<Effect> {
        self.zone_changes.take().map(Effect::PublishZone)
    }
}
