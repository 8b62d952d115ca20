//! The supervisor of a cluster: one small process without threads that starts the control plane
//! and, in each node's namespaces, agent, runtime and DNS worker, and starts again what dies.
//!
//! ```text
//! supervise ─┬─ controlplane                 (host)
//!            ├─ agent   node1 ┐
//!            ├─ runtime node1 ├ in node1's namespaces and its cgroup `system`
//!            ├─ dns     node1 ┘ inherits its sockets, so that no question is lost with a worker
//!            └─ …
//! ```
//!
//! Pods are not its children: their own pause processes parent them.

mod children;
mod sockets;

use std::fs;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use model::layout;
use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::os::fd::AsFd;

use super::cgroups;
use super::paths::Paths;
use super::spec::{ClusterSpec, write_private};
use children::{Place, Unit};

/// The cgroup of the control plane, below the cluster's.
pub const CONTROL_CGROUP: &str = "control";
/// A process that ran this long failed for a new reason: it starts again at once.
const STABLE: Duration = Duration::from_secs(1);
/// The second start after a quick failure waits this long; each further one twice as long. One that
/// was asked to end sooner than it was stable waits as long, so that nothing spins.
const RESTART_FIRST: Duration = Duration::from_millis(100);
/// No restart waits longer.
const RESTART_LIMIT: Duration = Duration::from_secs(10);
/// How long processes get to end after SIGTERM.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// What the supervisor says of itself, in the cluster's run directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Its process id.
    pub supervisor: i32,
    /// Its processes, in the order of their start.
    pub processes: Vec<ProcessReport>,
}

/// One process of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessReport {
    /// `controlplane`, or component and node, such as `agent/node1`.
    pub name: String,
    /// The process id; absent while it waits for its next start.
    pub pid: Option<i32>,
    /// How often it was started again.
    pub restarts: u32,
    /// How it ended last, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<String>,
}

struct Process {
    unit: Unit,
    pid: Option<Pid>,
    started: Instant,
    start_at: Option<Instant>,
    backoff: Backoff,
    restarts: u32,
    last_exit: Option<String>,
}

/// How a process ended.
enum End {
    /// It was asked to: its program said so, or had not yet begun to listen when SIGTERM came.
    Asked(String),
    /// By itself, or killed.
    Failed(String),
}

/// How long a process waits for its next start.
#[derive(Default)]
struct Backoff {
    quick_failures: u32,
}

