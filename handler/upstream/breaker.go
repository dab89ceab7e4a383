package upstream

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"
)

const (
	// tripFailures is how many quick failures in a row open a breaker. One that
	// took all the time there is does so at once.
	tripFailures = 5

	// firstRest is how long an open breaker lets nobody through, and what is
	// added to Retry-After while a probe is on its way. It doubles with each probe
	// that gets no answer in time. One that fails quickly costs nobody anything:
	// an upstream that refuses connections is not made to wait when it is back.
	firstRest = 5 * time.Second
	maxRest   = time.Minute
)

// errUnasked says that upstream was not asked, as it is left alone for now.
var errUnasked = errors.New("not asked")

// breaker keeps questions from an upstream that can't answer them, so that its
// silence costs one caller a timeout at a time, not everybody. It opens after a
// question without an answer in time, or after several failures in a row; when
// it has rested, one question is let through as a probe. An answer closes it.
//
// Failures that overlap are one: a herd that meets a hiccup is no row.
//
// It is also where a 429 is remembered. The zero breaker is closed, and so is
// nil.
type breaker struct {
	mu       sync.Mutex // guards what follows
	failures int        // in a row
	failed   time.Time  // the last of them
	answered time.Time  // the last success
	cause    error
	rest     time.Duration // 0: closed
	until    time.Time     // nobody is let through
	probing  bool
	trips    int64

	held    time.Time // upstream has said not to ask until then
	avoided time.Time // not asked until then, as that would be in vain
	why     error     // it would be
}

// refusal is why a question is not put.
type refusal struct {
	status int // 429, or 0
	left   time.Duration
	cause  error
}

// begin lets a question through, or says why not. A probe must come to an end:
// succeed, fail or cancel.
func (b *breaker) begin() (probe bool, _ *refusal) {
	if b == nil {
		return false, nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	refused := b.refusal()
	probe = refused == nil && b.rest > 0
	b.probing = b.probing || probe
	return probe, refused
}

// peek says why begin would not let a question through, if it would not.
func (b *breaker) peek() *refusal {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.refusal()
}

// refusal needs mu.
func (b *breaker) refusal() *refusal {
	now := time.Now()
	switch {
	case now.Before(b.held):
		return &refusal{http.StatusTooManyRequests, b.held.Sub(now), errors.New("upstream answered 429")}
	case now.Before(b.avoided):
		return &refusal{0, b.avoided.Sub(now), b.why}
	case b.rest == 0:
		return nil
	case now.Before(b.until):
		return &refusal{0, b.until.Sub(now), b.cause}
	case b.probing:
		return &refusal{0, firstRest, b.cause}
	}
	return nil
}

// succeed closes the breaker. It reports whether it was open, and whether nothing
// is left to remember.
func (b *breaker) succeed() (closed, forget bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	closed = b.rest > 0
	b.failures, b.rest, b.probing, b.answered = 0, 0, false, time.Now()
	return closed, !b.answered.Before(b.held) && !b.answered.Before(b.avoided)
}

// fail notes that a question had no answer. It is not believed if there was an
// answer to another one since it was put. opened is that nobody is let through
// from now on.
func (b *breaker) fail(e *Error) (believed, opened bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.answered.Before(e.began) {
		return false, false
	}
	// A probe may have waited for a handshake that was begun before.
	if e.began.Before(b.failed) && !b.probing {
		return true, false
	}
	b.failures++
	b.failed, b.cause, b.probing = time.Now(), e.cause(), false
	switch slow := e.Timeout(); {
	case b.rest > 0 && slow:
		b.rest = min(2*b.rest, maxRest)
	case b.rest > 0:
		b.rest = firstRest
	case slow, b.failures >= tripFailures:
		b.rest, opened = firstRest, true
		b.trips++
	}
	b.until = b.failed.Add(b.rest)
	return true, opened
}

// stumble notes that an answer broke off: a reason to ask elsewhere first.
func (b *breaker) stumble() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failures = max(b.failures, 1)
}

// cancel ends a probe without a verdict.
func (b *breaker) cancel() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.probing = false
}

// hold lets nobody through for as long as upstream has said.
func (b *breaker) hold(d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failures, b.rest, b.probing = 0, 0, false // a 429 is an answer
	b.held = time.Now().Add(d)
}

// avoid lets nobody through for as long as an answer would be of no use. It reports
// whether that, or why, is news.
func (b *breaker) avoid(d time.Duration, why error) (news bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	news = b.why == nil || b.why.Error() != why.Error()
	if until := time.Now().Add(d); until.After(b.avoided) {
		b.avoided, b.why = until, why
	}
	return news
}

func (b *breaker) failing() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.failures > 0
}

// row is how many failures there were since the last success, and why the last one
// was.
func (b *breaker) row() (failures int, cause error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.failures == 0 {
		return 0, nil
	}
	return b.failures, b.cause
}

// over reports whether there is nothing that keeps questions back.
func (b *breaker) over() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	return !now.Before(b.held) && !now.Before(b.avoided) && !now.Before(b.until) && !b.probing
}

func (b *breaker) stats() (open bool, trips int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	return b.rest > 0 || now.Before(b.held) || now.Before(b.avoided), b.trips
}

// refuse is the Error of a question that was not put. It says when to ask again.
func (r *Repository) refuse(op string, why *refusal) *Error {
	left := why.left.Round(time.Second)
	return &Error{
		Op: op, Repository: r.String(), Status: why.status, unjudged: true,
		Header: http.Header{"Retry-After": {seconds(why.left)}},
		Err:    fmt.Errorf("%w for another %v: %w", errUnasked, left, why.cause),
	}
}

// seconds is d for a Retry-After, rounded up: who heeds it is not early.
func seconds(d time.Duration) string {
	return strconv.FormatInt(int64((d+time.Second-1)/time.Second), 10)
}
