package peer

import (
	"bufio"
	"cmp"
	"context"
	"net"
	"sync"
	"time"

	"usher/director/ring"
)

// A link is one connection, with what waits to be written.
type link struct {
	id   ring.Conn
	conn net.Conn        // nil until it is connected
	open context.Context // until close, or the end of everything
	end  context.CancelFunc

	mu     sync.Mutex
	queue  [][]byte
	wake   chan struct{} // has one element when there is something in queue
	closed bool
	failed error // of the writer, which the reader only sees as a closed connection
}

func newLink(running context.Context, id ring.Conn) *link {
	l := &link{id: id, wake: make(chan struct{}, 1)}
	l.open, l.end = context.WithCancel(running)
	return l
}

// begin is called once, before anything is read or written.
func (l *link) begin(conn net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conn = conn
	if l.closed {
		l.hurry()
	}
}

// send queues data for the writer. What comes after close is too late.
func (l *link) send(data []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.queue = append(l.queue, data)
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// close lets the writer write what is there, for a moment, and then end the connection.
func (l *link) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.closed = true
	l.end()
	if l.conn != nil {
		l.hurry()
	}
}

// hurry bounds everything that may still block. Reading ends with it, too.
func (l *link) hurry() { _ = l.conn.SetDeadline(time.Now().Add(closeTimeout)) }

// write is the writer. It tells written how much each time, and closes the connection in the end.
func (l *link) write(written func(n int)) {
	defer l.conn.Close()
	for {
		select {
		case <-l.wake:
		case <-l.open.Done():
		}
		// All that waits is written together: with many short lines that is what makes it fast.
		l.mu.Lock()
		queue, closed := net.Buffers(l.queue), l.closed || l.open.Err() != nil
		l.queue = nil
		l.mu.Unlock()
		if len(queue) > 0 {
			n, err := queue.WriteTo(l.conn)
			if err != nil {
				l.mu.Lock()
				l.failed = err
				l.mu.Unlock()
				return
			}
			if !closed {
				written(int(n))
			}
		}
		if closed {
			return
		}
	}
}

// why is the reason for which reading has ended with err.
func (l *link) why(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return cmp.Or(l.failed, err)
}

// ahead is a connection of which something was read already.
type ahead struct {
	net.Conn
	reader *bufio.Reader
}

func (a *ahead) Read(b []byte) (int, error) { return a.reader.Read(b) }
