package main

import (
	"bytes"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"larder/handler/upstream/upstreamtest"
)

// startFaulty returns a larder in front of registries that do what a test wants,
// which are the URLs of docker.io.
func startFaulty(t *testing.T, environ []string, urls ...*upstreamtest.Registry) *larder {
	t.Helper()
	var list []string
	for _, reg := range urls {
		list = append(list, reg.URL)
	}
	return startLarder(t, nil, append([]string{"LARDER_UPSTREAMS=docker.io=" + strings.Join(list, "|")}, environ...)...)
}

// want gets a path and checks status and, unless it is nil, body.
func (l *larder) want(t *testing.T, path string, status int, body []byte) *http.Response {
	t.Helper()
	resp, got := l.get(t, path)
	if resp.StatusCode != status || body != nil && !bytes.Equal(got, body) {
		t.Errorf("GET %s: got %d with %d bytes, want %d with %d", path, resp.StatusCode, len(got), status, len(body))
	}
	return resp
}

func TestRateLimitedUpstream(t *testing.T) {
	reg := upstreamtest.New(t)
	layer := bytes.Repeat([]byte("layer"), 1000)
	img := reg.AddImage("library/alpine", "1", layer, []byte("another"))
	admin := freeAddr(t)
	l := startFaulty(t, []string{"LARDER_ADMIN_ADDR=" + admin}, reg)
	l.want(t, "/v2/library/alpine/manifests/1", http.StatusOK, img.Body)
	l.want(t, "/v2/library/alpine/blobs/"+img.Layers[0].Digest.String(), http.StatusOK, layer)

	reg.Fault(upstreamtest.Match{}, upstreamtest.Status(http.StatusTooManyRequests, http.Header{
		"Retry-After": {"3000"}, "Ratelimit-Limit": {"100;w=21600"}, "Ratelimit-Remaining": {"0;w=21600"}, "Docker-Ratelimit-Source": {"192.0.2.7"},
	}))
	l.want(t, "/v2/library/alpine/manifests/2", http.StatusTooManyRequests, nil)
	reg.Reset()
	if resp := l.want(t, "/v2/library/alpine/manifests/1", http.StatusOK, img.Body); resp.Header.Get("Warning") == "" {
		t.Error("a stale tag without a Warning")
	}
	l.want(t, "/v2/library/alpine/blobs/"+img.Layers[0].Digest.String(), http.StatusOK, layer)
	for _, path := range []string{"manifests/2", "blobs/" + img.Layers[1].Digest.String(), "tags/list"} {
		resp := l.want(t, "/v2/library/alpine/"+path, http.StatusTooManyRequests, nil)
		if left, err := strconv.Atoi(resp.Header.Get("Retry-After")); err != nil || left < 2000 || left > 3000 {
			t.Errorf("%s: got Retry-After %q, want what is left of 3000", path, resp.Header.Get("Retry-After"))
		}
	}
	if n := len(reg.Requests()); n != 0 {
		t.Errorf("upstream got %d requests, want none", n)
	}
	metrics := &larder{addr: admin}
	_, page := metrics.get(t, "/metrics")
	for _, want := range []string{
		`larder_upstream_ratelimit_remaining{host="docker.io",url="` + reg.URL + `"} 0`,
		`larder_upstream_ratelimit_limit{host="docker.io",url="` + reg.URL + `"} 100`,
		`larder_upstream_ratelimit_source{host="docker.io",source="192.0.2.7",url="` + reg.URL + `"} 1`,
		`larder_upstream_held_repositories{host="docker.io",url="` + reg.URL + `"} 1`,
	} {
		if !strings.Contains(string(page), want) {
			t.Errorf("the metrics lack %s", want)
		}
	}
}

func TestRateLimitFloor(t *testing.T) {
	reg := upstreamtest.New(t)
	img := reg.AddImage("library/alpine", "1", []byte("layer"))
	next := reg.AddImage("library/alpine", "2", []byte("another"))
	reg.Fault(upstreamtest.Match{}, upstreamtest.SetHeader("ratelimit-remaining", "9;w=21600"))
	for floor, stale := range map[string]bool{"10": true, "9": false, "0": false, "": false} {
		t.Run("floor "+floor, func(t *testing.T) {
			l := startFaulty(t, []string{"LARDER_RATELIMIT_FLOOR=" + floor}, reg)
			l.want(t, "/v2/library/alpine/manifests/1", http.StatusOK, img.Body)
			resp := l.want(t, "/v2/library/alpine/manifests/1", http.StatusOK, img.Body)
			if got := resp.Header.Get("Warning") != ""; got != stale {
				t.Errorf("stale: %v, want %v", got, stale)
			}
			l.want(t, "/v2/library/alpine/manifests/2", http.StatusOK, next.Body)
		})
	}
}

