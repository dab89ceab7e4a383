package middleware_test

import (
	"context"
	"errors"
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

const auditedDigest = "sha256:0a0a"

// byKind identifies /kind/reference.
func byKind(ctx context.Context, r *http.Request) context.Context {
	n := middleware.NoteOf(ctx)
	n.Kind, n.Reference, _ = strings.Cut(r.URL.Path[1:], "/")
	if n.Kind != "" && n.Kind != "base" && n.Reference != "unlisted" {
		n.Upstream, n.Repository = "docker.io", "docker.io/library/alpine"
	}
	return ctx
}

// audit runs h behind the middlewares as main chains them.
func audit(t *testing.T, h http.HandlerFunc) (*httptest.Server, *observer.ObservedLogs) {
	t.Helper()
	core, records := observer.New(zap.InfoLevel)
	s, _ := serve(t, h, middleware.Options{
		Audit: zap.New(core), Identify: byKind,
		Verify:  func(_ context.Context, u, _ string) (bool, error) { return u == "user", nil },
		MayPull: func(_, _ string) bool { return true },
	}, all...)
	return s, records
}

func TestAudit(t *testing.T) {
	answer := func(status int, header, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			middleware.NoteOf(r.Context()).Outcome = "hit"
			if name, value, ok := strings.Cut(header, ": "); ok {
				w.Header().Set(name, value)
			}
			w.WriteHeader(status)
			io.WriteString(w, body)
		}
	}
	tests := map[string]struct {
		method, path string
		h            http.HandlerFunc
		status       int64
		digest       string
		bytes        int64
		verdict      string // "": no record
	}{
		"blob":         {"GET", "blob/" + auditedDigest, answer(200, "", "fine"), 200, auditedDigest, 4, "served"},
		"tag":          {"GET", "manifest/3.20", answer(200, "Docker-Content-Digest: sha256:0b", "fine"), 200, "sha256:0b", 4, "served"},
		"HEAD":         {"HEAD", "manifest/3.20", answer(200, "Docker-Content-Digest: sha256:0b", ""), 200, "sha256:0b", 0, "served"},
		"part":         {"GET", "blob/" + auditedDigest, answer(206, "", "fi"), 206, auditedDigest, 2, "served"},
		"not modified": {"GET", "manifest/3.20", answer(304, "", ""), 304, "", 0, "served"},
		"list":         {"GET", "tags/", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "[]") }, 200, "", 2, "served"},
		"informed": {"GET", "tags/", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusEarlyHints)
			io.WriteString(w, "[]")
		}, 200, "", 2, "served"},
		"absent":   {"GET", "manifest/3.20", answer(404, "", "no"), 404, "", 2, "absent"},
		"refused":  {"GET", "manifest/3.20", answer(429, "", "no"), 429, "", 2, "refused"},
		"failed":   {"GET", "manifest/3.20", answer(502, "", "no"), 502, "", 2, "failed"},
		"written":  {"PUT", "manifest/3.20", answer(200, "", "never"), 405, "", 100, "refused"},
		"unlisted": {"GET", "manifest/unlisted", answer(404, "", "no"), 404, "", 2, "absent"},
		"panic":    {"GET", "tags/", func(http.ResponseWriter, *http.Request) { panic("oops") }, 500, "", 82, "failed"},
		"short":    {"GET", "blob/" + auditedDigest, answer(200, "Content-Length: 10", "fine"), 200, auditedDigest, 4, "broken"},
		"broken off": {"GET", "blob/" + auditedDigest, func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, "fi")
			panic(http.ErrAbortHandler)
		}, 200, auditedDigest, 2, "broken"},
		"no answer": {"GET", "blob/" + auditedDigest, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, 499, auditedDigest, 0, "left"},
		"base":      {"GET", "base/", answer(200, "", "{}"), 200, "", 2, ""},
		"nothing":   {"GET", "", answer(404, "", "{}"), 404, "", 2, ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s, records := audit(t, test.h)
			req, err := http.NewRequestWithContext(t.Context(), test.method, s.URL+"/"+test.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			req.SetBasicAuth("user", "hush")
			req.Header.Set("X-Request-Id", "me")
			if res, err := http.DefaultClient.Do(req); err == nil {
				io.Copy(io.Discard, res.Body)
				res.Body.Close()
			}
			s.Close()
			if test.verdict == "" {
				if records.Len() > 0 {
					t.Errorf("recorded %v", records.All())
				}
				return
			}
			all := records.All()
			if len(all) != 2 || all[0].Message != "begin" || all[1].Message != "end" {
				t.Fatalf("recorded %v, want a begin and an end", all)
			}
			for _, record := range all {
				fields := record.ContextMap()
				for key, want := range map[string]any{"id": "me", "user": "user", "method": test.method, "status": test.status, "digest": test.digest} {
					if fields[key] != want {
						t.Errorf("%s: %s is %v, want %v", record.Message, key, fields[key], want)
					}
				}
				repository, _ := fields["repository"].(string)
				if _, path := fields["path"]; path == (repository != "") {
					t.Errorf("%s: repository is %q, a path is recorded: %t", record.Message, repository, path)
				}
			}
			end := all[1].ContextMap()
			if bytes := end["bytes"].(int64); end["verdict"] != test.verdict || bytes != test.bytes && test.bytes < 50 || bytes == 0 && test.bytes > 0 {
				t.Errorf("recorded %v, want %s with %d bytes", end, test.verdict, test.bytes)
			}
			if took, _ := end["seconds"].(time.Duration); took <= 0 || took < all[0].ContextMap()["seconds"].(time.Duration) {
				t.Errorf("it took %v", took)
			}
		})
	}
}

