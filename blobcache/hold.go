package blobcache

import (
	"time"

	"github.com/opencontainers/go-digest"
)

// never is when the life of what is held ends.
var never = time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC)

// Hold says which blobs are neither evicted nor expire, until it says others. The
// map is the cache's from now on.
func (c *Cache) Hold(blobs map[digest.Digest]bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.holds
	for d := range before {
		if !blobs[d] {
			c.countHeld(d, c.entries.Get(d), -1)
		}
	}
	c.holds = blobs
	for d := range blobs {
		if !before[d] {
			c.countHeld(d, c.entries.Get(d), 1)
			c.reschedule(d)
		}
	}
	for d := range before {
		if !blobs[d] {
			c.reschedule(d)
		}
	}
	select {
	case <-c.pinned:
	default:
		close(c.pinned)
	}
}

// countHeld counts n times an entry that is held; of others, and of nil, it counts
// nothing. Needs mu.
func (c *Cache) countHeld(d digest.Digest, e *entry, n int64) {
	if e == nil || !c.holds[d] {
		return
	}
	c.held.count(n, n*e.size)
	for _, q := range e.account.all() {
		q.held += n * e.size
	}
}

// reschedule puts the entry of d, if there is one, where it belongs among those
// that are due. Needs mu.
func (c *Cache) reschedule(d digest.Digest) {
	e := c.entries.Get(d)
	if e == nil {
		return
	}
	end := c.endOf(d, e)
	c.due.Set(e, end)
	for _, q := range e.account.all() {
		q.due.Set(e, end)
	}
}

// endOf is end, but for what is held. Needs mu.
func (c *Cache) endOf(d digest.Digest, e *entry) time.Time {
	if e != nil && c.holds[d] {
		return never
	}
	return c.end(e)
}

// stays reports whether d must not be removed to make room: as it is held, or it
// is not known yet what is. Needs mu.
func (c *Cache) stays(d digest.Digest) bool {
	select {
	case <-c.pinned:
		return c.holds[d]
	default:
		return true
	}
}
