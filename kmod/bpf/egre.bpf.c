// SPDX-License-Identifier: GPL-2.0
/*
 * EGRE terminator and shortbridge (Trellis, Decisions 2 and 5).
 *
 *   trellis_strip	XDP on the underlay: takes the 42 outer bytes off
 *   trellis_jumbo	the same for frames of several buffers
 *   trellis_deliver	tc ingress of the underlay: into the sliver
 *   trellis_encap	tc ingress of a link's root end: puts them on
 *
 * README.md beside this file draws the packet's way.  No kernel structures are
 * used, so no CO-RE and no BTF of the kernel are needed.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <stdbool.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "trellis_shared.h"

#define IP_VERSION_IHL	0x45		/* version 4, no options */
#define IP_FRAGMENT	0x3fff		/* MF and offset */

#define ENCAP_FLAGS	(BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L4_GRE | \
			 BPF_F_ADJ_ROOM_ENCAP_L2_ETH | BPF_F_ADJ_ROOM_FIXED_GSO)

struct gre_header {
	__be16 flags;
	__be16 proto;
	__be32 key;
};

/* The outer header by offsets: a packed struct would be read byte by byte. */
#define OUTER_IP	ETH_HLEN
#define OUTER_GRE	(OUTER_IP + 20)
#define INNER_ETH	TRELLIS_OVERHEAD
#define SHORTEST	(INNER_ETH + ETH_HLEN)

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, TRELLIS_MAX_LINKS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct trellis_rx_key);
	__type(value, struct trellis_rx);
} trellis_rx SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, TRELLIS_MAX_LINKS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct trellis_tx);
} trellis_tx SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, TRELLIS_MAX_LOCALS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __be32);
	__type(value, struct trellis_local);
} trellis_local SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, TRELLIS_MAX_LINKS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct trellis_stats);
} trellis_stats SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, TRELLIS_DROP_MAX);
	__type(key, __u32);
	__type(value, __u64);
} trellis_drops SEC(".maps");

/* Count a drop for the node and, where one is known, for the link. */
static __always_inline void count_drop(struct trellis_stats *stats, __u32 reason)
{
	__u32 index = reason;	/* own copy: the verifier forgets bounds of what a helper was given */
	__u64 *node = bpf_map_lookup_elem(&trellis_drops, &index);

	if (node)
		(*node)++;
	if (stats && reason < TRELLIS_DROP_MAX)
		stats->drops[reason]++;
}

static __always_inline bool same_mac(const void *a, const void *b)
{
	const __u16 *x = a, *y = b;

	return !((x[0] ^ y[0]) | (x[1] ^ y[1]) | (x[2] ^ y[2]));
}

static __always_inline __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

/* Is the checksum of a 20-byte IPv4 header right? */
static __always_inline bool ip_sum_ok(const struct iphdr *ip)
{
	const __u16 *w = (const void *)ip;
	__u32 sum = 0;

#pragma unroll
	for (int i = 0; i < 10; i++)
		sum += w[i];
	return fold(sum) == 0xffff;
}

/*
 * Exactly EGRE: untagged, no IP options, no fragment, GRE with a key and
 * nothing else, an Ethernet frame inside.  All else is the kernel's.
 */
static __always_inline bool is_egre(__be16 proto, const struct iphdr *ip, const struct gre_header *gre)
{
	return proto == bpf_htons(ETH_P_IP) &&
	       *(const __u8 *)ip == IP_VERSION_IHL &&
	       ip->protocol == IPPROTO_GRE &&
	       !(ip->frag_off & bpf_htons(IP_FRAGMENT)) &&
	       gre->flags == bpf_htons(TRELLIS_GRE_FLAGS) &&
	       gre->proto == bpf_htons(TRELLIS_GRE_PROTO);
}

/*
 * Multi-buffer frames (jumbo MTU) have their headers in the linear part, and
 * the lengths used here are those of the outer IPv4 header.
 */
