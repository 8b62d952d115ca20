//! A transaction as netlink requests.

use model::Family;
use netlink::message::Request;
use render::nft::language::{
    BaseChain, ChainType, DataType, Datum, Hook, Rule, SetSpec, Statement, TableFamily, TableId,
    Tuple, Type, Value,
};
use render::nft::text::text_of;
use render::nft::{Command, Transaction};

use super::expression::{
    number, register_bytes, register_length, value, write_rule, write_verdict,
};
use super::uapi::*;

/// Elements in one message: an attribute holds 64 kB at most, an element with the longest chain
/// name 350 bytes.
const MESSAGE_ELEMENTS_MAX: usize = 128;
/// Bytes of a rule's comment without its final zero: the kernel keeps 256 with two of header.
const COMMENT_BYTES_MAX: usize = 250;
/// What a rule's comment begins with, before its fingerprint in hexadecimal.
pub const COMMENT_PREFIX: &str = "flatnet ";

/// The requests of a transaction, each with the index of its command.
pub fn requests(transaction: &Transaction) -> Vec<(usize, Request)> {
    let mut requests = Vec::new();
    for (index, command) in transaction.commands.iter().enumerate() {
        let set_id = u32::try_from(index).unwrap_or_default() + 1;
        let of_command = command_requests(&transaction.table, command, set_id);
        requests.extend(of_command.into_iter().map(|request| (index, request)));
    }
    requests
}

/// A request about one kind of object, with `struct nfgenmsg`.
pub fn request(family: TableFamily, message: u16, flags: i32) -> Request {
    let family = match family {
        TableFamily::Ip(Family::V4) => NFPROTO_IPV4,
        TableFamily::Ip(Family::V6) => NFPROTO_IPV6,
        TableFamily::Bridge => NFPROTO_BRIDGE,
        TableFamily::Arp => NFPROTO_ARP,
        TableFamily::Inet(_) => NFPROTO_INET,
    };
    request_of(family, message, flags)
}

/// Asks for one element.
pub fn get_element(id: &TableId, set: &str, key: &Tuple) -> Request {
    elements_request(id, NFT_MSG_GETSETELEM, 0, set, std::iter::once((key, None)))
}

/// As [`request`], for a family by its `NFPROTO` number.
pub fn request_of(family: u8, message: u16, flags: i32) -> Request {
    Request::new(NFNL_SUBSYS_NFTABLES << 8 | message, flags, &[family, 0, 0, 0])
}

fn command_requests(id: &TableId, command: &Command, set_id: u32) -> Vec<Request> {
    let family = id.family;
    let named = |message, flags, table, name, value: &str| {
        let mut request = request(family, message, flags);
        request.text(table, &id.name).text(name, value);
        vec![request]
    };
    let create = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    match command {
        Command::AddTable => {
            let mut add = request(family, NFT_MSG_NEWTABLE, libc::NLM_F_CREATE);
            add.text(NFTA_TABLE_NAME, &id.name);
            vec![add]
        }
        Command::DeleteTable => {
            let mut delete = request(family, NFT_MSG_DELTABLE, 0);
            delete.text(NFTA_TABLE_NAME, &id.name);
            vec![delete]
        }
        Command::AddChain(name, base) => {
            let mut add = named(NFT_MSG_NEWCHAIN, create, NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME, name);
            if let Some(base) = base {
                add.iter_mut().for_each(|request| write_base(request, family, base));
            }
            add
        }
        Command::FlushChain(name) => {
            named(NFT_MSG_DELRULE, 0, NFTA_RULE_TABLE, NFTA_RULE_CHAIN, name)
        }
        Command::DeleteChain(name) => {
            named(NFT_MSG_DELCHAIN, 0, NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME, name)
        }
        Command::AddRule(name, rule) => vec![add_rule(id, name, rule)],
        Command::AddSet(name, spec) => {
            let mut add = named(NFT_MSG_NEWSET, create, NFTA_SET_TABLE, NFTA_SET_NAME, name);
            add.iter_mut().for_each(|request| write_spec(request, spec, set_id));
            add
        }
        Command::DeleteSet(name) => named(NFT_MSG_DELSET, 0, NFTA_SET_TABLE, NFTA_SET_NAME, name),
        Command::AddElements(name, elements) => elements
            .chunks(MESSAGE_ELEMENTS_MAX)
            .map(|chunk| {
                let chunk = chunk.iter().map(|(key, datum)| (key, Some(datum)));
                elements_request(id, NFT_MSG_NEWSETELEM, create, name, chunk)
            })
            .collect(),
        Command::DeleteElements(name, keys) => keys
            .chunks(MESSAGE_ELEMENTS_MAX)
            .map(|chunk| {
                let chunk = chunk.iter().map(|key| (key, None));
                elements_request(id, NFT_MSG_DELSETELEM, 0, name, chunk)
            })
            .collect(),
    }
}

