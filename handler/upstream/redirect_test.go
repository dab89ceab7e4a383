package upstream_test

import (
	"bytes"
	"cmp"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"larder/handler/upstream"
	"larder/handler/upstream/upstreamtest"
)

func TestBlobIsRedirected(t *testing.T) {
	reg, cdn := upstreamtest.New(t), upstreamtest.New(t)
	blob, _ := fill(reg)
	reg.RequireBasic("user", password)
	cdn.AddBlob("b", blobData)
	cdn.Fault(upstreamtest.Match{Path: "/store/"}, renamed("/v2/b/blobs/"+blob.String()))
	target := cdn.URL + "/store/b?sig=hunter2"
	reg.Fault(upstreamtest.Match{Path: "/blobs/"}, redirectWith(target))
	r := repository(t, newClient(t, reg.URL, upstream.Config{Keychain: user(password)}))
	body, size := open(t, r, blob, 10, 3)
	if got, err := io.ReadAll(body); err != nil || string(got) != "abc" || size != blobSize {
		t.Errorf("got %q of %d, %v", got, size, err)
	}
	log := cdn.Requests()
	if len(log) != 1 {
		t.Fatalf("got %d requests, want one", len(log))
	}
	h := log[0].Header
	if h.Get("Range") != "bytes=10-12" || log[0].Query.Get("sig") != secret {
		t.Errorf("got %v, %v", log[0].Query, h)
	}
	for _, name := range []string{"Authorization", "Referer", "X-Larder-Body"} {
		if h.Get(name) != "" {
			t.Errorf("got %s", name)
		}
	}

	// What the target says is upstream's answer.
	for _, status := range []int{403, 404, 503} {
		remove := cdn.Fault(upstreamtest.Match{}, upstreamtest.Status(status, nil))
		err := questions["get blob"](t.Context(), r)
		if e := wantError(t, err, status); e.Op != "get blob" {
			t.Errorf("got %v, want it to be about the blob", err)
		}
		remove()
	}
	cdn.Stop()
	err := questions["get blob"](t.Context(), r)
	wantError(t, err, 0)
	wantUnreachable(t, err, true)
}

// redirectWith sends those who are let in to exactly this URL.
func redirectWith(target string) upstreamtest.Fault {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if req.Header.Get("Authorization") == "" {
				next.ServeHTTP(w, req)
				return
			}
			upstreamtest.Redirect(target)(next).ServeHTTP(w, req)
		})
	}
}

func TestRedirectsAreLimited(t *testing.T) {
	for question, ask := range questions {
		t.Run(question, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				reg, r := startPipe(t, upstream.Config{})
				match := upstreamtest.Match{Path: page(question), Times: 10}
				remove := reg.Fault(match, location(""))
				if err := ask(t.Context(), r); err != nil {
					t.Errorf("10 redirects: %v", err)
				}
				remove()
				reg.Reset()
				match.Times = 100
				reg.Fault(match, location(""))
				err := ask(t.Context(), r)
				wantError(t, err, 0)
				wantUnreachable(t, err, true)
				if n := len(reg.Requests()); n != 11 {
					t.Errorf("got %d requests, want 11", n)
				}
			})
		})
	}
}

// location redirects to exactly this; "" is the same page.
func location(target string) upstreamtest.Fault {
	return func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			w.Header().Set("Location", cmp.Or(target, req.URL.Path))
			w.WriteHeader(http.StatusTemporaryRedirect)
		})
	}
}

func TestRedirectsToOtherSchemes(t *testing.T) {
	for _, target := range []string{"ftp://ftp.example/blob", "file:///etc/passwd", "gopher://x", "data:,x", "javascript:alert(1)", "//", "http://", "http:///x"} {
		for question, ask := range questions {
			synctest.Test(t, func(t *testing.T) {
				reg := upstreamtest.NewPipe(t)
				transport := reg.Transport()
				for _, scheme := range []string{"ftp", "file", "gopher", "data", "javascript"} {
					transport.RegisterProtocol(scheme, undialled{t})
				}
				reg.Fault(upstreamtest.Match{Path: page(question)}, location(target))
				r := repository(t, newClient(t, reg.URL, upstream.Config{Transport: transport}))
				err := ask(t.Context(), r)
				wantError(t, err, 0)
				wantUnreachable(t, err, true)
			})
		}
	}
}

