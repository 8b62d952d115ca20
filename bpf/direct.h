/* Direct server return: the node that a client outside of the cluster came to hands its packets on
 * to the node of the endpoint, which answers the client itself. The endpoint sees the client's own
 * address, and answers make no detour.
 *
 *     client C ──C→V──▶ this node ──N→E [V] (C→E)──▶ endpoint's node ──C→E──▶ endpoint E
 *        ▲                                                 │
 *        └──────────────────────V→C────────────────────────┘
 *
 * A packet that is handed on is within another one, from this node to the endpoint, with the
 * frontend V in an option of its header. So it goes by whatever way pods' packets go, encrypted
 * ways too, and what guards these sees a node that speaks for itself. Each packet has the option:
 * whichever comes first, or first after the endpoint's node forgot the flow, is understood.
 *
 * The word of others is not believed: nodes of the cluster hand on, by the links between nodes, for
 * clients outside of the cluster to pods of this node. What looks like it and is not is dropped.
 *
 * The outer header takes room. Endpoints announce segments that are smaller by as much, and who
 * sends larger packets all the same is told.
 */
#pragma once

#include "outer.h"
#include "refuse.h"

#define BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 2
#define BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 4
#define ICMP_FRAGMENTATION_NEEDED 4
#define ICMPV6_TOO_BIG 2
/* What an error about the size repeats after the IP header: IPv6's of a fragment, and ports. */
#define REPEATED_BYTES_SIZE 16

/* The option of TCP for the largest segment (RFC 9293 section 3.7.1), and the least that all take. */
#define TCP_OPTION_SEGMENT_SIZE 2
#define TCP_OPTION_SEGMENT_SIZE_BYTES 4
#define SEGMENT_SIZE_MIN 536

struct too_big_ipv4 {
	struct ipv4 header;
	struct icmp icmp;
	struct ipv4 about;
	__u8 repeated[REPEATED_BYTES_SIZE];
} __attribute__((packed));

struct too_big_ipv6 {
	struct ipv6 header;
	struct icmp icmp;
	struct ipv6 about;
	__u8 repeated[REPEATED_BYTES_SIZE];
} __attribute__((packed));

/* Of service_nat.c. */
GLOBAL int is_taken(const struct flow_key *own, const struct flow *flow, __u32 now);

/* What is known of an address of the cluster; NULL: it is outside. */
INLINE __u32 *find_direct_host(const struct address *address)
{
	struct network_key key = { .prefix_bits = ADDRESS_BITS };

	__builtin_memcpy(key.address, address, ADDRESS_BYTES);
	return map_lookup(&direct_hosts, &key);
}

/* How the answers of a flow get back that cannot simply keep its source. Those of this node's own
 * pods leave by it in any case.
 */
INLINE __u32 way_back(const struct service *service, bool outside, const struct address *client,
		      const struct endpoint *endpoint)
{
	const struct address *address = (const struct address *)endpoint->address;

	if (!(service->flags & DIRECT) || !outside || find_direct_host(client))
		return FLOW_MASQUERADED;
	if (is_own_pod(address))
		return 0;
	__u32 *host = find_direct_host(address);
	return host && *host & DIRECT_PODS ? FLOW_DIRECT : FLOW_MASQUERADED;
}

/* Makes room for an error before a packet, of which it keeps what the error repeats. */
INLINE bool make_room_for_size(struct __sk_buff *skb, __u32 kept, __u32 bytes)
{
	return skb_change_tail(skb, kept, 0) == 0 &&
	       skb_adjust_room(skb, bytes, BPF_ADJ_ROOM_MAC, 0) == 0;
}

static __attribute__((noinline)) bool make_too_big_ipv4(struct __sk_buff *skb,
							const struct segment *segment,
							__u32 bytes)
{
	struct too_big_ipv4 answer = {};
	__u32 offset = segment->offset, within = sizeof(answer) - sizeof(answer.header);

	if (segment->packet.payload_offset != offset + sizeof(answer.about) ||
	    skb_load_bytes(skb, offset, &answer.about,
			   sizeof(answer.about) + REPEATED_BYTES_SIZE))
		return false;
	answer_ipv4(&segment->packet, PROTOCOL_ICMP, sizeof(answer), &answer.header);
	answer.icmp.type = ICMP_UNREACHABLE;
	answer.icmp.code = ICMP_FRAGMENTATION_NEEDED;
	answer.icmp.unused = BE32(bytes);
	answer.icmp.checksum = fold(csum_diff(NULL, 0, &answer.icmp, within, 0));
	return make_room_for_size(skb, offset + sizeof(answer.about) + REPEATED_BYTES_SIZE,
				  sizeof(answer.header) + sizeof(answer.icmp)) &&
	       skb_store_bytes(skb, offset, &answer, sizeof(answer), 0) == 0;
}

