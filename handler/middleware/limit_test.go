package middleware_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"larder/handler/middleware"
)

// gated is a handler behind limit whose requests end when they are told to. Use
// it in a bubble.
type gated struct {
	http.Handler
	counts  middleware.LimitCounts
	started []string // paths of requests, in the order in which they have run
	end     chan struct{}
}

func newGated(t *testing.T, options ...string) *gated {
	t.Helper()
	g := &gated{end: make(chan struct{})}
	var err error
	g.Handler, err = middleware.Builtin().Chain(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		g.started = append(g.started, r.URL.Path[1:])
		<-g.end
	}), middleware.Options{Identify: byPath, Limit: &g.counts, Variables: limitVariables(options)}, "limit")
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func limitVariables(options []string) map[string]string {
	variables := make(map[string]string)
	for _, o := range options {
		option, value, _ := strings.Cut(o, "=")
		variables["LARDER_MIDDLEWARE_LIMIT_"+option] = value
	}
	return variables
}

// asked is a request that is on its way.
type asked struct {
	leave context.CancelFunc
	done  chan struct{} // closed at its end
	w     *httptest.ResponseRecorder
	left  bool // it ended with the connection
	took  time.Duration
}

// ask makes a request from an address, and returns when it runs or waits.
func (g *gated) ask(t *testing.T, method, addr, path string) *asked {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	a := &asked{leave: cancel, done: make(chan struct{}), w: httptest.NewRecorder()}
	r := httptest.NewRequest(method, "/"+path, nil).WithContext(ctx)
	r.RemoteAddr = addr + ":1234"
	start := time.Now()
	go func() {
		defer close(a.done)
		defer func() { a.left = recover() == http.ErrAbortHandler; a.took = time.Since(start) }()
		g.ServeHTTP(a.w, r)
	}()
	synctest.Wait()
	return a
}

func (g *gated) want(t *testing.T, running, queued, full, late, left int64) {
	t.Helper()
	synctest.Wait()
	if got, want := g.counts.Stats(), (middleware.LimitStats{Running: running, Queued: queued, Full: full, Late: late, Left: left}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// wantRefused checks that a request has ended with this.
func (a *asked) wantRefused(t *testing.T, status int, code string, after time.Duration) {
	t.Helper()
	<-a.done
	again, err := strconv.Atoi(a.w.Header().Get("Retry-After"))
	if a.w.Code != status || !strings.Contains(a.w.Body.String(), code) || err != nil || again < 1 || again > 10 || a.took != after {
		t.Errorf("got %d with %s, Retry-After %q, after %v; want %d %s after %v", a.w.Code, a.w.Body, a.w.Header().Get("Retry-After"), a.took, status, code, after)
	}
}

func TestLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGated(t, "RUNNING=2", "QUEUED=1", "WAIT=20s")
		first, second := g.ask(t, "GET", "192.0.2.1", "a"), g.ask(t, "GET", "192.0.2.2", "b")
		waits := g.ask(t, "GET", "192.0.2.3", "c")
		g.want(t, 2, 1, 0, 0, 0)
		g.ask(t, "GET", "192.0.2.4", "d").wantRefused(t, 429, "TOOMANYREQUESTS", 0)
		g.want(t, 2, 1, 1, 0, 0)
		waits.wantRefused(t, 503, "UNAVAILABLE", 20*time.Second)
		g.want(t, 2, 0, 1, 1, 0)
		waits = g.ask(t, "GET", "192.0.2.3", "e")
		g.end <- struct{}{}
		g.end <- struct{}{}
		<-first.done
		<-second.done
		g.want(t, 1, 0, 1, 1, 0) // nobody was waiting for the second place
		g.end <- struct{}{}
		if <-waits.done; waits.w.Code != 200 || fmt.Sprint(g.started) != "[a b e]" {
			t.Errorf("got %d, and %v were served", waits.w.Code, g.started)
		}
		g.want(t, 0, 0, 1, 1, 0)
	})
}

func TestWhatIsNotLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGated(t, "RUNNING=1", "QUEUED=0")
		running := g.ask(t, "GET", "192.0.2.1", "a")
		var all []*asked
		for range 10 {
			all = append(all, g.ask(t, "HEAD", "192.0.2.1", "a"), g.ask(t, "GET", "192.0.2.1", "")) // which is in no repository, as /v2/ is not
		}
		g.want(t, 1, 0, 0, 0, 0)
		if len(g.started) != 21 {
			t.Errorf("%d requests run, want all", len(g.started))
		}
		close(g.end)
		for _, a := range append(all, running) {
			if <-a.done; a.w.Code != 200 {
				t.Errorf("got %d", a.w.Code)
			}
		}
	})
}

