package doctor

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"larder/handler/shared"
	"larder/handler/shared/store"
)

// errForgotten is what a store answers that does not keep what it is given.
var errForgotten = errors.New("it gives back something else than it was given")

// shared tries all that larder wants of the fleet's store, with an object of its own.
func (cfg Config) shared(ctx context.Context) []Check {
	if cfg.Shared == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	c := Check{Name: "shared store", Status: OK, Detail: cfg.Shared.String() + " can be written, read and listed"}
	t := &trial{check: &c, store: cfg.Shared, key: "doctor/" + rand.Text()}
	if err := t.run(ctx); err != nil {
		c.Status, c.Do = Failed, storeRemedy(err)+" Until it works, larder asks registries for all that it does not have."
		c.Detail = cfg.Shared.String() + ": " + t.failed + ": " + strings.ReplaceAll(storeCause(err).Error(), "\n", "; ")
	}
	return []Check{c}
}

// storeCause is what err says but for the hint, which is in the remedy, and for the
// key, which is the doctor's.
func storeCause(err error) error {
	if e, ok := errors.AsType[*store.Error](err); ok {
		return e.Err
	}
	return err
}

// storeRemedy is what to do about a store that has not done something.
func storeRemedy(err error) string {
	e, ok := errors.AsType[*store.Error](err)
	switch {
	case errors.Is(err, shared.ErrVersion):
		return "Give this fleet a prefix of its own, or all larders the same version."
	case ok && e.Hint != "":
		return strings.ToUpper(e.Hint[:1]) + e.Hint[1:] + "."
	case errors.Is(err, context.DeadlineExceeded):
		return "It does not answer: ask it from this machine, and look at firewalls and proxies (HTTPS_PROXY)."
	default:
		return "Look at LARDER_SHARED, at the keys and what they are allowed, and at the store itself."
	}
}

// trial is an object that is made, read and removed.
type trial struct {
	check *Check
	store store.Store
	key   string

	failed string // the first step that has failed
}

func (t *trial) run(ctx context.Context) error {
	content := []byte(t.key)
	label := store.Label{Size: int64(len(content))}
	// Nothing is written into what is somebody else's.
	if err := t.step("version", func() error { return shared.CheckVersion(ctx, t.store) }); err != nil {
		return err
	}
	if err := t.step("write", func() error { return t.store.Put(ctx, t.key, bytes.NewReader(content), label) }); err != nil {
		return err
	}
	err := t.step("read", func() error { return t.read(ctx, content) })
	if err == nil {
		err = t.step("list", func() error { return t.list(ctx) })
	}
	if err == nil {
		err = t.step("claim", func() error { return t.claim(ctx, content) })
	}
	return errors.Join(err, t.step("delete", func() error { return t.store.Delete(ctx, t.key) }))
}

func (t *trial) step(name string, do func() error) error {
	began := time.Now()
	err := do()
	t.check.Steps = append(t.check.Steps, step(name, time.Since(began)))
	if err != nil && t.failed == "" {
		t.failed = name
	}
	return err
}

func (t *trial) read(ctx context.Context, want []byte) error {
	body, info, err := t.store.Get(ctx, t.key, 0, -1)
	if err != nil {
		return err
	}
	defer body.Close()
	got, err := io.ReadAll(io.LimitReader(body, int64(len(want))+1))
	if err == nil && (!bytes.Equal(got, want) || info.Size != int64(len(want))) {
		err = errForgotten
	}
	return err
}

func (t *trial) list(ctx context.Context) error {
	for item, err := range t.store.List(ctx, "doctor/") {
		if err != nil {
			return err
		}
		if item.Key == t.key {
			return nil
		}
	}
	return fmt.Errorf("listing: %w", errForgotten)
}

// claim finds out whether one of many can be told to be the first, which larder can do
// without.
func (t *trial) claim(ctx context.Context, content []byte) error {
	_, err := t.store.Create(ctx, t.key, content)
	switch {
	case errors.Is(err, store.ErrChanged): // as it has to be: the object is there
		return nil
	case err == nil, errors.Is(err, store.ErrUnsupported):
		t.check.Status = Warning
		t.check.Detail += ", but knows no conditional writes"
		t.check.Do = "Nothing, or have a store that does: several larders may fetch the same blob at the same time, otherwise."
		return nil
	default:
		return err
	}
}
