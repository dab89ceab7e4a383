package handler

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"larder/blobcache"
	"larder/handler/upstream"
	"larder/manifestcache"
)

const (
	// maxPrefetched is how many blobs are fetched at once that nobody has asked for,
	// and maxPrefetchedBytes how large they may be together.
	maxPrefetched      = 16
	maxPrefetchedBytes = 1 << 30

	// busy is how many blobs clients may be reading as they arrive for there to be
	// any left over for this.
	busy = 8

	// dockerManifest is Docker's name for an image manifest.
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
)

// errUnused ends the fetching of what nobody has asked for in time.
var errUnused = errors.New("fetched before it was asked for, and not asked for")

// prefetcher fetches the blobs of an image whose manifest is being pulled.
type prefetcher struct {
	timeout time.Duration
	ctx     context.Context // of all that is fetched; ends with close
	cancel  context.CancelFunc
	wg      sync.WaitGroup

	complete, joined, unused, failed atomic.Int64

	mu      sync.Mutex // guards what follows
	running int
	bytes   int64 // of what is running
}

// newPrefetcher is nil if nothing is to be fetched.
func newPrefetcher(timeout time.Duration) *prefetcher {
	if timeout == 0 {
		return nil
	}
	p := &prefetcher{timeout: timeout}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

// Close ends what is being fetched for no client, and waits for that.
func (h *Handler) Close() {
	p := h.prefetcher
	if p == nil {
		return
	}
	p.mu.Lock() // so that nothing starts between the cancel and the wait
	p.cancel()
	p.mu.Unlock()
	p.wg.Wait()
}

// Prefetched says how many blobs are being fetched before they are asked for, and
// counts what became of others: they came first (complete), a client came meanwhile
// (joined), nobody came in time (unused), or they could not be had or kept (failed).
func (h *Handler) Prefetched() (running int64, ended map[string]int64) {
	p := h.prefetcher
	if p == nil {
		return 0, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return int64(p.running), map[string]int64{
		"complete": p.complete.Load(), "joined": p.joined.Load(), "unused": p.unused.Load(), "failed": p.failed.Load(),
	}
}

// prefetch begins to fetch the config and the layers of an image that a client has
// asked for by its manifest, as far as there is room; the client will see to the
// rest. Of an index, it is the client that chooses.
func (h *Handler) prefetch(repo *upstream.Repository, m *manifestcache.Manifest) {
	p := h.prefetcher
	if p == nil || m.MediaType != ocispec.MediaTypeImageManifest && m.MediaType != dockerManifest {
		return
	}
	var doc ocispec.Manifest
	if json.Unmarshal(m.Body, &doc) != nil || repo.Circular() {
		return
	}
	var blobs []ocispec.Descriptor
	var digests []digest.Digest
	for _, b := range append([]ocispec.Descriptor{doc.Config}, doc.Layers...) {
		if upstream.ValidDigest(b.Digest) && len(b.URLs) == 0 {
			blobs, digests = append(blobs, b), append(digests, b.Digest)
		}
	}
	items := h.blobs.Items(digests)
	left := h.blobs.Read() < busy && h.upstreams.Spare(repo.String()) == nil
	for i, b := range blobs {
		if items[i].Whole || items[i].Filling {
			continue
		}
		if !left || !p.begin(b.Size) {
			return
		}
		go h.prefetchBlob(repo, b) // ends with its blob, its timeout or close, which waits for it
	}
}

// begin takes room for a blob, if there is some.
func (p *prefetcher) begin(size int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ctx.Err() != nil || size < 0 || p.running == maxPrefetched || size > maxPrefetchedBytes-p.bytes {
		return false
	}
	p.running++
	p.bytes += size
	p.wg.Add(1)
	return true
}

func (p *prefetcher) end(size int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running--
	p.bytes -= size
	p.wg.Done()
}

func (h *Handler) prefetchBlob(repo *upstream.Repository, b ocispec.Descriptor) {
	p := h.prefetcher
	defer p.end(b.Size)
	ctx, cancel := context.WithTimeoutCause(p.ctx, p.timeout, errUnused)
	defer cancel()
	switch outcome, err := h.Fill(ctx, repo, b.Digest, nil); {
	case outcome == blobcache.Hit && err == nil:
	case outcome == blobcache.Join:
		p.joined.Add(1)
	case err == nil:
		p.complete.Add(1)
	case errors.Is(err, errUnused):
		p.unused.Add(1)
	case p.ctx.Err() == nil:
		p.failed.Add(1)
	}
}
