package backend

import (
	"crypto/sha256"
	"fmt"
	"io"
	"strconv"
	"strings"

	"usher/testenv/content"
)

// maxLiteral bounds a literal that is kept in memory, as in LOGIN; an appended message is not.
const maxLiteral = 64 << 10

// afterLogin are the capabilities of a session.
const afterLogin = "IMAP4rev1 SASL-IR LITERAL+ IDLE ID UIDPLUS X-ECHO X-SOURCE X-DISCARD X-PINGPONG X-FINISH X-RESET X-WHO"

// imap serves one connection. Arguments are read one by one from the stream, because any of them may be a literal.
func (c *session) imap() (Ending, error) {
	c.printf("* OK [CAPABILITY %s] %s ready.\r\n", c.beforeLogin(), c.server.opts.Name)
	for {
		if err := c.turn(); err != nil {
			return Live, err
		}
		tag, err := c.word()
		if err != nil {
			return Live, err
		}
		command, err := c.word()
		if err != nil {
			return Live, err
		}
		command = strings.ToUpper(command)
		ending, err := c.imapCommand(tag, command)
		if err != nil || ending != Live {
			if err == errFinished {
				return FIN, nil
			}
			if err == errReset {
				return Closed, nil
			}
			return ending, err
		}
	}
}

func (c *session) imapCommand(tag, command string) (Ending, error) {
	ok := func(text string) { c.printf("%s OK %s\r\n", tag, text) }
	switch command {
	case "LOGIN":
		return c.imapLogin(tag)
	case "AUTHENTICATE":
		return c.imapAuthenticate(tag)
	case "APPEND":
		if c.record.User != "" {
			return Live, c.imapAppend(tag)
		}
	}
	rest, err := c.line()
	if err != nil {
		return Live, err
	}
	rest = strings.TrimPrefix(rest, " ")
	switch command {
	case "CAPABILITY":
		caps := c.beforeLogin()
		if c.record.User != "" {
			caps = afterLogin
		}
		c.printf("* CAPABILITY %s\r\n", caps)
		ok("Capability completed.")
		return Live, nil
	case "NOOP":
		ok("NOOP completed.")
		return Live, nil
	case "STARTTLS":
		if c.offersTLS() {
			ok("Begin TLS negotiation now.")
			return Live, c.startTLS()
		}
	case "ID":
		c.note(rest)
		c.printf("* ID NIL\r\n")
		ok("ID completed.")
		return Live, nil
	case "LOGOUT":
		c.printf("* BYE Logging out\r\n")
		ok("Logout completed.")
		return Logout, nil
	}
	if c.record.User == "" {
		c.printf("%s BAD %s: not before login, or not known.\r\n", tag, command)
		return Live, nil
	}
	switch command {
	case "SELECT", "EXAMINE":
		c.printf("* FLAGS (\\Seen)\r\n* 4294967295 EXISTS\r\n* 0 RECENT\r\n* OK [UIDVALIDITY 1] -\r\n")
		ok("[READ-WRITE] Select completed.")
	case "FETCH":
		number, _, _ := strings.Cut(rest, " ")
		n, err := strconv.ParseUint(number, 10, 32)
		if err != nil || n == 0 {
			c.printf("%s BAD message number %q.\r\n", tag, number)
			return Live, nil
		}
		m := content.Message(n, content.Size(n))
		c.printf("* %d FETCH (BODY[] {%d}\r\n", n, len(m))
		c.Write(m)
		c.printf(")\r\n")
		ok("Fetch completed.")
	case "IDLE":
		c.printf("+ idling\r\n")
		c.idling.Store(true)
		rest, err := c.line()
		c.idling.Store(false)
		if err != nil {
			return Live, err
		}
		if !strings.EqualFold(rest, "DONE") {
			c.printf("%s BAD expected DONE.\r\n", tag)
			return Live, nil
		}
		ok("Idle completed.")
	case "X-WHO":
		c.printf("* X-WHO %s %s %d\r\n", c.record.User, c.server.opts.Name, c.record.ID)
		ok("Who completed.")
	default:
		known, err := c.extension(command, rest, ok)
		if !known {
			c.printf("%s BAD unknown command %s.\r\n", tag, command)
			return Live, nil
		}
		return Live, err
	}
	return Live, nil
}

// beforeLogin are the capabilities there.
func (c *session) beforeLogin() string {
	caps := "IMAP4rev1 " + c.server.opts.Capability
	if c.offersTLS() {
		caps += " STARTTLS"
	}
	return caps
}

func (c *session) imapLogin(tag string) (Ending, error) {
	user, err := c.argument()
	if err != nil {
		return Live, err
	}
	password, err := c.argument()
	if err != nil {
		return Live, err
	}
	if _, err := c.line(); err != nil {
		return Live, err
	}
	return c.imapAnswer(tag, user, "", password)
}