func TestDeadUpstreamIsLeftAlone(t *testing.T) {
	reg := upstreamtest.New(t)
	img := reg.AddImage("library/alpine", "1", []byte("layer"))
	admin := freeAddr(t)
	l := startFaulty(t, []string{"LARDER_ADMIN_ADDR=" + admin}, reg)
	l.want(t, "/v2/library/alpine/manifests/1", http.StatusOK, img.Body)
	reg.Stop()
	var last *http.Response
	for range 6 {
		last = l.want(t, "/v2/library/busybox/manifests/1", http.StatusBadGateway, nil)
	}
	if last.Header.Get("Retry-After") == "" {
		t.Error("the sixth failure has no Retry-After")
	}
	if resp := l.want(t, "/v2/library/alpine/manifests/1", http.StatusOK, img.Body); resp.Header.Get("Warning") == "" {
		t.Error("a stale tag without a Warning")
	}
	metrics := &larder{addr: admin}
	if _, page := metrics.get(t, "/metrics"); !strings.Contains(string(page), `larder_upstream_breaker_open{host="docker.io",url="`+reg.URL+`"} 1`) {
		t.Error("the metrics do not say that the breaker is open")
	}
	reg.Start()
	eventually(t, "the upstream to be asked again", func() bool {
		resp, err := l.open(t.Context(), "/v2/library/alpine/manifests/1")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.Header.Get("Warning") == ""
	})
}

// A pull begins at the mirror and ends at the registry, and the image is right.
func TestFailoverInMidPull(t *testing.T) {
	layer, err := io.ReadAll(upstreamtest.Seeded(1, 4<<20))
	if err != nil {
		t.Fatal(err)
	}
	faults := map[string]upstreamtest.Fault{"gone": nil, "cut": upstreamtest.CutAfter(1 << 20), "404": upstreamtest.Status(404, nil), "429": upstreamtest.Status(429, nil), "500": upstreamtest.Status(500, nil)}
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			mirror, origin := upstreamtest.New(t), upstreamtest.New(t)
			img := mirror.AddImage("library/alpine", "1", layer)
			origin.AddImage("library/alpine", "1", layer)
			l := startFaulty(t, nil, mirror, origin)
			l.want(t, "/v2/library/alpine/manifests/1", http.StatusOK, img.Body)
			if len(origin.Requests()) != 0 {
				t.Error("the registry was asked though its mirror answers")
			}
			if fault == nil {
				mirror.Stop()
			} else {
				mirror.Fault(upstreamtest.Match{Path: "/blobs/"}, fault)
			}
			l.want(t, "/v2/library/alpine/blobs/"+img.Layers[0].Digest.String(), http.StatusOK, layer)
			if n := origin.Count("GET", "/blobs/"); n == 0 {
				t.Error("the registry was not asked")
			}
		})
	}
}

// A mirror whose blob has another size is not gone on with.
func TestFailoverToAnotherSize(t *testing.T) {
	mirror, origin := upstreamtest.New(t), upstreamtest.New(t)
	layer := bytes.Repeat([]byte("0123456789"), 100<<10)
	img := mirror.AddImage("library/alpine", "1", layer)
	origin.AddReader("library/alpine", img.Layers[0].Digest, int64(len(layer))+1, bytes.NewReader(append(layer, '!')))
	mirror.Fault(upstreamtest.Match{Path: "/blobs/"}, upstreamtest.CutAfter(200<<10))
	l := startFaulty(t, nil, mirror, origin)
	l.want(t, "/v2/library/alpine/manifests/1", http.StatusOK, img.Body)
	resp, err := l.open(t.Context(), "/v2/library/alpine/blobs/"+img.Layers[0].Digest.String())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if resp.StatusCode == http.StatusOK && err == nil {
		t.Errorf("got a whole answer of %d bytes, digest right: %v", len(got), digest.FromBytes(got) == img.Layers[0].Digest)
	}
	if !bytes.HasPrefix(layer, got) && resp.StatusCode == http.StatusOK {
		t.Error("got wrong bytes")
	}
}
