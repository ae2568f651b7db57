package flush

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var user = User{
	Hash: 704933450, Old: netip.MustParseAddr("127.0.2.1"), New: netip.MustParseAddr("127.0.2.2"),
	NewName: "mail2", OldUp: true, OldWeight: 100,
}

func TestParse(t *testing.T) {
	for s, wrong := range map[string]string{
		"exec:/usr/bin/flush --to %i": "",
		"fork:/usr/bin/flush":         "",
		"unix:/run/flush":             "",
		"tcp:%h:9000":                 "",
		"/usr/bin/flush":              "want exec:PROGRAM",
		"http://x":                    "want exec:PROGRAM",
		"exec:flush":                  "must be absolute",
		"unix:":                       "must be absolute",
		"tcp:host":                    "want tcp:HOST:PORT",
		"":                            "want exec:PROGRAM",
	} {
		if _, err := Parse(s); (err == nil) != (wrong == "") || err != nil && !strings.Contains(err.Error(), wrong) {
			t.Errorf("Parse(%q): %v, want an error with %q", s, err, wrong)
		}
	}
}

func program(t *testing.T, s string) *Program {
	t.Helper()
	p, err := Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "flush")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestExec(t *testing.T) {
	out, err := program(t, "exec:"+script(t, `echo "$@"`)+" %h %i 100%%").Run(t.Context(), user)
	if want := "mail2 127.0.2.2 100% FLUSH 704933450 127.0.2.1 127.0.2.2 up 100"; err != nil || out != want {
		t.Errorf("got %q, %v, want %q", out, err, want)
	}
	out, err = program(t, "exec:"+script(t, "echo disk full >&2; exit 3")).Run(t.Context(), user)
	if !errors.Is(err, ErrFailed) || !strings.Contains(err.Error(), "status 3") || out != "disk full" {
		t.Errorf("got %q, %v", out, err)
	}
	if _, err := program(t, "exec:/does/not/exist").Run(t.Context(), user); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing program: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := program(t, "exec:"+script(t, "exec sleep 60")).Run(ctx, user); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("program that hangs: %v", err)
	}
}

// serve answers one request with these bytes, in pieces, and returns what was asked.
func serve(t *testing.T, l net.Listener, pieces ...string) <-chan string {
	asked := make(chan string, 1)
	go func() {
		defer l.Close()
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		var request strings.Builder
		for r := bufio.NewReader(c); !strings.HasSuffix(request.String(), "\n\n"); {
			line, err := r.ReadString('\n')
			if err != nil {
				break
			}
			request.WriteString(line)
		}
		asked <- request.String()
		for _, p := range pieces {
			io.WriteString(c, p)
			time.Sleep(time.Millisecond)
		}
	}()
	return asked
}

func TestSocket(t *testing.T) {
	long := strings.Repeat("x", 10000) + "\n"
	for name, tt := range map[string]struct {
		answer []string
		out    string
		failed bool
	}{
		"success":               {answer: []string{"+\n"}},
		"success with output":   {answer: []string{"flushed ", "it\n+", "\n"}, out: "flushed it"},
		"failure":               {answer: []string{"no such user\n", "-\n"}, out: "no such user", failed: true},
		"a plus in the output":  {answer: []string{"+\n", "+\nbut then\n-\n"}, out: "+\n+\nbut then", failed: true},
		"no verdict":            {answer: []string{"hello\n"}, out: "hello", failed: true},
		"nothing":               {failed: true},
		"verdict without LF":    {answer: []string{"+"}},
		"long line before it":   {answer: []string{long, "+\n"}, out: strings.TrimSpace(long)},
		"more than is kept":     {answer: []string{long, long, "-\n"}, out: (long + long)[:maxOutput], failed: true},
		"verdict in other line": {answer: []string{"well +\n"}, out: "well +", failed: true},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			l, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			asked := serve(t, l, tt.answer...)
			out, err := program(t, "unix:"+path).Run(t.Context(), user)
			if out != tt.out || errors.Is(err, ErrFailed) != tt.failed || err != nil && !tt.failed {
				t.Errorf("got %.50q (%d bytes), %v, want %.50q, failed %v", out, len(out), err, tt.out, tt.failed)
			}
			want := "VERSION\tscript\t4\t0\n-\nFLUSH\n704933450\n127.0.2.1\n127.0.2.2\nup\n100\n\n"
			if got := <-asked; got != want {
				t.Errorf("asked %q, want %q", got, want)
			}
		})
	}
}

func TestTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, l, "+\n")
	if _, err := program(t, "tcp:"+l.Addr().String()).Run(t.Context(), user); err != nil {
		t.Error(err)
	}
	// Now nobody listens any more.
	if _, err := program(t, "tcp:"+l.Addr().String()).Run(t.Context(), user); err == nil || errors.Is(err, ErrFailed) {
		t.Errorf("nobody listens: %v", err)
	}
}

func TestSilentSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := program(t, "unix:"+path).Run(ctx, user); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the deadline", err)
	}
}
