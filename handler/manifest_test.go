package handler_test

import (
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"larder/handler/upstream/upstreamtest"
)

// wantManifest checks a complete answer with everything that clients look at.
func wantManifest(t *testing.T, a answer, mediaType string, body []byte, outcome string) {
	t.Helper()
	d := digest.FromBytes(body)
	a.wantBody(t, http.StatusOK, body)
	if got := a.Header.Values("Content-Type"); len(got) != 1 || got[0] != mediaType {
		t.Errorf("Content-Type is %q, want %q", got, mediaType)
	}
	a.want(t, "Docker-Content-Digest", d.String())
	a.want(t, "ETag", `"`+d.String()+`"`)
	a.want(t, "Content-Encoding", "")
	wantOutcome(t, a, outcome)
	if outcome != "stale" {
		a.want(t, "Warning", "")
		a.want(t, "Age", "")
	}
}

func wantOutcome(t *testing.T, a answer, outcome string) {
	t.Helper()
	if got := a.Header.Get("Cache-Status"); !strings.HasPrefix(got, "larder; ") || !strings.HasSuffix(got, "; detail="+outcome) {
		t.Errorf("Cache-Status is %q, want %s", got, outcome)
	}
	wantGrammar(t, a)
}

const ociManifest = "application/vnd.oci.image.manifest.v1+json"

func TestManifestOutcomes(t *testing.T) {
	for name, s := range map[string]setup{"": {}, "TagTTL": {tagTTL: time.Hour}} {
		t.Run(name, func(t *testing.T) {
			l := newLarder(t, s)
			img := l.hub.AddImage("library/alpine", "3.20", random(t, 1, 1000))
			byTag, byDigest := manifestPath("alpine", "3.20"), manifestPath("alpine", img.Manifest.String())
			later, calls := "revalidated", []string{"GET", "HEAD"}
			if s.tagTTL > 0 {
				later = "hit"
			}
			wantManifest(t, l.ask(t, "GET", byTag), ociManifest, img.Body, "miss")
			if got := methods(l.hub, "/manifests/"); strings.Join(got, " ") != strings.Join(calls, " ") {
				t.Errorf("a cold tag asked upstream %v, want %v", got, calls)
			}
			l.hub.Reset()
			wantManifest(t, l.ask(t, "GET", byTag), ociManifest, img.Body, later)
			if got, want := methods(l.hub, ""), map[string]int{"revalidated": 1, "hit": 0}[later]; len(got) != want {
				t.Errorf("a warm tag asked upstream %v, want %d requests", got, want)
			}
			l.hub.Reset()
			wantManifest(t, l.ask(t, "GET", byDigest), ociManifest, img.Body, "hit")
			if got := methods(l.hub, ""); len(got) != 0 {
				t.Errorf("a warm digest asked upstream %v, want nothing", got)
			}
			if s.tagTTL > 0 {
				return
			}
			l.hub.Stop()
			stale := l.ask(t, "GET", byTag)
			wantManifest(t, stale, ociManifest, img.Body, "stale")
			wantWarned(t, stale, 0)
			if got := stale.Header.Get("Warning"); !strings.HasSuffix(got, `"`) {
				t.Errorf("Warning is %q", got)
			}
			wantManifest(t, l.ask(t, "GET", byDigest), ociManifest, img.Body, "hit")
			l.ask(t, "GET", manifestPath("alpine", "3.21")).wantError(t, http.StatusBadGateway, "UNAVAILABLE")
		})
	}
}

func TestColdManifestByDigestIsOneGet(t *testing.T) {
	l := newLarder(t, setup{})
	img := l.hub.AddImage("a/b", "", random(t, 1, 1000))
	wantManifest(t, l.ask(t, "HEAD", manifestPath("a/b", img.Manifest.String())).withBody(img.Body), ociManifest, img.Body, "miss")
	if got := methods(l.hub, "/manifests/"); len(got) != 1 || got[0] != "GET" {
		t.Errorf("upstream was asked %v, want one GET", got)
	}
}

// withBody lets a HEAD be checked like a GET.
func (a answer) withBody(body []byte) answer {
	if len(a.body) == 0 {
		a.body = body
	}
	return a
}

// Whatever a client accepts, the bytes and the type are upstream's.
func TestManifestsAreServedAsTheyAre(t *testing.T) {
	types := []string{
		ociManifest,
		"application/vnd.oci.image.index.v1+json",
		"application/vnd.oci.artifact.manifest.v1+json",
		"application/vnd.docker.distribution.manifest.v2+json",
		"application/vnd.docker.distribution.manifest.list.v2+json",
		"application/vnd.docker.distribution.manifest.v1+prettyjws",
		"application/x.something-new",
	}
	accepts := [][]string{
		nil,
		{"Accept: text/html"},
		{"Accept: application/vnd.docker.distribution.manifest.v2+json"},
		{"Accept: text/html", "Accept: " + ociManifest + ", */*", "Accept-Encoding: zstd;q=1.0, gzip;q=0.8, deflate;q=0.5"},
		{"Accept: */*", "Range: bytes=0-"}, // containerd 2.1.0 on everything
	}
	l := newLarder(t, setup{})
	for i, mediaType := range types {
		t.Run(mediaType, func(t *testing.T) {
			body := []byte(" {\r\n\t\"schemaVersion\" : 2, \"n\":" + strings.Repeat("1", i+1) + ", \"é\":\"\\u00e9\\u0000\"}\n\n")
			l.hub.AddManifest("a/b", "1", mediaType, body)
			for j, accept := range accepts {
				a := l.ask(t, "GET", manifestPath("a/b", "1"), accept...)
				if a.StatusCode == http.StatusPartialContent && strings.HasPrefix(a.Header.Get("Content-Range"), "bytes 0-") {
					a.StatusCode = http.StatusOK
				}
				outcome := "revalidated"
				if j == 0 {
					outcome = "miss"
				}
				wantManifest(t, a, mediaType, body, outcome)
			}
		})
	}
}

