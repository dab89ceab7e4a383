package history

import (
	"cmp"
	"slices"
	"time"

	"larder/handler/middleware"
)

const (
	maxSlowest = 10
	slowFor    = 24 * time.Hour // how long an answer is among the slowest
)

// Pull is an answer that took long.
type Pull struct {
	At         time.Time // its end
	Kind       string
	Repository string
	Reference  string
	Outcome    string
	Bytes      int64
	Took       time.Duration
	Begun      time.Duration // until the first byte: what larder and the registry took
}

func (h *History) addSlow(now time.Time, o middleware.Observation) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.slowest = append(h.slowest, Pull{now, o.Kind, o.Repository, o.Reference, o.Outcome, o.Bytes, o.Duration, o.Begun})
	slices.SortStableFunc(h.slowest, func(a, b Pull) int { return cmp.Compare(b.Took, a.Took) })
	h.slowest = h.slowest[:min(len(h.slowest), maxSlowest)]
	h.bar()
}

// forgetSlow forgets what was long ago. Needs mu.
func (h *History) forgetSlow(now time.Time) {
	h.slowest = slices.DeleteFunc(h.slowest, func(p Pull) bool { return now.Sub(p.At) > slowFor })
	h.bar()
}

// bar sets how slow the next one must be. Needs mu.
func (h *History) bar() {
	slow := int64(0)
	if len(h.slowest) == maxSlowest {
		slow = int64(h.slowest[maxSlowest-1].Took)
	}
	h.slow.Store(slow)
}
