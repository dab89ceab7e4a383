package upstream_test

import (
	"errors"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"larder/handler/upstream"
	"larder/handler/upstream/upstreamtest"
)

const (
	parentURL = "http://larder.infra:5000"
	otherHost = "other.example"

	// what a larder says of a 404 that it has from the registry
	theirs = "larder; fwd=uri-miss; fwd-status=404"
)

// family is two registries and a parent, which has what both have.
type family struct {
	parent, origin, other *upstreamtest.Registry
	client                *upstream.Client
}

func newFamily(t *testing.T, cfg upstream.Config) *family {
	t.Helper()
	f := &family{upstreamtest.NewPipe(t), upstreamtest.NewPipe(t), upstreamtest.NewPipe(t), nil}
	for _, reg := range []*upstreamtest.Registry{f.parent, f.origin, f.other} {
		fill(reg)
	}
	var err error
	if cfg.Registries, err = upstream.ParseList(host + "=http://" + host + "," + otherHost + "=http://" + otherHost); err != nil {
		t.Fatal(err)
	}
	if cfg.Parent, err = upstream.ParseParent(parentURL); err != nil {
		t.Fatal(err)
	}
	cfg.Transport = network(t, map[string]*upstreamtest.Registry{"larder.infra:5000": f.parent, host + ":80": f.origin, otherHost + ":80": f.other})
	if f.client, err = upstream.New(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.client.Close() })
	return f
}

// at is the repository at a host.
func (f *family) at(t *testing.T, ns string) *upstream.Repository {
	t.Helper()
	r, err := f.client.Repository(ns, repoName)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (f *family) wantOrigin(t *testing.T, n int) {
	t.Helper()
	if got := len(f.origin.Requests()); got != n {
		t.Errorf("the registry got %d requests, want %d", got, n)
	}
}

func TestParentIsAskedInThePlaceOfEveryRegistry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFamily(t, upstream.Config{})
		for _, ns := range []string{host, otherHost} {
			f.parent.Reset()
			askAll(t, f.at(t, ns))
			for _, req := range f.parent.Requests() {
				if !slices.Equal(req.Query["ns"], []string{ns}) {
					t.Errorf("%s %s of %s: ns is %q", req.Method, req.Path, ns, req.Query["ns"])
				}
			}
		}
		f.wantOrigin(t, 0)
		if n := len(f.other.Requests()); n != 0 {
			t.Errorf("the other registry got %d requests", n)
		}
		f.parent.Stop()
		askAll(t, f.at(t, host))
		for _, req := range f.origin.Requests() {
			if req.Query.Has("ns") {
				t.Errorf("the registry itself is told a namespace: %s?%s", req.Path, req.Query.Encode())
			}
		}
	})
}

// A parent may send clients to where the bytes are. What is signed there is not to be
// changed.
func TestParentRedirects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFamily(t, upstream.Config{})
		blob := "/v2/" + repoName + "/blobs/" + digest.FromBytes(blobData).String()
		f.parent.Fault(upstreamtest.Match{Path: "/blobs/"}, upstreamtest.Redirect("http://"+host+blob+"?signature=x"))
		ask(t, f.at(t, host), "get blob")
		reqs := f.origin.Requests()
		if len(reqs) != 1 || reqs[0].Query.Encode() != "signature=x" || reqs[0].Header.Get("Authorization") != "" {
			t.Errorf("got %+v, want one request with what is signed", reqs)
		}
	})
}

func TestParentThatFails(t *testing.T) {
	faults := map[string]upstreamtest.Fault{
		"silent":      upstreamtest.StallHeaders(),
		"reset":       upstreamtest.ResetConnection(),
		"500":         upstreamtest.Status(500, nil),
		"429":         upstreamtest.Status(429, http.Header{"Retry-After": {"600"}}),
		"504":         upstreamtest.Status(504, http.Header{"Cache-Status": {"larder; fwd=uri-miss; fwd-status=404"}}),
		"401":         upstreamtest.Status(401, http.Header{"Cache-Status": {"larder; fwd=uri-miss; fwd-status=401"}}),
		"403":         upstreamtest.Status(403, http.Header{"Cache-Status": {"larder; fwd=uri-miss; fwd-status=403"}}),
		"own 404":     upstreamtest.Status(404, nil),
		"of a grand":  upstreamtest.Status(404, http.Header{"Cache-Status": {theirs, "larder; hit"}}),
		"no status":   upstreamtest.Status(404, http.Header{"Cache-Status": {`larder; fwd-status="404"`}}),
		"loop":        upstreamtest.Status(508, nil),
		"not a field": upstreamtest.Status(404, http.Header{"Cache-Status": {theirs + ", ("}}),
	}
	for name, fault := range faults {
		for question := range questions {
			t.Run(question+" "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := newFamily(t, upstream.Config{})
					f.parent.Fault(upstreamtest.Match{Path: page(question)}, fault)
					began := time.Now()
					ask(t, f.at(t, host), question)
					if took := time.Since(began); took > 10*time.Second {
						t.Errorf("took %v", took)
					}
				})
			})
		}
	}
}

