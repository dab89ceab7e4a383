package handler_test

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"larder/blobcache"
	"larder/blobcache/memory"
	"larder/handler"
	"larder/handler/middleware"
	"larder/handler/upstream"
	"larder/handler/upstream/upstreamtest"
	"larder/manifestcache"
)

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

// chain is main's.
var chain = []string{"requestid", "log", "audit", "metrics", "recover", "limit", "auth", "allow", "readonly"}

// setup is how a larder differs from the usual one.
type setup struct {
	dir     string                          // "": a new one
	ttl     time.Duration                   // of manifests, and so of rights
	tagTTL  time.Duration                   // 0: tags are always asked about
	listTTL time.Duration                   // 0: lists are always asked for
	parts   int                             // of one blob at once; 0: one
	pipe    bool                            // no sockets, docker.io only: for bubbles
	tls     bool                            // HTTP/2
	locked  bool                            // clients need a password, and nobody has one
	floor   int                             // of the upstream's rate limit
	outside func(http.Handler) http.Handler // around all of it
	logger  *zap.Logger                     // nil: one that remembers, see larder.logs
	disk    bool                            // everything comes from there, and nothing from memory

	allow, deny string // as in the environment
	catalog     bool
	shared      manifestcache.Shared
}

// larder is the registry, wired as main does it, in front of two upstreams.
type larder struct {
	hub, ghcr *upstreamtest.Registry // docker.io, the default one, and ghcr.io
	dir       string
	upstreams *upstream.Client
	blobs     *blobcache.Cache
	manifests *manifestcache.Cache
	memory    *memory.Cache
	handler   http.Handler
	server    *httptest.Server // nil in a bubble
	logs      *observer.ObservedLogs
}

func newLarder(tb testing.TB, s setup) *larder {
	tb.Helper()
	l := &larder{dir: s.dir, memory: memory.New(64 << 20)}
	if s.disk {
		l.memory = nil
	}
	if l.dir == "" {
		l.dir = tb.TempDir()
	}
	core, logs := observer.New(zap.DebugLevel)
	l.logs = logs
	log := cmp.Or(s.logger, zap.New(core))
	cfg := upstream.Config{Floor: s.floor, Logger: log}
	var list string
	if s.pipe {
		l.hub = upstreamtest.NewPipe(tb)
		list, cfg.Transport = "docker.io="+l.hub.URL, l.hub.Transport()
	} else {
		l.hub, l.ghcr = upstreamtest.New(tb), upstreamtest.New(tb)
		list = "docker.io=" + l.hub.URL + ",ghcr.io=" + l.ghcr.URL
	}
	var err error
	if cfg.Registries, err = upstream.ParseList(list); err != nil {
		tb.Fatal(err)
	}
	if l.upstreams, err = upstream.New(cfg); err != nil {
		tb.Fatal(err)
	}
	l.blobs, err = blobcache.Open(l.root(tb, "blobs"), blobcache.Config{
		Linger: time.Minute, Connections: s.parts, Memory: l.memory, Logger: log,
	})
	if err != nil {
		tb.Fatal(err)
	}
	l.manifests, err = manifestcache.Open(l.root(tb, "manifests"), manifestcache.Config{
		TTL: s.ttl, TagTTL: s.tagTTL, ListTTL: s.listTTL, GoneIf: upstream.Refused, Spare: l.upstreams.Spare, Memory: l.memory, Logger: log,
		StaleIf: func(err error) bool { return upstream.Unreachable(err) || errors.Is(err, manifestcache.ErrDigest) },
		Shared:  s.shared,
	})
	if err != nil {
		tb.Fatal(err)
	}
	access := handler.Access{Allow: globs(tb, s.allow, cfg.Registries), Deny: globs(tb, s.deny, cfg.Registries)}
	config := handler.Config{Upstreams: l.upstreams, Blobs: l.blobs, Manifests: l.manifests}
	if s.catalog {
		config.Catalog = access.MayPull
	}
	h := handler.New(config)
	opts := middleware.Options{Logger: log, Observe: func(middleware.Observation) {}, Identify: h.Identify, MayPull: access.MayPull}
	if s.locked {
		opts.Verify = func(context.Context, string, string) (bool, error) { return false, nil }
	}
	if l.handler, err = middleware.Builtin().Chain(h, opts, chain...); err != nil {
		tb.Fatal(err)
	}
	if s.outside != nil {
		l.handler = s.outside(l.handler)
	}
	if !s.pipe {
		l.server = httptest.NewUnstartedServer(l.handler)
		l.server.Config.ErrorLog = zap.NewStdLog(zap.NewNop())
		if s.tls {
			l.server.EnableHTTP2 = true
			l.server.StartTLS()
		} else {
			l.server.Start()
		}
	}
	tb.Cleanup(func() { l.close(tb) })
	return l
}