/// Holds the cluster's lock, so that one supervisor runs at a time; `None` when another holds it.
///
/// # Errors
/// The file system's.
pub fn lock(paths: &Paths) -> Result<Option<Flock<fs::File>>> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(paths.run())?;
    let file = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(paths.lock())
        .with_context(|| format!("opening {}", paths.lock().display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(held) => Ok(Some(held)),
        Err((_, nix::Error::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(error).context("locking the cluster"),
    }
}

/// Whether the cluster has a supervisor. Leaves no trace where there is no cluster.
///
/// # Errors
/// The file system's.
pub fn is_running(paths: &Paths) -> Result<bool> {
    Ok(paths.lock().exists() && lock(paths)?.is_none())
}

/// What the running supervisor says; `None` when none has ever said anything since boot.
///
/// # Errors
/// When the file is damaged.
pub fn report(paths: &Paths) -> Result<Option<Report>> {
    match fs::read_to_string(paths.status()) {
        Ok(text) => Ok(Some(serde_json::from_str(&text).with_context(|| {
            format!("{} is damaged; `flatnet down` still works", paths.status().display())
        })?)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Supervises until SIGTERM or SIGINT.
///
/// # Errors
/// When the cluster is unknown or already supervised, or a process cannot be prepared.
pub fn run(paths: &Paths) -> Result<()> {
    // Pause processes of a runtime that was killed become ours, so that they are reaped.
    nix::sys::prctl::set_child_subreaper(true)?;
    let Some(_lock) = lock(paths)? else {
        bail!("cluster {} has a supervisor already", paths.name());
    };
    let spec = ClusterSpec::load(paths)?
        .with_context(|| format!("there is no cluster {}: `flatnet up` makes it", paths.name()))?;
    stop_leftovers(paths, &spec)?;

    let mut signals = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT] {
        signals.add(signal);
    }
    signals.thread_block()?;
    let signal_fd = SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;

    // The path of now: once the file is replaced, as by an upgrade, the kernel calls it deleted.
    // What dies then starts again as the build that lies there, with which the programs beside it
    // came (R-03).
    let program = std::env::current_exe().context("finding the own program")?;
    let units = children::units(paths, &spec, &program)?;
    let mut processes: Vec<Process> = units.into_iter().map(Process::new).collect();
    loop {
        let mut changed = reap(&mut processes);
        changed |= start_due(&mut processes, paths);
        if changed {
            write_report(paths, &processes)?;
            // What comes now is waiting.
            memory::let_go();
        }
        let timeout = next_start(&processes).map_or(PollTimeout::NONE, |wait| {
            PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX)
        });
        let mut ready = [PollFd::new(signal_fd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, timeout) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error).context("waiting for signals"),
        }
        while let Some(signal) = signal_fd.read_signal()? {
            if signal.ssi_signo != Signal::SIGCHLD as u32 {
                stop_all(&mut processes);
                return stop_pods(paths, &spec);
            }
        }
    }
}

/// Processes of a supervisor that was killed: they are replaced, pods stay.
fn stop_leftovers(paths: &Paths, spec: &ClusterSpec) -> Result<()> {
    let systems = spec.nodes.iter().map(|node| Path::new(&node.name).join(layout::SYSTEM_CGROUP));
    for cgroup in systems.chain([CONTROL_CGROUP.into()]) {
        let cgroup = paths.cgroup().join(cgroup);
        cgroups::destroy(&cgroup)?;
        cgroups::create(&cgroup)?;
    }
    Ok(())
}

fn reap(processes: &mut [Process]) -> bool {
    let mut changed = false;
    loop {
        let (pid, end) = match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => (pid, End::of_code(code)),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, End::of_signal(signal)),
            Ok(WaitStatus::StillAlive) | Err(_) => return changed,
            Ok(_) => continue,
        };
        if let Some(process) = processes.iter_mut().find(|process| process.pid == Some(pid)) {
            process.ended(end);
            changed = true;
        }
    }
}

fn start_due(processes: &mut [Process], paths: &Paths) -> bool {
    let now = Instant::now();
    let mut changed = false;
    for process in processes.iter_mut() {
        if process.start_at.is_some_and(|at| at <= now) {
            process.start(paths);
            changed = true;
        }
    }
    changed
}

fn next_start(processes: &[Process]) -> Option<Duration> {
    let next = processes.iter().filter_map(|process| process.start_at).min()?;
    // A millisecond more: poll() rounds down, and must not spin.
    Some(next.saturating_duration_since(Instant::now()) + Duration::from_millis(1))
}

/// Ends the nodes' pods too, and reaps them: nobody else may.
fn stop_pods(paths: &Paths, spec: &ClusterSpec) -> Result<()> {
    for node in &spec.nodes {
        cgroups::destroy(&paths.cgroup().join(&node.name))?;
    }
    while !matches!(waitpid(None::<Pid>, None), Err(nix::Error::ECHILD)) {}
    Ok(())
}

