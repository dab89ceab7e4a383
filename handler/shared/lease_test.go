package shared

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"larder/handler/shared/store"
	"larder/handler/shared/storetest"
)

// askAll has each of n nodes ask for the same at once, and fetch it unless another one
// brings it. It returns how often it was fetched and how long that took.
func askAll(t *testing.T, m *storetest.Model, n int, fetch time.Duration) (fetched int64, took time.Duration) {
	t.Helper()
	var fetches atomic.Int64
	began := time.Now()
	done := make(chan bool)
	for range n {
		tier, _ := node(t, m, nil)
		go func() {
			l, found := tier.claimOrWait(t.Context(), "tag x", nil, func(ctx context.Context) (bool, error) {
				_, err := tier.head(ctx, "answer")
				if errors.Is(err, store.ErrNotExist) {
					return false, nil
				}
				return err == nil, err
			})
			if !found {
				fetches.Add(1)
				time.Sleep(fetch)
				put(t, m, "answer", []byte("x"))
			}
			if l != nil {
				l.release()
			}
			done <- true
		}()
	}
	for range n {
		<-done
	}
	took = time.Since(began)
	time.Sleep(time.Second) // leases are given back
	return fetches.Load(), took
}

func TestOneOfManyAsksForAll(t *testing.T) {
	tests := map[string]struct {
		latency, fetch time.Duration
		noConditions   bool
		want           int64
		atMost         time.Duration
	}{
		"quick":                     {time.Millisecond, 30 * time.Millisecond, false, 1, 500 * time.Millisecond},
		"slow store":                {100 * time.Millisecond, 30 * time.Millisecond, false, 1, 2 * time.Second},
		"upstream takes too long":   {time.Millisecond, 10 * time.Second, false, 50, 13 * time.Second},
		"store that can't do it":    {time.Millisecond, 30 * time.Millisecond, true, 50, 100 * time.Millisecond},
		"store that doesn't answer": {time.Hour, 30 * time.Millisecond, false, 50, timeout + 100*time.Millisecond},
	}
	for name, test := range tests {
		bubble(t, name, func(t *testing.T) {
			m := &storetest.Model{NoConditions: test.noConditions, Latency: func(op storetest.Op) time.Duration {
				if op == storetest.Put {
					return 0
				}
				return test.latency
			}}
			fetched, took := askAll(t, m, 50, test.fetch)
			if fetched != test.want || took > test.atMost {
				t.Errorf("asked upstream %d times in %v, want %d in at most %v", fetched, took, test.want, test.atMost)
			}
			if _, err := m.Head(context.Background(), leaseKey("tag x")); test.want == 1 && !errors.Is(err, store.ErrNotExist) {
				t.Errorf("the lease was not given back: %v", err)
			}
		})
	}
}

