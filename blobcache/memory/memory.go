// Package memory keeps what is asked for most, and is small, in memory: the
// bytes of manifests and of small blobs, up to a number of bytes in all. What was
// used least recently goes first.
//
// It is for bytes that are on disk too and have been verified. Whoever removes
// or doubts the file must Delete what is kept of it.
package memory

import (
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
)

const (
	// overhead is what an entry takes beside the bytes of its key and content:
	// the entry itself, its place in the map, and what allocations round up to.
	overhead = 224

	// share is the part of a memory that one entry may take: were it more, one
	// large manifest would drive out what many ask for.
	share = 16
)

// Kind is what an entry is of. The bytes of a digest are the same as a manifest
// and as a blob, but they are different files.
type Kind uint8

// The kinds of entries.
const (
	Manifest Kind = iota
	Blob
)

// Key names an entry.
type Key struct {
	Kind   Kind
	Digest digest.Digest
}

// Content is what is kept of a manifest or a blob.
type Content struct {
	MediaType string // of a manifest, which no digest covers
	Bytes     []byte // shared: not to be changed
}

// Cache is a memory of a bounded number of bytes, for several goroutines. A nil
// Cache keeps nothing.
type Cache struct {
	max int64

	mu           sync.Mutex // guards the fields below
	entries      map[Key]*entry
	used         entry // the ring's head: next is what was used last, prev what least recently
	bytes        int64
	hits, misses int64
}

// entry is a place in a ring in the order of use.
type entry struct {
	key        Key
	content    Content
	prev, next *entry
}

// Stats is what a memory holds and what it has done.
type Stats struct {
	Entries, Bytes, MaxBytes int64 // the bytes with all that an entry takes
	Hits, Misses             int64
}

// New makes a memory of max bytes. With 0 it keeps nothing.
func New(max int64) *Cache {
	c := &Cache{max: max, entries: make(map[Key]*entry)}
	c.used.prev, c.used.next = &c.used, &c.used
	return c
}

// Get returns what is kept under k, and notes the use.
func (c *Cache) Get(k Key) (content Content, ok bool) {
	if c == nil {
		return content, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[k]
	if e == nil {
		c.misses++
		return content, false
	}
	c.hits++
	e.unlink()
	c.link(e)
	return e.content, true
}

// Fits reports whether an entry of n bytes would be kept.
func (c *Cache) Fits(n int64) bool { return c != nil && n+overhead <= c.max/share }

// Put keeps a copy of content under k, in place of what is there: of its own, so
// that nothing larger, of which these bytes may be a part, is kept alive by it.
func (c *Cache) Put(k Key, content Content) {
	if !c.Fits(int64(len(k.Digest) + len(content.MediaType) + len(content.Bytes))) {
		c.Delete(k)
		return
	}
	k.Digest = digest.Digest(strings.Clone(string(k.Digest)))
	e := &entry{key: k, content: Content{MediaType: strings.Clone(content.MediaType), Bytes: make([]byte, len(content.Bytes))}}
	copy(e.content.Bytes, content.Bytes)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drop(c.entries[k])
	c.entries[k] = e
	c.link(e)
	for c.bytes += e.size(); c.bytes > c.max; {
		c.drop(c.used.prev)
	}
}

// Delete drops what is kept under k, if anything is.
func (c *Cache) Delete(k Key) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drop(c.entries[k])
}

// Stats says what the memory holds and has done.
func (c *Cache) Stats() Stats {
	if c == nil {
		return Stats{}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return Stats{Entries: int64(len(c.entries)), Bytes: c.bytes, MaxBytes: c.max, Hits: c.hits, Misses: c.misses}
}

// drop needs mu. e may be nil.
func (c *Cache) drop(e *entry) {
	if e == nil {
		return
	}
	e.unlink()
	delete(c.entries, e.key)
	c.bytes -= e.size()
}

// link makes e what was used last. Needs mu.
func (c *Cache) link(e *entry) {
	e.prev, e.next = &c.used, c.used.next
	e.prev.next, e.next.prev = e, e
}

func (e *entry) unlink() { e.prev.next, e.next.prev = e.next, e.prev }

// size is what e takes of the memory.
func (e *entry) size() int64 {
	return int64(len(e.key.Digest)+len(e.content.MediaType)+len(e.content.Bytes)) + overhead
}