// run has larder find out which manifests are on disk.
func (l *larder) run(t *testing.T) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = l.manifests.Run(ctx) })
	t.Cleanup(func() {
		stop()
		running.Wait()
	})
}

// globs are none of an empty list.
func globs(tb testing.TB, list string, registries []upstream.Registry) handler.Globs {
	tb.Helper()
	if list == "" {
		return nil
	}
	g, err := handler.ParseGlobs(list, registries)
	if err != nil {
		tb.Fatal(err)
	}
	return g
}

func outcomeField(outcome string) zap.Field { return zap.String("outcome", outcome) }

func (l *larder) root(tb testing.TB, name string) *os.Root {
	tb.Helper()
	dir := filepath.Join(l.dir, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		tb.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		tb.Fatal(err)
	}
	return root
}

// close stops larder as main does. It may be called more than once.
func (l *larder) close(tb testing.TB) {
	tb.Helper()
	if l.server != nil {
		l.server.CloseClientConnections()
		l.server.Close()
	}
	for _, err := range []error{l.blobs.Close(), l.manifests.Close(), l.upstreams.Close()} {
		if err != nil {
			tb.Error(err)
		}
	}
}

// dialled is how many requests larder made or tried to make.
func (l *larder) dialled() (n int64) {
	for _, codes := range l.upstreams.Stats().Answers {
		for _, count := range codes {
			n += count
		}
	}
	return n
}

// settle waits until what has been served is stored.
func (l *larder) settle(tb testing.TB) {
	tb.Helper()
	await(tb, "fills to end", func() bool { return l.blobs.Stats().Fills == 0 })
}

// arrived waits until docker.io has been asked n times.
func (l *larder) arrived(tb testing.TB, method, path string, n int) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), patience)
	defer cancel()
	if err := l.hub.Await(ctx, method, path, n); err != nil {
		tb.Fatalf("upstream waits for %s %s: %v", method, path, err)
	}
}

// stored lists the files of the cache that hold a blob or a part of one.
func (l *larder) stored(t *testing.T) (files []string) {
	t.Helper()
	dir := filepath.Join(l.dir, "blobs")
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			files = append(files, strings.TrimPrefix(path, dir))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// answer is what a client got.
type answer struct {
	*http.Response
	body []byte
	err  error // of reading the body
}

// ask sends one request as it is, over a connection of its own. Each header is
// a line.
func (l *larder) ask(tb testing.TB, method, target string, headers ...string) answer {
	tb.Helper()
	conn := l.dial(tb)
	defer conn.Close()
	send(tb, conn, method, target, headers...)
	return read(tb, conn, method)
}

func (l *larder) dial(tb testing.TB) net.Conn {
	tb.Helper()
	conn, err := net.DialTimeout("tcp", l.server.Listener.Addr().String(), patience)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		tb.Fatal(err)
	}
	return conn
}

func send(tb testing.TB, conn net.Conn, method, target string, headers ...string) {
	tb.Helper()
	lines := append([]string{method + " " + target + " HTTP/1.1", "Host: localhost:5000"}, headers...)
	if _, err := io.WriteString(conn, strings.Join(lines, "\r\n")+"\r\n\r\n"); err != nil {
		tb.Fatal(err)
	}
}

func read(tb testing.TB, conn net.Conn, method string) answer {
	tb.Helper()
	res, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		tb.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return answer{res, body, err}
}

// record asks without a server.
func (l *larder) record(ctx context.Context, method, target string, headers ...string) answer {
	req := httptest.NewRequestWithContext(ctx, method, target, nil)
	for _, line := range headers {
		name, value, _ := strings.Cut(line, ": ")
		req.Header.Add(name, value)
	}
	rec := httptest.NewRecorder()
	err := func() (err error) {
		defer func() {
			if p := recover(); p == http.ErrAbortHandler {
				err = io.ErrUnexpectedEOF // what a client would see
			} else if p != nil {
				panic(p)
			}
		}()
		l.handler.ServeHTTP(rec, req)
		return nil
	}()
	return answer{rec.Result(), rec.Body.Bytes(), err}
}

