/* Services packet by packet, at the hook `tc`: of pods at their links, of everybody else at the
 * uplink and the tunnels. What processes of this node connect to is translated at their sockets
 * (socket_services.c).
 *
 * `service_enter` gives packets their destination, `service_leave` their source; see tracking.h.
 * In between everything is the kernel's own: routes, neighbours, MTU, fragments, filters. Its
 * connection tracking sees both directions between the same two ends, so that to it the flow was
 * never translated: nothing is INVALID, and a masquerade of pods that talk to the outside works on
 * top. All of it returns TC_NEXT, for other programs of the hook.
 *
 * In between a masqueraded flow looks as if the client talked to the endpoint itself, which it may
 * do at the same time and from the same port. So packets of masqueraded flows carry a mark from
 * where they enter to where they leave; by it the nftables table lets them be tracked apart.
 *
 * Who is answered past this node: see direct.h.
 *
 * Undone: a client that reaches one endpoint from the same port directly and by a Service that
 * keeps its source gets all answers from the Service.
 */
#include "direct.h"
#include "siphash.h"

/* Reads a packet of a link and what it is found by. False: not for us. */
INLINE bool read_frame(struct __sk_buff *skb, const struct nat_link *link, __u8 side,
		       struct segment *segment, struct flow_key *key)
{
	__u16 family = skb->protocol;

	/* Tagged: of another link upon this one. */
	if (skb->vlan_present || (family != ETHERNET_IPV4 && family != ETHERNET_IPV6))
		return false;
	segment->offset = link->flags & NAT_LINK_ETHERNET ? LINK_BYTES : 0;
	if (!read_segment(skb, family, segment))
		return false;
	__u8 protocol = segment->packet.protocol;
	if (is_icmp(protocol))
		return !segment->packet.later_fragment;
	return has_ports(protocol) && read_key(skb, segment, side, key);
}

/* Remembers for the later fragments of a packet what became of the first. */
static __attribute__((noinline)) void remember_fragments(const struct segment *segment,
							 const struct flow_key *first,
							 const struct flow *flow, __u32 now)
{
	struct flow_key key = *first;
	struct flow value = { .used_s = now };

	/* For their mark. */
	if (!(key.side & LEAVING))
		value.flags = flow->flags & (FLOW_DIRECT | FLOW_MASQUERADED | FLOW_BACK);
	key.side |= FRAGMENTS;
	key.source_port = segment->identification;
	key.destination_port = segment->identification >> 16;
	__builtin_memcpy(value.address, flow->address, ADDRESS_BYTES);
	write_flow(&key, &value);
}

/* Marks what enters of a flow that does not leave as it is: who only goes by shall know it where it
 * leaves.
 */
INLINE void mark_masqueraded(struct __sk_buff *skb, const struct flow *flow, __u8 side)
{
	if (!(side & LEAVING) && flow->flags & (FLOW_DIRECT | FLOW_MASQUERADED | FLOW_BACK))
		skb->mark |= NAT_MARK;
}

/* The side on which a packet leaves, by its mark, which ends here. */
INLINE __u8 leaving_side(struct __sk_buff *skb)
{
	if (!(skb->mark & NAT_MARK))
		return LEAVING;
	skb->mark &= ~NAT_MARK;
	return LEAVING | MASQUERADED;
}

/* Whether this node itself made a packet: then nothing could mark it. */
INLINE bool is_made_here(struct __sk_buff *skb)
{
	return skb->ingress_ifindex == 0;
}

/* Writes what a flow says into a packet. */
GLOBAL int translate(struct __sk_buff *skb, const struct segment *segment,
		     const struct flow_key *key, const struct flow *flow, __u32 now)
{
	if (!segment || !key || !flow)
		return TC_NEXT;
	bool is_source = key->side & LEAVING;
	struct change change = {
		.from = (const struct address *)(is_source ? key->source : key->destination),
		.to = (const struct address *)flow->address,
		.from_port = is_source ? key->source_port : key->destination_port,
		.to_port = flow->port,
		.is_source = is_source,
	};

	mark_masqueraded(skb, flow, key->side);
	if (!rewrite_segment(skb, segment, &change))
		return drop_nat(NAT_DROP_CUT);
	if (segment->is_fragment && !segment->packet.later_fragment)
		remember_fragments(segment, key, flow, now);
	return TC_NEXT;
}

