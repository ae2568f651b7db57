/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the kernel programs and user space share. bpf2go makes the Go side of
 * every type below; nothing here is typed a second time.
 *
 * Addresses are 16 bytes in network order, IPv4 as ::ffff:a.b.c.d, so that one
 * key serves both families and no IPv6 address can be mistaken for an IPv4 one.
 * Ports are in network order. Sequence numbers, timestamps and windows are in
 * host order.
 */
#ifndef USHER_H
#define USHER_H

#include <linux/types.h>
#include <linux/bpf.h>

/* Bump when the layout of a pinned map changes: the pin directory is named after it. */
#define USHER_LAYOUT 1

/* A flow is one direction of a session, keyed by the tuple as its packets arrive. */
struct flow_key {
	__u8 remote[16];
	__u8 local[16];
	__be16 remote_port;
	__be16 local_port;
};

/*
 *   accept()/connect()            control: freeze           control: forward
 * ────────────────────► OBSERVE ────────────────────► HOLD ───────────────────► FORWARD
 *                          ▲                           │
 *                          └───────────────────────────┘
 *                           control: thaw, or a deadline
 */
enum flow_state {
	FLOW_OBSERVE = 1, /* packets go to the stack; what goes up is recorded */
	FLOW_HOLD = 2,	  /* packets are dropped until the deadline, then go to the stack again */
	FLOW_FORWARD = 3, /* packets are rewritten and leave towards the other side */
};

enum flow_flag {
	FLAG_SEEN = 1,	  /* at least one packet was recorded in OBSERVE */
	FLAG_FIN = 2,	  /* forwarded a FIN */
	FLAG_RST = 4,	  /* FORWARD: forwarded a RST with the exact sequence number; before: passed a RST */
	FLAG_SYN = 8,	  /* a SYN on this tuple went to the stack: the remote host may have forgotten the flow */
	FLAG_ODD = 16,	  /* saw IP options or a fragment: such a session is not spliced */
	FLAG_STOPPED = 32, /* a packet met an older epoch than its user's */
	FLAG_NO_ECN = 64, /* only one leg negotiated ECN: clear its bits */
	FLAG_TS = 128,	  /* a timestamp was recorded */
};

enum flow_strip {
	STRIP_TS = 1,	/* take the timestamp option out of our SYN */
	STRIP_SACK = 2, /* take SACK-permitted out of our SYN */
};

enum flow_side {
	SIDE_CLIENT = 0,  /* packets that arrive from the client */
	SIDE_BACKEND = 1, /* packets that arrive from the backend */
};

/*
 * 160 bytes: with the key and the hash table's own 48 + 8 bytes an element
 * just fits the kernel's 256-byte slab. Mind that before adding a field.
 */
struct flow {
	struct bpf_spin_lock lock; /* state, end_seq and deadline, until FORWARD */
	__u32 state;		   /* enum flow_state */
	/* Interface and next hop as our stack chose them: towards `remote`; from FORWARD on, of the other leg. */
	__u32 ifindex;
	__u8 dmac[6];
	__u8 smac[6];

	/* What follows describes the other leg, towards which packets leave. */
	__u8 saddr[16];
	__u8 daddr[16];
	__be16 sport;
	__be16 dport;
	__u32 seq_add;
	__u32 ack_add;
	__u32 ts_add;
	__u32 ecr_add;
	__u16 addr_diff; /* one's complement sums of (new - old), native order */
	__u16 port_diff;
	__u8 in_scale;	 /* window scale of arriving packets */
	__u8 out_scale;	 /* window scale that the other side expects */
	__u8 window_scale; /* of the largest window the remote host was ever promised */
	__u8 flags;	 /* enum flow_flag */

	/* Kept by the program. */
	__u32 end_seq; /* highest sequence number + length that passed */
	__u32 max_ack; /* highest acknowledgement that passed */
	__u32 tsval;   /* last timestamp value */
	__u32 window;  /* the window that came with max_ack, in bytes */

	/* Who this is. */
	__u32 user_hash;
	__u32 user_tag;
	__u32 epoch;
	__u16 name;	/* number of the user's name in `names` */
	__u8 protocol;	/* enum of user space */
	__u8 side;	/* enum flow_side */
	__u8 strip;	/* enum flow_strip, for our SYN */
	__u8 unused[3];

	__u64 since;	/* start of the session, ns since 1970 */
	union {
		__u64 deadline; /* HOLD: CLOCK_MONOTONIC ns after which packets go to the stack again */
		__u32 syn_next; /* FLAG_SYN: the sequence number behind the SYN that went to the stack */
	};
	__u64 last_seen; /* CLOCK_MONOTONIC ns of the last packet */
	__u64 packets;	 /* forwarded, by the program */
	__u64 bytes;	 /* payload: what user space moved before, plus what was forwarded */
};

