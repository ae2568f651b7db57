package httphook

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"usher/steer/auth"
)

// The values of Config that are not set, and the other limits.
const (
	DefaultTimeout  = 10 * time.Second // nginx waits for 60 s; people do not
	DefaultParallel = 256

	maxHeader   = 16 << 10 // bytes of an answer's headers
	maxBody     = 4 << 10  // bytes of an answer's body that are read, so that the connection can be used again
	maxWait     = time.Minute
	maxRounds   = 10 // of "Auth-Status: WAIT"
	idleTimeout = 90 * time.Second
)

// Config says where the hook is.
type Config struct {
	URL            string        // http or https
	CA             string        // file with the certificates that are trusted, PEM; empty: the system's
	Header         http.Header   // added to each request, as nginx's auth_http_header: a secret that both know
	PassClientCert bool          // the client's certificate itself is sent (Auth-SSL-Cert)
	Timeout        time.Duration // for one answer, waiting for a free place included; 0: DefaultTimeout
	Parallel       int           // requests and connections at a time; 0: DefaultParallel
	Master         auth.Master
	Log            zerolog.Logger
}

// Hook is the driver. It implements auth.Finder.
type Hook struct {
	config  Config
	client  *http.Client
	running chan struct{} // one place for each request
}

// New reads the certificates. It does not connect. Errors: an URL that is none or has a password in it, a bad file, a
// header of Config that a request cannot have.
func New(c Config) (*Hook, error) {
	c.Timeout = cmp.Or(c.Timeout, DefaultTimeout)
	c.Parallel = cmp.Or(c.Parallel, DefaultParallel)
	u, err := url.Parse(c.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
		// The URL is not repeated: one with a password in it is one of the mistakes.
		return nil, errors.New("auth hook: url is not of the form http://host:port/path")
	}
	for name, values := range c.Header {
		for _, value := range values {
			if !token(name) || !printable(value) || reserved(name) {
				return nil, fmt.Errorf("auth hook: header %q cannot be added", name)
			}
		}
	}
	roots, err := readRoots(c.CA)
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{
		// No proxy of the environment: passwords go where the configuration says.
		DialContext:            (&net.Dialer{Timeout: c.Timeout}).DialContext,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
		TLSHandshakeTimeout:    c.Timeout,
		MaxConnsPerHost:        c.Parallel,
		MaxIdleConnsPerHost:    c.Parallel,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: maxHeader,
		DisableCompression:     true,
	}
	return &Hook{
		config: c, running: make(chan struct{}, c.Parallel),
		client: &http.Client{
			Transport: transport,
			// A redirected request would tell another server the password.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

func readRoots(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("auth hook: ca: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("auth hook: ca: no certificate in %s", file)
	}
	return roots, nil
}

// Authenticate implements auth.Driver.
func (h *Hook) Authenticate(ctx context.Context, r auth.Request) (auth.Answer, error) {
	user, master, err := auth.Identify(r.Login, h.config.Master.Separator)
	if err != nil {
		return auth.Answer{}, err
	}
	header, err := h.login(r)
	if err != nil {
		return auth.Answer{}, err
	}
	re, err := h.ask(ctx, header)
	if err != nil {
		return auth.Answer{}, err
	}
	switch {
	case master == "":
	case re.user == "":
		return auth.Answer{}, fmt.Errorf("%w: a login for another user, and the hook did not say who it is (Auth-User)", auth.ErrCredentials)
	case r.Login.Authzid != "" && re.user != user:
		return auth.Answer{}, fmt.Errorf("%w: a login for another user than the hook said", auth.ErrCredentials)
	}
	a, err := re.answer(r)
	if err == nil {
		a.Upstream, err = h.config.Master.Credentials(r, a.User, re.pass)
	}
	if err != nil {
		return auth.Answer{}, err
	}
	return a, nil
}

// Find implements auth.Finder: for SMTP without a login, nginx asks with Auth-Method none.
func (h *Hook) Find(ctx context.Context, r auth.Request) (auth.Answer, error) {
	header, err := h.lookUp(r)
	if err != nil {
		return auth.Answer{}, err
	}
	re, err := h.ask(ctx, header)
	if errors.Is(err, auth.ErrCredentials) {
		return auth.Answer{}, &auth.Refused{Err: fmt.Errorf("%w: %w", auth.ErrUnknown, err), Text: refusedText(err)}
	}
	if err != nil {
		return auth.Answer{}, err
	}
	return re.answer(r)
}

// refusedText keeps the hook's words.
func refusedText(err error) string {
	var refused *auth.Refused
	if errors.As(err, &refused) {
		return refused.Text
	}
	return ""
}

// ask sends requests until the hook has decided.
func (h *Hook) ask(ctx context.Context, header http.Header) (reply, error) {
	for range maxRounds {
		re, err := h.once(ctx, header)
		if err != nil || !re.again {
			return re, err
		}
		select {
		case <-time.After(max(re.wait, time.Second)):
		case <-ctx.Done():
			return reply{}, fmt.Errorf("%w: the auth hook said WAIT: %w", auth.ErrTemporary, context.Cause(ctx))
		}
	}
	return reply{}, fmt.Errorf("%w: the auth hook said WAIT %d times", auth.ErrTemporary, maxRounds)
}

// once sends one request in its turn.
func (h *Hook) once(ctx context.Context, header http.Header) (reply, error) {
	ctx, cancel := context.WithTimeout(ctx, h.config.Timeout)
	defer cancel()
	select {
	case h.running <- struct{}{}:
		defer func() { <-h.running }()
	case <-ctx.Done():
		return reply{}, fmt.Errorf("%w: too many requests to the auth hook at once: %w", auth.ErrTemporary, context.Cause(ctx))
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, h.config.URL, nil)
	if err != nil {
		return reply{}, fmt.Errorf("%w: auth hook: %w", auth.ErrTemporary, err)
	}
	maps.Copy(request.Header, header)
	response, err := h.client.Do(request)
	if err != nil {
		var failed *url.Error
		if errors.As(err, &failed) {
			err = failed.Err // without the URL, which may have a key in it
		}
		return reply{}, fmt.Errorf("%w: auth hook: %w", auth.ErrTemporary, err)
	}
	defer response.Body.Close()
	// A short body is read to its end, or the connection could not be used again. What it is does not matter.
	_, _ = io.CopyN(io.Discard, response.Body, maxBody)
	if response.StatusCode >= 500 {
		return reply{}, fmt.Errorf("%w: auth hook: status %d", auth.ErrTemporary, response.StatusCode)
	}
	re, err := parse(response.Header)
	if err != nil && !isRefusal(err) {
		return reply{}, fmt.Errorf("%w: auth hook: status %d, %w", auth.ErrTemporary, response.StatusCode, err)
	}
	return re, err
}

func isRefusal(err error) bool {
	var refused *auth.Refused
	return errors.As(err, &refused)
}

// reserved are the headers that this package writes itself, and those by which HTTP works.
func reserved(name string) bool {
	switch name := strings.ToLower(name); name {
	case "host", "connection", "content-length", "transfer-encoding", "te", "trailer", "upgrade", "user-agent":
		return true
	default:
		return strings.HasPrefix(name, "client-") || strings.HasPrefix(name, "server-") || strings.HasPrefix(name, "proxy-") ||
			strings.HasPrefix(name, "auth-")
	}
}
