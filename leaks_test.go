package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"larder/handler/upstream/upstreamtest"
)

// stock is what this process has: goroutines, and open files by what they are.
type stock struct {
	goroutines int
	files      map[string]int
}

func takeStock() stock {
	s := stock{goroutines: runtime.NumGoroutine(), files: make(map[string]int)}
	links, _ := filepath.Glob("/proc/self/fd/*") // none where there is no such thing
	for _, link := range links {
		if file, err := os.Readlink(link); err == nil { // not the one that lists them
			kind, _, _ := strings.Cut(file, ":[") // sockets have numbers
			s.files[kind]++
		}
	}
	return s
}

// wantNoMore waits until this process has no more than s, and says what it has
// if that does not come to be.
func (s stock) wantNoMore() error {
	for end := time.Now().Add(patience); ; {
		now := takeStock()
		var more []string
		if now.goroutines > s.goroutines {
			more = append(more, fmt.Sprintf("%d goroutines, were %d", now.goroutines, s.goroutines))
		}
		for file, n := range now.files {
			if n > s.files[file] && !strings.Contains(file, "[event") { // the runtime's own, made when first needed
				more = append(more, fmt.Sprintf("%d open %s, were %d", n, file, s.files[file]))
			}
		}
		if len(more) == 0 {
			return nil
		}
		if time.Now().After(end) {
			stacks := make([]byte, 1<<20)
			return fmt.Errorf("%s\n%s", strings.Join(more, "; "), stacks[:runtime.Stack(stacks, true)])
		}
		<-time.After(10 * time.Millisecond)
	}
}

// TestNothingIsLeftWhenLarderStops stops larder in the middle of everything. It
// runs alone, so that what is counted is its own.
func TestNothingIsLeftWhenLarderStops(t *testing.T) {
	tests := map[string]func(t *testing.T, w *world){
		"at once": func(*testing.T, *world) {},
		"after a pull": func(t *testing.T, w *world) {
			w.pull(t, "healthy")
		},
		"after a range": func(_ *testing.T, w *world) {
			w.ask(w.blob(), "1000-1999")
		},
		"after upstream went away": func(t *testing.T, w *world) {
			w.hub.Stop()
			w.crowd(5, appTag, "")
		},
		"after wrong bytes": func(t *testing.T, w *world) {
			w.hub.Fault(upstreamtest.Match{Path: w.blob()}, upstreamtest.FlipByte(9))
			w.crowd(5, w.blob(), "")
		},
		"in a stalled blob": func(t *testing.T, w *world) {
			w.hub.Fault(upstreamtest.Match{Path: w.blob()}, upstreamtest.StallAfter(usual/2))
			leaveInTheMiddle(t, w, 3)
		},
		"in a stalled blob of many parts": func(t *testing.T, w *world) {
			d := w.hub.AddBlob(appName, seeded(t, 5, large))
			w.hub.Fault(upstreamtest.Match{Path: d.String()}, upstreamtest.StallAfter(1<<20))
			go w.ask(appPath+"blobs/"+d.String(), "")
			w.await(t, "GET", d.String(), 1)
		},
		"in a stalled manifest": func(t *testing.T, w *world) {
			w.hub.Fault(upstreamtest.Match{Path: "/manifests/"}, upstreamtest.StallHeaders())
			go w.ask(appTag, "")
			w.await(t, "", "/manifests/", 1)
		},
		"in a stalled handshake": func(t *testing.T, w *world) {
			w.hub.Fault(upstreamtest.Match{}, upstreamtest.StallHeaders())
			go w.ask(appTag, "")
			w.await(t, "", "/v2/", 1)
		},
		"with idle connections": func(t *testing.T, w *world) {
			for range 5 {
				conn := w.dial(t)
				io.WriteString(conn, "GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
			}
		},
		"with half a request": func(t *testing.T, w *world) {
			io.WriteString(w.dial(t), "GET /v2/ HTTP/1.1\r\nHo")
		},
	}
	for name, use := range tests {
		t.Run(name, func(t *testing.T) {
			http.DefaultTransport.(*http.Transport).CloseIdleConnections()
			before := takeStock()
			t.Run("use", func(t *testing.T) { // at whose end everything is stopped
				w := newWorld(t, []string{"LARDER_SHUTDOWN_GRACE=200ms"}, usual)
				use(t, w)
				w.cancel()
				if err := w.wait(t); err != nil {
					t.Errorf("larder ended with %v", err)
				}
			})
			http.DefaultTransport.(*http.Transport).CloseIdleConnections()
			if err := before.wantNoMore(); err != nil {
				t.Error(err)
			}
		})
	}
}

// await waits until upstream has got so many requests.
func (w *world) await(t *testing.T, method, path string, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := w.hub.Await(ctx, method, path, n); err != nil {
		t.Fatalf("upstream has not got %d %s %s: %v", n, method, path, err)
	}
}

// dial connects to larder until the test ends.
func (w *world) dial(t *testing.T) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", w.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	return conn
}

// leaveInTheMiddle has clients begin to read the blob and then hang up.
func leaveInTheMiddle(t *testing.T, w *world, clients int) {
	t.Helper()
	for range clients {
		ctx, leave := context.WithCancel(t.Context())
		resp, err := w.open(ctx, w.blob())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(io.Discard, resp.Body, 1000); err != nil {
			t.Error(err)
		}
		leave()
		resp.Body.Close()
	}
}
