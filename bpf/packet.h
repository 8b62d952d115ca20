/* Headers on the wire, and the one reading of a packet that all programs share. */
#pragma once

#include "address.h"

#define ETHERNET_IPV4 BE16(0x0800)
#define ETHERNET_ARP BE16(0x0806)
#define ETHERNET_VLAN BE16(0x8100)
#define ETHERNET_PROVIDER_VLAN BE16(0x88a8)
#define ETHERNET_IPV6 BE16(0x86dd)

#define PROTOCOL_HOP_BY_HOP 0
#define PROTOCOL_ICMP 1
#define PROTOCOL_TCP 6
#define PROTOCOL_UDP 17
#define PROTOCOL_ROUTING 43
#define PROTOCOL_FRAGMENT 44
#define PROTOCOL_AUTHENTICATION 51
#define PROTOCOL_ICMPV6 58
#define PROTOCOL_DESTINATION 60
#define PROTOCOL_SCTP 132
#define PROTOCOL_MOBILITY 135

/* Where checksums and flags are in the headers of protocols. */
#define ICMP_CHECKSUM 2
#define UDP_CHECKSUM 6
#define TCP_CHECKSUM 16
#define TCP_FLAGS 13
/* The ports of all that have some are first. */
#define PORTS_BYTES 4

#define TCP_FIN 1
#define TCP_SYN 2
#define TCP_RST 4
#define TCP_ACK 16

/* More fragments, or an offset: not a whole packet. */
#define IPV4_FRAGMENT BE16(0x3fff)
#define IPV4_FRAGMENT_OFFSET BE16(0x1fff)

struct ethernet {
	__u8 destination[6];
	__u8 source[6];
	__u16 protocol;
} __attribute__((packed));

struct ipv4 {
	__u8 version_and_words;
	__u8 service;
	__u16 bytes;
	__u16 id;
	__u16 fragment;
	__u8 time_to_live;
	__u8 protocol;
	__u16 checksum;
	__u32 source;
	__u32 destination;
} __attribute__((packed));

struct ipv6 {
	__u32 version_and_class;
	__u16 payload_bytes;
	__u8 next_header;
	__u8 hop_limit;
	__u8 source[16];
	__u8 destination[16];
} __attribute__((packed));

#define LINK_BYTES sizeof(struct ethernet)

/* What a packet is, read once. */
struct packet {
	struct address source;
	struct address destination;
	/* ETHERNET_…, as on the wire. */
	__u16 family;
	__u8 time_to_live;
	/* Of the first header after IP's own. */
	__u8 protocol;
	/* Where that header begins, from the start of the frame. */
	__u32 payload_offset;
	/* Neither options nor fragments. */
	bool plain;
	/* A later fragment: the payload does not begin with its protocol's header. */
	bool later_fragment;
};

/* The same as Services see it: with what a fragment knows in the place of ports. */
struct segment {
	struct packet packet;
	/* Of the IP header, from the start of the frame. */
	__u32 offset;
	/* What all fragments of a packet share, as on the wire; for fragments alone. */
	__u32 identification;
	bool is_fragment;
	__u8 tcp_flags;
};

/* Answers whether `bytes` can be read directly, and brings them there where they are not yet. */
INLINE bool has_bytes(struct __sk_buff *skb, __u32 bytes)
{
	if ((void *)(long)skb->data + bytes <= (void *)(long)skb->data_end)
		return true;
	return skb->len >= bytes && skb_pull_data(skb, bytes) == 0;
}

/* Takes in an IPv4 header at `offset` of the frame. False: it is none. */
INLINE bool take_ipv4(const struct ipv4 *header, __u32 offset, struct packet *packet)
{
	__u32 header_bytes = (header->version_and_words & 15) * 4;
	if (header->version_and_words >> 4 != 4 || header_bytes < sizeof(*header))
		return false;
	mapped(&packet->source, header->source);
	mapped(&packet->destination, header->destination);
	packet->family = ETHERNET_IPV4;
	packet->time_to_live = header->time_to_live;
	packet->protocol = header->protocol;
	packet->payload_offset = offset + header_bytes;
	packet->plain = header_bytes == sizeof(*header) && !(header->fragment & IPV4_FRAGMENT);
	packet->later_fragment = header->fragment & IPV4_FRAGMENT_OFFSET;
	return true;
}

/* Reads IPv4 at `offset` of the frame. False: cut off, or no IPv4. */
INLINE bool read_ipv4(struct __sk_buff *skb, __u32 offset, struct packet *packet)
{
	if (!has_bytes(skb, offset + sizeof(struct ipv4)))
		return false;
	struct ipv4 *header = (void *)(long)skb->data + offset;
	if ((void *)(header + 1) > (void *)(long)skb->data_end)
		return false;
	return take_ipv4(header, offset, packet);
}

INLINE bool is_extension_header(__u8 next_header)
{
	switch (next_header) {
	case PROTOCOL_HOP_BY_HOP:
	case PROTOCOL_ROUTING:
	case PROTOCOL_FRAGMENT:
	case PROTOCOL_AUTHENTICATION:
	case PROTOCOL_DESTINATION:
	case PROTOCOL_MOBILITY:
		return true;
	default:
		return false;
	}
}

/* Takes in an IPv6 header at `offset` of the frame. False: it is none. */
INLINE bool take_ipv6(const struct ipv6 *header, __u32 offset, struct packet *packet)
{
	if ((header->version_and_class & BE32(0xf0000000)) != BE32(0x60000000))
		return false;
	__builtin_memcpy(&packet->source, header->source, ADDRESS_BYTES);
	__builtin_memcpy(&packet->destination, header->destination, ADDRESS_BYTES);
	packet->family = ETHERNET_IPV6;
	packet->time_to_live = header->hop_limit;
	packet->protocol = header->next_header;
	packet->payload_offset = offset + sizeof(*header);
	packet->plain = !is_extension_header(header->next_header);
	packet->later_fragment = false;
	return true;
}

/* Reads IPv6 at `offset` of the frame, without its extension headers. */
INLINE bool read_ipv6(struct __sk_buff *skb, __u32 offset, struct packet *packet)
{
	if (!has_bytes(skb, offset + sizeof(struct ipv6)))
		return false;
	struct ipv6 *header = (void *)(long)skb->data + offset;
	if ((void *)(header + 1) > (void *)(long)skb->data_end)
		return false;
	return take_ipv6(header, offset, packet);
}

INLINE bool read_packet(struct __sk_buff *skb, __u16 family, __u32 offset, struct packet *packet)
{
	if (family == ETHERNET_IPV4)
		return read_ipv4(skb, offset, packet);
	return read_ipv6(skb, offset, packet);
}

INLINE bool is_multicast(const struct packet *packet)
{
	if (packet->family == ETHERNET_IPV4)
		return packet->destination.bytes[12] >= 224;
	return packet->destination.bytes[0] == 0xff;
}

INLINE bool is_same_mac(const __u8 *one, const __u8 *other)
{
	return *(const __u32 *)one == *(const __u32 *)other &&
	       *(const __u16 *)(one + 4) == *(const __u16 *)(other + 4);
}

INLINE void copy_mac(__u8 *to, const __u8 *from)
{
	*(__u32 *)to = *(const __u32 *)from;
	*(__u16 *)(to + 4) = *(const __u16 *)(from + 4);
}
