package shared

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"larder/handler/shared/store"
	"larder/handler/shared/storetest"
)

// TestRandomFleets lets nodes, deaths, a store that does what it likes and slow
// registries loose on each other. A seed that fails can be run alone:
//
//	go test ./handler/shared -run 'TestRandomFleets/seed=17$'
func TestRandomFleets(t *testing.T) {
	seeds := 60
	if testing.Short() {
		seeds = 15
	}
	for seed := range seeds {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { newRandomFleet(t, uint64(seed)).run() })
		})
	}
}

// randomFleet is a fleet and what happens to it.
type randomFleet struct {
	t     *testing.T
	m     *storetest.Model
	sizes []int
	rate  int64
	lies  bool // the store may change what it holds
	quiet atomic.Bool
	pulls sync.WaitGroup

	mu     sync.Mutex // guards what follows
	random *rand.Rand
	errors float64 // how likely each is
	stalls float64
}

func newRandomFleet(t *testing.T, seed uint64) *randomFleet {
	r := rand.New(rand.NewPCG(seed, 42))
	f := &randomFleet{t: t, m: &storetest.Model{SmallParts: true, NoConditions: r.IntN(8) == 0}, random: r, lies: r.IntN(3) == 0}
	if r.IntN(2) == 0 {
		f.errors, f.stalls = r.Float64()/5, r.Float64()/50
	}
	for range 1 + r.IntN(3) {
		f.sizes = append(f.sizes, r.IntN(2<<20))
	}
	f.rate = 1 << (16 + r.IntN(6))
	f.m.Latency = func(storetest.Op) time.Duration {
		if !f.quiet.Load() && f.chance(f.stalls) {
			return f.time(10 * time.Second)
		}
		return f.time(20 * time.Millisecond)
	}
	f.m.Fault = func(op storetest.Op, key string) error {
		if !f.quiet.Load() && f.chance(f.errors) {
			return &store.Error{Op: string(op), Key: key, Err: errors.New("something is wrong")}
		}
		return nil
	}
	f.m.Lost = func(op storetest.Op, key string) error {
		if !f.quiet.Load() && f.chance(f.errors/2) {
			return &store.Error{Op: string(op), Key: key, Err: errors.New("the answer is lost")}
		}
		return nil
	}
	return f
}

func (f *randomFleet) chance(p float64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.random.Float64() < p
}

func (f *randomFleet) time(most time.Duration) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return time.Duration(f.random.Int64N(int64(most)))
}

func (f *randomFleet) pick(n int) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.random.IntN(n)
}

func (f *randomFleet) run() {
	nodes := make([]*machine, 2+f.pick(4))
	for i := range nodes {
		nodes[i] = newMachine(f.t, f.m, memoryDir(f.t), nil)
	}
	for range 10 + f.pick(10) {
		n := nodes[f.pick(len(nodes))]
		switch what := f.pick(12); {
		case what == 0:
			n.reach.dead.Store(true) // it goes on without the store; to the others it has gone away
		case what == 1 && f.lies:
			f.spoil()
		default:
			f.pulls.Go(func() { f.pull(n) })
		}
		time.Sleep(f.time(3 * time.Second))
	}
	f.pulls.Wait()
	f.quiet.Store(true)
	time.Sleep(5 * time.Minute)
	for i, n := range nodes {
		if s := n.Stats(); s.Leases != 0 || s.Queued != 0 && !n.reach.dead.Load() {
			f.t.Errorf("node %d, when all is quiet: %+v", i, s)
		}
	}
	last := newMachine(f.t, f.m, memoryDir(f.t), nil)
	for range 3 { // what is wrong shows, and is replaced
		for _, size := range f.sizes {
			_, _ = last.get(newOrigin(size))
			time.Sleep(time.Minute)
		}
	}
	for _, size := range f.sizes {
		o := newOrigin(size)
		o.down.Store(true)
		newMachine(f.t, f.m, memoryDir(f.t), nil).pull(f.t, o)
	}
}

// pull has n pull a blob, or a part of it. Only a store that lies may fail that.
func (f *randomFleet) pull(n *machine) {
	o := newOrigin(f.sizes[f.pick(len(f.sizes))])
	o.rate = f.rate
	size := int64(len(o.data))
	if f.pick(2) == 0 {
		size = -1
	}
	wanted, length := Whole, int64(-1)
	if f.pick(4) == 0 {
		wanted, length = Part, 1000
	}
	b, err := n.cache.GetRange(context.Background(), o.digest, 0, length, n.source(o, size, wanted))
	if err != nil {
		if !f.lies {
			f.t.Errorf("%d bytes: %v", len(o.data), err)
		}
		return
	}
	defer b.Content.Close()
	want := o.data
	if length >= 0 {
		want = want[:min(length, int64(len(want)))]
	}
	data, err := io.ReadAll(io.LimitReader(b.Content, int64(len(want))))
	whole := err == nil && len(data) == len(o.data)
	if whole && !bytes.Equal(data, want) || !f.lies && (err != nil || !bytes.Equal(data, want)) {
		f.t.Errorf("read %d of %d bytes, %v", len(data), len(want), err)
	}
	if sent, again := o.traffic(); again > 0 {
		f.t.Errorf("of %d bytes that were fetched for one fill, %d came twice", sent, again)
	}
}

// spoil changes one of the objects.
func (f *randomFleet) spoil() {
	keys := f.m.Keys()
	if len(keys) < 2 {
		return
	}
	key := keys[f.pick(len(keys)-1)] // the last is the version
	body, info, err := f.m.Get(context.Background(), key, 0, -1)
	if err != nil {
		return
	}
	data, err := io.ReadAll(body)
	if err != nil || len(data) == 0 {
		return
	}
	if data[f.pick(len(data))]++; f.pick(2) == 0 {
		data = data[:f.pick(len(data))]
	}
	_ = f.m.Put(context.Background(), key, bytes.NewReader(data), store.Label{Digest: info.Digest, Size: int64(len(data))})
}
