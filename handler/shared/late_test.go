package shared

import (
	"bytes"
	"context"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"larder/handler/shared/store"
	"larder/handler/shared/storetest"
)

// tardy is a store that keeps those waiting for very long who get one of its objects,
// as often as it is to.
type tardy struct {
	store.Store
	key   string
	times atomic.Int64
}

// Get implements store.Store.
func (s *tardy) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, store.Info, error) {
	if key == s.key && s.times.Add(-1) >= 0 {
		<-ctx.Done()
		return nil, store.Info{}, &store.Error{Op: "get", Key: key, Err: context.Cause(ctx)}
	}
	return s.Store.Get(ctx, key, offset, length)
}

func TestLateRequestHasUpstreamStepInForAPiece(t *testing.T) {
	const size = 8 << 20
	tests := map[string]struct {
		late   int64 // so many requests in a row
		flows  bool  // meanwhile, the store brings another blob
		sent   int64
		atMost time.Duration
	}{
		"once":                         {1, true, 1 << 20, timeout},
		"twice":                        {2, true, 3 << 20, 2 * timeout},
		"always":                       {1 << 30, true, size, mostLate * timeout},
		"once, and nothing else comes": {1, false, size, timeout},
	}
	for name, test := range tests {
		bubble(t, name, func(t *testing.T) {
			o := newOrigin(size)
			late := &tardy{key: blobKey(o.digest)}
			late.times.Store(test.late)
			n, flows := besides(t, o, func(s store.Store) store.Store {
				late.Store = s
				return late
			})
			if !test.flows {
				<-flows
			}
			if took := n.pull(t, o); took > test.atMost+size/(256<<10)*readTime {
				t.Errorf("took %v, want no more than %v and what the bytes take", took, test.atMost)
			}
			o.wantSent(t, test.sent)
			if out := n.Stats().ReadsOut; test.flows && out != nil {
				t.Errorf("a store that brings bytes is left alone: %v", out)
			}
			if test.flows {
				<-flows
			}
		})
	}
}

func TestBodyThatIsLateHasUpstreamStepInForAPiece(t *testing.T) {
	const size = 8 << 20
	tests := map[string]struct {
		stalls, late int64 // so many bodies in a row, after so many requests
		after        int64
		sent         int64
		atMost       time.Duration
	}{
		"once":               {1, 0, 3 << 20, 1 << 20, timeout},
		"after a late one":   {1, 1, 3 << 20, 2 << 20, 2 * timeout},
		"always, at its end": {1 << 30, 0, 0, size, mostLate * timeout},
	}
	for name, test := range tests {
		bubble(t, name, func(t *testing.T) {
			o := newOrigin(size)
			stalls := &stalling{key: blobKey(o.digest), after: test.after}
			stalls.times.Store(test.stalls)
			late := &tardy{Store: stalls, key: stalls.key}
			late.times.Store(test.late)
			n, flows := besides(t, o, func(s store.Store) store.Store {
				stalls.Store = s
				return late
			})
			if took := n.pull(t, o); took > test.atMost+size/(256<<10)*readTime {
				t.Errorf("took %v, want no more than %v and what the bytes take", took, test.atMost)
			}
			o.wantSent(t, test.sent)
			<-flows
		})
	}
}

// readTime is what the store of besides takes for 256 KiB.
const readTime = 100 * time.Millisecond

// besides is a node that gets another blob than o's from its store, which has both,
// brings 2.5 MiB/s of each, and may be spoilt.
func besides(t *testing.T, o *origin, spoil func(store.Store) store.Store) (n *machine, flows <-chan time.Duration) {
	t.Helper()
	m := &storetest.Model{SmallParts: true, Latency: func(op storetest.Op) time.Duration {
		if op == storetest.Read {
			return readTime
		}
		return 0
	}}
	other := newOrigin(30 << 20)
	put(t, m, blobKey(o.digest), o.data)
	put(t, m, blobKey(other.digest), other.data)
	n = newMachine(t, m, memoryDir(t), nil)
	n.reach.Store = spoil(n.reach.Store)
	pulled := make(chan time.Duration, 1)
	go func() { pulled <- n.pull(t, other) }()
	time.Sleep(time.Second)
	return n, pulled
}

// stalling is a store one object of which stalls after so many bytes, as often as it is
// to.
type stalling struct {
	store.Store
	key   string
	after int64
	times atomic.Int64
}

// Get implements store.Store.
func (s *stalling) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, store.Info, error) {
	body, info, err := s.Store.Get(ctx, key, offset, length)
	if err != nil || key != s.key || s.times.Add(-1) < 0 {
		return body, info, err
	}
	stall := readerFunc(func([]byte) (int, error) {
		<-ctx.Done()
		return 0, context.Cause(ctx)
	})
	return struct {
		io.Reader
		io.Closer
	}{io.MultiReader(io.LimitReader(body, s.after), stall), body}, info, nil
}

type readerFunc func(p []byte) (int, error)

