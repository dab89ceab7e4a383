package main

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"larder/handler/upstream/upstreamtest"
)

// tier is a registry, a parent in front of it, and larders of nodes in front of that,
// which know the registry, too.
type tier struct {
	*world // the first node's
	parent *larder
}

// newTier starts a parent and one node.
func newTier(t *testing.T, environ []string, sizes ...int) *tier {
	t.Helper()
	w := prepareWorld(t, sizes...)
	parent := startLarder(t, nil, w.environ(environ...)...)
	s := &tier{w, parent}
	w.larder = s.node(t)
	t.Cleanup(w.client.CloseIdleConnections)
	return s
}

// node starts another node.
func (s *tier) node(t *testing.T, environ ...string) *larder {
	t.Helper()
	return startLarder(t, nil, s.environ(append([]string{"LARDER_PARENT=http://" + s.parent.addr}, environ...)...)...)
}

// at asks another node.
func (s *tier) at(l *larder) *world {
	other := *s.world
	other.larder = l
	return &other
}

// status is the Cache-Status of a path.
func (w *world) status(t *testing.T, path string) string {
	t.Helper()
	a := w.ask(path, "")
	if !a.whole() {
		t.Errorf("%s: got %v", path, a)
	}
	return a.header.Get("Cache-Status")
}

func TestTwoNodesOfAParentCostTheRegistryOnePull(t *testing.T) {
	t.Parallel()
	s := newTier(t, nil, usual, small, 3<<20)
	s.pull(t, "the first node")
	pulled := len(s.hub.Requests())
	second := s.at(s.node(t))
	second.pull(t, "the second node")
	if n := s.hub.Count("GET", "/manifests/"); n != 1 {
		t.Errorf("the registry was asked %d times for the manifest, want once", n)
	}
	for _, blob := range append(s.img.Layers, s.img.Config) {
		var bytes int64
		for _, req := range s.hub.Requests() {
			if strings.HasSuffix(req.Path, blob.Digest.String()) {
				bytes += req.Bytes
			}
		}
		if bytes != blob.Size {
			t.Errorf("the registry has sent %d bytes of a blob of %d", bytes, blob.Size)
		}
	}
	if n := len(s.hub.Requests()) - pulled; n > 1 { // the tag
		t.Errorf("the second node cost the registry %d requests, want one", n)
	}
	second.recovers(t) // with the registry gone
}

func TestCacheStatusIsChained(t *testing.T) {
	t.Parallel()
	s := newTier(t, nil, usual)
	const miss, uriMiss = "larder; fwd=uri-miss; stored; detail=miss", "larder; fwd=uri-miss; fwd-status=200; stored; detail=miss"
	for _, want := range []struct{ path, first, again, second string }{
		{appTag, uriMiss + ", " + uriMiss, "larder; fwd=stale; fwd-status=200; detail=revalidated, larder; fwd=stale; fwd-status=200; detail=revalidated", "larder; fwd=stale; fwd-status=200; detail=revalidated, " + uriMiss},
		{s.blob(), miss + ", " + miss, "larder; hit; detail=hit", "larder; hit; detail=hit, " + miss},
		{appPath + "tags/list", uriMiss + ", " + uriMiss, "larder; hit; detail=hit", "larder; hit; detail=hit, " + uriMiss},
	} {
		if got := s.status(t, want.path); got != want.first {
			t.Errorf("%s: got %q, want %q", want.path, got, want.first)
		}
		got := ""
		eventually(t, "the end of what has begun", func() bool {
			got = s.status(t, want.path)
			return !strings.HasSuffix(got, "detail=join")
		})
		if got != want.again {
			t.Errorf("%s again: got %q, want %q", want.path, got, want.again)
		}
		if got := s.at(s.node(t)).status(t, want.path); got != want.second {
			t.Errorf("%s at another node: got %q, want %q", want.path, got, want.second)
		}
	}
	s.parent.stop(t)
	if got, want := s.at(s.node(t)).status(t, s.blob()), miss; got != want {
		t.Errorf("without a parent: got %q, want %q", got, want)
	}
}

func TestParentStops(t *testing.T) {
	t.Parallel()
	s := newTier(t, nil, usual)
	s.parent.stop(t)
	began := time.Now()
	s.pull(t, "with the parent gone")
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
	s.recovers(t)
}

