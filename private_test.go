package main

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"path/filepath"
	"testing"
)

// dockerConfig makes a Docker configuration with a password for one host the
// only one that this process finds, and returns larder's environment for it.
func dockerConfig(t *testing.T, host, pass string) []string {
	t.Helper()
	home := t.TempDir()
	auth := base64.StdEncoding.EncodeToString([]byte(username + ":" + pass))
	writeFile(t, filepath.Join(home, "docker", "config.json"), fmt.Sprintf(`{"auths": {%q: {"auth": %q}}}`, host, auth))
	environ := []string{"HOME=" + home, "DOCKER_CONFIG=" + filepath.Join(home, "docker")}
	t.Setenv("HOME", home)
	t.Setenv("DOCKER_CONFIG", filepath.Join(home, "docker"))
	return environ
}

// TestPrivateUpstreams gives the default upstream's password in the
// environment and the other's in Docker's configuration, right and wrong.
func TestPrivateUpstreams(t *testing.T) {
	kinds := map[string]func(t *testing.T, host string) *testUpstream{
		"basic":  newBasicUpstream,
		"bearer": func(t *testing.T, host string) *testUpstream { return newTokenUpstream(t, host, passwordOnly) },
	}
	for kind, private := range kinds {
		t.Run(kind, func(t *testing.T) {
			hub, ghcr := private(t, "docker.io"), private(t, "ghcr.io")
			hub.push(t, "library/larder-test-hello:1", layeredImage(t, 2))
			ghcr.push(t, "larder-test/multi:v1", layeredImage(t, 2))
			passwordFile := writeFile(t, filepath.Join(t.TempDir(), "password"), password+"\n")
			tests := map[string]struct {
				pass    string // in Docker's configuration
				environ []string
				denied  bool
			}{
				"right":       {pass: password, environ: []string{"LARDER_USERNAME=" + username, "LARDER_PASSWORD=" + password}},
				"from a file": {pass: password, environ: []string{"LARDER_USERNAME=" + username, "LARDER_PASSWORD_FILE=" + passwordFile}},
				"wrong":       {pass: "wrong", environ: []string{"LARDER_USERNAME=" + username, "LARDER_PASSWORD=wrong"}, denied: true},
				"none":        {pass: "", denied: true},
			}
			for name, test := range tests {
				t.Run(name, func(t *testing.T) {
					environ := append(dockerConfig(t, "ghcr.io", test.pass), test.environ...)
					l := startLarder(t, []*testUpstream{hub, ghcr}, environ...)
					for _, reference := range []string{hubName + ":1", ghcrName + ":v1"} {
						if err := craneClient(l.addr).pull(t, reference); (err != nil) != test.denied {
							t.Errorf("pull %s: got %v, want denied: %t", reference, err, test.denied)
						}
					}
					if test.denied {
						wantDenied(t, l, "/v2/library/larder-test-hello/manifests/1")
						wantDenied(t, l, "/v2/larder-test/multi/manifests/v1?ns=ghcr.io")
					}
				})
			}
		})
	}
}

// wantDenied checks that a refusal by upstream is not a challenge to clients.
func wantDenied(t *testing.T, l *larder, path string) {
	t.Helper()
	resp, body := l.get(t, path)
	if resp.StatusCode != http.StatusForbidden {
		t.Fatalf("got %s with %q, want 403", resp.Status, body)
	}
	if got := errorCode(t, body); got != "DENIED" {
		t.Errorf("got code %s, want DENIED", got)
	}
	if got := resp.Header.Get("WWW-Authenticate"); got != "" {
		t.Errorf("got challenge %q, want none", got)
	}
}
