// Package netns makes network namespaces and the things that live in them: links, addresses, routes,
// sockets and processes.
//
// A namespace made here has no name and no file. It is held by one thread and one file descriptor of
// this process, so it is gone, with every link in it, as soon as it is closed or the process dies,
// however it dies. There is nothing to clean up and nothing to be found in /run/netns.
//
//	goroutines ──Do(f)──► worker goroutine, locked to the one thread that sits inside the namespace
//	                      (never handed back to the Go scheduler: a thread that could not be
//	                       restored would put a stranger's sockets into the wrong namespace)
//
// A socket belongs to the namespace it was created in, for ever, whoever uses it. So only its creation
// needs the worker; Control shows how that is done below an ordinary net.Dialer or net.ListenConfig,
// which keeps connecting, accepting and all input and output on the network poller.
//
// A nil *NS is the process's own namespace: every method that is not about its life works on it. That is how a
// site can be built on the loopback interface, without root.
package netns
