package main

import (
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"larder/handler/admin/setup"
	"larder/handler/upstream"
)

// setupFile is a file that a larder at addr writes for its clients.
func setupFile(t *testing.T, addr string, hosts []string, path string) string {
	t.Helper()
	list, err := upstream.ParseList(strings.Join(hosts, ","))
	if err != nil {
		t.Fatal(err)
	}
	r, w := httptest.NewRequest("GET", "/setup/"+path, nil), httptest.NewRecorder()
	r.Host = "127.0.0.1:5001"
	setup.Handler(setup.Config{Registries: list, Addr: addr}).ServeHTTP(w, r)
	if w.Code != http.StatusOK {
		t.Fatalf("/setup/%s: %d %s", path, w.Code, w.Body)
	}
	return w.Body.String()
}

// install pipes one of larder's scripts into a shell, for a system below root.
func (l *larder) install(t *testing.T, root, script string) string {
	t.Helper()
	resp, body := (&larder{addr: l.admin(t)}).get(t, "/setup/"+script)
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("/setup/%s: %s %s", script, resp.Status, body)
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-s", "--", "--root", root)
	cmd.Stdin = strings.NewReader(string(body))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

// admin is where its admin listener is.
func (l *larder) admin(t *testing.T) string {
	t.Helper()
	for _, entry := range l.environ {
		if addr, ok := strings.CutPrefix(entry, "LARDER_ADMIN_ADDR="); ok && addr != "" {
			return addr
		}
	}
	t.Fatal("the admin listener is off")
	return ""
}

// A new user's way: start larder, pipe the script into a shell, pull.
func TestContainerdPullsAfterTheSetupScript(t *testing.T) {
	t.Parallel()
	requireContainerd(t)
	for name, script := range map[string]string{"with fallback": "containerd.sh", "without": "containerd.sh?fallback=false"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			hub := newUpstream(t, "docker.io")
			hub.push(t, "library/larder-test-hello:1", bootableImage(t))
			l := startLarder(t, []*testUpstream{hub}, "LARDER_ADMIN_ADDR="+freeAddr(t))
			root := shortDir(t)
			if out := l.install(t, root, script); !strings.Contains(out, "config_path") {
				t.Errorf("it does not say what containerd lacks: %s", out)
			}
			if out := l.install(t, root, script); !strings.Contains(out, "nothing to do") {
				t.Errorf("the second time: %s", out)
			}
			for _, when := range []string{"cold", "upstream stopped"} {
				c := startContainerd(t)
				c.hosts = filepath.Join(root, "etc", "containerd", "certs.d")
				if err := c.pull(t, hubName+":1"); err != nil {
					t.Fatalf("%s: %v", when, err)
				}
				if got, err := c.run(t, hubName+":1"); err != nil || got != greeting {
					t.Errorf("%s: got %q, want %q (%v)", when, got, greeting, err)
				}
				hub.stop()
			}
			hub.wantExchanges(t, "^GET .*/blobs/", 3, 3)
		})
	}
}
