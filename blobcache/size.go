package blobcache

import (
	"github.com/opencontainers/go-digest"

	"larder/blobcache/durable"
)

// Size is the size of a blob that is on disk or on its way. It never starts a
// fill and never waits.
func (c *Cache) Size(d digest.Digest) (size int64, ok bool) {
	c.mu.Lock()
	e, f := c.entries.Get(d), c.fills[d]
	if e != nil && !e.partial() && (e.sealed() || e.size > c.sizes.whole) {
		size = e.size
		c.mu.Unlock()
		return size, true
	}
	c.mu.Unlock()
	if f != nil {
		size = f.knownSize()
		return size, size >= 0
	}
	return c.sizeOnDisk(d)
}

// sizeOnDisk is the size of a blob that an earlier process has left. Of a small
// one that is what it should be only if its content is (see settleHeld).
func (c *Cache) sizeOnDisk(d digest.Digest) (size int64, ok bool) {
	f, fi, err := durable.Open(c.root, blobName(d))
	if err != nil {
		return 0, false
	}
	defer f.Close()
	if size = fi.Size(); size <= c.sizes.whole {
		_, ok = readSmall(d, f, size)
		return size, ok
	}
	return size, true
}
