// Package blobcache keeps blobs on disk by their digest, and fetches each
// missing one once, however many ask for it.
//
// A blob that is being fetched is a fill: a file that grows, and any number of
// readers that follow it at their own pace. The package does not know where
// blobs come from: it is given a Fetch.
package blobcache

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"maps"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"larder/blobcache/compact"
	"larder/blobcache/durable"
	"larder/blobcache/memory"
	"larder/ttl"
)

var (
	// ErrDigest says that the bytes that arrived were not those of the digest.
	// No reader has been given all of them, and none are kept.
	ErrDigest = errors.New("digest mismatch")

	// ErrClosed says that the cache was closed before the blob was complete.
	ErrClosed = errors.New("blob cache closed")

	// ErrNoRange is for a Fetch to return if it can't open a part of the blob
	// but may be able to open all of it.
	ErrNoRange = errors.New("no part of the blob can be had")

	// ErrRefused is for a Fetch to return if asking again won't help: the blob
	// is not there, or not for us.
	ErrRefused = errors.New("the blob can't be had")
)

// Fetch opens a blob where it comes from, at offset and for length bytes (-1:
// to the end). size is that of the whole blob, or -1 if nobody says. A Fetch
// must honour offset or fail; at the blob's very end the body is empty. At
// offset 0 the body may be longer than length. It is called with a context of
// the cache's, not with that of a reader.
type Fetch func(ctx context.Context, offset, length int64) (body io.ReadCloser, size int64, err error)

// Outcome is how a Get was answered.
type Outcome uint8

// A blob was on disk, was on its way already, had to be fetched, or is passed on
// without being kept. Of one that had to be fetched, who has given the Source may know
// that it is from what caches share.
const (
	Hit Outcome = iota
	Join
	Miss
	Pass
	Shared
)

// String returns the word that headers, metrics and logs use.
func (o Outcome) String() string {
	return [...]string{"hit", "join", "miss", "pass", "shared"}[o]
}

// Source is where a blob comes from, and for whom it is kept.
type Source struct {
	Fetch Fetch
	Owner string // for the quotas; "" is nobody
	Wrong func() // called when the bytes that came are not the blob's; nil: nobody is

	// Ended, unless it is nil, is told when the fill that was begun with this source
	// is over: nil if the blob is on disk. It must not wait.
	Ended func(err error)

	background bool // nobody reads what is fetched; see Fill
}

// Blob is a blob open for reading, complete or still arriving.
type Blob struct {
	// Content must be closed, when nobody reads it any more. It has a method
	// SendTo(w io.Writer, n int64) (int64, error) that sends the next n bytes
	// without copying: from the file or from memory, or as they arrive; then reads
	// wait for them, but no longer than the context given to Get. What is in memory
	// has InMemory() bool too, which says so.
	Content io.ReadSeekCloser
	Size    int64 // -1: not known before the end; Content can't seek then
	Outcome Outcome
	Waited  time.Duration // for the first byte, from whoever sends it; 0: it was here
}

// Config says what is kept and for how long. The zero Config keeps everything
// for ever, and stops a fill when its last reader leaves.
type Config struct {
	TTL    time.Duration // since last use; 0: never
	Linger time.Duration // how long a fill goes on after its last reader left
	Logger *zap.Logger   // nil: none
	Memory *memory.Cache // for small blobs; nil: none

	MaxSize Limit   // of what is kept; parts that are left for resuming count
	MinFree Limit   // of the file system that is left to others
	Quotas  []Quota // of what is kept for one owner

	ScrubInterval time.Duration // how often each blob is read again; 0: never
	ScrubRate     int64         // how fast, in bytes per second; 0: no limit

	Observe func(op string, took time.Duration) // write, commit; nil: nobody counts

	// Pins says that Hold will be called. Nothing is removed before.
	Pins bool

	// Connections is how many may fetch one large blob at once. With 0 or 1, a
	// whole blob is asked for in one.
	Connections int
}

