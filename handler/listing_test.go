package handler_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"larder/handler/upstream/upstreamtest"
)

// nextLink is where the next page is, "" if there is none.
func nextLink(t *testing.T, a answer) string {
	t.Helper()
	links := a.Header.Values("Link")
	if len(links) == 0 {
		return ""
	}
	target, rel, ok := strings.Cut(strings.TrimPrefix(links[0], "<"), ">")
	if len(links) > 1 || !ok || rel != `; rel="next"` || !strings.HasPrefix(target, "/v2/") {
		t.Fatalf("Link is %q, want one path of larder's", links)
	}
	return target
}

func tagsOf(t *testing.T, a answer) []string {
	t.Helper()
	a.wantBody(t, http.StatusOK, a.body)
	a.want(t, "Content-Type", "application/json")
	var list struct{ Tags []string }
	if err := json.Unmarshal(a.body, &list); err != nil {
		t.Fatal(err)
	}
	return list.Tags
}

func TestTagsPageByPage(t *testing.T) {
	tests := map[string]struct {
		path  string
		ghcr  bool
		pages int
	}{
		"default":          {"/v2/alpine/tags/list?n=3", false, 4},
		"with ns":          {"/v2/library/alpine/tags/list?n=3&ns=ghcr.io", true, 4},
		"host in the path": {"/v2/ghcr.io/library/alpine/tags/list?n=3", true, 4},
		"both":             {"/v2/library/alpine/tags/list?ns=docker.io&n=3", false, 4},
		"last":             {"/v2/alpine/tags/list?n=3&last=v5", false, 2},
		"all":              {"/v2/alpine/tags/list", false, 1},
		"unknown words":    {"/v2/alpine/tags/list?x=1&n=3", false, 4},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			l := newLarder(t, setup{})
			for i := range 10 {
				for _, r := range []*upstreamtest.Registry{l.hub, l.ghcr} {
					r.AddManifest("library/alpine", fmt.Sprintf("v%d", i), ociManifest, []byte("{}"))
				}
			}
			var tags []string
			pages := 0
			for path := test.path; path != ""; pages++ {
				if !strings.HasPrefix(path, strings.SplitN(test.path, "?", 2)[0]+"?") && pages > 0 {
					t.Fatalf("next page is at %s, want the same path", path)
				}
				l.ask(t, "GET", path) // from here on it is known, and asked for anew
				get := l.ask(t, "GET", path)
				wantParity(t, get, l.ask(t, "HEAD", path))
				tags = append(tags, tagsOf(t, get)...)
				path = nextLink(t, get)
			}
			want := "v0 v1 v2 v3 v4 v5 v6 v7 v8 v9"
			if name == "last" {
				want = "v6 v7 v8 v9"
			}
			if got := strings.Join(tags, " "); got != want || pages != test.pages {
				t.Errorf("got %s in %d pages, want %s in %d", got, pages, want, test.pages)
			}
			asked, other := l.hub, l.ghcr
			if test.ghcr {
				asked, other = other, asked
			}
			for _, req := range asked.Requests() {
				if req.Query.Has("ns") || req.Query.Has("x") {
					t.Errorf("upstream was asked with %v", req.Query)
				}
			}
			if n := len(other.Requests()); n > 0 {
				t.Errorf("the other upstream had %d requests", n)
			}
		})
	}
}

func TestTagsBadQuery(t *testing.T) {
	l := newLarder(t, setup{})
	for _, query := range []string{"n=x", "n=-1", "n=1.5", "n=99999999999999999999", "n=5&last=" + strings.Repeat("a", 2000)} {
		l.ask(t, "GET", "/v2/alpine/tags/list?"+query).wantError(t, http.StatusBadRequest, "UNSUPPORTED")
	}
	if n := l.dialled(); n != 0 {
		t.Errorf("%d requests made upstream, want none", n)
	}
}

// Whatever upstream's Link is, the next page is here.
func TestLinksOfUpstream(t *testing.T) {
	tests := map[string]struct{ link, want string }{
		"absolute":       {`<https://registry.example/v2/x/tags/list?last=b&n=2>; rel="next"`, "/v2/alpine/tags/list?last=b&n=2&ns=docker.io"},
		"other path":     {`</artifactory/v2/x/tags/list?last=b&n=2>; rel=next`, "/v2/alpine/tags/list?last=b&n=2&ns=docker.io"},
		"extra words":    {`</v2/x/tags/list?last=b&n=2&ns=evil&token=t>; rel="next"`, "/v2/alpine/tags/list?last=b&n=2&ns=docker.io"},
		"previous first": {`</v2/x?last=a>; rel="prev", </v2/x?last=b>; rel="next"`, "/v2/alpine/tags/list?last=b&ns=docker.io"},
		"injection":      {`</v2/x?last=b%0d%0aSet-Cookie:x%3E>; rel="next"`, "/v2/alpine/tags/list?last=b%0D%0ASet-Cookie%3Ax%3E&ns=docker.io"},
		"previous only":  {`</v2/x?last=a>; rel="prev"`, ""},
		"nonsense":       {`next please`, ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			l := newLarder(t, setup{})
			l.hub.AddManifest("library/alpine", "1", ociManifest, []byte("{}"))
			l.hub.Fault(upstreamtest.Match{Path: "/tags/"}, upstreamtest.SetHeader("Link", test.link))
			if got := nextLink(t, l.ask(t, "GET", "/v2/alpine/tags/list?n=2&ns=docker.io")); got != test.want {
				t.Errorf("next page is at %q, want %q", got, test.want)
			}
		})
	}
}

