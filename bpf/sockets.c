/* The socket fast path: what one pod of a node writes to another over TCP goes straight into the
 * reader's queue, past TCP itself. Connections are made and ended by TCP as ever, so whatever
 * allows or refuses them does.
 *
 * The events are those of the node's own cgroup: nodes that share a kernel do not meet here, even
 * with pods of equal addresses.
 */
#include "bpf.h"
#include "maps.h"

/* Both ends of connections between pods of this node. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_SOCKHASH);
	MAP_NUMBER(max_entries, SOCKETS_MAX);
	MAP_NUMBER(pinning, PINNED_BY_NAME);
	MAP_TYPE(key, struct socket_key);
	MAP_TYPE(value, __u32);
} sockets SEC(".maps");

#define UNDECIDED 0
#define BY_TCP 1
#define BY_QUEUE 2

/* By which way a socket sends: chosen with its first byte, for all that follow. Were it to change,
 * what took the slow way could come after what took the fast one.
 */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_SK_STORAGE);
	MAP_NUMBER(max_entries, 0);
	MAP_NUMBER(map_flags, BPF_F_NO_PREALLOC);
	MAP_TYPE(key, int);
	MAP_TYPE(value, __u32);
} ways SEC(".maps");

INLINE bool is_short_cut(const __u8 *address)
{
	struct pod *pod = map_lookup(&pods, address);

	return pod && !(pod->flags & VIA_STACK);
}

INLINE void set_ipv4(__u8 *address, __u32 ipv4)
{
	static const __u8 prefix[12] = { MAPPED_PREFIX };

	__builtin_memcpy(address, prefix, sizeof(prefix));
	__builtin_memcpy(address + sizeof(prefix), &ipv4, sizeof(ipv4));
}

INLINE void set_ipv6(__u8 *address, __u32 a, __u32 b, __u32 c, __u32 d)
{
	__u32 words[4] = { a, b, c, d };

	__builtin_memcpy(address, words, sizeof(words));
}

/* Remembers a connection when it is established. */
SEC("sockops")
int on_event(struct bpf_sock_ops *socket)
{
	struct socket_key key = {};

	if (socket->op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB &&
	    socket->op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
		return 1;
	/* TCP Fast Open: the first bytes have gone by TCP already. */
	if (socket->data_segs_in || socket->data_segs_out)
		return 1;
	if (socket->family == AF_INET) {
		set_ipv4(key.local, socket->local_ip4);
		set_ipv4(key.remote, socket->remote_ip4);
	} else {
		set_ipv6(key.local, socket->local_ip6[0], socket->local_ip6[1],
			 socket->local_ip6[2], socket->local_ip6[3]);
		set_ipv6(key.remote, socket->remote_ip6[0], socket->remote_ip6[1],
			 socket->remote_ip6[2], socket->remote_ip6[3]);
	}
	if (!is_short_cut(key.local) || !is_short_cut(key.remote))
		return 1;
	key.local_port = socket->local_port;
	key.remote_port = BE32(socket->remote_port);
	sock_hash_update(socket, &sockets, &key, BPF_ANY);
	return 1;
}

/* Leads what a remembered socket sends to its other end. */
SEC("sk_msg")
int on_send(struct sk_msg_md *message)
{
	struct socket_key peer = {};
	__u32 *way = sk_storage_get(&ways, (void *)message->sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);

	if (!way || *way == BY_TCP)
		return SK_PASS;
	if (message->family == AF_INET) {
		set_ipv4(peer.local, message->remote_ip4);
		set_ipv4(peer.remote, message->local_ip4);
	} else {
		set_ipv6(peer.local, message->remote_ip6[0], message->remote_ip6[1],
			 message->remote_ip6[2], message->remote_ip6[3]);
		set_ipv6(peer.remote, message->local_ip6[0], message->local_ip6[1],
			 message->local_ip6[2], message->local_ip6[3]);
	}
	peer.local_port = BE32(message->remote_port);
	peer.remote_port = message->local_port;
	bool found = msg_redirect_hash(message, &sockets, &peer, BPF_F_INGRESS) == SK_PASS;
	if (*way == UNDECIDED)
		*way = found ? BY_QUEUE : BY_TCP;
	/* An end that is no longer here has been closed: TCP will tell the sender so. */
	return SK_PASS;
}

char license_text[] SEC("license") = "Dual BSD/GPL";
