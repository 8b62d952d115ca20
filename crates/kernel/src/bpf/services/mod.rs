//! [`EbpfDriver`]: Services in eBPF. It keeps the maps that the programs at the socket
//! (`bpf/socket_services.c`) and those that see each packet (`bpf/service_nat.c`) share, and
//! attaches the former.
//!
//! ```text
//! /sys/fs/bpf/flatnet/services-vN-SIZES/maps/NAME       one layout and size of the maps
//!                                      /sockets-FINGERPRINT/NAME  programs of one build
//!                    /service-links/CGROUP-NAME          what is attached to which cgroup
//! ```
//!
//! Another layout or size (a new version, another configuration) is another directory: its maps
//! are filled while the old programs work on with the old ones; then the attachments get the new
//! programs, one step each, and the old directory goes (R-03).

mod maps;
mod sockets;

use std::fs;
use std::path::{Path, PathBuf};

use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported};
use ebpf_abi::services::{SERVICES_VERSION, ServiceSettings};
use render::OpError;
use render::ebpf::{EbpfObserved, EbpfOp, Sizes};

use super::objects::{make_directory, require_file_system};
use super::{refused, syscalls};
use maps::Maps;
use sockets::SocketPrograms;

/// The maps whose sizes are configured.
pub(super) const SIZED: [&str; 9] = [
    "services",
    "ranges",
    "slots",
    "maglev",
    "members",
    "service_sources",
    "affinities",
    "datagrams",
    "answers",
];
const DIRECTORY_PREFIX: &str = "services-v";

/// Services in eBPF, in one node's network namespace. All of it is pinned and outlives this value.
pub struct EbpfDriver {
    top: PathBuf,
    directory: PathBuf,
    sizes: Sizes,
    maps: Maps,
}

/// Where the maps of this layout and these sizes are pinned: what other programs that include
/// `bpf/services.h` are loaded with.
pub fn maps_directory(file_system: &Path, sizes: &Sizes) -> PathBuf {
    file_system.join("flatnet").join(directory_name(sizes)).join("maps")
}

/// Whether all maps of this layout and these sizes are pinned.
pub fn has_maps(file_system: &Path, sizes: &Sizes) -> bool {
    sockets::are_pinned(&maps_directory(file_system, sizes), sizes)
}

/// Whether anything of Services in eBPF is pinned here.
pub fn is_present(file_system: &Path) -> bool {
    let prefixes = [DIRECTORY_PREFIX, sockets::LINKS, super::service_nat::DIRECTORY_PREFIX];
    fs::read_dir(file_system.join("flatnet")).into_iter().flatten().flatten().any(|entry| {
        let name = entry.file_name();
        prefixes.iter().any(|prefix| name.to_string_lossy().starts_with(prefix))
    })
}

/// Says what this kernel lacks of what Services in eBPF need; empty: it has all. Changes nothing.
pub fn missing() -> Vec<String> {
    let helpers = [
        (BpfHelper::BPF_FUNC_get_netns_cookie, "get_netns_cookie, of Linux 5.7"),
        (BpfHelper::BPF_FUNC_get_socket_cookie, "get_socket_cookie, of Linux 4.12"),
        (BpfHelper::BPF_FUNC_sk_storage_get, "sk_storage_get, of Linux 5.2"),
    ];
    let mut missing = Vec::new();
    for (helper, name) in helpers {
        match is_helper_supported(ProgramType::CgroupSockAddr, helper) {
            Ok(true) => {}
            Ok(false) => missing.push(format!("the kernel has no eBPF helper {name}")),
            Err(error) => {
                missing.push(refused("ask for eBPF helpers", &error).message);
                break;
            }
        }
    }
    missing
}

impl EbpfDriver {
    /// Opens the maps of this layout and these sizes, or makes them, empty; no program is attached
    /// or changed. To be called in the node's network namespace.
    ///
    /// # Errors
    /// When the file system cannot be mounted or the kernel refuses a map.
    pub fn open(file_system: &Path, sizes: Sizes) -> Result<Self, OpError> {
        require_file_system(file_system)?;
        let top = file_system.join("flatnet");
        let directory = top.join(directory_name(&sizes));
        let maps_directory = directory.join("maps");
        make_directory(&maps_directory)?;
        sockets::make_maps(&directory, &maps_directory, &sizes)?;
        let maps = Maps::open(&maps_directory, sizes)?;
        let node_namespace = syscalls::namespace_cookie()
            .map_err(|error| refused("ask for the number of the network namespace", &error))?;
        maps.set(&ServiceSettings { node_namespace })?;
        Ok(Self { top, directory, sizes, maps })
    }

