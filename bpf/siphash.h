/* SipHash-2-4: whoever does not know its key cannot say what it answers (Aumasson and Bernstein,
 * "SipHash: a fast short-input PRF", 2012).
 */
#pragma once

#include "bpf.h"

struct siphash {
	__u64 a, b, c, d;
};

INLINE __u64 rotated(__u64 word, __u32 bits)
{
	return word << bits | word >> (64 - bits);
}

INLINE void siphash_round(struct siphash *state)
{
	state->a += state->b;
	state->b = rotated(state->b, 13) ^ state->a;
	state->a = rotated(state->a, 32);
	state->c += state->d;
	state->d = rotated(state->d, 16) ^ state->c;
	state->a += state->d;
	state->d = rotated(state->d, 21) ^ state->a;
	state->c += state->b;
	state->b = rotated(state->b, 17) ^ state->c;
	state->c = rotated(state->c, 32);
}

INLINE void siphash_begin(struct siphash *state, __u64 first, __u64 second)
{
	state->a = first ^ 0x736f6d6570736575;
	state->b = second ^ 0x646f72616e646f6d;
	state->c = first ^ 0x6c7967656e657261;
	state->d = second ^ 0x7465646279746573;
}

INLINE void siphash_word(struct siphash *state, __u64 word)
{
	state->d ^= word;
	siphash_round(state);
	siphash_round(state);
	state->a ^= word;
}

/* With the last bytes, seven at most, and how many there were in all. */
INLINE __u64 siphash_end(struct siphash *state, __u64 last, __u64 bytes)
{
	siphash_word(state, bytes << 56 | last);
	state->c ^= 0xff;
	siphash_round(state);
	siphash_round(state);
	siphash_round(state);
	siphash_round(state);
	return state->a ^ state->b ^ state->c ^ state->d;
}
