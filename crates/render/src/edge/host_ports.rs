//! Ports of the node that lead to a pod (CNI capability `portMappings`, `hostPort` of a Pod).
//!
//! Only what is for an address of this node itself is translated (CVE-2025-67499: traffic that
//! passes through to somebody else's port is not ours), and nothing for the loopback: the answer
//! would need `route_localnet`, which lets neighbours reach what listens on loopback only
//! (CVE-2020-8558), so it is never set.
//!
//! A port that a Service has too is the Service's: its rules come first. A mapping of one address
//! goes before one of all.
//!
//! Conditions of a mapping come before it: a packet that does not fulfil them is not translated here,
//! neither by that mapping nor by one of all addresses for the same port.
//!
//! An answer that belongs to no tracked flow would leave with the pod's own source; it is dropped
//!
//!
//! A client on the pod's own link (the pod itself, or a neighbour on its bridge) would be answered
//! past the translation: it gets the node's address as source.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use model::attachment::{HostPortCondition, PortMapping, Side};
use model::{Attachment, Family};

use super::part::{Layout, Parts, never_untranslated};
use crate::nft::language::{
    BaseChain, ChainType, DataType, Datum, Field, Hook, LinkName, Name, SetSpec, Statement, Table,
    TableId, Tuple, Type, Value, Verdict,
};
use crate::nft::layout::{endpoint_datum, endpoint_types};
use crate::owned::{MARK_MASQUERADE, NFT_HOST_PORTS_TABLE, PRIORITY_HOST_PORTS, PRIORITY_POD_SNAT};

/// Mappings of all addresses of the node, and those of one.
const SCOPES: [Scope; 2] = [Scope { bound: true }, Scope { bound: false }];
const TRANSLATE: &str = "translate";
const ENDPOINTS: &str = "endpoints";
const MASQUERADE: &str = "masquerade";
const SAME_LINK: &str = "same-link";
const CONDITIONS: &str = "conditions";
/// Pods that answer for the node.
const TRANSLATED: &str = "translated";

/// One a family.
pub fn tables() -> Vec<TableId> {
    [Family::V4, Family::V6].map(|family| TableId::new(family, NFT_HOST_PORTS_TABLE)).to_vec()
}

/// The table without pods.
pub(super) fn layout(id: &TableId) -> Option<Table> {
    if !tables().contains(id) {
        return None;
    }
    let family = id.family.address_family();
    let base = |hook, priority| BaseChain { chain_type: ChainType::Nat, hook, priority };
    let not_loopback = Statement::InRange {
        field: Field::DestinationAddress,
        range: loopback(family),
        outside: true,
    };
    let to_node = vec![
        Statement::ToThisNode,
        not_loopback,
        Statement::Verdict(Verdict::Jump(TRANSLATE.into())),
    ];
    let masquerade = vec![
        Statement::HasMark(MARK_MASQUERADE),
        Statement::ClearMark(MARK_MASQUERADE),
        Statement::Masquerade { ports: None },
    ];
    let mut layout = Layout::new(id);
    let mut rules = Vec::new();
    for scope in SCOPES {
        let key = scope.types(family);
        layout
            .set(&scope.name(ENDPOINTS), &key, DataType::Values(endpoint_types(family)))
            .set(&scope.name(MASQUERADE), &key, DataType::None)
            .set(&scope.name(CONDITIONS), &key, DataType::Verdict)
            .set(&scope.name(SAME_LINK), &[&[Type::Link], &key[..]].concat(), DataType::None);
        let conditions = scope.name(CONDITIONS);
        rules.push(vec![Statement::VerdictOf { key: scope.fields(), map: conditions }]);
        let mark = || Statement::SetMark(MARK_MASQUERADE);
        let same_link = [&[Field::Link], &scope.fields()[..]].concat();
        rules.push(vec![in_set(scope.fields(), scope.name(MASQUERADE)), mark()]);
        rules.push(vec![in_set(same_link, scope.name(SAME_LINK)), mark()]);
        let load = Statement::Load { key: scope.fields(), map: scope.name(ENDPOINTS) };
        rules.push(vec![load, Statement::TranslateDestination]);
    }
    layout
        .set(TRANSLATED, &[Type::Address(family)], DataType::None)
        .chain(TRANSLATE, rules)
        .base("forward", Layout::FORWARD, vec![never_untranslated(TRANSLATED)])
        .base("prerouting", base(Hook::Prerouting, PRIORITY_HOST_PORTS), vec![to_node.clone()])
        .base("output", base(Hook::Output, PRIORITY_HOST_PORTS), vec![to_node])
        .base("postrouting", base(Hook::Postrouting, PRIORITY_POD_SNAT), vec![masquerade]);
    Some(layout.table())
}

