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
	do map[string]item
}

// item is something to do. over is called, more than once perhaps, when it was tried,
// or will not be.
type item struct {
	do   func(ctx context.Context) error
	over func()
}

// enqueue has do done by a writer, soon or, if too much waits already, never. It does
// not wait. What was queued under the same key and not begun is not done any more.
func (t *Tier) enqueue(key string, do func(ctx context.Context) error) {
	t.queue.add(key, item{do, func() {}})
}

func newQueue() queue {
	return queue{keys: make(chan string, maxQueued), do: make(map[string]item)}
}

// add is enqueue.
func (q *queue) add(key string, i item) {
	q.mu.Lock()
	old, waits := q.do[key]
	q.do[key] = i
	q.mu.Unlock()
	if waits {
		old.over()
		return
	}
	q.push(key)
}

// putBack queues again what could not be done yet, unless there is something newer.
func (q *queue) putBack(key string, i item) {
	q.mu.Lock()
	_, waits := q.do[key]
	if !waits {
		q.do[key] = i
	}
	q.mu.Unlock()
	if !waits {
		q.push(key)
	}
}

func (q *queue) push(key string) {
	select {
	case q.keys <- key:
	default:
		if i, ok := q.take(key); ok {
			i.over()
		}
		q.dropped.Add(1)
	}
}

// take takes what is queued under key.
func (q *queue) take(key string) (i item, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	i, ok = q.do[key]
	delete(q.do, key)
	return i, ok
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
			if i, ok := q.take(key); ok {
				err := i.do(ctx)
				i.over()
				if errors.Is(err, errOut) {
					q.putBack(key, i)
				}
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
