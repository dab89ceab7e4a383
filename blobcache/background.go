package blobcache

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
)

// ErrUnkept says that a blob is not fetched because it could not be kept.
var ErrUnkept = errors.New("blob can't be kept")

// Fill has the blob d, which must be valid, fetched and kept though nobody reads
// it, and waits until it is. Outcome is Hit if it was there: a large one is not
// verified then, which its first reader sees to; Join if somebody else wants it as well. It
// takes one connection until a reader comes. arrived, unless it is nil, is told how
// much of the blob is there, and how large it is if that is known (-1). When ctx
// ends, so does the fetching, unless somebody reads; what has arrived is left for
// resuming.
func (c *Cache) Fill(ctx context.Context, d digest.Digest, src Source, arrived func(have, size int64)) (Outcome, error) {
	src.background = true
	outcome, complete := Hit, false
	for !c.has(d) {
		if complete || c.isPassed(d) {
			return Pass, ErrUnkept
		}
		f, joined, err := c.joinOrStart(d, src)
		if err != nil {
			return outcome, err
		}
		if f == nil {
			continue // it was completed just now
		}
		if joined != parking {
			err = f.awaitAll(ctx, arrived)
			if outcome = Miss; !f.isUnread() {
				outcome = Join
			}
			c.leave(f, 0)
		}
		switch {
		case unkept(err):
			return Pass, fmt.Errorf("%w: %w", ErrUnkept, err)
		case err != nil && !errors.Is(err, errDamaged):
			return outcome, err
		}
		complete = err == nil && joined != parking
		select {
		case <-f.gone: // what is kept of it is known now
		case <-ctx.Done():
			return outcome, context.Cause(ctx)
		}
	}
	return outcome, nil
}

// Read is how many of the fills somebody reads.
func (c *Cache) Read() int {
	n := 0
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.fills {
		if !f.removing && !f.isUnread() {
			n++
		}
	}
	return n
}

// has reports whether the blob is on disk and nothing is done with it.
func (c *Cache) has(d digest.Digest) bool {
	c.mu.Lock()
	e, busy := c.entries.Get(d), c.fills[d] != nil
	partial, size := e != nil && e.partial(), int64(-1)
	if e != nil {
		size = e.size
	}
	c.mu.Unlock()
	if busy || partial {
		return false
	}
	found, ok := c.sizeOnDisk(d) // it may not have been found yet, or be gone
	if ok = ok && (size < 0 || size == found); !ok {
		c.Doubt(d) // or else nobody would begin a fill
	}
	return ok
}

// isPassed reports whether the blob is on its way without being kept.
func (c *Cache) isPassed(d digest.Digest) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.streams[d]) > 0
}

// awaitAll waits for all of the blob.
func (f *fill) awaitAll(ctx context.Context, arrived func(have, size int64)) error {
	w := newWant(0, -1)
	defer f.drop(w)
	for {
		n, err := f.wait(ctx, w)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		f.mu.Lock()
		w.pos += n
		have, size := w.pos, f.size
		f.mu.Unlock()
		if arrived != nil {
			arrived(have, size)
		}
	}
}

// isRead notes that somebody reads what was begun for nobody.
func (f *fill) isRead() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.unread = false
}

func (f *fill) isUnread() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.unread
}
