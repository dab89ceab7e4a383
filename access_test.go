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