static __attribute__((noinline)) bool make_too_big_ipv6(struct __sk_buff *skb,
							const struct segment *segment,
							__u32 bytes)
{
	struct too_big_ipv6 answer = {};
	__u32 offset = segment->offset, within = sizeof(answer) - sizeof(answer.header);
	/* The end of the pseudo header (RFC 8200 section 8.1). */
	__u32 end[2] = { BE32(within), BE32(PROTOCOL_ICMPV6) };

	if (skb_load_bytes(skb, offset, &answer.about,
			   sizeof(answer.about) + REPEATED_BYTES_SIZE))
		return false;
	answer_ipv6(&segment->packet, PROTOCOL_ICMPV6, within, &answer.header);
	answer.icmp.type = ICMPV6_TOO_BIG;
	answer.icmp.unused = BE32(bytes);
	__s64 sum = csum_diff(NULL, 0, end, sizeof(end), 0);
	sum = csum_diff(NULL, 0, answer.header.source, 2 * ADDRESS_BYTES, sum);
	sum = csum_diff(NULL, 0, &answer.icmp, within, sum);
	answer.icmp.checksum = fold(sum);
	return make_room_for_size(skb, offset + sizeof(answer.about) + REPEATED_BYTES_SIZE,
				  sizeof(answer.header) + sizeof(answer.icmp)) &&
	       skb_store_bytes(skb, offset, &answer, sizeof(answer), 0) == 0;
}

/* Tells the sender of a packet that is too large to be handed on how much goes (RFC 1191, RFC 8201),
 * also where it would let it be fragmented: nobody can here any more. The error goes the way of the
 * answers, into the stack and by `service_leave`.
 */
INLINE int tell_size(struct __sk_buff *skb, const struct segment *segment, __u32 bytes)
{
	bool is_made;

	count_nat(NAT_DROP_SIZE);
	if (segment->packet.family == ETHERNET_IPV4)
		is_made = make_too_big_ipv4(skb, segment, bytes);
	else
		is_made = make_too_big_ipv6(skb, segment, bytes);
	if (!is_made)
		return TC_DROP;
	skb->mark |= NAT_MARK;
	return send_back(skb, segment->offset, BPF_F_INGRESS);
}

/* Wraps a packet for the endpoint's node. */
static __attribute__((noinline)) bool wrap_ipv4(struct __sk_buff *skb, __u32 offset,
						const struct flow *flow,
						const struct address *own)
{
	struct direct_ipv4 outer;
	struct ipv4 inner;

	if (skb_load_bytes(skb, offset, &inner, sizeof(inner)))
		return false;
	make_outer_ipv4(&inner, flow, own, &outer);
	return skb_adjust_room(skb, sizeof(outer), BPF_ADJ_ROOM_MAC,
			       BPF_F_ADJ_ROOM_ENCAP_L3_IPV4) == 0 &&
	       skb_store_bytes(skb, offset, &outer, sizeof(outer), 0) == 0;
}

static __attribute__((noinline)) bool wrap_ipv6(struct __sk_buff *skb, __u32 offset,
						const struct flow *flow,
						const struct address *own)
{
	struct direct_ipv6 outer;
	struct ipv6 inner;

	if (skb_load_bytes(skb, offset, &inner, sizeof(inner)))
		return false;
	make_outer_ipv6(&inner, flow, own, &outer);
	return skb_adjust_room(skb, sizeof(outer), BPF_ADJ_ROOM_MAC,
			       BPF_F_ADJ_ROOM_ENCAP_L3_IPV6) == 0 &&
	       skb_store_bytes(skb, offset, &outer, sizeof(outer), 0) == 0;
}