func TestAuditOfThoseWhoMayNot(t *testing.T) {
	s, records := audit(t, ok)
	if res, _, err := get(t, s.URL+"/blob/"+auditedDigest, "Authorization: Basic Z3Vlc3Q6aHVzaA=="); err != nil || res.StatusCode != 401 {
		t.Fatalf("got %v, %v", res, err)
	}
	s.Close()
	for _, record := range records.All() {
		fields := record.ContextMap()
		if client, _ := fields["client"].(string); fields["user"] != "" || !strings.HasPrefix(client, "127.0.0.1:") || fields["digest"] != auditedDigest {
			t.Errorf("recorded %v, want an address and no name that nobody has checked", fields)
		}
	}
	if n := records.FilterField(zap.String("verdict", "refused")).Len(); n != 1 {
		t.Errorf("%d refusals, want 1", n)
	}
}

// Who has a byte has been recorded, whatever happens to larder then.
func TestBeginIsRecordedBeforeTheFirstByte(t *testing.T) {
	goOn := make(chan struct{})
	for name, h := range map[string]http.HandlerFunc{
		"header": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "10000")
			w.WriteHeader(200)
			w.Write(make([]byte, 5000)) // more than net/http keeps back
			<-goOn
			w.Write(make([]byte, 5000))
		},
		"write": func(w http.ResponseWriter, _ *http.Request) {
			w.Write(make([]byte, 5000))
			<-goOn
		},
		"copy": func(w http.ResponseWriter, _ *http.Request) {
			io.Copy(w, io.LimitReader(zeros{}, 5000))
			<-goOn
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, records := audit(t, h)
			req, err := http.NewRequestWithContext(t.Context(), "GET", s.URL+"/blob/"+auditedDigest, nil)
			if err != nil {
				t.Fatal(err)
			}
			req.SetBasicAuth("user", "")
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			if begun := records.FilterMessage("begin").FilterField(zap.String("user", "user")).Len(); begun != 1 || records.Len() != 1 {
				t.Errorf("recorded %v, want that it has begun, and who it is", records.All())
			}
			goOn <- struct{}{}
			io.Copy(io.Discard, res.Body)
			res.Body.Close()
			s.Close()
			if records.FilterMessage("end").Len() != 1 || records.Len() != 2 {
				t.Errorf("recorded %v", records.All())
			}
		})
	}
}

// A panic is logged with whose request it was.
func TestPanicIsLoggedWithItsUser(t *testing.T) {
	s, logs := serve(t, func(http.ResponseWriter, *http.Request) { panic(errors.New("oops")) }, middleware.Options{Verify: everybody}, all...)
	if _, _, err := get(t, s.URL, "Authorization: Basic dXNlcjpwYXNz", "X-Request-Id: me"); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if len(logs.All()) != 2 {
		t.Fatalf("logged %v, want the panic and the request", logs.All())
	}
	for _, line := range logs.All() {
		if fields := line.ContextMap(); fields["user"] != "user" || fields["id"] != "me" {
			t.Errorf("%s: logged %v, want user and id", line.Message, fields)
		}
	}
}
