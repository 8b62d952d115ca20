//! Conditions on the headers of frames and packets: at which bytes they lie.

use model::Family;
use render::nft::language::{EtherType, Field, Statement};

use super::super::uapi::*;
use super::{
    ETHER_TYPE_BYTES, ETHER_TYPE_OFFSET, KEY, Writer, address_places, address_registers, number,
};

const MAC_BYTES: u32 = 6;
const ETHER_SOURCE_OFFSET: u32 = 6;

// RFC 826, for IPv4 over Ethernet.
const ARP_OF_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
const ARP_SENDER_MAC_OFFSET: u32 = 8;
const ARP_SENDER_ADDRESS_OFFSET: u32 = 14;
const ARP_TARGET_ADDRESS_OFFSET: u32 = 24;

// RFC 4861, from the ICMPv6 header.
const NEIGHBOUR_TARGET_OFFSET: u32 = 8;
const NEIGHBOUR_OPTION_OFFSET: u32 = 24;
const NEIGHBOUR_OPTION_MAC_OFFSET: u32 = 26;
/// In units of eight bytes: what an option with an Ethernet address has.
const NEIGHBOUR_OPTION_LENGTH: u8 = 1;

const IPV4_FRAGMENT_OFFSET: u32 = 6;
const IPV4_FRAGMENT_MASK: [u8; 2] = [0x1f, 0xff];
const IPV6_FRAGMENT_OFFSET: u32 = 2;
const IPV6_FRAGMENT_MASK: [u8; 2] = [0xff, 0xf8];
const IPV6_PAYLOAD_LENGTH_OFFSET: u32 = 4;

