package handler_test

import (
	"net/http"
	"testing"

	"larder/handler/upstream/upstreamtest"
)

// routes are requests of every kind, those that are wrong included, and the
// status that each has when the image is there.
func routes(img upstreamtest.Image) map[string]int {
	d, layer := img.Manifest.String(), img.Layers[0].Digest
	return map[string]int{
		"/v2/": 200, "/v2": 200, "/": 404, "/metrics": 404, "/v2/_catalog": 404, "/v1/": 404, "/v2/a/b/uploads/x": 404,
		manifestPath("a/b", "1"):                200,
		manifestPath("a/b", "2"):                404,
		manifestPath("a/b", d):                  200,
		manifestPath("a/b", nobodys.String()):   404,
		manifestPath("a/b", "sha256:00"):        400,
		manifestPath("a/b", ".."):               400,
		manifestPath("A/b", "1"):                400,
		manifestPath("quay.io/a/b", "1"):        404,
		manifestPath("a/b", "1") + "?ns=x&ns=y": 400,
		blobPath("a/b", layer):                  200,
		blobPath("a/b", nobodys):                404,
		"/v2/a/b/blobs/latest":                  400,
		"/v2/a/b/tags/list":                     200,
		"/v2/a/b/tags/list?n=1":                 200,
		"/v2/a/b/tags/list?n=x":                 400,
		"/v2/a/c/tags/list":                     404,
		"/v2/a/b/referrers/" + d:                404,
		"/v2/a/b/referrers/latest":              400,
		"/extensions/v2/a/b/signatures/" + d:    404,
	}
}

func TestHeadIsGetWithoutABody(t *testing.T) {
	l := newLarder(t, setup{})
	img := l.hub.AddImage("a/b", "1", random(t, 1, 100_000))
	for path, status := range routes(img) {
		t.Run(path, func(t *testing.T) {
			l.ask(t, "GET", path)
			l.settle(t)
			get := l.ask(t, "GET", path)
			if get.StatusCode != status {
				t.Errorf("GET has status %d, want %d", get.StatusCode, status)
			}
			wantParity(t, get, l.ask(t, "HEAD", path))
		})
	}
}

func TestEveryRouteNeedsAPassword(t *testing.T) {
	l := newLarder(t, setup{locked: true})
	img := l.hub.AddImage("a/b", "1", random(t, 1, 1000))
	for path := range routes(img) {
		for _, method := range []string{"GET", "HEAD", "PUT", "DELETE"} {
			a := l.ask(t, method, path)
			if a.StatusCode != http.StatusUnauthorized || a.Header.Get("WWW-Authenticate") == "" {
				t.Errorf("%s %s: %d, want 401", method, path, a.StatusCode)
			}
			if method == "GET" {
				a.wantError(t, http.StatusUnauthorized, "UNAUTHORIZED")
				wantParity(t, a, l.ask(t, "HEAD", path))
			}
		}
	}
	if n := l.dialled(); n > 0 {
		t.Errorf("%d requests were made for who is nobody", n)
	}
}
