//! Dumps of our table as values. What is in our table but not of our making (an unknown type, a
//! verdict that we never use) is read as something that equals nothing of ours, so that the diff
//! replaces it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use model::{Family, MacAddress};
use netlink::message::Attributes;
use netlink::socket::Message;
use render::nft::language::{
    BaseChain, Chain, ChainType, DataType, Datum, Hook, LinkName, Rule, SetSpec, TableFamily,
    Tuple, Type, Value, Verdict,
};

use super::encode::{COMMENT_PREFIX, hook_number, set_flags, stored_types, types_of};
use super::expression::register_length;
use super::uapi::*;
use super::{FAMILY_HEADER_BYTES, ForeignDrop};

/// A chain without its rules, and its name.
pub fn chain(family: TableFamily, attributes: Attributes<'_>) -> Option<(String, Chain)> {
    let name = attributes.text(NFTA_CHAIN_NAME)?;
    let base = attributes.nested(NFTA_CHAIN_HOOK).and_then(|hook| base(family, attributes, hook));
    Some((name, Chain { base, rules: vec![] }))
}

fn base(
    family: TableFamily,
    attributes: Attributes<'_>,
    hook: Attributes<'_>,
) -> Option<BaseChain> {
    let chain_type = match attributes.text(NFTA_CHAIN_TYPE)?.as_str() {
        "filter" => ChainType::Filter,
        "nat" => ChainType::Nat,
        _ => return None,
    };
    let priority = i32::from_be_bytes(hook.find(NFTA_HOOK_PRIORITY)?.try_into().ok()?);
    let number_of_hook = number(hook, NFTA_HOOK_HOOKNUM)?;
    // In the order that ARP's own, which stand for two others' numbers, are found first.
    let hook = [Hook::Input, Hook::Output, Hook::Prerouting, Hook::Forward, Hook::Postrouting]
        .into_iter()
        .find(|&one| hook_number(family, one) == number_of_hook)?;
    // Another policy than ours shows as a hook that we never use.
    let accepts = number(attributes, NFTA_CHAIN_POLICY) == Some(NF_ACCEPT.unsigned_abs());
    accepts.then_some(BaseChain { chain_type, hook, priority })
}

/// A chain that drops by policy what is forwarded, if it is another program's.
pub fn foreign_drop(message: &Message) -> Option<ForeignDrop> {
    let [family] = message.header()?;
    let family = match family {
        NFPROTO_INET => "inet",
        NFPROTO_IPV4 => "ip",
        NFPROTO_IPV6 => "ip6",
        _ => return None,
    };
    let attributes = message.attributes(FAMILY_HEADER_BYTES);
    let hook = attributes.nested(NFTA_CHAIN_HOOK)?;
    let forward = hook_number(TableFamily::Ip(Family::V4), Hook::Forward);
    let drops = number(hook, NFTA_HOOK_HOOKNUM) == Some(forward)
        && number(attributes, NFTA_CHAIN_POLICY) == Some(NF_DROP.unsigned_abs());
    // No chain of ours drops by policy.
    drops.then_some(ForeignDrop {
        family,
        table: attributes.text(NFTA_CHAIN_TABLE)?,
        chain: attributes.text(NFTA_CHAIN_NAME)?,
    })
}

/// A rule by its fingerprint, and its chain.
pub fn rule(attributes: Attributes<'_>) -> Option<(String, Rule)> {
    let chain = attributes.text(NFTA_RULE_CHAIN)?;
    let comment = attributes.find(NFTA_RULE_USERDATA).and_then(comment);
    let fingerprint = comment
        .as_deref()
        .and_then(|comment| comment.strip_prefix(COMMENT_PREFIX))
        .and_then(|rest| rest.split(':').next())
        .and_then(|digits| u64::from_str_radix(digits, 16).ok());
    Some((chain, Rule::observed(fingerprint.unwrap_or_default())))
}

/// The kernel's number for a rule that is ours wherever it stands, and the rule.
pub fn own_rule(attributes: Attributes<'_>) -> Option<(u64, Rule)> {
    let (_, rule) = rule(attributes)?;
    let handle = u64::from_be_bytes(attributes.find(NFTA_RULE_HANDLE)?.try_into().ok()?);
    (rule.fingerprint() != 0).then_some((handle, rule))
}

/// The comment in libnftnl's list of type, length, value.
fn comment(mut userdata: &[u8]) -> Option<String> {
    while let [kind, length, rest @ ..] = userdata {
        let value = rest.get(..usize::from(*length))?;
        if *kind == UDATA_RULE_COMMENT {
            let text = value.strip_suffix(&[0]).unwrap_or(value);
            return String::from_utf8(text.to_vec()).ok();
        }
        userdata = &rest[value.len()..];
    }
    None
}

/// A set's name and shape. A shape that is not ours has an empty key.
pub fn set(attributes: Attributes<'_>) -> Option<(String, SetSpec)> {
    let name = attributes.text(NFTA_SET_NAME)?;
    let foreign = SetSpec { key: vec![], data: DataType::None, filled_by_packets_max: None };
    Some((name, spec(attributes).unwrap_or(foreign)))
}

