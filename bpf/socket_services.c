/* Services at the socket: what a process of this node names as the destination becomes the endpoint
 * before a packet is made, and it is told of the Service when it asks who the other end is. No
 * packet is touched, and no flow is tracked.
 *
 * A process of the node itself gets its Services here: its packets meet no other program, and the
 * kernel gives them the address as their source that masquerade would give them. Left to the
 * nftables table, which judges each packet by its source, is where source ranges do not let in the
 * address that the kernel takes for the node, or the process has chosen another one.
 * From pods this is left to the packet path, which sees the Service's own address then:
 * - connected UDP: it would stay with an endpoint that is gone (as it does on the node itself);
 * - what needs another source than the pod's own, or depends on its address (masquerade, source
 *   ranges, Maglev): the pod has a source only when the packet is made.
 *
 * What is refused or dropped is left as it is for everybody: a program here could only answer EPERM.
 * For SCTP and raw sockets the kernel asks no program here. A pod that gets itself as its endpoint
 * keeps its own source: nothing comes back from outside.
 */
#include "bpf.h"
#include "services.h"

#define DATAGRAMS_DEFAULT 65536

#define PROTOCOL_TCP 6
#define PROTOCOL_UDP 17

/* The programs' answer: go on, with the addresses as they are now. */
#define GO_ON 1

struct translation {
	struct endpoint asked;
	struct endpoint given;
};

/* What a TCP socket asked for. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_SK_STORAGE);
	MAP_NUMBER(max_entries, 0);
	MAP_NUMBER(map_flags, BPF_F_NO_PREALLOC);
	MAP_NUMBER(pinning, PINNED_BY_NAME);
	MAP_TYPE(key, int);
	MAP_TYPE(value, struct translation);
} connections SEC(".maps");

/* Where the datagrams of a UDP socket to a Service go. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_LRU_HASH);
	MAP_NUMBER(max_entries, DATAGRAMS_DEFAULT);
	MAP_NUMBER(pinning, PINNED_BY_NAME);
	MAP_TYPE(key, struct socket_flow_key);
	MAP_TYPE(value, struct endpoint);
} datagrams SEC(".maps");

/* The Service for which an endpoint answers a UDP socket. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_LRU_HASH);
	MAP_NUMBER(max_entries, DATAGRAMS_DEFAULT);
	MAP_NUMBER(pinning, PINNED_BY_NAME);
	MAP_TYPE(key, struct socket_flow_key);
	MAP_TYPE(value, struct endpoint);
} answers SEC(".maps");

/* The socket of a process as its programs see it. */
struct bpf_sock {
	__u32 bound_dev_if, family, type, protocol, mark, priority, src_ip4, src_ip6[4];
};
_Static_assert(__builtin_offsetof(struct bpf_sock, src_ip6) == 28, "src_ip6");

/* Whether a socket that connects has its own address already. */
INLINE bool is_bound_ipv4(struct bpf_sock_addr *context)
{
	const struct bpf_sock *socket = (const struct bpf_sock *)context->sk;

	return socket->src_ip4 != 0;
}

INLINE bool is_bound_ipv6(struct bpf_sock_addr *context)
{
	const struct bpf_sock *socket = (const struct bpf_sock *)context->sk;

	return socket->src_ip6[0] | socket->src_ip6[1] | socket->src_ip6[2] | socket->src_ip6[3];
}

/* Whether a datagram has its source already: the socket's, or one that is given with it. */
INLINE bool has_source_ipv4(struct bpf_sock_addr *context)
{
	return context->msg_src_ip4 != 0;
}

INLINE bool has_source_ipv6(struct bpf_sock_addr *context)
{
	return context->msg_src_ip6[0] | context->msg_src_ip6[1] | context->msg_src_ip6[2] |
	       context->msg_src_ip6[3];
}

INLINE struct endpoint read_ipv4(struct bpf_sock_addr *context)
{
	struct endpoint named = { .port = context->user_port };

	mapped((struct address *)named.address, context->user_ip4);
	return named;
}

