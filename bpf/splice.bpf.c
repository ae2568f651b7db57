//go:build ignore

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Packet-level splicing of two TCP connections, after the login was done by
 * user space. Needs Linux 5.10.
 *
 *   splice_tc    tc ingress (tcx or clsact): OBSERVE, HOLD, FORWARD
 *   splice_xdp   the same code as an XDP program
 *   egress_tc    tc egress: learns where our stack sends a leg's packets, and
 *                takes options out of our SYN that the client did not offer
 *   flow_control state changes, run by BPF_PROG_TEST_RUN: a live entry is never
 *                rewritten from user space, which would undo the program's own writes
 */
#include "usher.h"
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <stdbool.h>
#include <stddef.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* The same value in tcx (TCX_NEXT) and clsact (TC_ACT_UNSPEC): the next program decides. */
#define NEXT (-1)
#define IP_MF_OR_OFFSET 0x3fff
#define IP_OFFSET 0x1fff
#define VLAN_ID 0x0fff
#define HOP_LIMIT 64
#define MAX_OPTIONS 40
#define OPT_NOP_NOP_TS 0x0101080a
/* Slack of the window check: the other side's window may be scaled by 0, yet be 64 KiB. */
#define WINDOW_SLACK 65536
#define NEVER (~0ULL)

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1048576);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct flow_key);
	__type(value, struct flow);
} flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1048576);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct user_key);
	__type(value, struct user);
} users SEC(".maps");

/* Read and written by user space only: what must outlive the daemon besides packets. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 2097152);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct name_key);
	__type(value, struct name_piece);
} names SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, VERDICT_MAX);
	__type(key, __u32);
	__type(value, struct counter);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 18);
} events SEC(".maps");

/*
 * Room for the TCP options of one packet at a time: no preemption between its
 * users. The cursor lives here too, so that the verifier sees an unknown number
 * in each turn of the walk instead of following every combination of lengths.
 */
struct scratch {
	union {
		__u8 b[64];
		__u32 w[16];
	};
	__u32 cursor;
	__u32 has_ts;
	__u32 tsval;
};
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct scratch);
} scratch SEC(".maps");

/*
 * Ask the kernel for the next hop when the learnt one is in doubt (tc only). As long as
 * packets flow and bring something new, it is right. A packet that repeats what was sent
 * before, or the first one after a pause, goes by the kernel's routes and neighbours,
 * and egress_tc learns from it: a hop that has gone is replaced by the first
 * retransmission (or by the duplicate ACK that answers one).
 */
const volatile bool redirect_neigh = true;
#define HOP_TRUST 500000000ULL /* ns */
/*
 * In skb->tc_index, from splice_tc to egress_tc, which clears it. Not in skb->mark: that is
 * the operator's and selects the route (ip rule fwmark) that is asked for. Not in skb->cb:
 * each layer in between may write to that.
 */
#define HOP_ASKED 0x5553

/* bpf2go makes Go types of what is named in BTF: name what no map mentions. */
const enum flow_state *unused_state __attribute__((unused));
const enum flow_flag *unused_flag __attribute__((unused));
const enum flow_strip *unused_strip __attribute__((unused));
const enum flow_side *unused_side __attribute__((unused));
const enum user_flag *unused_user_flag __attribute__((unused));
const enum verdict *unused_verdict __attribute__((unused));
const struct event *unused_event __attribute__((unused));
const enum event_kind *unused_event_kind __attribute__((unused));
const enum control_op *unused_op __attribute__((unused));
const enum control_result *unused_result __attribute__((unused));
const struct control *unused_control __attribute__((unused));

struct packet {
	/* given */
	__u32 frame;	/* bytes of the frame, Ethernet header included */
	__u32 segments; /* that the wire knows: more than one after GRO */
	/* found by parse() */
	struct tcphdr *tcp;
	__u32 tcp_offset; /* from the start of the frame */
	__u32 payload;	  /* bytes behind the TCP header */
	__u32 odd;	  /* IP options or a fragment: only the key is valid */
	/* found by splice() */
	struct flow *flow;
	__u64 sum;  /* what changed in the TCP checksum, without the pseudo header */
	bool doubt; /* whether the next hop is still the learnt one */
};

/* Of a VLAN (not just of a priority): the tag is beside the frame. */
static __always_inline bool tagged(struct __sk_buff *skb)
{
	return skb->vlan_present && skb->vlan_tci & VLAN_ID;
}

static __always_inline void count(enum verdict v, __u64 bytes)
{
	__u32 i = v;
	struct counter *c = bpf_map_lookup_elem(&counters, &i);

	if (c) {
		c->packets++;
		c->bytes += bytes;
	}
}

