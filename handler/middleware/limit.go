package middleware

import (
	"cmp"
	"container/heap"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"larder/handler/errcode"
)

const (
	// The defaults of limit. Who waits has a connection already and costs little
	// more; containerd gives up on an answer after 30 s.
	defaultQueued = 1024
	defaultWait   = 20 * time.Second

	// comeAgain is in how many seconds, at most, a refused client is to ask
	// again. Each is told another time, or they would all come back at once.
	comeAgain = 10
)

// LimitCounts is what limit counts. The zero value is ready.
type LimitCounts struct{ running, queued, full, late, left atomic.Int64 }

// LimitStats are the requests that limit counts: those for what is in a
// repository, but not HEADs.
type LimitStats struct {
	Running int64 // now
	Queued  int64 // that wait for their turn, now

	Full int64 // refused, because too many waited
	Late int64 // refused, after having waited too long
	Left int64 // whose clients left while they waited
}

// Stats returns the counts as they are now.
func (c *LimitCounts) Stats() LimitStats {
	return LimitStats{c.running.Load(), c.queued.Load(), c.full.Load(), c.late.Load(), c.left.Load()}
}

var (
	errFull = errors.New("as many requests wait as may")
	errLate = errors.New("waited too long for others to end")
)

// newLimit bounds how many requests run at once and how many wait for that. Those
// that cost nothing are not counted and never wait: HEADs, /v2/, and what is in
// no repository.
func newLimit(opts Options) (Middleware, error) {
	l := &limiter{
		most:    opts.Settings.Int("RUNNING", 0, 0),
		queue:   opts.Settings.Int("QUEUED", defaultQueued, 0),
		wait:    opts.Settings.Duration("WAIT", defaultWait, 0),
		counts:  cmp.Or(opts.Limit, new(LimitCounts)),
		clients: make(map[string]*client),
	}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			note := NoteOf(r.Context())
			if r.Method == http.MethodHead || note.Repository == "" {
				next.ServeHTTP(w, r)
				return
			}
			c, err := l.enter(r.Context(), r.RemoteAddr)
			if err != nil {
				refusal := refusal(err)
				note.Err = err
				errcode.Write(w, r, refusal)
				return
			}
			defer l.exit(c)
			next.ServeHTTP(w, r)
		})
	}, nil
}

// refusal is the answer to a request that may not run.
func refusal(err error) *errcode.Error {
	e := &errcode.Error{Header: http.Header{"Retry-After": {strconv.Itoa(1 + rand.IntN(comeAgain))}}}
	switch err {
	case errFull:
		e.Status, e.Code, e.Message = http.StatusTooManyRequests, errcode.TooManyRequests, "larder has too many requests waiting"
	case errLate:
		e.Status, e.Code, e.Message = http.StatusServiceUnavailable, errcode.Unavailable, "larder is busy: others' requests have taken too long"
	default:
		panic(http.ErrAbortHandler) // the client left
	}
	return e
}

// limiter lets so many requests run at once. Places that become free go to the
// client, by address, with the fewest running, among these to who has waited
// longest: a client that asks for much at once does not keep the others from
// theirs.
type limiter struct {
	most, queue int // most 0: no limit
	wait        time.Duration
	counts      *LimitCounts

	mu      sync.Mutex // guards all below, and that running and queued of counts agree with it
	clients map[string]*client
	waiting byNeed // those of clients that wait; empty while running < most
	arrived uint64 // how many have ever waited
}

// client is an address that has requests running or waiting.
type client struct {
	addr    string
	running int
	waiting []*waiter // in order of arrival
	at      int       // in limiter.waiting; -1: it does not wait
}

// waiter is a request that waits.
type waiter struct {
	number  uint64        // in order of arrival
	decided chan struct{} // closed when it may run, or err says why not
	err     error
}

// enter waits until a request from a remote address may run. When it has, exit is
// called with the client, which is nil if there is no limit. The error is errFull,
// errLate, or ctx's.
func (l *limiter) enter(ctx context.Context, remote string) (*client, error) {
	if l.most == 0 {
		l.counts.running.Add(1)
		return nil, nil
	}
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		host = remote
	}
	c, w, err := l.take(host)
	if w != nil {
		err = l.await(ctx, c, w)
	}
	return c, err
}

