/* What a pod may send at all: checked before anything else happens to a packet. */
#pragma once

#include "maps.h"
#include "packet.h"

/* IPv6 extension headers that are read. */
#define EXTENSION_HEADERS_MAX 8

#define ROUTER_ADVERTISEMENT 134
#define NEIGHBOUR_SOLICITATION 135
#define NEIGHBOUR_ADVERTISEMENT 136
#define REDIRECT 137
#define MULTICAST_LISTENER_REPORT 131
#define MULTICAST_LISTENER_DONE 132
#define MULTICAST_LISTENER_REPORT_V2 143

#define DHCP_SERVER BE16(67)
#define DHCP_CLIENT BE16(68)
#define DHCPV6_SERVER BE16(547)
#define DHCPV6_CLIENT BE16(546)

/* No reason: the packet passes. */
#define ALLOWED ((enum reason)REASONS)

struct arp {
	__u16 hardware, protocol;
	__u8 hardware_bytes, protocol_bytes;
	__u16 operation;
	__u8 sender_mac[6];
	__u32 sender;
	__u8 target_mac[6];
	__u32 target;
} __attribute__((packed));

struct neighbour_message {
	__u8 type, code;
	__u16 checksum;
	__u32 flags;
	struct address target;
} __attribute__((packed));

struct ports {
	__u16 source, destination;
};

INLINE bool is_extra_source(struct __sk_buff *skb, struct link *link, const struct address *address)
{
	struct source_key key = {
		.prefix_bits = SOURCE_LINK_BITS + ADDRESS_BITS,
		.link_index = skb->ifindex,
	};

	if (!(link->flags & EXTRA_SOURCES))
		return false;
	__builtin_memcpy(key.address, address, ADDRESS_BYTES);
	return map_lookup(&sources, &key) != NULL;
}

/* The address of fe80::/64 that the kernel makes from the MAC address (RFC 4291 appendix A). */
INLINE bool is_own_link_local(struct link *link, const struct address *address)
{
	const __u8 *mac = link->mac;

	return address->words[0] == BE32(0xfe800000) && address->words[1] == 0 &&
	       address->bytes[8] == (mac[0] ^ 2) && address->bytes[9] == mac[1] &&
	       address->bytes[10] == mac[2] && address->bytes[11] == 0xff &&
	       address->bytes[12] == 0xfe && address->bytes[13] == mac[3] &&
	       address->bytes[14] == mac[4] && address->bytes[15] == mac[5];
}

INLINE bool is_unspecified(const struct address *address)
{
	return !(address->words[0] | address->words[1] | address->words[2] | address->words[3]);
}

INLINE bool is_own_ipv4(struct __sk_buff *skb, struct link *link, const struct address *address)
{
	if (address->words[3] && address->words[3] == *(__u32 *)link->ipv4)
		return true;
	return is_extra_source(skb, link, address);
}

INLINE bool is_own_ipv6(struct __sk_buff *skb, struct link *link, const struct address *address)
{
	if (is_unspecified(address))
		return false;
	if (is_same_address(address, (struct address *)link->ipv6))
		return true;
	return is_own_link_local(link, address) || is_extra_source(skb, link, address);
}

static __attribute__((noinline)) int check_arp(struct __sk_buff *skb, struct link *link)
{
	struct arp arp;
	struct address sender;

	if (skb_load_bytes(skb, LINK_BYTES, &arp, sizeof(arp)))
		return DROP_ARP;
	if (arp.hardware != BE16(1) || arp.protocol != ETHERNET_IPV4 || arp.hardware_bytes != 6 ||
	    arp.protocol_bytes != 4)
		return DROP_ARP;
	if (!is_same_mac(arp.sender_mac, link->mac))
		return DROP_ARP;
	/* A probe (RFC 5227): who asks whether an address is free names none as its own. */
	if (arp.sender == 0 && arp.operation == BE16(1))
		return ALLOWED;
	mapped(&sender, arp.sender);
	return is_own_ipv4(skb, link, &sender) ? ALLOWED : DROP_ARP;
}

INLINE int check_udp(struct __sk_buff *skb, __u32 offset)
{
	struct ports ports;

	if (skb_load_bytes(skb, offset, &ports, sizeof(ports)))
		return DROP_HEADERS;
	if (ports.source == DHCP_SERVER && ports.destination == DHCP_CLIENT)
		return DROP_DHCP;
	if (ports.source == DHCPV6_SERVER && ports.destination == DHCPV6_CLIENT)
		return DROP_DHCP;
	return ALLOWED;
}

