package handler

import (
	"net/url"
	"path"
	"regexp"
	"strings"
	"testing"
	"unsafe"

	"github.com/opencontainers/go-digest"

	"larder/handler/upstream"
)

// FuzzRoute checks that what the router and the upstream client let pass is
// what the spec's grammar allows, and nothing that a path could mean otherwise.
func FuzzRoute(f *testing.F) {
	hex := strings.Repeat("0a", 32)
	for _, s := range []string{
		"/", "/v2", "/v2/", "/v2/a/manifests/1", "/v2/ghcr.io/a/b/blobs/sha256:" + hex, "/v2/a/blobs/sha512%3A" + hex + hex,
		"/v2/a/tags/list?n=1", "/v2/a/referrers/sha256:" + hex, "/extensions/v2/a/signatures/sha256:" + hex, "/extensions/v2", "/extensions/v2/_catalog", "/v2/%2e%2e/manifests/%2e", "/v2/a%2fb/manifests/1",
		"/v2/a/blobs/latest", "/v2//manifests/", "/v2/a/manifests/1?ns=docker.io&ns=x", "/v2/ä/manifests/%00",
	} {
		f.Add(s)
	}
	registries, err := upstream.ParseList("docker.io,ghcr.io,[::1]:5000")
	if err != nil {
		f.Fatal(err)
	}
	client, err := upstream.New(upstream.Config{Registries: registries})
	if err != nil {
		f.Fatal(err)
	}
	defer client.Close()
	tag := regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
	name := regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	f.Fuzz(func(t *testing.T, target string) {
		u, err := url.ParseRequestURI(target)
		if err != nil || !strings.HasPrefix(target, "/") {
			return
		}
		ns, err := namespace(u)
		if err != nil {
			return
		}
		rt, err := parseRoute(u)
		if err != nil || rt.kind == kindBase {
			return
		}
		repo, err := client.Repository(ns, rt.name)
		if err != nil {
			return
		}
		host, rest, _ := strings.Cut(repo.String(), "/")
		if host != repo.Host() || !name.MatchString(rest) || path.Clean("/"+rest) != "/"+rest {
			t.Errorf("%q is let pass as repository %q", target, repo)
		}
		if rt.digest != "" {
			a := rt.digest.Algorithm()
			if rt.digest.Validate() != nil || (a != digest.SHA256 && a != digest.SHA512) || rt.reference != rt.digest.String() {
				t.Errorf("%q is let pass with digest %q", target, rt.digest)
			}
		} else if rt.kind == kindBlob || rt.kind == kindReferrers || rt.kind == kindSignatures {
			t.Errorf("%q is let pass without a digest", target)
		}
		if rt.kind == kindManifest && rt.digest == "" && !tag.MatchString(rt.reference) {
			t.Errorf("%q is let pass with tag %q", target, rt.reference)
		}
	})
}

