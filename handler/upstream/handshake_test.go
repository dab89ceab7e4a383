package upstream_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"larder/handler/upstream"
	"larder/handler/upstream/upstreamtest"
)

func TestHandshakeIsShared(t *testing.T) {
	reg, r := start(t, upstream.Config{Keychain: user(password)})
	reg.RequireBearer("user", password, 0)
	open := make(chan struct{})
	reg.Fault(upstreamtest.Match{Path: "/token"}, upstreamtest.Gate(open))
	go func() {
		reg.Await(t.Context(), "", "/token", 1)
		close(open)
	}()
	together(t, r, 20, "head manifest")
	askAll(t, r)
	if p, n := pings(reg), reg.Count("", "/token"); p != 1 || n != 1 {
		t.Errorf("got %d pings and %d tokens, want one of each", p, n)
	}
}

// A caller who has found no handshake may be so slow that it is over before he joins it.
func TestHandshakeIsNotRepeated(t *testing.T) {
	reg := upstreamtest.New(t)
	fill(reg)
	const rounds = 50
	for range rounds {
		c := newClient(t, reg.URL, upstream.Config{})
		together(t, repository(t, c), 20, "head manifest")
		c.Close()
	}
	if got := pings(reg); got != rounds {
		t.Errorf("got %d pings, want %d", got, rounds)
	}
}

func TestHandshakePerRepository(t *testing.T) {
	reg := upstreamtest.New(t)
	reg.RequireBearer("", "", 0)
	reg.AddBlob("team/other", blobData)
	fill(reg)
	c := newClient(t, reg.URL, upstream.Config{})
	other, err := c.Repository("", "team/other")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		ask(t, repository(t, c), "get blob")
		ask(t, other, "get blob")
	}
	for _, req := range reg.Requests() {
		if scope := req.Query["scope"]; req.Path == "/token" && (len(scope) != 1 || !strings.HasSuffix(scope[0], ":pull")) {
			t.Errorf("got scope %q, want pull from one repository", scope)
		}
	}
	if n, s := reg.Count("", "/token"), c.Stats().Sessions; n != 2 || s != 2 {
		t.Errorf("got %d tokens and %d sessions, want two", n, s)
	}
}

func TestLeaverHarmsNobody(t *testing.T) {
	reg, r := start(t, upstream.Config{})
	reg.RequireBearer("", "", 0)
	open := make(chan struct{})
	reg.Fault(upstreamtest.Match{Path: "/token"}, upstreamtest.Gate(open))
	impatient, leave := context.WithCancel(t.Context())
	left, stayed := make(chan error), make(chan error)
	go func() { left <- questions["get manifest"](impatient, r) }()
	if err := reg.Await(t.Context(), "", "/token", 1); err != nil {
		t.Fatal(err)
	}
	go func() { stayed <- questions["get manifest"](t.Context(), r) }()
	leave()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want that the caller left", err)
	}
	close(open)
	if err := <-stayed; err != nil {
		t.Error(err)
	}
	if n := reg.Count("", "/token"); n != 1 {
		t.Errorf("got %d tokens, want one", n)
	}
}

func TestAuthentication(t *testing.T) {
	tests := map[string]struct {
		keychain upstream.Keychain
		require  func(reg *upstreamtest.Registry)
		tokens   int
	}{
		"none":                 {nil, func(*upstreamtest.Registry) {}, 0},
		"none, credentials":    {user(password), func(*upstreamtest.Registry) {}, 0},
		"basic":                {user(password), func(reg *upstreamtest.Registry) { reg.RequireBasic("user", password) }, 0},
		"bearer":               {user(password), func(reg *upstreamtest.Registry) { reg.RequireBearer("user", password, 0) }, 1},
		"bearer, anonymous":    {nil, func(reg *upstreamtest.Registry) { reg.RequireBearer("", "", 0) }, 1},
		"bearer, /v2/ is open": {nil, func(reg *upstreamtest.Registry) { reg.RequireBearer("", "", time.Hour) }, 1},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			reg, r := start(t, upstream.Config{Keychain: test.keychain})
			test.require(reg)
			askAll(t, r)
			if p, n := pings(reg), reg.Count("", "/token"); p != 1 || n != test.tokens {
				t.Errorf("got %d pings and %d tokens, want 1 and %d", p, n, test.tokens)
			}
		})
	}
}

func TestExpiredTokenIsRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg, r := startPipe(t, upstream.Config{Keychain: user(password)})
		reg.RequireBearer("user", password, time.Minute)
		for range 3 {
			askAll(t, r)
			time.Sleep(5 * time.Minute)
		}
		if p, n := pings(reg), reg.Count("", "/token"); p != 1 || n != 3 {
			t.Errorf("got %d pings and %d tokens, want 1 and 3", p, n)
		}
	})
}

func TestUnusedHandshakeIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := upstreamtest.NewPipe(t)
		fill(reg)
		reg.AddBlob("team/other", blobData)
		c := newClient(t, reg.URL, upstream.Config{Transport: reg.Transport()})
		other, err := c.Repository("", "team/other")
		if err != nil {
			t.Fatal(err)
		}
		ask(t, repository(t, c), "get blob")
		time.Sleep(2 * time.Hour)
		ask(t, other, "get blob")
		if n := c.Stats().Sessions; n != 1 {
			t.Errorf("got %d sessions, want only the one in use", n)
		}
	})
}

func TestNoRegistryThere(t *testing.T) {
	reg, r := start(t, upstream.Config{})
	reg.Fault(upstreamtest.Match{}, onPing(upstreamtest.Status(http.StatusNotFound, nil)))
	err := questions["get manifest"](t.Context(), r)
	e := wantError(t, err, 0)
	wantUnreachable(t, err, true)
	wantRefused(t, err, false)
	if !strings.Contains(e.Error(), "/v2/") {
		t.Errorf("got %v, want it to tell what is not found", err)
	}
}

// helloConn notices when the client starts to speak TLS.
type helloConn struct {
	net.Conn
	written atomic.Bool
	tb      testing.TB
}

func (c *helloConn) Write(p []byte) (int, error) {
	if !c.written.Swap(true) && len(p) > 0 && p[0] == 0x16 {
		c.tb.Error("a TLS hello")
	}
	return c.Conn.Write(p)
}

func TestPlainUpstreamGetsNoTLS(t *testing.T) {
	reg := upstreamtest.New(t)
	fill(reg)
	transport := reg.Transport()
	var dialled atomic.Int32
	transport.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		dialled.Add(1)
		conn, err := reg.DialContext(ctx, network, addr)
		return &helloConn{Conn: conn, tb: t}, err
	}
	for _, url := range []string{reg.URL, "http://localhost:5000", "http://10.0.0.1", "http://plain.example"} {
		askAll(t, repository(t, newClient(t, url, upstream.Config{Transport: transport})))
	}
	if dialled.Load() == 0 {
		t.Error("nothing was looked at")
	}
}

// go-containerregistry would try http for these.
func TestSecureUpstreamIsNotAskedInPlain(t *testing.T) {
	for _, url := range []string{"https://localhost:5000", "https://127.0.0.1:5000", "https://10.0.0.1"} {
		synctest.Test(t, func(t *testing.T) {
			transport := undialledPlain{t}
			r := repository(t, newClient(t, url, upstream.Config{Transport: transport}))
			wantError(t, questions["get manifest"](t.Context(), r), 0)
		})
	}
}

// undialledPlain is a transport on which https takes a second to fail.
type undialledPlain struct{ tb testing.TB }

// RoundTrip implements http.RoundTripper.
func (u undialledPlain) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" {
		u.tb.Errorf("asked by %s", req.URL.Scheme)
	}
	select {
	case <-time.After(time.Second):
	case <-req.Context().Done():
	}
	return nil, errors.New("bad certificate")
}