// take takes a free place, or one in the queue, which is the waiter.
func (l *limiter) take(addr string) (*client, *waiter, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c, ok := l.clients[addr]
	if !ok {
		c = &client{addr: addr, at: -1}
		l.clients[addr] = c
	}
	defer l.settle(c)
	if l.counts.running.Load() < int64(l.most) {
		l.run(c, 1)
		return c, nil, nil
	}
	if l.counts.queued.Load() >= int64(l.queue) && !l.makeRoom(c) {
		l.counts.full.Add(1)
		return nil, nil, errFull
	}
	l.arrived++
	w := &waiter{number: l.arrived, decided: make(chan struct{})}
	c.waiting = append(c.waiting, w)
	l.counts.queued.Add(1)
	return c, w, nil
}

// await waits until w is decided on, for as long as it may.
func (l *limiter) await(ctx context.Context, c *client, w *waiter) error {
	timer := time.NewTimer(l.wait)
	defer timer.Stop()
	err := errLate
	select {
	case <-w.decided:
		return w.err
	case <-timer.C:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.Index(c.waiting, w)
	if i < 0 {
		return w.err // it has been decided on meanwhile
	}
	if err == errLate {
		l.counts.late.Add(1)
	} else {
		l.counts.left.Add(1)
	}
	l.decide(c, i, err)
	return err
}

// exit gives the place of one of c's requests to the next.
func (l *limiter) exit(c *client) {
	if c == nil {
		l.counts.running.Add(-1)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.run(c, -1)
	l.settle(c)
	if len(l.waiting) > 0 {
		next := l.waiting[0]
		l.run(next, 1)
		l.decide(next, 0, nil)
	}
}

// makeRoom takes a place in the full queue from who has most requests, if that is
// more than c would have: a client can't keep others out by filling the queue.
func (l *limiter) makeRoom(c *client) bool {
	if len(l.waiting) == 0 {
		return false
	}
	greedy := slices.MaxFunc(l.waiting, func(a, b *client) int { return a.requests() - b.requests() })
	if greedy.requests() <= c.requests()+1 {
		return false
	}
	l.counts.full.Add(1)
	l.decide(greedy, len(greedy.waiting)-1, errFull)
	return true
}

func (c *client) requests() int { return c.running + len(c.waiting) }

// run changes how many of c's requests run.
func (l *limiter) run(c *client, by int) {
	c.running += by
	l.counts.running.Add(int64(by))
}

// decide ends the wait of the i-th of c's waiters.
func (l *limiter) decide(c *client, i int, err error) {
	w := c.waiting[i]
	c.waiting = slices.Delete(c.waiting, i, i+1)
	l.counts.queued.Add(-1)
	l.settle(c)
	w.err = err
	close(w.decided)
}

// settle puts a client that has changed where it belongs now.
func (l *limiter) settle(c *client) {
	switch waits := len(c.waiting) > 0; {
	case waits && c.at < 0:
		heap.Push(&l.waiting, c)
	case waits:
		heap.Fix(&l.waiting, c.at)
	case c.at >= 0:
		heap.Remove(&l.waiting, c.at)
	}
	if c.requests() == 0 {
		delete(l.clients, c.addr)
	}
}

// byNeed is a heap of clients that wait, whose turn is next first.
type byNeed []*client

// Len implements heap.Interface.
func (q byNeed) Len() int { return len(q) }

// Less implements heap.Interface.
func (q byNeed) Less(i, j int) bool {
	a, b := q[i], q[j]
	return cmp.Or(cmp.Compare(a.running, b.running), cmp.Compare(a.waiting[0].number, b.waiting[0].number)) < 0
}

// Swap implements heap.Interface.
func (q byNeed) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].at, q[j].at = i, j
}

// Push implements heap.Interface.
func (q *byNeed) Push(c any) {
	c.(*client).at = len(*q)
	*q = append(*q, c.(*client))
}

// Pop implements heap.Interface.
func (q *byNeed) Pop() any {
	last := len(*q) - 1
	c := (*q)[last]
	c.at = -1
	(*q)[last] = nil
	*q = (*q)[:last]
	return c
}
