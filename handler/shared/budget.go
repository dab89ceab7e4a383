package shared

import (
	"context"
	"time"
)

// budget is what is left for what is asked of the tier for one question. It is used
// by one goroutine at a time.
type budget struct {
	question context.Context
	left     time.Duration
	running  bool
	room     bool // it has the room for a large manifest
}

type budgetKey struct{}

// Question implements manifestcache.Shared.
func (t *Tier) Question(ctx context.Context) context.Context {
	return context.WithValue(ctx, budgetKey{}, &budget{question: ctx, left: t.cfg.Timeout})
}

func budgetOf(ctx context.Context) *budget {
	b, _ := ctx.Value(budgetKey{}).(*budget)
	return b
}

// within is a context for a request, or some, that a question takes, of which end is
// to be called. ok is false if there is nothing to ask: the repository is not shared,
// or the question has taken too long already.
func (t *Tier) within(ctx context.Context, repository string) (_ context.Context, end func(), ok bool) {
	if budgetOf(ctx) == nil {
		ctx = t.Question(ctx)
	}
	b := budgetOf(ctx)
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

// takeRoom waits for the room for a large manifest, which is the question's until it
// ends.
func (t *Tier) takeRoom(ctx context.Context) bool {
	b := budgetOf(ctx)
	if !b.room && t.room.Acquire(ctx, 1) == nil {
		b.room = true
		context.AfterFunc(b.question, func() { t.room.Release(1) })
	}
	return b.room
}
