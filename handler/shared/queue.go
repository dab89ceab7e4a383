package shared

import (
	"context"
	"errors"
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
	begun   atomic.Int64 // what is being written

	mu sync.Mutex // guards do
	do map[string]func(context.Context) error
}

// enqueue has do done by a writer, soon or, if too much waits already, never. It does
// not wait. What was queued under the same key and not begun is not done any more.
func (t *Tier) enqueue(key string, do func(ctx context.Context) error) { t.queue.add(key, do) }

func newQueue() queue {
	return queue{keys: make(chan string, maxQueued), do: make(map[string]func(context.Context) error)}
}

// add is enqueue, and reports whether there was room.
func (q *queue) add(key string, do func(ctx context.Context) error) bool {
	q.mu.Lock()
	waits := q.do[key] != nil
	q.do[key] = do
	q.mu.Unlock()
	return waits || q.push(key)
}

// putBack queues again what could not be done yet, unless there is something newer.
func (q *queue) putBack(key string, do func(ctx context.Context) error) {
	q.mu.Lock()
	waits := q.do[key] != nil
	if !waits {
		q.do[key] = do
	}
	q.mu.Unlock()
	if !waits {
		q.push(key)
	}
}

// push reports whether there was room.
func (q *queue) push(key string) bool {
	select {
	case q.keys <- key:
		return true
	default:
		q.take(key)
		q.dropped.Add(1)
		return false
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

// length is how much is not written yet.
func (q *queue) length() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.do) + int(q.begun.Load())
}

// write is a writer: it does what is queued, one after another, and waits while the
// store is left alone. What goes wrong was said and counted by ask, and is not done
// again: whoever has the same the next time will try.
func (t *Tier) write(ctx context.Context, q *queue) error {
	for {
		if err := t.awaitStore(ctx); err != nil {
			return err
		}
		select {
		case key := <-q.keys:
			q.begun.Add(1)
			do := q.take(key)
			if do != nil && errors.Is(do(ctx), errOut) {
				q.putBack(key, do)
			}
			q.begun.Add(-1)
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
