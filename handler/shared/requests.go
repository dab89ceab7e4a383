package shared

import (
	"context"
	"errors"
	"io"
	"time"

	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"larder/handler/shared/store"
)

const (
	// leastRate is how many bytes per second a store has to bring or take at least.
	leastRate = 1 << 20

	// maxPiece is how much a store may take at once of what it is given, before it has
	// to ask for more.
	maxPiece = 64 << 20

	// maxBurst is how much of what is written is not held back by a limit of its rate.
	maxBurst = 256 << 10
)

var (
	errOut    = errors.New("the shared store is left alone for now")
	errSlow   = errors.New("the shared store is too slow")
	errClosed = errors.New("the shared tier is closed")

	errTooLarge = errors.New("larger than it can be")
)

// limit is how long a request may take that moves size bytes.
func (t *Tier) limit(size int64) time.Duration {
	return t.cfg.Timeout + time.Duration(size)*time.Second/leastRate
}

// ask puts a request to the store, unless it is left alone. Without a limit it ends
// with ctx. Whatever is asked of the store goes through here.
func (t *Tier) ask(ctx context.Context, op string, limit time.Duration, do func(context.Context) error) error {
	if limit > 0 {
		limited, cancel := context.WithTimeoutCause(ctx, limit, errSlow)
		defer cancel()
		ctx = limited
	}
	if err := t.admit(ctx); err != nil {
		return err
	}
	return t.request(ctx, op, limit, do)
}

// request is ask for who looks at the version.
func (t *Tier) request(ctx context.Context, op string, limit time.Duration, do func(context.Context) error) error {
	b := t.breakerOf(op)
	through, probe := b.begin()
	if !through {
		t.count.request(op, "unasked")
		return errOut
	}
	if probe {
		defer b.cancel()
	}
	if limit > 0 {
		limited, cancel := context.WithTimeoutCause(ctx, limit, errSlow)
		defer cancel()
		ctx = limited
	}
	began := time.Now()
	err := do(ctx)
	t.judge(ctx, op, began, err)
	return err
}

// breakerOf is the breaker for what op is: reading or writing.
func (t *Tier) breakerOf(op string) *breaker {
	switch op {
	case "get", "head", "list", "sign":
		return &t.reads
	default:
		return &t.writes
	}
}

// judge takes note of how a request went.
func (t *Tier) judge(ctx context.Context, op string, began time.Time, err error) {
	took, b, result := time.Since(began), t.breakerOf(op), resultOf(ctx, err)
	t.count.request(op, result)
	t.throttle.note(result == "busy")
	if t.cfg.Observe != nil {
		t.cfg.Observe(op, took, result)
	}
	switch {
	case result == "busy": // it answers, and there is nothing to find out by asking less
	case result == "canceled", result == "slow" && took < t.cfg.Timeout/2: // who had little time left says little about the store
	case result == "slow", result == "failed":
		t.failed(op, began, result == "slow", err)
	default:
		if b.succeed() {
			t.log.Info("the shared store answers again", zap.Stringer("store", t.store), zap.String("op", op))
		}
	}
}

// resultOf is a word for how a request went.
func resultOf(ctx context.Context, err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, store.ErrNotExist):
		return "absent"
	case errors.Is(err, store.ErrChanged):
		return "changed"
	case errors.Is(err, store.ErrUnsupported):
		return "unsupported"
	case errors.Is(err, store.ErrRange):
		return "range"
	case isBusy(err):
		return "busy"
	case context.Cause(ctx) == errSlow:
		return "slow"
	case ctx.Err() != nil:
		return "canceled"
	default:
		return "failed"
	}
}

// failed notes that the store did not do what it should have, and tells the operator
// when that is the beginning of an outage.
func (t *Tier) failed(op string, began time.Time, slow bool, err error) {
	b := t.breakerOf(op)
	if slow && b == &t.reads && t.cost.hasBrought(began) { // it is late with one thing of several
		return
	}
	if !b.fail(began, slow, err) {
		return
	}
	if b == &t.reads {
		t.version.checkAgain() // it may come back as another one
		t.log.Warn("the shared store can't be read; going on without", zap.Stringer("store", t.store), zap.String("op", op), zap.Error(err))
		return
	}
	t.log.Warn("the shared store takes nothing; what is new is not shared", zap.Stringer("store", t.store), zap.String("op", op), zap.Error(err))
}

