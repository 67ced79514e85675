// SPDX-License-Identifier: GPL-2.0
/* The far end of a benchmark: counts frames and bytes, keeps none. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct trellis_sink_count {
	__u64 packets;
	__u64 bytes;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct trellis_sink_count);
} trellis_count SEC(".maps");

SEC("xdp")
int trellis_sink(struct xdp_md *ctx)
{
	struct trellis_sink_count *count;
	__u32 zero = 0;

	count = bpf_map_lookup_elem(&trellis_count, &zero);
	if (count) {
		count->packets++;
		count->bytes += ctx->data_end - ctx->data;
	}
	return XDP_DROP;
}

SEC("xdp")
int trellis_pass(struct xdp_md *ctx)
{
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";