/* The director's entry of a user. The program compares epochs: see splice.bpf.c. */
struct user_key {
	__u32 hash;
	__u32 tag; /* 0: no tag */
};

enum user_flag {
	USER_ACTIVE = 1, /* had sessions when this was written */
};

struct user {
	__u8 host[16];
	__u32 epoch;
	__u32 flags;	 /* enum user_flag */
	__u64 last_seen; /* CLOCK_MONOTONIC ns of the last packet or login */
};

/* Names of users, in pieces, so that short ones stay small. */
#define NAME_PIECE 56
struct name_key {
	__u32 hash;
	__u32 tag;
	__u16 name;  /* number of the name among those of this hash */
	__u16 piece; /* which NAME_PIECE bytes of it */
};

struct name_piece {
	__u8 text[NAME_PIECE]; /* zero padded */
};

/* Every way out of every program; one counter each. */
enum verdict {
	VERDICT_NOT_TCP = 0,	/* passed: not TCP over Ethernet, tagged, or shorter than it says */
	VERDICT_NO_FLOW,	/* passed: no entry */
	VERDICT_OBSERVED,	/* passed: recorded */
	VERDICT_HELD,		/* dropped: hand-over in progress */
	VERDICT_HOLD_EXPIRED,	/* passed: nobody finished the hand-over in time */
	VERDICT_FORWARDED,	/* rewritten and redirected */
	VERDICT_SYN,		/* passed: SYN on a spliced tuple */
	VERDICT_AFTER_SYN,	/* passed: out of window after a SYN, so a new connection's */
	VERDICT_OUT_OF_WINDOW,	/* dropped */
	VERDICT_STOPPED,	/* dropped: the user's epoch is another one */
	VERDICT_NO_USER,	/* dropped: the user's entry is gone */
	VERDICT_ODD,		/* dropped: IP options or fragment on a spliced flow */
	VERDICT_BAD_OPTIONS,	/* dropped: malformed TCP options */
	VERDICT_REWRITE_FAILED, /* dropped: packet could not be written */
	VERDICT_EGRESS,		/* egress: passed untouched */
	VERDICT_EGRESS_LEARNT,	/* egress: interface and next hop recorded */
	VERDICT_EGRESS_STRIPPED, /* egress: options of our SYN removed */
	VERDICT_MAX,
};

struct counter {
	__u64 packets;
	__u64 bytes;
};

enum event_kind {
	EVENT_FIN = 1,
	EVENT_RST = 2,
	EVENT_SYN = 3,
	EVENT_STOPPED = 4,
};

struct event {
	struct flow_key key;
	__u32 kind; /* enum event_kind */
};

/* Requests to the control program, run by BPF_PROG_TEST_RUN; the answer is in the same place. */
enum control_op {
	CONTROL_FREEZE = 1,  /* both OBSERVE -> HOLD; answers what was recorded */
	CONTROL_THAW = 2,    /* both HOLD -> OBSERVE */
	CONTROL_FORWARD = 3, /* both HOLD -> FORWARD, if nothing passed since */
};

enum control_result {
	CONTROL_OK = 0,
	CONTROL_NO_FLOW = 1,   /* an entry is missing */
	CONTROL_BAD_STATE = 2, /* an entry is not in the state that the request needs */
	CONTROL_EXPIRED = 3,   /* the deadline has passed: packets may have gone to the stack */
	CONTROL_UNSETTLED = 4, /* a recorded packet has not reached the socket */
	CONTROL_BAD_OP = 5,
	CONTROL_NO_USER = 6, /* FORWARD: the user's entry is missing, or of another epoch */
};

struct leg {
	struct flow_key key;
	/* answered by FREEZE */
	__u32 end_seq;
	__u32 tsval;
	__u32 ifindex;
	__u32 flags;
	/* needed by FORWARD */
	__u32 rcv_nxt; /* what the frozen socket has received */
	__u32 snd_nxt;
	__u32 window; /* of the remote host, in bytes */
	__u32 user_hash;
	__u32 user_tag;
	__u32 epoch;
	__u32 seq_add;
	__u32 ack_add;
	__u32 ts_add;
	__u32 ecr_add;
	__u16 addr_diff;
	__u16 port_diff;
	__u16 name;
	__u8 protocol;
	__u8 in_scale;
	__u8 out_scale;
	__u8 window_scale;
	__u8 side;
	__u8 no_ecn;
	__u64 since;
	__u64 bytes;
};

struct control {
	__u8 ethernet[16]; /* BPF_PROG_TEST_RUN wants a frame */
	__u32 op;	   /* enum control_op */
	__u32 result;	   /* enum control_result */
	__u64 deadline;
	struct leg legs[2]; /* client's, backend's */
};

#endif
