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

// Client talks to the daemon behind a unix socket. Its methods are those of Source, for hosts by address or name; errors are
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

// Map returns the entries of these users, or all; host (its address or name) leaves out those on others.
func (c *Client) Map(ctx context.Context, host string, users ...string) ([]MapEntry, error) {
	query := url.Values{"user": users}
	if host != "" {
		query.Set("host", host)
	}
	return get[[]MapEntry](ctx, c, "map", query)
}

func (c *Client) User(ctx context.Context, name string) (User, error) {
	return get[User](ctx, c, "user", url.Values{"name": {name}})
}

func (c *Client) Flows(ctx context.Context) ([]FlowInfo, error) {
	return get[[]FlowInfo](ctx, c, "flows", nil)
}

func (c *Client) Ring(ctx context.Context) (Ring, error) {
	return get[Ring](ctx, c, "ring", nil)
}

func (c *Client) Flushes(ctx context.Context) ([]Flush, error) {
	return get[[]Flush](ctx, c, "flush", nil)
}

func (c *Client) Orders(ctx context.Context) (Orders, error) {
	return get[Orders](ctx, c, "orders", nil)
}

func (c *Client) UserMove(ctx context.Context, user, host string, wait bool) (Reply, error) {
	return c.post(ctx, "user/move", moveRequest{User: user, Host: host, Wait: wait})
}

func (c *Client) UserKick(ctx context.Context, user string) (Reply, error) {
	return c.post(ctx, "user/kick", kickRequest{User: user})
}

func (c *Client) FieldKick(ctx context.Context, field, value string) (Reply, error) {
	return c.post(ctx, "user/kick", kickRequest{Field: field, Value: value})
}

func (c *Client) HostAdd(ctx context.Context, h HostOrder, wait bool) (Reply, error) {
	return c.post(ctx, "host/add", addRequest{HostOrder: h, Wait: wait})
}

func (c *Client) HostUpdate(ctx context.Context, host string, weight int, wait bool) (Reply, error) {
	return c.post(ctx, "host/update", hostRequest{Host: host, Weight: &weight, Wait: wait})
}

func (c *Client) HostUp(ctx context.Context, host string, up, wait bool) (Reply, error) {
	what := "host/down"
	if up {
		what = "host/up"
	}
	return c.post(ctx, what, hostRequest{Host: host, Wait: wait})
}

func (c *Client) HostRemove(ctx context.Context, host string, wait bool) (Reply, error) {
	return c.post(ctx, "host/remove", hostRequest{Host: host, Wait: wait})
}

// HostDrain begins to drain a host; rate is in users per second, 0: no limit.
func (c *Client) HostDrain(ctx context.Context, host string, rate float64, parallel int) (Reply, error) {
	return c.post(ctx, "host/drain", flushRequest{Host: host, Rate: rate, Parallel: parallel})
}

// Flush begins to flush a host, or with "all" each of them.
func (c *Client) Flush(ctx context.Context, host string, force bool, rate float64, parallel int) (Reply, error) {
	return c.post(ctx, "flush", flushRequest{Host: host, Force: force, Rate: rate, Parallel: parallel})
}

func (c *Client) FlushStop(ctx context.Context, host string) (Reply, error) {
	return c.post(ctx, "flush/stop", flushRequest{Host: host})
}

// RingAdd adds a director, written as an address with or without a port.
func (c *Client) RingAdd(ctx context.Context, director string, wait bool) (Reply, error) {
	return c.post(ctx, "ring/add", ringRequest{Director: director, Wait: wait})
}

func (c *Client) RingRemove(ctx context.Context, director string, wait bool) (Reply, error) {
	return c.post(ctx, "ring/remove", ringRequest{Director: director, Wait: wait})
}

func get[T any](ctx context.Context, c *Client, what string, query url.Values) (T, error) {
	var v T
	err := c.do(ctx, http.MethodGet, what, query, nil, &v)
	return v, err
}

func (c *Client) post(ctx context.Context, what string, body any) (Reply, error) {
	var reply Reply
	data, err := json.Marshal(body)
	if err != nil {
		return reply, err
	}
	err = c.do(ctx, http.MethodPost, what, nil, data, &reply)
	return reply, err
}

// do decodes the answer into v.
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
