// Package shared lets several machines share what one of them has fetched: blobs,
// manifests, what tags point at, and who fetches what is missing, in a store that all
// of them reach.
//
// The tier is never needed. What it does for a request is bounded in time, what goes
// wrong with it is logged and counted, and the request goes on as if there were none.
package shared

import (
	"cmp"
	"context"
	"crypto/rand"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"

	"larder/handler/shared/store"
)

// Config says what is shared, and how patient a node is.
type Config struct {
	Store  store.Store
	Covers func(repository string) bool // of others nothing is read or written; nil: all

	Timeout     time.Duration // what the tier may cost a request, in all
	Wait        time.Duration // how long another node is waited for that makes no progress
	TagTTL      time.Duration // a tag younger than this is taken without asking upstream; 0: none is
	ManifestTTL time.Duration // so is what a repository has

	// Open opens a blob in the local cache, complete or still arriving, and says how
	// large it is (-1: not known yet). It is not fetched for that.
	Open func(ctx context.Context, d digest.Digest) (io.ReadSeekCloser, int64, error)

	Name    string // of this node, in leases; "": by chance
	Rate    int64  // bytes per second that are written; 0: no limit
	Logger  *zap.Logger
	Observe func(op string, took time.Duration, result string) // nil: nobody counts
}

// Tier is what this node shares with others. Its methods may be called by several
// goroutines.
type Tier struct {
	store  store.Store
	cfg    Config
	log    *zap.Logger
	holder string        // this process, in leases
	pace   *rate.Limiter // of what is written; nil: no limit
	sizes  sizes         // immutable after New

	throttle      throttle
	cost          sharedCost
	reads, writes breaker // a store that is full can still be read
	version       version
	queue         queue
	answers       queue // of upstream: short, and not to wait for blobs
	stated        stated
	room          *semaphore.Weighted // for a large manifest
	count         counters
	unleased      atomic.Bool // the store can't do leases
	known         known       // blobs that are in the tier
	doubted       known       // blobs that were wrong in the tier, as they were

	ctx    context.Context // of leases and publishers; ends with Close
	cancel context.CancelCauseFunc
	mu     sync.Mutex     // held while one of wg starts, so that none does after Close
	wg     sync.WaitGroup // leases, publishers, and what is given back
}

// sizes are the constants of these names. Tests make them smaller, so that small blobs
// are shared as large ones are.
type sizes struct{ part, leased int64 }

// New makes a tier of the store that cfg names, which is then the tier's own to
// close. The store is not asked for anything yet.
func New(cfg Config) *Tier {
	t := &Tier{
		store:   cfg.Store,
		cfg:     cfg,
		log:     cfg.Logger,
		holder:  cmp.Or(cfg.Name, rand.Text()),
		sizes:   sizes{part: partSize, leased: leastLeased},
		queue:   newQueue(),
		answers: newQueue(),
		stated:  stated{last: make(map[string]statement)},
		room:    semaphore.NewWeighted(1),
		count:   counters{requests: make(map[request]int64)},
	}
	if t.log == nil {
		t.log = zap.NewNop()
	}
	if cfg.Rate > 0 {
		t.pace = rate.NewLimiter(rate.Limit(cfg.Rate), int(min(cfg.Rate, maxBurst)))
	}
	t.ctx, t.cancel = context.WithCancelCause(context.Background())
	return t
}

// Run writes to the tier what is queued, until ctx is done.
func (t *Tier) Run(ctx context.Context) error {
	var group errgroup.Group
	for range writers {
		group.Go(func() error { return t.write(ctx, &t.queue) })
	}
	group.Go(func() error { return t.write(ctx, &t.answers) }) // one, so that what was said first is written first
	return group.Wait()
}

// Close ends publishers, gives back leases, and closes the store. Bodies that were
// opened before break off.
func (t *Tier) Close() error {
	t.mu.Lock()
	t.cancel(errClosed)
	t.mu.Unlock()
	t.wg.Wait()
	return t.store.Close()
}

// covers reports whether what is the repository's is shared.
func (t *Tier) covers(repository string) bool {
	return t.cfg.Covers == nil || t.cfg.Covers(repository)
}

// start runs do in a goroutine that Close waits for; what it does for longer than a
// few requests has to end with t.ctx. It reports whether it has: not after Close.
func (t *Tier) start(do func()) (started bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ctx.Err() != nil {
		return false
	}
	t.wg.Go(do)
	return true
}
