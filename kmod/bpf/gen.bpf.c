// SPDX-License-Identifier: GPL-2.0
/*
 * Traffic for benchmarks: run with XDP live frames (BPF_PROG_TEST_RUN), sends
 * a template out of a device.  The kernel recycles the pages without filling
 * them again, so whatever the forwarder wrote is put right on each run.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define TEMPLATE_WORDS	16

struct trellis_gen_config {
	__u32 ifindex;
	__u32 every;		/* send one frame in this many runs */
	__u64 words[TEMPLATE_WORDS];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct trellis_gen_config);
} trellis_config SEC(".maps");

static __u64 runs;

SEC("xdp")
int trellis_gen(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct trellis_gen_config *config;
	__u64 *out = data;
	__u32 zero = 0;

	config = bpf_map_lookup_elem(&trellis_config, &zero);
	if (!config)
		return XDP_DROP;
	if (config->every > 1 && runs++ % config->every)
		return XDP_DROP;

	/* Headers lie in the first 64 bytes of a plain frame, 106 of a tunnelled one. */
	if (data + 8 * 7 > end)
		return XDP_DROP;
#pragma unroll
	for (int i = 0; i < 7; i++)
		out[i] = config->words[i];
	if (data + 8 * 12 <= end) {
#pragma unroll
		for (int i = 7; i < 12; i++)
			out[i] = config->words[i];
	}
	return bpf_redirect(config->ifindex, 0);
}

char _license[] SEC("license") = "GPL";
