package manifestcache_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"larder/blobcache/memory"
	"larder/manifestcache"
)

// TestRemovalBesideAPull has an operator remove an image while the file of its
// manifest, or that of its tag, has just been written anew and is not yet known.
func TestRemovalBesideAPull(t *testing.T) {
	for n, what := range []string{"manifest", "tag"} { // in the order of the writes
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dir, cfg := t.TempDir(), config()
				cfg.Memory = memory.New(1 << 20)
				gate, left := make(chan struct{}), -1
				cfg.Observe = func(string, time.Duration) {
					if left--; left == 0 {
						<-gate
					}
				}
				c, _ := running(t, dir, cfg)
				up := newRepository("docker.io/library/alpine")
				old := up.push(newDocument(`{"first":1}`), "latest")
				wantTag(t, c, up, "latest", old, manifestcache.Miss)
				doc := up.push(newDocument(`{"second":2}`))
				wantDigest(t, c, up, doc, manifestcache.Miss)

				doc.mediaType += "+new" // so that it has to be stored again
				up.push(doc, "latest")
				left = n + 1
				var wg sync.WaitGroup
				wg.Go(func() { wantTag(t, c, up, "latest", doc, manifestcache.Miss) })
				synctest.Wait() // the file is there
				plan := c.PlanPrune(nil, later(), manifestcache.Spare)
				wg.Go(func() {
					if _, failed := c.Remove(plan); failed != 0 {
						t.Errorf("%d files could not be removed", failed)
					}
				})
				synctest.Wait()
				close(gate)
				wg.Wait()
				agreement{c, dir, cfg.Memory, []string{up.name}, []string{"latest"}, []document{old, doc}}.check(t)
			})
		})
	}
}

// agreement is what has to agree when nothing happens: what a cache knows, what it
// has in memory, and its files.
type agreement struct {
	*manifestcache.Cache
	dir          string
	memory       *memory.Cache
	repositories []string
	tags         []string
	documents    []document
}

func (a agreement) check(t *testing.T) {
	t.Helper()
	same := func(what string, known bool, path string) {
		t.Helper()
		if there := exists(t, path); known != there {
			t.Errorf("%s is known: %v, and has a file: %v", what, known, there)
		}
	}
	if s := a.Stats(); len(s.StoreErrors) > 0 || s.Damaged+s.ExpireErrors > 0 {
		t.Errorf("errors of the disk: %+v", s)
	}
	manifests := 0
	for _, doc := range a.documents {
		_, known := a.Manifest(doc.digest)
		if known {
			manifests++
		}
		same(doc.digest.String(), known, manifestPath(a.dir, doc.digest))
		if _, ok := a.memory.Get(memory.Key{Kind: memory.Manifest, Digest: doc.digest}); ok && !known {
			t.Errorf("%s is in memory, and not known", doc.digest)
		}
	}
	if n := int(a.Stats().Entries); n != manifests {
		t.Errorf("%d manifests are counted, and %d known", n, manifests)
	}
	for _, name := range a.repositories {
		r, named, tagged := &repository{name: name}, false, false
		for _, doc := range a.documents {
			right, _ := a.Right(name, doc.digest)
			named = named || right != manifestcache.Unknown
			same(name+"@"+doc.digest.String(), right != manifestcache.Unknown, rightPath(a.dir, r, doc.digest))
		}
		for _, tag := range a.tags {
			_, known := a.Tag(name, tag)
			tagged = tagged || known
			same(name+":"+tag, known, tagPath(a.dir, r, tag))
		}
		if named || !tagged { // a tag says the name itself
			same("the name of "+name, named, filepath.Join(a.dir, "repositories", digest.FromString(name).Encoded(), "name"))
		}
	}
	lists, err := filepath.Glob(filepath.Join(a.dir, "lists", "*", "*"))
	if n := int(a.Stats().Lists); err != nil || n != len(lists) {
		t.Errorf("%d lists are known, and have files: %q", n, lists)
	}
	pins, err := filepath.Glob(filepath.Join(a.dir, "pins", "*"))
	if known := a.Pins(); err != nil || len(known) != len(pins) {
		t.Errorf("%q are pinned, and have files: %q", known, pins)
	}
}

// fickle is an upstream that says anything.
type fickle struct{ *repository }

