package shared

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"larder/blobcache"
	"larder/handler/shared/store"
	"larder/handler/shared/storetest"
)

// machines makes n nodes.
func machines(t *testing.T, m *storetest.Model, n int, change func(*Config)) []*machine {
	t.Helper()
	nodes := make([]*machine, n)
	for i := range nodes {
		nodes[i] = newMachine(t, m, memoryDir(t), change)
	}
	return nodes
}

func TestOneFetchForTheFleet(t *testing.T) {
	for name, test := range map[string]struct {
		size    int
		rate    int64
		sizes   sizes
		known   bool
		atMost  float64 // times what one node alone takes
		noRange bool
		nodes   int
	}{
		"small parts":        {4 << 20, 2 << 20, sizes{256 << 10, 512 << 10}, false, 1.5, false, 20},
		"size is known":      {4 << 20, 2 << 20, sizes{256 << 10, 512 << 10}, true, 1.5, false, 5},
		"one part":           {200 << 10, 200 << 10, sizes{256 << 10, 100 << 10}, false, 2.5, false, 20},
		"in segments":        {36 << 20, 12 << 20, sizes{partSize, leastLeased}, true, 2, false, 3},
		"upstream, no parts": {4 << 20, 2 << 20, sizes{256 << 10, 512 << 10}, false, 1.5, true, 5},
	} {
		bubble(t, name, func(t *testing.T) {
			alone := newOrigin(test.size)
			alone.rate, alone.noRange = test.rate, test.noRange
			one := newMachine(t, quick(), memoryDir(t), func(c *Config) { c.Covers = func(string) bool { return false } }).pull(t, alone)
			m, o := quick(), newOrigin(test.size)
			o.rate, o.noRange = test.rate, test.noRange
			nodes := machines(t, m, test.nodes, nil)
			for _, n := range nodes {
				if n.sizes = test.sizes; test.known {
					n.size = int64(test.size)
				}
			}
			took := pullAll(t, nodes, o)
			if o.wantSent(t, int64(test.size)); took.Seconds() > one.Seconds()*test.atMost {
				t.Errorf("%d nodes took %v, one alone %v", test.nodes, took, one)
			}
			settled()
			wantShared(t, m, o)
			for i, n := range nodes {
				if s := n.Stats(); s.Leases != 0 || s.Distrusted != 0 || n.logs.Len() != 0 {
					t.Errorf("node %d: %+v, %v", i, s, n.logs.All())
				}
			}
		})
	}
}

// holder is the one of the nodes that has the lease.
func holder(t *testing.T, nodes []*machine) *machine {
	t.Helper()
	for _, n := range nodes {
		if n.Stats().Leases > 0 {
			return n
		}
	}
	t.Fatal("no node has the lease")
	return nil
}

func TestOthersFinishWhenTheHolderDies(t *testing.T) {
	for name, after := range map[string]time.Duration{"at once": 100 * time.Millisecond, "in the middle": time.Second, "near the end": 1900 * time.Millisecond} {
		bubble(t, name, func(t *testing.T) {
			m, o := quick(), newOrigin(4<<20)
			o.rate = 2 << 20
			nodes := machines(t, m, 10, nil)
			pulled := make(chan time.Duration)
			go func() { pulled <- pullAll(t, nodes, o) }()
			time.Sleep(after)
			dead := holder(t, nodes)
			dead.reach.dead.Store(true) // no part, no renewal, nothing given back
			if took := <-pulled; took > leaseExpiry+5*time.Second {
				t.Errorf("took %v", took)
			}
			if sent, _ := o.traffic(); sent > 8<<20 {
				t.Errorf("upstream has sent %d bytes, want twice the blob at most", sent)
			}
			settled()
			wantShared(t, m, o)
			took := int64(0)
			for _, n := range nodes {
				took += n.Stats().TakenOver
			}
			if took != 1 {
				t.Errorf("the lease was taken over %d times", took)
			}
		})
	}
}

func TestLeaseIsGoneOnWithWhenItsHolderStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, o := quick(), newOrigin(4<<20)
		o.rate = 2 << 20
		nodes := machines(t, m, 5, nil)
		pulled := make(chan time.Duration)
		for _, n := range nodes {
			go func() {
				began := time.Now()
				_, _ = n.get(o)
				pulled <- time.Since(began)
			}()
		}
		time.Sleep(time.Second)
		stopped := holder(t, nodes)
		stopped.cache.Close()
		for range nodes {
			if took := <-pulled; took > 4*time.Second {
				t.Errorf("took %v: the lease was given back", took)
			}
		}
		sent, _ := o.traffic()
		if sent > 5<<20 {
			t.Errorf("upstream has sent %d bytes, want not much more than the blob", sent)
		}
		settled()
		wantShared(t, m, o)
	})
}

func TestSlowHolderIsWaitedForWhileItGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, o := quick(), newOrigin(2<<20)
		o.rate = 32 << 10 // a part takes 8 s, all of it a minute
		nodes := machines(t, m, 5, func(c *Config) { c.Wait = 5 * time.Second })
		pullAll(t, nodes, o)
		o.wantSent(t, 2<<20)
	})
}

