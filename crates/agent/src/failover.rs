//! Fail-over: a dead node or endpoint is noticed by the data path and gets no new connections, long
//! before the API says so. What follows from what is observed is decided in [`reconcile::failover`];
//! here are the packets. A task of its own: the network never waits for it.
//!
//! ```text
//! echo between nodes ──┐                                        ┌─▶ echo requests, handshakes
//! unanswered flows ────┼─▶ task: reconcile::failover::Failover ─┤
//! answers to probes ───┘      ▲ peers, endpoints in question    └─▶ Unreachable ─▶ loop ─▶ World
//!                             └── loop (what the API knows)
//! ```

mod echo;
mod probe;
mod remembered;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kernel::bpf;
use kernel::nft::handshakes::Handshakes;
use model::layout::RUNTIME_PORT;
use model::{ClusterConfig, Family, Unreachable, World};
use nix::time::{ClockId, clock_gettime};
use plan::network::NetworkPlan;
use plan::services::KnownEndpoints;
use reconcile::failover::{Act, Failover, Targets};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::report::Note;
use echo::Echo;

/// Unanswered handshakes are read this often, when there are any.
const LOOK_PERIOD: Duration = Duration::from_millis(200);
/// Reading them takes at most one part in so many of a processor's time: where the kernel's table
/// of connections is large it is done less often.
const LOOK_SHARE: u32 = 20;
/// The same as long as every handshake is answered.
const LOOK_SHARE_IN_PEACE: u32 = 50;
/// What is in question is held against the API's endpoints at most this often.
const KNOWN_PERIOD: Duration = Duration::from_millis(100);
/// A poll is never further away than this.
const IDLE: Duration = Duration::from_secs(3600);

/// What there is to watch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Watched {
    /// Other nodes and their addresses.
    peers: BTreeMap<String, IpAddr>,
    /// Of what was in question.
    endpoints: BTreeSet<SocketAddr>,
    /// Of what was in question, what went with its node.
    lost: BTreeSet<SocketAddr>,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Found {
    unreachable: Unreachable,
    in_question: BTreeSet<SocketAddr>,
}

/// The loop's end. Without fail-over nothing is ever unreachable.
#[derive(Default)]
pub(crate) struct Keeper {
    ends: Option<(watch::Sender<Watched>, watch::Receiver<Found>)>,
    found: Found,
    /// What is in question and the API knows.
    known: KnownEndpoints,
    known_at: Option<Instant>,
}

/// Starts the task, which goes on from what the agent before knew.
pub(crate) fn spawn(
    config: &ClusterConfig,
    run_directory: &Path,
    tasks: &mut JoinSet<()>,
) -> Keeper {
    let place = run_directory.join(remembered::FILE);
    let unreachable = remembered::read(&place);
    let in_question = unreachable.endpoints.clone();
    let found = Found { unreachable, in_question };
    let families = config.pod_cidrs.iter().map(|range| Family::of(&range.addr())).collect();
    let (watched, wanted) = watch::channel(Watched::default());
    let (told, finds) = watch::channel(found.clone());
    let watcher = Watcher {
        machine: Failover::new(&found.unreachable),
        started: Instant::now(),
        peers: BTreeMap::new(),
        echo: Echo::open(),
        probes: JoinSet::new(),
        look: Look::start(families),
        place,
        told,
    };
    tasks.spawn(watcher.run(wanted));
    let mut keeper = Keeper { ends: Some((watched, finds)), ..Keeper::default() };
    keeper.found = found;
    keeper
}

impl Keeper {
    /// Waits until something else is found.
    pub(crate) async fn heard(&mut self) {
        // Without fail-over there is no task; else it ends with the agent.
        let Some((_, finds)) = &mut self.ends else { return std::future::pending().await };
        if finds.changed().await.is_err() {
            return std::future::pending().await;
        }
        self.found = finds.borrow_and_update().clone();
    }