static __always_inline int strip(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct iphdr *ip = data + OUTER_IP;
	struct gre_header *gre = data + OUTER_GRE;
	struct trellis_stats *stats;
	struct trellis_rx_key key;
	struct trellis_meta *meta;
	struct trellis_rx *rx;
	__u32 length, ifindex;
	__be16 proto;

	if (data + SHORTEST > end || !is_egre(*(__be16 *)(data + 12), ip, gre))
		return XDP_PASS;

	key.key = gre->key;
	key.source = ip->saddr;
	key.local = ip->daddr;
	rx = bpf_map_lookup_elem(&trellis_rx, &key);
	if (!rx) {
		if (!bpf_map_lookup_elem(&trellis_local, &key.local))
			return XDP_PASS;
		count_drop(NULL, TRELLIS_DROP_RX_UNKNOWN);
		return XDP_DROP;
	}
	ifindex = rx->ifindex;
	if (!ifindex) {
		count_drop(NULL, TRELLIS_DROP_RX_NO_LINK);
		return XDP_DROP;
	}
	stats = bpf_map_lookup_elem(&trellis_stats, &ifindex);

	length = bpf_ntohs(ip->tot_len) + ETH_HLEN;
	if (length < SHORTEST || !ip_sum_ok(ip)) {
		count_drop(stats, TRELLIS_DROP_RX_MALFORMED);
		return XDP_DROP;
	}
	proto = *(__be16 *)(data + INNER_ETH + 12);

	/* The underlay's padding is not the sliver's. */
	if (data + length < end) {
		if (bpf_xdp_adjust_tail(ctx, (int)(length - (__u32)(end - data))))
			goto no_room;
	}
	if (bpf_xdp_adjust_head(ctx, TRELLIS_OVERHEAD) ||
	    bpf_xdp_adjust_meta(ctx, -(int)sizeof(*meta)))
		goto no_room;

	data = (void *)(long)ctx->data;
	meta = (void *)(long)ctx->data_meta;
	if ((void *)(meta + 1) > data)
		goto no_room;
	meta->magic = TRELLIS_META_MAGIC;
	meta->ifindex = ifindex;
	__builtin_memcpy(meta->mac, rx->mac, ETH_ALEN);
	meta->proto = proto;

	if (stats) {
		stats->rx_packets++;
		stats->rx_bytes += length;
		stats->rx_last_ns = bpf_ktime_get_coarse_ns();
	}
	return XDP_PASS;

no_room:
	count_drop(stats, TRELLIS_DROP_RX_NO_ROOM);
	return XDP_DROP;
}

SEC("xdp")
int trellis_strip(struct xdp_md *ctx)
{
	return strip(ctx);
}

/*
 * For an MTU that a frame buffer does not hold.  Not for all: generic XDP loses
 * the metadata of a program that takes multi-buffer frames (seen on 6.18).
 */
SEC("xdp.frags")
int trellis_jumbo(struct xdp_md *ctx)
{
	return strip(ctx);
}

SEC("tc")
int trellis_deliver(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	struct trellis_meta *meta = (void *)(long)skb->data_meta;
	struct trellis_stats *stats;
	__u32 ifindex;

	if ((void *)(meta + 1) > data || meta->magic != TRELLIS_META_MAGIC)
		return TC_ACT_UNSPEC;
	if (data + ETH_HLEN > end)
		return TC_ACT_SHOT;

	ifindex = meta->ifindex;
	/* A NIC that takes tags off does so before XDP: this one was the outer frame's. */
	if (skb->vlan_present && meta->proto != bpf_htons(ETH_P_8021Q) &&
	    meta->proto != bpf_htons(ETH_P_8021AD)) {
		stats = bpf_map_lookup_elem(&trellis_stats, &ifindex);
		count_drop(stats, TRELLIS_DROP_RX_OUTER_VLAN);
		return TC_ACT_SHOT;
	}

	/*
	 * The peer does not look at the destination again, so only the sliver's own
	 * frames go there; the veth's eth_type_trans() judges the others.
	 */
	if (!same_mac(data, meta->mac))
		return bpf_redirect(ifindex, 0);
	if (skb->pkt_type != PACKET_HOST)
		bpf_skb_change_type(skb, PACKET_HOST);
	return bpf_redirect_peer(ifindex, 0);
}

