package dovecot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"usher/steer/auth"
)

// The values of Config that are not set.
const (
	DefaultConnections = 4
	// DefaultParallel is generous: auth holds back failed logins for 2 s and more, and they must not keep out the others.
	DefaultParallel = 4096
	// DefaultTimeout is longer than the 17 s for which auth holds back a failed login of a punished address.
	DefaultTimeout = 30 * time.Second
)

// Config says where Dovecot's auth is.
type Config struct {
	LoginSocket string // auth-client protocol, as /run/dovecot/login/login; empty: Authenticate and Begin fail
	UserSocket  string // auth-master protocol, as /run/dovecot/auth-userdb; empty: Find fails
	Connections int    // to each socket at most; 0: DefaultConnections
	Parallel    int    // requests at each socket at a time; 0: DefaultParallel
	Timeout     time.Duration
	NoPenalty   bool // auth shall not punish the client's address, because the proxy does it
	Master      auth.Master
	Log         zerolog.Logger
}

// Auth is the driver. It implements auth.Finder and auth.Relayer.
type Auth struct {
	config       Config
	login, users *pool // nil: not configured

	mu    sync.Mutex
	named map[string]bool // fields the log has named
}

// maxNamed bounds named: there are not so many words.
const maxNamed = 64

// New does not connect: Dovecot may start later. One of the sockets has to be there.
func New(c Config) (*Auth, error) {
	c.Connections = cmp.Or(c.Connections, DefaultConnections)
	c.Parallel = cmp.Or(c.Parallel, DefaultParallel)
	c.Timeout = cmp.Or(c.Timeout, DefaultTimeout)
	a := &Auth{config: c, named: make(map[string]bool)}
	if c.LoginSocket != "" {
		a.login = newPool(c.LoginSocket, true, c)
	}
	if c.UserSocket != "" {
		a.users = newPool(c.UserSocket, false, c)
	}
	if a.login == nil && a.users == nil {
		return nil, errors.New("auth driver dovecot: neither a login socket nor a user socket")
	}
	return a, nil
}

// Close ends the connections. Requests on their way fail; those that come later make new ones.
func (a *Auth) Close() {
	for _, p := range []*pool{a.login, a.users} {
		if p != nil {
			p.close()
		}
	}
}

// Authenticate implements auth.Driver: the exchange is known from its beginning to its end.
func (a *Auth) Authenticate(ctx context.Context, r auth.Request) (auth.Answer, error) {
	mechanism, message, err := initial(r)
	if err != nil {
		return auth.Answer{}, err
	}
	for again := true; ; again = false {
		answer, err := a.authenticate(ctx, r, mechanism, message)
		// Auth was restarted perhaps. Nothing has been decided, so asking once more is safe.
		var lost *lostError
		if !again || !errors.As(err, &lost) || ctx.Err() != nil {
			return answer, err
		}
	}
}

func (a *Auth) authenticate(ctx context.Context, r auth.Request, mechanism string, message []byte) (auth.Answer, error) {
	x := a.begin(r, mechanism)
	defer x.Cancel()
	challenge, answer, err := x.Next(ctx, message)
	if err == nil && x.final != nil {
		_, answer, err = x.Next(ctx, nil) // the data at the end are for a client that checks them
	}
	if err != nil {
		return auth.Answer{}, err
	}
	if answer != nil {
		return *answer, nil
	}
	// A token's mechanism explains its refusal in a challenge, and refuses when that is acknowledged.
	if _, _, err = x.Next(ctx, abandon(mechanism)); err == nil {
		return auth.Answer{}, fmt.Errorf("%w: Dovecot's auth goes on with %s behind its end", auth.ErrTemporary, mechanism)
	}
	var refused *auth.Refused
	if errors.As(err, &refused) {
		refused.Challenge = challenge
	}
	return auth.Answer{}, err
}