// A parent that hangs costs the first pull a wait, and the next nothing.
func TestParentHangs(t *testing.T) {
	t.Parallel()
	w := prepareWorld(t, usual)
	parent := upstreamtest.New(t)
	parent.Fault(upstreamtest.Match{}, upstreamtest.StallHeaders())
	w.larder = startLarder(t, nil, w.environ("LARDER_PARENT="+parent.URL)...)
	t.Cleanup(w.client.CloseIdleConnections)
	w.pull(t, "with a parent that hangs")
	began := time.Now()
	w.pull(t, "again")
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
	w.recovers(t)
}

// liar answers as the parent does, but that blobs, of the right size, are wrong.
func (s *tier) liar(t *testing.T) string {
	t.Helper()
	side := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		req, err := http.NewRequestWithContext(r.Context(), r.Method, "http://"+s.parent.addr+r.URL.String(), nil)
		if err != nil {
			t.Error(err)
			return
		}
		req.Header = r.Header.Clone()
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Error(err)
			return
		}
		defer resp.Body.Close()
		maps.Copy(w.Header(), resp.Header)
		w.WriteHeader(resp.StatusCode)
		var body bytes.Buffer
		_, _ = body.ReadFrom(resp.Body)
		content := body.Bytes()
		if strings.Contains(r.URL.Path, "/blobs/") && len(content) > 0 {
			content[len(content)/2] ^= 1
		}
		_, _ = w.Write(content)
	}))
	t.Cleanup(side.Close)
	return side.URL
}

// Wrong bytes of the parent fool nobody, and the next try has the right ones.
func TestParentLies(t *testing.T) {
	t.Parallel()
	s := newTier(t, nil, usual, small)
	l := s.node(t, "LARDER_PARENT="+s.liar(t))
	w := s.at(l)
	for _, path := range w.everything() {
		for _, a := range []answer{w.ask(path, ""), w.ask(path, "")} {
			w.notFooled(t, path, "", a)
		}
	}
	if text := l.stderr.String(); !strings.Contains(text, "the parent has sent wrong bytes") {
		t.Error("the operator is not told")
	}
	w.recovers(t)
}

// A parent that has something else, or is not allowed to, is no reason not to have it.
func TestParentThatDoesNotHaveTheRegistry(t *testing.T) {
	t.Parallel()
	for name, environ := range map[string][]string{
		"not listed": {"LARDER_UPSTREAMS=ghcr.io=http://" + freeAddr(t)},
		"denied":     {"LARDER_DENY=docker.io/**"},
		"no way":     {"LARDER_UPSTREAMS=docker.io=http://" + freeAddr(t)},
		"password":   {"LARDER_HTPASSWD=" + passwordFile(t, "alice", "secret")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := prepareWorld(t, usual)
			addr := freeAddr(t)
			parent := runLarder(t, nil, w.environ(append([]string{"LARDER_ADDR=" + addr}, environ...)...)...)
			eventually(t, "the parent", func() bool { return health(t.Context(), parent.environ) == nil })
			w.larder = startLarder(t, nil, w.environ("LARDER_PARENT=http://"+addr)...)
			t.Cleanup(w.client.CloseIdleConnections)
			w.pull(t, "directly")
			w.recovers(t)
		})
	}
}

// What the registry does not have is asked for once, by the parent.
func TestNotFoundIsAskedOnceInTheTier(t *testing.T) {
	t.Parallel()
	s := newTier(t, nil, small)
	for _, path := range []string{appPath + "manifests/none", appPath + "blobs/sha256:" + strings.Repeat("a", 64), "/v2/library/none/tags/list"} {
		s.hub.Reset()
		if a := s.ask(path, ""); a.status != http.StatusNotFound {
			t.Errorf("%s: got %v", path, a)
		}
		_, element, _ := strings.Cut(path, "/v2/")
		if n := s.hub.Count("", element); n != 1 {
			t.Errorf("%s cost the registry %d requests, want one", path, n)
		}
	}
}

func TestParentThatIsTheLarderItself(t *testing.T) {
	t.Parallel()
	w := prepareWorld(t, usual)
	addr := freeAddr(t)
	w.larder = startLarder(t, nil, w.environ("LARDER_ADDR="+addr, "LARDER_PARENT=http://"+addr)...)
	t.Cleanup(w.client.CloseIdleConnections)
	began := time.Now()
	w.pull(t, "directly")
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
	w.recovers(t)
}