// What the registry has said to the parent need not be asked again.
func TestNoOfTheRegistryByWayOfTheParent(t *testing.T) {
	for question := range questions {
		for name, said := range map[string][]string{"one": {theirs}, "two": {theirs, theirs}, "with others": {`"a cache"; hit, ` + theirs}} {
			t.Run(question+" "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := newFamily(t, upstream.Config{})
					f.parent.Fault(upstreamtest.Match{Path: page(question)}, upstreamtest.Status(404, http.Header{"Cache-Status": said}))
					err := questions[question](t.Context(), f.at(t, host))
					wantError(t, err, 404)
					wantRefused(t, err, true)
					f.wantOrigin(t, 0)
				})
			})
		}
	}
}

// Who has credentials that the parent may not have asks for itself what the parent
// was denied, though it was called not there.
func TestNoIsNotTheSameForWhoHasCredentials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFamily(t, upstream.Config{Keychain: &keys{asked: make(map[string]bool)}})
		f.origin.RequireBasic(host, password)
		f.parent.Fault(upstreamtest.Match{Path: "/manifests/"}, upstreamtest.Status(404, http.Header{"Cache-Status": {theirs}}))
		ask(t, f.at(t, host), "head manifest")
	})
}

// A silent parent costs one timeout, and not one for each registry.
func TestSilentParentCostsOneTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFamily(t, upstream.Config{})
		heal := f.parent.Fault(upstreamtest.Match{}, upstreamtest.StallHeaders())
		began := time.Now()
		ask(t, f.at(t, host), "head manifest")
		if took := time.Since(began); took != 10*time.Second {
			t.Errorf("took %v, want 10s", took)
		}
		began = time.Now()
		askAll(t, f.at(t, host))
		askAll(t, f.at(t, otherHost))
		if took := time.Since(began); took != 0 {
			t.Errorf("took %v more, want nothing", took)
		}
		for _, p := range f.client.Stats().Places {
			if p.Open != p.Parent || p.Parent != (p.URL == parentURL) {
				t.Errorf("got %+v, want the parent left alone, and nobody else", p)
			}
		}
		heal()
		time.Sleep(time.Minute)
		f.origin.Reset()
		ask(t, f.at(t, otherHost), "head manifest")
		ask(t, f.at(t, host), "head manifest")
		f.wantOrigin(t, 0)
	})
}

func TestParentAndRegistriesGetTheirOwnCredentialsOnly(t *testing.T) {
	require := map[string]func(reg *upstreamtest.Registry, user string){
		"basic":  func(reg *upstreamtest.Registry, user string) { reg.RequireBasic(user, password) },
		"bearer": func(reg *upstreamtest.Registry, user string) { reg.RequireBearer(user, password, time.Hour) },
	}
	for name, require := range require {
		t.Run(name, func(t *testing.T) {
			parent, origin := upstreamtest.New(t), upstreamtest.New(t)
			fill(parent)
			fill(origin)
			at, err := upstream.ParseParent(parent.URL)
			if err != nil {
				t.Fatal(err)
			}
			k := &keys{asked: make(map[string]bool)}
			require(parent, userOf(at.Host))
			require(origin, host)
			c := newClient(t, origin.URL, upstream.Config{Keychain: k, Parent: at})
			if err := c.CheckCredentials(t.Context()); err != nil {
				t.Error(err)
			}
			askAll(t, repository(t, c))
			if n := origin.Count("", repoName); n != 0 {
				t.Errorf("the registry got %d questions though the parent answers", n)
			}
			parent.Fault(upstreamtest.Match{Path: repoName}, upstreamtest.Status(500, nil))
			askAll(t, repository(t, c))
			for user, reg := range map[string]*upstreamtest.Registry{userOf(at.Host): parent, host: origin} {
				shown := make(map[string]bool)
				for _, req := range reg.Requests() {
					if user, _, ok := (&http.Request{Header: req.Header}).BasicAuth(); ok {
						shown[user] = true
					}
				}
				if got := slices.Collect(maps.Keys(shown)); !slices.Equal(got, []string{user}) {
					t.Errorf("the passwords of %v were shown to %s", got, user)
				}
			}
		})
	}
}

