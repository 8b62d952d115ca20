/* Forwarding of pod packets at the hook `tc`, past bridge, routing and netfilter: from pod to pod
 * of a node straight into the other's namespace, between nodes straight to the tunnel link or to
 * the next hop. Only plain unicast IP is forwarded. Everything else goes on to the kernel's own
 * path (TC_NEXT), which is complete without these programs: it answers what is too big or too old,
 * and enforces what VIA_STACK stands for.
 *
 * Services (service_nat.c) have given a packet its destination before it comes here, and give it its
 * source at the egress of the link that it leaves by. Every way out of here but redirect_peer passes
 * that egress. The flows that pass in one direction pass in the other: what the kernel's connection
 * tracking saw half of it would call invalid.
 *
 * The order of the map's writers (crates/kernel) is: link before program before pod; so a pod that
 * is found here is one whose packets are checked.
 */
#include "bpf.h"
#include "edge.h"
#include "flows.h"
#include "handshakes.h"

#define VXLAN_VNI_VALID BE32(0x08000000)

struct udp {
	__u16 source, destination, bytes, checksum;
};

struct vxlan {
	__u32 flags;
	__u32 vni;
};

struct tunnel_headers {
	struct udp udp;
	struct vxlan vxlan;
	struct ethernet ethernet;
} __attribute__((packed));

/* What passes here at all. Of other protocols connection tracking may translate Services (SCTP). */
INLINE bool is_forwarded(const struct __sk_buff *skb, const struct packet *packet)
{
	/* Masqueraded flows are the stack's in both directions: see tracking.h. */
	if (!packet->plain || skb->mark & NAT_MARK)
		return false;
	switch (packet->protocol) {
	case PROTOCOL_ICMP:
	case PROTOCOL_TCP:
	case PROTOCOL_UDP:
	case PROTOCOL_ICMPV6:
		return true;
	default:
		return false;
	}
}

/* Why a packet cannot leave by a link: it is larger than the way's MTU (one that will be cut into
 * segments later, when a segment is); or the link is gone, and a pod that came since may have the
 * address. ALLOWED: it can.
 */
INLINE int obstacle(struct __sk_buff *skb, __u32 link_index, __u32 mtu)
{
	__u32 found = 0;

	if (skb->len > mtu + LINK_BYTES && !skb->gso_size)
		return STACK_TOO_BIG;
	long result = check_mtu(skb, link_index, &found, 0, BPF_MTU_CHECK_SEGMENTS);
	if (result < 0)
		return STACK_UNKNOWN;
	return result ? STACK_TOO_BIG : ALLOWED;
}

/* Whether the pod's own link may have to give a packet another source: it answers to a Service, or
 * tells of such a packet (ICMP).
 */
static __attribute__((noinline)) bool is_for_service(struct __sk_buff *skb,
						     const struct packet *packet)
{
	struct flow_key key = { .side = LEAVING, .protocol = packet->protocol };

	if (packet->protocol != PROTOCOL_TCP && packet->protocol != PROTOCOL_UDP)
		return true;
	if (skb_load_bytes(skb, packet->payload_offset, &key.source_port, 4))
		return true;
	__builtin_memcpy(key.source, &packet->source, ADDRESS_BYTES);
	__builtin_memcpy(key.destination, &packet->destination, ADDRESS_BYTES);
	return find_flow(&key) != NULL;
}

/* One hop less. The frame's addresses are set by the same writing; NULL leaves them for
 * redirect_neigh.
 */
INLINE bool rewrite(struct __sk_buff *skb, struct packet *packet, const __u8 *destination,
		    const __u8 *source)
{
	__u8 hop_limit = packet->time_to_live - 1;

	if (packet->family == ETHERNET_IPV6 &&
	    skb_store_bytes(skb, LINK_BYTES + __builtin_offsetof(struct ipv6, hop_limit), &hop_limit,
			    sizeof(hop_limit), BPF_F_RECOMPUTE_CSUM))
		return false;
	struct ethernet *ethernet = (void *)(long)skb->data;
	struct ipv4 *ipv4 = (void *)(ethernet + 1);
	if ((void *)(ipv4 + 1) > (void *)(long)skb->data_end)
		return false;
	if (packet->family == ETHERNET_IPV4) {
		/* RFC 1624: the checksum grows by what the first byte of its word loses. */
		__u32 checksum = ipv4->checksum + (__u32)BE16(0x0100);
		ipv4->checksum = checksum + (checksum >= 0xffff);
		ipv4->time_to_live--;
	}
	if (destination) {
		copy_mac(ethernet->destination, destination);
		copy_mac(ethernet->source, source);
	}
	return true;
}

