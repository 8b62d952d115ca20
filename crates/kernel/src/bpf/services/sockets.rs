//! The programs of `bpf/socket_services.c` at the node's own cgroup.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use aya::include_bytes_aligned;
use aya::programs::cgroup_sock_addr::CgroupSockAddrLink;
use aya::programs::links::{FdLink, LinkError};
use aya::programs::{CgroupAttachMode, CgroupSockAddr, CgroupSockAddrAttachType};
use render::OpError;
use render::ebpf::Sizes;

use super::super::attach::unpin;
use super::super::loader::Loader;
use super::super::objects::{fingerprint, make_directory};
use super::super::{absent, refused, strays, syscalls};
use super::maps;

/// `bpf/socket_services.c`, compiled.
static SOCKET_SERVICES: &[u8] =
    include_bytes_aligned!(concat!(env!("OUT_DIR"), "/socket_services.o"));
/// Its fingerprint: whoever looks whether programs are attached asks for it again and again.
static BUILD: LazyLock<String> = LazyLock::new(|| fingerprint(SOCKET_SERVICES));

/// The programs, by name as in the object file.
pub(super) const PROGRAMS: [(&str, CgroupSockAddrAttachType); 8] = [
    ("connect4", CgroupSockAddrAttachType::Connect4),
    ("connect6", CgroupSockAddrAttachType::Connect6),
    ("recvmsg4", CgroupSockAddrAttachType::UDPRecvMsg4),
    ("recvmsg6", CgroupSockAddrAttachType::UDPRecvMsg6),
    ("getpeername4", CgroupSockAddrAttachType::GetPeerName4),
    ("getpeername6", CgroupSockAddrAttachType::GetPeerName6),
    // Last, so that who may send hears the answers in its own words.
    ("sendmsg4", CgroupSockAddrAttachType::UDPSendMsg4),
    ("sendmsg6", CgroupSockAddrAttachType::UDPSendMsg6),
];

/// Beginnings of the names of those that lead what is new. The others only tell, of what has been
/// led, who the other end is.
const LEADING: [&str; 2] = ["connect", "sendmsg"];

/// Maps of the programs themselves, with the size that each has.
const OWN_MAPS: [(&str, maps::SizeOf); 3] = [
    ("connections", |_| 0),
    ("datagrams", |sizes| sizes.clients),
    ("answers", |sizes| sizes.clients),
];

const PROGRAMS_PREFIX: &str = "sockets-";

/// Makes the maps that are not there yet. `top` has the programs that were loaded with them.
pub(super) fn make_maps(top: &Path, directory: &Path, sizes: &Sizes) -> Result<(), OpError> {
    if are_pinned(directory, sizes) {
        return Ok(());
    }
    // Programs of other maps: what they do cannot be seen or changed any more.
    remove_builds(top, None)?;
    loader(directory, sizes).make_maps()
}

/// Whether all maps have their pins.
pub(super) fn are_pinned(directory: &Path, sizes: &Sizes) -> bool {
    all_maps(sizes).iter().all(|(name, _)| directory.join(name).exists())
}

/// The programs of one build, loaded and pinned below the directory of one layout.
pub(super) struct SocketPrograms {
    programs: BTreeMap<&'static str, CgroupSockAddr>,
}

impl SocketPrograms {
    /// Takes over the programs that an earlier process of this build pinned, or loads them.
    pub(super) fn load(top: &Path, maps: &Path, sizes: &Sizes) -> Result<Self, OpError> {
        let directory = top.join(format!("{PROGRAMS_PREFIX}{}", *BUILD));
        make_directory(&directory)?;
        let is_whole = PROGRAMS.iter().all(|(name, _)| directory.join(name).exists());
        if !is_whole {
            load_programs(&directory, maps, sizes)?;
        }
        let mut programs = BTreeMap::new();
        for (name, attach_type) in PROGRAMS {
            let path = directory.join(name);
            let program = CgroupSockAddr::from_pin(&path, attach_type).map_err(|error| {
                refused(&format!("open the program {}", path.display()), &error)
            })?;
            programs.insert(name, program);
        }
        Ok(Self { programs })
    }

    /// Attaches them to a cgroup of version 2, in place of what we had attached there before: in
    /// one step each, so that no connect goes by untranslated. Answers what was written.
    pub(super) fn attach(&mut self, links: &Path, cgroup: &Path) -> Result<Vec<String>, OpError> {
        make_directory(links)?;
        let opening = |error| refused(&format!("open the cgroup {}", cgroup.display()), &error);
        let group = File::open(cgroup).map_err(opening)?;
        let number = group.metadata().map_err(opening)?.ino();
        let mut changes = Vec::new();
        for (name, _) in PROGRAMS {
            let program = self.programs.get_mut(name).ok_or_else(absent)?;
            let pin = links.join(format!("{number}-{name}"));
            if attach_one(program, &pin, &group)? {
                changes.push(format!("attached {name} to {}", cgroup.display()));
            }
        }
        if !changes.is_empty() {
            let present: Result<Vec<_>, _> =
                self.programs.values().map(CgroupSockAddr::info).collect();
            let present = present.map_err(|error| refused("look at the programs", &error))?;
            let strays = strays::detach_from_cgroup(number, &present)?;
            let told =
                |name: String| format!("detached a {name} of before, which had lost its pin");
            changes.extend(strays.into_iter().map(told));
        }
        Ok(changes)
    }

