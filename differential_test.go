package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
)

// alike are the headers in which larder's answers are upstream's. Others differ on
// purpose:
//
//   - Link leads to the same query, here;
//   - Cache-Status, Server-Timing, Age, Warning, Via, X-Request-Id, X-Content-Type-Options and
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