/* Also IPv4 that a socket of IPv6 sends to or hears from, as a mapped address. */
INLINE struct endpoint read_ipv6(struct bpf_sock_addr *context)
{
	struct endpoint named = { .port = context->user_port };
	struct address *address = (struct address *)named.address;

	address->words[0] = context->user_ip6[0];
	address->words[1] = context->user_ip6[1];
	address->words[2] = context->user_ip6[2];
	address->words[3] = context->user_ip6[3];
	return named;
}

INLINE void write_ipv4(struct bpf_sock_addr *context, const struct endpoint *to)
{
	context->user_ip4 = ((const struct address *)to->address)->words[3];
	context->user_port = to->port;
}

INLINE void write_ipv6(struct bpf_sock_addr *context, const struct endpoint *to)
{
	const struct address *address = (const struct address *)to->address;

	context->user_ip6[0] = address->words[0];
	context->user_ip6[1] = address->words[1];
	context->user_ip6[2] = address->words[2];
	context->user_ip6[3] = address->words[3];
	context->user_port = to->port;
}

INLINE bool is_same_endpoint(const struct endpoint *one, const struct endpoint *other)
{
	return one->port == other->port && is_same_address((const struct address *)one->address,
							   (const struct address *)other->address);
}

INLINE bool is_of_node(__u64 namespace)
{
	__u32 only = 0;
	struct service_settings *settings = map_lookup(&service_settings, &only);

	return settings && settings->node_namespace == namespace;
}

INLINE bool is_for_socket(const struct service *service, bool of_node, bool has_source)
{
	if (service->count == 0)
		return false;
	if (of_node)
		return service->flags & NODE_ALLOWED &&
		       !(has_source && service->flags & SOURCE_RANGES);
	return !(service->flags & (MASQUERADE | SOURCE_RANGES)) && !service->maglev_size;
}

/* The Service that a process names, unless it is left to the packet path. */
INLINE struct service *find_for_socket(struct bpf_sock_addr *context, const struct endpoint *asked,
				       bool has_source, __u8 protocol,
				       struct address *client)
{
	struct service *service =
		find_service((const struct address *)asked->address, asked->port, protocol);

	if (!service)
		return NULL;
	__u64 namespace = get_netns_cookie(context);
	if (!is_for_socket(service, is_of_node(namespace), has_source))
		return NULL;
	/* Within 100::/64, from which no packet comes (RFC 6666). */
	client->words[0] = BE32(0x01000000);
	client->words[1] = 0;
	client->halves[1] = namespace;
	return service;
}

/* Port 0 stands for the port that was asked for. */
INLINE void fill_port(struct endpoint *endpoint, const struct endpoint *asked)
{
	if (endpoint->port == 0)
		endpoint->port = asked->port;
}

INLINE void fill_key(struct socket_flow_key *key, __u64 cookie, const struct endpoint *endpoint)
{
	key->cookie = cookie;
	__builtin_memcpy(key->address, endpoint->address, ADDRESS_BYTES);
	key->port = endpoint->port;
}

/* A socket's datagrams to one Service stay with one endpoint as long as it is one. */
INLINE bool choose_for_datagram(const struct service *service, const struct address *client,
				const struct socket_flow_key *key, struct endpoint *given)
{
	struct endpoint *known = map_lookup(&datagrams, key);

	if (known && is_member(service->id, (struct address *)known->address, known->port)) {
		*given = *known;
		return true;
	}
	if (choose(service, client, false, given) != CHOSEN)
		return false;
	map_update(&datagrams, key, given, BPF_ANY);
	return true;
}

INLINE bool on_datagram(struct bpf_sock_addr *context, const struct endpoint *asked,
			bool has_source, struct endpoint *given)
{
	struct socket_flow_key key = {};
	struct address client;

	if (context->protocol != PROTOCOL_UDP)
		return false;
	struct service *service =
		find_for_socket(context, asked, has_source, PROTOCOL_UDP, &client);
	if (!service)
		return false;
	__u64 cookie = get_socket_cookie(context);
	fill_key(&key, cookie, asked);
	if (!choose_for_datagram(service, &client, &key, given))
		return false;
	fill_port(given, asked);
	fill_key(&key, cookie, given);
	struct endpoint *known = map_lookup(&answers, &key);
	if (!known || !is_same_endpoint(known, asked))
		map_update(&answers, &key, asked, BPF_ANY);
	return true;
}

