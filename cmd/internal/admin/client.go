package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"syscall"
	"time"
)

// ErrUnreachable means that no daemon answers on the socket.
var ErrUnreachable = errors.New("the daemon cannot be reached")

const (
	dialTimeout  = 3 * time.Second
	maxErrorBody = 64 << 10
)

// Client talks to the daemon behind a unix socket. Its methods are those of Source; errors are
// ErrUnreachable, *ServerError (with the Source's error inside) or ones about the transport.
type Client struct {
	socket string
	http   http.Client
}

// NewClient does not connect yet: each request has its own connection.
func NewClient(socket string) *Client {
	dialer := net.Dialer{Timeout: dialTimeout}
	return &Client{socket: socket, http: http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", socket)
		},
		DisableKeepAlives: true,
	}}}
}

func (c *Client) Status(ctx context.Context) (Status, error) {
	return get[Status](ctx, c, "status", nil)
}

func (c *Client) Map(ctx context.Context) ([]MapEntry, error) {
	return get[[]MapEntry](ctx, c, "map", nil)
}

func (c *Client) User(ctx context.Context, name string) (User, error) {
	return get[User](ctx, c, "user", url.Values{"name": {name}})
}

func (c *Client) Flows(ctx context.Context) ([]FlowInfo, error) {
	return get[[]FlowInfo](ctx, c, "flows", nil)
}

func (c *Client) Move(ctx context.Context, user, host string) error {
	return c.post(ctx, "move", moveRequest{User: user, Host: host})
}

func (c *Client) Kick(ctx context.Context, user string) error {
	return c.post(ctx, "kick", kickRequest{User: user})
}

func (c *Client) HostSet(ctx context.Context, address string, weight *int, up *bool) error {
	return c.post(ctx, "host", hostRequest{Address: address, Weight: weight, Up: up})
}

func get[T any](ctx context.Context, c *Client, what string, query url.Values) (T, error) {
	var v T
	err := c.do(ctx, http.MethodGet, what, query, nil, &v)
	return v, err
}

func (c *Client) post(ctx context.Context, what string, body any) error {
	data, err := json.Marshal(body)
	if err != nil {
		return err
	}
	return c.do(ctx, http.MethodPost, what, nil, data, nil)
}

// do decodes the answer into v, when that is not nil.
func (c *Client) do(ctx context.Context, method, what string, query url.Values, body []byte, v any) error {
	// The host's name goes nowhere: the transport only knows the socket.
	u := url.URL{Scheme: "http", Host: "usher", Path: "/api/v1/" + what, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		return c.transportError(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		var reply errorReply
		data, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
		if json.Unmarshal(data, &reply) != nil {
			reply.Error = string(bytes.TrimSpace(data))
		}
		return serverError(resp.StatusCode, reply)
	}
	if v == nil {
		return nil
	}
	if err := json.NewDecoder(resp.Body).Decode(v); err != nil {
		return fmt.Errorf("read the daemon's answer about %s: %w", what, err)
	}
	return nil
}

// transportError tells a daemon that is not there from one that went away.
func (c *Client) transportError(err error) error {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "dial" {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		return fmt.Errorf("talk to the daemon on %s: %w", c.socket, err)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w on %s: it is not running, or has another socket", ErrUnreachable, c.socket)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w on %s: only its owner may (try as root)", ErrUnreachable, c.socket)
	}
	return fmt.Errorf("%w on %s: %w", ErrUnreachable, c.socket, op.Err)
}
