package shared_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"larder/blobcache"
	"larder/handler/shared"
	"larder/manifestcache"
)

// How a node fetches a blob, as blobcache does: the first request is for the beginning,
// later ones are for a segment each, several at a time unless one brings plenty.
const (
	beginning   = 32 << 20
	segment     = 8 << 20
	connections = 4
	plenty      = 200_000_000 // bytes per second
	tries       = 4           // in a row, without a byte
	firstPause  = 250 * time.Millisecond

	atOnce = 3 // blobs that a client pulls at a time
)

// node is a larder in a simulation: the tier and the manifests are real ones, and of
// blobs it keeps how much has arrived.
type node struct {
	world     *world
	tier      *shared.Tier // nil: there is none
	manifests *manifestcache.Cache
	dead      chan struct{}

	ctx  context.Context // ends with the node
	stop context.CancelFunc
	run  sync.WaitGroup // the tier's writers

	mu    sync.Mutex // guards fills
	fills map[digest.Digest]*fill
}

// newNode is one with nothing on its disk.
func (w *world) newNode(ctx context.Context, number int) (*node, error) {
	n := &node{world: w, dead: make(chan struct{}), fills: make(map[digest.Digest]*fill)}
	n.ctx, n.stop = context.WithCancel(ctx)
	dir := filepath.Join(w.dir, fmt.Sprint(number))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	cfg := manifestcache.Config{TagTTL: tagTTL}
	if w.bucket != nil {
		n.tier = shared.New(shared.Config{
			Store: &link{w.bucket, n.dead}, Timeout: timeout, Wait: wait, TagTTL: tagTTL, Open: n.open,
		})
		n.run.Go(func() { _ = n.tier.Run(n.ctx) }) // ends with the node
		cfg.Shared = n.tier
	}
	n.manifests, err = manifestcache.Open(root, cfg)
	return n, err
}

// kill ends the node, and whatever it does then reaches nobody.
func (n *node) kill() error {
	close(n.dead)
	return n.close()
}

func (n *node) isDead() bool {
	select {
	case <-n.dead:
		return true
	default:
		return false
	}
}

// close ends the node in good order.
func (n *node) close() error {
	n.stop()
	n.run.Wait()
	if n.tier != nil {
		if err := n.tier.Close(); err != nil {
			return err
		}
	}
	return n.manifests.Close()
}

// pull pulls the image as containerd does.
func (n *node) pull() error {
	if _, err := n.manifests.ByTag(n.ctx, repository, "latest", n.world.registry); err != nil {
		return err
	}
	image := n.world.registry.image
	if _, err := n.manifests.ByDigest(n.ctx, repository, image.manifest.Digest, n.world.registry); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(n.ctx)
	group.SetLimit(atOnce)
	for _, b := range image.blobs {
		group.Go(func() error { return n.blob(ctx, b) })
	}
	return group.Wait()
}

// blob fetches one.
func (n *node) blob(ctx context.Context, b ocispec.Descriptor) error {
	f := &fill{size: b.Size, scratch: n.world.scratch, grown: make(chan struct{})}
	n.mu.Lock()
	n.fills[b.Digest] = f
	n.mu.Unlock()
	f.fetch = func(ctx context.Context, offset, length int64) (io.ReadCloser, int64, error) {
		return n.world.registry.blob(ctx, n, b.Size, offset, length)
	}
	ended := func(error) {}
	if n.tier != nil {
		f.fetch, ended, _ = n.tier.Blob(repository, b.Digest, b.Size, shared.Whole, f.fetch)
	}
	err := f.run(ctx)
	ended(err)
	return err
}

// open is a tier's way to read what arrives here.
func (n *node) open(ctx context.Context, d digest.Digest) (io.ReadSeekCloser, int64, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f, ok := n.fills[d]
	if !ok {
		return nil, -1, os.ErrNotExist
	}
	return &follower{ctx: ctx, fill: f}, f.size, nil
}

// fill is a blob on its way to a node.
type fill struct {
	size    int64
	scratch []byte
	fetch   blobcache.Fetch
	claims  sync.WaitGroup

	mu       sync.Mutex // guards what follows
	all      []*claim   // in order of their beginnings, with no gap between
	began    time.Time  // of the first answer
	arrived  int64
	active   int
	failures int // in a row
	err      error
	grown    chan struct{} // closed and replaced when something has changed
}

