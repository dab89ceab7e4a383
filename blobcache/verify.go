package blobcache

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/opencontainers/go-digest"
)

// partialExtents is the content of the file beside a partial file that is more
// than a beginning. Without one, what is in the partial file is its beginning.
type partialExtents struct {
	Size    int64   `json:"size"` // -1: not known
	Extents extents `json:"extents"`
}

// errExtents says that recorded extents can't be true.
var errExtents = errors.New("extents are damaged")

// usable reports whether p can be true of a file of the given size.
func (p partialExtents) usable(size int64) bool {
	if p.Size >= 0 {
		size = min(size, p.Size)
	}
	return p.Size >= -1 && len(p.Extents) > 0 && p.Extents.valid(size)
}

// fillFile has the file filled and verified. It returns nil when the file holds
// the blob.
func (c *Cache) fillFile(f *fill) error {
	if f.stuck {
		if err := c.root.RemoveAll(blobName(f.digest)); err != nil {
			return fmt.Errorf("%w: %w", errStore, err)
		}
		c.unstick(f.digest)
	}
	if stored, err := c.root.Open(blobName(f.digest)); err == nil {
		return f.verifyStored(stored)
	}
	var err error
	if f.file, err = c.root.OpenFile(partialName(f.digest), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return fmt.Errorf("%w: %w", errStore, err)
	}
	if err := f.takeUp(); err != nil {
		return err
	}
	f.update(func() {
		f.planning = true
		f.plan()
	})
	return c.hash(f)
}

// takeStored makes the fill one of a blob that is on disk and only has to be
// verified: its readers get it at once, but for the last byte.
func (f *fill) takeStored(file *os.File) error {
	f.file, f.stored = file, true
	fi, err := file.Stat()
	if err != nil {
		return fmt.Errorf("%w: %w", errStore, err)
	}
	f.info = fi
	f.update(func() {
		f.answered, f.size, f.have = true, fi.Size(), extents{}.add(extent{0, fi.Size()})
	})
	return nil
}

// verifyStored takes a blob that is on disk and hashes it, again if it was
// changed meanwhile: what the hash is right for is what readers have.
func (f *fill) verifyStored(file *os.File) error {
	if err := f.takeStored(file); err != nil {
		return err
	}
	for before := stampOf(f.info); ; {
		if err := f.cache.hash(f); err != nil {
			return err
		}
		fi, err := file.Stat()
		if err != nil {
			return fmt.Errorf("%w: %w", errStore, err)
		}
		if fi.Size() != f.info.Size() {
			return fmt.Errorf("%w: cut or grown", errStore)
		}
		if stampOf(fi) == before {
			return nil
		}
		before = stampOf(fi)
	}
}

// takeUp finds out what an earlier fill has left in the file.
func (f *fill) takeUp() error {
	fi, err := f.file.Stat()
	if err != nil {
		return fmt.Errorf("%w: %w", errStore, err)
	}
	f.info = fi
	left, err := f.cache.readExtents(f.digest, fi.Size())
	kept := err == nil
	switch {
	case errors.Is(err, fs.ErrNotExist):
		left = partialExtents{Size: -1, Extents: extents{}.add(extent{0, fi.Size()})}
	case errors.Is(err, errExtents): // what is in the file can't be known
		left, kept = partialExtents{Size: -1}, true
		if err := f.file.Truncate(0); err != nil {
			return fmt.Errorf("%w: %w", errStore, err)
		}
	case err != nil:
		return fmt.Errorf("%w: %w", errStore, err)
	}
	f.mu.Lock()
	f.size, f.have, f.scattered = left.Size, left.Extents, kept
	n := left.Extents.bytes()
	f.arrived, f.taken, f.room = n, n, n
	f.mu.Unlock()
	f.cache.holdAtLeast(f, n)
	return nil
}

// readExtents reads what is in the partial file of d, which is of the given size.
// The error is fs.ErrNotExist if that is just a beginning.
func (c *Cache) readExtents(d digest.Digest, size int64) (partialExtents, error) {
	data, err := c.root.ReadFile(partialName(d) + extentsSuffix)
	if err != nil {
		return partialExtents{}, err
	}
	var left partialExtents
	if json.Unmarshal(data, &left) != nil || !left.usable(size) {
		return partialExtents{}, errExtents
	}
	return left, nil
}

// save writes the extents beside the file, if the file's length does not say as
// much. A crash can't leave extents that are not in the file: they were written
// before. (Power may fail and take what was written; the digest tells.)
func (f *fill) save() error {
	f.saving.Lock()
	defer f.saving.Unlock()
	f.mu.Lock()
	if !f.scattered {
		f.mu.Unlock()
		return nil
	}
	data, err := json.Marshal(partialExtents{Size: f.size, Extents: f.have})
	before := f.unsaved
	f.mu.Unlock()
	if err != nil {
		return err
	}
	name := partialName(f.digest) + extentsSuffix
	if err := f.cache.root.WriteFile(name+"~", data, 0o600); err != nil {
		return err
	}
	if err := f.cache.root.Rename(name+"~", name); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.unsaved = max(f.unsaved-before, 0) // others went on meanwhile
	return nil
}

// hash reads the file behind the run of bytes that grows from its start, beside
// the fetchers and never in their way, and says ErrDigest if all of it is not
// what the digest promises.
func (c *Cache) hash(f *fill) error {
	buf := c.bufs.Get().(*[]byte)
	defer c.bufs.Put(buf)
	verifier := f.digest.Verifier()
	for offset := int64(0); ; {
		run, complete, err := f.grown(offset)
		if err != nil && verifier.Verified() && f.endsAt(offset) {
			return nil
		}
		if err != nil {
			return err
		}
		for offset < run {
			n, err := f.file.ReadAt((*buf)[:min(int64(len(*buf)), run-offset)], offset)
			if n == 0 {
				return fmt.Errorf("%w: %w", errStore, cutOff(err))
			}
			_, _ = verifier.Write((*buf)[:n])
			offset += int64(n)
		}
		if complete {
			break
		}
	}
	if !verifier.Verified() {
		return ErrDigest
	}
	return nil
}

// endsAt makes offset the blob's size if nothing has arrived behind it. All of
// the blob had arrived before, and nobody says so: this is how one whose commit
// was interrupted needs no upstream.
func (f *fill) endsAt(offset int64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.have.end() > offset {
		return false // readers may have had it
	}
	f.size = offset
	return true
}

// grown waits until the run from the file's start is longer than offset, or
// everything has arrived, or nothing more will.
func (f *fill) grown(offset int64) (run int64, complete bool, err error) {
	for {
		f.mu.Lock()
		run, complete, err, changed := f.have.run(0), f.complete(), f.givenUp, f.changed
		// What an earlier fill has left may turn out not to be of this blob.
		settled := f.answered || complete || err != nil
		f.mu.Unlock()
		switch {
		case run > offset && settled || complete:
			return run, complete, nil
		case err != nil:
			return 0, false, err
		}
		select {
		case <-changed:
		case <-f.ctx.Done():
			return 0, false, context.Cause(f.ctx)
		}
	}
}