func TestManifestNotModified(t *testing.T) {
	l := newLarder(t, setup{})
	img := l.hub.AddImage("a/b", "1", random(t, 1, 1000))
	tag := `"` + img.Manifest.String() + `"`
	tests := map[string]struct {
		header string
		status int
	}{
		"same":          {tag, http.StatusNotModified},
		"one of a list": {`"x", ` + tag, http.StatusNotModified},
		"weak":          {"W/" + tag, http.StatusNotModified},
		"any":           {"*", http.StatusNotModified},
		"other":         {`"` + nobodys.String() + `"`, http.StatusOK},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			for _, reference := range []string{"1", img.Manifest.String()} {
				a := l.ask(t, "GET", manifestPath("a/b", reference), "If-None-Match: "+test.header)
				a.want(t, "ETag", tag)
				a.want(t, "Docker-Content-Digest", img.Manifest.String())
				if a.StatusCode != test.status || (len(a.body) > 0) != (test.status == http.StatusOK) {
					t.Errorf("status %d with %d bytes, want %d", a.StatusCode, len(a.body), test.status)
				}
			}
		})
	}
}

func TestRetagAndRollback(t *testing.T) {
	l := newLarder(t, setup{})
	first := l.hub.AddImage("a/b", "1", random(t, 1, 1000))
	wantManifest(t, l.ask(t, "GET", manifestPath("a/b", "1")), ociManifest, first.Body, "miss")
	second := l.hub.AddImage("a/b", "1", random(t, 2, 1000))
	wantManifest(t, l.ask(t, "GET", manifestPath("a/b", "1")), ociManifest, second.Body, "miss")
	l.hub.AddImage("a/b", "1", random(t, 1, 1000))
	wantManifest(t, l.ask(t, "GET", manifestPath("a/b", "1")), ociManifest, first.Body, "revalidated")
	l.hub.Stop()
	wantManifest(t, l.ask(t, "GET", manifestPath("a/b", "1")), ociManifest, first.Body, "stale")
}

func TestRevokedIsNotStale(t *testing.T) {
	for _, status := range []int{http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound} {
		t.Run(http.StatusText(status), func(t *testing.T) {
			l := newLarder(t, setup{})
			img := l.hub.AddImage("a/b", "1", random(t, 1, 1000))
			wantManifest(t, l.ask(t, "GET", manifestPath("a/b", "1")), ociManifest, img.Body, "miss")
			heal := l.hub.Fault(upstreamtest.Match{Path: "/manifests/"}, upstreamtest.Status(status, nil))
			want, code := http.StatusForbidden, "DENIED"
			if status == http.StatusNotFound {
				want, code = status, "MANIFEST_UNKNOWN"
			}
			l.ask(t, "GET", manifestPath("a/b", "1")).wantError(t, want, code)
			l.hub.Stop() // what was revoked is not stale afterwards either
			l.ask(t, "GET", manifestPath("a/b", "1")).wantError(t, http.StatusBadGateway, "UNAVAILABLE")
			heal()
			l.hub.Start()
			wantManifest(t, l.ask(t, "GET", manifestPath("a/b", "1")), ociManifest, img.Body, "revalidated")
		})
	}
}

func TestWrongManifestIsNotServed(t *testing.T) {
	l := newLarder(t, setup{})
	img := l.hub.AddImage("a/b", "1", random(t, 1, 1000))
	heal := l.hub.Fault(upstreamtest.Match{Method: "GET", Path: "/manifests/"}, upstreamtest.FlipByte(20))
	for _, reference := range []string{"1", img.Manifest.String()} {
		message := l.ask(t, "GET", manifestPath("a/b", reference)).wantError(t, http.StatusBadGateway, "UNAVAILABLE")
		if !strings.Contains(message, "docker.io") {
			t.Errorf("message %q does not name the upstream", message)
		}
	}
	if n := l.manifests.Stats().Entries; n != 0 {
		t.Errorf("%d manifests stored, want none", n)
	}
	heal()
	wantManifest(t, l.ask(t, "GET", manifestPath("a/b", "1")), ociManifest, img.Body, "miss")
}

func TestAgeOfAStaleManifest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLarder(t, setup{pipe: true, ttl: time.Hour})
		img := l.hub.AddImage("a/b", "1", random(t, 1, 1000))
		byTag, byDigest := manifestPath("a/b", "1"), manifestPath("a/b", img.Manifest.String())
		l.record(t.Context(), "GET", byTag)
		l.hub.Stop()
		time.Sleep(90 * time.Second)
		for _, path := range []string{byTag, byDigest} {
			if path == byDigest {
				time.Sleep(2 * time.Hour) // until the right to it has to be renewed
			}
			a := l.record(t.Context(), "GET", path)
			wantManifest(t, a, ociManifest, img.Body, "stale")
			age := map[string]string{byTag: "90", byDigest: "7290"}[path]
			// The questions that failed took time themselves.
			if got := a.Header.Get("Age"); len(got) != len(age) || got < age || !strings.Contains(a.Header.Get("Cache-Status"), "ttl=-"+got) {
				t.Errorf("Age is %q and Cache-Status %q, want %s", got, a.Header.Get("Cache-Status"), age)
			}
			if got := a.Header.Get("Warning"); !strings.Contains(got, map[string]string{byTag: "1m3", byDigest: "2h1m3"}[path]) {
				t.Errorf("Warning is %q, want it to say how old the answer is", got)
			}
		}
	})
}
