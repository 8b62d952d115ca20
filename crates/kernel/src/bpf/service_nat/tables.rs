//! The table of flows, and the map in which programs find it (`bpf/flows.h`).
//!
//! A table of another size takes over for all programs at one moment, whichever they are and
//! wherever they are attached (R-03, invariant 14). It begins empty: programs that miss a flow there
//! bring it along from the former table, in which nothing is changed any more, and here the rest is
//! brought. Whoever is killed in between leaves both pins, and the next process goes on where it
//! ended.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use aya::maps::MapInfo;
use aya_obj::generated::bpf_map_type::{BPF_MAP_TYPE_ARRAY_OF_MAPS, BPF_MAP_TYPE_LRU_HASH};
use ebpf_abi::flows::{FLOW_TABLES, FLOWS_FORMER, FLOWS_PRESENT, Flow, FlowKey};
use render::OpError;

use super::super::objects::{self, FLOWS};
use super::super::{refused, syscalls};

/// The name of the table that another takes over from.
const FORMER: &str = "flows-former";

/// Makes the table of flows and what programs find it in, where they are not there, and lets a table
/// of this size take over from one of another.
///
/// # Errors
/// When the kernel refuses a map or an entry. What was done stays, and nothing is lost.
pub(super) fn prepare(maps: &Path, flows_max: u32) -> Result<(), OpError> {
    put_aside(maps, flows_max)?;
    let flows = open_or_make(&maps.join(FLOWS), || {
        syscalls::create_map(&syscalls::NewMap {
            name: FLOWS,
            kind: BPF_MAP_TYPE_LRU_HASH as u32,
            key_bytes: FlowKey::BYTES,
            value_bytes: Flow::BYTES,
            entries_max: flows_max,
            inner: None,
        })
    })?;
    let tables = open_or_make(&maps.join(objects::FLOW_TABLES), || {
        syscalls::create_map(&syscalls::NewMap {
            name: objects::FLOW_TABLES,
            kind: BPF_MAP_TYPE_ARRAY_OF_MAPS as u32,
            key_bytes: size_of::<u32>(),
            value_bytes: size_of::<u32>(),
            entries_max: FLOW_TABLES,
            inner: Some(flows.as_fd()),
        })
    })?;
    let former = maps.join(FORMER);
    let has_former = former.exists();
    if has_former {
        // Before the new one, so that no flow is out of sight.
        let former = open(&former)?;
        put(&tables, FLOWS_FORMER, Some(&former))?;
    }
    let id = |path: &Path| {
        let info = MapInfo::from_pin(path);
        info.map(|info| info.id())
            .map_err(|error| refused(&format!("look at the map {}", path.display()), &error))
    };
    if at(&tables, FLOWS_PRESENT)? != Some(id(&maps.join(FLOWS))?) {
        put(&tables, FLOWS_PRESENT, Some(&flows))?;
    }
    if has_former {
        bring_all(&open(&former)?, &flows, flows_max)?;
        fs::remove_file(&former)
            .map_err(|error| refused(&format!("unpin the map {}", former.display()), &error))?;
    }
    if at(&tables, FLOWS_FORMER)?.is_some() {
        put(&tables, FLOWS_FORMER, None)?;
    }
    Ok(())
}

/// Gives a table of another size the name of a former one.
fn put_aside(maps: &Path, flows_max: u32) -> Result<(), OpError> {
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

/// Brings along what no program has yet. A flow that the new table has was brought or is another
/// since.
fn bring_all(former: &OwnedFd, flows: &OwnedFd, flows_max: u32) -> Result<(), OpError> {
    let failed = |error: io::Error| refused("move the flows of Services in eBPF", &error);
    let (keys, values) =
        syscalls::read_all(former.as_fd(), FlowKey::BYTES, Flow::BYTES).map_err(failed)?;
    let keys = keys.as_chunks::<{ FlowKey::BYTES }>().0;
    for (key, flow) in last_used(keys, values.as_chunks().0, flows_max) {
        syscalls::add_entry(flows.as_fd(), key, flow).map_err(failed)?;
    }
    Ok(())
}

type Entry<'a> = (&'a [u8; FlowKey::BYTES], &'a [u8; Flow::BYTES]);

/// As many as the new table takes, the longest unused first: these go first where it is full.
fn last_used<'a>(
    keys: &'a [[u8; FlowKey::BYTES]],
    flows: &'a [[u8; Flow::BYTES]],
    flows_max: u32,
) -> Vec<Entry<'a>> {
    let mut entries: Vec<Entry<'a>> = keys.iter().zip(flows).collect();
    entries.sort_by_key(|(_, flow)| Flow::from_bytes(flow).used_s);
    let too_many = entries.len().saturating_sub(flows_max as usize);
    entries.split_off(too_many)
}

fn open_or_make(
    pin: &Path,
    make: impl FnOnce() -> io::Result<OwnedFd>,
) -> Result<OwnedFd, OpError> {
    if pin.exists() {
        return open(pin);
    }
    let made = make().and_then(|map| syscalls::pin(map.as_fd(), pin).map(|()| map));
    made.map_err(|error| refused(&format!("make the map {}", pin.display()), &error))
}

fn open(pin: &Path) -> Result<OwnedFd, OpError> {
    syscalls::open_pin(pin)
        .map_err(|error| refused(&format!("open the map {}", pin.display()), &error))
}

fn at(tables: &OwnedFd, place: u32) -> Result<Option<u32>, OpError> {
    syscalls::map_at(tables.as_fd(), place)
        .map_err(|error| refused(&format!("look at the map {}", objects::FLOW_TABLES), &error))
}

fn put(tables: &OwnedFd, place: u32, table: Option<&OwnedFd>) -> Result<(), OpError> {
    syscalls::put_map(tables.as_fd(), place, table.map(AsFd::as_fd))
        .map_err(|error| refused(&format!("write the map {}", objects::FLOW_TABLES), &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_more_than_the_table_takes_the_last_used_come_and_the_longest_unused_first() {
        let key = |source_port| FlowKey { source_port, ..FlowKey::default() }.to_bytes();
        let flow = |used_s| Flow { used_s, ..Flow::default() }.to_bytes();
        let (keys, flows) = ([1, 2, 3, 4].map(key), [9, 8, 5, 6].map(flow));
        let moved = |flows_max| {
            let entries = last_used(&keys, &flows, flows_max).into_iter();
            entries.map(|(_, flow)| Flow::from_bytes(flow).used_s).collect::<Vec<_>>()
        };
        assert_eq!(moved(1024), [5, 6, 8, 9]);
        assert_eq!(moved(3), [6, 8, 9]);
    }
}
