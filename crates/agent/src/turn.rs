//! One turn of the loop: events in, effects out, and what the loop says of itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use ipnet::IpNet;
use kernel::wireguard::KeyStore;
use model::overlay::{OVERLAY_ANNOTATION, WIREGUARD_KEY_ANNOTATION};
use model::pool::BLOCKS_ANNOTATION;
use model::world::Kind;
use model::{Node, Overlay, ServiceBackend, Timestamp, WireguardKey};
use plan::zone::Exposed;
use reconcile::{Effect, Event, OBSERVE_PERIOD, Reconciler};
use render::inventory::Row;
use render::nft::StaleFlows;
use render::{Kernel, Op, OpError};
use tokio::sync::mpsc;

use crate::acceleration::AccelerationStatus;
use crate::blocks::{Claimed, View};
use crate::conntrack::{Conntrack, ConntrackFill};
use crate::edges::Edges;
use crate::feed::Feed;
use crate::forwarding::{self, Forwarding};
use crate::health::{AgentStatus, Pool, Question, UnreachableRows};
use crate::lacking::Lacking;
use crate::metrics::{Measures, unix_seconds};
use crate::monitor::{Heard, KernelMonitor};
use crate::names::FastPathStatus;
use crate::options::Options;
use crate::parameters::{self, Former};
use crate::report::{Network, Note, Report};
use crate::service_health::HealthPorts;
use crate::services::NodeServices;
use crate::{facts, failover, install, paths, pools, services};

/// Events taken in before the loop plans: bursts collapse into one plan.
const BURST_EVENTS: usize = 4096;
/// Plans in a row before other tasks get their turn.
const TURNS_MAX: usize = 8;
/// The kernel is not read back more often than this for what others do to it: bursts of theirs
/// collapse into one reading.
const KERNEL_INTERVAL: Duration = Duration::from_millis(100);
/// Damaged objects that are logged one by one; of more only the number is.
const DAMAGE_LINES_MAX: usize = 20;
/// The proxy is unhealthy when the kernel has not followed for so long: twice the longest time
/// between two synchronisations, as kube-proxy judges itself.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(60);
/// The autoscaler's taint of nodes that it is about to take away (KEP-3836).
const LEAVING_TAINT: &str = "ToBeDeletedByClusterAutoscaler";
/// How rules at the edges of pods are called where repairs are counted.
const POD_EDGE: &str = "pod-edge";

/// The loop with its hands.
pub(crate) struct Agent {
    pub(crate) monitor: KernelMonitor,
    /// What the node has of pools.
    pub(crate) claimed: Claimed,
    pub(crate) paths: paths::Keeper,
    pub(crate) failover: failover::Keeper,
    pub(crate) forwarding: Forwarding,
    options: Options,
    reconciler: Reconciler,
    kernel: kernel::Linux,
    measures: Arc<Mutex<Measures>>,
    started: Instant,
    started_at: Timestamp,
    heard: Heard,
    heard_at: Option<Duration>,
    /// The configuration that shall be there, once the network is.
    conflist: Option<String>,
    installed: Result<(), String>,
    facts: Result<String, String>,
    /// The Node's addresses that the facts were read with.
    facts_for: Vec<IpAddr>,
    edges: Edges,
    edge_repairs: u64,
    edge_error: Option<String>,
    /// The next look at the edges of pods that nothing asks for.
    edges_at: Duration,
    wireguard_key: Option<Result<WireguardKey, String>>,
    pools: Vec<Pool>,
    node_problems: Vec<String>,
    /// Kinds of what was damaged since the start, for Events.
    damaged: BTreeSet<&'static str>,
    lacking: Lacking,
    conntrack: Conntrack,
    /// What kernel parameters were before.
    former: Former,
    health_ports: HealthPorts,
    /// Pods, links or ways have changed since forwarding followed.
    forwarding_due: bool,
    /// Since when the kernel does not hold what is planned.
    pending_since: Option<Duration>,
}

