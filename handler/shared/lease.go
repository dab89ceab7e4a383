package shared

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"larder/handler/shared/store"
)

const (
	// leaseExpiry is how long a lease is good for that is not renewed, and leaseRenewal
	// how often it is.
	leaseExpiry  = 10 * time.Second
	leaseRenewal = 3 * time.Second

	// maxExpiry bounds what a holder may claim.
	maxExpiry = time.Minute

	maxLease = 4 << 10 // bytes of a record
	maxParts = 10_000  // as in S3

	// The pauses between two looks at what another node does grow between these.
	shortPause = 50 * time.Millisecond
	longPause  = time.Second
)

// errHeld says that another node has the lease.
var errHeld = errors.New("leased by another node")

// record is what a lease's object says. No clocks are compared: who waits sees by his
// own that the object does not change.
type record struct {
	Holder  string    `json:"holder"` // "": free
	What    string    `json:"what"`
	Began   time.Time `json:"began"`
	Expires int64     `json:"expires"` // milliseconds after the last change
	Size    int64     `json:"size"`    // of the blob; -1: not known
	Parts   int64     `json:"parts"`   // so many of the blob are in the tier, from its start
	Have    int64     `json:"have"`    // bytes that the holder has, from its start
}

// watch is how a node sees the lease of something that it would like to have.
type watch struct {
	tier *Tier
	what string

	there   bool // there is an object
	record  record
	version string
	since   time.Time // when it was first seen so
	tried   time.Time // when this node asked for it, and the store did not say whether it has it
}

// lease is one that this node holds.
type lease struct {
	tier *Tier
	key  string

	nudge chan struct{} // there is something to tell
	lost  chan struct{} // closed when somebody else has it

	mu      sync.Mutex // guards what follows
	record  record
	version string
	renewed time.Time // when the store was last asked for it, and gave it; by the clock that goes on while a machine sleeps
}

func newWatch(t *Tier, what string) *watch {
	return &watch{tier: t, what: what, record: record{Size: -1}}
}

// look looks at the lease as it is now.
func (w *watch) look(ctx context.Context) error {
	data, info, err := w.tier.read(ctx, leaseKey(w.what), maxLease)
	if err != nil && !errors.Is(err, store.ErrNotExist) {
		return err
	}
	there := err == nil
	if there == w.there && info.Version == w.version && !w.since.IsZero() {
		return nil
	}
	w.there, w.version, w.since = there, info.Version, time.Now()
	r := record{Size: -1}
	if there && json.Unmarshal(data, &r) != nil {
		r = record{Holder: "?"} // it expires like any other
	}
	if r.What != w.what || r.Size < 0 || r.Parts < 0 || r.Parts > maxParts {
		r.Size, r.Parts, r.Have = -1, 0, 0
	}
	w.record = r
	return nil
}

// isFree reports whether who had the lease has given it back or gone away.
func (w *watch) isFree() bool {
	expiry := time.Duration(w.record.Expires) * time.Millisecond
	if expiry <= 0 || expiry > maxExpiry {
		expiry = leaseExpiry
	}
	return !w.there || w.record.Holder == "" || w.isOwn() || time.Since(w.since) >= expiry
}

// isOwn reports whether the store has given the lease to this node after all.
func (w *watch) isOwn() bool {
	return w.record.Holder == w.tier.holder && !w.tried.IsZero() && w.record.Began.Equal(w.tried)
}

// claim takes the lease if it is free, as it was last seen, or is errHeld.
func (w *watch) claim(ctx context.Context) (*lease, error) {
	if !w.isFree() {
		return nil, errHeld
	}
	l := &lease{
		tier: w.tier, key: leaseKey(w.what), nudge: make(chan struct{}, 1), lost: make(chan struct{}),
		record:  record{Holder: w.tier.holder, What: w.what, Began: time.Now().UTC(), Expires: leaseExpiry.Milliseconds(), Size: -1},
		renewed: time.Now().Round(0),
	}
	var err error
	if w.there {
		l.record.Size, l.record.Parts = w.record.Size, w.record.Parts
		l.version, err = w.tier.replace(ctx, l.key, l.record.encode(), w.version)
	} else {
		l.version, err = w.tier.create(ctx, l.key, l.record.encode())
	}
	switch {
	case errors.Is(err, store.ErrChanged):
		return nil, errHeld
	case errors.Is(err, store.ErrUnsupported):
		if !w.tier.unleased.Swap(true) {
			w.tier.log.Warn("the shared store has no conditional writes: nodes that want the same at once may each fetch it", zap.Stringer("store", w.tier.store))
		}
		return nil, err
	case err != nil:
		w.tried = l.record.Began
		return nil, err
	}
	if w.there && w.record.Holder != "" && !w.isOwn() {
		w.tier.count.takenOver.Add(1)
		w.tier.log.Info("lease taken over from a node that has gone away", zap.String("what", w.what), zap.Int64("parts", w.record.Parts))
	}
	return l, nil
}

