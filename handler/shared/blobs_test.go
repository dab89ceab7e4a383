package shared

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"larder/handler/shared/store"
	"larder/handler/shared/storetest"
)

func TestBlobThatOneNodeHasFetchedIsNotFetchedByAnother(t *testing.T) {
	sizesOf(t, func(t *testing.T, o *origin, known int64) {
		m := quick()
		dir := memoryDir(t)
		first := newMachine(t, m, memoryDir(t), nil)
		first.size = known
		first.pull(t, o)
		settled()
		wantShared(t, m, o)
		asks := o.asks
		o.down.Store(true)
		other := newMachine(t, m, dir, nil)
		other.size = known
		other.pull(t, o)
		if o.wantSent(t, int64(len(o.data))); o.asks != asks {
			t.Errorf("upstream was asked %d times more", o.asks-asks)
		}
		settled()
		before := requests(m)
		other.pull(t, o)
		if settled(); requests(m) != before {
			t.Errorf("%d requests for what is on disk", requests(m)-before)
		}
		hits := int64(1)
		if known == 0 { // then there is nothing to look for
			hits = 0
		}
		if s := other.Stats(); s.Hits != hits || s.Misses != 0 || s.Read < int64(len(o.data)) || s.Written != 0 || s.Leases != 0 {
			t.Errorf("stats: %+v", s)
		}
		other.cache.Close()
		again := newMachine(t, m, dir, nil) // after a restart
		again.pull(t, o)
		if settled(); requests(m) != before {
			t.Errorf("%d requests for what was on disk at the start", requests(m)-before)
		}
	})
}

func TestSlowTierCostsItsTimeoutOnce(t *testing.T) {
	for name, slow := range map[string]storetest.Op{"nothing is answered": "", "only reads are": storetest.Create, "only bodies are slow": storetest.Read} {
		bubble(t, name, func(t *testing.T) {
			m := &storetest.Model{SmallParts: true}
			o, next := newOrigin(1<<20), newOrigin(2<<20)
			if slow == storetest.Read {
				newMachine(t, m, memoryDir(t), nil).pull(t, o)
				settled()
			}
			sent, _ := o.traffic()
			m.Latency = func(op storetest.Op) time.Duration {
				if slow == "" || op == slow {
					return time.Hour
				}
				return 0
			}
			n := newMachine(t, m, memoryDir(t), nil)
			n.size = 1 << 20
			if took := n.pull(t, o); took > timeout+100*time.Millisecond {
				t.Errorf("the tier cost %v, want %v at most", took, timeout)
			}
			o.wantSent(t, sent+1<<20)
			if n.size = 2 << 20; slow != storetest.Read {
				if took := n.pull(t, next); took > 100*time.Millisecond {
					t.Errorf("the next blob took %v: the store is known to be slow", took)
				}
			}
		})
	}
}

// breaking is a store whose bodies break or stall after n bytes in all.
func breaking(n int64, stall bool) (m *storetest.Model, arm func()) {
	m = quick()
	var armed atomic.Bool
	latency := m.Latency
	broken := func(op storetest.Op) bool { return armed.Load() && op == storetest.Read && m.Count().Out >= n }
	m.Latency = func(op storetest.Op) time.Duration {
		if stall && broken(op) {
			return time.Hour
		}
		return latency(op)
	}
	m.Fault = func(op storetest.Op, _ string) error {
		if !stall && broken(op) {
			return errors.New("connection reset by peer")
		}
		return nil
	}
	return m, func() {
		n += m.Count().Out
		armed.Store(true)
	}
}

