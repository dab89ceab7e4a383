package upstream_test

import (
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"larder/handler/upstream"
	"larder/handler/upstream/upstreamtest"
)

func TestTags(t *testing.T) {
	reg, r := start(t, upstream.Config{})
	want := []string{"a", "b", "c", "v1"}
	for _, tag := range want[:3] {
		reg.AddManifest(repoName, tag, ocispec.MediaTypeImageManifest, manifest)
	}
	var got []string
	pages := 0
	for query := (url.Values{"n": {"2"}}); query != nil; pages++ {
		l, err := r.Tags(t.Context(), query)
		if err != nil {
			t.Fatal(err)
		}
		var page struct{ Tags []string }
		if err := json.Unmarshal(l.Body, &page); err != nil {
			t.Fatal(err)
		}
		got, query = append(got, page.Tags...), l.Next
		if l.ContentType != "application/json" || l.Filters != "" {
			t.Errorf("got %q, %q", l.ContentType, l.Filters)
		}
	}
	if !slices.Equal(got, want) || pages != 2 {
		t.Errorf("got %q in %d pages, want %q in 2", got, pages, want)
	}
	last := reg.Requests()[reg.Count("", "")-1]
	if !maps.EqualFunc(last.Query, url.Values{"n": {"2"}, "last": {"b"}}, slices.Equal) || last.Header.Get("Accept") != "application/json" {
		t.Errorf("got query %v, Accept %q", last.Query, last.Header.Get("Accept"))
	}
}

func TestReferrers(t *testing.T) {
	reg, r := start(t, upstream.Config{})
	subject := digest.FromBytes(manifest)
	signature := reg.AddManifest(repoName, "", ocispec.MediaTypeImageManifest, []byte(`{"artifactType":"a/sig","subject":{"digest":"`+subject+`"}}`))
	sbom := reg.AddManifest(repoName, "", ocispec.MediaTypeImageManifest, []byte(`{"artifactType":"a/sbom+x","subject":{"digest":"`+subject+`"}}`))
	tests := map[string]struct {
		query   url.Values
		filters string
		want    []digest.Digest
	}{
		"all":      {nil, "", []digest.Digest{signature, sbom}},
		"filtered": {url.Values{"artifactType": {"a/sbom+x"}}, "artifactType", []digest.Digest{sbom}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			l, err := r.Referrers(t.Context(), subject, test.query)
			if err != nil {
				t.Fatal(err)
			}
			var index ocispec.Index
			if err := json.Unmarshal(l.Body, &index); err != nil {
				t.Fatal(err)
			}
			var got []digest.Digest
			for _, m := range index.Manifests {
				got = append(got, m.Digest)
			}
			slices.Sort(got)
			slices.Sort(test.want)
			if !slices.Equal(got, test.want) || l.Filters != test.filters || l.ContentType != ocispec.MediaTypeImageIndex || l.Next != nil {
				t.Errorf("got %q, %+v", got, l)
			}
		})
	}
}

// No digest tells a list from the page of somebody in between.
func TestWhatIsNoListIsRefused(t *testing.T) {
	for _, question := range []string{"list tags", "list referrers"} {
		for _, body := range []string{"", "<html>please log in</html>", "[]", "null", `{"errors":[]}`, `{"tags":[`} {
			reg, r := start(t, upstream.Config{})
			reg.Fault(upstreamtest.Match{Path: page(question)}, func(http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, body) })
			})
			err := questions[question](t.Context(), r)
			wantError(t, err, 0)
			wantUnreachable(t, err, true)
			if n := reg.Count("", page(question)); n != 1 {
				t.Errorf("%s, %q: asked %d times, want once", question, body, n)
			}
		}
	}
}

func TestListOfNothing(t *testing.T) {
	for _, body := range []string{`{"name":"x","tags":null}`, `{"tags":[],"more":1}`, " {\"tags\" : [] }\n"} {
		reg, r := start(t, upstream.Config{})
		reg.Fault(upstreamtest.Match{Path: "/tags/"}, func(http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, body) })
		})
		if l, err := r.Tags(t.Context(), nil); err != nil || string(l.Body) != body {
			t.Errorf("got %+v, %v, want %s", l, err, body)
		}
	}
}

