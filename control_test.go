package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// controlled is a world whose admin listener is on.
type controlled struct {
	*world
	admin string
}

func newControlled(t *testing.T, environ []string, sizes ...int) *controlled {
	t.Helper()
	c := &controlled{world: newWorld(t, append([]string{"LARDER_ADMIN_ADDR=127.0.0.1:0"}, environ...), sizes...)}
	c.findAdmin()
	return c
}

// restart starts another larder on the cache of one that has ended.
func (c *controlled) restart(t *testing.T, environ ...string) {
	t.Helper()
	c.world.restart(t, append([]string{"LARDER_ADMIN_ADDR=127.0.0.1:0"}, environ...)...)
	c.findAdmin()
}

// findAdmin sets admin to where larder says that it listens.
func (c *controlled) findAdmin() {
	_, line, _ := strings.Cut(c.stderr.String(), `"msg":"larder started"`)
	_, line, _ = strings.Cut(line, `"admin":"`)
	c.admin, _, _ = strings.Cut(line, `"`)
}

// stored pulls everything and waits until it is on disk.
func stored(t *testing.T, environ []string, sizes ...int) *controlled {
	t.Helper()
	c := newControlled(t, environ, sizes...)
	c.pull(t, "at first")
	c.wantRightCache(t)
	c.settle(t)
	return c
}

// settle waits until nothing is on its way to disk.
func (c *controlled) settle(t *testing.T) {
	t.Helper()
	eventually(t, "all blobs to be stored", func() bool {
		_, metrics := ask(t, http.DefaultClient, "GET", "http://"+c.admin+"/metrics", "", "")
		return strings.Contains(metrics, "\nlarder_fills 0\n")
	})
}

// call asks the admin listener, wants a status, and reads the JSON.
func call[T any](t *testing.T, c *controlled, method, path string, status int) (answer T) {
	t.Helper()
	resp, body := ask(t, http.DefaultClient, method, "http://"+c.admin+path, "", "")
	if resp.StatusCode != status || resp.Header.Get("Content-Type") != "application/json" {
		t.Fatalf("%s %s: got %s with %s, want %d", method, path, resp.Status, body, status)
	}
	if status >= http.StatusBadRequest && status != http.StatusInternalServerError && errorCode(t, []byte(body)) == "" {
		t.Errorf("%s %s: %s says nothing", method, path, body)
	}
	if err := json.Unmarshal([]byte(body), &answer); err != nil {
		t.Fatalf("%s %s: %v in %s", method, path, err, body)
	}
	return answer
}

// shownImage is what GET /cache says of an image.
type shownImage struct {
	Repository, MediaType string
	Digest                digest.Digest
	Tags                  []struct {
		Tag       string
		Validated time.Time
	}
	Size, Total int64
	Complete    bool
	Manifests   []struct {
		Digest   digest.Digest
		Platform string
		Cached   bool
	}
	Blobs, MissingCount int
	Missing             []struct {
		Digest digest.Digest
		Have   int64
	}
	Validated, Used time.Time
	Expires         *time.Time
	Hits            int64
}

type shownPage struct {
	Images []shownImage
	Next   string
}

func (p shownPage) names() (names []string) {
	for _, img := range p.Images {
		names = append(names, img.Repository)
	}
	return names
}

