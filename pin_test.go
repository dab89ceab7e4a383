package main

import (
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"larder/handler/upstream/upstreamtest"
)

// shownPin is what PUT, GET and DELETE /pin/<reference> answer.
type shownPin struct {
	Reference                 string
	Pinned, ByHand, BySetting bool
	Digest                    digest.Digest
	Total                     int64
	Missing                   int
}

// shownPins is what GET /pin answers.
type shownPins struct {
	Pins                              []shownPin
	Settings                          []string
	Manifests, Blobs, Bytes, MaxBytes int64
}

// isGone reports whether nothing of an image is on disk.
func (c *controlled) isGone(img upstreamtest.Image) bool {
	for _, d := range append([]ocispec.Descriptor{img.Config}, img.Layers...) {
		if _, err := os.Stat(storedFile(c.cache, "blobs", d.Digest)); err == nil {
			return false
		}
	}
	_, err := os.Stat(storedFile(c.cache, "manifests", img.Manifest))
	return err != nil
}

// addImage adds an image of two layers that no other has.
func (c *controlled) addImage(t *testing.T, repository, tag string, seed int) upstreamtest.Image {
	t.Helper()
	return c.hub.AddImage(repository, tag, seeded(t, 1000+seed, usual), seeded(t, 2000+seed, small))
}

// TestWhatIsPinnedOutlivesItsTime lets all else expire, under a larder and under
// the next.
func TestWhatIsPinnedOutlivesItsTime(t *testing.T) {
	t.Parallel()
	environ := []string{"LARDER_BLOB_TTL=3s", "LARDER_MANIFEST_TTL=3s", "LARDER_PIN=docker.io/library/set:1.*"}
	c := newControlled(t, environ)
	index, images := addIndex(t, c.hub, "library/multi", "1", "linux/amd64", "linux/arm64")
	set, other := c.addImage(t, "library/set", "1.0", 1), c.addImage(t, "library/other", "1", 2)
	if p := call[shownPin](t, c, "PUT", "/pin/multi:1", http.StatusOK); !p.Pinned || !p.ByHand || p.BySetting || p.Digest != "" {
		t.Errorf("of what is not here: %+v", p)
	}
	pull := func() {
		c.want(t, "/v2/library/multi/manifests/1", http.StatusOK, index)
		c.pullImage(t, "library/multi", images[0].Manifest.String(), images[0])
		c.pullImage(t, "library/set", "1.0", set)
		c.pullImage(t, "library/other", "1", other)
		c.settle(t)
	}
	pull()
	total := int64(2*(usual+small)) + images[0].Config.Size + set.Config.Size
	stays := func(when string) {
		t.Helper()
		eventually(t, "the other image to expire", func() bool { return c.isGone(other) })
		if !c.hasImage(images[0]) || !c.hasImage(set) {
			t.Fatalf("%s: what is pinned has expired", when)
		}
		c.settle(t) // some may be verified
		p := call[shownPins](t, c, "GET", "/pin", http.StatusOK)
		if len(p.Pins) != 1 || p.Pins[0].Reference != "docker.io/library/multi:1" || p.Pins[0].Digest != digest.FromBytes(index) || p.Pins[0].Missing != 0 ||
			!slices.Equal(p.Settings, []string{"docker.io/library/set:1.*"}) || p.Manifests != 3 || p.Blobs != 6 || p.Bytes != total {
			t.Errorf("%s: got %+v, want %d bytes", when, p, total)
		}
		if img := call[struct {
			shownImage
			Pinned bool
		}](t, c, "GET", "/cache/multi:1", http.StatusOK); !img.Pinned || img.Expires != nil || !img.Complete {
			t.Errorf("%s: %+v", when, img)
		}
	}
	stays("under the first larder")
	c.stop(t)
	c.restart(t, environ...)
	c.pullImage(t, "library/other", "1", other)
	stays("under the next")
	c.hub.Stop() // what is pinned can be had without the registry
	c.want(t, "/v2/library/multi/manifests/1", http.StatusOK, index)
	c.pullImage(t, "library/multi", images[0].Manifest.String(), images[0])
	c.hub.Start()
	if p := call[shownPin](t, c, "DELETE", "/pin/multi:1", http.StatusOK); p.Pinned {
		t.Errorf("when it was unpinned: %+v", p)
	}
	eventually(t, "what was unpinned to expire", func() bool { return c.isGone(images[0]) })
	if !c.hasImage(set) {
		t.Error("what is pinned by LARDER_PIN has expired")
	}
	call[any](t, c, "GET", "/cache/multi:1", http.StatusNotFound)
	if left := filesIn(t, filepath.Join(c.cache, "manifests", "pins")); len(left) != 0 {
		t.Errorf("pins that are left: %q", left)
	}
	wantTrueNames(t, c.cache)
}

