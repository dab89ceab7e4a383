// Package ttl remembers when things are due and says so when the time comes.
package ttl

import (
	"container/heap"
	"context"
	"sync"
	"time"
)

// maxSleep bounds one wait of Run. Due times are wall-clock times, timers are
// not: a clock that was set forward is noticed within this time.
const maxSleep = time.Minute

// Queue is a set of keys, each with the time at which it is due. It keeps
// nothing on disk and does not know what the keys stand for. The zero Queue is
// empty and ready for use by several goroutines; it must not be copied.
type Queue[K comparable] struct {
	mu    sync.Mutex // guards the fields below
	items itemHeap[K]
	index map[K]*item[K]
	wake  chan struct{} // told when the earliest due time may have changed
}

// An item is ordered by look, which is never later than due: moving a key to a
// later time, what every use of a cache entry does, costs no reordering. The
// difference is made up when the item reaches the top.
type item[K comparable] struct {
	key  K
	due  time.Time
	look time.Time
	at   int // position in the heap
}

// Set adds key, or moves it, to be due at the given time.
func (q *Queue[K]) Set(key K, due time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.init()
	it, ok := q.index[key]
	if !ok {
		it = q.push(key, due)
	}
	it.due = due
	if due.Before(it.look) {
		it.look = due
		heap.Fix(&q.items, it.at)
	}
	if it.at == 0 {
		q.tell()
	}
}

// Delete removes key, if it is there.
func (q *Queue[K]) Delete(key K) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if it, ok := q.index[key]; ok {
		heap.Remove(&q.items, it.at)
		delete(q.index, key)
	}
}

// Pop removes the key that is due first, whether its time has come or not; ok
// is false if there is none. This is how the least recently used is found.
func (q *Queue[K]) Pop() (key K, due time.Time, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.settle() {
		return key, due, false
	}
	it := q.pop()
	return it.key, it.due, true
}

// Len is the number of keys.
func (q *Queue[K]) Len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.items)
}

// Run hands each key to expire once it is due, one at a time and with no lock
// held, until ctx is done; the key is then no longer in the queue. If expire
// keeps it, it waits until next, unless somebody has Set it in the meantime.
// The error is the cause of ctx's end.
func (q *Queue[K]) Run(ctx context.Context, expire func(key K) (next time.Time, keep bool)) error {
	timer := time.NewTimer(maxSleep)
	defer timer.Stop()
	for ctx.Err() == nil {
		key, ok, wait, wake := q.next()
		if ok {
			if next, keep := expire(key); keep {
				q.setIfAbsent(key, next)
			}
			continue
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
		case <-wake:
		case <-timer.C:
		}
	}
	return context.Cause(ctx)
}

// next takes a key that is due, or says how long to wait for one.
func (q *Queue[K]) next() (key K, ok bool, wait time.Duration, wake <-chan struct{}) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.init()
	if !q.settle() {
		return key, false, maxSleep, q.wake
	}
	if wait = time.Until(q.items[0].due); wait > 0 {
		return key, false, min(wait, maxSleep), q.wake
	}
	return q.pop().key, true, 0, q.wake
}

func (q *Queue[K]) setIfAbsent(key K, due time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if _, ok := q.index[key]; !ok {
		q.push(key, due)
	}
}

func (q *Queue[K]) init() {
	if q.index == nil {
		q.index = make(map[K]*item[K])
		q.wake = make(chan struct{}, 1)
	}
}

// settle brings the key that is really due first to the top; false if there is
// none.
func (q *Queue[K]) settle() bool {
	if len(q.items) == 0 {
		return false
	}
	for it := q.items[0]; it.look.Before(it.due); it = q.items[0] {
		it.look = it.due
		heap.Fix(&q.items, 0)
	}
	return true
}

func (q *Queue[K]) push(key K, due time.Time) *item[K] {
	it := &item[K]{key: key, due: due, look: due}
	q.index[key] = it
	heap.Push(&q.items, it)
	return it
}

func (q *Queue[K]) pop() *item[K] {
	it := heap.Pop(&q.items).(*item[K])
	delete(q.index, it.key)
	return it
}

func (q *Queue[K]) tell() {
	select {
	case q.wake <- struct{}{}:
	default: // Run has not yet seen the last one
	}
}

// itemHeap is a container/heap of items, the one to look at first on top.
type itemHeap[K comparable] []*item[K]

func (h itemHeap[K]) Len() int           { return len(h) }
func (h itemHeap[K]) Less(i, j int) bool { return h[i].look.Before(h[j].look) }

func (h itemHeap[K]) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].at, h[j].at = i, j
}

func (h *itemHeap[K]) Push(x any) {
	it := x.(*item[K])
	it.at = len(*h)
	*h = append(*h, it)
}

func (h *itemHeap[K]) Pop() any {
	last := len(*h) - 1
	it := (*h)[last]
	(*h)[last] = nil // the backing array must not keep it alive
	*h = (*h)[:last]
	return it
}
