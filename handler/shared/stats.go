package shared

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
)

// Stats is what a tier has done since it was made.
type Stats struct {
	Store        string // where it is, without secrets
	ReadsOut     error  // why nothing is read from it for now; nil: it is
	WritesOut    error  // why nothing is written
	WrongVersion bool   // it is left alone, as something else uses it
	Outages      int64
	Requests     []Requests
	Hits, Misses int64 // blobs that were to be fetched and were in the tier, or were not
	Read         int64 // bytes
	Written      int64
	Queued       int
	Dropped      int64 // what did not fit into the queue
	Leases       int64 // held now, for blobs that are being fetched for all
	Followed     int64 // blobs that another node was fetching
	TakenOver    int64 // leases of nodes that have gone away
	Distrusted   int64 // blobs that were not what they should be
}

// Requests is how many requests there were of a kind, with a result.
type Requests struct {
	Op, Result string
	Number     int64
}

type request struct{ op, result string }

type counters struct {
	hits, misses, read, written             atomic.Int64
	leases, followed, takenOver, distrusted atomic.Int64

	mu       sync.Mutex // guards requests
	requests map[request]int64
}

func (c *counters) request(op, result string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.requests[request{op, result}]++
}

// all are the requests, in order.
func (c *counters) all() []Requests {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]Requests, 0, len(c.requests))
	for r, n := range c.requests {
		all = append(all, Requests{r.op, r.result, n})
	}
	slices.SortFunc(all, func(a, b Requests) int {
		return cmp.Or(cmp.Compare(a.Op, b.Op), cmp.Compare(a.Result, b.Result))
	})
	return all
}

// Stats says what the tier has done.
func (t *Tier) Stats() Stats {
	_, outages := t.reads.stats()
	_, more := t.writes.stats()
	return Stats{
		Store:        t.store.String(),
		ReadsOut:     t.reads.why(),
		WritesOut:    t.writes.why(),
		WrongVersion: t.version.isWrong(),
		Outages:      outages + more,
		Requests:     t.count.all(),
		Hits:         t.count.hits.Load(),
		Misses:       t.count.misses.Load(),
		Read:         t.count.read.Load(),
		Written:      t.count.written.Load(),
		Queued:       t.queue.length() + t.answers.length(),
		Dropped:      t.queue.dropped.Load() + t.answers.dropped.Load(),
		Leases:       t.count.leases.Load(),
		Followed:     t.count.followed.Load(),
		TakenOver:    t.count.takenOver.Load(),
		Distrusted:   t.count.distrusted.Load(),
	}
}

// Outlook is how the tier would be asked about a repository now.
type Outlook struct {
	Store string
	Out   error // why it is not asked; nil: it is
	Tags  bool  // what it knows of a tag spares the question to upstream
}

// Outlook says how the tier would be asked about a repository; not at all, unless it
// is shared.
func (t *Tier) Outlook(repository string) (o Outlook, shared bool) {
	if !t.covers(repository) {
		return Outlook{}, false
	}
	o = Outlook{Store: t.store.String(), Out: t.reads.why(), Tags: t.cfg.TagTTL > 0}
	if t.version.isWrong() {
		o.Out = ErrVersion
	}
	return o, true
}
