package shared

import (
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"larder/handler/shared/storetest"
)

// keeper is a store that removes nothing while it is told so.
func keeper(err error) (m *storetest.Model, keeps *atomic.Bool) {
	keeps = new(atomic.Bool)
	return &storetest.Model{Fault: func(op storetest.Op, _ string) error {
		if op == storetest.Delete && keeps.Load() {
			return err
		}
		return nil
	}}, keeps
}

func TestNoOfUpstreamWinsOverWhatTheTierSaysSinceBefore(t *testing.T) {
	img := newImage("1")
	for name, reference := range map[string]string{"tag": "1", "digest": img.digest.String()} {
		bubble(t, name, func(t *testing.T) {
			m, keeps := keeper(errDown)
			up := newRegistry()
			up.push(img, "1")
			a, b := join(t, m, up, time.Hour, nil), join(t, m, up, time.Hour, nil)
			a.want("1", img, miss)
			time.Sleep(time.Minute)
			up.remove(reference)
			keeps.Store(true)
			heard := func() error {
				_, err := a.Revalidate(t.Context(), alpine, "1", up)
				synctest.Wait()
				return err
			}
			if name == "digest" {
				a.tier.Gone(alpine, reference) // as a node says that upstream has lost it
				synctest.Wait()
			} else if err := heard(); !errors.Is(err, errGone) {
				t.Fatalf("%v, want %v", err, errGone)
			}
			if !exists(m, tagKey(alpine, "1")) || !exists(m, rightKey(alpine, img.digest)) {
				t.Fatal("the tier has removed it")
			}
			if name == "tag" {
				a.wantError("1", errGone) // though what the tier says is fresh
				up.stop(errDown)
				a.wantError("1", errDown) // and better than nothing
				up.stop(nil)
			} else if _, _, ok := a.tier.Right(t.Context(), alpine, img.digest); ok {
				t.Error("a right that upstream has taken back")
			}

			time.Sleep(time.Minute)
			up.push(img, "1")
			if _, err := b.Revalidate(t.Context(), alpine, "1", up); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if _, _, ok := a.tier.Tag(t.Context(), alpine, "1"); !ok {
				t.Error("the tag that is there again is not seen")
			}
			if _, _, ok := a.tier.Right(t.Context(), alpine, img.digest); !ok {
				t.Error("the right that is there again is not seen")
			}
		})
	}
}

func TestTagThatIsGoneIsRemovedFromTheTierThoughItFailsOnce(t *testing.T) {
	for name, silent := range map[string]bool{"the store fails": false, "the store is silent": true} {
		bubble(t, name, func(t *testing.T) {
			var failures atomic.Int32
			m := &storetest.Model{}
			m.Latency = func(op storetest.Op) time.Duration {
				if op == storetest.Delete && silent && failures.Add(-1) >= 0 {
					return time.Hour
				}
				return 0
			}
			m.Fault = func(op storetest.Op, _ string) error {
				if op == storetest.Delete && !silent && failures.Add(-1) >= 0 {
					return errDown
				}
				return nil
			}
			up := newRegistry()
			img := up.push(newImage("1"), "1")
			a := join(t, m, up, 0, nil)
			a.want("1", img, miss)
			up.remove("1")
			failures.Store(1)
			a.wantError("1", errGone)
			time.Sleep(timeout + firstRest)
			synctest.Wait()
			if exists(m, tagKey(alpine, "1")) {
				t.Error("the tier still has a tag that upstream has not")
			}
			failures.Store(1 << 20)
			before := requests(m)
			a.tier.Gone(alpine, "1")
			time.Sleep(time.Hour)
			if n := requests(m) - before; n > 3 {
				t.Errorf("%d requests to a store that removes nothing", n)
			}
		})
	}
}
