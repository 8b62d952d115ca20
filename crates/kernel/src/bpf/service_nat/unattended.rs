//! Programs for a pod's link while no agent is there to bring them: the plugin attaches what
//! the agent has loaded and pinned, as the agent would, who adopts it when it is back.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use ebpf_abi::flows::{FLOWS_VERSION, NAT_DRAINING, NAT_LINK_POD, NatLink, NatSettings};
use netlink::{Link, Netlink};
use render::OpError;

use super::super::attach;
use super::super::clsact::Clsact;
use super::super::objects::{PROGRAMS_PREFIX, Program};
use super::super::{from_netlink, refused, syscalls};
use super::{DIRECTORY_PREFIX, LinkKind, entries_of, nat_link, own_addresses, uplink};

/// Brings a pod's link to what the agent would bring it to. Answers whether it has its programs;
/// false where nobody's programs are there to be attached, or another backend takes over.
///
/// To be called in the node's network namespace. An agent that does the same at this moment is not
/// disturbed.
///
/// # Errors
/// When the link is gone, or the kernel refuses.
pub fn attach(file_system: &Path, link: &str) -> Result<bool, OpError> {
    let directory = file_system.join("flatnet").join(format!("{DIRECTORY_PREFIX}{FLOWS_VERSION}"));
    let Some(programs) = find_programs(&directory)? else { return Ok(false) };
    let maps = directory.join("maps");
    if is_draining(&maps)? {
        return Ok(false);
    }
    let mut netlink = Netlink::open().map_err(from_netlink)?;
    let link = netlink.require_link(link).map_err(from_netlink)?;
    make_known(&mut netlink, &maps, &link)?;
    // What leaves first: an answer that finds its flow must also find its way back.
    for program in [Program::ServiceLeave, Program::ServiceEnter] {
        let pin = programs.join(program.name());
        let loaded = open(&pin)?;
        attach_one(&directory.join("links"), program, &loaded, &link)?;
    }
    Ok(true)
}

/// The directory of the programs that an agent loaded. While one loads another build's there are two
/// for a moment, of which either does: that agent is about to replace them.
fn find_programs(directory: &Path) -> Result<Option<PathBuf>, OpError> {
    let is_whole = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(PROGRAMS_PREFIX)
            && !name.starts_with(&uplink::prefix())
            && Program::SERVICES.iter().all(|program| path.join(program.name()).exists())
    };
    Ok(entries_of(directory)?.into_iter().find(is_whole))
}

fn is_draining(maps: &Path) -> Result<bool, OpError> {
    let (_, settings) = read(&maps.join("nat_settings"), size_of::<u32>(), NatSettings::BYTES)?;
    let settings: Option<[u8; NatSettings::BYTES]> = settings.first_chunk().copied();
    Ok(settings.is_none_or(|bytes| NatSettings::from_bytes(&bytes).flags & NAT_DRAINING != 0))
}

/// Tells the programs of the link. The addresses that flows get which leave by it are those of its
/// bridge or its own; of a family that these lack the node's, which other links' entries have.
fn make_known(netlink: &mut Netlink, maps: &Path, link: &Link) -> Result<(), OpError> {
    let path = maps.join("nat_links");
    let (_, values) = read(&path, size_of::<u32>(), NatLink::BYTES)?;
    let mut others: Vec<NatLink> = values.as_chunks().0.iter().map(NatLink::from_bytes).collect();
    // Those of the same kind first.
    others.sort_by_key(|other| other.flags & NAT_LINK_POD == 0);
    let known = others.iter().flat_map(|other| {
        [IpAddr::V4(Ipv4Addr::from(other.ipv4)), IpAddr::V6(Ipv6Addr::from(other.ipv6))]
    });
    let all = netlink.addresses(None).map_err(from_netlink)?;
    let mut addresses = own_addresses(link, &all);
    addresses.extend(known.filter(|address| !address.is_unspecified()));
    let entry = nat_link(LinkKind::Pod, link, &addresses).to_bytes();
    syscalls::update_batch(open(&path)?.as_fd(), &link.index.to_ne_bytes(), &entry, 1)
        .map_err(|error| refused(&format!("write {} for Services", link.name), &error))
}

fn attach_one(pins: &Path, program: Program, loaded: &OwnedFd, link: &Link) -> Result<(), OpError> {
    let pin = attach::pin(pins, link.index, program);
    let failed = |error: std::io::Error| {
        refused(&format!("attach {} to {}", program.name(), link.name), &error)
    };
    if let Ok(present) = syscalls::open_pin(&pin) {
        let present = syscalls::attachment(present.as_fd()).map_err(failed)?;
        if present.link_index == link.index {
            return Ok(());
        }
        // Of a link that had this number before.
        fs::remove_file(&pin).map_err(failed)?;
    }
    let attached = match syscalls::attach_tcx(loaded.as_fd(), link.index, program.side()) {
        // A kernel without tcx, by which nothing is attached then.
        Err(error)
            if error.raw_os_error() == Some(libc::EINVAL) && entries_of(pins)?.is_empty() =>
        {
            let mut filters = Clsact::open().map_err(from_netlink)?;
            return filters.attach(program, loaded, link).map_err(from_netlink);
        }
        attached => attached.map_err(failed)?,
    };
    match syscalls::pin(attached.as_fd(), &pin) {
        // The agent was faster: its own attachment stays.
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        pinned => pinned.map_err(failed),
    }
}

fn open(pin: &Path) -> Result<OwnedFd, OpError> {
    syscalls::open_pin(pin).map_err(|error| refused(&format!("open {}", pin.display()), &error))
}

fn read(pin: &Path, key_bytes: usize, value_bytes: usize) -> Result<(Vec<u8>, Vec<u8>), OpError> {
    syscalls::read_all(open(pin)?.as_fd(), key_bytes, value_bytes)
        .map_err(|error| refused(&format!("read {}", pin.display()), &error))
}