// Read implements io.Reader.
func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestStoreThatBringsTooLittleIsLeftAlone(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		m := &storetest.Model{SmallParts: true, Latency: func(op storetest.Op) time.Duration {
			if op == storetest.Read {
				return time.Second // 256 KiB/s
			}
			return 0
		}}
		first, second := newOrigin(8<<20), newOrigin(9<<20)
		put(t, m, blobKey(first.digest), first.data)
		put(t, m, blobKey(second.digest), second.data)
		n := newMachine(t, m, memoryDir(t), nil)
		pulled := make(chan time.Duration)
		go func() { pulled <- n.pull(t, first) }()
		time.Sleep(time.Second / 2)
		if took := n.pull(t, second); took > 2*timeout+time.Second { // half of what is wanted
			t.Errorf("took %v", took)
		}
		<-pulled
		if n.Stats().ReadsOut == nil {
			t.Error("the store is asked for more")
		}
	})
}

func TestLateLeaseIsLookedAtAgain(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		m := quick()
		o, other := newOrigin(4<<20), newOrigin(30<<20)
		o.rate = 1 << 20
		put(t, m, blobKey(other.digest), other.data)
		latency := m.Latency
		m.Latency = func(op storetest.Op) time.Duration {
			if op == storetest.Read {
				return 100 * time.Millisecond
			}
			return latency(op)
		}
		first, second := newMachine(t, m, memoryDir(t), nil), newMachine(t, m, memoryDir(t), nil)
		s := &tardyLease{Store: second.reach.Store}
		second.reach.Store = s
		pulled := make(chan time.Duration)
		go func() { pulled <- first.pull(t, o) }()
		go func() { pulled <- second.pull(t, other) }()
		time.Sleep(time.Second)
		second.pull(t, o)
		if o.wantSent(t, 4<<20); !s.late.Load() {
			t.Error("no lease was late")
		}
		<-pulled
		<-pulled
	})
}

// tardyLease is a store that keeps who would like to have a lease waiting, once.
type tardyLease struct {
	store.Store
	late atomic.Bool
}

// Create implements store.Store.
func (s *tardyLease) Create(ctx context.Context, key string, content []byte) (string, error) {
	if strings.HasPrefix(key, leasesPrefix) && !s.late.Swap(true) {
		<-ctx.Done()
		return "", &store.Error{Op: "create", Key: key, Err: context.Cause(ctx)}
	}
	return s.Store.Create(ctx, key, content)
}

// ownLease is a store that gives a lease, once, and does not say so.
type ownLease struct {
	store.Store
	late atomic.Bool
}

// Create implements store.Store.
func (s *ownLease) Create(ctx context.Context, key string, content []byte) (string, error) {
	version, err := s.Store.Create(ctx, key, content)
	if strings.HasPrefix(key, leasesPrefix) && !s.late.Swap(true) {
		<-ctx.Done()
		return "", &store.Error{Op: "create", Key: key, Err: context.Cause(ctx)}
	}
	return version, err
}

func TestLeaseThatThisNodeHasUnawaresIsNotWaitedFor(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		n, flows := besides(t, newOrigin(1), func(s store.Store) store.Store { return &ownLease{Store: s} })
		o := newOrigin(8 << 20)
		if took := n.pull(t, o); took > timeout+time.Second {
			t.Errorf("took %v, want no more than %v and what the bytes take", took, timeout)
		}
		<-flows
		settled()
		o.wantSent(t, 8<<20)
		if s := n.Stats(); s.TakenOver > 0 || s.Leases > 0 {
			t.Errorf("it is nobody else's: %+v", s)
		}
		if _, err := n.head(t.Context(), blobKey(o.digest)); err != nil {
			t.Errorf("it is not shared: %v", err)
		}
	})
}

// trickling is a store that brings a little of a blob at a time.
type trickling struct {
	store.Store
	o     *origin
	pause time.Duration
}

// Get implements store.Store.
func (s *trickling) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, store.Info, error) {
	body, info, err := s.Store.Get(ctx, key, offset, length)
	if err != nil || key != blobKey(s.o.digest) {
		return body, info, err
	}
	rest := bytes.NewReader(s.o.data[offset:])
	trickle := readerFunc(func(p []byte) (int, error) {
		select {
		case <-time.After(s.pause):
			return rest.Read(p[:min(len(p), 1<<10)])
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	})
	return struct {
		io.Reader
		io.Closer
	}{trickle, body}, info, nil
}

func TestBlobThatTricklesIsNoOutageWhileOthersFlow(t *testing.T) {
	const size = 8 << 20
	for _, pause := range []time.Duration{31 * time.Millisecond, 47 * time.Millisecond, 61 * time.Millisecond} {
		bubble(t, pause.String(), func(t *testing.T) {
			o := newOrigin(size)
			n, flows := besides(t, o, func(s store.Store) store.Store { return &trickling{s, o, pause} })
			if took, most := n.pull(t, o), mostLate*timeout*3/2; took > most {
				t.Errorf("took %v, want no more than %v", took, most)
			}
			if s := n.Stats(); s.Outages > 0 {
				t.Errorf("a store that brings bytes was left alone: %v", s.ReadsOut)
			}
			<-flows
		})
	}
}