    /// Which programs of this build are attached to a cgroup.
    pub(super) fn attached(
        &self,
        links: &Path,
        cgroup: &Path,
    ) -> Result<Vec<&'static str>, OpError> {
        let metadata = fs::metadata(cgroup)
            .map_err(|error| refused(&format!("find the cgroup {}", cgroup.display()), &error))?;
        let mut attached = Vec::new();
        for (name, program) in &self.programs {
            let pin = links.join(format!("{}-{name}", metadata.ino()));
            if is_attached(program, &pin)? {
                attached.push(*name);
            }
        }
        Ok(attached)
    }
}

/// Detaches the programs from all cgroups but one.
pub(super) fn detach_others(links: &Path, cgroup: Option<&Path>) -> Result<(), OpError> {
    let kept = cgroup.and_then(|cgroup| fs::metadata(cgroup).ok());
    let kept = kept.map(|metadata| format!("{}-", metadata.ino()));
    detach_where(links, |name| kept.as_ref().is_none_or(|kept| !name.starts_with(kept)))
}

/// Detaches the programs that lead what is new. Answers to what was led before still come, and only
/// with the others attached do they come from whom the client asked.
pub(super) fn detach_leading(links: &Path) -> Result<(), OpError> {
    detach_where(links, leads)
}

/// Whether any program that leads what is new is attached to any cgroup.
pub(super) fn is_any_leading(links: &Path) -> bool {
    let names = fs::read_dir(links).into_iter().flatten().flatten();
    names.map(|entry| entry.file_name()).any(|name| leads(&name.to_string_lossy()))
}

/// Whether an attachment's pin, by its name, is one of a program that leads what is new.
fn leads(pin: &str) -> bool {
    let program = pin.split_once('-').map_or(pin, |(_, program)| program);
    LEADING.iter().any(|begin| program.starts_with(begin))
}

fn detach_where(links: &Path, goes: impl Fn(&str) -> bool) -> Result<(), OpError> {
    let failed = |error: std::io::Error| refused(&format!("clean up {}", links.display()), &error);
    if !links.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(links).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if goes(&entry.file_name().to_string_lossy()) {
            unpin(&entry.path())?;
        }
    }
    Ok(())
}

/// Unpins programs of other builds. Attached ones work on until they are replaced.
pub(super) fn remove_other_builds(top: &Path) -> Result<(), OpError> {
    remove_builds(top, Some(&format!("{PROGRAMS_PREFIX}{}", *BUILD)))
}

fn remove_builds(top: &Path, except: Option<&str>) -> Result<(), OpError> {
    let failed = |error: std::io::Error| refused(&format!("clean up {}", top.display()), &error);
    for entry in fs::read_dir(top).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(PROGRAMS_PREFIX) && Some(name.as_ref()) != except {
            fs::remove_dir_all(entry.path()).map_err(failed)?;
        }
    }
    Ok(())
}

fn all_maps(sizes: &Sizes) -> Vec<(&'static str, u32)> {
    maps::sizes(sizes).chain(OWN_MAPS.map(|(name, size)| (name, size(sizes)))).collect()
}

fn loader(maps: &Path, sizes: &Sizes) -> Loader<'static> {
    let what = "the programs of Services at the socket";
    let mut loader = Loader::new(what, SOCKET_SERVICES, maps);
    for (name, size) in all_maps(sizes) {
        if size != 0 {
            loader.with_entries(name, size);
        }
    }
    loader
}

fn load_programs(directory: &Path, maps: &Path, sizes: &Sizes) -> Result<(), OpError> {
    loader(maps, sizes).load(&PROGRAMS.map(|(name, _)| (name, directory.join(name))))
}

/// Answers whether something was written.
fn attach_one(program: &mut CgroupSockAddr, pin: &Path, group: &File) -> Result<bool, OpError> {
    if pin.exists() {
        if is_attached(program, pin)? {
            return Ok(false);
        }
        let fd = program.fd().map_err(|error| refused("attach a program", &error))?;
        let link = syscalls::open_pin(pin)
            .map_err(|error| refused(&format!("open {}", pin.display()), &error))?;
        if syscalls::update_link(link.as_fd(), fd.as_fd()).is_ok() {
            return Ok(true);
        }
        // Of a cgroup that had this number before.
        unpin(pin)?;
    }
    let failed = |error: &(dyn std::error::Error + 'static)| {
        refused(&format!("attach the program of {}", pin.display()), error)
    };
    // `Single` makes no flags, the only ones that an attachment of its own may have; other
    // programs of this cgroup and those above run all the same.
    let id = program.attach(group, CgroupAttachMode::Single).map_err(|error| failed(&error))?;
    let link: CgroupSockAddrLink = program.take_link(id).map_err(|error| failed(&error))?;
    let link = FdLink::try_from(link).map_err(|error: LinkError| failed(&error))?;
    link.pin(pin).map_err(|error| failed(&error))?;
    Ok(true)
}

fn is_attached(program: &CgroupSockAddr, pin: &Path) -> Result<bool, OpError> {
    if !pin.exists() {
        return Ok(false);
    }
    let failed = |error: &(dyn std::error::Error + 'static)| {
        refused(&format!("look at {}", pin.display()), error)
    };
    let link = syscalls::open_pin(pin).map_err(|error| failed(&error))?;
    let present = syscalls::attachment(link.as_fd()).map_err(|error| failed(&error))?;
    let own = program.info().map_err(|error| failed(&error))?;
    // Somebody may have detached it: then the pin attaches nothing.
    Ok(present.cgroup != 0 && present.program_id == own.id())
}

/// Where attachments are pinned: one directory for all layouts, so that a new one takes over.
pub(super) fn links_directory(top: &Path) -> PathBuf {
    top.join(LINKS)
}

/// Their name below our directory.
pub(super) const LINKS: &str = "service-links";
