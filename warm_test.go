package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"larder/handler/upstream/upstreamtest"
	"larder/handler/warm"
)

// order has a larder warm what the body says, and returns all that it tells of it.
func (c *controlled) order(t *testing.T, query, body string) (events []warmEvent) {
	t.Helper()
	resp, err := http.Post("http://"+c.admin+"/warm"+query, "text/plain", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "application/x-ndjson" {
		text, _ := io.ReadAll(resp.Body)
		t.Fatalf("got %s: %s", resp.Status, text)
	}
	return readEvents(t, resp.Body)
}

func readEvents(t *testing.T, r io.Reader) (events []warmEvent) {
	t.Helper()
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		var e warmEvent
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Fatalf("%v in %s", err, lines.Bytes())
		}
		events = append(events, e)
	}
	if len(events) == 0 || events[len(events)-1].End == nil {
		t.Fatalf("no end of %d events, %v", len(events), lines.Err())
	}
	return events
}

// last is what the events say of the job, and in the end of a reference.
func last(events []warmEvent, reference string) (s warm.Summary, img warm.Image) {
	for _, e := range events {
		if e.Image != nil && e.Image.Reference == reference {
			img = *e.Image
		}
	}
	return *events[len(events)-1].End, img
}

// addIndex adds an index of images for these platforms, and returns them.
func addIndex(t *testing.T, hub *upstreamtest.Registry, repository, tag string, platforms ...string) (index []byte, images []upstreamtest.Image) {
	t.Helper()
	doc := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex}
	for i, p := range platforms {
		img := hub.AddImage(repository, "", seeded(t, 100+i, usual), seeded(t, 200+i, small))
		images = append(images, img)
		d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: img.Manifest, Size: int64(len(img.Body))}
		if os, arch, ok := strings.Cut(p, "/"); ok {
			arch, variant, _ := strings.Cut(arch, "/")
			d.Platform = &ocispec.Platform{OS: os, Architecture: arch, Variant: variant}
		}
		doc.Manifests = append(doc.Manifests, d)
	}
	index, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	hub.AddManifest(repository, tag, ocispec.MediaTypeImageIndex, index)
	return index, images
}

// hasImage reports whether all blobs of an image are on disk.
func (c *controlled) hasImage(img upstreamtest.Image) bool {
	for _, d := range append([]ocispec.Descriptor{img.Config}, img.Layers...) {
		if _, err := os.Stat(storedFile(c.cache, "blobs", d.Digest)); err != nil {
			return false
		}
	}
	return true
}

func TestWarmingAnIndexTakesThePlatformsThatAreWanted(t *testing.T) {
	t.Parallel()
	c := newControlled(t, []string{"LARDER_WARM_PLATFORMS=linux/amd64"})
	index, images := addIndex(t, c.hub, "library/multi", "1", "linux/amd64", "linux/arm64/v8", "linux/arm/v7", "unknown/unknown")
	tests := []struct {
		query string
		want  []bool
	}{
		{"", []bool{true, false, false, false}},
		{"?platform=linux/arm64", []bool{true, true, false, false}},
		{"?platform=linux/arm/v6,linux/arm/v7", []bool{true, true, true, false}},
		{"?platform=all", []bool{true, true, true, true}},
	}
	for _, test := range tests {
		s, img := last(c.order(t, test.query, "multi:1"), "docker.io/library/multi:1")
		if s.State != warm.Done || s.Done != 1 || img.State != warm.Done || img.Digest != digest.FromBytes(index) || img.Fetched+img.Cached == 0 {
			t.Errorf("%q: got %+v, %+v", test.query, s, img)
		}
		for i, want := range test.want {
			if got := c.hasImage(images[i]); got != want {
				t.Errorf("%q: image %d is here: %v, want %v", test.query, i, got, want)
			}
		}
	}
	if n := c.hub.Count("GET", "/blobs/"); n != 12 {
		t.Errorf("upstream was asked for %d blobs, and has 12", n)
	}
	s, img := last(c.order(t, "?platform=windows/amd64", "multi:1"), "docker.io/library/multi:1")
	if s.State != warm.Failed || !strings.Contains(img.Error, "linux/arm/v7") {
		t.Errorf("a platform that is not there: %+v, %+v", s, img)
	}
	c.hub.Stop()
	c.want(t, "/v2/library/multi/manifests/1", http.StatusOK, index)
	for i, img := range images {
		c.want(t, "/v2/library/multi/manifests/"+img.Manifest.String(), http.StatusOK, img.Body)
		c.want(t, "/v2/library/multi/blobs/"+img.Layers[0].Digest.String(), http.StatusOK, seeded(t, 100+i, usual))
	}
	wantTrueNames(t, c.cache)
}

