/* The maps of Services, and the one choice of an endpoint that all programs share: those at the
 * socket and those that see each packet. What the maps mean stands in crates/ebpf-abi.
 */
#pragma once

#include "address.h"

/* Entries of each map unless the loader says otherwise. */
#define SERVICES_DEFAULT 65536
#define SLOTS_DEFAULT 262144
#define CLIENTS_DEFAULT 65536

#define NS_PER_S 1000000000ULL

/* Frontends with one port. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_HASH);
	MAP_NUMBER(max_entries, SERVICES_DEFAULT);
	MAP_NUMBER(map_flags, BPF_F_NO_PREALLOC);
	MAP_NUMBER(pinning, PINNED_BY_NAME);
	MAP_TYPE(key, struct service_key);
	MAP_TYPE(value, struct service);
} services SEC(".maps");

/* Frontends with many ports. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_LPM_TRIE);
	MAP_NUMBER(max_entries, SERVICES_DEFAULT);
	MAP_NUMBER(map_flags, BPF_F_NO_PREALLOC);
	MAP_NUMBER(pinning, PINNED_BY_NAME);
	MAP_TYPE(key, struct range_key);
	MAP_TYPE(value, struct service);
} ranges SEC(".maps");

struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_HASH);
	MAP_NUMBER(max_entries, SLOTS_DEFAULT);
	MAP_NUMBER(map_flags, BPF_F_NO_PREALLOC);
	MAP_NUMBER(pinning, PINNED_BY_NAME);
	MAP_TYPE(key, struct slot_key);
	MAP_TYPE(value, struct slot);
} slots SEC(".maps");

/* Slots by hash. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_HASH);
	MAP_NUMBER(max_entries, SLOTS_DEFAULT);
	MAP_NUMBER(map_flags, BPF_F_NO_PREALLOC);
	MAP_NUMBER(pinning, PINNED_BY_NAME);
	MAP_TYPE(key, struct slot_key);
	MAP_TYPE(value, __u32);
} maglev SEC(".maps");

/* The slots of endpoints, of UDP and of views with affinity. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_HASH);
	MAP_NUMBER(max_entries, SLOTS_DEFAULT);
	MAP_NUMBER(map_flags, BPF_F_NO_PREALLOC);
	MAP_NUMBER(pinning, PINNED_BY_NAME);
	MAP_TYPE(key, struct member_key);
	MAP_TYPE(value, __u32);
} members SEC(".maps");

/* Clients that may come to a frontend with source ranges. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_LPM_TRIE);
	MAP_NUMBER(max_entries, SERVICES_DEFAULT);
	MAP_NUMBER(map_flags, BPF_F_NO_PREALLOC);
	MAP_NUMBER(pinning, PINNED_BY_NAME);
	MAP_TYPE(key, struct service_source_key);
	MAP_TYPE(value, __u32);
} service_sources SEC(".maps");

/* Addresses of the node at which node ports answer. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_HASH);
	MAP_NUMBER(max_entries, 1024);
	MAP_NUMBER(map_flags, BPF_F_NO_PREALLOC);
	MAP_NUMBER(pinning, PINNED_BY_NAME);
	MAP_TYPE(key, struct address);
	MAP_TYPE(value, __u32);
} node_addresses SEC(".maps");

/* Ranges of this node's pods. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_LPM_TRIE);
	MAP_NUMBER(max_entries, 1024);
	MAP_NUMBER(map_flags, BPF_F_NO_PREALLOC);
	MAP_NUMBER(pinning, PINNED_BY_NAME);
	MAP_TYPE(key, struct network_key);
	MAP_TYPE(value, __u32);
} own_pods SEC(".maps");

/* Ranges of the cluster's pods and addresses of its nodes: DIRECT_PODS, DIRECT_NODE, or nothing. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_LPM_TRIE);
	MAP_NUMBER(max_entries, DIRECT_HOSTS_MAX);
	MAP_NUMBER(map_flags, BPF_F_NO_PREALLOC);
	MAP_NUMBER(pinning, PINNED_BY_NAME);
	MAP_TYPE(key, struct network_key);
	MAP_TYPE(value, __u32);
} direct_hosts SEC(".maps");

/* Clients that stay with their endpoints; the longest unused go first where it is full. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_LRU_HASH);
	MAP_NUMBER(max_entries, CLIENTS_DEFAULT);
	MAP_NUMBER(pinning, PINNED_BY_NAME);
	MAP_TYPE(key, struct affinity_key);
	MAP_TYPE(value, struct affinity);
} affinities SEC(".maps");

struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_ARRAY);
	MAP_NUMBER(max_entries, 1);
	MAP_NUMBER(pinning, PINNED_BY_NAME);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, struct service_settings);
} service_settings SEC(".maps");

/* What a client gets. */
enum answer {
	/* An endpoint. */
	CHOSEN,
	/* A refusal: there is no endpoint anywhere. */
	REFUSED,
	/* Silence: endpoints that only other nodes may lead to, or a source that may not come. */
	IGNORED,
};