// want checks a header; "" is for one that must not be there.
func (a answer) want(t *testing.T, name, value string) {
	t.Helper()
	if value == "" && a.Header[http.CanonicalHeaderKey(name)] != nil || a.Header.Get(name) != value {
		t.Errorf("%s is %q, want %q", name, a.Header[http.CanonicalHeaderKey(name)], value)
	}
}

// wantBody checks for a complete answer with this body.
func (a answer) wantBody(t *testing.T, status int, body []byte) {
	t.Helper()
	if a.StatusCode != status || a.err != nil {
		t.Errorf("got %d (%v) with %.300q, want %d", a.StatusCode, a.err, a.body, status)
		return
	}
	if string(a.body) != string(body) {
		t.Errorf("got a body of %d bytes, want the right one of %d", len(a.body), len(body))
	}
	a.want(t, "Content-Length", strconv.Itoa(len(body)))
}

// wantError checks for an OCI error and returns its message.
func (a answer) wantError(t *testing.T, status int, code string) string {
	t.Helper()
	if a.StatusCode != status || a.err != nil {
		t.Errorf("got %d (%v) with %.300q, want %d %s", a.StatusCode, a.err, a.body, status, code)
	}
	a.want(t, "Content-Type", "application/json")
	a.want(t, "Content-Length", strconv.Itoa(len(a.body)))
	a.want(t, "X-Content-Type-Options", "nosniff")
	for _, name := range []string{"ETag", "Docker-Content-Digest", "Accept-Ranges", "Warning"} {
		a.want(t, name, "")
	}
	if said := a.Header.Get("Cache-Status"); said != "" && (status != http.StatusNotFound || said != "larder; fwd=uri-miss; fwd-status=404") {
		t.Errorf("Cache-Status is %q of a %d", said, status)
	}
	if status != http.StatusUnauthorized {
		a.want(t, "WWW-Authenticate", "")
	}
	var doc struct {
		Errors []struct{ Code, Message string }
	}
	if err := json.Unmarshal(a.body, &doc); err != nil || len(doc.Errors) != 1 || doc.Errors[0].Code != code || doc.Errors[0].Message == "" {
		t.Errorf("got %d with %.300q, want one error with code %s and a message (%v)", a.StatusCode, a.body, code, err)
		return ""
	}
	return doc.Errors[0].Message
}

// seconds are those of an age.
var seconds = regexp.MustCompile(`[0-9]+s?\b`)

// wantParity checks that a HEAD answers what the GET did, without a body.
func wantParity(t *testing.T, get, head answer) {
	t.Helper()
	if get.StatusCode != head.StatusCode || len(head.body) != 0 {
		t.Errorf("HEAD has status %d and %d bytes, GET %d", head.StatusCode, len(head.body), get.StatusCode)
	}
	for _, h := range []http.Header{get.Header, head.Header} {
		h.Del("Date")
		h.Del("X-Request-Id")
		for _, aging := range []string{"Age", "Warning", "Cache-Status", "Server-Timing"} { // a second may have passed
			if v := h.Get(aging); v != "" {
				h.Set(aging, seconds.ReplaceAllString(v, "N"))
			}
		}
		if get.StatusCode == http.StatusPreconditionFailed {
			h.Del("Content-Length") // net/http's own, of no body
		}
	}
	if g, h := fmt.Sprint(get.Header), fmt.Sprint(head.Header); g != h {
		t.Errorf("GET and HEAD differ:\n%s\n%s", g, h)
	}
}

// await waits for what happens without a signal that a test could wait for.
func await(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	timeout := time.After(patience)
	for !ok() {
		select {
		case <-tick.C:
		case <-timeout:
			tb.Fatalf("after %v still waiting for %s", patience, what)
		}
	}
}

// random is n bytes that do not compress and depend on seed alone.
func random(tb testing.TB, seed uint64, n int64) []byte {
	tb.Helper()
	data, err := io.ReadAll(upstreamtest.Seeded(seed, n))
	if err != nil {
		tb.Fatal(err)
	}
	return data
}

// nobodys is a digest of a blob that nobody has.
var nobodys = digest.FromString("nobody has this")

func manifestPath(repository, reference string) string {
	return "/v2/" + repository + "/manifests/" + reference
}

func blobPath(repository string, d digest.Digest) string {
	return "/v2/" + repository + "/blobs/" + d.String()
}

// methods lists what arrived at a registry under a part of a path.
func methods(r *upstreamtest.Registry, path string) (list []string) {
	for _, req := range r.Requests() {
		if strings.Contains(req.Path, path) {
			list = append(list, req.Method)
		}
	}
	slices.Sort(list)
	return list
}