static __always_inline void tell(const struct flow_key *key, enum event_kind kind)
{
	/* A full buffer loses the event; the sweep of user space finds the flag. */
	struct event *e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);

	if (!e)
		return;
	e->key = *key;
	e->kind = kind;
	bpf_ringbuf_submit(e, 0);
}

/* One's complement: add (new - old). Words are in network order throughout. */
static __always_inline __u64 sum32(__u64 sum, __u32 old, __u32 new)
{
	return sum + (__u32)~old + new;
}

static __always_inline __u64 sum16(__u64 sum, __u16 old, __u16 new)
{
	return sum + (__u16)~old + new;
}

static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

static __always_inline bool after(__u32 a, __u32 b)
{
	return (__s32)(a - b) > 0;
}

static __always_inline bool within(__u32 a, __u32 b, __u32 window)
{
	return a - b + window <= 2 * window;
}

static __always_inline void mapped(__u8 to[16], __be32 addr)
{
	__u32 *w = (__u32 *)to;

	w[0] = 0;
	w[1] = 0;
	w[2] = bpf_htonl(0xffff);
	w[3] = addr;
}

/*
 * Fills source and destination into src/dst and the ports, in the packet's own
 * sense. Returns false for what is not TCP over Ethernet or shorter than its
 * headers say: the stack knows what to do with it.
 */
static __always_inline bool parse(struct packet *p, void *data, void *end, __u8 src[16],
				  __u8 dst[16], __be16 *sport, __be16 *dport)
{
	struct ethhdr *eth = data;
	struct tcphdr *t;
	__u32 total, len; /* of the IP packet, and of what is TCP in it */

	if ((void *)(eth + 1) > end)
		return false;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = (void *)(eth + 1);

		if ((void *)(ip + 1) > end || ip->protocol != IPPROTO_TCP)
			return false;
		mapped(src, ip->saddr);
		mapped(dst, ip->daddr);
		if (ip->ihl != 5 || (ip->frag_off & bpf_htons(IP_MF_OR_OFFSET))) {
			__be16 *ports = (void *)ip + ip->ihl * 4;

			if (ip->frag_off & bpf_htons(IP_OFFSET) || ip->ihl < 5 || (void *)(ports + 2) > end)
				return false;
			*sport = ports[0];
			*dport = ports[1];
			p->odd = 1;
			return true;
		}
		t = (void *)(ip + 1);
		total = bpf_ntohs(ip->tot_len);
		len = total - sizeof(*ip);
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = (void *)(eth + 1);

		if ((void *)(ip + 1) > end || ip->nexthdr != IPPROTO_TCP)
			return false;
		__builtin_memcpy(src, &ip->saddr, 16);
		__builtin_memcpy(dst, &ip->daddr, 16);
		t = (void *)(ip + 1);
		total = len = bpf_ntohs(ip->payload_len);
	} else {
		return false;
	}
	if ((void *)(t + 1) > end)
		return false;
	p->tcp = t;
	p->tcp_offset = (void *)t - data;
	/* BIG TCP: what GRO has put together does not fit the field. */
	if (!total && p->segments > 1)
		len = p->frame - p->tcp_offset;
	if (t->doff * 4 < sizeof(*t) || t->doff * 4 > len || len > p->frame - p->tcp_offset)
		return false;
	p->payload = len - t->doff * 4;
	*sport = t->source;
	*dport = t->dest;
	return true;
}

static __always_inline __u32 get32(const struct scratch *s, __u32 at)
{
	return (__u32)s->b[at & 63] << 24 | (__u32)s->b[(at + 1) & 63] << 16 |
	       (__u32)s->b[(at + 2) & 63] << 8 | s->b[(at + 3) & 63];
}

static __always_inline void put32(struct scratch *s, __u32 at, __u32 v)
{
	s->b[at & 63] = v >> 24;
	s->b[(at + 1) & 63] = v >> 16;
	s->b[(at + 2) & 63] = v >> 8;
	s->b[(at + 3) & 63] = v;
}

/* Copies the options to the scratch room: there, unlike in a packet, an offset may be a variable. */
static __always_inline struct scratch *load_options(struct tcphdr *t, void *end, __u32 len)
{
	__u32 zero = 0;
	struct scratch *s = bpf_map_lookup_elem(&scratch, &zero);

	if (!s)
		return 0;
#pragma unroll
	for (int i = 0; i < MAX_OPTIONS / 4; i++) {
		__u32 *w = (__u32 *)(t + 1) + i;

		if (4 * i >= len)
			break;
		if ((void *)(w + 1) > end)
			return 0;
		s->w[i] = *w;
	}
	return s;
}

/*
 * Walks the options in the scratch room: notes the timestamp, adds to timestamps
 * and SACK edges. A global function: the verifier looks at it once, not per call.
 * Returns 1, or 0 when the options are malformed.
 */
