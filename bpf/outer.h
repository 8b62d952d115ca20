/* What wraps a packet that is handed on to the node of its endpoint: see direct.h. */
#pragma once

#include "reply.h"
#include "tracking.h"

#define PROTOCOL_IPIP 4
#define PROTOCOL_IPV6 41
/* An IPv4 header of 28 bytes, and its option: an experimental one (RFC 4727 section 3.1), which is
 * copied into fragments.
 */
#define DIRECT_VERSION_AND_WORDS 0x47
#define OPTION_EXPERIMENT 0x9e
#define OPTION_BYTES 8
/* The same in a header of IPv6 destination options of 24 bytes (RFC 4727 section 3.5). */
#define DIRECT_WORDS 2
#define OPTION_EXPERIMENT_V6 0x1e
#define OPTION_BYTES_V6 20
/* All but the bits of congestion, which an outer packet need not carry (RFC 6040 section 4.1). */
#define SERVICE_CLASS 0xfc
#define SERVICE_CLASS_V6 BE32(0xffc00000)

struct direct_ipv4 {
	struct ipv4 header;
	__u8 option, option_bytes;
	/* The frontend. */
	__u16 port;
	__u32 address;
} __attribute__((packed));

struct direct_ipv6 {
	struct ipv6 header;
	__u8 next_header, words, option, option_bytes;
	/* The frontend. */
	__u16 port, zero;
	__u8 address[ADDRESS_BYTES];
} __attribute__((packed));

/* What a packet grows by. */
INLINE __u32 direct_bytes(__u16 family)
{
	return family == ETHERNET_IPV4 ? sizeof(struct direct_ipv4) : sizeof(struct direct_ipv6);
}

/* The header before a packet of the endpoint's, with the flow's leaving entry and this node's address. */
INLINE void make_outer_ipv4(const struct ipv4 *inner, const struct flow *flow,
			    const struct address *own, struct direct_ipv4 *outer)
{
	*outer = (struct direct_ipv4){
		.option = OPTION_EXPERIMENT,
		.option_bytes = OPTION_BYTES,
		.port = flow->other_port,
	};
	outer->address = *(const __u32 *)(flow->other + 12);
	outer->header.version_and_words = DIRECT_VERSION_AND_WORDS;
	outer->header.service = inner->service & SERVICE_CLASS;
	outer->header.bytes = BE16(BE16(inner->bytes) + sizeof(*outer));
	outer->header.fragment = IPV4_DONT_FRAGMENT;
	outer->header.time_to_live = ANSWER_HOP_LIMIT;
	outer->header.protocol = PROTOCOL_IPIP;
	outer->header.source = own->words[3];
	outer->header.destination = inner->destination;
	outer->header.checksum = fold(csum_diff(NULL, 0, outer, sizeof(*outer), 0));
}

INLINE void make_outer_ipv6(const struct ipv6 *inner, const struct flow *flow,
			    const struct address *own, struct direct_ipv6 *outer)
{
	const __u32 behind = sizeof(*outer) - sizeof(outer->header) + sizeof(*inner);

	*outer = (struct direct_ipv6){
		.next_header = PROTOCOL_IPV6,
		.words = DIRECT_WORDS,
		.option = OPTION_EXPERIMENT_V6,
		.option_bytes = OPTION_BYTES_V6,
		.port = flow->other_port,
	};
	outer->header.version_and_class = inner->version_and_class & SERVICE_CLASS_V6;
	outer->header.payload_bytes = BE16(BE16(inner->payload_bytes) + behind);
	outer->header.next_header = PROTOCOL_DESTINATION;
	outer->header.hop_limit = ANSWER_HOP_LIMIT;
	__builtin_memcpy(outer->header.source, own, ADDRESS_BYTES);
	__builtin_memcpy(outer->header.destination, inner->destination, ADDRESS_BYTES);
	__builtin_memcpy(outer->address, flow->other, ADDRESS_BYTES);
}
