package doctor_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"larder/blobcache"
	"larder/handler"
	"larder/handler/admin/doctor"
	"larder/handler/upstream"
	"larder/handler/upstream/upstreamtest"
	"larder/manifestcache"
)

// patient is a larder in front of a registry, to be examined.
type patient struct {
	hub *upstreamtest.Registry
	cfg doctor.Config
}

func newPatient(t *testing.T) *patient {
	t.Helper()
	p := &patient{hub: upstreamtest.New(t)}
	p.hub.AddImage("library/hello-world", "latest", []byte("a layer that is larger than the other, by far"), []byte("layer"))
	blobs, err := blobcache.Open(openRoot(t), blobcache.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { blobs.Close() })
	manifests, err := manifestcache.Open(openRoot(t), manifestcache.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { manifests.Close() })
	h := handler.New(handler.Config{Upstreams: p.client(t, "docker.io="+p.hub.URL), Blobs: blobs, Manifests: manifests})
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	p.cfg = doctor.Config{
		Version: "1.2.3", Upstreams: p.client(t, "docker.io="+p.hub.URL), CacheDir: t.TempDir(), Pull: server.URL,
		Listeners: []doctor.Listener{{Name: doctor.Registry, Variable: "LARDER_ADDR", URL: server.URL + "/v2/", Running: true}},
	}
	if err := os.Chmod(p.cfg.CacheDir, 0o700); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *patient) client(t *testing.T, list string) *upstream.Client {
	t.Helper()
	registries, err := upstream.ParseList(list)
	if err != nil {
		t.Fatal(err)
	}
	c, err := upstream.New(upstream.Config{Registries: registries})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func openRoot(t *testing.T) *os.Root {
	t.Helper()
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// want examines the patient and looks for one check.
func (p *patient) want(t *testing.T, name string, status doctor.Status, says ...string) *doctor.Report {
	t.Helper()
	r := doctor.Examine(t.Context(), p.cfg)
	for _, c := range r.Checks {
		if c.Name != name {
			continue
		}
		text := c.Detail + " -> " + c.Do
		if c.Status != status || (c.Status == doctor.Failed || c.Status == doctor.Warning) == (c.Do == "") {
			t.Errorf("%s is %s (%s), want %s, and what to do if something is wrong", name, c.Status, text, status)
		}
		for _, s := range says {
			if !strings.Contains(text, s) {
				t.Errorf("%s does not say %q: %s", name, s, text)
			}
		}
		return r
	}
	t.Fatalf("no %s in %v", name, r.Checks)
	return nil
}

func TestAllIsWell(t *testing.T) {
	p := newPatient(t)
	r := p.want(t, "pull through larder", doctor.OK, "docker.io/library/hello-world:latest", "(miss)", "5B")
	if !r.OK || len(r.Checks) != 7 {
		t.Errorf("got %v", r)
	}
	for _, c := range r.Checks {
		if c.Status != doctor.OK && c.Name != "cache space" { // of the machine that tests
			t.Errorf("%v is not well", c)
		}
		if len(c.Steps) == 0 && (c.Name == "upstream docker.io" || c.Name == "pull through larder" || c.Name == "cache disk") {
			t.Errorf("%s says nothing of how long it took", c.Name)
		}
	}
	p.want(t, "pull through larder", doctor.OK, "(hit)")
}

func TestWhatFails(t *testing.T) {
	tests := map[string]struct {
		prepare func(t *testing.T, p *patient)
		check   string
		status  doctor.Status
		says    []string
	}{
		"upstream gone": {
			func(_ *testing.T, p *patient) { p.hub.Stop() },
			"upstream docker.io", doctor.Failed,
			[]string{"connect", "refused", "firewall"},
		},
		"upstream, 5xx": {
			func(_ *testing.T, p *patient) { p.hub.Fault(upstreamtest.Match{}, upstreamtest.Status(500, nil)) },
			"upstream docker.io", doctor.Failed,
			[]string{"500", "status page"},
		},
		"upstream wants a password": {
			func(_ *testing.T, p *patient) { p.hub.RequireBasic("user", "hush") },
			"upstream docker.io", doctor.Failed,
			[]string{"401", "LARDER_USERNAME"},
		},
		"upstream wants a password: the pull": {
			func(_ *testing.T, p *patient) { p.hub.RequireBasic("user", "hush") },
			"pull through larder", doctor.Failed,
			[]string{"DENIED", "LARDER_DOCTOR_REFERENCE"},
		},
		"upstream's clock": {
			func(_ *testing.T, p *patient) {
				p.hub.Fault(upstreamtest.Match{}, upstreamtest.SetHeader("Date", time.Now().Add(2*time.Hour).UTC().Format(http.TimeFormat)))
			},
			"upstream docker.io", doctor.Warning,
			[]string{"ahead", "clock"},
		},
		"no pulls left": {
			func(_ *testing.T, p *patient) {
				p.hub.Fault(upstreamtest.Match{}, upstreamtest.SetHeader("RateLimit-Limit", "100;w=21600"), upstreamtest.SetHeader("RateLimit-Remaining", "0;w=21600"))
			},
			"upstream docker.io", doctor.Warning,
			[]string{"0 of 100 pulls are left", "6h0m0s"},
		},
		"the cache is a file": {
			func(_ *testing.T, p *patient) {
				p.cfg.CacheDir = filepath.Join(p.cfg.CacheDir, "file")
				os.WriteFile(p.cfg.CacheDir, nil, 0o600)
			},
			"cache directory", doctor.Failed,
			[]string{"LARDER_CACHE_DIR", "chown"},
		},
		"the cache is open": {
			func(_ *testing.T, p *patient) { os.Chmod(p.cfg.CacheDir, 0o755) },
			"cache directory", doctor.Warning,
			[]string{"chmod 700"},
		},
		"the cache is not there yet": {
			func(_ *testing.T, p *patient) { p.cfg.CacheDir = filepath.Join(p.cfg.CacheDir, "a", "b") },
			"cache directory", doctor.OK,
			[]string{"not there yet"},
		},
		"no room": {
			func(_ *testing.T, p *patient) { p.cfg.MinFree = blobcache.Limit{Percent: 100} },
			"cache space", doctor.Failed,
			[]string{"LARDER_MIN_FREE"},
		},
		"another program": {
			func(t *testing.T, p *patient) {
				other := httptest.NewServer(http.NotFoundHandler())
				t.Cleanup(other.Close)
				p.cfg.Listeners[0].URL = other.URL + "/v2/"
			},
			"listener registry", doctor.Failed,
			[]string{"404", "not larder", "LARDER_ADDR"},
		},
		"another program that has everything": {
			func(t *testing.T, p *patient) {
				other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
				t.Cleanup(other.Close)
				p.cfg.Listeners[0].URL = other.URL + "/v2/"
			},
			"listener registry", doctor.Failed,
			[]string{"200", "not larder"},
		},
		"nobody, though larder runs": {
			func(_ *testing.T, p *patient) { p.cfg.Listeners[0].URL = "http://127.0.0.1:1/v2/" },
			"listener registry", doctor.Failed,
			[]string{"refused", "LARDER_ADDR"},
		},
		"no such image": {
			func(_ *testing.T, p *patient) { p.cfg.Reference = "docker.io/org/none:1" },
			"pull through larder", doctor.Failed,
			[]string{"docker.io/org/none:1", "MANIFEST_UNKNOWN"},
		},
		"a wrong blob, and larder gives it": { // which it never does: here the registry itself stands in for it
			func(_ *testing.T, p *patient) {
				p.cfg.Pull = p.hub.URL
				p.hub.Fault(upstreamtest.Match{Path: "/blobs/"}, upstreamtest.FlipByte(0))
			},
			"pull through larder", doctor.Failed,
			[]string{"another digest"},
		},
		"a wrong blob": {
			func(_ *testing.T, p *patient) {
				p.hub.Fault(upstreamtest.Match{Path: "/blobs/"}, upstreamtest.FlipByte(0))
			},
			"pull through larder", doctor.Failed,
			[]string{"blob"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			p := newPatient(t)
			test.prepare(t, p)
			r := p.want(t, test.check, test.status, test.says...)
			if test.status == doctor.Failed && r.OK {
				t.Error("the report is OK all the same")
			}
			var text bytes.Buffer
			if err := r.WriteText(&text); err != nil || strings.Contains(text.String(), "hush") {
				t.Errorf("%v:\n%s", err, &text)
			}
		})
	}
}

func TestWhatIsLeftOut(t *testing.T) {
	tests := map[string]struct {
		prepare func(t *testing.T, p *patient)
		check   string
		says    string
	}{
		"nobody listens, and larder does not run": {
			func(_ *testing.T, p *patient) {
				p.cfg.Listeners[0].URL, p.cfg.Listeners[0].Running = "http://127.0.0.1:1/v2/", false
			}, "listener registry", "not running",
		},
		"no pull":  {func(_ *testing.T, p *patient) { p.cfg.Pull, p.cfg.NoPull = "", "as I say so" }, "pull through larder", "as I say so"},
		"no image": {func(t *testing.T, p *patient) { p.cfg.Upstreams = p.client(t, "ghcr.io="+p.hub.URL) }, "pull through larder", "LARDER_DOCTOR_REFERENCE"},
		"a password": {func(t *testing.T, p *patient) {
			locked := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(401) }))
			t.Cleanup(locked.Close)
			p.cfg.Pull = locked.URL
		}, "pull through larder", "must sign in"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			p := newPatient(t)
			test.prepare(t, p)
			r := doctor.Examine(t.Context(), p.cfg)
			for _, c := range r.Checks {
				if c.Name == test.check && (c.Status != doctor.Skipped || !strings.Contains(c.Detail+c.Do, test.says)) {
					t.Errorf("got %v, want it skipped: %s", c, test.says)
				}
			}
			if !r.OK {
				t.Errorf("that is no failure: %v", r.Checks)
			}
		})
	}
}

