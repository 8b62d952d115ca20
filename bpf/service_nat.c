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
 * Undone: direct server return, since an option or an encapsulation would have to be understood by
 * the endpoint's node, whatever its backend; a client that reaches one endpoint from the same port
 * directly and by a Service that keeps its source gets all answers from the Service.
 */
#include "refuse.h"

INLINE struct nat_link *find_nat_link(struct __sk_buff *skb)
{
	__u32 index = skb->ifindex;

	return map_lookup(&nat_links, &index);
}

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
		value.flags = flow->flags & (FLOW_MASQUERADED | FLOW_BACK);
	key.side |= FRAGMENTS;
	key.source_port = segment->identification;
	key.destination_port = segment->identification >> 16;
	__builtin_memcpy(value.address, flow->address, ADDRESS_BYTES);
	map_update(&flows, &key, &value, BPF_ANY);
}

/* Marks what enters of a masqueraded flow: who only goes by shall know it where it leaves. */
INLINE void mark_masqueraded(struct __sk_buff *skb, const struct flow *flow, __u8 side)
{
	if (!(side & LEAVING) && flow->flags & (FLOW_MASQUERADED | FLOW_BACK))
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
static __attribute__((noinline)) int translate(struct __sk_buff *skb,
					       const struct segment *segment,
					       const struct flow_key *key,
					       const struct flow *flow, __u32 now)
{
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

/* The side on which the packets of a flow leave. */
INLINE __u8 side_of(const struct flow *flow)
{
	return flow->flags & FLOW_MASQUERADED ? LEAVING | MASQUERADED : LEAVING;
}

/* Writes the entries by which packets of a flow leave, where they are not there: new, or pushed
 * out of a full map.
 */
GLOBAL int write_leaving(const struct flow_key *own, const struct flow *flow, __u32 now)
{
	struct flow_key key = {};
	struct flow value = { .flags = FLOW_BACK, .used_s = now };

	if (!own || !flow)
		return 0;
	key.side = side_of(flow);
	key.protocol = own->protocol;
	value.port = own->destination_port;
	__builtin_memcpy(key.source, flow->address, ADDRESS_BYTES);
	__builtin_memcpy(key.destination, own->source, ADDRESS_BYTES);
	key.source_port = flow->port;
	key.destination_port = own->source_port;
	__builtin_memcpy(value.address, own->destination, ADDRESS_BYTES);
	struct flow *known = map_lookup(&flows, &key);
	if (!known || !is_leading_to(known, own->destination, own->destination_port))
		map_update(&flows, &key, &value, BPF_ANY);
	if (!(flow->flags & FLOW_MASQUERADED))
		return 0;
	__builtin_memcpy(key.source, own->source, ADDRESS_BYTES);
	__builtin_memcpy(key.destination, flow->address, ADDRESS_BYTES);
	key.source_port = own->source_port;
	key.destination_port = flow->port;
	__builtin_memcpy(value.address, flow->other, ADDRESS_BYTES);
	__builtin_memcpy(value.other, own->destination, ADDRESS_BYTES);
	value.port = flow->other_port;
	value.other_port = own->destination_port;
	value.flags = FLOW_MASQUERADED;
	known = map_lookup(&flows, &key);
	if (!known || known->port != value.port)
		map_update(&flows, &key, &value, BPF_ANY);
	return 0;
}

/* The port that an endpoint has in its slot. */
INLINE __u16 slot_port(const struct flow *flow)
{
	return flow->flags & FLOW_SAME_PORT ? 0 : flow->port;
}

/* Whether a flow that was found goes on with this packet; then it is used by it. */
INLINE bool goes_on(struct flow *flow, const struct segment *segment, const struct flow_key *key,
		    __u32 now)
{
	if (key->side != ENTERING)
		return true;
	if (flow->flags & FLOW_BACK) {
		if (flow->used_s != now && !find_owner(key, flow, now))
			return false;
		flow->used_s = now;
		return true;
	}
	if (has_expired(flow, key->protocol, now))
		return false;
	if (key->protocol == PROTOCOL_UDP &&
	    !is_member(flow->id, (struct address *)flow->address, slot_port(flow)))
		return false;
	if (key->protocol == PROTOCOL_TCP) {
		if (segment->tcp_flags & TCP_SYN && has_closed(flow))
			return false;
		follow_tcp(flow, segment->tcp_flags, FLOW_FIN_SENT);
	}
	if (flow->used_s != now) {
		flow->used_s = now;
		write_leaving(key, flow, now);
	}
	return true;
}

/* Whether the client's port leads to this endpoint already, by another frontend: the endpoint
 * would take both for one connection.
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
	struct flow *known = map_lookup(&flows, &key);
	if (!known || is_leading_to(known, own->destination, own->destination_port))
		return false;
	return find_owner(&key, known, now) != NULL;
}

/* Leads a new flow to an endpoint, by what the Service says. */
static __attribute__((noinline)) enum answer lead(const struct flow_key *key,
						  const struct service *service, bool outside,
						  struct flow *flow)
{
	const struct address *client = (const struct address *)key->source;
	struct endpoint endpoint = {};
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
		flow->flags |= FLOW_MASQUERADED;
	return CHOSEN;
}

INLINE bool begins(const struct segment *segment)
{
	const __u8 all = TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN;

	return segment->packet.protocol != PROTOCOL_TCP || (segment->tcp_flags & all) == TCP_SYN;
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
	if (!service)
		return TC_NEXT;
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
	map_update(&flows, key, &flow, BPF_ANY);
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
	struct flow *flow = map_lookup(&flows, key);
	if (!flow && key->side == LEAVING && is_made_here(skb)) {
		key->side |= MASQUERADED;
		flow = map_lookup(&flows, key);
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
static __attribute__((noinline)) int translate_error(struct __sk_buff *skb,
						     const struct segment *outer, __u8 side,
						     __u32 now)
{
	const struct packet *packet = &outer->packet;
	struct flow_key key = { .side = side };
	struct segment about = { .offset = packet->payload_offset + ICMP_BYTES };
	const struct packet *inner = &about.packet;
	__u8 type;

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
	struct flow_key key;

	if (!link || !read_frame(skb, link, ENTERING, &segment, &key))
		return TC_NEXT;
	bool outside = !(link->flags & NAT_LINK_POD);
	__u32 now = now_s();
	if (is_icmp(segment.packet.protocol))
		return translate_error(skb, &segment, ENTERING, now);
	struct flow *flow = map_lookup(&flows, &key);
	if (flow && goes_on(flow, &segment, &key, now))
		return translate(skb, &segment, &key, flow, now);
	return admit(skb, &segment, &key, outside, now);
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

/* Whether a port of the node can be had for a flow: nobody has it towards this endpoint, or whoever
 * had it has ended.
 */
GLOBAL int take_port(const struct flow_key *wanted, const struct flow *flow, __u32 now)
{
	if (!wanted || !flow)
		return false;
	/* Linux 6.1 takes entries from a function's own stack alone. */
	struct flow_key back = *wanted;
	struct flow value = *flow;
	if (map_update(&flows, &back, &value, BPF_NOEXIST) == 0)
		return true;
	struct flow *known = map_lookup(&flows, &back);
	if (known && find_owner(&back, known, now))
		return false;
	return map_update(&flows, &back, &value, BPF_ANY) == 0;
}

/* Chooses the address and the port of this node that a flow is masqueraded with, and writes the
 * entry by which its answers enter. The ports are nobody else's, neither of this node's own
 * connections nor of node ports; SCTP keeps the client's, which its checksum covers. Answers 0, or
 * why there is none.
 */
static __attribute__((noinline)) int masquerade(const struct flow_key *key,
						const struct nat_link *link, __u16 family,
						struct flow *flow, __u32 now)
{
	struct flow_key back = { .protocol = key->protocol, .side = ENTERING };
	struct flow value = { .flags = FLOW_BACK, .used_s = now };
	struct nat_settings *settings = find_nat_settings();
	struct flow *owner = find_owner(key, flow, now);
	struct address own;

	if (!owner || !settings || settings->port_count == 0)
		return NAT_DROP_PORTS;
	if (!masquerade_address(link, family, &own))
		return NAT_DROP_ADDRESS;
	__builtin_memcpy(back.source, key->destination, ADDRESS_BYTES);
	__builtin_memcpy(back.destination, &own, ADDRESS_BYTES);
	back.source_port = key->destination_port;
	__builtin_memcpy(value.address, key->source, ADDRESS_BYTES);
	__builtin_memcpy(value.other, flow->other, ADDRESS_BYTES);
	value.port = key->source_port;
	value.other_port = flow->other_port;
	__builtin_memcpy(owner->other, &own, ADDRESS_BYTES);
	__u32 from = random_u32();
	for (__u32 n = 0; n < PORT_TRIES_MAX; n++) {
		__u16 port = settings->port_first + (from + n) % settings->port_count;
		back.destination_port = BE16(port);
		if (key->protocol == PROTOCOL_SCTP)
			back.destination_port = key->source_port;
		/* First, so that the port is this flow's from the moment that it is taken. */
		owner->other_port = back.destination_port;
		if (take_port(&back, &value, now)) {
			__builtin_memcpy(flow->address, &own, ADDRESS_BYTES);
			flow->port = back.destination_port;
			return 0;
		}
	}
	owner->other_port = 0;
	return NAT_DROP_PORTS;
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
	return map_update(&flows, &back, &value, BPF_NOEXIST);
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
	flow->flags |= FLOW_ANSWERED;
	owner->used_s = now;
	owner->flags |= FLOW_ANSWERED;
	if (key->protocol == PROTOCOL_TCP)
		follow_tcp(owner, tcp_flags, FLOW_FIN_ANSWERED);
	return true;
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
	struct flow *flow = map_lookup(&flows, &key);
	if (!flow && is_made_here(skb)) {
		key.side |= MASQUERADED;
		flow = map_lookup(&flows, &key);
	}
	if (!flow || !holds(flow, &segment, &key, now))
		return TC_NEXT;
	if (flow->flags & FLOW_MASQUERADED && flow->port == 0) {
		int reason = masquerade(&key, link, segment.packet.family, flow, now);
		if (reason)
			return drop_nat(reason);
	}
	return translate(skb, &segment, &key, flow, now);
}

char license_text[] SEC("license") = "Dual BSD/GPL";
