package warm

import (
	"context"
	"slices"
	"time"

	"go.uber.org/zap"
)

const (
	// lookEvery is how often a list is looked at.
	lookEvery = 2 * time.Second

	// firstRetry is when what could not be had is tried again: a machine that has
	// just started may have no network yet. It doubles, up to maxRetry.
	firstRetry = 30 * time.Second
	maxRetry   = time.Hour
)

// Follow warms what list says, at once and whenever it says something else, and
// again what could not be had, until ctx is done.
func (w *Warmer) Follow(ctx context.Context, list func() []string) {
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	f := follower{w: w}
	for {
		f.look(list())
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// follower is how far Follow is with a list.
type follower struct {
	w     *Warmer
	list  []string
	job   *Job        // of what is being warmed, nil: nothing is
	left  []reference // what is to be warmed when it is due
	due   time.Time
	pause time.Duration
}

// look does what is due.
func (f *follower) look(list []string) {
	if !slices.Equal(list, f.list) {
		if f.job != nil {
			f.job.Stop()
		}
		f.job, f.list, f.due, f.pause = nil, slices.Clone(list), time.Now(), firstRetry
		f.left, _ = f.w.parseAll(list) // it was checked when it was read
	}
	if f.job != nil && f.job.hasEnded() {
		f.left, f.job = f.job.failed(), nil
		f.later()
	}
	if f.job != nil || len(f.left) == 0 || time.Now().Before(f.due) {
		return
	}
	var err error
	if f.job, err = f.w.start("LARDER_WARM", f.left, f.w.cfg.Platforms); err != nil {
		f.w.log.Warn("LARDER_WARM has to wait", zap.Error(err))
		f.later()
	}
}

// later plans the next try.
func (f *follower) later() {
	f.due, f.pause = time.Now().Add(f.pause), min(2*f.pause, maxRetry)
}
