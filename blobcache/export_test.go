package blobcache

import "os"

// Shrink makes c plan for blobs as if they were 256 times as large. It has to
// be called before anything else is.
func (c *Cache) Shrink() {
	c.sizes = sizes{segment >> 8, beginning >> 8, 0, granule >> 8, firstPart >> 8, near >> 8, saveEvery >> 8, 0, whole >> 5, window >> 8}
}

// Scarce has c use several connections however fast one is. It has to be called
// before anything else is.
func (c *Cache) Scarce() { c.sizes.plenty = 0 }

// FailWrites makes each write of a blob to disk fail with what fail returns, if
// that is an error. It has to be called before anything else is.
func (c *Cache) FailWrites(fail func() error) {
	c.writeAt = func(f *os.File, p []byte, offset int64) (int, error) {
		if err := fail(); err != nil {
			return 0, err
		}
		return f.WriteAt(p, offset)
	}
}

// Stored reports whether b is sent from the file of a blob that is verified.
func (b *Blob) Stored() bool {
	_, ok := b.Content.(*storedContent)
	return ok
}

// File is the file of a stored blob.
func (b *Blob) File() *os.File { return b.Content.(*storedContent).opened.file }

// Idle is how many files are open that nobody reads.
func (c *Cache) Idle() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.idle.files)
}

// KeepIdle has c keep no more than n such files.
func (c *Cache) KeepIdle(n int) { c.idle.most = n }
