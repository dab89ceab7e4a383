package rig

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// accept is what clients say that they take.
const accept = manifestType + ", application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.v2+json, */*"

// Request is one that is ready to be sent, and what must come back.
type Request struct {
	head   []byte
	path   string
	status int
	want   []byte
}

// Get is a request for all of an object.
func Get(o Object) Request {
	head := "GET " + o.path + " HTTP/1.1\r\nHost: bench\r\nUser-Agent: bench\r\nAccept: " + accept + "\r\n\r\n"
	return Request{head: []byte(head), path: o.path, status: http.StatusOK, want: o.data}
}

// Gets are requests for all of each object.
func Gets(objects []Object) []Request {
	all := make([]Request, len(objects))
	for i, o := range objects {
		all[i] = Get(o)
	}
	return all
}

// getRange is a request for a part of an object.
func getRange(o Object, offset, length int64) Request {
	r := Get(o)
	head := bytes.TrimSuffix(r.head, []byte("\r\n"))
	r.head = fmt.Appendf(head, "Range: bytes=%d-%d\r\n\r\n", offset, offset+length-1)
	r.status, r.want = http.StatusPartialContent, o.data[offset:offset+length]
	return r
}

// RandomRanges are requests for n parts of an object.
func RandomRanges(o Object, n int, length int64) []Request {
	dice := rand.New(rand.NewPCG(1, 2))
	all := make([]Request, n)
	for i := range all {
		all[i] = getRange(o, dice.Int64N(int64(len(o.data))-length+1), length)
	}
	return all
}

// client is one connection that is kept, with its figures. It does as little as it can: what is
// measured is at its other end.
type client struct {
	conn net.Conn
	addr string
	buf  []byte
	dice *rand.Rand

	bytes  int64
	firsts []time.Duration // from the request to the first byte of the body
	totals []time.Duration // and to the last
}

// get sends the request and checks the answer, byte for byte.
func (c *client) get(r *Request) error {
	if err := c.exchange(r); err != nil {
		return fmt.Errorf("%w: %s", err, r.path)
	}
	return nil
}

func (c *client) exchange(r *Request) error {
	start := time.Now()
	if _, err := c.conn.Write(r.head); err != nil {
		return err
	}
	a, n, err := c.answer()
	if err != nil {
		return err
	}
	if err := a.check(r); err != nil {
		return err
	}
	var first time.Duration
	body := c.buf[a.head:n]
	for at := 0; ; {
		if len(body) > len(r.want)-at || !bytes.Equal(body, r.want[at:at+len(body)]) {
			return fmt.Errorf("wrong bytes in the %d after %d", len(body), at)
		}
		if at == 0 && len(body) > 0 {
			first = time.Since(start)
		}
		if at += len(body); at == len(r.want) {
			break
		}
		if n, err = c.conn.Read(c.buf); n == 0 {
			return fmt.Errorf("%d of %d bytes: %w", at, len(r.want), err)
		}
		body = c.buf[:n]
	}
	c.totals = append(c.totals, time.Since(start))
	c.firsts = append(c.firsts, first)
	c.bytes += int64(len(r.want))
	if a.closes {
		return c.dial()
	}
	return nil
}

// answer reads up to the end of the header, and maybe more: n bytes in all.
func (c *client) answer() (a answer, n int, err error) {
	for {
		m, err := c.conn.Read(c.buf[n:])
		if m == 0 {
			return answer{}, n, fmt.Errorf("no answer: %w", err)
		}
		n += m
		if end := bytes.Index(c.buf[:n], []byte("\r\n\r\n")); end >= 0 {
			a, err := parseAnswer(c.buf[:end+4])
			return a, n, err
		}
		if n == len(c.buf) {
			return answer{}, n, errors.New("no end of the header")
		}
	}
}

// dial opens the connection, or another one in its place.
func (c *client) dial() error {
	if c.conn != nil {
		c.conn.Close()
	}
	var err error
	c.conn, err = net.Dial("tcp", c.addr)
	return err
}

// answer is what must be known of a header.
type answer struct {
	head   int // its length, with the empty line
	status int
	length int // of the body; -1: not said
	closes bool
}

