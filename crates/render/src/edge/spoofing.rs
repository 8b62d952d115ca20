//! Who a pod may say it is: at the port of a bridge, or at the node's end of a routed pair.
//!
//! What a pod sends passes when link, link-layer source and IP source stand together in a set: one
//! look-up for nearly all packets. What does not is looked at closely, and dropped unless it is one
//! of the few messages that a host must send.
//!
//! - **ARP** speaks for the pod's own pair of addresses only, in both places where the link-layer
//!   address stands; a probe (RFC 5227), whose sender is 0.0.0.0, asks for an own address only.
//! - **Neighbour discovery** likewise: targets of advertisements and the addresses in options are
//!   the pod's own. A message has at most that one option, and no room for another. Duplicate
//!   address detection (source `::`) asks for an own address only.
//! - Messages of routers and DHCP servers (router advertisement, redirect, and all of ICMPv6 but
//!   what is listed) are dropped. Types and ports are read behind extension headers; where the
//!   first fragment does not hold them nothing matches, and it is dropped. Later fragments pass:
//!   without a first one they become no packet (and RFC 6980 forbids fragments in discovery, so a
//!   list of lengths refuses them too).
//! - Frames with a VLAN tag, or of another EtherType, are dropped: the type is read from the frame.
//! - Broadcast and multicast are dropped but for ARP, discovery, and the reports of listeners
//!   (RFC 3810) that keep snooping bridges delivering discovery. A DHCP client may ask only where an
//!   administrator allows 0.0.0.0 as a further source.
//!
//! The source of a pod in IPv6 is its addresses and the link-local one made from its MAC (RFC 4291,
//! appendix A). A pod without an IPv6 address sends no IPv6 at all.
//!
//! Links that are nobody's here are not judged.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use model::attachment::PodLink;
use model::{Attachment, Family, Protocol};

use super::part::{Layout, Parts};
use crate::nft::language::{
    BaseChain, ChainType, DataType, EtherType, Field, Hook, LinkName, Statement, Table,
    TableFamily, TableId, Type, Value, Verdict,
};
use crate::owned::{NFT_SPOOFING_TABLE, PRIORITY_BRIDGE, PRIORITY_RAW};

/// Links whose packets are judged.
const PODS: &str = "pods";
/// Link and its link-layer address.
const MACS: &str = "macs";
/// Link to the chain of further sources that an administrator allows.
const EXTRA: &str = "extra-sources";
/// What is in no set of sources.
const OTHERS: &str = "others";
const ARP: &str = "arp";
const SOLICITATION: &str = "neighbour-solicitation";
const ADVERTISEMENT: &str = "neighbour-advertisement";
/// Of an address that an administrator allows besides.
const EXTRA_ADVERTISEMENT: &str = "extra-advertisement";

const DHCP_SERVER_PORT: u16 = 67;
const DHCPV6_SERVER_PORT: u16 = 547;
const ICMPV6: u8 = 58;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const SOURCE_LINK_LAYER_ADDRESS: u8 = 1;
const TARGET_LINK_LAYER_ADDRESS: u8 = 2;
/// ICMPv6 to one station: errors, echo.
const ICMPV6_UNICAST: [(u8, u8); 2] = [(1, 4), (128, 129)];
/// ICMPv6 to groups: reports and leaving of listeners.
const ICMPV6_GROUP: [(u8, u8); 2] = [(131, 132), (143, 143)];
/// Bytes of a neighbour message without options, and with one link-layer address.
const NEIGHBOUR_BYTES: u16 = 24;
const NEIGHBOUR_WITH_OPTION_BYTES: u16 = 32;

/// Frames on bridges; packets and ARP on routed links.
pub fn tables() -> Vec<TableId> {
    [
        TableFamily::Bridge,
        TableFamily::Arp,
        TableFamily::Ip(Family::V4),
        TableFamily::Ip(Family::V6),
    ]
    .map(|family| TableId::new(family, NFT_SPOOFING_TABLE))
    .to_vec()
}

