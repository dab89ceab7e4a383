package shared_test

import (
	"context"
	"errors"
	"io"
	"iter"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/time/rate"

	"larder/handler/shared/store"
	"larder/handler/shared/storetest"
)

// What S3 does, as its documentation says, where a bucket is new: it allows so many
// requests per second and prefix, more only when it has parted the prefix.
const (
	getsPerSecond = 5500
	putsPerSecond = 3500

	leastLatency, mostLatency = 15 * time.Millisecond, 40 * time.Millisecond

	connectionRate = 85_000_000 // bytes per second
)

// upstreamRate is what the registry sends in a second, to all; upstreamLatency is
// before each answer.
const (
	upstreamRate    = 100_000_000
	upstreamLatency = 50 * time.Millisecond
)

// What a read brings at most. Bytes of blobs are never looked at: what is read of them
// is left in the buffer as it was.
const (
	storeChunk    = 4 << 20
	upstreamChunk = 1 << 20
)

var errSlowDown = errors.New("please reduce your request rate")

// bucket is S3 in a simulation. What is small is really kept; of blobs and their parts
// only how large they are.
type bucket struct {
	small   storetest.Model
	parted  bool   // as far as S3 may part a prefix in the end: each object has its own limits
	scratch []byte // what everybody reads into, and nobody writes to

	mu         sync.Mutex // guards what follows
	gets, puts map[string]*rate.Limiter
	large      map[string]store.Info
	asked      tierRequests
}

// tierRequests are requests as S3 counts them, and how often it said that these were
// too many.
type tierRequests struct {
	Gets, Heads, Puts, Deletes, SlowDowns int
	Leases                                int // of Gets and Puts, those of leases
	Out                                   int64
}

func newBucket(parted bool) *bucket {
	return &bucket{
		parted: parted, gets: make(map[string]*rate.Limiter), puts: make(map[string]*rate.Limiter),
		scratch: make([]byte, storeChunk), large: make(map[string]store.Info),
	}
}

func isLarge(key string) bool {
	return strings.HasPrefix(key, "blobs/") || strings.HasPrefix(key, "parts/")
}

// begin is a request that does n of S3's.
func (b *bucket) begin(ctx context.Context, op storetest.Op, key string, n int) error {
	if err := pass(ctx, leastLatency+rand.N(mostLatency-leastLatency)); err != nil {
		return &store.Error{Op: string(op), Key: key, Err: err}
	}
	b.mu.Lock()
	limiters, most := b.puts, putsPerSecond
	switch op {
	case storetest.Get:
		b.asked.Gets += n
		limiters, most = b.gets, getsPerSecond
	case storetest.Head:
		b.asked.Heads += n
		limiters, most = b.gets, getsPerSecond
	case storetest.Delete:
		b.asked.Deletes += n
	default:
		b.asked.Puts += n
	}
	if strings.HasPrefix(key, "leases/") && op != storetest.Delete {
		b.asked.Leases += n
	}
	slow := !b.limiter(limiters, key, most).AllowN(time.Now(), n)
	if slow {
		b.asked.SlowDowns++
	}
	b.mu.Unlock()
	if slow {
		return &store.Error{Op: string(op), Key: key, Code: "SlowDown", Err: errSlowDown}
	}
	return nil
}

// limiter is that of a key, or of all. It is called with mu held.
func (b *bucket) limiter(limiters map[string]*rate.Limiter, key string, most int) *rate.Limiter {
	prefix := ""
	if b.parted {
		prefix = key
	}
	l := limiters[prefix]
	if l == nil {
		l = rate.NewLimiter(rate.Limit(most), most)
		limiters[prefix] = l
	}
	return l
}

// again is begin for what the real store asks a second time, after a pause.
func (b *bucket) again(ctx context.Context, op storetest.Op, key string, n int) error {
	err := b.begin(ctx, op, key, n)
	if !errors.Is(err, errSlowDown) {
		return err
	}
	if err := pass(ctx, rand.N(200*time.Millisecond)); err != nil {
		return &store.Error{Op: string(op), Key: key, Err: err}
	}
	return b.begin(ctx, op, key, n)
}

