package upstreamtest

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// answer is a response read to its end, or to where it broke.
type answer struct {
	*http.Response
	body []byte
	err  error // from the request or the body
}

// send asks r for a path; headers are pairs of name and value.
func send(t *testing.T, r *Registry, method, path string, headers ...string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, r.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for pair := range slices.Chunk(headers, 2) {
		req.Header.Add(pair[0], pair[1])
	}
	resp, err := r.Transport().RoundTrip(req)
	if err != nil {
		return answer{Response: &http.Response{Header: http.Header{}}, err: err}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return answer{resp, body, err}
}

func get(t *testing.T, r *Registry, path string, headers ...string) answer {
	t.Helper()
	return send(t, r, http.MethodGet, path, headers...)
}

// code is that of the OCI error in the body.
func (a answer) code() string {
	var e struct{ Errors []struct{ Code string } }
	if json.Unmarshal(a.body, &e) != nil || len(e.Errors) != 1 {
		return "not an OCI error: " + string(a.body)
	}
	return e.Errors[0].Code
}

func (a answer) want(t *testing.T, status int, body []byte) {
	t.Helper()
	if a.err != nil || a.StatusCode != status || !bytes.Equal(a.body, body) {
		t.Errorf("got %d, %d bytes, %v; want %d, %d bytes", a.StatusCode, len(a.body), a.err, status, len(body))
	}
}

func (a answer) wantHeader(t *testing.T, name, want string) {
	t.Helper()
	if got := a.Header.Get(name); got != want {
		t.Errorf("%s: got %q, want %q", name, got, want)
	}
}

var blobData = bytes.Repeat([]byte("0123456789"), 10_000)

// withBlob is a registry with blobData in it, and its path there.
func withBlob(t *testing.T) (*Registry, string) {
	t.Helper()
	r := New(t)
	return r, "/v2/library/alpine/blobs/" + r.AddBlob("library/alpine", blobData).String()
}

func TestPing(t *testing.T) {
	r := New(t)
	for _, path := range []string{"/v2/", "/v2"} {
		get(t, r, path).want(t, http.StatusOK, []byte("{}"))
	}
}

func TestBlob(t *testing.T) {
	r, path := withBlob(t)
	d := digest.FromBytes(blobData)
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		a := send(t, r, method, path)
		if method == http.MethodGet {
			a.want(t, http.StatusOK, blobData)
		} else {
			a.want(t, http.StatusOK, nil)
		}
		a.wantHeader(t, "Content-Length", "100000")
		a.wantHeader(t, "Content-Type", "application/octet-stream")
		a.wantHeader(t, "Docker-Content-Digest", d.String())
		a.wantHeader(t, "ETag", `"`+d.String()+`"`)
		a.wantHeader(t, "Accept-Ranges", "bytes")
	}
	get(t, r, path, "If-None-Match", `"`+d.String()+`"`).want(t, http.StatusNotModified, nil)
}

func TestBlobRange(t *testing.T) {
	r, path := withBlob(t)
	tests := map[string]struct {
		first, last  int
		contentRange string
	}{
		"bytes=10-19":    {10, 20, "bytes 10-19/100000"},
		"bytes=99990-":   {99_990, 100_000, "bytes 99990-99999/100000"},
		"bytes=-5":       {99_995, 100_000, "bytes 99995-99999/100000"},
		"bytes=5-999999": {5, 100_000, "bytes 5-99999/100000"},
	}
	for header, want := range tests {
		a := get(t, r, path, "Range", header)
		a.want(t, http.StatusPartialContent, blobData[want.first:want.last])
		a.wantHeader(t, "Content-Range", want.contentRange)
	}
	a := get(t, r, path, "Range", "bytes=100000-")
	if a.StatusCode != http.StatusRequestedRangeNotSatisfiable {
		t.Errorf("range beyond the end: got %d, want 416", a.StatusCode)
	}
	a.wantHeader(t, "Content-Range", "bytes */100000")
}