func TestWarmingAgainFetchesNothing(t *testing.T) {
	t.Parallel()
	c := newControlled(t, nil, usual, small)
	total := int64(usual+small) + c.img.Config.Size
	s, img := last(c.order(t, "", "# what we need\ndocker.io/"+appName+":1, app:1 # twice\napp@"+c.img.Manifest.String()), "docker.io/"+appName+":1")
	if s.Images != 2 || s.Done != 2 || s.Fetched != total || s.Cached != total || img.Blobs != 3 || img.Manifests != 1 {
		t.Errorf("got %+v, %+v", s, img)
	}
	gets := c.hub.Count("GET", "/v2/"+appName)
	for range 2 {
		s, img = last(c.order(t, "", c.addr+"/"+appName+":1"), "docker.io/"+appName+":1")
		if s.Fetched != 0 || s.Cached != total || img.State != warm.Done {
			t.Errorf("again: %+v, %+v", s, img)
		}
		c.cancel()
		if err := c.wait(t); err != nil {
			t.Fatal(err)
		}
		c.restart(t)
	}
	if n := c.hub.Count("GET", "/v2/"+appName); n != gets {
		t.Errorf("upstream was asked for %d more", n-gets)
	}
	c.pull(t, "after it was warmed")
}

func TestWarmingTheTagsThatMatch(t *testing.T) {
	t.Parallel()
	c := newControlled(t, nil)
	c.hub.SetPageSize(2)
	images := make(map[string]upstreamtest.Image)
	for i, tag := range []string{"3.18", "3.19", "3.20", "3.20-rc1", "edge", "latest"} {
		images[tag] = c.hub.AddImage("library/alpine", tag, seeded(t, i, small))
	}
	events := c.order(t, "", "alpine:3.*")
	s, img := last(events, "docker.io/library/alpine:3.*")
	if s.Images != 4 || s.Done != 4 || img.Matched != 4 || img.State != warm.Done {
		t.Errorf("got %+v, %+v", s, img)
	}
	for tag, image := range images {
		if got, want := c.hasImage(image), strings.HasPrefix(tag, "3."); got != want {
			t.Errorf("%s is here: %v", tag, got)
		}
	}
	if s, img = last(c.order(t, "", "alpine:4.*"), "docker.io/library/alpine:4.*"); s.Failed != 1 || !strings.Contains(img.Error, "no tag") {
		t.Errorf("a pattern of nothing: %+v, %+v", s, img)
	}
}

