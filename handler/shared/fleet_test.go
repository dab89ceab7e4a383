package shared

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap/zaptest/observer"

	"larder/blobcache"
	"larder/handler/shared/store"
	"larder/handler/shared/storetest"
)

const repository = "docker.io/library/alpine"

// origin is an upstream that has one blob, and notes what of it was sent.
type origin struct {
	data    []byte
	digest  digest.Digest
	rate    int64 // bytes per second of each body; 0: no limit
	noRange bool
	down    atomic.Bool

	mu   sync.Mutex
	sent [][2]int64
	asks int
}

func newOrigin(size int) *origin {
	data := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{byte(size), byte(size >> 8), byte(size >> 16)}).Read(data)
	return &origin{data: data, digest: digest.FromBytes(data)}
}

func (o *origin) fetch(ctx context.Context, offset, length int64) (io.ReadCloser, int64, error) {
	o.mu.Lock()
	o.asks++
	o.mu.Unlock()
	size := int64(len(o.data))
	switch {
	case o.down.Load():
		return nil, 0, errors.New("upstream is down")
	case o.noRange && offset > 0:
		return nil, 0, blobcache.ErrNoRange
	}
	end := size
	if length >= 0 && !o.noRange {
		end = min(offset+length, size)
	}
	return io.NopCloser(&originBody{o, ctx, min(offset, size), end}), size, nil
}

type originBody struct {
	o       *origin
	ctx     context.Context
	at, end int64
}

func (b *originBody) Read(p []byte) (int, error) {
	n := copy(p[:min(len(p), 64<<10)], b.o.data[b.at:b.end])
	if n == 0 {
		return 0, io.EOF
	}
	if b.o.rate > 0 {
		select {
		case <-time.After(time.Duration(n) * time.Second / time.Duration(b.o.rate)):
		case <-b.ctx.Done():
			return 0, context.Cause(b.ctx)
		}
	}
	if b.o.down.Load() {
		return 0, errors.New("upstream went down")
	}
	b.o.mu.Lock()
	b.o.sent = append(b.o.sent, [2]int64{b.at, b.at + int64(n)})
	b.o.mu.Unlock()
	if b.at += int64(n); b.at == b.end {
		return n, io.EOF // with the last bytes, as HTTP does
	}
	return n, nil
}

// traffic is how many bytes were sent, and how many of them more than once.
func (o *origin) traffic() (sent, again int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	slices.SortFunc(o.sent, func(a, b [2]int64) int { return cmp.Compare(a[0], b[0]) })
	end := int64(0)
	for _, piece := range o.sent {
		sent += piece[1] - piece[0]
		again += max(min(end, piece[1])-piece[0], 0)
		end = max(end, piece[1])
	}
	return sent, again
}

// wantSent checks what upstream has sent so far.
func (o *origin) wantSent(t *testing.T, want int64) {
	t.Helper()
	if sent, again := o.traffic(); sent != want || again != 0 && want <= int64(len(o.data)) {
		t.Errorf("upstream has sent %d bytes, %d of them again; want %d", sent, again, want)
	}
}

// reach is a node's way to the store, which is cut when the node dies.
type reach struct {
	store.Store
	dead atomic.Bool
}

var errDead = errors.New("this node is dead")

func (r *reach) Get(ctx context.Context, key string, offset, length int64) (io.ReadCloser, store.Info, error) {
	if r.dead.Load() {
		return nil, store.Info{}, errDead
	}
	return r.Store.Get(ctx, key, offset, length)
}

func (r *reach) Put(ctx context.Context, key string, content io.ReadSeeker, label store.Label) error {
	if r.dead.Load() {
		return errDead
	}
	return r.Store.Put(ctx, key, content, label)
}

func (r *reach) Replace(ctx context.Context, key string, content []byte, version string) (string, error) {
	if r.dead.Load() {
		return "", errDead
	}
	return r.Store.Replace(ctx, key, content, version)
}

func (r *reach) Compose(ctx context.Context, key string, parts []string, label store.Label) error {
	if r.dead.Load() {
		return errDead
	}
	return r.Store.Compose(ctx, key, parts, label)
}

func (r *reach) Delete(ctx context.Context, key string) error {
	if r.dead.Load() {
		return errDead
	}
	return r.Store.Delete(ctx, key)
}

// machine is a node with a cache of its own.
type machine struct {
	*Tier
	cache *blobcache.Cache
	logs  *observer.ObservedLogs
	reach *reach
	size  int64 // as its manifests say; -1: they don't
}

