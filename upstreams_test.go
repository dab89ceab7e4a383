package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/crypto/bcrypt"
)

// What private upstreams want to see.
const (
	username = "larder-test"
	password = "open: sesame" // with a colon, as it may have
)

// testUpstream is Debian's docker-registry behind a proxy that logs what larder
// asks, holds blobs back, and can be stopped and started.
type testUpstream struct {
	host  string // as in image references
	addr  string // where the proxy listens
	proxy *httputil.ReverseProxy
	token http.Handler // nil: no token server
	auth  authn.Authenticator

	mu     sync.Mutex // guards what follows
	log    []*exchange
	gate   *blobGate
	server *http.Server // nil: stopped
}

// exchange is one request that reached an upstream.
type exchange struct {
	method, path, ranges string
	status               atomic.Int64
	sent                 atomic.Int64 // bytes of the body
}

func (e *exchange) String() string {
	return strings.TrimSpace(fmt.Sprintf("%s %s %d %s", e.method, e.path, e.status.Load(), e.ranges))
}

// blobGate lets the first bytes of every blob through, and the rest once it is open.
type blobGate struct {
	after int64
	open  chan struct{}
}

// newUpstream serves to everybody.
func newUpstream(t *testing.T, host string) *testUpstream {
	t.Helper()
	u := prepareUpstream(t, host)
	u.serve(t, "")
	return u
}

// newBasicUpstream wants the username and the password with every request.
func newBasicUpstream(t *testing.T, host string) *testUpstream {
	t.Helper()
	u := prepareUpstream(t, host)
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	file := writeFile(t, filepath.Join(t.TempDir(), "htpasswd"), username+":"+string(hash)+"\n")
	u.auth = &authn.Basic{Username: username, Password: password}
	u.serve(t, fmt.Sprintf("auth: {htpasswd: {realm: test, path: %q}}", file))
	return u
}

// newTokenUpstream wants bearer tokens. Its token server gives them to those
// with the password and, if anonymous, to everybody for pulling.
func newTokenUpstream(t *testing.T, host string, mode tokenMode) *testUpstream {
	t.Helper()
	u := prepareUpstream(t, host)
	s := newTokenServer(t, mode)
	u.token = s
	u.auth = &authn.Basic{Username: username, Password: password}
	u.serve(t, fmt.Sprintf("auth: {token: {realm: %q, service: %s, issuer: %s, rootcertbundle: %q}}",
		"http://"+u.addr+"/token", tokenService, tokenIssuer, s.certificate))
	return u
}

func prepareUpstream(t *testing.T, host string) *testUpstream {
	t.Helper()
	requireProgram(t, "docker-registry")
	return &testUpstream{host: host, addr: freeAddr(t), auth: authn.Anonymous}
}

// serve starts docker-registry on a socket and the proxy in front of it.
func (u *testUpstream) serve(t *testing.T, auth string) {
	t.Helper()
	dir := shortDir(t)
	socket := filepath.Join(dir, "sock")
	startDaemon(t, "docker-registry", "serve", writeFile(t, filepath.Join(dir, "config.yml"), strings.Join([]string{
		"version: 0.1",
		"log: {level: error, accesslog: {disabled: true}}",
		fmt.Sprintf("storage: {filesystem: {rootdirectory: %q}}", filepath.Join(dir, "storage")),
		fmt.Sprintf("http: {net: unix, addr: %q}", socket),
		auth,
	}, "\n")))

	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}
	transport := &http.Transport{DialContext: dial, DisableCompression: true}
	t.Cleanup(transport.CloseIdleConnections)
	u.proxy = &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: u.addr})
			r.Out.Host = u.addr // where Location headers point
		},
		Transport:      transport,
		FlushInterval:  -1,
		ModifyResponse: u.logAnswer,
		ErrorLog:       log.New(io.Discard, "", 0),
	}
	eventually(t, "docker-registry", func() bool {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	u.start(t)
	t.Cleanup(u.stop)
}

// start makes a stopped upstream reachable again.
func (u *testUpstream) start(t *testing.T) {
	t.Helper()
	l, err := net.Listen("tcp", u.addr)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: u, ErrorLog: log.New(io.Discard, "", 0)}
	u.mu.Lock()
	u.server = server
	u.mu.Unlock()
	go server.Serve(l) // until stop
}

