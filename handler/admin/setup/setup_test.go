package setup_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
	"go.yaml.in/yaml/v3"

	"larder/handler/admin/setup"
	"larder/handler/upstream"
)

// config is larder on addr with these upstreams.
func config(t *testing.T, addr, upstreams string) setup.Config {
	t.Helper()
	list, err := upstream.ParseList(upstreams)
	if err != nil {
		t.Fatal(err)
	}
	return setup.Config{Registries: list, Addr: addr}
}

func ask(cfg setup.Config, host, path string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest("GET", path, nil)
	r.Host = host
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	setup.Handler(cfg).ServeHTTP(w, r)
	return w
}

// decoded is a file as its reader understands it.
func decoded(t *testing.T, cfg setup.Config, host, path string, unmarshal func([]byte, any) error) map[string]any {
	t.Helper()
	w := ask(cfg, host, path)
	got := make(map[string]any)
	if err := unmarshal(w.Body.Bytes(), &got); w.Code != http.StatusOK || err != nil {
		t.Fatalf("%s: %d, %v:\n%s", path, w.Code, err, w.Body)
	}
	return got
}

type (
	object = map[string]any
	list   = []any
)

func TestFilesSayWhatClientsNeed(t *testing.T) {
	const upstreams = "docker.io,ghcr.io,registry.example:5443=http://registry.example:5443,mirrored.example=http://10.0.0.7:5000"
	tests := map[string]struct {
		path      string
		unmarshal func([]byte, any) error
		want      object
	}{
		"containerd, Docker Hub": {"/setup/containerd/docker.io/hosts.toml", toml.Unmarshal, object{
			"server": "https://registry-1.docker.io",
			"host":   object{"http://localhost:5000": object{"capabilities": list{"pull", "resolve"}}},
		}},
		"containerd, another": {"/setup/containerd/ghcr.io/hosts.toml", toml.Unmarshal, object{
			"server": "https://ghcr.io",
			"host":   object{"http://localhost:5000": object{"capabilities": list{"pull", "resolve"}}},
		}},
		"containerd, one on plain HTTP": {"/setup/containerd/registry.example:5443/hosts.toml", toml.Unmarshal, object{
			"server": "http://registry.example:5443",
			"host":   object{"http://localhost:5000": object{"capabilities": list{"pull", "resolve"}}},
		}},
		"containerd, one that larder finds elsewhere": {"/setup/containerd/mirrored.example/hosts.toml", toml.Unmarshal, object{
			"server": "https://mirrored.example",
			"host":   object{"http://localhost:5000": object{"capabilities": list{"pull", "resolve"}}},
		}},
		"containerd without fallback": {"/setup/containerd/ghcr.io/hosts.toml?fallback=false", toml.Unmarshal, object{
			"server": "http://localhost:5000",
			"host":   object{"http://localhost:5000": object{"capabilities": list{"pull", "resolve"}}},
		}},
		"podman": {"/setup/larder.conf", toml.Unmarshal, object{"registry": list{
			object{"location": "docker.io", "mirror": list{object{"location": "localhost:5000", "insecure": true}}},
			object{"location": "ghcr.io", "mirror": list{object{"location": "localhost:5000/ghcr.io", "insecure": true}}},
			object{"location": "mirrored.example", "mirror": list{object{"location": "localhost:5000/mirrored.example", "insecure": true}}},
			object{"location": "localhost:5000", "insecure": true},
		}}},
		"podman without fallback": {"/setup/larder.conf?fallback=false", toml.Unmarshal, object{"registry": list{
			object{"prefix": "docker.io", "location": "localhost:5000", "insecure": true},
			object{"prefix": "ghcr.io", "location": "localhost:5000/ghcr.io", "insecure": true},
			object{"prefix": "mirrored.example", "location": "localhost:5000/mirrored.example", "insecure": true},
			object{"location": "localhost:5000", "insecure": true},
		}}},
		"docker": {"/setup/daemon.json", json.Unmarshal, object{"registry-mirrors": list{"http://localhost:5000"}}},
		"BuildKit": {"/setup/buildkitd.toml", toml.Unmarshal, object{"registry": object{
			"docker.io":             object{"mirrors": list{"localhost:5000"}},
			"ghcr.io":               object{"mirrors": list{"localhost:5000"}},
			"registry.example:5443": object{"mirrors": list{"localhost:5000"}},
			"mirrored.example":      object{"mirrors": list{"localhost:5000"}},
			"localhost:5000":        object{"http": true},
		}}},
		"k3s": {"/setup/registries.yaml", yaml.Unmarshal, object{"mirrors": object{
			"docker.io":             object{"endpoint": list{"http://localhost:5000"}},
			"ghcr.io":               object{"endpoint": list{"http://localhost:5000"}},
			"registry.example:5443": object{"endpoint": list{"http://localhost:5000"}},
			"mirrored.example":      object{"endpoint": list{"http://localhost:5000"}},
		}}},
	}
	cfg := config(t, "127.0.0.1:5000", upstreams)
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got := decoded(t, cfg, "localhost:5001", test.path, test.unmarshal); !reflect.DeepEqual(got, test.want) {
				t.Errorf("got  %v\nwant %v", got, test.want)
			}
		})
	}
}