func TestBlobOfOtherAlgorithm(t *testing.T) {
	r := New(t)
	d := r.AddBlobWith(digest.SHA512, "a", blobData)
	if d != digest.SHA512.FromBytes(blobData) {
		t.Errorf("got %s, want sha512", d)
	}
	get(t, r, "/v2/a/blobs/"+d.String()).want(t, http.StatusOK, blobData)
	m := r.AddManifestWith(digest.SHA512, "a", "t", "x/y", []byte("{}"))
	get(t, r, "/v2/a/manifests/"+m.String()).want(t, http.StatusOK, []byte("{}"))
}

func TestBlobFromReader(t *testing.T) {
	r := New(t)
	const size = 1<<40 + 5
	d := digest.FromString("what the bytes are not")
	r.AddReader("a", d, size, Seeded(7, size))
	want := make([]byte, 100)
	if _, err := Seeded(7, size).ReadAt(want, size-100); err != nil {
		t.Fatal(err)
	}
	get(t, r, "/v2/a/blobs/"+d.String(), "Range", "bytes=-100").want(t, http.StatusPartialContent, want)
}

func TestSeeded(t *testing.T) {
	whole, err := io.ReadAll(Seeded(1, 1001))
	if err != nil || len(whole) != 1001 {
		t.Fatalf("got %d bytes, %v; want 1001", len(whole), err)
	}
	for off := range 20 {
		for n := range 20 {
			part := make([]byte, n)
			Seeded(1, 1001).ReadAt(part, int64(off))
			if !bytes.Equal(part, whole[off:off+n]) {
				t.Fatalf("%d bytes at %d are not those of the whole", n, off)
			}
		}
	}
	other, _ := io.ReadAll(Seeded(2, 1001))
	if bytes.Equal(whole, other) {
		t.Error("another seed gave the same bytes")
	}
}

func TestManifest(t *testing.T) {
	r := New(t)
	body := []byte(`{"not": "looked at"}`)
	const mediaType = "application/vnd.Test+json;  odd=1"
	d := r.AddManifest("library/alpine", "3.20", mediaType, body)
	for _, reference := range []string{"3.20", d.String()} {
		a := get(t, r, "/v2/library/alpine/manifests/"+reference, "Accept", "image/png")
		a.want(t, http.StatusOK, body)
		a.wantHeader(t, "Content-Type", mediaType)
		a.wantHeader(t, "Docker-Content-Digest", d.String())
		a.wantHeader(t, "ETag", `"`+d.String()+`"`)
		a = send(t, r, http.MethodHead, "/v2/library/alpine/manifests/"+reference)
		a.want(t, http.StatusOK, nil)
		a.wantHeader(t, "Content-Length", "20")
	}
	d2 := r.AddManifest("library/alpine", "3.20", mediaType, []byte("{}"))
	get(t, r, "/v2/library/alpine/manifests/3.20").wantHeader(t, "Docker-Content-Digest", d2.String())
	get(t, r, "/v2/library/alpine/manifests/"+d.String()).want(t, http.StatusOK, body)
}

func TestAcceptStrict(t *testing.T) {
	r := New(t)
	r.SetAcceptStrict()
	r.AddManifest("a", "t", ocispec.MediaTypeImageIndex, []byte("{}"))
	tests := map[string]int{
		"":                                      http.StatusOK,
		"*/*":                                   http.StatusOK,
		"application/*":                         http.StatusOK,
		ocispec.MediaTypeImageManifest:          http.StatusNotFound,
		"a/b, " + ocispec.MediaTypeImageIndex:   http.StatusOK,
		ocispec.MediaTypeImageIndex + ";q=0.5":  http.StatusOK,
		"application/json, text/plain;charset=": http.StatusNotFound,
	}
	for accept, want := range tests {
		var headers []string
		if accept != "" {
			headers = []string{"Accept", accept}
		}
		if a := get(t, r, "/v2/a/manifests/t", headers...); a.StatusCode != want {
			t.Errorf("Accept %q: got %d, want %d", accept, a.StatusCode, want)
		}
	}
}

