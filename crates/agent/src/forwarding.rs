//! eBPF forwarding of pods' packets (`bpf/forward.c`): where Services are in eBPF too. What it does
//! not take, and everything where the kernel refuses the programs, goes by the kernel's own
//! path, which is complete without it.
//!
//! ```text
//! another backend of Services ─▶ it is taken away before that backend's first operation
//! ways to other nodes, records of pods ─▶ render::bpf ─▶ kernel::bpf (reads, compares, writes)
//! the canary ─▶ the same again: programs and maps tell nobody of their changes (R-22)
//! ```
//!
//! Links that have just come get their programs when the node has settled ([`Settling`]), from a
//! thread of their own: the kernel takes a tenth of a second to check the programs, and more for many
//! links, and Services do not wait for that.
//!
//! What a killed agent left forwards on (invariant 14).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use kernel::bpf::{self, FILE_SYSTEM, node, sockets};
use kernel::nft::{flows, handshakes};
use model::{Attachment, ClusterConfig, ServiceBackend};
use plan::network::NetworkPlan;
use render::OpError;
use render::bpf::Way;
use render::inventory::{Row, RowKind};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::report::Condition;
use crate::settling::Settling;

/// What the kernel refused is not tried again earlier than this.
const RETRY: Duration = Duration::from_secs(60);
/// Flows of another backend are looked for this often, until there is none.
const TRANSLATED_PERIOD: Duration = Duration::from_secs(5);
/// How attachments and entries are called where repairs are counted.
pub(crate) const REPAIRED: &str = "ebpf-forwarding";
/// The Node's condition.
const CONDITION: &str = "FlatnetForwarding";

/// By which path packets of pods go, and what became of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ForwardingStatus {
    /// Whether forwarding shall be in eBPF, as Services are.
    pub wanted: bool,
    /// Whether it is.
    pub ebpf: bool,
    /// Why it is not, where it is not.
    pub reason: String,
    /// Pods of this node that it forwards.
    pub pods: usize,
    /// Pods of this node whose packets take the kernel's path, since something there has a say in
    /// them.
    pub pods_by_kernel: usize,
    /// Ranges of pods of other nodes that it knows.
    pub remotes: usize,
    /// Whether connections between pods of this node are short-cut at the socket.
    pub socket_fast_path: bool,
    /// Packets by what became of them, since the programs were loaded.
    pub packets: BTreeMap<String, u64>,
}

/// The keeper of the programs and their maps.
pub(crate) struct Forwarding {
    wanted: bool,
    with_sockets: bool,
    pod_cidrs: Vec<IpNet>,
    /// None of it while a thread has it.
    loaded: Option<bpf::Forwarding>,
    underway: Option<Underway>,
    state: State,
    /// What the kernel was brought to, whole.
    held: Option<render::bpf::Forwarding>,
    translated: Translated,
    /// Programs by link, as they were asked for last.
    asked: BTreeSet<(String, &'static str)>,
    settling: Settling,
    /// Something waits until the node has settled, or until the thread has ended.
    postponed: bool,
    /// What could not be written, or not at the sockets.
    problems: Vec<String>,
    packets: BTreeMap<&'static str, u64>,
    repairs: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// It is not wanted, and nothing of it is there.
    Away,
    /// Nobody knows yet what is wanted; what a former agent left forwards on.
    Waiting,
    Forwarding,
    /// The kernel refuses until it is asked again.
    Refused(String, Instant),
}

/// A thread that brings the kernel to what is wanted.
struct Underway {
    wanted: render::bpf::Forwarding,
    done: oneshot::Receiver<Result<Written, OpError>>,
    thread: Option<JoinHandle<()>>,
}

/// What a thread answers.
type Written = (bpf::Forwarding, Done);

/// What was written.
struct Done {
    changes: Vec<String>,
    /// What could not be written, or not at the sockets.
    problems: Vec<String>,
    packets: BTreeMap<&'static str, u64>,
}

/// Pods with flows that another backend translates in connection tracking: their answers must come
/// back there. None begins while Services are in eBPF.
#[derive(Default)]
struct Translated {
    pods: BTreeSet<IpAddr>,
    read_at: Option<Instant>,
}

impl Forwarding {
    pub(crate) fn new(config: &ClusterConfig) -> Self {
        let mut settling = Settling::default();
        // With the agent come the first pods.
        settling.note(Instant::now());
        Self {
            wanted: config.service_backend == ServiceBackend::Ebpf && config.ebpf_forwarding,
            with_sockets: config.socket_fast_path,
            pod_cidrs: config.pod_cidrs.clone(),
            loaded: None,
            underway: None,
            state: State::Waiting,
            held: None,
            translated: Translated::default(),
            asked: BTreeSet::new(),
            settling,
            postponed: false,
            problems: vec![],
            packets: BTreeMap::new(),
            repairs: 0,
        }
    }

