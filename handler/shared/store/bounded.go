package store

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"
)

const (
	maxPending = 256             // calls of the file system at a time
	maxClosing = 2 * time.Second // how long Close waits for those
)

var errPending = errors.New("the file system does not answer")

// pending are calls of a file system that may never return, as one that is mounted
// from elsewhere does not while that is down. Who asked goes on when its context is
// done; the call, on a goroutine of its own, ends when the file system lets it.
type pending struct {
	slots chan struct{}
	wg    sync.WaitGroup
}

func newPending() *pending { return &pending{slots: make(chan struct{}, maxPending)} }

// await returns what call returns, or else when ctx is done. A result that comes too
// late is closed.
func await[T any](ctx context.Context, p *pending, call func() (T, error)) (T, error) {
	var none T
	if ctx.Err() != nil {
		return none, context.Cause(ctx)
	}
	select {
	case p.slots <- struct{}{}:
	case <-ctx.Done():
		return none, errors.Join(errPending, context.Cause(ctx))
	}
	type result struct {
		value T
		err   error
	}
	results := make(chan result)
	p.wg.Go(func() {
		defer func() { <-p.slots }()
		value, err := call()
		select {
		case results <- result{value, err}:
		case <-ctx.Done():
			if c, ok := any(value).(io.Closer); ok && err == nil {
				c.Close()
			}
		}
	})
	select {
	case r := <-results:
		return r.value, r.err
	case <-ctx.Done():
		return none, context.Cause(ctx)
	}
}

// close waits for all calls, or for a while.
func (p *pending) close() error {
	for range maxPending { // no more of them from now on
		select {
		case p.slots <- struct{}{}:
		case <-time.After(maxClosing):
			return errPending
		}
	}
	p.wg.Wait()
	return nil
}
