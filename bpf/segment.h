/* A packet as Services see it: addresses, ports, and what a fragment knows in their place; and the
 * writing of a new source or destination into it.
 */
#pragma once

#include "known.h"

/* IPv6 extension headers that are read; what has more is left as it is. */
#define SEGMENT_HEADERS_MAX 8

#define ICMP_UNREACHABLE 3
#define ICMP_ECHO_REPLY 0
#define ICMP_ECHO 8
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETER 12
#define ICMPV6_UNREACHABLE 1
#define ICMPV6_PARAMETER 4
#define ICMPV6_ECHO 128
#define ICMPV6_ECHO_REPLY 129

/* Bytes of an ICMP error before the packet that it is about. */
#define ICMP_BYTES 8
/* Where it may begin; an error with more headers before it is left as it is. */
#define OFFSET_MAX 256
#define IPV4_CHECKSUM __builtin_offsetof(struct ipv4, checksum)

INLINE bool is_icmp(__u8 protocol)
{
	return protocol == PROTOCOL_ICMP || protocol == PROTOCOL_ICMPV6;
}

/* Finds the first header after the extension headers; false where it does not within bounds. */
GLOBAL int read_extension_headers(struct __sk_buff *skb, struct segment *segment)
{
	__u8 header[8];

	if (!segment)
		return false;
	struct packet *packet = &segment->packet;
	for (int n = 0; n < SEGMENT_HEADERS_MAX; n++) {
		if (!is_extension_header(packet->protocol))
			return true;
		if (skb_load_bytes(skb, packet->payload_offset, header, sizeof(header)))
			return false;
		if (packet->protocol == PROTOCOL_FRAGMENT) {
			packet->payload_offset += sizeof(header);
			packet->later_fragment = (header[2] | (header[3] & 0xf8)) != 0;
			segment->is_fragment = packet->later_fragment || header[3] & 1;
			__builtin_memcpy(&segment->identification, header + 4, 4);
		} else if (packet->protocol == PROTOCOL_AUTHENTICATION) {
			packet->payload_offset += (header[1] + 2) * 4;
		} else {
			packet->payload_offset += (header[1] + 1) * 8;
		}
		packet->protocol = header[0];
		if (packet->later_fragment)
			return true;
	}
	return !is_extension_header(packet->protocol);
}

INLINE bool read_ipv4_fragment(struct __sk_buff *skb, struct segment *segment)
{
	__u16 words[2];

	if (skb_load_bytes(skb, segment->offset + __builtin_offsetof(struct ipv4, id), words,
			   sizeof(words)))
		return false;
	segment->is_fragment = words[1] & IPV4_FRAGMENT;
	segment->identification = words[0];
	return true;
}

/* Reads a packet at `segment->offset`. False: nothing that can be translated. */
GLOBAL int read_segment(struct __sk_buff *skb, __u16 family, struct segment *segment)
{
	if (!segment)
		return false;
	struct packet *packet = &segment->packet;

	if (segment->offset > OFFSET_MAX || !read_packet(skb, family, segment->offset, packet))
		return false;
	if (packet->plain)
		return true;
	if (packet->family == ETHERNET_IPV4)
		return read_ipv4_fragment(skb, segment);
	return read_extension_headers(skb, segment);
}

/* Reads by what a flow is found. False: cut off. */
INLINE bool read_key(struct __sk_buff *skb, struct segment *segment, __u8 side,
		     struct flow_key *key)
{
	__u32 offset = segment->packet.payload_offset;
	__u8 bytes[TCP_FLAGS + 1];

	if (segment->packet.later_fragment) {
		begin_key(segment, side | FRAGMENTS, key);
		key->source_port = segment->identification;
		key->destination_port = segment->identification >> 16;
		return true;
	}
	if (segment->packet.protocol == PROTOCOL_TCP) {
		if (skb_load_bytes(skb, offset, bytes, sizeof(bytes)))
			return false;
		segment->tcp_flags = bytes[TCP_FLAGS];
	} else if (skb_load_bytes(skb, offset, bytes, PORTS_BYTES)) {
		return false;
	}
	begin_key(segment, side, key);
	take_ports(bytes, key);
	return true;
}

/* A new source or destination. Ports as on the wire. */
struct change {
	const struct address *from;
	const struct address *to;
	__u16 from_port, to_port;
	bool is_source;
};

/* Where a checksum shall follow the change of an address. `flags` are those of l4_csum_replace. */
struct checksum {
	__u32 offset;
	__u64 flags;
};

