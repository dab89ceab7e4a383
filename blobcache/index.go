package blobcache

import (
	"context"
	"errors"
	"hash/maphash"
	"io/fs"
	"path"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"

	"larder/blobcache/compact"
	"larder/blobcache/durable"
	"larder/ttl"
)

const (
	// touchAtMost is how often a use is written to disk as the file's mtime,
	// and therefore what a crash may take from an entry's life.
	touchAtMost = time.Hour

	// retryRemoval is when a file that could not be removed is tried again.
	retryRemoval = time.Minute

	// forever is the time to live of what has none.
	forever = 100 * 365 * 24 * time.Hour
)

// entry is what is known of a blob file. The file is the record: its mtime is
// the last use, or at most touchAtMost before it.
// There may be a million: each takes 80 bytes, and 30 in table and queue.
type entry struct {
	name     compact.Digest
	size     int64
	used     compact.Time
	verified seal            // of the file when its digest was last known to be right, or parked
	account  *account        // whose it is, if that matters
	touched  compact.Seconds // the file's mtime
	place    ttl.Place       // in Cache.due
}

// Name implements compact.Named.
func (e *entry) Name() *compact.Digest { return &e.name }

// Place implements ttl.Placed.
func (e *entry) Place() *ttl.Place { return &e.place }

// partial reports whether e is a parked fill, not a blob.
func (e *entry) partial() bool { return e.verified == parked }

// sealed reports whether e is a blob whose file was verified.
func (e *entry) sealed() bool { return e.verified > parked }

// seal is a stamp, as a hash that takes less. The zero seal is no file's.
type seal uint64

// parked is in place of the seal of what is not all there; it is no file's either.
const parked seal = 1

func (c *Cache) sealOf(fi fs.FileInfo) seal {
	return max(seal(maphash.Comparable(c.seed, stampOf(fi))), parked+1)
}

func newEntry(d digest.Digest, size int64, used, touched time.Time) *entry {
	return &entry{name: compact.Of(d), size: size, used: compact.TimeOf(used), touched: compact.SecondsOf(touched)}
}

// lookup returns what is known of the complete blob d, or nil. What it returns
// is for comparing with; its fields are guarded by mu.
func (c *Cache) lookup(d digest.Digest) *entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.entries.Get(d); e != nil && !e.partial() {
		return e
	}
	return nil
}

// forget drops e, which turned out to have no file, unless the blob has been
// stored again in the meantime.
func (c *Cache) forget(d digest.Digest, e *entry) {
	c.mu.Lock()
	gone := e != nil && c.entries.Get(d) == e
	if gone {
		c.drop(e)
	}
	c.unlock()
	if gone {
		c.removeOwner(d, e.account)
	}
}

// use notes that the blob d, whose file is as fi says, is used now. It reports
// false, and leaves the file to a fill, if that is not what this process has
// verified.
func (c *Cache) use(d digest.Digest, e *entry, fi fs.FileInfo) bool {
	now := time.Now()
	c.mu.Lock()
	if e == nil || e.verified != c.sealOf(fi) {
		if e != nil && c.entries.Get(d) == e {
			c.doubt(e)
		}
		c.unlock()
		return false
	}
	touch := c.usedAt(e, now)
	c.mu.Unlock()
	if touch {
		c.touch(d, e, fi, now)
	}
	return true
}

// usedAt notes a use of e, and reports whether it is to be written to disk.
// Needs mu.
func (c *Cache) usedAt(e *entry, now time.Time) (touch bool) {
	e.used = compact.TimeOf(now)
	if touch = c.touchDue(e, now); touch {
		e.touched = compact.SecondsOf(now)
	}
	return touch
}

// touchDue reports whether a use of e now would be written to disk. Needs mu.
func (c *Cache) touchDue(e *entry, now time.Time) bool {
	every := touchAtMost
	if c.cfg.TTL > 0 {
		every = min(every, c.cfg.TTL/10)
	}
	return now.Sub(e.touched.Time()).Abs() >= every
}

