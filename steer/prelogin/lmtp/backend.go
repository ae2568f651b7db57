package lmtp

import (
	"context"
	"fmt"
	"slices"

	"usher/steer/upstream"
	uplmtp "usher/steer/upstream/lmtp"
)

// place names a recipient to the backend, which is connected to, and told of the mail, when it is the first one there. The
// reply is the backend's, with CRLF.
func (s *server) place(ctx context.Context, t Target, path string) (*backend, []byte, error) {
	if err := s.mail.failed[t.Backend]; err != nil {
		return nil, nil, err
	}
	b, err := s.transaction(ctx, t)
	if err != nil {
		s.mail.failed[t.Backend] = err
		return nil, nil, err
	}
	if b.refused != "" {
		return b, []byte(b.refused), nil
	}
	reply, err := b.Rcpt(ctx, path)
	if err != nil {
		s.drop(b)
		return nil, nil, err
	}
	if c := reply.Class(); c != 2 && c != 4 && c != 5 {
		s.drop(b)
		return nil, nil, fmt.Errorf("RCPT: %w: %s", upstream.ErrReply, upstream.Excerpt(reply.Raw))
	}
	return b, reply.Raw, nil
}

// transaction returns a backend that knows of the mail. A connection of an earlier transaction may have ended meanwhile:
// then there is a new one.
func (s *server) transaction(ctx context.Context, t Target) (*backend, error) {
	b := s.backends[t.Backend]
	if b != nil && b.busy {
		return b, nil
	}
	for {
		if b == nil {
			conn, err := t.Dial(ctx)
			if err != nil {
				return nil, err
			}
			c, err := uplmtp.Open(ctx, conn, s.hello, t.Forward, upstream.Limits{})
			if err != nil {
				conn.Close()
				return nil, err
			}
			b = &backend{Conn: c, name: t.Backend}
			s.backends[t.Backend] = b
		}
		reply, err := b.Mail(ctx, s.mail.path, s.mail.parameters)
		switch {
		case err == nil:
			b.busy, b.refused, b.sent, b.used = true, "", false, true
			if reply.Class() != 2 {
				b.refused = string(reply.Raw)
				if c := reply.Class(); c != 4 && c != 5 {
					b.refused = "451 4.3.0 Backend gave no sensible reply.\r\n"
				}
			}
			return b, nil
		case b.used && ctx.Err() == nil:
			s.drop(b)
			b = nil
		default:
			s.drop(b)
			return nil, err
		}
	}
}

// drop gives a backend up. Recipients that it had accepted hear so in the end.
func (s *server) drop(b *backend) {
	b.Close()
	delete(s.backends, b.name)
	if s.mail == nil {
		return
	}
	for _, r := range s.mail.recipients {
		if r.backend == b && r.reply == "" {
			r.reply = "451 4.4.2 " + r.path + " Connection to the backend was lost, try again later.\r\n"
		}
	}
}

// reset ends the transaction without a mail.
func (s *server) reset(ctx context.Context) {
	s.mail = nil
	for _, b := range s.backends {
		// Whoever has got a mail, or refused to hear of it, has no transaction any more.
		if b.busy && !b.sent && b.refused == "" && b.Reset(ctx) != nil {
			s.drop(b)
		}
		b.busy = false
	}
}

// leave ends the conversations with the backends. One in the middle of a mail gets no end of it.
func (s *server) leave() {
	for _, b := range s.backends {
		if b.busy {
			b.Close()
		} else {
			_ = b.Quit()
		}
	}
}

// participants are the backends that wait for the mail.
func (s *server) participants() []*backend {
	var all []*backend
	for _, r := range s.mail.recipients {
		if r.reply == "" && !slices.Contains(all, r.backend) {
			all = append(all, r.backend)
		}
	}
	return all
}