func (c *session) imapAuthenticate(tag string) (Ending, error) {
	rest, err := c.line()
	if err != nil {
		return Live, err
	}
	mechanism, b64, initial := strings.Cut(strings.TrimPrefix(rest, " "), " ")
	if !strings.EqualFold(mechanism, "PLAIN") {
		c.printf("%s NO [CANNOT] Only PLAIN here.\r\n", tag)
		return Live, nil
	}
	if !initial {
		c.printf("+ \r\n")
		if b64, err = c.line(); err != nil {
			return Live, err
		}
	}
	authcid, authzid, password, ok := plain(b64)
	if !ok {
		c.printf("%s BAD Invalid authentication exchange.\r\n", tag)
		return Live, nil
	}
	return c.imapAnswer(tag, authcid, authzid, password)
}

func (c *session) imapAnswer(tag, authcid, authzid, password string) (Ending, error) {
	if c.record.User != "" {
		c.printf("%s BAD Already logged in.\r\n", tag)
		return Live, nil
	}
	switch c.login(authcid, authzid, password) {
	case Accept:
		c.printf("%s OK [CAPABILITY %s] Logged in\r\n", tag, afterLogin)
	case Reject:
		c.printf("%s NO [AUTHENTICATIONFAILED] Authentication failed.\r\n", tag)
	case Unavailable:
		c.printf("%s NO [UNAVAILABLE] Temporary authentication failure.\r\n", tag)
	case HangUp:
		return Closed, nil
	}
	return Live, nil
}

// imapAppend hashes the message while it comes, whatever its size.
func (c *session) imapAppend(tag string) error {
	if _, err := c.argument(); err != nil { // the mailbox
		return err
	}
	for { // flags and date, until the literal
		b, err := c.r.Peek(2)
		if err != nil {
			return err
		}
		if b[0] == ' ' && b[1] == '{' {
			break
		}
		if _, err := c.argument(); err != nil {
			return err
		}
	}
	c.r.Discard(1)
	size, err := c.literal()
	if err != nil {
		return err
	}
	h := sha256.New()
	if _, err := io.CopyN(h, c.r, int64(size)); err != nil {
		return err
	}
	if _, err := c.line(); err != nil {
		return err
	}
	c.printf("%s OK [APPENDUID 1 1] %x Append completed.\r\n", tag, h.Sum(nil))
	return nil
}

// word skips spaces and reads an atom. What ends it is left, because arguments begin with their space.
func (c *session) word() (string, error) {
	var b []byte
	for len(b) <= 256 {
		ch, err := c.r.ReadByte()
		switch {
		case err != nil:
			return "", err
		case ch == ' ' && len(b) == 0:
		case ch == ' ' || ch == '\r' || ch == '\n':
			if len(b) == 0 {
				return "", errGarbled
			}
			return string(b), c.r.UnreadByte()
		default:
			b = append(b, ch)
		}
	}
	return "", errGarbled
}

// argument reads a space and then a quoted string, a literal, a list in parentheses (as it stands) or an atom.
func (c *session) argument() (string, error) {
	ch, err := c.r.ReadByte()
	if err == nil && ch != ' ' {
		err = errGarbled
	}
	if err != nil {
		return "", err
	}
	first, err := c.r.Peek(1)
	if err != nil {
		return "", err
	}
	switch first[0] {
	case '{':
		n, err := c.literal()
		if err != nil {
			return "", err
		}
		if n > maxLiteral {
			return "", errGarbled
		}
		b := make([]byte, n)
		_, err = io.ReadFull(c.r, b)
		return string(b), err
	case '"':
		return c.quoted()
	case '(':
		s, err := c.r.ReadSlice(')')
		return string(s), err
	}
	return c.word()
}

func (c *session) quoted() (string, error) {
	c.r.Discard(1)
	var b []byte
	for len(b) < bufferSize {
		ch, err := c.r.ReadByte()
		if err != nil {
			return "", err
		}
		switch ch {
		case '"':
			return string(b), nil
		case '\\':
			if ch, err = c.r.ReadByte(); err != nil {
				return "", err
			}
		}
		b = append(b, ch)
	}
	return "", errGarbled
}

// literal reads the announcement {n} or {n+} and asks for the bytes unless they come unasked.
func (c *session) literal() (n uint32, err error) {
	line, err := c.line()
	if err != nil {
		return 0, err
	}
	plus := strings.HasSuffix(line, "+}")
	if _, err := fmt.Sscanf(strings.TrimSuffix(strings.TrimSuffix(line, "}"), "+"), "{%d", &n); err != nil {
		return 0, errGarbled
	}
	if !plus {
		c.printf("+ OK\r\n")
		err = c.flush()
	}
	return n, err
}
