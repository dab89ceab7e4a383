package main

import (
	"encoding/base64"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"larder/handler/upstream/upstreamtest"
)

// TestSecretsStayWhereTheyAre makes pulls that succeed and that fail in every
// way, and then looks for the secrets wherever larder writes.
func TestSecretsStayWhereTheyAre(t *testing.T) {
	for name, inFile := range map[string]bool{"password": false, "password file": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHaunted(t, inFile)
			h.pullWell()
			var both sync.WaitGroup
			both.Go(func() { h.pullFrom(h.hub, "") })
			both.Go(func() { h.pullFrom(h.ghcr, "ghcr.io/") })
			both.Wait()
			h.pullSigned()
			h.pullAsNobody()
			for _, path := range []string{"/v2/far.example/a/b/manifests/1", "/v2/safe.example/a/b/manifests/1"} {
				if status := h.ask(path); status != http.StatusBadGateway {
					t.Errorf("%s: %d, want 502", path, status)
				}
			}
			h.wantSecretsUsed()
			h.lookEverywhere()
		})
	}
}

// pullWell needs the right credentials of all.
func (h *haunted) pullWell() {
	for i, registry := range []*upstreamtest.Registry{h.hub, h.ghcr} {
		img := registry.AddImage("a/b", "1", signedBlob)
		prefix := []string{"/v2/a/b", "/v2/ghcr.io/a/b"}[i]
		for _, path := range []string{"/manifests/1", "/blobs/" + img.Layers[0].Digest.String(), "/tags/list"} {
			if status := h.ask(prefix + path); status != http.StatusOK {
				h.t.Errorf("%s%s: %d, want 200", prefix, path, status)
			}
		}
	}
}

// pullFrom has everything go wrong at a registry and at its token server.
func (h *haunted) pullFrom(registry *upstreamtest.Registry, prefix string) {
	faults := []upstreamtest.Fault{upstreamtest.ResetConnection(), upstreamtest.Truncate(5), upstreamtest.FlipByte(3), upstreamtest.SetHeader("Content-Type", "text/html")}
	for _, status := range []int{400, 401, 403, 404, 406, 429, 500, 503} {
		faults = append(faults, echoing(status))
	}
	var asking sync.WaitGroup
	for i, fault := range faults {
		repository := fmt.Sprintf("f%d/x", i)
		img := registry.AddImage(repository, "1", fmt.Append(nil, repository))
		registry.Fault(upstreamtest.Match{Path: "/v2/" + repository + "/"}, fault)
		for _, path := range []string{"/manifests/1", "/manifests/" + img.Manifest.String(), "/blobs/" + img.Layers[0].Digest.String(), "/tags/list"} {
			asking.Go(func() { h.ask("/v2/" + prefix + repository + path) })
		}
	}
	asking.Wait()
	// A 200 is content, unless it can't be.
	remove := registry.Fault(upstreamtest.Match{Path: "/manifests/"}, echoing(200))
	h.ask("/v2/" + prefix + "g/x/manifests/1")
	remove()
	remove = registry.Fault(upstreamtest.Match{Path: "/token"}, echoing(200))
	h.ask("/v2/" + prefix + "g/y/manifests/1")
	remove()
	for i, fault := range faults { // of handshakes, which others need, too
		for _, where := range []string{"/v2/", "/token"} {
			remove := registry.Fault(upstreamtest.Match{Path: where}, fault)
			h.ask(fmt.Sprintf("/v2/%sh%d/%s/tags/list", prefix, i, path.Base(where)))
			remove()
		}
	}
}