// head says what there is under a key.
func (t *Tier) head(ctx context.Context, key string) (info store.Info, err error) {
	err = t.ask(ctx, "head", t.limit(0), func(ctx context.Context) error {
		info, err = t.store.Head(ctx, key)
		return err
	})
	return info, err
}

// open opens an object, or a part of it; limit is for that. The body ends with ctx.
func (t *Tier) open(ctx context.Context, key string, offset, length int64, limit time.Duration) (io.ReadCloser, store.Info, error) {
	var info store.Info
	b := &body{tier: t}
	ctx, b.cancel = context.WithCancelCause(ctx)
	err := t.ask(ctx, "get", limit, func(limited context.Context) (err error) {
		stop := context.AfterFunc(limited, func() { b.cancel(context.Cause(limited)) })
		defer stop()
		b.ReadCloser, info, err = t.store.Get(ctx, key, offset, length)
		return err
	})
	if err != nil {
		b.cancel(nil)
		return nil, info, err
	}
	return b, info, nil
}

// body is an object on its way from the store.
type body struct {
	io.ReadCloser
	tier   *Tier
	cancel context.CancelCauseFunc
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.tier.count.read.Add(int64(n))
	return n, err
}

// Close implements io.Closer.
func (b *body) Close() error {
	defer b.cancel(nil)
	return b.ReadCloser.Close()
}

// read reads a small object, of no more than most bytes.
func (t *Tier) read(ctx context.Context, key string, most int64) (data []byte, info store.Info, err error) {
	err = t.ask(ctx, "get", t.limit(0), func(ctx context.Context) error {
		content, i, err := t.store.Get(ctx, key, 0, -1)
		if err != nil {
			return err
		}
		defer content.Close()
		info = i
		data, err = io.ReadAll(io.LimitReader(content, most+1))
		t.count.read.Add(int64(len(data)))
		return err
	})
	if err == nil && int64(len(data)) > most {
		return nil, info, &store.Error{Op: "get", Key: key, Err: errTooLarge}
	}
	return data, info, err
}

// put makes or replaces an object. It is given up when the store takes nothing of it
// for long.
func (t *Tier) put(ctx context.Context, key string, content io.ReadSeeker, label store.Label) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	u := &upload{ReadSeeker: content, ctx: ctx, pace: t.pace, limit: t.limit(min(label.Size, maxPiece))}
	u.watch = time.AfterFunc(u.limit, func() { cancel(errSlow) })
	defer u.watch.Stop()
	err := t.ask(ctx, "put", 0, func(ctx context.Context) error { return t.store.Put(ctx, key, u, label) })
	if err == nil {
		t.count.written.Add(label.Size)
	}
	return err
}

// upload is what is read for a Put, at the tier's pace. What is waited for here is not
// held against the store.
type upload struct {
	io.ReadSeeker
	ctx   context.Context // that of the Put
	pace  *rate.Limiter
	watch *time.Timer
	limit time.Duration
}

// Read implements io.Reader.
func (u *upload) Read(p []byte) (int, error) {
	u.watch.Stop()
	defer u.watch.Reset(u.limit)
	if u.pace != nil {
		p = p[:min(len(p), u.pace.Burst())]
		if err := u.pace.WaitN(u.ctx, len(p)); err != nil {
			return 0, err
		}
	}
	return u.ReadSeeker.Read(p)
}

// create makes a small object if there is none.
func (t *Tier) create(ctx context.Context, key string, content []byte) (version string, err error) {
	err = t.ask(ctx, "create", t.limit(0), func(ctx context.Context) error {
		version, err = t.store.Create(ctx, key, content)
		return err
	})
	return version, err
}

// replace replaces the version of a small object.
func (t *Tier) replace(ctx context.Context, key string, content []byte, version string) (newVersion string, err error) {
	err = t.ask(ctx, "replace", t.limit(0), func(ctx context.Context) error {
		newVersion, err = t.store.Replace(ctx, key, content, version)
		return err
	})
	return newVersion, err
}

// compose makes an object of others.
func (t *Tier) compose(ctx context.Context, key string, parts []string, label store.Label) error {
	return t.ask(ctx, "compose", t.limit(label.Size), func(ctx context.Context) error {
		return t.store.Compose(ctx, key, parts, label)
	})
}

// remove removes an object, if it is there.
func (t *Tier) remove(ctx context.Context, key string) error {
	return t.ask(ctx, "delete", t.limit(0), func(ctx context.Context) error { return t.store.Delete(ctx, key) })
}
