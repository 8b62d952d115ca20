/* The flows of Services that are translated packet by packet, what is known of links, and when a
 * flow has ended. What the entries mean stands in crates/ebpf-abi/src/flows.rs.
 */
#pragma once

#include "flows.h"
#include "packet.h"
#include "services.h"

/* By index of the link. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_HASH);
	MAP_NUMBER(max_entries, NAT_LINKS_MAX);
	MAP_NUMBER(map_flags, BPF_F_NO_PREALLOC);
	MAP_NUMBER(pinning, PINNED_BY_NAME);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, struct nat_link);
} nat_links SEC(".maps");

struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_ARRAY);
	MAP_NUMBER(max_entries, 1);
	MAP_NUMBER(pinning, PINNED_BY_NAME);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, struct nat_settings);
} nat_settings SEC(".maps");

/* Written once and kept as long as the flows. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_ARRAY);
	MAP_NUMBER(max_entries, 1);
	MAP_NUMBER(pinning, PINNED_BY_NAME);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, struct nat_secret);
} nat_secret SEC(".maps");

/* By reason, one count a processor. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	MAP_NUMBER(max_entries, NAT_REASONS);
	MAP_NUMBER(pinning, PINNED_BY_NAME);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, __u64);
} nat_counters SEC(".maps");

INLINE void count_nat(enum nat_reason reason)
{
	__u32 key = reason;
	__u64 *counter = map_lookup(&nat_counters, &key);

	if (counter)
		*counter += 1;
}

INLINE int drop_nat(enum nat_reason reason)
{
	count_nat(reason);
	return TC_DROP;
}

INLINE struct nat_settings *find_nat_settings(void)
{
	__u32 key = 0;

	return map_lookup(&nat_settings, &key);
}

INLINE struct nat_link *find_nat_link(struct __sk_buff *skb)
{
	__u32 index = skb->ifindex;

	return map_lookup(&nat_links, &index);
}

/* The address of this node that flows are masqueraded with which leave by a link. */
INLINE bool masquerade_address(const struct nat_link *link, __u16 family, struct address *address)
{
	if (family == ETHERNET_IPV4) {
		mapped(address, *(const __u32 *)link->ipv4);
		return address->words[3] != 0;
	}
	__builtin_memcpy(address, link->ipv6, ADDRESS_BYTES);
	return (address->halves[0] | address->halves[1]) != 0;
}

INLINE bool is_leading_to(const struct flow *flow, const __u8 *address, __u16 port)
{
	return flow->port == port && is_same_address((const struct address *)flow->address,
						     (const struct address *)address);
}

/* Whether two entries are of the same client and frontend. */
INLINE bool is_same_client(const struct flow *one, const struct flow *other)
{
	return one->other_port == other->other_port &&
	       is_leading_to(one, other->address, other->port) &&
	       is_same_address((const struct address *)one->other,
			       (const struct address *)other->other);
}

INLINE __u32 lifetime_s(__u8 protocol, __u32 flags)
{
	if (protocol == PROTOCOL_UDP)
		return flags & FLOW_ANSWERED ? UDP_ANSWERED_S : UDP_UNANSWERED_S;
	if (protocol == PROTOCOL_SCTP)
		return SCTP_S;
	if (flags & FLOW_RESET || (flags & FLOW_FIN_SENT && flags & FLOW_FIN_ANSWERED))
		return TCP_CLOSED_S;
	if (flags & (FLOW_FIN_SENT | FLOW_FIN_ANSWERED))
		return TCP_HALF_CLOSED_S;
	return flags & FLOW_ANSWERED ? TCP_ESTABLISHED_S : TCP_UNANSWERED_S;
}

INLINE bool has_expired(const struct flow *flow, __u8 protocol, __u32 now)
{
	return now - flow->used_s > lifetime_s(protocol, flow->flags);
}

INLINE bool has_closed(const struct flow *flow)
{
	return flow->flags & FLOW_RESET ||
	       (flow->flags & FLOW_FIN_SENT && flow->flags & FLOW_FIN_ANSWERED);
}

/* Says more of a flow. Both directions may say something at once, on two processors. */
INLINE void set_flags(struct flow *flow, __u32 flags)
{
	if ((flow->flags & flags) != flags)
		__sync_fetch_and_or(&flow->flags, flags);
}

/* What a packet of TCP says of its connection. A reset that was not believed is taken back by
 * whatever follows it.
 */
INLINE void follow_tcp(struct flow *flow, __u8 tcp_flags, __u32 fin)
{
	if (tcp_flags & TCP_RST)
		set_flags(flow, FLOW_RESET);
	else if (flow->flags & FLOW_RESET)
		__sync_fetch_and_and(&flow->flags, ~FLOW_RESET);
	if (tcp_flags & TCP_FIN)
		set_flags(flow, fin);
}

/* Finds the flow itself: what a client sent to a frontend, if that still is known. Inline: see
 * goes_on.
 */
INLINE struct flow *find_own(const struct flow_key *entering, __u32 now)
{
	struct flow *flow = find_flow(entering);

	if (!flow || flow->flags & FLOW_BACK || has_expired(flow, entering->protocol, now))
		return NULL;
	return flow;
}

/* The key of the flow itself, from any of the entries that lead to it. */
GLOBAL int own_key(const struct flow_key *key, const struct flow *flow, struct flow_key *own)
{
	if (!key || !flow || !own)
		return 0;
	own->protocol = key->protocol;
	own->side = ENTERING;
	own->zero[0] = 0;
	own->zero[1] = 0;
	if (key->side == ENTERING) {
		/* The endpoint to the node. */
		__builtin_memcpy(own->source, flow->address, ADDRESS_BYTES);
		__builtin_memcpy(own->destination, flow->other, ADDRESS_BYTES);
		own->source_port = flow->port;
		own->destination_port = flow->other_port;
	} else if (flow->flags & FLOW_BACK) {
		/* The endpoint to the client. */
		__builtin_memcpy(own->source, key->destination, ADDRESS_BYTES);
		__builtin_memcpy(own->destination, flow->address, ADDRESS_BYTES);
		own->source_port = key->destination_port;
		own->destination_port = flow->port;
	} else {
		/* The client to the endpoint. */
		__builtin_memcpy(own->source, key->source, ADDRESS_BYTES);
		__builtin_memcpy(own->destination, flow->other, ADDRESS_BYTES);
		own->source_port = key->source_port;
		own->destination_port = flow->other_port;
	}
	return 0;
}

/* Finds the flow itself by one of its other entries, if it still leads to the entry's endpoint:
 * an entry that outlived its flow must not touch what has the same ports by chance.
 */
static __attribute__((noinline)) struct flow *find_owner(const struct flow_key *key,
							 const struct flow *flow, __u32 now)
{
	struct flow_key own = {};

	own_key(key, flow, &own);
	struct flow *owner = find_own(&own, now);
	if (!owner)
		return NULL;
	/* Another port of the node is its now. */
	if (key->side == ENTERING && owner->other_port != key->destination_port)
		return NULL;
	bool back = flow->flags & FLOW_BACK;
	const __u8 *address = back ? key->source : key->destination;
	__u16 port = back ? key->source_port : key->destination_port;
	return is_leading_to(owner, address, port) ? owner : NULL;
}
