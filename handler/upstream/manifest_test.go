package upstream_test

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"larder/handler/upstream"
	"larder/handler/upstream/upstreamtest"
)

func TestManifests(t *testing.T) {
	reg, r := start(t, upstream.Config{})
	reg.SetAcceptStrict()
	types := []string{
		ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex, "application/vnd.oci.artifact.manifest.v1+json",
		"application/vnd.docker.distribution.manifest.v2+json", "application/vnd.docker.distribution.manifest.list.v2+json",
		"application/vnd.docker.distribution.manifest.v1+json", "application/vnd.docker.distribution.manifest.v1+prettyjws",
		"application/vnd.example+json",
	}
	for _, algorithm := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		for i, mediaType := range types {
			t.Run(string(algorithm)+" "+mediaType, func(t *testing.T) {
				body := fmt.Appendf(nil, `{"schemaVersion":2,"n":%d}`, i)
				tag := fmt.Sprintf("%s-%d", algorithm, i)
				d := reg.AddManifestWith(algorithm, repoName, tag, mediaType, body)
				want := ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(body))}
				for _, reference := range []string{tag, d.String()} {
					wantManifest(t, r, reference, want, body)
				}
			})
		}
	}
}

func wantManifest(t *testing.T, r *upstream.Repository, reference string, want ocispec.Descriptor, body []byte) {
	t.Helper()
	head, err := r.HeadManifest(t.Context(), reference)
	if err != nil || !same(head, want) {
		t.Errorf("head %s: got %v, %v, want %v", reference, head, err, want)
	}
	got, b, err := r.GetManifest(t.Context(), reference)
	if err != nil || !same(got, want) || !bytes.Equal(b, body) {
		t.Errorf("get %s: got %v, %d bytes, %v, want %v", reference, got, len(b), err, want)
	}
}

func same(a, b ocispec.Descriptor) bool {
	return a.MediaType == b.MediaType && a.Digest == b.Digest && a.Size == b.Size
}

func TestUpstreamIsAskedForAllTypes(t *testing.T) {
	reg, r := start(t, upstream.Config{UserAgent: "larder/1.2"})
	ask(t, r, "head manifest")
	ask(t, r, "get manifest")
	asked := 0
	for _, req := range reg.Requests() {
		if !strings.HasPrefix(req.Header.Get("User-Agent"), "larder/1.2") {
			t.Errorf("got User-Agent %q", req.Header.Get("User-Agent"))
		}
		if !strings.Contains(req.Path, "/manifests/") {
			continue
		}
		asked++
		for _, want := range []string{
			"application/vnd.oci.image.index.v1+json", "application/vnd.oci.image.manifest.v1+json",
			"application/vnd.docker.distribution.manifest.list.v2+json", "application/vnd.docker.distribution.manifest.v2+json", "*/*",
		} {
			if got := req.Header.Values("Accept"); len(got) != 1 || !strings.Contains(got[0], want) {
				t.Errorf("%s: got Accept %q, want %s in it", req.Method, got, want)
			}
		}
		for _, h := range []string{"Accept-Encoding", "X-Larder-Body", "Authorization"} {
			if v := req.Header.Get(h); v != "" && v != "identity" {
				t.Errorf("%s: got %s: %s", req.Method, h, v)
			}
		}
	}
	if asked != 2 {
		t.Errorf("got %d requests, want 2", asked)
	}
}

func TestHeadIsUnhelpful(t *testing.T) {
	faults := map[string]upstreamtest.Fault{
		"405":              upstreamtest.Status(405, nil),
		"501":              upstreamtest.Status(501, nil),
		"no digest":        upstreamtest.DropHeader("Docker-Content-Digest"),
		"not a digest":     upstreamtest.SetHeader("Docker-Content-Digest", "sha256:1"),
		"unknown digest":   upstreamtest.SetHeader("Docker-Content-Digest", "md5:d41d8cd98f00b204e9800998ecf8427e"),
		"no length":        upstreamtest.NoContentLength(),
		"no content type":  upstreamtest.DropHeader("Content-Type"),
		"another manifest": upstreamtest.SetHeader("Docker-Content-Digest", digest.FromBytes(blobData).String()),
	}
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			reg, r := start(t, upstream.Config{})
			reg.Fault(upstreamtest.Match{Method: http.MethodHead}, fault)
			reference := "v1"
			if name == "another manifest" {
				reference = digest.FromBytes(manifest).String()
			}
			desc, err := r.HeadManifest(t.Context(), reference)
			if err != nil || !same(desc, ocispec.Descriptor{}) {
				t.Errorf("got %v, %v, want nothing", desc, err)
			}
			if n := reg.Count(http.MethodHead, ""); n != 1 {
				t.Errorf("got %d requests, want one", n)
			}
			ask(t, r, "get manifest")
		})
	}
}

func TestGetIsUnhelpful(t *testing.T) {
	tests := map[string]struct {
		fault     upstreamtest.Fault
		mediaType string
		digest    digest.Digest
	}{
		"no digest":    {upstreamtest.DropHeader("Docker-Content-Digest"), ocispec.MediaTypeImageManifest, ""},
		"not a digest": {upstreamtest.SetHeader("Docker-Content-Digest", "sha256:1"), ocispec.MediaTypeImageManifest, ""},
		"no length":    {upstreamtest.NoContentLength(), ocispec.MediaTypeImageManifest, digest.FromBytes(manifest)},
		"no type":      {upstreamtest.DropHeader("Content-Type"), ocispec.MediaTypeImageManifest, digest.FromBytes(manifest)},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			reg, r := start(t, upstream.Config{})
			reg.Fault(upstreamtest.Match{Path: "/manifests/"}, test.fault)
			desc, body, err := r.GetManifest(t.Context(), "v1")
			want := ocispec.Descriptor{MediaType: test.mediaType, Digest: test.digest, Size: int64(len(manifest))}
			if err != nil || !same(desc, want) || !bytes.Equal(body, manifest) {
				t.Errorf("got %v, %d bytes, %v, want %v", desc, len(body), err, want)
			}
		})
	}
}

