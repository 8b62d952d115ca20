/* The little of the kernel's interface to eBPF that our programs use, so that clang alone builds
 * them: no kernel or library headers. Offsets and numbers are those of include/uapi/linux/bpf.h,
 * which the kernel never changes.
 */
#pragma once

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef int __s32;
typedef long long __s64;
/* Not a number: a mask that fits no byte is true all the same. */
typedef _Bool bool;

#define true 1
#define false 0
#define NULL ((void *)0)

#define SEC(name) __attribute__((section(name), used))
/* Checked by the kernel once, whatever calls it: what it is given it may not take for more than its
 * type, and pointers not for valid. Keeps a program within the steps that Linux 6.1 checks, and
 * loads it in a thirtieth of the time: what is only `noinline` is checked anew for all that each of
 * its callers may know.
 */
#define GLOBAL __attribute__((noinline))
#define INLINE static inline __attribute__((always_inline))

/* Declarations of maps: the members of a structure that nobody instantiates in memory. */
#define MAP_NUMBER(name, value) int(*name)[value]
#define MAP_TYPE(name, type) type *name
/* Of a map whose entries are maps: how these are declared. */
#define MAP_VALUES(...) typeof(__VA_ARGS__) *values[]

#define BPF_MAP_TYPE_HASH 1
#define BPF_MAP_TYPE_ARRAY 2
#define BPF_MAP_TYPE_PERCPU_ARRAY 6
#define BPF_MAP_TYPE_LRU_HASH 9
#define BPF_MAP_TYPE_LPM_TRIE 11
#define BPF_MAP_TYPE_ARRAY_OF_MAPS 12
#define BPF_MAP_TYPE_SOCKHASH 18
#define BPF_MAP_TYPE_SK_STORAGE 24
#define BPF_F_NO_PREALLOC 1
/* Pinned by name in the directory that the loader names. */
#define PINNED_BY_NAME 1

/* Undecided: the next program of the hook, and after the last one the kernel's path. */
#define TC_NEXT (-1)
#define TC_DROP 2
#define PACKET_HOST 0
#define BPF_F_RECOMPUTE_CSUM 1
#define BPF_F_PSEUDO_HDR 16
#define BPF_F_MARK_MANGLED_0 32
#define BPF_F_INGRESS 1
#define BPF_MTU_CHECK_SEGMENTS 1
#define BPF_ANY 0
#define BPF_NOEXIST 1
#define BPF_SK_STORAGE_GET_F_CREATE 1

#define AF_INET 2
#define AF_INET6 10

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define BE16(x) ((__u16)__builtin_bswap16((__u16)(x)))
#define BE32(x) ((__u32)__builtin_bswap32((__u32)(x)))
#define LE64(x) (x)
#else
#define BE16(x) ((__u16)(x))
#define BE32(x) ((__u32)(x))
#define LE64(x) ((__u64)__builtin_bswap64((__u64)(x)))
#endif

/* A packet as programs of the hook `tc` see it. */
struct __sk_buff {
	__u32 len, pkt_type, mark, queue_mapping, protocol, vlan_present, vlan_tci, vlan_proto;
	__u32 priority, ingress_ifindex, ifindex, tc_index, cb[5], hash, tc_classid, data, data_end;
	__u32 napi_id, family, remote_ip4, local_ip4, remote_ip6[4], local_ip6[4];
	__u32 remote_port, local_port, data_meta;
	__u64 flow_keys, tstamp;
	__u32 wire_len, gso_segs;
	__u64 sk;
	__u32 gso_size;
};
_Static_assert(__builtin_offsetof(struct __sk_buff, data) == 76, "data");
_Static_assert(__builtin_offsetof(struct __sk_buff, gso_size) == 176, "gso_size");

/* Where redirect_neigh sends to. */
struct bpf_redir_neigh {
	__u32 nh_family;
	union {
		__u32 ipv4_nh;
		__u32 ipv6_nh[4];
	};
};

/* A TCP socket as programs at its events see it. */
struct bpf_sock_ops {
	__u32 op, reply, args[3], family, remote_ip4, local_ip4, remote_ip6[4], local_ip6[4];
	__u32 remote_port, local_port, is_fullsock, snd_cwnd, srtt_us, bpf_sock_ops_cb_flags, state;
	__u32 rtt_min, snd_ssthresh, rcv_nxt, snd_nxt, snd_una, mss_cache, ecn_flags, rate_delivered;
	__u32 rate_interval_us, packets_out, retrans_out, total_retrans, segs_in, data_segs_in;
	__u32 segs_out, data_segs_out;
};
_Static_assert(__builtin_offsetof(struct bpf_sock_ops, data_segs_out) == 152, "data_segs_out");

#define BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB 4
#define BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB 5

