/* Services of clients outside whose endpoint is on another node, before the kernel makes packets of
 * their frames: at the hook XDP of the uplink.
 *
 *     client C ──C→V──▶ uplink ──N→E──▶ endpoint E, or N→E [V] (C→E) where E answers C itself
 *              ◀──V→C── uplink ◀──E→N──
 *
 * What comes of a flow and leaves again by the same device is translated on both sides at once, by
 * the entries that `service_enter` and `service_leave` of service_nat.c would find, and sent. All
 * else passes to these two, as it came: other devices, fragments, options, errors, what is too large
 * or has no neighbour yet.
 *
 * They see the beginning of each flow, until the endpoint has answered, and each segment with SYN.
 * So a flow is chosen, refused, masqueraded and guarded in one place; the kernel's path and whatever
 * filters there decides on it; and what looks for endpoints that do not answer sees all handshakes.
 * Rules of others in that path do not see what follows.
 */
#include "known.h"
#include "outer.h"

/* Addresses and ports are first in a key. */
#define ENDS_BYTES __builtin_offsetof(struct flow_key, protocol)

/* Frames that were sent here, one count a processor. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	MAP_NUMBER(max_entries, 1);
	MAP_NUMBER(pinning, PINNED_BY_NAME);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, __u64);
} nat_xdp_sent SEC(".maps");

/* Reads the IP header of a frame. False: not for us. */
INLINE bool read_header(struct xdp_md *frame, struct packet *packet)
{
	void *end = (void *)(long)frame->data_end;
	struct ethernet *ethernet = (void *)(long)frame->data;

	if ((void *)(ethernet + 1) > end)
		return false;
	if (ethernet->protocol == ETHERNET_IPV4) {
		struct ipv4 *header = (void *)(ethernet + 1);
		return (void *)(header + 1) <= end && take_ipv4(header, LINK_BYTES, packet);
	}
	struct ipv6 *header = (void *)(ethernet + 1);
	return ethernet->protocol == ETHERNET_IPV6 && (void *)(header + 1) <= end &&
	       take_ipv6(header, LINK_BYTES, packet);
}

/* Where the header of the transport is in a plain packet. */
INLINE __u32 transport_offset(__u16 family)
{
	return LINK_BYTES + (family == ETHERNET_IPV4 ? sizeof(struct ipv4) : sizeof(struct ipv6));
}

/* Reads a plain frame and what it is found by. */
INLINE bool read_plain(struct xdp_md *frame, struct segment *segment, struct flow_key *key)
{
	const struct packet *packet = &segment->packet;

	if (!read_header(frame, &segment->packet) || !packet->plain ||
	    !has_ports(packet->protocol))
		return false;
	/* Looks like IPv4 to whoever knows the addresses alone. */
	if (packet->family == ETHERNET_IPV6 && is_mapped(&packet->source))
		return false;
	__u8 *header = (void *)(long)frame->data + transport_offset(packet->family);
	void *end = (void *)(long)frame->data_end;
	if (packet->protocol == PROTOCOL_TCP) {
		if ((void *)(header + TCP_FLAGS + 1) > end)
			return false;
		segment->tcp_flags = header[TCP_FLAGS];
	} else if ((void *)(header + PORTS_BYTES) > end) {
		return false;
	}
	begin_key(segment, ENTERING, key);
	take_ports(header, key);
	return true;
}

/* What the stack would look its way up by: a packet that has entered and not left. False: its frame
 * is cut off, or its way ends here.
 */
INLINE bool ask_for_way(struct xdp_md *frame, const struct flow_key *within,
			struct bpf_fib_lookup *way)
{
	void *begin = (void *)(long)frame->data, *end = (void *)(long)frame->data_end;
	struct ethernet *ethernet = begin;

	if ((void *)(ethernet + 1) > end)
		return false;
	way->ifindex = frame->ingress_ifindex;
	way->l4_protocol = within->protocol;
	way->sport = within->source_port;
	way->dport = within->destination_port;
	if (ethernet->protocol == ETHERNET_IPV4) {
		struct ipv4 *header = (void *)(ethernet + 1);
		if ((void *)(header + 1) > end || header->time_to_live <= 1)
			return false;
		way->family = AF_INET;
		way->tos = header->service;
		way->tot_len = BE16(header->bytes);
		way->ipv4_src = *(const __u32 *)(within->source + 12);
		way->ipv4_dst = *(const __u32 *)(within->destination + 12);
	} else {
		struct ipv6 *header = (void *)(ethernet + 1);
		if ((void *)(header + 1) > end || header->hop_limit <= 1)
			return false;
		way->family = AF_INET6;
		way->tot_len = BE16(header->payload_bytes) + sizeof(*header);
		__builtin_memcpy(way->ipv6_src, within->source, ADDRESS_BYTES);
		__builtin_memcpy(way->ipv6_dst, within->destination, ADDRESS_BYTES);
	}
	/* Shorter than it says. */
	return LINK_BYTES + way->tot_len <= frame->data_end - frame->data;
}