func TestPasswordStaysOverRedirects(t *testing.T) {
	require := map[string]func(reg *upstreamtest.Registry){
		"basic":  func(reg *upstreamtest.Registry) { reg.RequireBasic("user", password) },
		"bearer": func(reg *upstreamtest.Registry) { bearer(reg, "user", "http://reg.example.com:5000/token") },
	}
	targets := map[string]string{
		"other port":  "http://reg.example.com:8080",
		"sub-domain":  "http://cdn.reg.example.com:80",
		"other host":  "http://cdn.example.org:80",
		"secure port": "https://reg.example.com:443",
	}
	for scheme, require := range require {
		for name, target := range targets {
			t.Run(scheme+", "+name, func(t *testing.T) {
				reg, cdn := upstreamtest.New(t), upstreamtest.New(t)
				fill(reg)
				fill(cdn)
				require(reg)
				hosts := map[string]*upstreamtest.Registry{
					"reg.example.com:5000":              reg,
					strings.SplitN(target, "://", 2)[1]: cdn,
				}
				r := repository(t, newClient(t, "http://reg.example.com:5000", upstream.Config{Transport: network(t, hosts), Keychain: user(password)}))
				ask(t, r, "get blob")
				for _, question := range slices.Sorted(maps.Keys(questions)) {
					reg.Fault(upstreamtest.Match{Path: page(question)}, redirect(target))
					ask(t, r, question)
				}
				if scheme == "bearer" {
					reg.ExpireTokens()
					reg.Fault(upstreamtest.Match{Path: "/token"}, redirect(target))
					err := questions["get blob"](t.Context(), r)
					if err != nil {
						wantError(t, err, 0)
					}
				}
				if len(cdn.Requests()) < len(questions) {
					t.Errorf("got %d requests at the redirects' target", len(cdn.Requests()))
				}
				for _, req := range cdn.Requests() {
					for _, h := range []string{"Authorization", "Referer", "Cookie", "X-Larder-Body"} {
						if v := req.Header.Get(h); v != "" {
							t.Errorf("%s %s has %s", req.Method, req.Path, h)
						}
					}
				}
			})
		}
	}
}

// redirect sends everybody to the same page of another host.
func redirect(to string) upstreamtest.Fault {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if req.Header.Get("Authorization") == "" { // the registry asks for credentials first
				next.ServeHTTP(w, req)
				return
			}
			upstreamtest.Redirect(to+req.URL.RequestURI())(next).ServeHTTP(w, req)
		})
	}
}

func TestIdentityTokenStaysOverRedirects(t *testing.T) {
	reg := upstreamtest.New(t)
	bearer(reg, "user", "https://reg.example.com/token")
	reg.Fault(upstreamtest.Match{Path: "/token"}, upstreamtest.Redirect("https://auth.example.org/token"))
	k := &keychain{}
	k.set(secrets["identity token"])
	r := repository(t, newClient(t, "https://reg.example.com", upstream.Config{
		Transport: network(t, map[string]*upstreamtest.Registry{"reg.example.com:443": reg}), Keychain: k,
	}))
	wantError(t, questions["get blob"](t.Context(), r), 0)
	if n := reg.Count(http.MethodPost, "/token"); n != 1 {
		t.Errorf("got %d requests for a token, want one that is redirected", n)
	}
}

// A registry may keep its manifests elsewhere; they are manifests there, too.
func TestRedirectedManifest(t *testing.T) {
	reg := upstreamtest.New(t)
	body := append([]byte(`{"schemaVersion":2}`), bytes.Repeat([]byte(" "), 1<<20)...)
	d := reg.AddManifest(repoName, "v1", ocispec.MediaTypeImageManifest, body)
	reg.Fault(upstreamtest.Match{Path: "/manifests/", Times: 2}, upstreamtest.Redirect("http://cdn.example/elsewhere"))
	reg.Fault(upstreamtest.Match{Path: "/elsewhere"}, renamed("/v2/"+repoName+"/manifests/v1"))
	hosts := map[string]*upstreamtest.Registry{"reg.example:80": reg, "cdn.example:80": reg}
	r := repository(t, newClient(t, "http://reg.example", upstream.Config{Transport: network(t, hosts)}))
	wantManifest(t, r, "v1", ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: d, Size: int64(len(body))}, body)
}
