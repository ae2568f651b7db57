package steer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"

	"usher/steer/auth"
	"usher/steer/handover"
	"usher/steer/prelogin"
	"usher/steer/prelogin/lmtp"
	"usher/steer/upstream"
	uplmtp "usher/steer/upstream/lmtp"
)

// lmtp speaks with a client that delivers mail. There is no login and nothing to hand over: each mail goes to the backends
// of its recipients, and the director counts a delivery as a look-up, which keeps the user's entry for a while.
func (w *walk) lmtp(ctx context.Context) error {
	w.stays(handover.ModeOff)
	if err := w.arrive(ctx); err != nil {
		return err
	}
	cfg := lmtp.Config{
		Name: w.cfg.Name, Delimiter: w.listener.Delimiter, Size: w.listener.MaxMail, Find: w.find, Log: w.log,
	}
	if w.listener.TLS == TLSStart {
		cfg.StartTLS = w.encrypt
	}
	return lmtp.Serve(ctx, w.clientConn(), cfg)
}

// find says where a recipient's mail goes: the passdb first, which may name the backend, then the director.
func (w *walk) find(ctx context.Context, r lmtp.Recipient) (lmtp.Target, error) {
	refuse := func(code, text string, err error) (lmtp.Target, error) {
		return lmtp.Target{}, &lmtp.Refusal{Reply: fmt.Sprintf("%s <%s> %s", code, r.Address, text), Err: err}
	}
	answer, err := w.lookUp(ctx, r)
	var refused *auth.Refused
	_ = errors.As(err, &refused)
	text := func(usual string) string {
		if refused == nil {
			return usual
		}
		return cmp.Or(auth.Line(refused.Text), usual)
	}
	switch {
	case errors.Is(err, auth.ErrUnknown):
		return refuse("550 5.1.1", text("Unknown user"), err)
	case errors.Is(err, auth.ErrDisabled):
		return refuse("550 5.7.1", text("Mail is not accepted for this user"), err)
	case err != nil:
		return refuse("451 4.3.0", text("Temporary failure, try again later."), err)
	}
	to, err := w.destination(ctx, answer, w.Router.Route)
	if err != nil {
		return refuse("451 4.3.0", "No mail server for this user now, try again later.", err)
	}
	target := lmtp.Target{
		Backend: fmt.Sprint(to.addr, to.name, to.mode, to.anyCert),
		Forward: w.forward(answer),
		Dial: func(ctx context.Context) (net.Conn, error) {
			l, open, err := w.connect(ctx, to, 0, 0, uplmtp.StartTLS)
			if err != nil {
				return nil, err
			}
			if l.NotObserved == handover.Spliced {
				w.cfg.Kernel.Forget(l.Tuple)
			}
			return open, nil
		},
	}
	if name := answer.Upstream.User; name != "" && name != r.User {
		target.Address = name // destuser
	}
	return target, nil
}

// lookUp asks the driver. One that cannot be asked without a password knows nothing that would matter.
func (w *walk) lookUp(ctx context.Context, r lmtp.Recipient) (auth.Answer, error) {
	finder, ok := w.cfg.Auth.(auth.Finder)
	if !ok {
		return auth.Answer{User: r.User, Upstream: upstream.Credentials{User: r.User}}, nil
	}
	return finder.Find(ctx, auth.Request{
		Protocol: w.listener.Protocol, Login: prelogin.Login{User: r.User}, Client: w.peer, Local: w.local,
		RealClient: w.from.Remote, RealLocal: w.from.Local, Session: w.session.name(), TLS: w.state(),
		Mail: auth.Mail{Helo: r.Hello, From: r.From, To: r.To},
	})
}
