package middleware_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"larder/handler/middleware"
)

// all are the middlewares as main chains them.
var all = []string{"requestid", "log", "audit", "metrics", "recover", "auth", "allow", "readonly", "limit"}

// taker is an http.ResponseWriter that, like net/http's, takes a file as a
// whole, and counts how it was given bytes.
type taker struct {
	*httptest.ResponseRecorder
	files  int // in an io.LimitedReader, as sendfile needs them
	others int
	writes int
	limit  int64 // bytes taken before an error; 0: all
	taken  int64
}

var errTaken = errors.New("enough")

func (k *taker) Write(p []byte) (int, error) {
	k.writes++
	return k.ResponseRecorder.Write(p)
}

func (k *taker) ReadFrom(r io.Reader) (int64, error) {
	limited, ok := r.(*io.LimitedReader)
	if ok {
		_, ok = limited.R.(*os.File)
	}
	if ok {
		k.files++
	} else {
		k.others++
	}
	if k.limit > 0 {
		r = io.LimitReader(r, k.limit-k.taken)
	}
	n, err := io.Copy(k.ResponseRecorder, r)
	k.taken += n
	if err == nil && k.limit > 0 && k.taken == k.limit {
		err = errTaken
	}
	return n, err
}

// arriving is content that sends itself, as a blob does that is on its way.
type arriving struct {
	*os.File // embedding it is right only here, where all has arrived
	sends    int
}

func (a *arriving) SendTo(w io.Writer, n int64) (int64, error) {
	a.sends++
	return io.CopyN(w, a.File, n)
}

func tempFile(t *testing.T, size int) (*os.File, []byte) {
	t.Helper()
	data := bytes.Repeat([]byte("larder "), size/7+1)[:size]
	name := filepath.Join(t.TempDir(), "blob")
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f, data
}

// through runs h behind all middlewares into w.
func through(t *testing.T, w http.ResponseWriter, r *http.Request, opts middleware.Options, h http.HandlerFunc) {
	t.Helper()
	chained, err := middleware.Builtin().Chain(h, opts, all...)
	if err != nil {
		t.Fatal(err)
	}
	chained.ServeHTTP(w, r)
}

func TestFilesReachNetHTTPWhole(t *testing.T) {
	const size = 5<<20 + 3
	for name, rng := range map[string]string{"all": "", "range": "bytes=1000000-4999999"} {
		t.Run(name, func(t *testing.T) {
			f, data := tempFile(t, size)
			w := &taker{ResponseRecorder: httptest.NewRecorder()}
			r := httptest.NewRequest("GET", "/", nil)
			want := data
			if rng != "" {
				r.Header.Set("Range", rng)
				want = data[1000000:5000000]
			}
			var o middleware.Observation
			through(t, w, r, middleware.Options{Observe: func(got middleware.Observation) { o = got }}, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "application/octet-stream")
				http.ServeContent(w, r, "", time.Time{}, f)
			})
			if !bytes.Equal(w.Body.Bytes(), want) || o.Bytes != int64(len(want)) {
				t.Errorf("sent %d bytes, counted %d, want %d", w.Body.Len(), o.Bytes, len(want))
			}
			if w.files == 0 || w.others > 0 {
				t.Errorf("net/http was given a file %d times and something else %d times", w.files, w.others)
			}
		})
	}
}

func TestContentThatSendsItself(t *testing.T) {
	f, data := tempFile(t, 3<<20)
	w := &taker{ResponseRecorder: httptest.NewRecorder()}
	content := &arriving{File: f}
	through(t, w, httptest.NewRequest("GET", "/", nil), middleware.Options{}, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, r, "", time.Time{}, content)
	})
	if content.sends == 0 || w.files != content.sends || w.others > 0 || !bytes.Equal(w.Body.Bytes(), data) {
		t.Errorf("sent itself %d times, %d files and %d others reached net/http", content.sends, w.files, w.others)
	}
}

func TestCopyOfUnknownLengthEndsAtTheEnd(t *testing.T) {
	for _, size := range []int{0, 1, 1 << 20, 1<<20 + 1, 3 << 20} {
		w := httptest.NewRecorder()
		data := bytes.Repeat([]byte("x"), size)
		through(t, w, httptest.NewRequest("GET", "/", nil), middleware.Options{}, func(w http.ResponseWriter, _ *http.Request) {
			n, err := io.Copy(w, io.MultiReader(bytes.NewReader(data))) // without WriteTo
			if n != int64(size) || err != nil {
				t.Errorf("copied %d (%v), want %d", n, err, size)
			}
		})
		if w.Body.Len() != size {
			t.Errorf("%d bytes arrived, want %d", w.Body.Len(), size)
		}
	}
}

// An HTTP/2 client would take a stream that ends well for a whole answer.
func TestShortAnswerIsAborted(t *testing.T) {
	tests := map[string]struct {
		method, length, body string
		aborted              bool
	}{
		"short":     {"GET", "10", "part", true},
		"nothing":   {"GET", "10", "", true},
		"whole":     {"GET", "4", "part", false},
		"no length": {"GET", "", "part", false},
		"HEAD":      {"HEAD", "10", "", false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if p := recover(); (p == http.ErrAbortHandler) != test.aborted {
					t.Errorf("aborted with %v, want that: %v", p, test.aborted)
				}
			}()
			through(t, httptest.NewRecorder(), httptest.NewRequest(test.method, "/", nil), middleware.Options{}, func(w http.ResponseWriter, _ *http.Request) {
				if test.length != "" {
					w.Header().Set("Content-Length", test.length)
				}
				w.WriteHeader(200)
				io.WriteString(w, test.body)
			})
		})
	}
}

