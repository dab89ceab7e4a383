package upstreamtest

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// walk follows Link headers and returns what grep finds on each page.
func walk(t *testing.T, r *Registry, path string, grep *regexp.Regexp) (pages [][]string) {
	t.Helper()
	for path != "" {
		res := get(t, r, path)
		if res.StatusCode != 200 {
			t.Fatalf("GET %s: got %d", path, res.StatusCode)
		}
		pages = append(pages, grep.FindAllString(string(res.body), -1))
		path, _, _ = strings.Cut(strings.TrimPrefix(res.Header.Get("Link"), "<"), ">")
	}
	return pages
}

func TestPageSize(t *testing.T) {
	r := New(t)
	r.EnableReferrers()
	subject := r.AddManifest("a", "t0", "", []byte("{}"))
	for i := range 4 {
		r.AddManifest("a", fmt.Sprintf("t%d", i+1), ocispec.MediaTypeImageManifest, fmt.Appendf(nil, `{"n":%d,"artifactType":"x/y%d","subject":{"digest":%q}}`, i, i%2, subject))
	}
	tags, types := regexp.MustCompile(`t[0-9]`), regexp.MustCompile(`x/y[0-9]`)
	referrers := "/v2/a/referrers/" + subject.String()
	for size, want := range map[int]string{0: "[5] [4] [2]", 2: "[2 2 1] [2 2] [2]", 1: "[1 1 1 1 1] [1 1 1 1] [1 1]", 9: "[5] [4] [2]"} {
		r.SetPageSize(size)
		var got []string
		for _, pages := range [][][]string{walk(t, r, "/v2/a/tags/list", tags), walk(t, r, referrers, types), walk(t, r, referrers+"?artifactType=x/y1", types)} {
			lengths := []int{}
			for _, p := range pages {
				lengths = append(lengths, len(p))
			}
			got = append(got, fmt.Sprint(lengths))
		}
		if strings.Join(got, " ") != want {
			t.Errorf("pages of %d: got %v, want %s", size, got, want)
		}
	}
	r.SetPageSize(2)
	if pages := walk(t, r, "/v2/a/tags/list?n=3", tags); len(pages) != 3 {
		t.Errorf("n larger than a page: got %v", pages)
	}
}

func TestSignatures(t *testing.T) {
	r := New(t)
	d := r.AddManifest("a/b", "t", ocispec.MediaTypeImageManifest, []byte("{}"))
	path := "/extensions/v2/a/b/signatures/"
	r.AddSignature("a/b", d, []byte("signed"))
	if got := get(t, r, path+d.String()).StatusCode; got != 404 || get(t, r, "/v2/").Header.Get("X-Registry-Supports-Signatures") != "" {
		t.Errorf("got %d of a registry without signatures", got)
	}
	r.EnableSignatures()
	if got := get(t, r, "/v2/").Header.Get("X-Registry-Supports-Signatures"); got != "1" {
		t.Errorf("got %q announced", got)
	}
	if got := string(get(t, r, path+d.String()).body); !strings.Contains(got, `{"signatures":[{"schemaVersion":2,"name":"`+d.String()+"@") || !strings.Contains(got, `"content":"c2lnbmVk"`) {
		t.Errorf("got %s", got)
	}
	if got := get(t, r, path+digest.FromString("x").String()).StatusCode; got != 404 {
		t.Errorf("got %d of an unknown manifest", got)
	}
	if got := get(t, r, "/v2/a/b/signatures/"+d.String()).StatusCode; got != 404 {
		t.Errorf("got %d elsewhere", got)
	}
}