func TestTwoLardersThatAreEachOthersParents(t *testing.T) {
	t.Parallel()
	w := prepareWorld(t, usual)
	one, two := freeAddr(t), freeAddr(t)
	w.larder = startLarder(t, nil, w.environ("LARDER_ADDR="+one, "LARDER_PARENT=http://"+two)...)
	other := &world{startLarder(t, nil, w.environ("LARDER_ADDR="+two, "LARDER_PARENT=http://"+one)...), w.hub, w.img, w.layers, w.client}
	t.Cleanup(w.client.CloseIdleConnections)
	began := time.Now()
	w.pull(t, "one")
	other.pull(t, "the other")
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
	if n := w.hub.Count("GET", w.img.Layers[0].Digest.String()); n != 1 {
		t.Errorf("the registry was asked for a layer %d times, want once", n)
	}
	w.recovers(t)
}

// The registry that is meant is known to the parent, too, whichever is its default one.
func TestParentIsToldWhichRegistryIsMeant(t *testing.T) {
	t.Parallel()
	quay := upstreamtest.New(t)
	img := quay.AddImage("org/app", "1", seeded(t, 9, small))
	hub := upstreamtest.New(t)
	list := "LARDER_UPSTREAMS=docker.io=" + hub.URL + ",quay.io=" + quay.URL
	parent := startLarder(t, nil, list)
	l := startLarder(t, nil, list, "LARDER_PARENT=http://"+parent.addr)
	for _, path := range []string{"/v2/quay.io/org/app/manifests/1", "/v2/org/app/manifests/1?ns=quay.io", "/v2/org/app/blobs/" + img.Layers[0].Digest.String() + "?ns=quay.io", "/v2/quay.io/org/app/tags/list"} {
		resp, _ := l.get(t, path)
		if resp.StatusCode != http.StatusOK || !strings.HasPrefix(resp.Header.Get("Cache-Status"), "larder; ") || !strings.Contains(resp.Header.Get("Cache-Status"), ", larder; ") {
			t.Errorf("%s: got %d %q, want it by way of the parent", path, resp.StatusCode, resp.Header.Get("Cache-Status"))
		}
	}
	if n := hub.Count("", "org/app"); n != 0 {
		t.Errorf("the other registry got %d questions", n)
	}
}

// A parent whose registry is down tells what it remembers. So does the node, and says
// how old that is; what it knows itself that is newer it prefers.
func TestParentThatRemembers(t *testing.T) {
	t.Parallel()
	s := newTier(t, nil, small)
	fresh := s.at(s.node(t, "LARDER_TAG_TTL=1h"))
	s.pull(t, "at first")
	s.hub.Fault(upstreamtest.Match{}, upstreamtest.Status(http.StatusServiceUnavailable, http.Header{"Retry-After": {"1"}}))
	eventually(t, "the parent's memory to be seconds old", func() bool {
		age := s.at(s.parent).ask(appTag, "").header.Get("Age")
		return age != "" && age > "1"
	})
	for name, w := range map[string]*world{"who knew it": s.world, "who did not": fresh} {
		a := w.ask(appTag, "")
		if err := w.lie(appTag, "", a); err != nil || a.status != http.StatusOK {
			t.Fatalf("%s: got %v, %v", name, a, err)
		}
		if age := a.header.Get("Age"); age == "" || age == "0" || a.header.Get("Warning") == "" || !strings.HasSuffix(a.header.Get("Cache-Status"), "; detail=stale") || !strings.Contains(a.header.Get("Cache-Status"), "detail=stale, larder; ") {
			t.Errorf("%s: got %v, want what the parent remembers, and how old it is", name, a.header)
		}
	}
}