// Find implements auth.Finder: the passdb is asked first, then the userdb, as Dovecot's LMTP does it.
func (a *Auth) Find(ctx context.Context, r auth.Request) (auth.Answer, error) {
	re, err := a.lookUp(ctx, "PASS", r)
	if err == nil && re.command == "NOTFOUND" {
		re, err = a.lookUp(ctx, "USER", r)
	}
	switch {
	case errors.Is(err, errTooLong):
		return auth.Answer{}, fmt.Errorf("%w: the name is too long for Dovecot's auth", auth.ErrUnknown)
	case err != nil:
		return auth.Answer{}, err
	}
	switch re.command {
	case "PASS":
		f, err := a.fields(re)
		if err != nil {
			return auth.Answer{}, err
		}
		if !f.Proxy && !f.NoLogin {
			return auth.Answer{}, errNoProxy
		}
		return f.Found(r, r.Login.User)
	case "USER":
		if len(re.fields) == 0 || re.fields[0] == "" {
			return auth.Answer{}, fmt.Errorf("%w: Dovecot's auth answers without a name", auth.ErrTemporary)
		}
		// The userdb's fields are about the mailbox, and a backend's business.
		return (&auth.Fields{User: re.fields[0]}).Found(r, r.Login.User)
	case "NOTFOUND":
		return auth.Answer{}, fmt.Errorf("%w: neither in passdb nor in userdb", auth.ErrUnknown)
	case "FAIL":
		return auth.Answer{}, failure(re, auth.ErrTemporary)
	}
	return auth.Answer{}, fmt.Errorf("%w: Dovecot's auth answers a look-up with %s", auth.ErrTemporary, re.command)
}

// lookUp asks for one user. A lost connection is worth another try.
func (a *Auth) lookUp(ctx context.Context, command string, r auth.Request) (reply, error) {
	if a.users == nil {
		return reply{}, fmt.Errorf("%w: no socket of Dovecot's auth for users is configured", auth.ErrTemporary)
	}
	ctx, cancel := context.WithTimeout(ctx, a.config.Timeout)
	defer cancel()
	if err := a.users.enter(ctx); err != nil {
		return reply{}, err
	}
	defer a.users.leave()
	for again := true; ; again = false {
		re, err := a.lookUpOnce(ctx, command, r)
		var lost *lostError
		if again && errors.As(err, &lost) && ctx.Err() == nil {
			continue
		}
		if err != nil && !errors.Is(err, errTooLong) {
			err = fmt.Errorf("%w: Dovecot's auth: %w", auth.ErrTemporary, err)
		}
		return re, err
	}
}

func (a *Auth) lookUpOnce(ctx context.Context, command string, r auth.Request) (reply, error) {
	rq, err := a.users.open(ctx)
	if err != nil {
		return reply{}, err
	}
	defer rq.end(false) // there is no CANCEL in this protocol: a late reply is dropped
	fields := append([]string{r.Login.User}, rq.conn.about(r)...)
	return rq.ask(ctx, maxUserLine, command, fields...)
}

// errNoProxy is an answer that is meant for a login process with mailboxes behind it.
var errNoProxy = fmt.Errorf("%w: Dovecot's auth does not say proxy: this user is not to be proxied", auth.ErrDisabled)

// fields reads the fields of OK and PASS.
func (a *Auth) fields(re reply) (*auth.Fields, error) {
	f := new(auth.Fields)
	for _, field := range re.fields {
		key, value, _ := strings.Cut(field, "=")
		switch key {
		case "proxy", "proxy_maybe", "director_proxy_maybe", "nologin", "proxy_not_trusted":
			value = "" // whatever a database makes of "y": Dovecot looks at the name alone
		case "ssl", "starttls":
			value = strings.ToLower(value)
		case "resp", "":
			continue // the exchange's, or an empty field
		}
		err := f.Set(key, value)
		switch {
		case errors.Is(err, auth.ErrField):
			a.name(key)
		case err != nil:
			return nil, fmt.Errorf("%w: Dovecot's auth: field %s: %w", auth.ErrTemporary, auth.Line(key), err)
		}
	}
	return f, nil
}

// name says in the log that a field is not used, once.
func (a *Auth) name(key string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.named[key] && len(a.named) < maxNamed {
		a.named[key] = true
		a.config.Log.Warn().Str("field", auth.Line(key)).Msg("a field of Dovecot's auth is not used")
	}
}

// failure is a FAIL as an error; kind is that of one without a code.
func failure(re reply, kind error) error {
	code, _ := re.get("code")
	for _, old := range []struct{ flag, code string }{ // as 2.2 said it
		{"temp", "temp_fail"}, {"authz", "authz_fail"}, {"user_disabled", "user_disabled"}, {"pass_expired", "pass_expired"},
	} {
		if _, ok := re.get(old.flag); ok && code == "" {
			code = old.code
		}
	}
	reason, _ := re.get("reason")
	text := auth.Line(reason)
	switch code {
	case "temp_fail":
		kind, text = auth.ErrTemporary, "" // its reasons are for administrators
	case "authz_fail", "user_disabled":
		kind = auth.ErrDisabled
	case "pass_expired":
		kind, text = auth.ErrDisabled, cmp.Or(text, "Password expired.")
	}
	return &auth.Refused{
		Err:  fmt.Errorf("%w: Dovecot's auth says no (code %q, reason %q)", kind, auth.Line(code), auth.Line(reason)),
		Text: text,
	}
}