// Nothing is left of what was written, and what is kept is counted.
func TestDiskIsLeftAsItWas(t *testing.T) {
	p := newPatient(t)
	file := filepath.Join(p.cfg.CacheDir, "blobs", "sha256", "ab", "abcd")
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, make([]byte, 2048), 0o600); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-50 * time.Hour)
	if err := os.Chtimes(file, old, old); err != nil {
		t.Fatal(err)
	}
	r := p.want(t, "cache content", doctor.OK, "1 files, 2KiB", "2 days ago")
	disk := r.Checks[slices.IndexFunc(r.Checks, func(c doctor.Check) bool { return c.Name == "cache disk" })]
	want := doctor.OK
	if strings.Contains(disk.Do, "a faster disk") { // others may keep it busy
		want = doctor.Warning
	}
	if disk.Status != want || !strings.Contains(disk.Detail, "/s, with fsync") {
		t.Errorf("got %+v, want %v and how fast it is", disk, want)
	}
	entries, err := os.ReadDir(p.cfg.CacheDir)
	if err != nil || len(entries) != 1 || entries[0].Name() != "blobs" {
		t.Errorf("left: %v, %v", entries, err)
	}
}

// A listener that wants certificates is asked as far as one gets without.
func TestListenerWithCertificates(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.Listener.Close()
	server.Listener = l
	server.StartTLS()
	defer server.Close()
	p := newPatient(t)
	p.cfg.Listeners[0] = doctor.Listener{Name: doctor.Registry, URL: server.URL + "/v2/", Certificate: true}
	p.want(t, "listener registry", doctor.OK)
}

func TestReportIsJSON(t *testing.T) {
	p := newPatient(t)
	p.hub.Stop()
	r := doctor.Examine(t.Context(), p.cfg)
	var out bytes.Buffer
	if err := r.WriteJSON(&out); err != nil {
		t.Fatal(err)
	}
	var got doctor.Report
	decoder := json.NewDecoder(&out)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&got); err != nil || got.OK || len(got.Checks) != len(r.Checks) || got.Version != "1.2.3" {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := decoder.Token(); err != io.EOF {
		t.Errorf("there is more: %v", err)
	}
}