__noinline int walk_options(__u32 len, __u32 ts_add, __u32 ecr_add, __u32 sack_add)
{
	__u32 zero = 0;
	struct scratch *s = bpf_map_lookup_elem(&scratch, &zero);
	volatile __u32 *cursor;

	if (!s)
		return 0;
	cursor = &s->cursor;
	*cursor = 0;
	s->has_ts = 0;
	for (int i = 0; i < MAX_OPTIONS; i++) {
		__u32 at = *cursor, kind, size;

		if (at >= len)
			return 1;
		kind = s->b[at & 63];
		if (kind == 0)
			return 1;
		if (kind == 1) {
			*cursor = at + 1;
			continue;
		}
		if (at + 1 >= len)
			return 0;
		size = s->b[(at + 1) & 63];
		if (size < 2 || at + size > len)
			return 0;
		if (kind == 8 && size == 10) {
			__u32 tsval = get32(s, at + 2), echo = get32(s, at + 6);

			s->has_ts = 1;
			s->tsval = tsval;
			put32(s, at + 2, tsval + ts_add);
			if (echo)
				put32(s, at + 6, echo + ecr_add);
		} else if (kind == 5) {
			/* SACK: up to four pairs of edges, in the numbers that ack is in */
			for (__u32 edge = 2; edge < 34; edge += 4) {
				if (edge + 4 > size)
					break;
				put32(s, at + edge, get32(s, at + edge) + sack_add);
			}
		}
		*cursor = at + size;
	}
	return 1;
}

/* Translates the options in place; adds what changed to *sum. */
static __always_inline bool options(struct tcphdr *t, void *end, __u32 len, struct flow *f,
				    __u64 *sum)
{
	__u32 *first = (__u32 *)(t + 1);
	struct scratch *s;

	/* Nearly every packet of Linux, macOS and Android. */
	if (len == 12 && (void *)(first + 3) <= end && first[0] == bpf_htonl(OPT_NOP_NOP_TS)) {
		__u32 val = bpf_ntohl(first[1]);
		__u32 new_val = bpf_htonl(val + f->ts_add), new_echo = first[2];

		if (new_echo)
			new_echo = bpf_htonl(bpf_ntohl(new_echo) + f->ecr_add);
		*sum = sum32(sum32(*sum, first[1], new_val), first[2], new_echo);
		first[1] = new_val;
		first[2] = new_echo;
		f->tsval = val;
		return true;
	}
	s = load_options(t, end, len);
	if (!s || !walk_options(len, f->ts_add, f->ecr_add, f->ack_add))
		return false;
	if (s->has_ts)
		f->tsval = s->tsval;
#pragma unroll
	for (int i = 0; i < MAX_OPTIONS / 4; i++) {
		__u32 *w = first + i;

		if (4 * i >= len)
			break;
		if ((void *)(w + 1) > end)
			return false;
		*sum = sum32(*sum, *w, s->w[i]);
		*w = s->w[i];
	}
	return true;
}

/*
 * OBSERVE: record what goes up to the stack. The lock makes this and the change
 * to HOLD one order: whatever passed before HOLD is in end_seq when the control
 * program answers, so a packet that is still on its way up on another CPU
 * cannot be acknowledged by a socket that user space believes to be quiet.
 * The state may have become FORWARD since the caller looked: too late for the
 * stack, whose socket is frozen, and rare enough to leave to a retransmission.
 */
static __always_inline enum verdict observe(struct flow *f, struct packet *p, void *end, __u64 now)
{
	struct tcphdr *t = p->tcp;
	__u32 end_seq = 0, tsval = 0, len;
	__u8 flags = FLAG_SEEN;
	bool rst = false;
	enum verdict v = VERDICT_OBSERVED;

	if (p->odd) {
		flags = FLAG_ODD;
	} else {
		end_seq = bpf_ntohl(t->seq) + p->payload + t->syn + t->fin;
		rst = t->rst;
		len = t->doff * 4 - sizeof(*t);
		if (len && len <= MAX_OPTIONS) {
			struct scratch *s = load_options(t, end, len);

			if (s && walk_options(len, 0, 0, 0) && s->has_ts) {
				tsval = s->tsval;
				flags |= FLAG_TS;
			}
		}
	}

	bpf_spin_lock(&f->lock);
	if (f->state == FLOW_FORWARD || (f->state == FLOW_HOLD && now <= f->deadline)) {
		v = VERDICT_HELD;
		/* Nobody sends it again: the socket must have it, and the hand-over is undone. */
		if (rst && f->state == FLOW_HOLD) {
			f->flags |= FLAG_RST;
			v = VERDICT_OBSERVED;
		}
	} else {
		if (f->state == FLOW_HOLD)
			v = VERDICT_HOLD_EXPIRED;
		if (flags & FLAG_SEEN && (!(f->flags & FLAG_SEEN) || after(end_seq, f->end_seq)))
			f->end_seq = end_seq;
		if (flags & FLAG_TS && (!(f->flags & FLAG_TS) || after(tsval, f->tsval)))
			f->tsval = tsval;
		f->flags |= flags | (rst ? FLAG_RST : 0);
	}
	bpf_spin_unlock(&f->lock);
	return v;
}

