//! A rule's statements as expressions of the kernel's register machine.
//!
//! Registers: keys and whatever is compared start at [`KEY`] (a pair of IPv6 addresses takes
//! eight), the loaded endpoint at [`ENDPOINT`] (address, then port), a class in [`CLASS`].
//!
//! A class is the data of one map and the key of another. The `nft` program (seen in 1.0.6) keeps
//! no length for the data of a map and aborts when it meets it as a key: then nobody on the machine
//! can list any rules. So the class lies behind an unused register, and its own register holds a
//! constant before: `nft` prints the constant as the key, and the rule's comment says what it is.

mod header;

use std::net::IpAddr;

use model::{Family, PortRange, Protocol};
use netlink::message::Request;
use render::nft::language::{
    ConnectionState, Field, LinkName, Statement, TableFamily, Type, Value, Verdict,
};

use super::uapi::*;

const KEY: u32 = NFT_REG32_00;
const ENDPOINT: u32 = NFT_REG32_00 + 8;
/// Where a class is looked up into: an unused register, then [`CLASS`].
const PADDED_CLASS: u32 = NFT_REG32_00 + 14;
const CLASS: u32 = NFT_REG32_00 + 15;
/// The ends of a range of source ports, each in a register.
const FIRST_PORT: u32 = KEY;
const LAST_PORT: u32 = KEY + 1;
const REGISTER_BYTES: usize = 4;

// Where the parts of a VXLAN packet lie, in bytes from its UDP header (RFC 7348, section 5).
const VNI_OFFSET: u32 = 12;
const VNI_BYTES: u32 = 3;
const TUNNELLED_FRAME_OFFSET: u32 = 16;
/// From the frame's beginning.
const ETHER_TYPE_OFFSET: u32 = 12;
const ETHER_TYPE_BYTES: u32 = 2;
const ETHERNET_BYTES: u32 = 14;

/// Writes the expressions of one rule.
pub fn write_rule(request: &mut Request, family: TableFamily, statements: &[Statement]) {
    let mut writer = Writer { request, family: family.address_family() };
    if let TableFamily::Inet(family) = family {
        writer.meta(NFT_META_NFPROTO, KEY);
        writer.compare(NFT_CMP_EQ, &[protocol_family(family)]);
    }
    for statement in statements {
        writer.statement(statement);
    }
}

/// Writes `NFTA_DATA_VERDICT`.
pub fn write_verdict(request: &mut Request, verdict: &Verdict) {
    let code = match verdict {
        Verdict::Accept => NF_ACCEPT,
        Verdict::Drop => NF_DROP,
        Verdict::Jump(_) => NFT_JUMP,
        Verdict::Goto(_) => NFT_GOTO,
    };
    request.nested(NFTA_DATA_VERDICT, &[], |data| {
        data.attribute(NFTA_VERDICT_CODE, &code.to_be_bytes());
        if let Some(chain) = verdict.target() {
            data.text(NFTA_VERDICT_CHAIN, chain);
        }
    });
}

/// The bytes of values as they stand in registers, each padded to four bytes; of an interval the
/// least value.
pub fn register_bytes(values: &[Value]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for value in values {
        match value.ends()[0] {
            Value::Address(IpAddr::V4(address)) => bytes.extend(address.octets()),
            Value::Address(IpAddr::V6(address)) => bytes.extend(address.octets()),
            Value::Protocol(number) => bytes.push(number),
            Value::Port(port) => bytes.extend(port.to_be_bytes()),
            // Numbers that we make ourselves are in the order of this machine, as marks are.
            Value::Number(number) => bytes.extend(number.to_ne_bytes()),
            Value::Link(LinkName(name)) => bytes.extend(name),
            Value::Mac(mac) => bytes.extend(mac.0),
            Value::PortRange(..) | Value::Network(_) => {} // have ends of other kinds
        }
        bytes.resize(bytes.len().div_ceil(REGISTER_BYTES) * REGISTER_BYTES, 0);
    }
    bytes
}

/// How many bytes a value of a type takes in registers.
pub fn register_length(value_type: Type) -> usize {
    match value_type {
        Type::Address(family) | Type::Network(family) => address_length(family),
        Type::Link => libc::IFNAMSIZ,
        Type::Mac => 2 * REGISTER_BYTES,
        Type::Protocol | Type::Port | Type::PortRange | Type::Number => REGISTER_BYTES,
    }
}

struct Writer<'a> {
    request: &'a mut Request,
    /// What the table's addresses are of.
    family: Family,
}

