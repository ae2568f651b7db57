// Package loader is the user-space side of the kernel programs: it loads,
// attaches and pins them, adopts what an earlier daemon left, and turns their
// maps and events into the types of the steer packages.
//
// What it leaves in bpffs under [steer] pin_path:
//
//	layout-1/            the version of the pinned maps' layout (USHER_LAYOUT)
//	  flows              tuple → translation, one entry per direction
//	  users              user hash, tag → host, epoch, last activity
//	  names              names of users and tags, in pieces
//	  counters           packets and bytes per verdict
//	  tc-IFINDEX …       attached programs (tcx or XDP links)
//
// Everything a session in the kernel needs is in there, so the daemon may die at
// any moment. A directory of another layout is refused with ErrLayout.
//
// Needs Linux 5.10 (clsact, ring buffer, redirect_neigh); 6.6 for tcx links, which
// are replaced atomically. Needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON, or root.
package loader
