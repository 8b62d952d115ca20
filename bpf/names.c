/* Answers plain questions for the addresses of the cluster's names at the ingress of the node's end
 * of a pod's link: the packet itself becomes the answer and goes back. Whatever is not exactly such
 * a question goes on to the worker (crates/dns), which gives the same answers and all others. A
 * search path is the worker's too: only names that exist are known here.
 *
 * A question is compared as a whole, so nothing of it need be understood: bytes that equal a name
 * on the wire up to its last label are that name (RFC 1035 section 3.1).
 */
#include "reply.h"

#define DNS_PORT BE16(53)
#define DNS_TYPE_A BE16(1)
#define DNS_TYPE_SOA BE16(6)
#define DNS_TYPE_AAAA BE16(28)
#define DNS_TYPE_OPT BE16(41)
#define DNS_CLASS_IN BE16(1)
#define DNS_RESPONSE BE16(0x8000)
#define DNS_AUTHORITATIVE BE16(0x0400)
#define DNS_RECURSION_DESIRED BE16(0x0100)
#define DNS_RECURSION_AVAILABLE BE16(0x0080)
#define DNS_AUTHENTIC_DATA BE16(0x0020)
#define DNS_CHECKING_DISABLED BE16(0x0010)
/* A pointer to the name of the question (RFC 1035 section 4.1.4). */
#define DNS_QUESTION_NAME 0xc00c
#define DNS_POINTER 0xc000
/* What this node takes by UDP (DNS flag day 2020). */
#define DNS_UDP_OCTETS BE16(1232)

struct udp_header {
	__u16 source, destination, bytes, checksum;
};

struct dns_header {
	__u16 id, flags, questions, answers, authorities, additionals;
};

struct dns_question_end {
	__u16 type, class;
} __attribute__((packed));

struct dns_record {
	__u16 name, type, class;
	__u32 ttl_s;
	__u16 octets;
} __attribute__((packed));

struct dns_record_a {
	struct dns_record record;
	__u8 address[4];
} __attribute__((packed));

struct dns_record_aaaa {
	struct dns_record record;
	__u8 address[16];
} __attribute__((packed));

struct dns_opt {
	__u8 name;
	__u16 type, payload_octets;
	__u32 code_version_flags;
	__u16 octets;
} __attribute__((packed));

/* Two names of the root, and five numbers. */
#define SOA_OCTETS_MIN 22
/* The longest question with an OPT record, and the longest answer, up to multiples of 4. */
#define QUESTION_OCTETS_MAX 156
#define ANSWER_OCTETS_MAX 448
_Static_assert(sizeof(struct dns_header) + NAME_OCTETS_MAX + sizeof(struct dns_question_end) +
			       sizeof(struct dns_opt) <= QUESTION_OCTETS_MAX, "questions");
_Static_assert(sizeof(struct dns_header) + NAME_OCTETS_MAX + sizeof(struct dns_question_end) +
			       NAME_ADDRESSES_MAX * sizeof(struct dns_record_aaaa) +
			       sizeof(struct dns_opt) <= ANSWER_OCTETS_MAX, "addresses");
_Static_assert(sizeof(struct dns_header) + NAME_OCTETS_MAX + sizeof(struct dns_question_end) +
			       sizeof(struct dns_record) + SOA_OCTETS_MAX +
			       sizeof(struct dns_opt) <= ANSWER_OCTETS_MAX, "SOA");
/* Indices are cut by masks where the kernel could not see that they are in range. */
_Static_assert((NAME_ADDRESSES_MAX & (NAME_ADDRESSES_MAX - 1)) == 0, "a power of two");

/* Too much for the stack. */
struct name_scratch {
	struct name_key key;
	/* The name in a question then begins at a multiple of 8. */
	__u32 unused;
	__u8 question[QUESTION_OCTETS_MAX];
	__u8 answer[ANSWER_OCTETS_MAX];
	__u8 records[NAME_ADDRESSES_MAX * sizeof(struct dns_record_aaaa)];
};

/* One question on its way to be an answer. */
struct asked {
	struct packet packet;
	struct udp_header udp;
	struct dns_header header;
	/* Where the DNS message begins in the frame, and its octets. */
	__u32 offset, octets;
	/* Octets of the name and of the whole question. */
	__u32 name_octets, question_octets;
	__u16 type;
	bool has_opt;
};

struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_HASH);
	MAP_NUMBER(max_entries, NAMES_MAX);
	MAP_NUMBER(map_flags, BPF_F_NO_PREALLOC);
	MAP_NUMBER(pinning, PINNED_BY_NAME);
	MAP_TYPE(key, struct name_key);
	MAP_TYPE(value, struct name_addresses);
} names SEC(".maps");

/* The addresses that questions go to. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_HASH);
	MAP_NUMBER(max_entries, NAME_SERVERS_MAX);
	MAP_NUMBER(pinning, PINNED_BY_NAME);
	MAP_TYPE(key, struct address);
	MAP_TYPE(value, __u32);
} name_servers SEC(".maps");

/* By index of the node's end of a pod's link. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_HASH);
	MAP_NUMBER(max_entries, NAME_LINKS_MAX);
	MAP_NUMBER(pinning, PINNED_BY_NAME);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, struct name_link);
} name_links SEC(".maps");

/* By the same index; written here alone. */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_LRU_HASH);
	MAP_NUMBER(max_entries, NAME_LINKS_MAX);
	MAP_NUMBER(pinning, PINNED_BY_NAME);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, struct name_spent);
} name_spent SEC(".maps");

struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_ARRAY);
	MAP_NUMBER(max_entries, 1);
	MAP_NUMBER(pinning, PINNED_BY_NAME);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, struct name_settings);
} name_settings SEC(".maps");

/* Until when, by the kernel's clock, in nanoseconds. Who writes the maps renews it: rules that the
 * worker got since then may be of names here.
 */
struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_ARRAY);
	MAP_NUMBER(max_entries, 1);
	MAP_NUMBER(pinning, PINNED_BY_NAME);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, __u64);
} name_lease SEC(".maps");

struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	MAP_NUMBER(max_entries, NAME_REASONS);
	MAP_NUMBER(pinning, PINNED_BY_NAME);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, __u64);
} name_counters SEC(".maps");

