package backend

import (
	"bytes"
	"strconv"
	"strings"

	"usher/testenv/content"
)

// popMessages is how many messages every mailbox has over POP3.
const popMessages = 100

// pop3 serves one connection.
func (c *session) pop3() (Ending, error) {
	trusting := ""
	if c.server.opts.Trusting {
		trusting = "[XCLIENT] "
	}
	c.printf("+OK %s%s ready.\r\n", trusting, c.server.opts.Name)
	user := ""
	for {
		line, err := c.line()
		if err != nil {
			return Live, err
		}
		command, args, _ := strings.Cut(line, " ")
		command = strings.ToUpper(command)
		var ending Ending
		switch {
		case command == "QUIT":
			c.printf("+OK Logging out.\r\n")
			return Logout, nil
		case command == "CAPA":
			c.printf("+OK\r\nCAPA\r\nTOP\r\nUIDL\r\nRESP-CODES\r\nPIPELINING\r\nUSER\r\nSASL PLAIN\r\n.\r\n")
		case command == "XCLIENT":
			c.note(args)
			c.printf("+OK\r\n")
		case command == "STLS" && c.offersTLS():
			c.printf("+OK Begin TLS negotiation now.\r\n")
			err = c.startTLS()
		case c.record.User != "":
			err = c.pop3Command(command, args)
		case command == "USER":
			user = args
			c.printf("+OK\r\n")
		case command == "PASS":
			ending = c.pop3Answer(user, "", args) // the password is the whole rest of the line
		case command == "AUTH":
			ending, err = c.pop3Auth(args)
		default:
			c.printf("-ERR Unknown command.\r\n")
		}
		if err == errFinished {
			return FIN, nil
		}
		if err == errReset {
			return Closed, nil
		}
		if err != nil || ending != Live {
			return ending, err
		}
	}
}

func (c *session) pop3Auth(args string) (Ending, error) {
	mechanism, b64, initial := strings.Cut(args, " ")
	if !strings.EqualFold(mechanism, "PLAIN") {
		c.printf("-ERR Only PLAIN here.\r\n")
		return Live, nil
	}
	if !initial {
		c.printf("+ \r\n")
		var err error
		if b64, err = c.line(); err != nil {
			return Live, err
		}
	}
	authcid, authzid, password, ok := plain(b64)
	if !ok {
		c.printf("-ERR Invalid authentication exchange.\r\n")
		return Live, nil
	}
	return c.pop3Answer(authcid, authzid, password), nil
}

func (c *session) pop3Answer(authcid, authzid, password string) Ending {
	switch c.login(authcid, authzid, password) {
	case Accept:
		c.printf("+OK Logged in.\r\n")
	case Reject:
		c.printf("-ERR [AUTH] Authentication failed.\r\n")
	case Unavailable:
		c.printf("-ERR [SYS/TEMP] Temporary authentication failure.\r\n")
	case HangUp:
		return Closed
	}
	return Live
}

func (c *session) pop3Command(command, args string) error {
	ok := func(text string) { c.printf("+OK %s\r\n", text) }
	number := func() (uint64, bool) {
		n, err := strconv.ParseUint(strings.TrimSpace(args), 10, 32)
		if err != nil || n < 1 || n > popMessages {
			c.printf("-ERR There's no message %q.\r\n", args)
			return 0, false
		}
		return n, true
	}
	switch command {
	case "NOOP", "RSET":
		ok(command)
	case "STAT":
		total := 0
		for n := range uint64(popMessages) {
			total += content.Size(n + 1)
		}
		c.printf("+OK %d %d\r\n", popMessages, total)
	case "LIST", "UIDL":
		c.printf("+OK %d messages:\r\n", popMessages)
		for n := uint64(1); n <= popMessages; n++ {
			if command == "LIST" {
				c.printf("%d %d\r\n", n, content.Size(n))
			} else {
				c.printf("%d m%d\r\n", n, n)
			}
		}
		c.printf(".\r\n")
	case "DELE":
		if n, good := number(); good {
			c.printf("+OK Marked %d to be deleted.\r\n", n)
		}
	case "RETR":
		if n, good := number(); good {
			m := content.Message(n, content.Size(n))
			c.printf("+OK %d octets\r\n", len(m))
			// A message has a line before each line that begins with a dot, so this finds all of them.
			c.Write(bytes.ReplaceAll(m, []byte("\r\n."), []byte("\r\n..")))
			c.printf(".\r\n")
		}
	case "X-WHO":
		c.printf("+OK %s %s %d\r\n", c.record.User, c.server.opts.Name, c.record.ID)
	default:
		known, err := c.extension(command, args, ok)
		if !known {
			c.printf("-ERR Unknown command %q.\r\n", command)
		}
		return err
	}
	return nil
}