func TestFilesWithTLS(t *testing.T) {
	cfg := config(t, "[::]:5443", "docker.io,ghcr.io")
	cfg.TLS = true
	for path, test := range map[string]struct {
		unmarshal func([]byte, any) error
		want      object
	}{
		"/setup/containerd/ghcr.io/hosts.toml": {toml.Unmarshal, object{
			"server": "https://ghcr.io", "host": object{"https://cache.example:5443": object{"capabilities": list{"pull", "resolve"}}},
		}},
		"/setup/larder.conf": {toml.Unmarshal, object{"registry": list{
			object{"location": "docker.io", "mirror": list{object{"location": "cache.example:5443"}}},
			object{"location": "ghcr.io", "mirror": list{object{"location": "cache.example:5443/ghcr.io"}}},
		}}},
		"/setup/daemon.json": {json.Unmarshal, object{"registry-mirrors": list{"https://cache.example:5443"}}},
		"/setup/buildkitd.toml": {toml.Unmarshal, object{"registry": object{
			"docker.io": object{"mirrors": list{"cache.example:5443"}}, "ghcr.io": object{"mirrors": list{"cache.example:5443"}},
		}}},
		"/setup/registries.yaml": {yaml.Unmarshal, object{"mirrors": object{
			"docker.io": object{"endpoint": list{"https://cache.example:5443"}}, "ghcr.io": object{"endpoint": list{"https://cache.example:5443"}},
		}}},
	} {
		if got := decoded(t, cfg, "cache.example:5001", path, test.unmarshal); !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: got  %v\nwant %v", path, got, test.want)
		}
	}
	if text := ask(cfg, "cache.example:5001", "/setup").Body.String(); !strings.Contains(text, "ca.crt") {
		t.Errorf("no word of the certificate:\n%s", text)
	}
}

// Where clients find larder follows from where it listens and how it was asked.
func TestAddress(t *testing.T) {
	tests := map[string]struct{ addr, host, want string }{
		"loopback, by name":              {"127.0.0.1:5000", "localhost:5001", "http://localhost:5000"},
		"loopback, by address":           {"127.0.0.1:5000", "127.0.0.1:5001", "http://127.0.0.1:5000"},
		"loopback, from a network":       {"127.0.0.1:5000", "10.0.0.7:5001", "http://127.0.0.1:5000"},
		"loopback, IPv6":                 {"[::1]:5000", "[::1]:5001", "http://[::1]:5000"},
		"one address":                    {"10.0.0.7:80", "localhost:5001", "http://10.0.0.7:80"},
		"all, by name":                   {"[::]:5000", "Node-7.example:5001", "http://node-7.example:5000"},
		"all, by address":                {"0.0.0.0:5000", "10.0.0.7:5001", "http://10.0.0.7:5000"},
		"all, by IPv6 address":           {"[::]:5000", "[2001:db8::7]:5001", "http://[2001:db8::7]:5000"},
		"all, by all":                    {"[::]:5000", "0.0.0.0:5001", "http://localhost:5000"},
		"all, by all of IPv6":            {"[::]:5000", "[::]:5001", "http://localhost:5000"},
		"no port in the question":        {"[::]:5000", "cache.example", "http://cache.example:5000"},
		"a name with an underscore":      {"[::]:5000", "my_larder:5001", "http://my_larder:5000"},
		"another port, as is its choice": {"[::]:5999", "cache.example:80", "http://cache.example:5999"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got := decoded(t, config(t, test.addr, "docker.io"), test.host, "/setup/registries.yaml", yaml.Unmarshal)
			if want := (object{"mirrors": object{"docker.io": object{"endpoint": list{test.want}}}}); !reflect.DeepEqual(got, want) {
				t.Errorf("got  %v\nwant %v", got, want)
			}
		})
	}
}