func TestIsItCached(t *testing.T) {
	t.Parallel()
	began := time.Now().Add(-time.Second)
	c := stored(t, []string{"LARDER_BLOB_TTL=48h"}, usual, small)
	page := call[shownPage](t, c, "GET", "/cache", http.StatusOK)
	if len(page.Images) != 1 || page.Next != "" {
		t.Fatalf("got %+v", page)
	}
	total := int64(usual+small+len(c.img.Body)) + c.img.Config.Size
	byDigest := appName + "@" + c.img.Manifest.String()
	for _, reference := range []string{
		appName + ":1", "app:1", "docker.io/" + appName + ":1", "index.docker.io/" + appName + ":1", byDigest, "docker.io/" + byDigest, c.addr + "/" + appName + ":1",
	} {
		img := call[shownImage](t, c, "GET", "/cache/"+reference, http.StatusOK)
		switch {
		case img.Repository != "docker.io/"+appName, img.Digest != c.img.Manifest, img.MediaType != ocispec.MediaTypeImageManifest,
			len(img.Tags) != 1, img.Tags[0].Tag != "1", img.Size != int64(len(c.img.Body)), img.Total != total,
			!img.Complete, img.Blobs != 3, img.MissingCount != 0, len(img.Missing) != 0:
			t.Errorf("%s: got %+v", reference, img)
		case img.Used.Before(began), img.Validated.Before(began), img.Tags[0].Validated.Before(began),
			img.Expires == nil, img.Expires.Sub(img.Used).Round(time.Minute) != 48*time.Hour:
			t.Errorf("%s: times of %+v", reference, img)
		case img.Hits < 1: // pull asks by tag, which is a miss, and by digest
			t.Errorf("%s: %d hits", reference, img.Hits)
		}
	}
	if page := call[shownPage](t, c, "GET", "/cache/docker.io/"+appName, http.StatusOK); len(page.Images) != 1 {
		t.Errorf("the repository: %+v", page)
	}
	layer := c.img.Layers[0]
	for _, path := range []string{layer.Digest.String(), appName + "@" + layer.Digest.String()} {
		o := call[struct {
			Kind         string
			Size         int64
			Complete     bool
			Repositories []string
		}](t, c, "GET", "/cache/"+path, http.StatusOK)
		if o.Kind != "blob" || o.Size != layer.Size || !o.Complete || !slices.Equal(o.Repositories, []string{"docker.io/" + appName}) {
			t.Errorf("%s: got %+v", path, o)
		}
	}
	if resp, _ := ask(t, http.DefaultClient, "HEAD", "http://"+c.admin+"/cache/app:1", "", ""); resp.StatusCode != http.StatusOK || resp.ContentLength < 100 {
		t.Errorf("HEAD: %s, %d bytes", resp.Status, resp.ContentLength)
	}
	nobody := digest.FromString("nobody").String()
	for _, reference := range []string{"app:2", "busybox", "app@" + nobody, nobody, "quay.io/" + appName, "a/b@" + layer.Digest.String()} {
		call[any](t, c, "GET", "/cache/"+reference, http.StatusNotFound)
	}
	for _, path := range []string{
		"/cache?n=0", "/cache?n=1001", "/cache?n=x", "/cache?sort=age", "/cache?tag=[", "/cache?repository=A", "/cache?repository=a***", "/cache?last=x", "/cache?limit=3",
		"/cache?n=1&n=2", "/cache?n=", "/cache?%zz", "/cache/App:1", "/cache/app:.1", "/cache/app@sha256:0", "/cache/sha256:0", "/cache/", "/cache/app:1?n=1",
	} {
		if path == "/cache/sha256:0" { // a tag of docker.io/library/sha256
			call[any](t, c, "GET", path, http.StatusNotFound)
			continue
		}
		call[any](t, c, "GET", path, http.StatusBadRequest)
	}
	for _, path := range []string{"/cache", "/cache/app:1", "/prune", "/why"} {
		call[any](t, c, "PUT", path, http.StatusMethodNotAllowed)
	}
}