// parseAnswer takes a whole header, with its empty line.
func parseAnswer(head []byte) (answer, error) {
	a := answer{head: len(head), length: -1}
	line, rest, _ := bytes.Cut(head, []byte("\r\n"))
	var err error
	if len(line) < len("HTTP/1.1 200") || !bytes.HasPrefix(line, []byte("HTTP/1.")) {
		return a, fmt.Errorf("not HTTP: %q", line)
	}
	if a.status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return a, fmt.Errorf("not HTTP: %q", line)
	}
	for len(rest) > 2 {
		line, rest, _ = bytes.Cut(rest, []byte("\r\n"))
		switch name, value, _ := bytes.Cut(line, []byte(":")); {
		case len(name) == len("Content-Length") && bytes.EqualFold(name, []byte("Content-Length")):
			if a.length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil || a.length < 0 {
				return a, fmt.Errorf("not a length: %q", line)
			}
		case len(name) == len("Connection") && bytes.EqualFold(name, []byte("Connection")):
			a.closes = bytes.EqualFold(bytes.TrimSpace(value), []byte("close"))
		}
	}
	return a, nil
}

// check refuses what is not the answer to r.
func (a answer) check(r *Request) error {
	if a.status != r.status {
		return fmt.Errorf("status %d, not %d", a.status, r.status)
	}
	if a.length != len(r.want) {
		return fmt.Errorf("%d bytes, not %d", a.length, len(r.want))
	}
	return nil
}

// Pull is one run of a load against one address. Its figures are complete once
// a load has returned.
type Pull struct {
	Ctx   context.Context
	Addr  string
	first time.Time // when clients could begin

	Took    time.Duration
	clients []*client
}

// Load is what clients do to a peer.
type Load func(*Pull) error

// Each has clients ask for each of the requests once, whoever is free.
// After the limit none is begun; 0 is no limit.
func Each(clients int, limit time.Duration, requests []Request) Load {
	return func(p *Pull) error {
		var next atomic.Int64
		return p.run(clients, func(c *client) error {
			for p.more(limit) {
				i := next.Add(1) - 1
				if i >= int64(len(requests)) {
					return nil
				}
				if err := c.get(&requests[i]); err != nil {
					return err
				}
			}
			return nil
		})
	}
}

// Every has each of the clients ask for all of the requests.
func Every(clients int, requests []Request) Load {
	return func(p *Pull) error {
		return p.run(clients, func(c *client) error {
			for i := range requests {
				if err := c.get(&requests[i]); err != nil {
					return err
				}
			}
			return nil
		})
	}
}

// AnyFor has clients ask for requests by chance, for that long.
func AnyFor(clients int, d time.Duration, requests []Request) Load {
	return func(p *Pull) error {
		return p.run(clients, func(c *client) error {
			for p.more(d) {
				if err := c.get(&requests[c.dice.IntN(len(requests))]); err != nil {
					return err
				}
			}
			return nil
		})
	}
}

// Sequence is one load after the other.
func Sequence(loads ...Load) Load {
	return func(p *Pull) error {
		for _, l := range loads {
			if err := l(p); err != nil {
				return err
			}
		}
		return nil
	}
}

// more says whether the time is not over yet.
func (p *Pull) more(limit time.Duration) bool {
	return limit == 0 || time.Since(p.first) < limit
}

// run connects clients, and lets them begin at the same time. The first error ends all of them.
func (p *Pull) run(n int, do func(*client) error) error {
	const readBuffer = 256 << 10
	ctx, cancel := context.WithCancelCause(p.Ctx)
	defer cancel(nil)
	clients := make([]*client, n)
	for i := range clients {
		c := &client{addr: p.Addr, buf: make([]byte, readBuffer), dice: rand.New(rand.NewPCG(1, uint64(i)))}
		if err := c.dial(); err != nil {
			return err
		}
		defer func() { c.conn.Close() }()
		clients[i] = c
	}
	// Reads do not know of contexts, and a deadline for each costs time.
	defer context.AfterFunc(ctx, func() {
		for _, c := range clients {
			c.conn.SetDeadline(time.Unix(1, 0))
		}
	})()
	begin := make(chan struct{})
	var all sync.WaitGroup
	for _, c := range clients {
		all.Go(func() {
			<-begin
			if err := do(c); err != nil {
				cancel(err)
			}
		})
	}
	p.first = time.Now()
	close(begin)
	all.Wait()
	p.Took += time.Since(p.first)
	p.clients = append(p.clients, clients...)
	return context.Cause(ctx)
}

// Measured is what all clients have had: bytes of bodies, and for each request the time
// to the first byte of the body and to the last.
func (p *Pull) Measured() (bytes int64, firsts, totals []time.Duration) {
	for _, c := range p.clients {
		bytes += c.bytes
		firsts, totals = append(firsts, c.firsts...), append(totals, c.totals...)
	}
	return bytes, firsts, totals
}
