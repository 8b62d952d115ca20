//! What the worker does with privileges: enter a namespace, then give up all of them.
#![allow(unsafe_code)]

use std::path::Path;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Open files that the worker can make use of: its clients, and a few sockets for each question
/// that waits for an upstream server.
const FILES_WANTED: u64 = 16384;
/// Capability numbers are tried up to this one; the kernel says where they end.
const MAX_CAPABILITY: libc::c_ulong = 63;

/// The header of capset(2), version 3.
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    process: i32,
}

/// One of the two words of capset(2).
#[repr(C)]
#[derive(Clone, Copy)]
struct CapabilityData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// `_LINUX_CAPABILITY_VERSION_3`.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// Moves this process, which has one thread, into a network namespace.
pub(crate) fn enter_network_namespace(path: &Path) -> Result<()> {
    let enter = || -> Result<()> {
        let namespace = std::fs::File::open(path)?;
        Ok(setns(namespace, CloneFlags::CLONE_NEWNET)?)
    };
    enter().with_context(|| {
        format!(
            "entering the network namespace {} for upstream DNS servers: it must exist, and the \
             worker must be started as root",
            path.display()
        )
    })
}

/// A soft limit of 1,024 files is usual and a little low. Where it cannot be raised, fewer
/// questions wait at one time.
pub(crate) fn raise_file_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < FILES_WANTED
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, FILES_WANTED.min(hard), hard);
    }
}

/// Gives up every capability for good, also for whatever would be executed.
pub(crate) fn drop_all() -> Result<()> {
    for capability in 0..=MAX_CAPABILITY {
        // SAFETY: prctl with integers only; an unknown number is refused with EINVAL.
        let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        match Errno::result(dropped) {
            Ok(_) => {}
            // The last capability of this kernel is behind us.
            Err(Errno::EINVAL) => break,
            // Without CAP_SETPCAP the bounding set stays. With no_new_privs, nothing executed
            // gains from it.
            Err(Errno::EPERM) => break,
            Err(error) => return Err(error).context("dropping the bounding set"),
        }
    }
    // SAFETY: prctl with integers only.
    let cleared = unsafe {
        libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong, 0, 0, 0)
    };
    Errno::result(cleared).context("clearing ambient capabilities")?;
    let header = CapabilityHeader { version: CAPABILITY_VERSION, process: 0 };
    let none = [CapabilityData { effective: 0, permitted: 0, inheritable: 0 }; 2];
    // SAFETY: both point to values of the layout that version 3 of capset(2) reads, alive for the
    // call; process 0 is the calling thread.
    let set = unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) };
    Errno::result(set).context("clearing capabilities")?;
    nix::sys::prctl::set_no_new_privs().context("setting no_new_privs")
}
