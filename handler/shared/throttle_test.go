package shared

import (
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"larder/handler/shared/store"
	"larder/handler/shared/storetest"
)

// busy is what a store says that is asked too much.
func busy(op storetest.Op, key string) error {
	return &store.Error{Op: string(op), Key: key, Code: "SlowDown", Err: errors.New("reduce your request rate")}
}

func TestBusyStoreIsAskedAgainAndUpstreamIsNot(t *testing.T) {
	for name, ops := range map[string][]storetest.Op{
		"all": {storetest.Get, storetest.Head, storetest.Put, storetest.Create, storetest.Replace, storetest.Compose, storetest.Delete},
		"get": {storetest.Get}, "head": {storetest.Head},
	} {
		bubble(t, name, func(t *testing.T) {
			m, o := &storetest.Model{SmallParts: true}, newOrigin(40<<20)
			var until atomic.Int64
			m.Fault = func(op storetest.Op, key string) error {
				for _, other := range ops {
					if op == other && time.Now().UnixNano() < until.Load() {
						return busy(op, key)
					}
				}
				return nil
			}
			newMachine(t, m, t.TempDir(), nil).pull(t, o)
			settled()
			o.down.Store(true)
			until.Store(time.Now().Add(5 * time.Second).UnixNano())
			n := newMachine(t, m, t.TempDir(), nil)
			if took := n.pull(t, o); took > 20*time.Second {
				t.Errorf("took %v, with a store that is busy for 5 s", took)
			}
			o.wantSent(t, 40<<20)
			if s := n.Stats(); s.Outages > 0 || s.Hits != 1 {
				t.Errorf("being busy is no outage: %+v", s)
			}
		})
	}
}

func TestBusyStoreIsWaitedForByWhoFetchesForAll(t *testing.T) {
	for _, op := range []storetest.Op{storetest.Put, storetest.Compose} {
		bubble(t, string(op), func(t *testing.T) {
			m, o := quick(), newOrigin(4<<20)
			o.rate = 2 << 20
			began := time.Now()
			m.Fault = func(other storetest.Op, key string) error {
				if other == op && time.Since(began) < 5*time.Second {
					return busy(op, key)
				}
				return nil
			}
			pullAll(t, machines(t, m, 5, nil), o)
			o.wantSent(t, 4<<20)
			in := m.Count().In
			settled()
			wantShared(t, m, o)
			if in = m.Count().In - in; op == storetest.Compose && in > 1<<20 {
				t.Errorf("%d bytes were put once more", in)
			}
		})
	}
}

func TestStoreThatIsBusyForLongIsLeftAlone(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		o := newOrigin(1 << 20)
		m := &storetest.Model{Fault: busy}
		n := newMachine(t, m, t.TempDir(), nil)
		if took := n.pull(t, o); took < firstByte || took > firstByte+mostHold {
			t.Errorf("took %v, want %v and a pause at most", took, firstByte)
		}
		o.wantSent(t, 1<<20)
		if asked := requests(m); asked > 12 {
			t.Errorf("a store that is busy was asked %d times", asked)
		}
	})
	bubble(t, "a large blob", func(t *testing.T) {
		o := newOrigin(20 << 20)
		n := newMachine(t, &storetest.Model{Fault: busy}, t.TempDir(), nil)
		if took, most := n.pull(t, o), firstByte+(1+mostLate)*mostHold; took > most {
			t.Errorf("took %v, want %v at most", took, most)
		}
		if o.wantSent(t, 20<<20); o.asks != mostLate+1 {
			t.Errorf("upstream was asked %d times, want %d pieces and the rest", o.asks, mostLate)
		}
	})
}

func TestAnswerHasABusyStoreWaitedForAnew(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		tier, _ := node(t, &storetest.Model{}, nil)
		f := &fill{tier: tier}
		if !f.later(t.Context()) {
			t.Error("not waited for at all")
		}
		time.Sleep(firstByte)
		if f.later(t.Context()) {
			t.Errorf("waited for after %v", firstByte)
		}
		f.conclude(t.Context(), nil)
		if !f.later(t.Context()) {
			t.Error("not waited for after an answer")
		}
	})
}

func TestHoldDoublesAndFades(t *testing.T) {
	var h throttle
	if got := h.hold(); got != 0 {
		t.Errorf("%v before anything was said", got)
	}
	for i, want := range []time.Duration{firstHold, 2 * firstHold, 4 * firstHold, 8 * firstHold, 16 * firstHold, mostHold, mostHold} {
		if h.note(true); h.hold() != want {
			t.Errorf("%v after %d busy answers, want %v", h.hold(), i+1, want)
		}
	}
	for range 5 * calm {
		h.note(false)
	}
	if got := h.hold(); got != firstHold {
		t.Errorf("%v after %d good answers", got, 5*calm)
	}
	for range calm {
		h.note(false)
	}
	if got := h.hold(); got != 0 {
		t.Errorf("%v after all was good for long", got)
	}
}

// What a store does not take for long is not heaped up, as open blobs and leases.
func TestStoreThatIsBusyForEverIsNotWaitedFor(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		m, o := quick(), newOrigin(4<<20)
		m.Fault = func(op storetest.Op, key string) error {
			if op == storetest.Put {
				return busy(op, key)
			}
			return nil
		}
		n := newMachine(t, m, memoryDir(t), nil)
		n.pull(t, o)
		settled()
		if leases := n.Stats().Leases; leases > 0 {
			t.Errorf("%d leases of what is not being fetched any more", leases)
		}
		if keys := m.Keys(); !slices.Equal(keys, []string{versionKey}) {
			t.Errorf("the store has %v", keys)
		}
	})
}
