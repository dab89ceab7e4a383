package upstreamtest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// open asks for path and leaves the body to the test.
func open(t *testing.T, r *Registry, path string) (*http.Response, context.CancelFunc) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := r.Transport().RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp, cancel
}

func TestFaultMatch(t *testing.T) {
	r, path := withBlob(t)
	remove := r.Fault(Match{Method: http.MethodHead, Path: "/blobs/"}, Status(500, nil))
	get(t, r, path).want(t, http.StatusOK, blobData)
	send(t, r, http.MethodHead, "/v2/").want(t, http.StatusOK, nil)
	for range 2 {
		send(t, r, http.MethodHead, path).want(t, http.StatusInternalServerError, nil)
	}
	remove()
	remove()
	send(t, r, http.MethodHead, path).want(t, http.StatusOK, nil)
}

func TestFaultTimes(t *testing.T) {
	r, _ := withBlob(t)
	r.Fault(Match{Times: 2}, Status(500, nil))
	r.Fault(Match{Times: 1}, Status(503, nil))
	r.Fault(Match{}, SetHeader("X-A", "always"), SetHeader("X-B", "too"))
	for _, want := range []int{500, 500, 503, 200, 200} {
		a := get(t, r, "/v2/")
		if a.StatusCode != want {
			t.Errorf("got %d, want %d", a.StatusCode, want)
		}
		if want == 200 {
			a.wantHeader(t, "X-A", "always")
			a.wantHeader(t, "X-B", "too")
		}
	}
}

func TestStatus(t *testing.T) {
	r, path := withBlob(t)
	r.Fault(Match{}, Status(http.StatusTooManyRequests, http.Header{"Retry-After": {"7"}}))
	a := get(t, r, path)
	if a.StatusCode != http.StatusTooManyRequests || a.code() != "TOOMANYREQUESTS" {
		t.Errorf("got %d %s", a.StatusCode, a.code())
	}
	a.wantHeader(t, "Retry-After", "7")
}

func TestRedirect(t *testing.T) {
	r, path := withBlob(t)
	r.Fault(Match{}, Redirect("http://cdn.test/x?signature=1"))
	a := get(t, r, path)
	if a.StatusCode != http.StatusTemporaryRedirect {
		t.Errorf("got %d, want 307", a.StatusCode)
	}
	a.wantHeader(t, "Location", "http://cdn.test/x?signature=1")
}

func TestBrokenBodies(t *testing.T) {
	flipped := slices.Clone(blobData)
	flipped[50] ^= 0xff
	size := int64(len(blobData))
	tests := map[string]struct {
		fault  Fault
		ranged string
		length int64 // Content-Length; -1: none
		body   []byte
		broken bool
	}{
		"CutAfter":            {CutAfter(300), "", size, blobData[:300], true},
		"CutAfter late":       {CutAfter(size - 1), "", size, blobData[:size-1], true},
		"CutAfter 0":          {CutAfter(0), "", size, nil, true},
		"CutAfter all":        {CutAfter(size), "", size, blobData, false},
		"CutAfter in range":   {CutAfter(5), "bytes=10-19", 10, blobData[10:15], true},
		"FlipByte":            {FlipByte(50), "", size, flipped, false},
		"FlipByte in range":   {FlipByte(50), "bytes=40-59", 20, flipped[40:60], false},
		"FlipByte beside":     {FlipByte(50), "bytes=60-", size - 60, blobData[60:], false},
		"Truncate":            {Truncate(70_000), "", 70_000, blobData[:70_000], false},
		"Truncate to nothing": {Truncate(0), "", 0, nil, false},
		"Truncate above":      {Truncate(size + 1), "", size, blobData, false},
		"NoContentLength":     {NoContentLength(), "", -1, blobData, false},
		"no length and short": {NoContentLength(), "bytes=0-9", -1, blobData[:10], false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			r, path := withBlob(t)
			r.Fault(Match{}, test.fault)
			var headers []string
			if test.ranged != "" {
				headers = []string{"Range", test.ranged}
			}
			a := get(t, r, path, headers...)
			if !bytes.Equal(a.body, test.body) {
				t.Errorf("got %d bytes or other ones, want %d", len(a.body), len(test.body))
			}
			if a.ContentLength != test.length {
				t.Errorf("got Content-Length %d, want %d", a.ContentLength, test.length)
			}
			if broken := errors.Is(a.err, io.ErrUnexpectedEOF); broken != test.broken || !broken && a.err != nil {
				t.Errorf("got %v, broken should be %v", a.err, test.broken)
			}
			if log := r.Requests(); log[0].Bytes != int64(len(test.body)) {
				t.Errorf("logged %d bytes, want %d", log[0].Bytes, len(test.body))
			}
		})
	}
}

