package ttl_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"reflect"
	"sort"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"larder/ttl"
)

// expiries runs q for a while and returns what expired when, as offsets.
func expiries(t *testing.T, q *ttl.Queue[string], d time.Duration, expire func(key string) (time.Time, bool)) map[string][]time.Duration {
	t.Helper()
	start := time.Now()
	got := map[string][]time.Duration{}
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	err := q.Run(ctx, func(key string) (time.Time, bool) {
		got[key] = append(got[key], time.Since(start))
		return expire(key)
	})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Run returned %v, want the end of its context", err)
	}
	return got
}

func forget(string) (time.Time, bool) { return time.Time{}, false }

func TestKeysExpireWhenDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var q ttl.Queue[string]
		now := time.Now()
		q.Set("week", now.Add(7*24*time.Hour))
		q.Set("second", now.Add(time.Second))
		q.Set("past", now.Add(-time.Hour))
		q.Set("moved later", now.Add(time.Second))
		q.Set("moved later", now.Add(time.Hour))
		q.Set("moved earlier", now.Add(30*24*time.Hour))
		q.Set("moved earlier", now.Add(time.Minute))
		q.Set("deleted", now.Add(time.Second))
		q.Delete("deleted")
		q.Delete("never there")

		got := expiries(t, &q, 8*24*time.Hour, forget)
		want := map[string][]time.Duration{
			"past": {0}, "second": {time.Second}, "moved earlier": {time.Minute},
			"moved later": {time.Hour}, "week": {7 * 24 * time.Hour},
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("expired at %v, want %v", got, want)
		}
		if n := q.Len(); n != 0 {
			t.Errorf("%d keys left, want 0", n)
		}
	})
}

func TestKeptKeyWaitsForItsNextTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var q ttl.Queue[string]
		q.Set("in use", time.Now().Add(time.Hour))
		got := expiries(t, &q, 150*time.Minute, func(string) (time.Time, bool) {
			return time.Now().Add(time.Hour), true
		})
		want := map[string][]time.Duration{"in use": {time.Hour, 2 * time.Hour}}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("expired at %v, want %v", got, want)
		}
	})
}

func TestSetWhileExpiringWins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var q ttl.Queue[string]
		q.Set("blob", time.Now().Add(time.Minute))
		first := true
		got := expiries(t, &q, 2*time.Hour, func(key string) (time.Time, bool) {
			if !first {
				return time.Time{}, false
			}
			first = false
			q.Set(key, time.Now().Add(time.Hour)) // no lock is held: this does not deadlock
			return time.Now().Add(time.Second), true
		})
		want := map[string][]time.Duration{"blob": {time.Minute, time.Minute + time.Hour}}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("expired at %v, want %v", got, want)
		}
	})
}

func TestEarlierKeyWakesRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var q ttl.Queue[string]
		q.Set("late", time.Now().Add(24*time.Hour))
		expired := make(chan string, 1)
		var wg sync.WaitGroup
		ctx, cancel := context.WithCancel(t.Context())
		wg.Go(func() {
			_ = q.Run(ctx, func(key string) (time.Time, bool) {
				expired <- key
				return time.Time{}, false
			})
		})
		synctest.Wait() // Run sleeps
		start := time.Now()
		q.Set("soon", start.Add(time.Second))
		if key, took := <-expired, time.Since(start); key != "soon" || took != time.Second {
			t.Errorf("%q expired after %v, want soon after 1s", key, took)
		}
		cancel()
		wg.Wait()
	})
}

func TestRunEndsWithItsContextThoughKeysAreDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var q ttl.Queue[string]
		q.Set("failing", time.Now())
		ctx, cancel := context.WithCancel(t.Context())
		n := 0
		_ = q.Run(ctx, func(string) (time.Time, bool) {
			if n++; n == 3 {
				cancel()
			}
			return time.Now(), true
		})
		if n != 3 {
			t.Errorf("expire was called %d times, want 3", n)
		}
	})
}