/// The table without pods.
pub(super) fn layout(id: &TableId) -> Option<Table> {
    if !tables().contains(id) {
        return None;
    }
    let (hook, priority) = match id.family {
        TableFamily::Bridge => (Hook::Prerouting, PRIORITY_BRIDGE),
        // Before connection tracking: what is dropped costs no entry.
        TableFamily::Ip(_) | TableFamily::Inet(_) => (Hook::Prerouting, PRIORITY_RAW),
        TableFamily::Arp => (Hook::Input, PRIORITY_RAW),
    };
    let families = families(id.family);
    let mut layout = Layout::new(id);
    layout
        .set(PODS, &[Type::Link], DataType::None)
        .set(MACS, &[Type::Link, Type::Mac], DataType::None)
        .set(EXTRA, &[Type::Link], DataType::Verdict);
    for family in [Family::V4, Family::V6] {
        if families.contains(&family) || (id.family == TableFamily::Arp && family == Family::V4) {
            let key = [Type::Link, Type::Mac, Type::Address(family)];
            layout.set(sources(family), &key, DataType::None);
        }
    }
    let mut first: Vec<Vec<Statement>> = families.iter().map(|&f| known(id.family, f)).collect();
    first.push(vec![in_set(vec![Field::Link], PODS), goto(OTHERS)]);
    let base = BaseChain { chain_type: ChainType::Filter, hook, priority };
    layout.base("from-pods", base, first).chain(OTHERS, others(id.family));
    if matches!(id.family, TableFamily::Bridge | TableFamily::Arp) {
        layout.chain(ARP, arp());
    }
    for &family in families {
        layout.chain(own(family), own_packets(family)).chain(to_group(family), groups(family));
    }
    if families.contains(&Family::V6) {
        layout.chain(SOLICITATION, neighbour_message(&[], SOURCE_LINK_LAYER_ADDRESS));
        let target =
            in_set(vec![Field::Link, Field::EtherSource, Field::NeighbourTarget], SOURCES6);
        layout.chain(ADVERTISEMENT, neighbour_message(&[target], TARGET_LINK_LAYER_ADDRESS));
        layout.chain(EXTRA_ADVERTISEMENT, neighbour_message(&[], TARGET_LINK_LAYER_ADDRESS));
    }
    Some(layout.table())
}

pub(super) fn add(parts: &mut Parts, attachment: &Attachment) {
    let Some(name) = attachment.link.node_end().filter(|_| attachment.edge.anti_spoofing) else {
        return;
    };
    let (link, mac) = (Value::Link(LinkName::new(name)), Value::Mac(attachment.mac));
    let mut own: Vec<IpAddr> = attachment.addresses.iter().map(IpNet::addr).collect();
    if own.iter().any(IpAddr::is_ipv6) {
        own.extend(link_local(attachment));
    }
    for id in tables_of(&attachment.link) {
        parts.member(&id, PODS, vec![link]);
        parts.member(&id, MACS, vec![link, mac]);
        for &address in &own {
            let family = Family::of(&address);
            let of_table = match id.family {
                TableFamily::Bridge => true,
                TableFamily::Arp => family == Family::V4,
                TableFamily::Ip(table) | TableFamily::Inet(table) => family == table,
            };
            if of_table {
                parts.member(&id, sources(family), vec![link, mac, Value::Address(address)]);
            }
        }
        let rules = extra_rules(id.family, &attachment.edge.extra_sources);
        if !rules.is_empty() {
            let verdict = parts.chain(&id, "extra", rules);
            parts.entry(&id, EXTRA, vec![link], verdict);
        }
    }
}

/// The link-local address that a host makes of its MAC.
pub fn link_local(attachment: &Attachment) -> Option<IpAddr> {
    let [a, b, c, d, e, f] = attachment.mac.0;
    let pair = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    let address =
        Ipv6Addr::new(0xfe80, 0, 0, 0, pair(a ^ 2, b), pair(c, 0xff), pair(0xfe, d), pair(e, f));
    Some(IpAddr::from(address))
}

/// Where a pod's packets are seen. Of another plugin's link it is not known whether it is a port of
/// a bridge: only one of the tables will meet it.
fn tables_of(link: &PodLink) -> Vec<TableId> {
    tables()
        .into_iter()
        .filter(|id| match link {
            PodLink::Bridge { .. } => id.family == TableFamily::Bridge,
            PodLink::Routed { .. } => id.family != TableFamily::Bridge,
            PodLink::Chained { .. } => true,
            PodLink::Macvlan { .. } => false,
        })
        .collect()
}

const SOURCES6: &str = "sources-v6";

fn sources(family: Family) -> &'static str {
    match family {
        Family::V4 => "sources-v4",
        Family::V6 => SOURCES6,
    }
}

/// The chain of packets whose sources are the pod's own.
fn own(family: Family) -> &'static str {
    match family {
        Family::V4 => "own-v4",
        Family::V6 => "own-v6",
    }
}