func TestHostileHostsGetNoFile(t *testing.T) {
	cfg := config(t, "[::]:5000", "docker.io")
	for _, host := range []string{
		"", ":5001", "*", "*.example", "a\"b:5001", "a'b", "a b", "a\nb", "a\r\nX-Evil: 1", "$(id)", "`id`", "a;id", "a]b", "a#b",
		"<script>alert(1)</script>", "user@cache.example", "a/../b", "[fe80::1%25eth0]:5001", "-rf", "a\\", strings.Repeat("a", 300), "münchen.example", "{{.}}",
	} {
		for _, path := range []string{"/setup", "/setup/containerd.sh", "/setup/podman.sh", "/setup/daemon.json", "/setup/containerd/docker.io/hosts.toml"} {
			w := ask(cfg, host, path, "Accept", "text/html")
			if body := w.Body.String(); w.Code != http.StatusBadRequest || host != "" && len(host) > 1 && strings.Contains(body, host) {
				t.Errorf("%s with Host %q: %d %s", path, host, w.Code, body)
			}
		}
	}
}

// The page is HTML for who asks for that, and shows every file as it is served.
func TestPageShowsAllFiles(t *testing.T) {
	cfg := config(t, "127.0.0.1:5000", "docker.io,ghcr.io")
	text, html := ask(cfg, "localhost:5001", "/setup"), ask(cfg, "localhost:5001", "/setup", "Accept", "text/html,*/*;q=0.8")
	for kind, w := range map[string]*httptest.ResponseRecorder{"text/plain": text, "text/html": html} {
		if got := w.Header().Get("Content-Type"); w.Code != http.StatusOK || !strings.HasPrefix(got, kind) {
			t.Errorf("got %d %s, want %s", w.Code, got, kind)
		}
		if csp := w.Header().Get("Content-Security-Policy"); !strings.Contains(csp, "default-src 'none'") || strings.Contains(csp, "unsafe") {
			t.Errorf("policy is %q", csp)
		}
	}
	for _, path := range []string{
		"containerd/docker.io/hosts.toml", "containerd/ghcr.io/hosts.toml", "larder.conf", "daemon.json", "buildkitd.toml", "registries.yaml",
	} {
		content := ask(cfg, "localhost:5001", "/setup/"+path).Body.String()
		if !strings.Contains(text.Body.String(), content) {
			t.Errorf("the text lacks %s", path)
		}
		if !strings.Contains(html.Body.String(), `href="/setup/`+path+`"`) {
			t.Errorf("the page does not lead to %s", path)
		}
	}
	for _, w := range []*httptest.ResponseRecorder{text, html} {
		for _, want := range []string{"Docker Hub only", "daemon-reload", "localhost:5001/setup/containerd.sh", "fallback=false"} {
			if found := strings.Contains(w.Body.String(), want); found != (want != "daemon-reload") {
				t.Errorf("%q is there: %v", want, found)
			}
		}
	}
}

func TestWhatClientsCannotHave(t *testing.T) {
	cfg := config(t, "127.0.0.1:5000", "ghcr.io,docker.io,registry.example:5443")
	for path, status := range map[string]int{
		"/setup/daemon.json":                      http.StatusNotFound, // docker.io is not the default upstream
		"/setup/buildkitd.toml?fallback=false":    http.StatusNotFound, // it always falls back
		"/setup/containerd/quay.io/hosts.toml":    http.StatusNotFound,
		"/setup/":                                 http.StatusOK,
		"/setup/nothing":                          http.StatusNotFound,
		"/setup/containerd.sh?fallback=perhaps":   http.StatusBadRequest,
		"/setup/containerd/../../etc/passwd":      http.StatusMovedPermanently,
		"/setup/containerd/%2e%2e/%2e%2e/etc/any": http.StatusMovedPermanently,
	} {
		if w := ask(cfg, "localhost:5001", path); w.Code != status && (status != http.StatusMovedPermanently || w.Code < 300 || w.Code > 404) {
			t.Errorf("%s: got %d, want %d", path, w.Code, status)
		}
	}
	text := ask(cfg, "localhost:5001", "/setup").Body.String()
	for _, want := range []string{"docker.io to be the first of LARDER_UPSTREAMS", "registry.example:5443 is left out"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page does not say %q:\n%s", want, text)
		}
	}
	w := httptest.NewRecorder()
	setup.Handler(cfg).ServeHTTP(w, httptest.NewRequest("POST", "/setup", nil))
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", w.Code)
	}
}

// Who reaches larder over a network without TLS must be told to take plain HTTP.
func TestDockerOverANetwork(t *testing.T) {
	got := decoded(t, config(t, "[::]:5000", "docker.io"), "cache.example:5001", "/setup/daemon.json", json.Unmarshal)
	want := object{"registry-mirrors": list{"http://cache.example:5000"}, "insecure-registries": list{"cache.example:5000"}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}
