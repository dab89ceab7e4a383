package pages_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"larder/handler/admin/pages"
)

// hostile is markup wherever it may land: in text, in an attribute, in a script.
const hostile = `</title></script><script>alert(1)</script>"' onload=alert(1) x='`

// poison sets every string that v leads to, and makes lists of one.
func poison(v reflect.Value) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(hostile)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		poison(v.Elem())
	case reflect.Interface:
		if v.Type() == reflect.TypeFor[error]() {
			v.Set(reflect.ValueOf(errors.New(hostile)))
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		poison(v.Index(0))
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(time.Now()))
			return
		}
		for _, field := range v.Fields() {
			if field.CanSet() {
				poison(field)
			}
		}
	case reflect.Int, reflect.Int64:
		v.SetInt(7)
	case reflect.Bool:
		v.SetBool(true)
	}
}

// newPages shows what is given.
func newPages(t *testing.T, s *pages.Status, found *pages.Images, err error) http.Handler {
	t.Helper()
	mux := http.NewServeMux()
	pages.New(pages.Config{
		Token: "secret", Status: func() *pages.Status { return s },
		Images: func(context.Context, pages.Search) (*pages.Images, error) { return found, err },
		Delete: func(*http.Request, string) (string, error) { return hostile, nil },
		Pin:    func(context.Context, string, bool) error { return errors.New(hostile) },
	}).Register(mux)
	return mux
}

// TestEverythingIsEscaped has markup in all that pages show.
func TestEverythingIsEscaped(t *testing.T) {
	s, images := new(pages.Status), new(pages.Images)
	poison(reflect.ValueOf(s).Elem())
	poison(reflect.ValueOf(images).Elem())
	h := newPages(t, s, images, nil)
	notice := func(action string) string {
		req := httptest.NewRequest("POST", "/images/"+action, strings.NewReader("token=secret&reference=x"))
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req)
		return w.Header().Get("Location")
	}
	for name, test := range map[string]struct {
		h    http.Handler
		path string
		want int // how often the text is there, at least
	}{
		"status":            {h, "/", 20},
		"images":            {h, "/images", 20},
		"the search":        {h, "/images?q=" + urlEncoded(hostile) + "&sort=" + urlEncoded(hostile) + "&last=" + urlEncoded(hostile), 20},
		"a notice":          {h, notice("delete"), 20},
		"a notice of wrong": {h, notice("pin"), 20},
		"an error":          {newPages(t, s, nil, errors.New(hostile)), "/images", 1},
	} {
		t.Run(name, func(t *testing.T) {
			w := httptest.NewRecorder()
			test.h.ServeHTTP(w, httptest.NewRequest("GET", test.path, nil))
			body := w.Body.String()
			if n := strings.Count(body, "alert(1)"); n < test.want {
				t.Errorf("the text is there %d times, want %d at least", n, test.want)
			}
			wantEscaped(t, body)
		})
	}
}

func urlEncoded(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		fmt.Fprintf(&b, "%%%02x", c)
	}
	return b.String()
}

// wantEscaped looks for what would end a tag, an attribute or a title early.
func wantEscaped(t *testing.T, body string) {
	t.Helper()
	for _, bad := range []string{"<script>", "</script><", `1)</`, `" onload`, `"' onload`, `' onload`} {
		if i := strings.Index(body, bad); i >= 0 {
			t.Errorf("%q is in the page: %s", bad, body[max(0, i-100):min(len(body), i+100)])
		}
	}
}

// stream reads events.
type stream struct {
	resp *http.Response
	body *bufio.Reader
}

func listen(t *testing.T, client *http.Client, url string) *stream {
	t.Helper()
	resp, err := client.Get(url + "/events")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return &stream{resp, bufio.NewReader(resp.Body)}
}

