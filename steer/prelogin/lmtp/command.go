package lmtp

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"usher/steer/prelogin"
)

func (s *server) lhlo(ctx context.Context, name string) error {
	if name == "" || len(name) > 255 || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' }) {
		s.wrong("501 5.5.4 Invalid name.")
		return nil
	}
	s.reset(ctx)
	s.hello = name
	lines := []string{s.cfg.Name, "PIPELINING", "ENHANCEDSTATUSCODES", "8BITMIME"}
	if s.cfg.Size > 0 {
		lines = append(lines, fmt.Sprint("SIZE ", s.cfg.Size))
	}
	if s.cfg.StartTLS != nil {
		lines = append(lines, "STARTTLS")
	}
	for _, l := range lines[:len(lines)-1] {
		s.say("250-" + l)
	}
	s.say("250 " + lines[len(lines)-1])
	return nil
}

func (s *server) startTLS(ctx context.Context) error {
	switch {
	case s.cfg.StartTLS == nil:
		s.wrong("502 5.5.1 TLS is not available.")
		return nil
	case s.Buffered() > 0:
		return prelogin.ErrPlaintext
	}
	s.reset(ctx)
	s.say("220 2.0.0 Begin TLS negotiation now.")
	return prelogin.Within(ctx, s.conn, time.Now().Add(s.cfg.Idle), func() error {
		if err := s.flush(); err != nil {
			return err
		}
		conn, err := s.cfg.StartTLS()
		if err != nil {
			return err
		}
		s.conn, s.hello, s.cfg.StartTLS = conn, "", nil
		s.Reader = prelogin.NewReader(conn, s.cfg.Line, math.MaxInt)
		return nil
	})
}

// after takes what stands behind a word such as "FROM:".
func after(argument, word string) (string, bool) {
	if len(argument) < len(word) || !strings.EqualFold(argument[:len(word)], word) {
		return "", false
	}
	return argument[len(word):], true
}

func (s *server) from(line, argument string) {
	rest, ok := after(argument, "FROM:")
	text, _, parameters, good := path(rest)
	switch {
	case s.hello == "":
		s.wrong("503 5.5.1 LHLO first.")
		return
	case s.mail != nil:
		s.wrong("503 5.5.1 MAIL already given.")
		return
	case !ok || !good:
		s.wrong("501 5.5.4 Invalid address.")
		return
	}
	for i, p := range parameters {
		key, value, _ := strings.Cut(p, "=")
		key = strings.ToUpper(key)
		parameters[i] = key + "=" + value
		size, err := strconv.ParseInt(value, 10, 64)
		switch {
		case key == "BODY" && (strings.EqualFold(value, "7BIT") || strings.EqualFold(value, "8BITMIME")):
		case key == "SIZE" && (err != nil || size < 0):
			s.wrong("501 5.5.4 Invalid parameters.")
			return
		case key == "SIZE" && s.cfg.Size > 0 && size > s.cfg.Size:
			s.say("552 5.3.4 Message too big.")
			return
		case key == "SIZE":
		default:
			s.say("555 5.5.4 Unsupported parameters.")
			return
		}
	}
	s.mail = &mail{command: line, path: text, parameters: parameters, failed: map[string]error{}}
	s.say("250 2.1.0 OK")
}

func (s *server) to(ctx context.Context, line, argument string) {
	rest, ok := after(argument, "TO:")
	text, address, parameters, good := path(rest)
	switch {
	case s.mail == nil:
		s.wrong("503 5.5.1 MAIL first.")
		return
	case !ok || !good || address == "":
		s.wrong("501 5.5.4 Invalid address.")
		return
	case len(parameters) > 0:
		s.say("555 5.5.4 Unsupported parameters.")
		return
	case len(s.mail.recipients) >= s.cfg.Recipients:
		s.say("452 4.5.3 Too many recipients.")
		return
	}
	r := Recipient{Address: address, User: user(address, s.cfg.Delimiter), Hello: s.hello, From: s.mail.command, To: line}
	target, err := s.cfg.Find(ctx, r)
	if err != nil {
		var refusal *Refusal
		reply := "451 4.3.0 <" + address + "> Temporary failure, try again later."
		if errors.As(err, &refusal) {
			reply = refusal.Reply
		}
		s.cfg.Log.Info().Str("recipient", address).Err(err).Msg("recipient refused")
		s.say(reply)
		return
	}
	if target.Address != "" {
		text = "<" + target.Address + ">"
	}
	b, reply, err := s.place(ctx, target, text)
	if err != nil {
		s.cfg.Log.Error().Str("recipient", address).Str("backend", target.Backend).Err(err).Msg("backend failed")
		s.say("451 4.4.1 <" + address + "> Backend is not available, try again later.")
		return
	}
	s.out = append(s.out, reply...)
	if reply[0] == '2' {
		s.mail.recipients = append(s.mail.recipients, &recipient{path: text, backend: b})
	}
}