// TestPartOfAnImageIsNotComplete removes a layer, and then all there is of one of
// an index's images.
func TestPartOfAnImageIsNotComplete(t *testing.T) {
	t.Parallel()
	c := newControlled(t, nil, usual, small)
	other := c.hub.AddImage(appName, "", seeded(t, 7, 1000))
	body, err := json.Marshal(ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{
		{MediaType: ocispec.MediaTypeImageManifest, Digest: c.img.Manifest, Size: int64(len(c.img.Body)), Platform: &ocispec.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}},
		{MediaType: ocispec.MediaTypeImageManifest, Digest: other.Manifest, Size: int64(len(other.Body)), Platform: &ocispec.Platform{OS: "linux", Architecture: "amd64"}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	c.hub.AddManifest(appName, "multi", ocispec.MediaTypeImageIndex, body)
	c.want(t, appPath+"manifests/multi", http.StatusOK, body)
	multi := func() shownImage { return call[shownImage](t, c, "GET", "/cache/app:multi", http.StatusOK) }
	if img := multi(); img.Complete || img.Blobs != 0 || len(img.Manifests) != 2 || img.Manifests[0].Cached {
		t.Errorf("an index alone: %+v", img)
	}
	c.pull(t, "one of its images")
	c.wantRightCache(t)
	c.settle(t)
	img := multi()
	if !img.Complete || img.Blobs != 3 || !img.Manifests[0].Cached || img.Manifests[1].Cached || img.Manifests[0].Platform != "linux/arm/v7" || img.Manifests[1].Platform != "linux/amd64" {
		t.Errorf("an index with one image: %+v", img)
	}
	layer := c.img.Layers[0].Digest
	call[any](t, c, "DELETE", "/cache/"+layer.String(), http.StatusOK)
	less := multi()
	if less.Complete || less.MissingCount != 1 || len(less.Missing) != 1 || less.Missing[0].Digest != layer || less.Total != img.Total-usual {
		t.Errorf("without a layer: %+v", less)
	}
	if page := call[shownPage](t, c, "GET", "/cache?repository=app", http.StatusOK); len(page.Images) != 2 { // 1 has a tag
		t.Errorf("got %+v", page)
	}
}

// manyImages are of several sizes, in several repositories.
func manyImages(t *testing.T, c *controlled) {
	t.Helper()
	for i := range 13 {
		name, tag := fmt.Sprintf("team-%d/app", i%5), fmt.Sprintf("1.%d", i)
		img := c.hub.AddImage(name, tag, seeded(t, 100+i, 1000*(1+i*7%13)))
		c.want(t, "/v2/"+name+"/manifests/"+tag, http.StatusOK, img.Body)
		c.want(t, "/v2/"+name+"/blobs/"+img.Layers[0].Digest.String(), http.StatusOK, nil)
	}
	c.settle(t)
}

func TestInventoryPageByPage(t *testing.T) {
	t.Parallel()
	c := newControlled(t, nil)
	manyImages(t, c)
	all := call[shownPage](t, c, "GET", "/cache", http.StatusOK)
	if len(all.Images) != 13 || !slices.IsSorted(all.names()) {
		t.Fatalf("got %d images of %v", len(all.Images), all.names())
	}
	orders := map[string]func(a, b shownImage) bool{
		"":           func(a, b shownImage) bool { return a.Repository <= b.Repository },
		"&sort=size": func(a, b shownImage) bool { return a.Total >= b.Total },
		"&sort=used": func(a, b shownImage) bool { return !a.Used.After(b.Used) },
	}
	for order, right := range orders {
		for _, n := range []int{1, 4, 13, 1000} {
			var got []shownImage
			for path := fmt.Sprintf("/cache?n=%d%s", n, order); path != ""; {
				resp, _ := ask(t, http.DefaultClient, "HEAD", "http://"+c.admin+path, "", "")
				page := call[shownPage](t, c, "GET", path, http.StatusOK)
				if want := "<" + page.Next + `>; rel="next"`; page.Next != "" && resp.Header.Get("Link") != want || len(page.Images) > n {
					t.Errorf("%s: %d images, Link %q, want %q", path, len(page.Images), resp.Header.Get("Link"), want)
				}
				got, path = append(got, page.Images...), page.Next
			}
			seen := make(map[digest.Digest]bool)
			for i, img := range got {
				if seen[img.Digest] = true; i > 0 && !right(got[i-1], img) {
					t.Errorf("n=%d%s: %+v comes after %+v", n, order, img, got[i-1])
				}
			}
			if len(seen) != 13 || len(got) != 13 {
				t.Errorf("n=%d%s: got %d images, %d of them once", n, order, len(got), len(seen))
			}
		}
	}
	for query, want := range map[string]int{
		"repository=docker.io/team-1/app": 3, "repository=team-1/app": 3, "repository=docker.io/team-*/app": 13, "repository=docker.io/*": 0, "repository=**": 13,
		"repository=ghcr.io/**": 0, "tag=1.1": 1, "tag=1.1*": 4, "tag=2*": 0, "repository=team-1/app&tag=1.1*": 2,
	} {
		if page := call[shownPage](t, c, "GET", "/cache?"+query, http.StatusOK); len(page.Images) != want || page.Images == nil {
			t.Errorf("%s: got %d images, want %d", query, len(page.Images), want)
		}
	}
}

// TestCatalogOfTheProgram is off without LARDER_CATALOG; what it has, handler's
// own tests say.
func TestCatalogOfTheProgram(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]string{"": "", "false": "", "true": `{"repositories":["docker.io/library/app"]}`} {
		l := newWorld(t, []string{"LARDER_CATALOG=" + value}, small)
		l.pull(t, "at first")
		resp, body := l.get(t, "/v2/_catalog")
		if want == "" && (resp.StatusCode != http.StatusNotFound || errorCode(t, body) != "UNSUPPORTED") || want != "" && string(body) != want {
			t.Errorf("LARDER_CATALOG=%s: got %s with %s", value, resp.Status, body)
		}
		registry, err := name.NewRegistry(l.addr, name.Insecure)
		if err != nil {
			t.Fatal(err)
		}
		if names, err := remote.Catalog(t.Context(), registry); (err == nil) != (want != "") || want != "" && !slices.Equal(names, []string{"docker.io/" + appName}) {
			t.Errorf("LARDER_CATALOG=%s: go-containerregistry got %q, %v", value, names, err)
		}
	}
}

// TestAdminAnswersAfterARestart asks at once: what is on disk must be known then.
func TestAdminAnswersAfterARestart(t *testing.T) {
	t.Parallel()
	c := stored(t, nil, usual)
	before := call[shownImage](t, c, "GET", "/cache/app:1", http.StatusOK)
	c.stop(t)
	old := time.Now().Add(-100 * time.Hour)
	for _, file := range filesIn(t, c.cache) {
		if err := os.Chtimes(file, old, old); err != nil {
			t.Fatal(err)
		}
	}
	c.restart(t)
	after := call[shownImage](t, c, "GET", "/cache/app:1", http.StatusOK)
	if after.Total != before.Total || !after.Complete || after.Hits != 0 || !after.Used.Equal(old.Truncate(time.Second).UTC()) || !after.Tags[0].Validated.Equal(after.Used) {
		t.Errorf("before %+v\nafter %+v", before, after)
	}
}

func filesIn(t *testing.T, dir string) (files []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(file string, entry os.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			files = append(files, file)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}