func TestPopTakesTheEarliestDueOrNot(t *testing.T) {
	var q ttl.Queue[int]
	if _, _, ok := q.Pop(); ok {
		t.Error("Pop of an empty queue says ok")
	}
	now := time.Now()
	want := rand.Perm(1000)
	for _, n := range want {
		q.Set(n, now.Add(time.Duration(rand.IntN(2000))*time.Hour))
		q.Set(n, now.Add(time.Duration(n)*time.Hour)) // earlier or later than before
	}
	sort.Ints(want)
	for _, n := range want {
		key, due, ok := q.Pop()
		if !ok || key != n || !due.Equal(now.Add(time.Duration(n)*time.Hour)) {
			t.Fatalf("Pop = %d, %v, %v; want %d", key, due, ok, n)
		}
	}
}

func TestVeryManyKeysGoOneAfterTheOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var q ttl.Queue[string]
		const n = 2000
		for i := range n {
			q.Set("kept "+strconv.Itoa(i), time.Now())
			q.Set(strconv.Itoa(i), time.Now())
		}
		var last time.Duration
		for key, at := range expiries(t, &q, time.Minute, func(key string) (time.Time, bool) {
			return time.Now().Add(time.Hour), strings.HasPrefix(key, "kept")
		}) {
			if !strings.HasPrefix(key, "kept") {
				last = max(last, at[0])
			}
		}
		// Those that are kept cost nothing, and are not waited for.
		if least, most := 300*time.Millisecond, 500*time.Millisecond; last < least || last > most {
			t.Errorf("the last of %d goes after %v, want %v to %v", n, last, least, most)
		}
	})
}

// tenant is a key that knows its place.
type tenant struct {
	name  int
	place ttl.Place
}

func (k *tenant) Place() *ttl.Place { return &k.place }

// TestPlacedKeysAreFound moves and deletes keys at random, in a queue that has no
// map of them and in one that has; both give them out in the same order.
func TestPlacedKeysAreFound(t *testing.T) {
	tenants := make([]*tenant, 200)
	anybody := make([]ttl.Placed, len(tenants))
	for i := range tenants {
		tenants[i] = &tenant{name: i}
		anybody[i] = &tenant{name: i}
	}
	t.Run("pointers", func(t *testing.T) { placedKeysAreFound(t, tenants) })
	t.Run("of several types", func(t *testing.T) { placedKeysAreFound(t, anybody) })
}

func placedKeysAreFound[K interface {
	comparable
	ttl.Placed
}](t *testing.T, tenants []K) {
	t.Helper()
	var own ttl.Queue[K]
	shared := ttl.Queue[K]{Shared: true}
	now := time.Now()
	for i, at := range rand.Perm(5000) {
		k := tenants[rand.IntN(len(tenants))]
		if i%3 == 0 {
			own.Delete(k)
			shared.Delete(k)
			continue
		}
		own.Set(k, now.Add(time.Duration(at)))
		shared.Set(k, now.Add(time.Duration(at)))
	}
	if own.Len() != shared.Len() || own.Len() == 0 {
		t.Fatalf("%d keys in one and %d in the other", own.Len(), shared.Len())
	}
	for range own.Len() {
		k, due, _ := own.Pop()
		other, otherDue, _ := shared.Pop()
		if k != other || !due.Equal(otherDue) {
			t.Fatalf("%v due at %v, and %v at %v", k, due, other, otherDue)
		}
		if *k.Place() != (ttl.Place{}) {
			t.Errorf("%v still has a place", k)
		}
	}
}

func TestTimesThatNanosecondsCantSay(t *testing.T) {
	var q ttl.Queue[string]
	q.Set("never", time.Now().Add(250*365*24*time.Hour))
	q.Set("long ago", time.Time{})
	q.Set("now", time.Now())
	for _, want := range []string{"long ago", "now", "never"} {
		if key, _, _ := q.Pop(); key != want {
			t.Errorf("%q comes next, want %q", key, want)
		}
	}
}

func BenchmarkSet(b *testing.B) {
	var q ttl.Queue[string]
	now := time.Now()
	keys := make([]string, 100_000)
	for i := range keys {
		keys[i] = "sha256:" + strconv.Itoa(i)
		q.Set(keys[i], now.Add(time.Duration(rand.Int64N(int64(168*time.Hour)))))
	}
	i := 0
	for b.Loop() {
		q.Set(keys[i%len(keys)], now.Add(168*time.Hour+time.Duration(i)))
		i++
	}
}
