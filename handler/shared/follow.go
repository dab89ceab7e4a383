package shared

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"larder/handler/shared/store"
)

// firstByte is how long a fill that has nothing yet waits for another node: clients
// give up after 30 s, and upstream needs some of that.
const firstByte = 15 * time.Second

// progress is how far another node has come with a blob.
type progress struct {
	began       time.Time // when it was first followed
	moved       time.Time // when it was last seen to have more than before
	parts, have int64
	looks       int // since then
}

// note takes note of what a lease says.
func (p *progress) note(r record) {
	now := time.Now()
	if p.began.IsZero() {
		p.began, p.moved = now, now
	}
	if r.Parts > p.parts || r.Have > p.have {
		p.moved = now
	}
	if p.looks++; r.Parts > p.parts { // of bytes that are not there yet it is enough to hear now and then
		p.looks = 0
	}
	p.parts, p.have = r.Parts, r.Have
}

// within has do ask the store, for no longer than it may cost the fill. If it fails,
// what was waited for since began was in vain.
func (f *fill) within(ctx context.Context, began time.Time, do func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, f.left(), errSlow)
	defer cancel()
	err := do(ctx)
	if err != nil && !isBusy(err) {
		f.spend(began, 0)
	}
	return err
}

// await waits until there is something new to know of who fetches the blob. Of those
// who wait, one looks.
func (f *fill) await(ctx context.Context) error {
	f.mu.Lock()
	looked, mine, looks := f.looked, !f.looking, f.progress.looks
	f.looking = true
	f.mu.Unlock()
	if !mine {
		select {
		case <-looked:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	began := time.Now()
	err := f.tier.pause(ctx, looks)
	if err == nil {
		f.conclude(ctx, f.within(ctx, began, f.look))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.looking = false
	close(f.looked)
	f.looked = make(chan struct{})
	return err
}

// look looks what has become of the lease.
func (f *fill) look(ctx context.Context) error {
	found, err := false, f.watch.look(ctx)
	if err == nil && !f.watch.there { // who had it has brought the blob, or has gone
		found, err = f.isThere(ctx)
	}
	switch {
	case err != nil || found:
		return err
	case f.watch.isFree():
		return f.lease(ctx)
	default:
		f.follow()
		return nil
	}
}

// lease takes the lease, if it is free, or follows who has it.
func (f *fill) lease(ctx context.Context) error {
	l, err := f.watch.claim(ctx)
	found := false
	if err == nil { // whoever had it until now may have brought the blob
		if found, err = f.isThere(ctx); found || err != nil {
			l.release()
		}
	}
	switch {
	case errors.Is(err, errHeld):
		f.follow()
	case isBusy(err), errors.Is(err, errSlow):
		return err
	case err != nil:
		f.setWay(direct)
		return err
	case !found:
		f.hold(l)
	}
	return nil
}

// conclude decides what it means that the store has, or has not, said who fetches the
// blob.
func (f *fill) conclude(ctx context.Context, err error) {
	switch {
	case err == nil:
		f.answered()
	case errors.Is(err, errOut), errors.Is(err, ErrVersion), f.left() <= 0:
		f.setWay(direct)
	case isBusy(err):
		f.setWay(followed)
		f.orElse(ctx, err)
	default: // once is nothing
		f.setWay(followed)
	}
}

// isThere looks whether the blob is in the tier as a whole by now, and takes it then.
// The error is that the store can't say for now; if it can't at all, it is not there.
func (f *fill) isThere(ctx context.Context) (found bool, err error) {
	info, err := f.tier.head(ctx, blobKey(f.digest))
	if isBusy(err) {
		return false, err
	}
	if err != nil || !f.isGood(info) {
		return false, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.size = info.Size
	return f.take(stored), nil
}

// hold has this node fetch the blob for all.
func (f *fill) hold(l *lease) {
	p := newPublisher(f.tier, f.digest, l, f.proves)
	f.mu.Lock()
	begun := f.agree(l.record) && !f.over && f.take(held)
	if begun {
		f.publisher, f.parts = p, l.record.Parts
	}
	f.mu.Unlock()
	if !begun || !f.tier.start(p.run) {
		p.cancel(nil)
		l.release()
		f.setWay(direct)
	}
}

// proves reports whether the parts that another node has left are right if the blob,
// of that size, is: all of them were read for it.
func (f *fill) proves(size int64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.read >= min(f.parts*f.tier.sizes.part, size)
}

// agree takes the size from a lease, and reports whether it can be that of the blob.
// Needs mu.
func (f *fill) agree(r record) bool {
	if f.size < 0 {
		f.size = r.Size
	}
	return r.Size < 0 || r.Size == f.size
}

// follow goes on with what the one who has the lease has brought, unless that takes
// too long.
func (f *fill) follow() {
	if f.goesOn(f.watch.record) {
		return
	}
	f.setWay(direct)
	f.tier.log.Info("another node fetches a blob too slowly; fetching it too",
		zap.Stringer("digest", f.digest), zap.Int64("parts", f.watch.record.Parts))
}

// goesOn notes how far another node is, and reports whether that is good enough.
func (f *fill) goesOn(r record) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.way == undecided {
		f.tier.count.followed.Add(1)
	}
	if !f.take(followed) {
		return true // no more
	}
	f.parts = max(f.parts, r.Parts)
	p := &f.progress
	p.note(r)
	if !f.used && f.pieces == 0 && time.Since(p.began) >= firstByte {
		f.owed = true
	}
	return f.agree(r) && time.Since(p.moved) < f.tier.cfg.Wait
}

// partGone decides what it means that a part could not be opened. That it is not there
// is to be expected: parts go when the blob is complete.
func (f *fill) partGone(ctx context.Context, err error) {
	found := false
	if errors.Is(err, store.ErrNotExist) {
		busy := f.within(ctx, time.Now(), func(ctx context.Context) (err error) {
			found, err = f.isThere(ctx)
			return err
		})
		if busy != nil {
			err = busy
		}
	}
	if !found {
		f.orElse(ctx, err)
	}
}

// orElse has the fill wait if the store can't do something for now, or go on from
// upstream: for a piece if there is more to be had from the store, else to the end.
func (f *fill) orElse(ctx context.Context, err error) {
	switch {
	case err == nil, isBusy(err) && f.later(ctx):
	case f.isWorthwhile(err):
		f.bridge()
	default:
		f.setWay(direct)
	}
}

// isWorthwhile reports whether to go on with a store after an error: it has much to do,
// and has not kept the fill waiting for too long.
func (f *fill) isWorthwhile(err error) bool {
	f.mu.Lock()
	tired := f.pieces >= mostLate
	f.mu.Unlock()
	return !tired && (isBusy(err) || errors.Is(err, errSlow) && f.left() > 0)
}

// bridge has the next piece come from upstream, and the store asked for what follows.
func (f *fill) bridge() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.owed = true
}

// piece is how much is to come from upstream now, before the store is asked again: at
// first what the store would have to bring in a second. Needs mu.
func (f *fill) piece() (n int64) {
	if !f.owed || f.way == direct {
		return 0
	}
	f.owed = false
	n = leastRate << f.pieces
	f.pieces++
	return n
}

// answered notes that the store has said something else than that it has too much to
// do.
func (f *fill) answered() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.busy = time.Time{}
}

// later reports whether to ask a store again that has too much to do: for as long as
// another node is waited for.
func (f *fill) later(ctx context.Context) (again bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.busy.IsZero() {
		f.busy = time.Now()
	}
	patience := f.tier.cfg.Wait
	if !f.used {
		patience = min(patience, firstByte)
	}
	return time.Since(f.busy) < patience && ctx.Err() == nil
}
