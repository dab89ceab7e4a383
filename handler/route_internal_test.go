package handler

import (
	"net/url"
	"path"
	"regexp"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"larder/handler/upstream"
)

// FuzzRoute checks that what the router and the upstream client let pass is
// what the spec's grammar allows, and nothing that a path could mean otherwise.
func FuzzRoute(f *testing.F) {
	hex := strings.Repeat("0a", 32)
	for _, s := range []string{
		"/", "/v2", "/v2/", "/v2/a/manifests/1", "/v2/ghcr.io/a/b/blobs/sha256:" + hex, "/v2/a/blobs/sha512%3A" + hex + hex,
		"/v2/a/tags/list?n=1", "/v2/a/referrers/sha256:" + hex, "/v2/%2e%2e/manifests/%2e", "/v2/a%2fb/manifests/1",
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
		} else if rt.kind == kindBlob || rt.kind == kindReferrers {
			t.Errorf("%q is let pass without a digest", target)
		}
		if rt.kind == kindManifest && rt.digest == "" && !tag.MatchString(rt.reference) {
			t.Errorf("%q is let pass with tag %q", target, rt.reference)
		}
	})
}
