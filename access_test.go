package main

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

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
	"/cache", "/why?ref=docker.io/library/a",
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
	for _, target := range []string{"DELETE /cache/a", "DELETE /cache/sha256:" + strings.Repeat("0a", 32), "POST /prune?all=1"} {
		method, path, _ := strings.Cut(target, " ")
		for pass, want := range map[string]bool{"": false, "wrong": false, "toor": true} {
			resp, _ := ask(t, http.DefaultClient, method, "http://"+admin+path, strings.Repeat("root", len(pass)/4), pass)
			if (resp.StatusCode != http.StatusUnauthorized) != want {
				t.Errorf("%s with password %q: %s", target, pass, resp.Status)
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

// TestClientsNameNobodyToConnectTo lets clients name an address in every place
// that a proxy might look at.
func TestClientsNameNobodyToConnectTo(t *testing.T) {
	t.Parallel()
	silent := silentUpstream(t)
	l := startLarder(t, nil)
	_, port, err := net.SplitHostPort(silent)
	if err != nil {
		t.Fatal(err)
	}
	var requests []string
	for _, ns := range []string{
		silent, "http://" + silent, "user:pass@" + silent, "docker.io@" + silent, silent + "/", silent + "%23docker.io", silent + "%3fdocker.io", "localhost:" + port,
		"[::ffff:127.0.0.1]:" + port, "2130706433:" + port, "0x7f000001:" + port, "127.1:" + port, "0:" + port, silent + "%00.docker.io", silent + "%0d%0aHost:docker.io",
		"docker.io." + silent, "docker.io," + silent, "DOCKER.IO&ns=" + silent, "docker.io&ns=docker.io", "%64ocker.io:" + port, "docker.io%20", "docker.io.", "docker%E2%80%A4io",
	} {
		for _, path := range []string{"manifests/1", "blobs/sha256:" + strings.Repeat("0a", 32), "tags/list", "referrers/sha256:" + strings.Repeat("0a", 32)} {
			requests = append(requests, "GET /v2/a/b/"+path+"?ns="+ns+" HTTP/1.1\r\nHost: x")
		}
	}
	for _, name := range []string{silent, "user:pass@" + silent, "http:/" + silent, "http:%2f%2f" + silent, "@" + silent, "localhost:" + port, "%5b::1%5d:" + port} {
		requests = append(requests, "GET /v2/"+name+"/a/b/manifests/1 HTTP/1.1\r\nHost: x")
	}
	requests = append(requests,
		"GET http://"+silent+"/v2/a//b/manifests/1 HTTP/1.1\r\nHost: "+silent,
		"GET http://user:pass@"+silent+"/ HTTP/1.1\r\nHost: "+silent,
		"GET //"+silent+"/v2/a/b/manifests/1 HTTP/1.1\r\nHost: "+silent,
		"CONNECT "+silent+" HTTP/1.1\r\nHost: "+silent,
		"GET @"+silent+"/ HTTP/1.1\r\nHost: x",
		"GET /v2/A/manifests/1 HTTP/1.1\r\nHost: "+silent+"\r\nX-Forwarded-Host: "+silent+"\r\nForwarded: host="+silent+"\r\nX-Original-URL: http://"+silent,
		"GET /v2/a\x00b/manifests/1 HTTP/1.1\r\nHost: x",
		"GET /v2/a/b/manifests/1?ns=\x00 HTTP/1.1\r\nHost: x",
	)
	for _, request := range requests {
		if status := l.send(t, request); status < 400 || status >= 500 {
			t.Errorf("%q: %d, want to be refused", request, status)
		}
	}
}

// send sends a request as it is and returns the status.
func (l *larder) send(t *testing.T, request string) int {
	t.Helper()
	conn, err := net.Dial("tcp", l.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, request+"\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("%q: %v", request, err)
	}
	resp.Body.Close()
	return resp.StatusCode
}
