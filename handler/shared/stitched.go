package shared

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"larder/blobcache"
	"larder/handler/shared/store"
)

// stitched is a part of a blob, from wherever its next bytes are to be had: objects of
// the tier as they appear, or upstream. When the tier fails, it goes on from upstream at
// the very byte: its reader sees a pause, no error.
type stitched struct {
	fill     *fill
	ctx      context.Context // that of the Fetch, which ends with the body
	pos, end int64
	source   *source // nil: to be opened
	begun    bool    // it was given to its reader
}

// source is where some bytes come from.
type source struct {
	io.ReadCloser
	end      int64 // where it stops
	upstream bool
	size     int64 // of the blob, as upstream says
}

// Read implements io.Reader.
func (b *stitched) Read(p []byte) (int, error) {
	for {
		if b.isAtEnd() {
			return 0, io.EOF
		}
		if b.source == nil {
			if err := b.open(); err != nil {
				return 0, err
			}
			continue
		}
		n, err := b.source.Read(p[:min(int64(len(p)), b.source.end-b.pos)])
		b.pos += int64(n)
		switch {
		case b.pos >= b.source.end && b.pos < b.end:
			b.Close()
		case b.source.upstream && err != nil:
			return n, err
		case err != nil || b.pos >= b.source.end:
			if b.pos < b.source.end { // what else is there of it is no better
				b.fill.orElse(b.ctx, err)
			}
			b.Close()
		}
		if n > 0 || len(p) == 0 {
			return n, nil
		}
	}
}

func (b *stitched) isAtEnd() bool {
	size := b.fill.knownSize()
	return b.pos >= b.end || size >= 0 && b.pos >= size
}

// Close implements io.Closer.
func (b *stitched) Close() error {
	if b.source == nil {
		return nil
	}
	err := b.source.Close()
	b.source = nil
	return err
}

// open opens what comes next, and waits for it if it is about to come. It opens
// nothing at the end of the blob.
func (b *stitched) open() (err error) {
	f := b.fill
	for b.source == nil && err == nil && !b.isAtEnd() {
		f.mu.Lock()
		way, parts, piece := f.way, f.parts, f.piece()
		f.mu.Unlock()
		switch {
		case piece > 0:
			err = b.openUpstream(b.pos + min(piece, b.end-b.pos))
		case way == stored:
			var failed error
			b.source, failed = f.openObject(b.ctx, b.pos, b.end)
			f.orElse(b.ctx, failed)
		case way != direct && b.pos < parts*f.tier.sizes.part:
			var failed error
			b.source, failed = f.openPart(b.ctx, b.pos, b.end)
			f.partGone(b.ctx, failed)
		case way == followed:
			err = f.await(b.ctx)
		default:
			err = b.openUpstream(b.end)
		}
	}
	return err
}

// openUpstream goes on from upstream, up to end.
func (b *stitched) openUpstream(end int64) error {
	length := int64(-1)
	if end < math.MaxInt64 {
		length = end - b.pos
	}
	body, size, err := b.fill.upstream(b.ctx, b.pos, length)
	if err != nil {
		if errors.Is(err, blobcache.ErrNoRange) && b.begun {
			// That is to be said when the rest is asked for, not of this body.
			err = fmt.Errorf("go on from upstream: %s", err)
		}
		return err
	}
	if want := b.fill.knownSize(); b.begun && size >= 0 && want >= 0 && size != want {
		body.Close()
		return fmt.Errorf("upstream has %d bytes, the shared store %d", size, want)
	}
	b.source = &source{ReadCloser: body, end: end, upstream: true, size: size}
	return nil
}

// openPart opens the part that pos is in.
func (f *fill) openPart(ctx context.Context, pos, end int64) (*source, error) {
	part, size := f.tier.sizes.part, f.knownSize()
	number := pos / part
	start := number * part
	stop := min(start+part, size)
	end = min(end, stop)
	src, info, err := f.openStored(ctx, partKey(f.digest, number), pos-start, end-pos)
	if err != nil {
		return nil, err
	}
	if info.Size != stop-start {
		src.Close()
		return nil, fmt.Errorf("part %d has %d bytes, want %d", number, info.Size, stop-start)
	}
	f.mu.Lock()
	f.used = true
	f.mu.Unlock()
	src.end = end
	return src, nil
}

// openStored opens an object of the tier, as long as that does not take too long.
func (f *fill) openStored(ctx context.Context, key string, offset, length int64) (*source, store.Info, error) {
	if err := f.tier.spare(ctx); err != nil {
		return nil, store.Info{}, err
	}
	left := f.left()
	if left <= 0 {
		return nil, store.Info{}, errSlow
	}
	if length > math.MaxInt64-offset-1 {
		length = -1
	}
	ctx, cancel := context.WithCancelCause(ctx)
	began := time.Now()
	content, info, err := f.tier.open(ctx, key, offset, length, left)
	if isBusy(err) {
		cancel(nil)
		return nil, info, err
	}
	f.spend(began, 0)
	f.answered()
	if err != nil {
		cancel(nil)
		return nil, info, err
	}
	f.mu.Lock()
	f.pieces = 0
	f.mu.Unlock()
	w := &watched{ReadCloser: content, fill: f, ctx: ctx, cancel: cancel}
	return &source{ReadCloser: w}, info, nil
}

// watched is an object of the tier whose reader waits no longer than the tier may cost.
type watched struct {
	io.ReadCloser
	fill   *fill
	ctx    context.Context
	cancel context.CancelCauseFunc
}

// Read implements io.Reader.
func (w *watched) Read(p []byte) (int, error) {
	began := time.Now()
	late := time.AfterFunc(w.fill.left(), func() { w.cancel(errSlow) })
	n, err := w.ReadCloser.Read(p)
	late.Stop()
	w.fill.spend(began, n)
	slow := context.Cause(w.ctx) == errSlow
	alone := slow && w.fill.tier.cost.debt() < w.fill.tier.cfg.Timeout // others get what they should
	if err != nil && err != io.EOF && !alone && (slow || w.ctx.Err() == nil) {
		w.fill.tier.failed("get", began, slow, err)
	}
	return n, err
}

// Close implements io.Closer.
func (w *watched) Close() error {
	defer w.cancel(nil)
	return w.ReadCloser.Close()
}
