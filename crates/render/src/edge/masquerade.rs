//! What pods send away under the node's address (`ipMasq`), for networks without an agent.
//!
//! The kernel translates no packet that connection tracking calls invalid (the answer to a flow that
//! was forgotten, say): it would leave with the pod's own source, and is dropped.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use model::{Attachment, Family};

use super::part::{Layout, Parts, never_untranslated};
use crate::nft::language::{
    BaseChain, ChainType, DataType, Field, Hook, Statement, Table, TableId, Type, Value, Verdict,
};
use crate::owned::{NFT_MASQUERADE_TABLE, PRIORITY_POD_SNAT};

const PODS: &str = "pods";
const TRANSLATED: &str = "translated";

/// One a family.
pub fn tables() -> Vec<TableId> {
    [Family::V4, Family::V6].map(|family| TableId::new(family, NFT_MASQUERADE_TABLE)).to_vec()
}

/// The table without pods: after the rules of Services, which know better.
pub(super) fn layout(id: &TableId) -> Option<Table> {
    if !tables().contains(id) {
        return None;
    }
    let base = BaseChain {
        chain_type: ChainType::Nat,
        hook: Hook::Postrouting,
        priority: PRIORITY_POD_SNAT,
    };
    let by_pod = Statement::VerdictOf { key: vec![Field::SourceAddress], map: PODS.into() };
    let address = Type::Address(id.family.address_family());
    let mut layout = Layout::new(id);
    layout
        .set(PODS, &[address], DataType::Verdict)
        .set(TRANSLATED, &[address], DataType::None)
        .base("forward", Layout::FORWARD, vec![never_untranslated(TRANSLATED)])
        .base("postrouting", base, vec![vec![by_pod]]);
    Some(layout.table())
}

pub(super) fn add(parts: &mut Parts, attachment: &Attachment) {
    let Some(masquerade) = &attachment.edge.masquerade else { return };
    for id in tables() {
        let family = id.family.address_family();
        let addresses: Vec<IpNet> = super::addresses(attachment, family).collect();
        if addresses.is_empty() {
            continue;
        }
        let own = masquerade.except.iter().filter(|range| Family::of(&range.addr()) == family);
        let kept = own.copied().chain([multicast(family)]).map(|range| {
            let field = Field::DestinationAddress;
            let to = Statement::InRange { field, range, outside: false };
            vec![to, Statement::Verdict(Verdict::Accept)]
        });
        let rules = kept.chain([vec![Statement::Masquerade { ports: None }]]).collect();
        let verdict = parts.chain(&id, "except", rules);
        for address in addresses {
            let key = vec![Value::Address(address.addr())];
            parts.member(&id, TRANSLATED, key.clone());
            parts.entry(&id, PODS, key, verdict.clone());
        }
    }
}

/// A group's members are on the pod's own network: translated, they would answer the node.
fn multicast(family: Family) -> IpNet {
    let (address, prefix_len) = match family {
        Family::V4 => (IpAddr::from(Ipv4Addr::new(224, 0, 0, 0)), 4),
        Family::V6 => (IpAddr::from(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)), 8),
    };
    IpNet::new_assert(address, prefix_len)
}