/* Whether the client's port leads to this endpoint already, by another frontend: the endpoint
 * would take both for one connection. One that is over is in nobody's way: what may still come of
 * it is answered by whom the ports belong to now.
 */
GLOBAL int is_taken(const struct flow_key *own, const struct flow *flow, __u32 now)
{
	struct flow_key key = {};

	if (!own || !flow)
		return false;
	key.side = side_of(flow);
	key.protocol = own->protocol;
	__builtin_memcpy(key.source, flow->address, ADDRESS_BYTES);
	__builtin_memcpy(key.destination, own->source, ADDRESS_BYTES);
	key.source_port = flow->port;
	key.destination_port = own->source_port;
	struct flow *known = find_flow(&key);
	if (!known || is_leading_to(known, own->destination, own->destination_port))
		return false;
	struct flow *owner = find_owner(&key, known, now);
	return owner && !has_closed(owner);
}

/* Leads a new flow to an endpoint, by what the Service says. */
GLOBAL enum answer lead(const struct flow_key *key, const struct service *service, bool outside,
			struct flow *flow)
{
	struct endpoint endpoint = {};

	if (!key || !service || !flow)
		return IGNORED;
	const struct address *client = (const struct address *)key->source;
	enum answer answer = choose(service, client, outside, &endpoint);

	if (answer != CHOSEN)
		return answer;
	__builtin_memcpy(flow->address, endpoint.address, ADDRESS_BYTES);
	flow->id = view_id(service, outside);
	flow->port = endpoint.port ? endpoint.port : key->destination_port;
	flow->flags = endpoint.port ? 0 : FLOW_SAME_PORT;
	/* What is for the node itself never leaves it. */
	if (needs_masquerade(service, outside, client, &endpoint) &&
	    !is_node_address((const struct address *)endpoint.address))
		flow->flags |= way_back(service, outside, client, &endpoint);
	return CHOSEN;
}

/* Somebody else begins a connection between the two ends of answers to a flow: a client connects to
 * an endpoint itself from a port by which it had it by a Service before (answers leave), or another
 * backend gives away a port of the node (answers enter). Those are no longer the flow's if it is
 * over: an endpoint that still keeps the old connection answers the new one, whose client alone can
 * make it forget.
 */
GLOBAL int forget_answers(const struct flow_key *begun, __u32 side, __u32 now)
{
	struct flow_key key = { .side = side };

	if (!begun)
		return 0;
	key.protocol = begun->protocol;
	__builtin_memcpy(key.source, begun->destination, ADDRESS_BYTES);
	__builtin_memcpy(key.destination, begun->source, ADDRESS_BYTES);
	key.source_port = begun->destination_port;
	key.destination_port = begun->source_port;
	struct flow *known = find_flow(&key);
	if (!known || !(known->flags & FLOW_BACK))
		return 0;
	struct flow *owner = find_owner(&key, known, now);
	if (!owner || has_closed(owner))
		forget_flow(&key);
	return 0;
}

/* Takes a new flow, where it is for a Service. What does not begin one is not ours: it goes on
 * untranslated, to the backend that saw its beginning or to be refused as unknown.
 */
