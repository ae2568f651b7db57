package steer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"usher/director"
	"usher/steer/auth"
	"usher/steer/handover"
	"usher/steer/prelogin"
	"usher/steer/proxyheader"
	"usher/steer/secure"
	"usher/steer/upstream"
)

// leg is the connection to the backend.
type leg struct {
	*upstream.Conn
	secret *secure.Conn // nil: without TLS
}

func (l *leg) conn() net.Conn {
	if l.secret != nil {
		return l.secret
	}
	return l.TCPConn
}

// destination is a backend, and how it is spoken to.
type destination struct {
	addr    netip.AddrPort
	name    string // in its certificate
	mode    TLSMode
	anyCert bool

	assigned director.Assigned // what the director said; zero when the answer named the host
}

// destination finds out where an answer leads: to the host that it names, or to the director's choice. ask is the Router's
// Route or Peek.
func (w *walk) destination(ctx context.Context, answer auth.Answer, ask func(ctx context.Context, user, tag string) (director.Assigned, error)) (to destination, err error) {
	host, name := answer.Host, answer.HostName
	w.bypassed = host.IsValid()
	if !w.bypassed {
		ctx, cancel := context.WithTimeout(ctx, routeTimeout)
		defer cancel()
		if to.assigned, err = ask(ctx, answer.User, answer.Tag); err != nil {
			return to, fmt.Errorf("route user: %w", err)
		}
		host, name = to.assigned.Host.Addr, to.assigned.Host.Name
	}
	to.addr = netip.AddrPortFrom(host, cmp.Or(answer.Port, w.listener.BackendPort))
	to.name = certificateName(host, name)
	to.mode, to.anyCert = w.backendTLS(answer)
	return to, nil
}

// forward is what the backend of an answer is told about the client.
func (w *walk) forward(answer auth.Answer) *upstream.Forward {
	if !w.listener.Forward || answer.NotTrusted {
		return nil
	}
	return &upstream.Forward{Client: w.peer, Local: w.local, Session: w.session.name(), Fields: answer.Forward}
}

// dialPause is before the second try of a backend that refused the first one at once.
const dialPause = 200 * time.Millisecond

// starter changes a connection to TLS, in the words of a protocol.
type starter = func(context.Context, net.Conn, upstream.Limits, upstream.Handshake) (net.Conn, error)

// connect makes a connection to a backend, with TLS if that is wanted; open is what to speak over. strip and mss are those
// of handover.Options.
func (w *walk) connect(ctx context.Context, to destination, strip handover.Strip, mss int, start starter) (l *leg, open net.Conn, err error) {
	began := time.Now()
	conn, err := w.dialer.Dial(ctx, to.addr, strip, mss)
	if err != nil && ctx.Err() == nil && time.Since(began) < time.Second {
		// Refused, most likely: a server that is being restarted is back in a moment. Nothing was said yet.
		time.Sleep(dialPause)
		conn, err = w.dialer.Dial(ctx, to.addr, strip, mss)
	}
	if err != nil {
		return nil, nil, &unreachable{err}
	}
	l = &leg{Conn: conn}
	handshake := func() (net.Conn, error) {
		if w.cfg.Backends == nil {
			return nil, errors.New("TLS with backends is not configured")
		}
		c, err := w.cfg.Backends.Client(l.TCPConn, to.name, to.anyCert)
		if err != nil {
			return nil, err
		}
		l.secret = c
		return c, nil
	}
	limits := upstream.Limits{}.OrDefault()
	open = l.TCPConn
	err = prelogin.Within(ctx, l.TCPConn, time.Now().Add(limits.Time), func() (err error) {
		if w.listener.ProxyBackend {
			header := proxyheader.Header{Client: w.peer, Local: w.local, TLS: w.secret != nil}
			if _, err := l.Write(header.Append(nil)); err != nil {
				return err
			}
		}
		if to.mode == TLSImplicit {
			open, err = handshake()
		}
		return err
	})
	if err == nil && to.mode == TLSStart {
		open, err = start(ctx, l.TCPConn, limits, handshake)
	}
	if err != nil {
		w.giveUp(l)
		return nil, nil, &unreachable{err}
	}
	return l, open, nil
}

func (w *walk) giveUp(l *leg) {
	l.Close()
	if l.NotObserved == handover.Spliced {
		w.cfg.Kernel.Forget(l.Tuple)
	}
}

// upstream logs in at the backend.
func (w *walk) upstream(ctx context.Context, answer auth.Answer, to destination) (upstream.Result, error) {
	strip, mss, err := handover.Options(w.client)
	if err != nil {
		return upstream.Result{}, err
	}
	l, open, err := w.connect(ctx, to, strip, mss, w.listener.protocol.startTLS)
	if err != nil {
		return upstream.Result{}, err
	}
	if (l.secret != nil || w.secret != nil) && l.NotObserved == handover.Spliced {
		// It was observed to have a source port that no session in the kernel has.
		w.cfg.Kernel.Forget(l.Tuple)
		l.NotObserved = handover.TLS
	}
	result, err := w.listener.protocol.login(ctx, open, answer.Upstream, upstream.Limits{})
	if err != nil {
		w.giveUp(l)
		var rejected *upstream.Rejected
		if answer.Upstream.MasterUser != "" && errors.As(err, &rejected) && rejected.Kind == prelogin.AuthFailed {
			// The user's password was right: it is ours that the backend does not take.
			err = fmt.Errorf("master user at backend %v: %s: %w", to.addr, rejected, auth.ErrTemporary)
		}
		return upstream.Result{}, err
	}
	w.backend = l
	return result, nil
}

// unreachable is a backend that did not accept the connection, or not with TLS.
type unreachable struct{ error }

func (e *unreachable) Unwrap() error { return e.error }