    /// Takes it away where it is not wanted: it would lead the answers of another backend's Services
    /// astray. To be called before that backend is written.
    pub(crate) fn make_way(&mut self) {
        if self.wanted || self.state == State::Away || self.is_refused() {
            return;
        }
        match remove() {
            Ok(was_there) => {
                self.become_state(State::Away);
                if was_there {
                    self.forget_half_seen();
                }
            }
            Err(error) => self.refuse(&error),
        }
    }

    /// A connection whose first packet took the kernel's path before the programs were there goes on
    /// where it is tracked.
    fn forget_half_seen(&self) {
        if let Err(error) = handshakes::forget_half_seen(&self.pod_cidrs) {
            tracing::warn!(
                "connections that pods began just when eBPF came may hang for two minutes: the \
                 kernel does not forget their unfinished handshakes: {error}"
            );
        }
    }

    /// Brings the kernel to the ways and pods that there are now.
    pub(crate) fn follow(
        &mut self,
        plan: &NetworkPlan,
        config: &ClusterConfig,
        attachments: &[Attachment],
    ) {
        if !self.wanted || self.is_refused() {
            return;
        }
        let mut wanted = render::bpf::render(plan, config, attachments);
        self.postponed = self.is_settling(&wanted) || self.underway.is_some();
        if self.postponed {
            return;
        }
        match self.translated.read(&wanted) {
            Ok(()) => {
                wanted.leave_to_stack(&self.translated.pods);
                self.begin(wanted);
            }
            Err(error) => self.refuse(&error),
        }
    }

    /// Waits until the thread has brought the kernel to what is wanted.
    pub(crate) async fn written(&mut self) {
        let Some(underway) = &mut self.underway else { return std::future::pending().await };
        let done = (&mut underway.done).await;
        if let Some(underway) = self.underway.take() {
            self.end_turn(underway.wanted.clone(), done.unwrap_or_else(|_| Err(ended_early())));
        }
    }

    /// Looks after what nobody tells of. Answers whether it found anything.
    pub(crate) fn look(&mut self) -> bool {
        let is_idle = self.underway.is_none() && !self.is_refused();
        let Some(held) = self.held.clone().filter(|_| is_idle) else { return false };
        let before = self.repairs;
        let done = write(self.loaded.take(), &held, self.with_sockets);
        self.end_turn(held, done);
        self.repairs != before
    }

    /// Whether it is time to look again though nothing has changed: for flows of another backend
    /// that keep pods off, since the kernel refused, or since the node has settled, which is said
    /// once.
    pub(crate) fn is_due(&mut self) -> bool {
        if self.underway.is_some() {
            return false;
        }
        let now = Instant::now();
        let has_settled = self.postponed && self.settling.end(now).is_none();
        self.postponed &= !has_settled;
        match &self.state {
            State::Refused(_, until) => now >= *until,
            _ => has_settled || !self.translated.pods.is_empty() && self.translated.is_due(),
        }
    }

    /// When what is put off is due; `None`: nothing is, or the end of the thread wakes the loop.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let now = Instant::now();
        let is_put_off = self.postponed && self.underway.is_none();
        is_put_off.then(|| self.settling.end(now).unwrap_or(now))
    }

    pub(crate) fn repairs(&self) -> u64 {
        self.repairs
    }

    pub(crate) fn status(&self) -> ForwardingStatus {
        let held = self.held.as_ref().filter(|_| self.state == State::Forwarding);
        let pods = |by_kernel: bool| {
            let pods = held.into_iter().flat_map(|held| held.pods.values());
            pods.filter(|pod| pod.via_stack == by_kernel).count()
        };
        let packets = self.packets.iter().map(|(what, count)| ((*what).to_owned(), *count));
        ForwardingStatus {
            wanted: self.wanted,
            ebpf: held.is_some(),
            reason: self.reason(),
            pods: pods(false),
            pods_by_kernel: pods(true),
            remotes: held.map_or(0, |held| {
                held.remotes.values().filter(|remote| remote.way != Way::Node).count()
            }),
            socket_fast_path: held.is_some() && self.with_sockets,
            packets: packets.collect(),
        }
    }

    /// What is wrong, a sentence each.
    pub(crate) fn problems(&self) -> impl Iterator<Item = String> {
        self.refusal().into_iter().chain(self.problems.clone())
    }

    /// Why the kernel forwards though eBPF shall, or the other way round.
    pub(crate) fn refusal(&self) -> Option<String> {
        match &self.state {
            State::Refused(reason, _) => Some(reason.clone()),
            _ => None,
        }
    }

