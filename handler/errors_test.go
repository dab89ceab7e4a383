package handler_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"larder/handler/upstream/upstreamtest"
)

// TestUpstreamErrors is DESIGN's table of what upstream said and what a client
// gets.
func TestUpstreamErrors(t *testing.T) {
	busy := http.Header{"Retry-After": {"30"}}
	challenge := http.Header{"Www-Authenticate": {`Bearer realm="https://auth.example/token",service="x"`}}
	faults := map[string]struct {
		fault  upstreamtest.Fault
		status int
		code   string // "": that of the kind
	}{
		"401":         {upstreamtest.Status(401, challenge), 403, "DENIED"},
		"403":         {upstreamtest.Status(403, challenge), 403, "DENIED"},
		"404":         {upstreamtest.Status(404, nil), 404, ""},
		"429":         {upstreamtest.Status(429, busy), 429, "TOOMANYREQUESTS"},
		"500":         {upstreamtest.Status(500, nil), 502, "UNAVAILABLE"},
		"503":         {upstreamtest.Status(503, busy), 502, "UNAVAILABLE"},
		"504":         {upstreamtest.Status(504, nil), 504, "UNAVAILABLE"},
		"418":         {upstreamtest.Status(418, nil), 502, "UNAVAILABLE"},
		"no answer":   {upstreamtest.ResetConnection(), 502, "UNAVAILABLE"},
		"compressed":  {upstreamtest.SetHeader("Content-Encoding", "gzip"), 502, "UNAVAILABLE"},
		"redirect":    {upstreamtest.Redirect("file:///etc/passwd"), 502, "UNAVAILABLE"},
		"endless hop": {upstreamtest.Redirect("/v2/a/b/blobs/again"), 502, "UNAVAILABLE"},
	}
	kinds := map[string]struct{ path, matches, code string }{
		"tag":       {manifestPath("a/b", "1"), "/manifests/", "MANIFEST_UNKNOWN"},
		"manifest":  {manifestPath("a/b", nobodys.String()), "/manifests/", "NAME_UNKNOWN"}, // upstreamtest's word
		"blob":      {blobPath("a/b", nobodys), "/blobs/", "BLOB_UNKNOWN"},
		"tags":      {"/v2/a/b/tags/list", "/tags/", "NAME_UNKNOWN"},
		"referrers": {"/v2/a/b/referrers/" + nobodys.String(), "/referrers/", "UNSUPPORTED"},

		"signatures": {"/extensions/v2/a/b/signatures/" + nobodys.String(), "/signatures/", "UNSUPPORTED"},
	}
	for fault, f := range faults {
		for kind, k := range kinds {
			if fault == "compressed" && kind != "blob" || fault == "endless hop" && kind != "blob" {
				continue
			}
			code := f.code
			if code == "" {
				code = k.code
			}
			t.Run(fault+" "+kind, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { // as some questions are put twice, with a pause
					l := newLarder(t, setup{pipe: true})
					l.hub.AddReader("a/b", nobodys, 15, strings.NewReader("nobody has this"))
					l.hub.EnableSignatures()
					l.hub.Fault(upstreamtest.Match{Path: k.matches}, f.fault)
					get := l.record(t.Context(), "GET", k.path)
					message := get.wantError(t, f.status, code)
					if !strings.Contains(message, "docker.io") || strings.Contains(message, l.hub.URL) {
						t.Errorf("message %q does not name the upstream as clients know it", message)
					}
					if after := get.Header.Get("Retry-After"); (after == "30") != (f.status == 429) {
						t.Errorf("Retry-After is %q", after)
					}
					if fault == "compressed" {
						return // a HEAD has no body that could be
					}
					head := l.record(t.Context(), "HEAD", k.path)
					if head.StatusCode != f.status || len(head.body) > 0 {
						t.Errorf("HEAD has status %d and %d bytes, want %d", head.StatusCode, len(head.body), f.status)
					}
					head.want(t, "WWW-Authenticate", "")
					synctest.Wait()
					if files := l.stored(t); len(files) > 0 {
						t.Errorf("files in the cache: %v", files)
					}
				})
			})
		}
	}
}

// The handshake may fail too, and that says nothing of what was asked for.
func TestUpstreamThatIsNoRegistry(t *testing.T) {
	for _, status := range []int{http.StatusNotFound, http.StatusInternalServerError} {
		l := newLarder(t, setup{})
		l.hub.Fault(upstreamtest.Match{}, upstreamtest.Status(status, nil))
		l.ask(t, "GET", manifestPath("a/b", "1")).wantError(t, http.StatusBadGateway, "UNAVAILABLE")
		l.ask(t, "GET", blobPath("a/b", nobodys)).wantError(t, http.StatusBadGateway, "UNAVAILABLE")
	}
}

func TestSilentUpstream(t *testing.T) {
	paths := map[string]string{
		"tag":       manifestPath("a/b", "1"),
		"manifest":  manifestPath("a/b", nobodys.String()),
		"blob":      blobPath("a/b", nobodys),
		"tags":      "/v2/a/b/tags/list",
		"referrers": "/v2/a/b/referrers/" + nobodys.String(),

		"signatures": "/extensions/v2/a/b/signatures/" + nobodys.String(),
	}
	for kind, path := range paths {
		for _, silent := range []string{"", "/v2/a/b/"} { // the handshake, or what comes after
			for _, method := range []string{"GET", "HEAD"} {
				t.Run(method+" "+kind+silent, func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						l := newLarder(t, setup{pipe: true})
						l.hub.EnableSignatures()
						l.hub.Fault(upstreamtest.Match{Path: silent}, upstreamtest.StallHeaders())
						start := time.Now()
						a := l.record(t.Context(), method, path)
						if a.StatusCode != http.StatusGatewayTimeout {
							t.Errorf("status %d with %q, want 504", a.StatusCode, a.body)
						}
						if method == "GET" {
							a.wantError(t, http.StatusGatewayTimeout, "UNAVAILABLE")
						}
						if took := time.Since(start); took > 25*time.Second {
							t.Errorf("answered after %v; containerd gives up after 30 s", took)
						}
					})
				})
			}
		}
	}
}