/* A FORWARD flow knows the key of the session's other one. */
static __always_inline struct flow *other_direction(struct flow *f)
{
	struct flow_key key;

	__builtin_memcpy(key.remote, f->daddr, 16);
	__builtin_memcpy(key.local, f->saddr, 16);
	key.remote_port = f->dport;
	key.local_port = f->sport;
	return bpf_map_lookup_elem(&flows, &key);
}

/*
 * A RST is believed when its sequence number is exactly what the other side expects
 * (RFC 5961): what it acknowledged last, or the end of what has been sent to it since.
 */
static __always_inline bool exact_reset(struct flow *f, __u32 seq)
{
	struct flow *back = other_direction(f);

	return back && (seq == f->end_seq || back->max_ack + back->ack_add == seq);
}

/* May this packet of a FORWARD flow pass? */
static __always_inline enum verdict admit(struct flow *f, const struct flow_key *key,
					  struct packet *p, __u64 now)
{
	struct tcphdr *t = p->tcp;
	struct user_key uk = { .hash = f->user_hash, .tag = f->user_tag };
	struct user *u;
	__u32 seq, ack;
	__u8 scale;

	if (p->odd)
		return VERDICT_ODD;
	if (t->syn) {
		/* The remote host has forgotten the old connection, or somebody pretends so:
		 * the stack's handshake finds out, and accept() then ends the old session. */
		if (!(f->flags & FLAG_SYN)) {
			f->flags |= FLAG_SYN;
			tell(key, EVENT_SYN);
		}
		f->syn_next = bpf_ntohl(t->seq) + 1;
		return VERDICT_SYN;
	}
	/* The old connection had ended on this side, so what comes behind a SYN is the new
	 * one's, even if its numbers happen to lie near: they do, when ports are reused soon. */
	if (f->flags & FLAG_SYN && f->flags & (FLAG_FIN | FLAG_RST))
		return VERDICT_AFTER_SYN;
	/* Whatever is further away than the largest windows allow is not of this connection.
	 * Before the hand-over the windows were our sockets': their scales count as well. */
	seq = bpf_ntohl(t->seq);
	ack = bpf_ntohl(t->ack_seq);
	/* A host chooses nearby numbers for the same tuple soon after: the window does not tell. */
	if (f->flags & FLAG_SYN && seq == f->syn_next)
		return VERDICT_AFTER_SYN;
	scale = f->in_scale > f->out_scale ? f->in_scale : f->out_scale;
	if (!within(seq, f->end_seq, (65535u << (f->window_scale & 15)) + WINDOW_SLACK) ||
	    (t->ack && !within(ack, f->max_ack, (65535u << (scale & 15)) + WINDOW_SLACK)))
		return f->flags & FLAG_SYN ? VERDICT_AFTER_SYN : VERDICT_OUT_OF_WINDOW;

	u = bpf_map_lookup_elem(&users, &uk);
	if (!u)
		return VERDICT_NO_USER;
	if (u->epoch != f->epoch) {
		if (!(f->flags & FLAG_STOPPED)) {
			f->flags |= FLAG_STOPPED;
			tell(key, EVENT_STOPPED);
		}
		return VERDICT_STOPPED;
	}
	u->last_seen = now;
	return VERDICT_FORWARDED;
}

