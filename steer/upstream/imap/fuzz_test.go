package imap_test

import (
	"fmt"
	"strings"
	"testing"

	"usher/steer/internal/scriptconn"
	"usher/steer/prelogin"
	prelogimap "usher/steer/prelogin/imap"
	"usher/steer/sasl"
	"usher/steer/upstream"
	"usher/steer/upstream/imap"
)

// However a backend's bytes arrive, the outcome is the same, and those behind the reply are left alone.
func FuzzReply(f *testing.F) {
	const modern = "* OK [CAPABILITY SASL-IR AUTH=PLAIN] x\r\n"
	for _, seed := range []string{
		modern + "* CAPABILITY X\r\na OK [CAPABILITY Y] z\r\n* BYE\r\n",
		modern + "a NO [UNAVAILABLE] x\r\n",
		"* OK\r\n* CAPABILITY IMAP4rev1\nusher OK\r\na OK x\r\nrest",
		"* OK [CAPABILITY IMAP4rev1] x\r\n+ \r\na OK x\r\n",
		"* PREAUTH\r\n", "* BYE x\r\n", modern + "+\r\n", "* OK [CAPABILITY", "* OK [CAPABILITY]\r\nusher OK\r\n",
	} {
		f.Add([]byte(seed), uint8(0), "x\xeb")
	}
	f.Fuzz(func(t *testing.T, data []byte, size uint8, password string) {
		credentials := upstream.Credentials{User: "fred", Password: password, Tag: "a"}
		limits := upstream.Limits{Line: 128, Bytes: 512}
		conn := scriptconn.New(string(data))
		result, err := imap.Login(t.Context(), conn, credentials, limits)
		parts := scriptconn.Bytewise(int(size)+1, string(data))
		again, errAgain := imap.Login(t.Context(), parts, credentials, limits)
		if fmt.Sprint(err) != fmt.Sprint(errAgain) || string(result.Reply) != string(again.Reply) || conn.Written() != parts.Written() {
			t.Errorf("in one segment %q, %v; in segments of %d bytes %q, %v", result, err, size+1, again, errAgain)
		}
		if err != nil {
			return
		}
		rest := string(result.Residual) + conn.Unread()
		if rest != string(again.Residual)+parts.Unread() || !strings.HasSuffix(string(data), rest) {
			t.Errorf("rest %q, in segments %q", rest, string(again.Residual)+parts.Unread())
		}
		lines := strings.SplitAfter(string(result.Reply), "\r\n")
		if n := len(lines); n < 2 || lines[n-1] != "" || !strings.HasPrefix(lines[n-2], "a ") {
			t.Errorf("reply %q does not end with the tagged line", result.Reply)
		}
	})
}

// What is sent to a backend reads there as what was meant: our own dialogue with clients is the reader.
func FuzzCredentials(f *testing.F) {
	f.Add("fred", `p"\ {3}`, "", uint8(0))
	f.Add("fr\xc3\xabd", "", "fred", uint8(1))
	f.Add("a\r\nb", "x", "", uint8(2))
	greetings := []string{
		"* OK [CAPABILITY SASL-IR AUTH=PLAIN] x\r\n",
		"* OK [CAPABILITY LITERAL+] x\r\n",
		"* OK [CAPABILITY AUTH=PLAIN LOGINDISABLED] x\r\n",
		"* OK [CAPABILITY IMAP4rev1] x\r\n",
	}
	f.Fuzz(func(t *testing.T, user, password, authzid string, greeting uint8) {
		backend := scriptconn.New(greetings[int(greeting)%len(greetings)] + "+ \r\n+ \r\na OK x\r\n")
		credentials := upstream.Credentials{User: user, Password: password, Authzid: authzid, Tag: "a"}
		// What comes of it does not matter here: there is a "+" for whoever waits for one, and the others have sent everything.
		_, _ = imap.Login(t.Context(), backend, credentials, upstream.Limits{})
		sent := backend.Written()
		if sent == "" {
			return // refused beforehand, or no way to log in
		}
		if user == "" || !sasl.Allowed(user) || !sasl.Allowed(password) || !sasl.Allowed(authzid) {
			t.Fatalf("sent %q", sent)
		}
		limits := prelogin.Limits{Line: 1 << 20, Literal: 1 << 20, Bytes: 1 << 22}
		d := prelogimap.New(scriptconn.New(sent), prelogin.Config{Limits: limits})
		login, err := d.Next(t.Context())
		if authzid == user {
			authzid = ""
		}
		if err != nil || login.User != user || login.Password != password || login.Authzid != authzid || login.Tag != "a" || d.Residual() != nil {
			t.Errorf("sent %q, read as %+v, %v", sent, login, err)
		}
	})
}