/* Into a pod of this node. `switched`: its sender is its neighbour on the bridge. */
INLINE int to_pod(struct __sk_buff *skb, struct packet *packet, struct pod *pod, bool switched)
{
	if (pod->flags & VIA_STACK)
		return to_stack(STACK_FLAGGED);
	if (pod->link_index == skb->ifindex)
		return to_stack(STACK_OTHER);
	int reason = obstacle(skb, pod->link_index, pod->mtu);
	if (reason != ALLOWED)
		return to_stack(reason);
	bool for_service = is_for_service(skb, packet);
	if (!switched) {
		if (packet->time_to_live <= 1)
			return to_stack(STACK_TIME_TO_LIVE);
		if (!rewrite(skb, packet, pod->mac, pod->gateway_mac))
			return drop(DROP_HEADERS);
	}
	/* The kernel marked the frame by whom it was for on this link; on the pod's it is for it. */
	if (skb->pkt_type != PACKET_HOST)
		skb_change_type(skb, PACKET_HOST);
	follow_handshake(skb, packet);
	count(TO_POD);
	return for_service ? redirect(pod->link_index, 0) : redirect_peer(pod->link_index, 0);
}

INLINE int to_remote(struct __sk_buff *skb, struct packet *packet, struct remote *remote)
{
	struct bpf_redir_neigh next_hop = {};

	int reason = obstacle(skb, remote->link_index, remote->mtu);
	if (reason != ALLOWED)
		return to_stack(reason);
	if (packet->time_to_live <= 1)
		return to_stack(STACK_TIME_TO_LIVE);
	follow_handshake(skb, packet);
	if (remote->kind == REMOTE_TUNNEL) {
		if (!rewrite(skb, packet, remote->mac, remote->own_mac))
			return drop(DROP_HEADERS);
		count(TO_TUNNEL);
		return redirect(remote->link_index, 0);
	}
	if (!rewrite(skb, packet, NULL, NULL))
		return drop(DROP_HEADERS);
	const struct address *address = (struct address *)remote->next_hop;
	if (address->words[0] == 0 && address->words[1] == 0 && address->words[2] == BE32(0xffff)) {
		next_hop.nh_family = AF_INET;
		next_hop.ipv4_nh = address->words[3];
	} else {
		next_hop.nh_family = AF_INET6;
		__builtin_memcpy(next_hop.ipv6_nh, address, ADDRESS_BYTES);
	}
	count(TO_NEXT_HOP);
	return redirect_neigh(remote->link_index, &next_hop, sizeof(next_hop), 0);
}

/* What a pod sends; at the ingress of the node's end of its link. */
SEC("classifier")
int from_pod(struct __sk_buff *skb)
{
	__u32 link_index = skb->ifindex;
	struct link *link = map_lookup(&links, &link_index);
	struct packet packet = {};
	int verdict;

	if (!link)
		return to_stack(STACK_UNKNOWN);
	bool checked = link->flags & ANTI_SPOOFING;
	struct ethernet *ethernet = (void *)(long)skb->data;
	if ((void *)(ethernet + 1) > (void *)(long)skb->data_end)
		return checked ? drop(DROP_HEADERS) : to_stack(STACK_OTHER);
	__u16 protocol = ethernet->protocol;
	if (checked && !is_same_mac(ethernet->source, link->mac))
		return drop(DROP_SOURCE_MAC);
	bool tagged = skb->vlan_present || protocol == ETHERNET_VLAN ||
		      protocol == ETHERNET_PROVIDER_VLAN;
	if (tagged)
		return checked ? drop(DROP_VLAN) : to_stack(STACK_OTHER);
	if (protocol == ETHERNET_ARP && checked) {
		verdict = check_arp(skb, link);
		return verdict == ALLOWED ? to_stack(STACK_OTHER) : drop(verdict);
	}
	if (protocol != ETHERNET_IPV4 && protocol != ETHERNET_IPV6)
		return to_stack(STACK_OTHER);
	if (!read_packet(skb, protocol, LINK_BYTES, &packet))
		return checked ? drop(DROP_HEADERS) : to_stack(STACK_OTHER);
	if (checked) {
		verdict = check_packet(skb, link, &packet);
		if (verdict != ALLOWED)
			return drop(verdict);
	}
	if (!is_forwarded(skb, &packet) || is_multicast(&packet))
		return to_stack(STACK_OTHER);
	if (link->flags & VIA_STACK)
		return to_stack(STACK_FLAGGED);

	/* Reading may have moved the frame. */
	ethernet = (void *)(long)skb->data;
	if ((void *)(ethernet + 1) > (void *)(long)skb->data_end)
		return to_stack(STACK_OTHER);
	struct pod *pod = map_lookup(&pods, &packet.destination);
	bool routed = is_same_mac(ethernet->destination, link->gateway_mac);
	if (pod) {
		bool switched = is_same_mac(ethernet->destination, pod->mac);
		if (!routed && !switched)
			return to_stack(STACK_OTHER);
		return to_pod(skb, &packet, pod, !routed);
	}
	struct remote *remote = find_remote(&packet.destination);
	if (!remote || (remote->kind != REMOTE_TUNNEL && remote->kind != REMOTE_DIRECT))
		return to_stack(STACK_UNKNOWN);
	if (!routed)
		return to_stack(STACK_OTHER);
	return to_remote(skb, &packet, remote);
}

