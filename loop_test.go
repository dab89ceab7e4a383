package main

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// requests counts those that larder has answered.
func (l *larder) requests() int { return strings.Count(l.stderr.String(), `"msg":"request"`) }

// looping are paths of all kinds.
var looping = []string{
	"/v2/library/alpine/manifests/latest",
	"/v2/library/alpine/manifests/sha256:" + strings.Repeat("a", 64),
	"/v2/library/alpine/blobs/sha256:" + strings.Repeat("a", 64),
	"/v2/library/alpine/tags/list",
	"/v2/library/alpine/referrers/sha256:" + strings.Repeat("a", 64),
}

// wantLoop is that a client is told of the loop, at once and after few requests.
func wantLoop(t *testing.T, ask *larder, most int, all ...*larder) {
	t.Helper()
	for _, path := range looping {
		before := 0
		for _, l := range all {
			before += l.requests()
		}
		began := time.Now()
		resp, body := ask.get(t, path)
		if resp.StatusCode != http.StatusLoopDetected || errorCode(t, body) != "UNAVAILABLE" || !strings.Contains(string(body), "LARDER_UPSTREAMS") {
			t.Errorf("%s: got %d %s, want 508 and what to look at", path, resp.StatusCode, body)
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("%s took %v", path, took)
		}
		after := 0
		for _, l := range all {
			after += l.requests()
		}
		if after-before > most {
			t.Errorf("%s: %d requests were answered, want at most %d", path, after-before, most)
		}
	}
}

func TestLarderThatIsItsOwnUpstream(t *testing.T) {
	addr := freeAddr(t)
	l := startLarder(t, nil, "LARDER_ADDR="+addr, "LARDER_UPSTREAMS=docker.io=http://"+addr)
	wantLoop(t, l, 3, l)
}

func TestTwoLardersInACircle(t *testing.T) {
	one, two := freeAddr(t), freeAddr(t)
	a := startLarder(t, nil, "LARDER_ADDR="+one, "LARDER_UPSTREAMS=docker.io=http://"+two)
	b := startLarder(t, nil, "LARDER_ADDR="+two, "LARDER_UPSTREAMS=docker.io=http://"+one)
	wantLoop(t, a, 8, a, b)
	wantLoop(t, b, 8, a, b)
}

// Larders that have each other as mirrors pull from the registry what neither has.
func TestTwoLardersThatMirrorEachOther(t *testing.T) {
	hub := newUpstream(t, "docker.io")
	image := flatImage(t, 1000)
	hub.push(t, "library/alpine:latest", image)
	one, two := freeAddr(t), freeAddr(t)
	a := startLarder(t, nil, "LARDER_ADDR="+one, "LARDER_UPSTREAMS=docker.io=http://"+two+"|http://"+hub.addr)
	b := startLarder(t, nil, "LARDER_ADDR="+two, "LARDER_UPSTREAMS=docker.io=http://"+one+"|http://"+hub.addr)
	for _, l := range []*larder{a, b} {
		if resp, body := l.get(t, "/v2/library/alpine/manifests/latest"); resp.StatusCode != http.StatusOK {
			t.Errorf("got %d %s, want the manifest", resp.StatusCode, body)
		}
	}
}

// meeting holds back the first question that comes through it from each side until
// there is one from all: each larder then waits for the other when it is asked by
// it.
type meeting struct{ all sync.WaitGroup }

// through is the URL of a proxy to addr that is a side of the meeting.
func (m *meeting) through(t *testing.T, addr string) string {
	t.Helper()
	m.all.Add(1)
	var first sync.Once
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: addr})
	side := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v2/" {
			first.Do(func() {
				m.all.Done()
				m.all.Wait()
			})
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(side.Close)
	return side.URL
}

// askedAtOnce are the statuses that two larders answer with, each of which asks
// the other at the same moment.
func askedAtOnce(t *testing.T, last string) []int {
	t.Helper()
	one, two := freeAddr(t), freeAddr(t)
	var m meeting
	toOne, toTwo := m.through(t, one), m.through(t, two)
	a := startLarder(t, nil, "LARDER_ADDR="+one, "LARDER_UPSTREAMS=docker.io="+toTwo+last)
	b := startLarder(t, nil, "LARDER_ADDR="+two, "LARDER_UPSTREAMS=docker.io="+toOne+last)
	statuses := make([]int, 2)
	var both sync.WaitGroup
	for i, l := range []*larder{a, b} {
		both.Go(func() {
			resp, err := l.open(t.Context(), "/v2/library/alpine/manifests/latest")
			if err != nil {
				t.Error(err)
				return
			}
			resp.Body.Close()
			statuses[i] = resp.StatusCode
		})
	}
	both.Wait()
	for _, l := range []*larder{a, b} {
		if strings.Contains(l.stderr.String(), "left alone") {
			t.Error("a larder has waited in vain")
		}
	}
	return statuses
}

func TestTwoLardersInACircleAskedAtOnce(t *testing.T) {
	if got := askedAtOnce(t, ""); !slices.Equal(got, []int{508, 508}) {
		t.Errorf("got %v, want 508 of both", got)
	}
}

func TestTwoLardersThatMirrorEachOtherAskedAtOnce(t *testing.T) {
	hub := newUpstream(t, "docker.io")
	hub.push(t, "library/alpine:latest", flatImage(t, 1000))
	if got := askedAtOnce(t, "|http://"+hub.addr); !slices.Equal(got, []int{200, 200}) {
		t.Errorf("got %v, want 200 of both", got)
	}
}
