package main

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"larder/handler/upstream/upstreamtest"
)

// gone is what DELETE /cache and POST /prune answer.
type gone struct {
	DryRun bool
	Bytes  int64
	Count  struct{ Tags, Rights, Manifests, Blobs int }
	Tags   []struct {
		Repository, Tag string
		Digest          digest.Digest
	}
	Manifests, Blobs []struct {
		Digest digest.Digest
		Bytes  int64
	}
	Busy, Failed int
}

func (g gone) String() string {
	return fmt.Sprintf("%d tags, %d rights, %d manifests, %d blobs", g.Count.Tags, g.Count.Rights, g.Count.Manifests, g.Count.Blobs)
}

// shelf is a cache with two images in a, tagged 1 and 2, the second also in b as
// x; all have a layer in common.
type shelf struct {
	*controlled
	first, second upstreamtest.Image
	common        digest.Digest
}

func newShelf(t *testing.T, environ ...string) *shelf {
	t.Helper()
	s := &shelf{controlled: newControlled(t, environ)}
	common := seeded(t, 1, 100_000)
	s.common = digest.FromBytes(common)
	s.first = s.hub.AddImage("org/a", "1", common, seeded(t, 2, 10_000))
	s.second = s.hub.AddImage("org/a", "2", common, seeded(t, 3, 20_000))
	s.hub.AddImage("org/b", "x", common, seeded(t, 3, 20_000))
	s.fill(t)
	return s
}

func (s *shelf) fill(t *testing.T) {
	t.Helper()
	s.pullImage(t, "org/a", "1", s.first)
	s.pullImage(t, "org/a", "2", s.second)
	s.pullImage(t, "org/b", "x", s.second)
	s.settle(t)
}

// pullImage has a client get a tag and all that it leads to, and checks it.
func (c *controlled) pullImage(t *testing.T, name, tag string, img upstreamtest.Image) {
	t.Helper()
	c.want(t, "/v2/"+name+"/manifests/"+tag, http.StatusOK, img.Body)
	for _, d := range []digest.Digest{img.Config.Digest, img.Layers[0].Digest, img.Layers[1].Digest} {
		path := "/v2/" + name + "/blobs/" + d.String()
		if a := c.ask(path, ""); a.status != http.StatusOK || a.err != nil || digest.FromBytes(a.body) != d {
			t.Errorf("GET %s: %v", path, a)
		}
	}
}

// contents are the files of a cache that hold something, with size and time.
func contents(t *testing.T, cache string) (list []string) {
	t.Helper()
	for _, file := range filesIn(t, cache) {
		if fi, err := os.Stat(file); err == nil && filepath.Base(file) != "scrub" {
			list = append(list, fmt.Sprintf("%s %d %v", file, fi.Size(), fi.ModTime()))
		}
	}
	return list
}

func TestDelete(t *testing.T) {
	t.Parallel()
	// The layer of its own and the config of an image.
	own := func(img upstreamtest.Image) int64 { return img.Layers[1].Size + img.Config.Size + int64(len(img.Body)) }
	tests := map[string]struct {
		path  func(s *shelf) string
		want  string
		bytes func(s *shelf) int64
	}{
		"tag":              {func(*shelf) string { return "org/a:1" }, "1 tags, 1 rights, 1 manifests, 2 blobs", func(s *shelf) int64 { return own(s.first) }},
		"tag of two":       {func(*shelf) string { return "org/a:2" }, "1 tags, 1 rights, 0 manifests, 0 blobs", func(*shelf) int64 { return 0 }},
		"manifest":         {func(s *shelf) string { return "docker.io/org/a@" + s.first.Manifest.String() }, "1 tags, 1 rights, 1 manifests, 2 blobs", func(s *shelf) int64 { return own(s.first) }},
		"manifest for all": {func(s *shelf) string { return s.second.Manifest.String() }, "2 tags, 2 rights, 1 manifests, 2 blobs", func(s *shelf) int64 { return own(s.second) }},
		"repository":       {func(*shelf) string { return "docker.io/org/a" }, "2 tags, 2 rights, 1 manifests, 2 blobs", func(s *shelf) int64 { return own(s.first) }},
		"the other":        {func(*shelf) string { return "org/b" }, "1 tags, 1 rights, 0 manifests, 0 blobs", func(*shelf) int64 { return 0 }},
		"blob":             {func(s *shelf) string { return s.common.String() }, "0 tags, 0 rights, 0 manifests, 1 blobs", func(*shelf) int64 { return 100_000 }},
		"blob of one":      {func(s *shelf) string { return "org/b@" + s.common.String() }, "0 tags, 0 rights, 0 manifests, 1 blobs", func(*shelf) int64 { return 100_000 }},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s := newShelf(t)
			path := "/cache/" + test.path(s)
			before := call[shownPage](t, s.controlled, "GET", "/cache", http.StatusOK)
			g := call[gone](t, s.controlled, "DELETE", path, http.StatusOK)
			if g.String() != test.want || g.Bytes != test.bytes(s) || g.Failed != 0 || g.Busy != 0 || g.DryRun {
				t.Errorf("got %v, %d bytes; want %s, %d", g, g.Bytes, test.want, test.bytes(s))
			}
			if len(g.Tags) != g.Count.Tags || len(g.Manifests) != g.Count.Manifests || len(g.Blobs) != g.Count.Blobs {
				t.Errorf("got %+v, which is not what it counts", g)
			}
			for _, m := range append(g.Manifests, g.Blobs...) {
				for _, kind := range []string{"manifests", "blobs"} {
					if _, err := os.Stat(storedFile(s.cache, kind, m.Digest)); err == nil {
						t.Errorf("%s is still on disk", m.Digest)
					}
				}
			}
			call[any](t, s.controlled, "DELETE", path, http.StatusNotFound)
			call[any](t, s.controlled, "GET", path, http.StatusNotFound)
			s.fill(t)
			after := call[shownPage](t, s.controlled, "GET", "/cache", http.StatusOK)
			if !slices.Equal(after.names(), before.names()) || slices.ContainsFunc(after.Images, func(i shownImage) bool { return !i.Complete }) {
				t.Errorf("after the next pulls: %+v", after)
			}
			s.hub.Stop()
			s.fill(t)
			wantTrueNames(t, s.cache)
			wantTrueManifests(t, s.cache)
		})
	}
}

