package main

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"larder/handler/upstream/upstreamtest"
)

// manifestFault is one way for upstream to send what a tag points at.
type manifestFault struct {
	spoil  func(w *world) (over func())
	cold   verdict // for who has nothing yet
	status int     // of a cold refusal; 0: any
	warm   verdict // for a tag that was asked for before
}

// spoiled is upstream with faults for a method, or for all.
func spoiled(method string, faults ...upstreamtest.Fault) func(w *world) func() {
	return func(w *world) func() {
		return w.hub.Fault(upstreamtest.Match{Method: method, Path: "/manifests/"}, faults...)
	}
}

// once is upstream with a fault that passes.
func once(fault upstreamtest.Fault) func(w *world) func() {
	return func(w *world) func() {
		return w.hub.Fault(upstreamtest.Match{Method: http.MethodGet, Path: "/manifests/", Times: 1}, fault)
	}
}

// headless is upstream that does not answer HEADs, so that the digest of what a
// GET gives is not known before.
func headless(fault upstreamtest.Fault) func(w *world) func() {
	return func(w *world) func() {
		heads, gets := spoiled("HEAD", upstreamtest.Status(405, nil))(w), spoiled("GET", fault)(w)
		return func() {
			heads()
			gets()
		}
	}
}

// replaced is a tag that points at another document.
func replaced(mediaType, body string) func(w *world) func() {
	return func(w *world) func() {
		w.hub.AddManifest(appName, "1", mediaType, []byte(body))
		return func() { w.hub.AddManifest(appName, "1", ocispec.MediaTypeImageManifest, w.img.Body) }
	}
}

// stopped is an upstream that nobody can reach.
func stopped(w *world) func() {
	w.hub.Stop()
	return w.hub.Start
}

// wrongManifests are no manifests, or not those that were asked for. A tag that
// was right before stays what it was.
func wrongManifests() map[string]manifestFault {
	const (
		image, index = ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex
		some         = `{"mediaType":"application/octet-stream","size":1,"digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}`
	)
	set := upstreamtest.SetHeader
	table := map[string]manifestFault{
		"wrong byte":              {spoil: spoiled("GET", upstreamtest.FlipByte(100))},
		"wrong last byte":         {spoil: spoiled("GET", upstreamtest.FlipByte(397))},
		"a space more":            {spoil: spoiled("GET", upstreamtest.Extend(1))},
		"empty":                   {spoil: spoiled("GET", upstreamtest.Truncate(0))},
		"cut":                     {spoil: spoiled("GET", upstreamtest.CutAfter(100))},
		"cut, no length":          {spoil: spoiled("GET", upstreamtest.NoContentLength(), upstreamtest.CutAfter(100))},
		"short, no length":        {spoil: spoiled("GET", upstreamtest.NoContentLength(), upstreamtest.Truncate(100))},
		"endless":                 {spoil: spoiled("GET", upstreamtest.NoContentLength(), upstreamtest.Extend(1<<40))},
		"says it is an index":     {spoil: spoiled("", set("Content-Type", index))},
		"says it is text":         {spoil: spoiled("", set("Content-Type", "text/html"))},
		"image and index":         {spoil: replaced(image, `{"schemaVersion":2,"config":`+some+`,"layers":[],"manifests":[]}`)},
		"index and image":         {spoil: replaced(index, `{"schemaVersion":2,"manifests":[`+some+`],"layers":[`+some+`]}`)},
		"index with a config":     {spoil: replaced(index, `{"schemaVersion":2,"manifests":[`+some+`],"config":`+some+`}`)},
		"body says index":         {spoil: replaced(image, `{"schemaVersion":2,"mediaType":"`+index+`","manifests":[]}`)},
		"login page":              {spoil: replaced("text/html", `<html>Please sign in</html>`)},
		"login page as manifest":  {spoil: replaced(image, `<html>Please sign in</html>`)},
		"JSON, no object":         {spoil: replaced(image, `[1,2,3]`)},
		"JSON as text":            {spoil: replaced("text/plain", `{"schemaVersion":2}`)},
		"no JSON, no end":         {spoil: replaced(image, `{"schemaVersion":2`)},
		"redirect to a file":      {spoil: spoiled("GET", upstreamtest.Redirect("file:///etc/passwd"))},
		"redirect for ever":       {spoil: spoiled("GET", upstreamtest.Redirect("?again"))},
		"GET without an answer":   {spoil: spoiled("GET", upstreamtest.ResetConnection())},
		"GET is 500":              {spoil: spoiled("GET", upstreamtest.Status(500, nil))},
		"headers without an end":  {spoil: spoiled("GET", set("X-Long", strings.Repeat("x", 80<<10)))},
		"compressed and unasked":  {spoil: spoiled("GET", set("Content-Encoding", "gzip"), upstreamtest.FlipByte(0))},
		"nested deeper than JSON": {spoil: replaced(image, `{"config":`+strings.Repeat("[", 20_000)+`}`)},
	}
	table["wrong byte, no HEADs"] = manifestFault{spoil: headless(upstreamtest.FlipByte(100))}
	table["a space more, no HEADs"] = manifestFault{spoil: headless(upstreamtest.Extend(1))}
	for name, f := range table {
		f.cold, f.status, f.warm = refused, http.StatusBadGateway, served
		table[name] = f
	}
	return table
}