/* Remembers for the later fragments of a packet that they are handed on too. */
INLINE void remember_handed(const struct segment *segment, const struct flow_key *first,
			    const struct flow *flow, __u32 now)
{
	struct flow_key key = *first;
	struct flow value = { .flags = FLOW_DIRECT, .used_s = now };

	key.side |= FRAGMENTS;
	key.source_port = segment->identification;
	key.destination_port = segment->identification >> 16;
	__builtin_memcpy(value.other, flow->other, ADDRESS_BYTES);
	value.other_port = flow->other_port;
	write_flow(&key, &value);
}

/* Hands a packet on to the node of its endpoint. */
GLOBAL int hand_on(struct __sk_buff *skb, const struct segment *segment,
		   const struct flow_key *key, const struct flow *flow, __u32 now)
{
	struct nat_link *link = find_nat_link(skb);
	struct address own;
	bool is_wrapped;
	__u32 mtu = 0;

	if (!link || !segment || !key || !flow)
		return TC_DROP;
	__u16 family = segment->packet.family;
	__u32 bytes = direct_bytes(family);
	if (!masquerade_address(link, family, &own))
		return drop_nat(NAT_DROP_ADDRESS);
	if (check_mtu(skb, 0, &mtu, bytes, 0))
		return tell_size(skb, segment, mtu - bytes);
	if (segment->is_fragment && !segment->packet.later_fragment)
		remember_handed(segment, key, flow, now);
	if (family == ETHERNET_IPV4)
		is_wrapped = wrap_ipv4(skb, segment->offset, flow, &own);
	else
		is_wrapped = wrap_ipv6(skb, segment->offset, flow, &own);
	return is_wrapped ? TC_NEXT : drop_nat(NAT_DROP_CUT);
}

/* Notes at the endpoint's node whom the endpoint answers in whose name. */
GLOBAL int note_handed(const struct flow_key *plain, const struct endpoint *frontend,
		       __u32 tcp_flags, __u32 now)
{
	const __u32 end = FLOW_FIN_SENT | FLOW_FIN_ANSWERED | FLOW_RESET;
	struct flow_key own = { .side = ENTERING };
	struct flow flow = { .flags = FLOW_RETURN, .used_s = now };

	if (!plain || !frontend)
		return TC_DROP;
	own.protocol = plain->protocol;
	own.source_port = plain->source_port;
	own.destination_port = frontend->port;
	__builtin_memcpy(own.source, plain->source, ADDRESS_BYTES);
	__builtin_memcpy(own.destination, frontend->address, ADDRESS_BYTES);
	__builtin_memcpy(flow.address, plain->destination, ADDRESS_BYTES);
	flow.port = plain->destination_port;
	struct flow *known = find_own(&own, now);
	if (known && is_leading_to(known, flow.address, flow.port) &&
	    !(tcp_flags & TCP_SYN && known->flags & end)) {
		if (own.protocol == PROTOCOL_TCP)
			follow_tcp(known, tcp_flags, FLOW_FIN_SENT);
		if (known->used_s != now) {
			known->used_s = now;
			write_leaving(&own, known, now);
		}
		return TC_NEXT;
	}
	/* Of datagrams who was asked last answers. */
	if (own.protocol == PROTOCOL_TCP && is_taken(&own, &flow, now))
		return drop_nat(NAT_DROP_TAKEN);
	/* Its beginning was forgotten here. */
	if (own.protocol == PROTOCOL_TCP && !(tcp_flags & TCP_SYN))
		flow.flags |= FLOW_ANSWERED;
	write_leaving(&own, &flow, now);
	write_flow(&own, &flow);
	count_nat(NAT_FLOW_NEW);
	return TC_NEXT;
}

/* What is said about a packet that was handed on. */
struct handed {
	struct address node, pod;
	struct endpoint frontend;
};

INLINE bool read_handed_ipv4(struct __sk_buff *skb, __u32 offset, struct handed *handed)
{
	struct direct_ipv4 outer;

	if (skb_load_bytes(skb, offset, &outer, sizeof(outer)) ||
	    outer.header.version_and_words != DIRECT_VERSION_AND_WORDS ||
	    outer.header.protocol != PROTOCOL_IPIP || outer.header.fragment & IPV4_FRAGMENT ||
	    outer.option != OPTION_EXPERIMENT || outer.option_bytes != OPTION_BYTES)
		return false;
	mapped(&handed->node, outer.header.source);
	mapped(&handed->pod, outer.header.destination);
	mapped((struct address *)handed->frontend.address, outer.address);
	handed->frontend.port = outer.port;
	return true;
}