fn write_base(request: &mut Request, family: TableFamily, base: &BaseChain) {
    let hook = hook_number(family, base.hook);
    request.nested(NFTA_CHAIN_HOOK, &[], |data| {
        number(data, NFTA_HOOK_HOOKNUM, hook);
        data.attribute(NFTA_HOOK_PRIORITY, &base.priority.to_be_bytes());
    });
    number(request, NFTA_CHAIN_POLICY, NF_ACCEPT.unsigned_abs());
    let chain_type = match base.chain_type {
        ChainType::Filter => "filter",
        ChainType::Nat => "nat",
    };
    request.text(NFTA_CHAIN_TYPE, chain_type);
}

/// Where a hook stands in its family's list. ARP has a list of its own (`NF_ARP_IN`).
pub fn hook_number(family: TableFamily, hook: Hook) -> u32 {
    match (family, hook) {
        (TableFamily::Arp, Hook::Input) | (_, Hook::Prerouting) => 0,
        (TableFamily::Arp, Hook::Output) | (_, Hook::Input) => 1,
        (_, Hook::Forward) => 2,
        (_, Hook::Output) => 3,
        (_, Hook::Postrouting) => 4,
    }
}

/// Deletes one rule by the kernel's number for it.
pub fn delete_rule(id: &TableId, chain: &str, handle: u64) -> Request {
    let mut delete = request(id.family, NFT_MSG_DELRULE, 0);
    delete.text(NFTA_RULE_TABLE, &id.name).text(NFTA_RULE_CHAIN, chain);
    delete.attribute(NFTA_RULE_HANDLE, &handle.to_be_bytes());
    delete
}

/// Appends a rule to a chain.
pub fn add_rule(id: &TableId, chain: &str, rule: &Rule) -> Request {
    let mut add = request(id.family, NFT_MSG_NEWRULE, libc::NLM_F_CREATE | libc::NLM_F_APPEND);
    add.text(NFTA_RULE_TABLE, &id.name).text(NFTA_RULE_CHAIN, chain);
    add.nested(NFTA_RULE_EXPRESSIONS, &[], |expressions| {
        write_rule(expressions, id.family, rule.statements().unwrap_or_default());
    });
    // The comment that `nft` shows is also how a fresh process recognises the rule.
    let comment = comment(id.family, rule);
    let length = u8::try_from(comment.len()).unwrap_or_default();
    let mut userdata = vec![UDATA_RULE_COMMENT, length];
    userdata.extend(comment.as_bytes());
    add.attribute(NFTA_RULE_USERDATA, &userdata);
    add
}

/// The fingerprint, and for people what `nft` cannot show. Both fit the 255 bytes that a comment
/// may have; a text that does not is cut, it decides nothing.
fn comment(family: TableFamily, rule: &Rule) -> String {
    let mut comment = format!("{COMMENT_PREFIX}{:016x}", rule.fingerprint());
    let statements = rule.statements().unwrap_or_default();
    if statements.iter().any(is_hidden) {
        comment.push_str(": ");
        comment.push_str(&text_of(family, statements));
        comment.truncate(COMMENT_BYTES_MAX);
    }
    comment.push('\0');
    comment
}

/// Whether `nft` lacks the key of a lookup, or shows bytes for words.
fn is_hidden(statement: &Statement) -> bool {
    matches!(
        statement,
        Statement::Dispatch { .. }
            | Statement::HasEntry { .. }
            | Statement::TunnelPacket { .. }
            | Statement::TunnelledIs(_)
            | Statement::NeighbourOptionIs(_)
    )
}

fn write_spec(request: &mut Request, spec: &SetSpec, set_id: u32) {
    let length = |types: &[Type]| {
        let bytes: usize = types.iter().map(|&one| register_length(one)).sum();
        u32::try_from(bytes).unwrap_or_default()
    };
    number(request, NFTA_SET_FLAGS, set_flags(spec));
    number(request, NFTA_SET_KEY_TYPE, type_number(&spec.key));
    number(request, NFTA_SET_KEY_LEN, length(&spec.key));
    match &spec.data {
        DataType::None => {}
        DataType::Values(types) => {
            let types = stored_types(types);
            number(request, NFTA_SET_DATA_TYPE, type_number(&types));
            number(request, NFTA_SET_DATA_LEN, length(&types));
        }
        DataType::Verdict => number(request, NFTA_SET_DATA_TYPE, NFT_DATA_VERDICT),
    }
    if spec.is_interval() {
        request.nested(NFTA_SET_DESC, &[], |data| {
            data.nested(NFTA_SET_DESC_CONCAT, &[], |parts| {
                for &part in &spec.key {
                    parts.nested(NFTA_LIST_ELEM, &[], |one| {
                        number(one, NFTA_SET_FIELD_LEN, part_length(part));
                    });
                }
            });
        });
    }
    if let Some(size) = spec.filled_by_packets_max {
        request.nested(NFTA_SET_DESC, &[], |data| number(data, NFTA_SET_DESC_SIZE, size));
    }
    number(request, NFTA_SET_ID, set_id);
    if spec.key == [Type::Number] {
        // Else `nft` prints the bytes of a number in the other order.
        let mut userdata = vec![UDATA_SET_KEYBYTEORDER, 4];
        userdata.extend(UDATA_HOST_ENDIAN.to_ne_bytes());
        request.attribute(NFTA_SET_USERDATA, &userdata);
    }
}

