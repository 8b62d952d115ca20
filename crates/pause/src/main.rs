//! `flatnet-pause`: a pod's first process.
//!
//! It reads a `SandboxSpec` from standard input, moves into the pod's network namespace and new
//! pid, ipc, uts and mount namespaces. The program that was started ends once the pod's own process
//! listens. That one is process 1 of the pod: when it dies, the kernel ends every process of the
//! pod. A pod among the node's processes has no process 1: there the runtime ends all that the
//! pod's control groups hold.

mod attach;
mod clock;
mod connection;
mod launch;
mod log;
mod root;
mod supervisor;
mod sys;

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;

use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, pipe2, setsid};
use pause::{MAX_MESSAGE_BYTES, SandboxSpec};

use crate::supervisor::Supervisor;

fn main() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("flatnet-pause: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Returns in the first process, once the pod's process listens or has failed to.
fn start() -> Result<(), String> {
    let spec = read_spec()?;
    enter_namespaces(&spec)?;
    let (reader, writer) =
        pipe2(OFlag::O_CLOEXEC).map_err(|error| format!("cannot make a pipe: {error}"))?;
    let pid =
        sys::fork_into(CloneFlags::empty()).map_err(|error| format!("cannot fork: {error}"))?;
    if pid != 0 {
        drop(writer);
        let mut report = String::new();
        fs::File::from(reader)
            .read_to_string(&mut report)
            .map_err(|error| format!("cannot hear from the pod's process: {error}"))?;
        return match report.as_str() {
            "ready" => Ok(()),
            "" => Err("the pod's process ended before it listened".into()),
            message => Err(message.to_owned()),
        };
    }
    drop(reader);
    let mut report = fs::File::from(writer);
    match become_first_process(&spec) {
        Ok(supervisor) => {
            let _ = report.write_all(b"ready");
            drop(report);
            supervisor.run()
        }
        Err(message) => {
            let _ = report.write_all(message.as_bytes());
            sys::exit_now(1)
        }
    }
}

fn read_spec() -> Result<SandboxSpec, String> {
    let mut text = Vec::new();
    std::io::stdin()
        .take(MAX_MESSAGE_BYTES as u64)
        .read_to_end(&mut text)
        .map_err(|error| format!("cannot read the sandbox from standard input: {error}"))?;
    serde_json::from_slice(&text).map_err(|error| {
        format!("standard input holds no sandbox ({error}): this program is started by the runtime")
    })
}

fn enter_namespaces(spec: &SandboxSpec) -> Result<(), String> {
    for path in &spec.cgroups {
        fs::write(path, "0")
            .map_err(|error| format!("cannot enter the cgroup {}: {error}", path.display()))?;
    }
    if let Some(path) = &spec.network_namespace {
        let namespace = open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(|error| format!("cannot open {}: {error}", path.display()))?;
        setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).map_err(|error| {
            format!("cannot enter the network namespace {}: {error}", path.display())
        })?;
    }
    let mut namespaces = CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWNS;
    namespaces.set(CloneFlags::CLONE_NEWPID, !spec.node_processes);
    namespaces.set(CloneFlags::CLONE_NEWIPC, spec.shared_memory.is_some());
    unshare(namespaces).map_err(|error| {
        format!("cannot make the pod's namespaces: {error}; this program needs root")
    })?;
    nix::unistd::sethostname(&spec.hostname)
        .map_err(|error| format!("cannot set the hostname {}: {error}", spec.hostname))?;
    for (name, value) in &spec.sysctls {
        // The files show the parameters of whoever opens them: by now the pod's.
        fs::write(Path::new("/proc/sys").join(name), value)
            .map_err(|error| format!("cannot set the sysctl {name} to {value:?}: {error}"))?;
    }
    // A file system that the node unmounts goes from here too: this process keeps none busy.
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)
        .map_err(|error| format!("cannot make mounts follow the node's: {error}"))?;
    spec.shared_memory.as_deref().map_or(Ok(()), mount_shared_memory)
}

/// The containers' common /dev/shm; as large as every runtime has it.
fn mount_shared_memory(place: &Path) -> Result<(), String> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    mount(Some("shm"), place, Some("tmpfs"), flags, Some("mode=1777,size=64m"))
        .map_err(|error| format!("cannot mount memory at {}: {error}", place.display()))
}

fn become_first_process(spec: &SandboxSpec) -> Result<Supervisor, String> {
    umask(Mode::from_bits_truncate(0o077));
    setsid().map_err(|error| format!("cannot start a session: {error}"))?;
    if spec.node_processes {
        // Process 1 of a namespace is the parent of all that are left alone; this one says so.
        nix::sys::prctl::set_child_subreaper(true)
            .map_err(|error| format!("cannot become the parent of orphans: {error}"))?;
    }
    let supervisor = Supervisor::open(&spec.socket)?;
    let null = launch::null()?;
    for result in [dup2_stdin(&null), dup2_stdout(&null), dup2_stderr(&null)] {
        result.map_err(|error| format!("cannot leave the standard streams: {error}"))?;
    }
    nix::unistd::chdir("/").map_err(|error| format!("cannot leave the directory: {error}"))?;
    Ok(supervisor)
}
