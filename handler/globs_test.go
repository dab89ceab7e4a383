package handler_test

import (
	"net/http"
	"strings"
	"testing"

	"larder/handler"
	"larder/handler/upstream"
)

func TestAllowAndDeny(t *testing.T) {
	tests := map[string]struct {
		allow, deny string
		served      []string // paths after /v2/
		refused     []string
	}{
		"allow": {
			allow:   "docker.io/library/*,ghcr.io/org/**",
			served:  []string{"alpine", "library/alpine", "docker.io/alpine", "index.docker.io/library/alpine", "ghcr.io/org/a", "ghcr.io/org/a/b"},
			refused: []string{"a/b", "library/a/b", "ghcr.io/a", "ghcr.io/org", "ghcr.io/organisation/a", "docker.io/org/a"},
		},
		"deny": {
			deny:    "docker.io/library/*,ghcr.io/**/private",
			served:  []string{"a/b", "library/a/b", "ghcr.io/private", "ghcr.io/a/private/b"},
			refused: []string{"alpine", "library/alpine", "docker.io/library/alpine", "registry-1.docker.io/alpine", "ghcr.io/a/private", "ghcr.io/a/b/private"},
		},
		"deny wins":      {allow: "docker.io/**", deny: "docker.io/library/alpine", served: []string{"busybox", "a/b"}, refused: []string{"alpine", "ghcr.io/a/b"}},
		"in the element": {allow: "**", deny: "ghcr.io/org/a-*-b", served: []string{"ghcr.io/org/a-b", "ghcr.io/org/a-1/2-b"}, refused: []string{"ghcr.io/org/a-1-b"}},
		"no patterns":    {deny: "ghcr.io/a.c/x", served: []string{"ghcr.io/abc/x"}, refused: []string{"ghcr.io/a.c/x"}},
		"ns":             {deny: "ghcr.io/library/alpine", served: []string{"library/alpine", "alpine"}, refused: []string{"library/alpine?ns=ghcr.io", "library/alpine?ns=GHCR.io"}},
		"ns of Hub":      {deny: "docker.io/library/alpine", served: []string{"library/alpine?ns=ghcr.io"}, refused: []string{"alpine?ns=docker.io", "alpine?ns=index.docker.io", "alpine?ns=registry-1.docker.io"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			l := newLarder(t, setup{allow: test.allow, deny: test.deny})
			ask := func(path string) answer {
				name, query, _ := strings.Cut(path, "?")
				return l.ask(t, "GET", "/v2/"+name+"/manifests/1?"+query)
			}
			for _, path := range test.refused {
				message := ask(path).wantError(t, http.StatusForbidden, "DENIED")
				if !strings.Contains(message, "configured not to serve") {
					t.Errorf("%s: message %q does not tell whose refusal it is", path, message)
				}
			}
			if n := l.dialled(); n > 0 {
				t.Errorf("%d requests were made for what is refused", n)
			}
			for _, path := range test.served {
				if a := ask(path); a.StatusCode != http.StatusNotFound { // upstream's answer: it has nothing
					t.Errorf("%s: %d with %q, want upstream's 404", path, a.StatusCode, a.body)
				}
			}
		})
	}
}

// What is in the cache was allowed once.
func TestDeniedIsRefusedFromTheCacheOnEveryRoute(t *testing.T) {
	before := newLarder(t, setup{})
	img := before.hub.AddImage("library/a", "1", random(t, 1, 1000))
	paths := []string{
		manifestPath("a", "1"), manifestPath("library/a", img.Manifest.String()), blobPath("docker.io/a", img.Layers[0].Digest),
		"/v2/a/tags/list", "/v2/a/referrers/" + img.Manifest.String(),
	}
	for _, path := range paths[:4] { // this upstream has no referrers
		if a := before.ask(t, "GET", path); a.StatusCode != http.StatusOK {
			t.Fatalf("%s: %d", path, a.StatusCode)
		}
	}
	before.settle(t)
	before.close(t)
	l := newLarder(t, setup{dir: before.dir, deny: "docker.io/library/a"})
	for _, path := range paths {
		get := l.ask(t, "GET", path)
		get.wantError(t, http.StatusForbidden, "DENIED")
		wantParity(t, get, l.ask(t, "HEAD", path))
	}
	if n := l.dialled(); n > 0 {
		t.Errorf("%d requests were made", n)
	}
	if n := l.logs.FilterField(outcomeField("denied")).Len(); n != 2*len(paths) {
		t.Errorf("%d access lines with outcome denied, want %d", n, 2*len(paths))
	}
	if a := l.ask(t, "GET", "/v2/"); a.StatusCode != http.StatusOK {
		t.Errorf("/v2/: %d, want 200", a.StatusCode)
	}
}

