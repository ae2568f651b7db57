package auth

import (
	"context"
	"fmt"
	"net/netip"

	"usher/steer/upstream"
)

// Static lets everybody go on, as Dovecot's static passdb with proxy=y nopassword=y: the backend verifies the password.
type Static struct {
	NoPassword bool       // must be true: there is nothing here to compare a password with
	Host       netip.Addr // valid: everybody goes there, without the director
	Separator  string     // auth_master_user_separator; empty: names are not cut
}

// Authenticate implements Driver.
func (s Static) Authenticate(_ context.Context, r Request) (Answer, error) {
	if !s.NoPassword {
		return Answer{}, fmt.Errorf("%w: the static driver verifies nobody unless nopassword is set", ErrTemporary)
	}
	if r.Login.Mechanism == "EXTERNAL" {
		return Answer{}, fmt.Errorf("%w: the static driver has nothing to log in with for a client that showed a certificate", ErrTemporary)
	}
	// A login for another user ends in the other one's mailbox, if the backend allows it. It gets the name as it came.
	user, _, err := Identify(r.Login, s.Separator)
	if err != nil {
		return Answer{}, err
	}
	c := upstream.Credentials{User: r.Login.User, Password: r.Login.Password, Authzid: r.Login.Authzid, Tag: r.Login.Tag, Hello: r.Login.Hello}
	if r.Login.Message != "" {
		c.Mechanism, c.Message = r.Login.Mechanism, r.Login.Message
	}
	return Answer{User: user, Host: s.Host, Upstream: c}, nil
}

// Find implements Finder: whether there is such a user, only the backend knows.
func (s Static) Find(_ context.Context, r Request) (Answer, error) {
	return Answer{User: r.Login.User, Host: s.Host, Upstream: upstream.Credentials{User: r.Login.User, Tag: r.Login.Tag, Hello: r.Login.Hello}}, nil
}
