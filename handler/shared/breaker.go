package shared

import (
	"sync"
	"time"
)

const (
	// tripFailures is how many quick failures in a row open a breaker. One that took
	// all the time there is does so at once.
	tripFailures = 5

	// firstRest is how long an open breaker lets nobody through. It doubles with each
	// probe that takes too long.
	firstRest = 5 * time.Second
	maxRest   = time.Minute
)

// breaker keeps requests from a store that does not answer them, so that its silence
// costs one request a timeout at a time, not everybody. When it has rested, one
// request is let through as a probe. The zero breaker is closed.
//
// upstream has another one, which knows of Retry-After, handshakes and answers that
// tell which of two is better: none of it is a store's.
type breaker struct {
	mu       sync.Mutex    // guards what follows
	failures int           // in a row
	answered time.Time     // the last success
	failed   time.Time     // the last failure
	rest     time.Duration // 0: closed
	until    time.Time     // nobody is let through
	probing  bool
	trips    int64
	cause    error // of the last failure
}

// begin lets a request through, or not. A probe must come to an end: succeed or fail,
// and then cancel in any case.
func (b *breaker) begin() (through, probe bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.rest == 0 {
		return true, false
	}
	if b.probing || time.Now().Before(b.until) {
		return false, false
	}
	b.probing = true
	return true, true
}

// succeed closes the breaker, and reports whether it was open.
func (b *breaker) succeed() (closed bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	closed = b.rest > 0
	b.failures, b.rest, b.probing, b.answered = 0, 0, false, time.Now()
	return closed
}

// fail notes that a request, put at began, had no answer. It is not believed if there
// was an answer since; failures that overlap are one, and none of them is the probe's.
// It reports whether nobody is let through from now on.
func (b *breaker) fail(began time.Time, slow bool, err error) (opened bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.answered.After(began) || b.failed.After(began) {
		return false
	}
	b.failures++
	b.failed, b.probing, b.cause = time.Now(), false, err
	switch {
	case b.rest > 0 && slow:
		b.rest = min(2*b.rest, maxRest)
	case b.rest > 0:
		b.rest = firstRest
	case slow, b.failures >= tripFailures:
		b.rest, opened = firstRest, true
		b.trips++
	}
	b.until = b.failed.Add(b.rest)
	return opened
}

// cancel ends a probe, if it had no verdict.
func (b *breaker) cancel() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.probing = false
}

// left is how long nobody is let through yet.
func (b *breaker) left() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.rest == 0 {
		return 0
	}
	if b.probing {
		return max(time.Until(b.until), time.Second)
	}
	return max(time.Until(b.until), 0)
}

func (b *breaker) stats() (open bool, trips int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.rest > 0, b.trips
}

// why is why nobody is let through, or nil.
func (b *breaker) why() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.rest == 0 {
		return nil
	}
	return b.cause
}
