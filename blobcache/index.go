package blobcache

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"
)

const (
	// touchAtMost is how often a use is written to disk as the file's mtime,
	// and therefore what a crash may take from an entry's life.
	touchAtMost = time.Hour

	// retryRemoval is when a file that could not be removed is tried again.
	retryRemoval = time.Minute
)

// entry is what is known of a blob file. The file is the record: its mtime is
// the last use, or at most touchAtMost before it.
type entry struct {
	size     int64
	used     time.Time
	touched  time.Time // the file's mtime
	partial  bool      // a parked fill, not a blob
	verified stamp     // of the file when its digest was last known to be right
}

// lookup returns what is known of the complete blob d, or nil. What it returns
// is for comparing with; its fields are guarded by mu.
func (c *Cache) lookup(d digest.Digest) *entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.entries[d]; e != nil && !e.partial {
		return e
	}
	return nil
}

// forget drops e, which turned out to have no file, unless the blob has been
// stored again in the meantime.
func (c *Cache) forget(d digest.Digest, e *entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e != nil && c.entries[d] == e {
		delete(c.entries, d)
		c.due.Delete(d)
	}
}

// use notes that the blob d, whose file is as fi says, is used now. It reports
// false, and leaves the file to a fill, if that is not what this process has
// verified.
func (c *Cache) use(d digest.Digest, e *entry, fi fs.FileInfo) bool {
	now := time.Now()
	c.mu.Lock()
	if e == nil || e.verified != stampOf(fi) {
		if e != nil && c.entries[d] == e {
			e.verified = stamp{}
		}
		c.mu.Unlock()
		return false
	}
	e.used = now
	every := touchAtMost
	if c.cfg.TTL > 0 {
		every = min(every, c.cfg.TTL/10)
	}
	touch := now.Sub(e.touched) >= every
	if touch {
		e.touched = now
	}
	c.mu.Unlock()
	if touch {
		c.touch(d, e, now)
	}
	return true
}

// touch writes a use to disk, which changes the file's stamp.
func (c *Cache) touch(d digest.Digest, e *entry, now time.Time) {
	name := blobName(d)
	err := c.root.Chtimes(name, now, now)
	var fi fs.FileInfo
	if err == nil {
		fi, err = c.root.Stat(name)
	}
	if err != nil {
		c.log.Warn("use of a blob not recorded; it may expire early", zap.Stringer("digest", d), zap.Error(err))
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	e.verified = stampOf(fi)
}

// add records a file that was just written or found. Needs mu.
func (c *Cache) add(d digest.Digest, e *entry) {
	c.entries[d] = e
	c.schedule(d, e.used)
}

func (c *Cache) schedule(d digest.Digest, used time.Time) {
	if c.cfg.TTL > 0 {
		c.due.Set(d, used.Add(c.cfg.TTL))
	}
}

// Run finds out what is on disk and then removes what has not been used for
// its time to live, until ctx is done. Blobs that Run has not found yet can be
// asked for all the same.
func (c *Cache) Run(ctx context.Context) error {
	c.scan(ctx)
	return c.due.Run(ctx, c.expire)
}

// expire is called when d may have come to the end of its life. Uses since it
// was scheduled are only in its entry: look there first.
func (c *Cache) expire(d digest.Digest) (next time.Time, keep bool) {
	c.mu.Lock()
	e := c.entries[d]
	if e == nil {
		c.mu.Unlock()
		return next, false
	}
	if c.fills[d] != nil { // the file is in use; what becomes of it is recorded at the end
		c.mu.Unlock()
		return time.Now().Add(c.cfg.TTL), true
	}
	if end := e.used.Add(c.cfg.TTL); time.Now().Before(end) {
		c.mu.Unlock()
		return end, true
	}
	delete(c.entries, d)
	c.mu.Unlock()

	name := blobName(d)
	if e.partial {
		name = partialName(d)
	}
	err := remove(c.root, name)
	if err == nil && e.partial {
		err = remove(c.root, name+extentsSuffix)
	}
	if err != nil {
		c.log.Error("expired blob not removed; trying again", zap.Stringer("digest", d), zap.Error(err))
		c.count.failed.Add(1)
		c.mu.Lock()
		if c.entries[d] == nil {
			c.entries[d] = e
		}
		c.mu.Unlock()
		return time.Now().Add(retryRemoval), true
	}
	c.count.expired.Add(1)
	return next, false
}

// scan makes an entry of every blob file and every partial file that has none.
// Anything else is left alone.
func (c *Cache) scan(ctx context.Context) {
	var junk []string
	err := fs.WalkDir(c.root.FS(), ".", func(name string, de fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return fs.SkipAll
		}
		if err != nil {
			c.log.Warn("part of the cache can't be read", zap.String("path", name), zap.Error(err))
			return nil
		}
		if de.IsDir() {
			return nil
		}
		if !c.found(name, de) {
			junk = append(junk, name)
		}
		return nil
	})
	if len(junk) > 0 || err != nil {
		c.log.Warn("files in the cache are not blobs; left alone",
			zap.Int("files", len(junk)), zap.Strings("first", junk[:min(len(junk), 3)]), zap.Error(err))
	}
	c.count.scans.Add(1)
}

// found records one file of the scan; false if it is not one of the cache's.
func (c *Cache) found(name string, de fs.DirEntry) bool {
	d, ok := parseBlobName(name)
	partial := path.Dir(name) == partialDir
	if partial {
		var beside bool
		name, beside = strings.CutSuffix(strings.TrimSuffix(name, "~"), extentsSuffix)
		if d, ok = parsePartialName(name); beside {
			return ok // goes with its partial file
		}
	}
	if !ok || !de.Type().IsRegular() {
		return false
	}
	fi, err := de.Info()
	if err != nil {
		return errors.Is(err, fs.ErrNotExist) // expired or committed meanwhile
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.entries[d] == nil && c.fills[d] == nil {
		c.add(d, &entry{size: fi.Size(), used: fi.ModTime(), touched: fi.ModTime(), partial: partial})
	}
	return true
}