func (r record) encode() []byte {
	data, err := json.Marshal(r)
	if err != nil { // of strings and numbers
		panic(err)
	}
	return data
}

// claimOrWait is for who is about to fetch something that other nodes may want as
// well: of all, one gets the lease, and the others wait until look finds what that one
// has brought. It takes no longer than the tier may, and nobody waits for one of those
// that are asking him. Who gets neither goes on without.
// A lease has to be released.
func (t *Tier) claimOrWait(ctx context.Context, what string, asking []string, look func(ctx context.Context) (found bool, err error)) (l *lease, found bool) {
	if t.unleased.Load() {
		return nil, false
	}
	ctx, cancel := context.WithTimeoutCause(ctx, t.cfg.Timeout, errSlow)
	defer cancel()
	w := newWatch(t, what)
	for n := 0; ; n++ {
		l, err := w.claim(ctx)
		if err != nil && !errors.Is(err, errHeld) && !isBusy(err) {
			return nil, false
		}
		// Whoever had the lease until now may have brought it.
		if found, err := look(ctx); err != nil || found {
			if l != nil {
				l.release()
			}
			return nil, found && err == nil
		}
		if l != nil {
			return l, false
		}
		if t.pause(ctx, n) != nil {
			return nil, false
		}
		if err := w.look(ctx); err != nil && !isBusy(err) || slices.Contains(asking, w.record.Holder) {
			return nil, false
		}
	}
}

// tell has the others know how large the blob is and how many of its parts are there.
func (l *lease) tell(size, parts int64) {
	l.mu.Lock()
	l.record.Size, l.record.Parts = size, parts
	l.mu.Unlock()
	select {
	case l.nudge <- struct{}{}:
	default: // it is about to be told
	}
}

// has notes how large the blob is and how much of it the holder has. That is told with
// the next renewal.
func (l *lease) has(size, n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.record.Size, l.record.Have = size, n
}

func (l *lease) parts() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.record.Parts
}

// keep renews the lease until ctx is done, or it is lost. It comes to the end of a renewal
// that has begun: of one that was cut off, nobody would know which version it has made.
func (l *lease) keep(ctx context.Context) {
	for renewed := time.Now(); ; {
		select {
		case <-ctx.Done():
			return
		case <-l.nudge:
		case <-time.After(leaseRenewal):
		}
		switch err := l.renew(context.WithoutCancel(ctx)); {
		case err == nil:
			renewed = time.Now()
		case errors.Is(err, store.ErrChanged), time.Since(renewed) >= leaseExpiry:
			close(l.lost)
			return
		}
	}
}

func (l *lease) renew(ctx context.Context) error {
	l.mu.Lock()
	data, version, began := l.record.encode(), l.version, time.Now().Round(0)
	l.mu.Unlock()
	version, err := l.tier.replace(ctx, l.key, data, version)
	if err == nil {
		l.mu.Lock()
		l.version, l.renewed = version, began
		l.mu.Unlock()
	}
	return err
}

// isSure reports whether nobody else can have the lease before one request more is over.
func (l *lease) isSure() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Now().Round(0).Sub(l.renewed).Abs()+l.tier.limit(0) < leaseExpiry
}

// release gives the lease back. It does not wait.
func (l *lease) release() {
	l.tier.start(l.giveBack) // or it expires
}

// giveBack gives the lease back: if there are parts of a blob, so that the next one
// to take it knows of them.
func (l *lease) giveBack() {
	l.mu.Lock()
	r, version := l.record, l.version
	l.mu.Unlock()
	if r.Parts == 0 {
		l.done()
		return
	}
	if r.Holder = ""; !l.isLost() {
		_, _ = l.tier.replace(context.WithoutCancel(l.tier.ctx), l.key, r.encode(), version) // or it expires
	}
}

// done removes the lease of what nobody has to fetch any more. Stores can't be asked to
// remove a certain version of an object: whether it is still this node's, a renewal tells.
// Only a request that a store does later than it is waited for may remove another's.
func (l *lease) done() {
	ctx := context.WithoutCancel(l.tier.ctx)
	if !l.isLost() && (l.isSure() || l.renew(ctx) == nil) {
		_ = l.tier.remove(ctx, l.key) // or it expires
	}
}

// isLost reports whether the lease is another node's by now.
func (l *lease) isLost() bool {
	select {
	case <-l.lost:
		return true
	default:
		return false
	}
}