// TestAPinGoesWithItsTag moves a pinned tag, and takes it away.
func TestAPinGoesWithItsTag(t *testing.T) {
	t.Parallel()
	c := newControlled(t, []string{"LARDER_BLOB_TTL=3s", "LARDER_MANIFEST_TTL=3s"})
	others := 0
	outlives := func(what string, img upstreamtest.Image) {
		t.Helper()
		others++
		other := c.addImage(t, "library/other", "1", 100+others)
		c.pullImage(t, "library/other", "1", other)
		eventually(t, "another image to expire", func() bool { return c.isGone(other) })
		if !c.hasImage(img) {
			t.Errorf("%s has expired", what)
		}
	}
	first := c.addImage(t, "library/moving", "1", 1)
	call[any](t, c, "PUT", "/pin/docker.io/library/moving:1", http.StatusOK)
	c.pullImage(t, "library/moving", "1", first)
	outlives("what was pulled after it was pinned", first)
	second := c.addImage(t, "library/moving", "1", 2)
	c.pullImage(t, "library/moving", "1", second)
	eventually(t, "what the tag meant before to expire", func() bool { return c.isGone(first) })
	outlives("what the tag means now", second)
	if p := call[shownPin](t, c, "GET", "/pin/moving:1", http.StatusOK); !p.Pinned || p.Digest != second.Manifest || p.Missing != 0 {
		t.Errorf("got %+v", p)
	}
	// Who may have an image is the registry's to say, pinned or not.
	c.hub.Delete("library/moving", "1")
	c.want(t, "/v2/library/moving/manifests/1", http.StatusNotFound, nil)
	eventually(t, "what the registry has deleted to expire", func() bool { return c.isGone(second) })
	c.want(t, "/v2/library/moving/manifests/1", http.StatusNotFound, nil)
	third := c.addImage(t, "library/moving", "1", 3)
	c.pullImage(t, "library/moving", "1", third)
	outlives("what the tag means again", third)
}

// TestPinsAreNotEvicted pulls more than there is room for, beside what is pinned
// and was not used for longest; and then pins all that there is room for.
func TestPinsAreNotEvicted(t *testing.T) {
	t.Parallel()
	c := newControlled(t, []string{"LARDER_MAX_SIZE=1MiB"})
	pinned := c.addImage(t, "library/pinned", "1", 1)
	c.pullImage(t, "library/pinned", "1", pinned)
	c.settle(t)
	call[any](t, c, "PUT", "/pin/library/pinned@"+pinned.Manifest.String(), http.StatusOK)
	churn := func(from int) (last upstreamtest.Image) {
		for i := range 4 {
			tag := string(rune('a' + i))
			last = c.addImage(t, "library/other", tag, from+i)
			c.pullImage(t, "library/other", tag, last)
			c.settle(t)
		}
		return last
	}
	last := churn(10)
	if !c.hasImage(pinned) || !c.hasImage(last) {
		t.Error("what was pinned has been evicted, or the last image was not kept")
	}
	c.stop(t)
	// All that is there is more than this allows; nothing goes before it is known what is pinned.
	c.restart(t, "LARDER_MAX_SIZE=400KiB")
	eventually(t, "the others to be evicted", func() bool { return !c.hasImage(last) })
	if !c.hasImage(pinned) {
		t.Fatal("what was pinned has been evicted by a start")
	}
	if last = churn(20); c.hasImage(last) || !c.hasImage(pinned) {
		t.Error("there was room for an image beside what is pinned, or at its expense")
	}
	a := c.ask("/v2/library/other/blobs/"+last.Layers[0].Digest.String(), "")
	if !strings.HasSuffix(a.header.Get("Cache-Status"), "detail=pass") || !strings.Contains(c.stderr.String(), "no room for a blob beside what is pinned") {
		t.Errorf("a blob beside pins that leave no room: %v, %q", a, a.header.Get("Cache-Status"))
	}
	_, metrics := ask(t, http.DefaultClient, "GET", "http://"+c.admin+"/metrics", "", "")
	for _, line := range []string{"larder_pins 1", `larder_pinned_entries{kind="manifest"} 1`, `larder_pinned_entries{kind="blob"} 3`} {
		if !strings.Contains(metrics, "\n"+line+"\n") {
			t.Errorf("no %s", line)
		}
	}
}

