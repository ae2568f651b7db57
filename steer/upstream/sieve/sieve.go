// Package sieve logs a user in at a ManageSieve backend (RFC 5804).
package sieve

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"

	"usher/steer/prelogin"
	"usher/steer/sasl"
	"usher/steer/upstream"
)

// maxCapabilities bounds the lines of a list, and maxLiteral a literal of the backend.
const (
	maxCapabilities = 100
	maxLiteral      = 4 << 10
)

// StartTLS changes a new connection to TLS, for Login. The backend says its capabilities again by itself
// (RFC 5804 section 2.2), which is the greeting that Login reads.
func StartTLS(ctx context.Context, conn net.Conn, limits upstream.Limits, handshake upstream.Handshake) (net.Conn, error) {
	return upstream.StartTLS(ctx, conn, limits, handshake, "", func(r *prelogin.Reader) error {
		b := &backend{Reader: r, conn: conn}
		if err := b.greeting(); err != nil {
			return err
		}
		answer, err := b.command("STARTTLS")
		if err == nil && answer.word != "OK" {
			err = fmt.Errorf("%w: %s", upstream.ErrNoTLS, upstream.Excerpt(answer.raw))
		}
		return err
	})
}

// Login reads the greeting and logs in over conn, which is new. The errors are *upstream.Rejected when the backend said
// NO, upstream.ErrCredentials when nothing was sent, and temporary ones otherwise (see package upstream). The result has
// the backend's capability lines of before the login, without those about the login itself. The connection has no
// deadline afterwards; with an error it is only good for closing.
func Login(ctx context.Context, conn net.Conn, credentials upstream.Credentials, limits upstream.Limits) (upstream.Result, error) {
	if err := credentials.Check(); err != nil {
		return upstream.Result{}, err
	}
	limits = limits.OrDefault()
	b := &backend{Reader: prelogin.NewReader(conn, limits.Line, limits.Bytes), conn: conn, Credentials: credentials}
	var final answer
	err := prelogin.Within(ctx, conn, time.Now().Add(limits.Time), func() (err error) {
		final, err = b.login()
		return err
	})
	if err != nil {
		return upstream.Result{}, err
	}
	return upstream.Result{Reply: final.raw, Residual: b.Residual(), Capabilities: b.lines}, nil
}

// backend is one login in progress.
type backend struct {
	*prelogin.Reader
	upstream.Credentials
	conn  io.Writer
	sasl  []string // mechanisms, in upper case
	asks  bool     // it wants to know who the client is, and believes us
	lines []string // capabilities, as they came, that hold for clients of ours as well
}

// answer is what ends a response: OK, NO or BYE, or a string, which is a challenge.
type answer struct {
	word string // in upper case; empty: a string
	code string // the response code's name, in upper case
	text string // of a string
	raw  []byte // all of it, with CRLF
}

func (b *backend) login() (answer, error) {
	if err := b.greeting(); err != nil {
		return answer{}, upstream.Failed("read the greeting", err)
	}
	if err := b.introduce(); err != nil {
		return answer{}, upstream.Failed("introduce the client", err)
	}
	mechanism, message := "PLAIN", []byte(b.Message)
	if b.Token() {
		mechanism = b.Mechanism
	} else {
		var err error
		if message, err = b.Plain().Encode(); err != nil {
			return answer{}, err
		}
	}
	if !slices.Contains(b.sasl, mechanism) {
		return answer{}, fmt.Errorf("%w: no SASL %s", upstream.ErrMechanism, mechanism)
	}
	final, err := b.authenticate(mechanism, message)
	return final, upstream.Failed("log in", err)
}

// greeting reads the capabilities and the OK behind them.
func (b *backend) greeting() error {
	for range maxCapabilities {
		a, err := b.read()
		switch {
		case err != nil:
			return err
		case a.word == "":
			b.capability(a)
		case a.word == "OK":
			return nil
		case a.word == "BYE":
			return fmt.Errorf("%w: %s", upstream.ErrBye, upstream.Excerpt(a.raw))
		default:
			return fmt.Errorf("%w: %s", upstream.ErrGreeting, upstream.Excerpt(a.raw))
		}
	}
	return fmt.Errorf("%w: more than %d capabilities", upstream.ErrGreeting, maxCapabilities)
}

// introduce tells the backend who the client is, if it wants to know (Pigeonhole, to those whom it trusts).
func (b *backend) introduce() error {
	if b.Forward == nil || !b.asks {
		return nil
	}
	a, err := b.command("XCLIENT " + b.Forward.XCLIENT(func(string) bool { return true }))
	if err == nil && a.word == "BYE" {
		err = fmt.Errorf("%w: %s", upstream.ErrBye, upstream.Excerpt(a.raw))
	}
	return err
}