/*
 * May a tagged aggregate leave?  bpf_check_mtu() does not count tags, so the
 * segments are measured here: network header up to the end of the payload.
 */
static __always_inline bool tagged_gso_fits(struct __sk_buff *skb, __u32 tags, __u32 mtu)
{
	__u32 l3, l4;
	__u8 b, proto;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (bpf_skb_load_bytes(skb, ETH_HLEN, &b, 1) ||
		    bpf_skb_load_bytes(skb, ETH_HLEN + 9, &proto, 1))
			return false;
		l3 = (b & 0xf) * 4;
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		if (bpf_skb_load_bytes(skb, ETH_HLEN + 6, &proto, 1))
			return false;
		l3 = 40;
	} else {
		return false;
	}
	if (proto == IPPROTO_TCP) {
		if (bpf_skb_load_bytes(skb, ETH_HLEN + l3 + 12, &b, 1))
			return false;
		l4 = (b >> 4) * 4;
	} else if (proto == IPPROTO_UDP) {
		l4 = 8;
	} else {
		return false;
	}
	return l3 + l4 + skb->gso_size + 4 * tags <= mtu;
}

/* MTU of the root end, which the sliver cannot change; VLAN tags count, unlike on a real wire. */
static __always_inline bool fits(struct __sk_buff *skb, __u32 tags)
{
	__u32 mtu = 0;
	long r;

	if (!skb->gso_size)
		return !bpf_check_mtu(skb, 0, &mtu, 4 * tags, 0);
	r = bpf_check_mtu(skb, 0, &mtu, 0, BPF_MTU_CHK_SEGS);
	if (r)
		return false;
	return !tags || tagged_gso_fits(skb, tags, mtu);
}

struct vlan_tag {
	__be16 proto;
	__be16 tci;
};

/* The tag sits in skb metadata: left there it would end up on the outer frame. */
static __always_inline int pop_tag(struct __sk_buff *skb, struct vlan_tag *tag)
{
	tag->proto = (__be16)skb->vlan_proto;
	tag->tci = bpf_htons((__u16)skb->vlan_tci);
	return bpf_skb_vlan_pop(skb);
}

