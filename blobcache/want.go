package blobcache

import (
	"context"
	"io"
	"math"
)

// want is what one reader needs next.
type want struct {
	pos, end int64 // pos moves as the reader does
	began    int64 // where the reader began after its last Seek
	read     int64 // how much it has had since
}

func newWant(offset, length int64) *want {
	w := &want{pos: offset, end: math.MaxInt64, began: offset}
	if length >= 0 && length <= math.MaxInt64-offset {
		w.end = offset + max(length, 1) // nothing of a blob is had when there is none
	}
	return w
}

// visible is how many bytes the reader may have, and whether pos is the end of
// the blob. Needs mu.
func (f *fill) visible(w *want) (available int64, end bool) {
	run := f.have.run(w.pos)
	switch {
	case f.verified:
		return max(run-w.pos, 0), w.pos >= f.size
	case !f.answered && (f.size < 0 || run < min(w.end, f.size)):
		// What an earlier fill has left is shown once it is known that the rest
		// can be had: until then, an error can still be a clear one.
		return 0, false
	case f.size < 0:
		run--
	case f.size <= f.cache.sizes.whole:
		return 0, false
	case run == f.size && w.began == 0:
		// The last byte stays invisible until the digest is right, so that no
		// reader ever holds a complete wrong blob. Who asks for a part has to
		// check for himself what he makes of it.
		run--
	}
	return max(run-w.pos, 0), f.size > f.cache.sizes.whole && w.pos >= f.size && w.began > 0
}

// wait waits until the byte at w.pos can be read, and returns how many can be
// from there. At the end of the blob the error is io.EOF.
func (f *fill) wait(ctx context.Context, w *want) (available int64, err error) {
	for {
		f.mu.Lock()
		f.wants[w] = true
		available, end := f.visible(w)
		if available > 0 || end || f.err != nil {
			err := f.err
			f.mu.Unlock()
			return available, waited(available, end, err)
		}
		f.plan()
		changed := f.changed
		f.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done(): // this reader left; the others still get theirs
			return 0, context.Cause(ctx)
		}
	}
}

// waited is the error of a wait that is over.
func waited(available int64, end bool, err error) error {
	switch {
	case available > 0:
		return nil
	case end:
		return io.EOF
	default:
		return err
	}
}

// drop takes back what a reader wanted.
func (f *fill) drop(w *want) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.wants, w)
}