func TestNoLimitByDefault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGated(t)
		for range 2000 {
			g.ask(t, "GET", "192.0.2.1", "a")
		}
		g.want(t, 2000, 0, 0, 0, 0)
		close(g.end)
		g.want(t, 0, 0, 0, 0, 0)
	})
}

// A place goes to the client with the fewest running, then to who waits longest.
func TestPlacesAreSharedFairly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGated(t, "RUNNING=3")
		for i := range 3 + 6 {
			g.ask(t, "GET", "192.0.2.1", fmt.Sprint("greedy", i))
		}
		for i := range 2 {
			g.ask(t, "GET", "2001:db8::1", fmt.Sprint("modest", i))
		}
		g.ask(t, "GET", "192.0.2.3", "late")
		g.started = nil
		for range 9 {
			g.end <- struct{}{} // of any that runs: which one ends is chance
			synctest.Wait()
		}
		// Whoever of greedy's three ends, modest and late have fewer.
		if got := strings.Join(g.started[:3], " "); got != "modest0 late modest1" && got != "modest0 late greedy3" {
			t.Errorf("began %v", g.started)
		}
		var greedy []string
		for _, path := range g.started {
			if strings.HasPrefix(path, "greedy") {
				greedy = append(greedy, path)
			}
		}
		if len(g.started) != 9 || !slices.IsSorted(greedy) {
			t.Errorf("began %v, want all, and greedy's in order of arrival", g.started)
		}
		close(g.end)
		g.want(t, 0, 0, 0, 0, 0)
	})
}

func TestEquallyModestClientsGoInOrderOfArrival(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGated(t, "RUNNING=1")
		for i := range 8 {
			g.ask(t, "GET", fmt.Sprint("192.0.2.", i), fmt.Sprint(i))
		}
		for range 8 {
			g.end <- struct{}{}
			synctest.Wait()
		}
		if got := strings.Join(g.started, ""); got != "01234567" {
			t.Errorf("began %s", got)
		}
	})
}

// A client that fills the queue gives up places in it for those that have less.
func TestQueueIsSharedFairly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGated(t, "RUNNING=1", "QUEUED=4")
		var greedy, modest []*asked
		for i := range 5 {
			greedy = append(greedy, g.ask(t, "GET", "192.0.2.1", fmt.Sprint("greedy", i)))
		}
		for i := range 2 {
			modest = append(modest, g.ask(t, "GET", "192.0.2.2", fmt.Sprint("modest", i)))
		}
		for _, refused := range greedy[3:] { // the last that came
			refused.wantRefused(t, 429, "TOOMANYREQUESTS", 0)
		}
		g.ask(t, "GET", "192.0.2.2", "modest2").wantRefused(t, 429, "TOOMANYREQUESTS", 0) // as much as greedy has, then
		g.ask(t, "GET", "192.0.2.1", "greedy5").wantRefused(t, 429, "TOOMANYREQUESTS", 0)
		g.want(t, 1, 4, 4, 0, 0)
		close(g.end)
		for _, a := range append(modest, greedy[:3]...) {
			if <-a.done; a.w.Code != 200 {
				t.Errorf("got %d", a.w.Code)
			}
		}
		g.want(t, 0, 0, 4, 0, 0)
	})
}

func TestWhoLeavesTheQueueFreesItsPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGated(t, "RUNNING=1", "QUEUED=2")
		g.ask(t, "GET", "192.0.2.1", "a")
		gone, stays := g.ask(t, "GET", "192.0.2.1", "b"), g.ask(t, "GET", "192.0.2.1", "c")
		gone.leave()
		if <-gone.done; !gone.left || gone.took != 0 {
			t.Errorf("left: %t after %v", gone.left, gone.took)
		}
		g.want(t, 1, 1, 0, 0, 1)
		next := g.ask(t, "GET", "192.0.2.2", "d")
		g.want(t, 1, 2, 0, 0, 1)
		close(g.end)
		<-stays.done
		<-next.done
		if slices.Contains(g.started, "b") || len(g.started) != 3 {
			t.Errorf("began %v, want all but b", g.started)
		}
		g.want(t, 0, 0, 0, 0, 1)
	})
}

