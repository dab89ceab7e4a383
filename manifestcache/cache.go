// Package manifestcache keeps manifests by digest, what each tag last pointed
// at, which repository refers to what, and what is listed of a repository.
//
// It does not know that registries exist: it is given an Upstream to ask. A
// repository is named with its host, as in "docker.io/library/alpine".
package manifestcache

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sync/singleflight"

	"larder/blobcache/durable"
	"larder/blobcache/memory"
	"larder/ttl"
)

var (
	// ErrDigest says that upstream sent something else than was asked for.
	ErrDigest = errors.New("manifest digest mismatch")

	// ErrClosed says that the cache was closed before there was an answer.
	ErrClosed = errors.New("manifest cache closed")

	// ErrBusy says that something large can't be kept on disk, and that others who
	// read such things leave no room for it in memory.
	ErrBusy = errors.New("too many large documents that can't be kept at a time")
)

// answerTimeout bounds the questions that one answer takes, a HEAD and a GET
// perhaps: containerd gives up after 30 s.
const answerTimeout = 25 * time.Second

// Upstream is asked about the manifests of one repository.
type Upstream interface {
	// HeadManifest describes the manifest that reference, a tag or a digest,
	// names now. The descriptor has no digest if upstream does not say it in
	// answer to a HEAD, or does not answer HEADs.
	HeadManifest(ctx context.Context, reference string) (ocispec.Descriptor, error)

	// GetManifest returns the manifest too. The descriptor has the digest that
	// upstream claims, if it claims one; the body need not have it.
	GetManifest(ctx context.Context, reference string) (ocispec.Descriptor, []byte, error)
}

// Relay is an Upstream that may ask another cache in the place of a registry, and may
// be asked for others.
type Relay interface {
	Upstream

	// Asking are the names of those that it is asked for, if any.
	Asking() []string

	// Relayed is what that cache has said of the first answer that it gave: its
	// Cache-Status, how long ago the registry has said what the answer says, if it was
	// not asked, and whether that is because it could not be. It is "", 0 and false of
	// other answers.
	Relayed() (status string, age time.Duration, stale bool)
}

// Outcome is how a manifest was answered.
type Outcome uint8

const (
	Hit         Outcome = iota // from disk, upstream was not asked
	Revalidated                // from disk, upstream says that it is current
	Miss                       // from upstream
	Stale                      // from disk, as upstream could not answer
	SharedHit                  // from what caches share, in part at least
)

// String returns the word that headers, metrics and logs use.
func (o Outcome) String() string {
	return [...]string{"hit", "revalidated", "miss", "stale", "shared"}[o]
}

// Manifest is a manifest, an index or any other document of the manifests
// endpoint: its media type, digest and size, and its exact bytes. The Body is
// shared and must not be changed; it is nil if the manifest is too large to be
// held in memory for as long as clients take to read it. See Cache.Content.
type Manifest struct {
	ocispec.Descriptor
	Body    []byte
	Outcome Outcome
	Age     time.Duration // since it was last validated
	Asked   *Question     // what that took; nil: upstream was not asked, nor another cache
	Joined  bool          // somebody else was asking already

	validated time.Time
}

// Config says how long what is known is good. The zero Config keeps manifests
// for ever and asks about a tag each time.
type Config struct {
	// TTL is how long a manifest is kept after its last use, and for how long
	// a repository's right to it is taken for granted. 0: for ever.
	TTL time.Duration
	// TagTTL is how long a tag is not asked about. 0: always ask.
	TagTTL time.Duration
	// ListTTL is how long a list is not asked for again. 0: always ask.
	ListTTL time.Duration
	// StaleIf tells errors that an old answer is better than. nil: none are.
	StaleIf func(error) bool
	// GoneIf tells errors that are an explicit no, which ends the use of what
	// was known before. nil: none are.
	GoneIf func(error) bool
	// Spare says why an upstream, named by a repository of its, should not be
	// asked now what a tag points at if that is known; its error need not be one
	// that StaleIf tells. nil, or a nil error: ask.
	Spare func(repository string) error
	// Pinned tells tags and digests of a repository that are pinned; see Pin. nil:
	// none are.
	Pinned func(repository, reference string) bool
	// Hold is told which blobs pinned images have: at once if there are no pins, or
	// else when Run knows what is on disk, and whenever that changes. nil: nobody is.
	Hold    func(blobs map[digest.Digest]bool)
	Shared  Shared                              // with other caches; nil: nothing
	Memory  *memory.Cache                       // for what is read most; nil: none
	Observe func(op string, took time.Duration) // commit; nil: nobody counts
	Logger  *zap.Logger                         // nil: none
}

