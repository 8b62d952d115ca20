//! [`Forwarding`]: pod packets past the kernel's own path, by the programs of `bpf/forward.c`.
//!
//! The programs, their maps and (where the kernel has tcx) their attachments are pinned in the
//! eBPF file system and go on while no process of ours runs (invariant 14):
//!
//! ```text
//! /sys/fs/bpf/flatnet/v1/maps/NAME                  one layout of the maps, of whatever build
//!                       /programs-FINGERPRINT-FLOWS/NAME  the programs of one build, with the
//!                                                   number of the map of flows of Services
//!                       /links/INDEX-NAME           tcx: what is attached to which link
//!                       /sockets-FINGERPRINT-CGROUP the socket fast path, where it is wanted
//! ```
//!
//! Together with Services in eBPF alone: replies to Services that the kernel's path translates would
//! miss their way back.

mod attach;
mod clsact;
mod entries;
pub mod fill;
pub mod handshakes;
mod loader;
mod maps;
pub mod names;
pub mod node;
mod objects;
pub mod service_nat;
pub mod services;
pub mod sockets;
mod strays;
#[allow(unsafe_code)] // commands of bpf(2) that aya lacks
mod syscalls;

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};

use aya::programs::{ProgramType, SchedClassifier, TcAttachType, TestRun};
use aya::sys::{BpfHelper, is_helper_supported};
use netlink::{Link, Netlink};
use render::OpError;

use attach::Hooks;
use entries::Entries;
use objects::Objects;
pub use objects::Program;

/// Where the eBPF file system is on every machine.
pub const FILE_SYSTEM: &str = "/sys/fs/bpf";

/// How the programs are loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The mount point of the eBPF file system; it is mounted where it is not.
    pub file_system: PathBuf,
    /// How programs are attached.
    pub hook: Hook,
}

/// How programs are attached to a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// By a link of their own (Linux 6.6 and later): pinned, replaced in one step.
    Tcx,
    /// As filters of the queueing discipline `clsact`.
    Clsact,
}

/// What this kernel has of what forwarding needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Support {
    /// The way to attach that it has.
    pub hook: Hook,
    /// What is missing, for people. Empty: forwarding can be loaded.
    pub missing: Vec<String>,
}

/// What one turn did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// What was written, for people; also names what had been damaged.
    pub changes: Vec<String>,
    /// What could not be written. Its packets take the kernel's own path.
    pub failures: Vec<OpError>,
}

/// What the kernel holds of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Which programs are attached to which links.
    pub attached: BTreeSet<(String, &'static str)>,
    /// Addresses of pods of this node that are forwarded to.
    pub pods: BTreeSet<IpAddr>,
    /// How many ranges of pods of other nodes are forwarded to.
    pub remotes: usize,
    /// Packets by what became of them, names as in `ebpf_abi::REASONS`.
    pub counters: BTreeMap<&'static str, u64>,
}

/// Loaded programs in one node's network namespace.
pub struct Forwarding {
    options: Options,
    netlink: Netlink,
    hooks: Hooks,
    objects: Objects,
}

/// Says what the kernel has. Changes nothing.
pub fn probe(file_system: &Path) -> Support {
    let mut missing = Vec::new();
    let helpers = [
        (BpfHelper::BPF_FUNC_redirect_peer, "redirect_peer, of Linux 5.10"),
        (BpfHelper::BPF_FUNC_redirect_neigh, "redirect_neigh, of Linux 5.10"),
        (BpfHelper::BPF_FUNC_check_mtu, "check_mtu, of Linux 5.12"),
    ];
    for (helper, name) in helpers {
        match is_helper_supported(ProgramType::SchedClassifier, helper) {
            Ok(true) => {}
            Ok(false) => missing.push(format!("the kernel has no eBPF helper {name}")),
            Err(error) => {
                let cause = refused("ask for eBPF helpers", &error);
                missing.push(cause.message);
                break;
            }
        }
    }
    if !file_system.is_dir() {
        missing.push(format!(
            "{} does not exist: the kernel has no eBPF file system, or /sys is not mounted",
            file_system.display()
        ));
    }
    // Only tcx can be asked what is attached.
    let has_tcx = SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_ok();
    Support { hook: if has_tcx { Hook::Tcx } else { Hook::Clsact }, missing }
}

/// Whether programs of forwarding are there, or were.
pub fn is_present(file_system: &Path) -> bool {
    objects::versioned(file_system).exists()
}

impl Forwarding {
    /// Loads the programs in the way that this kernel has. As [`Forwarding::load`].
    ///
    /// # Errors
    /// Where something is missing, with its name: packets go on by the kernel's own path.
    pub fn open(file_system: &Path) -> Result<Self, OpError> {
        let Support { hook, missing } = probe(file_system);
        if missing.is_empty() {
            return Self::load(&Options { file_system: file_system.to_owned(), hook });
        }
        let reasons = missing.join("; ");
        let message = format!(
            "eBPF forwarding is not possible here, and packets of pods take the kernel's own path: {reasons}"
        );
        Err(OpError { errno: libc::EOPNOTSUPP, message })
    }