func TestShuttingDown(t *testing.T) {
	l := newLarder(t, setup{})
	img := l.hub.AddImage("a/b", "1", random(t, 1, 1000))
	for _, c := range []io.Closer{l.blobs, l.manifests} {
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{manifestPath("a/b", "1"), blobPath("a/b", img.Layers[0].Digest)} {
		a := l.ask(t, "GET", path)
		a.wantError(t, http.StatusServiceUnavailable, "UNAVAILABLE")
		a.want(t, "Retry-After", "5")
	}
}

// Who waits while larder stops is told.
func TestShutdownEndsTheWaiting(t *testing.T) {
	l := newLarder(t, setup{})
	l.hub.Fault(upstreamtest.Match{Path: "/a/b/"}, upstreamtest.StallHeaders())
	for path, c := range map[string]io.Closer{manifestPath("a/b", "1"): l.manifests, blobPath("a/b", nobodys): l.blobs} {
		conn := l.dial(t)
		send(t, conn, "GET", path)
		l.arrived(t, "", strings.TrimPrefix(path, "/v2/"), 1)
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		read(t, conn, "GET").wantError(t, http.StatusServiceUnavailable, "UNAVAILABLE")
	}
}

// A client that closes its sending half looks as if it had left. It must not
// take an empty 200 for its blob.
func TestClientThatHalfClosedGetsNoEmptyAnswer(t *testing.T) {
	l := newLarder(t, setup{})
	l.hub.Fault(upstreamtest.Match{Path: "/a/b/"}, upstreamtest.StallHeaders())
	conn := l.dial(t)
	send(t, conn, "GET", blobPath("a/b", nobodys))
	l.arrived(t, "GET", "/blobs/", 1)
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(conn); len(got) > 0 {
		t.Errorf("got %q (%v), want nothing", got, err)
	}
	l.wantLogged(t, 499, false)
}

// wantLogged waits for the last line of the access log and checks it.
func (l *larder) wantLogged(t *testing.T, status int64, broken bool) map[string]any {
	t.Helper()
	await(t, "a line in the access log", func() bool { return l.logs.FilterMessage("request").Len() > 0 })
	lines := l.logs.FilterMessage("request").All()
	fields := lines[len(lines)-1].ContextMap()
	if fields["status"] != status || (fields["broken"] == true) != broken {
		t.Errorf("logged %v, want status %d, broken %v", fields, status, broken)
	}
	return fields
}

func TestAccessLogTellsWhatHappened(t *testing.T) {
	l := newLarder(t, setup{})
	img := l.hub.AddImage("library/alpine", "1", random(t, 1, 1000))
	l.ask(t, "GET", manifestPath("alpine", "1")+"?ns=docker.io&secret=hush", "Authorization: Basic aHVzaDpodXNo")
	fields := l.wantLogged(t, 200, false)
	for key, want := range map[string]any{
		"method": "GET", "path": "/v2/alpine/manifests/1", "repository": "docker.io/library/alpine", "reference": "1",
		"outcome": "miss", "bytes": int64(len(img.Body)),
	} {
		if fields[key] != want {
			t.Errorf("%s is %v, want %v", key, fields[key], want)
		}
	}
	l.logs.TakeAll()
	l.hub.Stop()
	l.ask(t, "GET", manifestPath("alpine", "2"))
	if fields := l.wantLogged(t, 502, false); fields["error"] == nil {
		t.Errorf("logged %v, want the error", fields)
	}
	for _, line := range l.logs.All() {
		if text := line.Message + " " + bytesOf(line.ContextMap()); strings.Contains(text, "hush") || strings.Contains(text, "aHVz") {
			t.Errorf("a secret in the log: %s", text)
		}
	}
}

func bytesOf(fields map[string]any) string {
	var b bytes.Buffer
	for key, value := range fields {
		b.WriteString(key + "=")
		if err, ok := value.(error); ok {
			value = err.Error()
		}
		if s, ok := value.(string); ok {
			b.WriteString(s)
		}
		b.WriteByte(' ')
	}
	return b.String()
}

func TestClientThatLeftIsNoError(t *testing.T) {
	l := newLarder(t, setup{})
	l.hub.Fault(upstreamtest.Match{Path: "/a/b/"}, upstreamtest.StallHeaders())
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, "GET", l.server.URL+manifestPath("a/b", "1"), nil)
	if err != nil {
		t.Fatal(err)
	}
	left := make(chan struct{})
	go func() {
		defer close(left)
		if res, err := l.server.Client().Do(req); err == nil {
			res.Body.Close()
		}
	}()
	l.arrived(t, "HEAD", "/manifests/", 1)
	cancel()
	<-left
	if fields := l.wantLogged(t, 499, false); fields["error"] != nil {
		t.Errorf("logged %v, want no error", fields)
	}
	if n := l.logs.FilterLevelExact(2).Len(); n != 0 { // zap.ErrorLevel
		t.Errorf("%d lines at level error, want none", n)
	}
}
