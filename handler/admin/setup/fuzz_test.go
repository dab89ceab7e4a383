package setup_test

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
	"go.yaml.in/yaml/v3"
)

// FuzzHost: whatever Host is, the files are refused, or are what their readers expect
// and name one address, and the script has nothing of it outside of quotes.
func FuzzHost(f *testing.F) {
	for _, host := range []string{"localhost:5001", "10.0.0.7", "[::1]:5001", "a'b", "a\"b", "a\nb", "$(x)", "A_b.example:1", "0", "-", "[::]:0"} {
		f.Add(host)
	}
	f.Fuzz(func(t *testing.T, host string) {
		cfg := config(t, "[::]:5000", "docker.io,ghcr.io")
		w := ask(cfg, host, "/setup/registries.yaml")
		if w.Code == http.StatusBadRequest {
			return
		}
		var k3s struct {
			Mirrors map[string]struct{ Endpoint []string }
		}
		if err := yaml.Unmarshal(w.Body.Bytes(), &k3s); err != nil || len(k3s.Mirrors) != 2 || len(k3s.Mirrors["docker.io"].Endpoint) != 1 {
			t.Fatalf("Host %q: %v, %v", host, k3s, err)
		}
		endpoint := k3s.Mirrors["docker.io"].Endpoint[0]
		u, err := url.Parse(endpoint)
		if err != nil || u.Scheme != "http" || u.Port() != "5000" || u.Path+u.RawQuery+u.Fragment != "" || u.User != nil {
			t.Errorf("Host %q: the address is %q (%v)", host, endpoint, err)
		}
		var hosts struct {
			Server string
			Host   map[string]any
		}
		err = toml.Unmarshal(ask(cfg, host, "/setup/containerd/ghcr.io/hosts.toml").Body.Bytes(), &hosts)
		if err != nil || hosts.Server != "https://ghcr.io" || len(hosts.Host) != 1 || hosts.Host[endpoint] == nil {
			t.Errorf("Host %q: hosts.toml is %v, %v", host, hosts, err)
		}
		var docker struct {
			Mirrors []string `json:"registry-mirrors"`
		}
		err = json.Unmarshal(ask(cfg, host, "/setup/daemon.json").Body.Bytes(), &docker)
		if err != nil || len(docker.Mirrors) != 1 || docker.Mirrors[0] != endpoint {
			t.Errorf("Host %q: daemon.json is %v, %v", host, docker, err)
		}
		script := ask(cfg, host, "/setup/containerd.sh").Body.String()
		if head, _, _ := strings.Cut(script, "\ncontent()"); strings.Count(head, "'") != 8 || strings.Count(head, "\n") != 6 {
			t.Errorf("Host %q: the script begins %s", host, head)
		}
	})
}
