/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the BPF programs and the node manager agree on: map layouts, constants,
 * reasons of drops.  The manager's copy is nodemanager_trellis/substrate/egre.py;
 * tests/kernel/test_egre.py compares the two.
 *
 * Fixed-width types only.  "be" fields are in network order, as on the wire.
 */
#ifndef TRELLIS_SHARED_H
#define TRELLIS_SHARED_H

#include <linux/types.h>

/* Changes when a map's key or value does: pinned maps of another layout are not reused. */
#define TRELLIS_LAYOUT		1

#define TRELLIS_MAX_LINKS	65536
#define TRELLIS_MAX_LOCALS	64

/* Ethernet 14, IPv4 20, GRE 4, key 4 (RFC 2784, RFC 2890). */
#define TRELLIS_OVERHEAD	42
#define TRELLIS_GRE_FLAGS	0x2000	/* K, nothing else, version 0 */
#define TRELLIS_GRE_PROTO	0x6558	/* transparent Ethernet bridging */
#define TRELLIS_MIN_FRAME	60	/* an Ethernet frame without its FCS */

/* A GSO segment's own share of headers: EGRE 42, Ethernet 14, IPv4 20, TCP with timestamps 32. */
#define TRELLIS_SEGMENT_OVERHEAD 108

#define TRELLIS_META_MAGIC	0x7e115c00

enum trellis_drop {
	/* from the wire */
	TRELLIS_DROP_RX_UNKNOWN,	/* key, or source for this key, not known */
	TRELLIS_DROP_RX_NO_LINK,	/* the tunnel is there, no sliver's link behind it */
	TRELLIS_DROP_RX_MALFORMED,	/* lengths or IPv4 checksum wrong */
	TRELLIS_DROP_RX_NO_ROOM,	/* the driver gave no room for metadata */
	TRELLIS_DROP_RX_OUTER_VLAN,	/* the outer frame bore a VLAN tag */
	/* from a sliver */
	TRELLIS_DROP_TX_NO_LINK,	/* this root end has no tunnel */
	TRELLIS_DROP_TX_NO_NEIGHBOUR,	/* the next hop's MAC address is not known yet */
	TRELLIS_DROP_TX_MTU,		/* larger than the link's MTU, GSO segments too */
	TRELLIS_DROP_TX_VLAN,		/* more than two VLAN tags */
	TRELLIS_DROP_TX_GSO,		/* aggregate that is not IP, or is encapsulated already */
	TRELLIS_DROP_TX_FAILED,		/* no memory, or not a frame */
	TRELLIS_DROP_MAX,
};

/* rx: what arrives.  Source is part of the key: a key alone opens nothing. */
struct trellis_rx_key {
	__be32 key;
	__be32 source;
	__be32 local;
};

struct trellis_rx {
	__u32 ifindex;		/* root end of the sliver's veth; 0: reserved, drop */
	__u8 mac[6];		/* the sliver's own address */
	__u16 pad;
};

/* tx: keyed by the root end's ifindex. */
#define TRELLIS_TX_READY	1	/* both MAC addresses in the header are known */

struct trellis_tx {
	__u32 ifindex;		/* underlay device */
	__u32 classid;		/* skb->priority: HTB class, 0 for none */
	__u32 flags;
	__u16 sum;		/* of the outer IPv4 header, tot_len and check being 0, not inverted */
	__u16 pad;
	__u64 header[6];	/* the 42 outer bytes, ready to copy; the last 6 bytes unused */
};

/* locals: our own underlay addresses; only EGRE for these is ours to drop. */
struct trellis_local {
	__u32 ifindex;
};

/* stats: per CPU, keyed by the root end's ifindex.  Bytes are those on the wire (EGRE included). */
struct trellis_stats {
	__u64 tx_packets;
	__u64 tx_bytes;
	__u64 rx_packets;
	__u64 rx_bytes;
	__u64 rx_last_ns;	/* CLOCK_MONOTONIC, coarse */
	__u64 drops[TRELLIS_DROP_MAX];
};

/* From strip to deliver, in front of the inner frame. */
struct trellis_meta {
	__u32 magic;
	__u32 ifindex;
	__u8 mac[6];
	__be16 proto;		/* inner frame's Ethernet type */
};

#endif