func TestBodyOfTheTierThatBreaksIsGoneOnWithFromUpstream(t *testing.T) {
	tests := map[string]struct {
		size    int
		stall   bool
		noRange bool
		again   bool // some bytes come twice, as upstream has no parts
	}{
		"breaks":                        {size: 2 << 20},
		"stalls":                        {size: 2 << 20, stall: true},
		"breaks, in segments":           {size: 36 << 20},
		"stalls, in segments":           {size: 36 << 20, stall: true},
		"breaks, upstream has no parts": {size: 2 << 20, noRange: true, again: true},
	}
	for name, test := range tests {
		bubble(t, name, func(t *testing.T) {
			o := newOrigin(test.size)
			m, arm := breaking(int64(test.size)*3/8, test.stall)
			first := newMachine(t, m, memoryDir(t), nil)
			first.sizes = sizes{part: partSize, leased: leastLeased}
			first.pull(t, o)
			settled()
			arm()
			o.noRange = test.noRange
			before, out := int64(test.size), m.Count().Out
			n := newMachine(t, m, memoryDir(t), nil)
			if took := n.pull(t, o); took > timeout+2*time.Second {
				t.Errorf("the break cost %v", took)
			}
			sent, _ := o.traffic()
			brought := m.Count().Out - out - int64(len(content))
			if got := sent - before + brought; got != int64(test.size) && !test.again {
				t.Errorf("the tier has brought %d bytes, upstream %d: want %d in all", brought, sent-before, test.size)
			}
			if brought < int64(test.size)*3/8 {
				t.Errorf("the tier has brought %d bytes", brought)
			}
			if resumed := n.cache.Stats().Resumed; resumed != 0 && !test.again {
				t.Errorf("the cache has seen %d bodies break, want none", resumed)
			}
		})
	}
}

func TestNoRequestWaitsForAStoreThatIsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := quick()
		m.Fault = func(op storetest.Op, key string) error { return &store.Error{Op: string(op), Key: key, Err: errDown} }
		n := newMachine(t, m, memoryDir(t), nil)
		for i := range 20 {
			if took := n.pull(t, newOrigin(600<<10+i)); took > 20*time.Millisecond {
				t.Errorf("pull %d took %v", i, took)
			}
		}
		if got := requests(m); got > 2*tripFailures {
			t.Errorf("%d requests to a store that is down", got)
		}
		if settled(); n.logs.FilterMessage("the shared store can't be read; going on without").Len() != 1 {
			t.Errorf("log: %v", n.logs.All())
		}
	})
}

func TestStoreThatIsFullFailsNoPull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := quick()
		shared := newOrigin(300 << 10)
		newMachine(t, m, memoryDir(t), nil).pull(t, shared)
		settled()
		m.Fault = func(op storetest.Op, _ string) error {
			if op == storetest.Put || op == storetest.Compose {
				return &store.Error{Op: "put", Code: "QuotaExceeded", Err: errors.New("no room")}
			}
			return nil
		}
		n := newMachine(t, m, memoryDir(t), nil)
		for i := range 10 {
			n.pull(t, newOrigin(600<<10+i))
		}
		sent, _ := shared.traffic()
		n.pull(t, shared)
		shared.wantSent(t, sent)
		if s := n.Stats(); s.ReadsOut != nil || s.Hits != 1 {
			t.Errorf("stats: %+v, want it read", s)
		}
	})
}

func TestWrongObjectIsNeverServedWholeAndReplaced(t *testing.T) {
	for _, size := range []int{10 << 10, 300 << 10, 2 << 20} {
		for name, spoil := range map[string]func([]byte) []byte{
			"flipped":   func(b []byte) []byte { b[len(b)-2]++; return b },
			"truncated": func(b []byte) []byte { return b[:len(b)-1] },
			"longer":    func(b []byte) []byte { return append(b, 'x') },
			"empty":     func([]byte) []byte { return nil },
		} {
			bubble(t, name, func(t *testing.T) {
				m := quick()
				o := newOrigin(size)
				bytes := append([]byte(nil), o.data...)
				put(t, m, blobKey(o.digest), spoil(bytes)) // its own label is right
				n := newMachine(t, m, memoryDir(t), nil)
				n.size = int64(size)
				data, err := n.get(o)
				if err == nil && string(data) != string(o.data) {
					t.Fatalf("served %d wrong bytes as the blob", len(data))
				}
				if name != "flipped" && err != nil {
					t.Errorf("an object of another size is no reason to fail: %v", err)
				}
				settled()
				n.pull(t, o)
				settled()
				wantShared(t, m, o)
				o.down.Store(true)
				other := newMachine(t, m, memoryDir(t), nil)
				other.pull(t, o)
				if o.wantSent(t, int64(size)); n.Stats().Distrusted != 1 {
					t.Errorf("%d distrusted, want 1", n.Stats().Distrusted)
				}
			})
		}
	}
}

