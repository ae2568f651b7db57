package lmtp

import (
	"context"
	"fmt"
	"time"

	"usher/steer/prelogin"
	"usher/steer/upstream"
)

func (s *server) data(ctx context.Context) error {
	if s.mail == nil || len(s.mail.recipients) == 0 {
		s.wrong("503 5.5.1 No valid recipients.")
		return nil
	}
	for _, b := range s.participants() {
		reply, err := b.Data(ctx)
		switch {
		case err != nil:
			s.cfg.Log.Error().Str("backend", b.name).Err(err).Msg("backend failed")
			s.drop(b)
		case reply.Code != 354:
			s.decide(b, reply.Raw)
		default:
			b.sent = true
		}
	}
	if len(s.participants()) == 0 {
		// Before the 354 there is one reply for all, and it must not be a final one for somebody whom it does not concern.
		s.reset(ctx)
		s.say("451 4.3.0 No backend takes the mail now, try again later.")
		return nil
	}
	s.say("354 OK")
	if err := s.stream(ctx); err != nil {
		return err
	}
	for _, r := range s.mail.recipients {
		if r.reply == "" {
			s.stored(ctx, r)
		}
		s.out = append(s.out, r.reply...)
		// A backend may need minutes: those who are done are told at once.
		if err := prelogin.Within(ctx, s.conn, time.Now().Add(s.cfg.Idle), s.flush); err != nil {
			return err
		}
	}
	s.reset(ctx)
	return nil
}

// stored waits for the reply for one recipient.
func (s *server) stored(ctx context.Context, r *recipient) {
	reply, err := r.backend.Stored(ctx)
	if err == nil && reply.Class() != 2 && reply.Class() != 4 && reply.Class() != 5 {
		err = fmt.Errorf("%w: %s", upstream.ErrReply, upstream.Excerpt(reply.Raw))
	}
	if err != nil {
		s.cfg.Log.Error().Str("backend", r.backend.name).Err(err).Msg("backend failed")
		s.drop(r.backend)
		return
	}
	r.reply = string(reply.Raw)
}

// decide gives all recipients of a backend the same reply.
func (s *server) decide(b *backend, reply []byte) {
	if reply[0] != '4' && reply[0] != '5' {
		reply = []byte("451 4.3.0 Backend gave no sensible reply.\r\n")
	}
	for _, r := range s.mail.recipients {
		if r.backend == b && r.reply == "" {
			r.reply = string(reply)
		}
	}
}

// stream sends the mail to all participants. It returns when the client has ended it, whatever became of the backends;
// with an error no backend has got the end.
func (s *server) stream(ctx context.Context) error {
	var b body
	var out []byte
	var size int64
	end := []byte(".\r\n")
	for {
		n, ended := 0, false
		err := prelogin.Within(ctx, s.conn, time.Now().Add(s.cfg.Idle), func() error {
			if err := s.flush(); err != nil {
				return err
			}
			p, err := s.Chunk(chunk)
			if err != nil {
				return err
			}
			var rest []byte
			out, rest, ended = b.feed(out[:0], p)
			n = len(p) - len(rest)
			s.Discard(n)
			return nil
		})
		if err != nil {
			return err
		}
		if size += int64(n); s.cfg.Size > 0 && size > s.cfg.Size {
			for _, p := range s.participants() {
				s.decide(p, []byte("552 5.3.4 Message too big.\r\n"))
				s.drop(p) // without the end it is no mail
			}
		}
		s.broadcast(ctx, out)
		if ended {
			s.broadcast(ctx, end)
			return nil
		}
	}
}

func (s *server) broadcast(ctx context.Context, p []byte) {
	if len(p) == 0 {
		return
	}
	for _, b := range s.participants() {
		if err := b.Write(ctx, p); err != nil {
			s.cfg.Log.Error().Str("backend", b.name).Err(err).Msg("backend failed")
			s.drop(b)
		}
	}
}
