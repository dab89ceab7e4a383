package blobcache

import (
	"errors"
	"io/fs"
	"os"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"

	"larder/blobcache/durable"
)

// settle does what is due with the file of a fill that has ended. It returns
// the entry of the file that is left, if one is.
func (c *Cache) settle(f *fill, err error) *entry {
	if unkept(err) {
		c.unkept(f, err)
	}
	now, arrived := time.Now(), f.have.bytes()
	switch {
	case f.held != nil:
		return c.settleHeld(f, err)
	case f.file == nil:
		return f.before
	case f.stored:
		return c.settleStored(f, err)
	case err == nil:
		// The readers have their last byte; nobody waits for the disk.
		err := f.file.Truncate(f.size) // somebody may have made it longer
		if err == nil {
			began := time.Now()
			err = durable.Commit(c.root, f.file, partialName(f.digest), blobName(f.digest))
			c.observe("commit", began)
		}
		c.stored(err)
		if err != nil {
			break
		}
		if f.scattered {
			c.dropPartial(f.digest)
		}
		return f.verifiedEntry(now)
	case errors.Is(err, ErrDigest):
		c.wrong(f, err)
	case unkept(err) && f.wantAll: // it would never be whole
	case arrived > 0:
		if err := f.save(); err != nil {
			c.complain("extents of a partial blob not recorded", err)
			break
		}
		c.log.Info("blob left incomplete; kept for resuming",
			zap.Stringer("digest", f.digest), zap.Int64("bytes", arrived), zap.Int64("size", f.size), zap.Error(err))
		kept := newEntry(f.digest, arrived, now, now)
		kept.verified = parked
		return kept
	}
	c.dropPartial(f.digest)
	c.removeOwner(f.digest, f.account)
	return nil
}

// settleHeld stores a blob that was held in memory until now. A crash may leave
// anything under its name, as the disk is not waited for: it is small enough to be
// verified again, as every blob is that an earlier process has left.
func (c *Cache) settleHeld(f *fill, err error) (kept *entry) {
	if err == nil {
		began := time.Now()
		err = c.anyhow(func() (err error) {
			kept, err = f.storeHeld()
			return err
		})
		c.observe("commit", began)
		c.stored(err)
	} else if errors.Is(err, ErrDigest) {
		c.wrong(f, err)
	}
	if kept == nil {
		c.dropPartial(f.digest)
		c.removeOwner(f.digest, f.account)
	}
	return kept
}

func (f *fill) storeHeld() (*entry, error) {
	c, tmp := f.cache, partialName(f.digest)
	file, err := durable.CreateTemp(c.root, tmp)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if _, err := c.writeAt(file, f.small(), 0); err != nil {
		return nil, err
	}
	if err := durable.CommitSoon(c.root, tmp, blobName(f.digest)); err != nil {
		return nil, err
	}
	fi, err := file.Stat()
	if err != nil {
		return nil, err
	}
	return f.entryOf(fi, time.Now()), nil
}

// wrong tells the operator of a blob that has not the bytes it should have.
func (c *Cache) wrong(f *fill, err error) {
	c.log.Error("wrong bytes arrived; blob thrown away", zap.Stringer("digest", f.digest),
		zap.Int64("bytes", f.have.bytes()), zap.Bool("in parts", f.scattered), zap.Error(err))
}

// unkept tells the operator why a blob is passed on and not kept.
func (c *Cache) unkept(f *fill, err error) {
	if !errors.Is(err, errNoRoom) {
		c.complain("the cache can't be written; blobs are passed on without being kept", err)
		return
	}
	if s := c.Stats(); s.HeldBytes > 0 {
		c.disk.Warn("no room for a blob beside what is pinned; it is passed on without being kept", zap.Stringer("digest", f.digest),
			zap.Int64("size", f.knownSize()), zap.String("owner", f.source.Owner), zap.Int64("pinned", s.HeldBytes), zap.Int64("max", s.MaxBytes))
		return
	}
	c.disk.Warn("no room for a blob, whatever else is removed; it is passed on without being kept",
		zap.Stringer("digest", f.digest), zap.Int64("size", f.knownSize()), zap.String("owner", f.source.Owner))
}

func (c *Cache) observe(op string, began time.Time) {
	if c.cfg.Observe != nil {
		c.cfg.Observe(op, time.Since(began))
	}
}

// stored notes how a commit went.
func (c *Cache) stored(err error) {
	if err != nil {
		c.complain("blob not stored", err)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.storeErr = nil
}

// settleStored does what is due with a blob file that was looked at again. One
// that could not be read to its end, as larder stops, is for the next process.
func (c *Cache) settleStored(f *fill, err error) *entry {
	if err == nil {
		now := time.Now() // of this use
		if err := c.root.Chtimes(blobName(f.digest), now, now); err != nil {
			c.complain("use of a blob not recorded; it may expire early", err)
		}
		return f.verifiedEntry(now)
	}
	if fi, statErr := f.file.Stat(); statErr == nil && !errors.Is(err, errDamaged) {
		return newEntry(f.digest, fi.Size(), past(fi.ModTime()), fi.ModTime())
	}
	c.discard(f.digest, nil, err)
	c.removeOwner(f.digest, f.account)
	return nil
}

// verifiedEntry is the entry of the fill's file, whose digest is right.
func (f *fill) verifiedEntry(now time.Time) *entry {
	fi, err := f.file.Stat()
	if err != nil { // then it is looked at once more
		return newEntry(f.digest, f.have.bytes(), now, now)
	}
	return f.entryOf(fi, now)
}

// entryOf is the entry of a file of the fill's that has been verified.
func (f *fill) entryOf(fi fs.FileInfo, now time.Time) *entry {
	e := newEntry(f.digest, fi.Size(), now, fi.ModTime())
	e.verified = f.cache.sealOf(fi)
	return e
}

// dropPartial removes what is left of a fill's file.
func (c *Cache) dropPartial(d digest.Digest) {
	if err := c.removePartial(d); err != nil {
		c.complain("partial blob not removed", err)
	}
}

// remove removes a file that may be gone already.
func remove(root *os.Root, name string) error {
	if err := root.Remove(name); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
