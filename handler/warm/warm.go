// Package warm has images brought into the cache before anybody pulls them, in the
// way in which a client's pull would bring them.
package warm

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"
	"golang.org/x/sync/semaphore"

	"larder/blobcache"
	"larder/handler/upstream"
	"larder/manifestcache"
)

const (
	// maxReferences bounds an order, and maxImages what patterns make of it.
	maxReferences = 1000
	maxImages     = 2000

	// maxJobs is how many orders are carried out at once, and kept is how many are
	// remembered that have come to their end.
	maxJobs = 16
	kept    = 20

	// atOnce is how many images, and how many blobs, are fetched at once for all
	// jobs together. A blob that nobody reads takes one connection: most of those
	// to a registry are left to clients.
	atOnce = 4
)

var (
	// ErrBusy says that too many orders are being carried out.
	ErrBusy = errors.New("too many orders at once")

	// ErrClosed says that larder stops.
	ErrClosed = errors.New("larder is shutting down")

	errStopped = errors.New("stopped")
)

// Registry brings things into the cache; *handler.Handler does.
type Registry interface {
	// Manifest returns what reference, a tag or a digest, means now.
	Manifest(ctx context.Context, repo *upstream.Repository, reference string) (*manifestcache.Manifest, []byte, error)
	// Fill has a blob kept. arrived is told how far it is.
	Fill(ctx context.Context, repo *upstream.Repository, d digest.Digest, arrived func(have, size int64)) (blobcache.Outcome, error)
	// Tags is a page of a repository's tags, and the query for the next, if any.
	Tags(ctx context.Context, repo *upstream.Repository, query url.Values) (tags []string, next url.Values, err error)
}

// Config is what a Warmer works with. All of it is needed, but for Platforms.
type Config struct {
	Registry  Registry
	Upstreams *upstream.Client
	Platforms Platforms // of orders that do not say which; nil: all
	// Denied is the name of the setting by which a repository is not served, or "".
	Denied func(repository string) (setting string)
	Logger *zap.Logger
}

// Warmer carries out orders. Its methods may be called concurrently.
type Warmer struct {
	cfg    Config
	log    *zap.Logger
	ctx    context.Context // of all jobs; ends with Close
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup // the jobs
	images *semaphore.Weighted
	blobs  *semaphore.Weighted
	count  counters

	mu   sync.Mutex // guards what follows
	last int
	jobs []*Job // in the order of their numbers
}

type counters struct{ done, failed, stopped, fetched atomic.Int64 }

// Stats is what a Warmer does and has done.
type Stats struct {
	Running               int64 // jobs
	Done, Failed, Stopped int64 // references
	Fetched               int64 // bytes of blobs
}

// New makes a Warmer, to be closed.
func New(cfg Config) *Warmer {
	w := &Warmer{cfg: cfg, log: cfg.Logger, images: semaphore.NewWeighted(atOnce), blobs: semaphore.NewWeighted(atOnce)}
	w.ctx, w.cancel = context.WithCancelCause(context.Background())
	return w
}

// Close stops the jobs and waits for them.
func (w *Warmer) Close() {
	w.mu.Lock() // so that no job starts between the cancel and the wait
	w.cancel(ErrClosed)
	w.mu.Unlock()
	w.wg.Wait()
}

// Stats says what the Warmer has done.
func (w *Warmer) Stats() Stats {
	return Stats{
		Running: int64(len(w.running())),
		Done:    w.count.done.Load(), Failed: w.count.failed.Load(), Stopped: w.count.stopped.Load(), Fetched: w.count.fetched.Load(),
	}
}

// Default are the platforms of orders that do not say which.
func (w *Warmer) Default() Platforms { return w.cfg.Platforms }

// Check says which references are wrong, by their number.
func (w *Warmer) Check(references []string) error {
	_, err := w.parseAll(references)
	return err
}

// Start begins to carry out an order for references of these platforms. The error
// is ErrBusy, ErrClosed, or says which references are wrong; nothing is done then.
func (w *Warmer) Start(origin string, references []string, platforms Platforms) (*Job, error) {
	list, err := w.parseAll(references)
	if err != nil {
		return nil, err
	}
	return w.start(origin, list, platforms)
}

