package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

// alike are the headers in which larder's answers are upstream's. Others differ on
// purpose:
//
//   - Link leads to the same query, here;
//   - Cache-Status, Age, Warning, Via, X-Request-Id, X-Content-Type-Options and
//     Docker-Distribution-Api-Version are larder's own;
//   - an error has larder's message, in the form that the specification gives; its
//     status is upstream's.
var alike = []string{
	"Content-Type", "Content-Length", "Content-Range", "Accept-Ranges", "Docker-Content-Digest", "Etag",
	"OCI-Filters-Applied", "OCI-Subject",
}

// probe is one request, and what upstream answers to it directly.
type probe struct {
	method, path string
	header       http.Header
	status       int
	answer       http.Header
	body         []byte
	guessed      bool // of what only a manifest of an unknown type names
}

func (p *probe) String() string {
	return fmt.Sprintf("%s %s %s%s", p.method, p.path, p.header.Get("Range"), p.header.Get("If-None-Match"))
}

// send sends a request as it is, and reads all of the answer.
func send(t *testing.T, base string, p *probe) (int, http.Header, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), p.method, base+p.path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header = p.header.Clone()
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatalf("%s: %v", p, err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil && res.StatusCode < http.StatusBadRequest { // docker-registry promises a whole blob with a 416
		t.Fatalf("%s: %v", p, err)
	}
	return res.StatusCode, res.Header, body
}

// want asks larder the same and compares.
func (p *probe) want(t *testing.T, base string) {
	t.Helper()
	status, header, body := send(t, base, p)
	if status != p.status {
		t.Errorf("%s: status %d with %.200q, want %d", p, status, body, p.status)
		return
	}
	if status >= http.StatusBadRequest {
		if p.method == http.MethodGet {
			errorCode(t, body) // there is one
		}
		if got, want := header.Get("Content-Range"), p.answer.Get("Content-Range"); got != want {
			t.Errorf("%s: Content-Range %q, want %q", p, got, want)
		}
		return
	}
	if !bytes.Equal(body, p.body) {
		t.Errorf("%s: got %d bytes, want %d others", p, len(body), len(p.body))
	}
	for _, name := range alike {
		got, want := header.Values(name), p.answer.Values(name)
		if len(want) == 0 && (name == "Accept-Ranges" || status == http.StatusNotModified) {
			continue // upstream knows no ranges of manifests, or leaves out what a 304 should have
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %s is %q, want %q", p, name, got, want)
		}
	}
	if got, want := nextQuery(header), nextQuery(p.answer); got != want {
		t.Errorf("%s: the next page is %q, want %q", p, got, want)
	}
}

// nextQuery is the query of a Link.
func nextQuery(h http.Header) string {
	target, _, _ := strings.Cut(strings.TrimPrefix(h.Get("Link"), "<"), ">")
	u, err := url.Parse(target)
	if err != nil {
		return err.Error()
	}
	return u.Query().Encode()
}

// crawler finds all that can be asked of a registry, as clients do: from tags to
// manifests, their children, their referrers, and so on.
type crawler struct {
	base    string // of the registry
	full    bool   // it knows ranges of manifests, and HEADs of lists, and checks what it is asked
	probes  []*probe
	asked   map[string]*probe // by their String
	crawled map[string]bool
}

func newCrawler(base string, full bool) *crawler {
	return &crawler{base: base, full: full, asked: make(map[string]*probe), crawled: make(map[string]bool)}
}

// add asks the registry directly, unless it was asked already.
func (c *crawler) add(t *testing.T, method, path string, header ...string) *probe {
	t.Helper()
	p := &probe{method: method, path: path, header: http.Header{}}
	for pair := range slices.Chunk(header, 2) {
		p.header.Set(pair[0], pair[1])
	}
	if asked := c.asked[p.String()]; asked != nil {
		return asked
	}
	p.status, p.answer, p.body = send(t, c.base, p)
	c.probes, c.asked[p.String()] = append(c.probes, p), p
	return p
}

// once reports whether something is new.
func (c *crawler) once(what string) bool {
	if c.crawled[what] {
		return false
	}
	c.crawled[what] = true
	return true
}