    /// The Node's condition; `None` while nobody knows, and where it is not wanted.
    pub(crate) fn condition(&self) -> Option<Condition> {
        let (status, reason, message) = match &self.state {
            _ if !self.wanted => return None,
            State::Waiting | State::Away => return None,
            State::Forwarding => {
                let message = "packets of pods are forwarded by eBPF programs at their links";
                ("True", "EbpfForwards", message.to_owned())
            }
            State::Refused(reason, _) => ("False", "KernelForwards", reason.clone()),
        };
        Some(Condition { kind: CONDITION, status, reason, message })
    }

    /// What is attached, beside what shall be.
    pub(crate) fn rows(&mut self) -> Vec<Row> {
        self.wait_for_thread();
        let (Some(loaded), Some(held)) = (&mut self.loaded, &self.held) else { return vec![] };
        let present = loaded.observe().map(|seen| seen.attached).unwrap_or_default();
        let wanted: BTreeSet<(String, &str)> = held.programs().collect();
        let attached = |is_so: bool| is_so.then(|| "attached".to_owned());
        let row = |place: &(String, &'static str)| Row {
            kind: RowKind::Program,
            name: format!("{} at {}", place.1, place.0),
            wanted: attached(wanted.contains(place)),
            present: attached(present.contains(place)),
            different: wanted.contains(place) != present.contains(place),
        };
        wanted.union(&present).map(row).collect()
    }

    /// Whether links still come.
    fn is_settling(&mut self, wanted: &render::bpf::Forwarding) -> bool {
        let now = Instant::now();
        let asked: BTreeSet<_> = wanted.programs().collect();
        if !asked.is_subset(&self.asked) {
            self.settling.note(now);
        }
        self.asked = asked;
        self.settling.end(now).is_some()
    }

    fn begin(&mut self, wanted: render::bpf::Forwarding) {
        let (told, done) = oneshot::channel();
        let (loaded, asked, with_sockets) = (self.loaded.take(), wanted.clone(), self.with_sockets);
        // Who would hear of it may have gone.
        let work = move || drop(told.send(write(loaded, &asked, with_sockets)));
        match std::thread::Builder::new().name("forwarding".into()).spawn(work) {
            Ok(thread) => self.underway = Some(Underway { wanted, done, thread: Some(thread) }),
            Err(error) => self.refuse(&OpError {
                errno: error.raw_os_error().unwrap_or_default(),
                message: format!(
                    "eBPF forwarding is not brought to pods and ways: cannot start a thread: \
                     {error}; look at the limits of processes and memory"
                ),
            }),
        }
    }

    /// Who asks what there is waits for what is being made.
    fn wait_for_thread(&mut self) {
        let Some(mut underway) = self.underway.take() else { return };
        underway.join();
        let done = underway.done.try_recv().unwrap_or_else(|_| Err(ended_early()));
        self.end_turn(underway.wanted.clone(), done);
    }

    fn end_turn(&mut self, wanted: render::bpf::Forwarding, done: Result<Written, OpError>) {
        match done {
            Ok((loaded, done)) => {
                self.note(wanted, done);
                self.loaded = Some(loaded);
                self.become_state(State::Forwarding);
            }
            Err(error) => self.refuse(&error),
        }
    }

    fn note(&mut self, wanted: render::bpf::Forwarding, done: Done) {
        // Somebody else's doing, where all of this had been written.
        let is_repair = self.held.as_ref() == Some(&wanted) && self.problems.is_empty();
        for change in &done.changes {
            match is_repair {
                true => tracing::warn!(
                    kind = REPAIRED,
                    "another program changed what flatnet keeps; it is put back: {change}"
                ),
                false => tracing::debug!("forwarding: {change}"),
            }
        }
        self.repairs += if is_repair { done.changes.len() as u64 } else { 0 };
        (self.packets, self.problems, self.held) = (done.packets, done.problems, Some(wanted));
    }

    fn refuse(&mut self, error: &OpError) {
        (self.loaded, self.held) = (None, None);
        self.become_state(State::Refused(error.message.clone(), Instant::now() + RETRY));
    }

    fn is_refused(&self) -> bool {
        matches!(&self.state, State::Refused(_, until) if Instant::now() < *until)
    }

    /// Says it once.
    fn become_state(&mut self, state: State) {
        let before = self.reason();
        let is_new = self.state != state;
        self.state = state;
        match &self.state {
            State::Forwarding if is_new => tracing::info!("eBPF forwards packets of pods"),
            State::Refused(reason, _) if *reason != before => tracing::warn!("{reason}"),
            _ => {}
        }
    }

    fn reason(&self) -> String {
        match &self.state {
            State::Forwarding => String::new(),
            State::Refused(reason, _) => reason.clone(),
            _ if self.wanted => "the node has not settled yet".to_owned(),
            _ => "it is not asked for, or Services are not in eBPF".to_owned(),
        }
    }
}

impl Translated {
    fn is_due(&self) -> bool {
        self.read_at.is_none_or(|at| at.elapsed() >= TRANSLATED_PERIOD)
    }

