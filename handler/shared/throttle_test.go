package shared

import (
	"errors"
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