func TestCheckCredentials(t *testing.T) {
	basic := func(reg *upstreamtest.Registry) { reg.RequireBasic("user", password) }
	bearer := func(reg *upstreamtest.Registry) { reg.RequireBearer("user", password, 0) }
	tests := map[string]struct {
		keychain upstream.Keychain
		require  func(reg *upstreamtest.Registry)
		status   int // -1: no error
	}{
		"none":          {nil, basic, -1},
		"anonymous":     {&keychain{}, bearer, -1},
		"basic":         {user(password), basic, -1},
		"basic, wrong":  {user(password + "x"), basic, http.StatusUnauthorized},
		"bearer":        {user(password), bearer, -1},
		"bearer, wrong": {user(password + "x"), bearer, http.StatusUnauthorized},
		"not needed":    {user(password), func(*upstreamtest.Registry) {}, -1},
		"away":          {user(password), (*upstreamtest.Registry).Stop, 0},
		"not there":     {user(password), func(reg *upstreamtest.Registry) { reg.Fault(upstreamtest.Match{}, upstreamtest.Status(404, nil)) }, 0},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			reg := upstreamtest.New(t)
			test.require(reg)
			c := newClient(t, reg.URL, upstream.Config{Keychain: test.keychain})
			err := c.CheckCredentials(t.Context())
			wantDiscreet(t, err)
			e, ok := errors.AsType[*upstream.Error](err)
			if test.status < 0 && err != nil || test.status >= 0 && (!ok || e.Status != test.status || e.Repository != host) {
				t.Errorf("got %v, want status %d of %s", err, test.status, host)
			}
			if n := len(reg.Requests()); n > 3 || test.keychain == nil && n > 0 {
				t.Errorf("got %d requests", n)
			}
		})
	}
}

func TestRotatedCredentials(t *testing.T) {
	tests := map[string]func(reg *upstreamtest.Registry, password string){
		"basic":  func(reg *upstreamtest.Registry, password string) { reg.RequireBasic("user", password) },
		"bearer": func(reg *upstreamtest.Registry, password string) { reg.RequireBearer("user", password, 0) },
	}
	for name, require := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := user(password)
				reg, r := startPipe(t, upstream.Config{Keychain: k})
				require(reg, password)
				askAll(t, r)
				require(reg, password+"-2")
				k.set(authn.AuthConfig{Username: "user", Password: password + "-2"})
				time.Sleep(time.Minute)
				together(t, r, 20, "get manifest")
				askAll(t, r)
				if n := pings(reg); n != 2 {
					t.Errorf("got %d handshakes, want one more", n)
				}
			})
		})
	}
}

func TestWrongPassword(t *testing.T) {
	tests := map[string]func(reg *upstreamtest.Registry){
		"basic":  func(reg *upstreamtest.Registry) { reg.RequireBasic("user", password) },
		"bearer": func(reg *upstreamtest.Registry) { reg.RequireBearer("user", password, 0) },
	}
	for name, require := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				reg, r := startPipe(t, upstream.Config{Keychain: user(password + "-wrong")})
				require(reg)
				for question, ask := range questions {
					for range 2 {
						reg.Reset()
						err := ask(t.Context(), r)
						wantError(t, err, http.StatusUnauthorized)
						wantRefused(t, err, true)
						wantUnreachable(t, err, false)
						if n := len(reg.Requests()); n > 3 {
							t.Errorf("%s: got %d requests, want at most 3", question, n)
						}
						time.Sleep(time.Minute)
					}
				}
			})
		})
	}
}

func TestHandshakesKeptAreBounded(t *testing.T) {
	reg := upstreamtest.New(t)
	list, err := upstream.ParseList("registry.example=" + reg.URL)
	if err != nil {
		t.Fatal(err)
	}
	c, err := upstream.New(upstream.Config{Registries: list})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	for i := range 1100 {
		r, err := c.Repository("", fmt.Sprintf("team/app%d", i))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = r.HeadManifest(t.Context(), "v1") // 404: clients may ask for any name
	}
	if got := c.Stats().Sessions; got != 1024 {
		t.Errorf("%d handshakes are kept, want 1024", got)
	}
}