// pass lets time pass.
func pass(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (b *bucket) find(key string) (store.Info, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	info, ok := b.large[key]
	if !ok {
		return store.Info{}, store.ErrNotExist
	}
	return info, nil
}

func (b *bucket) get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, store.Info, error) {
	if err := b.again(ctx, storetest.Get, key, 1); err != nil {
		return nil, store.Info{}, err
	}
	if !isLarge(key) {
		return b.small.Get(ctx, key, offset, length)
	}
	info, err := b.find(key)
	if err != nil {
		return nil, info, err
	}
	if offset >= info.Size && (offset > 0 || length > 0) {
		return nil, info, store.ErrRange
	}
	if length < 0 || length > info.Size-offset {
		length = info.Size - offset
	}
	return &cloudBody{ctx: ctx, left: length, chunk: storeChunk, pace: func(n int64) time.Duration {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.asked.Out += n
		return time.Duration(n) * time.Second / connectionRate
	}}, info, nil
}

func (b *bucket) head(ctx context.Context, key string) (store.Info, error) {
	if err := b.again(ctx, storetest.Head, key, 1); err != nil {
		return store.Info{}, err
	}
	if isLarge(key) {
		return b.find(key)
	}
	return b.small.Head(ctx, key)
}

func (b *bucket) put(ctx context.Context, key string, content io.ReadSeeker, label store.Label) error {
	if err := b.again(ctx, storetest.Put, key, 1); err != nil {
		return err
	}
	if !isLarge(key) {
		return b.small.Put(ctx, key, content, label)
	}
	for left := label.Size; left > 0; {
		n, err := content.Read(b.scratch[:min(left, storeChunk)])
		left -= int64(n)
		if err == nil {
			err = pass(ctx, time.Duration(n)*time.Second/connectionRate)
		}
		if err != nil && left > 0 {
			return &store.Error{Op: "put", Key: key, Err: err}
		}
	}
	b.keep(key, label)
	return nil
}

func (b *bucket) keep(key string, label store.Label) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.large[key] = store.Info{Size: label.Size, Length: label.Size, Digest: label.Digest, Modified: time.Now(), Version: "1"}
}

// compose begins an upload, copies parts, and ends it.
func (b *bucket) compose(ctx context.Context, key string, parts []string, label store.Label) error {
	if err := b.again(ctx, storetest.Compose, key, len(parts)+2); err != nil {
		return err
	}
	if err := pass(ctx, time.Second); err != nil { // copies of gigabytes are not done at once
		return &store.Error{Op: "compose", Key: key, Err: err}
	}
	var size int64
	for _, part := range parts {
		info, err := b.find(part)
		if err != nil {
			return err
		}
		size += info.Size
	}
	if size != label.Size {
		return &store.Error{Op: "compose", Key: key, Err: io.ErrUnexpectedEOF}
	}
	b.keep(key, label)
	return nil
}

func (b *bucket) remove(ctx context.Context, key string) error {
	if err := b.again(ctx, storetest.Delete, key, 1); err != nil {
		return err
	}
	if !isLarge(key) {
		return b.small.Delete(ctx, key)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.large, key)
	return nil
}

func (b *bucket) requests() tierRequests {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.asked
}

// cloudBody is bytes on their way, none of which is there.
type cloudBody struct {
	ctx   context.Context
	left  int64
	chunk int64
	pace  func(n int64) time.Duration // how long n bytes take
	ended func()                      // nil: nobody cares
}

// Read implements io.Reader.
func (b *cloudBody) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	n := min(int64(len(p)), b.chunk, b.left)
	if err := pass(b.ctx, b.pace(n)); err != nil {
		return 0, err
	}
	b.left -= n
	return int(n), nil
}

// Close implements io.Closer.
func (b *cloudBody) Close() error {
	if b.ended != nil {
		b.ended()
	}
	return nil
}

// link is a node's way to the bucket. Nothing that a dead node does gets there any more,
// as after kill -9.
type link struct {
	*bucket
	dead <-chan struct{}
}

var _ store.Store = (*link)(nil)

var errDead = errors.New("the node is dead")

func (l *link) alive() error {
	select {
	case <-l.dead:
		return errDead
	default:
		return nil
	}
}

// once is begin for what is not asked a second time.
func (l *link) once(ctx context.Context, op storetest.Op, key string) error {
	if err := l.alive(); err != nil {
		return err
	}
	return l.begin(ctx, op, key, 1)
}

// Get implements store.Store.
func (l *link) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, store.Info, error) {
	if err := l.alive(); err != nil {
		return nil, store.Info{}, err
	}
	return l.get(ctx, key, offset, length)
}