func TestDeleteOfNothingAndNonsense(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	before := contents(t, s.cache)
	nobody := digest.FromString("nobody").String()
	for path, status := range map[string]int{
		"org/a:3": 404, "org/c": 404, "org/c:1": 404, "quay.io/a": 404, nobody: 404, "org/a@" + nobody: 404, "org/c@" + s.common.String(): 404, "**": 400, "org/*": 400,
		"org/a:2@" + s.second.Manifest.String(): 400, "Org/a": 400, "org/a:": 400, "org/a@sha256:1": 400, "org/a?all=1": 400, "": 400, "_unnamed/" + strings.Repeat("0", 64): 404,
	} {
		call[any](t, s.controlled, "DELETE", "/cache/"+path, status)
	}
	call[any](t, s.controlled, "DELETE", "/cache", http.StatusMethodNotAllowed)
	if after := contents(t, s.cache); !slices.Equal(after, before) {
		t.Errorf("something was changed: %q", after)
	}
}

// TestPruneByAge has one image pulled days ago, and the other now.
func TestPruneByAge(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	s.stop(t)
	old := time.Now().Add(-100 * time.Hour)
	for _, file := range filesIn(t, s.cache) {
		if err := os.Chtimes(file, old, old); err != nil {
			t.Fatal(err)
		}
	}
	s.restart(t)
	s.pullImage(t, "org/b", "x", s.second)
	used := s.first.Config.Digest // by who does not ask for the manifest again
	s.want(t, "/v2/org/a/blobs/"+used.String(), http.StatusOK, nil)
	s.settle(t)
	if g := call[gone](t, s.controlled, "POST", "/prune?older=101h", http.StatusOK); g.Count.Rights+g.Count.Blobs != 0 {
		t.Errorf("too young, and gone: %+v", g)
	}
	const want = "1 tags, 1 rights, 1 manifests, 1 blobs"
	before := contents(t, s.cache)
	for _, query := range []string{"older=72h&dry-run=1", "dry-run=true&older=99h&repository=docker.io/org/*", "older=72h&dry-run=1&all=1"} {
		if g := call[gone](t, s.controlled, "POST", "/prune?"+query, http.StatusOK); g.String() != want || !g.DryRun || g.Bytes < 10_000 {
			t.Errorf("%s: got %+v, want %s", query, g, want)
		}
	}
	if after := contents(t, s.cache); !slices.Equal(after, before) {
		t.Errorf("a dry run has changed the cache:\n%q\n%q", before, after)
	}
	// What both have in common is used now, as is the manifest that a has too.
	if g := call[gone](t, s.controlled, "POST", "/prune?older=72h", http.StatusOK); g.String() != want || g.DryRun {
		t.Errorf("got %+v, want %s", g, want)
	}
	call[any](t, s.controlled, "GET", "/cache/"+used.String(), http.StatusOK)
	if page := call[shownPage](t, s.controlled, "GET", "/cache", http.StatusOK); len(page.Images) != 2 || !page.Images[0].Complete || page.Images[0].Digest != s.second.Manifest {
		t.Errorf("left: %+v", page)
	}
	s.fill(t)
}