// A parent's token server is the parent: a registry's URL is no place for its password.
func TestParentsPasswordGoesToNoRegistry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		parent, origin := upstreamtest.NewPipe(t), upstreamtest.NewPipe(t)
		fill(origin)
		at, err := upstream.ParseParent("https://larder.infra")
		if err != nil {
			t.Fatal(err)
		}
		c := newClient(t, "https://"+host, upstream.Config{
			Keychain: &keys{asked: make(map[string]bool)}, Parent: at,
			Transport: network(t, map[string]*upstreamtest.Registry{"larder.infra:443": parent, host + ":443": origin}),
		})
		parent.Fault(upstreamtest.Match{Path: "/v2/"}, challenge(`Bearer realm="https://`+host+`/token",service="x"`))
		ask(t, repository(t, c), "head manifest")
		if n := parent.Count("", "/v2/"); n == 0 {
			t.Error("the parent was not asked")
		}
		if n := origin.Count("", "/token"); n != 0 {
			t.Errorf("the registry got %d requests for the parent's token", n)
		}
	})
}

// read reads a whole blob.
func read(t *testing.T, r *upstream.Repository) {
	t.Helper()
	body, _, err := r.OpenBlob(t.Context(), digest.FromBytes(blobData), 0, -1)
	if err != nil {
		t.Error(err)
		return
	}
	defer body.Close()
	_, _ = io.Copy(io.Discard, body)
}

func TestParentThatSendsWrongBytesIsDistrusted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFamily(t, upstream.Config{})
		f.at(t, host).Distrust() // nobody has sent anything
		r := f.at(t, host)
		read(t, r)
		f.wantOrigin(t, 0)
		r.Distrust()
		read(t, f.at(t, host))
		if f.origin.Count("GET", "/blobs/") != 1 {
			t.Error("the registry was not asked in the place of a parent that sends wrong bytes")
		}
		f.parent.Reset()
		ask(t, f.at(t, otherHost), "get blob")
		if f.parent.Count("GET", "/blobs/") != 1 {
			t.Error("the parent is not asked about another repository")
		}
		time.Sleep(11 * time.Minute)
		f.origin.Reset()
		read(t, f.at(t, host))
		f.wantOrigin(t, 0)
	})
}

// A manifest tells at once whether it is the right one.
func TestWrongManifestOfTheParent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFamily(t, upstream.Config{})
		f.parent.Fault(upstreamtest.Match{Path: "/manifests/"}, upstreamtest.FlipByte(3))
		_, body, err := f.at(t, host).GetManifest(t.Context(), digest.FromBytes(manifest).String())
		if err != nil || string(body) != string(manifest) {
			t.Errorf("got %q, %v", body, err)
		}
	})
}

func TestCheckUpOfAParent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFamily(t, upstream.Config{})
		f.parent.Stop()
		got := make(map[string]error)
		for _, u := range f.client.CheckUp(t.Context(), nil, "") {
			if u.Parent != (u.URL == parentURL) {
				t.Errorf("%s is the parent: %v", u.URL, u.Parent)
			}
			got[u.URL] = errors.Join(got[u.URL], u.Err)
		}
		if len(got) != 3 || got[parentURL] == nil || got["http://"+host] != nil || got["http://"+otherHost] != nil {
			t.Errorf("got %v, want that the parent can't be reached, and nobody else", got)
		}
	})
}

func TestParseParent(t *testing.T) {
	for _, s := range []string{"http://larder.infra:5000", " https://larder.infra/ "} {
		u, err := upstream.ParseParent(s)
		if want := strings.TrimSuffix(strings.TrimSpace(s), "/"); err != nil || u.String() != want {
			t.Errorf("%q: got %v, %v", s, u, err)
		}
	}
	for _, s := range []string{"", "larder.infra:5000", "ftp://larder.infra", "http://", "http://larder.infra/hush", "http://u:hush@larder.infra", "http://larder.infra?x=hush", "http://larder.infra:0", "http://hush:%zz@larder.infra"} {
		u, err := upstream.ParseParent(s)
		if err == nil || u != nil || strings.Contains(err.Error(), "hush") {
			t.Errorf("%q: got %v, %v", s, u, err)
		}
	}
}
