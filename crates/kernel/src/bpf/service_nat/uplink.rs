//! The program of `bpf/service_xdp.c`, at the hook XDP of the uplink in the device's own driver, by
//! a link of its own (Linux 5.9): pinned beside those of `tc`, replaced in one step.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::include_bytes_aligned;
use aya::maps::{Map, MapData, MapError, PerCpuArray};
use aya::programs::ProgramInfo;
use model::ServiceAcceleration;
use netlink::Link;
use render::OpError;

use super::super::attach::unpin;
use super::super::loader::Loader;
use super::super::objects::{PROGRAMS_PREFIX, fingerprint, make_directory};
use super::super::{refused, syscalls};
use super::{Options, entries_of, maps};

/// `bpf/service_xdp.c`, compiled.
static SERVICE_XDP: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/service_xdp.o"));

/// The program's name.
const NAME: &str = "service_uplink";
/// The map of what it sent, as it declares it.
const SENT: &str = "nat_xdp_sent";
/// `XDP_PASS`.
pub const XDP_PASS: u32 = 2;
/// `XDP_TX`.
pub const XDP_TX: u32 = 3;
/// The kind of links that lose what is sent so, unless their other end is set up for it: with a
/// program of its own, or generic receive offload.
const VETH: &str = "veth";

/// The loaded program.
pub(super) struct Uplink {
    program: OwnedFd,
    id: u32,
    sent: PerCpuArray<MapData, u64>,
}

impl Uplink {
    /// Loads the program, or takes over the one that this build loaded before.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub(super) fn load(options: &Options, directory: &Path) -> Result<Self, OpError> {
        let name = programs_name(options);
        let (programs, maps) = (directory.join(&name), directory.join("maps"));
        let pin = programs.join(NAME);
        if !pin.exists() {
            make_directory(&programs)?;
            load_anew(options, &maps, &pin)?;
            remove_others(directory, &name)?;
        }
        let failed = |error: &(dyn std::error::Error + 'static)| {
            refused(&format!("open the program {}", pin.display()), error)
        };
        let info = ProgramInfo::from_pin(&pin).map_err(|error| failed(&error))?;
        let program = syscalls::open_pin(&pin).map_err(|error| failed(&error))?;
        let sent = open_sent(&maps.join(SENT))
            .map_err(|error| refused(&format!("open the map {SENT}"), &error))?;
        Ok(Self { program, id: info.id(), sent })
    }

    /// Whether a link has this very program.
    pub(super) fn is_attached(&self, links: &Path, link: &Link) -> bool {
        let present = syscalls::open_pin(&pin(links, link.index))
            .and_then(|attached| syscalls::attachment(attached.as_fd()));
        present
            .is_ok_and(|present| present.link_index == link.index && present.program_id == self.id)
    }

    /// Attaches the program in place of what we had attached there before.
    ///
    /// # Errors
    /// Where the driver has no such hook, the frames of its MTU do not fit one, or another program
    /// has it.
    pub(super) fn attach(&self, links: &Path, link: &Link) -> Result<(), OpError> {
        let pin = pin(links, link.index);
        let action = format!(
            "attach {NAME} to {}, whose packets of Services take the path of tc",
            link.name
        );
        if pin.exists() {
            let replaced = syscalls::open_pin(&pin)
                .and_then(|attached| syscalls::update_link(attached.as_fd(), self.program.as_fd()));
            if replaced.is_ok() {
                return Ok(());
            }
            // Detached by somebody, or of a link that had this number before.
            unpin(&pin)?;
        }
        let attached = syscalls::attach_xdp(self.program.as_fd(), link.index);
        attached
            .and_then(|attached| syscalls::pin(attached.as_fd(), &pin))
            .map_err(|error| refused(&action, &error))
    }

    /// How many frames were sent on since the maps were made.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub(super) fn sent(&self) -> Result<u64, OpError> {
        sum(&self.sent)
    }

    /// Runs the program on one frame as if it came by a link: what it answers, and the frame as it
    /// left it.
    ///
    /// # Errors
    /// When the kernel refuses the frame.
    pub(super) fn run(&self, link_index: u32, frame: &[u8]) -> Result<(u32, Vec<u8>), OpError> {
        syscalls::run_xdp(self.program.as_fd(), link_index, frame)
            .map_err(|error| refused(&format!("run the program {NAME}"), &error))
    }
}

/// Why a link is not asked at all; `None`: it is.
pub(super) fn is_left_out(acceleration: ServiceAcceleration, link: &Link) -> Option<String> {
    let is_left_out = acceleration == ServiceAcceleration::BestEffort && link.kind == VETH;
    is_left_out.then(|| {
        format!(
            "{} is a veth: its other end loses what XDP sends unless it has a program too, or \
             generic receive offload; where it has, choose the acceleration native",
            link.name
        )
    })
}

/// The links that have a program of ours, or had.
pub(super) fn attached(links: &Path) -> Result<Vec<u32>, OpError> {
    let entries = entries_of(links)?;
    let index = |path: &PathBuf| {
        let name = path.file_name()?.to_str()?;
        name.strip_suffix(NAME)?.strip_suffix('-')?.parse().ok()
    };
    Ok(entries.iter().filter_map(index).collect())
}

/// How many frames the programs of this node sent on; `None` where none was loaded.
pub(super) fn read_sent(maps: &Path) -> Result<Option<u64>, OpError> {
    let path = maps.join(SENT);
    if !path.exists() {
        return Ok(None);
    }
    let opened = open_sent(&path)
        .map_err(|error| refused(&format!("open the map {}", path.display()), &error))?;
    sum(&opened).map(Some)
}

fn sum(sent: &PerCpuArray<MapData, u64>) -> Result<u64, OpError> {
    let values = sent.get(&0, 0).map_err(|error| refused("read what XDP has sent", &error))?;
    Ok(values.iter().sum())
}

/// Detaches the program: frames take the path of tc.
pub(super) fn detach(links: &Path, link_index: u32) -> Result<(), OpError> {
    unpin(&pin(links, link_index))
}

fn load_anew(options: &Options, maps: &Path, pin: &Path) -> Result<(), OpError> {
    let what = "the eBPF program of the uplink";
    let mut loader = Loader::new(what, SERVICE_XDP, &options.services_maps);
    for name in maps::MAPS.into_iter().chain([SENT]) {
        loader.pinned_at(name, maps.join(name));
    }
    loader.load(&[(NAME, pin.to_owned())])
}

/// Unpins programs of other builds. Attached ones work on until they are replaced.
fn remove_others(directory: &Path, name: &str) -> Result<(), OpError> {
    for path in entries_of(directory)? {
        let other = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if other.starts_with(&prefix()) && other != name {
            fs::remove_dir_all(&path)
                .map_err(|error| refused(&format!("remove {}", path.display()), &error))?;
        }
    }
    Ok(())
}

fn open_sent(path: &Path) -> Result<PerCpuArray<MapData, u64>, MapError> {
    Map::from_map_data(MapData::from_pin(path)?)?.try_into()
}

fn pin(links: &Path, link_index: u32) -> PathBuf {
    links.join(format!("{link_index}-{NAME}"))
}

/// So that whoever forgets programs of other maps forgets it too.
pub(super) fn prefix() -> String {
    format!("{PROGRAMS_PREFIX}xdp-")
}

fn programs_name(options: &Options) -> String {
    let services = options.services_maps.display().to_string();
    format!("{}{}-{}", prefix(), fingerprint(SERVICE_XDP), fingerprint(services.as_bytes()))
}