// Cache is a directory of blobs. Its methods may be called by several
// goroutines.
type Cache struct {
	root   *os.Root
	dir    *os.File // root's directory
	cfg    Config
	log    *zap.Logger
	disk   *zap.Logger     // for what is wrong with the disk: a line a minute
	ctx    context.Context // of all fills; ends with Close
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup    // the fills
	due    ttl.Queue[*entry] // by the end of their life
	bufs   sync.Pool         // of *[]byte, chunk long
	count  counters
	sizes  sizes        // immutable after Open
	seed   maphash.Seed // of seals

	writeAt func(f *os.File, p []byte, offset int64) (int, error) // File.WriteAt, but in tests

	scanned chan struct{} // closed when Run knows what is on disk
	pinned  chan struct{} // closed when it is known which blobs stay
	arrived atomic.Int64  // what the running fills have written of what they have reserved

	// mu guards the maps, what the entries hold, and the fields of a fill that
	// say so. It may be taken before a fill's own lock, never after.
	mu        sync.Mutex
	entries   compact.Table[*entry]
	fills     map[digest.Digest]*fill
	streams   map[digest.Digest][]*stream
	lied      map[digest.Digest]bool // a part of it was wrong: next time in one
	stuck     map[digest.Digest]bool // its file is wrong and can't be removed
	storeErr  error                  // what is wrong with the disk, nil since something was stored
	storeErrs map[string]int64       // all that ever was, by kind
	idle      idleFiles
	gone      []Gone // what went last, the newest first
	budget
}

// Stats is what a cache holds and what it has done since it was opened.
type Stats struct {
	Entries, Bytes               int64 // complete blobs on disk
	Partials, PartialBytes       int64 // parked fills, kept for resuming
	Fills                        int64 // running now
	Hits, Joins, Misses          int64
	Fetched                      int64 // bytes that came from a Fetch
	Resumed                      int64 // bodies that broke and were gone on with
	Passed                       int64 // passed on without being kept
	Mismatches                   int64 // fills thrown away for ErrDigest
	Damaged                      int64 // files thrown away, as they were not what was stored
	Expired, ExpireErrors, Scans int64
	MaxBytes                     int64            // what may be kept; 0: no limit
	MinFree                      int64            // of the file system's bytes, left to others
	Reserved                     int64            // bytes that the running fills have, or have room for
	Evicted, EvictedBytes        int64            // before the end of their life
	Scrubbed, ScrubbedBytes      int64            // read again to see whether they are right
	Doubted                      int64            // by Doubt
	Held, HeldBytes              int64            // of Entries and Partials: not removed, whatever happens
	StoreErrors                  map[string]int64 // of the disk, by durable.Kind
	StoreError                   error            // the last, if nothing was stored since
}

type counters struct {
	outcomes                                                      [4]atomic.Int64
	fetched, resumed, mismatches, damaged, expired, failed, scans atomic.Int64
	evicted, evictedBytes, scrubbed, scrubbedBytes, doubted       atomic.Int64
}

// Open makes a cache of the directory root, which is then the cache's own to
// use and close, and which may hold blobs already: they can be asked for at
// once. Run must be running for anything to expire.
func Open(root *os.Root, cfg Config) (*Cache, error) {
	if err := durable.MakeTemp(root); err != nil {
		return nil, fmt.Errorf("open blob cache: %w", err)
	}
	log := cfg.Logger
	if log == nil {
		log = zap.NewNop()
	}
	dir, err := root.Open(".")
	if err != nil {
		return nil, fmt.Errorf("open blob cache: %w", err)
	}
	total, _, err := diskSpace(dir)
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		dir.Close()
		return nil, fmt.Errorf("open blob cache: %w", err)
	}
	c := &Cache{
		root:      root,
		dir:       dir,
		cfg:       cfg,
		log:       log,
		disk:      log.WithOptions(zap.WrapCore(onceAMinute)),
		sizes:     usualSizes(),
		seed:      maphash.MakeSeed(),
		writeAt:   (*os.File).WriteAt,
		scanned:   make(chan struct{}),
		pinned:    make(chan struct{}),
		fills:     make(map[digest.Digest]*fill),
		streams:   make(map[digest.Digest][]*stream),
		lied:      make(map[digest.Digest]bool),
		stuck:     make(map[digest.Digest]bool),
		storeErrs: make(map[string]int64),
		idle:      idleFiles{most: min(mostIdle, openLimit()/8)},
		budget:    newBudget(cfg, total),
	}
	c.bufs.New = func() any { b := make([]byte, chunk); return &b }
	if !cfg.Pins {
		close(c.pinned)
	}
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	c.sweep()
	return c, nil
}

// onceAMinute lets the same message through once a minute.
func onceAMinute(core zapcore.Core) zapcore.Core {
	return zapcore.NewSamplerWithOptions(core, time.Minute, 1, 0)
}

// Close ends the running fills, keeping what has arrived, and waits for them.
func (c *Cache) Close() error {
	c.mu.Lock() // so that no fill starts between the cancel and the wait
	c.cancel(ErrClosed)
	if c.idle.timer != nil {
		c.idle.timer.Stop()
	}
	c.mu.Unlock()
	c.closeIdle() // and no file becomes idle any more
	c.wg.Wait()
	c.dir.Close()
	return c.root.Close()
}

