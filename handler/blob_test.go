package handler_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"larder/handler/upstream/upstreamtest"
)

// wantBlob checks a complete answer with everything that clients look at.
func wantBlob(t *testing.T, a answer, data []byte, outcome string) {
	t.Helper()
	d := digest.FromBytes(data)
	a.wantBody(t, http.StatusOK, data)
	a.want(t, "Content-Type", "application/octet-stream")
	a.want(t, "Docker-Content-Digest", d.String())
	a.want(t, "ETag", `"`+d.String()+`"`)
	a.want(t, "Accept-Ranges", "bytes")
	a.want(t, "Content-Encoding", "")
	a.want(t, "X-Content-Type-Options", "nosniff")
	wantOutcome(t, a, outcome)
}

func TestBlobOutcomes(t *testing.T) {
	for _, size := range []int64{0, 1, 511, 64 << 10, 64<<10 + 1, 3<<20 + 7} {
		t.Run(strconv.FormatInt(size, 10), func(t *testing.T) {
			l := newLarder(t, setup{})
			data := random(t, 1, size)
			path := blobPath("a/b", l.hub.AddBlob("a/b", data)) + "?ns=docker.io"
			cold := l.ask(t, "GET", path, "Accept-Encoding: zstd;q=1.0, gzip;q=0.8, deflate;q=0.5")
			wantBlob(t, cold, data, "miss")
			cold.want(t, "OCI-Namespace", "docker.io")
			l.settle(t)
			if got := methods(l.hub, "/blobs/"); len(got) != 1 || got[0] != "GET" {
				t.Errorf("upstream was asked %v, want one GET", got)
			}
			l.hub.Stop()
			wantBlob(t, l.ask(t, "GET", path), data, "hit")
			wantBlob(t, l.ask(t, "HEAD", path).withBody(data), data, "hit")
		})
	}
}

// A blob is not refused because the manifest that names it has not been found yet.
func TestRightIsWaitedForAfterAStart(t *testing.T) {
	for _, method := range []string{"GET", "HEAD"} {
		t.Run(method, func(t *testing.T) {
			before := newLarder(t, setup{})
			data := random(t, 1, 1000)
			d := before.hub.AddImage("a/b", "1", data).Layers[0].Digest
			path := blobPath("a/b", d)
			before.ask(t, "GET", manifestPath("a/b", "1"))
			wantBlob(t, before.ask(t, "GET", path), data, "miss")
			before.settle(t)
			before.close(t)

			l := newLarder(t, setup{dir: before.dir})
			l.hub.Fault(upstreamtest.Match{Path: "/blobs/"}, upstreamtest.Status(503, nil))
			answers := make(chan answer, 1)
			go func() { answers <- l.record(t.Context(), method, path) }()
			l.arrived(t, "HEAD", "/blobs/", 1)
			l.run(t)
			got := <-answers
			if method == "HEAD" {
				got = got.withBody(data)
			}
			wantBlob(t, got, data, "hit")
			if a := l.ask(t, method, blobPath("c/d", d)); a.StatusCode != http.StatusBadGateway {
				t.Errorf("got %d for a repository that never had it", a.StatusCode)
			}
		})
	}
}

func TestHeadNeverStartsAFill(t *testing.T) {
	l := newLarder(t, setup{})
	data := random(t, 1, 1<<20)
	d := l.hub.AddBlob("a/b", data)
	path := blobPath("a/b", d)
	wantBlob(t, l.ask(t, "HEAD", path).withBody(data), data, "miss")
	l.ask(t, "HEAD", blobPath("a/b", nobodys))
	if got := methods(l.hub, "/blobs/"); fmt.Sprint(got) != "[HEAD HEAD]" || len(l.stored(t)) != 0 {
		t.Fatalf("upstream was asked %v and %v are stored, want HEADs and nothing", got, l.stored(t))
	}

	gate := make(chan struct{})
	l.hub.Fault(upstreamtest.Match{Method: "GET", Path: "/blobs/"}, upstreamtest.GateAfter(300<<10, gate))
	conn := l.dial(t)
	send(t, conn, "GET", path)
	await(t, "a fill with a size", func() bool { _, ok := l.blobs.Size(d); return ok })
	l.hub.Reset()
	wantBlob(t, l.ask(t, "HEAD", path).withBody(data), data, "hit")
	if got := methods(l.hub, ""); len(got) != 0 {
		t.Errorf("the HEAD of a blob that is arriving asked upstream %v", got)
	}
	close(gate)
	wantBlob(t, read(t, conn, "GET"), data, "miss")
}