impl Writer<'_> {
    fn statement(&mut self, statement: &Statement) {
        match statement {
            Statement::InRange { field, range, outside } => {
                let length = address_length(Family::of(&range.addr()));
                self.load(*field, KEY);
                if range.prefix_len() < range.max_prefix_len() {
                    let mask = register_bytes(&[Value::Address(range.netmask())]);
                    self.bitwise(KEY, &mask, &vec![0; length]);
                }
                let network = register_bytes(&[Value::Address(range.network())]);
                self.compare(if *outside { NFT_CMP_NEQ } else { NFT_CMP_EQ }, &network);
            }
            Statement::NotFromLoopback => {
                self.meta(NFT_META_IIF, KEY);
                self.compare(NFT_CMP_NEQ, &LOOPBACK_IFINDEX.to_ne_bytes());
            }
            Statement::FromLink(name) => self.link(NFT_META_IIFNAME, NFT_CMP_EQ, name),
            Statement::NotFromLink(name) => self.link(NFT_META_IIFNAME, NFT_CMP_NEQ, name),
            Statement::NotToLink(name) => self.link(NFT_META_OIFNAME, NFT_CMP_NEQ, name),
            Statement::TunnelPacket { port, vni } => self.tunnel_packet(*port, *vni),
            Statement::TunnelledIs(family) => self.tunnelled_is(*family),
            Statement::ProtocolIs(number) => {
                self.meta(NFT_META_L4PROTO, KEY);
                self.compare(NFT_CMP_EQ, &[*number]);
            }
            Statement::PortIs(port) => {
                self.load(Field::DestinationPort, KEY);
                self.compare(NFT_CMP_EQ, &port.to_be_bytes());
            }
            Statement::StateIs(state) => {
                let (key, bit, is_set) = match state {
                    ConnectionState::New => (NFT_CT_STATE, CT_STATE_NEW, NFT_CMP_NEQ),
                    ConnectionState::Invalid => (NFT_CT_STATE, CT_STATE_INVALID, NFT_CMP_NEQ),
                    ConnectionState::Untranslated => (NFT_CT_STATUS, CT_STATUS_DST_NAT, NFT_CMP_EQ),
                };
                self.expression("ct", |data| {
                    number(data, NFTA_CT_DREG, KEY);
                    number(data, NFTA_CT_KEY, key);
                });
                self.bitwise(KEY, &bit.to_ne_bytes(), &[0; 4]);
                self.compare(is_set, &[0; 4]);
            }
            Statement::HasMark(bits) => {
                self.meta(NFT_META_MARK, KEY);
                self.bitwise(KEY, &bits.to_ne_bytes(), &[0; 4]);
                self.compare(NFT_CMP_EQ, &bits.to_ne_bytes());
            }
            Statement::SetMark(bits) => self.change_mark(!bits, *bits),
            Statement::ClearMark(bits) => self.change_mark(!bits, 0),
            Statement::Verdict(verdict) => self.expression("immediate", |data| {
                number(data, NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT);
                data.nested(NFTA_IMMEDIATE_DATA, &[], |data| write_verdict(data, verdict));
            }),
            _ => self.lookup_or_action(statement),
        }
    }

    fn link(&mut self, side: u32, operator: u32, name: &str) {
        self.meta(side, KEY);
        let mut bytes = name.as_bytes().to_vec();
        bytes.resize(libc::IFNAMSIZ, 0);
        self.compare(operator, &bytes);
    }

    fn tunnel_packet(&mut self, port: u16, vni: u32) {
        self.meta(NFT_META_L4PROTO, KEY);
        self.compare(NFT_CMP_EQ, &[Protocol::Udp.number()]);
        self.load(Field::DestinationPort, KEY);
        self.compare(NFT_CMP_EQ, &port.to_be_bytes());
        self.payload(NFT_PAYLOAD_TRANSPORT_HEADER, VNI_OFFSET, VNI_BYTES, KEY);
        let [_, vni @ ..] = vni.to_be_bytes();
        self.compare(NFT_CMP_EQ, &vni);
    }

    fn tunnelled_is(&mut self, family: Family) {
        let ether_type = match family {
            Family::V4 => libc::ETH_P_IP,
            Family::V6 => libc::ETH_P_IPV6,
        };
        let offset = TUNNELLED_FRAME_OFFSET + ETHER_TYPE_OFFSET;
        self.payload(NFT_PAYLOAD_TRANSPORT_HEADER, offset, ETHER_TYPE_BYTES, KEY);
        let [.., high, low] = ether_type.to_be_bytes();
        self.compare(NFT_CMP_EQ, &[high, low]);
    }

    fn lookup_or_action(&mut self, statement: &Statement) {
        match statement {
            Statement::In { key, set } => {
                self.load_all(key);
                self.lookup(set, KEY, None);
            }
            Statement::NotIn { key, set } => self.absent(key, set),
            // The kernel insists on a register for a map's data.
            Statement::HasEntry { key, map } => {
                self.load_all(key);
                self.lookup(map, KEY, Some(PADDED_CLASS));
            }
            Statement::Dispatch { key, classes, verdicts } => {
                self.load_all(key);
                self.constant(CLASS, &[0; REGISTER_BYTES]);
                self.lookup(classes, KEY, Some(PADDED_CLASS));
                self.lookup(verdicts, CLASS, Some(NFT_REG_VERDICT));
            }
            Statement::VerdictOf { key, map } => {
                self.load_all(key);
                self.lookup(map, KEY, Some(NFT_REG_VERDICT));
            }
            Statement::Load { key, map } => {
                self.load_all(key);
                self.lookup(map, KEY, Some(ENDPOINT));
            }
            Statement::LoadEndpoint(endpoint) => {
                let address = register_bytes(&[Value::Address(endpoint.ip())]);
                let port = ENDPOINT + address_registers(self.family);
                self.constant(ENDPOINT, &address);
                self.constant(port, &endpoint.port().to_be_bytes());
            }
            Statement::Remember { set, timeout_s } => {
                self.load(Field::SourceAddress, KEY);
                self.update(set, *timeout_s);
            }
            Statement::NoTrack => self.expression("notrack", |_| {}),
            Statement::TrackInZone(zone) => self.track_in_zone(*zone),
            Statement::TranslateDestination
            | Statement::TranslateAddress(_)
            | Statement::Masquerade { .. }
            | Statement::RejectWithReset
            | Statement::RejectWithUnreachable => self.translate_or_refuse(statement),
            Statement::Carries(_)
            | Statement::ToGroup
            | Statement::ArpOfIpv4
            | Statement::ProtocolIsNot(_)
            | Statement::SourcePortIsNot(_)
            | Statement::LaterFragment(_)
            | Statement::Icmpv6Type { .. }
            | Statement::EchoRequest(_)
            | Statement::PayloadIs(_)
            | Statement::NeighbourOptionIs(_)
            | Statement::ToThisNode => self.header(statement),
            Statement::InRange { .. }
            | Statement::NotFromLoopback
            | Statement::FromLink(_)
            | Statement::NotFromLink(_)
            | Statement::NotToLink(_)
            | Statement::TunnelPacket { .. }
            | Statement::TunnelledIs(_)
            | Statement::ProtocolIs(_)
            | Statement::PortIs(_)
            | Statement::StateIs(_)
            | Statement::HasMark(_)
            | Statement::SetMark(_)
            | Statement::ClearMark(_)
            | Statement::Verdict(_) => self.statement(statement),
        }
    }

    fn track_in_zone(&mut self, zone: u16) {
        self.constant(KEY, &zone.to_ne_bytes());
        self.expression("ct", |data| {
            number(data, NFTA_CT_KEY, NFT_CT_ZONE);
            number(data, NFTA_CT_SREG, KEY);
        });
    }

    fn translate_or_refuse(&mut self, statement: &Statement) {
        match statement {
            Statement::TranslateDestination => self.translate_destination(),
            Statement::TranslateAddress(address) => self.translate_address(*address),
            Statement::Masquerade { ports } => self.masquerade(*ports),
            Statement::RejectWithReset => self.reject(NFT_REJECT_TCP_RST, 0),
            Statement::RejectWithUnreachable => {
                self.reject(NFT_REJECT_ICMP_UNREACH, port_unreachable(self.family));
            }
            other => self.statement(other),
        }
    }

    /// Loads a key's fields one after the other, as a concatenation lies in registers.
    fn load_all(&mut self, key: &[Field]) {
        let mut register = KEY;
        for &field in key {
            register += self.load(field, register);
        }
    }

    /// Loads a field; answers how many registers it takes.
    fn load(&mut self, field: Field, register: u32) -> u32 {
        let (source, destination, length) = address_places(self.family);
        let network = NFT_PAYLOAD_NETWORK_HEADER;
        let transport = NFT_PAYLOAD_TRANSPORT_HEADER;
        let address = address_registers(self.family);
        match field {
            Field::SourceAddress => {
                self.payload(network, source, length, register);
                return address;
            }
            Field::DestinationAddress => {
                self.payload(network, destination, length, register);
                return address;
            }
            Field::SourcePort => self.payload(transport, 0, 2, register),
            Field::DestinationPort => self.payload(transport, 2, 2, register),
            Field::Protocol => self.meta(NFT_META_L4PROTO, register),
            Field::TunnelledSource { family, prefix_len } => {
                let (source, _, length) = address_places(family);
                let offset = TUNNELLED_FRAME_OFFSET + ETHERNET_BYTES + source;
                self.payload(transport, offset, length, register);
                self.mask(register, family, prefix_len);
                return address_registers(family);
            }
            // What follows the outer header is the inner one.
            Field::IpipSource { prefix_len } => {
                self.payload(transport, source, length, register);
                self.mask(register, self.family, prefix_len);
                return address;
            }
            Field::Random { modulus } => self.expression("numgen", |data| {
                number(data, NFTA_NG_DREG, register);
                number(data, NFTA_NG_MODULUS, modulus);
                number(data, NFTA_NG_TYPE, NFT_NG_RANDOM);
            }),
            _ => return self.load_of_frame(field, register),
        }
        1
    }

    fn mask(&mut self, register: u32, family: Family, prefix_len: u8) {
        let mask = prefix_mask(family, prefix_len);
        if mask.iter().any(|&byte| byte != 0xff) {
            self.bitwise(register, &mask, &vec![0; mask.len()]);
        }
    }

    fn payload(&mut self, base: u32, offset: u32, length: u32, register: u32) {
        self.expression("payload", |data| {
            number(data, NFTA_PAYLOAD_DREG, register);
            number(data, NFTA_PAYLOAD_BASE, base);
            number(data, NFTA_PAYLOAD_OFFSET, offset);
            number(data, NFTA_PAYLOAD_LEN, length);
        });
    }

    fn meta(&mut self, key: u32, register: u32) {
        self.expression("meta", |data| {
            number(data, NFTA_META_DREG, register);
            number(data, NFTA_META_KEY, key);
        });
    }

    fn change_mark(&mut self, mask: u32, set: u32) {
        self.meta(NFT_META_MARK, KEY);
        self.bitwise(KEY, &mask.to_ne_bytes(), &set.to_ne_bytes());
        self.expression("meta", |data| {
            number(data, NFTA_META_SREG, KEY);
            number(data, NFTA_META_KEY, NFT_META_MARK);
        });
    }

    fn bitwise(&mut self, register: u32, mask: &[u8], xor: &[u8]) {
        self.expression("bitwise", |data| {
            number(data, NFTA_BITWISE_SREG, register);
            number(data, NFTA_BITWISE_DREG, register);
            number(data, NFTA_BITWISE_LEN, u32::try_from(mask.len()).unwrap_or_default());
            value(data, NFTA_BITWISE_MASK, mask);
            value(data, NFTA_BITWISE_XOR, xor);
        });
    }

    fn compare(&mut self, operator: u32, with: &[u8]) {
        self.expression("cmp", |data| {
            number(data, NFTA_CMP_SREG, KEY);
            number(data, NFTA_CMP_OP, operator);
            value(data, NFTA_CMP_DATA, with);
        });
    }

    fn lookup(&mut self, set: &str, source: u32, target: Option<u32>) {
        self.expression("lookup", |data| {
            data.text(NFTA_LOOKUP_SET, set);
            number(data, NFTA_LOOKUP_SREG, source);
            if let Some(target) = target {
                number(data, NFTA_LOOKUP_DREG, target);
            }
        });
    }

    fn absent(&mut self, key: &[Field], set: &str) {
        self.load_all(key);
        self.expression("lookup", |data| {
            data.text(NFTA_LOOKUP_SET, set);
            number(data, NFTA_LOOKUP_SREG, KEY);
            number(data, NFTA_LOOKUP_FLAGS, NFT_LOOKUP_F_INV);
        });
    }

    fn constant(&mut self, register: u32, bytes: &[u8]) {
        self.expression("immediate", |data| {
            number(data, NFTA_IMMEDIATE_DREG, register);
            value(data, NFTA_IMMEDIATE_DATA, bytes);
        });
    }

    fn update(&mut self, set: &str, timeout_s: u32) {
        let timeout_ms = u64::from(timeout_s) * 1000;
        self.expression("dynset", |data| {
            data.text(NFTA_DYNSET_SET_NAME, set);
            number(data, NFTA_DYNSET_OP, NFT_DYNSET_OP_UPDATE);
            number(data, NFTA_DYNSET_SREG_KEY, KEY);
            data.attribute(NFTA_DYNSET_TIMEOUT, &timeout_ms.to_be_bytes());
        });
    }

    fn translate_destination(&mut self) {
        let family = protocol_family(self.family);
        let port = ENDPOINT + address_registers(self.family);
        self.expression("nat", |data| {
            number(data, NFTA_NAT_TYPE, NFT_NAT_DNAT);
            number(data, NFTA_NAT_FAMILY, u32::from(family));
            number(data, NFTA_NAT_REG_ADDR_MIN, ENDPOINT);
            number(data, NFTA_NAT_REG_PROTO_MIN, port);
        });
    }

    fn translate_address(&mut self, address: IpAddr) {
        self.constant(ENDPOINT, &register_bytes(&[Value::Address(address)]));
        let family = protocol_family(self.family);
        self.expression("nat", |data| {
            number(data, NFTA_NAT_TYPE, NFT_NAT_DNAT);
            number(data, NFTA_NAT_FAMILY, u32::from(family));
            number(data, NFTA_NAT_REG_ADDR_MIN, ENDPOINT);
        });
    }

    fn masquerade(&mut self, ports: Option<PortRange>) {
        let mut flags = NF_NAT_RANGE_PROTO_RANDOM_FULLY;
        // Without the flag the kernel takes the registers, and no notice of them.
        if let Some(ports) = ports {
            flags |= NF_NAT_RANGE_PROTO_SPECIFIED;
            self.constant(FIRST_PORT, &ports.first().to_be_bytes());
            self.constant(LAST_PORT, &ports.last().to_be_bytes());
        }
        self.expression("masq", |data| {
            number(data, NFTA_MASQ_FLAGS, flags);
            if ports.is_some() {
                number(data, NFTA_MASQ_REG_PROTO_MIN, FIRST_PORT);
                number(data, NFTA_MASQ_REG_PROTO_MAX, LAST_PORT);
            }
        });
    }

    fn reject(&mut self, kind: u32, code: u8) {
        self.expression("reject", |data| {
            number(data, NFTA_REJECT_TYPE, kind);
            data.u8(NFTA_REJECT_ICMP_CODE, code);
        });
    }

    fn expression(&mut self, name: &str, fill: impl FnOnce(&mut Request)) {
        self.request.nested(NFTA_LIST_ELEM, &[], |element| {
            element.text(NFTA_EXPR_NAME, name);
            element.nested(NFTA_EXPR_DATA, &[], fill);
        });
    }
}

