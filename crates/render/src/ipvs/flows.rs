//! Which tracked flows of UDP go with a change of virtual servers.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use model::{Family, Protocol};

use super::state::ObservedServer;
use super::{Server, ServerKey};
use crate::nft::StaleFlows;

/// Collects the flows that are stale after a change, by family.
pub(super) struct Stale([StaleFlows; 2]);

impl Stale {
    /// None.
    pub(super) fn none() -> Self {
        Self([Family::V4, Family::V6].map(StaleFlows::none))
    }

    /// Adds those of one server. Where it is new, flows began untranslated or by another backend;
    /// where it loses an endpoint, or goes, they lead to what is gone.
    pub(super) fn add(
        &mut self,
        key: &ServerKey,
        wanted: Option<&Server>,
        present: Option<&ObservedServer>,
    ) {
        let is_stale = match (wanted, present) {
            (None, None) => false,
            (Some(wanted), Some(present)) => {
                let mut former = present.destinations.keys();
                former.any(|endpoint| !wanted.destinations.contains_key(endpoint))
            }
            _ => true,
        };
        if !is_stale || key.protocol != Protocol::Udp {
            return;
        }
        let endpoints = wanted.into_iter().flat_map(|server| server.destinations.keys());
        let allowed: BTreeSet<SocketAddr> = endpoints.copied().collect();
        let family = Family::of(&key.address.ip());
        for flows in self.0.iter_mut().filter(|flows| flows.family == family) {
            flows.frontends.insert(key.address, allowed.clone());
        }
    }

    /// Those of families that have any.
    pub(super) fn into_flows(self) -> impl Iterator<Item = StaleFlows> {
        self.0.into_iter().filter(|flows| !flows.is_none())
    }
}