func TestGlobsThatCannotBeMeant(t *testing.T) {
	registries, err := upstream.ParseList("docker.io,ghcr.io,[::1]:5000,registry.example:5000")
	if err != nil {
		t.Fatal(err)
	}
	for glob, fine := range map[string]bool{
		"docker.io/library/*": true, "docker.io/**": true, "**": true, "*/org/*": true, "*.io/**": true, "**/private": true, "docker**": false,
		"docker.io/library/alpine": true, "[::1]:5000/a": true, "registry.example:5000/a/b": true, " ghcr.io/x , ghcr.io/y": true,
		"docker.io": false, "docker.io/": false, "docker.io/*": false, "docker.io/alpine": false, "library/*": false, "/a": false, "a//b": false,
		"index.docker.io/library/*": false, "quay.io/**": false, "*.com/**": false, "ghcr.io/***": false, "ghcr.io/a?": false, "ghcr.io/{a,b}": false,
		"ghcr.io/A": false, "GHCR.io/a": false, "ghcr.io/a b": false, "ghcr.io/a:1": false, "ghcr.io/a@sha256:00": false, "https://ghcr.io/a": false,
		"!ghcr.io/a": false, "": false, ",": false, "ghcr.io/a,quay.io/a": false, "*": false, "ghcr.io/\xff": false, "ghcr.io/a\n": true,
	} {
		if globs, err := handler.ParseGlobs(glob, registries); (err == nil) != fine || fine && len(globs) == 0 {
			t.Errorf("%q: %v, %v; want it to be fine: %t", glob, globs, err, fine)
		}
	}
}

func TestImageGlobs(t *testing.T) {
	registries, err := upstream.ParseList("docker.io,registry.example:5000")
	if err != nil {
		t.Fatal(err)
	}
	const d = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	type image struct{ repository, reference string }
	tests := map[string]struct{ matches, others []image }{
		"docker.io/library/alpine:3.*": {
			[]image{{"docker.io/library/alpine", "3.20"}, {"docker.io/library/alpine", "3.20-rc1"}, {"docker.io/library/alpine", "3."}},
			[]image{{"docker.io/library/alpine", "3"}, {"docker.io/library/alpine", "13.1"}, {"docker.io/library/alpine", d}, {"docker.io/library/alpin", "3.20"}},
		},
		"docker.io/org/**,docker.io/library/*:latest": {
			[]image{{"docker.io/org/a/b", "1"}, {"docker.io/org/a", d}, {"docker.io/library/x", "latest"}},
			[]image{{"docker.io/library/x", "1"}, {"docker.io/library/x/y", "latest"}, {"docker.io/organisation/a", "1"}},
		},
		"registry.example:5000/app":     {[]image{{"registry.example:5000/app", "1"}, {"registry.example:5000/app", d}}, []image{{"registry.example:5000/app2", "1"}}},
		"registry.example:5000/app:1":   {[]image{{"registry.example:5000/app", "1"}}, []image{{"registry.example:5000/app", "2"}}},
		"docker.io/library/alpine@" + d: {[]image{{"docker.io/library/alpine", d}}, []image{{"docker.io/library/alpine", "latest"}}},
	}
	for list, test := range tests {
		globs, err := handler.ParseImageGlobs(list, registries)
		if err != nil {
			t.Errorf("%s: %v", list, err)
			continue
		}
		for _, img := range test.matches {
			if !globs.Match(img.repository, img.reference) {
				t.Errorf("%s does not match %v", list, img)
			}
		}
		for _, img := range test.others {
			if globs.Match(img.repository, img.reference) {
				t.Errorf("%s matches %v", list, img)
			}
		}
	}
	for _, list := range []string{
		"", ",", "alpine", "docker.io/alpine:3", "quay.io/a/b", "docker.io/library/alpine:", "docker.io/library/alpine:.1", "docker.io/library/alpine:[1]",
		"docker.io/library/alpine@sha256:1", "docker.io/library/alpine:1@" + d, "docker.io/library/Alpine:1", "docker.io/***:1",
	} {
		if _, err := handler.ParseImageGlobs(list, registries); err == nil {
			t.Errorf("%q is taken for patterns", list)
		}
	}
}
