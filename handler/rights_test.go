package handler_test

import (
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"larder/handler/upstream/upstreamtest"
)

// Bytes are shared between repositories, rights are not: what is cached for
// theirs is asked for through ours, which has it or not.

const theirs, ours = "team/theirs", "team/ours"

// cached is a larder that has served an image from theirs.
func cached(t *testing.T) (*larder, upstreamtest.Image, []byte) {
	t.Helper()
	l := newLarder(t, setup{})
	l.run(t)
	data := random(t, 1, 1<<20)
	img := l.hub.AddImage(theirs, "1", data)
	wantManifest(t, l.ask(t, "GET", manifestPath(theirs, "1")), ociManifest, img.Body, "miss")
	wantBlob(t, l.ask(t, "GET", blobPath(theirs, img.Layers[0].Digest)), data, "miss")
	l.settle(t)
	l.hub.AddBlob(ours, []byte("something else"))
	l.ghcr.AddBlob(theirs, []byte("something else"))
	l.hub.Reset()
	return l, img, data
}

func TestCachedBlobIsNotForRepositoriesWithoutIt(t *testing.T) {
	tests := map[string]struct {
		repository string
		fault      upstreamtest.Fault
		status     int
		code       string
	}{
		"not there":                 {ours, nil, 404, "BLOB_UNKNOWN"},
		"no such repository":        {"team/nothing", nil, 404, "BLOB_UNKNOWN"},
		"not there, other upstream": {"ghcr.io/" + theirs, nil, 404, "BLOB_UNKNOWN"},
		"denied":                    {ours, upstreamtest.Status(403, nil), 403, "DENIED"},
		"unauthorized":              {ours, upstreamtest.Status(401, nil), 403, "DENIED"},
		"upstream broken":           {ours, upstreamtest.Status(500, nil), 502, "UNAVAILABLE"},
		"upstream limits":           {ours, upstreamtest.Status(429, nil), 429, "TOOMANYREQUESTS"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, img, _ := cached(t)
			if test.fault != nil {
				l.hub.Fault(upstreamtest.Match{Path: ours}, test.fault)
			}
			for range 2 { // a no is not taken for a yes later
				path := blobPath(test.repository, img.Layers[0].Digest)
				l.ask(t, "GET", path).wantError(t, test.status, test.code)
				l.ask(t, "GET", path, "Range: bytes=0-9").wantError(t, test.status, test.code)
				if head := l.ask(t, "HEAD", path); head.StatusCode != test.status || head.Header.Get("ETag") != "" {
					t.Errorf("HEAD has status %d, want %d and nothing of the blob", head.StatusCode, test.status)
				}
			}
		})
	}
}

func TestCachedBlobIsForRepositoriesThatHaveIt(t *testing.T) {
	for _, method := range []string{"GET", "HEAD"} {
		l, img, data := cached(t)
		d := l.hub.AddBlob(ours, data)
		path := blobPath(ours, img.Layers[0].Digest)
		wantBlob(t, l.ask(t, method, path).withBody(data), data, "hit")
		if got := methods(l.hub, "/blobs/"); fmt.Sprint(got) != "[HEAD]" {
			t.Errorf("upstream was asked %v, want one HEAD", got)
		}
		l.hub.Stop() // the answer is remembered
		wantBlob(t, l.ask(t, "GET", blobPath(ours, d)), data, "hit")
	}
}

func TestManifestThatNamesABlobIsTheRightToIt(t *testing.T) {
	l, img, data := cached(t)
	l.hub.AddImage(ours, "1", data)
	wantManifest(t, l.ask(t, "GET", manifestPath(ours, "1")), ociManifest, img.Body, "revalidated")
	l.hub.Reset()
	wantBlob(t, l.ask(t, "GET", blobPath(ours, img.Layers[0].Digest)), data, "hit")
	if got := methods(l.hub, ""); len(got) != 0 {
		t.Errorf("upstream was asked %v, want nothing", got)
	}
}

func TestUnknownRightAndUpstreamDown(t *testing.T) {
	l, img, data := cached(t)
	l.hub.Stop()
	wantBlob(t, l.ask(t, "GET", blobPath(theirs, img.Layers[0].Digest)), data, "hit")
	wantManifest(t, l.ask(t, "GET", manifestPath(theirs, img.Manifest.String())), ociManifest, img.Body, "hit")
	for _, path := range []string{blobPath(ours, img.Layers[0].Digest), manifestPath(ours, img.Manifest.String())} {
		l.ask(t, "GET", path).wantError(t, http.StatusBadGateway, "UNAVAILABLE")
	}
}

