package shared

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"larder/handler/shared/store"
)

// ErrVersion says that the store is used by something else than this larder knows. It
// is left alone, but for a look now and then whether that is still so.
var ErrVersion = errors.New("the shared store is not of this version of larder")

// version is what is known of the tier's object of this name. It is looked at before
// anything else is asked, and again when the store comes back after an outage.
type version struct {
	mu       sync.Mutex // guards what follows
	right    bool
	checking chan struct{} // closed when who looks has looked; nil: nobody does
	foreign  breaker       // open while what was found was something else
}

// admit makes sure that the tier is one that this larder understands.
func (t *Tier) admit(ctx context.Context) error {
	for v := &t.version; ; {
		v.mu.Lock()
		right, wrong, checking := v.right, v.isWrong(), v.checking
		mine := !right && checking == nil && v.foreign.left() == 0
		if mine {
			checking = make(chan struct{})
			v.checking = checking
		}
		v.mu.Unlock()
		switch {
		case right:
			return nil
		case mine:
			err := t.checkVersion(ctx)
			v.mu.Lock()
			v.right, v.checking = err == nil, nil
			v.mu.Unlock()
			close(checking)
			return err
		case wrong:
			return ErrVersion
		}
		if out, _ := t.reads.stats(); out { // who looks may take long
			return errOut
		}
		select {
		case <-checking:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// checkAgain has the version looked at before the next request.
func (v *version) checkAgain() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.right = false
}

func (v *version) isWrong() bool { return v.foreign.why() != nil }

// checkVersion looks at the object, and makes it if there is none.
func (t *Tier) checkVersion(ctx context.Context) error {
	found, err := t.readVersion(ctx)
	if errors.Is(err, store.ErrNotExist) {
		found, err = content, t.makeVersion(ctx)
		if errors.Is(err, store.ErrChanged) { // another node was first
			found, err = t.readVersion(ctx)
		}
	}
	if err != nil {
		return fmt.Errorf("version of the shared store: %w", err)
	}
	if found != content {
		if t.version.foreign.fail(time.Now(), true, ErrVersion) {
			t.log.Error("the shared store is left alone: it is used by something else, or by another version of larder; give this fleet a prefix of its own",
				zap.Stringer("store", t.store), zap.String("version", found), zap.String("want", content))
		}
		return ErrVersion
	}
	if t.version.foreign.succeed() {
		t.log.Info("the shared store is this fleet's again", zap.Stringer("store", t.store))
	}
	return nil
}

func (t *Tier) readVersion(ctx context.Context) (found string, err error) {
	err = t.request(ctx, "get", t.limit(0), func(ctx context.Context) error {
		found, err = readVersion(ctx, t.store)
		return err
	})
	return found, err
}

func readVersion(ctx context.Context, s store.Store) (string, error) {
	body, _, err := s.Get(ctx, versionKey, 0, -1)
	if err != nil {
		return "", err
	}
	defer body.Close()
	data, err := io.ReadAll(io.LimitReader(body, 64))
	return string(data), err
}

// CheckVersion is ErrVersion if a store is used by something else than this larder
// knows. Nothing is written there.
func CheckVersion(ctx context.Context, s store.Store) error {
	found, err := readVersion(ctx, s)
	switch {
	case errors.Is(err, store.ErrNotExist): // nobody uses it yet
		return nil
	case err == nil && found != content:
		return fmt.Errorf("%w: its object version says %q", ErrVersion, found)
	default:
		return err
	}
}

func (t *Tier) makeVersion(ctx context.Context) error {
	err := t.request(ctx, "create", t.limit(0), func(ctx context.Context) error {
		_, err := t.store.Create(ctx, versionKey, []byte(content))
		return err
	})
	if errors.Is(err, store.ErrUnsupported) {
		err = t.request(ctx, "put", t.limit(0), func(ctx context.Context) error {
			return t.store.Put(ctx, versionKey, strings.NewReader(content), store.Label{Size: int64(len(content))})
		})
	}
	return err
}
