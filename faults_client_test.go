package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"larder/handler/upstream/upstreamtest"
)

// TestClientsThatLeave has clients hang up in the middle of a cold blob. The
// others get it, and upstream sends it once.
func TestClientsThatLeave(t *testing.T) {
	t.Parallel()
	const clients = 6
	tests := map[string]func(i int) bool{ // who leaves, in the order in which they came
		"the only one": nil,
		"the first":    func(i int) bool { return i == 0 },
		"the last":     func(i int) bool { return i == clients-1 },
		"one":          func(i int) bool { return i == 2 },
		"every other":  func(i int) bool { return i%2 == 0 },
		"all but one":  func(i int) bool { return i != 3 },
		"all":          func(int) bool { return true },
	}
	for name, leaves := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := clients
			if leaves == nil {
				n, leaves = 1, func(int) bool { return true }
			}
			w := newWorld(t, []string{"LARDER_TAG_TTL=1h"}, 4<<20)
			w.ask(appTag, "")
			gate := make(chan struct{})
			over := w.hub.Fault(upstreamtest.Match{Path: w.blob()}, upstreamtest.GateAfter(2<<20, gate))
			bodies, leave := make([]*http.Response, n), make([]context.CancelFunc, n)
			for i := range n {
				var ctx context.Context
				ctx, leave[i] = context.WithTimeout(t.Context(), patience)
				defer leave[i]()
				var err error
				if bodies[i], err = w.open(ctx, w.blob()); err != nil {
					t.Fatal(err)
				}
				defer bodies[i].Body.Close()
			}
			for i := range n {
				if leaves(i) {
					leave[i]()
					bodies[i].Body.Close()
				}
			}
			close(gate)
			for i := range n {
				if err := readBlob(bodies[i].Body, w.blob()); (err != nil) != leaves(i) {
					t.Errorf("client %d, who leaves: %v, got %v", i, leaves(i), err)
				}
			}
			if got := w.hub.Count("GET", w.blob()); got != 1 {
				t.Errorf("upstream got %d GETs, want 1", got)
			}
			over()
			w.recovers(t)
			if got := w.hub.Count("GET", w.blob()); got != 1 {
				t.Errorf("in the end upstream got %d GETs, want 1", got)
			}
		})
	}
}

// TestSlowReadersHoldNobody has clients stop reading in the middle of a blob,
// cold or cached, while another one gets all of it, and then has them go on.
func TestSlowReadersHoldNobody(t *testing.T) {
	t.Parallel()
	for _, cached := range []bool{false, true} {
		t.Run(fmt.Sprintf("cached %v", cached), func(t *testing.T) {
			t.Parallel()
			const slow, patient = 200, 20
			w := newWorld(t, []string{"LARDER_TAG_TTL=1h"}, 24<<20) // more than sockets hold
			w.ask(appTag, "")
			if cached {
				w.pull(t, "first")
			}
			var open []*http.Response
			for range slow {
				resp, err := w.open(t.Context(), w.blob())
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				open = append(open, resp)
			}
			a := w.ask(w.blob(), "")
			w.notFooled(t, w.blob(), "", a)
			if !a.whole() {
				t.Errorf("the fast one got %v", a)
			}
			var readers sync.WaitGroup
			for _, resp := range open[patient:] {
				resp.Body.Close()
			}
			for _, resp := range open[:patient] {
				readers.Go(func() {
					if err := readBlob(resp.Body, w.blob()); err != nil {
						t.Errorf("a slow one: %v", err)
					}
				})
			}
			readers.Wait()
			w.recovers(t)
		})
	}
}

// TestSlowlorisHoldsNobody opens connections that never finish a request. They
// are closed, and others served meanwhile.
func TestSlowlorisHoldsNobody(t *testing.T) {
	t.Parallel()
	for name, beginning := range map[string]string{
		"nothing": "", "half a line": "GET /v2/", "no end of headers": "GET /v2/ HTTP/1.1\r\nHost: x\r\nX: ",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, nil, small)
			var conns []net.Conn
			for range 50 {
				conn := w.dial(t)
				io.WriteString(conn, beginning)
				conns = append(conns, conn)
			}
			w.pull(t, "beside them")
			for _, conn := range conns {
				if _, err := io.Copy(io.Discard, conn); err != nil && isTimeout(err) {
					t.Fatalf("after %v still open: %v", patience, err)
				}
			}
			w.recovers(t)
		})
	}
}

