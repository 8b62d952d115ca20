#![allow(unsafe_code)] // `pre_exec`: see SAFETY below.
//! The processes of a cluster: what they are called with, and how they get where they belong.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use model::layout;
use nix::sched::{CloneFlags, setns};
use nix::unistd::Pid;

use super::super::cgroups;
use super::super::paths::Paths;
use super::super::spec::{ClusterSpec, NodeSpec};
use super::{CONTROL_CGROUP, sockets};

/// A log larger than this is started anew when its process starts; one older copy is kept.
const LOG_BYTES_MAX: u64 = 8 << 20;
/// The first descriptor number that a child inherits besides its standard three.
const INHERITED_FD: RawFd = 3;

/// One process to run.
pub(super) struct Unit {
    /// `controlplane`, or component and node.
    pub(super) name: String,
    program: PathBuf,
    arguments: Vec<String>,
    place: Place,
    inherited: Vec<OwnedFd>,
}

/// Namespaces to enter and cgroups to join before a program starts.
pub struct Place {
    namespaces: Vec<OwnedFd>,
    cgroups: Vec<OwnedFd>,
}

/// All units of a cluster, in the order of their start; each runs `program`.
pub(super) fn units(paths: &Paths, spec: &ClusterSpec, program: &Path) -> Result<Vec<Unit>> {
    let mut units = vec![Unit {
        name: "controlplane".into(),
        program: program.into(),
        arguments: arguments("controlplane", paths, None),
        place: Place::host(paths)?,
        inherited: vec![],
    }];
    for node in &spec.nodes {
        units.extend(node_units(paths, spec, node, program)?);
    }
    Ok(units)
}

fn node_units(
    paths: &Paths,
    spec: &ClusterSpec,
    node: &NodeSpec,
    program: &Path,
) -> Result<[Unit; 3]> {
    let unit = |component: &str, inherited| -> Result<Unit> {
        Ok(Unit {
            name: format!("{component}/{}", node.name),
            program: program.into(),
            arguments: arguments(component, paths, Some(&node.name)),
            place: Place::node(paths, &node.name)?,
            inherited,
        })
    };
    let sockets = sockets::dns(paths, spec, &node.name)?;
    Ok([unit("agent", vec![])?, unit("runtime", vec![])?, unit("dns", sockets)?])
}

fn arguments(component: &str, paths: &Paths, node: Option<&str>) -> Vec<String> {
    let mut arguments = vec![component.to_owned(), "--name".into(), paths.name().into()];
    if let Some(node) = node {
        arguments.extend(["--node-name".into(), node.into()]);
    }
    arguments
}

impl Unit {
    /// Starts the process.
    pub(super) fn spawn(&self, paths: &Paths) -> Result<Pid> {
        let log = open_log(paths, &self.name)?;
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .envs(std::env::vars().filter(|(name, _)| name == "RUST_LOG"))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let inherited: Vec<RawFd> = self.inherited.iter().map(AsRawFd::as_raw_fd).collect();
        self.place.enter_in(&mut command, inherited)?;
        let child = command.spawn().with_context(|| {
            format!("starting {} for {} (is it still there?)", self.program.display(), self.name)
        })?;
        Ok(Pid::from_raw(child.id() as i32))
    }
}

impl Place {
    /// The host's namespaces, and the control plane's cgroup.
    fn host(paths: &Paths) -> Result<Self> {
        let cgroups = cgroups::open_for_joining(&paths.cgroup().join(CONTROL_CGROUP))?;
        Ok(Self { namespaces: vec![], cgroups })
    }

    /// A node's namespaces and its cgroup for the node's own processes.
    ///
    /// # Errors
    /// When the node does not run.
    pub fn node(paths: &Paths, node: &str) -> Result<Self> {
        // The mount namespace last: the other handles' paths are the host's.
        let handles = [
            paths.namespace(node, "cgroup"),
            paths.namespace(node, "uts"),
            paths.netns(node),
            paths.namespace(node, "mnt"),
        ];
        let open = |handle: &Path| -> Result<OwnedFd> {
            let file = fs::File::open(handle)
                .with_context(|| format!("opening {} (does the node run?)", handle.display()))?;
            Ok(file.into())
        };
        let namespaces = handles.iter().map(|handle| open(handle)).collect::<Result<_>>()?;
        let cgroup = paths.cgroup().join(node).join(layout::SYSTEM_CGROUP);
        Ok(Self { namespaces, cgroups: cgroups::open_for_joining(&cgroup)? })
    }

    /// Makes `command` start here. Descriptors `inherited` become 3, 4, … of the program.
    ///
    /// # Errors
    /// When descriptors run out.
    pub fn enter_in(&self, command: &mut Command, inherited: Vec<RawFd>) -> Result<()> {
        let duplicate = |fds: &[OwnedFd]| fds.iter().map(OwnedFd::try_clone).collect();
        let namespaces: Vec<OwnedFd> =
            io::Result::<Vec<OwnedFd>>::from(duplicate(&self.namespaces))?;
        let cgroups: Vec<OwnedFd> = io::Result::<Vec<OwnedFd>>::from(duplicate(&self.cgroups))?;
        let enter = move || {
            for joining in &cgroups {
                nix::unistd::write(joining, b"0")?;
            }
            for namespace in &namespaces {
                setns(namespace, CloneFlags::empty())?;
            }
            nix::sys::signal::SigSet::all().thread_unblock()?;
            pass_on(&inherited)
        };
        // SAFETY: between fork and exec only system calls are made (write, setns, sigprocmask,
        // fcntl, dup2); nothing allocates or takes a lock.
        unsafe { command.pre_exec(enter) };
        Ok(())
    }
}

/// Moves descriptors to 3, 4, … and lets exec keep them.
fn pass_on(inherited: &[RawFd]) -> io::Result<()> {
    let first_free = INHERITED_FD + inherited.len() as RawFd;
    for (index, &fd) in inherited.iter().enumerate() {
        let target = INHERITED_FD + index as RawFd;
        // SAFETY: plain system calls on descriptors that the parent keeps open; the copy above
        // the targets is closed by exec.
        let copied = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, first_free.max(64)) };
        if copied < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: as above; `dup2` clears close-on-exec on the target.
        if unsafe { libc::dup2(copied, target) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `copied` was made above and is owned by nobody else.
        drop(unsafe { OwnedFd::from_raw_fd(copied) });
    }
    Ok(())
}

fn open_log(paths: &Paths, unit: &str) -> Result<fs::File> {
    let file = paths.logs().join(format!("{}.log", unit.replace('/', "-")));
    if fs::metadata(&file).is_ok_and(|metadata| metadata.len() > LOG_BYTES_MAX) {
        fs::rename(&file, file.with_extension("log.old"))?;
    }
    fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&file)
        .with_context(|| format!("opening {}", file.display()))
}
