package shared_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// What all nodes are set to: larder's defaults, but that tags are trusted for a while.
const (
	repository = "registry.test/fleet/app"
	tagTTL     = 10 * time.Minute
	timeout    = 2 * time.Second
	wait       = 30 * time.Second
)

// Nodes come in waves, each within a moment, as an autoscaler has them come; whoever
// has died comes back, with an empty disk.
const (
	moment    = 2 * time.Second
	comesBack = 5 * time.Second
)

// image is what is pulled.
type image struct {
	manifest ocispec.Descriptor
	body     []byte
	blobs    []ocispec.Descriptor // the config first
	size     int64
}

// newImage is one of 500 MB in 8 layers.
func newImage() (i image, err error) {
	for n, size := range []int64{4 << 10, 150e6, 100e6, 80e6, 60e6, 50e6, 30e6, 20e6, 10e6} {
		mediaType := ocispec.MediaTypeImageLayerGzip
		if n == 0 {
			mediaType = ocispec.MediaTypeImageConfig
		}
		i.blobs = append(i.blobs, ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromString(fmt.Sprint(n)), Size: size})
		i.size += size
	}
	i.body, err = json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: i.blobs[0], Layers: i.blobs[1:],
	})
	i.manifest = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(i.body), Size: int64(len(i.body))}
	return i, err
}

// scenario is one fleet.
type scenario struct {
	Nodes  int
	NoTier bool
	Parted bool // the bucket, as far as S3 parts one that is used for long
	Churn  bool // nodes die while they pull, the first two of them those that fetch most for all
}

// outcome is how it went.
type outcome struct {
	scenario
	Upstream             upstreamRequests
	Tier                 tierRequests
	Last                 time.Duration // until the last node had all
	Median, P99, Slowest time.Duration // pull
	Died                 int
	Real                 time.Duration
}

// world is a fleet with what it shares.
type world struct {
	scenario
	dir      string
	bucket   *bucket // nil: there is none
	registry *registry
	scratch  []byte

	mu    sync.Mutex // guards what follows
	count int        // of nodes up to now
	alive []*node
	pulls []time.Duration
	died  int
}

// simulate runs a fleet, in a bubble.
func simulate(t *testing.T, s scenario) (got outcome) {
	t.Helper()
	i, err := newImage()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	began := time.Now()
	synctest.Test(t, func(t *testing.T) {
		w := &world{scenario: s, dir: dir, scratch: make([]byte, storeChunk), registry: &registry{image: i, sending: make(map[*node]int)}}
		if !s.NoTier {
			w.bucket = newBucket(s.Parted)
		}
		got = w.run(t)
	})
	got.Real = time.Since(began)
	return got
}

func (w *world) run(t *testing.T) outcome {
	began := time.Now()
	var all, killers sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	for i := range w.Nodes {
		all.Go(func() { w.live(ctx, t, w.arrival(i)) })
	}
	if w.Churn {
		killers.Go(func() { w.kill(ctx, t) })
	}
	all.Wait()
	last := time.Since(began)
	cancel()
	killers.Wait()
	for _, n := range w.alive {
		if err := n.close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}
	slices.Sort(w.pulls)
	slowest := len(w.pulls) - 1
	got := outcome{
		scenario: w.scenario, Upstream: w.registry.requests(), Last: last, Died: w.died,
		Median: w.pulls[slowest/2], P99: w.pulls[slowest*99/100], Slowest: w.pulls[slowest],
	}
	if w.bucket != nil {
		got.Tier = w.bucket.requests()
	}
	return got
}

// arrival is when a node comes: half of them at first, a third while those are still
// pulling, the rest when all is there.
func (w *world) arrival(i int) time.Duration {
	wave := []time.Duration{0, 0, 0, 4 * time.Second, 4 * time.Second, time.Minute}[i%6]
	return wave + time.Duration(rand.Int64N(int64(moment)))
}

// live has a node come and pull; if it dies, it comes back.
func (w *world) live(ctx context.Context, t *testing.T, arrival time.Duration) {
	if pass(ctx, arrival) != nil {
		return
	}
	began := time.Now()
	for {
		n, err := w.join(ctx)
		if err != nil {
			t.Errorf("node: %v", err)
			return
		}
		err = n.pull()
		if n.isDead() && pass(ctx, comesBack) == nil {
			continue
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if err != nil {
			t.Errorf("pull: %v", err)
		}
		w.pulls = append(w.pulls, time.Since(began))
		return
	}
}

// join adds a node.
func (w *world) join(ctx context.Context) (*node, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, err := w.newNode(ctx, w.count)
	w.count++
	if err == nil {
		w.alive = append(w.alive, n)
	}
	return n, err
}

// kill kills the node that fetches most from upstream, twice, and now and then another
// one, until a twentieth of all have died.
func (w *world) kill(ctx context.Context, t *testing.T) {
	for died := 0; died < 2 || died < w.Nodes/20; died++ {
		pause := 2 * time.Second
		if died >= 2 {
			pause = rand.N(10 * time.Second * 20 / time.Duration(w.Nodes))
		}
		if pass(ctx, pause) != nil {
			return
		}
		n := w.registry.busiest()
		w.mu.Lock()
		if n == nil || died >= 2 {
			n = w.alive[rand.IntN(len(w.alive))]
		}
		w.alive = slices.DeleteFunc(w.alive, func(other *node) bool { return other == n })
		w.died++
		w.mu.Unlock()
		if err := n.kill(); err != nil {
			t.Errorf("kill: %v", err)
		}
	}
}

// TestUpstreamIsAskedByOneNodeForAll has fleets of different sizes pull one image. How
// large ones do is in docs/SCALE.md.
func TestUpstreamIsAskedByOneNodeForAll(t *testing.T) {
	alone := simulate(t, scenario{Nodes: 1})
	for _, nodes := range []int{10, 100} {
		got := simulate(t, scenario{Nodes: nodes})
		if got.Upstream.Bytes != alone.Upstream.Bytes || got.Upstream.all() > alone.Upstream.all()+2 {
			t.Errorf("%d nodes: upstream was asked for %+v, by one node for %+v", nodes, got.Upstream, alone.Upstream)
		}
		if got.Slowest > alone.Slowest*3/2 {
			t.Errorf("%d nodes: a pull took %v, of one node %v", nodes, got.Slowest, alone.Slowest)
		}
	}
	got := simulate(t, scenario{Nodes: 50, Churn: true})
	if got.Died < 2 || got.Upstream.Bytes > 2*alone.Upstream.Bytes {
		t.Errorf("%d of 50 nodes died, those that fetched most, and upstream was asked for %+v, by one node for %+v", got.Died, got.Upstream, alone.Upstream)
	}
}

// TestWithoutATierAllNodesAskUpstream is what the one before is compared with.
func TestWithoutATierAllNodesAskUpstream(t *testing.T) {
	alone, got := simulate(t, scenario{Nodes: 1, NoTier: true}), simulate(t, scenario{Nodes: 5, NoTier: true})
	if got.Upstream.Bytes != 5*alone.Upstream.Bytes || got.Upstream.all() != 5*alone.Upstream.all() {
		t.Errorf("upstream was asked for %+v, by one node for %+v", got.Upstream, alone.Upstream)
	}
}