func TestOrdersThatAreWrongAreRefusedAsAWhole(t *testing.T) {
	t.Parallel()
	c := newControlled(t, []string{"LARDER_DENY=docker.io/secret/**"}, small)
	call := func(method, path, body string, header ...string) (*http.Response, string) {
		req, err := http.NewRequest(method, "http://"+c.admin+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, string(text)
	}
	var many strings.Builder
	many.WriteString(strings.Repeat("x,", 1))
	for i := range 1001 {
		many.WriteString(fmt.Sprintf("a/b:%d,", i))
	}
	for name, test := range map[string]struct {
		query, body string
		status      int
		says        string
	}{
		"nothing":       {"", "", 400, "no reference"},
		"comments":      {"", "# a\n\n#b", 400, "no reference"},
		"no reference":  {"", "app:1\nApp:1\napp:.1", 400, "entry 2"},
		"and the next":  {"", "app:1\nApp:1\napp:.1", 400, "entry 3"},
		"half a digest": {"", "app@sha256:1", 400, "entry 1"},
		"pattern":       {"", "ap*:1", 400, "entry 1"},
		"pattern tag":   {"", "app:*/x", 400, "entry 1"},
		"pattern twice": {"", "app:1.*@" + c.img.Manifest.String(), 400, "entry 1"},
		"unlisted":      {"", "app:1,quay.io/org/app:1", 400, "entry 2: of a registry that is not in LARDER_UPSTREAMS"},
		"URL":           {"", "https://user:hush@quay.io/app:1", 400, "entry 1"},
		"denied":        {"", "docker.io/secret/app:1", 400, "LARDER_DENY"},
		"JSON":          {"", `["app:1"`, 400, "not a list"},
		"JSON numbers":  {"", `[1]`, 400, "not a list"},
		"too many":      {"", many.String(), 400, "more than 1000"},
		"too many bad":  {"", strings.Repeat("X,", 1001), 400, `"message":"more than 1000 references"`},
		"too large":     {"", strings.Repeat("#", 1<<20+1), 413, "too large"},
		"platform":      {"?platform=arm64", "app:1", 400, "platform"},
		"platforms":     {"?platform=linux/arm64/v8/x", "app:1", 400, "platform"},
		"detach":        {"?detach=2", "app:1", 400, "detach"},
		"parameter":     {"?tag=1", "app:1", 400, "unknown parameter"},
	} {
		resp, body := call("POST", "/warm"+test.query, test.body)
		if resp.StatusCode != test.status || !strings.Contains(body, test.says) || strings.Contains(body, "hush") || errorCode(t, []byte(body)) == "" {
			t.Errorf("%s: got %s: %s", name, resp.Status, body)
		}
	}
	for _, header := range [][]string{{"Origin", "http://" + c.admin}, {"Sec-Fetch-Site", "same-origin"}} {
		if resp, _ := call("POST", "/warm", "app:1", header...); resp.StatusCode != http.StatusForbidden {
			t.Errorf("a page with %v: %s", header, resp.Status)
		}
	}
	for path, status := range map[string]int{"/warm/1": 404, "/warm/x": 404, "/warm?n=1": 400} {
		if resp, _ := call("GET", path, ""); resp.StatusCode != status {
			t.Errorf("GET %s: %s", path, resp.Status)
		}
	}
	if resp, _ := call("PUT", "/warm", "app:1"); resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("PUT: %s", resp.Status)
	}
	if n := len(c.hub.Requests()); n != 0 {
		t.Errorf("upstream was asked %d times for refused orders", n)
	}
}

// TestImagesOfTooManyBlobsAreNotWarmed: what registries make up is bounded too.
func TestImagesOfTooManyBlobsAreNotWarmed(t *testing.T) {
	t.Parallel()
	c := newControlled(t, nil, small)
	doc := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest}
	for i := range 10_001 {
		doc.Layers = append(doc.Layers, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromString(fmt.Sprint(i)), Size: 1})
	}
	body, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	c.hub.AddManifest("library/app", "huge", ocispec.MediaTypeImageManifest, body)
	if _, img := last(c.order(t, "", "app:huge"), "docker.io/library/app:huge"); img.State != warm.Failed || !strings.Contains(img.Error, "more than 10000 blobs") {
		t.Errorf("got %+v", img)
	}
	if n := c.hub.Count("GET", "/blobs/"); n != 0 {
		t.Errorf("%d blobs of it were asked for", n)
	}
}

