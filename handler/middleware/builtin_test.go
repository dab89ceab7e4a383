package middleware_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"larder/handler/middleware"
)

// serve runs h behind the named middlewares on a real server.
func serve(t *testing.T, h http.HandlerFunc, opts middleware.Options, names ...string) (*httptest.Server, *observer.ObservedLogs) {
	t.Helper()
	core, logs := observer.New(zap.DebugLevel)
	opts.Logger = zap.New(core)
	chained, err := middleware.Builtin().Chain(h, opts, names...)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(chained)
	s.Config.ErrorLog = zap.NewStdLog(zap.NewNop())
	s.Start()
	t.Cleanup(s.Close)
	return s, logs
}

func get(t *testing.T, url string, headers ...string) (res *http.Response, body string, err error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Add(name, value)
	}
	res, err = http.DefaultClient.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return res, string(b), err
}

func ok(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "fine") }

func TestRecover(t *testing.T) {
	tests := map[string]struct {
		h      http.HandlerFunc
		status int // 0: the connection breaks
		logged int
	}{
		"no panic":     {ok, 200, 0},
		"before":       {func(http.ResponseWriter, *http.Request) { panic("oops: secret") }, 500, 1},
		"with headers": {func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("ETag", `"x"`); panic(io.EOF) }, 500, 1},
		"after header": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(200); panic("oops") }, 0, 1},
		"after bytes": {func(w http.ResponseWriter, _ *http.Request) {
			w.Write(make([]byte, 10_000)) // more than net/http keeps back
			panic("oops")
		}, 0, 1},
		"abort":         {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, 0, 0},
		"wrapped abort": {func(http.ResponseWriter, *http.Request) { panic(fmt.Errorf("x: %w", http.ErrAbortHandler)) }, 0, 0},
		"out of range":  {func(_ http.ResponseWriter, r *http.Request) { _ = r.Header["None"][0] }, 500, 1},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s, logs := serve(t, test.h, middleware.Options{}, "recover")
			res, body, err := get(t, s.URL+"/v2/?secret=hush")
			if (err != nil) != (test.status == 0) {
				t.Errorf("got error %v, want status %d", err, test.status)
			}
			if test.status == 500 && err == nil {
				if res.StatusCode != 500 || res.Header.Get("ETag") != "" || !strings.Contains(body, `"UNKNOWN"`) || strings.Contains(body, "oops") {
					t.Errorf("got %d %v with %s, want a 500 that says nothing", res.StatusCode, res.Header, body)
				}
			}
			lines := logs.FilterMessage("request panicked").All()
			if len(lines) != test.logged {
				t.Fatalf("%d lines logged, want %d", len(lines), test.logged)
			}
			if test.logged > 0 {
				if text := fmt.Sprint(lines[0].ContextMap()); !strings.Contains(text, "builtin_test.go") || strings.Contains(text, "hush") {
					t.Errorf("logged %s, want where it was, without the query", text)
				}
			}
			if _, _, err := get(t, s.URL); (err != nil) != (test.status == 0) { // the server lives
				t.Errorf("the next request: %v", err)
			}
		})
	}
}

// With recover inside them, log and metrics know how a panic was answered.
func TestPanicIsLoggedAs500(t *testing.T) {
	var seen middleware.Observation
	observed := make(chan struct{})
	s, logs := serve(t, func(http.ResponseWriter, *http.Request) { panic("oops") },
		middleware.Options{Observe: func(o middleware.Observation) { seen = o; close(observed) }}, "metrics", "log", "recover")
	if res, _, err := get(t, s.URL); err != nil || res.StatusCode != 500 {
		t.Fatalf("got %v, %v", res, err)
	}
	<-observed
	lines := logs.FilterMessage("request").All()
	if len(lines) != 1 || lines[0].ContextMap()["status"] != int64(500) || seen.Status != 500 {
		t.Errorf("logged %v and counted %d, want 500", lines, seen.Status)
	}
}

func TestRequestID(t *testing.T) {
	s, _ := serve(t, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, middleware.NoteOf(r.Context()).ID) },
		middleware.Options{}, "requestid")
	tests := map[string]struct {
		id   string
		kept bool
	}{
		"none":         {"", false},
		"one":          {"0af7651916cd43dd-b7ad/x:1", true},
		"128":          {strings.Repeat("a", 128), true},
		"129":          {strings.Repeat("a", 129), false},
		"space":        {"a b", false},
		"quote":        {`a"b`, false},
		"backslash":    {`a\b`, false},
		"tab":          {"a\tb", false},
		"not ASCII":    {"é", false},
		"other script": {"日本", false},
	}
	seen := make(map[string]bool)
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			res, body, err := get(t, s.URL, "X-Request-Id: "+test.id)
			if err != nil {
				t.Fatal(err)
			}
			id := res.Header.Get("X-Request-Id")
			if id != body || id == "" || (id == test.id) != test.kept {
				t.Errorf("answer has %q and note %q, asked with %q", id, body, test.id)
			}
			if seen[id] {
				t.Errorf("id %q was given twice", id)
			}
			seen[id] = true
		})
	}
}

