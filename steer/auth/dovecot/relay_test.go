package dovecot

import (
	"context"
	"crypto/hmac"
	"crypto/md5"
	"crypto/pbkdf2"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"

	"usher/steer/auth"
)

// relayed plays a client whose mechanisms the proxy does not know.
func relayed(t *testing.T, a *Auth) {
	begin := func(t *testing.T, mechanism string) auth.Exchange {
		x, err := a.Begin(t.Context(), realRequest("", ""), mechanism)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(x.Cancel)
		return x
	}
	next := func(t *testing.T, x auth.Exchange, message []byte) []byte {
		challenge, answer, err := x.Next(t.Context(), message)
		if err != nil || answer != nil || challenge == nil {
			t.Fatalf("got %q, %+v, %v", challenge, answer, err)
		}
		return challenge
	}
	cram := func(challenge []byte, user, password string) []byte {
		mac := hmac.New(md5.New, []byte(password))
		mac.Write(challenge)
		return []byte(user + " " + hex.EncodeToString(mac.Sum(nil)))
	}

	t.Run("CRAM-MD5", func(t *testing.T) {
		x := begin(t, "cram-md5")
		challenge := next(t, x, nil)
		_, answer, err := x.Next(t.Context(), cram(challenge, "scram", "x"))
		if err != nil || answer == nil || answer.User != "scram" || answer.Upstream != own("scram", "y") {
			t.Errorf("got %+v, %v", answer, err)
		}
		if _, _, err := x.Next(t.Context(), nil); !errors.Is(err, auth.ErrTemporary) {
			t.Errorf("after the end: %v", err)
		}
	})
	t.Run("CRAM-MD5 with a wrong password", func(t *testing.T) {
		x := begin(t, "CRAM-MD5")
		challenge := next(t, x, nil)
		if _, _, err := x.Next(t.Context(), cram(challenge, "scram", "y")); !errors.Is(err, auth.ErrCredentials) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("no password for the backend", func(t *testing.T) {
		x := begin(t, "CRAM-MD5")
		challenge := next(t, x, nil)
		if _, answer, err := x.Next(t.Context(), cram(challenge, "fred", "x")); !errors.Is(err, auth.ErrTemporary) || answer != nil {
			t.Errorf("got %+v, %v", answer, err)
		}
	})
	t.Run("PLAIN, asked for", func(t *testing.T) {
		x := begin(t, "PLAIN")
		if challenge := next(t, x, nil); len(challenge) != 0 {
			t.Errorf("challenge %q", challenge)
		}
		_, answer, err := x.Next(t.Context(), []byte("\x00fred\x00x"))
		if err != nil || answer == nil || answer.Upstream != own("fred", "x") {
			t.Errorf("got %+v, %v", answer, err)
		}
	})
	t.Run("PLAIN, empty initial response", func(t *testing.T) {
		if _, _, err := begin(t, "PLAIN").Next(t.Context(), []byte{}); !errors.Is(err, auth.ErrCredentials) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("LOGIN", func(t *testing.T) {
		x := begin(t, "LOGIN")
		next(t, x, nil)
		next(t, x, []byte("fred"))
		_, answer, err := x.Next(t.Context(), []byte("x"))
		if err != nil || answer == nil || answer.User != "fred" {
			t.Errorf("got %+v, %v", answer, err)
		}
	})
	t.Run("unknown", func(t *testing.T) {
		for _, name := range []string{"GSSAPI", "EXTERNAL", "", "PLAIN\r\n"} {
			if _, err := a.Begin(t.Context(), realRequest("", ""), name); !errors.Is(err, auth.ErrCredentials) {
				t.Errorf("%q: got %v", name, err)
			}
		}
	})
	t.Run("aborted", func(t *testing.T) {
		x := begin(t, "CRAM-MD5")
		next(t, x, nil)
		x.Cancel()
		x.Cancel()
		if _, _, err := x.Next(t.Context(), nil); !errors.Is(err, auth.ErrTemporary) {
			t.Errorf("got %v", err)
		}
	})
	for name, acknowledge := range map[string]string{"SCRAM-SHA-256": "", "SCRAM-SHA-256 with more to say": "x"} {
		t.Run(name, func(t *testing.T) {
			x := begin(t, "SCRAM-SHA-256")
			final, signature := scram(t, x, "scram", "x")
			if string(final) != "v="+signature {
				t.Fatalf("the server's last message is %q, want its signature %q", final, signature)
			}
			_, answer, err := x.Next(t.Context(), []byte(acknowledge))
			if acknowledge != "" {
				if !errors.Is(err, auth.ErrCredentials) {
					t.Errorf("got %v", err)
				}
			} else if err != nil || answer == nil || answer.Upstream != own("scram", "y") {
				t.Errorf("got %+v, %v", answer, err)
			}
		})
	}
	// Clients that stop in the middle hold no place that others need.
	t.Run("many unfinished", func(t *testing.T) {
		for range cap(a.login.running) + 10 {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			x := begin(t, "CRAM-MD5")
			if _, _, err := x.Next(ctx, nil); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// scram plays the client of RFC 5802 and returns the server's last message, which has to be "v=" and the signature.
func scram(t *testing.T, x auth.Exchange, user, password string) (final []byte, signature string) {
	t.Helper()
	bare := "n=" + user + ",r=nonce"
	first, _, err := x.Next(t.Context(), []byte("n,,"+bare))
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]string{}
	for part := range strings.SplitSeq(string(first), ",") {
		key, value, _ := strings.Cut(part, "=")
		values[key] = value
	}
	salt, err := base64.StdEncoding.DecodeString(values["s"])
	rounds, err2 := strconv.Atoi(values["i"])
	if err != nil || err2 != nil {
		t.Fatalf("challenge %q", first)
	}
	salted, err := pbkdf2.Key(sha256.New, password, salt, rounds, sha256.Size)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(key []byte, text string) []byte {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(text))
		return mac.Sum(nil)
	}
	without := "c=biws,r=" + values["r"]
	message := bare + "," + string(first) + "," + without
	key := sign(salted, "Client Key")
	stored := sha256.Sum256(key)
	proof := sign(stored[:], message)
	for i := range proof {
		proof[i] ^= key[i]
	}
	final, answer, err := x.Next(t.Context(), []byte(without+",p="+base64.StdEncoding.EncodeToString(proof)))
	if err != nil || answer != nil {
		t.Fatalf("got %q, %+v, %v", final, answer, err)
	}
	return final, base64.StdEncoding.EncodeToString(sign(sign(salted, "Server Key"), message))
}