// FuzzNamespace checks that a query names a listed registry, by one of its own
// names, or none.
func FuzzNamespace(f *testing.F) {
	for _, s := range []string{
		"", "ns=", "ns=docker.io", "ns=index.docker.io", "ns=registry-1.docker.io", "ns=GHCR.io", "ns=ghcr.io.", "ns=ghcr.io:443", "ns=x@ghcr.io", "ns=https://ghcr.io",
		"ns=ghcr.io&ns=ghcr.io", "ns=ghcr.io;ns=x", "ns=%67hcr.io", "ns=%zz", "ns=ghcr.io%00", "ns=ghcr.io/a", "NS=ghcr.io", "ns[]=ghcr.io", "ns=169.254.169.254",
		"ns=[::1]:5000", "ns=localhost:5000", "ns=+ghcr.io", "ns=ghcr.io%20", "ns=\u212a.io", "x=1&ns=ghcr.io", "ns=ɢhcr.io",
	} {
		f.Add(s)
	}
	registries, err := upstream.ParseList("docker.io,ghcr.io,[::1]:5000,k.io")
	if err != nil {
		f.Fatal(err)
	}
	client, err := upstream.New(upstream.Config{Registries: registries})
	if err != nil {
		f.Fatal(err)
	}
	defer client.Close()
	names := map[string]string{
		"": "docker.io", "docker.io": "docker.io", "index.docker.io": "docker.io", "registry-1.docker.io": "docker.io", "registry.hub.docker.com": "docker.io",
		"ghcr.io": "ghcr.io", "[::1]:5000": "[::1]:5000", "k.io": "k.io",
	}
	f.Fuzz(func(t *testing.T, query string) {
		ns, err := namespace(&url.URL{RawQuery: query})
		if err != nil {
			return
		}
		if values, err := url.ParseQuery(query); err != nil || len(values["ns"]) > 1 || values.Get("ns") != ns {
			t.Errorf("%q has the ns %q, %v", query, ns, err)
		}
		host := names[strings.ToLower(ns)]
		repo, err := client.Repository(ns, "a/b")
		switch {
		case host == "" && err == nil:
			t.Errorf("%q is let pass to %s", ns, repo.Host())
		case host != "" && (err != nil || repo.Host() != host || repo.String() != host+"/a/b"):
			t.Errorf("%q is %v (%v), want %s", ns, repo, err, host)
		}
	})
}

// FuzzListingLink checks that whatever upstream says about its next page, what
// clients are told is one link to this very place, with the same parameters.
func FuzzListingLink(f *testing.F) {
	for _, s := range []string{"n=2&last=b", "last=>; rel=x", "last=%0d%0aSet-Cookie:%20x", "ns=evil.example&n=1", "last=ä%22,<b>", "n=%00"} {
		f.Add(s, "/v2/a/b/tags/list?ns=docker.io")
		f.Add(s, "/v2/a%3eb/%0d%0a/list")
	}
	link := regexp.MustCompile(`^<(/[!-;=?-~]*)>; rel="next"$`)
	f.Fuzz(func(t *testing.T, next, target string) {
		values, err := url.ParseQuery(next)
		u, err2 := url.ParseRequestURI(target)
		if err != nil || err2 != nil || !strings.HasPrefix(target, "/v2/") {
			return
		}
		m := link.FindStringSubmatch(nextLink(u, values.Encode(), nil))
		if m == nil {
			t.Fatalf("%q becomes the link %q", next, nextLink(u, values.Encode(), nil))
		}
		told, err := url.Parse(m[1])
		if err != nil || told.Path != u.Path || told.Host != "" {
			t.Fatalf("%q of %q leads to %q", next, target, m[1])
		}
		values.Del("ns")
		if ns := u.Query().Get("ns"); ns != "" {
			values.Set("ns", ns)
		}
		if told.Query().Encode() != values.Encode() {
			t.Errorf("%q is told as %q", next, told.RawQuery)
		}
	})
}

// TestRouteHoldsNothingOfTheRequest makes sure that who keeps a digest does not
// keep a query of 60 KiB with it.
func TestRouteHoldsNothingOfTheRequest(t *testing.T) {
	uri := "/v2/a/b/blobs/" + digest.FromString("x").String() + "?" + strings.Repeat("q", 60<<10)
	u, err := url.ParseRequestURI(uri)
	if err != nil {
		t.Fatal(err)
	}
	rt, err := parseRoute(u)
	if err != nil {
		t.Fatal(err)
	}
	within := func(s string) bool {
		begin, at := uintptr(unsafe.Pointer(unsafe.StringData(uri))), uintptr(unsafe.Pointer(unsafe.StringData(s)))
		return at >= begin && at < begin+uintptr(len(uri))
	}
	if !within(u.RawQuery) || within(rt.name) || within(rt.reference) || within(string(rt.digest)) {
		t.Error("the route is part of the request's own memory")
	}
}