// next is the next event's parts.
func (s *stream) next() (parts map[string]string, err error) {
	line, err := s.body.ReadString('\n')
	if err != nil {
		return nil, err
	}
	if _, err := s.body.ReadString('\n'); err != nil { // an empty line ends it
		return nil, err
	}
	data, ok := strings.CutPrefix(line, "data: ")
	if !ok {
		return nil, fmt.Errorf("got line %q", line)
	}
	return parts, json.Unmarshal([]byte(data), &parts)
}

// pipes is a listener without sockets, which bubbles can't wait for.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	if c, ok := <-p; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}
func (p pipes) Close() error   { return nil }
func (p pipes) Addr() net.Addr { return new(net.UnixAddr) }

func servePipes(t *testing.T, h http.Handler) *http.Client {
	t.Helper()
	listener := make(pipes)
	server := &http.Server{Handler: h}
	go server.Serve(listener) // until the listener is closed
	transport := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		client, server := net.Pipe()
		listener <- server
		return client, nil
	}}
	t.Cleanup(func() {
		close(listener)
		server.Close()
		transport.CloseIdleConnections()
	})
	return &http.Client{Transport: transport}
}

// live is a server of pages in a bubble, whose Status counts.
func live(t *testing.T) (client *http.Client, asked *atomic.Int64, cancel func()) {
	t.Helper()
	asked = new(atomic.Int64)
	h := pages.New(pages.Config{Token: "secret", Status: func() *pages.Status {
		s := &pages.Status{Detail: fmt.Sprintf("%d<b>", asked.Add(1))}
		s.History.Now = time.Now()
		return s
	}})
	mux := http.NewServeMux()
	h.Register(mux)
	client = servePipes(t, mux)
	ctx, cancelRun := context.WithCancel(context.Background())
	t.Cleanup(cancelRun)
	go h.Run(ctx)
	return client, asked, cancelRun
}

func TestOneSnapshotASecondForAllWhoLook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, asked, _ := live(t)
		time.Sleep(time.Minute)
		if n := asked.Load(); n != 0 {
			t.Fatalf("nobody looks, and %d snapshots are made", n)
		}
		var all []*stream
		for range 5 {
			s := listen(t, client, "http://larder")
			first, err := s.next()
			if err != nil || len(first) != 12 || !strings.Contains(first["health"], "&lt;b&gt;") {
				t.Fatalf("at first %d parts, %q, %v", len(first), first["health"], err)
			}
			all = append(all, s)
		}
		before := asked.Load()
		for range 10 {
			for _, s := range all {
				if parts, err := s.next(); err != nil || len(parts) != 2 || parts["clock"] == "" || parts["health"] == "" { // what has changed
					t.Fatalf("then %q, %v", parts, err)
				}
			}
		}
		if n := asked.Load() - before; n != 10 {
			t.Errorf("%d snapshots in ten seconds", n)
		}
		for _, s := range all {
			s.resp.Body.Close()
		}
		time.Sleep(2 * time.Second) // for the server to notice
		before = asked.Load()
		if time.Sleep(time.Minute); asked.Load() != before {
			t.Error("all have left, and snapshots are made")
		}
	})
}

func TestListenersAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, _, _ := live(t)
		var all []*stream
		for i := range 33 {
			s := listen(t, client, "http://larder")
			if refused := s.resp.StatusCode == http.StatusServiceUnavailable; refused != (i == 32) {
				t.Fatalf("listener %d: got %s", i+1, s.resp.Status)
			}
			all = append(all, s)
		}
		all[0].resp.Body.Close()
		time.Sleep(2 * time.Second)
		if s := listen(t, client, "http://larder"); s.resp.StatusCode != http.StatusOK {
			t.Errorf("one has left, and the next gets %s", s.resp.Status)
		}
	})
}

func TestEventsEndWithRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, _, cancel := live(t)
		s := listen(t, client, "http://larder")
		if _, err := s.next(); err != nil {
			t.Fatal(err)
		}
		cancel()
		began := time.Now()
		if _, err := io.Copy(io.Discard, s.body); err != nil || time.Since(began) > time.Second {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
	})
}
