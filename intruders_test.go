package main

import (
	"bytes"
	"encoding/base64"
	"net/http"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// closed is a world whose larder has everything in its cache and then gets these
// settings. Upstream is gone, so that all that anybody gets is the cache's.
func closed(t *testing.T, environ ...string) *world {
	t.Helper()
	w := newWorld(t, nil, small)
	w.pull(t, "before")
	w.wantRightCache(t)
	w.hub.Stop()
	w.hub.Reset()
	w.client.CloseIdleConnections()
	w.stop(t)
	w.larder = runLarder(t, nil, w.environ(append(environ, "LARDER_CACHE_DIR="+w.cache, "LARDER_TAG_TTL=1h")...)...)
	t.Cleanup(w.client.CloseIdleConnections)
	eventually(t, "larder to start", w.findAddr)
	return w
}

// gives reports whether an answer has anything of the image.
func (w *world) gives(a answer) bool {
	if bytes.Contains(a.body, w.img.Body[:40]) || a.header.Get("Docker-Content-Digest") != "" || a.header.Get("Etag") != "" {
		return true
	}
	for _, layer := range w.layers {
		if len(a.body) > 0 && bytes.Contains(layer, a.body) {
			return true
		}
	}
	return false
}

// TestNobodyGetsByThePassword asks in every way that a server or a router might
// take for something else.
func TestNobodyGetsByThePassword(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("p", 100)
	w := closed(t, "LARDER_HTPASSWD="+passwordFile(t, "alice", "pass:word"))
	credentials := func(s string) string {
		return "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(s)) + "\r\n"
	}
	good := credentials("alice:pass:word")
	line := func(method, target, header string) string {
		return method + " " + target + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + header + "\r\n"
	}
	if a := w.send(t, line("GET", w.blob(), good)); !w.gives(a) {
		t.Fatalf("with the password: got %v", a)
	}
	tests := map[string]string{
		"base":                    line("GET", "/v2/", ""),
		"base without a slash":    line("GET", "/v2", ""),
		"tag":                     line("GET", appTag, ""),
		"HEAD":                    line("HEAD", appTag, ""),
		"blob":                    line("GET", w.blob(), ""),
		"a part":                  line("GET", w.blob(), "Range: bytes=0-9\r\n"),
		"if not the same":         line("GET", w.blob(), "If-None-Match: \""+w.img.Layers[0].Digest.String()+"\"\r\n"),
		"tags":                    line("GET", appPath+"tags/list", ""),
		"HTTP/1.0":                "GET " + w.blob() + " HTTP/1.0\r\n\r\n",
		"absolute form":           line("GET", "http://x"+w.blob(), ""),
		"with userinfo":           line("GET", "http://alice:pass%3Aword@x"+w.blob(), ""),
		"other scheme":            line("GET", "file://x"+w.blob(), ""),
		"two slashes":             line("GET", "/"+w.blob(), ""),
		"slashes within":          line("GET", strings.Replace(w.blob(), "/blobs/", "//blobs/", 1), ""),
		"encoded":                 line("GET", strings.Replace(w.blob(), "/v2", "/%76%32", 1), ""),
		"encoded slash":           line("GET", strings.Replace(w.blob(), "/v2/", "/v2%2f", 1), ""),
		"dots":                    line("GET", "/v2/.."+w.blob(), ""),
		"OPTIONS":                 line("OPTIONS", w.blob(), ""),
		"OPTIONS of all":          line("OPTIONS", "*", ""),
		"CONNECT":                 line("CONNECT", "x:80", ""),
		"TRACE":                   line("TRACE", w.blob(), ""),
		"GET in small letters":    line("get", w.blob(), ""),
		"another method":          line("POST", w.blob(), "X-HTTP-Method-Override: GET\r\nContent-Length: 0\r\n"),
		"nobody":                  line("GET", w.blob(), credentials(":pass:word")),
		"nobody and nothing":      line("GET", w.blob(), credentials(":")),
		"no colon":                line("GET", w.blob(), credentials("alice")),
		"no password":             line("GET", w.blob(), credentials("alice:")),
		"half of the password":    line("GET", w.blob(), credentials("alice:pass")),
		"colon in the name":       line("GET", w.blob(), credentials("alice:pass:word:")),
		"another name":            line("GET", w.blob(), credentials("Alice:pass:word")),
		"NUL behind":              line("GET", w.blob(), credentials("alice:pass:word\x00")),
		"newline behind":          line("GET", w.blob(), credentials("alice:pass:word\n")),
		"long password":           line("GET", w.blob(), credentials("alice:"+long)),
		"very long password":      line("GET", w.blob(), credentials("alice:"+strings.Repeat(long, 300))),
		"long name":               line("GET", w.blob(), credentials(strings.Repeat(long, 300)+":x")),
		"bearer":                  line("GET", w.blob(), strings.Replace(good, "Basic", "Bearer", 1)),
		"not base64":              line("GET", w.blob(), "Authorization: Basic alice:pass:word\r\n"),
		"another header":          line("GET", w.blob(), "Proxy-"+good),
		"twice, wrong first":      line("GET", w.blob(), credentials("alice:x")+good),
		"X-Forwarded-User":        line("GET", w.blob(), "X-Forwarded-User: alice\r\nX-Remote-User: alice\r\nRemote-User: alice\r\n"),
		"forwarded from loopback": line("GET", w.blob(), "X-Forwarded-For: 127.0.0.1\r\nX-Original-URL: "+w.blob()+"\r\n"),
	}
	for name, request := range tests {
		a := w.send(t, request)
		if a.err == nil && a.status < 400 || w.gives(a) {
			t.Errorf("%s: got %v with %v, want nothing", name, a, a.header)
		}
	}
	if n := len(w.hub.Requests()); n != 0 {
		t.Errorf("upstream got %d requests, and is stopped", n)
	}
}

// TestDeniedUnderEveryName asks for one repository, which is cached, by all the
// names that it has.
func TestDeniedUnderEveryName(t *testing.T) {
	t.Parallel()
	for name, setting := range map[string]string{"denied": "LARDER_DENY=docker.io/library/app", "not allowed": "LARDER_ALLOW=docker.io/other/*"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := closed(t, setting)
			for _, name := range []string{
				"library/app", "app", "docker.io/app", "docker.io/library/app", "DOCKER.IO/library/app", "index.docker.io/app", "registry-1.docker.io/library/app",
				"registry.hub.docker.com/app", "library/%61pp", "%61%70%70", "docker%2eio/app", "Docker.io/%6cibrary/app",
				"library//app", "library/./app", "library/../library/app", "library/app/", "library%2fapp", "library/App", "library/app%00", "docker.io:443/app", "docker.io./app",
				"docker.io/docker.io/library/app", "app/", "/app", "/library/app",
			} {
				for _, ns := range []string{"", "?ns=docker.io", "?ns=DOCKER.IO", "?ns=index.docker.io", "?ns=registry-1.docker.io", "?ns=registry.hub.docker.com", "?ns=docker.io%00", "?ns=", "?ns=docker.io&ns=docker.io"} {
					for _, rest := range []string{"/manifests/1", "/manifests/" + w.img.Manifest.String(), "/blobs/" + w.img.Layers[0].Digest.String()} {
						for _, before := range []string{"", "http://x"} {
							target := before + "/v2/" + name + rest + ns
							a := w.send(t, "GET "+target+" HTTP/1.1\r\nHost: docker.io\r\nConnection: close\r\n\r\n")
							if a.err != nil || a.status < 400 || w.gives(a) {
								t.Errorf("%s: got %v, want nothing", target, a)
							}
						}
					}
				}
			}
			if a := w.ask(w.blob(), ""); a.status != http.StatusForbidden {
				t.Errorf("got %v, want 403", a)
			}
		})
	}
}