INLINE bool on_connect(struct bpf_sock_addr *context, const struct endpoint *asked,
		       bool has_source, struct endpoint *given)
{
	struct address client;

	if (context->protocol == PROTOCOL_UDP)
		return is_of_node(get_netns_cookie(context)) &&
		       on_datagram(context, asked, has_source, given);
	if (context->protocol != PROTOCOL_TCP)
		return false;
	struct service *service =
		find_for_socket(context, asked, has_source, PROTOCOL_TCP, &client);
	if (!service || choose(service, &client, false, given) != CHOSEN)
		return false;
	fill_port(given, asked);
	struct translation *translation = sk_storage_get(&connections, (void *)context->sk, NULL,
							 BPF_SK_STORAGE_GET_F_CREATE);
	if (translation) {
		translation->asked = *asked;
		translation->given = *given;
	}
	return true;
}

/* Whom an answer comes from, in the words of who asked. */
INLINE struct endpoint *find_answered(struct bpf_sock_addr *context, const struct endpoint *from)
{
	struct socket_flow_key key = {};

	if (context->protocol != PROTOCOL_UDP)
		return NULL;
	fill_key(&key, get_socket_cookie(context), from);
	return map_lookup(&answers, &key);
}

/* What a socket connected to, in its own words. */
INLINE struct endpoint *find_asked(struct bpf_sock_addr *context, const struct endpoint *peer)
{
	if (context->protocol != PROTOCOL_TCP)
		return find_answered(context, peer);
	struct translation *translation =
		sk_storage_get(&connections, (void *)context->sk, NULL, 0);
	/* It may have connected elsewhere since. */
	if (!translation || !is_same_endpoint(&translation->given, peer))
		return NULL;
	return &translation->asked;
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *context)
{
	struct endpoint asked = read_ipv4(context), given = {};

	if (on_connect(context, &asked, is_bound_ipv4(context), &given))
		write_ipv4(context, &given);
	return GO_ON;
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *context)
{
	struct endpoint asked = read_ipv6(context), given = {};

	if (on_connect(context, &asked, is_bound_ipv6(context), &given))
		write_ipv6(context, &given);
	return GO_ON;
}

SEC("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *context)
{
	struct endpoint asked = read_ipv4(context), given = {};

	if (on_datagram(context, &asked, has_source_ipv4(context), &given))
		write_ipv4(context, &given);
	return GO_ON;
}

SEC("cgroup/sendmsg6")
int sendmsg6(struct bpf_sock_addr *context)
{
	struct endpoint asked = read_ipv6(context), given = {};

	if (on_datagram(context, &asked, has_source_ipv6(context), &given))
		write_ipv6(context, &given);
	return GO_ON;
}

SEC("cgroup/recvmsg4")
int recvmsg4(struct bpf_sock_addr *context)
{
	struct endpoint from = read_ipv4(context);
	struct endpoint *asked = find_answered(context, &from);

	if (asked)
		write_ipv4(context, asked);
	return GO_ON;
}

SEC("cgroup/recvmsg6")
int recvmsg6(struct bpf_sock_addr *context)
{
	struct endpoint from = read_ipv6(context);
	struct endpoint *asked = find_answered(context, &from);

	if (asked)
		write_ipv6(context, asked);
	return GO_ON;
}

SEC("cgroup/getpeername4")
int getpeername4(struct bpf_sock_addr *context)
{
	struct endpoint peer = read_ipv4(context);
	struct endpoint *asked = find_asked(context, &peer);

	if (asked)
		write_ipv4(context, asked);
	return GO_ON;
}

SEC("cgroup/getpeername6")
int getpeername6(struct bpf_sock_addr *context)
{
	struct endpoint peer = read_ipv6(context);
	struct endpoint *asked = find_asked(context, &peer);

	if (asked)
		write_ipv6(context, asked);
	return GO_ON;
}

char license_text[] SEC("license") = "Dual BSD/GPL";