// Cache is a directory of manifests. Its methods may be called by several
// goroutines.
type Cache struct {
	root    *os.Root
	cfg     Config
	log     *zap.Logger
	disk    *zap.Logger     // for what is wrong with the disk: a line a minute
	ctx     context.Context // of all questions to upstream; ends with Close
	cancel  context.CancelCauseFunc
	wg      sync.WaitGroup // the questions
	flights singleflight.Group
	loads   singleflight.Group // from disk: of manifests by digest, of lists by listKey
	changes changes
	unkept  *semaphore.Weighted
	due     ttl.Queue[expiring]
	count   counters
	lists   lists
	whole   chan struct{} // has room for who reads a large manifest into memory, to check it
	scanned chan struct{} // closed when Run knows what is on disk, or scanErr says that it never will
	scanErr error
	unread  atomic.Bool   // some could not be read then
	repins  chan struct{} // has something when it may have changed what pins hold

	mu sync.Mutex // guards what follows
	index
	pins      pins
	storeErrs map[string]int64 // all that was ever wrong with the disk, by kind
}

// Open makes a cache of the directory root, which is then the cache's own to
// use and close, and which may hold manifests already. Run must be running for
// anything to expire.
func Open(root *os.Root, cfg Config) (*Cache, error) {
	if cfg.StaleIf == nil {
		cfg.StaleIf = func(error) bool { return false }
	}
	if cfg.GoneIf == nil {
		cfg.GoneIf = func(error) bool { return false }
	}
	if cfg.Spare == nil {
		cfg.Spare = func(string) error { return nil }
	}
	log := cfg.Logger
	if log == nil {
		log = zap.NewNop()
	}
	onceAMinute := func(core zapcore.Core) zapcore.Core {
		return zapcore.NewSamplerWithOptions(core, time.Minute, 1, 0)
	}
	c := &Cache{root: root, cfg: cfg, log: log, disk: log.WithOptions(zap.WrapCore(onceAMinute)), whole: make(chan struct{}, 1), unkept: semaphore.NewWeighted(maxUnkept), scanned: make(chan struct{}), repins: make(chan struct{}, 1), changes: newChanges(), index: newIndex(), lists: newLists(), storeErrs: make(map[string]int64)}
	if err := durable.Clean(root); err != nil {
		return nil, fmt.Errorf("open manifest cache: %w", err)
	}
	c.readPins()
	if c.cfg.Hold != nil && !c.anyPins() {
		c.cfg.Hold(nil)
	}
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	return c, nil
}

// Close ends the running questions to upstream and waits for them.
func (c *Cache) Close() error {
	c.mu.Lock() // so that no question starts between the cancel and the wait
	c.cancel(ErrClosed)
	c.mu.Unlock()
	c.wg.Wait()
	return c.root.Close()
}

// ByDigest returns the manifest with digest d, which must be valid. Upstream is
// asked if the manifest is not on disk, or if it is not known (or no longer)
// that the repository has it.
func (c *Cache) ByDigest(ctx context.Context, repository string, d digest.Digest, up Upstream) (*Manifest, error) {
	if right, ok := c.validated(repository, d); ok && c.fresh(right.at.Time()) {
		if m := c.load(d); m != nil && right.covers(m) {
			return c.answer(m, Hit, right.at.Time()), nil
		}
	}
	return c.ask(ctx, repository, d.String(), up, func(ctx context.Context, up *questioned) (*Manifest, error) {
		return c.prove(ctx, repository, d, up)
	})
}

// ask is once for a manifest, whose outcome it counts.
func (c *Cache) ask(
	ctx context.Context, repository, reference string, up Upstream, question func(context.Context, *questioned) (*Manifest, error),
) (*Manifest, error) {
	m, joined, err := once(ctx, c, pinOf(repository, reference), func(ctx context.Context) (*Manifest, error) {
		q := &questioned{Upstream: up, repository: repository, reference: reference}
		if c.cfg.Shared != nil {
			ctx = c.cfg.Shared.Question(ctx)
		}
		m, err := question(ctx, q)
		c.tell(q, m, err)
		if err == nil && (q.asked || m.Outcome == SharedHit) {
			q.Unasked = !q.asked
			m.Asked = &q.Question
		}
		return m, err
	})
	if err == nil {
		m.Joined = joined
		c.answered(m)
	}
	return m, err
}

