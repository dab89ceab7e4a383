package manifestcache_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"larder/manifestcache"
)

// newIndex lists manifests.
func newIndex(docs ...document) document {
	var list []string
	for _, d := range docs {
		list = append(list, fmt.Sprintf(`{"digest":%q}`, d.digest))
	}
	doc := newDocument(`{"manifests":[` + strings.Join(list, ",") + `]}`)
	doc.mediaType = ocispec.MediaTypeImageIndex
	return doc
}

// stock is a cache with two repositories. Both have the image shared.
type stock struct {
	*manifestcache.Cache
	dir        string
	a, b       *repository
	index      document // of arm and shared, in a, as multi
	arm        document // and in a as arm
	shared     document
	app, other document // app is in a, as 1 and as 2; other in b, as app: they have base in common
	names      map[digest.Digest]string
}

var base = digest.FromString("base")

// stocked pulls all of it, inside of a bubble.
func stocked(t *testing.T) *stock {
	t.Helper()
	s := &stock{dir: t.TempDir(), a: newRepository("docker.io/library/a"), b: newRepository("ghcr.io/b")}
	s.arm, s.shared = newImage(digest.FromString("arm")), newImage(digest.FromString("shared"))
	s.index = newIndex(s.arm, s.shared)
	s.app, s.other = newImage(base, digest.FromString("app")), newImage(base, digest.FromString("other"))
	s.names = map[digest.Digest]string{
		s.index.digest: "index", s.arm.digest: "arm", s.shared.digest: "shared", s.app.digest: "app", s.other.digest: "other", base: "base",
		digest.FromString("arm"): "arm's", digest.FromString("shared"): "shared's", digest.FromString("app"): "app's", digest.FromString("other"): "other's",
	}
	cfg := config()
	cfg.TTL = 24 * time.Hour
	s.Cache, _ = running(t, s.dir, cfg)
	s.pull(t, s.a, s.index, "multi")
	s.pull(t, s.a, s.arm, "")
	s.pull(t, s.a, s.shared, "")
	s.pull(t, s.a, s.app, "1")
	s.pull(t, s.a, s.app, "2")
	s.pull(t, s.b, s.shared, "")
	s.pull(t, s.b, s.other, "app")
	return s
}

