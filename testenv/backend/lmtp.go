package backend

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Mail is what LMTP delivered in one transaction.
type Mail struct {
	Client     string   // argument of LHLO
	From       string   // argument of MAIL FROM:, with parameters
	To         []string // paths of the recipients for whom it was stored
	Size       int64    // as sent, with doubled dots, without the line that ends it
	SHA256     string   // of that, hex
	Connection uint64   // number of the connection
}

// lmtp serves one connection. A line of a mail ends at LF here, with or without a CR, as it does in many servers: a proxy
// that reads it otherwise shows.
func (c *session) lmtp() (Ending, error) {
	c.printf("220 %s LMTP ready.\r\n", c.server.opts.Name)
	var mail *Mail
	var to []string
	client := ""
	for {
		line, err := c.line()
		if err != nil {
			return Live, err
		}
		verb, rest, _ := strings.Cut(line, " ")
		verb = strings.ToUpper(verb)
		_, path, _ := strings.Cut(rest, ":")
		answer := ""
		switch {
		case verb == "LHLO":
			client = rest
			answer = fmt.Sprintf("250-%s\r\n250-PIPELINING\r\n250-8BITMIME\r\n", c.server.opts.Name)
			if c.offersTLS() {
				answer += "250-STARTTLS\r\n"
			}
			answer += "250 ENHANCEDSTATUSCODES\r\n"
		case verb == "STARTTLS" && c.offersTLS():
			c.printf("220 2.0.0 Begin TLS negotiation now.\r\n")
			if err := c.startTLS(); err != nil {
				return Live, err
			}
		case verb == "MAIL" && mail == nil:
			if answer = c.deliver(verb, path); answer == "" {
				mail, to, answer = &Mail{Client: client, From: path, Connection: c.record.ID}, nil, "250 2.1.0 OK\r\n"
			}
		case verb == "RCPT" && mail != nil:
			if answer = c.deliver(verb, path); answer == "" {
				to, answer = append(to, path), "250 2.1.5 OK\r\n"
			}
		case verb == "DATA" && len(to) > 0:
			if answer = c.deliver(verb, ""); answer == "" {
				c.printf("354 OK\r\n")
				if err := c.receive(mail); err != nil {
					return Live, err
				}
				if answer = c.deliver(".", ""); answer == hangUp {
					return Closed, nil
				}
				for _, path := range to {
					a := c.deliver("stored", path)
					if a == hangUp {
						return Closed, nil
					}
					if a == "" {
						mail.To = append(mail.To, path)
						a = "250 2.0.0 " + path + " Saved\r\n"
					}
					answer += a
				}
				c.server.mu.Lock()
				c.server.mails = append(c.server.mails, *mail)
				c.server.mu.Unlock()
				mail, to = nil, slices.Clip(to[:0])
			}
		case verb == "RSET":
			mail, answer = nil, "250 2.0.0 OK\r\n"
		case verb == "NOOP":
			answer = "250 2.0.0 OK\r\n"
		case verb == "QUIT":
			c.printf("221 2.0.0 Bye\r\n")
			return Logout, nil
		default:
			answer = "503 5.5.1 Not now: " + verb + "\r\n"
		}
		if answer == hangUp {
			return Closed, nil
		}
		c.printf("%s", answer)
	}
}

// hangUp stands for no answer.
const hangUp = "hang up"

// deliver is the answer that the behaviour wants; empty: the usual one.
func (c *session) deliver(command, path string) string {
	b := c.server.behaviour.Load()
	if b.Deliver == nil {
		return ""
	}
	switch b.Deliver(command, path) {
	case Reject:
		return "550 5.1.1 " + path + " No\r\n"
	case Unavailable:
		return "450 4.2.0 " + path + " Later\r\n"
	case HangUp:
		return hangUp
	}
	return ""
}

// receive reads a mail up to the line with the dot.
func (c *session) receive(m *Mail) error {
	if err := c.flush(); err != nil {
		return err
	}
	h := sha256.New()
	defer func() { m.SHA256 = hex.EncodeToString(h.Sum(nil)) }()
	for start := true; ; {
		b, err := c.r.ReadSlice('\n')
		if start && (string(b) == ".\r\n" || string(b) == ".\n") {
			return nil
		}
		m.Size += int64(len(b))
		h.Write(b)
		switch {
		case err == nil:
			start = true
		case errors.Is(err, bufio.ErrBufferFull):
			start = false
		case err == io.EOF:
			return io.ErrUnexpectedEOF
		default:
			return err
		}
	}
}