impl Agent {
    pub(crate) fn open(
        options: Options,
        measures: Arc<Mutex<Measures>>,
        paths: paths::Keeper,
        failover: failover::Keeper,
    ) -> Result<Self> {
        let keys = KeyStore::at(&options.places.wireguard_keys);
        let kernel = kernel::Linux::with(keys, options.config.ebpf_maps)?;
        let edges = Edges::open(&options.places.records)?;
        let backend = options.config.service_backend;
        let monitor = KernelMonitor::open(kernel.port_ids().to_vec(), backend)?;
        Ok(Self {
            monitor,
            claimed: Claimed::default(),
            paths,
            failover,
            reconciler: Reconciler::new(options.config.clone()),
            kernel,
            measures,
            started: Instant::now(),
            started_at: now(),
            heard: Heard::default(),
            heard_at: None,
            conflist: None,
            installed: Ok(()),
            facts: Ok(String::new()),
            facts_for: vec![],
            edges,
            edge_repairs: 0,
            edge_error: None,
            edges_at: Duration::ZERO,
            wireguard_key: None,
            pools: vec![],
            node_problems: vec![],
            damaged: BTreeSet::new(),
            lacking: Lacking::default(),
            conntrack: Conntrack::default(),
            former: Former::load(&options.places.run),
            health_ports: HealthPorts::default(),
            forwarding: Forwarding::new(&options.config),
            forwarding_due: true,
            pending_since: Some(Duration::ZERO),
            options,
        })
    }

    /// How long nothing needs to be done unless something happens.
    pub(crate) fn wait(&self) -> Option<Duration> {
        let heard = self.heard_at.filter(|_| self.heard != Heard::default());
        // It follows only when the rest is where it shall be.
        let forwarding = self.forwarding.deadline().filter(|_| self.pending_since.is_none());
        let forwarding = forwarding.map(|at| at.saturating_duration_since(self.started));
        let all = [self.reconciler.deadline(), heard, forwarding];
        let next = all.into_iter().flatten().min()?;
        Some(next.saturating_sub(self.now()))
    }

    pub(crate) fn take_in(&mut self, first: Event, queue: &mut mpsc::Receiver<Event>) {
        let now = self.now();
        let before = self.reconciler.changes();
        self.reconciler.handle(first, now);
        for _ in 0..BURST_EVENTS {
            match queue.try_recv() {
                Ok(event) => self.reconciler.handle(event, now),
                Err(_) => break,
            }
        }
        if self.reconciler.changes() != before {
            self.measures().last_queued_seconds = unix_seconds();
        }
        // Which link is the uplink may depend on the Node's addresses.
        if self.reconciler.is_listed(Kind::Node) && self.node_addresses() != self.facts_for {
            self.read_facts();
        }
    }

    /// Keeps what the kernel told for the next turn that is due.
    pub(crate) fn hear(&mut self, heard: Heard) {
        if heard == Heard::default() {
            return;
        }
        if self.heard == Heard::default() {
            let last = self.heard_at.unwrap_or_default();
            self.heard_at = Some(self.now().max(last + KERNEL_INTERVAL));
        }
        self.heard.add(heard);
    }

    /// The canary: looks at what tells nobody of its changes. Answers whether it found any.
    pub(crate) fn look(&mut self) -> bool {
        let wanted = self.reconciler.program().net.state.as_ref();
        let sysctls = wanted
            .into_iter()
            .flat_map(|state| &state.sysctls)
            .any(|(key, value)| netlink::sysctl::read(key).is_ok_and(|present| present != *value));
        let wrong = sysctls || self.kernel.has_changed_silently();
        if wrong {
            self.reconciler.handle(Event::KernelChanged, self.now());
        }
        // What failed is tried again: the disk may have room, though the file is as it was.
        let to_install = self.conflist.as_ref().is_some_and(|conflist| {
            self.installed.is_err() || !install::is_present(&self.options, conflist)
        });
        if to_install {
            self.install();
        }
        let is_mended = self.forwarding.look();
        let is_told = self.conntrack.look(ConntrackFill::read());
        wrong || to_install || is_mended || is_told
    }