fn spec(attributes: Attributes<'_>) -> Option<SetSpec> {
    let flags = number(attributes, NFTA_SET_FLAGS).unwrap_or_default();
    let mut key = types_of(number(attributes, NFTA_SET_KEY_TYPE)?)?;
    if flags & NFT_SET_INTERVAL != 0 {
        // Of ours the last part is the interval.
        let last = key.last_mut()?;
        *last = match *last {
            Type::Port => Type::PortRange,
            Type::Address(family) => Type::Network(family),
            _ => return None,
        };
    }
    let data = match number(attributes, NFTA_SET_DATA_TYPE) {
        None => DataType::None,
        Some(NFT_DATA_VERDICT) => DataType::Verdict,
        Some(types) => DataType::Values(types_in_model(types_of(types)?)),
    };
    let size = attributes
        .nested(NFTA_SET_DESC)
        .and_then(|description| number(description, NFTA_SET_DESC_SIZE));
    let filled_by_packets_max = if flags & NFT_SET_EVAL == 0 { None } else { Some(size?) };
    let spec = SetSpec { key, data, filled_by_packets_max };
    (set_flags(&spec) == flags).then_some(spec)
}

/// The inverse of [`stored_types`].
fn types_in_model(stored: Vec<Type>) -> Vec<Type> {
    if stored == stored_types(&[Type::Number]) { vec![Type::Number] } else { stored }
}

/// One element of a set of that shape.
pub fn element(spec: &SetSpec, attributes: Attributes<'_>) -> Option<(Tuple, Datum)> {
    let end = |kind: u16| {
        let types: Vec<Type> = spec.key.iter().map(|&part| end_type(part)).collect();
        tuple(&types, attributes.nested(kind)?.find(NFTA_DATA_VALUE)?)
    };
    let mut key = end(NFTA_SET_ELEM_KEY)?;
    if spec.is_interval() {
        key = interval(&key, &end(NFTA_SET_ELEM_KEY_END)?)?;
    }
    let data = attributes.nested(NFTA_SET_ELEM_DATA);
    let datum = match &spec.data {
        DataType::None => Datum::Member,
        DataType::Values(types) => {
            let bytes = data?.find(NFTA_DATA_VALUE)?;
            let values = tuple(&stored_types(types), bytes)?;
            // A single number lies behind an unused one.
            let unused = values.len() - types.len();
            Datum::Values(values.get(unused..)?.to_vec())
        }
        DataType::Verdict => Datum::Verdict(verdict(data?.nested(NFTA_DATA_VERDICT)?)?),
    };
    Some((key, datum))
}

/// What the ends of a part of an interval set's key are.
fn end_type(part: Type) -> Type {
    match part {
        Type::PortRange => Type::Port,
        Type::Network(family) => Type::Address(family),
        other => other,
    }
}

/// The key with these ends, if it is one of ours: all parts but the last are single values.
fn interval(first: &Tuple, last: &Tuple) -> Option<Tuple> {
    let (least, place) = first.split_last()?;
    let (greatest, same) = last.split_last()?;
    let part = match (*least, *greatest) {
        (Value::Port(first), Value::Port(last)) => Value::PortRange(first, last),
        (Value::Address(first), Value::Address(last)) => Value::Network(network(first, last)?),
        _ => return None,
    };
    (place == same).then(|| place.iter().copied().chain([part]).collect())
}

/// The network whose least and greatest addresses these are.
fn network(first: IpAddr, last: IpAddr) -> Option<IpNet> {
    let host_bits = match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => (first.to_bits() ^ last.to_bits()).count_ones(),
        (IpAddr::V6(first), IpAddr::V6(last)) => (first.to_bits() ^ last.to_bits()).count_ones(),
        _ => return None,
    };
    let widest = IpNet::from(first).max_prefix_len();
    let prefix_len = widest.checked_sub(u8::try_from(host_bits).ok()?)?;
    let network = IpNet::new(first, prefix_len).ok()?;
    (network.network() == first && network.broadcast() == last).then_some(network)
}

fn tuple(types: &[Type], mut bytes: &[u8]) -> Option<Tuple> {
    let mut values = Vec::with_capacity(types.len());
    for &one in types {
        let (own, rest) = bytes.split_at_checked(register_length(one))?;
        bytes = rest;
        values.push(match one {
            Type::Address(_) => Value::Address(address(own)?),
            Type::Link => Value::Link(LinkName(own.try_into().ok()?)),
            Type::Mac => Value::Mac(MacAddress(own.get(..6)?.try_into().ok()?)),
            Type::Protocol => Value::Protocol(*own.first()?),
            Type::Port => Value::Port(u16::from_be_bytes(own.get(..2)?.try_into().ok()?)),
            Type::Number => Value::Number(u32::from_ne_bytes(own.try_into().ok()?)),
            // Their ends are read, never themselves.
            Type::PortRange | Type::Network(_) => return None,
        });
    }
    bytes.is_empty().then_some(values)
}

fn verdict(attributes: Attributes<'_>) -> Option<Verdict> {
    let code = i32::from_be_bytes(attributes.find(NFTA_VERDICT_CODE)?.try_into().ok()?);
    match code {
        NF_ACCEPT => Some(Verdict::Accept),
        NF_DROP => Some(Verdict::Drop),
        NFT_JUMP => Some(Verdict::Jump(attributes.text(NFTA_VERDICT_CHAIN)?)),
        NFT_GOTO => Some(Verdict::Goto(attributes.text(NFTA_VERDICT_CHAIN)?)),
        _ => None,
    }
}

/// An address told by its length.
pub fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
        _ => None,
    }
}

/// A number in network order.
pub fn number(attributes: Attributes<'_>, kind: u16) -> Option<u32> {
    Some(u32::from_be_bytes(attributes.find(kind)?.try_into().ok()?))
}
