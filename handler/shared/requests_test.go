package shared

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"larder/handler/shared/store"
	"larder/handler/shared/storetest"
)

var errDown = errors.New("connection refused")

func TestQuickFailuresInARowTakeTheStoreOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var down atomic.Bool
		m := &storetest.Model{Fault: func(storetest.Op, string) error {
			if down.Load() {
				return &store.Error{Op: "get", Key: "k", Hint: "is it running?", Err: errDown}
			}
			return nil
		}}
		tier, logs := node(t, m, nil)
		_, _ = tier.head(t.Context(), "k")
		down.Store(true)
		for range 20 {
			_, err := tier.head(t.Context(), "k")
			if err == nil {
				t.Fatal("found what is not there")
			}
			time.Sleep(time.Millisecond)
		}
		if got := m.Count().Requests[storetest.Head]; got != 1+tripFailures {
			t.Errorf("%d requests, want %d: the breaker opens", got, 1+tripFailures)
		}
		if warned := logs.FilterMessage("the shared store can't be read; going on without"); warned.Len() != 1 || !strings.Contains(fmt.Sprint(warned.All()[0].ContextMap()), "is it running?") {
			t.Errorf("log: %v, want one line with a hint", logs.All())
		}
		down.Store(false)
		time.Sleep(firstRest)
		if _, err := tier.head(t.Context(), "k"); !errors.Is(err, store.ErrNotExist) {
			t.Errorf("after the rest: %v, want an answer", err)
		}
		if n := logs.FilterMessage("the shared store answers again").Len(); n != 1 {
			t.Errorf("%d lines that it is back, want 1", n)
		}
		if s := tier.Stats(); s.ReadsOut != nil || s.Outages != 1 {
			t.Errorf("stats: %+v", s)
		}
	})
}

func TestOneTimeoutTakesTheStoreOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &storetest.Model{Latency: func(storetest.Op) time.Duration { return time.Hour }}
		tier, _ := node(t, m, nil)
		began := time.Now()
		_, err := tier.head(t.Context(), "k")
		if took := time.Since(began); !errors.Is(err, errSlow) || took != timeout {
			t.Errorf("%v after %v, want %v after %v", err, took, errSlow, timeout)
		}
		began = time.Now()
		for range 100 {
			if _, err := tier.head(t.Context(), "k"); !errors.Is(err, errOut) {
				t.Fatalf("%v, want %v", err, errOut)
			}
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("100 requests waited %v for a store that is out", took)
		}
		time.Sleep(firstRest)
		go func() { _, _ = tier.head(t.Context(), "k") }() // the probe
		synctest.Wait()
		if _, err := tier.head(t.Context(), "k"); !errors.Is(err, errOut) {
			t.Errorf("beside the probe: %v, want %v", err, errOut)
		}
		time.Sleep(timeout + firstRest + time.Millisecond)
		if left := tier.reads.left(); left != 2*firstRest-firstRest-time.Millisecond {
			t.Errorf("rests for another %v after a slow probe", left)
		}
	})
}

func TestStoreThatIsFullCanBeRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &storetest.Model{Fault: func(op storetest.Op, key string) error {
			if op == storetest.Put {
				return &store.Error{Op: "put", Key: key, Err: errors.New("quota exceeded")}
			}
			return nil
		}}
		tier, logs := node(t, m, nil)
		for range 50 {
			_ = tier.put(t.Context(), "k", strings.NewReader("x"), store.Label{Size: 1})
			if _, err := tier.head(t.Context(), "k"); !errors.Is(err, store.ErrNotExist) {
				t.Fatalf("head: %v", err)
			}
			time.Sleep(time.Millisecond)
		}
		if got := m.Count().Requests[storetest.Put]; got != tripFailures {
			t.Errorf("%d objects were put, want %d", got, tripFailures)
		}
		if n := logs.FilterMessage("the shared store takes nothing; what is new is not shared").Len(); n != 1 {
			t.Errorf("log: %v, want one line", logs.All())
		}
		if s := tier.Stats(); s.ReadsOut != nil || s.WritesOut == nil {
			t.Errorf("stats: %+v, want only writes out", s)
		}
	})
}

func TestStoreOfAnotherVersionIsLeftAlone(t *testing.T) {
	for name, found := range map[string]string{"later": "larder 2\n", "something else": "<html>", "empty": "", "long": strings.Repeat("larder 1\n", 1000)} {
		bubble(t, name, func(t *testing.T) {
			m := &storetest.Model{}
			put(t, m, versionKey, []byte(found))
			put(t, m, "k", []byte("bytes"))
			before := requests(m)
			tier, logs := node(t, m, nil)
			for range 10 {
				if _, err := tier.head(t.Context(), "k"); !errors.Is(err, ErrVersion) {
					t.Fatalf("%v, want %v", err, ErrVersion)
				}
			}
			if n := requests(m) - before; n != 1 {
				t.Errorf("%d requests, want 1", n)
			}
			if n := logs.FilterLevelExact(2).Len(); n != 1 || !tier.Stats().WrongVersion {
				t.Errorf("log: %v, want one error", logs.All())
			}
		})
	}
}

