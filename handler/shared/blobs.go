package shared

import (
	"context"
	"errors"
	"io"
	"math"
	"net/http"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"

	"larder/blobcache"
	"larder/handler/shared/store"
)

// leastLeased is how large a blob has to be for one node to fetch it for all: for
// less, finding out who does would take as long as the blob.
const leastLeased = 4 << 20

// Wanted is how much of a blob it is fetched for.
type Wanted uint8

// Who wants the whole blob fetches it for the other nodes too. Who wants a part does
// not: the rest might never be fetched.
const (
	Whole Wanted = iota
	Part
)

// way is how a fill gets its bytes.
type way uint8

const (
	undecided way = iota
	stored        // from the blob's object in the tier
	followed      // from the parts that another node puts there
	held          // this node has the lease: from upstream, but for parts that were left
	direct        // from upstream, until the end
)

// fill is one blob on its way into the local cache. Several may fetch parts of it at
// once.
type fill struct {
	tier     *Tier
	digest   digest.Digest
	wanted   Wanted
	upstream blobcache.Fetch

	mu        sync.Mutex // guards what follows
	way       way
	size      int64         // -1: not known
	decided   chan struct{} // closed when way is known; nil: nobody has asked
	cost      cost          // of the store, for this blob
	used      bool          // bytes have come from the tier
	read      int64         // so many
	version   string        // of the object they came from; "": of none
	over      bool          // the fill has ended
	publisher *publisher    // of the lease that is held
	parts     int64         // so many are in the tier, from the start

	watch    *watch        // of who has the lease; it belongs to whoever looks
	looking  bool          // somebody does
	looked   chan struct{} // closed and replaced when he has
	progress progress      // of who is followed
	busy     time.Time     // since when the store has only said that it has too much to do
	owed     bool          // the next piece comes from upstream
	pieces   int           // so many have, in a row
}

// Blob is where a blob comes from that the local cache does not have, for one fill: from
// the tier, or with fetch from upstream. size is that of the blob, -1 if nobody knows.
// The fill has to say when it is over, and whether the blob was committed; and, of what
// was not the blob, that it was wrong, which says whether the tier is to blame.
func (t *Tier) Blob(
	repository string, d digest.Digest, size int64, wanted Wanted, upstream blobcache.Fetch,
) (fetch blobcache.Fetch, ended func(err error), wrong func() (mine bool)) {
	if !t.covers(repository) {
		return upstream, func(error) {}, func() bool { return false }
	}
	f := &fill{tier: t, digest: d, wanted: wanted, upstream: upstream, size: size, looked: make(chan struct{})}
	return f.fetch, f.ended, f.wrong
}

// fetch is a blobcache.Fetch. What is wrong with the tier is no error of it: then
// upstream is asked.
func (f *fill) fetch(ctx context.Context, offset, length int64) (io.ReadCloser, int64, error) {
	end := int64(math.MaxInt64)
	if length >= 0 {
		end = offset + length
	}
	first, err := f.decide(ctx, offset, end)
	if err != nil {
		return nil, 0, err
	}
	b := &stitched{fill: f, ctx: ctx, pos: offset, end: end, source: first}
	if b.source == nil {
		if err := b.open(); err != nil {
			return nil, 0, err
		}
	}
	if b.source != nil && b.source.upstream {
		f.believe(b.source.size)
	}
	if b.source != nil && b.source.upstream && b.source.end == end {
		return b.source.ReadCloser, b.source.size, nil // as it comes
	}
	b.begun = true
	return b, f.knownSize(), nil
}

