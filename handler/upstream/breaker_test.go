package upstream_test

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"larder/handler/upstream"
	"larder/handler/upstream/upstreamtest"
)

// wantRefusedAtOnce is that a question is not put, and that it is said when to ask
// again.
func wantRefusedAtOnce(t *testing.T, r *upstream.Repository, timeout bool, left time.Duration) {
	t.Helper()
	began := time.Now()
	err := questions["get manifest"](t.Context(), r)
	e := wantError(t, err, 0)
	wantUnreachable(t, err, true)
	want := strconv.Itoa(int(left / time.Second))
	if took := time.Since(began); took != 0 || e.Timeout() != timeout || e.Header.Get("Retry-After") != want {
		t.Errorf("took %v, timeout %v, header %v, want none, %v, %v (%v)", took, e.Timeout(), e.Header, timeout, left, err)
	}
}

func TestNobodyThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg, r := startPipe(t, upstream.Config{})
		reg.Stop()
		for question, ask := range questions {
			err := ask(t.Context(), r)
			e := wantError(t, err, 0)
			wantUnreachable(t, err, true)
			if e.Timeout() || !strings.Contains(e.Error(), "refused") {
				t.Errorf("%s: got %v, want that the connection was refused", question, err)
			}
		}
		reg.Start()
		time.Sleep(5 * time.Second)
		askAll(t, r)
	})
}

// A client that never gives up finds out after how long it is let through.
func TestSilentUpstreamCostsOneTimeoutAnInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg, c := startClient(t, upstream.Config{})
		remove := reg.Fault(upstreamtest.Match{}, upstreamtest.StallHeaders())
		var waits []time.Duration // between what cost a timeout
		last := time.Now()
		for range 4000 {
			began := time.Now()
			if err := questions["get manifest"](t.Context(), repository(t, c)); err == nil {
				t.Fatal("an answer")
			}
			switch took := time.Since(began); took {
			case 20 * time.Second:
				waits = append(waits, began.Sub(last))
				last = time.Now()
			case 0:
			default:
				t.Fatalf("took %v, want 20s or nothing", took)
			}
			time.Sleep(100 * time.Millisecond)
		}
		s := time.Second
		want := []time.Duration{0, 5 * s, 10 * s, 20 * s, 40 * s, 60 * s, 60 * s}
		for i := range want {
			if i >= len(waits) || waits[i].Round(s) != want[i] {
				t.Fatalf("got timeouts after %v, want %v", waits, want)
			}
		}
		if n := len(reg.Requests()); n != len(waits) {
			t.Errorf("got %d requests for %d timeouts", n, len(waits))
		}
		if p := c.Stats().Places[0]; !p.Open || p.Trips != 1 || p.Host != host || p.URL != reg.URL {
			t.Errorf("got %+v, want it open, once", p)
		}
		remove()
		time.Sleep(time.Minute)
		askAll(t, repository(t, c))
		if p := c.Stats().Places[0]; p.Open || p.Trips != 1 {
			t.Errorf("got %+v, want it closed", p)
		}
	})
}

func TestOneProbeAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg, c := startClient(t, upstream.Config{})
		reg.Fault(upstreamtest.Match{}, upstreamtest.StallHeaders())
		wantSlow := func(n int) {
			t.Helper()
			var slow atomic.Int32
			var wg sync.WaitGroup
			for range 50 {
				wg.Go(func() {
					began := time.Now()
					questions["get blob"](t.Context(), repository(t, c))
					if time.Since(began) > 0 {
						slow.Add(1)
					}
				})
			}
			wg.Wait()
			if got := slow.Load(); got != int32(n) {
				t.Errorf("%d of 50 waited, want %d", got, n)
			}
		}
		wantSlow(50) // nobody knew
		wantSlow(0)
		time.Sleep(5 * time.Second)
		wantSlow(1)
		wantRefusedAtOnce(t, repository(t, c), true, 10*time.Second)
		if began := time.Now(); questions["get blob"](t.Context(), other(t, c)) == nil || time.Since(began) != 0 {
			t.Errorf("another repository waited for %v", time.Since(began))
		}
	})
}

