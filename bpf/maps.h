/* The maps that all programs of a node share, and what counts in them. */
#pragma once

#include "address.h"

/* By index of the node's end of a pod's link. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_HASH);
	MAP_NUMBER(max_entries, LINKS_MAX);
	MAP_NUMBER(pinning, PINNED_BY_NAME);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, struct link);
} links SEC(".maps");

struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_LPM_TRIE);
	MAP_NUMBER(max_entries, SOURCES_MAX);
	MAP_NUMBER(map_flags, BPF_F_NO_PREALLOC);
	MAP_NUMBER(pinning, PINNED_BY_NAME);
	MAP_TYPE(key, struct source_key);
	MAP_TYPE(value, __u32);
} sources SEC(".maps");

/* By address. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_HASH);
	MAP_NUMBER(max_entries, PODS_MAX);
	MAP_NUMBER(pinning, PINNED_BY_NAME);
	MAP_TYPE(key, struct address);
	MAP_TYPE(value, struct pod);
} pods SEC(".maps");

struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_LPM_TRIE);
	MAP_NUMBER(max_entries, REMOTES_MAX);
	MAP_NUMBER(map_flags, BPF_F_NO_PREALLOC);
	MAP_NUMBER(pinning, PINNED_BY_NAME);
	MAP_TYPE(key, struct remote_key);
	MAP_TYPE(value, struct remote);
} remotes SEC(".maps");

struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_ARRAY);
	MAP_NUMBER(max_entries, 1);
	MAP_NUMBER(pinning, PINNED_BY_NAME);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, struct settings);
} settings SEC(".maps");

/* By reason, one count a processor. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	MAP_NUMBER(max_entries, REASONS);
	MAP_NUMBER(pinning, PINNED_BY_NAME);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, __u64);
} counters SEC(".maps");

INLINE void count(enum reason reason)
{
	__u32 key = reason;
	__u64 *counter = map_lookup(&counters, &key);

	if (counter)
		*counter += 1;
}

INLINE int to_stack(enum reason reason)
{
	count(reason);
	return TC_NEXT;
}

INLINE int drop(enum reason reason)
{
	count(reason);
	return TC_DROP;
}

INLINE struct remote *find_remote(const struct address *address)
{
	struct remote_key key = { .prefix_bits = ADDRESS_BITS };

	__builtin_memcpy(key.address, address, ADDRESS_BYTES);
	return map_lookup(&remotes, &key);
}