func (c *crawler) repository(t *testing.T, name string) {
	t.Helper()
	tags := "/v2/" + name + "/tags/list"
	var all []string
	for _, p := range c.pages(t, tags) {
		var page struct{ Tags []string }
		if err := json.Unmarshal(p.body, &page); err != nil {
			t.Fatalf("%s: %v", p, err)
		}
		all = append(all, page.Tags...)
	}
	if len(all) == 0 {
		t.Fatalf("%s has no tags", name)
	}
	for _, query := range []string{"?n=3", "?n=7", "?n=2&last=" + all[len(all)/2], "?n=1000&last=zzz", "?n=1000", "?last=" + all[0]} {
		c.pages(t, tags+query)
	}
	for _, tag := range all {
		c.manifest(t, name, tag, "")
	}
	nobodys := digest.FromString("nobody has this").String()
	paths := []string{
		"/manifests/no-such-tag", "/manifests/" + nobodys, "/blobs/" + nobodys, "/referrers/" + nobodys,
		"/nowhere/to/go", "-not/tags/list", "-not/manifests/1", "-not/blobs/" + nobodys,
	}
	if c.full {
		paths = append(paths, malformed...)
	}
	for _, path := range paths {
		c.add(t, "GET", "/v2/"+name+path)
	}
}

// malformed is what nobody need be asked for.
var malformed = []string{"/blobs/sha256:1", "/blobs/latest", "/referrers/latest", "/tags/list?n=x"}

// pages follows the links of a list.
func (c *crawler) pages(t *testing.T, path string) (pages []*probe) {
	t.Helper()
	for range 1000 {
		p := c.add(t, "GET", path)
		if c.full {
			c.add(t, "HEAD", path)
		}
		pages = append(pages, p)
		next := nextQuery(p.answer)
		if next == "" {
			return pages
		}
		path, _, _ = strings.Cut(path, "?")
		path += "?" + next
	}
	t.Fatalf("%s has no last page", path)
	return nil
}

// document is what any kind of manifest may name.
type document struct {
	Subject   *named
	Config    *named
	Layers    []named
	Blobs     []named
	Manifests []named
	FSLayers  []struct{ BlobSum digest.Digest }
}

type named struct {
	MediaType, ArtifactType string
	Digest                  digest.Digest
}

