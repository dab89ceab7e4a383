package shared

import (
	"context"
	"sync"
	"time"
)

// stated remembers what this node has written of tags, rights and manifests, and when.
type stated struct {
	mu   sync.Mutex // guards last
	last map[string]statement
}

type statement struct {
	says string
	at   time.Time
}

// due reports whether something is to be written: it says something else than what
// was, or that was not of late.
func (s *stated) due(key, says string, every time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	last, ok := s.last[key]
	return !ok || last.says != says || time.Since(last.at).Abs() >= every
}

// note notes that something was written, or found to be there.
func (s *stated) note(key, says string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.last) >= maxKnown {
		clear(s.last)
	}
	s.last[key] = statement{says, time.Now()}
}

// forget has it written when it is next said.
func (s *stated) forget(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.last, key)
}

// budget is how much time is left for what is asked of the tier for one question. It
// is used by one goroutine at a time.
type budget struct {
	left    time.Duration
	running bool
}

type budgetKey struct{}

// Question implements manifestcache.Shared.
func (t *Tier) Question(ctx context.Context) context.Context {
	return context.WithValue(ctx, budgetKey{}, &budget{left: t.cfg.Timeout})
}

// within is a context for a request, or some, that a question takes, of which end is
// to be called. ok is false if there is nothing to ask: the repository is not shared,
// or the question has taken too long already.
func (t *Tier) within(ctx context.Context, repository string) (_ context.Context, end func(), ok bool) {
	b, _ := ctx.Value(budgetKey{}).(*budget)
	if b == nil {
		b = &budget{left: t.cfg.Timeout}
	}
	if !t.covers(repository) || b.left <= 0 {
		return ctx, func() {}, false
	}
	if b.running { // in a claim
		return ctx, func() {}, ctx.Err() == nil
	}
	b.running = true
	began := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, b.left, errSlow)
	return ctx, func() {
		cancel()
		b.left -= time.Since(began)
		b.running = false
	}, true
}
