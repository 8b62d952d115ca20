//! Flows that move into a map of another size.
//!
//! The former map is put aside under another name, and stays until all links have programs that use
//! the new one: what began meanwhile moves then. Of a connection that begins in that very moment
//! the first packets may be lost, and are repeated. Whoever is killed in between leaves both names,
//! and the next process goes on where it ended.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use aya::maps::MapInfo;
use ebpf_abi::flows::{Flow, FlowKey};
use render::OpError;

use super::super::{refused, syscalls};
use super::maps::FLOWS;

/// The name of the map that flows come from.
const FORMER: &str = "flows-former";
/// Entries that one call writes: keeps buffers within a megabyte.
const WRITE_ENTRIES: usize = 8192;

/// Puts the map of flows aside where it has another size. Then there is none until the programs are
/// loaded anew.
pub(super) fn put_aside(maps: &Path, flows_max: u32) -> Result<(), OpError> {
    let (flows, former) = (maps.join(FLOWS), maps.join(FORMER));
    if !flows.exists() || former.exists() {
        return Ok(());
    }
    let present = MapInfo::from_pin(&flows)
        .map_err(|error| refused(&format!("look at the map {}", flows.display()), &error))?;
    if present.max_entries() == flows_max {
        return Ok(());
    }
    fs::rename(&flows, &former)
        .map_err(|error| refused(&format!("rename the map {}", flows.display()), &error))
}

/// Writes the flows of the former map that the new one lacks; the longest unused first, so that they
/// go first where not all have room.
pub(super) fn move_flows(maps: &Path) -> Result<(), OpError> {
    if !maps.join(FORMER).exists() {
        return Ok(());
    }
    let failed = |error: std::io::Error| refused("move the flows of Services in eBPF", &error);
    let known: BTreeSet<_> =
        read(maps, FLOWS).map_err(failed)?.into_iter().map(|(key, _)| key).collect();
    let mut missing = read(maps, FORMER).map_err(failed)?;
    missing.retain(|(key, _)| !known.contains(key));
    missing.sort_by_key(|(_, flow)| Flow::from_bytes(flow).used_s);
    let map = syscalls::open_pin(&maps.join(FLOWS)).map_err(failed)?;
    for part in missing.chunks(WRITE_ENTRIES) {
        let keys: Vec<u8> = part.iter().flat_map(|(key, _)| *key).collect();
        let values: Vec<u8> = part.iter().flat_map(|(_, flow)| *flow).collect();
        syscalls::update_batch(map.as_fd(), &keys, &values, part.len()).map_err(failed)?;
    }
    Ok(())
}

/// Moves what began in the former map until the last link had the new programs, and forgets it.
pub(super) fn finish(maps: &Path) -> Result<(), OpError> {
    let former = maps.join(FORMER);
    if !former.exists() {
        return Ok(());
    }
    move_flows(maps)?;
    fs::remove_file(&former)
        .map_err(|error| refused(&format!("unpin the map {}", former.display()), &error))
}

type Entry = ([u8; FlowKey::BYTES], [u8; Flow::BYTES]);

fn read(maps: &Path, name: &str) -> std::io::Result<Vec<Entry>> {
    let map = syscalls::open_pin(&maps.join(name))?;
    let (keys, values) = syscalls::read_all(map.as_fd(), FlowKey::BYTES, Flow::BYTES)?;
    let keys = keys.chunks_exact(FlowKey::BYTES);
    let entries = keys.zip(values.chunks_exact(Flow::BYTES));
    Ok(entries
        .filter_map(|(key, flow)| Some((key.try_into().ok()?, flow.try_into().ok()?)))
        .collect())
}