func TestAccessLog(t *testing.T) {
	s, logs := serve(t, func(w http.ResponseWriter, r *http.Request) {
		n := middleware.NoteOf(r.Context())
		n.Repository, n.Reference, n.Outcome, n.Err = "docker.io/library/alpine", "3.20", "stale", errors.New("no answer")
		w.WriteHeader(http.StatusAccepted)
		io.WriteString(w, "fine")
	}, middleware.Options{Verify: everybody}, "requestid", "log", "auth")
	if _, _, err := get(t, s.URL+"/v2/%0Aalpine?token=hush", "Authorization: Basic dXNlcjpodXNoaHVzaA==", "X-Request-Id: me", "Cookie: hush"); err != nil {
		t.Fatal(err)
	}
	s.Close() // lines come after answers
	lines := logs.All()
	if len(lines) != 1 || lines[0].Message != "request" || lines[0].Level != zap.InfoLevel {
		t.Fatalf("logged %v, want one line", lines)
	}
	fields := lines[0].ContextMap()
	for key, want := range map[string]any{
		"id": "me", "method": "GET", "path": "/v2/\nalpine", "status": int64(202), "bytes": int64(4), "user": "user", "broken": nil,
		"repository": "docker.io/library/alpine", "reference": "3.20", "outcome": "stale", "error": "no answer",
	} {
		if fields[key] != want {
			t.Errorf("%s is %v, want %v", key, fields[key], want)
		}
	}
	if client, _ := fields["client"].(string); !strings.HasPrefix(client, "127.0.0.1:") {
		t.Errorf("client is %v", fields["client"])
	}
	if took, ok := fields["took"].(time.Duration); !ok || took <= 0 {
		t.Errorf("took is %v", fields["took"])
	}
	if text, err := json.Marshal(fields); err != nil || strings.Contains(string(text), "hush") || strings.Contains(string(text), "dXNl") {
		t.Errorf("logged %s (%v), want no secrets", text, err)
	}
}

func TestAccessLogOfAnswersThatWereNot(t *testing.T) {
	tests := map[string]struct {
		h      http.HandlerFunc
		status int64
		broken bool
	}{
		"nothing": {func(http.ResponseWriter, *http.Request) {}, middleware.StatusLeft, false},
		"part": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "10")
			io.WriteString(w, "part")
		}, 200, true},
		"informational": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusEarlyHints)
			w.WriteHeader(http.StatusNotFound)
		}, 404, false},
		"no content": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "10")
			w.WriteHeader(304)
		}, 304, false},
		"whole": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "4")
			io.WriteString(w, "fine")
		}, 200, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s, logs := serve(t, test.h, middleware.Options{}, "log")
			_, body, err := get(t, s.URL)
			if (err != nil) != test.broken {
				t.Errorf("got %q, %v; want it broken: %v", body, err, test.broken)
			}
			s.Close()
			fields := logs.All()[0].ContextMap()
			if fields["status"] != test.status || (fields["broken"] != nil) != test.broken {
				t.Errorf("logged %v, want status %d, broken %v", fields, test.status, test.broken)
			}
		})
	}
}

// Log and metrics see what a HEAD would have sent as sent: nothing is missing.
func TestHeadIsNotBroken(t *testing.T) {
	s, logs := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "10")
		w.WriteHeader(200)
	},
		middleware.Options{}, "log")
	res, err := http.Head(s.URL)
	if err != nil || res.ContentLength != 10 {
		t.Fatalf("got %v, %v", res, err)
	}
	s.Close()
	if fields := logs.All()[0].ContextMap(); fields["broken"] != nil || fields["bytes"] != int64(0) {
		t.Errorf("logged %v", fields)
	}
}

func TestObservation(t *testing.T) {
	observed := make(chan middleware.Observation, 1)
	s, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
		n := middleware.NoteOf(r.Context())
		n.Kind, n.Outcome, n.Upstream = "blob", "join", "ghcr.io"
		io.Copy(w, io.LimitReader(strings.NewReader("0123456789"), 6))
	}, middleware.Options{Observe: func(o middleware.Observation) { observed <- o }}, "metrics", "readonly")
	if _, _, err := get(t, s.URL); err != nil {
		t.Fatal(err)
	}
	o := <-observed
	if o.Kind != "blob" || o.Outcome != "join" || o.Upstream != "ghcr.io" || o.Method != "GET" || o.Status != 200 || o.Bytes != 6 || o.Duration <= 0 {
		t.Errorf("observed %+v", o)
	}
	res, err := http.Post(s.URL, "text/plain", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if o := <-observed; o.Status != 405 || o.Kind != "" {
		t.Errorf("observed %+v, want a 405 of no kind", o)
	}
}