func (f fickle) HeadManifest(ctx context.Context, reference string) (ocispec.Descriptor, error) {
	if err := f.mood(); err != nil {
		return ocispec.Descriptor{}, err
	}
	return f.repository.HeadManifest(ctx, reference)
}

func (f fickle) GetManifest(ctx context.Context, reference string) (ocispec.Descriptor, []byte, error) {
	if err := f.mood(); err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	return f.repository.GetManifest(ctx, reference)
}

func (f fickle) list(context.Context) (*manifestcache.List, error) {
	return &manifestcache.List{ContentType: "application/json", Body: fmt.Append(nil, rand.IntN(2))}, f.mood()
}

func (f fickle) mood() error {
	return []error{errGone, errDown, nil, nil, nil, nil, nil, nil}[rand.IntN(8)]
}

// TestKnownIsWhatIsThere has everything that changes files happen beside everything
// else: pulls, upstreams that say no, removals, the end of their lives, and the scan
// at the start. Nothing of that is an error.
func TestKnownIsWhatIsThere(t *testing.T) {
	dir := memoryDir(t)
	core, log := observer.New(zap.ErrorLevel)
	cfg := config()
	cfg.TagTTL, cfg.ListTTL, cfg.Logger = time.Millisecond, time.Millisecond, zap.New(core)
	cfg.Hold = func(map[digest.Digest]bool) {}
	var repositories []fickle
	names, tags := []string{"docker.io/library/a", "ghcr.io/b"}, []string{"1", "2", "3"}
	docs := []document{newImage(base), newImage(base, digest.FromString("other")), newDocument(`{"manifests":[]}`)}
	for i, name := range names {
		r := newRepository(name)
		for j, doc := range docs {
			if i == 1 {
				doc.mediaType = "application/vnd.docker.distribution.manifest.v2+json"
			}
			r.push(doc, tags[j])
		}
		repositories = append(repositories, fickle{r})
	}
	for _, ttl := range []time.Duration{0, time.Millisecond, 20 * time.Millisecond, time.Millisecond, 0} {
		cfg.TTL, cfg.Memory = ttl, memory.New(1<<20)
		c := openCache(t, dir, cfg)
		ctx, cancel := context.WithCancel(t.Context())
		var running, clients sync.WaitGroup
		running.Go(func() { _ = c.Run(ctx) })
		for range 8 {
			clients.Go(func() {
				for range 200 {
					r := repositories[rand.IntN(len(repositories))]
					r.anything(t, c, tags[rand.IntN(len(tags))], docs[rand.IntN(len(docs))].digest)
				}
			})
		}
		clients.Wait()
		cancel()
		running.Wait()
		agreement{c, dir, cfg.Memory, names, tags, docs}.check(t)
		if err := c.Close(); err != nil || t.Failed() {
			break
		}
	}
	for _, e := range log.All() {
		t.Errorf("logged: %s %v", e.Message, e.ContextMap())
	}
}

// anything has somebody ask for something, or have it removed.
func (f fickle) anything(t *testing.T, c *manifestcache.Cache, tag string, d digest.Digest) {
	var err error
	switch rand.IntN(13) {
	case 0:
		c.Remove(c.PlanRepository(f.name))
	case 1:
		c.Remove(c.PlanTag(f.name, tag))
	case 2:
		c.Remove(c.PlanDigest(d))
	case 3:
		c.Remove(c.PlanPrune(nil, time.Now(), manifestcache.Spare))
	case 4:
		c.Tree(d)
	case 5:
		c.ForgetLists(f.name)
	case 6, 7:
		var l *manifestcache.List
		if l, err = c.List(t.Context(), f.name, "tags/list?n="+tag, f.list); err == nil {
			l.Content.Close()
		}
	case 8:
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // what it holds is another matter, which takes its time
		if err = c.Unpin(ctx, f.name, tag); rand.IntN(2) == 0 {
			err = c.Pin(ctx, f.name, tag)
		}
	case 9:
		_, err = c.ByDigest(t.Context(), f.name, d, f)
	default:
		_, err = c.ByTag(t.Context(), f.name, tag, f)
	}
	if err != nil && !errors.Is(err, errGone) && !errors.Is(err, errDown) && !errors.Is(err, context.Canceled) {
		t.Errorf("%s:%s: %v", f.name, tag, err)
	}
}