// pullSigned has blobs and manifests redirected to signed URLs.
func (h *haunted) pullSigned() {
	cdn := strings.Replace(h.cdn.URL, "127.0.0.1", "localhost", 1)
	targets := map[string]int{
		cdn + "/good": 200, cdn + "/denied": 403, cdn + "/reset": 502, cdn + "/wrong": 502, cdn + "/again": 502, "http://" + freeAddr(h.t) + "/": 502,
		"http://nobody.invalid/": 502, "ftp://user:x@localhost/": 502, "http://[::1/": 502, "javascript:alert()//": 502, "http://%zz/": 502,
		"http://user:" + h.secrets.plant("password in a redirect") + "@127.0.0.1:1/": 502,
	}
	i := 0
	for target, want := range targets {
		i++
		repository := fmt.Sprintf("s/x%d", i)
		h.hub.AddBlob(repository, signedBlob)
		img := h.hub.AddImage(repository, "1", fmt.Append(nil, repository))
		d := digest.FromBytes(signedBlob)
		if want != 200 { // else it would be in the cache
			d = img.Layers[0].Digest
		}
		for _, path := range []string{"/blobs/" + d.String(), "/manifests/1"} {
			remove := h.hub.Fault(upstreamtest.Match{Path: "/v2/" + repository + path[:6]}, upstreamtest.Redirect(target+"?"+h.signed))
			status := h.ask("/v2/" + repository + path)
			remove()
			if strings.HasPrefix(path, "/blobs/") && status != want {
				h.t.Errorf("blob redirected to %s: %d, want %d", target, status, want)
			}
		}
	}
}

// pullAsNobody shows larder what it should not have been shown.
func (h *haunted) pullAsNobody() {
	wrong := h.secrets.plant("client's wrong password")
	basic := base64.StdEncoding.EncodeToString([]byte(h.user + ":" + wrong))
	good := "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(h.user+":"+h.pass))
	token := h.secrets.plant("client's token")
	for target, header := range map[string][]string{
		"/v2/":                                 {"Authorization: Basic " + basic},
		"/v2/a/b/manifests/1":                  {"Authorization: Bearer " + token, "Cookie: session=" + token, "X-Registry-Auth: " + token},
		"/v2/a/b/tags/list?n=1&token=" + token: {good},
		"/v2/a/b/tags/list?n=" + token:         {good},
		"/v2/a/b/manifests/1?ns=user:" + h.secrets.plant("password in ns") + "@ghcr.io":                   {good},
		"/v2/a/b/manifests/1?ns=https://" + h.secrets.plant("user name in ns") + "@ghcr.io":               {good},
		"http://user:" + h.secrets.plant("password in an absolute URL") + "@localhost/v2/a/b/manifests/1": {good},
	} {
		h.ask(target, header...)
	}
}

// wantSecretsUsed is there so that the test can't pass without them.
func (h *haunted) wantSecretsUsed() {
	for _, r := range []*upstreamtest.Registry{h.hub, h.ghcr} {
		used := 0
		for _, req := range r.Requests() {
			authorization := req.Header.Get("Authorization")
			if token, ok := strings.CutPrefix(authorization, "Bearer "); ok {
				h.secrets["token "+token[:4]] = token
			}
			if authorization != "" {
				used++
			}
		}
		if used < 10 {
			h.t.Errorf("%s was shown credentials %d times", r.URL, used)
		}
	}
	if !strings.Contains(h.stderr.String(), `"user":"`+h.user+`"`) {
		h.t.Error("the log does not have the client's name")
	}
}

func (h *haunted) lookEverywhere() {
	h.secrets.wantNone(h.t, "an answer", []byte(h.answers.String()))
	for _, path := range []string{"/", "/images", "/metrics", "/debug/pprof/", "/debug/pprof/cmdline", "/debug/pprof/goroutine?debug=2", "/debug/pprof/heap?debug=1", "/readyz", "/setup", "/setup/containerd.sh", "/doctor?format=json"} {
		resp, body := ask(h.t, http.DefaultClient, "GET", "http://"+h.admin+path, h.user, h.pass)
		if resp.StatusCode != http.StatusOK || len(body) == 0 {
			h.t.Errorf("%s: %s", path, resp.Status)
		}
		h.secrets.wantNone(h.t, path, fmt.Appendf(nil, "%v %s", resp.Header, body))
	}
	h.stop(h.t)
	h.secrets.wantNone(h.t, "the log", []byte(h.stderr.String()))
	files := 0
	err := filepath.WalkDir(h.cache, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		files++
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		data, err := io.ReadAll(f)
		h.secrets.wantNone(h.t, "the cache's "+path, append(data, path...))
		return err
	})
	if err != nil || files < 10 {
		h.t.Errorf("%d files in the cache, %v", files, err)
	}
}