func TestLeaseIsTakenOverWhenItIsNotRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &storetest.Model{}
		one, _ := node(t, m, nil)
		other, logs := node(t, m, nil)
		l, err := newWatch(one, "blob").claim(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ctx, die := context.WithCancel(t.Context())
		go l.keep(ctx)
		l.tell(100, 3)
		synctest.Wait()
		w := newWatch(other, "blob")
		for range 30 {
			time.Sleep(time.Second)
			if err := w.look(t.Context()); err != nil || w.isFree() {
				t.Fatalf("free while it is renewed (%v)", err)
			}
		}
		die()
		died := time.Now()
		for !w.isFree() {
			time.Sleep(time.Second)
			if err := w.look(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(died); took < leaseExpiry-leaseRenewal || took > leaseExpiry+time.Second {
			t.Errorf("free after %v", took)
		}
		taken, err := w.claim(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if taken.parts() != 3 || taken.record.Size != 100 || other.Stats().TakenOver != 1 || logs.FilterMessageSnippet("taken over").Len() != 1 {
			t.Errorf("took over %+v, want what is there of it", taken.record)
		}
		back := context.WithoutCancel(t.Context()) // who was only slow finds out
		go l.keep(back)
		l.tell(100, 4)
		<-l.lost
		l.giveBack()
		if w.look(t.Context()) != nil || w.record.Holder != other.holder {
			t.Errorf("the lease is %+v's", w.record)
		}
	})
}

// Who was too slow to keep a lease does not know that another node has it.
func TestLateHolderLeavesTheLeaseOfTheNextAlone(t *testing.T) {
	tests := map[string]struct {
		after time.Duration // of which nothing was renewed, is the lease given back
		taken bool          // somebody else has it by then
	}{
		"in time":          {leaseRenewal, false},
		"late":             {2 * leaseExpiry, false},
		"late, it is lost": {2 * leaseExpiry, true},
	}
	for name, test := range tests {
		bubble(t, name, func(t *testing.T) {
			m := &storetest.Model{}
			one, _ := node(t, m, nil)
			other, _ := node(t, m, nil)
			l, err := newWatch(one, "tag x").claim(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			w := newWatch(other, "tag x")
			if err := w.look(t.Context()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(test.after)
			if test.taken {
				if _, err := w.claim(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			before := requests(m)
			l.release()
			synctest.Wait()
			if there := exists(m, leaseKey("tag x")); there != test.taken {
				t.Errorf("the lease is there: %v, want %v", there, test.taken)
			}
			if n := requests(m) - before; test.after < leaseExpiry && n != 2 { // one of them is the test's
				t.Errorf("%d requests to give back a lease that nobody else can have", n-1)
			}
		})
	}
}

func TestLeaseThatIsGivenBackWithPartsIsFreeAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &storetest.Model{}
		one, _ := node(t, m, nil)
		other, _ := node(t, m, nil)
		l, err := newWatch(one, "blob").claim(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		w := newWatch(other, "blob")
		if _, err := w.claim(t.Context()); !errors.Is(err, errHeld) {
			t.Errorf("%v, want %v", err, errHeld)
		}
		l.tell(100, 2)
		l.release()
		synctest.Wait()
		if err := w.look(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got, err := w.claim(t.Context()); err != nil || got.parts() != 2 {
			t.Errorf("%v, want the lease with 2 parts", err)
		}
		if n := other.Stats().TakenOver; n != 0 {
			t.Errorf("%d taken over: nobody has gone away", n)
		}
	})
}

func TestRecordOfALeaseIsNotBelievedBlindly(t *testing.T) {
	for name, record := range map[string]string{
		"no record":    "{",
		"for ever":     `{"holder":"x","what":"blob","expires":9000000000000,"size":1,"parts":1}`,
		"of other":     `{"holder":"x","what":"other","expires":10000,"size":7,"parts":7}`,
		"many parts":   `{"holder":"x","what":"blob","expires":10000,"size":7,"parts":70000000000}`,
		"less than no": `{"holder":"x","what":"blob","expires":-1,"size":-7,"parts":-7}`,
	} {
		bubble(t, name, func(t *testing.T) {
			m := &storetest.Model{}
			put(t, m, leaseKey("blob"), []byte(record))
			tier, _ := node(t, m, nil)
			w := newWatch(tier, "blob")
			if err := w.look(t.Context()); err != nil || w.isFree() {
				t.Fatalf("%v, free %v: want it held", err, w.isFree())
			}
			if w.record.Parts > 1 || w.record.Size > 1 || w.record.Parts < 0 || w.record.Size < -1 {
				t.Errorf("believed: %+v", w.record)
			}
			time.Sleep(maxExpiry)
			if _, err := w.claim(t.Context()); err != nil {
				t.Errorf("after %v: %v", maxExpiry, err)
			}
		})
	}
}

// slowToAnswer carries out at once what it is asked to replace, and says so late, or
// never to who has gone.
type slowToAnswer struct{ *storetest.Model }

func (s slowToAnswer) Replace(ctx context.Context, key string, content []byte, version string) (string, error) {
	version, err := s.Model.Replace(ctx, key, content, version)
	select {
	case <-time.After(time.Second):
		return version, err
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

func TestLeaseIsGivenBackInTheMiddleOfARenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &storetest.Model{}
		one, _ := node(t, m, func(c *Config) {
			c.Store, c.Timeout = slowToAnswer{m}, 2*leaseExpiry // who is not sure asks once more
		})
		l, err := newWatch(one, "blob").claim(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		keeping, stop := context.WithCancel(t.Context())
		var kept sync.WaitGroup
		kept.Go(func() { l.keep(keeping) })
		l.tell(100, 0)
		synctest.Wait() // it is being renewed
		stop()
		kept.Wait()
		l.done()
		if exists(m, leaseKey("blob")) {
			t.Error("it is still there")
		}
	})
}