// newMachine makes a node with a cache in dir. Its parts are small.
func newMachine(t *testing.T, m *storetest.Model, dir string, change func(*Config)) *machine {
	t.Helper()
	return newMachineWith(t, m, dir, blobcache.Config{Connections: 4, Linger: time.Second}, change)
}

func newMachineWith(t *testing.T, m *storetest.Model, dir string, cfg blobcache.Config, change func(*Config)) *machine {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	n := &machine{reach: &reach{Store: m}, size: -1}
	n.cache, err = blobcache.Open(root, cfg)
	if err != nil {
		t.Fatal(err)
	}
	n.Tier, n.logs = node(t, m, func(c *Config) {
		c.Store, c.Open = n.reach, n.open
		if change != nil {
			change(c)
		}
	})
	n.sizes = sizes{part: 256 << 10, leased: 512 << 10}
	t.Cleanup(func() { n.cache.Close() }) // before the tier's
	return n
}

func (n *machine) open(ctx context.Context, d digest.Digest) (io.ReadSeekCloser, int64, error) {
	b, err := n.cache.Follow(ctx, d)
	if err == nil && b == nil {
		err = errors.New("not here")
	}
	if err != nil {
		return nil, 0, err
	}
	return b.Content, b.Size, nil
}

// source is where n has o's blob from.
func (n *machine) source(o *origin, size int64, wanted Wanted) blobcache.Source {
	fetch, ended, wrong := n.Blob(repository, o.digest, size, wanted, o.fetch)
	return blobcache.Source{Fetch: fetch, Ended: ended, Wrong: func() { wrong() }}
}

// get pulls o's blob, as a client does, and says what was read of it.
func (n *machine) get(o *origin) (data []byte, err error) {
	b, err := n.cache.GetRange(context.Background(), o.digest, 0, -1, n.source(o, n.size, Whole))
	if err != nil {
		return nil, err
	}
	defer b.Content.Close()
	return io.ReadAll(b.Content)
}

// pull is get for what has to succeed, and how long it took.
func (n *machine) pull(t *testing.T, o *origin) (took time.Duration) {
	t.Helper()
	began := time.Now()
	data, err := n.get(o)
	if err != nil || !bytes.Equal(data, o.data) {
		t.Errorf("pulled %d of %d bytes, %v", len(data), len(o.data), err)
	}
	return time.Since(began)
}

// pullAll has all nodes pull at once, and returns how long that took.
func pullAll(t *testing.T, nodes []*machine, o *origin) time.Duration {
	t.Helper()
	began := time.Now()
	var all sync.WaitGroup
	for _, n := range nodes {
		all.Go(func() { n.pull(t, o) })
	}
	all.Wait()
	return time.Since(began)
}

// settled waits until everything that goes on in the background is done.
func settled() {
	time.Sleep(time.Minute)
	synctest.Wait()
}

// wantShared checks that the tier has the blob, and nothing that is left of fetching it.
func wantShared(t *testing.T, m *storetest.Model, o *origin) {
	t.Helper()
	want := []string{blobKey(o.digest), versionKey}
	if keys := m.Keys(); !slices.Equal(keys, want) {
		t.Errorf("the store has %v, want %v", keys, want)
	} else if read(t, m, blobKey(o.digest)) != string(o.data) {
		t.Error("other bytes were shared")
	}
	if info, err := m.Head(context.Background(), blobKey(o.digest)); err != nil || info.Digest != o.digest || info.Length != int64(len(o.data)) {
		t.Errorf("labelled %v %d, %v", info.Digest, info.Length, err)
	}
}

// quick is a store some milliseconds away.
func quick() *storetest.Model {
	return &storetest.Model{SmallParts: true, Latency: func(op storetest.Op) time.Duration {
		if op == storetest.Read {
			return 100 * time.Microsecond
		}
		return 5 * time.Millisecond
	}}
}

// sizesOf runs a test with blobs of several sizes, which the nodes know beforehand or
// don't (-1).
func sizesOf(t *testing.T, test func(t *testing.T, o *origin, known int64)) {
	t.Helper()
	for _, size := range []int{0, 1, 10 << 10, 256 << 10, 600 << 10, 1 << 20, 1<<20 + 7} {
		bubble(t, fmt.Sprint(size), func(t *testing.T) { test(t, newOrigin(size), int64(size)) })
		bubble(t, fmt.Sprint(size, " unknown"), func(t *testing.T) { test(t, newOrigin(size), -1) })
	}
}

// memoryDir is a directory in memory if there is such a thing: fleets write a lot.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "larder-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}
