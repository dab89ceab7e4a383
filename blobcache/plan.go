package blobcache

import (
	"math"
	"time"
)

const (
	// segment is what one fetcher of a large blob brings. At 20 ms a request
	// and 40 MB/s, asking costs a tenth of the time; and when four are under
	// way, a reader is never far behind what is on disk.
	segment = 8 << 20

	// beginning is what the first fetch of a whole blob asks for. A blob that
	// is not larger comes in one request, as from any registry's client; a
	// larger one tells its size without a byte too many being sent.
	beginning = 32 << 20

	// granule is what parts are rounded to, so that a blob read here and there
	// does not fall into crumbs.
	granule = 32 << 10

	// firstPart is how much is fetched at once for a reader that began in the
	// middle and has not said where it ends; it grows as the reader goes on.
	firstPart = 1 << 20

	// plenty is how many bytes a second are enough for one connection: as more
	// than a gigabit link carries come, more connections would only cost.
	plenty = 200_000_000

	// near is how far a reader may be ahead of a fetcher that will get there
	// anyway. Farther ahead, it gets a fetcher of its own.
	near = 1 << 20
)

// sizes are the constants above, and four more. Tests make them smaller, so that
// small blobs are planned for as large ones are, and plenty 0: nothing is.
type sizes struct {
	segment, beginning, plenty, granule, firstPart, near, saveEvery int64
	saveAtMost                                                      time.Duration
	whole, window                                                   int64
}

func usualSizes() sizes {
	return sizes{segment, beginning, plenty, granule, firstPart, near, saveEvery, saveAtMost, whole, window}
}

// claim is a part of the blob that a fetcher brings: pos moves, end is where it
// stops. The end may come nearer when another fetcher takes over the rest, and
// then asked, what upstream was asked for, is farther.
type claim struct{ from, pos, end, asked int64 }

// plan starts fetchers for what is wanted, has not arrived, and is not on its
// way. Needs mu.
func (f *fill) plan() {
	if !f.planning || f.ctx.Err() != nil || f.givenUp != nil || f.complete() {
		return
	}
	if f.size >= 0 && f.size <= f.cache.sizes.firstPart {
		f.wantAll = true
	}
	for w := range f.wants {
		if w.began == 0 && w.end >= f.limit() {
			f.wantAll = true
		}
	}
	if f.inOne {
		if len(f.claims) == 0 && f.anyMissing() {
			f.start(0, math.MaxInt64)
		}
		return
	}
	for w := range f.wants {
		pos, end := w.pos, w.end
		if !f.answered { // then it waits for that, however much is there
			pos = f.have.run(pos)
		}
		if f.size < 0 {
			end = max(end, pos+1)
		}
		f.planFor(pos, min(end, pos+f.ahead(w)))
	}
	if f.wantAll {
		f.planFor(f.have.run(0), math.MaxInt64)
		f.planAhead()
	}
}

// ahead is how much may be fetched for a reader beyond where it is.
func (f *fill) ahead(w *want) int64 {
	if w.began == 0 || w.end < math.MaxInt64 {
		return f.segment()
	}
	return min(max(f.cache.sizes.firstPart, w.read), f.cache.sizes.segment)
}

// segment is what one fetcher brings. One that is alone brings more. Needs mu.
func (f *fill) segment() int64 {
	if f.wantAll && f.plentiful() {
		return f.cache.sizes.beginning
	}
	return f.cache.sizes.segment
}

// plentiful reports whether the bytes have come so fast up to now that one
// connection does for them. Needs mu.
func (f *fill) plentiful() bool {
	enough := f.cache.sizes.plenty
	return enough > 0 && f.answered && float64(f.arrived-f.left) >= float64(enough)*time.Since(f.began).Seconds()
}

// anyMissing reports whether anybody wants what is not there, or the blob's
// size, which comes with any answer. Needs mu.
func (f *fill) anyMissing() bool {
	if f.wantAll {
		return true
	}
	for w := range f.wants {
		if !f.answered && f.size < 0 || f.have.run(w.pos) < min(w.end, f.limit()) {
			return true
		}
	}
	return false
}

// planFor sees to it that somebody brings the first byte that is missing
// between pos and end. Needs mu.
func (f *fill) planFor(pos, end int64) {
	at := f.have.run(pos)
	if end = min(end, f.limit()); at >= end {
		return
	}
	if !f.answered && len(f.claims) > 0 {
		return // one question is enough to find out whether there is a blob
	}
	for c := range f.claims {
		if c.pos <= at && at < c.end {
			if at-c.pos > f.cache.sizes.near && f.size >= 0 {
				stop := c.end
				c.end = at
				f.start(at, stop)
			}
			return
		}
	}
	from := max(at-at%f.cache.sizes.granule, f.have.before(at+1), f.claimed(at))
	f.start(from, f.stop(from, end))
}

// planAhead lets several fetchers work at what follows, if that is much. Needs
// mu.
func (f *fill) planAhead() {
	if !f.answered || f.size < f.cache.sizes.beginning {
		return
	}
	parallel := f.parallel
	if f.unread {
		parallel = 1
	}
	for pos := f.have.run(0); len(f.claims) == 0 || len(f.claims) < parallel && !f.plentiful(); {
		pos = f.free(pos)
		if pos >= f.size {
			return
		}
		f.start(pos, f.stop(pos, f.size))
	}
}

// free is the first byte at or behind pos that has not arrived and is not on
// its way. Needs mu.
func (f *fill) free(pos int64) int64 {
	for moved := true; moved; {
		moved = false
		if run := f.have.run(pos); run > pos {
			pos, moved = run, true
		}
		for c := range f.claims {
			if c.pos <= pos && pos < c.end {
				pos, moved = c.end, true
			}
		}
	}
	return pos
}

// claimed is the end of the last claim that ends at or before at. Needs mu.
func (f *fill) claimed(at int64) (end int64) {
	for c := range f.claims {
		if c.end <= at {
			end = max(end, c.end)
		}
	}
	return end
}

// stop is where a fetch from pos should stop: at end or so, and before what is
// there or on its way. Needs mu.
func (f *fill) stop(pos, end int64) int64 {
	switch {
	case f.wantAll && f.cache.cfg.Connections <= 1:
		end = math.MaxInt64
	case f.wantAll && !f.answered:
		end = pos + f.cache.sizes.beginning
	case end-pos > f.segment():
		end = pos + f.segment()
	default:
		end = (end + f.cache.sizes.granule - 1) / f.cache.sizes.granule * f.cache.sizes.granule
	}
	end = min(end, f.limit(), f.have.hole(pos).End)
	for c := range f.claims {
		if c.pos >= pos && c.pos < c.end { // others are done and about to go
			end = min(end, c.pos)
		}
	}
	return end
}

// start starts a fetcher. Needs mu.
func (f *fill) start(pos, end int64) {
	c := &claim{from: pos, pos: pos, end: end}
	f.claims[c] = true
	if pos > f.have.run(0) {
		f.scattered = true
	}
	f.fetchers.Go(func() { f.bring(c) }) // ends with its segment, or f.ctx
}