fn stop_all(processes: &mut [Process]) {
    let deadline = Instant::now() + STOP_TIMEOUT;
    for process in processes.iter_mut() {
        process.start_at = None;
        if let Some(pid) = process.pid {
            let _ = kill(pid, Signal::SIGTERM);
        }
    }
    while processes.iter().any(|process| process.pid.is_some()) {
        reap(processes);
        for process in processes.iter_mut() {
            process.start_at = None;
            if let Some(pid) = process.pid.filter(|_| Instant::now() > deadline) {
                let _ = kill(pid, Signal::SIGKILL);
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn write_report(paths: &Paths, processes: &[Process]) -> Result<()> {
    let processes = processes
        .iter()
        .map(|process| ProcessReport {
            name: process.unit.name.clone(),
            pid: process.pid.map(Pid::as_raw),
            restarts: process.restarts,
            last_exit: process.last_exit.clone(),
        })
        .collect();
    let report = Report { supervisor: std::process::id() as i32, processes };
    write_private(&paths.status(), &serde_json::to_string(&report)?)
}

impl Process {
    fn new(unit: Unit) -> Self {
        let now = Instant::now();
        Self {
            unit,
            pid: None,
            started: now,
            start_at: Some(now),
            backoff: Backoff::default(),
            restarts: 0,
            last_exit: None,
        }
    }

    fn start(&mut self, paths: &Paths) {
        self.started = Instant::now();
        self.start_at = None;
        match self.unit.spawn(paths) {
            Ok(pid) => self.pid = Some(pid),
            Err(error) => self.ended(End::Failed(format!("not started: {error:#}"))),
        }
    }

    fn ended(&mut self, end: End) {
        let now = Instant::now();
        self.pid = None;
        self.restarts = self.restarts.saturating_add(1);
        self.start_at = Some(now + self.backoff.wait_after(&end, now - self.started));
        let (End::Asked(words) | End::Failed(words)) = end;
        self.last_exit = Some(words);
    }
}

impl End {
    fn of_code(code: i32) -> Self {
        let words = format!("exit code {code}");
        if code == 0 { Self::Asked(words) } else { Self::Failed(words) }
    }

    fn of_signal(signal: Signal) -> Self {
        let words = format!("killed by {signal}");
        if signal == Signal::SIGTERM { Self::Asked(words) } else { Self::Failed(words) }
    }
}

impl Backoff {
    /// How long a process that ended after a life of `lived` waits.
    fn wait_after(&mut self, end: &End, lived: Duration) -> Duration {
        let is_quick = lived < STABLE;
        self.quick_failures = match end {
            End::Failed(_) if is_quick => self.quick_failures.saturating_add(1),
            End::Failed(_) | End::Asked(_) => 0,
        };
        match (end, self.quick_failures) {
            (End::Asked(_), _) if is_quick => RESTART_FIRST,
            (_, 0 | 1) => Duration::ZERO,
            (_, count) => RESTART_FIRST.saturating_mul(1 << (count - 2).min(16)).min(RESTART_LIMIT),
        }
    }
}

/// The namespaces and cgroup that a unit runs in, for tests and for people who enter a node.
pub fn node_place(paths: &Paths, node: &str) -> Result<Place> {
    Place::node(paths, node)
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Duration = Duration::from_millis(50);

    fn waits_ms<const N: usize>(ends: [(End, Duration); N]) -> [u128; N] {
        let mut backoff = Backoff::default();
        ends.map(|(end, lived)| backoff.wait_after(&end, lived).as_millis())
    }

    #[test]
    fn what_fails_again_and_again_waits_longer_each_time() {
        let killed = || (End::of_signal(Signal::SIGKILL), QUICK);
        let failed = || (End::of_code(1), QUICK);
        let waits = waits_ms([failed(), killed(), failed(), killed(), failed()]);
        assert_eq!(waits, [0, 100, 200, 400, 800]);
        let waits = waits_ms(std::array::from_fn::<_, 40, _>(|_| failed()));
        assert_eq!(waits[39], RESTART_LIMIT.as_millis());
        let stable = (End::of_code(1), STABLE);
        assert_eq!(waits_ms([failed(), failed(), stable, failed(), failed()]), [0, 100, 0, 0, 100]);
    }

    /// `flatnet service backend` ends agents so that they read their configuration: however often
    /// somebody changes it, they are not away for longer.
    #[test]
    fn what_was_asked_to_end_is_back_soon_however_often() {
        let ends: [fn() -> End; 2] = [|| End::of_code(0), || End::of_signal(Signal::SIGTERM)];
        for asked in ends {
            let first = RESTART_FIRST.as_millis();
            let quick = std::array::from_fn::<_, 40, _>(|_| (asked(), QUICK));
            assert_eq!(waits_ms(quick), [first; 40], "no longer, and it does not spin");
            assert_eq!(waits_ms([(asked(), STABLE)]), [0]);
            let failed = || (End::of_code(1), QUICK);
            let waits = waits_ms([failed(), failed(), (asked(), QUICK), failed()]);
            assert_eq!(waits, [0, 100, first, 0], "somebody has looked at it");
        }
    }
}
