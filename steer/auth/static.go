package auth

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"

	"usher/steer/upstream"
)

// Static lets everybody go on, as Dovecot's static passdb with proxy=y nopassword=y: the backend verifies the password.
type Static struct {
	NoPassword bool       // must be true: there is nothing here to compare a password with
	Host       netip.Addr // valid: everybody goes there, without the director
}

// Authenticate implements Driver.
func (s Static) Authenticate(_ context.Context, r Request) (Answer, error) {
	if !s.NoPassword {
		return Answer{}, fmt.Errorf("%w: the static driver verifies nobody unless nopassword is set", ErrTemporary)
	}
	return Answer{
		// A login for another user ends in the other one's mailbox, if the backend allows it.
		User: cmp.Or(r.Login.Authzid, r.Login.User),
		Host: s.Host,
		Upstream: upstream.Credentials{
			User:     r.Login.User,
			Password: r.Login.Password,
			Authzid:  r.Login.Authzid,
			Tag:      r.Login.Tag,
		},
	}, nil
}