func TestPruneByName(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	for query, want := range map[string]string{
		"repository=docker.io/org/c":          "0 tags, 0 rights, 0 manifests, 0 blobs",
		"repository=quay.io/**":               "0 tags, 0 rights, 0 manifests, 0 blobs",
		"repository=org/b":                    "1 tags, 1 rights, 0 manifests, 0 blobs",
		"repository=docker.io/*/a":            "2 tags, 2 rights, 1 manifests, 2 blobs",
		"repository=docker.io/**":             "3 tags, 3 rights, 2 manifests, 5 blobs",
		"repository=**&all=1":                 "3 tags, 3 rights, 2 manifests, 5 blobs",
		"all=1":                               "3 tags, 3 rights, 2 manifests, 5 blobs",
		"repository=docker.io/**&older=1h":    "0 tags, 0 rights, 0 manifests, 0 blobs",
		"repository=docker.io/org/*&older=0s": "3 tags, 3 rights, 2 manifests, 5 blobs",
	} {
		told := call[gone](t, s.controlled, "POST", "/prune?dry-run=1&"+query, http.StatusOK)
		g := call[gone](t, s.controlled, "POST", "/prune?"+query, http.StatusOK)
		if g.String() != want || told.String() != want || told.Bytes != g.Bytes {
			t.Errorf("%s: got %v, and %v before; want %s", query, g, told, want)
		}
		s.fill(t)
	}
}

func TestPruneOfEverythingLeavesNothing(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	// An orphan: nobody's manifest names it.
	loose := s.hub.AddBlob("org/a", seeded(t, 9, 5000))
	s.want(t, "/v2/org/a/blobs/"+loose.String(), http.StatusOK, nil)
	s.settle(t)
	if g := call[gone](t, s.controlled, "POST", "/prune?all=1", http.StatusOK); g.Count.Blobs != 6 {
		t.Errorf("got %+v, want 6 blobs", g)
	}
	for _, file := range filesIn(t, s.cache) {
		if name, _ := filepath.Rel(s.cache, file); name != "version" && name != "lock" && name != "blobs/scrub" {
			t.Errorf("%s is left", name)
		}
	}
	s.fill(t)
}

