package dovecot

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"usher/steer/auth"
	"usher/steer/upstream"
)

func TestFind(t *testing.T) {
	for _, tt := range []struct {
		name, hello string
		pass, user  string // the answers
		protocol    string
		want        auth.Answer
		err         error
		asked       []string
	}{
		{
			name: "2.3", hello: users23, protocol: "lmtp", pass: "PASS|%s|user=user2@x.test|proxy=y|lip=127.0.1.1|lport=10024",
			want:  auth.Answer{User: "user2@x.test", Verified: true, Upstream: upstream.Credentials{User: "user2@x.test", Tag: "a"}},
			asked: []string{"PASS|1|fred|service=lmtp|session=s1|lip=127.0.1.1|lport=143|rip=127.0.0.9|rport=5555"},
		},
		{
			name: "2.4", hello: users24, protocol: "doveadm", pass: "PASS|%s|user=fixed@x.test|proxy=y|host=127.0.2.3",
			want:  auth.Answer{User: "fixed@x.test", Verified: true, Host: netip.MustParseAddr("127.0.2.3"), Upstream: upstream.Credentials{User: "fixed@x.test", Tag: "a"}},
			asked: []string{"PASS|1|fred|protocol=doveadm|session=s1|lip=127.0.1.1|lport=143|rip=127.0.0.9|rport=5555"},
		},
		{
			name: "in the userdb", hello: users23, protocol: "lmtp", pass: "NOTFOUND|%s", user: "USER|%s|user1@x.test|",
			want: auth.Answer{User: "user1@x.test", Verified: true, Upstream: upstream.Credentials{User: "user1@x.test", Tag: "a"}},
			asked: []string{
				"PASS|1|fred|service=lmtp|session=s1|lip=127.0.1.1|lport=143|rip=127.0.0.9|rport=5555",
				"USER|2|fred|service=lmtp|session=s1|lip=127.0.1.1|lport=143|rip=127.0.0.9|rport=5555",
			},
		},
		{name: "nowhere", hello: users23, pass: "NOTFOUND|%s", user: "NOTFOUND|%s", err: auth.ErrUnknown},
		{name: "disabled", hello: users23, pass: "PASS|%s|user=disabled@x.test|nologin=y|reason=Go=away", err: auth.ErrDisabled},
		{name: "not proxied", hello: users23, pass: "PASS|%s|user=a", err: auth.ErrDisabled},
		{name: "not allowed to ask", hello: users23, pass: "FAIL|%s", err: auth.ErrTemporary},
		{name: "fails", hello: users23, pass: "FAIL|%s|code=temp_fail", err: auth.ErrTemporary},
		{name: "nonsense", hello: users23, pass: "OK|%s|user=a|proxy", err: auth.ErrTemporary},
		{name: "nobody", hello: users23, pass: "NOTFOUND|%s", user: "USER|%s", err: auth.ErrTemporary},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := start(t, answering(tt.hello, func(line string) string {
				if strings.HasPrefix(line, "PASS|") {
					return tt.pass + "\n"
				}
				return tt.user + "\n"
			}))
			a := driver(t, Config{UserSocket: f.path})
			r := request23("fred", "")
			r.Protocol = tt.protocol
			got, err := a.Find(t.Context(), r)
			if diff := cmp.Diff(tt.want, got, compareAddr); diff != "" || !errors.Is(err, tt.err) {
				t.Errorf("%v, answer (-want +got):\n%s", err, diff)
			}
			if heard := f.lines(); tt.asked != nil && !slices.Equal(heard[1:], tt.asked) {
				t.Errorf("heard %q, want %q", heard, tt.asked)
			}
			if _, err := a.Find(t.Context(), request23(strings.Repeat("x", maxUserLine), "")); !errors.Is(err, auth.ErrUnknown) {
				t.Errorf("a name that auth would not read: %v", err)
			}
			if _, err := a.Authenticate(t.Context(), r); !errors.Is(err, auth.ErrTemporary) {
				t.Errorf("login without a login socket: %v", err)
			}
		})
	}
}
