//! Flows that move into a map of another size.
//!
//! The former map is put aside under another name, and stays until all links have programs that use
//! the new one: what began meanwhile moves then. A connection that begins within the milliseconds in
//! which one link has the new programs and another not yet may be cut. Whoever is killed in between
//! leaves both names, and the next process goes on where it ended.

use std::collections::BTreeMap;
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

/// Writes the flows of the former map that the new one lacks or knows less of; the longest unused
/// first, so that they go first where not all have room.
pub(super) fn move_flows(maps: &Path) -> Result<(), OpError> {
    if !maps.join(FORMER).exists() {
        return Ok(());
    }
    let failed = |error: std::io::Error| refused("move the flows of Services in eBPF", &error);
    let present = read(maps, FLOWS).map_err(failed)?;
    let missing = missing(&present, read(maps, FORMER).map_err(failed)?);
    let map = syscalls::open_pin(&maps.join(FLOWS)).map_err(failed)?;
    for part in missing.chunks(WRITE_ENTRIES) {
        let keys: Vec<u8> = part.iter().flat_map(|(key, _)| *key).collect();
        let values: Vec<u8> = part.iter().flat_map(|(_, flow)| *flow).collect();
        syscalls::update_batch(map.as_fd(), &keys, &values, part.len()).map_err(failed)?;
    }
    Ok(())
}

/// What moves of the former map. It is moved from more than once, and meanwhile the programs that
/// use it give ports away anew: of two entries for the same the one that was used later is right.
fn missing(present: &[Entry], mut former: Vec<Entry>) -> Vec<Entry> {
    let used_s = |flow: &[u8; Flow::BYTES]| Flow::from_bytes(flow).used_s;
    let known: BTreeMap<_, _> = present.iter().map(|(key, flow)| (key, used_s(flow))).collect();
    former.retain(|(key, flow)| known.get(key).is_none_or(|known_s| used_s(flow) > *known_s));
    former.sort_by_key(|(_, flow)| used_s(flow));
    former
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

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(source_port: u16, port: u16, used_s: u32) -> Entry {
        let key = FlowKey { source_port, ..FlowKey::default() };
        let flow = Flow { port, used_s, ..Flow::default() };
        (key.to_bytes(), flow.to_bytes())
    }

    #[test]
    fn ports_that_were_given_away_anew_since_the_first_move_are_moved_again() {
        let former = vec![entry(1, 10, 9), entry(2, 21, 8), entry(3, 30, 5), entry(4, 40, 6)];
        let present = [entry(1, 10, 9), entry(2, 20, 5), entry(3, 31, 7)];
        let moved = missing(&present, former);
        assert_eq!(moved, [entry(4, 40, 6), entry(2, 21, 8)], "the longest unused first");
        assert_eq!(missing(&moved, moved.clone()), []);
    }
}
