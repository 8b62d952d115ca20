/* The answer of a Service without endpoints: a reset for TCP, "port unreachable" for the rest. It
 * is made here, so that each frontend refuses in the same way: many of their addresses are not the
 * node's, and its stack would route them on.
 */
#pragma once

#include "reply.h"
#include "segment.h"

#define BPF_ADJ_ROOM_MAC 1
#define ICMP_PORT_UNREACHABLE 3
#define ICMPV6_PORT_UNREACHABLE 4
/* What an ICMP error repeats after the IP header. */
#define REPEATED_BYTES 8

struct tcp {
	__u16 source, destination;
	__u32 sequence, acknowledgement;
	__u8 words, flags;
	__u16 window, checksum, urgent;
};
/* With all options that there can be. */
#define TCP_BYTES_MAX 60

struct icmp {
	__u8 type, code;
	__u16 checksum;
	__u32 unused;
};

struct unreachable_ipv4 {
	struct ipv4 header;
	struct icmp icmp;
	struct ipv4 about;
	__u8 repeated[REPEATED_BYTES];
} __attribute__((packed));

struct unreachable_ipv6 {
	struct ipv6 header;
	struct icmp icmp;
	struct ipv6 about;
	__u8 repeated[REPEATED_BYTES];
} __attribute__((packed));

/* Back to where it came from; `link_bytes` as the link has them. */
INLINE int send_back(struct __sk_buff *skb, __u32 link_bytes, __u64 direction)
{
	if (link_bytes && !swap_macs(skb))
		return drop_nat(NAT_DROP_CUT);
	return redirect(skb->ifindex, direction);
}

/* Turns the first packet of a connection into its reset (RFC 9293 section 3.10.7.1). The checksum
 * is corrected, not computed: it may be one that a device shall complete, and then stands for the
 * addresses and the length alone. False: it has data (Fast Open), or headers of a rare kind; its
 * sender tries again without.
 */
static __attribute__((noinline)) bool make_reset(struct __sk_buff *skb,
						 const struct segment *segment)
{
	const struct packet *packet = &segment->packet;
	__u32 offset = packet->payload_offset;
	__u8 bytes[TCP_BYTES_MAX] = {};
	struct tcp *before = (struct tcp *)bytes;
	struct tcp reset = {};
	/* Of 64 bits: older kernels see no bounds of half a register. */
	__u64 length;

	if (!packet->plain || skb_load_bytes(skb, offset, bytes, sizeof(struct tcp)))
		return false;
	length = (before->words >> 4) * 4;
	/* The compiler would join the next lines with this one, and the kernel not see the bounds. */
	asm volatile("" : "+r"(length));
	if (length < sizeof(struct tcp) || length > TCP_BYTES_MAX ||
	    skb_load_bytes(skb, offset, bytes, length))
		return false;
	if (skb->len != offset + length && skb_change_tail(skb, offset + length, 0))
		return false;
	reset.source = before->destination;
	reset.destination = before->source;
	reset.acknowledgement = BE32(BE32(before->sequence) + 1);
	reset.words = sizeof(reset) / 4 << 4;
	reset.flags = TCP_RST | TCP_ACK;
	reset.checksum = before->checksum;
	__s64 difference = csum_diff(bytes, length, &reset, sizeof(reset), 0);
	return skb_store_bytes(skb, offset, &reset, sizeof(reset), 0) == 0 &&
	       l4_csum_replace(skb, offset + TCP_CHECKSUM, 0, difference, 0) == 0 &&
	       l4_csum_replace(skb, offset + TCP_CHECKSUM, BE16(length), BE16(sizeof(reset)),
			       BPF_F_PSEUDO_HDR | 2) == 0 &&
	       skb_change_tail(skb, offset + sizeof(reset), 0) == 0;
}

/* Whether a first packet carries data already, by its own word for its length. */
INLINE bool has_data(struct __sk_buff *skb, const struct segment *segment)
{
	__u32 header = segment->packet.payload_offset - segment->offset;
	__u16 length;
	__u8 words;

	__u32 place = segment->packet.family == ETHERNET_IPV4
			      ? __builtin_offsetof(struct ipv4, bytes)
			      : __builtin_offsetof(struct ipv6, payload_bytes);
	if (skb_load_bytes(skb, segment->offset + place, &length, sizeof(length)) ||
	    skb_load_bytes(skb, segment->packet.payload_offset +
					__builtin_offsetof(struct tcp, words), &words, 1))
		return true;
	__u32 payload = BE16(length);
	if (segment->packet.family == ETHERNET_IPV4)
		payload -= header;
	return payload != (words >> 4) * 4u;
}