pub(super) fn add(parts: &mut Parts, attachment: &Attachment) {
    for Endpoint { mapping, table, map, key, endpoint, .. } in endpoints(attachment) {
        let Some(scope) = Scope::of(&mapping, table.family.address_family()) else { continue };
        match same_link(attachment) {
            Some(link) if mapping.snat => {
                let key = [&[Value::Link(link)], &key[..]].concat();
                parts.member(&table, &scope.name(SAME_LINK), key);
            }
            _ => {}
        }
        // A link without an end on the node: nobody knows who shares it.
        let unknown = same_link(attachment).is_none();
        if mapping.masquerade_all || (mapping.snat && unknown) {
            parts.member(&table, &scope.name(MASQUERADE), key.clone());
        }
        let conditions = conditions(attachment, table.family.address_family());
        if !conditions.is_empty() {
            let verdict = parts.subroutine(&table, CONDITIONS, conditions);
            parts.entry(&table, &scope.name(CONDITIONS), key.clone(), verdict);
        }
        if let Datum::Values(values) = &endpoint {
            parts.member(&table, TRANSLATED, values.iter().take(1).copied().collect());
        }
        parts.entry(&table, &map, key, endpoint);
    }
}

/// The rules that let go what does not fulfil a condition of the family.
fn conditions(attachment: &Attachment, family: Family) -> Vec<Vec<Statement>> {
    let of_family = attachment.edge.host_port_conditions.iter();
    let of_family = of_family.filter(|one| Family::of(&one.range.addr()) == family);
    let rule = |&HostPortCondition { side, range, outside }: &HostPortCondition| {
        let field = match side {
            Side::Source => Field::SourceAddress,
            Side::Destination => Field::DestinationAddress,
        };
        let unfulfilled = Statement::InRange { field, range, outside: !outside };
        vec![unfulfilled, Statement::Verdict(Verdict::Accept)]
    };
    of_family.map(rule).collect()
}

/// Where one mapping stands in the kernel. Another pod may have had the port first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The mapping.
    pub mapping: PortMapping,
    /// The table of the map.
    pub table: TableId,
    /// The map's name.
    pub map: Name,
    /// The map's shape.
    pub spec: SetSpec,
    /// Its key.
    pub key: Tuple,
    /// What stands there when the port is this pod's.
    pub endpoint: Datum,
}

/// Where an attachment's mappings stand.
pub fn endpoints(attachment: &Attachment) -> Vec<Endpoint> {
    let mut endpoints = Vec::new();
    for table in tables() {
        let family = table.family.address_family();
        // A port leads to one address: the pod's first of the family.
        let Some(pod) = super::addresses(attachment, family).next() else { continue };
        for mapping in &attachment.edge.host_ports {
            let Some(scope) = Scope::of(mapping, family) else { continue };
            endpoints.push(Endpoint {
                mapping: mapping.clone(),
                table: table.clone(),
                map: scope.name(ENDPOINTS),
                spec: SetSpec {
                    key: scope.types(family),
                    data: DataType::Values(endpoint_types(family)),
                    filled_by_packets_max: None,
                },
                key: scope.key(mapping),
                endpoint: endpoint_datum(pod.addr(), mapping.container_port),
            });
        }
    }
    endpoints
}