// silentUpstreams can't answer, which leaves a tag what it was, or say no, which
// ends it.
func silentUpstreams() map[string]manifestFault {
	status := func(code int, header http.Header) func(w *world) func() {
		return spoiled("", upstreamtest.Status(code, header))
	}
	later := http.Header{"Retry-After": {"1"}}
	return map[string]manifestFault{
		"gone":            {spoil: stopped, cold: refused, status: 502, warm: served},
		"no answer":       {spoil: spoiled("", upstreamtest.ResetConnection()), cold: refused, status: 502, warm: served},
		"500":             {spoil: status(500, nil), cold: refused, status: 502, warm: served},
		"502":             {spoil: status(502, nil), cold: refused, status: 502, warm: served},
		"503":             {spoil: status(503, nil), cold: refused, status: 502, warm: served},
		"503, come later": {spoil: status(503, later), cold: refused, status: 502, warm: served},
		"504":             {spoil: status(504, nil), cold: refused, status: 504, warm: served},
		"429":             {spoil: status(429, later), cold: refused, status: 429, warm: served},
		"401":             {spoil: status(401, nil), cold: refused, status: 403, warm: refused},
		"403":             {spoil: status(403, nil), cold: refused, status: 403, warm: refused},
		"404":             {spoil: status(404, nil), cold: refused, status: 404, warm: refused},
	}
}

// unusualUpstreams answer so that it can be made use of.
func unusualUpstreams() map[string]manifestFault {
	set := upstreamtest.SetHeader
	table := map[string]manifestFault{
		"HEAD is 405":            {spoil: spoiled("HEAD", upstreamtest.Status(405, nil))},
		"HEAD is 501":            {spoil: spoiled("HEAD", upstreamtest.Status(501, nil))},
		"HEAD without digest":    {spoil: spoiled("HEAD", upstreamtest.DropHeader("Docker-Content-Digest"))},
		"HEAD without length":    {spoil: spoiled("HEAD", upstreamtest.NoContentLength())},
		"HEAD with a bad digest": {spoil: spoiled("HEAD", set("Docker-Content-Digest", "latest"))},
		"no digest anywhere":     {spoil: spoiled("", upstreamtest.DropHeader("Docker-Content-Digest"))},
		"no length anywhere":     {spoil: spoiled("", upstreamtest.NoContentLength())},
		"no Content-Type":        {spoil: spoiled("", upstreamtest.DropHeader("Content-Type"))},
		"charset":                {spoil: spoiled("", set("Content-Type", ocispec.MediaTypeImageManifest+"; charset=utf-8"))},
		"cut, then fine":         {spoil: once(upstreamtest.CutAfter(100))},
		"reset, then fine":       {spoil: once(upstreamtest.ResetAfter(100))},
		"no answer, then fine":   {spoil: once(upstreamtest.ResetConnection())},
		"longer than promised":   {spoil: spoiled("GET", upstreamtest.Overrun(10))},
	}
	for _, code := range []int{500, 502, 503} {
		table[fmt.Sprint(code, ", then fine")] = manifestFault{spoil: once(upstreamtest.Status(code, nil))}
	}
	for name, f := range table {
		f.cold, f.warm = served, served
		table[name] = f
	}
	return table
}

