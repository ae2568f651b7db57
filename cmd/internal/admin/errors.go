package admin

import (
	"context"
	"errors"
	"net/http"
)

// kinds is how errors travel: the client finds the error by its code again.
var kinds = []struct {
	err    error
	code   string
	status int
}{
	{ErrUnknownUser, "unknown_user", http.StatusNotFound},
	{ErrUnknownHost, "unknown_host", http.StatusNotFound},
	{ErrUnknownDirector, "unknown_director", http.StatusNotFound},
	{ErrInvalid, "invalid", http.StatusBadRequest},
	{ErrConflict, "conflict", http.StatusConflict},
	{context.DeadlineExceeded, "timeout", http.StatusGatewayTimeout},
}

func codeOf(err error) (code string, status int) {
	for _, k := range kinds {
		if errors.Is(err, k.err) {
			return k.code, k.status
		}
	}
	return "", http.StatusInternalServerError
}

// ServerError is an error that the daemon answered with. errors.Is finds the error behind it.
type ServerError struct {
	Status int    // of HTTP
	Text   string // the daemon's words
	kind   error
}

func (e *ServerError) Error() string { return e.Text }
func (e *ServerError) Unwrap() error { return e.kind }

func serverError(status int, reply errorReply) *ServerError {
	e := &ServerError{Status: status, Text: reply.Error}
	for _, k := range kinds {
		if k.code == reply.Code {
			e.kind = k.err
		}
	}
	if e.Text == "" {
		e.Text = "the daemon answered " + http.StatusText(status)
	}
	return e
}
