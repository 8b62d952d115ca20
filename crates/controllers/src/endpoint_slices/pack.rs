//! Which slice holds which endpoint, so that a change costs few writes: every node reads each.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::object::Object;
use crate::slice::{SliceEndpoint, SlicePort};

/// A slice as it shall be.
pub(super) struct Planned {
    /// What is there to hold it.
    pub existing: Option<Arc<Object>>,
    /// Its ports.
    pub ports: Vec<SlicePort>,
    /// Its endpoints.
    pub endpoints: Vec<SliceEndpoint>,
}

impl Planned {
    /// Whether nothing but hints would be written.
    pub(super) fn is_unchanged(&self) -> bool {
        let held = self.existing.as_ref().and_then(|existing| existing.slice());
        held.is_some_and(|held| {
            held.ports == self.ports
                && held.endpoints.len() == self.endpoints.len()
                && held.endpoints.iter().zip(&self.endpoints).all(|(old, new)| same(old, new))
        })
    }
}

/// What makes two endpoints the same: the pod, and where there is none, the address.
pub(super) fn identity(endpoint: &SliceEndpoint) -> String {
    match &endpoint.target_ref {
        Some(target) if !target.uid.is_empty() => target.uid.clone(),
        _ => endpoint.addresses.join(","),
    }
}

/// Puts the endpoints of one set of ports into slices of at most `limit`, leaving each endpoint
/// where it is. New ones fill slices that are written anyway, the fullest first; a rest goes whole
/// into the fullest other slice that takes all of it, else into new ones. Gives the slices, and
/// those that are left empty. `labels` are what the slices shall have: who lacks them is written
/// anyway.
pub(super) fn pack(
    ports: &[SlicePort],
    mut wanted: BTreeMap<String, SliceEndpoint>,
    held: Vec<Arc<Object>>,
    labels: &BTreeMap<String, String>,
    limit: usize,
) -> (Vec<Planned>, Vec<Arc<Object>>) {
    let mut kept: Vec<Kept> =
        held.into_iter().map(|slice| Kept::new(slice, &mut wanted, labels, limit)).collect();
    let mut rest: Vec<SliceEndpoint> = wanted.into_values().rev().collect();
    let mut order: Vec<usize> = (0..kept.len()).filter(|index| kept[*index].is_written).collect();
    order.sort_by_key(|index| limit - kept[*index].endpoints.len());
    for index in order {
        // A slice that lost all it had goes, rather than live on beside others.
        if !kept[index].endpoints.is_empty() {
            kept[index].fill(&mut rest, limit);
        }
    }
    let mut new = Vec::new();
    while !rest.is_empty() {
        let room = |kept: &Kept| limit - kept.endpoints.len();
        let fitting = kept
            .iter_mut()
            .filter(|kept| !kept.endpoints.is_empty() && room(kept) >= rest.len())
            .min_by_key(|kept| room(kept));
        match fitting {
            Some(kept) => kept.fill(&mut rest, limit),
            None => {
                let first = rest.len().saturating_sub(limit);
                new.push(rest.drain(first..).rev().collect::<Vec<_>>());
            }
        }
    }
    let (kept, empty): (Vec<Kept>, Vec<Kept>) =
        kept.into_iter().partition(|kept| !kept.endpoints.is_empty());
    let kept = kept.into_iter().map(|kept| (Some(kept.slice), kept.endpoints));
    let new = new.into_iter().map(|endpoints| (None, endpoints));
    let planned = kept
        .chain(new)
        .map(|(existing, endpoints)| Planned { existing, ports: ports.to_vec(), endpoints })
        .collect();
    (planned, empty.into_iter().map(|kept| kept.slice).collect())
}

/// A slice that is there, with those of its endpoints that stay.
struct Kept {
    slice: Arc<Object>,
    endpoints: Vec<SliceEndpoint>,
    /// Whether it is written whatever else comes.
    is_written: bool,
}

impl Kept {
    /// Takes the endpoints of a slice out of those that are wanted. An endpoint that stands in two
    /// slices stays in the first; one beyond the limit moves.
    fn new(
        slice: Arc<Object>,
        wanted: &mut BTreeMap<String, SliceEndpoint>,
        labels: &BTreeMap<String, String>,
        limit: usize,
    ) -> Self {
        let mut is_written = slice.meta.labels != *labels;
        let mut endpoints = Vec::new();
        for old in slice.slice().into_iter().flat_map(|view| &view.endpoints) {
            let new = if endpoints.len() < limit { wanted.remove(&identity(old)) } else { None };
            is_written |= new.as_ref().is_none_or(|new| !same(old, new));
            endpoints.extend(new);
        }
        Self { slice, endpoints, is_written }
    }

    fn fill(&mut self, rest: &mut Vec<SliceEndpoint>, limit: usize) {
        while self.endpoints.len() < limit
            && let Some(endpoint) = rest.pop()
        {
            self.endpoints.push(endpoint);
        }
    }
}

/// Whether two forms of an endpoint say the same but for hints, which come last.
fn same(old: &SliceEndpoint, new: &SliceEndpoint) -> bool {
    SliceEndpoint { hints: None, ..old.clone() } == SliceEndpoint { hints: None, ..new.clone() }
}