func TestUpstreamSpoilsAManifest(t *testing.T) {
	t.Parallel()
	for kind, table := range map[string]map[string]manifestFault{
		"wrong": wrongManifests(), "silent": silentUpstreams(), "unusual": unusualUpstreams(),
	} {
		for name, f := range table {
			t.Run(kind+"/"+name+"/cold", func(t *testing.T) { f.runCold(t) })
			t.Run(kind+"/"+name+"/warm", func(t *testing.T) { f.runWarm(t) })
		}
	}
}

func (f manifestFault) runCold(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil, small)
	over := f.spoil(w)
	for _, a := range w.crowd(3, appTag, "") {
		w.notFooled(t, appTag, "", a)
		if a.whole() != (f.cold == served) || f.status != 0 && a.status != f.status {
			t.Errorf("got %v, want it %s, %d", a, f.cold, f.status)
		}
	}
	for _, r := range w.hub.Requests() {
		if r.Bytes > 16<<20 {
			t.Errorf("%d bytes were taken of %s", r.Bytes, r.Path)
		}
	}
	over()
	w.recovers(t)
}

// runWarm has clients ask for what was cached before. By digest it is there,
// whatever upstream says of the tag.
func (f manifestFault) runWarm(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil, small)
	w.pull(t, "before the fault")
	over := f.spoil(w)
	for _, a := range w.crowd(3, appTag, "") {
		w.notFooled(t, appTag, "", a)
		if a.whole() != (f.warm == served) {
			t.Errorf("got %v, want it %s", a, f.warm)
		}
	}
	for _, path := range w.everything()[1:] {
		if a := w.ask(path, ""); a.status != http.StatusOK || w.lie(path, "", a) != nil {
			t.Errorf("by digest: got %v, want all of it", a)
		}
	}
	over()
	w.recovers(t)
}

// TestManifestSizes has upstream send more than a manifest's usual 4 MiB.
func TestManifestSizes(t *testing.T) {
	t.Parallel()
	const limit = 8 << 20
	for name, test := range map[string]struct {
		size int
		want int
	}{
		"above 4 MiB":        {4<<20 + 1, http.StatusOK},
		"at the limit":       {limit, http.StatusOK},
		"one above":          {limit + 1, http.StatusBadGateway},
		"far above":          {4 * limit, http.StatusBadGateway},
		"smaller than a few": {2, http.StatusOK},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, nil, small)
			body := append([]byte("{"), bytes.Repeat([]byte(" "), test.size-2)...)
			d := w.hub.AddManifest(appName, "2", ocispec.MediaTypeImageManifest, append(body, '}'))
			for _, noLength := range []bool{false, true} {
				if noLength {
					w.hub.Fault(upstreamtest.Match{Method: http.MethodGet, Path: "/manifests/"}, upstreamtest.NoContentLength())
				}
				for _, path := range []string{appPath + "manifests/2", appPath + "manifests/" + d.String()} {
					a := w.ask(path, "")
					if a.status != test.want || test.want == http.StatusOK && d.Algorithm().FromBytes(a.body) != d {
						t.Errorf("no length %v: got %v, want %d", noLength, a, test.want)
					}
				}
			}
			for _, r := range w.hub.Requests() {
				if r.Bytes > 2*limit {
					t.Errorf("%d bytes were taken of %s", r.Bytes, r.Path)
				}
			}
			w.recovers(t)
		})
	}
}