    /// Reads what the node says of itself: its links, its addresses, its files.
    pub(crate) fn read_node(&mut self) {
        self.read_facts();
        if self.wireguard_key.is_none() && self.uses_wireguard() {
            let keys = KeyStore::at(&self.options.places.wireguard_keys);
            self.wireguard_key = Some(keys.load_or_make().map_err(|error| error.to_string()));
        }
        let ranges = self.reconciler.network().map(|network| network.pod_ranges.clone());
        let read = pools::read(&self.options.places.ipam, &ranges.unwrap_or_default());
        self.node_problems.clear();
        match read {
            Ok(pools) => self.pools = pools,
            Err(error) => self.node_problems.push(format!("{error:#}")),
        }
        self.node_problems.extend(install::rival(&self.options.places.cni_configuration));
        if self.edges_at <= self.now() {
            self.mend_edges();
        }
    }

    /// Answers a question; what is asked of the kernel, as it is at this moment.
    pub(crate) fn answer(&mut self, question: Question) {
        // Who asked may have gone.
        match question {
            Question::Network(sender) => {
                let observed = self.kernel.observe();
                self.reconciler.handle(Event::Observed(observed), self.now());
                let mut rows = self.reconciler.inventory();
                rows.extend(self.forwarding.rows());
                let _ = sender.send(rows);
            }
            Question::Services(sender) => {
                let node = self.options.node_name.clone();
                let services = services::report(&self.reconciler);
                let _ = sender.send(NodeServices { node, services });
            }
            Question::Link(link, sender) => {
                let _ = sender.send(self.has_programs(&link));
            }
            Question::Service(key, sender) => {
                let observed = self.kernel.observe();
                self.reconciler.handle(Event::Observed(observed), self.now());
                let config = &self.options.config;
                let _ = sender.send(services::report_one(&self.reconciler, config, &key));
            }
        }
    }

    /// Whether packets of Services that come by a pod's link are translated, where that is the
    /// link's programs' work. A link that has just come gets them now.
    fn has_programs(&mut self, link: &str) -> bool {
        if self.options.config.service_backend != ServiceBackend::Ebpf {
            return true;
        }
        match self.kernel.follow_links(link) {
            Ok(has_programs) => has_programs == Some(true),
            Err(error) => {
                tracing::warn!("the link {link} has no programs of Services yet: {error}");
                false
            }
        }
    }

    /// Names are chosen anew.
    pub(crate) fn expose(&mut self, exposed: Exposed) {
        self.reconciler.handle(Event::Exposed(exposed), self.now());
    }

    /// Tells the path self-test what the plan is, and the plan what the self-test found.
    pub(crate) fn follow_paths(&mut self) {
        let (world, network) = (self.reconciler.world(), self.reconciler.network());
        if let Some(facts) = self.paths.follow(&self.options.config, world, network) {
            self.reconciler.handle(Event::Facts(facts), self.now());
        }
    }

    /// The same between fail-over and the plan.
    pub(crate) fn follow_failover(&mut self) {
        let (world, network) = (self.reconciler.world(), self.reconciler.network());
        if let Some(unreachable) = self.failover.follow(world, network) {
            self.reconciler.handle(Event::Unreachable(unreachable), self.now());
        }
    }