// breaking fails after its bytes.
type breaking struct{ io.Reader }

func (b breaking) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err == io.EOF {
		err = io.ErrClosedPipe
	}
	return n, err
}

func TestErrorsOfACopyAreKept(t *testing.T) {
	w := &taker{ResponseRecorder: httptest.NewRecorder(), limit: 1<<20 + 100}
	f, _ := tempFile(t, 3<<20)
	var o middleware.Observation
	observe := middleware.Options{Observe: func(got middleware.Observation) { o = got }}
	through(t, w, httptest.NewRequest("GET", "/", nil), observe, func(w http.ResponseWriter, _ *http.Request) {
		if n, err := io.Copy(w, io.LimitReader(f, 3<<20)); n != 1<<20+100 || !errors.Is(err, errTaken) {
			t.Errorf("copied %d, %v; want the writer's error", n, err)
		}
	})
	if o.Bytes != 1<<20+100 {
		t.Errorf("counted %d bytes", o.Bytes)
	}
	through(t, httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil), observe, func(w http.ResponseWriter, _ *http.Request) {
		if n, err := io.Copy(w, breaking{bytes.NewReader(make([]byte, 100))}); n != 100 || !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("copied %d, %v; want the reader's error", n, err)
		}
	})
}

// What net/http's writer can do otherwise is found behind the recorder.
func TestRecorderUnwraps(t *testing.T) {
	s, _ := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Error(err)
		}
	}, middleware.Options{}, all...)
	if _, _, err := get(t, s.URL); err != nil {
		t.Error(err)
	}
}

// pipes is a listener without sockets, for bubbles.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	if c, ok := <-p; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}
func (p pipes) Close() error   { return nil }
func (p pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

// connect serves h behind all middlewares on one connection, until the test
// ends, and tells what the metrics middleware sees.
func connect(t *testing.T, h http.HandlerFunc) (net.Conn, <-chan middleware.Observation) {
	t.Helper()
	seen := make(chan middleware.Observation, 10)
	chained, err := middleware.Builtin().Chain(h, middleware.Options{Observe: func(o middleware.Observation) { seen <- o }}, all...)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: chained}
	l := make(pipes, 1)
	client, conn := net.Pipe()
	l <- conn
	go server.Serve(l)
	t.Cleanup(func() {
		close(l)
		client.Close()
		server.Shutdown(context.Background())
	})
	return client, seen
}

func ask(t *testing.T, conn net.Conn, r *bufio.Reader, method string) *http.Response {
	t.Helper()
	if _, err := io.WriteString(conn, method+" / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(r, &http.Request{Method: method})
	if err != nil {
		t.Fatal(err)
	}
	return res
}

const size = 8 << 20

// senders are the ways in which a body leaves.
var senders = map[string]func(w http.ResponseWriter){
	"copy": func(w http.ResponseWriter) { io.Copy(w, io.LimitReader(zeros{}, size)) },
	"writes": func(w http.ResponseWriter) {
		for range size >> 15 {
			if _, err := w.Write(make([]byte, 32<<10)); err != nil {
				return
			}
		}
	},
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func sized(send func(w http.ResponseWriter)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if w.Header().Set("Content-Length", strconv.Itoa(size)); r.Method == "GET" {
			send(w)
		}
	}
}

func TestStalledClientIsDropped(t *testing.T) {
	for name, send := range senders {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				conn, seen := connect(t, sized(send))
				r := bufio.NewReader(conn)
				res := ask(t, conn, r, "GET")
				if _, err := io.CopyN(io.Discard, res.Body, 3<<20); err != nil {
					t.Fatal(err)
				}
				start := time.Now() // and the client reads no more
				o := <-seen
				if took := time.Since(start); took < time.Minute || took > 3*time.Minute {
					t.Errorf("the client was dropped after %v, want 2 minutes", took)
				}
				if o.Status != 200 || o.Bytes < 3<<20 || o.Bytes >= size {
					t.Errorf("observed %+v", o)
				}
				if n, err := io.Copy(io.Discard, res.Body); !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Errorf("%d bytes more, %v; want a broken body", n, err)
				}
			})
		})
	}
}

func TestSlowClientIsServedAndKept(t *testing.T) {
	for name, send := range senders {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				conn, seen := connect(t, sized(send))
				r := bufio.NewReader(conn)
				res := ask(t, conn, r, "GET")
				for range size >> 18 { // 256 KiB in 25 s: 1 MiB in 100 s
					time.Sleep(25 * time.Second)
					if _, err := io.CopyN(io.Discard, res.Body, 256<<10); err != nil {
						t.Fatal(err)
					}
				}
				if o := <-seen; o.Bytes != size || o.Duration < 10*time.Minute {
					t.Errorf("observed %+v", o)
				}
				time.Sleep(10 * time.Minute) // an answer without a body sets no new deadline
				if res := ask(t, conn, r, "HEAD"); res.StatusCode != 200 {
					t.Errorf("the next answer on this connection has status %d", res.StatusCode)
				}
			})
		})
	}
}
