package dovecot

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"usher/director"
)

// maxVhosts and defaultVhosts are Dovecot's limits and defaults of a host's weight (admin.md section 2).
const (
	maxVhosts     = 1000
	defaultVhosts = 100
)

// command is one of admin.md section 2.
type command struct {
	orders bool // it changes something, and goes to the log
	do     func(*request) error
}

// commands by name (case sensitive, as in Dovecot).
var commands = map[string]command{
	"HOST-LIST":         {false, (*request).hostList},
	"HOST-LIST-REMOVED": {false, (*request).hostListRemoved},
	"DIRECTOR-LIST":     {false, (*request).directorList},
	"DIRECTOR-ADD":      {true, (*request).directorAdd},
	"DIRECTOR-REMOVE":   {true, (*request).directorRemove},
	"HOST-SET":          {true, func(r *request) error { return r.hostPut(true) }},
	"HOST-UPDATE":       {true, func(r *request) error { return r.hostPut(false) }},
	"HOST-UP":           {true, func(r *request) error { return r.hostUp(true) }},
	"HOST-DOWN":         {true, func(r *request) error { return r.hostUp(false) }},
	"HOST-REMOVE":       {true, (*request).hostRemove},
	"HOST-FLUSH":        {true, (*request).hostFlush},
	"HOST-RESET-USERS":  {true, (*request).hostResetUsers},
	"USER-LOOKUP":       {false, (*request).userLookup},
	"USER-LIST":         {false, (*request).userList},
	"USER-MOVE":         {true, (*request).userMove},
	"USER-KICK":         {true, (*request).userKick},
	"USER-KICK-ALT":     {true, (*request).userKickAlt},
}

// request is one command on its way. Its methods write the reply; their error closes the connection
// without one.
type request struct {
	*Admin
	ctx  context.Context
	args []string
	out  *bufio.Writer
}

// arg returns an argument, empty if it is missing.
func (r *request) arg(i int) string {
	if i < len(r.args) {
		return r.args[i]
	}
	return ""
}

func (r *request) line(format string, args ...any) error {
	fmt.Fprintf(r.out, format+"\n", args...)
	return nil
}

func (r *request) ip(i int) (netip.Addr, error) {
	a, err := netip.ParseAddr(r.arg(i))
	if err != nil {
		return a, fmt.Errorf("%q is no IP address", r.arg(i))
	}
	return a.Unmap(), nil
}

// optionalIP is not valid when the argument is missing or empty.
func (r *request) optionalIP(i int) (netip.Addr, error) {
	if r.arg(i) == "" {
		return netip.Addr{}, nil
	}
	return r.ip(i)
}

func (r *request) number(i int) (uint32, error) {
	n, err := strconv.ParseUint(r.arg(i), 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%q is no number", r.arg(i))
	}
	return uint32(n), nil
}

// The replies that say what did not work.
const (
	notFound = "NOTFOUND"
	tryAgain = "TRYAGAIN"
	timedOut = "Ring sync timed out"
)

// reply answers with OK or with what an error means in this protocol.
func (r *request) reply(err error) error {
	switch {
	case err == nil:
		return r.line("OK")
	case errors.Is(err, director.ErrUnknownHost), errors.Is(err, ErrUnknownDirector):
		return r.line(notFound)
	case errors.Is(err, director.ErrMoveInProgress):
		return r.line(tryAgain)
	}
	for _, known := range replies {
		if errors.Is(err, known.err) {
			return r.line("%s", known.text)
		}
	}
	// doveadm shows any other line to the operator as it is.
	return r.line("%s", escape(err.Error()))
}

// synced does an order once the ring is synced, and answers when it is synced again, or cannot be
// (commands marked W). An order that did not work is answered at once.
func (r *request) synced(order func() error) error {
	if err := r.waitSynced(); err != nil && !errors.Is(err, errSilent) {
		return r.line(timedOut)
	}
	// With a silent director the ring will not agree, whether we wait or not; the newest order wins when it is
	// back. So it is done, and said.
	if err := order(); err != nil {
		return r.reply(err)
	}
	switch err := r.waitSynced(); {
	case errors.Is(err, errSilent):
		return r.line("%s: %v; the change has been made here", timedOut, err)
	case err != nil:
		return r.line(timedOut)
	}
	return r.line("OK")
}

var errSilent = errors.New("does not answer")

// waitSynced waits until the ring agrees, for syncTimeout at most, and not for directors that are
// silent: their name is in the error then.
func (r *request) waitSynced() error {
	ctx, cancel := context.WithTimeout(r.ctx, syncTimeout)
	defer cancel()
	ctx, silent := context.WithCancelCause(ctx)
	done := make(chan struct{})
	watcher := make(chan struct{})
	go func() {
		defer close(watcher)
		poll := time.NewTicker(r.silentPoll)
		defer poll.Stop()
		for {
			select {
			case <-done:
				return
			case <-poll.C:
				if s := r.director.Ring(); !s.Synced && len(s.Silent) > 0 {
					silent(fmt.Errorf("director %v %w", s.Silent[0], errSilent))
					return
				}
			}
		}
	}()
	err := r.director.WaitSynced(ctx)
	close(done)
	<-watcher
	silent(nil)
	return err
}

// hostList is sorted by address, which monitors that compare lists rely on.
func (r *request) hostList() error {
	for _, h := range r.director.Hosts() {
		state := "U"
		if !h.Up {
			state = "D"
		}
		r.line("%v\t%d\t%d\t%s\t%s\t%d", h.Addr, h.Weight, h.Users, escape(h.Tag), state, unix(h.Changed))
	}
	return r.line("")
}

