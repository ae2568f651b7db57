package pop3

import (
	"testing"

	"usher/steer/prelogin"
	"usher/steer/prelogin/internal/dialoguetest"
	"usher/steer/sasl"
)

// However the bytes arrive, the dialogue is the same, and nothing behind the login is lost or doubled.
func FuzzDialogue(f *testing.F) {
	for _, seed := range []string{
		"CAPA\r\nUSER fred\r\nPASS a b \r\nSTAT\r\n",
		"user fred\r\npass x\nQUIT\r\n",
		"AUTH\r\nAUTH PLAIN\r\nAGZyZWQAeA==\r\nSTAT\r\n",
		"AUTH PLAIN AGZyZWQAeA==\r\nSTAT\r\n",
		"AUTH PLAIN =\r\nAUTH PLAIN\r\n*\r\nAUTH PLAIN\r\n\r\n",
		"PASS x\r\nAPOP a b\r\nNOOP\r\nUSER a\x00\r\nPASS b\r\n",
	} {
		f.Add([]byte(seed), uint8(1), uint8(1))
	}
	f.Fuzz(func(t *testing.T, data []byte, size, accepted uint8) {
		cfg := prelogin.Config{Mechanisms: sasl.Mechanisms, Limits: prelogin.Limits{Line: 128, Bytes: 1024, Commands: 16}}
		dialoguetest.However(t, New, cfg, data, int(size)+1, int(accepted), func(l prelogin.Login) bool {
			return l.User != "" && sasl.Allowed(l.User+l.Password+l.Authzid)
		})
	})
}
