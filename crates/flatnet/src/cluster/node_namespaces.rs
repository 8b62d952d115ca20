//! A node's namespaces: network, mount, UTS and cgroup, with places of its own for everything
//! that a node keeps under a default path (`/run`, `/etc/cni/net.d`, `/opt/cni/bin`,
//! `/var/lib/cni`, the cgroup mounts).
//!
//! A child process makes them and arranges its mounts; the parent binds the child's namespace
//! handles to files, after which the child is not needed any more.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use model::layout;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use super::cgroups;
use super::paths::{NETNS_ROOT, Paths, STATE_ROOT};

/// A node's namespaces.
const KINDS: [&str; 4] = ["net", "mnt", "uts", "cgroup"];
/// Directories of the host of which a node has a version of its own.
const OVERLAID: [&str; 3] = ["/etc", "/opt", "/var/lib"];
/// Where the kernel has eBPF, and programs look for its file system.
const EBPF_FILE_SYSTEM: &str = "/sys/fs/bpf";
/// Upper limit of a node's volatile files, in bytes.
const VOLATILE_BYTES_MAX: u64 = 64 << 20;
/// What the child says when its namespaces are ready.
const READY: &str = "ready";

/// Makes the directories that hold namespace handles. Mount namespace handles can only be bound
/// to a mount that does not propagate.
///
/// # Errors
/// The kernel's.
pub fn prepare(paths: &Paths) -> Result<()> {
    if !Path::new(NETNS_ROOT).exists() {
        fs::create_dir_all(NETNS_ROOT).with_context(|| format!("making {NETNS_ROOT}"))?;
        fs::File::create(paths.netns_root_marker())?;
    }
    let directory = paths.namespaces();
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
    let none: Option<&str> = None;
    let bind = mount(Some(&directory), &directory, none, MsFlags::MS_BIND, none);
    bind.and_then(|()| mount(none, &directory, none, MsFlags::MS_PRIVATE, none))
        .with_context(|| format!("mounting {} on itself", directory.display()))
}

/// Makes one node's namespaces and binds their handles.
///
/// # Errors
/// What the child or the kernel could not do.
pub fn create(paths: &Paths, node: &str) -> Result<()> {
    let cgroup = paths.cgroup().join(node);
    cgroups::create(&cgroup.join(layout::SYSTEM_CGROUP))?;
    cgroups::give_controllers(&cgroup)?;
    let mut child = Command::new(std::env::current_exe()?)
        .args(["node-init", "--name", paths.name(), "--node", node])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting the node's first process")?;
    let bound = wait_ready(&mut child, node).and_then(|()| bind(paths, node, child.id()));
    // The end of its input tells the child to go; its namespaces stay by their handles.
    drop(child.stdin.take());
    child.wait().context("waiting for the node's first process")?;
    bound
}

/// Takes the handles away; the namespaces go with their last process. Absent ones are fine.
///
/// # Errors
/// The kernel's, naming the handle.
pub fn release(paths: &Paths, node: &str) -> Result<()> {
    unlink(paths, node)?;
    for kind in KINDS {
        unbind(&paths.namespace(node, kind))?;
    }
    Ok(())
}

/// Lets `ip netns` find a network namespace.
///
/// # Errors
/// The file system's.
pub fn link(paths: &Paths, node: &str) -> Result<()> {
    let link = paths.netns_link(node);
    std::os::unix::fs::symlink(paths.netns(node), &link)
        .with_context(|| format!("making {}", link.display()))
}

/// Takes that link away. An absent one is fine.
///
/// # Errors
/// The file system's.
pub fn unlink(paths: &Paths, node: &str) -> Result<()> {
    let link = paths.netns_link(node);
    match fs::remove_file(&link) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", link.display()))
        }
        _ => Ok(()),
    }
}

/// Takes the directory of the handles away again.
///
/// # Errors
/// The kernel's.
pub fn finish(paths: &Paths) -> Result<()> {
    if paths.netns_root_marker().exists() {
        // Somebody else may use it by now.
        let _ = fs::remove_dir(NETNS_ROOT);
    }
    let directory = paths.namespaces();
    match umount2(&directory, MntFlags::MNT_DETACH) {
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("unmounting {}", directory.display())),
    }
}

/// Unmounts and removes one handle.
///
/// # Errors
/// The kernel's, naming the handle.
pub fn unbind(handle: &Path) -> Result<()> {
    match umount2(handle, MntFlags::MNT_DETACH) {
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
        Err(error) => {
            return Err(error).with_context(|| format!("unmounting {}", handle.display()));
        }
    }
    match fs::remove_file(handle) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", handle.display()))
        }
        _ => Ok(()),
    }
}

fn wait_ready(child: &mut Child, node: &str) -> Result<()> {
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line)?;
    }
    if line.trim_end() == READY {
        return Ok(());
    }
    let mut reason = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        stderr.read_to_string(&mut reason)?;
    }
    bail!("the namespaces of {node} could not be made: {}", reason.trim())
}

fn bind(paths: &Paths, node: &str, process: u32) -> Result<()> {
    for kind in KINDS {
        let handle = paths.namespace(node, kind);
        let source = format!("/proc/{process}/ns/{kind}");
        let none: Option<&str> = None;
        fs::OpenOptions::new().write(true).create_new(true).open(&handle)?;
        mount(Some(source.as_str()), &handle, none, MsFlags::MS_BIND, none)
            .with_context(|| format!("binding {source} to {}", handle.display()))?;
    }
    link(paths, node)
}

