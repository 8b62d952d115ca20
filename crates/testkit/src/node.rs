//! One node's loop on some kernel, with a clock that only moves when nothing else can happen: what
//! the agent does with threads and sockets, done step by step.

use std::time::Duration;

use model::world::{Kind, Object};
use model::{ClusterConfig, Unreachable};
use plan::{Desired, Finding, NodeFacts};
use reconcile::{Effect, Event, KINDS, List, Reconciler};
use render::{Kernel, Observed, Op};

/// No settling takes more polls: beyond it the loop does not converge.
pub const SETTLE_POLLS_MAX: usize = 400;

/// A node's loop and its kernel.
#[derive(Debug)]
pub struct NodeLoop<K> {
    /// What the node knows of itself.
    pub facts: NodeFacts,
    /// The cluster's configuration.
    pub config: ClusterConfig,
    /// The loop.
    pub reconciler: Reconciler,
    /// The kernel that it writes.
    pub kernel: K,
    /// Virtual time.
    pub now: Duration,
    /// The CNI configuration that was written last.
    pub conflist: Option<String>,
    /// What does not answer the node: the agent remembers it on disk.
    pub unreachable: Unreachable,
}

/// What happened until the loop had nothing more to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Operations given to the kernel, also failed ones.
    pub ops: Vec<Op>,
    /// Operations that the kernel refused, with its reason.
    pub failures: Vec<String>,
    /// Whether the kernel was read back.
    pub observed: bool,
}

impl<K: Kernel> NodeLoop<K> {
    /// A freshly started loop that has seen nothing yet.
    pub fn new(config: ClusterConfig, facts: NodeFacts, kernel: K) -> Self {
        let reconciler = Self::started(&config, &facts, Duration::ZERO);
        let unreachable = Unreachable::default();
        Self { facts, config, reconciler, kernel, now: Duration::ZERO, conflist: None, unreachable }
    }

    fn started(config: &ClusterConfig, facts: &NodeFacts, now: Duration) -> Reconciler {
        let mut reconciler = Reconciler::new(config.clone());
        reconciler.handle(Event::Facts(facts.clone()), now);
        reconciler
    }

    /// The process dies and a new one starts: it knows nothing, the kernel keeps everything.
    pub fn restart(&mut self) {
        self.reconciler = Self::started(&self.config, &self.facts, self.now);
        self.handle(Event::Unreachable(self.unreachable.clone()));
    }

    /// Takes an event in.
    pub fn handle(&mut self, event: Event) {
        if let Event::Unreachable(unreachable) = &event {
            self.unreachable = unreachable.clone();
        }
        self.reconciler.handle(event, self.now);
    }

    /// A complete list of every kind.
    pub fn list(&mut self, objects: &[Object]) {
        for kind in KINDS.into_iter().chain([Kind::Pod]) {
            self.handle(Event::Listed(List::new(kind, objects.iter().cloned())));
        }
    }

    /// Lets the loop act once, at the present time. Answers what it did, `None` when there was
    /// nothing to do.
    pub fn step(&mut self) -> Option<Settled> {
        let effects = self.reconciler.poll(self.now);
        if effects.is_empty() {
            return None;
        }
        let mut settled = Settled::default();
        for effect in effects {
            match effect {
                Effect::Observe => {
                    settled.observed = true;
                    let observed = self.kernel.observe();
                    self.handle(Event::Observed(observed));
                }
                Effect::Apply(ops) => {
                    let results = self.kernel.apply(&ops);
                    settled.ops.extend_from_slice(&ops);
                    let failed = results.iter().filter_map(|result| result.as_ref().err());
                    settled.failures.extend(failed.map(ToString::to_string));
                    self.handle(Event::Applied(results));
                }
                Effect::ForgetFlows(stray) => {
                    let forgotten = self.kernel.forget_flows(&stray);
                    settled.failures.extend(forgotten.as_ref().err().map(ToString::to_string));
                    self.handle(Event::FlowsForgotten(forgotten));
                }
                Effect::WriteConflist(text) => self.conflist = Some(text),
                Effect::PublishZone(_) | Effect::TellDamage(_) => {}
            }
        }
        Some(settled)
    }

    /// The process dies in the middle of its next step, after so many operations, and a new one
    /// starts. Answers how many it would have done.
    pub fn crash_during_step(&mut self, operations: usize) -> usize {
        let mut wanted = 0;
        for effect in self.reconciler.poll(self.now) {
            if let Effect::Apply(ops) = effect {
                wanted += ops.len();
                self.kernel.apply(&ops[..operations.min(ops.len())]);
            }
        }
        self.restart();
        wanted
    }

    /// Lets the loop act until the kernel holds what it planned; time passes only for back-off.
    ///
    /// # Errors
    /// When it does not converge within [`SETTLE_POLLS_MAX`] polls, with the reasons it gives.
    pub fn settle(&mut self) -> Result<Settled, String> {
        let mut settled = Settled::default();
        for _ in 0..SETTLE_POLLS_MAX {
            if let Some(step) = self.step() {
                settled.ops.extend(step.ops);
                settled.failures.extend(step.failures);
                settled.observed |= step.observed;
                continue;
            }
            let status = self.reconciler.status();
            if status.converged {
                return Ok(settled);
            }
            match self.reconciler.deadline() {
                Some(deadline) => self.now = self.now.max(deadline),
                None => {
                    return Err(format!(
                        "{}: the loop waits for nothing and has not converged: {status:?}",
                        self.facts.name
                    ));
                }
            }
        }
        let status = self.reconciler.status();
        Err(format!(
            "{}: not converged after {SETTLE_POLLS_MAX} polls: {}",
            self.facts.name,
            status.failures.join("; ")
        ))
    }

    /// What the kernel holds of ours.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn observe(&mut self) -> Result<Observed, String> {
        self.kernel.observe().map_err(|error| error.to_string())
    }

    /// What the loop's present objects mean, planned from scratch, and what is wrong with them.
    pub fn desired(&self) -> (Desired, Vec<Finding>) {
        plan::node(self.reconciler.world(), &self.config, &self.facts)
    }
}
