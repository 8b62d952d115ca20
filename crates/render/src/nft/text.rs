//! Rules and tables as a person reads them. The text of a rule is also what its fingerprint is made
//! of, so two statements that do different things read differently.

use std::fmt;

use model::Family;

use super::language::{
    BaseChain, ChainType, ConnectionState, DataType, Datum, EtherType, Field, Hook, LinkName, Set,
    Statement, Table, TableFamily, TableId, Type, Value, Verdict,
};

/// Rules as a person reads them: close to what `nft list table` prints, loads written out.
pub fn text_of(family: TableFamily, statements: &[Statement]) -> String {
    let words: Vec<String> =
        statements.iter().map(|statement| statement_text(family, statement)).collect();
    words.join(" ")
}

fn statement_text(family: TableFamily, statement: &Statement) -> String {
    let of = |key: &[Field]| key_text(family, key);
    match statement {
        Statement::InRange { field, range, outside } => {
            let not = if *outside { "!= " } else { "" };
            format!("{} {not}{range}", of(&[*field]))
        }
        Statement::NotFromLoopback => "iif != lo".into(),
        Statement::FromLink(link) => format!("iifname {link}"),
        Statement::NotFromLink(link) => format!("iifname != {link}"),
        Statement::NotToLink(link) => format!("oifname != {link}"),
        Statement::TunnelPacket { port, vni } => format!("udp dport {port} vxlan vni {vni}"),
        Statement::TunnelledIs(Family::V4) => "vxlan ether type ip".into(),
        Statement::TunnelledIs(Family::V6) => "vxlan ether type ip6".into(),
        Statement::ProtocolIs(protocol) => {
            format!("meta l4proto {}", Value::Protocol(*protocol))
        }
        Statement::StateIs(ConnectionState::New) => "ct state new".into(),
        Statement::StateIs(ConnectionState::Invalid) => "ct state invalid".into(),
        Statement::StateIs(ConnectionState::Untranslated) => "ct status & dnat == 0".into(),
        Statement::Carries(_)
        | Statement::ToGroup
        | Statement::ArpOfIpv4
        | Statement::ProtocolIsNot(_)
        | Statement::SourcePortIsNot(_)
        | Statement::LaterFragment(_)
        | Statement::Icmpv6Type { .. }
        | Statement::PayloadIs(_)
        | Statement::NeighbourOptionIs(_)
        | Statement::ToThisNode => header_text(statement),
        Statement::PortIs(port) => format!("th dport {port}"),
        Statement::HasMark(bits) => format!("meta mark & {bits:#x} == {bits:#x}"),
        Statement::In { key, set } => format!("{} @{set}", of(key)),
        Statement::NotIn { key, set } => format!("{} != @{set}", of(key)),
        Statement::EchoRequest(Family::V4) => "icmp type echo-request".into(),
        Statement::EchoRequest(Family::V6) => "icmpv6 type echo-request".into(),
        Statement::HasEntry { key, map } => format!("{} in map @{map}", of(key)),
        Statement::Dispatch { key, classes, verdicts } => {
            format!("{} map @{classes} vmap @{verdicts}", of(key))
        }
        Statement::VerdictOf { key, map } => format!("{} vmap @{map}", of(key)),
        Statement::Load { key, map } => format!("endpoint = {} map @{map}", of(key)),
        Statement::LoadEndpoint(endpoint) => format!("endpoint = {endpoint}"),
        Statement::Remember { set, timeout_s } => {
            let source = of(&[Field::SourceAddress]);
            format!("update @{set} {{ {source} timeout {timeout_s}s }}")
        }
        Statement::SetMark(bits) => format!("meta mark set meta mark | {bits:#x}"),
        Statement::ClearMark(bits) => format!("meta mark set meta mark & ~{bits:#x}"),
        Statement::NoTrack => "notrack".into(),
        Statement::TrackInZone(zone) => format!("ct zone set {zone}"),
        Statement::TranslateDestination => "dnat to endpoint".into(),
        Statement::TranslateAddress(address) => format!("dnat to {address}"),
        Statement::Masquerade { ports: None } => "masquerade fully-random".into(),
        Statement::Masquerade { ports: Some(ports) } => {
            format!("masquerade to :{ports} fully-random")
        }
        Statement::RejectWithReset => "reject with tcp reset".into(),
        Statement::RejectWithUnreachable => "reject with port-unreachable".into(),
        Statement::Verdict(verdict) => verdict.to_string(),
    }
}

/// Conditions on the headers of a frame or packet.
fn header_text(statement: &Statement) -> String {
    match statement {
        Statement::Carries(EtherType::Ip(family)) => format!("ether type {}", word_of(*family)),
        Statement::Carries(EtherType::Arp) => "ether type arp".into(),
        Statement::ToGroup => "meta pkttype { broadcast, multicast }".into(),
        Statement::ArpOfIpv4 => "arp htype 1 ptype ip hlen 6 plen 4".into(),
        Statement::ProtocolIsNot(protocol) => {
            format!("meta l4proto != {}", Value::Protocol(*protocol))
        }
        Statement::SourcePortIsNot(port) => format!("th sport != {port}"),
        Statement::LaterFragment(family) => format!("{} fragment, not first", word_of(*family)),
        Statement::Icmpv6Type { first, last } => format!("icmpv6 type {first}-{last}"),
        Statement::PayloadIs(bytes) => format!("ip6 length {bytes}"),
        Statement::NeighbourOptionIs(kind) => format!("nd option {kind} length 1"),
        Statement::ToThisNode => "fib daddr type local".into(),
        other => format!("{other:?}"),
    }
}