impl Writer<'_> {
    pub(super) fn header(&mut self, statement: &Statement) {
        let link = NFT_PAYLOAD_LL_HEADER;
        let network = NFT_PAYLOAD_NETWORK_HEADER;
        let transport = NFT_PAYLOAD_TRANSPORT_HEADER;
        match statement {
            // The bytes of the frame: a tag stands there even when the device took it off.
            Statement::Carries(ether_type) => {
                let [.., high, low] = match ether_type {
                    EtherType::Ip(Family::V4) => libc::ETH_P_IP,
                    EtherType::Ip(Family::V6) => libc::ETH_P_IPV6,
                    EtherType::Arp => libc::ETH_P_ARP,
                }
                .to_be_bytes();
                self.payload(link, ETHER_TYPE_OFFSET, ETHER_TYPE_BYTES, KEY);
                self.compare(NFT_CMP_EQ, &[high, low]);
            }
            Statement::ToGroup => {
                // What the device made of the destination: a third cheaper than to look at the frame.
                self.meta(NFT_META_PKTTYPE, KEY);
                self.compare(NFT_CMP_GTE, &[PACKET_BROADCAST]);
                self.compare(NFT_CMP_LTE, &[PACKET_MULTICAST]);
            }
            Statement::ArpOfIpv4 => {
                self.payload(network, 0, 6, KEY);
                self.compare(NFT_CMP_EQ, &ARP_OF_IPV4);
            }
            Statement::ProtocolIsNot(protocol) => {
                self.meta(NFT_META_L4PROTO, KEY);
                self.compare(NFT_CMP_NEQ, &[*protocol]);
            }
            Statement::SourcePortIsNot(port) => {
                self.load(Field::SourcePort, KEY);
                self.compare(NFT_CMP_NEQ, &port.to_be_bytes());
            }
            Statement::LaterFragment(family) => self.later_fragment(*family),
            Statement::Icmpv6Type { first, last } => {
                self.meta(NFT_META_L4PROTO, KEY);
                self.compare(NFT_CMP_EQ, &[IPPROTO_ICMPV6]);
                self.payload(transport, 0, 1, KEY);
                self.compare(NFT_CMP_GTE, &[*first]);
                self.compare(NFT_CMP_LTE, &[*last]);
            }
            Statement::EchoRequest(family) => self.echo_request(*family),
            Statement::PayloadIs(bytes) => {
                self.payload(network, IPV6_PAYLOAD_LENGTH_OFFSET, 2, KEY);
                self.compare(NFT_CMP_EQ, &bytes.to_be_bytes());
            }
            Statement::NeighbourOptionIs(kind) => {
                self.payload(transport, NEIGHBOUR_OPTION_OFFSET, 2, KEY);
                self.compare(NFT_CMP_EQ, &[*kind, NEIGHBOUR_OPTION_LENGTH]);
            }
            Statement::ToThisNode => {
                self.expression("fib", |data| {
                    number(data, NFTA_FIB_DREG, KEY);
                    number(data, NFTA_FIB_RESULT, NFT_FIB_RESULT_ADDRTYPE);
                    number(data, NFTA_FIB_FLAGS, NFTA_FIB_F_DADDR);
                });
                self.compare(NFT_CMP_EQ, &u32::from(libc::RTN_LOCAL).to_ne_bytes());
            }
            other => self.statement(other),
        }
    }

    fn echo_request(&mut self, family: Family) {
        let (protocol, kind) = match family {
            Family::V4 => (IPPROTO_ICMP, ICMP_ECHO_REQUEST),
            Family::V6 => (IPPROTO_ICMPV6, ICMPV6_ECHO_REQUEST),
        };
        self.meta(NFT_META_L4PROTO, KEY);
        self.compare(NFT_CMP_EQ, &[protocol]);
        self.payload(NFT_PAYLOAD_TRANSPORT_HEADER, 0, 1, KEY);
        self.compare(NFT_CMP_EQ, &[kind]);
    }

    fn later_fragment(&mut self, family: Family) {
        let mask = match family {
            Family::V4 => {
                self.payload(NFT_PAYLOAD_NETWORK_HEADER, IPV4_FRAGMENT_OFFSET, 2, KEY);
                IPV4_FRAGMENT_MASK
            }
            Family::V6 => {
                self.expression("exthdr", |data| {
                    number(data, NFTA_EXTHDR_DREG, KEY);
                    data.u8(NFTA_EXTHDR_TYPE, IPPROTO_FRAGMENT);
                    number(data, NFTA_EXTHDR_OFFSET, IPV6_FRAGMENT_OFFSET);
                    number(data, NFTA_EXTHDR_LEN, 2);
                });
                IPV6_FRAGMENT_MASK
            }
        };
        self.bitwise(KEY, &mask, &[0; 2]);
        self.compare(NFT_CMP_NEQ, &[0; 2]);
    }

    /// Loads what a frame has besides its packet; answers how many registers it takes.
    pub(super) fn load_of_frame(&mut self, field: Field, register: u32) -> u32 {
        let network = NFT_PAYLOAD_NETWORK_HEADER;
        let transport = NFT_PAYLOAD_TRANSPORT_HEADER;
        let (base, offset, length) = match field {
            Field::Link => {
                self.meta(NFT_META_IIFNAME, register);
                return 4;
            }
            Field::FramedSource(family) => {
                let (source, _, length) = address_places(family);
                self.payload(network, source, length, register);
                return address_registers(family);
            }
            Field::EtherSource => (NFT_PAYLOAD_LL_HEADER, ETHER_SOURCE_OFFSET, MAC_BYTES),
            Field::ArpSenderMac => (network, ARP_SENDER_MAC_OFFSET, MAC_BYTES),
            Field::ArpSenderAddress => (network, ARP_SENDER_ADDRESS_OFFSET, 4),
            Field::ArpTargetAddress => (network, ARP_TARGET_ADDRESS_OFFSET, 4),
            Field::NeighbourTarget => (transport, NEIGHBOUR_TARGET_OFFSET, 16),
            Field::NeighbourOptionMac => (transport, NEIGHBOUR_OPTION_MAC_OFFSET, MAC_BYTES),
            _ => return 0,
        };
        self.payload(base, offset, length, register);
        length.div_ceil(4)
    }
}
