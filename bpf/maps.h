/* The maps that all programs of a node share, and what counts in them. */
#pragma once

#include "abi.h"

#define ADDRESS_BYTES 16
/* The first 12 bytes of an IPv4 address in a key (RFC 4291 section 2.5.5.2). */
#define MAPPED_PREFIX 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff

struct address {
	union {
		__u8 bytes[ADDRESS_BYTES];
		__u32 words[4];
		__u64 halves[2];
	};
};

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

INLINE bool is_same_address(const struct address *one, const struct address *other)
{
	return one->words[0] == other->words[0] && one->words[1] == other->words[1] &&
	       one->words[2] == other->words[2] && one->words[3] == other->words[3];
}