/* What other nodes' pods send to pods here. The source belongs to a node that comes this way. */
INLINE int arrive(struct __sk_buff *skb, struct packet *packet, __u32 kind)
{
	struct pod *pod = map_lookup(&pods, &packet->destination);

	if (!pod)
		return to_stack(STACK_UNKNOWN);
	if (skb->pkt_type != PACKET_HOST || skb->vlan_present || !is_forwarded(skb, packet))
		return to_stack(STACK_OTHER);
	struct remote *remote = find_remote(&packet->source);
	if (!remote || remote->kind != kind)
		return to_stack(STACK_UNKNOWN);
	return to_pod(skb, packet, pod, false);
}

INLINE __u16 ethernet_protocol(struct __sk_buff *skb)
{
	struct ethernet *ethernet = (void *)(long)skb->data;

	if ((void *)(ethernet + 1) > (void *)(long)skb->data_end)
		return 0;
	return ethernet->protocol;
}

/* What the tunnel link unwrapped; at its ingress. Which node sent it is judged before, at the
 * uplink: after unwrapping nobody knows any more.
 */
SEC("classifier")
int from_tunnel(struct __sk_buff *skb)
{
	struct packet packet = {};
	__u16 protocol = ethernet_protocol(skb);

	if (protocol != ETHERNET_IPV4 && protocol != ETHERNET_IPV6)
		return to_stack(STACK_OTHER);
	if (!read_packet(skb, protocol, LINK_BYTES, &packet))
		return to_stack(STACK_OTHER);
	return arrive(skb, &packet, REMOTE_TUNNEL);
}

/* Whether a packet of our tunnel comes from a node and carries a packet of that node's pods, or of
 * nodes; also when it is no packet of our tunnel, or carries no IP: then others decide. Which
 * way we take to that node does not count: it may have changed on one side and not yet on the other.
 */
static __attribute__((noinline)) int is_tunnel_honest(struct __sk_buff *skb, struct packet *outer)
{
	struct tunnel_headers headers;
	struct packet inner = {};
	__u32 key = 0;

	__u32 offset = outer->payload_offset;
	struct settings *own = map_lookup(&settings, &key);
	if (!own || !(own->flags & TUNNEL))
		return true;
	if (skb_load_bytes(skb, offset, &headers, sizeof(headers)))
		return true;
	if (headers.udp.destination != BE16(own->port) ||
	    !(headers.vxlan.flags & VXLAN_VNI_VALID) || BE32(headers.vxlan.vni) >> 8 != own->vni)
		return true;
	if (headers.ethernet.protocol == ETHERNET_IPV4) {
		struct ipv4 header;
		if (skb_load_bytes(skb, offset + sizeof(headers), &header, sizeof(header)))
			return false;
		mapped(&inner.source, header.source);
	} else if (headers.ethernet.protocol == ETHERNET_IPV6) {
		struct ipv6 header;
		if (skb_load_bytes(skb, offset + sizeof(headers), &header, sizeof(header)))
			return false;
		__builtin_memcpy(&inner.source, header.source, ADDRESS_BYTES);
	} else {
		return true;
	}
	struct remote *remote = find_remote(&inner.source);
	if (!remote)
		return false;
	/* Any node, but a node. */
	if (remote->kind == REMOTE_NODE)
		remote = find_remote(&outer->source);
	return remote && is_same_address(&outer->source, (struct address *)remote->node);
}

/* What comes in from other machines; at the ingress of the uplink. */
SEC("classifier")
int from_uplink(struct __sk_buff *skb)
{
	struct packet packet = {};
	__u16 protocol = ethernet_protocol(skb);

	if (protocol != ETHERNET_IPV4 && protocol != ETHERNET_IPV6)
		return to_stack(STACK_OTHER);
	if (!read_packet(skb, protocol, LINK_BYTES, &packet))
		return to_stack(STACK_OTHER);
	if (packet.protocol == PROTOCOL_UDP && packet.plain && !is_tunnel_honest(skb, &packet))
		return drop(DROP_TUNNEL);
	return arrive(skb, &packet, REMOTE_DIRECT);
}

char license_text[] SEC("license") = "Dual BSD/GPL";