// accept is what clients accept.
const accept = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json, */*"

// manifest crawls what reference, a tag or a digest, leads to.
func (c *crawler) manifest(t *testing.T, name, reference, from string) {
	t.Helper()
	if !c.once(name + " " + reference) {
		return
	}
	path := "/v2/" + name + "/manifests/" + reference
	p := c.add(t, "GET", path, "Accept", accept)
	if p.status != http.StatusOK {
		if from == "" {
			t.Fatalf("%s: %d", p, p.status)
		}
		return // not everything that is named is there
	}
	c.add(t, "HEAD", path, "Accept", accept)
	d := p.answer.Get("Docker-Content-Digest")
	c.add(t, "GET", path, "Accept", accept, "If-None-Match", `"`+d+`"`)
	if c.full {
		c.add(t, "GET", path, "Accept", accept, "Range", "bytes=1-")
	}
	c.manifest(t, name, d, reference)
	if reference != d {
		return
	}
	c.referrers(t, name, d)
	mediaType := p.answer.Get("Content-Type")
	var doc document
	if json.Unmarshal(p.body, &doc) != nil {
		return
	}
	blobs := slices.Concat(doc.Layers, doc.Blobs)
	if doc.Config != nil {
		blobs = append(blobs, *doc.Config)
	}
	for _, l := range doc.FSLayers {
		blobs = append(blobs, named{Digest: l.BlobSum})
	}
	for _, b := range blobs {
		c.blob(t, name, b.Digest, strings.Contains(mediaType, "unheard-of"))
	}
	for _, m := range doc.Manifests {
		c.manifest(t, name, string(m.Digest), d)
		if !strings.Contains(m.MediaType, "manifest") && !strings.Contains(m.MediaType, "index") {
			c.blob(t, name, m.Digest, true)
		}
	}
	if doc.Subject != nil {
		c.manifest(t, name, string(doc.Subject.Digest), d)
		c.referrers(t, name, string(doc.Subject.Digest))
	}
}

// referrers asks for those of a manifest, whether there are any or not: all, and of
// each type.
func (c *crawler) referrers(t *testing.T, name, d string) {
	t.Helper()
	if !c.once(name + " referrers " + d) {
		return
	}
	path := "/v2/" + name + "/referrers/" + d
	types := map[string]bool{"application/x.nobody-has-this": true}
	for _, p := range c.pages(t, path) {
		var index document
		if p.status == http.StatusOK && json.Unmarshal(p.body, &index) != nil {
			t.Fatalf("%s: %q", p, p.body)
		}
		for _, m := range index.Manifests {
			types[m.ArtifactType] = true
			c.manifest(t, name, string(m.Digest), d)
		}
	}
	for artifactType := range types {
		c.pages(t, path+"?artifactType="+url.QueryEscape(artifactType))
	}
	c.add(t, "GET", "/extensions/v2/"+name+"/signatures/"+d)
}

// blob asks for all of a blob and for parts of it.
func (c *crawler) blob(t *testing.T, name string, d digest.Digest, guessed bool) {
	t.Helper()
	if !c.once(name + " blob " + string(d)) {
		return
	}
	path := "/v2/" + name + "/blobs/" + string(d)
	probes := []*probe{c.add(t, "GET", path), c.add(t, "HEAD", path), c.add(t, "GET", path, "If-None-Match", `"`+string(d)+`"`)}
	ranges := []string{"bytes=0-", "bytes=0-0", "bytes=2-", "bytes=1-5", "bytes=4-1000000000", "bytes=1000000000-"}
	if len(probes[0].body) > 0 { // net/http sends "bytes 0--1/0" of nothing, larder nothing
		ranges = append(ranges, "bytes=-3")
	}
	for _, rng := range ranges {
		probes = append(probes, c.add(t, "GET", path, "Range", rng))
	}
	for _, p := range probes {
		p.guessed = guessed
	}
}

// compare asks larder all that upstream was asked: into an empty cache, again, with
// upstream gone, and so after a restart.
func (c *crawler) compare(t *testing.T, start func(t *testing.T, environ ...string) *larder, stop, restart func()) {
	t.Helper()
	orders := map[string]func(probes []*probe){
		"as found": func([]*probe) {},
		"shuffled": func(probes []*probe) {
			rand.New(rand.NewPCG(5, 9)).Shuffle(len(probes), func(i, j int) { probes[i], probes[j] = probes[j], probes[i] })
		},
	}
	for order, arrange := range orders {
		t.Run(order, func(t *testing.T) {
			restart()
			var environ []string
			if order == "shuffled" {
				environ = append(environ, "LARDER_LIST_TTL=0s") // so that lists are stale offline, and not fresh
			}
			l := start(t, environ...)
			probes := slices.Clone(c.probes)
			arrange(probes)
			for _, phase := range []string{"cold", "warm"} {
				t.Run(phase, func(t *testing.T) {
					for _, p := range probes {
						p.want(t, "http://"+l.addr)
					}
				})
			}
			stop()
			t.Run("upstream gone", func(t *testing.T) {
				for _, p := range known(probes, false) {
					p.want(t, "http://"+l.addr)
				}
			})
			l.stop(t)
			l = start(t, append(environ, "LARDER_CACHE_DIR="+l.cache)...)
			t.Run("upstream gone, after a restart", func(t *testing.T) {
				// In clients' order: until larder has found all that is on its disk, it
				// knows whose a blob is only if the manifest was asked for.
				for _, p := range known(c.probes, true) {
					p.want(t, "http://"+l.addr)
				}
			})
		})
	}
}

// known are the probes that can be answered without upstream: a no is never
// remembered. That a repository has a blob which no manifest of a known type names
// is not remembered either, when larder stops.
func known(probes []*probe, restarted bool) (list []*probe) {
	for _, p := range probes {
		no := p.status >= http.StatusBadRequest && p.status != http.StatusRequestedRangeNotSatisfiable
		for _, path := range append(malformed, "/nowhere/to/go") {
			no = no && !strings.HasSuffix(p.path, path)
		}
		if !no && (!restarted || !p.guessed) {
			list = append(list, p)
		}
	}
	return list
}

// summary says what was compared, for the reader of a log.
func (c *crawler) summary() string {
	kinds := make(map[string]int)
	for _, p := range c.probes {
		elements := strings.Split(p.path, "/")
		kinds[fmt.Sprintf("%s %s %d", p.method, cmp.Or(elements[len(elements)-2], "base"), p.status)]++
	}
	return fmt.Sprintf("%d requests: %v", len(c.probes), kinds)
}

func TestSameAsUpstream(t *testing.T) {
	t.Parallel()
	const name = "team/app"
	reg := generateRegistry(t, name)
	c := newCrawler(reg.URL, true)
	c.repository(t, name)
	t.Log(c.summary())
	start := func(t *testing.T, environ ...string) *larder { return startFaulty(t, environ, reg) }
	c.compare(t, start, reg.Stop, reg.Start)
}

// Debian's docker-registry has neither referrers nor sha512.
func TestSameAsDockerRegistry(t *testing.T) {
	t.Parallel()
	hub := newUpstream(t, "docker.io")
	hub.push(t, "library/app:image", bootableImage(t))
	hub.push(t, "library/app:flat", flatImage(t, 300_000))
	hub.push(t, "library/app:multi", multiArchIndex(t))
	hub.push(t, "library/app:nothing", newImage(t))
	for i := range 9 {
		hub.push(t, fmt.Sprintf("library/app:tag-%d", i), layeredImage(t, 1))
	}
	c := newCrawler("http://"+hub.addr, false)
	c.repository(t, "library/app")
	t.Log(c.summary())
	start := func(t *testing.T, environ ...string) *larder { return startLarder(t, []*testUpstream{hub}, environ...) }
	c.compare(t, start, hub.stop, func() {
		hub.stop()
		hub.start(t)
	})
}
