// Package secure is TLS on both legs of a session: certificates that are reloaded when their files change, backends whose
// certificates are verified, connections that cost little while they are idle, and the relay of sessions of which at
// least one leg is encrypted. Those stay in user space (mode copy, reason tls): Go cannot give its keys to the kernel.
//
// An idle session holds no buffer of ours: a read that has to wait is undone down to the socket (errWait), the buffer goes
// back to the pool, and the goroutine sleeps on a stack of its smallest size.
//
// The end of a stream is passed on as it came: close_notify as close_notify, a FIN without one as a FIN without one.
package secure
