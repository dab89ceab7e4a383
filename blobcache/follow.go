package blobcache

import (
	"context"
	"errors"
	"sync"

	"github.com/opencontainers/go-digest"

	"larder/blobcache/memory"
)

// Follow opens the blob d, which must be valid, for who passes it on: complete, or from
// its start as it arrives for somebody else. It is nil if it is neither. It is then
// wanted as a whole, however little the others want. If it turns out not to be kept,
// the error is ErrUnkept.
func (c *Cache) Follow(ctx context.Context, d digest.Digest) (*Blob, error) {
	if blob, err := c.Open(d); blob != nil || err != nil {
		return blob, err
	}
	f := c.joinRunning(d)
	if f == nil {
		return nil, nil
	}
	leave := sync.OnceFunc(func() { c.leave(f, c.cfg.Linger) })
	content, size, err := f.open(ctx, newWant(0, -1))
	switch {
	case err == nil && content == nil:
		leave()
		return &Blob{Content: memory.NewReader(f.small()), Size: size, Outcome: Join}, nil
	case err == nil:
		content.leave = leave // and no source: it can't go on alone
		return &Blob{Content: content, Size: size, Outcome: Join}, nil
	}
	leave()
	switch {
	case unkept(err):
		return nil, ErrUnkept
	case errors.Is(err, errMissed), errors.Is(err, errDamaged):
		return nil, nil // it is over
	default:
		return nil, err
	}
}

// joinRunning adds a reader to the fill of d, if there is one that can be joined.
func (c *Cache) joinRunning(d digest.Digest) *fill {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.fills[d]
	if f == nil || f.parked || f.failed() {
		return nil
	}
	f.join()
	return f
}