func (s *stock) pull(t *testing.T, r *repository, doc document, tag string) {
	t.Helper()
	var err error
	if tag == "" {
		_, err = s.ByDigest(t.Context(), r.name, r.push(doc).digest, r)
	} else {
		r.push(doc, tag)
		_, err = s.ByTag(t.Context(), r.name, tag, r)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// say names what a plan has.
func (s *stock) say(p *manifestcache.Plan) string {
	var words []string
	for _, t := range p.Tags {
		words = append(words, "tag "+t.Repository+":"+t.Name)
	}
	words = append(words, fmt.Sprintf("%d rights", p.Rights))
	for _, m := range p.Manifests {
		words = append(words, s.names[m.Digest])
	}
	for _, b := range p.Blobs {
		words = append(words, s.names[b])
	}
	tags := len(p.Tags)
	slices.Sort(words[tags+1:])
	return strings.Join(words, " ")
}

func TestWhatGoesWithWhat(t *testing.T) {
	const a = "docker.io/library/a"
	all := func(string) bool { return true }
	tests := map[string]struct {
		plan func(*stock) *manifestcache.Plan
		want string
	}{
		"one of two tags":     {func(s *stock) *manifestcache.Plan { return s.PlanTag(a, "1") }, "tag docker.io/library/a:1 0 rights"},
		"the only tag":        {func(s *stock) *manifestcache.Plan { return s.PlanTag(a, "multi") }, "tag docker.io/library/a:multi 3 rights arm arm's index"},
		"no such tag":         {func(s *stock) *manifestcache.Plan { return s.PlanTag(a, "3") }, "0 rights"},
		"nobody's tag":        {func(s *stock) *manifestcache.Plan { return s.PlanTag("docker.io/library/c", "1") }, "0 rights"},
		"manifest":            {func(s *stock) *manifestcache.Plan { return s.PlanManifest(a, s.app.digest) }, "tag docker.io/library/a:1 tag docker.io/library/a:2 1 rights app app's"},
		"listed manifest":     {func(s *stock) *manifestcache.Plan { return s.PlanManifest(a, s.arm.digest) }, "1 rights"},
		"another's manifest":  {func(s *stock) *manifestcache.Plan { return s.PlanManifest(a, s.other.digest) }, "0 rights"},
		"repository":          {func(s *stock) *manifestcache.Plan { return s.PlanRepository(a) }, "tag docker.io/library/a:1 tag docker.io/library/a:2 tag docker.io/library/a:multi 4 rights app app's arm arm's index"},
		"the other one":       {func(s *stock) *manifestcache.Plan { return s.PlanRepository("ghcr.io/b") }, "tag ghcr.io/b:app 2 rights other other's"},
		"no such repository":  {func(s *stock) *manifestcache.Plan { return s.PlanRepository("ghcr.io/c") }, "0 rights"},
		"digest that two had": {func(s *stock) *manifestcache.Plan { return s.PlanDigest(s.shared.digest) }, "2 rights shared shared's"},
		"digest that is listed": {
			func(s *stock) *manifestcache.Plan { return s.PlanDigest(s.arm.digest) }, "1 rights arm arm's",
		},
		"digest of an index": {func(s *stock) *manifestcache.Plan { return s.PlanDigest(s.index.digest) }, "tag docker.io/library/a:multi 3 rights arm arm's index"},
		"digest of nothing":  {func(s *stock) *manifestcache.Plan { return s.PlanDigest(base) }, "0 rights"},
		"pruned: all":        {func(s *stock) *manifestcache.Plan { return s.PlanPrune(nil, later(), manifestcache.Spare) }, "tag docker.io/library/a:1 tag docker.io/library/a:2 tag docker.io/library/a:multi tag ghcr.io/b:app 6 rights app app's arm arm's base index other other's shared shared's"},
		"pruned: any name":   {func(s *stock) *manifestcache.Plan { return s.PlanPrune(all, later(), manifestcache.Spare) }, "tag docker.io/library/a:1 tag docker.io/library/a:2 tag docker.io/library/a:multi tag ghcr.io/b:app 6 rights app app's arm arm's base index other other's shared shared's"},
		"pruned: too young": {func(s *stock) *manifestcache.Plan {
			return s.PlanPrune(nil, time.Now().Add(-time.Hour), manifestcache.Spare)
		}, "0 rights"},
		"pruned: nobody's": {func(s *stock) *manifestcache.Plan {
			return s.PlanPrune(func(string) bool { return false }, later(), manifestcache.Spare)
		}, "0 rights"},
		"pruned: but one":    {func(s *stock) *manifestcache.Plan { return s.PlanPrune(nil, s.allBut(s.app), manifestcache.Spare) }, "tag docker.io/library/a:multi tag ghcr.io/b:app 5 rights arm arm's index other other's shared shared's"},
		"pruned: but a list": {func(s *stock) *manifestcache.Plan { return s.PlanPrune(nil, s.allBut(s.index), manifestcache.Spare) }, "tag docker.io/library/a:1 tag docker.io/library/a:2 tag ghcr.io/b:app 2 rights app app's base other other's"},
		"pruned: one's, aged": {func(s *stock) *manifestcache.Plan {
			return s.PlanPrune(func(n string) bool { return n == "ghcr.io/b" }, later(), manifestcache.Spare)
		}, "tag ghcr.io/b:app 2 rights other other's"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := stocked(t)
				before := files(t, s.dir)
				p := test.plan(s)
				if got := s.say(p); got != test.want {
					t.Fatalf("planned %s\nwant    %s", got, test.want)
				}
				if p.Empty() != (test.want == "0 rights") {
					t.Errorf("Empty is %v", p.Empty())
				}
				if got := files(t, s.dir); !slices.Equal(got, before) {
					t.Errorf("planning has changed files: %v", got)
				}
				went, failed := s.Remove(p)
				if got := s.say(went); got != test.want || failed != 0 {
					t.Errorf("went %s, %d failed", got, failed)
				}
				s.wantGone(t, p)
			})
		})
	}
}

