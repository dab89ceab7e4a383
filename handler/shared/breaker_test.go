package shared

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"larder/handler/shared/store"
	"larder/handler/shared/storetest"
)

// One that was asked before the store was left alone tells nothing of the probe that
// finds out whether it is back, however it ends.
func TestOldRequestIsNotTheProbe(t *testing.T) {
	for name, end := range map[string]error{"who asked has left": context.Canceled, "it has failed": errDown, "the store is busy": &store.Error{Code: "SlowDown", Err: errDown}} {
		bubble(t, name, func(t *testing.T) {
			m := &storetest.Model{}
			tier, _ := node(t, m, nil)
			old := make(chan error)
			oldCtx, leave := context.WithCancel(t.Context())
			defer leave()
			go func() {
				_ = tier.ask(oldCtx, "put", 0, func(context.Context) error { return <-old })
			}()
			synctest.Wait()
			_ = tier.ask(t.Context(), "put", timeout, func(ctx context.Context) error { <-ctx.Done(); return context.Cause(ctx) })
			time.Sleep(firstRest)
			probe := make(chan error)
			go func() { _ = tier.ask(t.Context(), "put", 0, func(context.Context) error { return <-probe }) }()
			synctest.Wait()
			if end == context.Canceled {
				leave()
			}
			old <- end
			for range 10 {
				time.Sleep(maxRest)
				if err := tier.ask(t.Context(), "put", 0, func(context.Context) error { return nil }); !errors.Is(err, errOut) {
					t.Errorf("%v beside the probe, want %v", err, errOut)
				}
			}
			probe <- nil
			synctest.Wait()
			if err := tier.ask(t.Context(), "put", 0, func(context.Context) error { return nil }); err != nil {
				t.Errorf("after the probe: %v", err)
			}
		})
	}
}

func TestProbeThatIsGivenUpMakesRoomForTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tier, _ := node(t, &storetest.Model{}, nil)
		silence := func(ctx context.Context) error { <-ctx.Done(); return context.Cause(ctx) }
		_ = tier.ask(t.Context(), "put", timeout, silence)
		time.Sleep(firstRest)
		ctx, leave := context.WithTimeout(t.Context(), timeout/4)
		defer leave()
		if err := tier.ask(ctx, "put", timeout, silence); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("the probe: %v", err)
		}
		if err := tier.ask(t.Context(), "put", timeout, func(context.Context) error { return nil }); err != nil {
			t.Errorf("the next one: %v", err)
		}
	})
}
