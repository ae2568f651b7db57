package steer

import (
	"context"
	"slices"
	"time"

	"usher/steer/auth"
	"usher/steer/prelogin"
	"usher/steer/sasl"
)

// relayTimeout bounds one step of an exchange that the auth driver takes part in.
const relayTimeout = 30 * time.Second

// outcome is how a relayed exchange ended.
type outcome struct {
	answer *auth.Answer
	err    error
}

// relays are the mechanisms that the driver understands and we do not, as SCRAM.
func (w *walk) relays(ctx context.Context) []prelogin.Relay {
	driver, ok := w.cfg.Auth.(auth.Relayer)
	if !ok {
		return nil
	}
	offered, err := driver.Mechanisms(ctx)
	if err != nil {
		w.log.Debug().Err(err).Msg("auth driver names no mechanisms")
		return nil
	}
	var all []prelogin.Relay
	for _, m := range offered {
		if m.Private || m.Anonymous || slices.Contains(sasl.Mechanisms, m.Name) {
			continue
		}
		all = append(all, prelogin.Relay{Name: m.Name, Plaintext: m.Plaintext, Begin: func() (prelogin.Exchange, error) {
			if err := w.enter(ctx); err != nil {
				w.exchanged = outcome{err: err}
				return nil, err
			}
			x, err := driver.Begin(ctx, w.request(prelogin.Login{Mechanism: m.Name}), m.Name)
			if err != nil {
				w.exchanged = outcome{err: err}
				return nil, err
			}
			return &exchange{x, w, ctx}, nil
		}})
	}
	return all
}

// exchange is one of the driver's, for the dialogue.
type exchange struct {
	auth.Exchange
	walk *walk
	ctx  context.Context
}

// Next implements prelogin.Exchange.
func (x *exchange) Next(message []byte) []byte {
	ctx, cancel := context.WithTimeout(x.ctx, relayTimeout)
	defer cancel()
	challenge, answer, err := x.Exchange.Next(ctx, message)
	if answer != nil || err != nil {
		x.walk.exchanged = outcome{answer, err}
		return nil
	}
	if challenge == nil {
		challenge = []byte{}
	}
	return challenge
}

// Cancel implements prelogin.Exchange.
func (x *exchange) Cancel() {
	x.Exchange.Cancel()
	x.walk.leave()
}

// authenticate asks the driver about an attempt, or has asked it already.
func (w *walk) authenticate(ctx context.Context, attempt prelogin.Login) (auth.Answer, error) {
	if !attempt.Relayed {
		return w.cfg.Auth.Authenticate(ctx, w.request(attempt))
	}
	o := w.exchanged
	w.exchanged = outcome{}
	if o.err != nil {
		return auth.Answer{}, o.err
	}
	if o.answer == nil {
		return auth.Answer{}, auth.ErrTemporary
	}
	o.answer.Upstream.Tag = attempt.Tag // it was not known when the exchange began
	return *o.answer, nil
}

// request is what the driver is told of an attempt.
func (w *walk) request(attempt prelogin.Login) auth.Request {
	return auth.Request{
		Protocol: w.listener.Protocol, Login: attempt, Client: w.peer, Local: w.local,
		RealClient: w.from.Remote, RealLocal: w.from.Local, Session: w.session.name(), Attempt: w.attempts, TLS: w.state(),
	}
}