INLINE bool is_node_address(const struct address *address)
{
	return map_lookup(&node_addresses, address) != NULL;
}

INLINE bool is_own_pod(const struct address *address)
{
	struct network_key key = { .prefix_bits = ADDRESS_BITS };

	__builtin_memcpy(key.address, address, ADDRESS_BYTES);
	return map_lookup(&own_pods, &key) != NULL;
}

INLINE struct service *find_node_port(const struct address *address, __u16 port, __u8 protocol)
{
	struct service_key key = { .port = port, .protocol = protocol, .scope = SCOPE_NODE_PORT };
	struct address unspecified = {};

	if (!is_node_address(address))
		return NULL;
	if (is_mapped(address))
		mapped(&unspecified, 0);
	__builtin_memcpy(key.address, &unspecified, ADDRESS_BYTES);
	return map_lookup(&services, &key);
}

/* Finds whose an address and a port are; `port` as on the wire. A Service's own address goes before
 * a node port.
 */
INLINE struct service *find_service(const struct address *address, __u16 port, __u8 protocol)
{
	struct service_key key = { .port = port, .protocol = protocol, .scope = SCOPE_ADDRESS };
	struct range_key range = {
		.prefix_bits = RANGE_PORT_BITS + 16,
		.protocol = protocol,
		.port = port,
	};

	__builtin_memcpy(key.address, address, ADDRESS_BYTES);
	struct service *service = map_lookup(&services, &key);
	if (service)
		return service;
	__builtin_memcpy(range.address, address, ADDRESS_BYTES);
	service = map_lookup(&ranges, &range);
	return service ? service : find_node_port(address, port, protocol);
}

/* Answers whether a source may come to a frontend at all. */
INLINE bool is_source_allowed(const struct service *service, const struct address *source)
{
	struct service_source_key key = {
		.prefix_bits = SERVICE_SOURCE_ID_BITS + ADDRESS_BITS,
		.id = service->id,
	};

	if (!(service->flags & SOURCE_RANGES))
		return true;
	__builtin_memcpy(key.address, source, ADDRESS_BYTES);
	return map_lookup(&service_sources, &key) != NULL;
}

/* Answers whether `outside` clients have a view of their own. */
INLINE bool has_outside_view(const struct service *service, bool outside)
{
	return outside && (service->flags & OUTSIDE);
}

/* The id of the view that a client sees. */
INLINE __u32 view_id(const struct service *service, bool outside)
{
	return has_outside_view(service, outside) ? service->outside_id : service->id;
}

/* Answers whether an endpoint still is one of a view with affinity or of UDP: a flow that was led
 * there may stay.
 */
INLINE bool is_member(__u32 id, const struct address *address, __u16 port)
{
	struct member_key key = { .id = id, .port = port };

	__builtin_memcpy(key.address, address, ADDRESS_BYTES);
	return map_lookup(&members, &key) != NULL;
}

/* The slots of one view: the first ones in the frontend's entry, the others in a map of their own. */
struct view {
	__u32 id;
	__u32 count;
	const struct slot *near;
	__u32 near_count;
};

/* Of the outside view none are in the entry. */
INLINE struct view view_of(const struct service *service, bool is_outside)
{
	struct view view = {
		.id = is_outside ? service->outside_id : service->id,
		.count = is_outside ? service->outside_count : service->count,
		.near = service->near,
		.near_count = is_outside ? 0 : service->near_count,
	};
	return view;
}

/* The slot with this number. Between two writes of a change it may be gone: then the first one,
 * which every view has.
 */
