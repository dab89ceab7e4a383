package handler_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/textproto"
	"runtime/debug"
	"slices"
	"strconv"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// toNowhere is a logger that does all of the work and keeps nothing.
func toNowhere() *zap.Logger {
	return zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), zapcore.AddSync(io.Discard), zap.InfoLevel))
}

// warm is a larder that has an image with one layer of this size, and in memory
// what is kept there.
func warm(tb testing.TB, size int64, s setup) (l *larder, manifest, blob string) {
	tb.Helper()
	s.logger = toNowhere()
	l = newLarder(tb, s)
	img := l.hub.AddImage("library/alpine", "1", random(tb, 1, size))
	manifest, blob = manifestPath("library/alpine", img.Manifest.String()), blobPath("library/alpine", img.Layers[0].Digest)
	for _, path := range []string{manifest, blob} {
		if a := l.ask(tb, "GET", path); a.StatusCode != 200 || a.err != nil {
			tb.Fatalf("GET %s: %d, %v", path, a.StatusCode, a.err)
		}
	}
	l.settle(tb)
	l.hub.Stop()
	l.ask(tb, "GET", blob)
	return l, manifest, blob
}

// keptAlive asks for the same thing again and again, hardly allocating.
type keptAlive struct {
	conn    net.Conn
	r       *bufio.Reader
	request []byte
}

func (l *larder) keepAlive(tb testing.TB, path string) *keptAlive {
	conn := l.dial(tb)
	if err := conn.SetDeadline(time.Time{}); err != nil {
		tb.Fatal(err)
	}
	return &keptAlive{conn, bufio.NewReaderSize(conn, 256<<10), []byte("GET " + path + " HTTP/1.1\r\nHost: localhost:5000\r\nUser-Agent: bench\r\n\r\n")}
}

func (k *keptAlive) get(tb testing.TB) {
	if _, err := k.conn.Write(k.request); err != nil {
		tb.Fatal(err)
	}
	length := -1
	for first := true; ; first = false {
		line, err := k.r.ReadSlice('\n')
		if err != nil || first && string(line) != "HTTP/1.1 200 OK\r\n" {
			tb.Fatalf("got %q, %v", line, err)
		}
		if len(line) == 2 {
			break
		}
		if name := textproto.TrimString(string(line[:15])); name == "Content-Length:" {
			length, _ = strconv.Atoi(textproto.TrimString(string(line[15:])))
		}
	}
	if _, err := k.r.Discard(length); err != nil {
		tb.Fatal(err)
	}
}

// toNobody is an http.ResponseWriter like net/http's that sends nothing.
type toNobody struct{ header http.Header }

func (w *toNobody) Header() http.Header              { return w.header }
func (w *toNobody) WriteHeader(int)                  {}
func (w *toNobody) Write(p []byte) (int, error)      { return len(p), nil }
func (w *toNobody) SetWriteDeadline(time.Time) error { return nil }
func (w *toNobody) ReadFrom(r io.Reader) (int64, error) {
	limited := r.(*io.LimitedReader)
	n := limited.N
	limited.N = 0
	return n, nil
}

// TestWarmRequestAllocations counts larder's own allocations, access log
// included: what net/http takes for a connection is not larder's.
func TestWarmRequestAllocations(t *testing.T) {
	if info, ok := debug.ReadBuildInfo(); !ok || slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		t.Skip("the race detector allocates, and empties pools")
	}
	for _, size := range []int64{100, 100_000} {
		l, manifest, blob := warm(t, size, setup{})
		for path, most := range map[string]float64{blob: 40, manifest: 60} {
			w := &toNobody{make(http.Header)}
			r := httptest.NewRequest("GET", path, nil).WithContext(t.Context())
			n := testing.AllocsPerRun(500, func() {
				clear(w.header)
				l.handler.ServeHTTP(w, r)
			})
			if t.Logf("GET %s of %d bytes takes %.0f allocations", path, size, n); n > most {
				t.Errorf("GET %s takes %.0f allocations, want %.0f at most", path, n, most)
			}
		}
	}
}

func BenchmarkWarmBlob(b *testing.B) {
	sizes := []int64{1 << 10, 64 << 10, 1 << 20, 64 << 20}
	for i, size := range append(sizes, sizes[:2]...) { // these from memory first
		from := setup{disk: i >= len(sizes)}
		b.Run(fmt.Sprintf("%dKiB/disk=%t", size>>10, from.disk || size > 64<<10), func(b *testing.B) {
			l, _, blob := warm(b, size, from)
			k := l.keepAlive(b, blob)
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				k.get(b)
			}
		})
	}
}

func BenchmarkWarmManifest(b *testing.B) {
	for _, from := range []setup{{}, {disk: true}} {
		b.Run(fmt.Sprintf("disk=%t", from.disk), func(b *testing.B) {
			l, manifest, _ := warm(b, 1000, from)
			k := l.keepAlive(b, manifest)
			b.ReportAllocs()
			for b.Loop() {
				k.get(b)
			}
		})
	}
}

func BenchmarkColdBlob(b *testing.B) {
	const size = 64 << 20
	l := newLarder(b, setup{logger: toNowhere()})
	for seed := uint64(1); b.Loop(); seed++ {
		b.StopTimer()
		data := random(b, seed, size)
		path := blobPath("a/b", l.hub.AddBlob("a/b", data))
		b.SetBytes(size)
		b.StartTimer()
		l.keepAlive(b, path).get(b)
	}
}