func TestPruneRefuses(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	before := contents(t, s.cache)
	for _, query := range []string{
		"", "dry-run=1", "all=0", "older=0s", "older=0", "repository=**", "repository=*/**", "repository=**/**", "repository=**&older=0s", "all=1&all=1", "all=maybe", "dry-run=",
		"dry-run=maybe&all=1", "older=-1h&all=1", "older=3&all=1", "older=3d", "older=&all=1", "repository=&all=1", "repository=Org/a", "repository=a***", "oldr=72h&all=1", "%zz",
	} {
		call[any](t, s.controlled, "POST", "/prune?"+query, http.StatusBadRequest)
	}
	call[any](t, s.controlled, "GET", "/prune?all=1", http.StatusMethodNotAllowed)
	for name, header := range map[string]http.Header{
		"another site":                {"Sec-Fetch-Site": {"cross-site"}},
		"another origin":              {"Origin": {"http://evil.example"}},
		"a name that leads to larder": {"Origin": {"http://evil.example"}, "Host": {"evil.example"}}, // DNS rebinding
	} {
		for _, target := range []string{"POST /prune?all=1", "DELETE /cache/org/a"} {
			method, path, _ := strings.Cut(target, " ")
			req, err := http.NewRequestWithContext(t.Context(), method, "http://"+s.admin+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header, req.Host = header, header.Get("Host")
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			if resp.Body.Close(); resp.StatusCode != http.StatusForbidden {
				t.Errorf("%s from a page of %s: got %s", target, name, resp.Status)
			}
		}
	}
	if after := contents(t, s.cache); !slices.Equal(after, before) {
		t.Errorf("something was changed: %q", after)
	}
}

// TestRemovalThatFailsIsToldOf has a directory that is not empty, which can't be
// removed, in the place of a layer.
func TestRemovalThatFailsIsToldOf(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	stuck := storedFile(s.cache, "blobs", s.common)
	if err := errors.Join(os.Remove(stuck), os.MkdirAll(filepath.Join(stuck, "sub"), 0o700)); err != nil {
		t.Fatal(err)
	}
	if g := call[gone](t, s.controlled, "POST", "/prune?all=1", http.StatusInternalServerError); g.Failed != 1 || g.Count.Blobs != 4 || g.Count.Manifests != 2 {
		t.Errorf("got %+v, want one failure", g)
	}
	s.pullImage(t, "org/a", "1", s.first)
}

// TestWhatIsNotListedAnyMoreCanBeRemoved has the cache of another registry than
// the one that is listed.
func TestWhatIsNotListedAnyMoreCanBeRemoved(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	s.stop(t)
	s.restart(t, "LARDER_UPSTREAMS=ghcr.io="+s.hub.URL, "LARDER_CATALOG=true")
	call[shownImage](t, s.controlled, "GET", "/cache/docker.io/org/a:1", http.StatusOK)
	call[any](t, s.controlled, "GET", "/cache/org/a:1", http.StatusNotFound) // of ghcr.io
	s.want(t, "/v2/_catalog", http.StatusOK, []byte(`{"repositories":[]}`))
	if g := call[gone](t, s.controlled, "DELETE", "/cache/docker.io/org/a:1", http.StatusOK); g.Count.Tags != 1 {
		t.Errorf("got %+v", g)
	}
	if g := call[gone](t, s.controlled, "POST", "/prune?repository=docker.io/**", http.StatusOK); g.Count.Tags != 2 || g.Count.Blobs != 3 {
		t.Errorf("got %+v", g)
	}
}

// TestRemovalDuringAPull removes all there is while a client is in the middle of a
// blob, which it gets to its end.
func TestRemovalDuringAPull(t *testing.T) {
	t.Parallel()
	for _, target := range []string{"DELETE /cache/app", "DELETE /cache/app:1", "POST /prune?all=1", "blob"} {
		c := newControlled(t, nil, 4<<20)
		c.want(t, appTag, http.StatusOK, c.img.Body)
		open := make(chan struct{})
		remove := c.hub.Fault(upstreamtest.Match{Path: "/blobs/"}, upstreamtest.GateAfter(200<<10, open))
		begun, done := make(chan struct{}), make(chan error, 1)
		go func() { done <- coldClient(t.Context(), c.larder, c.blob(), func() { close(begun) }) }()
		<-begun
		if target == "blob" { // that would not remove it, and says so
			call[any](t, c, "DELETE", "/cache/"+c.img.Layers[0].Digest.String(), http.StatusConflict)
		} else {
			method, path, _ := strings.Cut(target, " ")
			if g := call[gone](t, c, method, path, http.StatusOK); g.Count.Manifests != 1 || g.Count.Blobs != 0 || g.Failed != 0 {
				t.Errorf("%s: got %+v", target, g)
			}
		}
		close(open)
		if err := <-done; err != nil {
			t.Errorf("%s: the client got %v", target, err)
		}
		remove()
		c.recovers(t)
	}
}

// TestRemovalUnderLoad has clients pull two images with a layer in common, over
// and over, while operators remove. Nobody is fooled, nothing fails, and in the
// end all is there that should be and nothing else.
func TestRemovalUnderLoad(t *testing.T) {
	t.Parallel()
	s := newShelf(t, "LARDER_TAG_TTL=1ms")
	stop := make(chan struct{})
	var clients, operators sync.WaitGroup
	for i := range 6 {
		clients.Go(func() {
			for n := i; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				switch n % 3 {
				case 0:
					s.pullImage(t, "org/a", "1", s.first)
				case 1:
					s.pullImage(t, "org/a", "2", s.second)
				default:
					s.pullImage(t, "org/b", "x", s.second)
				}
			}
		})
	}
	for _, target := range []string{
		"DELETE /cache/org/a", "DELETE /cache/org/b:x", "DELETE /cache/" + s.common.String(), "DELETE /cache/" + s.second.Manifest.String(), "POST /prune?all=1", "GET /cache", "GET /why?ref=org/a:1",
	} {
		method, path, _ := strings.Cut(target, " ")
		operators.Go(func() {
			for range 30 {
				resp, body := ask(t, http.DefaultClient, method, "http://"+s.admin+path, "", "")
				if resp.StatusCode != http.StatusOK && (method != "DELETE" || resp.StatusCode != http.StatusNotFound && resp.StatusCode != http.StatusConflict) {
					t.Errorf("%s: %s with %s", target, resp.Status, body)
				}
			}
		})
	}
	operators.Wait()
	close(stop)
	clients.Wait()
	s.fill(t)
	page := call[shownPage](t, s.controlled, "GET", "/cache", http.StatusOK)
	if len(page.Images) != 3 || slices.ContainsFunc(page.Images, func(i shownImage) bool { return !i.Complete || len(i.Tags) != 1 }) {
		t.Errorf("in the end: %+v", page)
	}
	wantTrueNames(t, s.cache)
	wantTrueManifests(t, s.cache)
	s.hub.Stop()
	s.fill(t)
	if g := call[gone](t, s.controlled, "POST", "/prune?all=1", http.StatusOK); g.String() != "3 tags, 3 rights, 2 manifests, 5 blobs" {
		t.Errorf("and then went %+v", g)
	}
	if n := strings.Count(s.stderr.String(), `"level":"error"`); n > 0 {
		t.Errorf("%d errors in the log", n)
	}
}