func TestHeadOfBrokenBodies(t *testing.T) {
	r, path := withBlob(t)
	tests := map[string]struct {
		fault  Fault
		length int64
	}{
		"CutAfter":        {CutAfter(3), 100_000},
		"Truncate":        {Truncate(3), 3},
		"Extend":          {Extend(3), 100_003},
		"NoContentLength": {NoContentLength(), -1},
	}
	for name, test := range tests {
		remove := r.Fault(Match{}, test.fault)
		a := send(t, r, http.MethodHead, path)
		a.want(t, http.StatusOK, nil)
		if a.ContentLength != test.length {
			t.Errorf("%s: got Content-Length %d, want %d", name, a.ContentLength, test.length)
		}
		remove()
	}
}

func TestExtend(t *testing.T) {
	r, path := withBlob(t)
	r.Fault(Match{}, Extend(100_000))
	a := get(t, r, path)
	if a.err != nil || len(a.body) != 200_000 || a.ContentLength != 200_000 || !bytes.HasPrefix(a.body, blobData) {
		t.Errorf("got %d of %d bytes, %v; want 200000", len(a.body), a.ContentLength, a.err)
	}
}

func TestRangeLies(t *testing.T) {
	r, path := withBlob(t)
	remove := r.Fault(Match{}, IgnoreRange())
	get(t, r, path, "Range", "bytes=10-19").want(t, http.StatusOK, blobData)
	if got := r.Requests()[0].Header.Get("Range"); got != "bytes=10-19" {
		t.Errorf("logged Range %q, want what the client sent", got)
	}
	remove()
	r.Fault(Match{}, WrongContentRange())
	a := get(t, r, path, "Range", "bytes=10-19")
	a.want(t, http.StatusPartialContent, blobData[10:20])
	a.wantHeader(t, "Content-Range", "bytes 11-20/100000")
	a = get(t, r, path)
	a.want(t, http.StatusOK, blobData)
	a.wantHeader(t, "Content-Range", "")
}

func TestHeaderLies(t *testing.T) {
	r, path := withBlob(t)
	r.Fault(Match{}, DropHeader("docker-content-digest"), DropHeader("Content-Type"), DropHeader("Date"), SetHeader("etag", "x"))
	a := get(t, r, path)
	a.want(t, http.StatusOK, blobData)
	for _, name := range []string{"Docker-Content-Digest", "Content-Type", "Date"} {
		if values, ok := a.Header[name]; ok {
			t.Errorf("%s: got %q, want none", name, values)
		}
	}
	a.wantHeader(t, "ETag", "x")
}

func TestStallHeadersUntilClientLeaves(t *testing.T) {
	r, path := withBlob(t)
	r.Fault(Match{}, StallHeaders())
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		resp, err := r.Transport().RoundTrip(req)
		if err == nil {
			resp.Body.Close()
		}
		done <- err
	}()
	if err := r.Await(t.Context(), "GET", "/blobs/", 1); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want canceled", err)
	}
	r.Stop() // hangs if the stalled answer is still there
}

