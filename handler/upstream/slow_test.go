package upstream_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"larder/handler/upstream"
	"larder/handler/upstream/upstreamtest"
)

// A caller who joins a handshake does not make one of his own when that takes too long.
func TestHandshakeTimesOutForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg, r := startPipe(t, upstream.Config{})
		reg.Fault(upstreamtest.Match{}, upstreamtest.StallHeaders())
		began, failed := time.Now(), make(chan error, 2)
		ask := func() { failed <- questions["get manifest"](ctx, r) }
		go ask()
		time.AfterFunc(5*time.Second, ask)
		for range 2 {
			if e := wantError(t, <-failed, 0); !e.Timeout() || time.Since(began) != 20*time.Second {
				t.Errorf("got %v after %v, want a timeout after 20s", e, time.Since(began))
			}
		}
		if n := pings(reg); n != 1 {
			t.Errorf("got %d pings, want one", n)
		}
	})
}

func TestTokenServerIsSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg, r := startPipe(t, upstream.Config{Keychain: user(password)})
		reg.RequireBearer("user", password, 0)
		reg.Fault(upstreamtest.Match{Path: "/token"}, upstreamtest.StallHeaders())
		began := time.Now()
		err := questions["get blob"](t.Context(), r)
		if e := wantError(t, err, 0); !e.Timeout() || time.Since(began) != 20*time.Second {
			t.Errorf("got %v after %v, want a timeout after 20s", err, time.Since(began))
		}
	})
}

func TestStalls(t *testing.T) {
	stall := upstreamtest.StallHeaders()
	for question, ask := range questions {
		for name, fault := range map[string]upstreamtest.Fault{"ping": onPing(stall), "all": stall, "body": upstreamtest.StallAfter(10)} {
			if name == "body" && (strings.HasPrefix(question, "head") || question == "get blob") {
				continue
			}
			t.Run(question+" "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					reg, r := startPipe(t, upstream.Config{})
					match := upstreamtest.Match{}
					if name != "ping" {
						match.Path = page(question)
					}
					reg.Fault(match, fault)
					began := time.Now()
					err := ask(t.Context(), r)
					e := wantError(t, err, 0)
					wantUnreachable(t, err, true)
					if took := time.Since(began); !e.Timeout() || took != 20*time.Second {
						t.Errorf("got %v after %v, want a timeout after 20s", err, took)
					}
					if n := len(reg.Requests()); n > 2 {
						t.Errorf("got %d requests, want no second try", n)
					}
				})
			})
		}
	}
}

func TestStalledBlob(t *testing.T) {
	tests := map[string]struct {
		fault  upstreamtest.Fault
		offset int64
		want   int
	}{
		"body": {upstreamtest.StallAfter(20), 0, 20},
		"part": {upstreamtest.StallAfter(5), 10, 5},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				reg, r := startPipe(t, upstream.Config{})
				reg.Fault(upstreamtest.Match{Path: "/blobs/"}, test.fault)
				body, _ := open(t, r, digest.FromBytes(blobData), test.offset, -1)
				began := time.Now()
				got, err := io.ReadAll(body)
				if took := time.Since(began); took != 25*time.Second || len(got) != test.want {
					t.Errorf("got %q, %v after %v, want %d bytes and 25s", got, err, took, test.want)
				}
				if err == nil || !strings.Contains(err.Error(), "in time") {
					t.Errorf("got %v, want that no byte came in time", err)
				}
			})
		})
	}
}

func TestSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg, r := startPipe(t, upstream.Config{})
		data := bytes.Repeat(blobData, 10<<10) // more than buffers hold
		body, _ := open(t, r, reg.AddBlob(repoName, data), 0, -1)
		for piece := range slices.Chunk(data, 64<<10) {
			time.Sleep(time.Minute)
			p := make([]byte, len(piece))
			if _, err := io.ReadFull(body, p); err != nil || !bytes.Equal(p, piece) {
				t.Fatalf("got %.10q, %v, want %.10q", p, err, piece)
			}
		}
	})
}

func TestSlowBlob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg, r := startPipe(t, upstream.Config{})
		reg.Fault(upstreamtest.Match{Path: "/blobs/"}, upstreamtest.IgnoreRange(), every(20*time.Second))
		body, _ := open(t, r, digest.FromBytes(blobData), 0, -1)
		if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, blobData) {
			t.Errorf("got %q, %v", got, err)
		}
	})
}

// every sends a byte at a time.
func every(pause time.Duration) upstreamtest.Fault {
	return func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			for i := range blobData {
				w.Write(blobData[i : i+1])
				http.NewResponseController(w).Flush()
				time.Sleep(pause)
			}
		})
	}
}

func TestReaderLeaves(t *testing.T) {
	leave := map[string]func(cancel context.CancelFunc, body io.Closer){
		"cancel": func(cancel context.CancelFunc, _ io.Closer) { cancel() },
		"close":  func(_ context.CancelFunc, body io.Closer) { body.Close() },
	}
	for name, leave := range leave {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				reg, r := startPipe(t, upstream.Config{})
				left := make(chan struct{})
				reg.Fault(upstreamtest.Match{Path: "/blobs/"}, noticing(left), upstreamtest.StallAfter(20))
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				body, _, err := r.OpenBlob(ctx, digest.FromBytes(blobData), 0, -1)
				if err != nil {
					t.Fatal(err)
				}
				defer body.Close()
				if _, err := io.ReadFull(body, make([]byte, 20)); err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				time.AfterFunc(time.Second, func() { leave(cancel, body) })
				_, err = body.Read(make([]byte, 1))
				if took := time.Since(began); err == nil || took != time.Second {
					t.Errorf("got %v after %v, want an error at once", err, took)
				}
				if name == "cancel" && !errors.Is(err, context.Canceled) {
					t.Errorf("got %v, want that the context is cancelled", err)
				}
				<-left // upstream notices, too
			})
		})
	}
}

// noticing closes left when a request is over.
func noticing(left chan<- struct{}) upstreamtest.Fault {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			defer close(left)
			next.ServeHTTP(w, req)
		})
	}
}

// Cancelled before there is an answer.
func TestCallerLeaves(t *testing.T) {
	for question, ask := range questions {
		synctest.Test(t, func(t *testing.T) {
			reg, r := startPipe(t, upstream.Config{})
			reg.Fault(upstreamtest.Match{Path: page(question)}, upstreamtest.StallHeaders())
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			began := time.Now()
			err := ask(ctx, r)
			if took := time.Since(began); !errors.Is(err, context.DeadlineExceeded) || took != time.Second {
				t.Errorf("%s: got %v after %v, want the caller's deadline", question, err, took)
			}
			if n := reg.Count("", page(question)); n != 1 {
				t.Errorf("got %d requests, want one", n)
			}
		})
	}
}
