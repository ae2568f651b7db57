// Package sasl reads and writes SASL responses as mail protocols carry them: base64 lines with the message of one
// mechanism inside. The proxy needs the user's name, and either the secret or a message that it can relay, so that each
// mechanism is one decoder here: PLAIN (RFC 4616), LOGIN, XOAUTH2, OAUTHBEARER (RFC 7628) and EXTERNAL (RFC 4422).
package sasl

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

var (
	// ErrBase64 is returned by Decode for what is not base64 (RFC 4648 section 4, with its padding).
	ErrBase64 = errors.New("invalid base64 data")
	// ErrMessage is returned for a message that does not have its mechanism's form.
	ErrMessage = errors.New("malformed message")
)

// Decode returns the message of a base64 line. An initial response "=" stands for the empty message (RFC 4959 section 3,
// RFC 5034 section 4); as a continuation that is an empty line, which this takes as well.
func Decode(response []byte) ([]byte, error) {
	if string(response) == "=" {
		return nil, nil
	}
	for _, c := range response {
		// The decoder of the standard library skips line ends, and a bare CR can stand within a line.
		if c == '\r' || c == '\n' {
			return nil, ErrBase64
		}
	}
	message := make([]byte, base64.StdEncoding.DecodedLen(len(response)))
	n, err := base64.StdEncoding.Strict().Decode(message, response)
	if err != nil {
		return nil, ErrBase64
	}
	return message[:n], nil
}

// Answer is Decode for a client's answer to a challenge, which may be "*": ErrAborted.
func Answer(response []byte) ([]byte, error) {
	if string(response) == "*" {
		return nil, ErrAborted
	}
	return Decode(response)
}

// Encode is the base64 line of a message; the empty message is "=".
func Encode(message []byte) string {
	if len(message) == 0 {
		return "="
	}
	return base64.StdEncoding.EncodeToString(message)
}

// Plain is the message of the mechanism PLAIN (RFC 4616 section 2).
type Plain struct {
	Authzid  string // whom to act as; empty: Authcid
	Authcid  string // whose password it is
	Password string
}

// DecodePlain reads authzid NUL authcid NUL password.
func DecodePlain(message []byte) (Plain, error) {
	fields := strings.Split(string(message), "\x00")
	if len(fields) != 3 {
		return Plain{}, fmt.Errorf("PLAIN: %w: %d fields, want 3", ErrMessage, len(fields))
	}
	return Plain{Authzid: fields[0], Authcid: fields[1], Password: fields[2]}, nil
}

// Encode is the reverse of DecodePlain. A field with a NUL in it would become two and is ErrMessage.
func (p Plain) Encode() ([]byte, error) {
	message := p.Authzid + "\x00" + p.Authcid + "\x00" + p.Password
	if strings.Count(message, "\x00") != 2 {
		return nil, fmt.Errorf("PLAIN: %w: NUL in a field", ErrMessage)
	}
	return []byte(message), nil
}

// Allowed reports whether s, a user name or password, is free of ASCII control characters. SASLprep prohibits them (RFC 4013
// section 2.3), and a CR LF in a name would be a second command on the way to a backend. 8-bit characters are allowed.
func Allowed(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] == 0x7f {
			return false
		}
	}
	return true
}
