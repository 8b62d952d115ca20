//! The search path of a pod, gone by the server: `autopath`.
//!
//! Pods look names up with `ndots:5` and a search path, so that a name such as `example.com` is
//! asked for as `example.com.shop.svc.cluster.local` first, then below `svc.cluster.local`, below
//! `cluster.local`, below the node's own domains, and only then as it is, each time for both
//! families. The pod's address says in which namespace it is, and so whether a name is the first of
//! such a chain. If that name does not exist, the first of the chain that does is answered for,
//! behind an alias from the name that was asked for, so that the client's canonical name is the
//! right one.
//!
//! Where this could change what a client hears, the name is answered for as it is:
//! - only for addresses, only to clients that want recursion, only to pods with an address of their
//!   own, only below the pod's own namespace;
//! - a name that exists ends the chain, also without an address of the family;
//! - when none exists, or upstream servers do not answer, the client hears that the name which it
//!   asked for does not exist, and goes on by itself.
//!
//! The limit: a pod that has another search path (`dnsPolicy`, `dnsConfig`), and that asks for a
//! name below its own namespace that is not there, gets an answer where it would get none.

use std::net::IpAddr;

use crate::name::{MAX_NAME_OCTETS, labels};
use crate::{Index, Name, Rules};

/// A name in lower case, on the stack.
pub(crate) struct Buffer {
    octets: [u8; MAX_NAME_OCTETS],
    length: usize,
}

/// A question as the first of a chain.
pub(crate) struct SearchPath<'a> {
    /// The labels that the client's user wrote, in the wire format without the root.
    base: &'a [u8],
    apex: &'a Name,
    host: &'a [Name],
}

/// One name of the chain, behind the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SearchStep<'a> {
    /// Below `svc` of the cluster's domain: another namespace's Service.
    Services,
    /// Below the cluster's domain.
    Cluster,
    /// Below a domain of the node.
    Host(&'a Name),
    /// As it was written.
    Absolute,
}

impl Default for Buffer {
    fn default() -> Self {
        Self { octets: [0; MAX_NAME_OCTETS], length: 0 }
    }
}

impl Buffer {
    /// A name in lower case. Length octets are below 64 and so no letters.
    pub(crate) fn lower(name: &[u8]) -> Self {
        let mut buffer = Self::default();
        buffer.set(&[name]);
        buffer.octets.make_ascii_lowercase();
        buffer
    }

    pub(crate) fn wire(&self) -> &[u8] {
        self.octets.get(..self.length).unwrap_or_default()
    }

    /// False where the parts are too long together.
    fn set(&mut self, parts: &[&[u8]]) -> bool {
        self.length = 0;
        for part in parts {
            let end = self.length + part.len();
            let Some(place) = self.octets.get_mut(self.length..end) else { return false };
            place.copy_from_slice(part);
            self.length = end;
        }
        true
    }
}

impl<'a> SearchPath<'a> {
    /// `None` for a name, in lower case, that is not the first of the client's chain.
    pub(crate) fn new(
        index: &'a Index,
        rules: &'a Rules,
        client: IpAddr,
        name: &'a [u8],
    ) -> Option<Self> {
        let namespace = index.namespace_of_pod(client)?.as_bytes();
        let apex = index.apex();
        let above = name.len().checked_sub(apex.wire().len())?;
        let above = above.checked_sub(b"\x03svc".len())?.checked_sub(namespace.len() + 1)?;
        let (base, first_domain) = name.split_at_checked(above)?;
        let (length, first_domain) = first_domain.split_first()?;
        let rest = first_domain.strip_prefix(namespace)?.strip_prefix(b"\x03svc")?;
        let is_first = usize::from(*length) == namespace.len() && rest == apex.wire();
        // Whether the cut is between labels.
        let is_cut = labels(name)
            .try_fold(0, |at, label| if at >= above { Err(at) } else { Ok(at + label.len() + 1) });
        let is_cut = is_cut == Err(above);
        (is_first && is_cut && !base.is_empty()).then_some(Self {
            base,
            apex,
            host: &rules.host_search,
        })
    }

    /// The chain behind the first name, in its order.
    pub(crate) fn steps(&self) -> impl Iterator<Item = SearchStep<'a>> {
        [SearchStep::Services, SearchStep::Cluster]
            .into_iter()
            .chain(self.host.iter().map(SearchStep::Host))
            .chain([SearchStep::Absolute])
    }

    /// Writes the name of a step. False where it would be too long to be one.
    pub(crate) fn write(&self, step: SearchStep<'_>, name: &mut Buffer) -> bool {
        match step {
            SearchStep::Services => name.set(&[self.base, b"\x03svc", self.apex.wire()]),
            SearchStep::Cluster => name.set(&[self.base, self.apex.wire()]),
            SearchStep::Host(domain) => name.set(&[self.base, domain.wire()]),
            SearchStep::Absolute => name.set(&[self.base, &[0]]),
        }
    }
}
