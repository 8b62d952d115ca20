//! Attachments of ours whose pins are gone though they live: the file system of the pins was
//! unmounted, and somebody else has a copy of that mount, as a container that was given it.
//! They would lead packets by what they knew then, as long as that copy is there.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::os::fd::AsFd;

use aya::maps::MapInfo;
use aya::programs::{ProgramInfo, SchedClassifier, TcAttachType, loaded_programs};
use netlink::Link;
use render::OpError;

use super::refused;
use super::syscalls::{self, Attachment};

/// Detaches from a cgroup of this number what was attached before the present programs, each by its
/// name. Answers the names of what was detached.
///
/// # Errors
/// When the kernel cannot be asked, or keeps one.
pub(super) fn detach_from_cgroup(
    number: u64,
    present: &[ProgramInfo],
) -> Result<Vec<String>, OpError> {
    let mut attached = BTreeSet::new();
    let is_there = |attachment: &Attachment| attachment.cgroup == number;
    syscalls::each_attachment(|_, attachment| {
        if is_there(attachment) {
            attached.insert(attachment.program_id);
        }
        Ok(())
    })
    .map_err(|error| failed(&error))?;
    for own in present {
        attached.remove(&own.id());
    }
    // Usually nothing else is there, and all programs of the machine need not be read.
    if attached.is_empty() {
        return Ok(Vec::new());
    }
    let programs = loaded_programs().flatten().filter(|info| attached.contains(&info.id()));
    detach(programs, present, is_there)
}

/// The same at one side of a link of this thread's network namespace.
///
/// # Errors
/// As before.
pub(super) fn detach_from_link(
    link: &Link,
    side: TcAttachType,
    present: ProgramInfo,
) -> Result<Vec<String>, OpError> {
    // Numbers of links are those of one network namespace, and programs those of one node.
    let (_, programs) =
        SchedClassifier::query_tcx(&link.name, side).map_err(|error| failed(&error))?;
    detach(programs.into_iter(), &[present], |attachment| attachment.link_index == link.index)
}

/// Programs of others stay: ours have the name of a present one, and a map named as one of its.
fn detach(
    programs: impl Iterator<Item = ProgramInfo>,
    present: &[ProgramInfo],
    is_there: impl Fn(&Attachment) -> bool,
) -> Result<Vec<String>, OpError> {
    let is_of_before = |one: &ProgramInfo, own: &ProgramInfo| {
        one.id() != own.id()
            && one.name_as_str() == own.name_as_str()
            && !map_names(one).is_disjoint(&map_names(own))
    };
    let ours: BTreeMap<u32, String> = programs
        .filter(|one| present.iter().any(|own| is_of_before(one, own)))
        .map(|one| (one.id(), one.name_as_str().unwrap_or_default().to_owned()))
        .collect();
    let mut detached = Vec::new();
    if ours.is_empty() {
        return Ok(detached);
    }
    syscalls::each_attachment(|link, attachment| {
        if let Some(name) = ours.get(&attachment.program_id).filter(|_| is_there(attachment)) {
            syscalls::detach(link.as_fd())?;
            detached.push(name.clone());
        }
        Ok(())
    })
    .map_err(|error| failed(&error))?;
    Ok(detached)
}

/// Names of a program's maps, without those that the compiler made of sections.
fn map_names(program: &ProgramInfo) -> BTreeSet<String> {
    let ids = program.map_ids().ok().flatten().unwrap_or_default();
    let maps = ids.into_iter().filter_map(|id| MapInfo::from_id(id).ok());
    let names = maps.filter_map(|map| map.name_as_str().map(str::to_owned));
    names.filter(|name| !name.contains('.')).collect()
}

fn failed(error: &(dyn Error + 'static)) -> OpError {
    refused("detach programs whose pins are gone", error)
}