func TestCachedManifestIsNotForRepositoriesWithoutIt(t *testing.T) {
	l, img, _ := cached(t)
	path := manifestPath(ours, img.Manifest.String())
	for range 2 {
		l.ask(t, "GET", path).wantError(t, http.StatusNotFound, "MANIFEST_UNKNOWN")
	}
	l.hub.AddManifest(ours, "", ociManifest, img.Body)
	wantManifest(t, l.ask(t, "GET", path), ociManifest, img.Body, "revalidated")
	l.hub.Stop()
	wantManifest(t, l.ask(t, "GET", path), ociManifest, img.Body, "hit")
	l.hub.Start()
	l.hub.Fault(upstreamtest.Match{Path: "team/third"}, upstreamtest.Status(403, nil))
	l.ask(t, "GET", manifestPath("team/third", img.Manifest.String())).wantError(t, http.StatusForbidden, "DENIED")
}

// A blob on its way for theirs is joined by ours.
func TestJoinedFillGivesNoRight(t *testing.T) {
	for _, has := range []bool{true, false} {
		l := newLarder(t, setup{})
		data := random(t, 1, 1<<20)
		d := l.hub.AddBlob(theirs, data)
		l.hub.AddBlob(ours, []byte("something else"))
		if has {
			l.hub.AddBlob(ours, data)
		}
		gate := make(chan struct{})
		l.hub.Fault(upstreamtest.Match{Method: "GET", Path: theirs}, upstreamtest.GateAfter(1<<19, gate))
		first := l.dial(t)
		send(t, first, "GET", blobPath(theirs, d))
		await(t, "the first byte", func() bool { return l.blobs.Stats().Misses == 1 })
		second := l.dial(t)
		send(t, second, "GET", blobPath(ours, d))
		l.arrived(t, "HEAD", ours, 1)
		if !has {
			read(t, second, "GET").wantError(t, http.StatusNotFound, "BLOB_UNKNOWN")
		}
		close(gate)
		wantBlob(t, read(t, first, "GET"), data, "miss")
		if has {
			wantBlob(t, read(t, second, "GET"), data, "join")
		}
		if n := l.hub.Count("GET", "/blobs/"); n != 1 {
			t.Errorf("%d GETs upstream, want 1", n)
		}
	}
}

// What upstream says to theirs means nothing for ours, however the two race.
func TestJoinedFillThatFailsDecidesNothing(t *testing.T) {
	l := newLarder(t, setup{})
	for i := range 30 {
		data := random(t, uint64(i), 1000)
		d := l.hub.AddBlob(ours, data)
		gate := make(chan struct{})
		heal := l.hub.Fault(upstreamtest.Match{Path: theirs}, upstreamtest.Gate(gate), upstreamtest.Status(403+i%2, nil))
		first, second := l.dial(t), l.dial(t)
		send(t, first, "GET", blobPath(theirs, d))
		l.arrived(t, "GET", theirs+"/blobs/", i+1)
		send(t, second, "GET", blobPath(ours, d))
		close(gate)
		if a := read(t, first, "GET"); a.StatusCode != 403+i%2 {
			t.Errorf("theirs got %d, want %d", a.StatusCode, 403+i%2)
		}
		read(t, second, "GET").wantBody(t, http.StatusOK, data)
		heal()
	}
}

func TestRightsThatAreOld(t *testing.T) {
	later := map[string]struct {
		does   func(l *larder, d digest.Digest)
		status int
	}{
		"still there":     {func(*larder, digest.Digest) {}, 200},
		"upstream down":   {func(l *larder, _ digest.Digest) { l.hub.Stop() }, 200},
		"upstream broken": {func(l *larder, _ digest.Digest) { l.hub.Fault(upstreamtest.Match{}, upstreamtest.Status(500, nil)) }, 200},
		"denied":          {func(l *larder, _ digest.Digest) { l.hub.Fault(upstreamtest.Match{}, upstreamtest.Status(403, nil)) }, 403},
		"deleted":         {func(l *larder, d digest.Digest) { l.hub.Delete(theirs, d.String()) }, 404},
	}
	for name, test := range later {
		for _, named := range []bool{true, false} { // by a manifest, or the blob alone
			t.Run(fmt.Sprintf("%s, named %v", name, named), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					l := newLarder(t, setup{pipe: true, ttl: time.Hour})
					img := l.hub.AddImage(theirs, "1", random(t, 1, 1000))
					d := img.Layers[0].Digest
					if named {
						l.record(t.Context(), "GET", manifestPath(theirs, "1"))
					}
					l.record(t.Context(), "GET", blobPath(theirs, d))
					synctest.Wait()
					time.Sleep(2 * time.Hour)
					l.hub.Reset()
					test.does(l, d)
					for _, method := range []string{"GET", "HEAD"} {
						if a := l.record(t.Context(), method, blobPath(theirs, d)); a.StatusCode != test.status {
							t.Errorf("%s: status %d, want %d", method, a.StatusCode, test.status)
						}
					}
					if name == "still there" && l.hub.Count("HEAD", "/blobs/") != 1 {
						t.Errorf("upstream was asked %v, want one HEAD", methods(l.hub, ""))
					}
				})
			})
		}
	}
}
