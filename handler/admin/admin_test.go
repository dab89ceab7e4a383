package admin_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"

	"larder/blobcache"
	"larder/blobcache/memory"
	"larder/handler"
	"larder/handler/admin"
	"larder/handler/middleware"
	"larder/handler/upstream"
	"larder/handler/upstream/upstreamtest"
	"larder/handler/warm"
	"larder/manifestcache"
)

// larder is a registry and its admin handler, wired as main does it.
type larder struct {
	hub       *upstreamtest.Registry
	blobs     *blobcache.Cache
	manifests *manifestcache.Cache
	registry  http.Handler
	config    admin.Config
	admin     *admin.Handler
	detail    string
	ready     error
	locked    bool
}

func newLarder(t *testing.T) *larder {
	t.Helper()
	l := &larder{hub: upstreamtest.New(t)}
	list, err := upstream.ParseList("docker.io=" + l.hub.URL + ",ghcr.io=http://127.0.0.1:1")
	if err != nil {
		t.Fatal(err)
	}
	metrics := admin.NewMetrics("1.2.3")
	upstreams, err := upstream.New(upstream.Config{Registries: list, Observe: metrics.Asked})
	if err != nil {
		t.Fatal(err)
	}
	kept := memory.New(1 << 20)
	if l.blobs, err = blobcache.Open(root(t), blobcache.Config{TTL: time.Hour, Memory: kept, Observe: metrics.Stored("blob")}); err != nil {
		t.Fatal(err)
	}
	l.manifests, err = manifestcache.Open(root(t), manifestcache.Config{
		Pinned: func(_, reference string) bool { return reference == "kept" }, Hold: l.blobs.Hold,
		TagTTL: time.Hour, StaleIf: upstream.Unreachable, Memory: kept, Observe: metrics.Stored("manifest"),
	})
	if err != nil {
		t.Fatal(err)
	}
	metrics.Collect(admin.Sources{Blobs: l.blobs, Manifests: l.manifests, Memory: kept, Upstreams: upstreams, Limit: new(middleware.LimitCounts), Warmer: new(warm.Warmer), Received: func() int64 { return l.blobs.Stats().Fetched }})
	h := handler.New(handler.Config{Upstreams: upstreams, Blobs: l.blobs, Manifests: l.manifests})
	l.registry, err = middleware.Builtin().Chain(h, middleware.Options{Observe: metrics.Observe, Running: metrics.Running, Identify: h.Identify}, "metrics", "readonly")
	if err != nil {
		t.Fatal(err)
	}
	control := &admin.Control{Blobs: l.blobs, Manifests: l.manifests, Upstreams: upstreams, Denied: func(string) string { return "" }, Logger: zap.NewNop()}
	l.config = admin.Config{Metrics: metrics, Ready: func() (string, error) { return l.detail, l.ready }, Control: control, Hosts: []string{"example.com"}, Protect: func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if l.locked {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			next.ServeHTTP(w, r)
		})
	}}
	l.admin = admin.New(l.config)
	t.Cleanup(func() {
		for _, c := range []io.Closer{l.blobs, l.manifests, upstreams} {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	return l
}

func root(t *testing.T) *os.Root {
	t.Helper()
	r, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// stored waits until what has been fetched is on disk.
func (l *larder) stored(ctx context.Context) error {
	return until(ctx, func() bool { return l.blobs.Stats().Fills == 0 })
}

func until(ctx context.Context, done func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func ask(h http.Handler, method, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, path, nil))
	return w
}

// scrape reads the metrics: value by name and labels.
func (l *larder) scrape(t *testing.T) map[string]string {
	t.Helper()
	w := ask(l.admin, "GET", "/metrics")
	if w.Code != http.StatusOK {
		t.Fatalf("GET /metrics: %d %s", w.Code, w.Body)
	}
	values := make(map[string]string)
	for lines := bufio.NewScanner(w.Body); lines.Scan(); {
		if i := strings.LastIndexByte(lines.Text(), ' '); i > 0 && lines.Text()[0] != '#' {
			values[lines.Text()[:i]] = lines.Text()[i+1:]
		}
	}
	return values
}

func TestHealthAndReadiness(t *testing.T) {
	l := newLarder(t)
	l.hub.Stop() // upstream has no part in either
	for _, test := range []struct {
		ready        error
		detail       string
		path         string
		status       int
		body, method string
	}{
		{nil, "", "/healthz", 200, "ok\n", "GET"},
		{nil, "", "/readyz", 200, "ok\n", "GET"},
		{nil, "", "/readyz", 200, "", "HEAD"},
		{nil, "the disk is full", "/healthz", 200, "ok\n", "GET"},
		{nil, "the disk is full", "/readyz", 200, "ok, but the disk is full\n", "GET"},
		{errors.New("shutting down"), "", "/healthz", 200, "ok\n", "GET"},
		{errors.New("shutting down"), "the disk is full", "/readyz", 503, "shutting down\n", "GET"},
	} {
		l.ready, l.detail = test.ready, test.detail
		w := ask(l.admin, test.method, test.path)
		if w.Code != test.status || w.Body.String() != test.body && test.method == "GET" {
			t.Errorf("%s while %v: got %d %q, want %d %q", test.path, test.ready, w.Code, w.Body, test.status, test.body)
		}
	}
	if n := len(l.hub.Requests()); n > 0 {
		t.Errorf("upstream had %d requests", n)
	}
}

func TestAdminHasNothingElse(t *testing.T) {
	l := newLarder(t)
	for path, status := range map[string]int{
		"/debug/pprof/": 200, "/debug/pprof/heap?debug=1": 200, "/debug/pprof/goroutine?debug=1": 200, "/debug/pprof/cmdline": 200, "/debug/pprof/symbol": 200, "/debug/vars": 200,
		"/": 200, "/static/style.css": 200, "/x": 404, "/static/": 404, "/static/status.html": 404, "/v2/": 404, "/v2/library/alpine/manifests/1": 404, "/debug/": 404, "/readyz/x": 404,
	} {
		if w := ask(l.admin, "GET", path); w.Code != status {
			t.Errorf("GET %s: got %d, want %d", path, w.Code, status)
		}
	}
	for _, path := range []string{"/healthz", "/readyz", "/metrics", "/debug/pprof/heap"} {
		if w := ask(l.admin, "POST", path); w.Code != http.StatusMethodNotAllowed {
			t.Errorf("POST %s: got %d, want 405", path, w.Code)
		}
		if w := ask(l.registry, "GET", path); w.Code != http.StatusNotFound {
			t.Errorf("the registry answers %s with %d, want 404", path, w.Code)
		}
	}
}

func TestMetrics(t *testing.T) {
	l := newLarder(t)
	layer := make([]byte, 100_000)
	img := l.hub.AddImage("library/alpine", "1", layer)
	manifest, blob := "/v2/library/alpine/manifests/", "/v2/library/alpine/blobs/"
	for _, path := range []string{
		manifest + "1", manifest + "1", manifest + img.Manifest.String(), // miss, hit, hit
		blob + img.Layers[0].Digest.String(), // miss
		manifest + "missing",
		"/v2/ghcr.io/a/b/manifests/1", // nobody listens there
		"/v2/", "/v2/library/alpine/tags/list", "/elsewhere",
	} {
		ask(l.registry, "GET", path)
	}
	if err := l.stored(t.Context()); err != nil {
		t.Fatal(err)
	}
	ask(l.registry, "GET", blob+img.Layers[0].Digest.String()) // hit
	ask(l.registry, "HEAD", blob+img.Layers[0].Digest.String())
	ask(l.registry, "POST", "/v2/")
	got := l.scrape(t)
	want := map[string]string{
		`larder_requests_total{code="200",kind="manifest",outcome="miss"}`:                     "1",
		`larder_requests_total{code="200",kind="manifest",outcome="hit"}`:                      "2",
		`larder_requests_total{code="404",kind="manifest",outcome=""}`:                         "1",
		`larder_requests_total{code="502",kind="manifest",outcome=""}`:                         "1",
		`larder_requests_total{code="200",kind="blob",outcome="miss"}`:                         "1",
		`larder_requests_total{code="200",kind="blob",outcome="hit"}`:                          "2",
		`larder_requests_total{code="200",kind="base",outcome=""}`:                             "1",
		`larder_requests_total{code="200",kind="tags",outcome="miss"}`:                         "1",
		`larder_requests_total{code="404",kind="",outcome=""}`:                                 "1",
		`larder_requests_total{code="405",kind="base",outcome=""}`:                             "1",
		`larder_sent_bytes_total{kind="blob",outcome="miss"}`:                                  "100000",
		`larder_sent_bytes_total{kind="blob",outcome="hit"}`:                                   "100000",
		`larder_request_duration_seconds_count{kind="blob",outcome="hit"}`:                     "2",
		`larder_request_duration_seconds_bucket{kind="blob",outcome="hit",le="+Inf"}`:          "2",
		`larder_upstream_requests_total{code="200",host="docker.io"}`:                          "5", // ping, HEAD and GET of a manifest, a blob, tags
		`larder_upstream_requests_total{code="404",host="docker.io"}`:                          "1",
		`larder_upstream_requests_total{code="0",host="ghcr.io"}`:                              "2", // once more, as that may help
		`larder_upstream_bytes_total`:                                                          "100000",
		`larder_cache_entries{kind="blob"}`:                                                    "1",
		`larder_cache_bytes{kind="blob"}`:                                                      "100000",
		`larder_cache_entries{kind="manifest"}`:                                                "1",
		`larder_cache_entries{kind="partial"}`:                                                 "0",
		`larder_cache_bytes{kind="partial"}`:                                                   "0",
		`larder_fills`:                                                                         "0",
		`larder_blob_resumes_total`:                                                            "0",
		`larder_digest_mismatches_total{kind="blob"}`:                                          "0",
		`larder_digest_mismatches_total{kind="manifest"}`:                                      "0",
		`larder_expired_total{kind="blob"}`:                                                    "0",
		`larder_expired_total{kind="manifest"}`:                                                "0",
		`larder_expire_errors_total{kind="blob"}`:                                              "0",
		`larder_expire_errors_total{kind="manifest"}`:                                          "0",
		`larder_build_info{version="1.2.3"}`:                                                   "1",
		`larder_first_byte_seconds_count{kind="blob",outcome="miss"}`:                          "1",
		`larder_response_size_bytes_sum{kind="blob"}`:                                          "200000",
		`larder_response_size_bytes_bucket{kind="blob",le="1024"}`:                             "1", // the HEAD
		`larder_upstream_duration_seconds_count{host="docker.io",op="get blob"}`:               "1",
		`larder_upstream_duration_seconds_count{host="docker.io",op="head manifest"}`:          "2",
		`larder_upstream_errors_total{host="docker.io",op="head manifest",reason="notfound"}`:  "1",
		`larder_upstream_errors_total{host="ghcr.io",op="head manifest",reason="unreachable"}`: "1",
		`larder_store_duration_seconds_count{kind="blob",op="commit"}`:                         "1",
		`larder_store_duration_seconds_count{kind="manifest",op="commit"}`:                     "3", // the manifest, its tag, and a list
		`larder_remembered_layers`:                                                             "3", // a config, a layer; and that one as upstream said so
		`larder_remembered_layer_hits_total`:                                                   "3",
		`larder_remembered_layer_misses_total`:                                                 "0",
		`larder_memory_entries`:                                                                "1",
		`larder_memory_hits_total`:                                                             "2",
		`larder_memory_max_bytes`:                                                              "1.048576e+06",
		`larder_cache_entries{kind="list"}`:                                                    "1",
		`larder_cache_bytes{kind="list"}`:                                                      "4096",
	}
	for name, value := range want {
		if got[name] != value {
			t.Errorf("%s is %q, want %s", name, got[name], value)
		}
	}
	for name := range got {
		if strings.Contains(name, "alpine") || strings.Contains(name, "sha256") || strings.Contains(name, "missing") {
			t.Errorf("%s has no end", name)
		}
	}
	for _, family := range []string{"go_goroutines", "process_open_fds"} {
		if got[family] == "" {
			t.Errorf("no %s", family)
		}
	}
}

func TestMetricsOfFaults(t *testing.T) {
	l := newLarder(t)
	d := l.hub.AddBlob("a/b", make([]byte, 1000))
	l.hub.AddManifest("a/b", "1", "application/x", []byte(`{"a":"xyz"}`))
	l.hub.Fault(upstreamtest.Match{Path: "/a/b/", Method: "GET"}, upstreamtest.FlipByte(6)) // leaves it JSON
	// By tag: with a digest to compare with, go-containerregistry sees it first.
	l.hub.Fault(upstreamtest.Match{Path: "/a/b/", Method: "HEAD"}, upstreamtest.Status(405, nil))
	ask(l.registry, "GET", "/v2/a/b/blobs/"+d.String())
	ask(l.registry, "GET", "/v2/a/b/manifests/1")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	func() {
		defer func() { recover() }() // of http.ErrAbortHandler
		l.registry.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, "GET", "/v2/a/b/manifests/2", nil))
	}()
	got := l.scrape(t)
	for name, want := range map[string]string{
		`larder_digest_mismatches_total{kind="blob"}`:                  "1",
		`larder_digest_mismatches_total{kind="manifest"}`:              "1",
		`larder_requests_total{code="502",kind="blob",outcome=""}`:     "1",
		`larder_requests_total{code="499",kind="manifest",outcome=""}`: "1",
	} {
		if got[name] != want {
			t.Errorf("%s is %q, want %s", name, got[name], want)
		}
	}
}