// once asks a question for all who want the same key at the same time, on the
// cache's own context: a caller who leaves takes nothing from the others. joined
// is for who finds it being asked already.
func once[T any](ctx context.Context, c *Cache, key string, question func(context.Context) (*T, error)) (answer *T, joined bool, err error) {
	asking := false // read only when there is a result
	result := c.flights.DoChan(key, func() (any, error) {
		asking = true
		c.mu.Lock()
		if c.ctx.Err() != nil {
			c.mu.Unlock()
			return nil, ErrClosed
		}
		c.wg.Add(1)
		c.mu.Unlock()
		defer c.wg.Done()
		ctx, cancel := context.WithTimeout(c.ctx, answerTimeout)
		defer cancel()
		answer, err := question(ctx)
		if err != nil && c.ctx.Err() != nil {
			err = context.Cause(c.ctx) // whatever upstream made of it
		}
		return answer, err
	})
	select {
	case r := <-result:
		if r.Err != nil {
			return nil, !asking, r.Err
		}
		own := *r.Val.(*T)
		return &own, !asking, nil
	case <-ctx.Done():
		return nil, false, context.Cause(ctx)
	}
}

// answer completes a manifest that did not take a question to upstream.
func (c *Cache) answer(m *Manifest, outcome Outcome, validated time.Time) *Manifest {
	m = dated(m, outcome, validated)
	c.answered(m)
	return m
}

func dated(m *Manifest, outcome Outcome, validated time.Time) *Manifest {
	m.Outcome, m.Age, m.validated = outcome, max(time.Since(validated), 0), validated
	return m
}

// prove gets the manifest d for a repository that is not known to have it, or
// not recently.
func (c *Cache) prove(ctx context.Context, repository string, d digest.Digest, up *questioned) (*Manifest, error) {
	_, up.Known = c.validated(repository, d)
	if c.cfg.Shared != nil {
		if m := c.entitled(ctx, d, up); m != nil {
			return m, nil
		}
	}
	m := c.loadShared(ctx, d, up, func(*Manifest) bool { return true })
	if m != nil {
		desc, err := up.HeadManifest(ctx, d.String())
		if err != nil {
			return c.unproven(ctx, d, m, up, err)
		}
		if desc.Digest == d && desc.MediaType == m.MediaType {
			m = up.dated(m, up.confirmed())
			c.validate(repository, m, m.validated)
			return m, nil
		}
		// A HEAD does not tell. A GET does.
	}
	fetched, err := c.fetch(ctx, repository, d.String(), up)
	if err != nil {
		return c.unproven(ctx, d, m, up, err)
	}
	return fetched, nil
}

// unproven decides what a failed question means for a right, as withoutAnswer
// does for a tag. m is what is on disk, or nil.
func (c *Cache) unproven(ctx context.Context, d digest.Digest, m *Manifest, up *questioned, err error) (*Manifest, error) {
	if c.cfg.GoneIf(err) {
		c.revoke(up.repository, d)
		return nil, err
	}
	if m == nil || !c.cfg.StaleIf(err) {
		return nil, err
	}
	right, ok := c.latestRight(ctx, d, up, func(w word) bool { return w.covers(m) })
	if !ok || !right.covers(m) {
		return nil, err
	}
	if up.others {
		c.validate(up.repository, m, right.at.Time())
	}
	return dated(m, Stale, right.at.Time()), nil
}

// fetch gets a manifest from upstream, checks it and stores it.
func (c *Cache) fetch(ctx context.Context, repository, reference string, up *questioned) (*Manifest, error) {
	desc, body, err := up.GetManifest(ctx, reference)
	if err != nil {
		return nil, err
	}
	c.count.fetched.Add(int64(len(body)))
	want := desc.Digest // what upstream claims, unless we know better
	if d, err := digest.Parse(reference); err == nil {
		want = d
	}
	if want == "" {
		want = canonicalDigest(desc.MediaType, body)
	}
	if !has(want, desc.MediaType, body) {
		got := want.Algorithm().FromBytes(body)
		c.count.mismatches.Add(1)
		c.log.Error("upstream sent a wrong manifest", zap.String("repository", repository),
			zap.String("reference", reference), zap.Stringer("digest", got), zap.Stringer("want", want))
		return nil, fmt.Errorf("manifest %s of %s: %w", reference, repository, ErrDigest)
	}
	m := &Manifest{
		Descriptor: ocispec.Descriptor{MediaType: desc.MediaType, Digest: want, Size: int64(len(body))},
		Body:       body,
	}
	c.keep(m, up)
	m = up.dated(m, Miss)
	c.validate(repository, m, m.validated)
	return m, nil
}