/* A message that a socket sends. */
struct sk_msg_md {
	__u64 data, data_end;
	__u32 family, remote_ip4, local_ip4, remote_ip6[4], local_ip6[4], remote_port, local_port;
	__u32 size;
	__u64 sk;
};
_Static_assert(__builtin_offsetof(struct sk_msg_md, sk) == 72, "sk");

/* An address that a process names to a socket, or is told. */
struct bpf_sock_addr {
	__u32 user_family, user_ip4, user_ip6[4], user_port, family, type, protocol, msg_src_ip4;
	__u32 msg_src_ip6[4];
	__u64 sk;
};
_Static_assert(__builtin_offsetof(struct bpf_sock_addr, sk) == 64, "sk");

/* A frame before the kernel has made a packet of it, at the hook XDP. */
struct xdp_md {
	__u32 data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex;
};

#define XDP_DROP 1
/* The kernel's path, as if there were no program. */
#define XDP_PASS 2
/* Out by the device that it came by. */
#define XDP_TX 3

/* A question to the kernel's routes and neighbours, and the answer. */
struct bpf_fib_lookup {
	__u8 family, l4_protocol;
	__u16 sport, dport;
	/* Host's byte order; of the whole IP packet. */
	__u16 tot_len;
	__u32 ifindex;
	union {
		__u8 tos;
		__u32 flowinfo;
	};
	union {
		__u32 ipv4_src;
		__u32 ipv6_src[4];
	};
	union {
		__u32 ipv4_dst;
		__u32 ipv6_dst[4];
	};
	__u32 vlan;
	__u8 smac[6], dmac[6];
};
_Static_assert(sizeof(struct bpf_fib_lookup) == 64, "bpf_fib_lookup");

#define BPF_FIB_LKUP_RET_SUCCESS 0

#define SK_DROP 0
#define SK_PASS 1

static void *(*const map_lookup)(void *map, const void *key) = (void *)1;
static long (*const map_update)(void *map, const void *key, const void *value,
				__u64 flags) = (void *)2;
static long (*const map_delete)(void *map, const void *key) = (void *)3;
static __u64 (*const ktime_ns)(void) = (void *)5;
static __u32 (*const random_u32)(void) = (void *)7;
static long (*const skb_store_bytes)(struct __sk_buff *skb, __u32 offset, const void *from,
				     __u32 bytes, __u64 flags) = (void *)9;
static long (*const l3_csum_replace)(struct __sk_buff *skb, __u32 offset, __u64 from, __u64 to,
				     __u64 flags) = (void *)10;
static long (*const l4_csum_replace)(struct __sk_buff *skb, __u32 offset, __u64 from, __u64 to,
				     __u64 flags) = (void *)11;
static long (*const redirect)(__u32 link_index, __u64 flags) = (void *)23;
static long (*const skb_load_bytes)(const struct __sk_buff *skb, __u32 offset, void *to,
				    __u32 bytes) = (void *)26;
static __s64 (*const csum_diff)(const void *from, __u32 from_bytes, const void *to, __u32 to_bytes,
				__u32 seed) = (void *)28;
static long (*const skb_change_type)(struct __sk_buff *skb, __u32 type) = (void *)32;
static long (*const skb_change_tail)(struct __sk_buff *skb, __u32 bytes, __u64 flags) = (void *)38;
static long (*const skb_pull_data)(struct __sk_buff *skb, __u32 bytes) = (void *)39;
static __u64 (*const get_socket_cookie)(void *context) = (void *)46;
static long (*const skb_adjust_room)(struct __sk_buff *skb, __s32 bytes, __u32 mode,
				     __u64 flags) = (void *)50;
static long (*const xdp_adjust_head)(struct xdp_md *frame, int bytes) = (void *)44;
static long (*const fib_lookup)(void *context, struct bpf_fib_lookup *question, int bytes,
				__u32 flags) = (void *)69;
static long (*const sock_hash_update)(struct bpf_sock_ops *socket, void *map, void *key,
				      __u64 flags) = (void *)70;
static long (*const msg_redirect_hash)(struct sk_msg_md *message, void *map, void *key,
				       __u64 flags) = (void *)71;
static void *(*const sk_storage_get)(void *map, void *sk, void *value, __u64 flags) = (void *)107;
static __u64 (*const get_netns_cookie)(void *context) = (void *)122;
static long (*const redirect_neigh)(__u32 link_index, struct bpf_redir_neigh *next_hop,
				    int bytes, __u64 flags) = (void *)152;
static long (*const redirect_peer)(__u32 link_index, __u64 flags) = (void *)155;
static long (*const check_mtu)(void *skb, __u32 link_index, __u32 *mtu, int change,
			       __u64 flags) = (void *)163;
