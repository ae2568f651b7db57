package sasl

import (
	"errors"
	"testing"
)

func TestExchange(t *testing.T) {
	const xoauth2 = "user=fred\x01auth=Bearer tok\x01\x01"
	const bearer = "n,a=fr=2Ced=3D,\x01host=mail.test\x01port=143\x01auth=bearer tok\x01\x01"
	for _, tt := range []struct {
		name, mechanism, certified string
		messages                   []string
		initial                    bool
		asked                      []string
		want                       Result
		err                        error
	}{
		{name: "plain", mechanism: "PLAIN", messages: []string{"z\x00fred\x00x"}, initial: true, want: Result{Authzid: "z", User: "fred", Password: "x"}},
		{name: "plain, asked", mechanism: "PLAIN", messages: []string{"\x00fred\x00x"}, asked: []string{""}, want: Result{User: "fred", Password: "x"}},
		{name: "plain, wrong", mechanism: "PLAIN", messages: []string{"fred"}, initial: true, err: ErrMessage},
		{name: "login", mechanism: "LOGIN", messages: []string{"fred", "x"}, asked: []string{"Username:", "Password:"}, want: Result{User: "fred", Password: "x"}},
		{name: "login, initial", mechanism: "LOGIN", messages: []string{"fred", ""}, initial: true, asked: []string{"Password:"}, want: Result{User: "fred"}},
		{name: "xoauth2", mechanism: "XOAUTH2", messages: []string{xoauth2}, initial: true, want: Result{User: "fred", Password: "tok", Message: xoauth2}},
		{name: "xoauth2, not ended", mechanism: "XOAUTH2", messages: []string{"user=fred\x01auth=Bearer tok\x01"}, initial: true, err: ErrMessage},
		{name: "xoauth2, no user", mechanism: "XOAUTH2", messages: []string{"auth=Bearer tok\x01\x01"}, initial: true, err: ErrMessage},
		{name: "xoauth2, two users", mechanism: "XOAUTH2", messages: []string{"user=a\x01user=b\x01auth=Bearer tok\x01\x01"}, initial: true, err: ErrMessage},
		{name: "xoauth2, basic", mechanism: "XOAUTH2", messages: []string{"user=a\x01auth=Basic tok\x01\x01"}, initial: true, err: ErrMessage},
		{name: "oauthbearer", mechanism: "OAUTHBEARER", messages: []string{bearer}, asked: []string{""}, want: Result{User: "fr,ed=", Password: "tok", Message: bearer}},
		{name: "oauthbearer, no user", mechanism: "OAUTHBEARER", messages: []string{"n,,\x01auth=Bearer tok\x01\x01"}, initial: true, err: ErrMessage},
		{name: "oauthbearer, bound", mechanism: "OAUTHBEARER", messages: []string{"p=tls-unique,a=fred,\x01auth=Bearer tok\x01\x01"}, initial: true, err: ErrMessage},
		{name: "oauthbearer, escape", mechanism: "OAUTHBEARER", messages: []string{"n,a=fr=ed,\x01auth=Bearer tok\x01\x01"}, initial: true, err: ErrMessage},
		{name: "external", mechanism: "EXTERNAL", certified: "fred", messages: []string{""}, asked: []string{""}, want: Result{User: "fred"}},
		{name: "external for oneself", mechanism: "EXTERNAL", certified: "fred", messages: []string{"fred"}, initial: true, want: Result{User: "fred"}},
		{name: "external for another", mechanism: "EXTERNAL", certified: "fred", messages: []string{"anna"}, initial: true, want: Result{User: "fred", Authzid: "anna"}},
		{name: "unknown", mechanism: "CRAM-MD5", messages: []string{""}, initial: true, err: ErrMessage},
	} {
		t.Run(tt.name, func(t *testing.T) {
			x := Begin(tt.mechanism, tt.certified)
			var message []byte
			next := func() { message, tt.messages = append([]byte{}, tt.messages[0]...), tt.messages[1:] }
			if tt.initial {
				next()
			}
			for {
				challenge, err := x.Next(message)
				if challenge == nil {
					if !errors.Is(err, tt.err) || err == nil && (x.Result != tt.want || len(tt.asked) > 0) {
						t.Errorf("got %+v, %v", x.Result, err)
					}
					return
				}
				if len(tt.asked) == 0 || string(challenge) != tt.asked[0] {
					t.Fatalf("asked %q", challenge)
				}
				tt.asked = tt.asked[1:]
				next()
			}
		})
	}
}

// Whatever comes, the names that a mechanism gives are in its message.
func FuzzExchange(f *testing.F) {
	f.Add(uint8(0), []byte("\x00fred\x00x"), []byte(""))
	f.Add(uint8(1), []byte("fred"), []byte("x"))
	f.Add(uint8(2), []byte("user=fred\x01auth=Bearer tok\x01\x01"), []byte{})
	f.Add(uint8(3), []byte("n,a=fred,\x01auth=Bearer tok\x01\x01"), []byte{})
	f.Add(uint8(4), []byte("anna"), []byte{})
	f.Fuzz(func(t *testing.T, mechanism uint8, first, second []byte) {
		name := Mechanisms[int(mechanism)%len(Mechanisms)]
		x := Begin(name, "certified")
		challenge, err := x.Next(append([]byte{}, first...))
		if err == nil && challenge != nil {
			challenge, err = x.Next(append([]byte{}, second...))
		}
		if challenge != nil {
			t.Errorf("%s asks for a third message", name)
		}
		if err == nil && IsToken(name) && (x.Message != string(first) || x.User == "" || x.Password == "") {
			t.Errorf("%s: %+v of %q", name, x.Result, first)
		}
	})
}
