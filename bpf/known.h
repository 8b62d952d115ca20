/* What is known of a packet's flow, and whether the packet goes on with it: the same to all programs
 * that translate packets of Services, at whichever hook.
 */
#pragma once

#include "tracking.h"

INLINE bool has_ports(__u8 protocol)
{
	return protocol == PROTOCOL_TCP || protocol == PROTOCOL_UDP || protocol == PROTOCOL_SCTP;
}

/* Where the checksum over ports and addresses is, from the start of its header; 0: there is none
 * (SCTP's covers no addresses).
 */
INLINE __u32 checksum_offset(__u8 protocol)
{
	switch (protocol) {
	case PROTOCOL_TCP:
		return TCP_CHECKSUM;
	case PROTOCOL_UDP:
		return UDP_CHECKSUM;
	case PROTOCOL_ICMPV6:
		return ICMP_CHECKSUM;
	default:
		return 0;
	}
}

/* Begins what a flow is found by with all but the ports. */
INLINE void begin_key(const struct segment *segment, __u8 side, struct flow_key *key)
{
	__builtin_memcpy(key->source, &segment->packet.source, ADDRESS_BYTES);
	__builtin_memcpy(key->destination, &segment->packet.destination, ADDRESS_BYTES);
	key->protocol = segment->packet.protocol;
	key->side = side;
	key->zero[0] = 0;
	key->zero[1] = 0;
}

/* Ends it with the first bytes of the protocol's header. */
INLINE void take_ports(const __u8 *header, struct flow_key *key)
{
	__builtin_memcpy(&key->source_port, header, 2);
	__builtin_memcpy(&key->destination_port, header + 2, 2);
}

/* The side on which the packets of a flow leave. */
INLINE __u8 side_of(const struct flow *flow)
{
	return flow->flags & (FLOW_DIRECT | FLOW_MASQUERADED) ? LEAVING | MASQUERADED : LEAVING;
}

/* Writes the entries by which packets of a flow leave, where they are not there: new, or pushed
 * out of a full map.
 */
GLOBAL int write_leaving(const struct flow_key *own, const struct flow *flow, __u32 now)
{
	struct flow_key key = {};
	struct flow value = { .used_s = now };

	if (!own || !flow)
		return 0;
	value.flags = FLOW_BACK | (flow->flags & (FLOW_ANSWERED | FLOW_RETURN));
	key.side = side_of(flow);
	key.protocol = own->protocol;
	value.port = own->destination_port;
	__builtin_memcpy(key.source, flow->address, ADDRESS_BYTES);
	__builtin_memcpy(key.destination, own->source, ADDRESS_BYTES);
	key.source_port = flow->port;
	key.destination_port = own->source_port;
	__builtin_memcpy(value.address, own->destination, ADDRESS_BYTES);
	struct flow *known = find_flow(&key);
	/* One of an earlier flow between the same ends knows of answers that this one has not had. */
	if (!known || known->flags != value.flags ||
	    !is_leading_to(known, own->destination, own->destination_port))
		write_flow(&key, &value);
	if (!(flow->flags & (FLOW_DIRECT | FLOW_MASQUERADED)))
		return 0;
	__builtin_memcpy(key.source, own->source, ADDRESS_BYTES);
	__builtin_memcpy(key.destination, flow->address, ADDRESS_BYTES);
	key.source_port = own->source_port;
	key.destination_port = flow->port;
	__builtin_memcpy(value.address, flow->other, ADDRESS_BYTES);
	__builtin_memcpy(value.other, own->destination, ADDRESS_BYTES);
	value.port = flow->other_port;
	value.other_port = own->destination_port;
	value.flags = flow->flags & (FLOW_DIRECT | FLOW_MASQUERADED);
	known = find_flow(&key);
	if (!known || known->port != value.port || known->flags != value.flags ||
	    (value.flags & FLOW_DIRECT && !is_same_client(known, &value)))
		write_flow(&key, &value);
	return 0;
}

/* The port that an endpoint has in its slot. */
INLINE __u16 slot_port(const struct flow *flow)
{
	return flow->flags & FLOW_SAME_PORT ? 0 : flow->port;
}

INLINE bool begins(const struct segment *segment)
{
	const __u8 all = TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN;

	return segment->packet.protocol != PROTOCOL_TCP || (segment->tcp_flags & all) == TCP_SYN;
}

/* Whether a client's port that had a flow is used for another one. Its system lets go of a port
 * only when it knows that the connection is over, whatever of its end was seen here.
 */