// touch writes a use to disk, which changes the file's stamp: what was verified,
// as the file was before, still is.
func (c *Cache) touch(d digest.Digest, e *entry, before fs.FileInfo, now time.Time) {
	name := blobName(d)
	err := c.root.Chtimes(name, now, now)
	var fi fs.FileInfo
	if err == nil {
		fi, err = c.root.Stat(name)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return // removed meanwhile
	}
	if err != nil {
		c.complain("use of a blob not recorded; it may expire early", err)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if e.verified == c.sealOf(before) {
		e.verified = c.sealOf(fi)
	}
}

// Renew notes a use of each of the blobs that are on disk: those of an image, so
// that it is there as a whole or not at all.
func (c *Cache) Renew(blobs []digest.Digest) {
	now := time.Now()
	due := make(map[digest.Digest]*entry) // whose use is to be written to disk
	c.mu.Lock()
	for _, d := range blobs {
		if e := c.entries.Get(d); e != nil && c.usedAt(e, now) && !e.partial() {
			due[d] = e
		}
	}
	c.mu.Unlock()
	for d, e := range due {
		if fi, err := c.root.Stat(blobName(d)); err == nil {
			c.touch(d, e, fi, now)
		}
	}
}

// add records a file that was just written or found. Needs mu.
func (c *Cache) add(e *entry) {
	d := e.name.Digest()
	c.drop(c.entries.Get(d))
	c.entries.Put(e)
	end := c.endOf(d, e)
	c.due.Set(e, end)
	c.counted(e).count(1, e.size)
	c.countHeld(d, e, 1)
	for _, q := range e.account.all() {
		q.entries += e.size
		q.due.Set(e, end)
	}
}

// drop takes e, which may be nil, out of the index. Needs mu, which is then let go
// of with unlock.
func (c *Cache) drop(e *entry) {
	if e == nil {
		return
	}
	c.entries.Delete(e)
	c.cfg.Memory.Delete(inMemory(e.name.Digest()))
	c.idle.dropOf(e)
	c.due.Delete(e)
	c.counted(e).count(-1, -e.size)
	c.countHeld(e.name.Digest(), e, -1)
	for _, q := range e.account.all() {
		q.entries -= e.size
		q.due.Delete(e)
	}
}

func (h *holding) count(n, bytes int64) {
	h.n += n
	h.bytes += bytes
}

// counted is what e counts as.
func (c *Cache) counted(e *entry) *holding {
	if e.partial() {
		return &c.partials
	}
	return &c.blobs
}

// end is when the life of e ends if it is not used again.
func (c *Cache) end(e *entry) time.Time {
	life := time.Duration(forever)
	if c.cfg.TTL > 0 {
		life = min(c.cfg.TTL, forever)
	}
	return e.used.Time().Add(life)
}

// Run finds out what is on disk and then removes what has not been used for
// its time to live, until ctx is done. Blobs that Run has not found yet can be
// asked for all the same. It must be called once only.
func (c *Cache) Run(ctx context.Context) error {
	c.scan(ctx)
	select {
	case <-c.pinned:
	case <-ctx.Done():
	}
	c.shrink()
	close(c.scanned)
	return c.due.Run(ctx, c.expire)
}

// expire is called when e may have come to the end of its life. Uses since it
// was scheduled are only in e: look there first.
func (c *Cache) expire(e *entry) (next time.Time, keep bool) {
	d := e.name.Digest()
	c.mu.Lock()
	if c.entries.Get(d) != e {
		c.mu.Unlock()
		return next, false
	}
	if c.fills[d] != nil { // the file is in use; what becomes of it is recorded at the end
		c.mu.Unlock()
		return time.Now().Add(c.cfg.TTL), true
	}
	if end := c.endOf(d, e); time.Now().Before(end) {
		c.mu.Unlock()
		return end, true
	}
	done := c.remove(d, e)
	c.mu.Unlock()
	if err := done(); err != nil {
		c.log.Error("expired blob not removed; trying again", zap.Stringer("digest", d), zap.Error(err))
		c.count.failed.Add(1)
		next = time.Now().Add(retryRemoval)
		c.due.Set(e, next)
		return next, true
	}
	c.count.expired.Add(1)
	c.noteGone(d, e, Expired)
	return next, false
}

// scan makes an entry of every blob file and every partial file that has none.
// Anything else is left alone.
func (c *Cache) scan(ctx context.Context) {
	var junk []string
	accounts := c.readOwners()
	partly := false
	err := fs.WalkDir(c.root.FS(), ".", func(name string, de fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			partly = true
			return fs.SkipAll
		}
		if err != nil {
			partly = true
			c.log.Warn("part of the cache can't be read", zap.String("path", name), zap.Error(err))
			return nil
		}
		if de.IsDir() {
			return nil
		}
		if !c.found(name, de, accounts) {
			junk = append(junk, name)
		}
		return nil
	})
	if len(junk) > 0 || err != nil {
		c.log.Warn("files in the cache are not blobs; left alone",
			zap.Int("files", len(junk)), zap.Strings("first", junk[:min(len(junk), 3)]), zap.Error(err))
	}
	c.count.scans.Add(1)
	if partly {
		return // the blobs of what was not looked at may be there
	}
	for d, a := range accounts {
		if c.unknown(d) {
			c.removeOwner(d, a)
		}
	}
}

// unknown reports whether there is neither an entry nor a fill for d.
func (c *Cache) unknown(d digest.Digest) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.entries.Get(d) == nil && c.fills[d] == nil
}

// past is when a file was used: not in the future, where a clock that was wrong
// may have put it.
func past(mtime time.Time) time.Time {
	if now := time.Now(); mtime.After(now) {
		return now
	}
	return mtime
}

// found records one file of the scan; false if it is not one of the cache's.
func (c *Cache) found(name string, de fs.DirEntry, accounts map[digest.Digest]*account) bool {
	if name == scrubName {
		return true
	}
	if path.Dir(name) == ownerDir {
		_, ok := parseFlatName(de.Name())
		return ok
	}
	d, ok := parseBlobName(name)
	partial := path.Dir(name) == partialDir
	if partial {
		if strings.HasSuffix(name, durable.Unfinished) {
			return true // being written
		}
		var beside bool
		name, beside = strings.CutSuffix(name, extentsSuffix)
		if d, ok = parseFlatName(path.Base(name)); beside {
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
	e := newEntry(d, fi.Size(), past(fi.ModTime()), fi.ModTime())
	e.account = accounts[d]
	if partial {
		e.verified = parked
		if left, err := c.readExtents(d, e.size); err == nil {
			e.size = left.Extents.bytes()
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.entries.Get(d) == nil && c.fills[d] == nil {
		c.add(e)
	}
	return true
}
