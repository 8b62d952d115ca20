//! Programs at the ingress and the egress of links.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use aya::programs::links::{FdLink, LinkOrder, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::{ProgramError, ProgramId, SchedClassifier};
use netlink::Link;
use render::OpError;

use super::clsact::Clsact;
use super::objects::Program;
use super::{Hook, from_netlink, refused, strays, syscalls};

/// Attached programs by link index, and whether it is the program of this build.
pub(super) type Attached = BTreeMap<(u32, Program), bool>;

/// The way to attach that this kernel has.
pub(super) enum Hooks {
    /// One pin an attachment, in this directory.
    Tcx(PathBuf),
    /// Filters.
    Clsact(Clsact),
}

impl Hooks {
    pub(super) fn open(hook: Hook, directory: &Path) -> Result<Self, OpError> {
        Ok(match hook {
            Hook::Tcx => Self::Tcx(directory.join("links")),
            Hook::Clsact => Self::Clsact(Clsact::open().map_err(from_netlink)?),
        })
    }

    pub(super) fn attached(
        &mut self,
        programs: &BTreeMap<Program, SchedClassifier>,
        links: &[Link],
    ) -> Result<Attached, OpError> {
        let mut ids = BTreeMap::new();
        for (program, loaded) in programs {
            ids.insert(*program, id(loaded)?);
        }
        match self {
            Self::Tcx(pins) => attached_by_tcx(pins, &ids, links),
            Self::Clsact(filters) => filters.attached(&ids).map_err(from_netlink),
        }
    }

    /// Attaches a program in place of what we had attached there before.
    pub(super) fn attach(
        &mut self,
        program: Program,
        loaded: &mut SchedClassifier,
        link: &Link,
    ) -> Result<(), OpError> {
        match self {
            Self::Tcx(pins) => attach_by_tcx(pins, program, loaded, link),
            Self::Clsact(filters) => {
                let fd = loaded.fd().map_err(|error| refused("attach a program", &error))?;
                filters.attach(program, fd, link).map_err(from_netlink)
            }
        }
    }

    pub(super) fn detach(&mut self, program: Program, link_index: u32) -> Result<(), OpError> {
        match self {
            Self::Tcx(pins) => unpin(&pin(pins, link_index, program)),
            Self::Clsact(filters) => filters.detach(program, link_index).map_err(from_netlink),
        }
    }
}

/// Removes the pin of an attachment, and so the attachment. The kernel ends one whose last holder
/// is a descriptor at once, but one whose last holder is a pin some time later.
pub(super) fn unpin(path: &Path) -> Result<(), OpError> {
    let failed = |error: &(dyn std::error::Error + 'static)| {
        refused(&format!("detach the program of {}", path.display()), error)
    };
    let link = PinnedLink::from_pin(path).map_err(|error| failed(&error))?;
    link.unpin().map(drop).map_err(|error| failed(&error))
}

fn id(program: &SchedClassifier) -> Result<u32, OpError> {
    let info = program.info().map_err(|error| refused("identify a program", &error))?;
    Ok(info.id())
}

/// Where an attachment is pinned.
pub(super) fn pin(directory: &Path, link_index: u32, program: Program) -> PathBuf {
    directory.join(format!("{link_index}-{}", program.name()))
}

/// Every pin is an attachment of ours, current or not: one that somebody detached, or whose link is
/// gone, is attached to nothing.
fn attached_by_tcx(
    pins: &Path,
    ids: &BTreeMap<Program, u32>,
    links: &[Link],
) -> Result<Attached, OpError> {
    let failed = |error: std::io::Error| refused(&format!("read {}", pins.display()), &error);
    let mut attached = Attached::new();
    for entry in fs::read_dir(pins).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let Some((index, program)) = parse_pin(&name.to_string_lossy()) else { continue };
        let is_there = links.iter().any(|link| link.index == index);
        let pin = pins.join(&name);
        let present = syscalls::open_pin(&pin).and_then(|link| syscalls::attachment(link.as_fd()));
        let is_current = present.is_ok_and(|present| {
            present.link_index == index && Some(&present.program_id) == ids.get(&program)
        });
        attached.insert((index, program), is_there && is_current);
    }
    Ok(attached)
}

fn parse_pin(name: &str) -> Option<(u32, Program)> {
    let (index, name) = name.split_once('-')?;
    Some((index.parse().ok()?, Program::by_name(name)?))
}

fn attach_by_tcx(
    pins: &Path,
    program: Program,
    loaded: &mut SchedClassifier,
    link: &Link,
) -> Result<(), OpError> {
    let pin = &pin(pins, link.index, program);
    let action = || format!("attach the program of {} to {}", pin.display(), link.name);
    if pin.exists() {
        if replace(pin, loaded).is_ok() {
            return Ok(());
        }
        // Detached by somebody, or of a link that had this number before.
        unpin(pin)?;
    }
    let options = TcAttachOptions::TcxOrder(order(program, link));
    let attached = loaded
        .attach_with_options(&link.name, program.side(), options)
        .and_then(|id| loaded.take_link(id))
        .map_err(|error| refused(&action(), &error))?;
    let attached: FdLink = attached
        .try_into()
        .map_err(|error: aya::programs::links::LinkError| refused(&action(), &error))?;
    attached.pin(pin).map_err(|error| refused(&action(), &error))?;
    let present = loaded.info().map_err(|error| refused("identify a program", &error))?;
    strays::detach_from_link(link, program.side(), present).map(drop)
}

/// First, so that nobody's "accept" goes before our checks; but after the program of Services, and
/// names after all.
#[allow(unsafe_code)] // a program's number of the kernel's own
fn order(program: Program, link: &Link) -> LinkOrder {
    if program == Program::AnswerName {
        return LinkOrder::last();
    }
    if program.is_of_services() {
        return LinkOrder::first();
    }
    let services = Program::ServiceEnter.name();
    let present = SchedClassifier::query_tcx(&link.name, program.side());
    let found = present
        .ok()
        .and_then(|(_, infos)| infos.into_iter().find(|info| info.name_as_str() == Some(services)));
    match found {
        Some(info) => {
            // SAFETY: a plain number, which the kernel named just now; one that is gone it refuses.
            LinkOrder::after_program_id(unsafe { ProgramId::new(info.id()) })
        }
        None => LinkOrder::first(),
    }
}

/// Replaces the program of an attachment in one step: no packet goes by unchecked.
fn replace(pin: &Path, loaded: &mut SchedClassifier) -> Result<(), ProgramError> {
    let old = FdLink::from(PinnedLink::from_pin(pin).map_err(invalid)?);
    let link = SchedClassifierLink::try_from(old).map_err(invalid)?;
    let id = loaded.attach_to_link(link)?;
    // The pin holds the attachment, not this process.
    loaded.take_link(id).map(drop)
}

fn invalid(error: aya::programs::links::LinkError) -> ProgramError {
    ProgramError::IOError(std::io::Error::other(error))
}