/// Why mappings cannot be served.
pub(super) fn refusal(attachment: &Attachment) -> Option<String> {
    for (index, mapping) in attachment.edge.host_ports.iter().enumerate() {
        let name = text(mapping);
        if mapping.host_port == 0 || mapping.container_port == 0 {
            return Some(format!("{name}: port 0 is none; give a number from 1 to 65535"));
        }
        if mapping.host_ip.is_some_and(|address| address.is_loopback()) {
            return Some(format!(
                "{name}: a port of the node's loopback address would need route_localnet, with \
                 which neighbours reach what listens on loopback (CVE-2020-8558); use an address \
                 of the node, or none for all"
            ));
        }
        let earlier = attachment.edge.host_ports.get(..index).unwrap_or_default();
        if earlier.iter().any(|earlier| same(earlier, mapping)) {
            return Some(format!("{name} is mapped twice; a port of the node leads to one port"));
        }
    }
    None
}

/// Which other attachment has one of the ports.
pub(super) fn conflict(attachments: &[Attachment], wanted: &Attachment) -> Option<String> {
    let own = |other: &Attachment| {
        other.container_id == wanted.container_id && other.interface == wanted.interface
    };
    for holder in attachments.iter().filter(|other| !own(other)) {
        let families: Vec<Family> = [Family::V4, Family::V6]
            .into_iter()
            .filter(|&family| {
                [holder, wanted].iter().all(|one| super::addresses(one, family).next().is_some())
            })
            .collect();
        for mapping in &wanted.edge.host_ports {
            let clash = holder.edge.host_ports.iter().any(|held| {
                same(held, mapping)
                    && families.iter().any(|&family| Scope::of(mapping, family).is_some())
            });
            if clash {
                let name = match &holder.pod {
                    Some(pod) => format!("pod {pod}"),
                    None => format!("container {}", holder.container_id),
                };
                return Some(format!("{} leads to {name} already", text(mapping)));
            }
        }
    }
    None
}

/// Whether the node's port is open on one address, or on all.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Scope {
    bound: bool,
}

impl Scope {
    /// `None` for a mapping of the other family.
    fn of(mapping: &PortMapping, family: Family) -> Option<Self> {
        match mapping.host_ip {
            None => Some(Self { bound: false }),
            Some(address) if Family::of(&address) != family => None,
            Some(address) => Some(Self { bound: !address.is_unspecified() }),
        }
    }

    fn name(self, set: &str) -> String {
        if self.bound { format!("bound-{set}") } else { set.into() }
    }

    fn types(self, family: Family) -> Vec<Type> {
        let address = self.bound.then_some(Type::Address(family));
        address.into_iter().chain([Type::Protocol, Type::Port]).collect()
    }

    fn fields(self) -> Vec<Field> {
        let address = self.bound.then_some(Field::DestinationAddress);
        address.into_iter().chain([Field::Protocol, Field::DestinationPort]).collect()
    }

    fn key(self, mapping: &PortMapping) -> Tuple {
        let address = mapping.host_ip.filter(|_| self.bound).map(Value::Address);
        let protocol = Value::Protocol(mapping.protocol.number());
        address.into_iter().chain([protocol, Value::Port(mapping.host_port)]).collect()
    }
}

/// The link that the pod, and whoever would be answered past the node, come in over.
fn same_link(attachment: &Attachment) -> Option<LinkName> {
    let link = &attachment.link;
    link.bridge().or(link.node_end()).map(LinkName::new)
}

fn same(one: &PortMapping, other: &PortMapping) -> bool {
    let address = |mapping: &PortMapping| mapping.host_ip.filter(|it| !it.is_unspecified());
    let family = |mapping: &PortMapping| mapping.host_ip.map(|it| Family::of(&it));
    let families = match (family(one), family(other)) {
        (Some(one), Some(other)) => one == other,
        _ => true,
    };
    families
        && one.host_port == other.host_port
        && one.protocol == other.protocol
        && address(one) == address(other)
}

fn text(mapping: &PortMapping) -> String {
    let address = match mapping.host_ip {
        Some(address) => format!(" of {address}"),
        None => String::new(),
    };
    let protocol = Value::Protocol(mapping.protocol.number());
    format!("hostPort {}/{protocol}{address}", mapping.host_port)
}

fn loopback(family: Family) -> IpNet {
    match family {
        Family::V4 => IpNet::new_assert(IpAddr::from(Ipv4Addr::new(127, 0, 0, 0)), 8),
        Family::V6 => IpNet::from(IpAddr::from(Ipv6Addr::LOCALHOST)),
    }
}

fn in_set(key: Vec<Field>, set: String) -> Statement {
    Statement::In { key, set }
}
