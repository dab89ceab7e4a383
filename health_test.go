package main

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestHealth(t *testing.T) {
	status := func(path string, status int) http.Handler {
		mux := http.NewServeMux()
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) })
		return mux
	}
	well := httptest.NewServer(status("/healthz", 200))
	defer well.Close()
	ill := httptest.NewServer(status("/healthz", 500))
	defer ill.Close()
	registry := httptest.NewServer(status("/v2/", 200))
	defer registry.Close()
	locked := httptest.NewServer(status("/v2/", 401))
	defer locked.Close()
	secure := httptest.NewTLSServer(status("/v2/", 200))
	defer secure.Close()

	addr := func(s *httptest.Server) string { return s.Listener.Addr().String() }
	port := func(s *httptest.Server) string { _, p, _ := net.SplitHostPort(addr(s)); return p }
	tests := map[string]struct {
		environ []string
		ok      bool
		named   string
	}{
		"well":                     {[]string{"LARDER_ADMIN_ADDR=" + addr(well), "LARDER_ADDR=" + addr(ill)}, true, ""},
		"every address":            {[]string{"LARDER_ADMIN_ADDR=0.0.0.0:" + port(well)}, true, ""},
		"every address, IPv6":      {[]string{"LARDER_ADMIN_ADDR=[::]:" + port(well)}, true, ""},
		"only a port":              {[]string{"LARDER_ADMIN_ADDR=:" + port(well)}, true, ""},
		"ill":                      {[]string{"LARDER_ADMIN_ADDR=" + addr(ill)}, false, "500"},
		"something else":           {[]string{"LARDER_ADMIN_ADDR=" + addr(registry)}, false, "404"},
		"nobody":                   {[]string{"LARDER_ADMIN_ADDR=" + freeAddr(t)}, false, "refused"},
		"admin off":                {[]string{"LARDER_ADMIN_ADDR=", "LARDER_ADDR=" + addr(registry)}, true, ""},
		"admin off, passwords":     {[]string{"LARDER_ADMIN_ADDR=", "LARDER_ADDR=" + addr(locked)}, true, ""},
		"admin off, TLS":           {[]string{"LARDER_ADMIN_ADDR=", "LARDER_ADDR=" + addr(secure), "LARDER_TLS_CERT=c", "LARDER_TLS_KEY=k"}, true, ""},
		"admin off, not that TLS":  {[]string{"LARDER_ADMIN_ADDR=", "LARDER_ADDR=" + addr(secure)}, false, "400"},
		"admin is never TLS":       {[]string{"LARDER_ADMIN_ADDR=" + addr(well), "LARDER_TLS_CERT=c", "LARDER_TLS_KEY=k"}, true, ""},
		"configuration is wrong":   {[]string{"LARDER_TAG_TTL=x"}, false, "LARDER_TAG_TTL"},
		"proxies are not for this": {[]string{"LARDER_ADMIN_ADDR=" + addr(well), "HTTP_PROXY=http://127.0.0.1:1"}, true, ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			err := health(t.Context(), append([]string{"LARDER_CACHE_DIR=/nonexistent"}, test.environ...))
			if (err == nil) != test.ok || !test.ok && !strings.Contains(err.Error(), test.named) {
				t.Errorf("got %v, want well: %v (%s)", err, test.ok, test.named)
			}
		})
	}
}

func TestHealthOfALarderThatHangs(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // and nobody accepts
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := health(ctx, []string{"LARDER_ADMIN_ADDR=" + l.Addr().String()}); err == nil {
		t.Error("a larder that hangs is well")
	}
}
