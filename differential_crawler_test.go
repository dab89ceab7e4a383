package main

import (
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

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
