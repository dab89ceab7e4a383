package handler_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"larder/handler/upstream/upstreamtest"
)

// inPart is a fault for requests for a part that does not begin with the blob.
func inPart(fault upstreamtest.Fault) upstreamtest.Fault {
	return func(next http.Handler) http.Handler {
		stalled := fault(next)
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if rng := r.Header.Get("Range"); rng != "" && !strings.HasPrefix(rng, "bytes=0-") {
				stalled.ServeHTTP(w, r)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
}

// TestUpstreamStalls has upstream fall silent at some point of a blob. Clients
// get a clear error before they give up themselves, or all of it after a pause;
// the next pull works, and so does one with upstream gone.
func TestUpstreamStalls(t *testing.T) {
	const usual, large = 300 << 10, 40 << 20
	tests := map[string]struct {
		size   int64
		times  int // 0: always
		fault  upstreamtest.Fault
		status int
	}{
		"before an answer, once":         {usual, 1, upstreamtest.StallHeaders(), http.StatusGatewayTimeout},
		"before an answer, always":       {usual, 0, upstreamtest.StallHeaders(), http.StatusGatewayTimeout},
		"before the first byte, once":    {usual, 1, upstreamtest.StallAfter(0), http.StatusGatewayTimeout},
		"before the first byte, always":  {usual, 0, upstreamtest.StallAfter(0), http.StatusGatewayTimeout},
		"behind the first byte":          {usual, 1, upstreamtest.StallAfter(1), http.StatusOK},
		"in the middle":                  {usual, 1, upstreamtest.StallAfter(usual / 2), http.StatusOK},
		"in the middle, again and again": {usual, 0, upstreamtest.StallAfter(usual / 2), http.StatusOK},
		"before the last byte":           {usual, 1, upstreamtest.StallAfter(usual - 1), http.StatusOK},
		"between parts":                  {large, 0, inPart(upstreamtest.Latency(15 * time.Second)), http.StatusOK},
		"in a part":                      {large, 0, inPart(upstreamtest.StallAfter(6 << 20)), http.StatusOK},
	}
	for name, test := range tests {
		for _, clients := range []int{1, 3} {
			t.Run(fmt.Sprintf("%s, %d clients", name, clients), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					l := newLarder(t, setup{pipe: true, parts: 4})
					data := random(t, 1, test.size)
					img := l.hub.AddImage("a/b", "1", data)
					path := blobPath("a/b", img.Layers[0].Digest)
					l.record(t.Context(), "GET", manifestPath("a/b", "1"))
					over := l.hub.Fault(upstreamtest.Match{Path: path, Times: test.times}, test.fault)
					began := time.Now()
					var all sync.WaitGroup
					for range clients {
						all.Go(func() {
							a := l.record(t.Context(), "GET", path)
							if test.status == http.StatusOK {
								a.wantBody(t, test.status, data)
								return
							}
							a.wantError(t, test.status, "UNAVAILABLE")
							if took := time.Since(began); took > 25*time.Second {
								t.Errorf("an error after %v; containerd gives up after 30 s", took)
							}
						})
					}
					all.Wait()
					over()
					time.Sleep(time.Minute) // what was given up is over
					l.record(t.Context(), "GET", path).wantBody(t, http.StatusOK, data)
					l.hub.Stop()
					l.record(t.Context(), "GET", path).wantBody(t, http.StatusOK, data)
				})
			})
		}
	}
}
