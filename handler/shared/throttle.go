package shared

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"larder/handler/shared/store"
)

const (
	// firstHold is how long what could wait is held back when a store has said once
	// that it is asked too much, and mostHold when it says nothing else.
	firstHold = 250 * time.Millisecond
	mostHold  = 8 * time.Second

	// calm is how many answers make up for one that it is asked too much.
	calm = 4
)

// throttle is how much a store is to be spared. A large fleet asks for more than a
// store answers; that is no outage, and no reason to ask upstream, which could bear
// less. The zero throttle spares nothing.
type throttle struct {
	mu    sync.Mutex // guards level
	level int        // calm times how often the hold has doubled
}

// note takes note of an answer.
func (h *throttle) note(busy bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if busy {
		h.level = min(h.level+calm, 6*calm)
	} else {
		h.level = max(h.level-1, 0)
	}
}

// hold is how long a request should be held back that can be.
func (h *throttle) hold() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.level == 0 {
		return 0
	}
	return min(firstHold<<((h.level-1)/calm), mostHold)
}

// isBusy reports whether the store has said that it is asked too much, in answer to a
// HEAD by its status. Any other 503 may be an outage.
func isBusy(err error) bool {
	e, ok := errors.AsType[*store.Error](err)
	return ok && (e.Code == "SlowDown" || e.Code == "503 Slow Down")
}

// spare waits until a busy store may be asked.
func (t *Tier) spare(ctx context.Context) error {
	if d := t.throttle.hold(); d > 0 {
		return wait(ctx, d)
	}
	return nil
}

// pause waits before looking again for the n-th time, so that many who began at the
// same moment don't go on so.
func (t *Tier) pause(ctx context.Context, n int) error {
	return wait(ctx, max(min(shortPause<<min(n, 10), longPause), t.throttle.hold()))
}

// wait waits for d, or up to half of that less.
func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d/2 + rand.N(d/2)):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