    /// Whether the next process would find the maps that this one uses.
    pub fn are_pinned(&self) -> bool {
        sockets::are_pinned(&self.maps_directory(), &self.sizes)
    }

    /// As [`maps_directory`].
    pub fn maps_directory(&self) -> PathBuf {
        self.directory.join("maps")
    }

    /// Reads back what the maps hold.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn observe(&mut self) -> Result<EbpfObserved, OpError> {
        self.maps.observe()
    }

    /// Carries out one op.
    ///
    /// # Errors
    /// The kernel's refusal: the entries before the refused one are changed, so the maps have to
    /// be observed again.
    pub fn apply(&mut self, op: &EbpfOp) -> Result<(), OpError> {
        self.maps.apply(op)
    }

    /// Attaches the programs at the socket to the processes of a cgroup of version 2: the node's
    /// own and its pods', and no other node's. Once the maps hold what they shall (invariant 5).
    /// Answers what was written: nothing where this build with these maps is attached already.
    ///
    /// # Errors
    /// When the kernel refuses the programs.
    pub fn attach(&mut self, cgroup: &Path) -> Result<Vec<String>, OpError> {
        let mut programs =
            SocketPrograms::load(&self.directory, &self.maps_directory(), &self.sizes)?;
        let changes = programs.attach(&self.links(), cgroup)?;
        sockets::detach_others(&self.links(), Some(cgroup))?;
        sockets::remove_other_builds(&self.directory)?;
        Ok(changes)
    }

    /// Which programs of this build, with these maps, are attached to a cgroup.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn attached(&self, cgroup: &Path) -> Result<Vec<&'static str>, OpError> {
        let programs = SocketPrograms::load(&self.directory, &self.maps_directory(), &self.sizes)?;
        programs.attached(&self.links(), cgroup)
    }

    /// Whether all programs of this build, with these maps, are attached to a cgroup.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn is_attached(&self, cgroup: &Path) -> Result<bool, OpError> {
        Ok(self.attached(cgroup)?.len() == sockets::PROGRAMS.len())
    }

    /// Whether anything new is led at any socket.
    pub fn is_leading(&self) -> bool {
        sockets::is_any_leading(&self.links())
    }

    /// Leads nothing new at sockets: new connections and datagrams go to the packet path,
    /// established ones are at their endpoints already. The programs that name Services to those
    /// who asked for them stay until [`EbpfDriver::remove`].
    ///
    /// # Errors
    /// When something stays attached.
    pub fn detach(&mut self) -> Result<(), OpError> {
        sockets::detach_leading(&self.links())
    }

    /// Removes the maps of other layouts and sizes, once all programs have been replaced.
    ///
    /// # Errors
    /// When something stays.
    pub fn remove_others(&mut self) -> Result<(), OpError> {
        remove(&self.top, |name| self.directory.file_name() != Some(name.as_ref()))
    }

    /// Detaches and removes everything, also of other layouts.
    ///
    /// # Errors
    /// When something of ours stays.
    pub fn remove(self) -> Result<(), OpError> {
        sockets::detach_others(&self.links(), None)?;
        remove(&self.top, |_| true)?;
        // Others of ours may have something there.
        for directory in [self.links(), self.top] {
            let _ = fs::remove_dir(directory);
        }
        Ok(())
    }

    fn links(&self) -> PathBuf {
        sockets::links_directory(&self.top)
    }
}

/// Sizes are in the name, so that maps of other sizes are other maps. Flows are not among them.
fn directory_name(sizes: &Sizes) -> String {
    let Sizes { services, slots, clients, flows: _ } = sizes;
    format!("{DIRECTORY_PREFIX}{SERVICES_VERSION}-{services}-{slots}-{clients}")
}

fn remove(top: &Path, goes: impl Fn(&str) -> bool) -> Result<(), OpError> {
    let failed = |error: std::io::Error| refused(&format!("clean up {}", top.display()), &error);
    for entry in fs::read_dir(top).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(DIRECTORY_PREFIX) && goes(&name) {
            fs::remove_dir_all(entry.path()).map_err(failed)?;
        }
    }
    Ok(())
}
