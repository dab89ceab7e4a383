package main

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"larder/handler/upstream/upstreamtest"
)

// reason is what GET /why says.
type reason struct {
	Verdict, Outcome, Repository, Tag, DeniedBy string
	Digest                                      digest.Digest
	Upstream                                    []struct {
		URL, Credentials, State, For, Cause string
		RateLimit                           *struct{ Limit, Remaining int }
	}
	Known *struct{ Fresh bool }
	Image *shownImage
	Blob  *struct {
		Kind   string
		Digest digest.Digest
	}
	Fetch *struct{ Blobs, Bytes int64 }

	Shared *struct{ Store, State, Cause string }
}

// wantWhy checks what is foretold for a reference, and that nobody is asked for
// that.
func (c *controlled) wantWhy(t *testing.T, reference, outcome string, words ...string) reason {
	t.Helper()
	asked := len(c.hub.Requests())
	r := call[reason](t, c, "GET", "/why?ref="+url.QueryEscape(reference), http.StatusOK)
	if r.Outcome != outcome {
		t.Errorf("%s: got %q (%s), want %s", reference, r.Outcome, r.Verdict, outcome)
	}
	for _, word := range words {
		if !strings.Contains(r.Verdict, word) {
			t.Errorf("%s: verdict %q does not say %q", reference, r.Verdict, word)
		}
	}
	if n := len(c.hub.Requests()); n != asked {
		t.Errorf("%s: upstream was asked %d times", reference, n-asked)
	}
	return r
}

// wantForetold checks that what is foretold for a reference is what the client
// gets that asks for it next.
func (c *controlled) wantForetold(t *testing.T, reference, path, outcome string, words ...string) reason {
	t.Helper()
	r := c.wantWhy(t, reference, outcome, words...)
	a := c.ask(path, "")
	_, detail, _ := strings.Cut(a.header.Get("Cache-Status"), "detail=")
	if outcome == "refused" {
		if a.status < http.StatusTooManyRequests {
			t.Errorf("GET %s: got %v, want an error", path, a)
		}
	} else if detail != outcome {
		t.Errorf("GET %s: got %v, %q; want %s", path, a, detail, outcome)
	}
	return r
}

func TestWhyForetellsWhatAPullGets(t *testing.T) {
	t.Parallel()
	c := newControlled(t, nil, usual, small)
	layer := c.img.Layers[0]
	manifest, blob := "app@"+c.img.Manifest.String(), "app@"+layer.Digest.String()
	c.wantWhy(t, manifest, "miss", "fetched from docker.io", "nothing is known")
	if r := c.wantForetold(t, "app:1", appTag, "miss"); r.Image != nil || r.Known != nil || r.Repository != "docker.io/"+appName || r.Tag != "1" {
		t.Errorf("got %+v", r)
	}
	r := c.wantForetold(t, "app:1", appTag, "revalidated", "HEAD", "0 of 3 blobs", "3 (")
	if want := layer.Size + c.img.Layers[1].Size + c.img.Config.Size; r.Fetch.Blobs != 3 || r.Fetch.Bytes != want || r.Digest != c.img.Manifest {
		t.Errorf("got %+v, want %d bytes to be fetched", r, want)
	}
	c.wantForetold(t, manifest, appPath+"manifests/"+c.img.Manifest.String(), "hit", "without asking")
	if r := c.wantForetold(t, blob, c.blob(), "miss", "a blob: fetched from docker.io"); r.Blob == nil || r.Blob.Digest != layer.Digest || r.Blob.Kind != "blob" {
		t.Errorf("got %+v", r.Blob)
	}
	c.pull(t, "all of it")
	c.settle(t)
	c.wantForetold(t, blob, c.blob(), "hit", "a blob")
	c.wantForetold(t, "app:1", appTag, "revalidated", "all 3 blobs are here")

	c.hub.AddManifest("org/copy", "", ocispec.MediaTypeImageManifest, c.img.Body)
	c.wantForetold(t, "org/copy@"+c.img.Manifest.String(), "/v2/org/copy/manifests/"+c.img.Manifest.String(), "revalidated", "another repository")

	c.hub.Stop()
	for range 5 {
		c.ask("/v2/busybox/manifests/1", "")
	}
	r = c.wantForetold(t, "app:1", appTag, "stale", "left alone for another")
	if len(r.Upstream) != 1 || r.Upstream[0].URL != c.hub.URL || r.Upstream[0].State != "left alone" || r.Upstream[0].For == "" || r.Upstream[0].Cause == "" {
		t.Errorf("upstream is %+v", r.Upstream)
	}
	c.wantForetold(t, manifest, appPath+"manifests/"+c.img.Manifest.String(), "hit")
	c.wantForetold(t, "app:2", appPath+"manifests/2", "refused", "left alone for another")
}

