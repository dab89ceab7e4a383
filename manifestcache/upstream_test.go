package manifestcache_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"larder/manifestcache"
)

var (
	errDown  = errors.New("no answer")      // an old answer is better
	errGone  = errors.New("not found")      // an explicit no
	errOther = errors.New("not acceptable") // neither
)

// config asks about tags each time and keeps manifests for ever.
func config() manifestcache.Config {
	return manifestcache.Config{
		StaleIf: func(err error) bool { return errors.Is(err, errDown) },
		GoneIf:  func(err error) bool { return errors.Is(err, errGone) },
	}
}

type document struct {
	mediaType string
	body      []byte
	digest    digest.Digest
}

func newDocument(body string) document {
	return document{ocispec.MediaTypeImageManifest, []byte(body), digest.FromString(body)}
}

// newImage is a manifest that names blobs.
func newImage(blobs ...digest.Digest) document {
	var layers []string
	for _, d := range blobs {
		layers = append(layers, fmt.Sprintf(`{"digest":%q}`, d))
	}
	return newDocument(`{"layers":[` + strings.Join(layers, ",") + `]}`)
}

// repository is what upstream says about one. Its calls say what was asked.
type repository struct {
	name   string
	silent bool                    // HEADs say no digest
	lie    func(document) document // what a GET sends instead

	mu        sync.Mutex
	docs      map[string]document // by tag and by digest
	head, get error               // instead of an answer
	gate      chan struct{}       // answers wait until it is closed
	asked     []string
}

func newRepository(name string) *repository {
	return &repository{name: name, docs: make(map[string]document)}
}

// push makes doc available by its digest and the tags.
func (r *repository) push(doc document, tags ...string) document {
	for _, reference := range append(tags, doc.digest.String()) {
		r.docs[reference] = doc
	}
	return doc
}

func (r *repository) fail(err error) { r.head, r.get = err, err }

func (r *repository) HeadManifest(ctx context.Context, reference string) (ocispec.Descriptor, error) {
	doc, err := r.answer(ctx, "HEAD", reference, r.head)
	if err != nil || r.silent {
		return ocispec.Descriptor{}, err
	}
	return ocispec.Descriptor{MediaType: doc.mediaType, Digest: doc.digest, Size: int64(len(doc.body))}, nil
}

func (r *repository) GetManifest(ctx context.Context, reference string) (ocispec.Descriptor, []byte, error) {
	doc, err := r.answer(ctx, "GET", reference, r.get)
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	if r.lie != nil {
		doc = r.lie(doc)
	}
	return ocispec.Descriptor{MediaType: doc.mediaType, Digest: doc.digest}, doc.body, nil
}

func (r *repository) answer(ctx context.Context, method, reference string, fail error) (document, error) {
	r.mu.Lock()
	r.asked = append(r.asked, method+" "+reference)
	gate := r.gate
	r.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return document{}, ctx.Err()
		}
	}
	if fail != nil {
		return document{}, fail
	}
	doc, ok := r.docs[reference]
	if !ok {
		return document{}, errGone
	}
	return doc, nil
}

// wantAsked checks what upstream was asked since the last time.
func (r *repository) wantAsked(t *testing.T, want ...string) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Equal(r.asked, want) {
		t.Errorf("upstream was asked %q, want %q", r.asked, want)
	}
	r.asked = nil
}

// openCache opens a cache without running it.
func openCache(t *testing.T, dir string, cfg manifestcache.Config) *manifestcache.Cache {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	c, err := manifestcache.Open(root, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// running opens a cache and runs it until the test, or the returned function,
// stops it.
func running(t *testing.T, dir string, cfg manifestcache.Config) (*manifestcache.Cache, func()) {
	t.Helper()
	c := openCache(t, dir, cfg)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = c.Run(ctx) })
	stop := func() {
		cancel()
		wg.Wait()
		c.Close()
	}
	t.Cleanup(stop)
	synctest.Wait() // it has found out what is on disk
	return c, stop
}

func wantManifest(t *testing.T, m *manifestcache.Manifest, err error, want document, outcome manifestcache.Outcome) {
	t.Helper()
	if err != nil {
		t.Errorf("%v, want %v", err, outcome)
		return
	}
	if m.Digest != want.digest || m.MediaType != want.mediaType || m.Size != int64(len(want.body)) {
		t.Errorf("got %s %q, %d bytes; want %s %q, %d", m.Digest, m.MediaType, m.Size, want.digest, want.mediaType, len(want.body))
	}
	if m.Outcome != outcome {
		t.Errorf("outcome %v, want %v", m.Outcome, outcome)
	}
}

func wantTag(t *testing.T, c *manifestcache.Cache, r *repository, tag string, want document, outcome manifestcache.Outcome) {
	t.Helper()
	m, err := c.ByTag(t.Context(), r.name, tag, r)
	wantManifest(t, m, err, want, outcome)
	wantContent(t, c, m, want)
}

func wantDigest(t *testing.T, c *manifestcache.Cache, r *repository, want document, outcome manifestcache.Outcome) {
	t.Helper()
	m, err := c.ByDigest(t.Context(), r.name, want.digest, r)
	wantManifest(t, m, err, want, outcome)
	wantContent(t, c, m, want)
}

// wantContent checks the bytes, which a large manifest leaves in its file.
func wantContent(t *testing.T, c *manifestcache.Cache, m *manifestcache.Manifest, want document) {
	t.Helper()
	if m == nil {
		return
	}
	content, err := c.Content(m)
	if err != nil {
		t.Error(err)
		return
	}
	defer content.Close()
	got, err := io.ReadAll(content)
	if err != nil || !bytes.Equal(got, want.body) {
		t.Errorf("%d bytes, %v: not those of the manifest, which are %d", len(got), err, len(want.body))
	}
	if large := len(want.body) > 256<<10; (m.Body == nil) != large && len(want.body) > 0 {
		t.Errorf("%d bytes in memory of %d", len(m.Body), len(want.body))
	}
}

// wantTagError checks that the very error comes out.
func wantTagError(t *testing.T, c *manifestcache.Cache, r *repository, tag string, want error) {
	t.Helper()
	if m, err := c.ByTag(t.Context(), r.name, tag, r); !errors.Is(err, want) {
		t.Errorf("by tag: %v, %v; want %v", m, err, want)
	}
}

func wantDigestError(t *testing.T, c *manifestcache.Cache, r *repository, d digest.Digest, want error) {
	t.Helper()
	if m, err := c.ByDigest(t.Context(), r.name, d, r); !errors.Is(err, want) {
		t.Errorf("by digest: %v, %v; want %v", m, err, want)
	}
}

func manifestPath(dir string, d digest.Digest) string {
	return filepath.Join(dir, string(d.Algorithm()), d.Encoded()[:2], d.Encoded())
}

func tagPath(dir string, r *repository, tag string) string {
	hex := digest.FromString(r.name + ":" + tag).Encoded()
	return filepath.Join(dir, "tags", hex[:2], hex)
}

func rightPath(dir string, r *repository, d digest.Digest) string {
	return filepath.Join(dir, "repositories", digest.FromString(r.name).Encoded(), strings.Replace(d.String(), ":", "-", 1))
}

// files lists what is in dir, without directories.
func files(t *testing.T, dir string) (list []string) {
	t.Helper()
	err := fs.WalkDir(os.DirFS(dir), ".", func(name string, de fs.DirEntry, err error) error {
		if err == nil && !de.IsDir() {
			list = append(list, name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}
