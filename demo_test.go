package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// emptyAfter makes the test's temporary directory one that must be empty at
// its end.
func emptyAfter(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	t.Cleanup(func() {
		left, err := os.ReadDir(dir)
		if err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	})
}

func TestDemoCountsWhereBytesCameFrom(t *testing.T) {
	emptyAfter(t)
	const (
		size      = 2_750_000
		bandwidth = 10_000_000
	)
	var stdout, stderr bytes.Buffer
	pulls, err := runDemo(t.Context(), []int{250_000, 500_000, 2_000_000}, bandwidth, &stdout, &stderr)
	if err != nil {
		t.Fatalf("%v\n%s", err, &stderr)
	}
	if len(pulls) != 3 {
		t.Fatalf("got %d pulls, want 3", len(pulls))
	}
	for _, pull := range pulls {
		if pull.received < size || pull.received > size+10_000 {
			t.Errorf("%s: client received %d bytes of an image of %d", pull.name, pull.received, size)
		}
	}
	cold, warm, stopped := pulls[0], pulls[1], pulls[2]
	if cold.upstream < size || cold.upstream > size+10_000 {
		t.Errorf("cold: upstream sent %d bytes of an image of %d", cold.upstream, size)
	}
	if got, want := cold.took.Seconds(), float64(size-64<<10)/bandwidth; got < want {
		t.Errorf("cold: took %.3f s, faster than the %.3f s that the upstream needs", got, want)
	}
	if warm.upstream != 0 {
		t.Errorf("warm: upstream sent %d bytes", warm.upstream)
	}
	if stopped.upstream != 0 || stopped.upstreamRequests != 0 {
		t.Errorf("stopped: upstream sent %d bytes for %d requests", stopped.upstream, stopped.upstreamRequests)
	}
	for _, want := range []string{"\ncold ", "\nwarm ", "\nupstream stopped ", " 2.75", "\nNext: "} {
		if !strings.Contains(stdout.String(), want) {
			t.Errorf("output lacks %q:\n%s", want, &stdout)
		}
	}
	if stderr.Len() > 0 {
		t.Errorf("on stderr: %s", &stderr)
	}
}

func TestDemoPullLine(t *testing.T) {
	pull := demoPull{name: "cold", received: 3_000_000, upstream: 1_000_000, upstreamRequests: 7, took: 2 * time.Second}
	got := strings.Join(strings.Fields(pull.String()), " ")
	if want := "cold 1MB 2MB 2.00 1.5 7"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// cancelAt calls cancel when text is written.
type cancelAt struct {
	text   string
	cancel context.CancelFunc
}

func (c cancelAt) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte(c.text)) {
		c.cancel()
	}
	return len(p), nil
}

func TestCancelledDemoEnds(t *testing.T) {
	emptyAfter(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	// At this bandwidth the pull would take a quarter of an hour.
	pulls, err := runDemo(ctx, []int{1 << 20}, 1<<10, cancelAt{"upstream requests", cancel}, io.Discard)
	if !errors.Is(err, context.Canceled) || len(pulls) > 0 {
		t.Errorf("got %v and error %v, want %v", pulls, err, context.Canceled)
	}
}

func TestDemoTakesAnotherPort(t *testing.T) {
	if l, err := net.Listen("tcp", "127.0.0.1:5000"); err == nil { // else somebody else has it, which is as good
		defer l.Close()
	}
	addr, err := freePort(t.Context(), "127.0.0.1:5000")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(addr, "127.0.0.1:") || addr == "127.0.0.1:5000" {
		t.Errorf("got %s, want another port of 127.0.0.1", addr)
	}
}

// flipper flips a bit of each piece of a body.
type flipper struct{ http.ResponseWriter }

func (f flipper) Write(p []byte) (int, error) {
	flipped := bytes.Clone(p)
	flipped[0] ^= 1
	return f.ResponseWriter.Write(flipped)
}

func TestDemoNoticesWrongBytes(t *testing.T) {
	upstream, err := startDemoUpstream(t.Context(), 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	defer upstream.stop()
	digest, err := upstream.fill(t.Context(), []int{1000})
	if err != nil {
		t.Fatal(err)
	}
	other, err := v1.NewHash("sha256:" + strings.Repeat("0", 64))
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		flip string // in paths with this
		want v1.Hash
		bad  bool
	}{
		"right bytes":    {"-", digest, false},
		"wrong blobs":    {"/blobs/", digest, true},
		"other manifest": {"-", other, true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if strings.Contains(r.URL.Path, test.flip) {
					w = flipper{w}
				}
				upstream.registry.ServeHTTP(w, r)
			}))
			defer server.Close()
			client, _ := newDemoClient(t.Context(), "", 0, io.Discard)
			if err := client.pull(t.Context(), server.Listener.Addr().String(), test.want); (err != nil) != test.bad {
				t.Errorf("got error %v, want one: %v", err, test.bad)
			}
		})
	}
}