    /// Once there is none, none is looked for any more.
    fn read(&mut self, wanted: &render::bpf::Forwarding) -> Result<(), OpError> {
        let is_over = self.read_at.is_some() && self.pods.is_empty();
        if is_over || !self.is_due() {
            return Ok(());
        }
        let ends = flows::translated_ends()
            .map_err(|error| OpError { errno: error.errno, message: error.to_string() })?;
        let own = wanted.pods.values().filter(|pod| !pod.via_stack);
        let own: BTreeSet<IpAddr> = own.flat_map(|pod| pod.addresses.iter().copied()).collect();
        self.pods = ends.intersection(&own).copied().collect();
        self.read_at = Some(Instant::now());
        Ok(())
    }
}

impl Underway {
    fn join(&mut self) {
        // One that panicked has told nobody anything, which is noticed.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Nothing is written any more once the agent has ended.
impl Drop for Underway {
    fn drop(&mut self) {
        self.join();
    }
}

/// Brings the kernel to what is wanted, with what is loaded or anew.
fn write(
    loaded: Option<bpf::Forwarding>,
    wanted: &render::bpf::Forwarding,
    with_sockets: bool,
) -> Result<Written, OpError> {
    let mut loaded = match loaded {
        Some(loaded) => loaded,
        None => bpf::Forwarding::open(FILE_SYSTEM.as_ref())?,
    };
    let done = loaded.apply(wanted)?;
    let packets = loaded.counters()?;
    let sockets = match with_sockets {
        true => load_sockets(),
        false => sockets::remove(FILE_SYSTEM.as_ref()),
    };
    let problems = done.failures.into_iter().chain(sockets.err()).map(|error| error.message);
    let problems = problems.collect();
    Ok((loaded, Done { changes: done.changes, problems, packets }))
}

fn ended_early() -> OpError {
    OpError {
        errno: 0,
        message: "eBPF forwarding is not brought to pods and ways: its thread ended early, which \
                  the agent's log says more of"
            .into(),
    }
}

/// For the processes of the node and its pods.
fn load_sockets() -> Result<(), OpError> {
    sockets::load(FILE_SYSTEM.as_ref(), &node::cgroup()?)
}

/// Takes away what any agent left. Answers whether there was anything.
///
/// # Errors
/// When something of ours stays.
pub(crate) fn remove() -> Result<bool, OpError> {
    let file_system = Path::new(FILE_SYSTEM);
    if !bpf::is_present(file_system) {
        return Ok(false);
    }
    sockets::remove(file_system)?;
    let hook = bpf::probe(file_system).hook;
    let options = bpf::Options { file_system: file_system.to_owned(), hook };
    bpf::Forwarding::load(&options)?.remove().map(|()| true)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Forwarding with a thread that says, when it is told to, that the kernel refuses.
    fn with_thread() -> (Forwarding, mpsc::Sender<()>) {
        let backend = ServiceBackend::Ebpf;
        let config = ClusterConfig { service_backend: backend, ..ClusterConfig::default() };
        let mut forwarding = Forwarding::new(&config);
        let (go_on, told_to) = mpsc::channel();
        let (told, done) = oneshot::channel();
        let work = move || {
            let _ = told_to.recv();
            let refused = OpError { errno: libc::EPERM, message: "refused".into() };
            drop(told.send(Err(refused)));
        };
        let thread = Some(std::thread::spawn(work));
        let wanted = render::bpf::Forwarding::default();
        forwarding.underway = Some(Underway { wanted, done, thread });
        (forwarding, go_on)
    }

    /// What the loop does while the thread works takes no time of it, and what came meanwhile is
    /// done afterwards.
    #[tokio::test]
    async fn the_loop_goes_on_while_the_kernel_checks_programs() {
        let (mut forwarding, go_on) = with_thread();
        forwarding.settling = Settling::default();
        forwarding.postponed = true;
        assert!(!forwarding.is_due() && !forwarding.look());
        assert_eq!((forwarding.deadline(), forwarding.refusal()), (None, None));
        let none = tokio::time::timeout(Duration::from_millis(50), forwarding.written()).await;
        assert!(none.is_err() && forwarding.underway.is_some(), "it waits, and loses nothing");
        go_on.send(()).expect("a thread");
        forwarding.written().await;
        assert_eq!(forwarding.refusal().as_deref(), Some("refused"));
        assert!(forwarding.deadline().is_some(), "what was put off is due");
    }

    #[test]
    fn who_asks_what_there_is_waits_for_the_thread() {
        let (mut forwarding, go_on) = with_thread();
        go_on.send(()).expect("a thread");
        assert_eq!(forwarding.rows().len(), 0);
        assert_eq!(forwarding.refusal().as_deref(), Some("refused"));
    }
}