    /// Loads the programs, or takes over those that this build loaded before. Nothing is attached
    /// that was not. To be called in the node's network namespace, like all that follows.
    ///
    /// # Errors
    /// When the file system cannot be mounted or the kernel refuses the programs; then packets
    /// take the kernel's own path, as before.
    pub fn load(options: &Options) -> Result<Self, OpError> {
        let objects = Objects::load(&options.file_system)?;
        let hooks = Hooks::open(options.hook, objects.directory())?;
        let netlink = Netlink::open().map_err(from_netlink)?;
        Ok(Self { options: options.clone(), netlink, hooks, objects })
    }

    /// Makes the kernel hold what is wanted, whatever it holds: nothing is written where nothing
    /// differs. Repairs also an unmounted file system (R-04) and detached programs (R-22).
    ///
    /// Order (invariant 5): a pod that is to go is forgotten first; a link's sources are known
    /// before its packets are checked against them; a pod is forwarded to only when what it sends
    /// passes here too, so that no connection is half seen by the kernel's connection tracking.
    ///
    /// # Errors
    /// When the kernel cannot be asked at all.
    pub fn apply(&mut self, wanted: &render::bpf::Forwarding) -> Result<Applied, OpError> {
        let mut done = Applied::default();
        if !self.objects.are_pinned(&self.options.file_system) {
            // What lost its pins is gone, or goes with this process: everything anew.
            *self = Self::load(&self.options)?;
            done.changes.push(format!(
                "loaded the programs anew: pins in {} were gone, or other flows of Services there",
                self.options.file_system.display()
            ));
        }
        let links = self.netlink.links().map_err(from_netlink)?;
        let (mut entries, failures) = Entries::resolve(wanted, &links);
        done.failures.extend(failures);
        self.objects.maps.remove_destinations(&entries, &mut done)?;
        self.objects.maps.write_links(&entries, &mut done)?;
        self.attach(&mut entries, &links, &mut done)?;
        self.objects.maps.remove_destinations(&entries, &mut done)?;
        self.objects.maps.write_destinations(&entries, &mut done)?;
        self.objects.maps.remove_links(&entries, &mut done)?;
        Ok(done)
    }

    /// Reads back what is ours.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn observe(&mut self) -> Result<Observed, OpError> {
        let links = self.netlink.links().map_err(from_netlink)?;
        let mut observed = Observed::default();
        for ((index, program), is_current) in self.hooks.attached(&self.objects.programs, &links)? {
            let link = links.iter().find(|link| link.index == index);
            if let (Some(link), true) = (link, is_current) {
                observed.attached.insert((link.name.clone(), program.name()));
            }
        }
        observed.pods =
            self.objects.maps.pods()?.into_iter().map(|key| canonical(key.into())).collect();
        observed.remotes = self.objects.maps.remotes()?;
        observed.counters = self.counters()?;
        Ok(observed)
    }

    /// Packets by what became of them, names as in `ebpf_abi::REASONS`.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn counters(&self) -> Result<BTreeMap<&'static str, u64>, OpError> {
        self.objects.maps.counters()
    }

    /// Detaches and unpins everything: all packets take the kernel's own path. The socket fast path
    /// has to be removed before.
    ///
    /// # Errors
    /// When something of ours stays.
    pub fn remove(mut self) -> Result<(), OpError> {
        let mut done = self.apply(&render::bpf::Forwarding::default())?;
        match done.failures.pop() {
            Some(failure) => Err(failure),
            None => self.objects.remove(),
        }
    }

    /// Runs a loaded program on one frame, as if it came from a link, without sending anything:
    /// its verdict (`TC_ACT_…`) and the frame as the program left it.
    ///
    /// # Errors
    /// When the kernel refuses the frame.
    pub fn run(
        &self,
        program: Program,
        link_index: u32,
        frame: &[u8],
    ) -> Result<(i32, Vec<u8>), OpError> {
        let passage = Passage { link_index, came_by: 0, mark: 0 };
        let left = run_one(&self.objects.programs, program, passage, frame)?;
        Ok((left.verdict, left.frame))
    }

    /// Attaches what is wanted and detaches what is not. What cannot be attached leaves `entries`
    /// with all that relies on it.
    fn attach(
        &mut self,
        entries: &mut Entries,
        links: &[Link],
        done: &mut Applied,
    ) -> Result<(), OpError> {
        let attached = self.hooks.attached(&self.objects.programs, links)?;
        for (index, program) in entries.hooks.clone() {
            if attached.get(&(index, program)) == Some(&true) {
                continue;
            }
            let Some(link) = links.iter().find(|link| link.index == index) else { continue };
            let loaded = self.objects.programs.get_mut(&program).ok_or_else(absent)?;
            match self.hooks.attach(program, loaded, link) {
                Ok(()) => {
                    done.changes.push(format!("attached {} to {}", program.name(), link.name));
                }
                Err(failure) => {
                    done.failures.push(failure);
                    entries.withdraw(index, program);
                }
            }
        }
        for (index, program) in attached.into_keys() {
            if entries.hooks.contains(&(index, program)) {
                continue;
            }
            match self.hooks.detach(program, index) {
                Ok(()) => done
                    .changes
                    .push(format!("detached {} from link number {index}", program.name())),
                Err(failure) => done.failures.push(failure),
            }
        }
        Ok(())
    }
}

