/* TCP handshakes that nobody has answered, of what passes the kernel's connection tracking: who
 * looks for endpoints that do not answer reads them here. What the entries mean stands in
 * crates/ebpf-abi/src/handshakes.rs.
 */
#pragma once

#include "packet.h"

struct tcp_start {
	__u16 source_port, destination_port;
	__u32 sequence, acknowledged;
	__u8 words, flags;
} __attribute__((packed));

/* The longest untried go first where it is full. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_LRU_HASH);
	MAP_NUMBER(max_entries, HANDSHAKES_MAX);
	MAP_NUMBER(pinning, PINNED_BY_NAME);
	MAP_TYPE(key, struct handshake_key);
	MAP_TYPE(value, __u64);
} handshakes SEC(".maps");

/* The key of a connection whose first packet went from `source` to `destination`. */
INLINE void handshake_key(struct handshake_key *key, const struct address *source,
			  __u16 source_port, const struct address *destination,
			  __u16 destination_port)
{
	__builtin_memcpy(key->source, source, ADDRESS_BYTES);
	__builtin_memcpy(key->destination, destination, ADDRESS_BYTES);
	key->source_port = source_port;
	key->destination_port = destination_port;
}

/* Takes in what a packet says of a handshake. A refusal is an answer too. */
static __attribute__((noinline)) void follow_handshake(struct __sk_buff *skb,
						       const struct packet *packet)
{
	struct handshake_key key = {};
	struct tcp_start tcp;

	if (packet->protocol != PROTOCOL_TCP ||
	    skb_load_bytes(skb, packet->payload_offset, &tcp, sizeof(tcp)))
		return;
	if ((tcp.flags & (TCP_SYN | TCP_ACK)) == TCP_SYN) {
		__u64 now_ns = ktime_ns();

		handshake_key(&key, &packet->source, tcp.source_port, &packet->destination,
			      tcp.destination_port);
		map_update(&handshakes, &key, &now_ns, BPF_ANY);
	} else if (tcp.flags & (TCP_SYN | TCP_RST)) {
		handshake_key(&key, &packet->destination, tcp.destination_port, &packet->source,
			      tcp.source_port);
		map_delete(&handshakes, &key);
	}
}