func TestHolderWithoutProgressIsNotWaitedFor(t *testing.T) {
	tests := map[string]struct {
		rate    int64
		wait    time.Duration
		atMost  time.Duration
		fetches int64
	}{
		"nothing for a client that gives up soon": {8 << 10, time.Hour, firstByte + 2*time.Second, 2},
		"nothing for LARDER_SHARED_WAIT":          {8 << 10, 5 * time.Second, 7 * time.Second, 2},
	}
	for name, test := range tests {
		bubble(t, name, func(t *testing.T) {
			m, o := quick(), newOrigin(1<<20)
			o.rate = test.rate // a part takes 32 s
			first := newMachine(t, m, memoryDir(t), nil)
			go func() { _, _ = first.get(o) }()
			time.Sleep(100 * time.Millisecond)
			fast := newOrigin(1 << 20)
			second := newMachine(t, m, memoryDir(t), func(c *Config) { c.Wait = test.wait })
			if took := second.pull(t, fast); took > test.atMost || took < test.atMost-3*time.Second {
				t.Errorf("took %v, want about %v", took, test.atMost)
			}
			fast.wantSent(t, 1<<20)
			time.Sleep(3 * time.Minute)
		})
	}
}

func TestStoreWithoutConditionsIsUsedWithoutLeases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, o, next := quick(), newOrigin(1<<20), newOrigin(2<<20)
		m.NoConditions = true
		nodes := machines(t, m, 3, nil)
		var both sync.WaitGroup
		both.Go(func() { pullAll(t, nodes, o) })
		pullAll(t, nodes, next)
		both.Wait()
		settled()
		o.down.Store(true)
		newMachine(t, m, memoryDir(t), nil).pull(t, o)
		if keys := m.Keys(); len(keys) != 3 {
			t.Errorf("the store has %v, want two blobs and the version", keys)
		}
		for _, n := range nodes {
			if n.logs.FilterMessageSnippet("no conditional writes").Len() != 1 || n.logs.Len() != 1 {
				t.Errorf("log: %v, want it said once", n.logs.All())
			}
		}
	})
}

func TestStoreThatGoesDownInMidPullCostsNoByteTwice(t *testing.T) {
	for name, what := range map[string]func() error{
		"refuses": func() error { return errDown },
		"hangs":   nil,
	} {
		bubble(t, name, func(t *testing.T) {
			m, o := quick(), newOrigin(4<<20)
			o.rate = 2 << 20
			var down atomic.Bool
			latency := m.Latency
			m.Latency = func(op storetest.Op) time.Duration {
				if down.Load() && what == nil {
					return time.Hour
				}
				return latency(op)
			}
			m.Fault = func(op storetest.Op, key string) error {
				if down.Load() && what != nil {
					return &store.Error{Op: string(op), Key: key, Err: what()}
				}
				return nil
			}
			nodes := machines(t, m, 3, nil)
			origins := []*origin{newOrigin(4 << 20), newOrigin(4 << 20), newOrigin(4 << 20)}
			pulled := make(chan time.Duration)
			for i, n := range nodes {
				origins[i].rate = 2 << 20
				go func() { pulled <- n.pull(t, origins[i]) }()
			}
			time.Sleep(time.Second)
			down.Store(true)
			for range nodes {
				if took := <-pulled; took > 2*time.Second+timeout+2*time.Second {
					t.Errorf("took %v", took)
				}
			}
			for i, o := range origins {
				if sent, again := o.traffic(); again != 0 {
					t.Errorf("node %d: %d of %d bytes came twice", i, again, sent)
				}
			}
		})
	}
}

func TestWrongBytesOfUpstreamAreNotShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, o := quick(), newOrigin(2<<20)
		o.rate = 1 << 20
		o.data[1<<20]++
		nodes := machines(t, m, 3, nil)
		failed := make(chan error)
		for _, n := range nodes {
			go func() {
				data, err := n.get(o)
				if len(data) >= len(o.data) {
					err = errors.Join(err, errors.New("served whole"))
				}
				failed <- err
			}()
		}
		for range nodes {
			if err := <-failed; err == nil {
				t.Error("pulled what is wrong")
			}
		}
		settled()
		if keys := m.Keys(); len(keys) != 1 {
			t.Errorf("the store has %v", keys)
		}
		o.data[1<<20]--
		pullAll(t, nodes, o)
		settled()
		wantShared(t, m, o)
	})
}

func TestPartThatIsWrongIsNotServedWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, o := quick(), newOrigin(2<<20)
		o.rate = 1 << 20
		first := newMachine(t, m, memoryDir(t), nil)
		go first.pull(t, o)
		time.Sleep(time.Second)
		spoilt := append([]byte(nil), o.data[:256<<10]...)
		spoilt[5]++
		put(t, m, partKey(o.digest, 0), spoilt)
		second := newMachine(t, m, memoryDir(t), nil)
		if data, err := second.get(o); err == nil {
			t.Errorf("pulled %d bytes with a wrong part", len(data))
		}
		second.pull(t, o)
		settled()
		settled()
		if read(t, m, blobKey(o.digest)) != string(o.data) {
			t.Error("what was made of a wrong part was not replaced")
		}
	})
}

func TestBlobThatIsNotKeptHoldsNoLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, o := quick(), newOrigin(2<<20)
		o.rate = 1 << 20
		full := newMachineWith(t, m, memoryDir(t), blobcache.Config{MaxSize: blobcache.Limit{Bytes: 1 << 20}}, nil)
		full.pull(t, o)
		settled()
		if s := full.Stats(); s.Leases != 0 {
			t.Errorf("stats: %+v", s)
		}
		other := newMachine(t, m, memoryDir(t), nil)
		other.pull(t, o)
		settled()
		wantShared(t, m, o)
		sent, _ := o.traffic()
		full.pull(t, o)
		o.wantSent(t, sent)
	})
}
