package blobcache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"go.uber.org/zap"

	"larder/blobcache/durable"
)

const (
	// chunk is the largest piece that is read, written and hashed at once:
	// large enough to make system calls rare, small enough to stay in cache.
	chunk = 256 << 10

	// saveEvery is how much may arrive before the extents are written down, and
	// saveAtMost how often that is done: a crash costs at most as much as arrives
	// meanwhile.
	saveEvery  = 4 << 20
	saveAtMost = 100 * time.Millisecond

	// resumeTries bounds how often in a row a fetch may fail without a byte
	// having arrived; the pauses between grow from resumePause.
	resumeTries = 4
	resumePause = 250 * time.Millisecond
)

var (
	// errSize says that upstream contradicts itself.
	errSize = fmt.Errorf("%w: its size changed", ErrDigest)

	// errStore says that the disk, not upstream, is at fault.
	errStore = errors.New("blob can't be written")
)

// bring is a fetcher's goroutine: it fetches its claim, and decides what a
// failure means.
func (f *fill) bring(c *claim) {
	err := f.fetchClaim(c)
	if err != nil && f.ctx.Err() == nil && !errors.Is(err, ErrNoRange) && f.mayTryAgain(c, err) {
		f.cache.count.resumed.Add(1)
		f.cache.log.Warn("blob broke off; going on", zap.Stringer("digest", f.digest), zap.Int64("offset", c.pos), zap.Error(err))
		select {
		case <-time.After(resumePause << f.failuresInARow()):
		case <-f.ctx.Done():
		}
		err = nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.claims, c) // what is missing of it is planned for again
	switch {
	case f.ctx.Err() != nil:
	case errors.Is(err, ErrNoRange) && (c.from > 0 || c.asked < math.MaxInt64): // others may have found out before
		f.inOne = true
	case err != nil:
		f.givenUp = err
	}
	f.plan()
	f.wake()
}

// mayTryAgain notes a failure and reports whether it is one to go on after. Who
// has been promised nothing yet is better served with a clear error.
func (f *fill) mayTryAgain(c *claim, err error) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.answered || errors.Is(err, errSize) || errors.Is(err, ErrRefused) || unkept(err) {
		return false
	}
	if c.pos > c.from {
		f.failures = 0
	}
	f.failures++
	f.parallel = 1 // more connections than upstream likes, perhaps
	return f.failures <= resumeTries
}

func (f *fill) failuresInARow() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.failures
}

// fetchClaim opens the body of a claim and copies it.
func (f *fill) fetchClaim(c *claim) error {
	f.mu.Lock()
	pos, length := c.pos, c.end-c.pos
	if c.asked = c.end; c.end >= f.limit() {
		length, c.asked = -1, math.MaxInt64
	}
	f.mu.Unlock()
	// The body is not the fill's alone: a stream may go on with it.
	ctx, cancel := context.WithCancelCause(f.cache.ctx)
	release := context.AfterFunc(f.ctx, func() { cancel(context.Cause(f.ctx)) })
	body, size, err := f.source.Fetch(ctx, pos, length)
	if err != nil {
		release()
		cancel(nil)
		return err
	}
	owned := &ownedBody{ReadCloser: body, cancel: cancel}
	if err = f.answer(size); err == nil {
		err = f.copyBody(c, owned)
	}
	release()
	if !owned.left {
		owned.Close()
	}
	return err
}

// ownedBody is a body and the end of its context.
type ownedBody struct {
	io.ReadCloser
	cancel context.CancelCauseFunc
	left   bool // to somebody who will close it
}

// Close implements io.Closer.
func (b *ownedBody) Close() error {
	defer b.cancel(nil)
	return b.ReadCloser.Close()
}

// answer takes note of what a fetch says about the whole blob.
func (f *fill) answer(size int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case size >= 0 && f.size >= 0 && size != f.size:
		return fmt.Errorf("%w: %d, was %d", errSize, size, f.size)
	case size >= 0 && f.size < 0:
		if f.have.end() > size && f.answered {
			return fmt.Errorf("%w: %d, but there is more", errSize, size)
		}
		if f.have.end() > size {
			// What is in the file can't be the beginning of this blob. Nobody
			// has been shown any of it, as nothing was known of the blob.
			f.have = nil
			if err := f.file.Truncate(0); err != nil {
				return fmt.Errorf("%w: %w", errStore, err)
			}
		}
		f.setSize(size)
	}
	if !f.answered {
		f.began, f.left = time.Now(), f.arrived
	}
	f.answered = true
	f.plan() // there may be more to do than for one fetcher
	f.wake()
	return nil
}

// setSize notes how large the blob is. A small one is held back until its digest
// is right, and needs no file before. Needs mu.
func (f *fill) setSize(size int64) {
	f.size = size
	if f.file == nil && f.held == nil && size <= f.cache.sizes.whole {
		f.held = make([]byte, size)
	}
}

// small is all of a blob that is held. It may be less than upstream has promised.
func (f *fill) small() []byte { return f.held[:f.size] }

// copyBody writes a body to the file, from c.pos on, until its end or that of
// the claim. A body that is longer than was asked for comes from an upstream
// that knows no parts: it is the whole blob, and used as that. If it can't be
// kept, the body is left to a stream.
func (f *fill) copyBody(c *claim, body *ownedBody) error {
	buf := f.cache.bufs.Get().(*[]byte)
	defer f.cache.bufs.Put(buf)
	for pos := c.pos; ; {
		n, err := body.Read(*buf)
		if n > 0 {
			f.cache.count.fetched.Add(int64(n))
			more, err := f.put(c, pos, (*buf)[:n])
			if unkept(err) {
				f.leaveBody(c, pos, (*buf)[:n], body)
				return err
			}
			if err != nil || !more {
				return err
			}
			pos += int64(n)
		}
		switch {
		case err == nil:
		case err != io.EOF: // upstream's errors may wrap one
			return err
		default:
			return f.ended(c, pos)
		}
	}
}