/* Rewrites the TCP header, but for the checksum, and keeps the flow's books. */
static __always_inline bool rewrite_tcp(struct packet *p, const struct flow_key *key, void *end,
					__u64 now)
{
	struct flow *f = p->flow;
	struct tcphdr *t = p->tcp;
	__u32 seq = bpf_ntohl(t->seq), ack = bpf_ntohl(t->ack_seq);
	__u32 end_seq = seq + p->payload + t->fin;
	__u32 len = t->doff * 4 - sizeof(*t);
	__u32 new_seq = bpf_htonl(seq + f->seq_add), new_ack = bpf_htonl(ack + f->ack_add);
	__u32 window = (__u32)bpf_ntohs(t->window) << (f->in_scale & 15);
	bool news = false;
	__u64 sum = 0;
	__u8 mark = 0;

	if (len > MAX_OPTIONS || (len && !options(t, end, len, f, &sum)))
		return false;
	if (t->fin)
		mark = FLAG_FIN;
	if (t->rst && exact_reset(f, seq))
		mark = FLAG_RST;

	sum = sum32(sum, t->seq, new_seq);
	t->seq = new_seq;
	if (t->ack) {
		sum = sum32(sum, t->ack_seq, new_ack);
		t->ack_seq = new_ack;
		news = after(ack, f->max_ack);
		if (news || ack == f->max_ack) {
			f->max_ack = ack;
			f->window = window;
		}
	}
	if (after(end_seq, f->end_seq)) {
		f->end_seq = end_seq;
		news = true;
	}
	if (f->in_scale != f->out_scale) {
		/* Rounded down: a promise of less is kept, one of more is not. */
		__u32 w = window >> (f->out_scale & 15);
		__be16 new_window = bpf_htons(w > 65535 ? 65535 : w);

		sum = sum16(sum, t->window, new_window);
		t->window = new_window;
	}
	if (f->flags & FLAG_NO_ECN) {
		__be16 *word = (__be16 *)t + 6; /* data offset, reserved, flags */
		__be16 clean = *word & bpf_htons(~0x00c0); /* CWR, ECE */

		sum = sum16(sum, *word, clean);
		*word = clean;
	}
	t->source = f->sport;
	t->dest = f->dport;
	p->sum = sum + f->port_diff;

	p->doubt = !news || now - f->last_seen > HOP_TRUST;
	f->last_seen = now;
	__sync_fetch_and_add(&f->packets, p->segments);
	__sync_fetch_and_add(&f->bytes, p->payload);
	if (mark && !(f->flags & mark)) {
		f->flags |= mark;
		tell(key, mark == FLAG_FIN ? EVENT_FIN : EVENT_RST);
	}
	return true;
}

/* A proxy's packets start their life here: fresh TTL, the next hop's addresses. */
static __always_inline void rewrite_ip(struct packet *p, struct ethhdr *eth)
{
	struct flow *f = p->flow;
	bool no_ecn = f->flags & FLAG_NO_ECN;

	__builtin_memcpy(eth->h_dest, f->dmac, 6);
	__builtin_memcpy(eth->h_source, f->smac, 6);
	if (p->tcp_offset == sizeof(*eth) + sizeof(struct iphdr)) {
		struct iphdr *ip = (void *)(eth + 1);
		__u64 sum = (__u64)(__u16)~ip->check + f->addr_diff;

		__builtin_memcpy(&ip->saddr, f->saddr + 12, 4);
		__builtin_memcpy(&ip->daddr, f->daddr + 12, 4);
		sum = sum16(sum, bpf_htons(ip->ttl << 8), bpf_htons(HOP_LIMIT << 8));
		ip->ttl = HOP_LIMIT;
		if (no_ecn) {
			sum = sum16(sum, bpf_htons(ip->tos), bpf_htons(ip->tos & 0xfc));
			ip->tos &= 0xfc;
		}
		ip->check = ~fold(sum);
	} else {
		struct ipv6hdr *ip = (void *)(eth + 1);

		__builtin_memcpy(&ip->saddr, f->saddr, 16);
		__builtin_memcpy(&ip->daddr, f->daddr, 16);
		ip->hop_limit = HOP_LIMIT;
		if (no_ecn) /* low bits of the traffic class: bits 4-5 of the second byte */
			((__u8 *)ip)[1] &= 0xcf;
	}
}

/* All that tc and XDP have in common. FORWARDED: rewritten, but for the TCP checksum. */
static __always_inline enum verdict splice(struct packet *p, void *data, void *end)
{
	struct flow_key key;
	enum verdict v;
	struct flow *f;
	__u64 now;

	if (!parse(p, data, end, key.remote, key.local, &key.remote_port, &key.local_port))
		return VERDICT_NOT_TCP;
	f = bpf_map_lookup_elem(&flows, &key);
	if (!f)
		return VERDICT_NO_FLOW;
	now = bpf_ktime_get_ns();
	if (f->state != FLOW_FORWARD)
		return observe(f, p, end, now);
	v = admit(f, &key, p, now);
	if (v != VERDICT_FORWARDED)
		return v;
	p->flow = f;
	if (!rewrite_tcp(p, &key, end, now))
		return VERDICT_BAD_OPTIONS;
	rewrite_ip(p, data);
	return VERDICT_FORWARDED;
}

static __always_inline bool passes(enum verdict v)
{
	return v == VERDICT_NOT_TCP || v == VERDICT_NO_FLOW || v == VERDICT_OBSERVED ||
	       v == VERDICT_HOLD_EXPIRED || v == VERDICT_SYN || v == VERDICT_AFTER_SYN;
}

/*
 * Are the headers in the linear part? Where it holds nothing else (what a stack sends over
 * veth, some drivers), to pull more would copy the packet.
 */