/* Neighbour discovery for oneself alone; nothing that only a router says. `packet->plain` becomes
 * false: discovery is the stack's.
 */
INLINE int check_icmpv6(struct __sk_buff *skb, struct link *link, struct packet *packet,
			__u32 offset)
{
	struct neighbour_message message = {};
	bool unspecified = is_unspecified(&packet->source);

	if (skb_load_bytes(skb, offset, &message.type, 1))
		return DROP_HEADERS;
	switch (message.type) {
	case ROUTER_ADVERTISEMENT:
	case REDIRECT:
		return DROP_ROUTER;
	case MULTICAST_LISTENER_REPORT:
	case MULTICAST_LISTENER_DONE:
	case MULTICAST_LISTENER_REPORT_V2:
		packet->plain = false;
		return ALLOWED;
	case NEIGHBOUR_SOLICITATION:
	case NEIGHBOUR_ADVERTISEMENT:
		break;
	default:
		return unspecified ? DROP_SOURCE_ADDRESS : ALLOWED;
	}
	packet->plain = false;
	if (skb_load_bytes(skb, offset, &message, sizeof(message)))
		return DROP_HEADERS;
	/* Who asks for an address other than its own must say who asks; without a source it claims
	 * the address for itself (RFC 4862 section 5.4).
	 */
	if (message.type == NEIGHBOUR_SOLICITATION && !unspecified)
		return ALLOWED;
	struct address target = message.target;
	return is_own_ipv6(skb, link, &target) ? ALLOWED : DROP_NEIGHBOUR;
}

/* Finds the first header after the extension headers. False: there are too many, or an end. */
INLINE bool skip_extension_headers(struct __sk_buff *skb, struct packet *packet)
{
	__u8 header[8];

	for (int n = 0; n < EXTENSION_HEADERS_MAX; n++) {
		if (!is_extension_header(packet->protocol))
			return true;
		if (skb_load_bytes(skb, packet->payload_offset, header, sizeof(header)))
			return false;
		if (packet->protocol == PROTOCOL_FRAGMENT) {
			packet->payload_offset += sizeof(header);
			packet->later_fragment |= (header[2] | (header[3] & 0xf8)) != 0;
		} else if (packet->protocol == PROTOCOL_AUTHENTICATION) {
			packet->payload_offset += (header[1] + 2) * 4;
		} else {
			packet->payload_offset += (header[1] + 1) * 8;
		}
		packet->protocol = header[0];
		if (packet->later_fragment)
			return true;
	}
	return !is_extension_header(packet->protocol);
}

static __attribute__((noinline)) int check_ipv6_payload(struct __sk_buff *skb, struct link *link,
							struct packet *packet)
{
	bool unspecified = is_unspecified(&packet->source);
	if (!packet->plain && !skip_extension_headers(skb, packet))
		return DROP_HEADERS;
	if (packet->protocol == PROTOCOL_ICMPV6 && !packet->later_fragment)
		return check_icmpv6(skb, link, packet, packet->payload_offset);
	if (unspecified)
		return DROP_SOURCE_ADDRESS;
	if (packet->protocol == PROTOCOL_UDP && !packet->later_fragment)
		return check_udp(skb, packet->payload_offset);
	return ALLOWED;
}

/* Checks an IP packet of a pod. */
INLINE int check_packet(struct __sk_buff *skb, struct link *link, struct packet *packet)
{
	if (packet->family == ETHERNET_IPV4) {
		if (!is_own_ipv4(skb, link, &packet->source))
			return DROP_SOURCE_ADDRESS;
		if (packet->protocol == PROTOCOL_UDP && !packet->later_fragment)
			return check_udp(skb, packet->payload_offset);
		return ALLOWED;
	}
	/* Without a source, as before an address is known to be free: ICMPv6 will tell. */
	if (!is_unspecified(&packet->source) && !is_own_ipv6(skb, link, &packet->source))
		return DROP_SOURCE_ADDRESS;
	if (packet->plain && packet->protocol != PROTOCOL_ICMPV6 &&
	    packet->protocol != PROTOCOL_UDP && !is_unspecified(&packet->source))
		return ALLOWED;
	return check_ipv6_payload(skb, link, packet);
}