func TestPinsAreNotPrunedNorDeleted(t *testing.T) {
	t.Parallel()
	c := newControlled(t, []string{"LARDER_PIN=docker.io/library/set:*"})
	set, byHand, other := c.addImage(t, "library/set", "1", 1), c.addImage(t, "library/hand", "1", 2), c.addImage(t, "library/other", "1", 3)
	for name, img := range map[string]upstreamtest.Image{"set": set, "hand": byHand, "other": other} {
		c.pullImage(t, "library/"+name, "1", img)
	}
	c.settle(t)
	call[any](t, c, "PUT", "/pin/hand:1", http.StatusOK)
	for _, reference := range []string{
		"set:1", "set", "set@" + set.Manifest.String(), set.Manifest.String(), "hand:1", "hand", byHand.Manifest.String(), byHand.Layers[0].Digest.String(),
	} {
		call[any](t, c, "DELETE", "/cache/"+reference, http.StatusConflict)
	}
	if g := call[gone](t, c, "POST", "/prune?all=1&dry-run=1", http.StatusOK); g.String() != "1 tags, 1 rights, 1 manifests, 3 blobs" {
		t.Errorf("would prune %v", g)
	}
	if g := call[gone](t, c, "POST", "/prune?all=1", http.StatusOK); g.String() != "1 tags, 1 rights, 1 manifests, 3 blobs" || !c.isGone(other) || !c.hasImage(set) || !c.hasImage(byHand) {
		t.Errorf("pruned %v", g)
	}
	call[any](t, c, "DELETE", "/pin/set:1", http.StatusConflict) // LARDER_PIN pins it
	call[any](t, c, "DELETE", "/pin/hand:1", http.StatusOK)
	call[any](t, c, "DELETE", "/pin/hand:1", http.StatusNotFound)
	call[gone](t, c, "DELETE", "/cache/hand:1", http.StatusOK)
	if !c.isGone(byHand) {
		t.Error("what was unpinned could not be deleted")
	}
	if g := call[gone](t, c, "POST", "/prune?all=1&pinned=1", http.StatusOK); g.Count.Blobs != 3 || !c.isGone(set) {
		t.Errorf("pruned with what is pinned: %v", g)
	}
	c.pullImage(t, "library/set", "1", set)
	c.settle(t)
	eventually(t, "the pin to hold it again", func() bool { return call[shownPins](t, c, "GET", "/pin", http.StatusOK).Blobs == 3 })
}

func TestPinsThatCannotBe(t *testing.T) {
	t.Parallel()
	c := newControlled(t, nil, small)
	nobody := digest.FromString("nobody").String()
	for path, status := range map[string]int{
		"/pin/App:1": 400, "/pin/app:.1": 400, "/pin/app@sha256:1": 400, "/pin/" + nobody: 400, "/pin/app:1@" + nobody: 400, "/pin/quay.io/org/app:1": 400,
		"/pin/app:*": 400, "/pin/": 400, "/pin/app:1?x=1": 400,
	} {
		call[any](t, c, "PUT", path, status)
	}
	call[any](t, c, "DELETE", "/pin/app:1", http.StatusNotFound)
	call[any](t, c, "POST", "/pin/app:1", http.StatusMethodNotAllowed)
	req, _ := http.NewRequestWithContext(t.Context(), "PUT", "http://"+c.admin+"/pin/app:1", nil)
	req.Header.Set("Origin", "http://"+c.admin)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if p := call[shownPins](t, c, "GET", "/pin", http.StatusOK); resp.StatusCode != http.StatusForbidden || len(p.Pins) != 0 {
		t.Errorf("a page: %s, %+v", resp.Status, p)
	}
	if p := call[shownPin](t, c, "PUT", "/pin/"+c.addr+"/app", http.StatusOK); p.Reference != "docker.io/library/app:latest" {
		t.Errorf("got %+v", p)
	}
}

// TestAPinThatTheDiskDoesNotTake is said so, and is none. What was pinned before
// stays so, though one pin's file is damaged.
func TestAPinThatTheDiskDoesNotTake(t *testing.T) {
	t.Parallel()
	dir := smallDisk(t, 16<<20)
	c := newControlled(t, []string{"LARDER_CACHE_DIR=" + filepath.Join(dir, "cache")}, usual, small)
	c.pull(t, "at first")
	c.settle(t)
	for _, reference := range []string{"app:1", "b:1"} {
		call[any](t, c, "PUT", "/pin/"+reference, http.StatusOK)
	}
	full, err := os.Create(filepath.Join(dir, "somebody's"))
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	for err == nil {
		_, err = full.Write(make([]byte, 4<<10))
	}
	call[any](t, c, "PUT", "/pin/c:1", http.StatusInternalServerError)
	wanted := func(when string, want ...string) {
		t.Helper()
		var got []string
		for _, p := range call[shownPins](t, c, "GET", "/pin", http.StatusOK).Pins {
			got = append(got, p.Reference)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: pinned are %q, want %q", when, got, want)
		}
	}
	wanted("on a full disk", "docker.io/library/app:1", "docker.io/library/b:1")
	c.stop(t)
	for _, file := range filesIn(t, filepath.Join(c.cache, "manifests", "pins")) {
		if text, err := os.ReadFile(file); err == nil && strings.HasSuffix(string(text), "b:1") {
			if err := os.Truncate(file, 3); err != nil {
				t.Fatal(err)
			}
		}
	}
	c.restart(t)
	wanted("when a pin's file is damaged", "docker.io/library/app:1")
	if !strings.Contains(c.stderr.String(), "a pin can't be read") {
		t.Error("nothing is said of it")
	}
	if p := call[shownPins](t, c, "GET", "/pin", http.StatusOK); p.Blobs != 3 {
		t.Errorf("held are %+v", p)
	}
	full.Truncate(0)
	call[any](t, c, "PUT", "/pin/b:1", http.StatusOK)
	wanted("when it was pinned again", "docker.io/library/app:1", "docker.io/library/b:1")
}