func TestWhyKnowsRateLimits(t *testing.T) {
	t.Parallel()
	c := stored(t, nil, small)
	c.hub.Fault(upstreamtest.Match{}, upstreamtest.SetHeader("ratelimit-limit", "100;w=21600"), upstreamtest.SetHeader("ratelimit-remaining", "2;w=21600"))
	c.ask("/v2/busybox/manifests/1", "")
	r := c.wantForetold(t, "app:1", appTag, "stale", "to save its rate limit")
	if q := r.Upstream[0].RateLimit; q == nil || q.Limit != 100 || q.Remaining != 2 {
		t.Errorf("rate limit is %+v", q)
	}
	c.hub.Fault(upstreamtest.Match{}, upstreamtest.Status(http.StatusTooManyRequests, http.Header{"Retry-After": {"3000"}}))
	c.ask(appPath+"manifests/2", "")
	if r := c.wantForetold(t, "app:3", appPath+"manifests/3", "refused", "429"); r.Upstream[0].State != "rate limited" {
		t.Errorf("got %+v", r.Upstream)
	}
	c.wantWhy(t, "busybox:1", "miss") // a 429 is about one repository
}

func TestWhyOfEveryForm(t *testing.T) {
	t.Parallel()
	c := stored(t, []string{"LARDER_TAG_TTL=1h", "LARDER_DENY=docker.io/secret/**"}, small)
	for _, reference := range []string{
		"app:1", appName + ":1", "docker.io/app:1", "docker.io/" + appName + ":1", "registry-1.docker.io/" + appName + ":1", "docker://docker.io/" + appName + ":1",
		c.addr + "/app:1", "docker://" + c.addr + "/docker.io/" + appName + ":1", strings.Replace(c.addr, "127.0.0.1", "localhost", 1) + "/app:1",
		"app:7@" + c.img.Manifest.String(),
	} {
		if r := c.wantWhy(t, reference, "hit", "without asking docker.io", "all 2 blobs"); r.Repository != "docker.io/"+appName || r.Digest != c.img.Manifest || !r.Known.Fresh {
			t.Errorf("%s: got %+v", reference, r)
		}
	}
	if r := c.wantWhy(t, "app", "miss"); r.Tag != "latest" {
		t.Errorf("got %+v", r)
	}
	if r := c.wantWhy(t, "secret/app", "denied", "403", "LARDER_DENY"); r.DeniedBy != "LARDER_DENY" || r.Upstream != nil {
		t.Errorf("got %+v", r)
	}
	c.wantWhy(t, "quay.io/org/app:1", "unlisted", "404", "LARDER_UPSTREAMS")
	c.wantWhy(t, "localhost:1/app", "unlisted")
	for _, query := range []string{
		"", "?ref=", "?ref=App", "?ref=a&ref=b", "?ref=a:.1", "?ref=a@sha256:1", "?ref=" + c.img.Manifest.String(), "?ref=a&x=1", "?ref=a/../b", "?ref=http://a/b",
	} {
		call[any](t, c, "GET", "/why"+query, http.StatusBadRequest)
	}

	only := newControlled(t, []string{"LARDER_ALLOW=docker.io/other/*"}, small)
	if r := only.wantWhy(t, "app:1", "denied", "LARDER_ALLOW"); r.DeniedBy != "LARDER_ALLOW" {
		t.Errorf("got %+v", r)
	}
}