// later is after all that a test has used.
func later() time.Time { return time.Now().Add(time.Second) }

// allBut is a time after which only doc was used.
func (s *stock) allBut(doc document) time.Time {
	time.Sleep(2 * time.Hour)
	at := time.Now()
	s.Blobs(doc.digest) // uses all that it leads to, as a pull does
	return at
}

// wantGone checks that what a plan has is nowhere, and nothing else is amiss.
func (s *stock) wantGone(t *testing.T, p *manifestcache.Plan) {
	t.Helper()
	for _, m := range p.Manifests {
		if _, ok := s.Manifest(m.Digest); ok || exists(t, manifestPath(s.dir, m.Digest)) {
			t.Errorf("%s is still there", s.names[m.Digest])
		}
		if got := s.Having(m.Digest); len(got) > 0 {
			t.Errorf("%v have %s", got, s.names[m.Digest])
		}
	}
	for _, tag := range p.Tags {
		if _, ok := s.Tag(tag.Repository, tag.Name); ok {
			t.Errorf("%s:%s is still there", tag.Repository, tag.Name)
		}
	}
	for _, b := range p.Blobs {
		if s.Named(b) {
			t.Errorf("%s is still named", s.names[b])
		}
	}
	// What is left on disk is what is known, and the other way around.
	want, named := 0, 0
	for _, r := range []*repository{s.a, s.b} {
		images := s.Images(r.name)
		if listed := slices.Contains(s.Repositories(), r.name); listed != (len(images) > 0) {
			t.Errorf("%s is listed: %v, with %d images", r.name, listed, len(images))
		}
		if len(images) > 0 {
			named++
		}
		for _, img := range images {
			want += 1 + len(img.Tags)
		}
	}
	if want += named + int(s.Stats().Entries); want != len(files(t, s.dir)) {
		t.Errorf("%d files are known, there are %v", want, files(t, s.dir))
	}
	if left, err := os.ReadDir(filepath.Join(s.dir, "repositories")); err != nil || len(left) != named {
		t.Errorf("%d repositories are known, and %d have a directory (%v)", named, len(left), err)
	}
	s.a.fail(nil)
	wantTag(t, s.Cache, s.a, "multi", s.index, outcomeAfter(p, s.index))
	wantTag(t, s.Cache, s.b, "app", s.other, outcomeAfter(p, s.other))
}

func outcomeAfter(p *manifestcache.Plan, doc document) manifestcache.Outcome {
	if slices.ContainsFunc(p.Manifests, func(m manifestcache.Sized) bool { return m.Digest == doc.digest }) {
		return manifestcache.Miss
	}
	return manifestcache.Revalidated
}

func TestRemovedIsNotStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := stocked(t)
		s.Remove(s.PlanTag(s.a.name, "multi"))
		s.a.fail(errDown)
		wantTagError(t, s.Cache, s.a, "multi", errDown)
		wantDigestError(t, s.Cache, s.a, s.index.digest, errDown)
		wantTag(t, s.Cache, s.a, "1", s.app, manifestcache.Stale)
	})
}

func TestRepositoryLosesWhatItWasAllowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := stocked(t)
		loose := digest.FromString("loose")
		s.Remember(s.a.name, loose)
		s.Remember(s.b.name, loose)
		s.Remove(s.PlanRepository(s.a.name))
		wantRefers(t, s.Cache, s.a, loose, manifestcache.Unknown)
		wantRefers(t, s.Cache, s.a, base, manifestcache.Unknown)
		wantRefers(t, s.Cache, s.b, loose, manifestcache.Granted)
		wantRefers(t, s.Cache, s.b, base, manifestcache.Granted)
	})
}

