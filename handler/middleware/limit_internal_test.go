package middleware

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// However a request ends, nothing is remembered of its client.
func TestLimiterForgetsClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &limiter{most: 1, queue: 2, wait: time.Second, counts: new(LimitCounts), clients: make(map[string]*client)}
		c, err := l.enter(t.Context(), "192.0.2.0:1")
		if err != nil {
			t.Fatal(err)
		}
		ctx, leave := context.WithCancel(t.Context())
		leave()
		if _, err := l.enter(ctx, "192.0.2.1:1"); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		var wg sync.WaitGroup
		for i := range 4 { // two wait, two are refused at once
			wg.Go(func() { l.enter(t.Context(), fmt.Sprintf("192.0.2.%d:1", i+2)) })
		}
		wg.Wait()
		if len(l.clients) != 1 {
			t.Errorf("%d clients, want the one that runs", len(l.clients))
		}
		l.exit(c)
		if len(l.clients) != 0 || len(l.waiting) != 0 || l.counts.Stats() != (LimitStats{Full: 2, Late: 2, Left: 1}) {
			t.Errorf("left behind: %v, %v, %+v", l.clients, l.waiting, l.counts.Stats())
		}
	})
}
