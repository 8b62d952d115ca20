//! [`Unreachable`]: what does not answer this node, long before the API says so.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use crate::{EndpointSlice, Protocol};

/// Nodes and endpoints that did not answer the node that looks at them. They get no new
/// connections through a Service as long as another endpoint is left that could take them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unreachable {
    /// Names of other nodes: none of their endpoints is reached.
    pub nodes: BTreeSet<String>,
    /// Single endpoints, by TCP: nothing else has a handshake that could go unanswered.
    pub endpoints: BTreeSet<SocketAddr>,
}

impl Unreachable {
    /// Whether all is reached.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty() && self.endpoints.is_empty()
    }

    /// What one of the two says is unreachable and the other is not.
    pub fn difference(&self, other: &Self) -> Self {
        Self {
            nodes: self.nodes.symmetric_difference(&other.nodes).cloned().collect(),
            endpoints: self.endpoints.symmetric_difference(&other.endpoints).copied().collect(),
        }
    }

    /// Whether it concerns an endpoint of the slice.
    pub fn concerns(&self, slice: &EndpointSlice) -> bool {
        let tcp = slice.ports.iter().filter(|port| port.protocol == Protocol::Tcp);
        let ports: Vec<u16> = tcp.filter_map(|port| port.port).collect();
        slice.endpoints.iter().any(|endpoint| {
            let node = self.nodes.contains(&endpoint.node_name);
            // Most of the time no single endpoint is unreachable, and no address is parsed.
            let own = !self.endpoints.is_empty() && !ports.is_empty();
            node || (own
                && endpoint.address().is_some_and(|address| {
                    ports.iter().any(|&port| self.endpoints.contains(&(address, port).into()))
                }))
        })
    }
}
