package handler_test

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"larder/handler/upstream/upstreamtest"
)

// loginPage answers everything with a page that is no registry's, as captive
// portals and broken proxies do.
func loginPage(http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = io.WriteString(w, "<html>please log in</html>")
	})
}

func TestLoginPageIsNoManifestAndReplacesNone(t *testing.T) {
	l := newLarder(t, setup{})
	img := l.hub.AddImage("library/a", "1", random(t, 1, 1000))
	l.ask(t, "GET", manifestPath("library/a", "1")).wantBody(t, http.StatusOK, img.Body)
	remove := l.hub.Fault(upstreamtest.Match{}, loginPage)
	stale := l.ask(t, "GET", manifestPath("library/a", "1"))
	stale.wantBody(t, http.StatusOK, img.Body)
	if got := stale.Header.Get("Cache-Status"); !strings.Contains(got, "stale") {
		t.Errorf("Cache-Status %q, want that it is stale", got)
	}
	if a := l.ask(t, "GET", manifestPath("library/b", "1")); a.StatusCode != http.StatusBadGateway {
		t.Errorf("unknown tag: %d %q, want 502", a.StatusCode, a.body)
	}
	remove()
	l.hub.Stop()
	l.ask(t, "GET", manifestPath("library/a", "1")).wantBody(t, http.StatusOK, img.Body)
}

func TestMediaTypeIsEachUpstreamsOwnToSay(t *testing.T) {
	l := newLarder(t, setup{})
	img := l.hub.AddImage("library/a", "1", random(t, 1, 1000))
	l.ghcr.AddManifest("evil/x", "1", "application/x", img.Body)
	l.ask(t, "GET", manifestPath("ghcr.io/evil/x", img.Manifest.String()))
	for _, reference := range []string{"1", img.Manifest.String()} {
		a := l.ask(t, "GET", manifestPath("library/a", reference))
		if got := a.Header.Get("Content-Type"); a.StatusCode != http.StatusOK || got != ociManifest {
			t.Errorf("%s: %d of type %q, want %q", reference, a.StatusCode, got, ociManifest)
		}
	}
}

// What is in the cache for one repository stays what its upstream says that it
// is, whatever another registry says of the same bytes.
func TestAnotherRegistryCannotChangeTheMediaTypeOfWhatIsCached(t *testing.T) {
	l := newLarder(t, setup{tagTTL: time.Hour})
	body := []byte(`{"schemaVersion":2}`) // that does not say itself what it is
	l.hub.AddManifest("library/a", "1", ociManifest, body)
	l.ghcr.AddManifest("evil/x", "1", "application/x", body)
	references := []string{"1", digest.FromBytes(body).String()}
	for range 2 {
		for _, reference := range references {
			a := l.ask(t, "GET", manifestPath("library/a", reference))
			if got := a.Header.Get("Content-Type"); a.StatusCode != http.StatusOK || got != ociManifest {
				t.Errorf("%s: %d of type %q, want %q", reference, a.StatusCode, got, ociManifest)
			}
		}
		l.ask(t, "GET", manifestPath("ghcr.io/evil/x", "1")).want(t, "Content-Type", "application/x")
	}
	l.hub.Stop()
	for _, reference := range references { // what is on disk is not what docker.io has said
		if a := l.ask(t, "GET", manifestPath("library/a", reference)); a.StatusCode != http.StatusBadGateway {
			t.Errorf("%s in an outage: %d of type %q, want 502", reference, a.StatusCode, a.Header.Get("Content-Type"))
		}
	}
}

func TestBlobThatWasRefusedIsNotServedInAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLarder(t, setup{ttl: time.Hour, pipe: true})
		img := l.hub.AddImage("library/a", "1", random(t, 1, 100000))
		blob := blobPath("library/a", img.Layers[0].Digest)
		for _, path := range []string{manifestPath("library/a", "1"), blob} {
			if a := l.record(t.Context(), "GET", path); a.StatusCode != http.StatusOK {
				t.Fatalf("%s: %d", path, a.StatusCode)
			}
		}
		time.Sleep(2 * time.Hour)
		remove := l.hub.Fault(upstreamtest.Match{}, upstreamtest.Status(403, nil))
		if a := l.record(t.Context(), "GET", blob); a.StatusCode != http.StatusForbidden {
			t.Errorf("revoked: %d, want 403", a.StatusCode)
		}
		remove()
		remove = l.hub.Fault(upstreamtest.Match{}, upstreamtest.Status(503, nil))
		for _, method := range []string{"GET", "HEAD"} {
			if a := l.record(t.Context(), method, blob); a.StatusCode != http.StatusBadGateway {
				t.Errorf("revoked, and then an outage: %s %d, want 502", method, a.StatusCode)
			}
		}
		remove()
		if a := l.record(t.Context(), "GET", blob); a.StatusCode != http.StatusOK {
			t.Errorf("allowed again: %d, want 200", a.StatusCode)
		}
	})
}

// Without a length and without chunks the end of a connection is the end of the
// blob, whatever broke it.
func TestHTTP10ClientGetsNoBlobOfUnknownSize(t *testing.T) {
	l := newLarder(t, setup{})
	data := random(t, 3, 300000)
	d := l.hub.AddBlob("library/a", data)
	l.hub.Fault(upstreamtest.Match{Path: "/blobs/"}, upstreamtest.NoContentLength(), upstreamtest.FlipByte(200000))
	conn := l.dial(t)
	defer conn.Close()
	fmt.Fprintf(conn, "GET %s HTTP/1.0\r\n\r\n", blobPath("library/a", d))
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	// If it has all arrived by then, its size is known, and what is missing shows.
	if body, err := io.ReadAll(res.Body); res.StatusCode < 400 && err == nil {
		t.Errorf("%s with %d bytes that look like all", res.Status, len(body))
	}
}

// net/http waits for a request's body before it answers.
func TestRequestBodyThatNeverComesHoldsNoConnection(t *testing.T) {
	for _, request := range []string{
		"POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n",
		"GET /v2/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
	} {
		l := newLarder(t, setup{})
		conn := l.dial(t)
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		_, _ = io.WriteString(conn, request)
		start := time.Now()
		_, _ = io.Copy(io.Discard, conn)
		if took := time.Since(start); took > 15*time.Second {
			t.Errorf("%.4s: the connection was open for %v", request, took)
		}
	}
}

func TestSlowHeadAndSilentGetAreOneWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLarder(t, setup{pipe: true})
		l.hub.AddImage("library/a", "1", random(t, 1, 1000))
		l.hub.Fault(upstreamtest.Match{Method: "HEAD", Path: "/manifests/"}, upstreamtest.Latency(18*time.Second))
		l.hub.Fault(upstreamtest.Match{Method: "GET", Path: "/manifests/"}, upstreamtest.StallHeaders())
		start := time.Now()
		a := l.record(t.Context(), "GET", manifestPath("library/a", "1"))
		if took := time.Since(start); a.StatusCode != http.StatusGatewayTimeout || took > 25*time.Second {
			t.Errorf("%d after %v, want 504 within 25s", a.StatusCode, took)
		}
	})
}