func TestNoReferrersThere(t *testing.T) {
	reg, r := start(t, upstream.Config{})
	reg.Fault(upstreamtest.Match{Path: "/referrers/"}, upstreamtest.Status(http.StatusNotFound, nil))
	err := questions["list referrers"](t.Context(), r)
	wantError(t, err, http.StatusNotFound)
	wantRefused(t, err, true)
}

func TestNextPageOfListing(t *testing.T) {
	reg, r := start(t, upstream.Config{})
	reg.Fault(upstreamtest.Match{Path: "/tags/"}, upstreamtest.SetHeader("Link", `<https://evil.example/x?last=z&n=9>; rel="next"`))
	l, err := r.Tags(t.Context(), nil)
	if err != nil || l.Next.Encode() != "last=z&n=9" {
		t.Errorf("got %+v, %v, want the query alone", l, err)
	}
}

func TestNextPage(t *testing.T) {
	tests := map[string]struct {
		links []string
		want  string
	}{
		"none":             {nil, ""},
		"usual":            {[]string{`</v2/a/tags/list?n=2&last=b>; rel="next"`}, "last=b&n=2"},
		"absolute":         {[]string{`<https://r.example/v2/a/tags/list?last=b>; rel="next"`}, "last=b"},
		"only a query":     {[]string{`<?last=b>;rel=next`}, "last=b"},
		"capitals":         {[]string{`</x?last=b> ; Rel = "NEXT"`}, "last=b"},
		"more parameters":  {[]string{`</x?last=b>; title="t"; rel="next"; x`}, "last=b"},
		"several values":   {[]string{`</x?last=b>; rel="last next"`}, "last=b"},
		"second of two":    {[]string{`</x?last=a>; rel="prev", </x?last=b>; rel="next"`}, "last=b"},
		"second header":    {[]string{`</x?last=a>; rel="prev"`, `</x?last=b>; rel="next"`}, "last=b"},
		"comma in URL":     {[]string{`</x?last=a,b>; rel="next"`}, "last=a%2Cb"},
		"encoded":          {[]string{`</x?last=a%26b&n=1>; rel="next"`}, "last=a%26b&n=1"},
		"comma in title":   {[]string{`</x?last=b>; title="a, b"; rel="next"`}, "last=b"},
		"prev":             {[]string{`</x?last=b>; rel="prev"`}, ""},
		"no rel":           {[]string{`</x?last=b>`}, ""},
		"rel nextish":      {[]string{`</x?last=b>; rel="nextish"`}, ""},
		"rel in the title": {[]string{`</x?last=b>; title="; rel=next"`}, ""},
		"no query":         {[]string{`</x>; rel="next"`}, ""},
		"no brackets":      {[]string{`/x?last=b; rel="next"`}, ""},
		"open bracket":     {[]string{`</x?last=b; rel="next"`}, ""},
		"not a URL":        {[]string{`<%zz?last=b>; rel="next", </x?last=c>; rel="next"`}, "last=c"},
		"empty":            {[]string{``, `,`, `<>`, `<>; rel=next`}, ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got := upstream.NextPage(test.links).Encode(); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func FuzzNextPage(f *testing.F) {
	f.Add(`</v2/a/tags/list?n=2&last=b>; rel="next"`, "")
	f.Add(`</x?a=1>; rel="prev", </x?b=2>; rel=next`, `<?c>; rel=next`)
	f.Add(`<,<>,"`, `>;rel`)
	f.Add(`</x?a=1>; title="a\", b"; rel=next`, `</x?a=1>; title="`)
	f.Fuzz(func(t *testing.T, a, b string) {
		next := upstream.NextPage([]string{a, b})
		if next == nil {
			return
		}
		if all := strings.ToLower(a + "\n" + b); len(next) == 0 || !strings.Contains(all, "rel") || !strings.Contains(all, "next") || !strings.Contains(all, "?") {
			t.Errorf("%q, %q: %v", a, b, next)
		}
		again, err := url.ParseQuery(next.Encode())
		if err != nil || again.Encode() != next.Encode() {
			t.Errorf("%v became %v, %v", next, again, err)
		}
	})
}