// stop makes the upstream refuse connections and breaks those it has.
func (u *testUpstream) stop() {
	u.mu.Lock()
	server := u.server
	u.server = nil
	u.mu.Unlock()
	if server != nil {
		server.Close()
	}
}

// stopAll leaves larder alone.
func stopAll(upstreams []*testUpstream) {
	for _, u := range upstreams {
		u.stop()
	}
}

// ServeHTTP logs the request and passes it on.
func (u *testUpstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e := &exchange{method: r.Method, path: r.URL.Path, ranges: r.Header.Get("Range")}
	u.mu.Lock()
	u.log = append(u.log, e)
	u.mu.Unlock()
	if u.token != nil && r.URL.Path == "/token" {
		e.status.Store(http.StatusOK)
		u.token.ServeHTTP(w, r)
		return
	}
	u.proxy.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), exchangeKey{}, e)))
}

type exchangeKey struct{}

// logAnswer counts a body's bytes as they go out, past the gate.
func (u *testUpstream) logAnswer(resp *http.Response) error {
	ctx := resp.Request.Context()
	e := ctx.Value(exchangeKey{}).(*exchange)
	e.status.Store(int64(resp.StatusCode))
	b := &countedBody{ReadCloser: resp.Body, ctx: ctx, exchange: e}
	if strings.Contains(e.path, "/blobs/") {
		u.mu.Lock()
		b.gate = u.gate
		u.mu.Unlock()
	}
	resp.Body = b
	return nil
}

type countedBody struct {
	io.ReadCloser
	ctx      context.Context
	exchange *exchange
	gate     *blobGate // nil: open
}

func (b *countedBody) Read(p []byte) (int, error) {
	if b.gate != nil {
		if left := b.gate.after - b.exchange.sent.Load(); left > 0 {
			p = p[:min(int64(len(p)), left)]
		} else {
			select {
			case <-b.gate.open:
				b.gate = nil
			case <-b.ctx.Done():
				return 0, b.ctx.Err()
			}
		}
	}
	n, err := b.ReadCloser.Read(p)
	b.exchange.sent.Add(int64(n))
	return n, err
}

// hold keeps back what follows the first n bytes of every blob until release.
func (u *testUpstream) hold(n int64) (release func()) {
	g := &blobGate{after: n, open: make(chan struct{})}
	u.mu.Lock()
	u.gate = g
	u.mu.Unlock()
	return sync.OnceFunc(func() {
		u.mu.Lock()
		u.gate = nil
		u.mu.Unlock()
		close(g.open)
	})
}

// push stores an image or an index and then forgets what that took.
func (u *testUpstream) push(t *testing.T, reference string, what remote.Taggable) {
	t.Helper()
	ref, err := name.ParseReference(u.addr+"/"+reference, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	opts := []remote.Option{remote.WithContext(t.Context()), remote.WithAuth(u.auth)}
	switch what := what.(type) {
	case v1.ImageIndex:
		err = remote.WriteIndex(ref, what, opts...)
	case v1.Image:
		err = remote.Write(ref, what, opts...)
	default:
		t.Fatalf("cannot push a %T", what)
	}
	if err != nil {
		t.Fatalf("push %s: %v", reference, err)
	}
	u.forget()
}

// forget empties the log.
func (u *testUpstream) forget() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.log = nil
}

// exchanges returns those in the log that look like pattern.
func (u *testUpstream) exchanges(pattern string) []*exchange {
	re := regexp.MustCompile(pattern)
	u.mu.Lock()
	defer u.mu.Unlock()
	var found []*exchange
	for _, e := range u.log {
		if re.MatchString(e.String()) {
			found = append(found, e)
		}
	}
	return found
}

// wantExchanges checks that between least and most of them look like pattern.
func (u *testUpstream) wantExchanges(t *testing.T, pattern string, least, most int) {
	t.Helper()
	if got := len(u.exchanges(pattern)); got < least || got > most {
		var all strings.Builder
		for _, e := range u.exchanges("") {
			fmt.Fprintf(&all, "\n\t%v", e)
		}
		t.Errorf("%s got %d requests like %q, want %d to %d, in:%s", u.host, got, pattern, least, most, &all)
	}
}