// put writes what has arrived for pos. more is false if the claim is fulfilled
// and what follows is not needed from here.
func (f *fill) put(c *claim, pos int64, p []byte) (more bool, err error) {
	f.mu.Lock()
	end := pos + int64(len(p))
	if f.size >= 0 && end > f.size {
		f.mu.Unlock()
		return false, fmt.Errorf("%w: more than the promised %d bytes", errSize, f.size)
	}
	if end > c.asked && c.from == 0 {
		f.inOne, c.end, c.asked = true, math.MaxInt64, math.MaxInt64
	}
	p = p[:max(min(end, c.end)-pos, 0)]
	f.taken += int64(len(p))
	room := f.needed()
	save := f.scattered && f.held == nil && (f.unsaved < 0 || f.unsaved >= f.cache.sizes.saveEvery && time.Since(f.saved) >= f.cache.sizes.saveAtMost)
	if save {
		f.unsaved = min(f.unsaved, 0) // one fetcher is enough
	}
	f.mu.Unlock()
	if err := f.makeRoom(room); err != nil {
		return false, err
	}
	if save { // at the latest before the first byte that the file's length would not tell of
		if err := f.save(); err != nil {
			return false, fmt.Errorf("%w: %w", errStore, err)
		}
	}
	if err := f.cache.anyhow(func() error { return f.write(p, pos) }); err != nil {
		return false, fmt.Errorf("%w: %w", errStore, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	c.pos = pos + int64(len(p))
	if len(p) > 0 {
		f.failures = 0
		if f.unsaved >= 0 {
			f.unsaved += int64(len(p))
		}
		f.wake()
	}
	// What was asked for may end where the claim does. Then the body's own end is
	// still to be read: a connection is used again only after that.
	return c.pos == end && (end < c.end || end == c.asked || end == f.size), nil
}

// needed is how many bytes the fill should have room for, 0 if it has. One that
// is wanted as a whole is as soon as its size is known; another grows by parts.
// Needs mu.
func (f *fill) needed() int64 {
	taken := min(f.taken, f.limit()) // what arrives twice is only written once
	switch {
	case taken <= f.room:
		return 0
	case f.wantAll && f.size >= 0:
		return f.size
	default:
		return min(taken+f.cache.sizes.segment, f.limit())
	}
}

// makeRoom reserves n bytes in all.
func (f *fill) makeRoom(n int64) error {
	if n == 0 {
		return nil
	}
	if err := f.cache.reserve(f, n); err != nil {
		return err
	}
	f.mu.Lock()
	first := f.room == 0
	f.room = max(f.room, n)
	f.mu.Unlock()
	if first && f.account != nil {
		f.cache.recordOwner(f.digest, f.account)
	}
	return nil
}

// anyhow calls write again, evicting blobs, while the disk is full.
func (c *Cache) anyhow(write func() error) error {
	for {
		err := write()
		if !diskFull(err) {
			return err
		}
		if _, ok := c.evictOne(&c.due); !ok {
			return err
		}
	}
}

// write writes those bytes of p, which are for pos, that have not arrived yet.
// What has may have been hashed already, and must stay what it was.
func (f *fill) write(p []byte, pos int64) error {
	f.writing.Lock()
	defer f.writing.Unlock()
	if err := f.place(); err != nil {
		return err
	}
	for from, end := pos, pos+int64(len(p)); ; {
		f.mu.Lock()
		hole := f.have.hole(from)
		f.mu.Unlock()
		if hole.Start >= end {
			return nil
		}
		hole.End = min(hole.End, end)
		if err := f.writePiece(p[hole.Start-pos:hole.End-pos], hole.Start); err != nil {
			return err
		}
		f.mu.Lock()
		f.have = f.have.add(hole)
		f.arrived += hole.End - hole.Start
		f.mu.Unlock()
		f.cache.arrived.Add(hole.End - hole.Start)
		from = hole.End
	}
}

// place makes the file, unless there is one or the blob is held: from now on it is
// the one or the other.
func (f *fill) place() error {
	f.mu.Lock()
	placed := f.file != nil || f.held != nil
	f.mu.Unlock()
	if placed {
		return nil
	}
	file, err := durable.CreateTemp(f.cache.root, partialName(f.digest))
	if err != nil {
		return err
	}
	info, err := file.Stat()
	if err != nil {
		file.Close()
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.held != nil { // another fetcher has found out meanwhile that it is small
		file.Close()
		return nil
	}
	f.file, f.info = file, info
	return nil
}

func (f *fill) writePiece(p []byte, offset int64) error {
	if f.held != nil {
		copy(f.held[offset:], p)
		return nil
	}
	began := time.Now()
	_, err := f.cache.writeAt(f.file, p, offset)
	f.cache.observe("write", began)
	return err
}

// ended decides what the end of a body at pos means.
func (f *fill) ended(c *claim, pos int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.size < 0 && pos == c.asked: // there may be more
		return nil
	case f.size < 0 && f.have.end() > pos:
		return fmt.Errorf("%w: the end is at %d, but there is more", errSize, pos)
	case f.size < 0:
		f.setSize(pos) // nobody said it, but this was all of it
		f.wake()
		return nil
	case pos < min(c.end, f.size):
		return io.ErrUnexpectedEOF
	default:
		return nil
	}
}