fn word_of(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

fn key_text(family: TableFamily, key: &[Field]) -> String {
    let ip = word_of(family.address_family());
    let words: Vec<String> = key
        .iter()
        .map(|field| match field {
            Field::SourceAddress => format!("{ip} saddr"),
            Field::DestinationAddress => format!("{ip} daddr"),
            Field::FramedSource(family) => format!("{} saddr", word_of(*family)),
            Field::Link => "iifname".into(),
            Field::EtherSource => "ether saddr".into(),
            Field::ArpSenderMac => "arp saddr ether".into(),
            Field::ArpSenderAddress => "arp saddr ip".into(),
            Field::ArpTargetAddress => "arp daddr ip".into(),
            Field::NeighbourTarget => "nd target".into(),
            Field::NeighbourOptionMac => "nd option address".into(),
            Field::Protocol => "meta l4proto".into(),
            Field::SourcePort => "th sport".into(),
            Field::DestinationPort => "th dport".into(),
            Field::TunnelledSource { family: Family::V4, prefix_len } => {
                format!("vxlan ip saddr/{prefix_len}")
            }
            Field::TunnelledSource { family: Family::V6, prefix_len } => {
                format!("vxlan ip6 saddr/{prefix_len}")
            }
            Field::IpipSource { prefix_len } => format!("inner {ip} saddr/{prefix_len}"),
            Field::Random { modulus } => format!("numgen random mod {modulus}"),
        })
        .collect();
    words.join(" . ")
}

fn tuple_text(tuple: &[Value]) -> String {
    let words: Vec<String> = tuple.iter().map(Value::to_string).collect();
    words.join(" . ")
}

impl fmt::Display for TableFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ip(family) => word_of(*family),
            Self::Bridge => "bridge",
            Self::Arp => "arp",
            Self::Inet(_) => "inet",
        })
    }
}

impl fmt::Display for TableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family, self.name)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Protocol(6) => f.write_str("tcp"),
            Self::Protocol(17) => f.write_str("udp"),
            Self::Protocol(58) => f.write_str("icmpv6"),
            Self::Protocol(132) => f.write_str("sctp"),
            Self::Protocol(number) => number.fmt(f),
            Self::Port(port) => port.fmt(f),
            Self::Number(number) => write!(f, "{number:#x}"),
            Self::Link(LinkName(bytes)) => {
                let name = String::from_utf8_lossy(bytes);
                f.write_str(name.trim_end_matches('\0'))
            }
            Self::Mac(mac) => mac.fmt(f),
            Self::PortRange(first, last) => write!(f, "{first}-{last}"),
            Self::Network(network) => network.fmt(f),
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Address(Family::V4) | Self::Network(Family::V4) => "ipv4_addr",
            Self::Address(Family::V6) | Self::Network(Family::V6) => "ipv6_addr",
            Self::Protocol => "protocol",
            Self::Port | Self::PortRange => "port",
            Self::Number => "number",
            Self::Link => "ifname",
            Self::Mac => "ether_addr",
        })
    }
}

impl fmt::Display for BaseChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.chain_type {
            ChainType::Filter => "filter",
            ChainType::Nat => "nat",
        };
        let hook = match self.hook {
            Hook::Prerouting => "prerouting",
            Hook::Input => "input",
            Hook::Forward => "forward",
            Hook::Output => "output",
            Hook::Postrouting => "postrouting",
        };
        write!(f, "type {kind} hook {hook} priority {}; policy accept;", self.priority)
    }
}

/// A table with what tells it, printed as `nft list table` would.
pub struct TableText<'a>(pub &'a TableId, pub &'a Table);

impl fmt::Display for TableText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(id, table) = *self;
        writeln!(f, "table {id} {{")?;
        for (name, set) in &table.sets {
            write_set(f, name, set)?;
        }
        for (name, chain) in &table.chains {
            writeln!(f, "\tchain {name} {{")?;
            if let Some(base) = &chain.base {
                writeln!(f, "\t\t{base}")?;
            }
            for rule in &chain.rules {
                match rule.statements() {
                    Some(statements) => writeln!(f, "\t\t{}", text_of(id.family, statements))?,
                    None => writeln!(f, "\t\t# rule {:016x}", rule.fingerprint())?,
                }
            }
            writeln!(f, "\t}}")?;
        }
        writeln!(f, "}}")
    }
}

fn write_set(f: &mut fmt::Formatter<'_>, name: &str, set: &Set) -> fmt::Result {
    let words = |types: &[Type]| {
        let words: Vec<String> = types.iter().map(Type::to_string).collect();
        words.join(" . ")
    };
    let key = words(&set.spec.key);
    match &set.spec.data {
        DataType::None => writeln!(f, "\tset {name} {{\n\t\ttype {key}")?,
        DataType::Values(types) => {
            writeln!(f, "\tmap {name} {{\n\t\ttype {key} : {}", words(types))?;
        }
        DataType::Verdict => writeln!(f, "\tmap {name} {{\n\t\ttype {key} : verdict")?,
    }
    if set.spec.is_interval() {
        writeln!(f, "\t\tflags interval")?;
    }
    if let Some(size) = set.spec.filled_by_packets_max {
        writeln!(f, "\t\tsize {size}\n\t\tflags dynamic,timeout")?;
    }
    for (key, datum) in set.elements.iter() {
        write!(f, "\t\t{}", tuple_text(&key))?;
        match datum {
            Datum::Member => writeln!(f)?,
            Datum::Values(values) => writeln!(f, " : {}", tuple_text(&values))?,
            Datum::Verdict(verdict) => writeln!(f, " : {verdict}")?,
        }
    }
    writeln!(f, "\t}}")
}