func TestRepositoryLosesItsLists(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := stocked(t)
		for _, name := range []string{s.a.name, s.b.name} {
			l, err := s.List(t.Context(), name, "tags/list", newListing("{}").fetch)
			if err != nil {
				t.Fatal(err)
			}
			l.Content.Close()
		}
		s.Remove(s.PlanRepository(s.a.name))
		left, err := filepath.Glob(filepath.Join(s.dir, "lists", "*", "*"))
		if err != nil || len(left) != 1 || s.Stats().Lists != 1 {
			t.Errorf("%d lists are known, and %v are left (%v), want that of the other repository", s.Stats().Lists, left, err)
		}
		if dirs, err := os.ReadDir(filepath.Join(s.dir, "lists")); err != nil || len(dirs) != 1 {
			t.Errorf("%d repositories have a directory of lists (%v), want one", len(dirs), err)
		}
	})
}

// TestTreeReadsWhatWasForgotten has an image be whole or not whatever is remembered.
func TestTreeReadsWhatWasForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := stocked(t)
		want := s.Tree(s.index.digest)
		s.Bound(0, 10, 10)
		if s.Named(base) {
			t.Fatal("something is remembered")
		}
		got := s.Tree(s.index.digest)
		if len(want.Blobs) == 0 || !slices.Equal(got.Blobs, want.Blobs) || !slices.Equal(got.Manifests, want.Manifests) {
			t.Errorf("got %v, want %v", got, want)
		}
	})
}

func TestFailedRemovalIsToldOf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := stocked(t)
		stuck := manifestPath(s.dir, s.other.digest)
		if err := errors.Join(os.Remove(stuck), os.MkdirAll(filepath.Join(stuck, "sub"), 0o700)); err != nil {
			t.Fatal(err)
		}
		went, failed := s.Remove(s.PlanRepository(s.b.name))
		if failed != 1 || len(went.Manifests) != 0 || len(went.Tags) != 1 {
			t.Errorf("%d failed; went %s", failed, s.say(went))
		}
	})
}

// TestRemovalWhileEverybodyPulls has clients pull while an operator removes. None
// of them gets anything but the right manifest, and in the end nothing is left
// that is not known.
func TestRemovalWhileEverybodyPulls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := stocked(t)
		var clients, operators sync.WaitGroup
		ctx, stop := context.WithCancel(t.Context())
		for _, want := range []struct {
			r   *repository
			tag string
			doc document
		}{{s.a, "multi", s.index}, {s.a, "1", s.app}, {s.a, "2", s.app}, {s.b, "app", s.other}, {s.a, "", s.shared}, {s.b, "", s.shared}, {s.a, "", s.arm}} {
			clients.Go(func() {
				for ctx.Err() == nil {
					var m *manifestcache.Manifest
					var err error
					if want.tag != "" {
						m, err = s.ByTag(t.Context(), want.r.name, want.tag, want.r)
					} else {
						m, err = s.ByDigest(t.Context(), want.r.name, want.doc.digest, want.r)
					}
					if err != nil || string(m.Body) != string(want.doc.body) {
						t.Errorf("%s:%s: got %v, %v", want.r.name, want.tag, m, err)
						return
					}
				}
			})
		}
		for _, plan := range []func() *manifestcache.Plan{
			func() *manifestcache.Plan { return s.PlanRepository(s.a.name) },
			func() *manifestcache.Plan { return s.PlanTag(s.b.name, "app") },
			func() *manifestcache.Plan { return s.PlanDigest(s.shared.digest) },
			func() *manifestcache.Plan { return s.PlanPrune(nil, later(), manifestcache.Spare) },
		} {
			operators.Go(func() {
				for range 50 {
					if _, failed := s.Remove(plan()); failed > 0 {
						t.Errorf("%d files not removed", failed)
					}
					s.Images(s.a.name)
				}
			})
		}
		operators.Wait()
		stop()
		clients.Wait()
		for _, r := range []*repository{s.a, s.b} {
			for _, img := range s.Images(r.name) {
				s.Peek(img.Digest) // what is known and not there is noticed
			}
		}
		s.Remove(s.PlanPrune(nil, later(), manifestcache.Spare))
		if got := s.Stats().Entries; got != 0 || len(s.Repositories()) != 0 {
			t.Errorf("%d manifests left, in %v", got, s.Repositories())
		}
		for _, name := range files(t, s.dir) {
			if strings.HasPrefix(name, "sha256/") {
				t.Errorf("%s is left, and not known", name)
			}
		}
	})
}