static __always_inline bool linear(void *data, void *end)
{
	struct ethhdr *eth = data;
	struct iphdr *ip = (void *)(eth + 1);
	struct tcphdr *t = (void *)(eth + 1) + sizeof(struct ipv6hdr);

	if ((void *)(ip + 1) > end)
		return false;
	if (eth->h_proto == bpf_htons(ETH_P_IP))
		t = (void *)ip + ip->ihl * 4;
	return (void *)(t + 1) <= end && (void *)t + t->doff * 4 <= end;
}

SEC("tc")
int splice_tc(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct packet p = { .frame = skb->len, .segments = skb->gso_segs ? skb->gso_segs : 1 };
	enum verdict v = VERDICT_NOT_TCP;
	__u32 ifindex = 0;

	if (skb->len > end - data && !linear(data, end)) {
		bpf_skb_pull_data(skb, skb->len < 114 ? skb->len : 114);
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
	}
	/* A VLAN's own interface comes later. Here, its tag would go along. */
	if (!tagged(skb))
		v = splice(&p, data, end);
	if (v == VERDICT_FORWARDED) {
		/* By the helper, which knows what CHECKSUM_PARTIAL means: the part of the
		 * pseudo header apart, since only that is in the packet then. */
		__u32 offset = p.tcp_offset + offsetof(struct tcphdr, check);
		__u32 addr_diff = p.flow->addr_diff;

		ifindex = p.flow->ifindex;
		if (bpf_l4_csum_replace(skb, offset, 0, fold(p.sum), 0) ||
		    bpf_l4_csum_replace(skb, offset, 0, addr_diff, BPF_F_PSEUDO_HDR))
			v = VERDICT_REWRITE_FAILED;
	}
	count(v, skb->len);
	if (v != VERDICT_FORWARDED)
		return passes(v) ? NEXT : TC_ACT_SHOT;
	/* Where somebody else uses the index nothing can be learnt: ask for each packet. */
	if (redirect_neigh && (p.doubt || skb->tc_index)) {
		if (!skb->tc_index)
			skb->tc_index = HOP_ASKED;
		return bpf_redirect_neigh(ifindex, 0, 0, 0);
	}
	return bpf_redirect(ifindex, 0);
}

SEC("xdp")
int splice_xdp(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct packet p = { .frame = end - data, .segments = 1 };
	enum verdict v = splice(&p, data, end);

	count(v, p.frame);
	if (v != VERDICT_FORWARDED)
		return passes(v) ? XDP_PASS : XDP_DROP;
	p.tcp->check = ~fold((__u64)(__u16)~p.tcp->check + p.sum + p.flow->addr_diff);
	return bpf_redirect(p.flow->ifindex, 0);
}

/*
 * Parity: a session is spliced only when both legs speak the same options. The
 * client's are known before we dial, so take out of our SYN what it did not offer.
 * Layouts are those that Linux writes (net/ipv4/tcp_output.c, tcp_options_write).
 */
static __always_inline __u64 strip_syn(struct tcphdr *t, void *end, __u8 strip)
{
	__u32 *w = (__u32 *)(t + 1), word, clean;
	__u64 sum = 0;
	bool ts = false;

	if (t->doff < 7 || (void *)(w + 2) > end)
		return sum;
	word = clean = bpf_ntohl(w[1]);
	if (word == 0x0402080a) { /* SACK permitted, then the timestamp's first two bytes */
		if (strip & STRIP_SACK)
			clean = (clean & 0xffff) | 0x01010000;
		if (strip & STRIP_TS) {
			clean = (clean & 0xffff0000) | 0x0101;
			ts = true;
		}
	} else if (word == OPT_NOP_NOP_TS && strip & STRIP_TS) {
		clean = 0x01010101;
		ts = true;
	} else if (word == 0x01010402 && strip & STRIP_SACK) {
		clean = 0x01010101;
	}
	if (ts) {
		if (t->doff < 9 || (void *)(w + 4) > end)
			return sum;
		sum = sum32(sum32(sum, w[2], 0x01010101), w[3], 0x01010101);
		w[2] = w[3] = 0x01010101;
	}
	sum = sum32(sum, w[1], bpf_htonl(clean));
	w[1] = bpf_htonl(clean);
	return sum;
}

/* Records the next hop, unless a hand-over has begun: then it belongs to the other leg. */
static __always_inline bool learn(struct flow *f, struct ethhdr *eth, __u32 ifindex)
{
	__u8 dmac[6], smac[6];
	bool observed;

	if (f->state != FLOW_OBSERVE)
		return false;
	__builtin_memcpy(dmac, eth->h_dest, 6);
	__builtin_memcpy(smac, eth->h_source, 6);
	bpf_spin_lock(&f->lock);
	observed = f->state == FLOW_OBSERVE;
	if (observed) {
		f->ifindex = ifindex;
		__builtin_memcpy(f->dmac, dmac, 6);
		__builtin_memcpy(f->smac, smac, 6);
	}
	bpf_spin_unlock(&f->lock);
	return observed;
}