fn to_group(family: Family) -> &'static str {
    match family {
        Family::V4 => "to-group-v4",
        Family::V6 => "to-group-v6",
    }
}

fn families(table: TableFamily) -> &'static [Family] {
    match table {
        TableFamily::Bridge => &[Family::V4, Family::V6],
        TableFamily::Ip(Family::V4) | TableFamily::Inet(Family::V4) => &[Family::V4],
        TableFamily::Ip(Family::V6) | TableFamily::Inet(Family::V6) => &[Family::V6],
        TableFamily::Arp => &[],
    }
}

/// What a frame carries, asked only where frames of several kinds are seen.
fn carries(table: TableFamily, ether_type: EtherType) -> Option<Statement> {
    (table == TableFamily::Bridge).then_some(Statement::Carries(ether_type))
}

/// The rule that nearly all packets meet.
fn known(table: TableFamily, family: Family) -> Vec<Statement> {
    let key = vec![Field::Link, Field::EtherSource, Field::FramedSource(family)];
    carries(table, EtherType::Ip(family))
        .into_iter()
        .chain([in_set(key, sources(family)), goto(own(family))])
        .collect()
}

/// What a pod sends that is not from an address of its own.
fn others(table: TableFamily) -> Vec<Vec<Statement>> {
    let mut rules = Vec::new();
    if matches!(table, TableFamily::Bridge | TableFamily::Arp) {
        let is_arp = carries(table, EtherType::Arp).into_iter();
        rules.push(is_arp.chain([Statement::Verdict(Verdict::Jump(ARP.into()))]).collect());
    }
    if families(table).contains(&Family::V6) {
        let unspecified = |more: Vec<Statement>| {
            let is_ipv6 = carries(table, EtherType::Ip(Family::V6)).into_iter();
            is_ipv6.chain([from_unspecified()]).chain(more).chain([accept()]).collect()
        };
        let own = vec![Field::Link, Field::EtherSource, Field::NeighbourTarget];
        let own_target = in_set(own, SOURCES6);
        let kind = NEIGHBOUR_SOLICITATION;
        rules.push(unspecified(vec![icmpv6((kind, kind)), own_target]));
        for types in ICMPV6_GROUP {
            let mac = in_set(vec![Field::Link, Field::EtherSource], MACS);
            rules.push(unspecified(vec![Statement::ToGroup, mac, icmpv6(types)]));
        }
    }
    rules.push(vec![Statement::VerdictOf { key: vec![Field::Link], map: EXTRA.into() }]);
    rules.push(vec![drop()]);
    rules
}

fn arp() -> Vec<Vec<Statement>> {
    let sender = |mac| in_set(vec![Field::Link, mac, Field::ArpSenderAddress], sources(Family::V4));
    let range = IpNet::from(IpAddr::from(Ipv4Addr::UNSPECIFIED));
    let probe = Statement::InRange { field: Field::ArpSenderAddress, range, outside: false };
    let target = |mac| in_set(vec![Field::Link, mac, Field::ArpTargetAddress], sources(Family::V4));
    vec![
        vec![
            Statement::ArpOfIpv4,
            sender(Field::EtherSource),
            sender(Field::ArpSenderMac),
            accept(),
        ],
        vec![
            Statement::ArpOfIpv4,
            probe,
            target(Field::EtherSource),
            target(Field::ArpSenderMac),
            accept(),
        ],
    ]
}

fn own_packets(family: Family) -> Vec<Vec<Statement>> {
    let tcp = Protocol::Tcp.number();
    let udp = Protocol::Udp.number();
    let server_port = match family {
        Family::V4 => DHCP_SERVER_PORT,
        Family::V6 => DHCPV6_SERVER_PORT,
    };
    let mut rules = vec![
        vec![Statement::ToGroup, goto(to_group(family))],
        vec![Statement::ProtocolIs(tcp), accept()],
        vec![Statement::ProtocolIs(udp), Statement::SourcePortIsNot(server_port), accept()],
    ];
    let mut rest = vec![Statement::ProtocolIsNot(udp)];
    if family == Family::V6 {
        rules.extend(ICMPV6_UNICAST.map(|types| vec![icmpv6(types), accept()]));
        rules.extend(discovery());
        rest.push(Statement::ProtocolIsNot(ICMPV6));
    }
    rest.push(accept());
    rules.extend([vec![Statement::LaterFragment(family), accept()], rest, vec![drop()]]);
    rules
}