func (b *backend) capability(a answer) {
	line := strings.TrimSuffix(string(a.raw), "\r\n")
	switch strings.ToUpper(a.text) {
	case "SASL":
		_, rest, _ := strings.Cut(line, " ")
		b.sasl = strings.Fields(strings.ToUpper(strings.Trim(rest, `"`)))
	case "XCLIENT":
		b.asks = true
	case "STARTTLS":
		// between the proxy and the backend
	default:
		if !strings.ContainsAny(line, "\r\n") {
			b.lines = append(b.lines, line)
		}
	}
}

func (b *backend) authenticate(mechanism string, message []byte) (answer, error) {
	a, err := b.command("AUTHENTICATE " + quote(mechanism) + " " + quote(sasl.Encode(message)))
	var challenge []byte
	if err == nil && a.word == "" && b.Token() {
		if challenge, err = sasl.Decode([]byte(a.text)); err != nil {
			return a, fmt.Errorf("%w: %s", upstream.ErrReply, upstream.Excerpt(a.raw))
		}
		a, err = b.command(quote(base64.StdEncoding.EncodeToString(sasl.Abandon(mechanism))))
	}
	switch {
	case err != nil:
		return a, err
	case a.word == "OK":
		return a, nil
	case a.word == "NO":
		return a, &upstream.Rejected{Raw: a.raw, Kind: kind(a.code), Challenge: challenge}
	case a.word == "BYE":
		return a, fmt.Errorf("%w: %s", upstream.ErrBye, upstream.Excerpt(a.raw))
	}
	return a, fmt.Errorf("%w: %s", upstream.ErrReply, upstream.Excerpt(a.raw))
}

func quote(s string) string { return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"` }

func (b *backend) command(line string) (answer, error) {
	if _, err := io.WriteString(b.conn, line+"\r\n"); err != nil {
		return answer{}, err
	}
	return b.read()
}

// read reads one line and the literals that belong to it.
func (b *backend) read() (answer, error) {
	line, err := b.Line()
	if err != nil {
		return answer{}, err
	}
	if len(line) == 0 {
		return answer{}, fmt.Errorf("%w: empty line", upstream.ErrReply)
	}
	raw := slices.Clone(line)
	a := answer{}
	if raw[0] == '"' {
		a.text, _ = unquote(string(raw))
	}
	for {
		size, ok := announced(line)
		if !ok {
			break
		}
		if size > maxLiteral {
			return answer{}, prelogin.ErrLiteral
		}
		data, err := b.Bytes(size)
		if err != nil {
			return answer{}, err
		}
		if len(raw) == len(line) && raw[0] == '{' {
			a.text = string(data)
		}
		raw = append(append(raw, "\r\n"...), data...)
		if line, err = b.Line(); err != nil {
			return answer{}, err
		}
		raw = append(raw, line...)
	}
	a.raw = append(raw, "\r\n"...)
	if raw[0] == '"' || raw[0] == '{' {
		return a, nil
	}
	word, rest, _ := bytes.Cut(bytes.TrimRight(raw, "\r\n"), []byte{' '})
	a.word = strings.ToUpper(string(word))
	if inner, coded := bytes.CutPrefix(rest, []byte("(")); coded {
		code, _, _ := bytes.Cut(inner, []byte(")"))
		name, _, _ := bytes.Cut(code, []byte{' '})
		a.code = strings.ToUpper(string(name))
	}
	if a.word != "OK" && a.word != "NO" && a.word != "BYE" {
		return a, fmt.Errorf("%w: %s", upstream.ErrReply, upstream.Excerpt(a.raw))
	}
	return a, nil
}

// unquote takes the quoted string at the beginning of a line.
func unquote(line string) (s, behind string) {
	var text strings.Builder
	for i := 1; i < len(line); i++ {
		switch c := line[i]; {
		case c == '"':
			return text.String(), line[i+1:]
		case c == '\\' && i+1 < len(line):
			i++
			text.WriteByte(line[i])
		default:
			text.WriteByte(c)
		}
	}
	return text.String(), ""
}

// announced reads the "{size}" at the end of a line; servers have no other form.
func announced(line []byte) (size int, ok bool) {
	open := bytes.LastIndexByte(line, '{')
	if open < 0 || !bytes.HasSuffix(line, []byte("}")) || open > 0 && line[open-1] != ' ' {
		return 0, false
	}
	digits := bytes.TrimSuffix(line[open+1:len(line)-1], []byte("+"))
	if len(digits) == 0 || len(digits) > 9 {
		return 0, false
	}
	for _, c := range digits {
		if c < '0' || c > '9' {
			return 0, false
		}
		size = 10*size + int(c-'0')
	}
	return size, true
}

// kind tells by the response code what a NO means (RFC 5804 section 1.3). Without one it was the password.
func kind(code string) prelogin.Kind {
	switch code {
	case "TRYLATER":
		return prelogin.TempFail
	case "ENCRYPT-NEEDED", "AUTH-TOO-WEAK", "TRANSITION-NEEDED":
		return prelogin.PermFail
	default:
		return prelogin.AuthFailed
	}
}
