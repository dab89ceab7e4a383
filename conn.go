package main

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

const (
	// stalled is how long a client may take for what is sent under one deadline, as
	// in middleware.Recorder, whose pieces these are. It may be a 24th less, for a
	// deadline is not set anew for each answer.
	stalled = 2 * time.Minute

	// firstWrite is what net/http's own buffer holds, which is all that it writes
	// of an answer at first, or of a small one at its end.
	firstWrite = 4 << 10
)

// listener wraps what is accepted in a conn.
type listener struct{ *net.TCPListener }

// Accept implements net.Listener.
func (l listener) Accept() (net.Conn, error) {
	c, err := l.AcceptTCP()
	if err != nil {
		return nil, err
	}
	return &conn{TCPConn: c, patience: stalled}, nil
}

// conn is a client's connection as net/http has it. It drops clients that stall, and
// makes fewer system calls of a small answer: the header and what follows it leave
// together (see Cork), and a deadline for reading is set when somebody waits. net/http
// sets five for each request, nearly all of which are lifted before anybody could.
type conn struct {
	*net.TCPConn
	patience time.Duration // with clients that stall

	// Of the one goroutine that answers.
	corked  bool
	held    *heldBack // written, and not yet sent; nil: nothing is
	writeBy time.Time // the deadline that is set, if it is the connection's own
	given   bool      // it is a handler's or net/http's

	mu      sync.Mutex // guards what follows
	reading bool
	readBy  time.Time // the deadline that is wanted
	readSet time.Time // the one that is set
}

// heldBack is what a connection holds back, with room for the rest of a small
// answer.
type heldBack struct {
	buf [2 * firstWrite]byte
	n   int
}

var heldBacks = sync.Pool{New: func() any { return new(heldBack) }}

// Cork holds the next write back, if it is a small one, until the one after it or
// the end of the answer. It is for who has all of the answer in memory.
func (c *conn) Cork() { c.corked = true }

// Write implements net.Conn.
func (c *conn) Write(p []byte) (int, error) {
	if c.corked && c.held == nil && len(p) <= firstWrite {
		c.held = heldBacks.Get().(*heldBack)
		c.held.n = copy(c.held.buf[:], p)
		c.corked = false
		return len(p), nil
	}
	if err := c.push(); err != nil {
		return 0, err
	}
	h := c.held
	switch {
	case h == nil:
		return c.TCPConn.Write(p)
	case len(p) <= len(h.buf)-h.n:
		h.n += copy(h.buf[h.n:], p)
		return len(p), c.uncork()
	default:
		defer c.release()
		both := net.Buffers{h.buf[:h.n], p}
		n, err := both.WriteTo(c.TCPConn)
		return int(max(n-int64(h.n), 0)), err
	}
}

// ReadFrom implements io.ReaderFrom: what comes from a file is sent by the kernel.
// That is no more than a piece at a time (see middleware.Recorder).
func (c *conn) ReadFrom(src io.Reader) (int64, error) {
	if err := c.uncork(); err != nil {
		return 0, err
	}
	if err := c.push(); err != nil {
		return 0, err
	}
	return c.TCPConn.ReadFrom(src)
}

// uncork sends what was held back. Who waits for that gets an end if nothing else:
// net/http takes it for sent.
func (c *conn) uncork() error {
	c.corked = false
	if c.held == nil {
		return nil
	}
	defer c.release()
	err := c.push()
	if err == nil {
		_, err = c.TCPConn.Write(c.held.buf[:c.held.n])
	}
	if err != nil {
		c.Close()
	}
	return err
}

func (c *conn) release() {
	heldBacks.Put(c.held)
	c.held = nil
}

// push pushes the connection's own deadline for writing forward.
func (c *conn) push() error {
	now := time.Now()
	if c.given || c.writeBy.Sub(now) > c.patience-c.patience/24 {
		return nil
	}
	c.writeBy = now.Add(c.patience)
	return c.TCPConn.SetWriteDeadline(c.writeBy)
}

// SetWriteDeadline implements net.Conn. A deadline that is given counts instead of
// the connection's own. That net/http lifts it says that an answer has come to its end.
func (c *conn) SetWriteDeadline(t time.Time) error {
	if !t.IsZero() {
		c.given = true
		return c.TCPConn.SetWriteDeadline(t)
	}
	if c.given {
		c.given, c.writeBy = false, time.Time{}
	}
	return c.uncork()
}

// Read implements net.Conn. It may wake up before its deadline, and goes on.
func (c *conn) Read(p []byte) (int, error) {
	for {
		c.mu.Lock()
		c.reading = true
		err := c.setReadBy()
		c.mu.Unlock()
		if err != nil {
			return 0, err
		}
		n, err := c.TCPConn.Read(p)
		c.mu.Lock()
		c.reading = false
		early := errors.Is(err, os.ErrDeadlineExceeded) && (c.readBy.IsZero() || c.readBy.After(time.Now()))
		c.mu.Unlock()
		if !early {
			return n, err
		}
	}
}

// SetReadDeadline implements net.Conn. Nobody waits for it who does not read.
func (c *conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.readBy = t
	if !c.reading {
		return nil
	}
	return c.setReadBy()
}

// setReadBy sets the deadline for reading, unless one is set that comes earlier:
// Read looks then. Needs mu.
func (c *conn) setReadBy() error {
	if c.readSet.Equal(c.readBy) || c.readSet.After(time.Now()) && (c.readBy.IsZero() || !c.readBy.Before(c.readSet)) {
		return nil
	}
	c.readSet = c.readBy
	return c.TCPConn.SetReadDeadline(c.readBy)
}

// SetDeadline implements net.Conn.
func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}