// A probe whose caller leaves says nothing; the next one may find out.
func TestLeaverIsNoVerdict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg, c := startClient(t, upstream.Config{})
		r := repository(t, c)
		ask(t, r, "get manifest")
		remove := reg.Fault(upstreamtest.Match{}, upstreamtest.StallHeaders())
		leave := func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			questions["get blob"](ctx, r)
		}
		for range 10 {
			leave()
		}
		if p := c.Stats().Places[0]; p.Open || p.Held != 0 {
			t.Errorf("got %+v for callers who left", p)
		}
		questions["get blob"](t.Context(), r)
		time.Sleep(5 * time.Second)
		leave()
		remove()
		askAll(t, r)
	})
}

// What fails quickly costs nobody much, and is asked again soon: an upstream that
// is back is used after five seconds at most, however long it was away.
func TestFailingUpstreamIsLeftAlone(t *testing.T) {
	tests := map[string]func(reg *upstreamtest.Registry) (remove func()){
		"refused": func(reg *upstreamtest.Registry) func() { reg.Stop(); return reg.Start },
		"reset": func(reg *upstreamtest.Registry) func() {
			return reg.Fault(upstreamtest.Match{}, upstreamtest.ResetConnection())
		},
		"garbage": func(reg *upstreamtest.Registry) func() { return reg.Fault(upstreamtest.Match{}, garbage()) },
		"500": func(reg *upstreamtest.Registry) func() {
			return reg.Fault(upstreamtest.Match{}, upstreamtest.Status(500, nil))
		},
		"503": func(reg *upstreamtest.Registry) func() {
			return reg.Fault(upstreamtest.Match{}, upstreamtest.Status(503, nil))
		},
	}
	for name, fail := range tests {
		for _, session := range []string{"new", "made"} {
			t.Run(name+", handshake "+session, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					reg, c := startClient(t, upstream.Config{})
					r := repository(t, c)
					if session == "made" {
						ask(t, r, "get manifest")
						time.Sleep(time.Minute)
					}
					remove := fail(reg)
					for range 5 {
						if e := wantError(t, questions["get manifest"](t.Context(), r), asStatus(name)); e.Header.Get("Retry-After") != "" {
							t.Errorf("got %v before the fifth failure", e)
						}
					}
					reg.Reset()
					for range 20 { // of 5 s and the 0.3 s that a probe takes
						wantRefusedAtOnce(t, r, false, 5*time.Second)
						time.Sleep(5 * time.Second)
						questions["get manifest"](t.Context(), r) // the probe
					}
					if n := len(reg.Requests()); n > 20*4 {
						t.Errorf("got %d requests by 20 probes", n)
					}
					remove()
					time.Sleep(5 * time.Second)
					askAll(t, r)
					askAll(t, other(t, c))
				})
			})
		}
	}
}

func asStatus(name string) int {
	return map[string]int{"500": 500, "503": 503}[name]
}

// A herd that meets a hiccup is not a row of failures.
func TestHerdIsOneFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg, c := startClient(t, upstream.Config{})
		r := repository(t, c)
		remove := reg.Fault(upstreamtest.Match{}, upstreamtest.Status(503, nil))
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() { questions["get blob"](t.Context(), r) })
		}
		wg.Wait()
		remove()
		askAll(t, r)
	})
}