// A parent with a password gets the node's from Docker's configuration, and the
// registry's is not shown to it, nor the other way round.
func TestParentWithAPassword(t *testing.T) {
	t.Parallel()
	for name, more := range map[string][]string{"basic": nil, "token": {"LARDER_AUTH=token", "LARDER_TOKEN_KEY="}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := prepareWorld(t, usual)
			w.hub.RequireBasic("hub", "hub's")
			addr := freeAddr(t)
			parent := runLarder(t, nil, w.environ(append([]string{
				"LARDER_ADDR=" + addr, "LARDER_USERNAME=hub", "LARDER_PASSWORD=hub's", "LARDER_HTPASSWD=" + passwordFile(t, "node", "node's"), "LARDER_LOG_LEVEL=debug",
			}, keyed(t, more)...)...)...)
			eventually(t, "the parent", func() bool { return health(t.Context(), parent.environ) == nil })
			home := t.TempDir()
			writeFile(t, filepath.Join(home, ".docker", "config.json"), fmt.Sprintf(`{"auths": {%q: {"auth": %q}}}`, addr, base64.StdEncoding.EncodeToString([]byte("node:node's"))))
			w.larder = execLarder(t, nil, w.environ("LARDER_ADDR="+freeAddr(t), "LARDER_PARENT=http://"+addr, "LARDER_USERNAME=hub", "LARDER_PASSWORD=hub's", "HOME="+home)...)
			w.waitUntilUp(t)
			t.Cleanup(w.client.CloseIdleConnections)
			if got := w.status(t, w.blob()); !strings.Contains(got, ", larder") {
				t.Errorf("got %q, want it by way of the parent", got)
			}
			w.pull(t, "by way of the parent")
			for _, req := range w.hub.Requests() {
				if user, _, ok := (&http.Request{Header: req.Header}).BasicAuth(); ok && user != "hub" {
					t.Errorf("the registry was shown the password of %s", user)
				}
			}
			if strings.Contains(parent.stderr.String(), `"user":"hub"`) {
				t.Error("the parent was shown the registry's password")
			}
			w.recovers(t)
		})
	}
}

// keyed gives LARDER_TOKEN_KEY a key.
func keyed(t *testing.T, environ []string) []string {
	t.Helper()
	for i, v := range environ {
		if v == "LARDER_TOKEN_KEY=" {
			file, _ := tokenKey(t)
			environ[i] = v + file
		}
	}
	return environ
}

func TestDoctorLooksAtTheParent(t *testing.T) {
	t.Parallel()
	s := newTier(t, nil, small)
	l := s.node(t, "LARDER_ADMIN_ADDR="+freeAddr(t), "LARDER_DOCTOR_REFERENCE=docker.io/"+appName+":1")
	if _, text := l.askDoctor(t, ""); !strings.Contains(text, "ok       parent: http://"+s.parent.addr+" answers") {
		t.Errorf("it does not say that the parent answers:\n%s", text)
	}
	resp, metrics := (&larder{addr: l.admin(t)}).get(t, "/metrics")
	if want := `larder_upstream_breaker_open{host="docker.io",url="http://` + s.parent.addr + `"} 0`; resp.StatusCode != http.StatusOK || !strings.Contains(string(metrics), want) {
		t.Errorf("the metrics, %d, do not have %s", resp.StatusCode, want)
	}
	s.parent.stop(t)
	if _, text := l.askDoctor(t, ""); !strings.Contains(text, "warning  parent: http://"+s.parent.addr) || !strings.Contains(text, "the larder in LARDER_PARENT runs") || strings.Contains(text, "failed ") {
		t.Errorf("it does not warn of the parent alone:\n%s", text)
	}
	_, page := (&larder{addr: l.admin(t)}).get(t, "/")
	if !strings.Contains(string(page), "http://"+s.parent.addr+", the parent") {
		t.Errorf("the status page does not show the parent:\n%s", page)
	}
}

func TestSkopeoPullsThroughTheTier(t *testing.T) {
	t.Parallel()
	requireProgram(t, "skopeo")
	hub, quay := newUpstream(t, "docker.io"), newUpstream(t, "ghcr.io")
	hub.push(t, "library/larder-test-hello:1", layeredImage(t, 2))
	quay.push(t, "larder-test/multi:v1", multiArchIndex(t))
	parent := startLarder(t, []*testUpstream{hub, quay})
	one := startLarder(t, []*testUpstream{hub, quay}, "LARDER_PARENT=http://"+parent.addr)
	two := startLarder(t, []*testUpstream{hub, quay}, "LARDER_PARENT=http://"+parent.addr)
	for _, reference := range []string{hubName + ":1", "ghcr.io/larder-test/multi:v1"} {
		for _, l := range []*larder{one, two} {
			if err := (&skopeo{home: containersHome(t, l.addr), dir: t.TempDir()}).pull(t, reference); err != nil {
				t.Errorf("%s: %v", reference, err)
			}
		}
	}
	hub.wantExchanges(t, "^GET /v2/.*/manifests/.* 200", 1, 1)
	hub.wantExchanges(t, "^GET /v2/.*/blobs/", 3, 3)
	stopAll([]*testUpstream{hub, quay})
	parent.stop(t)
	if err := (&skopeo{home: containersHome(t, two.addr), dir: t.TempDir()}).pull(t, hubName+":1"); err != nil {
		t.Errorf("a node alone: %v", err)
	}
}