// TestManifestIsNoKeyToWhatItOnlyMentions has somebody push manifests that
// mention a blob of somebody else's, where no registry checks it.
func TestManifestIsNoKeyToWhatItOnlyMentions(t *testing.T) {
	t.Parallel()
	const image, index = ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex
	tests := map[string]struct{ mediaType, before, after string }{
		"blobs of an index":      {index, `{"manifests":[],"blobs":[{"digest":"`, `"}]}`},
		"fsLayers of an index":   {index, `{"manifests":[],"fsLayers":[{"blobSum":"`, `"}]}`},
		"manifest of an index":   {index, `{"manifests":[{"digest":"`, `"}]}`},
		"blobs of an image":      {image, `{"layers":[],"blobs":[{"digest":"`, `"}]}`},
		"fsLayers of an image":   {image, `{"layers":[],"fsLayers":[{"blobSum":"`, `"}]}`},
		"subject":                {image, `{"layers":[],"subject":{"digest":"`, `"}}`},
		"a layer kept elsewhere": {image, `{"layers":[{"urls":["https://example.com/"],"digest":"`, `"}]}`},
		"an unknown type":        {"application/x", `{"layers":[{"digest":"`, `"}]}`},
		"an annotation":          {image, `{"layers":[],"annotations":{"digest":"`, `"}}`},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, nil, small)
			w.pull(t, "by those who may")
			d := w.img.Layers[0].Digest
			w.hub.AddManifest("evil/x", "1", test.mediaType, []byte(test.before+d.String()+test.after))
			if a := w.ask("/v2/evil/x/manifests/1", ""); a.status != http.StatusOK {
				t.Fatalf("manifest: got %v", a)
			}
			for range 2 {
				for _, ranges := range []string{"", "0-9"} {
					if a := w.ask("/v2/evil/x/blobs/"+d.String(), ranges); a.status != http.StatusNotFound || w.gives(a) {
						t.Errorf("got %v, want 404", a)
					}
				}
				if a := w.send(t, "HEAD /v2/evil/x/blobs/"+d.String()+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); a.status != http.StatusNotFound {
					t.Errorf("HEAD: got %v, want 404", a)
				}
			}
			w.recovers(t)
		})
	}
}
