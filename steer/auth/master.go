package auth

import (
	"errors"
	"fmt"
	"strings"

	"usher/steer/prelogin"
	"usher/steer/upstream"
)

// Master is the user by whose password the proxy logs in for everybody; a zero Master is none.
type Master struct {
	User, Password string
	Separator      string // auth_master_user_separator, also of the names that clients send; empty: names are not cut
}

// Credentials are how the proxy logs in at the backend for a user whom it has verified: as the master user, if there is
// one, else with pass, else with what the client gave (empty pass). ErrTemporary when there is nothing to log in with, as
// after a login by certificate, or the protocols cannot say it.
func (m Master) Credentials(r Request, user, pass string) (upstream.Credentials, error) {
	return m.credentials(r, user, pass, Master{})
}

// credentials takes a master user of this login alone, by, before the site's.
func (m Master) credentials(r Request, user, pass string, by Master) (upstream.Credentials, error) {
	c := upstream.Credentials{User: user, Password: pass, Tag: r.Login.Tag, Hello: r.Login.Hello}
	own := pass == "" || pass == r.Login.Password // Dovecot's auth repeats the client's password
	if own {
		c.Password = r.Login.Password
		if r.Login.Message != "" {
			c.Mechanism, c.Message = r.Login.Mechanism, r.Login.Message
		}
	}
	if by.User == "" {
		by = m
	}
	if by.User != "" {
		c.MasterUser, c.MasterPassword, c.Separator = by.User, by.Password, m.Separator
	} else if _, master, err := Identify(r.Login, m.Separator); own && err == nil && master != "" {
		// The password is the master user's, and so is the login at the backend.
		c.User, c.Authzid = master, user
	}
	if c.MasterUser == "" && c.Password == "" {
		return c, fmt.Errorf("%w: there is no password for the backend, and no master user", ErrTemporary)
	}
	if err := c.Check(); err != nil {
		return c, fmt.Errorf("%w: %w", ErrTemporary, err)
	}
	return c, nil
}

// Certified reports whether the client proved by its certificate who it is, so that there is no password to verify.
func (r Request) Certified() bool {
	return r.Login.Mechanism == "EXTERNAL" && r.TLS != nil && len(r.TLS.VerifiedChains) > 0
}

// errName is a name that cannot be cut in two, or is cut in two different ways.
var errName = errors.New("name with a separator but without a user or a master user")

// Identify says whose mailbox a client wants (user) and, when the password is somebody else's, whose (master). A client
// names another user by SASL's authzid, or by "user" + separator + "master" in the user name (Dovecot's
// auth_master_user_separator); an empty separator cuts nothing. ErrCredentials for a name that is neither.
func Identify(login prelogin.Login, separator string) (user, master string, err error) {
	user, authzid := login.User, login.Authzid
	if separator != "" {
		var cut bool
		if user, master, cut = strings.Cut(login.User, separator); cut && (user == "" || master == "") || strings.Contains(authzid, separator) {
			return "", "", fmt.Errorf("%w: %w", ErrCredentials, errName)
		}
	}
	switch {
	case authzid == "" || authzid == user:
		return user, master, nil
	case master != "":
		return "", "", fmt.Errorf("%w: the authorization identity is not the user before the separator", ErrCredentials)
	}
	return authzid, user, nil
}
