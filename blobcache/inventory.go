package blobcache

import (
	"context"
	"errors"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"
)

var (
	// ErrAbsent says that there is nothing of the blob to remove.
	ErrAbsent = errors.New("blob is not there")

	// ErrBusy says that the blob is on its way, or is being verified, and is not
	// removed for that.
	ErrBusy = errors.New("blob is being fetched or verified")
)

// Item is what there is of a blob. The zero Item is nothing.
type Item struct {
	Whole   bool
	Filling bool  // it is on its way, or being verified
	Size    int64 // of what is there
	Used    time.Time
	Expires time.Time // zero: never
	Held    bool      // see Hold
}

// Scanned waits until all that is on disk is known.
func (c *Cache) Scanned(ctx context.Context) error {
	select {
	case <-c.scanned:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Items says what there is of each of the blobs, in their order. It is no use of
// them.
func (c *Cache) Items(blobs []digest.Digest) []Item {
	items := make([]Item, len(blobs))
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, d := range blobs {
		f := c.fills[d]
		if e := c.entries.Get(d); e != nil {
			items[i] = Item{Whole: !e.partial(), Filling: f != nil, Size: e.size, Used: e.used.Time()}
			if c.cfg.TTL > 0 && !c.holds[d] {
				items[i].Expires = c.end(e)
			}
			items[i].Held = c.holds[d]
		} else if f != nil && !f.removing {
			items[i] = Item{Filling: true, Size: f.arrivedSoFar()}
		}
	}
	return items
}

func (f *fill) arrivedSoFar() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.have.bytes()
}

// Unused lists the blobs, and parts of blobs, that were last used before then.
func (c *Cache) Unused(before time.Time) []digest.Digest {
	c.mu.Lock()
	defer c.mu.Unlock()
	var unused []digest.Digest
	for e := range c.entries.All() {
		if e.used.Time().Before(before) {
			unused = append(unused, e.name.Digest())
		}
	}
	return unused
}

// Remove removes what there is of the blob d, and says how much that was. Who has
// it open reads on; who asks for it meanwhile waits, and has it fetched. The error
// is ErrAbsent, ErrBusy or that of the disk.
func (c *Cache) Remove(d digest.Digest) (freed int64, err error) {
	c.mu.Lock()
	e := c.entries.Get(d)
	if f := c.fills[d]; f != nil {
		c.mu.Unlock()
		if f.removing {
			return 0, ErrAbsent
		}
		return 0, ErrBusy
	}
	if e == nil {
		c.mu.Unlock()
		return 0, ErrAbsent
	}
	done := c.remove(d, e)
	c.mu.Unlock()
	if err := done(); err != nil {
		c.complain("blob not removed, as an operator wants", err)
		return 0, err
	}
	c.noteGone(d, e, Removed)
	c.log.Debug("removed", zap.Stringer("digest", d), zap.Int64("size", e.size))
	return e.size, nil
}