/// How data of a map lies in the kernel: a single number behind an unused one, see
/// [`super::expression`] for why.
pub fn stored_types(types: &[Type]) -> Vec<Type> {
    match types {
        [Type::Number] => vec![Type::Number; 2],
        _ => types.to_vec(),
    }
}

fn stored_values(values: &[Value]) -> Tuple {
    match values {
        [Value::Number(class)] => vec![Value::Number(0), Value::Number(*class)],
        _ => values.to_vec(),
    }
}

/// `NFTA_SET_FLAGS` of a shape.
pub fn set_flags(spec: &SetSpec) -> u32 {
    let map = if spec.data == DataType::None { 0 } else { NFT_SET_MAP };
    let filled =
        if spec.filled_by_packets_max.is_some() { NFT_SET_TIMEOUT | NFT_SET_EVAL } else { 0 };
    let interval = if spec.is_interval() { NFT_SET_INTERVAL | NFT_SET_CONCAT } else { 0 };
    map | filled | interval
}

/// How many bytes a part of a key has, without what fills its registers up.
fn part_length(part: Type) -> u32 {
    match part {
        Type::Protocol => 1,
        Type::Port | Type::PortRange => 2,
        Type::Mac => 6,
        Type::Address(_) | Type::Network(_) | Type::Number | Type::Link => {
            u32::try_from(register_length(part)).unwrap_or_default()
        }
    }
}

/// `nft`'s number of a concatenation of types, six bits each; the kernel keeps it for `nft`.
pub fn type_number(types: &[Type]) -> u32 {
    types.iter().fold(0, |number, one| {
        let id = match one {
            Type::Address(Family::V4) | Type::Network(Family::V4) => 7,
            Type::Address(Family::V6) | Type::Network(Family::V6) => 8,
            Type::Mac => 9,
            Type::Protocol => 12,
            Type::Port | Type::PortRange => 13,
            Type::Number => 19, // a mark: four bytes in the order of the machine
            Type::Link => 41,
        };
        number << 6 | id
    })
}

/// The types of [`type_number`], unless they are none of ours.
pub fn types_of(number: u32) -> Option<Vec<Type>> {
    let mut types = Vec::new();
    let mut rest = number;
    while rest != 0 {
        types.push(match rest & 0x3f {
            7 => Type::Address(Family::V4),
            8 => Type::Address(Family::V6),
            9 => Type::Mac,
            12 => Type::Protocol,
            13 => Type::Port,
            19 => Type::Number,
            41 => Type::Link,
            _ => return None,
        });
        rest >>= 6;
    }
    types.reverse();
    Some(types)
}

/// A key, and where it is an interval its other end.
fn key_bytes(key: &Tuple) -> (Vec<u8>, Option<Vec<u8>>) {
    let greatest = || -> Tuple { key.iter().map(|part| part.ends()[1]).collect() };
    let interval = matches!(key.last(), Some(Value::PortRange(..) | Value::Network(_)));
    (register_bytes(key), interval.then(|| register_bytes(&greatest())))
}

fn elements_request<'a>(
    id: &TableId,
    message: u16,
    flags: i32,
    set: &str,
    elements: impl Iterator<Item = (&'a Tuple, Option<&'a Datum>)>,
) -> Request {
    let mut request = request(id.family, message, flags);
    request.text(NFTA_SET_ELEM_LIST_TABLE, &id.name).text(NFTA_SET_ELEM_LIST_SET, set);
    request.nested(NFTA_SET_ELEM_LIST_ELEMENTS, &[], |list| {
        for (key, datum) in elements {
            list.nested(NFTA_LIST_ELEM, &[], |element| {
                let (first, last) = key_bytes(key);
                value(element, NFTA_SET_ELEM_KEY, &first);
                if let Some(last) = last {
                    value(element, NFTA_SET_ELEM_KEY_END, &last);
                }
                match datum {
                    None | Some(Datum::Member) => {}
                    Some(Datum::Values(values)) => {
                        let bytes = register_bytes(&stored_values(values));
                        value(element, NFTA_SET_ELEM_DATA, &bytes);
                    }
                    Some(Datum::Verdict(verdict)) => {
                        element.nested(NFTA_SET_ELEM_DATA, &[], |data| {
                            write_verdict(data, verdict);
                        });
                    }
                }
            });
        }
    });
    request
}