SEC("tc")
int trellis_encap(struct __sk_buff *skb)
{
	struct vlan_tag tag[2] = {};
	__u32 ifindex = skb->ifindex;
	__u32 tags = 0, length, segments, sum, reason;
	struct trellis_stats *stats;
	struct trellis_tx *tx;
	__u32 mac0, mac1, mac2;
	void *data, *end;
	__be16 proto;
	__u64 *out;
	long r;

	tx = bpf_map_lookup_elem(&trellis_tx, &ifindex);
	if (!tx) {
		count_drop(NULL, TRELLIS_DROP_TX_NO_LINK);
		return TC_ACT_SHOT;
	}
	stats = bpf_map_lookup_elem(&trellis_stats, &ifindex);
	if (!(tx->flags & TRELLIS_TX_READY)) {
		reason = TRELLIS_DROP_TX_NO_NEIGHBOUR;
		goto drop;
	}

	/* Nothing a sliver sets may choose its queue, its time or our rules. */
	skb->priority = tx->classid;
	skb->mark = 0;
	skb->tstamp = 0;

	reason = TRELLIS_DROP_TX_FAILED;
	if (skb->vlan_present) {
		if (pop_tag(skb, &tag[0]))
			goto drop;
		tags = 1;
		if (skb->vlan_present) {
			if (pop_tag(skb, &tag[1]))
				goto drop;
			tags = 2;
			if (skb->vlan_present) {
				reason = TRELLIS_DROP_TX_VLAN;
				goto drop;
			}
		}
	}

	if (!fits(skb, tags)) {
		reason = TRELLIS_DROP_TX_MTU;
		goto drop;
	}
	if (skb->len + 4 * tags < TRELLIS_MIN_FRAME &&
	    bpf_skb_change_tail(skb, TRELLIS_MIN_FRAME - 4 * tags, 0))
		goto drop;

	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	if (data + ETH_HLEN > end)
		goto drop;
	mac0 = *(__u32 *)data;
	mac1 = *(__u32 *)(data + 4);
	mac2 = *(__u32 *)(data + 8);
	proto = *(__be16 *)(data + 12);
	length = skb->len + 4 * tags;	/* inner frame with its tags */
	segments = skb->gso_size ? skb->gso_segs : 1;

	if (tags == 0)
		r = bpf_skb_adjust_room(skb, TRELLIS_OVERHEAD, BPF_ADJ_ROOM_MAC,
					ENCAP_FLAGS | BPF_F_ADJ_ROOM_ENCAP_L2(14));
	else if (tags == 1)
		r = bpf_skb_adjust_room(skb, TRELLIS_OVERHEAD + 4, BPF_ADJ_ROOM_MAC,
					ENCAP_FLAGS | BPF_F_ADJ_ROOM_ENCAP_L2(18));
	else
		r = bpf_skb_adjust_room(skb, TRELLIS_OVERHEAD + 8, BPF_ADJ_ROOM_MAC,
					ENCAP_FLAGS | BPF_F_ADJ_ROOM_ENCAP_L2(22));
	if (r) {
		/* Not IP, or encapsulated already: fine unless it must be segmented. */
		if (skb->gso_size) {
			reason = TRELLIS_DROP_TX_GSO;
			goto drop;
		}
		if (bpf_skb_change_head(skb, TRELLIS_OVERHEAD + 4 * tags, 0))
			goto drop;
	}

	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	if (data + SHORTEST + 8 > end) {
		if (bpf_skb_pull_data(skb, SHORTEST + 8))
			goto drop;
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
		if (data + SHORTEST + 8 > end)
			goto drop;
	}

	/* 42 bytes ready-made; only length and checksum depend on the frame. */
	out = data;
	out[0] = tx->header[0];
	out[1] = tx->header[1];
	out[2] = tx->header[2];
	out[3] = tx->header[3];
	out[4] = tx->header[4];
	*(__u16 *)(data + 40) = (__u16)tx->header[5];
	sum = bpf_htons((__u16)(length + TRELLIS_OVERHEAD - ETH_HLEN));
	*(__u16 *)(data + 16) = (__u16)sum;
	*(__u16 *)(data + 24) = (__u16)~fold(sum + tx->sum);

	data += INNER_ETH;
	*(__u32 *)data = mac0;
	*(__u32 *)(data + 4) = mac1;
	*(__u32 *)(data + 8) = mac2;
	data += 2 * ETH_ALEN;
	if (tags) {
		*(struct vlan_tag *)data = tag[0];
		if (tags == 2) {
			*(struct vlan_tag *)(data + 4) = tag[1];
			*(__be16 *)(data + 8) = proto;
		} else {
			*(__be16 *)(data + 4) = proto;
		}
	} else {
		*(__be16 *)data = proto;
	}

	if (stats) {
		stats->tx_packets += segments;
		stats->tx_bytes += length + TRELLIS_OVERHEAD +
				   (segments - 1) * TRELLIS_SEGMENT_OVERHEAD;
	}
	return bpf_redirect(tx->ifindex, 0);

drop:
	count_drop(stats, reason);
	return TC_ACT_SHOT;
}

char _license[] SEC("license") = "GPL";
