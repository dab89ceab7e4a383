package main

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

	"larder/handler/upstream/upstreamtest"
)

// large is a blob that is fetched in several parts at once.
const large = 40 << 20

// TestOnePartIsSpoiled has upstream do wrong in the last part of a large blob,
// when most of it has been shown.
func TestOnePartIsSpoiled(t *testing.T) {
	t.Parallel()
	const at = 36 << 20
	tests := map[string]struct {
		times int64 // 0: always
		fault upstreamtest.Fault
		want  verdict
	}{
		"wrong byte":          {0, upstreamtest.FlipByte(at), refused},
		"wrong byte, once":    {1, upstreamtest.FlipByte(at), refused},
		"cut":                 {1, upstreamtest.CutAfter(1 << 20), served},
		"reset":               {1, upstreamtest.ResetAfter(1 << 20), served},
		"no answer":           {1, upstreamtest.ResetConnection(), served},
		"500":                 {1, upstreamtest.Status(http.StatusInternalServerError, nil), served},
		"no range":            {1, upstreamtest.IgnoreRange(), served},
		"another range":       {1, anotherRange, served},
		"wrong Content-Range": {1, upstreamtest.WrongContentRange(), served},
		"another size":        {0, upstreamtest.WrongTotal(1 << 20), refused},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, []string{"LARDER_TAG_TTL=1h"}, large)
			w.notFooled(t, appTag, "", w.ask(appTag, ""))
			over := w.hub.Fault(upstreamtest.Match{Path: w.blob()}, inRange(at, test.times, test.fault))
			answers := w.crowd(2, w.blob(), "")
			over()
			w.notFooled(t, w.blob(), "", answers...)
			for _, a := range answers {
				if a.whole() != (test.want == served) {
					t.Errorf("got %v, want it %s", a, test.want)
				}
			}
			w.recovers(t)
		})
	}
}

// inRange is a fault for the first so many (0: all) who ask for a range with this
// byte in it.
func inRange(at, times int64, fault upstreamtest.Fault) upstreamtest.Fault {
	var suffered atomic.Int64
	return func(next http.Handler) http.Handler {
		spoiled := fault(next)
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			var first, last int64
			n, _ := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &first, &last)
			if n == 0 || at < first || n == 2 && last < at || times > 0 && suffered.Add(1) > times {
				next.ServeHTTP(w, r)
				return
			}
			spoiled.ServeHTTP(w, r)
		})
	}
}

// anotherRange sends what begins five bytes further on, and says so.
func anotherRange(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var first, last int64
		if n, _ := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &first, &last); n == 2 {
			r = r.Clone(r.Context())
			r.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", first+5, last))
		}
		next.ServeHTTP(w, r)
	})
}

// TestRedirectToAnotherHost has upstream keep its blobs somewhere else.
func TestRedirectToAnotherHost(t *testing.T) {
	t.Parallel()
	for _, hops := range []int{1, 3} {
		t.Run(fmt.Sprint(hops, " hops"), func(t *testing.T) {
			t.Parallel()
			w := prepareWorld(t, usual)
			w.hub.RequireBasic(username, password)
			w.larder = startLarder(t, nil, w.environ("LARDER_USERNAME="+username, "LARDER_PASSWORD="+password, "LARDER_TAG_TTL=1h")...)
			storage := upstreamtest.New(t)
			for d, content := range w.layers {
				if storage.AddBlob(appName, content) != d {
					t.Fatal("another digest")
				}
			}
			target := storage.URL + w.blob() + "?signature=secret"
			for range hops - 1 {
				storage.Fault(upstreamtest.Match{Path: "/blobs/", Times: 1}, upstreamtest.Redirect(target))
			}
			w.hub.Fault(upstreamtest.Match{Path: w.blob()}, upstreamtest.Redirect(target))
			w.pull(t, "by way of another host")
			requests := storage.Requests()
			if len(requests) < hops {
				t.Errorf("the other host got %d requests, want %d", len(requests), hops)
			}
			for _, r := range requests {
				for _, name := range []string{"Authorization", "Cookie", "Referer"} {
					if v := r.Header.Get(name); v != "" {
						t.Errorf("the other host got %s: %s", name, v)
					}
				}
			}
			storage.Stop()
			w.recovers(t)
		})
	}
}

// TestTokensThatAreNeverGoodEnough has upstream ask for a token, whatever it is
// shown.
func TestTokensThatAreNeverGoodEnough(t *testing.T) {
	t.Parallel()
	for name, path := range map[string]string{"manifest": "/manifests/", "blob": "/blobs/", "everything": "/v2/"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, nil, usual)
			w.hub.RequireBearer("", "", 0)
			if name == "blob" {
				w.ask(appTag, "")
			}
			challenge := fmt.Sprintf(`Bearer realm="%s/token",service="%s",error="invalid_token"`, w.hub.URL, strings.TrimPrefix(w.hub.URL, "http://"))
			over := w.hub.Fault(upstreamtest.Match{Path: path}, upstreamtest.Status(http.StatusUnauthorized, http.Header{"Www-Authenticate": {challenge}}))
			for _, path := range w.everything() {
				a := w.ask(path, "")
				w.notFooled(t, path, "", a)
				if a.status != http.StatusForbidden && !(name == "manifest" && a.status == http.StatusOK && strings.Contains(path, "/blobs/")) &&
					!(name == "blob" && a.status == http.StatusOK && strings.Contains(path, "/manifests/")) {
					t.Errorf("GET %s: got %v, want 403", path, a)
				}
			}
			if n := len(w.hub.Requests()); n > 40 {
				t.Errorf("upstream got %d requests", n)
			}
			over()
			w.recovers(t)
		})
	}
}

// TestBlobsWithOtherDigests are addressed by what is not SHA-256.
func TestBlobsWithOtherDigests(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]upstreamtest.Fault{
		"right": upstreamtest.FlipByte(1 << 30), "wrong byte": upstreamtest.FlipByte(7), "cut": upstreamtest.CutAfter(5),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, nil, small)
			d := w.hub.AddBlobWith(digest.SHA512, appName, seeded(t, 9, usual))
			path := appPath + "blobs/" + d.String()
			over := w.hub.Fault(upstreamtest.Match{Path: path, Times: 1}, fault)
			a := w.ask(path, "")
			over()
			w.notFooled(t, path, "", a)
			if a.whole() == (name == "wrong byte") {
				t.Errorf("got %v", a)
			}
			if a := w.next(t, path); a.status != http.StatusOK || w.lie(path, "", a) != nil {
				t.Errorf("after the fault: got %v, want all of it", a)
			}
			w.recovers(t)
		})
	}
}
