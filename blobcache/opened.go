package blobcache

import (
	"io"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"larder/blobcache/durable"
)

const (
	// mostIdle bounds how many files are kept open, and mostIdleOfOne how many of
	// one blob: who reads it at once needs a file of his own.
	mostIdle      = 256
	mostIdleOfOne = 16

	// idleTime is how long a file stays open that nobody asks for. What a hand has
	// removed from the directory takes its space until then.
	idleTime = 10 * time.Second
)

// idleFile is an open file of a blob that is on disk. Sending it uses its offset:
// it has one reader at a time, or none.
type idleFile struct {
	entry *entry
	file  *os.File
	since time.Time
}

// idleFiles are those that nobody reads. Opening one takes a dozen system calls,
// making sure that an open one is still what it was takes one. Cache.mu guards
// them.
type idleFiles struct {
	most  int         // immutable
	files []idleFile  // those that were left last at the end
	spent []*os.File  // to be closed when mu is let go
	timer *time.Timer // runs while there are files
}

// take returns the file of e that was left last. It has no file if there is none.
func (s *idleFiles) take(e *entry) (f idleFile) {
	for i, f := range slices.Backward(s.files) {
		if f.entry == e {
			s.files = slices.Delete(s.files, i, i+1)
			return f
		}
	}
	return f
}

// put keeps f, in place of what was left first if there are too many.
func (s *idleFiles) put(f idleFile) {
	alike := 0
	for i := range s.files {
		if s.files[i].entry == f.entry {
			alike++
		}
	}
	if alike >= mostIdleOfOne || s.most == 0 {
		s.spent = append(s.spent, f.file)
		return
	}
	if len(s.files) >= s.most {
		s.drop(1)
	}
	s.files = append(s.files, f)
}

// drop gives up the n files that were left first.
func (s *idleFiles) drop(n int) {
	for _, f := range s.files[:n] {
		s.spent = append(s.spent, f.file)
	}
	s.files = slices.Delete(s.files, 0, n)
}

// dropOf gives up the files of e.
func (s *idleFiles) dropOf(e *entry) {
	s.files = slices.DeleteFunc(s.files, func(f idleFile) bool {
		if f.entry == e {
			s.spent = append(s.spent, f.file)
		}
		return f.entry == e
	})
}

// unlock lets go of mu, and closes the files that were given up under it.
func (c *Cache) unlock() {
	spent := c.idle.spent
	c.idle.spent = nil
	c.mu.Unlock()
	for _, f := range spent {
		f.Close()
	}
}

// takeIdle returns an open file of e, which may be nil, to be read by the caller
// alone, and what it is now. There is no file if none is open that still has a name.
func (c *Cache) takeIdle(e *entry) (*os.File, fs.FileInfo) {
	for e != nil {
		c.mu.Lock()
		idle := c.idle.take(e)
		c.mu.Unlock()
		if idle.file == nil {
			break
		}
		fi, err := idle.file.Stat()
		if err == nil && !unlinked(fi) {
			return idle.file, fi
		}
		idle.file.Close()
	}
	return nil, nil
}

// leaveOpen keeps the file of d for its next reader, as long as the blob is in the
// index and in no doubt.
func (c *Cache) leaveOpen(d digest.Digest, f idleFile) {
	f.since = time.Now()
	c.mu.Lock()
	defer c.unlock()
	if c.ctx.Err() != nil || !f.entry.sealed() || c.entries.Get(d) != f.entry {
		c.idle.spent = append(c.idle.spent, f.file)
		return
	}
	c.idle.put(f)
	if c.idle.timer == nil {
		c.idle.timer = time.AfterFunc(idleTime, c.closeUnused)
	}
}

// closeUnused closes what has been idle for long, and comes back for the others.
func (c *Cache) closeUnused() {
	c.mu.Lock()
	defer c.unlock()
	n := 0
	for n < len(c.idle.files) && time.Since(c.idle.files[n].since) >= idleTime {
		n++
	}
	c.idle.drop(n)
	if c.idle.timer = nil; len(c.idle.files) > 0 {
		c.idle.timer = time.AfterFunc(time.Until(c.idle.files[0].since.Add(idleTime)), c.closeUnused)
	}
}

// closeIdle closes all files that nobody reads, and reports whether there were any.
func (c *Cache) closeIdle() bool {
	c.mu.Lock()
	defer c.unlock()
	n := len(c.idle.files)
	c.idle.drop(n)
	return n > 0
}

// open opens one of the cache's files. If too many are open for that, those that
// nobody reads are closed.
func (c *Cache) open(name string) (*os.File, fs.FileInfo, error) {
	f, fi, err := durable.Open(c.root, name)
	if tooManyFiles(err) && c.closeIdle() {
		return durable.Open(c.root, name)
	}
	return f, fi, err
}

// storedContent is the content of a blob that is on disk. It does not embed the
// file, which would be read on when it is another reader's.
type storedContent struct {
	cache  *Cache
	digest digest.Digest
	opened idleFile // without a file once it is closed
	size   int64
	pos    int64
}

// Read implements io.Reader.
func (s *storedContent) Read(p []byte) (int, error) {
	n, err := s.opened.file.ReadAt(p, s.pos)
	s.pos += int64(n)
	return n, err
}

// Seek implements io.Seeker.
func (s *storedContent) Seek(offset int64, whence int) (int64, error) {
	offset, err := target(offset, whence, s.pos, s.size)
	if err == nil {
		s.pos = offset
	}
	return offset, err
}

// SendTo sends the next n bytes as an *os.File, which a TCP connection takes
// without copying.
func (s *storedContent) SendTo(w io.Writer, n int64) (sent int64, err error) {
	if _, err := s.opened.file.Seek(s.pos, io.SeekStart); err != nil {
		return 0, err
	}
	sent, err = io.CopyN(w, s.opened.file, n)
	s.pos += sent
	return sent, err
}

// Close leaves the file to the next reader. It may be called more than once.
func (s *storedContent) Close() error {
	if s.opened.file != nil {
		s.cache.leaveOpen(s.digest, s.opened)
		s.opened.file = nil
	}
	return nil
}