// upstreamtest says no size: then nobody does, and nobody takes a part for all.
func TestBlobOfUnknownSize(t *testing.T) {
	for _, size := range []int64{0, 1, 100_000, 2 << 20} {
		t.Run(strconv.FormatInt(size, 10), func(t *testing.T) {
			l := newLarder(t, setup{})
			l.hub.Fault(upstreamtest.Match{Path: "/blobs/"}, upstreamtest.NoContentLength())
			data := random(t, 1, size)
			path := blobPath("a/b", l.hub.AddBlob("a/b", data))
			if head := l.ask(t, "HEAD", path); head.StatusCode != http.StatusOK || head.Header["Content-Length"] != nil {
				t.Errorf("HEAD has status %d and Content-Length %q", head.StatusCode, head.Header["Content-Length"])
			}
			a := l.ask(t, "GET", path, "Range: bytes=0-")
			if a.StatusCode >= 300 || a.err != nil || !bytes.Equal(a.body, data) {
				t.Errorf("status %d (%v) with %d bytes, want all %d", a.StatusCode, a.err, len(a.body), size)
			}
			l.settle(t)
			wantBlob(t, l.ask(t, "GET", path), data, "hit")
		})
	}
}

func TestBlobOfUnknownSizeStreams(t *testing.T) {
	l := newLarder(t, setup{})
	data := random(t, 1, 2<<20)
	gate := make(chan struct{})
	l.hub.Fault(upstreamtest.Match{Method: "GET", Path: "/blobs/"}, upstreamtest.NoContentLength(), upstreamtest.GateAfter(1<<20, gate))
	res, err := http.Get(l.server.URL + blobPath("a/b", l.hub.AddBlob("a/b", data)))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if _, err := io.CopyN(io.Discard, res.Body, 900_000); err != nil {
		t.Fatal(err)
	}
	close(gate)
	if rest, err := io.ReadAll(res.Body); err != nil || !bytes.Equal(rest, data[900_000:]) {
		t.Errorf("got %d bytes more (%v), want the rest", len(rest), err)
	}
}

// lies are bodies that are not what the digest promises.
func lies(size int64) map[string][]upstreamtest.Fault {
	return map[string][]upstreamtest.Fault{
		"first byte":           {upstreamtest.FlipByte(0)},
		"last byte":            {upstreamtest.FlipByte(size - 1)},
		"short":                {upstreamtest.Truncate(size - 10)},
		"empty":                {upstreamtest.Truncate(0)},
		"long":                 {upstreamtest.Extend(10)},
		"last byte, no length": {upstreamtest.NoContentLength(), upstreamtest.FlipByte(size - 1)},
		"short, no length":     {upstreamtest.NoContentLength(), upstreamtest.Truncate(size - 1)},
		"long, no length":      {upstreamtest.NoContentLength(), upstreamtest.Extend(1)},
	}
}

func TestWrongBlobIsNeverComplete(t *testing.T) {
	for _, size := range []int64{1000, 1 << 20} {
		for name, faults := range lies(size) {
			for _, tls := range []bool{false, true} {
				t.Run(fmt.Sprintf("%d %s, HTTP/2 %v", size, name, tls), func(t *testing.T) {
					t.Parallel()
					l := newLarder(t, setup{tls: tls})
					d := l.hub.AddBlob("a/b", random(t, 1, size))
					l.hub.Fault(upstreamtest.Match{Path: "/blobs/"}, faults...)
					for range 2 {
						res, err := l.server.Client().Get(l.server.URL + blobPath("a/b", d))
						if err != nil && tls {
							continue // broken before the header has gone out
						}
						if err != nil {
							t.Fatal(err)
						}
						body, err := io.ReadAll(res.Body)
						res.Body.Close()
						if tls != (res.ProtoMajor == 2) {
							t.Errorf("protocol is %s", res.Proto)
						}
						if res.StatusCode == http.StatusOK && err == nil {
							t.Errorf("got a complete answer of %d bytes", len(body))
						}
						if res.StatusCode != http.StatusOK {
							answer{res, body, err}.wantError(t, http.StatusBadGateway, "UNAVAILABLE")
						}
						l.settle(t)
						if files := l.stored(t); len(files) != 0 {
							t.Errorf("stored %v, want nothing", files)
						}
					}
				})
			}
		}
	}
}

// An answer that breaks is broken for HTTP/2 as well, and logged as such.
func TestBrokenAnswerIsLogged(t *testing.T) {
	l := newLarder(t, setup{tls: true})
	d := l.hub.AddBlob("a/b", random(t, 1, 1<<20))
	begun := make(chan struct{})
	l.hub.Fault(upstreamtest.Match{Path: "/blobs/"}, upstreamtest.FlipByte(1<<19), upstreamtest.GateAfter(1<<18, begun))
	res, err := l.server.Client().Get(l.server.URL + blobPath("a/b", d))
	close(begun) // before that, the answer would be a clear error
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if n, err := io.Copy(io.Discard, res.Body); err == nil || n >= 1<<20 {
		t.Errorf("got %d bytes without an error", n)
	}
	l.wantLogged(t, 200, true)
}

func TestBodyThatBreaksIsGoneOnWith(t *testing.T) {
	l := newLarder(t, setup{})
	data := random(t, 1, 1<<20)
	d := l.hub.AddBlob("a/b", data)
	l.hub.Fault(upstreamtest.Match{Method: "GET", Path: "/blobs/", Times: 1}, upstreamtest.CutAfter(400_000))
	wantBlob(t, l.ask(t, "GET", blobPath("a/b", d)), data, "miss")
	ranges := 0
	for _, req := range l.hub.Requests() {
		if rng := req.Header.Get("Range"); rng != "" && rng != "bytes=0-" {
			ranges++
		}
	}
	if n := l.hub.Count("GET", "/blobs/"); n != 2 || ranges != 1 {
		t.Errorf("%d GETs, %d with a Range; want 2 and 1", n, ranges)
	}
}

