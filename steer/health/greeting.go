package health

import (
	"bytes"
	"fmt"

	"usher/steer/prelogin"
	"usher/steer/upstream"
)

// begins reports whether a line's first words are these, in any case.
func begins(line []byte, words string) bool {
	n := len(words)
	return len(line) >= n && bytes.EqualFold(line[:n], []byte(words)) && (len(line) == n || line[n] == ' ')
}

func unexpected(line []byte) error {
	return fmt.Errorf("%w: %s", upstream.ErrGreeting, upstream.Excerpt(line))
}

// greetIMAP: RFC 3501 section 7.1. A PREAUTH is a server that we could not log users in at.
func greetIMAP(r *prelogin.Reader) error {
	line, err := r.Line()
	switch {
	case err != nil:
		return err
	case begins(line, "* OK"):
		return nil
	case begins(line, "* BYE"):
		return fmt.Errorf("%w: %s", upstream.ErrBye, upstream.Excerpt(line))
	}
	return unexpected(line)
}

// greetPOP3: RFC 1939 section 4.
func greetPOP3(r *prelogin.Reader) error {
	line, err := r.Line()
	if err != nil || begins(line, "+OK") {
		return err
	}
	return unexpected(line)
}

// greetSMTP: RFC 5321 section 4.2, of one or several lines; LMTP is the same.
func greetSMTP(r *prelogin.Reader) error {
	for {
		line, err := r.Line()
		if err != nil || begins(line, "220") {
			return err
		}
		if !bytes.HasPrefix(line, []byte("220-")) {
			return unexpected(line)
		}
	}
}

// greetSieve: RFC 5804 section 1.7: capabilities, then OK.
func greetSieve(r *prelogin.Reader) error {
	for {
		line, err := r.Line()
		switch {
		case err != nil:
			return err
		case begins(line, "OK"):
			return nil
		case begins(line, "BYE"):
			return fmt.Errorf("%w: %s", upstream.ErrBye, upstream.Excerpt(line))
		case !bytes.HasPrefix(line, []byte{'"'}):
			return unexpected(line)
		}
	}
}