// A request that panics gives back its place.
func TestPanicFreesItsPlace(t *testing.T) {
	var counts middleware.LimitCounts
	s, logs := serve(t, func(_ http.ResponseWriter, r *http.Request) { panic(r.URL.Path) }, middleware.Options{
		Identify: byPath, Limit: &counts, Variables: limitVariables([]string{"RUNNING=1", "QUEUED=0"}),
	}, "recover", "limit")
	for range 3 {
		if res, _, err := get(t, s.URL+"/a"); err != nil || res.StatusCode != 500 {
			t.Errorf("got %v, %v; want the panic's 500", res, err)
		}
	}
	if n := logs.FilterMessage("request panicked").Len(); n != 3 || counts.Stats() != (middleware.LimitStats{}) {
		t.Errorf("%d panics, %+v", n, counts.Stats())
	}
}

// crowd is a client of its own address that asks one request after the other on
// each of its connections, until it has had enough.
type crowd struct {
	addr        string
	connections int
	requests    int // on each

	mu      sync.Mutex // guards answers
	answers map[int]int
}

func (c *crowd) run(t *testing.T, url string) {
	t.Helper()
	transport := &http.Transport{
		DialContext:         (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(c.addr)}}).DialContext,
		MaxIdleConnsPerHost: c.connections,
	}
	defer transport.CloseIdleConnections()
	c.answers = make(map[int]int)
	var wg sync.WaitGroup
	for range c.connections {
		wg.Go(func() {
			for range c.requests {
				req, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
				if err != nil {
					t.Error(err)
					return
				}
				res, err := transport.RoundTrip(req)
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := io.Copy(io.Discard, res.Body); err != nil { // else it's a connection for each request, and no port is left
					t.Error(err)
				}
				res.Body.Close()
				c.mu.Lock()
				c.answers[res.StatusCode]++
				c.mu.Unlock()
			}
		})
	}
	wg.Wait()
}

// Load is many clients, one of which wants everything for itself, over real
// connections: nothing beyond the limit runs, nobody is starved, and what was
// counted is what the clients saw.
func TestLimitUnderLoad(t *testing.T) {
	const most = 8
	var running, peak, served atomic.Int64
	var counts middleware.LimitCounts
	s, _ := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		now := running.Add(1)
		defer running.Add(-1)
		for {
			if p := peak.Load(); now <= p || peak.CompareAndSwap(p, now) {
				break
			}
		}
		served.Add(1)
		select { // as a request to upstream takes
		case <-time.After(2 * time.Millisecond):
		case <-t.Context().Done():
		}
	}, middleware.Options{
		Logger: zap.NewNop(), Identify: byPath, Limit: &counts, Variables: limitVariables([]string{"RUNNING=8", "QUEUED=32"}),
	}, "recover", "limit")
	greedy := &crowd{addr: "127.0.0.1", connections: 100, requests: 30}
	crowds := []*crowd{greedy}
	for i := range 20 {
		crowds = append(crowds, &crowd{addr: fmt.Sprint("127.0.1.", i+1), connections: 1, requests: 30})
	}
	var wg sync.WaitGroup
	for _, c := range crowds {
		wg.Go(func() { c.run(t, s.URL+"/a") })
	}
	wg.Wait()
	var ok, full, late int
	for _, c := range crowds {
		ok, full, late = ok+c.answers[200], full+c.answers[429], late+c.answers[503]
		if c != greedy && c.answers[200] != c.requests {
			t.Errorf("%s has %v: a modest client was refused", c.addr, c.answers)
		}
	}
	if ok+full+late != 100*30+20*30 || greedy.answers[200] == 0 || full == 0 {
		t.Errorf("answers %d, %d, %d, greedy's %v; want some of greedy's refused and some not", ok, full, late, greedy.answers)
	}
	if peak.Load() != most || served.Load() != int64(ok) {
		t.Errorf("%d ran at once, want %d; %d have run, and %d were answered", peak.Load(), most, served.Load(), ok)
	}
	if got, want := counts.Stats(), (middleware.LimitStats{Full: int64(full), Late: int64(late)}); got != want {
		t.Errorf("counted %+v, clients saw %+v", got, want)
	}
}
