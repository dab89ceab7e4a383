package blobcache

import (
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/opencontainers/go-digest"

	"larder/blobcache/memory"
)

// small is the size up to which a blob that is asked for again is kept in memory
// too.
const small = 64 << 10

// inMemory is the key of d in the memory. What is under it are the bytes of a
// complete blob in the index, which were verified: it goes with its entry.
func inMemory(d digest.Digest) memory.Key {
	return memory.Key{Kind: memory.Blob, Digest: d}
}

// recall opens a blob that is in memory, or returns nil. What may have become of
// its file is no matter, for these are the right bytes; but when a use is to be
// written to the file, it is looked at.
func (c *Cache) recall(d digest.Digest) *Blob {
	now := time.Now()
	c.mu.Lock()
	e := c.entries.Get(d)
	if e == nil || e.partial() || e.size > small || c.touchDue(e, now) {
		c.mu.Unlock()
		return nil
	}
	kept, ok := c.cfg.Memory.Get(inMemory(d))
	if ok {
		c.usedAt(e, now)
	}
	c.mu.Unlock()
	if !ok {
		return nil
	}
	return c.remembered(kept.Bytes)
}

// memorize reads the small blob d, whose file f has just been opened, and keeps
// it in memory. This is done when a blob is asked for that is on disk: many are
// never asked for again after their fill. It returns nil, and leaves the file to a
// fill, if the file is not what it should be.
func (c *Cache) memorize(d digest.Digest, e *entry, f *os.File, fi fs.FileInfo) *Blob {
	defer f.Close()
	data, right := readSmall(d, f, fi.Size())
	c.mu.Lock()
	switch current := c.entries.Get(d) == e; {
	case !right:
		e.verified = 0
	case current && e.sealed(): // neither removed nor doubted meanwhile
		c.cfg.Memory.Put(inMemory(d), memory.Content{Bytes: data})
	}
	c.mu.Unlock()
	if !right {
		return nil
	}
	return c.remembered(data)
}

// readSmall reads all of a small file, and says whether it is the blob d.
func readSmall(d digest.Digest, f *os.File, size int64) (data []byte, right bool) {
	data = make([]byte, size)
	_, err := io.ReadFull(f, data)
	return data, err == nil && d.Algorithm().FromBytes(data) == d
}

func (c *Cache) remembered(data []byte) *Blob {
	c.count.outcomes[Hit].Add(1)
	return &Blob{Content: memory.NewReader(data), Size: int64(len(data)), Outcome: Hit}
}
