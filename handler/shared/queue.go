package shared

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxQueued is how much may wait to be written. Who has more to write is ahead of
	// the store, and shares less.
	maxQueued = 1000

	// writers is how many write what is queued.
	writers = 2
)

// queue is what waits to be written.
type queue struct {
	keys    chan string
	dropped atomic.Int64

	mu sync.Mutex // guards do
	do map[string]func(context.Context) error
}

// enqueue has do done by a writer, soon or, if too much waits already, never. It does
// not wait. What was queued under the same key and not begun is not done any more.
func (t *Tier) enqueue(key string, do func(ctx context.Context) error) {
	q := &t.queue
	q.mu.Lock()
	waits := q.do[key] != nil
	q.do[key] = do
	q.mu.Unlock()
	if waits {
		return
	}
	select {
	case q.keys <- key:
	default:
		q.take(key)
		q.dropped.Add(1)
	}
}

// take takes what is queued under key.
func (q *queue) take(key string) func(context.Context) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	do := q.do[key]
	delete(q.do, key)
	return do
}

func (q *queue) length() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.do)
}

// write is a writer: it does what is queued, one after another, and waits while the
// store is left alone. What goes wrong was said and counted by ask, and is not done
// again: whoever has the same the next time will try.
func (t *Tier) write(ctx context.Context) error {
	for {
		if err := t.awaitStore(ctx); err != nil {
			return err
		}
		select {
		case key := <-t.queue.keys:
			if do := t.queue.take(key); do != nil {
				_ = do(ctx)
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// awaitStore waits until the store may be asked.
func (t *Tier) awaitStore(ctx context.Context) error {
	for {
		left := max(t.reads.left(), t.writes.left())
		if left == 0 {
			return context.Cause(ctx)
		}
		select {
		case <-time.After(left):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
