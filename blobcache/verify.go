package blobcache

import (
	"context"
	"fmt"
	"io/fs"
	"os"

	"github.com/opencontainers/go-digest"
)

// fillFile has the file filled and verified. It returns nil when the file holds
// the blob.
func (c *Cache) fillFile(f *fill) error {
	if f.stuck {
		if err := c.root.RemoveAll(blobName(f.digest)); err != nil {
			return fmt.Errorf("%w: %w", errStore, err)
		}
		c.unstick(f.digest)
	}
	if stored, fi, err := c.open(blobName(f.digest)); err == nil {
		return f.verifyStored(stored, fi)
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
func (f *fill) takeStored(file *os.File, fi fs.FileInfo) {
	f.file, f.info, f.stored = file, fi, true
	f.update(func() {
		f.answered, f.size, f.have = true, fi.Size(), extents{}.add(Extent{0, fi.Size()})
	})
}

// verifyStored takes a blob that is on disk and hashes it, again if it was
// changed meanwhile: what the hash is right for is what readers have.
func (f *fill) verifyStored(file *os.File, fi fs.FileInfo) error {
	f.takeStored(file, fi)
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

// hash reads the file behind the run of bytes that grows from its start, beside
// the fetchers and never in their way, and says ErrDigest if all of it is not
// what the digest promises.
func (c *Cache) hash(f *fill) error {
	verifier := f.digest.Verifier()
	for offset := int64(0); ; {
		run, complete, err := f.grown(offset)
		if err != nil && verifier.Verified() && f.endsAt(offset) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := f.hashRun(verifier, offset, run); err != nil {
			return err
		}
		if complete {
			break
		}
		offset = run
	}
	if !verifier.Verified() {
		return ErrDigest
	}
	return nil
}

// hashRun hashes what has arrived from offset up to run.
func (f *fill) hashRun(verifier digest.Verifier, offset, run int64) error {
	if f.held != nil {
		_, _ = verifier.Write(f.held[offset:run])
		return nil
	}
	buf := f.cache.bufs.Get().(*[]byte)
	defer f.cache.bufs.Put(buf)
	for offset < run {
		n, err := f.file.ReadAt((*buf)[:min(int64(len(*buf)), run-offset)], offset)
		if n == 0 {
			return fmt.Errorf("%w: %w", errStore, cutOff(err))
		}
		_, _ = verifier.Write((*buf)[:n])
		offset += int64(n)
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
	f.setSize(offset)
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