func TestStallAfterUntilStop(t *testing.T) {
	r, path := withBlob(t)
	r.Fault(Match{}, StallAfter(300))
	resp, _ := open(t, r, path)
	if _, err := io.ReadFull(resp.Body, make([]byte, 300)); err != nil {
		t.Fatal(err)
	}
	r.Stop()
	if n, err := io.Copy(io.Discard, resp.Body); n != 0 || err == nil {
		t.Errorf("got %d more bytes, %v; want a broken body", n, err)
	}
}

func TestGate(t *testing.T) {
	r, path := withBlob(t)
	gate := make(chan struct{})
	r.Fault(Match{}, Gate(gate))
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() { get(t, r, path).want(t, http.StatusOK, blobData) })
	}
	if err := r.Await(t.Context(), "GET", path, 3); err != nil {
		t.Fatal(err)
	}
	for _, request := range r.Requests() {
		if request.Status != 0 {
			t.Errorf("answered %d before the gate opened", request.Status)
		}
	}
	close(gate)
	wg.Wait()
}

func TestGateAfter(t *testing.T) {
	r, path := withBlob(t)
	gate := make(chan struct{})
	r.Fault(Match{}, GateAfter(300, gate))
	resp, _ := open(t, r, path)
	start := make([]byte, 300)
	if _, err := io.ReadFull(resp.Body, start); err != nil {
		t.Fatal(err)
	}
	if n := r.Requests()[0].Bytes; n != 300 {
		t.Errorf("got %d bytes sent before the gate opened, want 300", n)
	}
	close(gate)
	rest, err := io.ReadAll(resp.Body)
	if whole := append(start, rest...); err != nil || !bytes.Equal(whole, blobData) {
		t.Errorf("got %d bytes, %v; want the blob", len(whole), err)
	}
}

func TestAwaitEndsWithContext(t *testing.T) {
	r := New(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Await(ctx, "", "", 1); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want canceled", err)
	}
}

func TestResetConnection(t *testing.T) {
	r, path := withBlob(t)
	r.Fault(Match{Times: 1}, ResetConnection())
	if a := get(t, r, path); !errors.Is(a.err, syscall.ECONNRESET) {
		t.Errorf("got %v, want connection reset", a.err)
	}
	get(t, r, path).want(t, http.StatusOK, blobData)
}

func TestOwnFault(t *testing.T) {
	r, path := withBlob(t)
	r.Fault(Match{}, func(http.Handler) http.Handler { return http.NotFoundHandler() })
	if a := get(t, r, path); a.StatusCode != http.StatusNotFound || !strings.Contains(string(a.body), "not found") {
		t.Errorf("got %d %s", a.StatusCode, a.body)
	}
}

func TestLatencyAndRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewPipe(t)
		path := "/v2/a/blobs/" + r.AddBlob("a", blobData).String()
		took := func() time.Duration {
			start := time.Now()
			get(t, r, path).want(t, http.StatusOK, blobData)
			return time.Since(start)
		}
		remove := r.Fault(Match{}, Latency(time.Hour))
		if d := took(); d != time.Hour {
			t.Errorf("Latency: took %v, want 1h", d)
		}
		remove()
		r.Fault(Match{}, Rate(10_000))
		if d := took(); d < 9900*time.Millisecond || d > 10*time.Second {
			t.Errorf("Rate: 100000 bytes at 10000 a second took %v", d)
		}
	})
}

func TestLatencyEndsWithClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewPipe(t)
		r.Fault(Match{}, Latency(time.Hour))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.URL+"/v2/", nil)
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if resp, err := r.Transport().RoundTrip(req); err == nil {
			resp.Body.Close()
			t.Error("got an answer")
		}
		r.Stop()
		if d := time.Since(start); d != time.Second {
			t.Errorf("client and registry were done after %v, want 1s", d)
		}
	})
}
