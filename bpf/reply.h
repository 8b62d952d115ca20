/* Answers that are made in the place of whom a packet was for. */
#pragma once

#include "packet.h"

#define IPV4_VERSION_AND_WORDS 0x45
#define IPV6_VERSION BE32(0x60000000)
#define IPV4_DONT_FRAGMENT BE16(0x4000)
#define ANSWER_HOP_LIMIT 64

INLINE __u16 fold(__s64 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

INLINE void answer_ipv4(const struct packet *packet, __u8 protocol, __u16 bytes,
			struct ipv4 *header)
{
	header->version_and_words = IPV4_VERSION_AND_WORDS;
	header->service = 0;
	header->bytes = BE16(bytes);
	header->id = 0;
	header->fragment = IPV4_DONT_FRAGMENT;
	header->time_to_live = ANSWER_HOP_LIMIT;
	header->protocol = protocol;
	header->checksum = 0;
	header->source = packet->destination.words[3];
	header->destination = packet->source.words[3];
	header->checksum = fold(csum_diff(NULL, 0, header, sizeof(*header), 0));
}

INLINE void answer_ipv6(const struct packet *packet, __u8 protocol, __u16 bytes,
			struct ipv6 *header)
{
	header->version_and_class = IPV6_VERSION;
	header->payload_bytes = BE16(bytes);
	header->next_header = protocol;
	header->hop_limit = ANSWER_HOP_LIMIT;
	__builtin_memcpy(header->source, &packet->destination, ADDRESS_BYTES);
	__builtin_memcpy(header->destination, &packet->source, ADDRESS_BYTES);
}

/* To the stack itself, or to who sent it. */
INLINE bool swap_macs(struct __sk_buff *skb)
{
	__u8 from[6], to[6];

	return skb_load_bytes(skb, 0, to, sizeof(to)) == 0 &&
	       skb_load_bytes(skb, sizeof(to), from, sizeof(from)) == 0 &&
	       skb_store_bytes(skb, 0, from, sizeof(from), 0) == 0 &&
	       skb_store_bytes(skb, sizeof(from), to, sizeof(to), 0) == 0;
}