fn groups(family: Family) -> Vec<Vec<Statement>> {
    match family {
        Family::V4 => {
            let udp = Statement::ProtocolIs(Protocol::Udp.number());
            let not_a_server = Statement::SourcePortIsNot(DHCP_SERVER_PORT);
            let ask_for_address = Statement::PortIs(DHCP_SERVER_PORT);
            vec![vec![udp, not_a_server, ask_for_address, accept()], vec![drop()]]
        }
        Family::V6 => {
            let mut rules = discovery().to_vec();
            rules.extend(ICMPV6_GROUP.map(|types| vec![icmpv6(types), accept()]));
            rules.push(vec![drop()]);
            rules
        }
    }
}

fn discovery() -> [Vec<Statement>; 2] {
    [(NEIGHBOUR_SOLICITATION, SOLICITATION), (NEIGHBOUR_ADVERTISEMENT, ADVERTISEMENT)]
        .map(|(kind, chain)| vec![icmpv6((kind, kind)), goto(chain)])
}

/// A neighbour message under `conditions`: without options, or with the one.
fn neighbour_message(conditions: &[Statement], option: u8) -> Vec<Vec<Statement>> {
    let own_mac = in_set(vec![Field::Link, Field::NeighbourOptionMac], MACS);
    let short = vec![Statement::PayloadIs(NEIGHBOUR_BYTES), accept()];
    let with_option = vec![
        Statement::PayloadIs(NEIGHBOUR_WITH_OPTION_BYTES),
        Statement::NeighbourOptionIs(option),
        own_mac,
        accept(),
    ];
    let under = |rule: Vec<Statement>| conditions.iter().cloned().chain(rule).collect();
    vec![under(short), under(with_option), vec![drop()]]
}

/// Further sources, with the pod's own link-layer address. An ARP packet may speak for them too, and
/// so may neighbour discovery: advertisements, and detection of a duplicate.
fn extra_rules(table: TableFamily, ranges: &[IpNet]) -> Vec<Vec<Statement>> {
    let mac = |field| in_set(vec![Field::Link, field], MACS);
    let inside = |field, range| Statement::InRange { field, range, outside: false };
    let mut rules = Vec::new();
    for &range in ranges {
        let family = Family::of(&range.addr());
        if families(table).contains(&family) {
            let is_ip = || carries(table, EtherType::Ip(family)).into_iter();
            let from = || inside(Field::FramedSource(family), range);
            if family == Family::V6 {
                let about = inside(Field::NeighbourTarget, range);
                let message = |kind| [icmpv6((kind, kind)), about.clone()];
                let speaks = [from(), mac(Field::EtherSource)]
                    .into_iter()
                    .chain(message(NEIGHBOUR_ADVERTISEMENT))
                    .chain([goto(EXTRA_ADVERTISEMENT)]);
                let detects = [from_unspecified(), mac(Field::EtherSource)]
                    .into_iter()
                    .chain(message(NEIGHBOUR_SOLICITATION))
                    .chain([accept()]);
                rules.extend([is_ip().chain(speaks).collect(), is_ip().chain(detects).collect()]);
            }
            rules.push(
                is_ip().chain([from(), mac(Field::EtherSource), goto(own(family))]).collect(),
            );
        }
        let sees_arp = matches!(table, TableFamily::Bridge | TableFamily::Arp);
        if sees_arp && family == Family::V4 {
            let is_arp = carries(table, EtherType::Arp).into_iter();
            let sender = inside(Field::ArpSenderAddress, range);
            let macs = [mac(Field::EtherSource), mac(Field::ArpSenderMac)];
            let rest = [Statement::ArpOfIpv4, sender].into_iter().chain(macs).chain([accept()]);
            rules.push(is_arp.chain(rest).collect());
        }
    }
    if !rules.is_empty() {
        rules.push(vec![drop()]);
    }
    rules
}

/// The source of who has no address yet.
fn from_unspecified() -> Statement {
    let field = Field::FramedSource(Family::V6);
    let range = IpNet::from(IpAddr::from(Ipv6Addr::UNSPECIFIED));
    Statement::InRange { field, range, outside: false }
}

fn icmpv6((first, last): (u8, u8)) -> Statement {
    Statement::Icmpv6Type { first, last }
}

fn in_set(key: Vec<Field>, set: &str) -> Statement {
    Statement::In { key, set: set.into() }
}

fn goto(chain: &str) -> Statement {
    Statement::Verdict(Verdict::Goto(chain.into()))
}

fn accept() -> Statement {
    Statement::Verdict(Verdict::Accept)
}

fn drop() -> Statement {
    Statement::Verdict(Verdict::Drop)
}
