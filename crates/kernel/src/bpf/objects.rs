//! Programs and maps: loaded once, pinned, and taken over by the next process.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use aya::include_bytes_aligned;
use aya::maps::MapInfo;
use aya::programs::{SchedClassifier, TcAttachType};
use ebpf_abi::flows::FLOWS_VERSION;
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use render::OpError;
use render::bpf::{FROM_POD, FROM_TUNNEL, FROM_UPLINK};

use super::loader::Loader;
use super::maps::{MAPS, Maps};
use super::refused;

/// `bpf/forward.c`, compiled.
static FORWARD: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/forward.o"));
/// Its fingerprint: whoever looks whether pins are there asks for it again and again.
static BUILD: LazyLock<String> = LazyLock::new(|| fingerprint(FORWARD));

pub(super) const PROGRAMS_PREFIX: &str = "programs-";
/// The table of flows.
pub(super) const FLOWS: &str = "flows";
/// The map in which programs find it, as `bpf/flows.h` declares it.
pub(super) const FLOW_TABLES: &str = "flow_tables";

/// A program of the hook `tc`, by where it is attached. Those of Services go before those of
/// forwarding, which then see what Services made of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Program {
    /// To the node's end of a pod's link.
    FromPod,
    /// To the tunnel link.
    FromTunnel,
    /// To the uplink.
    FromUplink,
    /// To the ingress of each link that packets of Services come by.
    ServiceEnter,
    /// To its egress.
    ServiceLeave,
    /// To the node's end of a pod's link, behind the others: they say who may send.
    AnswerName,
}

impl Program {
    /// Those of `bpf/forward.c`.
    pub(super) const FORWARDING: [Self; 3] = [Self::FromPod, Self::FromTunnel, Self::FromUplink];
    /// Those of `bpf/service_nat.c`.
    pub(super) const SERVICES: [Self; 2] = [Self::ServiceEnter, Self::ServiceLeave];

    /// Its name in the object file and wherever the kernel shows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::FromPod => FROM_POD,
            Self::FromTunnel => FROM_TUNNEL,
            Self::FromUplink => FROM_UPLINK,
            Self::ServiceEnter => "service_enter",
            Self::ServiceLeave => "service_leave",
            Self::AnswerName => "answer_name",
        }
    }

    /// The program of this name.
    pub(super) fn by_name(name: &str) -> Option<Self> {
        let mut all = Self::FORWARDING.into_iter().chain(Self::SERVICES).chain([Self::AnswerName]);
        all.find(|program| program.name() == name)
    }

    /// The side of a link that it is attached to.
    pub(super) fn side(self) -> TcAttachType {
        match self {
            Self::ServiceLeave => TcAttachType::Egress,
            _ => TcAttachType::Ingress,
        }
    }

    pub(super) fn is_of_services(self) -> bool {
        Self::SERVICES.contains(&self)
    }
}

/// What is loaded.
pub(super) struct Objects {
    directory: PathBuf,
    programs_directory: PathBuf,
    pub(super) maps: Maps,
    pub(super) programs: BTreeMap<Program, SchedClassifier>,
}

impl Objects {
    pub(super) fn load(file_system: &Path) -> Result<Self, OpError> {
        require_file_system(file_system)?;
        let directory = versioned(file_system);
        let tables = flow_tables_of_services(file_system);
        let programs_directory = directory.join(programs_name(&tables)?);
        let maps_directory = directory.join("maps");
        for path in [&maps_directory, &programs_directory, &directory.join("links")] {
            make_directory(path)?;
        }
        let has_all = |directory: &Path, mut names: std::slice::Iter<'_, &str>| {
            names.all(|name| directory.join(name).exists())
        };
        let names = Program::FORWARDING.map(Program::name);
        if !has_all(&maps_directory, MAPS.iter()) {
            // Programs of other maps: what they do cannot be seen or changed any more.
            remove_programs(&directory, None)?;
            make_directory(&programs_directory)?;
        }
        let programs = if has_all(&programs_directory, names.iter()) {
            adopt(&programs_directory, &Program::FORWARDING)?
        } else {
            let mut loader = Loader::new("eBPF forwarding", FORWARD, &maps_directory);
            if tables.exists() {
                loader.pinned_at(FLOW_TABLES, tables);
            }
            let programs = load_anew(&loader, &programs_directory, &Program::FORWARDING)?;
            remove_programs(&directory, Some(&programs_directory))?;
            programs
        };
        Ok(Self { maps: Maps::open(&maps_directory)?, directory, programs_directory, programs })
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whether the next process would find what this one uses, and would use it: flows of
    /// Services that were made anew are in another map.
    pub(super) fn are_pinned(&self, file_system: &Path) -> bool {
        let programs = &self.programs_directory;
        let maps = self.directory.join("maps");
        let name = programs_name(&flow_tables_of_services(file_system));
        name.is_ok_and(|name| programs.ends_with(name))
            && Program::FORWARDING.iter().all(|program| programs.join(program.name()).exists())
            && MAPS.iter().all(|map| maps.join(map).exists())
    }