func TestRepositoryThatIsNotSharedNeverTouchesTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, o := quick(), newOrigin(1<<20)
		n := newMachine(t, m, memoryDir(t), func(c *Config) { c.Covers = func(r string) bool { return r != repository } })
		n.pull(t, o)
		if settled(); requests(m) != 0 {
			t.Errorf("%d requests", requests(m))
		}
	})
}

func TestPartOfABlobIsNoReasonToFetchAllOfIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, o := quick(), newOrigin(20<<20)
		n := newMachine(t, m, memoryDir(t), nil)
		wantPart(t, n, o, 5<<20, 1000)
		settled()
		if sent, _ := o.traffic(); sent > 1<<20 {
			t.Errorf("upstream has sent %d bytes for 1000", sent)
		}
		newMachine(t, m, memoryDir(t), nil).pull(t, o)
		settled()
		sent, _ := o.traffic()
		wantPart(t, newMachine(t, m, memoryDir(t), nil), o, 7<<20, 1000)
		o.wantSent(t, sent)
	})
}

func TestResumedBlobTakesJustTheRestFromTheTier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, o := quick(), newOrigin(4<<20)
		dir := memoryDir(t)
		n := newMachine(t, m, dir, func(c *Config) { c.Covers = func(string) bool { return false } })
		o.rate = 1 << 20
		wantPart(t, n, o, 0, 1<<20)
		settled()
		kept := n.cache.Stats().PartialBytes
		n.cache.Close()
		sent, _ := o.traffic()
		newMachine(t, m, memoryDir(t), nil).pull(t, o)
		settled()
		out := m.Count().Out
		newMachine(t, m, dir, nil).pull(t, o)
		if got := m.Count().Out - out; kept < 1<<20 || got > 4<<20-kept+100 {
			t.Errorf("%d bytes came from the tier, want the rest but the %d that were there", got, kept)
		}
		if after, _ := o.traffic(); after != sent+4<<20 {
			t.Errorf("upstream has sent %d bytes", after-sent)
		}
	})
}

func TestUploadsThatDoNotFitIntoTheQueueAreDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := quick()
		n := newMachine(t, m, memoryDir(t), nil)
		for n.queue.length() < maxQueued+writers {
			n.enqueue(time.Now().String(), func(ctx context.Context) error { <-ctx.Done(); return nil })
			time.Sleep(time.Nanosecond)
		}
		n.size = 10 << 10
		n.pull(t, newOrigin(10<<10))
		synctest.Wait()
		if s := n.Stats(); s.Dropped == 0 {
			t.Errorf("stats: %+v", s)
		}
	})
}

// wantPart reads length bytes of o's blob from offset.
func wantPart(t *testing.T, n *machine, o *origin, offset, length int64) {
	t.Helper()
	b, err := n.cache.GetRange(context.Background(), o.digest, offset, length, n.source(o, n.size, Part))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Content.Close()
	if _, err := b.Content.Seek(offset, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(io.LimitReader(b.Content, length))
	if err != nil || string(data) != string(o.data[offset:offset+length]) {
		t.Errorf("read %d bytes at %d, %v", len(data), offset, err)
	}
}

func TestWhatTheTierMayCostIsReckonedByTheClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tier, _ := node(t, quick(), nil)
		f := &fill{tier: tier}
		wantLeft := func(want time.Duration) {
			t.Helper()
			if left := f.left(); left != want {
				t.Errorf("%v left, want %v", left, want)
			}
		}
		began := time.Now()
		time.Sleep(time.Second)
		for range 4 { // segments that stood still at the same time
			f.spend(began, 0)
		}
		wantLeft(timeout - time.Second)
		began = time.Now()
		time.Sleep(time.Second / 2)
		f.spend(began, 1<<20) // faster than it need be
		wantLeft(timeout - time.Second/2)
		f.spend(time.Now(), 100<<20)
		wantLeft(timeout) // and no more than that, whatever has come
		began = time.Now()
		time.Sleep(time.Hour)
		f.spend(began, 0)
		wantLeft(mostLate*timeout - time.Hour)
		other := &fill{tier: tier}
		began = time.Now()
		time.Sleep(2 * timeout)
		other.spend(began, 0)
		f.spend(time.Now(), 2<<20) // an outage of an hour is forgotten when something comes
		if left := other.left(); left != timeout {
			t.Errorf("%v left for who was late by more than that, of a store that brings bytes; want %v", left, timeout)
		}
	})
}
