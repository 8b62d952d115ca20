//! How full the maps of Services in eBPF are.

use std::os::fd::AsFd;
use std::path::Path;

use aya::maps::MapInfo;
use render::OpError;
use render::ebpf::Sizes;

use super::objects::flows_of_services;
use super::{refused, services, syscalls};

/// One map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapFill {
    /// Its name.
    pub name: &'static str,
    /// The entries that it has. Of `flows` and those of clients also those whose time is over and
    /// whose place nobody has needed yet.
    pub entries: u64,
    /// Those that it takes.
    pub entries_max: u32,
}

/// Counts the entries of all maps whose sizes are configured; nothing where there are none. Reads
/// the maps whole: to be asked for by people, not by a loop.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn fill(file_system: &Path, sizes: &Sizes) -> Result<Vec<MapFill>, OpError> {
    let directory = services::maps_directory(file_system, sizes);
    let maps = services::SIZED.map(|name| (name, directory.join(name)));
    let flows = ("flows", flows_of_services(file_system));
    let present = maps.into_iter().chain([flows]).filter(|(_, path)| path.exists());
    present.map(|(name, path)| count(name, &path)).collect()
}

fn count(name: &'static str, path: &Path) -> Result<MapFill, OpError> {
    let failed = |error: &(dyn std::error::Error + 'static)| {
        refused(&format!("count the entries of the map {}", path.display()), error)
    };
    let info = MapInfo::from_pin(path).map_err(|error| failed(&error))?;
    let map = syscalls::open_pin(path).map_err(|error| failed(&error))?;
    let (key_bytes, value_bytes) = (info.key_size() as usize, info.value_size() as usize);
    let mut entries = 0;
    syscalls::read_parts(map.as_fd(), key_bytes, value_bytes, |keys, _| {
        entries += (keys.len() / key_bytes.max(1)) as u64;
    })
    .map_err(|error| failed(&error))?;
    Ok(MapFill { name, entries, entries_max: info.max_entries() })
}