// A digest does not cover the media type, and a page of somebody in between has
// none to be compared with.
func TestWhatIsNoManifestIsRefused(t *testing.T) {
	tests := map[string]struct{ mediaType, body string }{
		"a login page":              {"text/html", "<html>please log in</html>"},
		"a login page, mislabelled": {ocispec.MediaTypeImageManifest, "<html>please log in</html>"},
		"text":                      {"text/plain", "{}"},
		"empty":                     {ocispec.MediaTypeImageManifest, ""},
		"a list":                    {ocispec.MediaTypeImageManifest, "[]"},
		"of another type":           {ocispec.MediaTypeImageManifest, `{"mediaType":"` + ocispec.MediaTypeImageIndex + `"}`},
		"an image and an index":     {ocispec.MediaTypeImageManifest, `{"manifests":[],"layers":[]}`},
		"JSON that is broken":       {"application/vnd.example.manifest", `{"manifests":[],"layers":[]} ` + "x"},
		"of no vendor":              {"application/x-manifest", "not JSON"},
		"JSON that is none":         {"application/vnd.example+json", "not JSON"},
		"signed, and no JSON":       {"application/vnd.docker.distribution.manifest.v1+prettyjws", "not JSON"},
		"an index and an image":     {ocispec.MediaTypeImageIndex, `{"manifests":[],"config":{}}`},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			reg, r := start(t, upstream.Config{})
			d := reg.AddManifest(repoName, "odd", test.mediaType, []byte(test.body))
			for _, reference := range []string{"odd", d.String()} {
				_, _, err := r.GetManifest(t.Context(), reference)
				if err == nil || !upstream.Unreachable(err) {
					t.Errorf("%s: got %v, want an error that an old answer is better than", reference, err)
				}
			}
		})
	}
}

// What it is, its type says, and no client takes it for anything else.
func TestManifestsNeedNotBeJSON(t *testing.T) {
	reg, r := start(t, upstream.Config{})
	for i, body := range []string{"\x00\x01\xff", "schemaVersion: 2\n", ""} {
		const mediaType = "application/vnd.example.manifest.v1+cbor"
		d := reg.AddManifest(repoName, fmt.Sprint(i), mediaType, []byte(body))
		wantManifest(t, r, d.String(), ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(body))}, []byte(body))
	}
}

func TestParametersOfMediaTypeAreDropped(t *testing.T) {
	for _, parameters := range []string{"; charset=utf-8", ";charset=utf-8; x=y", " ; charset", ";"} {
		reg, r := start(t, upstream.Config{})
		reg.Fault(upstreamtest.Match{}, upstreamtest.SetHeader("Content-Type", ocispec.MediaTypeImageManifest+parameters))
		want := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(manifest), Size: int64(len(manifest))}
		wantManifest(t, r, "v1", want, manifest)
	}
}

func TestWrongManifestIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg, r := startPipe(t, upstream.Config{})
		reg.Fault(upstreamtest.Match{}, upstreamtest.FlipByte(5))
		_, _, err := r.GetManifest(t.Context(), digest.FromBytes(manifest).String())
		wantError(t, err, 0)
		wantUnreachable(t, err, true)
	})
}

// endless answers for as long as somebody reads.
func endless() upstreamtest.Fault {
	return func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			for zeros := make([]byte, 32<<10); ; {
				if _, err := w.Write(zeros); err != nil {
					return
				}
			}
		})
	}
}

// sent is the longest body that reg has sent. A pipe holds nothing back.
func sent(reg *upstreamtest.Registry) int64 {
	n := int64(0)
	for _, req := range reg.Requests() {
		n = max(n, req.Bytes)
	}
	return n
}

func TestSizeOfDocumentsIsLimited(t *testing.T) {
	const slack = 128 << 10
	tests := map[string]int64{"get manifest": 8 << 20, "list tags": 4 << 20, "list referrers": 4 << 20}
	for question, limit := range tests {
		t.Run(question, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				reg, r := startPipe(t, upstream.Config{})
				ask(t, r, question)
				usual := int64(len(manifest))
				if question != "get manifest" {
					usual = sent(reg)
				}
				match := upstreamtest.Match{Path: page(question)}

				remove := reg.Fault(match, upstreamtest.Extend(limit-usual))
				ask(t, r, question)
				remove()
				if got := sent(reg); got != limit {
					t.Errorf("got %d bytes sent, want all of %d", got, limit)
				}

				tooLarge := map[string]upstreamtest.Fault{
					"said":    upstreamtest.Extend(limit - usual + 1),
					"unsaid":  chain(upstreamtest.NoContentLength(), upstreamtest.Extend(limit-usual+1)),
					"endless": endless(),
				}
				for name, fault := range tooLarge {
					reg.Reset()
					remove := reg.Fault(match, fault)
					err := questions[question](t.Context(), r)
					wantError(t, err, 0)
					wantUnreachable(t, err, true)
					remove()
					want := limit + slack
					if name == "said" {
						want = slack
					}
					if got, n := sent(reg), reg.Count("", page(question)); got > want || n != 1 {
						t.Errorf("%s: got %d bytes sent in %d answers, want at most %d in one", name, got, n, want)
					}
				}
			})
		})
	}
}