// addReferrers adds signatures and SBOMs of a manifest.
func addReferrers(r *upstreamtest.Registry, subject digest.Digest) {
	r.EnableReferrers()
	for i, kind := range []string{"application/x.signature", "application/x.sbom", "application/x.signature"} {
		r.AddManifest("a/b", "", ociManifest, fmt.Appendf(nil,
			`{"schemaVersion":2,"artifactType":%q,"subject":{"digest":%q},"annotations":{"n":"%d"}}`, kind, subject, i))
	}
}

func referrersOf(t *testing.T, a answer) int {
	t.Helper()
	a.wantBody(t, http.StatusOK, a.body)
	a.want(t, "Content-Type", "application/vnd.oci.image.index.v1+json")
	var index struct{ Manifests []json.RawMessage }
	if err := json.Unmarshal(a.body, &index); err != nil {
		t.Fatal(err)
	}
	return len(index.Manifests)
}

func TestReferrers(t *testing.T) {
	l := newLarder(t, setup{})
	img := l.hub.AddImage("a/b", "1", random(t, 1, 100))
	addReferrers(l.hub, img.Manifest)
	path := "/v2/a/b/referrers/" + img.Manifest.String()

	all := l.ask(t, "GET", path)
	all.want(t, "OCI-Filters-Applied", "")
	if n := referrersOf(t, all); n != 3 {
		t.Errorf("%d referrers, want 3", n)
	}
	some := l.ask(t, "GET", path+"?ns=docker.io&artifactType="+url.QueryEscape("application/x.signature"))
	some.want(t, "OCI-Filters-Applied", "artifactType")
	some.want(t, "OCI-Namespace", "docker.io")
	if n := referrersOf(t, some); n != 2 {
		t.Errorf("%d signatures, want 2", n)
	}
	if n := referrersOf(t, l.ask(t, "GET", "/v2/a/b/referrers/"+nobodys.String())); n != 0 {
		t.Errorf("%d referrers of nothing, want an empty index", n)
	}
	l.ask(t, "GET", path+"?artifactType="+strings.Repeat("a", 2000)).wantError(t, http.StatusBadRequest, "UNSUPPORTED")

	// Later pages are asked for with what upstream's Link says, but ns.
	l.hub.Fault(upstreamtest.Match{Path: "/referrers/"}, upstreamtest.SetHeader("Link", `<https://x/y?artifactType=a&page=2&ns=evil>; rel="next"`))
	next := nextLink(t, l.ask(t, "GET", path+"?ns=docker.io"))
	if want := path + "?artifactType=a&ns=docker.io&page=2"; next != want {
		t.Errorf("next page is at %q, want %q", next, want)
	}
	l.hub.Reset()
	l.ask(t, "GET", next)
	if reqs := l.hub.Requests(); len(reqs) != 1 || reqs[0].Query.Encode() != "artifactType=a&page=2" {
		t.Errorf("upstream was asked %+v, want page 2 of a", reqs)
	}
}

// Clients take NAME_UNKNOWN for a missing repository, and any other 404 as a
// hint to look at the fallback tag.
func TestUpstreamWithoutReferrers(t *testing.T) {
	l := newLarder(t, setup{})
	img := l.hub.AddImage("a/b", "1", random(t, 1, 100))
	l.ask(t, "GET", "/v2/a/b/referrers/"+img.Manifest.String()).wantError(t, http.StatusNotFound, "UNSUPPORTED")
	l.hub.Fault(upstreamtest.Match{Path: "/referrers/"}, upstreamtest.Status(http.StatusNotFound, nil)) // with NAME_UNKNOWN
	l.ask(t, "GET", "/v2/a/b/referrers/"+img.Manifest.String()).wantError(t, http.StatusNotFound, "UNSUPPORTED")
	tag := strings.Replace(img.Manifest.String(), ":", "-", 1)
	body := []byte(`{"schemaVersion":2,"manifests":[]}`)
	l.hub.AddManifest("a/b", tag, "application/vnd.oci.image.index.v1+json", body)
	wantManifest(t, l.ask(t, "GET", manifestPath("a/b", tag)), "application/vnd.oci.image.index.v1+json", body, "miss")
}