static __attribute__((noinline)) int admit(struct __sk_buff *skb, const struct segment *segment,
					   const struct flow_key *key, bool outside, __u32 now)
{
	const struct address *source = (const struct address *)key->source;
	struct nat_settings *settings = find_nat_settings();
	struct flow flow = { .used_s = now };

	if (key->side != ENTERING || !begins(segment) || !settings ||
	    settings->flags & NAT_DRAINING)
		return TC_NEXT;
	struct service *service = find_service((const struct address *)key->destination,
					       key->destination_port, key->protocol);
	if (!service) {
		if (key->protocol == PROTOCOL_TCP)
			forget_answers(key, LEAVING, now);
		return TC_NEXT;
	}
	if (!is_source_allowed(service, source))
		return drop_nat(NAT_IGNORED);
	for (int n = 0; n < (int)CHOICES_MAX; n++) {
		enum answer answer = lead(key, service, outside, &flow);
		if (answer == REFUSED)
			return refuse(skb, segment, 0);
		if (answer != CHOSEN)
			return drop_nat(NAT_IGNORED);
		if (!is_taken(key, &flow, now))
			break;
		/* Of datagrams who was asked last answers. */
		if (n + 1 == (int)CHOICES_MAX && key->protocol != PROTOCOL_UDP)
			return drop_nat(NAT_DROP_TAKEN);
	}
	if (key->protocol == PROTOCOL_SCTP && flow.port != key->destination_port)
		return drop_nat(NAT_DROP_SCTP);
	write_leaving(key, &flow, now);
	write_flow(key, &flow);
	count_nat(NAT_FLOW_NEW);
	return translate(skb, segment, key, &flow, now);
}

INLINE bool is_error(__u16 family, __u8 type)
{
	if (family == ETHERNET_IPV4)
		return type == ICMP_UNREACHABLE || type == ICMP_TIME_EXCEEDED ||
		       type == ICMP_PARAMETER;
	return type >= ICMPV6_UNREACHABLE && type <= ICMPV6_PARAMETER;
}

/* Finds the flow that an ICMP error is about: the error goes the way of the answers to what it is
 * about.
 */
static __attribute__((noinline)) struct flow *find_by_error(struct __sk_buff *skb,
							    const struct packet *inner,
							    struct flow_key *key, __u32 now)
{
	__u16 ports[2];

	if (skb_load_bytes(skb, inner->payload_offset, ports, sizeof(ports)))
		return NULL;
	__builtin_memcpy(key->source, &inner->destination, ADDRESS_BYTES);
	__builtin_memcpy(key->destination, &inner->source, ADDRESS_BYTES);
	key->source_port = ports[1];
	key->destination_port = ports[0];
	key->protocol = inner->protocol;
	struct flow *flow = find_flow(key);
	if (!flow && key->side == LEAVING && is_made_here(skb)) {
		key->side |= MASQUERADED;
		flow = find_flow(key);
	}
	if (!flow || flow->port == 0)
		return NULL;
	if (key->side == ENTERING && !(flow->flags & FLOW_BACK))
		return has_expired(flow, key->protocol, now) ? NULL : flow;
	return find_owner(key, flow, now) ? flow : NULL;
}

/* An ICMP error about a packet of a flow: both headers are translated. Who sent it stays, unless
 * it is the end that is hidden, or the whole flow is masqueraded.
 */
GLOBAL int translate_error(struct __sk_buff *skb, const struct segment *outer, __u8 side, __u32 now)
{
	struct flow_key key = { .side = side };
	struct segment about = {};
	const struct packet *inner = &about.packet;
	__u8 type;

	if (!outer)
		return TC_NEXT;
	const struct packet *packet = &outer->packet;
	about.offset = packet->payload_offset + ICMP_BYTES;
	if (skb_load_bytes(skb, packet->payload_offset, &type, 1) ||
	    !is_error(packet->family, type))
		return TC_NEXT;
	if (!read_segment(skb, packet->family, &about) || inner->later_fragment ||
	    !has_ports(inner->protocol))
		return TC_NEXT;
	struct flow *flow = find_by_error(skb, inner, &key, now);
	if (!flow)
		return TC_NEXT;
	bool is_source = side & LEAVING;
	const struct address *from = is_source ? &inner->destination : &inner->source;
	struct change change = {
		.from = from,
		.to = (const struct address *)flow->address,
		.from_port = is_source ? key.source_port : key.destination_port,
		.to_port = flow->port,
		/* What the error is about went the other way. */
		.is_source = !is_source,
	};
	mark_masqueraded(skb, flow, side);
	if (!rewrite_inner(skb, outer, inner, &change))
		return drop_nat(NAT_DROP_CUT);
	change.is_source = is_source;
	change.from = is_source ? &packet->source : &packet->destination;
	if (!is_same_address(change.from, from) && !(flow->flags & FLOW_MASQUERADED))
		return TC_NEXT;
	return rewrite_segment(skb, outer, &change) ? TC_NEXT : drop_nat(NAT_DROP_CUT);
}