/// Where an IP header has its source and its destination address, and their length, in bytes.
fn address_places(family: Family) -> (u32, u32, u32) {
    match family {
        Family::V4 => (12, 16, 4),
        Family::V6 => (8, 24, 16),
    }
}

fn protocol_family(family: Family) -> u8 {
    match family {
        Family::V4 => NFPROTO_IPV4,
        Family::V6 => NFPROTO_IPV6,
    }
}

fn port_unreachable(family: Family) -> u8 {
    match family {
        Family::V4 => ICMP_PORT_UNREACH,
        Family::V6 => ICMPV6_PORT_UNREACH,
    }
}

fn address_registers(family: Family) -> u32 {
    match family {
        Family::V4 => 1,
        Family::V6 => 4,
    }
}

fn prefix_mask(family: Family, prefix_len: u8) -> Vec<u8> {
    let bits = |index: usize| usize::from(prefix_len).saturating_sub(index * 8).min(8);
    (0..address_length(family)).map(|index| !(0xff_u16 >> bits(index)) as u8).collect()
}

fn address_length(family: Family) -> usize {
    match family {
        Family::V4 => 4,
        Family::V6 => 16,
    }
}

/// nf_tables' numbers are in network order.
pub fn number(request: &mut Request, kind: u16, value: u32) {
    request.attribute(kind, &value.to_be_bytes());
}

/// Writes an attribute with `NFTA_DATA_VALUE` inside.
pub fn value(request: &mut Request, kind: u16, bytes: &[u8]) {
    request.nested(kind, &[], |data| {
        data.attribute(NFTA_DATA_VALUE, bytes);
    });
}
