//! Who may come in to a pod (`ingressPolicy` of the reference firewall plugin), and what of the
//! node a pod may reach.
//!
//! Only what begins a connection is judged: answers always pass. That is also true between pods of
//! one bridge, since whoever makes the link lets the bridge hand its packets to these rules.
//!
//! An accept here ends this table's chain only. Where another program's chain drops by policy
//! whatever is forwarded (as Docker sets it in the chain of iptables), rules of [`forwarding`] stand
//! at the end of that chain, behind all of its own: they undo its policy for our pods, and nothing
//! else of it. The older iptables, which knows nothing of nf_tables, gets the same for the addresses
//! of [`forwarded`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use model::attachment::IngressPolicy;
use model::{Attachment, Family};

use super::part::{Layout, Parts};
use super::spoofing::link_local;
use crate::nft::language::{
    BaseChain, ChainType, ConnectionState, DataType, Datum, Field, Hook, LinkName, Rule, Statement,
    Table, TableId, Type, Value, Verdict,
};
use crate::owned::{NFT_FIREWALL_TABLE, PRIORITY_FILTER};

const INGRESS: &str = "ingress-policies";
const SAME_BRIDGE: &str = "same-bridge";
const ISOLATED: &str = "isolated";
const BRIDGES: &str = "bridges";
const RESTRICTED: &str = "restricted";
const NODE_ACCESS: &str = "node-access";
const NODE_PORTS: &str = "node-ports";
const NO_METADATA: &str = "no-metadata";

/// One a family.
pub fn tables() -> Vec<TableId> {
    [Family::V4, Family::V6].map(|family| TableId::new(family, NFT_FIREWALL_TABLE)).to_vec()
}

/// The table without pods.
pub(super) fn layout(id: &TableId) -> Option<Table> {
    if !tables().contains(id) {
        return None;
    }
    let family = id.family.address_family();
    let address = Type::Address(family);
    let source = || vec![Field::SourceAddress];
    let drop = || Statement::Verdict(Verdict::Drop);
    let accept = || Statement::Verdict(Verdict::Accept);
    let new = || Statement::StateIs(ConnectionState::New);
    let base = |hook| BaseChain { chain_type: ChainType::Filter, hook, priority: PRIORITY_FILTER };
    let metadata = || {
        let field = Field::DestinationAddress;
        let to = Statement::InRange { field, range: metadata_service(family), outside: false };
        vec![to, in_set(source(), NO_METADATA), drop()]
    };
    let ingress =
        Statement::VerdictOf { key: vec![Field::DestinationAddress], map: INGRESS.into() };
    let restricted = vec![
        new(),
        in_set(source(), RESTRICTED),
        Statement::Verdict(Verdict::Goto(NODE_ACCESS.into())),
    ];
    let node_port = vec![Field::SourceAddress, Field::Protocol, Field::DestinationPort];
    let bridge = vec![Field::Link, Field::DestinationAddress];
    let mut layout = Layout::new(id);
    layout
        .set(INGRESS, &[address], DataType::Verdict)
        .set(BRIDGES, &[Type::Link, address], DataType::None)
        .set(RESTRICTED, &[address], DataType::None)
        .set(NODE_PORTS, &[address, Type::Protocol, Type::Port], DataType::None)
        .set(NO_METADATA, &[address], DataType::None)
        .chain(SAME_BRIDGE, vec![vec![in_set(bridge, BRIDGES), accept()], vec![new(), drop()]])
        .chain(ISOLATED, vec![vec![new(), drop()]])
        .chain(
            NODE_ACCESS,
            vec![
                vec![in_set(node_port, NODE_PORTS), accept()],
                // Echo, and errors that make path MTU discovery work.
                vec![Statement::ProtocolIs(icmp(family)), accept()],
                vec![drop()],
            ],
        )
        .base("forward", base(Hook::Forward), vec![metadata(), vec![ingress]])
        .base("input", base(Hook::Input), vec![metadata(), restricted]);
    Some(layout.table())
}

/// The addresses of pods whose packets others' chains shall let through.
pub fn forwarded(family: Family, attachments: &[Attachment]) -> impl Iterator<Item = IpAddr> {
    let pods = attachments.iter().filter(|pod| pod.edge.firewall.is_some());
    pods.flat_map(move |pod| super::addresses(pod, family)).map(|address| address.addr())
}

/// The rules that let pods' packets through a chain of that table whose policy is to drop.
pub fn forwarding(id: &TableId, attachments: &[Attachment]) -> Vec<Rule> {
    let mut rules = Vec::new();
    for address in forwarded(id.family.address_family(), attachments) {
        for field in [Field::SourceAddress, Field::DestinationAddress] {
            let range = IpNet::from(address);
            let condition = Statement::InRange { field, range, outside: false };
            rules.push(Rule::new(id.family, vec![condition, Statement::Verdict(Verdict::Accept)]));
        }
    }
    rules
}

pub(super) fn add(parts: &mut Parts, attachment: &Attachment) {
    for id in tables() {
        let family = id.family.address_family();
        let addresses: Vec<IpAddr> =
            super::addresses(attachment, family).map(|address| address.addr()).collect();
        for &address in &addresses {
            add_ingress(parts, &id, attachment, address);
        }
        // What the pod sends from, so that none of its addresses is a way round.
        let own = link_local(attachment).filter(|_| family == Family::V6 && !addresses.is_empty());
        for address in addresses.iter().copied().chain(own) {
            let key = Value::Address(address);
            if attachment.edge.metadata_blocked {
                parts.member(&id, NO_METADATA, vec![key]);
            }
            let Some(ports) = &attachment.edge.node_ports else { continue };
            parts.member(&id, RESTRICTED, vec![key]);
            for port in ports {
                let protocol = Value::Protocol(port.protocol.number());
                parts.member(&id, NODE_PORTS, vec![key, protocol, Value::Port(port.port)]);
            }
        }
    }
}

fn add_ingress(parts: &mut Parts, id: &TableId, attachment: &Attachment, address: IpAddr) {
    let Some(firewall) = &attachment.edge.firewall else { return };
    let chain = match firewall.ingress_policy {
        IngressPolicy::Open => return,
        IngressPolicy::SameBridge => SAME_BRIDGE,
        IngressPolicy::Isolated => ISOLATED,
    };
    let verdict = Datum::Verdict(Verdict::Goto(chain.into()));
    parts.entry(id, INGRESS, vec![Value::Address(address)], verdict);
    if let (SAME_BRIDGE, Some(bridge)) = (chain, attachment.link.bridge()) {
        let key = vec![Value::Link(LinkName::new(bridge)), Value::Address(address)];
        parts.member(id, BRIDGES, key);
    }
}

/// Where clouds hand out a machine's identity and credentials.
fn metadata_service(family: Family) -> IpNet {
    IpNet::from(match family {
        Family::V4 => IpAddr::from(Ipv4Addr::new(169, 254, 169, 254)),
        Family::V6 => IpAddr::from(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    })
}

fn icmp(family: Family) -> u8 {
    match family {
        Family::V4 => 1,
        Family::V6 => 58,
    }
}

fn in_set(key: Vec<Field>, set: &str) -> Statement {
    Statement::In { key, set: set.into() }
}
