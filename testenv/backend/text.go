package backend

import (
	"fmt"
	"strings"
)

// dialect is how a protocol of lines answers.
type dialect struct {
	ok       func(text string) string
	data     func(text string) string // before the last line
	bad      string
	refusals map[Refusal]string
}

var smtpDialect = dialect{
	ok:   func(text string) string { return "250 2.0.0 " + text + "\r\n" },
	data: func(text string) string { return "250-" + text + "\r\n" },
	bad:  "500 5.5.1 Unknown command.\r\n",
	refusals: map[Refusal]string{
		Accept: "235 2.7.0 Logged in.\r\n", Reject: "535 5.7.8 Authentication failed.\r\n", Unavailable: "454 4.7.0 Temporary authentication failure.\r\n",
	},
}

var sieveDialect = dialect{
	ok:   func(text string) string { return fmt.Sprintf("OK %q\r\n", text) },
	data: func(text string) string { return fmt.Sprintf("%q\r\n", text) },
	bad:  "NO \"Unknown command.\"\r\n",
	refusals: map[Refusal]string{
		Accept: "OK \"Logged in.\"\r\n", Reject: "NO \"Authentication failed.\"\r\n", Unavailable: "NO (TRYLATER) \"Temporary authentication failure.\"\r\n",
	},
}

// submission serves one connection: as much SMTP as a login takes.
func (c *session) submission() (Ending, error) {
	c.printf("220 %s ESMTP ready.\r\n", c.server.opts.Name)
	return c.text(smtpDialect, func(command, args string) (known bool, err error) {
		switch command {
		case "EHLO":
			c.note(args)
			c.printf("250-%s\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SIZE 1000000\r\n", c.server.opts.Name)
			if c.server.opts.Trusting {
				c.printf("250-XCLIENT ADDR PORT SESSION\r\n")
			}
			if c.offersTLS() {
				c.printf("250-STARTTLS\r\n")
			}
			c.printf("250 AUTH PLAIN\r\n")
		case "XCLIENT":
			c.note(args)
			c.printf("220 %s ESMTP ready.\r\n", c.server.opts.Name)
		case "STARTTLS":
			if !c.offersTLS() {
				return false, nil
			}
			c.printf("220 2.0.0 Begin TLS negotiation now.\r\n")
			err = c.startTLS()
		case "AUTH":
			mechanism, b64, initial := strings.Cut(args, " ")
			if !initial && mechanism == "PLAIN" {
				c.printf("334 \r\n")
				b64, err = c.line()
			}
			if err == nil {
				err = c.answer(smtpDialect, b64)
			}
		default:
			return false, nil
		}
		return true, err
	})
}

// sieve serves one connection: as much ManageSieve as a login takes.
func (c *session) sieve() (Ending, error) {
	c.sieveCapabilities()
	return c.text(sieveDialect, func(command, args string) (known bool, err error) {
		switch command {
		case "CAPABILITY":
			c.sieveCapabilities()
		case "STARTTLS":
			if !c.offersTLS() {
				return false, nil
			}
			c.printf("OK \"Begin TLS negotiation now.\"\r\n")
			if err = c.startTLS(); err == nil {
				c.sieveCapabilities()
			}
		case "AUTHENTICATE":
			b64, ok := strings.CutPrefix(args, "\"PLAIN\" \"")
			if !ok {
				return false, nil
			}
			err = c.answer(sieveDialect, strings.TrimSuffix(b64, "\""))
		default:
			return false, nil
		}
		return true, err
	})
}

func (c *session) sieveCapabilities() {
	c.printf("\"IMPLEMENTATION\" \"%s\"\r\n\"SIEVE\" \"fileinto envelope\"\r\n\"SASL\" \"PLAIN\"\r\n", c.server.opts.Name)
	if c.offersTLS() {
		c.printf("\"STARTTLS\"\r\n")
	}
	c.printf("\"VERSION\" \"1.0\"\r\nOK \"%s ready.\"\r\n", c.server.opts.Name)
}

// text serves a protocol of lines; special has the commands that are its own.
func (c *session) text(d dialect, special func(command, args string) (bool, error)) (Ending, error) {
	for {
		line, err := c.line()
		if err != nil {
			return Live, err
		}
		command, args, _ := strings.Cut(line, " ")
		command = strings.ToUpper(command)
		if command == "QUIT" || command == "LOGOUT" {
			c.printf("%s", d.ok("Logging out."))
			return Logout, nil
		}
		known, err := true, error(nil)
		switch {
		case command == "NOOP":
			c.printf("%s", d.ok("NOOP"))
		case command == "X-WHO" && c.record.User != "":
			c.printf("%s", d.data(fmt.Sprintf("X-WHO %s %s %d", c.record.User, c.server.opts.Name, c.record.ID))+d.ok("Who completed."))
		case c.record.User != "":
			known, err = c.extension(command, args, func(text string) { c.printf("%s", d.ok(text)) })
		default:
			known, err = special(command, args)
		}
		switch err {
		case nil:
		case errFinished:
			return FIN, nil
		case errReset, errHungUp:
			return Closed, nil
		default:
			return Live, err
		}
		if !known {
			c.printf("%s", d.bad)
		}
	}
}

// errHungUp ends a session without an answer to its login.
var errHungUp = fmt.Errorf("hung up by this server")

// answer judges a SASL PLAIN message.
func (c *session) answer(d dialect, b64 string) error {
	authcid, authzid, password, ok := plain(b64)
	verdict := Reject
	if ok {
		verdict = c.login(authcid, authzid, password)
	}
	if verdict == HangUp {
		return errHungUp
	}
	c.printf("%s", d.refusals[verdict])
	return nil
}

// note records what the peer said about the client.
func (c *session) note(args string) {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	c.record.ClientID = args
}