/* Whether a packet, larger by some bytes then, leaves by the device that it came by; and to whom. A
 * frame that was not for this node's own MAC address is the stack's to drop.
 */
INLINE bool find_way(struct xdp_md *frame, const struct flow_key *within, __u32 more_bytes,
		     struct bpf_fib_lookup *way)
{
	if (!ask_for_way(frame, within, way))
		return false;
	way->tot_len += more_bytes;
	if (fib_lookup(frame, way, sizeof(*way), 0) != BPF_FIB_LKUP_RET_SUCCESS ||
	    way->ifindex != frame->ingress_ifindex)
		return false;
	struct ethernet *ethernet = (void *)(long)frame->data;
	return (void *)(ethernet + 1) <= (void *)(long)frame->data_end &&
	       is_same_mac(ethernet->destination, way->smac);
}

/* Corrects a checksum by all that changed of addresses and ports. A datagram may have none. */
INLINE void correct(__u16 *checksum, const struct flow_key *before, const struct flow_key *after)
{
	bool is_datagram = before->protocol == PROTOCOL_UDP;

	if (is_datagram && *checksum == 0)
		return;
	__u16 sum = fold(csum_diff(before, ENDS_BYTES, after, ENDS_BYTES, (__u16) ~*checksum));
	*checksum = is_datagram && sum == 0 ? 0xffff : sum;
}

/* Writes the new ends into the header of the transport. */
INLINE bool rewrite_transport(__u8 *header, void *end, const struct flow_key *before,
			      const struct flow_key *after)
{
	__u16 *checksum;

	switch (before->protocol) {
	case PROTOCOL_TCP:
		checksum = (__u16 *)(header + TCP_CHECKSUM);
		break;
	case PROTOCOL_UDP:
		checksum = (__u16 *)(header + UDP_CHECKSUM);
		break;
	default:
		/* Covers neither addresses nor, as these stay, ports. */
		return true;
	}
	if ((void *)(checksum + 1) > end)
		return false;
	correct(checksum, before, after);
	__builtin_memcpy(header, &after->source_port, PORTS_BYTES);
	return true;
}

/* Writes the new ends into the IP header, a hop further. */
INLINE void rewrite_ipv4(struct ipv4 *header, const struct flow_key *after)
{
	struct {
		__u32 source, destination;
		__u8 time_to_live, zero[3];
	} before = {
		.source = header->source,
		.destination = header->destination,
		.time_to_live = header->time_to_live,
	}, now = {
		.source = *(const __u32 *)(after->source + 12),
		.destination = *(const __u32 *)(after->destination + 12),
		.time_to_live = header->time_to_live - 1,
	};

	header->source = now.source;
	header->destination = now.destination;
	header->time_to_live = now.time_to_live;
	header->checksum = fold(csum_diff(&before, sizeof(before), &now, sizeof(now),
					  (__u16)~header->checksum));
}

INLINE void rewrite_ipv6(struct ipv6 *header, const struct flow_key *after)
{
	__builtin_memcpy(header->source, after->source, ADDRESS_BYTES);
	__builtin_memcpy(header->destination, after->destination, ADDRESS_BYTES);
	header->hop_limit--;
}

/* Gives the packet in a frame its new ends. False: it is cut off within its headers. */
INLINE bool rewrite(struct xdp_md *frame, __u32 offset, bool is_ipv4,
		    const struct flow_key *before, const struct flow_key *after)
{
	void *header = (void *)(long)frame->data + offset, *end = (void *)(long)frame->data_end;

	if (is_ipv4) {
		if (header + sizeof(struct ipv4) > end ||
		    !rewrite_transport(header + sizeof(struct ipv4), end, before, after))
			return false;
		rewrite_ipv4(header, after);
		return true;
	}
	if (header + sizeof(struct ipv6) > end ||
	    !rewrite_transport(header + sizeof(struct ipv6), end, before, after))
		return false;
	rewrite_ipv6(header, after);
	return true;
}

/* Writes the header of the frame, and where there is room for it the outer header of a packet that
 * is handed on.
 */