func isTimeout(err error) bool {
	e, ok := errors.AsType[net.Error](err)
	return ok && e.Timeout()
}

// TestMalformedRequests are refused, or the connection is closed, and upstream
// is not asked.
func TestMalformedRequests(t *testing.T) {
	t.Parallel()
	get := "GET " + appTag + " HTTP/1.1\r\nHost: x\r\n"
	tests := map[string]string{
		"huge header":             get + "X: " + strings.Repeat("x", 100<<10) + "\r\n\r\n",
		"many headers":            get + strings.Repeat("X: x\r\n", 20<<10) + "\r\n",
		"huge path":               "GET /v2/" + strings.Repeat("x", 100<<10) + "/manifests/1 HTTP/1.1\r\nHost: x\r\n\r\n",
		"long name":               "GET /v2/" + strings.Repeat("x", 300) + "/manifests/1 HTTP/1.1\r\nHost: x\r\n\r\n",
		"no host":                 "GET " + appTag + " HTTP/1.1\r\n\r\n",
		"two hosts":               get + "Host: y\r\n\r\n",
		"two lengths":             get + "Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
		"negative length":         get + "Content-Length: -1\r\n\r\n",
		"a space before a colon":  get + "Content-Length : 0\r\n\r\n",
		"folded header":           " GET " + appTag + " HTTP/1.1\r\nHost: x\r\n\r\n",
		"unknown encoding":        get + "Transfer-Encoding: rot13\r\n\r\n",
		"NUL in a header":         get + "X: \x00\r\n\r\n",
		"NUL in the path":         "GET /v2/library/app\x00/manifests/1 HTTP/1.1\r\nHost: x\r\n\r\n",
		"escaped NUL":             "GET /v2/library/app%00/manifests/1 HTTP/1.1\r\nHost: x\r\n\r\n",
		"unicode":                 "GET /v2/library/äpp/manifests/1 HTTP/1.1\r\nHost: x\r\n\r\n",
		"escaped slash":           "GET /v2/library%2Fapp/manifests/1 HTTP/1.1\r\nHost: x\r\n\r\n",
		"escaped dots":            "GET /v2/library/%2e%2e/manifests/1 HTTP/1.1\r\nHost: x\r\n\r\n",
		"bad escape":              "GET /v2/library/%zz/manifests/1 HTTP/1.1\r\nHost: x\r\n\r\n",
		"upper case":              "GET /v2/Library/App/manifests/1 HTTP/1.1\r\nHost: x\r\n\r\n",
		"short digest":            "GET /v2/library/app/blobs/sha256:abc HTTP/1.1\r\nHost: x\r\n\r\n",
		"digest in capitals":      "GET /v2/library/app/blobs/sha256:" + strings.Repeat("A", 64) + " HTTP/1.1\r\nHost: x\r\n\r\n",
		"digest of another kind":  "GET /v2/library/app/blobs/md5:d41d8cd98f00b204e9800998ecf8427e HTTP/1.1\r\nHost: x\r\n\r\n",
		"digest that climbs":      "GET /v2/library/app/blobs/sha256:../../../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
		"HTTP/3.7":                "GET " + appTag + " HTTP/3.7\r\nHost: x\r\n\r\n",
		"HTTP/2 without TLS":      "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"TLS":                     "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
		"noise":                   "\xff\xfe\xfd\r\n\r\n",
		"a request without verbs": "\r\n\r\n\r\n",
	}
	for name, request := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, nil, small)
			a := w.send(t, request+strings.Repeat("\r\n", 4))
			if isTimeout(a.err) || a.err == nil && a.status < 400 {
				t.Errorf("got %v, want a refusal", a)
			}
			if got := w.hub.Requests(); len(got) > 0 {
				t.Errorf("upstream was asked %s %s", got[0].Method, got[0].Path)
			}
			w.recovers(t)
		})
	}
}