// claim is a part of a blob that one request brings.
type claim struct{ pos, end int64 }

// run fetches all of the blob.
func (f *fill) run(ctx context.Context) error {
	f.mu.Lock()
	f.plan(ctx)
	f.mu.Unlock()
	f.claims.Wait()
	return f.err
}

// plan begins as many requests as there should be. It is called with mu held.
func (f *fill) plan(ctx context.Context) {
	for f.err == nil && f.next() < f.size {
		quick := !f.began.IsZero() && float64(f.arrived) >= plenty*time.Since(f.began).Seconds()
		most, length := connections, int64(segment)
		if quick || f.began.IsZero() {
			most, length = 1, beginning
		}
		if f.active >= most {
			return
		}
		c := &claim{f.next(), min(f.next()+length, f.size)}
		f.all = append(f.all, c)
		f.active++
		f.claims.Go(func() { f.bring(ctx, c) }) // ends with its part, or ctx
	}
}

// next is the first byte that nobody has begun to fetch.
func (f *fill) next() int64 {
	if len(f.all) == 0 {
		return 0
	}
	return f.all[len(f.all)-1].end
}

// bring fetches a part, and goes on where it breaks off.
func (f *fill) bring(ctx context.Context, c *claim) {
	for {
		err := f.request(ctx, c)
		f.mu.Lock()
		if err == nil {
			break
		}
		f.failures++
		if f.failures > tries || ctx.Err() != nil || f.began.IsZero() {
			f.err = err
			break
		}
		d := firstPause << f.failures
		f.mu.Unlock()
		_ = pass(ctx, d) // the next request says how that ended
	}
	f.active--
	f.plan(ctx)
	f.wake()
	f.mu.Unlock()
}

func (f *fill) request(ctx context.Context, c *claim) error {
	length := c.end - c.pos
	if c.end == f.size {
		length = -1
	}
	body, _, err := f.fetch(ctx, c.pos, length)
	if err != nil {
		return err
	}
	defer body.Close()
	f.mu.Lock()
	if f.began.IsZero() {
		f.began = time.Now()
	}
	f.plan(ctx)
	f.mu.Unlock()
	for c.pos < c.end {
		n, err := body.Read(f.scratch)
		f.mu.Lock()
		n = int(min(int64(n), c.end-c.pos))
		c.pos += int64(n)
		f.arrived += int64(n)
		if n > 0 {
			f.failures = 0
			f.wake()
		}
		left := c.end - c.pos
		f.mu.Unlock()
		if err == io.EOF && left > 0 {
			return io.ErrUnexpectedEOF
		}
		if err != nil && err != io.EOF {
			return err
		}
	}
	return nil
}

// wake tells followers. It is called with mu held.
func (f *fill) wake() {
	close(f.grown)
	f.grown = make(chan struct{})
}

// visible is how much has arrived from the start on, and what to wait for if that is
// not enough.
func (f *fill) visible() (n int64, grown <-chan struct{}, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.all {
		if n = c.pos; c.pos < c.end {
			break
		}
	}
	return n, f.grown, f.err
}

// follower reads what arrives.
type follower struct {
	ctx  context.Context
	fill *fill
	at   int64
}

// Read implements io.Reader.
func (r *follower) Read(p []byte) (int, error) {
	for {
		visible, grown, err := r.fill.visible()
		switch {
		case r.at == r.fill.size:
			return 0, io.EOF
		case r.at < visible:
			n := min(int64(len(p)), visible-r.at)
			r.at += n
			return int(n), nil
		case err != nil:
			return 0, err
		}
		select {
		case <-grown:
		case <-r.ctx.Done():
			return 0, context.Cause(r.ctx)
		}
	}
}

// Seek implements io.Seeker.
func (r *follower) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += r.at
	case io.SeekEnd:
		offset += r.fill.size
	}
	r.at = offset
	return offset, nil
}

// Close implements io.Closer.
func (r *follower) Close() error { return nil }
