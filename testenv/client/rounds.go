package client

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// rounds drives the round trips of many sessions from one thread, by epoll and system calls alone. What a
// load generator costs itself hides differences between the ways that it measures, and a goroutine and two
// visits of the scheduler per message cost as much as a proxy.
type rounds struct {
	request, reply []byte
	epoll          int
	sessions       map[int32]*round // by file descriptor
	h              *histogram
}

type round struct {
	s     *Session
	fd    int
	got   int // bytes of the reply
	begin time.Time
}

// PingPong does rounds of request bytes answered by reply bytes, one after the other on each session, for
// some time. The sessions can be used afterwards.
func PingPong(ctx context.Context, sessions []*Session, request, reply int, d time.Duration) (Result, error) {
	command := fmt.Sprintf("X-PINGPONG %d %d", request, reply)
	for _, s := range sessions {
		s.conn.SetDeadline(time.Now().Add(d + s.cfg.Timeout))
		if err := s.send(command); err != nil {
			return Result{}, err
		}
	}
	var h histogram
	result := Result{Sessions: len(sessions)}
	p := &rounds{request: make([]byte, request), reply: make([]byte, reply), sessions: map[int32]*round{}, h: &h}
	err := p.run(ctx, sessions, d, &result)
	result.Requests = h.count()
	result.Bytes = result.Requests * uint64(request+reply)
	result.P50, result.P99, result.Max = h.quantile(0.5), h.quantile(0.99), h.quantile(1)
	if err != nil {
		return result, err
	}
	last := make([]byte, request)
	last[0] = 'Q'
	return result, Each(sessions, func(_ int, s *Session) error {
		return s.do(command, func() error {
			if _, err := s.wire.Write(last); err != nil {
				return err
			}
			_, err := s.final(nil)
			return err
		})
	}).Err()
}

func (p *rounds) run(ctx context.Context, sessions []*Session, d time.Duration, result *Result) (err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if p.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return fmt.Errorf("make epoll: %w", err)
	}
	defer unix.Close(p.epoll)
	defer func() {
		for _, r := range p.sessions {
			if e := r.s.attach(r.fd); err == nil {
				err = e
			}
		}
	}()
	for _, s := range sessions {
		fd, err := s.detach()
		if err != nil {
			return err
		}
		p.sessions[int32(fd)] = &round{s: s, fd: fd}
		ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}
		if err := unix.EpollCtl(p.epoll, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
			return fmt.Errorf("add to epoll: %w", err)
		}
	}
	begin := time.Now()
	for _, r := range p.sessions {
		if err := p.send(r); err != nil {
			return err
		}
	}
	end, limit := begin.Add(d), begin.Add(d+DefaultTimeout)
	events := make([]unix.EpollEvent, 256)
	for running := len(p.sessions); running > 0; {
		n, err := unix.EpollWait(p.epoll, events, 100)
		if err != nil && err != unix.EINTR {
			return fmt.Errorf("wait for replies: %w", err)
		}
		now := time.Now()
		if now.After(limit) {
			return fmt.Errorf("%d sessions have no reply after %v", running, DefaultTimeout)
		}
		for _, ev := range events[:max(n, 0)] {
			r := p.sessions[ev.Fd]
			whole, err := p.receive(r)
			if err != nil {
				return err
			}
			if !whole {
				continue
			}
			p.h.add(now.Sub(r.begin))
			if now.Before(end) && ctx.Err() == nil {
				if err := p.send(r); err != nil {
					return err
				}
			} else {
				running--
			}
		}
	}
	result.Elapsed = time.Since(begin)
	return nil
}

// send sends one request; it is small, and fits into an empty socket buffer.
func (p *rounds) send(r *round) error {
	r.begin, r.got = time.Now(), 0
	n, err := unix.Write(r.fd, p.request)
	if err == nil && n < len(p.request) {
		err = unix.ENOBUFS
	}
	if err != nil {
		return &Error{classify(err), r.s.cfg.User, "round", err}
	}
	return nil
}

// receive reads; it returns whether the reply is whole.
func (p *rounds) receive(r *round) (bool, error) {
	n, err := unix.Read(r.fd, p.reply[:len(p.reply)-r.got])
	switch {
	case err == unix.EAGAIN:
		return false, nil
	case err != nil:
		return false, &Error{classify(err), r.s.cfg.User, "round", err}
	case n == 0:
		return false, &Error{EOF, r.s.cfg.User, "round", fmt.Errorf("closed after %d of %d bytes", r.got, len(p.reply))}
	}
	r.got += n
	return r.got == len(p.reply), nil
}

// detach takes the connection away from package net, whose poller would be woken for each message as well.
func (s *Session) detach() (fd int, err error) {
	raw, err := s.conn.SyscallConn()
	if err != nil {
		return -1, err
	}
	var inner error
	err = raw.Control(func(old uintptr) { fd, inner = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) })
	if err == nil {
		err = inner
	}
	if err != nil {
		return -1, fmt.Errorf("detach connection: %w", err)
	}
	return fd, s.conn.Close()
}

// attach gives it back.
func (s *Session) attach(fd int) error {
	f := os.NewFile(uintptr(fd), "session")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return fmt.Errorf("attach connection: %w", err)
	}
	s.conn = c.(*net.TCPConn)
	s.wire.conn = s.conn
	return nil
}
