/* The flows of Services, by what a packet says on one side. What the entries mean stands in
 * crates/ebpf-abi/src/flows.rs.
 *
 * Programs find the table of flows in another map, so that one of another size takes over for all of
 * them at one moment. It begins empty: what is in the former alone is brought along by the first who
 * looks for it, and by the loader. In the former nothing is changed any more.
 */
#pragma once

#include "address.h"

/* In a table the longest unused go first where it is full. Of structures that are only pointed to
 * clang writes down those alone that have no name, so what is within has none and sizes for types.
 */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	MAP_NUMBER(max_entries, FLOW_TABLES);
	MAP_NUMBER(pinning, PINNED_BY_NAME);
	MAP_TYPE(key, __u32);
	MAP_VALUES(struct {
		MAP_NUMBER(type, BPF_MAP_TYPE_LRU_HASH);
		MAP_NUMBER(max_entries, FLOWS_DEFAULT);
		MAP_NUMBER(key_size, sizeof(struct flow_key));
		MAP_NUMBER(value_size, sizeof(struct flow));
	});
} flow_tables SEC(".maps");

INLINE void *flow_table(__u32 place)
{
	return map_lookup(&flow_tables, &place);
}

/* Brings an entry of the former table along, if it is there and nobody did. */
static __attribute__((noinline)) struct flow *bring_flow(const struct flow_key *key)
{
	void *former = flow_table(FLOWS_FORMER);
	void *present = flow_table(FLOWS_PRESENT);

	if (!former || !present)
		return NULL;
	struct flow *flow = map_lookup(former, key);
	if (!flow)
		return NULL;
	map_update(present, key, flow, BPF_NOEXIST);
	return map_lookup(present, key);
}

INLINE struct flow *find_flow(const struct flow_key *key)
{
	void *present = flow_table(FLOWS_PRESENT);
	struct flow *flow = present ? map_lookup(present, key) : NULL;

	return flow ? flow : bring_flow(key);
}

INLINE long write_flow(const struct flow_key *key, const struct flow *flow)
{
	void *present = flow_table(FLOWS_PRESENT);

	return present ? map_update(present, key, flow, BPF_ANY) : -1;
}

/* Writes an entry where there is none. */
INLINE long claim_flow(const struct flow_key *key, const struct flow *flow)
{
	void *present = flow_table(FLOWS_PRESENT);

	bring_flow(key);
	return present ? map_update(present, key, flow, BPF_NOEXIST) : -1;
}

/* Of the former table first: it would be brought along again. */
INLINE void forget_flow(const struct flow_key *key)
{
	void *former = flow_table(FLOWS_FORMER);
	void *present = flow_table(FLOWS_PRESENT);

	if (former)
		map_delete(former, key);
	if (present)
		map_delete(present, key);
}