struct {
	MAP_NUMBER(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	MAP_NUMBER(max_entries, 1);
	MAP_TYPE(key, __u32);
	MAP_TYPE(value, struct name_scratch);
} name_scratch SEC(".maps");

INLINE int end_with(enum name_reason reason, int verdict)
{
	__u32 key = reason;
	__u64 *counter = map_lookup(&name_counters, &key);

	if (counter)
		*counter += 1;
	return verdict;
}

/* Whether it came from the pod itself: others' rules drop the rest, further on. */
INLINE bool is_own_source(struct __sk_buff *skb, const struct packet *packet,
			  const struct name_link *link)
{
	__u8 mac[6];

	if (skb_load_bytes(skb, sizeof(mac), mac, sizeof(mac)) || !is_same_mac(mac, link->mac))
		return false;
	if (packet->family == ETHERNET_IPV4)
		return packet->source.words[3] == *(const __u32 *)link->ipv4;
	const struct address *own = (const struct address *)link->ipv6;
	return is_same_address(&packet->source, own);
}

/* Copies the name of the question in lower case, with zeros behind it. */
INLINE void read_name(struct name_scratch *scratch)
{
	const __u64 ones = 0x0101010101010101ull, high = 0x80 * ones;
	__u64 *to = (__u64 *)scratch->key.name;
	const __u64 *from = (const __u64 *)(scratch->question + sizeof(struct dns_header));
	__u64 wanted = ~0ull;

#pragma clang loop unroll(full)
	for (__u32 word = 0; word < NAME_OCTETS_MAX / 8; word++) {
		/* The first octet in the lowest bits. */
		__u64 octets = LE64(from[word]);
		/* Lengths are below the letters, so all octets can be taken for letters. */
		__u64 low = octets & ~high;
		__u64 from_a = low + (0x80 - 'A') * ones, beyond_z = low + (0x7f - 'Z') * ones;
		__u64 upper = (from_a ^ beyond_z) & high & ~octets;
		octets |= upper >> 2;
		/* The lowest bit of the first zero octet. */
		__u64 zeros = (octets - ones) & ~octets & high;
		__u64 first = zeros & (0 - zeros);
		octets &= wanted;
		if (first) {
			octets &= (first >> 7) - 1;
			wanted = 0;
		}
		to[word] = LE64(octets);
	}
}

/* Reads up to the message's header. False: not for us to answer. */
INLINE bool read_question(struct __sk_buff *skb, struct asked *asked, struct name_scratch *scratch)
{
	__u32 place = asked->packet.payload_offset;
	/* Of 64 bits: older kernels see no bounds of half a register. */
	__u64 octets;

	if (skb->gso_size || skb_load_bytes(skb, place, &asked->udp, sizeof(asked->udp)))
		return false;
	octets = BE16(asked->udp.bytes);
	octets -= sizeof(asked->udp);
	/* The compiler would join the next lines with this one, and the kernel not see the bounds. */
	asm volatile("" : "+r"(octets));
	if (octets < sizeof(asked->header) || octets > QUESTION_OCTETS_MAX)
		return false;
	__builtin_memset(scratch->question, 0, sizeof(scratch->question));
	asked->offset = place + sizeof(asked->udp);
	if (skb_load_bytes(skb, asked->offset, scratch->question, octets))
		return false;
	asked->octets = octets;
	__builtin_memcpy(&asked->header, scratch->question, sizeof(asked->header));
	const struct dns_header *header = &asked->header;
	__u16 harmless = DNS_RECURSION_DESIRED | DNS_AUTHENTIC_DATA | DNS_CHECKING_DISABLED;
	return (header->flags & ~harmless) == 0 && header->questions == BE16(1) &&
	       !header->answers && !header->authorities && !(header->additionals & ~BE16(1));
}

/* Reads what follows the name. False: not for us to answer. */
INLINE bool read_end(struct asked *asked, const struct name_scratch *scratch, __u64 name_octets)
{
	struct dns_question_end end;
	struct dns_opt opt;

	asm volatile("" : "+r"(name_octets));
	if (name_octets > NAME_OCTETS_MAX)
		return false;
	const __u8 *place = scratch->question + sizeof(struct dns_header) + name_octets;
	__builtin_memcpy(&end, place, sizeof(end));
	__builtin_memcpy(&opt, place + sizeof(end), sizeof(opt));
	asked->name_octets = name_octets;
	asked->question_octets = name_octets + sizeof(end);
	asked->type = end.type;
	asked->has_opt = asked->header.additionals;
	__u32 expected = sizeof(struct dns_header) + asked->question_octets;
	if (asked->has_opt) {
		expected += sizeof(opt);
		/* Without options, of version 0, and without the flag for signatures. */
		if (opt.name || opt.type != DNS_TYPE_OPT || opt.code_version_flags || opt.octets)
			return false;
	}
	return asked->octets == expected && end.class == DNS_CLASS_IN &&
	       (end.type == DNS_TYPE_A || end.type == DNS_TYPE_AAAA);
}

/* Whether the pod may have one more answer now. */
INLINE bool may_have(__u32 link_index, const struct name_settings *settings)
{
	struct name_spent *spent = map_lookup(&name_spent, &link_index);
	__u64 now_ns = ktime_ns();

	if (!spent) {
		struct name_spent first = { .began_ns = now_ns, .answers = 1 };
		map_update(&name_spent, &link_index, &first, BPF_ANY);
		return true;
	}
	if (now_ns - spent->began_ns > NAME_WINDOW_MS * 1000000ull) {
		spent->began_ns = now_ns;
		spent->answers = 0;
	}
	/* Processors count past each other now and then; the limit is no promise. */
	spent->answers += 1;
	return spent->answers <= settings->answers_max;
}

/* Many clients use the first address only. The client's own random number turns the list, as the
 * worker turns it.
 */
INLINE __u32 write_addresses(struct name_scratch *scratch, const struct asked *asked,
			     const struct name_addresses *found, const struct name_settings *settings,
			     __u32 count)
{
	bool is_ipv4 = asked->type == DNS_TYPE_A;
	struct dns_record_a *ipv4 = (struct dns_record_a *)scratch->records;
	struct dns_record_aaaa *ipv6 = (struct dns_record_aaaa *)scratch->records;
	struct dns_record record = {
		.name = BE16(DNS_QUESTION_NAME),
		.type = asked->type,
		.class = DNS_CLASS_IN,
		.ttl_s = BE32(settings->ttl_s),
		.octets = is_ipv4 ? BE16(4) : BE16(16),
	};
	__u32 turn = BE16(asked->header.id);

	for (__u32 index = 0; index < NAME_ADDRESSES_MAX; index++) {
		if (index >= count)
			break;
		__u32 chosen = (turn + index) % count & (NAME_ADDRESSES_MAX - 1);
		if (is_ipv4) {
			ipv4[index].record = record;
			__builtin_memcpy(ipv4[index].address, found->ipv4 + 4 * chosen, 4);
		} else {
			ipv6[index].record = record;
			__builtin_memcpy(ipv6[index].address, found->ipv6 + 16 * chosen, 16);
		}
	}
	return count * (is_ipv4 ? sizeof(*ipv4) : sizeof(*ipv6));
}

/* Writes the records behind the question. Answers the octets of the whole message, or 0. */
INLINE __u32 write_records(struct __sk_buff *skb, struct name_scratch *scratch,
			   const struct asked *asked, const struct name_addresses *found,
			   const struct name_settings *settings, __u32 count)
{
	struct dns_opt opt = { .type = DNS_TYPE_OPT, .payload_octets = DNS_UDP_OCTETS };
	__u32 place = asked->offset + sizeof(struct dns_header) + asked->question_octets;
	struct dns_record soa = {};
	__u64 octets;

	if (count)
		octets = write_addresses(scratch, asked, found, settings, count);
	else
		octets = settings->soa_octets;
	__u32 all = octets + (count ? 0 : sizeof(soa));
	__u32 end = place + all + (asked->has_opt ? sizeof(opt) : 0);
	if (skb_change_tail(skb, end, 0))
		return 0;
	asm volatile("" : "+r"(octets));
	if (count) {
		/* Lower bounds that the kernel keeps; 0 alone is none to older ones. */
		if (octets < sizeof(struct dns_record) || octets > sizeof(scratch->records) ||
		    skb_store_bytes(skb, place, scratch->records, octets, 0))
			return 0;
	} else {
		/* The zone's name is the end of the question's. */
		__u32 zone = sizeof(struct dns_header) + asked->name_octets - settings->zone_octets;
		soa.name = BE16(DNS_POINTER | zone);
		soa.type = DNS_TYPE_SOA;
		soa.class = DNS_CLASS_IN;
		soa.ttl_s = BE32(settings->negative_ttl_s);
		soa.octets = BE16(octets);
		if (octets < SOA_OCTETS_MIN || octets > SOA_OCTETS_MAX ||
		    skb_store_bytes(skb, place, &soa, sizeof(soa), 0) ||
		    skb_store_bytes(skb, place + sizeof(soa), settings->soa, octets, 0))
			return 0;
	}
	if (asked->has_opt && skb_store_bytes(skb, place + all, &opt, sizeof(opt), 0))
		return 0;
	return end - asked->offset;
}

/* The difference of the two messages' sums; both are in the scratch, with zeros behind them. By
 * itself, so that bounds stay in registers, where the kernel sees them.
 */
static __attribute__((noinline)) bool sum_difference(struct __sk_buff *skb,
						     struct name_scratch *scratch,
						     const struct asked *asked, __u64 octets,
						     __s64 *difference)
{
	__u64 before = (asked->octets + 3) & ~3u, after = (octets + 3) & ~3ull;

	asm volatile("" : "+r"(octets), "+r"(before), "+r"(after));
	if (octets < 4 || octets > ANSWER_OCTETS_MAX || after < 4 || after > ANSWER_OCTETS_MAX ||
	    before < 4 || before > QUESTION_OCTETS_MAX)
		return false;
	*(__u32 *)(scratch->answer + after - 4) = 0;
	if (skb_load_bytes(skb, asked->offset, scratch->answer, octets))
		return false;
	__s64 sum = csum_diff(scratch->question, before, NULL, 0, 0);
	*difference = csum_diff(NULL, 0, scratch->answer, after, sum);
	return true;
}

/* Makes the headers those of an answer. The checksum is corrected, not computed: it may be one that
 * a device shall complete, and then stands for the addresses and the length alone.
 */
INLINE bool write_headers(struct __sk_buff *skb, struct name_scratch *scratch,
			  const struct asked *asked, __u32 octets, __u32 count)
{
	const struct packet *packet = &asked->packet;
	__u32 udp_octets = octets + sizeof(struct udp_header);
	__u32 place = asked->offset - sizeof(struct udp_header);
	__u32 checksum = place + __builtin_offsetof(struct udp_header, checksum);
	struct udp_header udp = {
		.source = asked->udp.destination,
		.destination = asked->udp.source,
		.bytes = BE16(udp_octets),
		.checksum = asked->udp.checksum,
	};
	struct dns_header header = asked->header;
	__s64 difference;

	header.flags = DNS_RESPONSE | DNS_AUTHORITATIVE | DNS_RECURSION_AVAILABLE |
		       (header.flags & (DNS_RECURSION_DESIRED | DNS_CHECKING_DISABLED));
	header.answers = BE16(count);
	header.authorities = count ? 0 : BE16(1);
	if (skb_store_bytes(skb, place, &udp, sizeof(udp), 0) ||
	    skb_store_bytes(skb, asked->offset, &header, sizeof(header), 0) ||
	    !sum_difference(skb, scratch, asked, octets, &difference) ||
	    l4_csum_replace(skb, checksum, 0, difference, BPF_F_MARK_MANGLED_0) ||
	    l4_csum_replace(skb, checksum, asked->udp.bytes, udp.bytes,
			    BPF_F_MARK_MANGLED_0 | 2) ||
	    l4_csum_replace(skb, checksum, asked->udp.bytes, udp.bytes,
			    BPF_F_MARK_MANGLED_0 | BPF_F_PSEUDO_HDR | 2))
		return false;
	if (packet->family == ETHERNET_IPV4) {
		struct ipv4 outer;
		answer_ipv4(packet, PROTOCOL_UDP, sizeof(outer) + udp_octets, &outer);
		return skb_store_bytes(skb, LINK_BYTES, &outer, sizeof(outer), 0) == 0;
	}
	struct ipv6 outer;
	answer_ipv6(packet, PROTOCOL_UDP, udp_octets, &outer);
	return skb_store_bytes(skb, LINK_BYTES, &outer, sizeof(outer), 0) == 0;
}

INLINE int answer(struct __sk_buff *skb, struct name_scratch *scratch, const struct asked *asked,
		  const struct name_addresses *found, const struct name_settings *settings)
{
	__u32 count = asked->type == DNS_TYPE_A ? found->ipv4_count : found->ipv6_count;

	if (count > NAME_ADDRESSES_MAX || (!count && !settings->soa_octets))
		return end_with(NAME_PASSED_OTHER, TC_NEXT);
	if (!may_have(skb->ifindex, settings))
		return end_with(NAME_DROPPED_FLOOD, TC_DROP);
	__u32 octets = write_records(skb, scratch, asked, found, settings, count);
	if (!octets || !write_headers(skb, scratch, asked, octets, count) || !swap_macs(skb))
		return end_with(NAME_DROPPED_MAKING, TC_DROP);
	return end_with(count ? NAME_ANSWERED : NAME_NO_DATA, redirect(skb->ifindex, 0));
}

SEC("classifier")
int answer_name(struct __sk_buff *skb)
{
	__u32 link_index = skb->ifindex, only = 0;
	__u64 *until_ns = map_lookup(&name_lease, &only);
	struct name_link *link = map_lookup(&name_links, &link_index);
	struct name_settings *settings = map_lookup(&name_settings, &only);
	struct name_scratch *scratch = map_lookup(&name_scratch, &only);
	struct ethernet *ethernet = (void *)(long)skb->data;
	struct asked asked = {};
	struct packet *packet = &asked.packet;

	if (!link || !settings || !scratch || !until_ns ||
	    (void *)(ethernet + 1) > (void *)(long)skb->data_end)
		return TC_NEXT;
	__u16 protocol = ethernet->protocol;
	if ((protocol != ETHERNET_IPV4 && protocol != ETHERNET_IPV6) || skb->vlan_present ||
	    !read_packet(skb, protocol, LINK_BYTES, packet) || packet->protocol != PROTOCOL_UDP ||
	    !packet->plain || !map_lookup(&name_servers, &packet->destination))
		return TC_NEXT;
	if (!is_own_source(skb, packet, link))
		return end_with(NAME_PASSED_SOURCE, TC_NEXT);
	if (ktime_ns() > *until_ns)
		return end_with(NAME_PASSED_LEASE, TC_NEXT);
	if (!read_question(skb, &asked, scratch) || asked.udp.destination != DNS_PORT)
		return end_with(NAME_PASSED_OTHER, TC_NEXT);
	read_name(scratch);
	struct name_addresses *found = map_lookup(&names, &scratch->key);
	if (!found)
		return end_with(NAME_PASSED_NAME, TC_NEXT);
	if (!read_end(&asked, scratch, found->name_octets))
		return end_with(NAME_PASSED_OTHER, TC_NEXT);
	return answer(skb, scratch, &asked, found, settings);
}