// Get opens the blob with digest d, which must be valid. If neither the disk
// nor a running fill has it, fetch is asked for all of it. Get returns when the
// first byte can be read, so that an error of fetch is still an error of Get. A
// joined fill's error is that of the Fetch which started it.
func (c *Cache) Get(ctx context.Context, d digest.Digest, fetch Fetch) (*Blob, error) {
	return c.GetRange(ctx, d, 0, -1, Source{Fetch: fetch})
}

// GetRange is Get for a reader that wants length bytes (-1: to the end) from
// offset. Nothing much beyond them is fetched, unless that is the whole blob.
// Content is that of the whole blob all the same.
func (c *Cache) GetRange(ctx context.Context, d digest.Digest, offset, length int64, src Source) (*Blob, error) {
	var w *want
	for {
		if blob := c.recall(d); blob != nil {
			return blob, nil
		}
		if blob, err := c.openComplete(d, c.lookup(d)); blob != nil || err != nil {
			return blob, err
		}
		if w == nil {
			w = newWant(offset, length)
		}
		if p := c.board(d, w, src); p != nil { // it is not kept, but on its way
			return p.open(ctx)
		}
		f, outcome, err := c.joinOrStart(d, src)
		if err != nil {
			return nil, err
		}
		if f == nil {
			continue // it was completed just now
		}
		var blob *Blob
		if outcome != parking {
			blob, err = c.openFill(ctx, f, outcome, w, src)
		}
		if outcome != parking && !errors.Is(err, errMissed) && !errors.Is(err, errDamaged) {
			return blob, err
		}
		select {
		case <-f.gone:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// openFill opens the blob of a fill that was joined. If it turns out that it is
// not kept, it is passed on.
func (c *Cache) openFill(ctx context.Context, f *fill, outcome Outcome, w *want, src Source) (*Blob, error) {
	began := time.Now()
	leave := sync.OnceFunc(func() { c.leave(f, c.cfg.Linger) })
	content, size, err := f.open(ctx, w)
	if unkept(err) {
		p := newPass(c, f.digest, w, src)
		err := c.follow(p)
		leave()
		if err != nil {
			return nil, err
		}
		return p.open(ctx)
	}
	if err != nil {
		if errors.Is(err, errMissed) {
			c.abandon(f)
		}
		leave()
		return nil, err
	}
	if content == nil {
		leave()
		c.count.outcomes[outcome].Add(1)
		return &Blob{Content: memory.NewReader(f.small()), Size: size, Outcome: outcome, Waited: time.Since(began)}, nil
	}
	if content.stored {
		outcome = Hit
	}
	content.leave, content.src = leave, src
	c.count.outcomes[outcome].Add(1)
	blob := &Blob{Content: content, Size: size, Outcome: outcome}
	if outcome != Hit {
		blob.Waited = time.Since(began)
	}
	return blob, nil
}

// Stats says what the cache holds and has done.
func (c *Cache) Stats() Stats {
	s := Stats{
		Hits:         c.count.outcomes[Hit].Load(),
		Joins:        c.count.outcomes[Join].Load(),
		Misses:       c.count.outcomes[Miss].Load(),
		Fetched:      c.count.fetched.Load(),
		Resumed:      c.count.resumed.Load(),
		Passed:       c.count.outcomes[Pass].Load(),
		Mismatches:   c.count.mismatches.Load(),
		Damaged:      c.count.damaged.Load(),
		Expired:      c.count.expired.Load(),
		ExpireErrors: c.count.failed.Load(),
		Scans:        c.count.scans.Load(),
		Evicted:      c.count.evicted.Load(),
		EvictedBytes: c.count.evictedBytes.Load(),

		Scrubbed:      c.count.scrubbed.Load(),
		ScrubbedBytes: c.count.scrubbedBytes.Load(),
		Doubted:       c.count.doubted.Load(),
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s.Fills = int64(len(c.fills))
	s.Entries, s.Bytes = c.blobs.n, c.blobs.bytes
	s.Partials, s.PartialBytes = c.partials.n, c.partials.bytes
	s.Held, s.HeldBytes = c.held.n, c.held.bytes
	s.MaxBytes, s.MinFree, s.Reserved, s.StoreError, s.StoreErrors = c.max, c.minFree, c.reserved, c.storeErr, maps.Clone(c.storeErrs)
	return s
}

// Disk is the size of the file system that the blobs are on, and what is free of it.
// It asks the disk, and may take as long as that takes.
func (c *Cache) Disk() (size, free int64, err error) { return diskSpace(c.dir) }