func (w *Warmer) start(origin string, list []reference, platforms Platforms) (*Job, error) {
	running := len(w.running())
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.ctx.Err() != nil:
		return nil, ErrClosed
	case running >= maxJobs:
		return nil, ErrBusy
	}
	for _, old := range w.jobs {
		if old.hasEnded() {
			old.forgetLayers()
		}
	}
	w.last++
	j := &Job{
		id: w.last, origin: origin, platforms: platforms, began: time.Now(),
		done: make(chan struct{}), changed: make(chan struct{}), byBlob: make(map[digest.Digest]*Layer),
	}
	for _, r := range list {
		j.add(r)
	}
	var ctx context.Context
	ctx, j.cancel = context.WithCancelCause(w.ctx)
	w.jobs = append(w.jobs, j)
	if len(w.jobs) > kept+maxJobs { // the oldest that has ended
		if i := slices.IndexFunc(w.jobs, func(j *Job) bool { return j.hasEnded() }); i >= 0 {
			w.jobs = slices.Delete(w.jobs, i, i+1)
		}
	}
	w.wg.Go(func() { w.run(ctx, j) }) // ends with its last reference, or its context
	return j, nil
}

// Jobs are those that are running or remembered, the newest first.
func (w *Warmer) Jobs() []*Job {
	w.mu.Lock()
	defer w.mu.Unlock()
	jobs := slices.Clone(w.jobs)
	slices.Reverse(jobs)
	return jobs
}

// Job is the one with that number, or nil.
func (w *Warmer) Job(id int) *Job {
	for _, j := range w.Jobs() {
		if j.id == id {
			return j
		}
	}
	return nil
}

func (w *Warmer) running() []*Job {
	return slices.DeleteFunc(w.Jobs(), (*Job).hasEnded)
}

func (j *Job) hasEnded() bool {
	select {
	case <-j.done:
		return true
	default:
		return false
	}
}

// run carries out a job.
func (w *Warmer) run(ctx context.Context, j *Job) {
	defer j.cancel(nil)
	var all sync.WaitGroup
	for i := 0; ; i++ {
		j.mu.Lock()
		var img *Image
		if i < len(j.images) {
			img = j.images[i]
		}
		j.mu.Unlock()
		if img == nil {
			break
		}
		w.warm(ctx, j, img, &all)
	}
	all.Wait()
	j.end()
	s := j.Summary()
	w.log.Info("warmed", zap.Int("job", s.ID), zap.String("origin", s.Origin), zap.String("state", string(s.State)), zap.Int("done", s.Done),
		zap.Int("failed", s.Failed), zap.Int("stopped", s.Stopped), zap.Int64("fetched", s.Fetched), zap.Duration("took", s.Ended.Sub(s.Began)))
}

// warm begins with a reference as soon as there is a turn for it. The tags of a
// pattern are found before it returns.
func (w *Warmer) warm(ctx context.Context, j *Job, img *Image, all *sync.WaitGroup) {
	if err := w.images.Acquire(ctx, 1); err != nil {
		w.finish(ctx, j, img, context.Cause(ctx))
		return
	}
	j.change(&img.seq, func() { img.State = Running })
	if img.ref.pattern {
		defer w.images.Release(1)
		w.finish(ctx, j, img, w.expand(ctx, j, img))
		return
	}
	all.Go(func() {
		defer w.images.Release(1)
		w.finish(ctx, j, img, w.image(ctx, j, img))
	})
}

// finish notes what has become of a reference.
func (w *Warmer) finish(ctx context.Context, j *Job, img *Image, err error) {
	state := Done
	switch {
	case err != nil && ctx.Err() != nil:
		state, err = Stopped, context.Cause(ctx)
		w.count.stopped.Add(1)
	case err != nil:
		state = Failed
		w.count.failed.Add(1)
		w.log.Warn("image not warmed", zap.Int("job", j.id), zap.String("reference", img.Reference), zap.Error(err))
	case img.Matched == 0: // the tags of a pattern count
		w.count.done.Add(1)
	}
	j.change(&img.seq, func() {
		if img.State = state; err != nil {
			img.Error = err.Error()
		}
	})
}

// expand adds the tags that a pattern matches to the job.
func (w *Warmer) expand(ctx context.Context, j *Job, img *Image) error {
	matched := 0
	var query url.Values
	for pages := 0; ; pages++ {
		tags, next, err := w.cfg.Registry.Tags(ctx, img.ref.repo, query)
		if err != nil {
			return err
		}
		for _, tag := range tags {
			if !img.ref.matches(tag) {
				continue
			}
			if matched++; matched > maxReferences {
				return fmt.Errorf("matches more than %d tags", maxReferences)
			}
			if j.size() >= maxImages {
				return fmt.Errorf("more than %d images in one order", maxImages)
			}
			j.add(reference{repo: img.ref.repo, tag: tag})
		}
		if len(next) == 0 {
			break
		}
		if pages == maxPages {
			return fmt.Errorf("the list of tags has more than %d pages", maxPages)
		}
		query = next
	}
	if matched == 0 {
		return errors.New("matches no tag")
	}
	j.change(&img.seq, func() { img.Matched = matched })
	return nil
}