/// The child's part: makes the namespaces, arranges the mounts, says so, and waits until its input
/// ends.
///
/// # Errors
/// What the kernel refused.
pub fn init(paths: &Paths, node: &str) -> Result<()> {
    for joining in cgroups::open_for_joining(&paths.cgroup().join(node))? {
        nix::unistd::write(&joining, b"0").context("joining the node's cgroup")?;
    }
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWCGROUP;
    unshare(namespaces).context("making namespaces (is CAP_SYS_ADMIN missing?)")?;
    let none: Option<&str> = None;
    // What the host unmounts later goes away here too; nothing of ours reaches the host.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
    arrange_mounts(paths, node)?;
    // As on machines of their own: what the node unmounts goes in its pods' namespaces too. A file
    // system with pinned programs of eBPF lives, and they stay attached, as long as anybody has it.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SHARED, none)?;
    nix::unistd::sethostname(node)?;
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{READY}")?;
    stdout.flush()?;
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}

fn arrange_mounts(paths: &Paths, node: &str) -> Result<()> {
    // Handles of what the mounts below will cover.
    let state = fs::File::open(STATE_ROOT).with_context(|| format!("opening {STATE_ROOT}"))?;
    let hierarchies = cgroups::hierarchies()?;
    let none: Option<&str> = None;

    let options = format!("mode=755,size={VOLATILE_BYTES_MAX}");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), flags, Some(options.as_str()))
        .context("mounting the node's /run")?;
    private_directory(layout::RUN_DIRECTORY)?;
    private_directory("/run/overlay")?;
    fs::create_dir_all(NETNS_ROOT)?;
    for directory in OVERLAID {
        overlay(directory)?;
    }

    let handle = format!("/proc/self/fd/{}", state.as_raw_fd());
    mount(Some(handle.as_str()), STATE_ROOT, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)
        .with_context(|| format!("binding {STATE_ROOT}"))?;
    let addresses = paths.node(node).join("cni");
    private_directory(&addresses)?;
    fs::create_dir_all("/var/lib/cni")?;
    mount(Some(&addresses), "/var/lib/cni", none, MsFlags::MS_BIND, none)
        .context("binding /var/lib/cni")?;
    fs::create_dir_all(layout::CNI_CONFIGURATION_DIRECTORY)?;
    remove_foreign_configurations()?;

    for hierarchy in hierarchies {
        // The kernel refuses a file system on top of itself, so the host's view goes first.
        umount2(&hierarchy.mount, MntFlags::MNT_DETACH)
            .with_context(|| format!("unmounting {}", hierarchy.mount.display()))?;
        let kind = if hierarchy.controllers.is_empty() { "cgroup2" } else { "cgroup" };
        let options = hierarchy.controllers.join(",");
        let options = (!options.is_empty()).then_some(options.as_str());
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some(kind), &hierarchy.mount, Some(kind), flags, options)
            .with_context(|| format!("mounting {}", hierarchy.mount.display()))?;
    }
    own_ebpf_file_system()
}

/// What the node pins is its own, and goes with its mount namespace. The host's view goes first:
/// an agent whose own is unmounted would find it below, and share it with other nodes.
fn own_ebpf_file_system() -> Result<()> {
    if !Path::new(EBPF_FILE_SYSTEM).is_dir() {
        return Ok(());
    }
    match umount2(EBPF_FILE_SYSTEM, MntFlags::MNT_DETACH) {
        // Nobody has mounted it there.
        Ok(()) | Err(nix::Error::EINVAL) => {}
        Err(error) => {
            return Err(error).with_context(|| format!("unmounting {EBPF_FILE_SYSTEM}"));
        }
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), EBPF_FILE_SYSTEM, Some("bpf"), flags, Some("mode=700"))
        .with_context(|| format!("mounting {EBPF_FILE_SYSTEM}"))
}

/// The host may run a CNI itself; its configurations are not this node's. Only the node's own view
/// changes.
fn remove_foreign_configurations() -> Result<()> {
    for entry in fs::read_dir(layout::CNI_CONFIGURATION_DIRECTORY)?.flatten() {
        if entry.file_type()?.is_file() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Gives the node a version of a host directory whose changes stay in memory: mount points can be
/// made in it without a trace on the host.
fn overlay(directory: &str) -> Result<()> {
    let name = directory.trim_start_matches('/').replace('/', "-");
    let upper = format!("/run/overlay/{name}/upper");
    let work = format!("/run/overlay/{name}/work");
    fs::create_dir_all(&upper)?;
    fs::create_dir_all(&work)?;
    let mode = fs::metadata(directory)?.permissions().mode();
    fs::set_permissions(&upper, fs::Permissions::from_mode(mode))?;
    let options = format!("lowerdir={directory},upperdir={upper},workdir={work}");
    mount(Some("overlay"), directory, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
        .with_context(|| format!("mounting an overlay on {directory}"))
}

fn private_directory(directory: impl AsRef<Path>) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory.as_ref())
        .with_context(|| format!("making {}", directory.as_ref().display()))
}