    /// Carries out effects until there are none. What changed in the zone was heard of at `heard_us`.
    pub(crate) async fn work(&mut self, feed: &Feed, heard_us: u64) {
        self.act_on_heard();
        let began = Instant::now();
        let mut touched = false;
        for _ in 0..TURNS_MAX {
            let effects = self.reconciler.poll(self.now());
            if effects.is_empty() {
                break;
            }
            for effect in effects {
                touched |= matches!(effect, Effect::Observe | Effect::Apply(_));
                match effect {
                    Effect::Observe => self.observe(),
                    Effect::Apply(ops) => self.apply(&ops),
                    Effect::ForgetFlows(stray) => self.forget_flows(&stray),
                    Effect::WriteConflist(text) => self.write_conflist(text),
                    Effect::TellDamage(rows) => self.tell_damage(&rows),
                    Effect::PublishZone(changes) => {
                        feed.publish(changes, heard_us);
                        // Who answers names has them before the effects behind: reading the kernel
                        // takes the longer the larger the cluster is.
                        tokio::task::yield_now().await;
                    }
                }
            }
        }
        let converged = self.reconciler.status().converged;
        if converged {
            self.lacking.clear();
            self.follow_forwarding();
        }
        self.pending_since = match self.pending_since {
            _ if converged => None,
            since => since.or(Some(self.now())),
        };
        self.health_ports.follow(self.reconciler.services().iter(), self.is_healthy());
        let (changes, programmed) = (self.reconciler.changes(), self.reconciler.take_programmed());
        let mut measures = self.measures.lock().unwrap_or_else(PoisonError::into_inner);
        measures.changes = changes;
        measures.record_programmed(programmed, self.started_at, now());
        if touched {
            measures.sync.record(began.elapsed());
            if converged {
                measures.last_sync_seconds = unix_seconds();
            }
        }
    }

    pub(crate) fn status(&self) -> AgentStatus {
        let status = self.reconciler.status();
        let mut problems: Vec<String> = status.failures;
        problems.extend(self.facts.clone().err());
        problems.extend(self.installed.clone().err());
        problems.extend(self.edge_error.clone());
        problems.extend(self.wireguard_key.clone().and_then(Result::err));
        problems.extend(self.node_problems.clone());
        problems.extend(self.forwarding.problems());
        problems.extend(status.held);
        problems.extend(self.claimed.problems.values().cloned());
        problems.extend(self.health_ports.problems().cloned());
        problems.extend(self.conntrack.problem());
        let findings = status.findings.iter().chain(self.paths.findings());
        let findings = findings.map(|found| format!("{}: {}", found.about, found.message));
        problems.extend(findings);
        let mut repairs: BTreeMap<String, u64> = status
            .damage_total
            .iter()
            .map(|(kind, count)| (kind.name().to_owned(), *count))
            .collect();
        if self.edge_repairs > 0 {
            repairs.insert(POD_EDGE.to_owned(), self.edge_repairs);
        }
        if self.forwarding.repairs() > 0 {
            repairs.insert(forwarding::REPAIRED.to_owned(), self.forwarding.repairs());
        }
        AgentStatus {
            node: self.options.node_name.clone(),
            uplink: self.facts.clone().unwrap_or_default(),
            synced: status.synced,
            converged: status.converged,
            ready: self.is_ready(),
            healthy: self.is_healthy(),
            leaving: self.is_leaving(),
            service_backend: self.options.config.service_backend,
            masquerade_ports: self.options.config.masquerade_ports,
            services: status.services,
            peers: status.peers,
            pods: self.edges.pods(),
            operations_total: status.operations_total,
            repairs,
            pools: self.pools.clone(),
            paths: self.paths.rows(),
            unreachable: UnreachableRows::of(self.failover.unreachable()),
            // Counts are read when somebody asks.
            dns_fast_path: FastPathStatus::default(),
            forwarding: self.forwarding.status(),
            ebpf_maps: Vec::new(),
            service_acceleration: self.acceleration(),
            conntrack: None,
            problems,
        }
    }

    fn acceleration(&self) -> Option<AccelerationStatus> {
        let uplink = self.facts.clone().unwrap_or_default();
        AccelerationStatus::new(&self.options.config, &uplink, self.kernel.uplink_program())
    }

