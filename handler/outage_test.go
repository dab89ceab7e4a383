package handler_test

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"larder/handler/upstream/upstreamtest"
)

// wantStale is that a known tag is answered with what it was.
func (l *larder) wantStale(t *testing.T, path string, body []byte) {
	t.Helper()
	began := time.Now()
	a := l.record(t.Context(), "GET", path)
	a.wantBody(t, http.StatusOK, body)
	if a.Header.Get("Warning") == "" || time.Since(began) != 0 {
		t.Errorf("got Warning %q after %v, want one at once", a.Header.Get("Warning"), time.Since(began))
	}
}

func TestRateLimitIsRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLarder(t, setup{pipe: true})
		img := l.hub.AddImage("a/b", "1", random(t, 1, 1000), random(t, 2, 1000))
		known, layer := manifestPath("a/b", "1"), blobPath("a/b", img.Layers[0].Digest)
		l.record(t.Context(), "GET", known).wantBody(t, http.StatusOK, img.Body)
		l.record(t.Context(), "GET", layer).wantBody(t, http.StatusOK, random(t, 1, 1000))

		remove := l.hub.Fault(upstreamtest.Match{Path: "/a/b/"}, upstreamtest.Status(429, http.Header{"Retry-After": {"100"}}))
		l.record(t.Context(), "GET", manifestPath("a/b", "2")).wantError(t, http.StatusTooManyRequests, "TOOMANYREQUESTS")
		remove()
		l.hub.Reset()
		time.Sleep(40 * time.Second)

		l.wantStale(t, known, img.Body)
		l.record(t.Context(), "GET", layer).wantBody(t, http.StatusOK, random(t, 1, 1000))
		for _, path := range []string{manifestPath("a/b", "2"), blobPath("a/b", img.Layers[1].Digest), "/v2/a/b/tags/list"} {
			a := l.record(t.Context(), "GET", path)
			a.wantError(t, http.StatusTooManyRequests, "TOOMANYREQUESTS")
			a.want(t, "Retry-After", "60")
		}
		if n := len(l.hub.Requests()); n != 0 {
			t.Errorf("got %d requests upstream, want none", n)
		}
		time.Sleep(time.Minute)
		l.record(t.Context(), "GET", known).want(t, "Warning", "")
	})
}

// What is left of a rate limit is kept for what is not cached.
func TestFloorOfRateLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLarder(t, setup{pipe: true, floor: 5})
		img := l.hub.AddImage("a/b", "1", random(t, 1, 1000))
		next := l.hub.AddImage("a/b", "2", random(t, 2, 1000))
		l.hub.Fault(upstreamtest.Match{}, upstreamtest.SetHeader("ratelimit-remaining", "4;w=21600"))
		known := manifestPath("a/b", "1")
		l.record(t.Context(), "GET", known).wantBody(t, http.StatusOK, img.Body)
		l.hub.Reset()
		l.wantStale(t, known, img.Body)
		if n := len(l.hub.Requests()); n != 0 {
			t.Errorf("got %d requests upstream, want none", n)
		}
		l.record(t.Context(), "GET", manifestPath("a/b", "2")).wantBody(t, http.StatusOK, next.Body)
		l.record(t.Context(), "GET", blobPath("a/b", next.Layers[0].Digest)).wantBody(t, http.StatusOK, random(t, 2, 1000))

		time.Sleep(6 * time.Hour)
		l.hub.Reset()
		l.record(t.Context(), "GET", known).want(t, "Warning", "")
		if n := l.hub.Count("HEAD", "/manifests/"); n != 1 {
			t.Errorf("got %d HEADs when the window has passed, want one", n)
		}
	})
}

func TestSilentUpstreamCostsOneTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLarder(t, setup{pipe: true})
		img := l.hub.AddImage("a/b", "1", random(t, 1, 1000))
		known := manifestPath("a/b", "1")
		l.record(t.Context(), "GET", known).wantBody(t, http.StatusOK, img.Body)
		time.Sleep(time.Minute)
		remove := l.hub.Fault(upstreamtest.Match{}, upstreamtest.StallHeaders())
		began := time.Now()
		l.record(t.Context(), "GET", known).wantBody(t, http.StatusOK, img.Body)
		if took := time.Since(began); took != 20*time.Second {
			t.Errorf("took %v, want 20s", took)
		}
		l.hub.Reset()
		l.wantStale(t, known, img.Body)
		for _, path := range []string{manifestPath("x/y", "1"), blobPath("a/b", nobodys), "/v2/a/b/tags/list"} {
			a := l.record(t.Context(), "GET", path)
			a.wantError(t, http.StatusGatewayTimeout, "UNAVAILABLE")
			a.want(t, "Retry-After", "5")
		}
		if n := len(l.hub.Requests()); n != 0 {
			t.Errorf("got %d requests upstream, want none", n)
		}
		remove()
		time.Sleep(5 * time.Second)
		l.record(t.Context(), "GET", known).want(t, "Warning", "")
	})
}

func TestRefusingUpstreamIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLarder(t, setup{pipe: true})
		l.hub.Stop()
		for range 5 {
			a := l.record(t.Context(), "GET", manifestPath("x/y", "1"))
			a.wantError(t, http.StatusBadGateway, "UNAVAILABLE")
			a.want(t, "Retry-After", "")
		}
		dialled := l.dialled()
		a := l.record(t.Context(), "GET", manifestPath("a/b", "1"))
		a.wantError(t, http.StatusBadGateway, "UNAVAILABLE")
		a.want(t, "Retry-After", "5")
		if l.dialled() != dialled {
			t.Error("upstream was asked")
		}
		l.hub.Start()
		img := l.hub.AddImage("a/b", "1", random(t, 1, 1000))
		time.Sleep(5 * time.Second)
		l.record(t.Context(), "GET", manifestPath("a/b", "1")).wantBody(t, http.StatusOK, img.Body)
	})
}