INLINE bool is_used_again(const struct flow *flow, const struct segment *segment)
{
	const __u32 end = FLOW_FIN_SENT | FLOW_FIN_ANSWERED | FLOW_RESET;

	return segment->tcp_flags & TCP_SYN && flow->flags & end;
}

/* Whether an answer to a port of the node is one of the flow that had it. Another backend may have
 * given the port to a connection since.
 */
INLINE bool goes_back(struct flow *flow, const struct segment *segment,
		      const struct flow_key *key, __u32 now)
{
	if (flow->used_s == now && !(segment->tcp_flags & TCP_SYN))
		return true;
	struct flow *owner = find_owner(key, flow, now);
	if (!owner || is_used_again(owner, segment))
		return false;
	flow->used_s = now;
	return true;
}

/* Whether a datagram of a known flow is the next backend's, while that takes over: it hears when an
 * endpoint goes, of which nobody tells the maps here any more. The flow stays, so that answers to
 * what was led before leave as the Service's.
 */
INLINE bool is_handed_over(const struct flow *flow, const struct flow_key *key)
{
	if (key->protocol != PROTOCOL_UDP || key->side != ENTERING || flow->flags & FLOW_BACK)
		return false;
	struct nat_settings *settings = find_nat_settings();
	return settings && settings->flags & NAT_DRAINING;
}

/* Whether a flow that was found goes on with this packet; then it is used by it. Not inline: what a
 * program and all that it calls have on their stacks, each rounded up to 32 bytes by Linux 6.1, is
 * 512 bytes at most, and so much `service_enter` has with what it calls below.
 */
GLOBAL int goes_on(struct flow *flow, const struct segment *segment, const struct flow_key *key,
		   __u32 now)
{
	if (!flow || !segment || !key)
		return false;
	if (key->side != ENTERING)
		return true;
	if (flow->flags & FLOW_BACK)
		return goes_back(flow, segment, key, now);
	if (has_expired(flow, key->protocol, now))
		return false;
	if (key->protocol == PROTOCOL_UDP &&
	    !is_member(flow->id, (struct address *)flow->address, slot_port(flow)))
		return false;
	if (key->protocol == PROTOCOL_TCP) {
		if (is_used_again(flow, segment))
			return false;
		follow_tcp(flow, segment->tcp_flags, FLOW_FIN_SENT);
	}
	/* Answers go elsewhere: who goes on has had one. */
	if (flow->flags & FLOW_DIRECT && !(segment->tcp_flags & TCP_SYN))
		set_flags(flow, FLOW_ANSWERED);
	if (flow->used_s != now) {
		flow->used_s = now;
		write_leaving(key, flow, now);
	}
	return true;
}

/* Writes the entry by which answers to a masqueraded flow enter, where it was pushed out. */
GLOBAL int write_entering(const struct flow_key *key, const struct flow *flow, __u32 now)
{
	struct flow_key back = { .side = ENTERING };
	struct flow value = { .flags = FLOW_BACK, .used_s = now };

	if (!key || !flow)
		return 0;
	back.protocol = key->protocol;
	__builtin_memcpy(back.source, key->destination, ADDRESS_BYTES);
	__builtin_memcpy(back.destination, flow->address, ADDRESS_BYTES);
	back.source_port = key->destination_port;
	back.destination_port = flow->port;
	__builtin_memcpy(value.address, key->source, ADDRESS_BYTES);
	__builtin_memcpy(value.other, flow->other, ADDRESS_BYTES);
	value.port = key->source_port;
	value.other_port = flow->other_port;
	return claim_flow(&back, &value);
}

/* Whether an entry that was found for a leaving packet still holds; then it is used by it. */
INLINE bool holds(struct flow *flow, const struct segment *segment, const struct flow_key *key,
		  __u32 now)
{
	__u8 tcp_flags = key->protocol == PROTOCOL_TCP ? segment->tcp_flags : 0;
	bool back = flow->flags & FLOW_BACK;

	if (key->side & FRAGMENTS)
		return true;
	bool tells = back && (!(flow->flags & FLOW_ANSWERED) || tcp_flags & (TCP_FIN | TCP_RST));
	if (flow->used_s == now && !tells)
		return true;
	struct flow *owner = find_owner(key, flow, now);
	if (!owner)
		return false;
	flow->used_s = now;
	if (!back) {
		if (flow->port)
			write_entering(key, flow, now);
		return true;
	}
	set_flags(flow, FLOW_ANSWERED);
	owner->used_s = now;
	set_flags(owner, FLOW_ANSWERED);
	if (key->protocol == PROTOCOL_TCP)
		follow_tcp(owner, tcp_flags, FLOW_FIN_ANSWERED);
	return true;
}
