package handler_test

import (
	"encoding/json"
	"net/http"
	"slices"
	"testing"
)

// newCatalog is a larder with a catalog, which finds out what is on disk.
func newCatalog(t *testing.T, s setup) *larder {
	t.Helper()
	s.catalog = true
	l := newLarder(t, s)
	l.run(t)
	return l
}

func repositoriesOf(t *testing.T, a answer) []string {
	t.Helper()
	a.wantBody(t, http.StatusOK, a.body)
	a.want(t, "Content-Type", "application/json")
	var list struct{ Repositories []string }
	if err := json.Unmarshal(a.body, &list); err != nil || list.Repositories == nil {
		t.Fatalf("got %s (%v)", a.body, err)
	}
	return list.Repositories
}

// catalogued has pulled by tag, by digest and from both registries.
func catalogued(t *testing.T) *larder {
	t.Helper()
	l := newCatalog(t, setup{})
	for _, name := range []string{"library/alpine", "org/b", "org/a", "secret/x"} {
		l.hub.AddManifest(name, "1", ociManifest, []byte("{}"))
	}
	d := l.ghcr.AddManifest("org/c", "", ociManifest, []byte(`{"layers":[]}`))
	for _, path := range []string{
		manifestPath("alpine", "1"), manifestPath("org/b", "1"), manifestPath("org/a", "1"), manifestPath("secret/x", "1"), manifestPath("ghcr.io/org/c", d.String()),
	} {
		if a := l.ask(t, "GET", path); a.StatusCode != http.StatusOK {
			t.Fatalf("GET %s: %d %s", path, a.StatusCode, a.body)
		}
	}
	l.ask(t, "GET", manifestPath("not/there", "1"))
	return l
}

func TestCatalog(t *testing.T) {
	const alpine, a, b, x, c = "docker.io/library/alpine", "docker.io/org/a", "docker.io/org/b", "docker.io/secret/x", "ghcr.io/org/c"
	l := catalogued(t)
	l.hub.Stop() // it is not asked
	l.ghcr.Stop()
	tests := map[string][]string{
		"":                      {alpine, a, b, x, c},
		"?n=2":                  {alpine, a},
		"?n=2&last=" + a:        {b, x},
		"?last=docker.io/org/b": {x, c},
		"?last=docker.io/org/":  {a, b, x, c},
		"?last=zzz":             {},
		"?n=0":                  {},
		"?n=5000":               {alpine, a, b, x, c},
		"?ns=ghcr.io":           {"org/c"},
		"?ns=docker.io":         {"library/alpine", "org/a", "org/b", "secret/x"},
		"?ns=quay.io":           {},
	}
	for query, want := range tests {
		got := l.ask(t, "GET", "/v2/_catalog"+query)
		if names := repositoriesOf(t, got); !slices.Equal(names, want) {
			t.Errorf("%s: got %q, want %q", query, names, want)
		}
		wantParity(t, got, l.ask(t, "HEAD", "/v2/_catalog"+query))
	}
	for _, query := range []string{"?n=-1", "?n=x", "?n=1&ns=a&ns=b", "?ns=%zz"} {
		if got := l.ask(t, "GET", "/v2/_catalog"+query); got.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %d %s", query, got.StatusCode, got.body)
		}
	}
	l.ask(t, "GET", "/extensions/v2/_catalog").wantError(t, http.StatusNotFound, "UNSUPPORTED")
}

func TestCatalogPageByPage(t *testing.T) {
	l := catalogued(t)
	for _, first := range []string{"/v2/_catalog?n=2", "/v2/_catalog?ns=docker.io&n=1"} {
		whole := "/v2/_catalog"
		if first != "/v2/_catalog?n=2" {
			whole += "?ns=docker.io"
		}
		var got []string
		pages := 0
		for path := first; path != ""; pages++ {
			a := l.ask(t, "GET", path)
			got = append(got, repositoriesOf(t, a)...)
			path = nextLink(t, a)
		}
		if want := repositoriesOf(t, l.ask(t, "GET", whole)); !slices.Equal(got, want) || pages < 3 {
			t.Errorf("%s: %d pages of %q, want %q", first, pages, got, want)
		}
	}
}

// TestCatalogHidesWhatIsDenied has everything cached before it is denied.
func TestCatalogHidesWhatIsDenied(t *testing.T) {
	for _, s := range []setup{{deny: "docker.io/secret/**"}, {allow: "docker.io/library/*,docker.io/org/*,ghcr.io/**"}} {
		s.dir = t.TempDir()
		open := newCatalog(t, setup{dir: s.dir})
		open.hub.AddManifest("secret/x", "1", ociManifest, []byte("{}"))
		open.hub.AddManifest("org/a", "1", ociManifest, []byte("{}"))
		open.ask(t, "GET", manifestPath("secret/x", "1"))
		open.ask(t, "GET", manifestPath("org/a", "1"))
		if got := repositoriesOf(t, open.ask(t, "GET", "/v2/_catalog")); len(got) != 2 {
			t.Errorf("cached are %q", got)
		}
		l := newCatalog(t, s)
		if got := repositoriesOf(t, l.ask(t, "GET", "/v2/_catalog")); !slices.Equal(got, []string{"docker.io/org/a"}) {
			t.Errorf("with %+v: got %q", s, got)
		}
	}
}

func TestCatalogIsOffUnlessWanted(t *testing.T) {
	l := newLarder(t, setup{})
	l.ask(t, "GET", "/v2/_catalog").wantError(t, http.StatusNotFound, "UNSUPPORTED")
}
