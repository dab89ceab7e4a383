package main

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// slowUpstream has nothing, and says so of each tag when it is let.
type slowUpstream struct {
	let           chan struct{} // closed
	running, peak atomic.Int64
}

func (u *slowUpstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/v2/" {
		return
	}
	now := u.running.Add(1)
	defer u.running.Add(-1)
	for p := u.peak.Load(); now > p && !u.peak.CompareAndSwap(p, now); p = u.peak.Load() {
	}
	<-u.let
	w.WriteHeader(http.StatusNotFound)
}

// askFrom has clients of one address ask for a tag each, and counts the answers by
// status.
func (l *larder) askFrom(t *testing.T, wg *sync.WaitGroup, addr string, clients int) (answers map[int]int) {
	t.Helper()
	answers = make(map[int]int)
	var mu sync.Mutex // guards answers
	transport := &http.Transport{DialContext: (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(addr)}}).DialContext}
	t.Cleanup(transport.CloseIdleConnections)
	for i := range clients {
		wg.Go(func() {
			resp, body := ask(t, &http.Client{Transport: transport}, "GET", fmt.Sprintf("http://%s/v2/a/b/manifests/%s-%d", l.addr, addr, i), "", "")
			mu.Lock()
			defer mu.Unlock()
			answers[resp.StatusCode]++
			if again := resp.Header.Get("Retry-After"); resp.StatusCode == http.StatusTooManyRequests && (again == "" || errorCode(t, []byte(body)) != "TOOMANYREQUESTS") {
				t.Errorf("refused with %q, Retry-After %q", body, again)
			}
		})
	}
	return answers
}

// TestNoPlaceWithoutAPassword has somebody ask who may not, when a user has the only
// place and no more than one may wait for it.
func TestNoPlaceWithoutAPassword(t *testing.T) {
	t.Parallel()
	upstream := &slowUpstream{let: make(chan struct{})}
	server := httptest.NewServer(upstream)
	defer server.Close()
	var alice sync.WaitGroup
	defer alice.Wait()
	defer close(upstream.let)
	admin := freeAddr(t)
	l := runLarder(t, nil, "LARDER_UPSTREAMS=docker.io="+server.URL, "LARDER_ADMIN_ADDR="+admin, "LARDER_HTPASSWD="+passwordFile(t, "alice", "secret"),
		"LARDER_MIDDLEWARE_LIMIT_RUNNING=1", "LARDER_MIDDLEWARE_LIMIT_QUEUED=1", "LARDER_MIDDLEWARE_LIMIT_WAIT=1m")
	eventually(t, "larder to answer", func() bool { return health(t.Context(), l.environ) == nil })
	path := "http://" + l.addr + "/v2/a/b/manifests/1"
	alice.Go(func() { ask(t, http.DefaultClient, "GET", path, "alice", "secret") })
	eventually(t, "alice to have the place", func() bool { return upstream.running.Load() == 1 })
	stranger := &http.Client{Timeout: patience / 3}
	if resp, _ := ask(t, stranger, "GET", path, "", ""); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("without a password: %s", resp.Status)
	}
}

// TestBusyLarder has one client want more than there may be of everything, and
// others a little.
func TestBusyLarder(t *testing.T) {
	t.Parallel()
	upstream := &slowUpstream{let: make(chan struct{})}
	server := httptest.NewServer(upstream)
	defer server.Close()
	let := sync.OnceFunc(func() { close(upstream.let) })
	defer let()
	admin := freeAddr(t)
	l := startLarder(t, nil, "LARDER_UPSTREAMS=docker.io="+server.URL, "LARDER_ADMIN_ADDR="+admin,
		"LARDER_MIDDLEWARE_LIMIT_RUNNING=4", "LARDER_MIDDLEWARE_LIMIT_QUEUED=16", "LARDER_MIDDLEWARE_LIMIT_WAIT=1m")
	until := func(metric string) {
		t.Helper()
		eventually(t, metric, func() bool {
			_, metrics := ask(t, http.DefaultClient, "GET", "http://"+admin+"/metrics", "", "")
			return strings.Contains(metrics, "\n"+metric+"\n")
		})
	}
	var wg sync.WaitGroup
	greedy := l.askFrom(t, &wg, "127.0.0.1", 30)
	until("larder_limit_running 4")
	until("larder_limit_queued 16")
	until(`larder_limit_refused_total{reason="full"} 10`)
	modest := []map[int]int{l.askFrom(t, &wg, "127.0.0.2", 1), l.askFrom(t, &wg, "127.0.0.3", 2), l.askFrom(t, &wg, "127.0.0.4", 3)}
	until(`larder_limit_refused_total{reason="full"} 16`) // for whom greedy made room
	if resp, _ := l.get(t, "/v2/"); resp.StatusCode != http.StatusOK {
		t.Errorf("/v2/: %s", resp.Status)
	}
	let()
	wg.Wait()
	if greedy[http.StatusNotFound] != 14 || greedy[http.StatusTooManyRequests] != 16 {
		t.Errorf("the greedy client got %v, want 14 answers and 16 refusals", greedy)
	}
	for i, answers := range modest {
		if answers[http.StatusNotFound] != i+1 {
			t.Errorf("a modest client got %v, want %d answers", answers, i+1)
		}
	}
	if n := upstream.peak.Load(); n != 4 {
		t.Errorf("%d requests ran at once, want 4", n)
	}
	until("larder_limit_running 0")
	until("larder_limit_queued 0")
	until(`larder_requests_total{code="429",kind="manifest",outcome=""} 16`)
	until(`larder_requests_total{code="404",kind="manifest",outcome=""} 20`)
}