// TestWhoLeavesStopsWhatHeHasOrdered has layers that come only in part.
func TestWhoLeavesStopsWhatHeHasOrdered(t *testing.T) {
	t.Parallel()
	for name, detached := range map[string]bool{"watched": false, "detached": true} {
		t.Run(name, func(t *testing.T) {
			c := newControlled(t, nil, usual, small)
			gate := make(chan struct{})
			c.hub.Fault(upstreamtest.Match{Path: c.img.Layers[0].Digest.String()}, upstreamtest.GateAfter(100<<10, gate))
			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			query := map[bool]string{false: "", true: "?detach=1"}[detached]
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+c.admin+"/warm"+query, strings.NewReader("app:1"))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Accept", "text/event-stream")
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			lines := bufio.NewScanner(resp.Body)
			for lines.Scan() && !strings.Contains(lines.Text(), `"have":102400`) {
			}
			job := func() warm.Summary {
				return call[struct{ Jobs []warm.Summary }](t, c, "GET", "/warm", http.StatusOK).Jobs[0]
			}
			if s := job(); resp.Header.Get("Content-Type") != "text/event-stream" || s.State != warm.Running || s.Images != 1 {
				t.Fatalf("got %s, %+v", resp.Header.Get("Content-Type"), s)
			}
			leave()
			if detached {
				c.want(t, "/v2/", http.StatusOK, nil)
				if s := job(); s.State != warm.Running {
					t.Errorf("a detached job is %s when who ordered it has left", s.State)
				}
				close(gate)
				eventually(t, "the end", func() bool { return job().State == warm.Done })
				c.recovers(t)
				return
			}
			eventually(t, "the end", func() bool { return job().State == warm.Stopped })
			eventually(t, "the fill to be parked", func() bool { return c.fills(t) == 0 })
			close(gate)
			c.recovers(t)
			if n := sentOf(c.hub, c.blob()); n != usual {
				t.Errorf("upstream sent %d bytes of a layer of %d", n, usual)
			}
		})
	}
}

func (c *controlled) fills(t *testing.T) (n int) {
	t.Helper()
	_, text := ask(t, http.DefaultClient, "GET", "http://"+c.admin+"/metrics", "", "")
	if _, err := fmt.Sscanf(text[strings.Index(text, "\nlarder_fills ")+1:], "larder_fills %d", &n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestAJobCanBeWatchedAndStopped(t *testing.T) {
	t.Parallel()
	c := newControlled(t, nil, usual)
	c.hub.Fault(upstreamtest.Match{Path: "/blobs/"}, upstreamtest.StallAfter(100))
	resp, body := ask(t, http.DefaultClient, "POST", "http://"+c.admin+"/warm?detach=1", "", "")
	if resp.StatusCode != http.StatusBadRequest {
		t.Fatalf("an empty order: %s, %s", resp.Status, body)
	}
	started, err := http.Post("http://"+c.admin+"/warm?detach=1", "application/json", strings.NewReader(`["app:1"]`))
	if err != nil {
		t.Fatal(err)
	}
	started.Body.Close()
	if started.StatusCode != http.StatusAccepted {
		t.Fatalf("got %s", started.Status)
	}
	type shown struct {
		warm.Summary
		References []warm.Image
		Layers     []warm.Layer
	}
	eventually(t, "two blobs on their way", func() bool {
		job := call[shown](t, c, "GET", "/warm/1", http.StatusOK)
		return len(job.Layers) == 2 && len(job.References) == 1 && job.References[0].Digest == c.img.Manifest
	})
	req, _ := http.NewRequestWithContext(t.Context(), "GET", "http://"+c.admin+"/warm/1", nil)
	req.Header.Set("Accept", "application/x-ndjson")
	watched, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer watched.Body.Close()
	if s := call[warm.Summary](t, c, "DELETE", "/warm/1", http.StatusOK); s.State != warm.Stopped {
		t.Errorf("got %+v", s)
	}
	s, img := last(readEvents(t, watched.Body), "docker.io/"+appName+":1")
	if s.State != warm.Stopped || s.Stopped != 1 || img.Error != "stopped" {
		t.Errorf("who watched was told %+v, %+v", s, img)
	}
	_, metrics := ask(t, http.DefaultClient, "GET", "http://"+c.admin+"/metrics", "", "")
	for _, line := range []string{`larder_warm_images_total{state="stopped"} 1`, "larder_warm_jobs 0", "larder_warm_bytes_total 0"} {
		if !strings.Contains(metrics, "\n"+line+"\n") {
			t.Errorf("no %s", line)
		}
	}
}