INLINE int refuse_tcp(struct __sk_buff *skb, const struct segment *segment, __u64 direction)
{
	const struct packet *packet = &segment->packet;

	if (has_data(skb, segment) || !make_reset(skb, segment))
		return TC_DROP;
	if (packet->family == ETHERNET_IPV4) {
		struct ipv4 header;
		answer_ipv4(packet, PROTOCOL_TCP, sizeof(header) + sizeof(struct tcp), &header);
		if (skb_store_bytes(skb, segment->offset, &header, sizeof(header), 0))
			return TC_DROP;
	} else {
		struct ipv6 header;
		answer_ipv6(packet, PROTOCOL_TCP, sizeof(struct tcp), &header);
		if (skb_store_bytes(skb, segment->offset, &header, sizeof(header), 0))
			return TC_DROP;
	}
	return send_back(skb, segment->offset, direction);
}

/* Makes room for an error before a packet, of which it keeps what the error repeats. */
INLINE bool make_room(struct __sk_buff *skb, const struct segment *segment, __u32 bytes)
{
	__u32 kept = segment->packet.payload_offset + REPEATED_BYTES;

	return segment->packet.plain && skb_change_tail(skb, kept, 0) == 0 &&
	       skb_adjust_room(skb, bytes, BPF_ADJ_ROOM_MAC, 0) == 0;
}

static __attribute__((noinline)) bool make_unreachable_ipv4(struct __sk_buff *skb,
							    const struct segment *segment)
{
	struct unreachable_ipv4 answer = {};

	if (skb_load_bytes(skb, segment->offset, &answer.about,
			   sizeof(answer.about) + REPEATED_BYTES))
		return false;
	answer_ipv4(&segment->packet, PROTOCOL_ICMP, sizeof(answer), &answer.header);
	answer.icmp.type = ICMP_UNREACHABLE;
	answer.icmp.code = ICMP_PORT_UNREACHABLE;
	answer.icmp.checksum =
		fold(csum_diff(NULL, 0, &answer.icmp, sizeof(answer) - sizeof(answer.header), 0));
	return make_room(skb, segment, sizeof(answer.header) + sizeof(answer.icmp)) &&
	       skb_store_bytes(skb, segment->offset, &answer, sizeof(answer), 0) == 0;
}

static __attribute__((noinline)) bool make_unreachable_ipv6(struct __sk_buff *skb,
							    const struct segment *segment)
{
	struct unreachable_ipv6 answer = {};
	__u32 within = sizeof(answer) - sizeof(answer.header);
	/* The end of the pseudo header (RFC 8200 section 8.1). */
	__u32 end[2] = { BE32(within), BE32(PROTOCOL_ICMPV6) };

	if (skb_load_bytes(skb, segment->offset, &answer.about,
			   sizeof(answer.about) + REPEATED_BYTES))
		return false;
	answer_ipv6(&segment->packet, PROTOCOL_ICMPV6, within, &answer.header);
	answer.icmp.type = ICMPV6_UNREACHABLE;
	answer.icmp.code = ICMPV6_PORT_UNREACHABLE;
	__s64 sum = csum_diff(NULL, 0, end, sizeof(end), 0);
	sum = csum_diff(NULL, 0, answer.header.source, 2 * ADDRESS_BYTES, sum);
	sum = csum_diff(NULL, 0, &answer.icmp, within, sum);
	answer.icmp.checksum = fold(sum);
	return make_room(skb, segment, sizeof(answer.header) + sizeof(answer.icmp)) &&
	       skb_store_bytes(skb, segment->offset, &answer, sizeof(answer), 0) == 0;
}

/* Answers a packet to a frontend that refuses. `direction` as of `redirect`. */
GLOBAL int refuse(struct __sk_buff *skb, const struct segment *segment, __u64 direction)
{
	bool is_made;

	if (!segment)
		return TC_DROP;
	count_nat(NAT_REFUSED);
	if (segment->packet.protocol == PROTOCOL_TCP)
		return refuse_tcp(skb, segment, direction);
	if (segment->packet.family == ETHERNET_IPV4)
		is_made = make_unreachable_ipv4(skb, segment);
	else
		is_made = make_unreachable_ipv6(skb, segment);
	return is_made ? send_back(skb, segment->offset, direction) : TC_DROP;
}