// A blob of which no byte comes is as good as no answer.
func TestBlobThatStallsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLarder(t, setup{pipe: true})
		d := l.hub.AddBlob("a/b", random(t, 1, 1<<20))
		l.hub.Fault(upstreamtest.Match{Path: "/blobs/"}, upstreamtest.StallAfter(0))
		start := time.Now()
		l.record(t.Context(), "GET", blobPath("a/b", d)).wantError(t, http.StatusGatewayTimeout, "UNAVAILABLE")
		if took := time.Since(start); took > 25*time.Second {
			t.Errorf("answered after %v; containerd gives up after 30 s", took)
		}
	})
}

// And one that never gets far is as good as an upstream that is down.
func TestBlobThatBreaksAtOnce(t *testing.T) {
	faults := map[string]upstreamtest.Fault{
		"closed":                upstreamtest.CutAfter(0),
		"closed without answer": upstreamtest.ResetConnection(),
		"garbled":               garble,
	}
	for name, fault := range faults {
		for range 20 { // an early version took some for the end of an empty blob
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					l := newLarder(t, setup{pipe: true})
					img := l.hub.AddImage("a/b", "1", random(t, 1, 100_000))
					l.record(t.Context(), "GET", manifestPath("a/b", "1"))
					l.hub.Fault(upstreamtest.Match{Path: "/blobs/"}, fault)
					l.record(t.Context(), "GET", blobPath("a/b", img.Layers[0].Digest)).wantError(t, http.StatusBadGateway, "UNAVAILABLE")
					if n := l.hub.Count("", "/blobs/"); n > 10 {
						t.Errorf("upstream was asked %d times", n)
					}
				})
			})
		}
	}
}

// garble promises a body that can't be read.
func garble(http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n")
	})
}

// A client that leaves in the middle is not an error and harms no fill.
func TestClientThatLeavesInTheMiddle(t *testing.T) {
	l := newLarder(t, setup{})
	data := random(t, 1, 4<<20)
	d := l.hub.AddBlob("a/b", data)
	gate := make(chan struct{})
	l.hub.Fault(upstreamtest.Match{Method: "GET", Path: "/blobs/"}, upstreamtest.GateAfter(1<<20, gate))
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, "GET", l.server.URL+blobPath("a/b", d), nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := l.server.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, res.Body, 500_000); err != nil {
		t.Fatal(err)
	}
	patient := l.dial(t)
	send(t, patient, "GET", blobPath("a/b", d))
	await(t, "the second client", func() bool { return l.blobs.Stats().Joins == 1 })
	cancel()
	res.Body.Close()
	fields := l.wantLogged(t, 200, true)
	if fields["error"] != nil || l.logs.FilterLevelExact(2).Len() > 0 {
		t.Errorf("a client that left is logged as an error: %v", fields)
	}
	close(gate)
	wantBlob(t, read(t, patient, "GET"), data, "join")
	if n := l.hub.Count("GET", "/blobs/"); n != 1 {
		t.Errorf("%d GETs upstream, want 1", n)
	}
}

func TestFiftyClientsAreOneGet(t *testing.T) {
	for _, pulled := range []bool{true, false} { // with the manifest, or the blob alone
		t.Run(fmt.Sprintf("manifest %v", pulled), func(t *testing.T) {
			const clients = 50
			arrived := make(chan struct{}, clients+1)
			l := newLarder(t, setup{outside: func(next http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					arrived <- struct{}{}
					next.ServeHTTP(w, r)
				})
			}})
			data := random(t, 1, 1<<20)
			img := l.hub.AddImage("a/b", "1", data)
			if pulled {
				l.ask(t, "GET", manifestPath("a/b", "1"))
				<-arrived
			}
			gate := make(chan struct{})
			l.hub.Fault(upstreamtest.Match{Path: "/blobs/"}, upstreamtest.Gate(gate))
			answers := make(chan answer, clients)
			for range clients {
				conn := l.dial(t)
				send(t, conn, "GET", blobPath("a/b", img.Layers[0].Digest))
				go func() { answers <- read(t, conn, "GET") }()
			}
			for range clients {
				<-arrived
			}
			close(gate)
			outcomes := make(map[string]int)
			for range clients {
				a := <-answers
				a.wantBody(t, http.StatusOK, data)
				outcomes[a.Header.Get("Cache-Status")]++
			}
			if got := methods(l.hub, "/blobs/"); len(got) != 1 || got[0] != "GET" {
				t.Errorf("upstream was asked %v, want one GET", got)
			}
			if outcomes["larder; fwd=uri-miss; stored; detail=miss"] != 1 {
				t.Errorf("outcomes %v, want one miss", outcomes)
			}
		})
	}
}