// decide finds out where the bytes come from, unless that is known. The first to ask
// may have opened them by that.
func (f *fill) decide(ctx context.Context, offset, end int64) (*source, error) {
	f.mu.Lock()
	decided, mine := f.decided, f.decided == nil
	if mine {
		decided = make(chan struct{})
		f.decided = decided
	}
	f.mu.Unlock()
	if mine {
		defer close(decided)
		return f.find(ctx, offset, end), nil
	}
	select {
	case <-decided:
		return nil, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// find looks for the blob in the tier. If it is not there, this node fetches it, or
// another one does.
func (f *fill) find(ctx context.Context, offset, end int64) *source {
	switch size := f.knownSize(); {
	case size < 0 || offset < size:
	case offset == size && (offset > 0 || f.digest == f.digest.Algorithm().FromBytes(nil)):
		f.setWay(direct) // nothing is missing
		return &source{ReadCloser: http.NoBody}
	default: // a manifest may say anything
		f.believe(-1)
	}
	version, doubted := f.tier.doubted.version(f.digest)
	if doubted && version == "" { // its parts were wrong
		f.setWay(direct)
		return nil
	}
	src, err := f.openObject(ctx, offset, end)
	for isBusy(err) && f.later(ctx) {
		src, err = f.openObject(ctx, offset, end)
	}
	size := f.knownSize()
	leased := f.wanted == Whole && (size < 0 || size >= f.tier.sizes.leased) && !f.tier.unleased.Load()
	absent := errors.Is(err, store.ErrNotExist)
	if absent {
		f.tier.count.misses.Add(1)
	}
	switch {
	case err == nil:
		f.tier.count.hits.Add(1)
		f.setWay(stored)
		return src
	case !leased, !absent && !f.isWorthwhile(err):
		f.setWay(direct)
		return nil
	}
	f.watch = newWatch(f.tier, "blob "+f.digest.String())
	if !absent { // the lease tells, if it is there
		f.setWay(followed)
		f.bridge()
		return nil
	}
	began := time.Now()
	f.conclude(ctx, f.within(ctx, began, f.lease))
	f.spend(began, 0)
	return nil
}

// openObject opens the blob's object, if it is what it should be.
func (f *fill) openObject(ctx context.Context, offset, end int64) (*source, error) {
	if size := f.knownSize(); size >= 0 {
		end = min(end, size)
	}
	src, info, err := f.openStored(ctx, blobKey(f.digest), offset, end-offset)
	if errors.Is(err, store.ErrRange) { // it ends before; whether it should, its size tells
		src = &source{ReadCloser: http.NoBody}
		err = f.within(ctx, time.Now(), func(ctx context.Context) (err error) {
			info, err = f.tier.head(ctx, blobKey(f.digest))
			return err
		})
	}
	if err != nil {
		return nil, err
	}
	if !f.isGood(info) {
		src.Close()
		return nil, store.ErrNotExist
	}
	f.mu.Lock()
	f.size, f.version, f.used = info.Size, info.Version, true
	f.mu.Unlock()
	src.end = min(end, info.Size)
	return src, nil
}

// isGood reports whether an object can be the blob.
func (f *fill) isGood(info store.Info) bool {
	size := f.knownSize()
	switch doubtful, doubted := f.tier.doubted.version(f.digest); {
	case doubted && (doubtful == "" || doubtful == info.Version):
		return false
	case size >= 0 && size != info.Size, info.Length >= 0 && info.Length != info.Size, info.Digest != "" && info.Digest != f.digest:
		f.tier.count.distrusted.Add(1)
		f.tier.doubt(f.digest, info.Version)
		f.tier.log.Warn("object in the shared store is not the blob; it will be replaced", zap.Stringer("digest", f.digest),
			zap.Int64("size", info.Size), zap.Int64("want", max(size, info.Length)))
		return false
	}
	return true
}

// ended is told when the fill is over. What was fetched from upstream is shared, if
// no publisher does that already.
func (f *fill) ended(err error) {
	f.mu.Lock()
	f.over = true
	way, asked, version, publisher := f.way, f.decided != nil, f.version, f.publisher
	f.mu.Unlock()
	switch {
	case publisher != nil:
		publisher.end(err)
	case err == nil && asked && way != stored && way != followed:
		f.tier.upload(f.digest)
	case err == nil && way == stored:
		f.tier.known.add(f.digest, version)
	}
}

// wrong is told when the bytes were not the blob's, even if nobody keeps them. It reports
// whether some of them came from the tier, which is not believed then.
func (f *fill) wrong() (mine bool) {
	f.mu.Lock()
	used, version := f.used, f.version
	f.mu.Unlock()
	if used {
		f.tier.count.distrusted.Add(1)
		f.tier.doubt(f.digest, version)
		f.tier.log.Error("wrong bytes in the shared store; the blob is fetched from upstream and replaced", zap.Stringer("digest", f.digest))
	}
	return used
}

// Doubt has a blob of the repository replaced in the tier, which clients that were sent
// there don't take for right, by that of the local cache.
func (t *Tier) Doubt(repository string, d digest.Digest) {
	if t.covers(repository) {
		t.doubt(d, "")
		t.upload(d)
	}
}

// doubt has nobody get the version of a blob that is in the tier; "": any.
func (t *Tier) doubt(d digest.Digest, version string) {
	t.doubted.add(d, version)
	t.known.remove(d)
}

// upload has the blob put into the tier, unless it is there.
func (t *Tier) upload(d digest.Digest) {
	t.enqueue("blob "+d.String(), func(ctx context.Context) error {
		f := &fill{tier: t, digest: d, size: -1}
		info, err := t.head(ctx, blobKey(d))
		if err != nil && !errors.Is(err, store.ErrNotExist) {
			return err
		}
		if err == nil && f.isGood(info) {
			if info.Digest == d { // see URL
				t.known.add(d, info.Version)
			}
			return nil
		}
		content, size, err := t.cfg.Open(ctx, d)
		if err != nil {
			return err
		}
		defer content.Close()
		return t.putBlob(ctx, d, content, size)
	})
}

// putBlob puts a blob that was committed to the local cache.
func (t *Tier) putBlob(ctx context.Context, d digest.Digest, content io.ReadSeeker, size int64) error {
	if err := t.put(ctx, blobKey(d), content, store.Label{Digest: d, Size: size}); err != nil {
		return err
	}
	t.isShared(d)
	return nil
}

// isShared notes that this node has brought the blob into the tier.
func (t *Tier) isShared(d digest.Digest) {
	t.doubted.remove(d)
	t.known.add(d, "")
}

func (f *fill) setWay(w way) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.take(w)
}

// take takes a way, unless the tier has failed before. Needs mu.
func (f *fill) take(w way) (taken bool) {
	if f.way != direct {
		f.way = w
	}
	return f.way == w
}

// believe takes a size instead of that which a manifest has said, as long as nothing
// has come from the tier.
func (f *fill) believe(size int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.used {
		f.size = size
	}
}

func (f *fill) knownSize() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.size
}
