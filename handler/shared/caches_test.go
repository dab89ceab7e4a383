package shared

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"larder/handler/shared/store"
	"larder/handler/shared/storetest"
	"larder/manifestcache"
)

var errGone = errors.New("not found")

const alpine = "docker.io/library/alpine"

// document is a manifest.
type document struct {
	mediaType string
	body      []byte
	digest    digest.Digest
}

func newDocument(mediaType, body string) document {
	return document{mediaType, []byte(body), digest.FromString(body)}
}

func newImage(name string) document {
	return newDocument(ocispec.MediaTypeImageManifest, fmt.Sprintf(`{"mediaType":%q,"layers":[{"digest":%q}]}`, ocispec.MediaTypeImageManifest, digest.FromString(name)))
}

func newIndex(images ...document) document {
	var list []string
	for _, d := range images {
		list = append(list, fmt.Sprintf(`{"digest":%q}`, d.digest))
	}
	return newDocument(ocispec.MediaTypeImageIndex, `{"manifests":[`+strings.Join(list, ",")+`]}`)
}

// registry is one repository upstream, which every node asks.
type registry struct {
	latency time.Duration

	mu    sync.Mutex
	docs  map[string]document // by tag and by digest
	err   error               // instead of an answer
	asked []string
}

func newRegistry() *registry { return &registry{docs: make(map[string]document)} }

func (r *registry) push(d document, tags ...string) document {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, reference := range append(tags, d.digest.String()) {
		r.docs[reference] = d
	}
	return d
}

func (r *registry) remove(reference string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.docs, reference)
}

func (r *registry) stop(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
}

// HeadManifest implements manifestcache.Upstream.
func (r *registry) HeadManifest(_ context.Context, reference string) (ocispec.Descriptor, error) {
	d, err := r.answer("HEAD", reference)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return ocispec.Descriptor{MediaType: d.mediaType, Digest: d.digest, Size: int64(len(d.body))}, nil
}

// GetManifest implements manifestcache.Upstream.
func (r *registry) GetManifest(_ context.Context, reference string) (ocispec.Descriptor, []byte, error) {
	d, err := r.answer("GET", reference)
	return ocispec.Descriptor{MediaType: d.mediaType, Digest: d.digest}, d.body, err
}

func (r *registry) answer(method, reference string) (document, error) {
	time.Sleep(r.latency)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = append(r.asked, method)
	d, ok := r.docs[reference]
	switch {
	case r.err != nil:
		return document{}, r.err
	case !ok:
		return document{}, errGone
	}
	return d, nil
}

// wantAsked checks what upstream was asked since the last time, by anybody.
func (r *registry) wantAsked(t *testing.T, want ...string) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if fmt.Sprint(r.asked) != fmt.Sprint(want) {
		t.Errorf("upstream was asked %q, want %q", r.asked, want)
	}
	r.asked = nil
}

func (r *registry) count(method string) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range r.asked {
		if m == method {
			n++
		}
	}
	return n
}

// larder is a node's cache of manifests. It is one of a fleet.
type larder struct {
	*manifestcache.Cache
	tier *Tier
	dir  string
	t    *testing.T
	up   *registry
}

// join adds a node to the fleet that shares m. Either config may be changed.
func join(t *testing.T, m *storetest.Model, up *registry, tagTTL time.Duration, change func(*Config, *manifestcache.Config)) *larder {
	t.Helper()
	l := start(t, m, up, tagTTL, change)
	synctest.Wait()
	return l
}

// start is join for who is in no bubble.
func start(t *testing.T, m *storetest.Model, up *registry, tagTTL time.Duration, change func(*Config, *manifestcache.Config)) *larder {
	t.Helper()
	cfg := manifestcache.Config{
		TTL: 7 * 24 * time.Hour, TagTTL: tagTTL,
		StaleIf: func(err error) bool { return errors.Is(err, errDown) || errors.Is(err, manifestcache.ErrDigest) },
		GoneIf:  func(err error) bool { return errors.Is(err, errGone) },
	}
	tier, _ := node(t, m, func(c *Config) {
		c.TagTTL, c.ManifestTTL = cfg.TagTTL, cfg.TTL
		if change != nil {
			change(c, &cfg)
		}
	})
	cfg.Shared = tier
	dir := memoryDir(t)
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	cache, err := manifestcache.Open(root, cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var run sync.WaitGroup
	run.Go(func() { _ = cache.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		run.Wait()
		cache.Close()
	})
	return &larder{cache, tier, dir, t, up}
}

// pull gets a tag or a digest of alpine.
func (l *larder) pull(reference string) (*manifestcache.Manifest, error) {
	return l.pullFrom(alpine, reference)
}

func (l *larder) pullFrom(repository, reference string) (*manifestcache.Manifest, error) {
	if d := digest.Digest(reference); d.Validate() == nil {
		return l.ByDigest(l.t.Context(), repository, d, l.up)
	}
	return l.ByTag(l.t.Context(), repository, reference, l.up)
}

// want pulls and checks what comes, and lets what that has set off come to its end.
func (l *larder) want(reference string, want document, outcome manifestcache.Outcome) *manifestcache.Manifest {
	l.t.Helper()
	return l.wantFrom(alpine, reference, want, outcome)
}

func (l *larder) wantFrom(repository, reference string, want document, outcome manifestcache.Outcome) *manifestcache.Manifest {
	l.t.Helper()
	m, err := l.pullFrom(repository, reference)
	if err != nil {
		l.t.Fatalf("%s: %v, want %v", reference, err, outcome)
	}
	content, err := l.Content(m)
	if err != nil {
		l.t.Fatal(err)
	}
	defer content.Close()
	body, err := io.ReadAll(content)
	if err != nil || m.Digest != want.digest || m.MediaType != want.mediaType || string(body) != string(want.body) {
		l.t.Errorf("%s: %s %s of %d bytes (%v), want %s %s of %d", reference, m.Digest, m.MediaType, len(body), err, want.digest, want.mediaType, len(want.body))
	}
	if m.Outcome != outcome {
		l.t.Errorf("%s: %v, want %v", reference, m.Outcome, outcome)
	}
	synctest.Wait()
	return m
}

func (l *larder) wantError(reference string, want error) {
	l.t.Helper()
	if m, err := l.pull(reference); !errors.Is(err, want) {
		l.t.Errorf("%s: %v, %v; want %v", reference, m, err, want)
	}
	synctest.Wait()
}

// overwrite puts something else in the place of an object.
func overwrite(t *testing.T, m *storetest.Model, key string, content []byte) {
	t.Helper()
	if _, err := m.Head(t.Context(), key); err != nil {
		t.Fatalf("%s: %v", key, err)
	}
	put(t, m, key, content)
}

// objectAt is what is in the place of an object; nil: nothing.
func objectAt(t *testing.T, m *storetest.Model, key string) []byte {
	t.Helper()
	content, _, err := m.Get(t.Context(), key, 0, -1)
	if err != nil {
		return nil
	}
	data, err := io.ReadAll(content)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func exists(m *storetest.Model, key string) bool {
	_, err := m.Head(context.Background(), key)
	return !errors.Is(err, store.ErrNotExist)
}