    /// What the API shall be told.
    pub(crate) fn report(&self) -> Report {
        let status = self.reconciler.status();
        let about_node = format!("Node {}", self.options.node_name);
        let network = if self.is_ready() {
            Some(Network::Up)
        } else if status.synced && self.reconciler.network().is_none() {
            let own = status.findings.iter().find(|finding| finding.about == about_node);
            own.map(|finding| Network::Down(finding.message.clone()))
        } else {
            // While it comes up, or after a failure, the Node says what it said last.
            None
        };
        let finding = |found: &plan::Finding| Note {
            about: found.about.clone(),
            uid: self.uid(&found.about),
            reason: "FlatnetFinding",
            message: found.message.clone(),
        };
        let own = |reason: &'static str, message: String| Note {
            about: about_node.clone(),
            uid: String::new(),
            reason,
            message,
        };
        let damage = |kind: &&'static str| {
            let message = format!(
                "another program changed objects of kind {kind} that flatnet keeps on this node; \
                 they were put back: the agent's log names them"
            );
            own("FlatnetRepaired", message)
        };
        let exhausted = |problem: &String| own("FlatnetPoolExhausted", problem.clone());
        let lacking = |advice: &'static str| own("FlatnetKernelLacksFeature", advice.to_owned());
        let by_kernel = |problem: String| own("FlatnetForwardingByKernel", problem);
        let pressure = |problem: String| own("FlatnetConntrackPressure", problem);
        let left_out = |note: Note| Note { uid: self.uid(&note.about), ..note };
        let notes = status
            .findings
            .iter()
            .chain(self.paths.findings())
            .map(finding)
            .chain(self.damaged.iter().map(damage))
            .chain(self.claimed.problems.values().map(exhausted))
            .chain(self.failover.notes().into_iter().map(left_out))
            .chain(self.lacking.advice().map(lacking))
            .chain(self.forwarding.refusal().map(by_kernel))
            .chain(self.conntrack.problem().map(pressure))
            .collect();
        let kernel = self.lacking.condition(status.converged);
        let conditions = self.paths.condition().into_iter().chain(kernel);
        let conditions = conditions.chain(self.forwarding.condition());
        let accelerated = self.acceleration().map(|status| status.condition());
        let conditions = conditions.chain(accelerated);
        let conditions = conditions.chain(self.conntrack.condition()).collect();
        Report { network, conditions, annotations: self.annotations(), notes }
    }

    /// What addresses of pods depend on.
    pub(crate) fn view(&self) -> View {
        let world = self.reconciler.world();
        let Some(network) = self.reconciler.network() else { return View::default() };
        let node = world.node(&self.options.node_name);
        let is_block = |range: &&IpNet| network.blocks.contains(*range);
        View {
            node_labels: node.map(|node| node.metadata.labels.clone()).unwrap_or_default(),
            nodes: world.nodes().map(|node| node.name().to_owned()).collect(),
            node_ranges: network.pod_ranges.iter().filter(|it| !is_block(it)).copied().collect(),
            blocks: network.blocks.clone(),
        }
    }

    /// Of the own Node.
    fn annotations(&self) -> BTreeMap<String, String> {
        let key = self.wireguard_key.as_ref().and_then(|key| key.as_ref().ok());
        let key = key.map(|key| (WIREGUARD_KEY_ANNOTATION.to_owned(), key.to_string()));
        let blocks = self.claimed.blocks.as_ref().map(|blocks| {
            let blocks: Vec<String> = blocks.iter().map(ToString::to_string).collect();
            (BLOCKS_ANNOTATION.to_owned(), blocks.join(","))
        });
        let (world, network) = (self.reconciler.world(), self.reconciler.network());
        let detours = self.paths.annotation(&self.options.config, world, network);
        key.into_iter().chain(blocks).chain(detours).collect()
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn is_ready(&self) -> bool {
        self.conflist.is_some() && self.installed.is_ok()
    }

    fn is_healthy(&self) -> bool {
        self.pending_since.is_none_or(|since| self.now().saturating_sub(since) < HEALTH_TIMEOUT)
    }

    fn is_leaving(&self) -> bool {
        let node = self.reconciler.world().node(&self.options.node_name);
        node.is_some_and(|node| {
            node.metadata.deletion_timestamp.is_some()
                || node.spec.taints.iter().any(|taint| taint.key == LEAVING_TAINT)
        })
    }

    /// Whether this node needs a key: it may come to send encrypted packets, or to receive some.
    fn uses_wireguard(&self) -> bool {
        let config = &self.options.config;
        let asks = |node: &Arc<Node>| {
            let asked = node.metadata.annotations.get(OVERLAY_ANNOTATION);
            asked.is_some_and(|asked| *asked == Overlay::Wireguard.to_string())
        };
        config.overlay == Overlay::Wireguard
            || config.also_receive.contains(&Overlay::Wireguard)
            || self.reconciler.world().nodes().any(asks)
    }

    fn node_addresses(&self) -> Vec<IpAddr> {
        let node = self.reconciler.world().node(&self.options.node_name);
        node.map_or_else(Vec::new, |node| node.internal_ips().collect())
    }

    fn uid(&self, about: &str) -> String {
        let Some((namespace, name)) =
            about.strip_prefix("Service ").and_then(|name| name.split_once('/'))
        else {
            return String::new();
        };
        let key = model::NamespacedName::new(namespace, name);
        let service = self.reconciler.world().service(&key);
        service.map_or_else(String::new, |service| service.metadata.uid.clone())
    }

    fn act_on_heard(&mut self) {
        let due = self.heard_at.is_some_and(|at| at <= self.now());
        if !due || self.heard == Heard::default() {
            return;
        }
        let heard = std::mem::take(&mut self.heard);
        if heard.kernel {
            self.reconciler.handle(Event::KernelChanged, self.now());
        }
        if heard.facts {
            self.read_facts();
            self.paths.mended();
        }
        if heard.edge {
            self.mend_edges();
        }
        self.forwarding_due |= heard.kernel || heard.edge;
    }

    /// Brings eBPF forwarding to the pods and ways that there are, once Services are where they
    /// shall be.
    fn follow_forwarding(&mut self) {
        if self.forwarding.repairs() > 0 {
            self.damaged.insert(forwarding::REPAIRED);
        }
        if !std::mem::take(&mut self.forwarding_due) && !self.forwarding.is_due() {
            return;
        }
        self.forwarding.make_way();
        let Some(plan) = self.reconciler.network() else { return };
        match self.edges.attachments() {
            Ok(attachments) => self.forwarding.follow(plan, &self.options.config, &attachments),
            Err(error) => tracing::warn!("forwarding keeps the pods that it has: {error:#}"),
        }
    }

    fn mend_edges(&mut self) {
        self.edges_at = self.now() + OBSERVE_PERIOD;
        self.edge_error = match self.edges.mend() {
            Ok(damages) => {
                for damage in damages.iter().take(DAMAGE_LINES_MAX) {
                    tracing::warn!(
                        kind = POD_EDGE,
                        "another program changed what flatnet keeps; it is put back: {damage}"
                    );
                }
                if !damages.is_empty() {
                    self.damaged.insert(POD_EDGE);
                }
                self.edge_repairs += damages.len() as u64;
                None
            }
            Err(error) => {
                let error = format!("the rules at the edges of pods are not kept: {error:#}");
                tracing::warn!("{error}");
                Some(error)
            }
        };
    }

    /// Running pods follow the MTU that new ones get.
    fn set_mtu(&mut self) {
        let Some(mtu) = self.reconciler.network().map(|network| network.mtu) else { return };
        match self.edges.set_mtu(mtu) {
            Ok(faults) => faults.iter().for_each(|fault| tracing::warn!("{fault}")),
            Err(error) => tracing::warn!("the MTU of running pods is not looked at: {error:#}"),
        }
    }

    fn read_facts(&mut self) {
        let uplink = self.options.uplink.as_deref();
        // Without a name the uplink is known when the Node is: a wrong one would be built on.
        if uplink.is_none() && !self.reconciler.is_listed(Kind::Node) {
            return;
        }
        let addresses = self.node_addresses();
        let read = facts::read(&self.options.node_name, uplink, &addresses);
        self.facts_for = addresses;
        self.facts = match read {
            Ok(facts) => {
                let uplink = facts.uplink.clone();
                let facts = self.paths.amend(facts);
                self.reconciler.handle(Event::Facts(facts), self.now());
                let listening = self.monitor.set_uplink(&uplink);
                listening.map(|()| uplink).map_err(|error| format!("{error:#}"))
            }
            Err(error) => Err(format!("{error:#}")),
        };
        if let Err(error) = &self.facts {
            tracing::warn!("{error}");
        }
    }

    fn observe(&mut self) {
        let observed = self.kernel.observe();
        self.reconciler.handle(Event::Observed(observed), self.now());
    }

    fn apply(&mut self, ops: &[Op]) {
        self.forwarding.make_way();
        self.forwarding_due = true;
        self.note_former(ops);
        let results = self.kernel.apply(ops);
        self.note_failures(ops, &results);
        self.lacking.note(ops, &results);
        self.reconciler.handle(Event::Applied(results), self.now());
    }

    fn forget_flows(&mut self, stray: &[StaleFlows]) {
        let forgotten = self.kernel.forget_flows(stray);
        if let Err(error) = &forgotten {
            tracing::warn!(errno = error.errno, "{}", error.message);
            self.measures().failures_total += 1;
        }
        self.reconciler.handle(Event::FlowsForgotten(forgotten), self.now());
    }

    /// Before they change: who ends in between leaves a note too many, and none too few.
    fn note_former(&mut self, ops: &[Op]) {
        let run = &self.options.places.run;
        if self.former.note(ops, parameters::present)
            && let Err(error) = self.former.write(run)
        {
            tracing::warn!("uninstall will not set kernel parameters back: {error:#}");
        }
    }

    fn write_conflist(&mut self, text: String) {
        self.conflist = Some(text);
        self.install();
        self.set_mtu();
    }

    fn tell_damage(&mut self, rows: &[Row]) {
        self.damaged.extend(rows.iter().map(|row| row.kind.name()));
        log_damage(rows);
        self.paths.mended();
    }

    fn install(&mut self) {
        let Some(conflist) = &self.conflist else { return };
        let installed = install::all(&self.options, conflist);
        if let Err(error) = &installed {
            tracing::warn!("pods cannot be added: {error:#}");
        }
        self.installed = installed.map_err(|error| format!("{error:#}"));
    }

    fn note_failures(&self, ops: &[Op], results: &[Result<(), OpError>]) {
        let mut measures = self.measures();
        for (op, result) in ops.iter().zip(results) {
            let Err(error) = result else { continue };
            tracing::warn!(errno = error.errno, "{}", error.message);
            measures.failures_total += 1;
            match op {
                Op::Nft(_) => measures.nftables_failures_total += 1,
                Op::Iptables(_) => measures.iptables_failures_total += 1,
                Op::Net(_) | Op::Ipvs(_) | Op::Ebpf(_) => {}
            }
        }
    }

    fn measures(&self) -> MutexGuard<'_, Measures> {
        self.measures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn now() -> Timestamp {
    Timestamp::from_microseconds((unix_seconds() * 1e6) as i64)
}

/// Names what was damaged and how: the operator looks for who did it.
fn log_damage(rows: &[Row]) {
    for row in rows.iter().take(DAMAGE_LINES_MAX) {
        tracing::warn!(
            kind = row.kind.name(),
            name = row.name,
            wanted = row.wanted.as_deref().unwrap_or("absent"),
            present = row.present.as_deref().unwrap_or("absent"),
            "another program changed what flatnet keeps; it is put back"
        );
    }
    if let Some(more) = rows.len().checked_sub(DAMAGE_LINES_MAX).filter(|more| *more > 0) {
        tracing::warn!("and {more} further objects");
    }
}
