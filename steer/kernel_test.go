package steer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"usher/director"
	"usher/loader"
	"usher/loader/netns"
	"usher/steer/auth"
	"usher/steer/handover"
	"usher/steer/route"
	"usher/steer/secure"
	"usher/testenv/backend"
	"usher/testenv/client"
	"usher/testenv/lab"
	"usher/testenv/pki"
)

// Sessions of every protocol go to the kernel, with what was pipelined behind their login; those with TLS on a leg do not,
// and leave no flow behind.
func TestKernel(t *testing.T) {
	if err := netns.Available(); err != nil {
		t.Skip(err)
	}
	l, err := lab.New(lab.Options{Family: 4, Backends: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	pin := fmt.Sprintf("/sys/fs/bpf/usher-steer-test-%d", os.Getpid())
	defer os.RemoveAll(pin)
	var k *loader.Kernel
	err = l.Director.Do(func() (err error) {
		k, err = loader.Open(loader.Config{
			PinPath: pin, MaxFlows: 1000, Mode: loader.ModeTC, Interfaces: []string{l.ClientLink, l.BackendLink}, Log: zerolog.Nop(),
		})
		return err
	})
	if err != nil {
		t.Skipf("no kernel path here: %v", err)
	}
	defer k.Close()
	ca, err := pki.New()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := ca.Write(dir+"/cert.pem", dir+"/key.pem", "usher.test"); err != nil {
		t.Fatal(err)
	}
	host := l.V4.Backends[0]
	b, err := backend.Start(l.Backend, host, backend.Options{SubmissionPort: 587, SievePort: 4190, Trusting: true})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	d := director.New(director.Config{})
	d.Step(time.Now(), director.HostPut{Host: director.Host{Addr: host, Weight: 100}})
	cfg := Config{
		Auth: auth.Static{NoPassword: true}, UserMode: ModeSplice, Log: zerolog.Nop(), Kernel: k,
		Route: route.Config{Director: d, Store: k, Log: zerolog.Nop()}, IdleTimeout: time.Hour,
		Quiet: func() time.Duration { return 5 * time.Millisecond },
	}
	cfg.Certificates, err = secure.OpenCertificates(secure.CertificatesConfig{Pairs: []secure.Pair{{Certificate: dir + "/cert.pem", Key: dir + "/key.pem"}}})
	if err != nil {
		t.Fatal(err)
	}
	ports := map[client.Protocol]uint16{client.IMAP: 143, client.POP3: 110, client.Submission: 587, client.Sieve: 4190}
	for protocol, port := range ports {
		cfg.Listeners = append(cfg.Listeners, Listener{
			Protocol: string(protocol), Address: netip.AddrPortFrom(l.V4.Service, port), BackendPort: port, Plaintext: true, TLS: TLSStart, Forward: true,
		})
	}
	var s *Server
	err = l.Director.Do(func() (err error) {
		s, err = New(cfg)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	s.dialer.Control = l.Director.Control
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = s.Run(ctx) })
	defer func() {
		cancel()
		running.Wait()
	}()
	for protocol, port := range ports {
		for _, secret := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/tls=%v", protocol, secret), func(t *testing.T) {
				c := client.Config{
					NS: l.Client, Server: netip.AddrPortFrom(l.V4.Service, port), Protocol: protocol, User: "fred", Method: client.PlainInitial, Pipeline: true,
				}
				want := ModeTC
				if secret {
					c.TLS, c.StartTLS, want = &tls.Config{RootCAs: ca.Pool, ServerName: "usher.test"}, true, ModeCopy
				}
				x, err := client.Dial(t.Context(), c)
				if err != nil {
					t.Fatal(err)
				}
				defer x.Close()
				wait(t, "the session's mode", func() bool { return s.Counts().ByMode[want] == 1 })
				if err := x.Echo(100_000, 3); err != nil {
					t.Error(err)
				}
				for _, info := range s.Sessions(nil) {
					for _, leg := range []handover.Tuple{info.Client, info.Backend} {
						if _, err := k.Flow(leg); secret != errors.Is(err, handover.ErrNoFlow) {
							t.Errorf("flow of %v: %v", leg, err)
						}
						if secret { // and nothing is observed any more
							if err := k.Observe(leg, 0); err != nil {
								t.Errorf("%v: %v", leg, err)
							}
							k.Forget(leg)
						}
					}
				}
				if err := x.Logout(); err != nil {
					t.Error(err)
				}
				wait(t, "the end of the session", func() bool { return s.Counts().Total == 0 })
			})
		}
	}
}
