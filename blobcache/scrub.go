package blobcache

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"larder/blobcache/compact"
	"larder/blobcache/durable"
)

const (
	// scrubName is the file that says how far a round of scrubbing has come.
	scrubName = "scrub"

	// maxScrubState bounds what is read of it.
	maxScrubState = 4 << 10

	// scrubSaved is how often that file is written: what a restart may repeat.
	scrubSaved = time.Minute
)

// scrubState is the content of the file scrubName.
type scrubState struct {
	Began time.Time     `json:"began"` // the round
	After digest.Digest `json:"after"` // the last blob that was looked at
	Done  bool          `json:"done"`

	saved time.Time
}

// Scrub reads every blob again once in Config.ScrubInterval, evenly spread, and
// throws away what is not what it should be: disks forget. It goes on, over
// restarts too, until ctx is done. Run must be running. Without an interval it returns at once.
func (c *Cache) Scrub(ctx context.Context) error {
	if c.cfg.ScrubInterval <= 0 {
		return nil
	}
	select {
	case <-c.scanned: // before, next to nothing would be there
	case <-ctx.Done():
	}
	limit := rate.NewLimiter(rate.Inf, chunk)
	if c.cfg.ScrubRate > 0 {
		limit.SetLimit(rate.Limit(c.cfg.ScrubRate))
	}
	state := c.readScrub()
	for ctx.Err() == nil {
		if !state.Done {
			c.scrubRound(ctx, &state, limit)
		}
		pause(ctx, time.Until(state.Began.Add(c.cfg.ScrubInterval)))
		if state.Done {
			state = scrubState{Began: time.Now()}
		}
	}
	return context.Cause(ctx)
}

// scrubRound looks at all blobs behind state.After.
func (c *Cache) scrubRound(ctx context.Context, state *scrubState, limit *rate.Limiter) {
	for ctx.Err() == nil && !state.Done {
		c.scrubShare(ctx, state, limit)
	}
}

// scrubShare looks at the next of them.
func (c *Cache) scrubShare(ctx context.Context, state *scrubState, limit *rate.Limiter) {
	todo, done, total := c.scrubbable(state.After)
	for _, d := range todo {
		share := float64(done) / float64(max(total, 1))
		pause(ctx, time.Until(state.Began.Add(time.Duration(share*float64(c.cfg.ScrubInterval)))))
		done += c.scrub(ctx, d, limit)
		if ctx.Err() != nil { // and d perhaps not read to its end
			c.saveScrub(state)
			return
		}
		state.After = d
		if time.Since(state.saved) >= scrubSaved {
			c.saveScrub(state)
		}
	}
	if state.Done = len(todo) == 0; state.Done {
		c.saveScrub(state)
	}
}

// scrubbable lists the next complete blobs behind after, in the order of their
// digests: those that begin alike, as a list of all would be long and have to last.
// It says how many bytes come before, and are in all.
func (c *Cache) scrubbable(after digest.Digest) (todo []digest.Digest, before, total int64) {
	var next []*entry
	var last compact.Digest // none is before the zero Digest
	if after != "" {
		last = compact.Of(after)
	}
	c.mu.Lock()
	for e := range c.entries.All() {
		if e.partial() {
			continue
		}
		total += e.size
		if after != "" && e.name.Compare(&last) <= 0 {
			before += e.size
			continue
		}
		if len(next) > 0 && !e.name.BeginsAs(&next[0].name) {
			if e.name.Compare(&next[0].name) > 0 {
				continue
			}
			next = next[:0]
		}
		next = append(next, e)
	}
	c.mu.Unlock()
	slices.SortFunc(next, func(a, b *entry) int { return a.name.Compare(&b.name) })
	for _, e := range next {
		todo = append(todo, e.name.Digest())
	}
	return todo, before, total
}

// scrub reads one blob, and returns how much that was.
func (c *Cache) scrub(ctx context.Context, d digest.Digest, limit *rate.Limiter) int64 {
	e := c.lookup(d)
	f, before, err := durable.Open(c.root, blobName(d))
	if err != nil {
		return 0 // gone; or its next reader finds out
	}
	defer f.Close()
	if e == nil {
		return 0
	}
	verifier := d.Verifier()
	n, err := io.Copy(verifier, &limited{ctx, f, limit})
	if ctx.Err() != nil {
		return n
	}
	after, statErr := f.Stat()
	if statErr != nil || stampOf(before) != stampOf(after) {
		return n // somebody was at it: whoever asks for it next has it verified
	}
	c.count.scrubbed.Add(1)
	c.count.scrubbedBytes.Add(n)
	if err == nil && verifier.Verified() {
		c.mu.Lock()
		e.verified = c.sealOf(after)
		c.mu.Unlock()
		return n
	}
	c.throwAway(d, e, errors.Join(ErrDigest, err))
	return n
}

// throwAway removes a blob that turned out to be wrong, unless a fill is at work
// on it, which finds out by itself.
func (c *Cache) throwAway(d digest.Digest, e *entry, err error) {
	c.mu.Lock()
	if c.entries.Get(d) != e || c.fills[d] != nil {
		c.mu.Unlock()
		return
	}
	done := c.remove(d, e)
	c.mu.Unlock()
	c.count.damaged.Add(1)
	c.log.Error("stored blob has rotted; thrown away, and fetched again when it is asked for", zap.Stringer("digest", d), zap.Error(err))
	if err := done(); err != nil {
		c.complain("damaged blob file not removed", err)
		c.Doubt(d)
	}
}

// Doubt has the blob d verified before it is next given out as a whole, from
// disk: memory may be what is wrong.
func (c *Cache) Doubt(d digest.Digest) {
	c.mu.Lock()
	defer c.unlock()
	c.cfg.Memory.Delete(inMemory(d))
	if e := c.entries.Get(d); e != nil && e.sealed() {
		c.doubt(e)
		c.count.doubted.Add(1)
	}
}

// doubt has e verified before it is next given out. Needs mu.
func (c *Cache) doubt(e *entry) {
	e.verified = 0
	c.idle.dropOf(e)
}

// limited reads no faster than it should.
type limited struct {
	ctx   context.Context
	r     io.Reader
	limit *rate.Limiter
}

// Read implements io.Reader.
func (l *limited) Read(p []byte) (int, error) {
	n, err := l.r.Read(p[:min(len(p), chunk)])
	if waitErr := l.limit.WaitN(l.ctx, n); waitErr != nil {
		return n, waitErr
	}
	return n, err
}

// pause waits for d, but no longer than ctx.
func pause(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// readScrub returns where the last process was in its round.
func (c *Cache) readScrub() (state scrubState) {
	data, _, err := durable.ReadFile(c.root, scrubName, maxScrubState)
	if err == nil {
		err = json.Unmarshal(data, &state)
	}
	if err == nil && state.After != "" {
		err = state.After.Validate()
	}
	switch {
	case err == nil && time.Since(state.Began) >= 0: // not by a clock that was wrong
		return state
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		c.log.Warn("progress of scrubbing can't be read; it begins anew", zap.Error(err))
	}
	return scrubState{Began: time.Now()}
}

func (c *Cache) saveScrub(state *scrubState) {
	state.saved = time.Now()
	data, err := json.Marshal(state)
	if err == nil {
		err = durable.WriteSoon(c.root, scrubName, data)
	}
	if err != nil && !errors.Is(err, os.ErrClosed) {
		c.complain("progress of scrubbing not recorded", err)
	}
}