    pub(super) fn remove(self) -> Result<(), OpError> {
        fs::remove_dir_all(&self.directory)
            .map_err(|error| refused(&format!("remove {}", self.directory.display()), &error))?;
        // Another part of us may have its pins beside.
        let _ = self.directory.parent().map(fs::remove_dir);
        Ok(())
    }
}

/// The directory of all pins of this layout of the maps.
pub(super) fn versioned(file_system: &Path) -> PathBuf {
    file_system.join("flatnet").join(format!("v{}", ebpf_abi::VERSION))
}

/// Mounts the eBPF file system where it is not yet; on most machines systemd has done it.
pub(super) fn require_file_system(path: &Path) -> Result<(), OpError> {
    let found = statfs(path).map(|system| system.filesystem_type() == BPF_FS_MAGIC);
    match found {
        Ok(true) => Ok(()),
        Ok(false) => mount(Some("bpf"), path, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
            .map_err(|errno| {
                let action = format!("mount the eBPF file system at {}", path.display());
                refused(&action, &std::io::Error::from(errno))
            }),
        Err(errno) => {
            let action = format!("find the eBPF file system at {}", path.display());
            Err(refused(&action, &std::io::Error::from(errno)))
        }
    }
}

pub(super) fn make_directory(path: &Path) -> Result<(), OpError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| refused(&format!("make {}", path.display()), &error))
}

/// Takes over the programs that an earlier process of this build pinned.
pub(super) fn adopt(
    directory: &Path,
    names: &[Program],
) -> Result<BTreeMap<Program, SchedClassifier>, OpError> {
    let mut programs = BTreeMap::new();
    for &program in names {
        let path = directory.join(program.name());
        let pinned = SchedClassifier::from_pin(&path)
            .map_err(|error| refused(&format!("open the program {}", path.display()), &error))?;
        programs.insert(program, pinned);
    }
    Ok(programs)
}

/// Loads the programs of an object file and pins them.
pub(super) fn load_anew(
    loader: &Loader<'_>,
    directory: &Path,
    names: &[Program],
) -> Result<BTreeMap<Program, SchedClassifier>, OpError> {
    let places: Vec<(&str, PathBuf)> =
        names.iter().map(|program| (program.name(), directory.join(program.name()))).collect();
    loader.load(&places)?;
    adopt(directory, names)
}

/// Unpins programs of other builds. Attached ones work on until they are replaced.
pub(super) fn remove_programs(directory: &Path, except: Option<&Path>) -> Result<(), OpError> {
    let failed =
        |error: std::io::Error| refused(&format!("clean up {}", directory.display()), &error);
    for entry in fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(PROGRAMS_PREFIX) && Some(path.as_path()) != except {
            fs::remove_dir_all(&path).map_err(failed)?;
        }
    }
    Ok(())
}

/// The directory of this build's programs that find flows in this map.
fn programs_name(tables: &Path) -> Result<String, OpError> {
    let tables_id = if tables.exists() {
        let info = MapInfo::from_pin(tables);
        info.map_err(|error| refused(&format!("open the map {}", tables.display()), &error))?.id()
    } else {
        0
    };
    Ok(format!("{PROGRAMS_PREFIX}{}-{tables_id}", *BUILD))
}

/// The flows of Services in eBPF, whose answers are given their source at pods' own links.
pub(super) fn flows_of_services(file_system: &Path) -> PathBuf {
    maps_of_services(file_system).join(FLOWS)
}

/// Where programs find them. Where there is no such map they have one in which there are none.
fn flow_tables_of_services(file_system: &Path) -> PathBuf {
    maps_of_services(file_system).join(FLOW_TABLES)
}

fn maps_of_services(file_system: &Path) -> PathBuf {
    let layout = format!("{}{FLOWS_VERSION}", super::service_nat::DIRECTORY_PREFIX);
    file_system.join("flatnet").join(layout).join("maps")
}

/// Equal programs, equal name, on every run and of whatever library.
pub(super) fn fingerprint(object: &[u8]) -> String {
    format!("{:016x}", hash(object))
}

/// FNV-1a.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