INLINE const struct slot *find_slot(const struct view *view, __u32 number)
{
	if (number < view->near_count && number < NEAR_SLOTS)
		return view->near + number;
	struct slot_key key = { .id = view->id, .slot = number };
	const struct slot *slot = map_lookup(&slots, &key);
	if (slot || number == 0)
		return slot;
	if (view->near_count)
		return view->near;
	key.slot = 0;
	return map_lookup(&slots, &key);
}

/* The same on every node, so that they all lead a client to the same endpoint (FNV-1a). */
INLINE __u32 hash_of(const struct address *address)
{
	__u32 hash = 0x811c9dc5;

	for (int n = 0; n < ADDRESS_BYTES; n++)
		hash = (hash ^ address->bytes[n]) * 0x01000193;
	return hash;
}

/* A slot by chance, or by the client's hash where the Service asks for it. */
INLINE const struct slot *draw_slot(const struct view *view, __u32 maglev_size,
				    const struct address *client)
{
	__u32 number = 0;

	if (maglev_size) {
		struct slot_key key = { .id = view->id, .slot = hash_of(client) % maglev_size };
		__u32 *found = map_lookup(&maglev, &key);

		if (found)
			number = *found;
		return find_slot(view, number);
	}
	if (view->count > 1)
		number = random_u32() % view->count;
	const struct slot *slot = find_slot(view, number);
	if (!slot || slot->keep == KEEP_ALWAYS || random_u32() < slot->keep)
		return slot;
	return find_slot(view, slot->alias);
}

INLINE __u32 now_s(void)
{
	return ktime_ns() / NS_PER_S;
}

/* The endpoint that a client got before, if it still is one and the client came back in time. */
INLINE bool find_affinity(const struct service *service, const struct affinity_key *key,
			  struct endpoint *endpoint)
{
	struct affinity *known = map_lookup(&affinities, key);
	__u32 now = now_s();

	if (!known || now - known->used_s >= service->affinity_timeout_s)
		return false;
	__builtin_memcpy(endpoint->address, known->address, ADDRESS_BYTES);
	endpoint->port = known->port;
	if (!is_member(key->id, (struct address *)endpoint->address, endpoint->port))
		return false;
	known->used_s = now;
	return true;
}

INLINE void remember_affinity(const struct affinity_key *key, const struct endpoint *endpoint)
{
	struct affinity value = { .port = endpoint->port, .used_s = now_s() };

	__builtin_memcpy(value.address, endpoint->address, ADDRESS_BYTES);
	map_update(&affinities, key, &value, BPF_ANY);
}

/* Chooses an endpoint for a new flow. Port 0 of the endpoint: the port that the client asked for.
 * Whether the source may come has been asked before.
 *
 * `client` is who asks: its address; at the socket, where it has none yet, what names its network
 * namespace. `outside`: of another node or outside the cluster, neither a pod of this node nor the
 * node itself.
 */
INLINE enum answer choose(const struct service *service, const struct address *client, bool outside,
			  struct endpoint *endpoint)
{
	bool other_view = has_outside_view(service, outside);
	struct view view = view_of(service, other_view);
	struct affinity_key key = { .id = view.id };

	if (view.count == 0) {
		__u32 reject = other_view ? OUTSIDE_REJECT : REJECT;
		return service->flags & reject ? REFUSED : IGNORED;
	}
	__builtin_memcpy(endpoint->zero, (__u8[2]){}, sizeof(endpoint->zero));
	if (service->affinity_timeout_s) {
		__builtin_memcpy(key.client, client, ADDRESS_BYTES);
		if (find_affinity(service, &key, endpoint))
			return CHOSEN;
	}
	const struct slot *slot = draw_slot(&view, service->maglev_size, client);
	if (!slot)
		return IGNORED;
	__builtin_memcpy(endpoint->address, slot->address, ADDRESS_BYTES);
	endpoint->port = slot->port;
	if (service->affinity_timeout_s)
		remember_affinity(&key, endpoint);
	return CHOSEN;
}

/* Answers whether a flow to a chosen endpoint needs an address of this node as its source. A pod
 * that gets itself needs one (hairpin): with its own address on both sides it would take the
 * answer for its own packet.
 */
INLINE bool needs_masquerade(const struct service *service, bool outside,
			     const struct address *source, const struct endpoint *endpoint)
{
	if (has_outside_view(service, outside))
		return false;
	if (service->flags & MASQUERADE || !is_own_pod(source))
		return true;
	return is_same_address(source, (const struct address *)endpoint->address);
}
