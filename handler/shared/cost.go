package shared

import (
	"sync"
	"time"
)

// mostLate is how many times its timeout a blob may lose to a store that meanwhile brings
// others what it should, and how many pieces in a row upstream then steps in for.
const mostLate = 3

// cost is what the store has cost beyond what the bytes need that it has brought.
type cost struct {
	debt     time.Duration
	reckoned time.Time
}

// spend notes that the store has been waited for since began, and has brought n bytes.
// What it takes too long for some it may make good with others, but not before. Who
// waits at the same time waits once.
func (c *cost) spend(began time.Time, n int) {
	now := time.Now()
	if c.reckoned.After(began) {
		began = c.reckoned
	}
	c.debt = max(c.debt+now.Sub(began)-time.Duration(n)*time.Second/leastRate, 0)
	c.reckoned = now
}

// sharedCost is the cost of all blobs together.
type sharedCost struct {
	mu      sync.Mutex // guards what follows
	cost    cost
	brought time.Time // when the last bytes came
}

// spend is that of cost. More than most is owed by nobody: a store that was down for
// long is not to make that good.
func (s *sharedCost) spend(began time.Time, n int, most time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cost.spend(began, n)
	s.cost.debt = min(s.cost.debt, most)
	if n > 0 {
		s.brought = s.cost.reckoned
	}
}

// hasBrought reports whether the store has brought anything since began.
func (s *sharedCost) hasBrought(began time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.brought.After(began)
}

func (s *sharedCost) debt() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cost.debt
}

// left is how much longer the store may keep the fill waiting. As long as it brings
// this node as much as it should, it is not out of order but has much to do: asking
// upstream would only be worse, so that the fill waits longer.
func (f *fill) left() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	timeout := f.tier.cfg.Timeout
	return min(timeout-min(f.cost.debt, f.tier.cost.debt()), mostLate*timeout-f.cost.debt)
}

// spend notes that the fill has waited for the store since began, which has brought n
// bytes.
func (f *fill) spend(began time.Time, n int) {
	f.tier.cost.spend(began, n, f.tier.cfg.Timeout)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.read += int64(n)
	f.cost.spend(began, n)
}
