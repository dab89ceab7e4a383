// Package ttl remembers when things are due and says so when the time comes.
package ttl

import (
	"container/heap"
	"context"
	"math"
	"reflect"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// maxSleep bounds one wait of Run. Due times are wall-clock times, timers are
// not: a clock that was set forward is noticed within this time.
const maxSleep = time.Minute

// Of very many keys that are due at once, Run hands out burst, and then no more
// than pace a second: nothing is lost if they go a little later, and who is served
// meanwhile should not notice.
const (
	pace  = 5000
	burst = 100
)

// Queue is a set of keys, each with the time at which it is due. It keeps
// nothing on disk and does not know what the keys stand for. The zero Queue is
// empty and ready for use by several goroutines; it must not be copied.
type Queue[K comparable] struct {
	// Shared says that the keys may have their Place in another queue: this one
	// then has a map of them. It must not change.
	Shared bool

	mu    sync.Mutex // guards the fields below, and the places of the keys
	items items[K]
	wake  chan struct{} // told when the earliest due time may have changed
}

// Placed is a key, a pointer or an interface of pointers, that remembers its Place in
// a queue. That queue takes the least memory: it has no map of its keys.
type Placed interface{ Place() *Place }

// Place is a key's place in a queue. The zero Place is in none.
type Place struct{ after int32 } // its position in the heap and 1

// item is a key and when it is due, in nanoseconds since 1970.
type item[K comparable] struct {
	key K
	due int64
}

// Set adds key, or moves it, to be due at the given time.
func (q *Queue[K]) Set(key K, due time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.init()
	if at, ok := q.items.find(key); ok {
		q.items.heap[at].due = nanos(due)
		heap.Fix(&q.items, at)
	} else {
		q.items.add(key, due)
	}
	if q.items.heap[0].key == key {
		q.tell()
	}
}

// Delete removes key, if it is there.
func (q *Queue[K]) Delete(key K) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if at, ok := q.items.find(key); ok {
		heap.Remove(&q.items, at)
	}
}

// Pop removes the key that is due first, whether its time has come or not; ok
// is false if there is none. This is how the least recently used is found.
func (q *Queue[K]) Pop() (key K, due time.Time, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.items.Len() == 0 {
		return key, due, false
	}
	it := heap.Pop(&q.items).(item[K])
	return it.key, time.Unix(0, it.due), true
}

// Len is the number of keys.
func (q *Queue[K]) Len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.items.Len()
}

// Run hands each key to expire once it is due, one at a time and with no lock
// held, until ctx is done; the key is then no longer in the queue. If expire
// keeps it, it waits until next, unless somebody has Set it in the meantime.
// The error is the cause of ctx's end.
func (q *Queue[K]) Run(ctx context.Context, expire func(key K) (next time.Time, keep bool)) error {
	limit := rate.NewLimiter(pace, burst)
	timer := time.NewTimer(maxSleep)
	defer timer.Stop()
	for ctx.Err() == nil {
		key, ok, wait, wake := q.next()
		if ok {
			if next, keep := expire(key); keep { // for which there was little to do
				q.setIfAbsent(key, next)
			} else {
				_ = limit.Wait(ctx) // the error is ctx's
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
	if q.items.Len() == 0 {
		return key, false, maxSleep, q.wake
	}
	if wait = time.Until(time.Unix(0, q.items.heap[0].due)); wait > 0 {
		return key, false, min(wait, maxSleep), q.wake
	}
	return heap.Pop(&q.items).(item[K]).key, true, 0, q.wake
}

func (q *Queue[K]) setIfAbsent(key K, due time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if _, ok := q.items.find(key); !ok {
		q.items.add(key, due)
	}
}

func (q *Queue[K]) init() {
	if q.wake != nil {
		return
	}
	q.wake = make(chan struct{}, 1)
	if placed := reflect.TypeFor[Placed](); !reflect.TypeFor[K]().Implements(placed) || q.Shared {
		q.items.at = make(map[K]int)
	}
}

func (q *Queue[K]) tell() {
	select {
	case q.wake <- struct{}{}:
	default: // Run has not yet seen the last one
	}
}

// items is a container/heap, what is due first on top, that can find a key.
type items[K comparable] struct {
	heap []item[K]
	at   map[K]int // where in heap each key is; nil if they are Placed
}

// find returns the position of key in the heap.
func (h *items[K]) find(key K) (at int, ok bool) {
	if h.at == nil && len(h.heap) > 0 {
		at = int(any(key).(Placed).Place().after) - 1
		return at, at >= 0
	}
	at, ok = h.at[key]
	return at, ok
}

// place notes where a key is now.
func (h *items[K]) place(key K, at int) {
	if h.at == nil {
		any(key).(Placed).Place().after = int32(at) + 1
	} else {
		h.at[key] = at
	}
}

func (h *items[K]) add(key K, due time.Time) { heap.Push(h, item[K]{key, nanos(due)}) }

func (h *items[K]) Len() int           { return len(h.heap) }
func (h *items[K]) Less(i, j int) bool { return h.heap[i].due < h.heap[j].due }

func (h *items[K]) Swap(i, j int) {
	h.heap[i], h.heap[j] = h.heap[j], h.heap[i]
	h.place(h.heap[i].key, i)
	h.place(h.heap[j].key, j)
}

func (h *items[K]) Push(x any) {
	it := x.(item[K])
	h.place(it.key, len(h.heap))
	h.heap = append(h.heap, it)
}

func (h *items[K]) Pop() any {
	last := len(h.heap) - 1
	it := h.heap[last]
	if h.at == nil {
		*any(it.key).(Placed).Place() = Place{}
	} else {
		delete(h.at, it.key)
	}
	h.heap[last] = item[K]{} // the backing array must not keep it alive
	h.heap = h.heap[:last]
	return it
}

// nanos is t in nanoseconds since 1970, as near as these come to it: from 1678 to
// 2262.
func nanos(t time.Time) int64 {
	switch {
	case t.After(time.Unix(0, math.MaxInt64)):
		return math.MaxInt64
	case t.Before(time.Unix(0, math.MinInt64)):
		return math.MinInt64
	default:
		return t.UnixNano()
	}
}