/* Writes an IPv4 address and corrects the header's checksum and the one named. */
INLINE bool write_ipv4(struct __sk_buff *skb, __u32 header, const struct change *change,
		       const struct checksum *checksum)
{
	__u32 from = change->from->words[3], to = change->to->words[3];
	__u32 offset = header + (change->is_source ? __builtin_offsetof(struct ipv4, source)
						   : __builtin_offsetof(struct ipv4, destination));

	if (l3_csum_replace(skb, header + IPV4_CHECKSUM, from, to, sizeof(to)))
		return false;
	if (checksum->offset && l4_csum_replace(skb, checksum->offset, from, to,
						checksum->flags | sizeof(to)))
		return false;
	return skb_store_bytes(skb, offset, &to, sizeof(to), 0) == 0;
}

/* The same of IPv6, whose header has no checksum. */
INLINE bool write_ipv6(struct __sk_buff *skb, __u32 header, const struct change *change,
		       const struct checksum *checksum)
{
	__u32 offset = header + (change->is_source ? __builtin_offsetof(struct ipv6, source)
						   : __builtin_offsetof(struct ipv6, destination));
	/* A device's sum of the whole packet: the checksum named makes up for the address. Where the
	 * flags say that it stands for what the packet does not hold (the pseudo header), the kernel
	 * corrects the device's sum by it, and so the address has to be taken into that sum too.
	 */
	__u64 store_flags = checksum->flags & BPF_F_PSEUDO_HDR ? BPF_F_RECOMPUTE_CSUM : 0;
	__s64 difference = csum_diff(change->from, ADDRESS_BYTES, change->to, ADDRESS_BYTES, 0);

	if (checksum->offset &&
	    l4_csum_replace(skb, checksum->offset, 0, difference, checksum->flags))
		return false;
	return skb_store_bytes(skb, offset, change->to, ADDRESS_BYTES, store_flags) == 0;
}

INLINE bool write_address(struct __sk_buff *skb, __u16 family, __u32 header,
			  const struct change *change, const struct checksum *checksum)
{
	if (family == ETHERNET_IPV4)
		return write_ipv4(skb, header, change, checksum);
	return write_ipv6(skb, header, change, checksum);
}

INLINE bool write_port(struct __sk_buff *skb, __u32 payload, const struct change *change,
		       const struct checksum *checksum)
{
	if (change->from_port == change->to_port)
		return true;
	if (checksum->offset && l4_csum_replace(skb, checksum->offset, change->from_port,
						change->to_port, checksum->flags | 2))
		return false;
	return skb_store_bytes(skb, payload + (change->is_source ? 0 : 2), &change->to_port, 2,
			       0) == 0;
}

/* Gives a packet another source or destination. False: it is cut off within its headers. */
static __attribute__((noinline)) bool rewrite_segment(struct __sk_buff *skb,
						      const struct segment *segment,
						      const struct change *change)
{
	const struct packet *packet = &segment->packet;
	struct checksum checksum = {};
	__u32 within = checksum_offset(packet->protocol);
	__u64 flags = packet->protocol == PROTOCOL_UDP ? BPF_F_MARK_MANGLED_0 : 0;

	if (within && !packet->later_fragment)
		checksum.offset = packet->payload_offset + within;
	checksum.flags = flags | BPF_F_PSEUDO_HDR;
	if (!write_address(skb, packet->family, segment->offset, change, &checksum))
		return false;
	if (packet->later_fragment || is_icmp(packet->protocol))
		return true;
	checksum.flags = flags;
	return write_port(skb, packet->payload_offset, change, &checksum);
}

/* The same for the packet that an ICMP error is about. The checksum of the error follows: in IPv4
 * the ports alone, since the inner header's checksum makes up for the address. The inner checksum
 * of the transport is left: mostly not all that it covers is there (RFC 5508 section 4.1 asks
 * nobody to check it).
 */
static __attribute__((noinline)) bool rewrite_inner(struct __sk_buff *skb,
						    const struct segment *outer,
						    const struct packet *inner,
						    const struct change *change)
{
	__u32 header = outer->packet.payload_offset + ICMP_BYTES;
	struct checksum checksum = {};

	if (inner->family == ETHERNET_IPV6)
		checksum.offset = outer->packet.payload_offset + ICMP_CHECKSUM;
	if (!write_address(skb, inner->family, header, change, &checksum))
		return false;
	checksum.offset = outer->packet.payload_offset + ICMP_CHECKSUM;
	return write_port(skb, inner->payload_offset, change, &checksum);
}