    /// Tells the task what there is to watch. Answers what is unreachable, when the world does not
    /// know that yet.
    pub(crate) fn follow(
        &mut self,
        world: &World,
        plan: Option<&NetworkPlan>,
    ) -> Option<Unreachable> {
        let (watched, _) = self.ends.as_ref()?;
        let news = (self.found.unreachable != *world.unreachable())
            .then(|| self.found.unreachable.clone());
        // Before the first plan nothing is known of anybody, and nothing forgotten (invariant 3).
        let Some(plan) = plan else { return news };
        let is_new = self.found.in_question.iter().any(|one| !self.known.contains(one));
        let is_due = self.known_at.is_none_or(|at| at.elapsed() >= KNOWN_PERIOD);
        if self.found.in_question.is_empty() {
            self.known = KnownEndpoints::default();
        } else if is_due || is_new {
            self.known = KnownEndpoints::among(world, &self.found.in_question);
            self.known_at = Some(Instant::now());
        }
        let peers = plan.peers.iter().map(|(name, peer)| (name.clone(), peer.address)).collect();
        let endpoints = self.known.living.keys().copied().collect();
        let lost = self.known.behind_silent_nodes.clone();
        let wanted = Watched { peers, endpoints, lost };
        watched.send_if_modified(|present| {
            let changed = *present != wanted;
            *present = wanted;
            changed
        });
        news
    }

    /// What gets no new connections now.
    pub(crate) fn unreachable(&self) -> &Unreachable {
        &self.found.unreachable
    }

    /// Events about what is left out.
    pub(crate) fn notes(&self) -> Vec<Note> {
        let node = |name: &String| Note {
            about: format!("Node {name}"),
            uid: String::new(),
            reason: "FlatnetNodeUnreachable",
            message: format!(
                "node {name} answers neither echo requests nor handshakes of other nodes: new \
                 connections through Services go to endpoints elsewhere until it does; look at \
                 the machine and its link"
            ),
        };
        let endpoint = |address: &SocketAddr| {
            let service = self.known.living.get(address)?;
            Some(Note {
                about: format!("Service {service}"),
                uid: String::new(),
                reason: "FlatnetEndpointUnreachable",
                message: format!(
                    "endpoint {address} does not answer handshakes: new connections go to other \
                     endpoints until it does; look whether its program accepts connections"
                ),
            })
        };
        let unreachable = self.unreachable();
        let endpoints = unreachable.endpoints.iter().filter_map(endpoint);
        unreachable.nodes.iter().map(node).chain(endpoints).collect()
    }
}

struct Watcher {
    machine: Failover,
    started: Instant,
    peers: BTreeMap<String, IpAddr>,
    echo: Echo,
    /// Handshakes under way, with what they answer.
    probes: JoinSet<(Act, bool)>,
    look: Look,
    place: PathBuf,
    told: watch::Sender<Found>,
}

impl Watcher {
    async fn run(mut self, mut wanted: watch::Receiver<Watched>) {
        loop {
            let wait = self.machine.deadline().map_or(IDLE, |at| at.saturating_sub(self.now()));
            tokio::select! {
                changed = wanted.changed() => match changed {
                    Ok(()) => self.follow(wanted.borrow_and_update().clone()),
                    Err(_) => return,
                },
                heard = self.echo.heard() => {
                    let now = self.now();
                    for (from, number) in heard {
                        let peers = self.peers.iter().filter(|(_, address)| **address == from);
                        peers.for_each(|(name, _)| self.machine.heard(name, number, now));
                    }
                }
                Some(probed) = self.probes.join_next() => match probed {
                    Ok((act, answered)) => self.take_in(act, answered),
                    Err(error) => tracing::warn!("a probe ended early: {error}"),
                },
                unanswered = self.look.done() => self.machine.handshakes(&unanswered, self.now()),
                () = tokio::time::sleep(wait) => {}
            }
            for act in self.machine.poll(self.now()) {
                self.carry_out(act);
            }
            self.look.abandon(self.machine.abandoned());
            self.tell();
        }
    }

    fn follow(&mut self, wanted: Watched) {
        let peers = wanted.peers.keys().cloned().collect();
        let targets = Targets { peers, endpoints: wanted.endpoints, lost: wanted.lost };
        self.peers = wanted.peers;
        self.machine.follow(&targets, self.now());
    }

    fn take_in(&mut self, act: Act, answered: bool) {
        let now = self.now();
        match act {
            Act::Beat { .. } => {}
            Act::Confirm(peer) => self.machine.confirmed(&peer, answered, now),
            Act::Probe(endpoint) => self.machine.probed(endpoint, answered, now),
        }
    }

    fn carry_out(&mut self, act: Act) {
        let target = match &act {
            Act::Beat { peer, number } => {
                if let Some(address) = self.peers.get(peer) {
                    self.echo.ask(*address, *number);
                }
                return;
            }
            Act::Confirm(peer) => {
                self.peers.get(peer).map(|address| SocketAddr::new(*address, RUNTIME_PORT))
            }
            Act::Probe(endpoint) => Some(*endpoint),
        };
        self.probes.spawn(async move {
            let answered = match target {
                Some(target) => probe::is_answered(target).await,
                None => true,
            };
            (act, answered)
        });
    }