// TestWhySaysWhetherThereAreCredentialsAndNotWhich looks for them in all that the
// admin listener says.
func TestWhySaysWhetherThereAreCredentialsAndNotWhich(t *testing.T) {
	t.Parallel()
	for want, environ := range map[string][]string{
		"none":                 nil,
		"shown":                {"LARDER_USERNAME=somebody", "LARDER_PASSWORD=hunter2"},
		"LARDER_PASSWORD_FILE": {"LARDER_USERNAME=somebody", "LARDER_PASSWORD_FILE=/none"},
	} {
		c := newControlled(t, environ, small)
		r := call[reason](t, c, "GET", "/why?ref=app:1", http.StatusOK) // larder itself has asked whether the password is right
		if len(r.Upstream) != 1 || !strings.Contains(r.Upstream[0].Credentials, want) {
			t.Errorf("got %+v, want %s", r.Upstream, want)
		}
		for _, path := range []string{"/why?ref=app:1", "/cache", "/cache/app"} {
			_, body := ask(t, http.DefaultClient, "GET", "http://"+c.admin+path, "", "")
			if slices.ContainsFunc([]string{"somebody", "hunter2"}, func(s string) bool { return strings.Contains(body, s) }) {
				t.Errorf("%s: %s has credentials", path, body)
			}
		}
	}
}

// The fleet's store is asked before the registry, and may know what it can't say.
func TestWhyOfAFleet(t *testing.T) {
	t.Parallel()
	f := newFleet(t, "file", small)
	first := f.join(t)
	first.pull(t, "by the first")
	first.shared(t)
	second := f.join(t, "LARDER_TAG_TTL=1ms")
	const unless = ", unless the shared store "
	r := second.wantWhy(t, "docker.io/"+appName+":1", "miss", "fetched from docker.io"+unless+"has it")
	if r.Shared == nil || !strings.HasPrefix(r.Shared.Store, "file://") || r.Shared.State != "asked" {
		t.Errorf("the store is %+v", r.Shared)
	}
	second.wantWhy(t, "docker.io/"+appName+"@"+f.img.Layers[0].Digest.String(), "miss", unless+"has it")
	second.pull(t, "by the second")
	second.wantWhy(t, "docker.io/"+appName+":1", "revalidated", unless+"says what another larder has heard since")
	first.wantWhy(t, "docker.io/"+appName+":1", "revalidated", " ago; the manifest")

	alone := f.join(t, "LARDER_SHARED_ONLY=docker.io/elsewhere/**")
	if r := alone.wantWhy(t, "docker.io/"+appName+":1", "miss"); r.Shared != nil || strings.Contains(r.Verdict, unless) {
		t.Errorf("what is not shared: %+v, %s", r.Shared, r.Verdict)
	}
	lost := f.join(t, "LARDER_SHARED=file://"+f.dir+"/not-there")
	eventually(t, "the store to be left alone", func() bool {
		lost.ask(appPath+"manifests/none", "")
		return lost.metric(t, "larder_shared_breaker_open", "read") == 1
	})
	if r := lost.wantWhy(t, "docker.io/"+appName+":2", "miss"); r.Shared.State != "left alone" || !strings.Contains(r.Shared.Cause, "not-there") || strings.Contains(r.Verdict, unless) {
		t.Errorf("a store that is not there: %+v, %s", r.Shared, r.Verdict)
	}
	_, page := (&larder{addr: lost.admin}).get(t, "/")
	if !strings.Contains(string(page), "not-there: no such file") {
		t.Errorf("the status page does not say why the store is left alone:\n%s", page)
	}
}
