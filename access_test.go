package main

import (
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/crypto/bcrypt"
)

// silentUpstream is the address of an upstream that nobody may connect to.
func silentUpstream(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var connections atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			connections.Add(1)
			conn.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
		if n := connections.Load(); n > 0 {
			t.Errorf("%d connections to an upstream that must not be asked", n)
		}
	})
	return l.Addr().String()
}

func TestRefusedRepositoriesAreNotAskedFor(t *testing.T) {
	tests := map[string]string{
		"not allowed": "LARDER_ALLOW=docker.io/library/*",
		"denied":      "LARDER_DENY=docker.io/org/**,ghcr.io/**",
	}
	for name, variable := range tests {
		t.Run(name, func(t *testing.T) {
			silent, admin := silentUpstream(t), freeAddr(t)
			l := startLarder(t, nil, "LARDER_UPSTREAMS=docker.io=http://"+silent+",ghcr.io=http://"+silent, variable, "LARDER_ADMIN_ADDR="+admin)
			paths := []string{
				"/v2/org/a/manifests/1", "/v2/org/a/manifests/sha256:" + strings.Repeat("0a", 32), "/v2/org/a/blobs/sha256:" + strings.Repeat("0a", 32),
				"/v2/org/a/tags/list", "/v2/org/a/referrers/sha256:" + strings.Repeat("0a", 32), "/v2/ghcr.io/b/manifests/1", "/v2/b/c/manifests/1?ns=ghcr.io",
			}
			for _, path := range paths {
				wantDenied(t, l, path)
			}
			_, metrics := ask(t, http.DefaultClient, "GET", "http://"+admin+"/metrics", "", "")
			if line := `larder_requests_total{code="403",kind="manifest",outcome="denied"} 4`; !strings.Contains(metrics, line) {
				t.Errorf("metrics do not have %s", line)
			}
			if n := strings.Count(l.stderr.String(), `"outcome":"denied"`); n != len(paths) {
				t.Errorf("%d lines of the log tell of a refusal, want %d", n, len(paths))
			}
		})
	}
}

// ask sends a request to anybody and reads the whole answer.
func ask(t *testing.T, client *http.Client, method, url, user, pass string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if user != "" {
		req.SetBasicAuth(user, pass)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	return resp, string(body)
}

// passwordFile has one user.
func passwordFile(t *testing.T, user, pass string) string {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte(pass), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	return writeFile(t, filepath.Join(t.TempDir(), "htpasswd"), user+":"+string(hash)+"\n")
}

// adminPaths are all that the admin listener has.
var adminPaths = []string{
	"/healthz", "/readyz", "/metrics", "/debug/pprof/", "/debug/pprof/cmdline", "/debug/pprof/heap", "/debug/pprof/goroutine", "/debug/pprof/symbol",
}

func TestAdminNeedsItsPassword(t *testing.T) {
	t.Parallel()
	admin := freeAddr(t)
	l := startLarder(t, nil, "LARDER_ADMIN_ADDR="+admin, "LARDER_ADMIN_HTPASSWD="+passwordFile(t, "root", "toor"))
	for _, path := range adminPaths {
		open := path == "/healthz" || path == "/readyz"
		for _, method := range []string{"GET", "HEAD"} {
			if resp, _ := ask(t, http.DefaultClient, method, "http://"+admin+path, "root", "toor"); resp.StatusCode != http.StatusOK {
				t.Errorf("%s %s with the password: %s", method, path, resp.Status)
			}
			for _, pass := range []string{"", "wrong"} {
				resp, _ := ask(t, http.DefaultClient, method, "http://"+admin+path, strings.Repeat("root", len(pass)/5), pass)
				if (resp.StatusCode == http.StatusOK) != open || !open && (resp.StatusCode != http.StatusUnauthorized || resp.Header.Get("WWW-Authenticate") == "") {
					t.Errorf("%s %s with password %q: %s", method, path, pass, resp.Status)
				}
			}
		}
	}
	if err := health(t.Context(), l.environ); err != nil {
		t.Error(err)
	}
	wantRefusal(t, runLarder(t, nil, "LARDER_ADMIN_ADDR="+freeAddr(t), "LARDER_ADMIN_HTPASSWD=/none"), "LARDER_ADMIN_HTPASSWD", "/none")
}

func TestAdminIsNeverOnTheRegistrysListener(t *testing.T) {
	t.Parallel()
	l := startLarder(t, nil, "LARDER_ADMIN_ADDR="+freeAddr(t))
	for _, path := range adminPaths {
		for _, prefix := range []string{"", "/v2", "/v2/..", "//", "/admin"} {
			resp, body := l.get(t, prefix+path)
			if resp.StatusCode < 400 || errorCode(t, body) == "" {
				t.Errorf("%s%s: %s with %.100q", prefix, path, resp.Status, body)
			}
		}
	}
}

func TestOpenAdminListenerIsWarnedOf(t *testing.T) {
	t.Parallel()
	file := passwordFile(t, "root", "toor")
	tests := map[string]struct {
		environ []string
		warned  bool
	}{
		"every address":           {[]string{"LARDER_ADMIN_ADDR=:0"}, true},
		"every IPv4":              {[]string{"LARDER_ADMIN_ADDR=0.0.0.0:0"}, true},
		"with passwords":          {[]string{"LARDER_ADMIN_ADDR=:0", "LARDER_ADMIN_HTPASSWD=" + file}, false},
		"with clients' passwords": {[]string{"LARDER_ADMIN_ADDR=:0", "LARDER_HTPASSWD=" + file}, true},
		"loopback":                {[]string{"LARDER_ADMIN_ADDR=127.0.0.1:0"}, false},
		"localhost":               {[]string{"LARDER_ADMIN_ADDR=localhost:0"}, false},
		"off":                     {[]string{"LARDER_ADMIN_ADDR="}, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			l := runLarder(t, nil, test.environ...)
			eventually(t, "larder to start", func() bool { return strings.Contains(l.stderr.String(), `"larder started"`) })
			if warned := strings.Contains(l.stderr.String(), "LARDER_ADMIN_HTPASSWD"); warned != test.warned {
				t.Errorf("warned: %t, want %t", warned, test.warned)
			}
		})
	}
}
