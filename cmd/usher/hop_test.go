package main

import (
	"context"
	"net"
	"testing"
	"time"

	"usher/cmd/internal/site"
	"usher/testenv/client"
	"usher/testenv/lab"
)

// The backends' machine gets another network card in the middle of the traffic, and once
// more when all is quiet: the kernel's neighbour table learns it, and so do the forwarded sessions.
func TestNextHopChanges(t *testing.T) {
	s := newSite(t, site.Options{Lab: lab.Options{BackendSysctl: map[string]string{
		"net.ipv4.conf.all.arp_notify": "1", "net.ipv4.conf.default.arp_notify": "1",
	}}})
	start(t, s)
	sessions := login(t, s, 30, func(i int) client.Config { return s.Client("anna") })
	allForwarded(t, s, 30)
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Second)
	defer cancel()
	changed := make(chan error, 1)
	go func() {
		time.Sleep(2 * time.Second)
		changed <- changeMAC(s, 1)
	}()
	if err := client.Each(sessions, func(i int, s *client.Session) error { return s.Traffic(ctx, uint64(i)) }).Err(); err != nil {
		t.Error(err)
	}
	if err := <-changed; err != nil {
		t.Fatal(err)
	}
	if err := client.Each(sessions, func(_ int, s *client.Session) error { return s.Noop() }).Err(); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	time.Sleep(time.Second) // the sessions are idle
	if err := changeMAC(s, 2); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond) // it is announced
	begin := time.Now()
	if err := client.Each(sessions, func(_ int, s *client.Session) error { return s.Noop() }).Err(); err != nil {
		t.Errorf("after a change while idle: %v", err)
	}
	t.Logf("after a change while idle, %d commands took %v", len(sessions), time.Since(begin).Round(time.Millisecond))
	if c := status(t, s).Sessions; c.TC != 30 {
		t.Errorf("%+v, want 30 sessions in the kernel", c)
	}
}

func changeMAC(s *site.Site, number byte) error {
	nl := s.Lab.Backend.Netlink()
	links, err := nl.LinkList()
	if err != nil {
		return err
	}
	for _, l := range links {
		if l.Attrs().Flags&net.FlagLoopback == 0 {
			if err := nl.LinkSetHardwareAddr(l, net.HardwareAddr{0x02, 0, 0, 0x55, 0x53, number}); err != nil {
				return err
			}
		}
	}
	return nil
}