/// Where a frame is when a program is run on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passage {
    /// The link whose program it is.
    pub link_index: u32,
    /// The link that it came to this node by; 0: this node made it.
    pub came_by: u32,
    /// The packet's mark.
    pub mark: u32,
}

/// What a program made of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// `TC_ACT_…`.
    pub verdict: i32,
    /// The packet's mark.
    pub mark: u32,
    /// The frame.
    pub frame: Vec<u8>,
}

/// Runs one of the loaded programs on one frame, without sending anything.
fn run_one(
    programs: &BTreeMap<Program, SchedClassifier>,
    program: Program,
    passage: Passage,
    frame: &[u8],
) -> Result<Left, OpError> {
    let mut context = [0; CONTEXT_BYTES];
    for (place, value) in [
        (CONTEXT_MARK, passage.mark),
        (CONTEXT_CAME_BY, passage.came_by),
        (CONTEXT_LINK_INDEX, passage.link_index),
    ] {
        context[place..place + 4].copy_from_slice(&value.to_ne_bytes());
    }
    let mut context_left = [0; CONTEXT_LEFT_BYTES_MAX];
    let mut left = vec![0; frame.len() + GROWTH_BYTES];
    let options = aya::programs::TestRunOptions {
        data_in: Some(frame),
        data_out: Some(&mut left),
        ctx_in: Some(&context),
        ctx_out: Some(&mut context_left),
        ..aya::programs::TestRunOptions::new()
    };
    let loaded = programs.get(&program).ok_or_else(absent)?;
    let result = loaded
        .test_run(options)
        .map_err(|error| refused(&format!("run the program {}", program.name()), &error))?;
    left.truncate(result.data_size_out as usize);
    let mut mark = [0; 4];
    mark.copy_from_slice(&context_left[CONTEXT_MARK..CONTEXT_MARK + 4]);
    let verdict = result.return_value.cast_signed();
    Ok(Left { verdict, mark: u32::from_ne_bytes(mark), frame: left })
}

/// Most bytes that a program adds to a frame: the records of a name.
const GROWTH_BYTES: usize = 512;
/// Bytes of the kernel's `struct __sk_buff` up to and with the index of the link.
const CONTEXT_BYTES: usize = 44;
/// Bytes of all of it, with room for what later kernels may add.
const CONTEXT_LEFT_BYTES_MAX: usize = 512;
/// Where the mark is there.
const CONTEXT_MARK: usize = 8;
/// Where the index of the link is that the frame came by.
const CONTEXT_CAME_BY: usize = 36;
/// Where the index of the link is.
const CONTEXT_LINK_INDEX: usize = 40;

/// An address as people write it: IPv4 where it is mapped.
fn canonical(address: Ipv6Addr) -> IpAddr {
    IpAddr::V6(address).to_canonical()
}

fn absent() -> OpError {
    OpError { errno: libc::ENOENT, message: "the object file lacks one of its programs".into() }
}

fn from_netlink(error: netlink::Error) -> OpError {
    OpError { errno: error.errno, message: error.to_string() }
}

/// An error of the eBPF library with all its causes, the errno of the kernel's refusal in it, and
/// what to do where that is known.
fn refused(action: &str, error: &(dyn Error + 'static)) -> OpError {
    let (mut errno, mut message) = (0, format!("cannot {action}: {error}"));
    let mut cause = Some(error);
    while let Some(one) = cause {
        if let Some(system) = one.downcast_ref::<io::Error>() {
            errno = system.raw_os_error().unwrap_or(errno);
        }
        cause = one.source();
        if let Some(text) = cause.map(ToString::to_string)
            && !message.contains(&text)
        {
            message.push_str(": ");
            message.push_str(&text);
        }
    }
    if errno == libc::EPERM {
        message.push_str("; this needs CAP_BPF and CAP_NET_ADMIN, or CAP_SYS_ADMIN");
    }
    OpError { errno, message }
}