// unix is 0 for the zero time.
func unix(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

// hostListRemoved is what doveadm director dump makes its "remove" commands of.
func (r *request) hostListRemoved() error {
	present := map[netip.Addr]bool{}
	for _, h := range r.director.Hosts() {
		present[h.Addr] = true
	}
	for _, a := range r.director.HostsConfigured() {
		if !present[a] {
			r.line("%v", a)
		}
	}
	return r.line("")
}

// host finds a host by its address.
func (r *request) host(addr netip.Addr) (Host, bool) {
	for _, h := range r.director.Hosts() {
		if h.Addr == addr {
			return h, true
		}
	}
	return Host{}, false
}

// hostPut is HOST-SET, which may add a host, or HOST-UPDATE.
func (r *request) hostPut(add bool) error {
	ip, tag, _ := strings.Cut(r.arg(0), "@")
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		return fmt.Errorf("%q is no IP address", ip)
	}
	addr = addr.Unmap()
	vhosts, given := uint32(defaultVhosts), len(r.args) > 1
	if !given && !add {
		return errors.New("the vhost count is missing")
	}
	if given {
		if vhosts, err = r.number(1); err != nil {
			return err
		}
	}
	if vhosts > maxVhosts {
		return r.reply(director.ErrWeight)
	}
	return r.synced(func() error {
		h, known := r.host(addr)
		switch {
		case !known && !add:
			return director.ErrUnknownHost
		case !known:
			h.Host = director.Host{Addr: addr, Tag: tag, Weight: int(vhosts)}
		case tag != "" && tag != h.Tag:
			return director.ErrTagChange
		case given:
			h.Weight = int(vhosts)
		}
		return r.director.HostPut(h.Host)
	})
}

// hostUp is HOST-UP or HOST-DOWN: the operator's word, whatever health checks say.
func (r *request) hostUp(up bool) error {
	addr, err := r.ip(0)
	if err != nil {
		return err
	}
	return r.synced(func() error {
		h, known := r.host(addr)
		if !known {
			return director.ErrUnknownHost
		}
		if h.Up == up {
			return nil // the ring has nothing to agree about
		}
		return r.director.HostUp(addr, up)
	})
}

func (r *request) hostRemove() error {
	addr, err := r.ip(0)
	if err != nil {
		return err
	}
	return r.synced(func() error { return r.director.HostRemove(addr) })
}

// hostFlush forgets users. Without an address it is not marked W: OK comes at once.
func (r *request) hostFlush() error {
	addr, err := r.optionalIP(0)
	if err != nil {
		return err
	}
	if !addr.IsValid() {
		return r.reply(r.director.HostForgetUsers(addr))
	}
	return r.synced(func() error {
		if _, known := r.host(addr); !known {
			return director.ErrUnknownHost
		}
		return r.director.HostForgetUsers(addr)
	})
}

// hostResetUsers answers when the last move has begun. Nothing else is read from the connection until
// then; if the client goes away the work is finished anyway.
func (r *request) hostResetUsers() error {
	addr, err := r.optionalIP(0)
	if err != nil {
		return err
	}
	var limit uint32
	if len(r.args) > 1 {
		if limit, err = r.number(1); err != nil {
			return err
		}
		if limit == 0 {
			return errors.New("no moves at a time would never end")
		}
	}
	if _, known := r.host(addr); addr.IsValid() && !known {
		return r.reply(director.ErrUnknownHost)
	}
	return r.reply(r.director.HostFlush(addr, int(min(limit, 1<<30))))
}

// key is that of a user name, or of a hash: what is a number counts as one.
func (r *request) key(user, tag string) director.Key {
	if hash, err := strconv.ParseUint(user, 10, 32); err == nil {
		return director.Key{Hash: uint32(hash), Tag: tag}
	}
	return r.director.KeyOf(user, tag)
}

// userLookup answers about anybody, known or not: empty fields stand for what there is not.
func (r *request) userLookup() error {
	if len(r.args) == 0 {
		return errors.New("the user is missing")
	}
	w := r.director.Lookup(r.key(r.arg(0), r.arg(1)))
	return r.line("%s\t%d\t%s\t%s", text(w.Host), unix(w.ExpiresAt), text(w.Hashed), text(w.Configured))
}

// text is empty for no address.
func text(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func (r *request) userList() error {
	host, err := r.optionalIP(0)
	if err != nil {
		return err
	}
	for u := range r.director.Users(host) {
		r.line("%d\t%d\t%v", u.Hash, unix(u.ExpiresAt), u.Host)
	}
	return r.line("")
}

// userMove answers when the move has begun. The tag is that of the new host, so only the hash counts.
func (r *request) userMove() error {
	to, err := r.ip(1)
	if err != nil {
		return err
	}
	return r.reply(r.director.UserMove(r.key(r.arg(0), "").Hash, to))
}

// userKick never has to wait for other kicks: they end as soon as they begin, so nowait means nothing.
// A user that this director does not know may have sessions at others.
func (r *request) userKick() error {
	if r.arg(0) == "" {
		return errors.New("the user is missing")
	}
	err := r.director.UserKick(r.arg(0))
	if errors.Is(err, director.ErrUnknownUser) {
		err = nil
	}
	return r.reply(err)
}

func (r *request) userKickAlt() error {
	if len(r.args) < 2 {
		return errors.New("want a field and its value")
	}
	return r.reply(r.director.UserKickAlt(r.arg(0), r.arg(1)))
}