/*
 * A packet that splice_tc has sent by the kernel's own way shows the next hop of its flow;
 * back is the flow of what comes back. Readers take no lock: a torn address costs a
 * packet, and its retransmission asks again.
 */
static __always_inline void learn_again(struct flow *back, struct ethhdr *eth, __u32 ifindex)
{
	struct flow *f;

	if (back->state != FLOW_FORWARD)
		return;
	f = other_direction(back);
	if (!f || f->state != FLOW_FORWARD || f->ifindex != ifindex)
		return;
	/* Nearly always it is the same: leave the cache line alone. */
	if (__builtin_memcmp(f->dmac, eth->h_dest, 6) || __builtin_memcmp(f->smac, eth->h_source, 6)) {
		__builtin_memcpy(f->dmac, eth->h_dest, 6);
		__builtin_memcpy(f->smac, eth->h_source, 6);
	}
}

static __always_inline enum verdict egress(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct packet p = { .frame = skb->len, .segments = skb->gso_segs };
	struct flow_key key;
	struct flow *f;
	bool asked = skb->ingress_ifindex && skb->tc_index == HOP_ASKED;
	__u64 sum;

	/* Not from a socket of this host: forwarded, most likely by us. Tagged: the VLAN's
	 * own interface had it before, and is the one to send to. */
	if (asked)
		skb->tc_index = 0;
	else if (skb->ingress_ifindex || tagged(skb))
		return VERDICT_EGRESS;
	if (!parse(&p, data, end, key.local, key.remote, &key.local_port, &key.remote_port) || p.odd)
		return VERDICT_EGRESS;
	f = bpf_map_lookup_elem(&flows, &key);
	if (f && asked)
		learn_again(f, data, skb->ifindex);
	if (!f || asked || !learn(f, data, skb->ifindex))
		return VERDICT_EGRESS;
	if (!p.tcp->syn || p.tcp->ack || !f->strip)
		return VERDICT_EGRESS_LEARNT;
	sum = strip_syn(p.tcp, end, f->strip);
	bpf_l4_csum_replace(skb, p.tcp_offset + offsetof(struct tcphdr, check), 0, fold(sum), 0);
	return VERDICT_EGRESS_STRIPPED;
}

SEC("tc")
int egress_tc(struct __sk_buff *skb)
{
	count(egress(skb), skb->len);
	return NEXT;
}

static __always_inline __u32 freeze(struct flow *f, struct leg *l, __u64 deadline)
{
	struct leg seen = {};
	__u32 r = CONTROL_OK;

	bpf_spin_lock(&f->lock);
	if (f->state == FLOW_OBSERVE && f->flags & FLAG_RST) {
		/* It may be on its way to the socket still; when it was not believed, try again. */
		f->flags &= ~FLAG_RST;
		r = CONTROL_UNSETTLED;
	} else if (f->state == FLOW_OBSERVE) {
		f->state = FLOW_HOLD;
		f->deadline = deadline;
		seen.end_seq = f->end_seq;
		seen.tsval = f->tsval;
		seen.ifindex = f->ifindex;
		seen.flags = f->flags;
	} else {
		r = CONTROL_BAD_STATE;
	}
	bpf_spin_unlock(&f->lock);
	l->end_seq = seen.end_seq;
	l->tsval = seen.tsval;
	l->ifindex = seen.ifindex;
	l->flags = seen.flags;
	return r;
}

static __always_inline void thaw(struct flow *f)
{
	bpf_spin_lock(&f->lock);
	if (f->state == FLOW_HOLD)
		f->state = FLOW_OBSERVE;
	bpf_spin_unlock(&f->lock);
}

/*
 * HOLD, in time, and nothing passed up that the socket had not received when it was
 * read? Then nothing passes any more: the deadline may not come before FORWARD.
 */
static __always_inline __u32 settled(struct flow *f, struct leg *l, __u64 now)
{
	__u32 r = CONTROL_OK, rcv_nxt = l->rcv_nxt;

	bpf_spin_lock(&f->lock);
	if (f->state != FLOW_HOLD)
		r = CONTROL_BAD_STATE;
	else if (now > f->deadline)
		r = CONTROL_EXPIRED;
	else if (f->end_seq != rcv_nxt || f->flags & FLAG_RST)
		r = CONTROL_UNSETTLED;
	else
		f->deadline = NEVER;
	bpf_spin_unlock(&f->lock);
	return r;
}

