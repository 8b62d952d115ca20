/* The map of the flows of Services, by what a packet says on one side. What the entries mean stands
 * in crates/ebpf-abi/src/flows.rs.
 */
#pragma once

#include "address.h"

/* The longest unused go first where it is full. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_LRU_HASH);
	MAP_NUMBER(max_entries, FLOWS_DEFAULT);
	MAP_NUMBER(pinning, PINNED_BY_NAME);
	MAP_TYPE(key, struct flow_key);
	MAP_TYPE(value, struct flow);
} flows SEC(".maps");