func TestErrors(t *testing.T) {
	r, _ := withBlob(t)
	unknown := digest.FromString("unknown").String()
	tests := map[string]struct {
		method, path string
		status       int
		code         string
	}{
		"repository":     {"GET", "/v2/nobody/blobs/" + unknown, 404, "NAME_UNKNOWN"},
		"blob":           {"GET", "/v2/library/alpine/blobs/" + unknown, 404, "BLOB_UNKNOWN"},
		"blob's digest":  {"GET", "/v2/library/alpine/blobs/latest", 400, "DIGEST_INVALID"},
		"tag":            {"GET", "/v2/library/alpine/manifests/latest", 404, "MANIFEST_UNKNOWN"},
		"manifest":       {"GET", "/v2/library/alpine/manifests/" + unknown, 404, "MANIFEST_UNKNOWN"},
		"referrers off":  {"GET", "/v2/library/alpine/referrers/" + unknown, 404, "UNSUPPORTED"},
		"page":           {"GET", "/v2/library/alpine/tags/other", 404, "NAME_UNKNOWN"},
		"outside":        {"GET", "/", 404, "NAME_UNKNOWN"},
		"write":          {"PUT", "/v2/library/alpine/manifests/latest", 405, "UNSUPPORTED"},
		"token, no auth": {"GET", "/token", 404, "NAME_UNKNOWN"},
		"tags n":         {"GET", "/v2/library/alpine/tags/list?n=x", 400, "PAGINATION_NUMBER_INVALID"},
	}
	for name, test := range tests {
		a := send(t, r, test.method, test.path)
		if a.StatusCode != test.status || a.code() != test.code {
			t.Errorf("%s: got %d %s, want %d %s", name, a.StatusCode, a.code(), test.status, test.code)
		}
		a.wantHeader(t, "Content-Type", "application/json")
	}
}

func TestTags(t *testing.T) {
	r := New(t)
	for _, tag := range []string{"c", "a", "d", "b"} {
		r.AddManifest("x/y", tag, "x/y", []byte(tag))
	}
	tests := map[string]struct{ tags, link string }{
		"":               {`["a","b","c","d"]`, ""},
		"?n=2":           {`["a","b"]`, `</v2/x/y/tags/list?last=b&n=2>; rel="next"`},
		"?n=2&last=b":    {`["c","d"]`, ""},
		"?n=1&last=bb":   {`["c"]`, `</v2/x/y/tags/list?last=c&n=1>; rel="next"`},
		"?n=0":           {`[]`, ""},
		"?n=9":           {`["a","b","c","d"]`, ""},
		"?last=d":        {`[]`, ""},
		"?n=4":           {`["a","b","c","d"]`, ""},
		"?last=nowhere":  {`[]`, ""},
		"?n=2&last=0000": {`["a","b"]`, `</v2/x/y/tags/list?last=b&n=2>; rel="next"`},
	}
	for query, want := range tests {
		a := get(t, r, "/v2/x/y/tags/list"+query)
		a.want(t, http.StatusOK, []byte(`{"name":"x/y","tags":`+want.tags+`}`))
		a.wantHeader(t, "Link", want.link)
	}
}

func TestReferrers(t *testing.T) {
	r := New(t)
	r.EnableReferrers()
	img := r.AddImage("a", "t", blobData)
	subject := `"subject": {"digest": "` + img.Manifest.String() + `"}`
	sbom := r.AddManifest("a", "", ocispec.MediaTypeImageManifest, []byte(`{"artifactType": "x/sbom", "annotations": {"k": "v"}, `+subject+`}`))
	r.AddManifest("a", "", ocispec.MediaTypeImageManifest, []byte(`{"config": {"mediaType": "x/signature"}, `+subject+`}`))

	list := func(query string) ([]ocispec.Descriptor, answer) {
		a := get(t, r, "/v2/a/referrers/"+img.Manifest.String()+query)
		var index ocispec.Index
		if err := json.Unmarshal(a.body, &index); err != nil {
			t.Fatal(err)
		}
		a.wantHeader(t, "Content-Type", ocispec.MediaTypeImageIndex)
		return index.Manifests, a
	}
	all, a := list("")
	if len(all) != 2 {
		t.Errorf("got %d referrers, want 2", len(all))
	}
	a.wantHeader(t, "OCI-Filters-Applied", "")
	some, a := list("?artifactType=x/sbom")
	if len(some) != 1 || some[0].Digest != sbom || some[0].Annotations["k"] != "v" || some[0].Size == 0 {
		t.Errorf("got %v, want the sbom %s", some, sbom)
	}
	a.wantHeader(t, "OCI-Filters-Applied", "artifactType")
	if some, _ := list("?artifactType=x/signature"); len(some) != 1 {
		t.Errorf("by the type of the config: got %d, want 1", len(some))
	}
	none := get(t, r, "/v2/a/referrers/"+sbom.String())
	if !strings.Contains(string(none.body), `"manifests":[]`) {
		t.Errorf("no referrers: got %s, want an empty list", none.body)
	}
}