    fn tell(&mut self) {
        let found = Found {
            unreachable: self.machine.unreachable(),
            in_question: self.machine.in_question(),
        };
        let changed = self.told.borrow().unreachable.difference(&found.unreachable);
        for node in &changed.nodes {
            let out = found.unreachable.nodes.contains(node);
            tracing::info!(node, out, "fail-over: a node");
        }
        for endpoint in &changed.endpoints {
            let out = found.unreachable.endpoints.contains(endpoint);
            tracing::info!(%endpoint, out, "fail-over: an endpoint");
        }
        if !changed.is_empty()
            && let Err(error) = remembered::write(&self.place, &found.unreachable)
        {
            tracing::warn!("a restart will not know what is unreachable: {error:#}");
        }
        self.told.send_if_modified(|present| {
            let changed = *present != found;
            *present = found;
            changed
        });
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }
}

/// Where unanswered handshakes lead to, by the kernel's number for them.
type Unanswered = BTreeMap<u64, SocketAddr>;

/// Reads the unanswered handshakes again and again, on a thread of its own. One of tokio's for
/// blocking calls would do, but looks that often would keep alive every such thread that anything
/// else has ever needed.
struct Look {
    /// `None` where there is no thread.
    readings: Option<mpsc::Receiver<Unanswered>>,
    /// What the next reading forgets, if it is still unanswered.
    abandoned: watch::Sender<BTreeSet<u64>>,
}

impl Look {
    fn start(families: BTreeSet<Family>) -> Self {
        let (abandoned, forget) = watch::channel(BTreeSet::new());
        // While one reading is not taken, the thread waits with the next.
        let (told, readings) = mpsc::channel(1);
        let looking = move || look(&families, &forget, &told);
        let started = std::thread::Builder::new().name("handshakes".into()).spawn(looking);
        let readings = started.map(|_| readings).inspect_err(|error| {
            tracing::warn!(
                "unanswered handshakes are not read, and endpoints that do not answer not noticed: \
                 cannot start a thread: {error}; look at the limits of processes and memory"
            );
        });
        Self { readings: readings.ok(), abandoned }
    }

    fn abandon(&self, flows: BTreeSet<u64>) {
        self.abandoned.send_replace(flows);
    }

    /// Waits for the next reading.
    async fn done(&mut self) -> Unanswered {
        let Some(readings) = &mut self.readings else { return std::future::pending().await };
        match readings.recv().await {
            Some(unanswered) => unanswered,
            None => {
                tracing::warn!("reading unanswered handshakes ended early");
                self.readings = None;
                Unanswered::new()
            }
        }
    }
}

/// Reads until nobody waits for it any more.
fn look(
    families: &BTreeSet<Family>,
    forget: &watch::Receiver<BTreeSet<u64>>,
    told: &mpsc::Sender<Unanswered>,
) {
    let mut socket = None;
    let mut wait = LOOK_PERIOD;
    loop {
        std::thread::sleep(wait);
        let abandoned = forget.borrow().clone();
        let began = processor_time();
        let unanswered = read(&mut socket, families, &abandoned).unwrap_or_else(|error| {
            // Of what is not known nothing is concluded; a new socket is tried.
            tracing::debug!("unanswered handshakes are not read: {error}");
            socket = None;
            Unanswered::new()
        });
        let took = processor_time().saturating_sub(began);
        let share = if unanswered.is_empty() { LOOK_SHARE_IN_PEACE } else { LOOK_SHARE };
        wait = LOOK_PERIOD.max(took.saturating_mul(share));
        if told.blocking_send(unanswered).is_err() {
            return;
        }
    }
}

fn read(
    socket: &mut Option<Handshakes>,
    families: &BTreeSet<Family>,
    abandoned: &BTreeSet<u64>,
) -> Result<Unanswered, String> {
    let handshakes = match socket {
        Some(handshakes) => handshakes,
        None => {
            let opened = Handshakes::open(families.clone()).map_err(|error| error.to_string())?;
            socket.insert(opened)
        }
    };
    let tracked = handshakes.unanswered(abandoned).map_err(|error| error.to_string())?;
    // What eBPF forwards, or leads, connection tracking does not know. Its numbers are larger.
    let forwarded = bpf::handshakes::unanswered(bpf::FILE_SYSTEM.as_ref(), abandoned);
    let mut unanswered = forwarded.map_err(|error| error.to_string())?;
    unanswered.extend(tracked);
    Ok(unanswered)
}

/// What this thread has used. On a busy machine work takes long and costs no more than usual.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).unwrap_or_default()
}