/* What comes into the node's stack; at the ingress of a link. */
SEC("classifier")
int service_enter(struct __sk_buff *skb)
{
	struct nat_link *link = find_nat_link(skb);
	struct segment segment = {};
	struct flow_key key = {};

	if (!link)
		return TC_NEXT;
	if (!read_frame(skb, link, ENTERING, &segment, &key))
		return link->flags & NAT_LINK_NODES ? take_over(skb, &segment, &key) : TC_NEXT;
	bool outside = !(link->flags & NAT_LINK_POD);
	__u32 now = now_s();
	if (is_icmp(segment.packet.protocol))
		return translate_error(skb, &segment, ENTERING, now);
	struct flow *flow = find_flow(&key);
	if (flow && is_handed_over(flow, &key))
		return TC_NEXT;
	if (flow && goes_on(flow, &segment, &key, now))
		return translate(skb, &segment, &key, flow, now);
	/* Whoever takes the new flow, what follows is no longer the old one's. */
	if (flow && (segment.tcp_flags & TCP_SYN || !(flow->flags & FLOW_BACK)))
		forget_flow(&key);
	return admit(skb, &segment, &key, outside, now);
}

/* What unused_s answers beside seconds. */
#define PORT_IN_USE 0
#define PORT_FREE (TCP_CLOSED_S + 1)

/* Whether a flow may have a port of the node that an entry is there for. Of a connection that is
 * over the endpoint may still keep the ports, and then it takes the first segment of another client
 * for an old one (RFC 7323, section 5.3). Such a port is left alone as long, and the answer is one
 * more than the seconds since then. The same client may have it at once.
 */
GLOBAL __u32 unused_s(const struct flow_key *wanted, const struct flow *flow, __u32 now)
{
	if (!wanted || !flow)
		return PORT_IN_USE;
	/* Linux 6.1 takes entries from a function's own stack alone. */
	struct flow_key back = *wanted;
	struct flow *known = find_flow(&back);
	if (!known || is_same_client(known, flow))
		return PORT_FREE;
	__u32 since_s = now - known->used_s;
	struct flow *owner = find_owner(&back, known, now);
	if (owner && !has_closed(owner))
		return PORT_IN_USE;
	if (back.protocol == PROTOCOL_TCP && since_s < TCP_CLOSED_S)
		return since_s + 1;
	return PORT_FREE;
}

INLINE void hash_address(struct siphash *state, const __u8 *bytes)
{
	const struct address *address = (const struct address *)bytes;

	siphash_word(state, address->halves[0]);
	siphash_word(state, address->halves[1]);
}

/* Where the search for a port begins: for the same client's port at the same endpoint at the same
 * one, so that an endpoint that still keeps the last connection of both sees the time stamps go on
 * (RFC 6191). Nobody can say where from what others got (RFC 6056 section 3.3.3).
 */
GLOBAL __u32 usual_offset(const struct flow_key *back, const struct flow *flow)
{
	__u32 only = 0;
	struct nat_secret *secret = map_lookup(&nat_secret, &only);
	struct siphash state;

	if (!back || !flow || !secret)
		return 0;
	siphash_begin(&state, secret->first, secret->second);
	hash_address(&state, back->source);
	hash_address(&state, flow->address);
	hash_address(&state, flow->other);
	__u64 ports = (__u64)back->source_port << 32 | (__u64)flow->port << 16 | flow->other_port;
	return siphash_end(&state, (__u64)back->protocol << 48 | ports, 3 * ADDRESS_BYTES + 7);
}