func TestVersionIsMadeOnceAndLookedAtAgainAfterAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var down atomic.Bool
		m := &storetest.Model{Fault: func(storetest.Op, string) error {
			if down.Load() {
				return errDown
			}
			return nil
		}, Latency: func(storetest.Op) time.Duration { return time.Millisecond }}
		tiers := make([]*Tier, 5)
		for i := range tiers {
			tiers[i], _ = node(t, m, nil)
		}
		for range 3 {
			for _, tier := range tiers {
				go func() { _, _ = tier.head(t.Context(), "k") }()
			}
		}
		time.Sleep(time.Second)
		if keys := m.Keys(); len(keys) != 1 || read(t, m, versionKey) != content {
			t.Fatalf("the store has %v", keys)
		}
		if gets := m.Count().Requests[storetest.Get]; gets > 2*len(tiers)+1 {
			t.Errorf("%d looks at the version by %d nodes", gets, len(tiers))
		}
		down.Store(true)
		for range tripFailures {
			_, _ = tiers[0].head(t.Context(), "k")
		}
		down.Store(false)
		put(t, m, versionKey, []byte("larder 9\n"))
		time.Sleep(firstRest)
		if _, err := tiers[0].head(t.Context(), "k"); !errors.Is(err, ErrVersion) {
			t.Errorf("it came back as another one: %v", err)
		}
	})
}

func TestQueueKeepsTheLastOfEachKeyAndDropsTheRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tier := New(Config{Store: &storetest.Model{}, Timeout: timeout})
		defer tier.Close()
		var did []int
		for i := range 3 {
			tier.enqueue("same", func(context.Context) error { did = append(did, i); return nil })
		}
		for i := range maxQueued + 9 {
			tier.enqueue(fmt.Sprint(i), func(context.Context) error { return nil })
		}
		if s := tier.Stats(); s.Queued != maxQueued || s.Dropped != 10 {
			t.Errorf("%d queued, %d dropped, want %d and 10", s.Queued, s.Dropped, maxQueued)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- tier.Run(ctx) }()
		synctest.Wait()
		if s := tier.Stats(); s.Queued != 0 || len(did) != 1 || did[0] != 2 {
			t.Errorf("%d left, done: %v, want the last one of what has the same key", s.Queued, did)
		}
		written := make(chan struct{})
		tier.enqueue("slow", func(context.Context) error { <-written; return nil })
		synctest.Wait()
		if s := tier.Stats(); s.Queued != 1 {
			t.Errorf("%d queued, want what is being written", s.Queued)
		}
		close(written)
		cancel()
		<-ended
	})
}

func TestQueueWaitsWhileTheStoreIsOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var down atomic.Bool
		down.Store(true)
		m := quick() // slow enough for both writers to find it out
		m.Fault = func(storetest.Op, string) error {
			if down.Load() {
				return errDown
			}
			return nil
		}
		tier, _ := node(t, m, nil)
		for range tripFailures {
			_, _ = tier.head(t.Context(), "k")
		}
		for i := range 10 {
			key := fmt.Sprint(i)
			tier.enqueue(key, func(ctx context.Context) error {
				return tier.put(ctx, key, strings.NewReader("x"), store.Label{Size: 1})
			})
		}
		time.Sleep(time.Second)
		down.Store(false)
		time.Sleep(firstRest)
		if n := len(m.Keys()); n != 11 {
			t.Errorf("%d objects in the store, want the 10 that waited and the version", n)
		}
	})
}

func TestWritesKeepToTheRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tier, _ := node(t, &storetest.Model{}, func(c *Config) { c.Rate = 1 << 19 })
		began := time.Now()
		content := bytes.Repeat([]byte("x"), 8<<20)
		if err := tier.put(t.Context(), "k", bytes.NewReader(content), store.Label{Size: 8 << 20}); err != nil {
			t.Fatal(err) // in particular not for being slow
		}
		if took := time.Since(began); took < 15*time.Second || took > 17*time.Second {
			t.Errorf("8 MiB at 512 KiB/s took %v", took)
		}
	})
}

func put(t *testing.T, m *storetest.Model, key string, content []byte) {
	t.Helper()
	if err := m.Put(t.Context(), key, bytes.NewReader(content), store.Label{Size: int64(len(content))}); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, m *storetest.Model, key string) string {
	t.Helper()
	body, _, err := m.Get(t.Context(), key, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	var data bytes.Buffer
	if _, err := data.ReadFrom(body); err != nil {
		t.Fatal(err)
	}
	return data.String()
}
