package steer

import (
	"context"
	"errors"
	"fmt"

	"usher/director"
	"usher/steer/auth"
	"usher/steer/prelogin"
	"usher/steer/upstream"
)

// An attempt to log in: the penalty of the client's address, auth, route, upstream, and what the client is told.

// enter waits for as long as failed attempts of the client's address want it. An exchange that the driver takes part in
// has done so already.
func (w *walk) enter(ctx context.Context) (err error) {
	if w.entered == nil {
		w.entered, err = w.cfg.Penalty.Begin(ctx, w.peer.Addr())
	}
	return err
}

// leave ends what enter began.
func (w *walk) leave() {
	if w.entered != nil {
		w.entered.End()
		w.entered = nil
	}
}

// attempt verifies one attempt.
func (w *walk) attempt(ctx context.Context, attempt prelogin.Login) (user string, result upstream.Result, err error) {
	w.set(w.session, Auth)
	if err := w.enter(ctx); err != nil {
		return "", result, err
	}
	answer, err := w.authenticate(ctx, attempt)
	if err != nil {
		return "", result, err
	}
	if attempt.Mechanism == "EXTERNAL" && !answer.Verified {
		return "", result, fmt.Errorf("%w: no backend can verify a certificate that the proxy has seen", auth.ErrCredentials)
	}

	w.set(w.session, Route)
	// Whom nobody has verified yet gets no entry: a million invented names must leave nothing behind.
	ask := w.Router.Route
	if !answer.Verified {
		ask = w.Router.Peek
	}
	to, err := w.destination(ctx, answer, ask)
	if err != nil {
		return "", result, err
	}
	switch {
	case answer.Verified:
		w.enroll(answer, to)
	case !to.assigned.Known:
		if err := w.entered.Provisional(ctx); err != nil {
			return "", result, err
		}
	}

	w.set(w.session, Upstream)
	c := &answer.Upstream
	c.Hello = attempt.Hello
	if !answer.Verified {
		c.Mechanism, c.Message = attempt.Mechanism, attempt.Message // the backend verifies what the client said
	}
	c.Forward = w.forward(answer)
	if answer.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, answer.Timeout)
		defer cancel()
	}
	result, err = w.upstream(ctx, answer, to)
	if err == nil && !answer.Verified {
		result, err = w.settle(ctx, answer, to, result)
	}
	if err == nil && w.listener.protocol.learns && result.Capabilities != nil {
		w.listener.learnt.Store(&result.Capabilities)
	}
	return answer.User, result, err
}

// enroll notes where the session goes, for those who want to end it.
func (w *walk) enroll(answer auth.Answer, to destination) {
	if !w.bypassed {
		w.route(w.session, answer.User, to.assigned.Key, to.assigned.Epoch)
	}
}

// settle makes the entry of a user whom the backend at there has accepted. If the user belongs to another host by now (a
// move, a change of the hosts), the login is done again at that one: nobody may be on two.
func (w *walk) settle(ctx context.Context, answer auth.Answer, there destination, result upstream.Result) (upstream.Result, error) {
	if w.bypassed {
		return result, nil
	}
	to, err := w.destination(ctx, answer, w.Router.Route)
	if err == nil {
		w.enroll(answer, to)
		if to.addr == there.addr {
			return result, nil
		}
	}
	w.giveUp(w.backend)
	w.backend = nil
	if err != nil {
		return upstream.Result{}, err
	}
	return w.upstream(ctx, answer, to)
}

// refuse tells the client that an attempt failed, no sooner than the penalty and the driver want it, and says whether this
// was its last one.
func (w *walk) refuse(ctx context.Context, dialogue prelogin.Dialogue, attempt prelogin.Login, why error) (last bool, err error) {
	refusal := refusalOf(why)
	w.Stats.refuse(refusal.Kind)
	w.log.Info().Uint64("session", w.session.id).Str("user", attempt.User).Stringer("client", w.peer).
		Stringer("kind", refusal.Kind).Err(why).Msg("login refused")
	var refused *auth.Refused
	if !errors.As(why, &refused) {
		refused = &auth.Refused{}
	}
	if w.entered != nil {
		if attempt.Relayed {
			// Nobody here has seen the password: each one counts as another.
			attempt.Message = fmt.Sprint(w.session.id, " ", w.attempts)
		}
		err := w.entered.Failed(ctx, attempt, refusal.Kind, refused.Wait)
		w.leave()
		if err != nil {
			return false, err
		}
	}
	return refused.Close, dialogue.Refuse(refusal)
}

// refusalOf finds the words for an attempt that failed.
func refusalOf(err error) prelogin.Refusal {
	var rejected *upstream.Rejected
	var down *unreachable
	switch {
	case errors.As(err, &rejected):
		return prelogin.Refusal{Kind: rejected.Kind, Raw: rejected.Raw, Challenge: rejected.Challenge}
	case errors.As(err, &down), errors.Is(err, director.ErrNoHosts), errors.Is(err, context.DeadlineExceeded),
		errors.Is(err, upstream.ErrBye), errors.Is(err, upstream.ErrGreeting):
		return prelogin.Refusal{Kind: prelogin.Unavailable}
	}
	refusal := prelogin.Refusal{Kind: auth.Kind(err)}
	var refused *auth.Refused
	if errors.As(err, &refused) {
		refusal.Text, refusal.Code, refusal.Challenge = auth.Line(refused.Text), auth.Line(refused.Code), refused.Challenge
	}
	return refusal
}