// One thing that is broken takes nothing from others.
func TestOneBrokenThingIsNotTheUpstream(t *testing.T) {
	faults := map[string]upstreamtest.Fault{
		"500":   upstreamtest.Status(500, nil),
		"504":   upstreamtest.Status(504, nil),
		"stall": upstreamtest.StallHeaders(),
		"reset": upstreamtest.ResetConnection(),
	}
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				reg, c := startClient(t, upstream.Config{})
				ask(t, other(t, c), "head manifest")
				reg.Fault(upstreamtest.Match{Path: repoName + "/blobs/"}, fault)
				ctx, cancel := context.WithCancel(t.Context())
				var wg sync.WaitGroup
				wg.Go(func() { // somebody else is served all the time
					for ctx.Err() == nil {
						ask(t, other(t, c), "head manifest")
						time.Sleep(50 * time.Millisecond)
					}
				})
				for range 20 {
					questions["get blob"](t.Context(), repository(t, c))
					time.Sleep(10 * time.Millisecond)
				}
				if p := c.Stats().Places[0]; p.Open || p.Trips != 0 || p.Held != 1 {
					t.Errorf("got %+v, want that only the repository is held", p)
				}
				if n := reg.Count("GET", "/blobs/"); n > 20 {
					t.Errorf("got %d requests for what is broken", n)
				}
				cancel()
				wg.Wait()
			})
		})
	}
}

// A 5xx about one repository is not held against others, even if nobody asks for
// anything else meanwhile.
func TestServerErrorsOfOneRepositoryStayThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg, c := startClient(t, upstream.Config{})
		reg.Fault(upstreamtest.Match{Path: repoName + "/manifests/"}, upstreamtest.Status(500, nil))
		for range 20 {
			questions["get manifest"](t.Context(), repository(t, c))
		}
		askAll(t, other(t, c))
	})
}

// Where blobs are kept may be silent while the registry is not.
func TestSilentRedirectTarget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg, cdn := upstreamtest.NewPipe(t), upstreamtest.NewPipe(t)
		fill(reg)
		cdn.Fault(upstreamtest.Match{}, upstreamtest.StallHeaders())
		reg.Fault(upstreamtest.Match{Path: "/blobs/"}, upstreamtest.Redirect("http://cdn.example/x"))
		hosts := map[string]*upstreamtest.Registry{"upstream.localhost:80": reg, "cdn.example:80": cdn}
		c := newClient(t, reg.URL, upstream.Config{Transport: network(t, hosts)})
		questions["get blob"](t.Context(), repository(t, c))
		wantRefusedAtOnce(t, repository(t, c), true, 5*time.Second)
		if p := c.Stats().Places[0]; p.Open || p.Held != 1 {
			t.Errorf("got %+v, want that only the repository is held", p)
		}
		time.Sleep(5 * time.Second)
		ask(t, repository(t, c), "get manifest")
	})
}

func TestAnswersOfHealthyUpstream(t *testing.T) {
	for _, status := range []int{400, 401, 403, 404, 418} {
		synctest.Test(t, func(t *testing.T) {
			reg, c := startClient(t, upstream.Config{})
			remove := reg.Fault(upstreamtest.Match{Path: "/" + repoName + "/"}, upstreamtest.Status(status, nil))
			for range 20 {
				wantError(t, questions["get manifest"](t.Context(), repository(t, c)), status)
			}
			remove()
			askAll(t, repository(t, c))
		})
	}
}

// An answer in between begins the row anew.
func TestRowIsBroken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg, c := startClient(t, upstream.Config{})
		r := repository(t, c)
		for range 5 {
			remove := reg.Fault(upstreamtest.Match{}, upstreamtest.ResetConnection())
			for range 4 {
				questions["get manifest"](t.Context(), r)
			}
			remove()
			ask(t, r, "get manifest")
			time.Sleep(time.Second)
		}
		if p := c.Stats().Places[0]; p.Trips != 0 {
			t.Errorf("got %+v, want it never open", p)
		}
	})
}

// What the breaker says is why it is open, and gives nothing away.
func TestRefusalTellsWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg, r := startPipe(t, upstream.Config{})
		reg.Fault(upstreamtest.Match{Path: "/manifests/"}, upstreamtest.Status(http.StatusGatewayTimeout, nil))
		questions["get manifest"](t.Context(), r)
		err := questions["get manifest"](t.Context(), r)
		e := wantError(t, err, 0)
		if want := "get manifest of " + host + "/" + repoName + ": not asked for another 5s: no answer in time"; err.Error() != want || !e.Timeout() {
			t.Errorf("got %q, want %q", err, want)
		}
	})
}
