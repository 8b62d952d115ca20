/* Addresses of both families, as all maps and programs have them. */
#pragma once

#include "bpf.h"
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

INLINE void mapped(struct address *address, __u32 ipv4)
{
	address->words[0] = 0;
	address->words[1] = 0;
	address->words[2] = BE32(0xffff);
	address->words[3] = ipv4;
}

INLINE bool is_mapped(const struct address *address)
{
	return address->halves[0] == 0 && address->words[2] == BE32(0xffff);
}

INLINE bool is_same_address(const struct address *one, const struct address *other)
{
	return one->words[0] == other->words[0] && one->words[1] == other->words[1] &&
	       one->words[2] == other->words[2] && one->words[3] == other->words[3];
}