/* Chooses the address and the port of this node that a flow is masqueraded with, and writes the
 * entry by which its answers enter. The ports are nobody else's, neither of this node's own
 * connections nor of node ports; SCTP keeps the client's, which its checksum covers. Where all are
 * in use the one is taken that has been out of use the longest. Answers 0, or why there is none.
 */
GLOBAL int masquerade(const struct flow_key *key, const struct nat_link *link, __u16 family,
		      struct flow *flow, __u32 now)
{
	struct flow_key back = { .side = ENTERING };
	struct flow value = { .flags = FLOW_BACK, .used_s = now };
	struct nat_settings *settings = find_nat_settings();
	__u32 longest_s = PORT_IN_USE;
	__u16 spare = 0;

	if (!key || !link || !flow)
		return NAT_DROP_PORTS;
	struct flow *owner = find_owner(key, flow, now);
	back.protocol = key->protocol;
	if (!owner || !settings || settings->port_count == 0)
		return NAT_DROP_PORTS;
	if (!masquerade_address(link, family, (struct address *)back.destination))
		return NAT_DROP_ADDRESS;
	__builtin_memcpy(back.source, key->destination, ADDRESS_BYTES);
	back.source_port = key->destination_port;
	__builtin_memcpy(value.address, key->source, ADDRESS_BYTES);
	__builtin_memcpy(value.other, flow->other, ADDRESS_BYTES);
	value.port = key->source_port;
	value.other_port = flow->other_port;
	__builtin_memcpy(owner->other, back.destination, ADDRESS_BYTES);
	__u32 offset = usual_offset(&back, &value);
	for (__u32 n = 0; n < PORT_TRIES_MAX && longest_s < PORT_FREE; n++) {
		__u16 port = BE16(settings->port_first + offset % settings->port_count);
		back.destination_port = key->protocol == PROTOCOL_SCTP ? key->source_port : port;
		/* First, so that the port is this flow's from the moment that it is taken. */
		owner->other_port = back.destination_port;
		if (claim_flow(&back, &value) == 0)
			goto taken;
		__u32 found_s = unused_s(&back, &value, now);
		if (found_s > longest_s) {
			longest_s = found_s;
			spare = back.destination_port;
		}
		offset = n == 0 ? random_u32() : offset + 1;
	}
	back.destination_port = spare;
	owner->other_port = spare;
	if (longest_s == PORT_IN_USE || write_flow(&back, &value))
		return NAT_DROP_PORTS;
taken:
	__builtin_memcpy(flow->address, back.destination, ADDRESS_BYTES);
	flow->port = back.destination_port;
	return 0;
}

/* What leaves the node's stack; at the egress of a link. */
SEC("classifier")
int service_leave(struct __sk_buff *skb)
{
	struct nat_link *link = find_nat_link(skb);
	struct segment segment = {};
	struct flow_key key;

	if (!link)
		return TC_NEXT;
	__u8 side = leaving_side(skb);
	if (!read_frame(skb, link, side, &segment, &key))
		return TC_NEXT;
	__u32 now = now_s();
	if (is_icmp(segment.packet.protocol))
		return translate_error(skb, &segment, side, now);
	struct flow *flow = find_flow(&key);
	if (!flow && is_made_here(skb)) {
		key.side |= MASQUERADED;
		flow = find_flow(&key);
	}
	if (!flow || !holds(flow, &segment, &key, now)) {
		if (segment.packet.protocol == PROTOCOL_TCP && begins(&segment))
			forget_answers(&key, ENTERING, now);
		return TC_NEXT;
	}
	if (flow->flags & FLOW_DIRECT)
		return hand_on(skb, &segment, &key, flow, now);
	if (flow->flags & FLOW_RETURN && segment.tcp_flags & TCP_SYN)
		lower_segment_size(skb, segment.packet.payload_offset,
				   direct_bytes(segment.packet.family));
	if (flow->flags & FLOW_MASQUERADED && flow->port == 0) {
		int reason = masquerade(&key, link, segment.packet.family, flow, now);
		if (reason)
			return drop_nat(reason);
	}
	return translate(skb, &segment, &key, flow, now);
}

char license_text[] SEC("license") = "Dual BSD/GPL";