INLINE bool write_begin(struct xdp_md *frame, const struct bpf_fib_lookup *way,
			const struct flow *leaving, const struct address *own)
{
	void *begin = (void *)(long)frame->data, *end = (void *)(long)frame->data_end;
	struct ethernet *ethernet = begin;
	bool is_direct = leaving->flags & FLOW_DIRECT;

	if ((void *)(ethernet + 1) > end)
		return false;
	__builtin_memcpy(ethernet->destination, way->dmac, sizeof(way->dmac));
	__builtin_memcpy(ethernet->source, way->smac, sizeof(way->smac));
	ethernet->protocol = way->family == AF_INET ? ETHERNET_IPV4 : ETHERNET_IPV6;
	if (!is_direct)
		return true;
	if (way->family == AF_INET) {
		struct direct_ipv4 *outer = (void *)(ethernet + 1);
		struct ipv4 *inner = (void *)(outer + 1);
		if ((void *)(inner + 1) > end)
			return false;
		make_outer_ipv4(inner, leaving, own, outer);
		return true;
	}
	struct direct_ipv6 *outer = (void *)(ethernet + 1);
	struct ipv6 *inner = (void *)(outer + 1);
	if ((void *)(inner + 1) > end)
		return false;
	make_outer_ipv6(inner, leaving, own, outer);
	return true;
}

/* Sends a frame on with other ends, wrapped where its flow is handed on. Nothing is written before it
 * is known to go.
 */
GLOBAL int send(struct xdp_md *frame, const struct flow_key *before, const struct flow_key *within,
		const struct flow_key *after, const struct flow *leaving)
{
	struct bpf_fib_lookup way = {};
	struct address own = {};
	__u32 more_bytes = 0, key = 0, index = frame->ingress_ifindex;

	if (!before || !within || !after || !leaving)
		return XDP_PASS;
	bool is_ipv4 = is_mapped((const struct address *)within->source);
	if (leaving->flags & FLOW_DIRECT) {
		struct nat_link *link = map_lookup(&nat_links, &index);
		__u16 family = is_ipv4 ? ETHERNET_IPV4 : ETHERNET_IPV6;
		if (!link || !masquerade_address(link, family, &own))
			return XDP_PASS;
		more_bytes = direct_bytes(family);
	}
	if (!find_way(frame, within, more_bytes, &way) ||
	    (more_bytes && xdp_adjust_head(frame, -(int)more_bytes)))
		return XDP_PASS;
	if (!rewrite(frame, LINK_BYTES + more_bytes, is_ipv4, before, after) ||
	    !write_begin(frame, &way, leaving, &own))
		return XDP_DROP;
	__u64 *sent = map_lookup(&nat_xdp_sent, &key);
	if (sent)
		*sent += 1;
	return XDP_TX;
}

/* Whether the stack has seen how a flow begins; `entry` is that by which the packet leaves. */
INLINE bool has_begun(const struct flow *entering, const struct flow *entry)
{
	if (entering->flags & FLOW_BACK)
		return entry->flags & FLOW_BACK && entry->flags & FLOW_ANSWERED;
	if (entering->flags & FLOW_DIRECT)
		return entry->flags & FLOW_DIRECT;
	return entering->flags & FLOW_MASQUERADED && entering->flags & FLOW_ANSWERED &&
	       entry->flags & FLOW_MASQUERADED && entry->port;
}

/* At the uplink. */
SEC("xdp")
int service_uplink(struct xdp_md *frame)
{
	struct segment segment = {};
	struct flow_key before = {};
	__u32 now = now_s();

	if (!read_plain(frame, &segment, &before) || segment.tcp_flags & TCP_SYN)
		return XDP_PASS;
	struct flow *entering = find_flow(&before);
	if (!entering || is_handed_over(entering, &before))
		return XDP_PASS;
	struct flow_key within = before;
	within.side = LEAVING | MASQUERADED;
	__builtin_memcpy(within.destination, entering->address, ADDRESS_BYTES);
	within.destination_port = entering->port;
	struct flow *leaving = find_flow(&within);
	if (!leaving || !has_begun(entering, leaving) ||
	    !goes_on(entering, &segment, &before, now) || !holds(leaving, &segment, &within, now))
		return XDP_PASS;
	struct flow_key after = within;
	if (!(leaving->flags & FLOW_DIRECT)) {
		__builtin_memcpy(after.source, leaving->address, ADDRESS_BYTES);
		after.source_port = leaving->port;
	}
	return send(frame, &before, &within, &after, leaving);
}

char license_text[] SEC("license") = "Dual BSD/GPL";