// Head implements store.Store.
func (l *link) Head(ctx context.Context, key string) (store.Info, error) {
	if err := l.alive(); err != nil {
		return store.Info{}, err
	}
	return l.head(ctx, key)
}

// Put implements store.Store.
func (l *link) Put(ctx context.Context, key string, content io.ReadSeeker, label store.Label) error {
	if err := l.alive(); err != nil {
		return err
	}
	return l.put(ctx, key, content, label)
}

// Create implements store.Store.
func (l *link) Create(ctx context.Context, key string, content []byte) (string, error) {
	if err := l.once(ctx, storetest.Create, key); err != nil {
		return "", err
	}
	return l.small.Create(ctx, key, content)
}

// Replace implements store.Store.
func (l *link) Replace(ctx context.Context, key string, content []byte, version string) (string, error) {
	if err := l.once(ctx, storetest.Replace, key); err != nil {
		return "", err
	}
	return l.small.Replace(ctx, key, content, version)
}

// Compose implements store.Store.
func (l *link) Compose(ctx context.Context, key string, parts []string, label store.Label) error {
	if err := l.alive(); err != nil {
		return err
	}
	return l.compose(ctx, key, parts, label)
}

// Delete implements store.Store.
func (l *link) Delete(ctx context.Context, key string) error {
	if err := l.alive(); err != nil {
		return err
	}
	return l.remove(ctx, key)
}

// List implements store.Store. Nobody who pulls lists anything.
func (l *link) List(context.Context, string) iter.Seq2[store.Item, error] {
	return func(yield func(store.Item, error) bool) { yield(store.Item{}, store.ErrUnsupported) }
}

// SignedURL implements store.Store.
func (l *link) SignedURL(context.Context, string, time.Duration) (string, error) {
	return "", store.ErrUnsupported
}

// String implements store.Store.
func (l *link) String() string { return "s3://simulation" }

// Close implements store.Store.
func (l *link) Close() error { return nil }

// registry is upstream in a simulation: all that it sends passes one line.
type registry struct {
	image image

	mu      sync.Mutex // guards what follows
	free    time.Time  // when the line is
	asked   upstreamRequests
	sending map[*node]int // bodies
}

// upstreamRequests are what upstream was asked for.
type upstreamRequests struct {
	Heads, Manifests, Blobs int
	Bytes                   int64 // of blobs
}

func (u upstreamRequests) all() int { return u.Heads + u.Manifests + u.Blobs }

func (r *registry) note(change func(*upstreamRequests)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(&r.asked)
}

// requests are those up to now.
func (r *registry) requests() upstreamRequests {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.asked
}

// busiest is the node that most bodies are sent to; nil: nobody gets any.
func (r *registry) busiest() (n *node) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for other, bodies := range r.sending {
		if bodies > r.sending[n] {
			n = other
		}
	}
	return n
}

// HeadManifest implements manifestcache.Upstream.
func (r *registry) HeadManifest(ctx context.Context, _ string) (ocispec.Descriptor, error) {
	r.note(func(u *upstreamRequests) { u.Heads++ })
	return r.image.manifest, pass(ctx, upstreamLatency)
}

// GetManifest implements manifestcache.Upstream.
func (r *registry) GetManifest(ctx context.Context, _ string) (ocispec.Descriptor, []byte, error) {
	r.note(func(u *upstreamRequests) { u.Manifests++ })
	return r.image.manifest, r.image.body, pass(ctx, upstreamLatency)
}

// blob opens a part of a blob for a node.
func (r *registry) blob(ctx context.Context, n *node, size, offset, length int64) (io.ReadCloser, int64, error) {
	if length < 0 || length > size-offset {
		length = size - offset
	}
	r.note(func(u *upstreamRequests) { u.Blobs++; r.sending[n]++ })
	body := &cloudBody{ctx: ctx, left: length, chunk: upstreamChunk, pace: r.reserve}
	body.ended = func() { r.note(func(*upstreamRequests) { r.sending[n]-- }) }
	if err := pass(ctx, upstreamLatency); err != nil {
		body.ended()
		return nil, 0, err
	}
	return body, size, nil
}

// reserve has n bytes wait until all that was to be sent before has been.
func (r *registry) reserve(n int64) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := time.Now(); r.free.Before(now) {
		r.free = now
	}
	r.free = r.free.Add(time.Duration(n) * time.Second / upstreamRate)
	r.asked.Bytes += n
	return time.Until(r.free)
}