/* Everything but the state. Nobody reads these fields before FORWARD. */
static __always_inline void prepare(struct flow *f, struct leg *l, struct leg *other, __u64 now)
{
	/* Packets of this flow leave on the other leg: as its socket would send them. */
	__builtin_memcpy(f->saddr, other->key.local, 16);
	__builtin_memcpy(f->daddr, other->key.remote, 16);
	f->sport = other->key.local_port;
	f->dport = other->key.remote_port;
	f->seq_add = l->seq_add;
	f->ack_add = l->ack_add;
	f->ts_add = l->ts_add;
	f->ecr_add = l->ecr_add;
	f->addr_diff = l->addr_diff;
	f->port_diff = l->port_diff;
	f->in_scale = l->in_scale;
	f->out_scale = l->out_scale;
	f->window_scale = l->window_scale;
	f->flags = l->no_ecn ? FLAG_NO_ECN : 0;
	f->end_seq = l->rcv_nxt;
	f->max_ack = l->snd_nxt;
	f->window = l->window;
	f->user_hash = l->user_hash;
	f->user_tag = l->user_tag;
	f->epoch = l->epoch;
	f->name = l->name;
	f->protocol = l->protocol;
	f->side = l->side;
	f->since = l->since;
	f->bytes = l->bytes;
	f->packets = 0;
	f->last_seen = now;
}

/* Learnt for the leg itself, used by the packets that come from the other one. */
static __always_inline void swap_ethernet(struct flow *a, struct flow *b)
{
	__u8 mac[6];
	__u32 ifindex = a->ifindex;

	a->ifindex = b->ifindex;
	b->ifindex = ifindex;
	__builtin_memcpy(mac, a->dmac, 6);
	__builtin_memcpy(a->dmac, b->dmac, 6);
	__builtin_memcpy(b->dmac, mac, 6);
	__builtin_memcpy(mac, a->smac, 6);
	__builtin_memcpy(a->smac, b->smac, 6);
	__builtin_memcpy(b->smac, mac, 6);
}

/* All or nothing: what stays in HOLD keeps its deadline. */
static __always_inline __u32 forward(struct flow *a, struct flow *b, struct leg *la, struct leg *lb,
				     __u64 now)
{
	struct user_key uk = { .hash = la->user_hash, .tag = la->user_tag };
	struct user *u = bpf_map_lookup_elem(&users, &uk);
	__u64 deadline = a->deadline;
	__u32 r;

	/* Its packets would be dropped. */
	if (!u || u->epoch != la->epoch)
		return CONTROL_NO_USER;
	r = settled(a, la, now);
	if (r != CONTROL_OK)
		return r;
	r = settled(b, lb, now);
	if (r != CONTROL_OK) {
		bpf_spin_lock(&a->lock);
		a->deadline = deadline;
		bpf_spin_unlock(&a->lock);
		return r;
	}
	prepare(a, la, lb, now);
	prepare(b, lb, la, now);
	swap_ethernet(a, b);
	bpf_spin_lock(&a->lock);
	a->state = FLOW_FORWARD;
	bpf_spin_unlock(&a->lock);
	bpf_spin_lock(&b->lock);
	b->state = FLOW_FORWARD;
	bpf_spin_unlock(&b->lock);
	return CONTROL_OK;
}

SEC("tc")
int flow_control(struct __sk_buff *skb)
{
	void *end = (void *)(long)skb->data_end;
	struct control *c = (void *)(long)skb->data;
	struct flow_key key;
	struct flow *a, *b;
	__u32 r;

	if ((void *)(c + 1) > end)
		return CONTROL_BAD_OP;
	key = c->legs[0].key;
	a = bpf_map_lookup_elem(&flows, &key);
	key = c->legs[1].key;
	b = bpf_map_lookup_elem(&flows, &key);
	if (!a || !b) {
		/* Half a pair would hold its packets for nothing. */
		if (a && c->op != CONTROL_FREEZE)
			thaw(a);
		if (b && c->op != CONTROL_FREEZE)
			thaw(b);
		c->result = CONTROL_NO_FLOW;
		return 0;
	}
	switch (c->op) {
	case CONTROL_FREEZE:
		r = freeze(a, &c->legs[0], c->deadline);
		if (r == CONTROL_OK) {
			r = freeze(b, &c->legs[1], c->deadline);
			if (r != CONTROL_OK)
				thaw(a);
		}
		break;
	case CONTROL_THAW:
		thaw(a);
		thaw(b);
		r = CONTROL_OK;
		break;
	case CONTROL_FORWARD:
		r = forward(a, b, &c->legs[0], &c->legs[1], bpf_ktime_get_ns());
		break;
	default:
		r = CONTROL_BAD_OP;
	}
	c->result = r;
	return 0;
}