INLINE bool read_handed_ipv6(struct __sk_buff *skb, __u32 offset, struct handed *handed)
{
	struct direct_ipv6 outer;

	if (skb_load_bytes(skb, offset, &outer, sizeof(outer)) ||
	    outer.header.next_header != PROTOCOL_DESTINATION ||
	    outer.next_header != PROTOCOL_IPV6 || outer.words != DIRECT_WORDS ||
	    outer.option != OPTION_EXPERIMENT_V6 || outer.option_bytes != OPTION_BYTES_V6)
		return false;
	__builtin_memcpy(&handed->node, outer.header.source, ADDRESS_BYTES);
	__builtin_memcpy(&handed->pod, outer.header.destination, ADDRESS_BYTES);
	__builtin_memcpy(handed->frontend.address, outer.address, ADDRESS_BYTES);
	handed->frontend.port = outer.port;
	return true;
}

/* Reads what wraps a packet. False: nothing that hands it on. */
static __attribute__((noinline)) bool read_handed(struct __sk_buff *skb, __u32 offset,
						  struct handed *handed)
{
	if (skb->protocol == ETHERNET_IPV4)
		return read_handed_ipv4(skb, offset, handed);
	return skb->protocol == ETHERNET_IPV6 && read_handed_ipv6(skb, offset, handed);
}

/* Whether a node of the cluster hands a packet on as it would. */
INLINE bool is_believed(const struct handed *handed, const struct packet *inner)
{
	__u32 *host = find_direct_host(&handed->node);

	return host && *host & DIRECT_NODE && !find_direct_host(&inner->source) &&
	       is_same_address(&inner->destination, &handed->pod) &&
	       (inner->protocol == PROTOCOL_TCP || inner->protocol == PROTOCOL_UDP);
}

/* Unwraps what another node handed on to a pod of this one. What is within is read into the caller's
 * memory: all functions on the way have little together.
 */
GLOBAL int take_over(struct __sk_buff *skb, struct segment *inner, struct flow_key *key)
{
	struct nat_link *link = find_nat_link(skb);
	struct handed handed = {};

	if (!link || !inner || !key)
		return TC_NEXT;
	__u16 family = skb->protocol;
	__u32 bytes = direct_bytes(family);
	__u32 offset = link->flags & NAT_LINK_ETHERNET ? LINK_BYTES : 0;
	if (!read_handed(skb, offset, &handed) || !is_own_pod(&handed.pod))
		return TC_NEXT;
	*inner = (struct segment){ .offset = offset + bytes };
	if (!read_segment(skb, family, inner) || !is_believed(&handed, &inner->packet) ||
	    !read_key(skb, inner, ENTERING, key))
		return drop_nat(NAT_DROP_FORGED);
	if (skb_adjust_room(skb, -(__s32)bytes, BPF_ADJ_ROOM_MAC, 0))
		return drop_nat(NAT_DROP_CUT);
	if (inner->packet.later_fragment)
		return TC_NEXT;
	return note_handed(key, &handed.frontend, inner->tcp_flags, now_s());
}

/* Lets the endpoint of a flow that is handed on announce segments that fit the outer packet. Who
 * does not begin its options with their size is left to learn it from an error.
 */
GLOBAL int lower_segment_size(struct __sk_buff *skb, __u32 offset, __u32 bytes)
{
	struct {
		struct tcp header;
		__u8 option, option_bytes;
		__u16 bytes;
	} begin;

	if (skb_load_bytes(skb, offset, &begin, sizeof(begin)) ||
	    begin.header.words >> 4 <= sizeof(struct tcp) / 4 ||
	    begin.option != TCP_OPTION_SEGMENT_SIZE ||
	    begin.option_bytes != TCP_OPTION_SEGMENT_SIZE_BYTES ||
	    BE16(begin.bytes) < SEGMENT_SIZE_MIN + bytes)
		return 0;
	__u16 lower = BE16(BE16(begin.bytes) - bytes);
	if (l4_csum_replace(skb, offset + TCP_CHECKSUM, begin.bytes, lower, sizeof(lower)))
		return 0;
	skb_store_bytes(skb, offset + __builtin_offsetof(typeof(begin), bytes), &lower,
			sizeof(lower), 0);
	return 0;
}