func TestMetricsOfMemory(t *testing.T) {
	l := newLarder(t)
	path := "/v2/a/b/blobs/" + l.hub.AddBlob("a/b", make([]byte, 1000)).String()
	for i := range 3 { // from upstream, from disk, from memory
		r := httptest.NewRequest("GET", path, nil)
		r.RemoteAddr = fmt.Sprintf("192.0.2.%d:80", i) // one who asks so often has doubts
		l.registry.ServeHTTP(httptest.NewRecorder(), r)
		if err := l.stored(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	ask(l.registry, "GET", "/v2/a/c/blobs/"+digest.FromString("what upstream has not").String())
	ask(l.registry, "HEAD", strings.Replace(path, "a/b", "a/c", 1)) // is cached, and may be theirs alone
	got := l.scrape(t)
	for name, want := range map[string]string{
		`larder_memory_hits_total`:              "1",
		`larder_memory_misses_total`:            "1",
		`larder_memory_entries`:                 "1",
		`larder_memory_bytes`:                   "1295", // with the digest, and what an entry takes
		`larder_remembered_layers`:              "1",
		`larder_remembered_layer_hits_total`:    "3",
		`larder_remembered_layer_misses_total`:  "1",
		`larder_cache_entries{kind="manifest"}`: "0",
	} {
		if got[name] != want {
			t.Errorf("%s is %q, want %s", name, got[name], want)
		}
	}
}

func TestAllButHealthIsProtected(t *testing.T) {
	l := newLarder(t)
	l.locked = true
	for target, want := range map[string]int{
		"/healthz": 200, "/readyz": 200, "/metrics": 401, "/": 401, "/debug/pprof/": 401, "/debug/pprof/cmdline": 401, "/debug/pprof/heap": 401,
		"/healthz/": 401, "/healthz/../metrics": 401, "//metrics": 401, "/HEALTHZ": 401, "/healthz%2f..%2fmetrics": 401, "/anything": 401,
	} {
		for _, method := range []string{"GET", "HEAD"} {
			rec := httptest.NewRecorder()
			l.admin.ServeHTTP(rec, httptest.NewRequest(method, target, nil))
			if rec.Code != want {
				t.Errorf("%s %s: %d, want %d", method, target, rec.Code, want)
			}
		}
	}
}

// TestVars reads what tools that know distribution's proxy look for.
func TestVars(t *testing.T) {
	l := newLarder(t)
	img := l.hub.AddImage("library/alpine", "1", make([]byte, 100_000))
	blob := "/v2/library/alpine/blobs/" + img.Layers[0].Digest.String()
	ask(l.registry, "GET", "/v2/library/alpine/manifests/1")
	manifest := ask(l.registry, "GET", "/v2/library/alpine/manifests/1").Body.Len()
	ask(l.registry, "GET", blob)
	if err := l.stored(t.Context()); err != nil {
		t.Fatal(err)
	}
	ask(l.registry, "GET", blob)
	ask(l.registry, "GET", "/v2/library/alpine/blobs/"+digest.FromString("not there").String())
	type counts struct{ Requests, Hits, Misses, BytesPulled, BytesPushed int }
	var vars struct {
		Memstats *struct{ HeapAlloc uint64 }
		Registry struct {
			Proxy struct{ Blobs, Manifests counts }
		}
	}
	if err := json.Unmarshal(ask(l.admin, "GET", "/debug/vars").Body.Bytes(), &vars); err != nil {
		t.Fatal(err)
	}
	got := vars.Registry.Proxy
	got.Blobs.BytesPushed -= got.Blobs.BytesPushed % 1000 // there was an error, too
	if want := (counts{3, 1, 1, 100_000, 200_000}); got.Blobs != want {
		t.Errorf("blobs are counted as %+v, want %+v", got.Blobs, want)
	}
	if want := (counts{2, 1, 1, manifest, 2 * manifest}); got.Manifests != want {
		t.Errorf("manifests are counted as %+v, want %+v", got.Manifests, want)
	}
	if vars.Memstats == nil || vars.Memstats.HeapAlloc == 0 {
		t.Error("there is nothing of memory")
	}
}

func TestRequestsInFlight(t *testing.T) {
	l := newLarder(t)
	d := l.hub.AddBlob("a/b", make([]byte, 1000))
	hold := make(chan struct{})
	l.hub.Fault(upstreamtest.Match{Path: "/blobs/"}, upstreamtest.Gate(hold))
	const metric = `larder_requests_in_flight{kind="blob"}`
	var asking sync.WaitGroup
	for range 3 {
		asking.Go(func() { ask(l.registry, "GET", "/v2/a/b/blobs/"+d.String()) })
	}
	err := until(t.Context(), func() bool { return l.scrape(t)[metric] == "3" })
	close(hold)
	asking.Wait()
	if err != nil {
		t.Error("three requests are not in flight")
	}
	if got := l.scrape(t)[metric]; got != "0" {
		t.Errorf("%s requests are in flight when all have been answered", got)
	}
}