func TestImage(t *testing.T) {
	r := New(t)
	img := r.AddImage("library/alpine", "3.20", blobData, []byte("second"))
	a := get(t, r, "/v2/library/alpine/manifests/3.20")
	a.want(t, http.StatusOK, img.Body)
	a.wantHeader(t, "Content-Type", ocispec.MediaTypeImageManifest)
	a.wantHeader(t, "Docker-Content-Digest", img.Manifest.String())

	var m ocispec.Manifest
	if err := json.Unmarshal(img.Body, &m); err != nil {
		t.Fatal(err)
	}
	if m.Config.Digest != img.Config.Digest || len(m.Layers) != 2 || m.Layers[0].Digest != img.Layers[0].Digest {
		t.Errorf("got %s, which is not the image %+v", img.Body, img)
	}
	for i, want := range [][]byte{blobData, []byte("second")} {
		get(t, r, "/v2/library/alpine/blobs/"+m.Layers[i].Digest.String()).want(t, http.StatusOK, want)
		if m.Layers[i].Size != int64(len(want)) {
			t.Errorf("layer %d: got size %d, want %d", i, m.Layers[i].Size, len(want))
		}
	}
	var config ocispec.Image
	a = get(t, r, "/v2/library/alpine/blobs/"+m.Config.Digest.String())
	if err := json.Unmarshal(a.body, &config); err != nil || len(config.RootFS.DiffIDs) != 2 {
		t.Errorf("got config %s, %v; want one diff id a layer", a.body, err)
	}
}

func TestDelete(t *testing.T) {
	r := New(t)
	img := r.AddImage("a", "t", blobData)
	layer := img.Layers[0].Digest.String()
	status := func(path string) int { return get(t, r, "/v2/a/"+path).StatusCode }

	r.Delete("a", "t")
	if status("manifests/t") != 404 || status("manifests/"+img.Manifest.String()) != 200 {
		t.Error("a deleted tag is still there, or its manifest is not")
	}
	r.AddImage("a", "t", blobData)
	r.Delete("a", img.Manifest.String())
	if status("manifests/t") != 404 || status("manifests/"+img.Manifest.String()) != 404 || status("blobs/"+layer) != 200 {
		t.Error("a deleted manifest or its tag is still there, or its layer is not")
	}
	r.Delete("a", layer)
	if status("blobs/"+layer) != 404 {
		t.Error("a deleted blob is still there")
	}
}

func TestRequests(t *testing.T) {
	r, path := withBlob(t)
	get(t, r, path+"?x=1", "Range", "bytes=0-9")
	send(t, r, http.MethodHead, path)
	get(t, r, "/v2/nobody/tags/list")

	log := r.Requests()
	if len(log) != 3 {
		t.Fatalf("got %d requests, want 3", len(log))
	}
	first := log[0]
	if first.Method != "GET" || first.Path != path || first.Query.Get("x") != "1" || first.Header.Get("Range") != "bytes=0-9" ||
		first.Status != 206 || first.Bytes != 10 || "http://"+first.Host != r.URL {
		t.Errorf("got %+v", first)
	}
	if log[1].Status != 200 || log[1].Bytes != 0 || log[2].Status != 404 {
		t.Errorf("got %+v, %+v", log[1], log[2])
	}
	if a, b, c := r.Count("GET", ""), r.Count("", "/blobs/"), r.Count("HEAD", "/tags/"); a != 2 || b != 2 || c != 0 {
		t.Errorf("got counts %d, %d, %d; want 2, 2, 0", a, b, c)
	}
	r.Reset()
	if n := len(r.Requests()); n != 0 {
		t.Errorf("after Reset: got %d requests", n)
	}
}