func TestAuth(t *testing.T) {
	var asked int
	s, _ := serve(t, ok, middleware.Options{Verify: func(_ context.Context, u, p string) (bool, error) {
		asked++
		return u == "user" && p == "pass:word", nil
	}}, "auth", "readonly")
	basic := func(u, p string) string {
		r := httptest.NewRequest("GET", "/", nil)
		r.SetBasicAuth(u, p)
		return "Authorization: " + r.Header.Get("Authorization")
	}
	tests := map[string]struct {
		headers []string
		ok      bool
		asked   int
	}{
		"right":          {[]string{basic("user", "pass:word")}, true, 1},
		"wrong password": {[]string{basic("user", "pass")}, false, 1},
		"wrong user":     {[]string{basic("root", "pass:word")}, false, 1},
		"empty":          {[]string{basic("", "")}, false, 1},
		"none":           {nil, false, 0},
		"bearer":         {[]string{"Authorization: Bearer dXNlcjpwYXNzOndvcmQ="}, false, 0},
		"not base64":     {[]string{"Authorization: Basic !!!"}, false, 0},
		"no colon":       {[]string{"Authorization: Basic dXNlcg=="}, false, 0},
		"second header":  {[]string{basic("user", "x"), basic("user", "pass:word")}, false, 1},
	}
	for name, test := range tests {
		for _, path := range []string{"/v2/", "/v2", "/v2/a/blobs/sha256:x", "/", "/metrics"} {
			t.Run(name+" "+path, func(t *testing.T) {
				asked = 0
				res, body, err := get(t, s.URL+path, test.headers...)
				if err != nil {
					t.Fatal(err)
				}
				if asked != test.asked {
					t.Errorf("the password was checked %d times, want %d", asked, test.asked)
				}
				if test.ok {
					if res.StatusCode != 200 || body != "fine" {
						t.Errorf("got %d %q", res.StatusCode, body)
					}
					return
				}
				if res.StatusCode != 401 || !strings.Contains(body, `"UNAUTHORIZED"`) || res.Header.Get("Content-Type") != "application/json" {
					t.Errorf("got %d with %s", res.StatusCode, body)
				}
				if got := res.Header.Values("WWW-Authenticate"); len(got) != 1 || got[0] != `Basic realm="larder", charset="UTF-8"` {
					t.Errorf("WWW-Authenticate is %q", got)
				}
			})
		}
	}
	// Who may not read is not told what else could be done.
	res, err := http.Post(s.URL+"/v2/", "text/plain", nil)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 401 || res.Header.Get("Allow") != "" {
		t.Errorf("POST got %d %v", res.StatusCode, res.Header)
	}
}

func TestPasswordThatCannotBeCheckedNow(t *testing.T) {
	s, logs := serve(t, ok, middleware.Options{Verify: func(context.Context, string, string) (bool, error) {
		return false, errors.New("busy")
	}}, "log", "auth")
	res, body, err := get(t, s.URL, "Authorization: Basic dXNlcjpwYXNz")
	if err != nil || res.StatusCode != 429 || res.Header.Get("Retry-After") != "1" || !strings.Contains(body, `"TOOMANYREQUESTS"`) {
		t.Errorf("got %v with %q, %v", res, body, err)
	}
	if _, present := res.Header["Www-Authenticate"]; present {
		t.Error("a client is asked for another password")
	}
	s.Close()
	if n := logs.FilterField(zap.Error(errors.New("busy"))).Len(); n != 1 {
		t.Errorf("%d lines say why, want 1", n)
	}
}

// everybody is let in.
func everybody(context.Context, string, string) (bool, error) { return true, nil }

func TestNoPasswordsWithoutVerify(t *testing.T) {
	s, _ := serve(t, ok, middleware.Options{}, "auth")
	if res, _, err := get(t, s.URL, "Authorization: Basic dXNlcjpwYXNz"); err != nil || res.StatusCode != 200 || res.Header.Get("WWW-Authenticate") != "" {
		t.Errorf("got %v, %v", res, err)
	}
}

func TestReadonly(t *testing.T) {
	reached := 0
	s, _ := serve(t, func(http.ResponseWriter, *http.Request) { reached++ }, middleware.Options{}, "readonly")
	for _, method := range []string{"GET", "HEAD", "PUT", "POST", "PATCH", "DELETE", "OPTIONS", "TRACE", "MKCOL", "get"} {
		reached = 0
		req, err := http.NewRequestWithContext(context.Background(), method, s.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		res.Body.Close()
		read := method == "GET" || method == "HEAD"
		if read != (reached == 1) || read != (res.StatusCode == 200) {
			t.Errorf("%s: got %d, handler reached %d times", method, res.StatusCode, reached)
		}
		if !read && (res.StatusCode != 405 || res.Header.Get("Allow") != "GET, HEAD" || !strings.Contains(string(body), `"UNSUPPORTED"`)) {
			t.Errorf("%s: got %d %v with %s", method, res.StatusCode, res.Header, body)
		}
	}
}
