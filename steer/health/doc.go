// Package health checks the hosts and says which of them are down. From a check to a decision it goes
// through four stages, each of which has its own file:
//
//	probe ──► opinion ──────────► vote ─────────────► Decide: the director marks the host
//	a check   rise, fall, flaps   of all directors    Drain: its users are moved, slowly
//	          of one director     that can be reached
//	                ▲                 ▲     │
//	           way-out rule         Hear   Say
//
// # Probe
//
// A check of a host looks at every service that the listeners use there, one after the other; the first that
// fails ends it. "connect" is a TCP connection, "greeting" waits for the protocol's first words, and
// "login" (IMAP and POP3; the greeting elsewhere) logs a user in. A failure has a Reason. One that is
// our own (no free port, no descriptors) counts neither for nor against the host.
//
// # Opinion
//
// A host is down after Fall bad checks without a good one in between, and up after Rise good ones in a row. Until either has happened this
// director has no opinion. There are two brakes:
//
// The way-out rule: a bad check counts only if another host was seen to answer between its beginning and
// the next check of the host. A director whose uplink is cut, or whose check has a wrong password, finds all hosts bad; it
// then has no opinion, instead of taking down one host after the other. An outage of the uplink can make two bad
// checks count, at its beginning and at its end; so Fall should be three or more.
//
// Flap damping: a host that goes down more than FlapLimit times is held down for one FlapWindow, then
// for two, four, and at most eight, however good its checks are. Each FlapWindow that it is up without interruption
// forgives one time down.
//
// # Vote
//
// Every director of ours tells the others its opinions after each check. A host is down when more than half
// of those that are counted say so. Counted are, our own included, those whose opinion of this host is not
// older than three intervals, and who find at least one other host up. So
//
//   - alone, our own opinion decides,
//   - of two directors both must say "down",
//   - a director that cannot be reached any more, or that reaches no host itself, is not waited for,
//   - when nobody is counted everything stays as it is,
//   - and so no check ever takes down the last host that is up.
//
// The reason: one director's broken uplink must not take a host away from all the others. The price: when
// one of two directors really cannot reach a host, its users have to wait for an operator.
//
// Directors of Dovecot do not vote, and do not pass votes on: in a ring of both, those of ours that have
// none but Dovecot's between them do not hear each other, and each decides alone.
//
// Each director counts for itself. They may differ for as long as an opinion travels, which does no
// harm: what a director decides, it tells the ring as the state of the host.
//
// # What follows
//
// Decide marks the host in the director, beside what an operator ordered: the operator wins. A host that
// is down gets no new users. Its present ones are moved by one director only, the one with the lowest address
// among those that are counted, at DrainRate users per second; see Drainer. When it vanishes, the next takes over.
package health