// TestPipelining sends several requests at once. The answers come in order, each
// as it should be.
func TestPipelining(t *testing.T) {
	t.Parallel()
	for _, cached := range []bool{false, true} {
		t.Run(fmt.Sprintf("cached %v", cached), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, nil, usual)
			if cached {
				w.pull(t, "first")
			}
			content := w.layers[w.img.Layers[0].Digest]
			requests := []struct {
				method, path, ranges string
				status               int
				body                 []byte
			}{
				{"GET", appTag, "", 200, w.img.Body},
				{"HEAD", w.blob(), "", 200, nil},
				{"GET", w.blob(), "", 200, content},
				{"GET", w.blob(), "bytes=10-99", 206, content[10:100]},
				{"GET", "/v2/library/app/blobs/sha256:x", "", 400, nil},
				{"GET", w.blob(), "bytes=9999999-", 416, nil},
				{"GET", w.blob(), "bytes=-7", 206, content[len(content)-7:]},
				{"GET", appPath + "manifests/" + w.img.Manifest.String(), "", 200, w.img.Body},
			}
			var all strings.Builder
			for _, r := range requests {
				fmt.Fprintf(&all, "%s %s HTTP/1.1\r\nHost: x\r\n", r.method, r.path)
				if r.ranges != "" {
					fmt.Fprintf(&all, "Range: %s\r\n", r.ranges)
				}
				all.WriteString("\r\n")
			}
			conn := w.dial(t)
			io.WriteString(conn, all.String())
			answers := bufio.NewReader(conn)
			for _, r := range requests {
				resp, err := http.ReadResponse(answers, &http.Request{Method: r.method})
				if err != nil {
					t.Fatalf("%s %s: %v", r.method, r.path, err)
				}
				body, err := io.ReadAll(resp.Body)
				if err != nil || resp.StatusCode != r.status || r.body != nil && !bytes.Equal(body, r.body) {
					t.Errorf("%s %s %s: got %s with %d bytes, %v", r.method, r.path, r.ranges, resp.Status, len(body), err)
				}
			}
			w.recovers(t)
		})
	}
}

// TestBodyThatDoesNotComeHoldsNoAnswer announces a body, which nobody wants, and
// waits for the answer before it is sent.
func TestBodyThatDoesNotComeHoldsNoAnswer(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil, usual)
	w.pull(t, "first")
	conn := w.dial(t)
	began := time.Now()
	fmt.Fprintf(conn, "GET %smanifests/%s HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n", appPath, w.img.Manifest)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil || !bytes.Equal(body, w.img.Body) {
		t.Errorf("got %s with %d bytes, %v", resp.Status, len(body), err)
	}
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("the answer came after %v", took)
	}
}

// TestHTTP10 asks as programs of the last century do: for them, the end of a
// connection is the end of what they asked for.
func TestHTTP10(t *testing.T) {
	t.Parallel()
	for name, status := range map[string]int{"a blob with a size": http.StatusOK, "a blob without": http.StatusHTTPVersionNotSupported} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, nil, usual)
			if a := w.send(t, "GET "+appTag+" HTTP/1.0\r\n\r\n"); !bytes.Equal(a.body, w.img.Body) {
				t.Errorf("manifest: got %v", a)
			}
			over := func() {}
			if status != http.StatusOK {
				gate := make(chan struct{})
				remove := w.hub.Fault(upstreamtest.Match{Path: w.blob()},
					upstreamtest.IgnoreRange(), upstreamtest.NoContentLength(), upstreamtest.GateAfter(usual/2, gate))
				over = func() {
					remove()
					close(gate)
				}
			}
			a := w.send(t, "GET "+w.blob()+" HTTP/1.0\r\n\r\n")
			over()
			w.notFooled(t, w.blob(), "", a)
			if a.status != status {
				t.Errorf("got %v, want %d", a, status)
			}
			w.recovers(t)
		})
	}
}
