package blobcache

import (
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
)

// Fill is a blob on its way to disk.
type Fill struct {
	Digest  digest.Digest
	Owner   string // for whom it was begun; "": nobody in particular
	Began   time.Time
	Size    int64    // -1: not known
	Have    []Extent // what has arrived
	Brought int64    // bytes that have arrived since Began
	Readers int
	Stored  bool // it was on disk, and is being verified
}

// Fills lists those that are running, the oldest first.
func (c *Cache) Fills() []Fill {
	c.mu.Lock()
	fills := make([]Fill, 0, len(c.fills))
	running := make([]*fill, 0, len(c.fills))
	for _, f := range c.fills {
		if !f.removing {
			running = append(running, f)
			fills = append(fills, Fill{Digest: f.digest, Owner: f.source.Owner, Began: f.made, Readers: f.readers})
		}
	}
	c.mu.Unlock()
	for i, f := range running {
		fills[i].progress(f)
	}
	slices.SortFunc(fills, func(a, b Fill) int { return a.Began.Compare(b.Began) })
	return fills
}

func (s *Fill) progress(f *fill) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s.Size, s.Have, s.Brought, s.Stored = f.size, slices.Clone(f.have), f.arrived-f.left, f.stored
}

// Ending is a blob that is due to go.
type Ending struct {
	Digest  digest.Digest
	Size    int64
	Used    time.Time
	Expires time.Time // zero: never
}

// Next lists the n blobs, one at least, that were used least recently: they expire first and, if
// room is needed, are evicted first. It looks at all there are.
func (c *Cache) Next(n int) []Ending {
	next := make([]Ending, 0, n+1)
	c.mu.Lock()
	defer c.mu.Unlock()
	for e := range c.entries.All() {
		used := e.used.Time()
		if len(next) == n && !used.Before(next[n-1].Used) {
			continue
		}
		one := Ending{Digest: e.name.Digest(), Size: e.size, Used: used}
		if c.cfg.TTL > 0 {
			one.Expires = c.end(e)
		}
		i, _ := slices.BinarySearchFunc(next, one, func(a, b Ending) int { return a.Used.Compare(b.Used) })
		next = slices.Insert(next, i, one)
		next = next[:min(n, len(next))]
	}
	return next
}

// The reasons for which a blob goes.
const (
	Evicted = "evicted" // to make room
	Expired = "expired"
	Removed = "removed" // an operator wanted it
)

// maxGone bounds what is remembered of blobs that are gone.
const maxGone = 20

// Gone is a blob that was there.
type Gone struct {
	Digest digest.Digest
	Size   int64
	Used   time.Time
	At     time.Time
	Why    string
}

// Gone lists the blobs that went last, the newest first.
func (c *Cache) Gone() []Gone {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.gone)
}

// noteGone remembers that the blob d, of which e was known, is gone.
func (c *Cache) noteGone(d digest.Digest, e *entry, why string) {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gone = slices.Insert(c.gone, 0, Gone{d, e.size, e.used.Time(), now, why})
	c.gone = c.gone[:min(maxGone, len(c.gone))]
}
