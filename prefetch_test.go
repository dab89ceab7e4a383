package main

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"larder/handler/upstream/upstreamtest"
)

// prefetched is what became of blobs that were fetched before they were asked for.
func (c *controlled) prefetched(t *testing.T) string {
	t.Helper()
	_, metrics := ask(t, http.DefaultClient, "GET", "http://"+c.admin+"/metrics", "", "")
	var s []string
	for line := range strings.Lines(metrics) {
		if line, ok := strings.CutPrefix(line, "larder_prefetched_blobs_total{outcome="); ok && !strings.HasSuffix(line, " 0\n") {
			s = append(s, strings.NewReplacer(`"`, "", "}", "", "\n", "").Replace(line))
		} else if line, ok := strings.CutPrefix(line, "larder_prefetches "); ok && line != "0\n" {
			s = append(s, "running "+strings.TrimSpace(line))
		}
	}
	return strings.Join(s, ", ")
}

// TestAPullBeginsWithItsManifest waits for blobs that no client has asked for.
func TestAPullBeginsWithItsManifest(t *testing.T) {
	t.Parallel()
	c := newControlled(t, []string{"LARDER_PREFETCH=manifest"}, usual, small)
	gate := make(chan struct{})
	c.hub.Fault(upstreamtest.Match{Path: c.img.Layers[0].Digest.String()}, upstreamtest.GateAfter(100<<10, gate))
	index, _ := addIndex(t, c.hub, "library/multi", "1", "linux/amd64")
	c.want(t, "/v2/library/multi/manifests/1", http.StatusOK, index)
	if resp, err := http.Head("http://" + c.addr + appTag); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatal(resp, err)
	}
	if got := c.prefetched(t); got != "" {
		t.Errorf("for an index and a HEAD: %s", got)
	}
	c.want(t, appTag, http.StatusOK, c.img.Body)
	eventually(t, "blobs that nobody has asked for", func() bool { return c.prefetched(t) == "complete 2, running 1" })
	joined := make(chan answer, 1)
	go func() { joined <- c.ask(c.blob(), "") }()
	eventually(t, "the client at the blob that is on its way", func() bool {
		_, metrics := ask(t, http.DefaultClient, "GET", "http://"+c.admin+"/metrics", "", "")
		return strings.Contains(metrics, "\nlarder_requests_in_flight{kind=\"blob\"} 1\n")
	})
	close(gate)
	a := <-joined
	c.notFooled(t, c.blob(), "", a)
	if status := a.header.Get("Cache-Status"); a.status != http.StatusOK || !strings.HasSuffix(status, "detail=join") {
		t.Errorf("got %v, %q", a, status)
	}
	c.pull(t, "as clients do")
	c.want(t, appTag, http.StatusOK, c.img.Body) // all is there now
	eventually(t, "the end", func() bool { return c.prefetched(t) == "complete 2, joined 1" })
	for _, path := range c.everything()[2:] {
		if n := c.hub.Count("GET", path); n != 1 {
			t.Errorf("upstream was asked %d times for %s", n, path)
		}
	}
	c.recovers(t)
}

// TestManifestThatNamesNonsense is nothing to prefetch, and served as it is.
func TestManifestThatNamesNonsense(t *testing.T) {
	t.Parallel()
	c := newControlled(t, []string{"LARDER_PREFETCH=manifest"}, usual, small)
	c.pull(t, "a cache with something in it")
	for i, name := range []string{"", "x", "latest:", ":", "sha256:", "sha256:zz", "sha1:" + strings.Repeat("0", 40), "sha512:" + strings.Repeat("0", 200)} {
		body := fmt.Appendf(nil, `{"schemaVersion":2,"config":{"digest":%q,"size":1},"layers":[{"digest":%q,"size":-1}]}`, name, name)
		tag := fmt.Sprint("nonsense", i)
		c.hub.AddManifest("library/app", tag, ocispec.MediaTypeImageManifest, body)
		c.want(t, "/v2/library/app/manifests/"+tag, http.StatusOK, body)
	}
}

// TestWhatNobodyAsksForIsGivenUp has one layer that never comes, and a client that
// comes for another.
func TestWhatNobodyAsksForIsGivenUp(t *testing.T) {
	t.Parallel()
	c := newControlled(t, []string{"LARDER_PREFETCH=manifest", "LARDER_PREFETCH_TIMEOUT=5s"}, usual, usual+1)
	gate := make(chan struct{})
	remove := c.hub.Fault(upstreamtest.Match{Path: "/blobs/"}, upstreamtest.GateAfter(100<<10, gate))
	c.want(t, appTag, http.StatusOK, c.img.Body)
	second := appPath + "blobs/" + c.img.Layers[1].Digest.String()
	joined := make(chan answer, 1)
	go func() { joined <- c.ask(second, "") }()
	eventually(t, "the layer to be given up", func() bool { return c.prefetched(t) == "complete 1, joined 1, unused 1" })
	eventually(t, "that to show", func() bool { return c.fills(t) == 1 })
	remove()
	close(gate)
	if a := <-joined; a.status != http.StatusOK || len(a.body) != usual+1 {
		t.Errorf("who has come in time got %v", a)
	}
	c.recovers(t)
	if n := sentOf(c.hub, c.blob()); n != usual {
		t.Errorf("upstream sent %d bytes of a layer of %d", n, usual)
	}
}

// TestPrefetchFails takes upstream away behind a manifest, and has no room for what
// is fetched. Clients do not notice.
func TestPrefetchFails(t *testing.T) {
	t.Parallel()
	t.Run("upstream gone", func(t *testing.T) {
		c := newControlled(t, []string{"LARDER_PREFETCH=manifest"}, usual, small)
		c.hub.Fault(upstreamtest.Match{Path: "/blobs/", Times: 6}, upstreamtest.ResetConnection())
		c.want(t, appTag, http.StatusOK, c.img.Body)
		eventually(t, "the failure", func() bool { return strings.Contains(c.prefetched(t), "failed") })
		eventually(t, "the end", func() bool { return !strings.Contains(c.prefetched(t), "running") })
		c.recovers(t)
	})
	t.Run("no room", func(t *testing.T) {
		c := newControlled(t, []string{"LARDER_PREFETCH=manifest", "LARDER_MAX_SIZE=200KiB"}, usual, small)
		c.want(t, appTag, http.StatusOK, c.img.Body)
		eventually(t, "the failure", func() bool { return c.prefetched(t) == "complete 2, failed 1" })
		c.pull(t, "without room")
	})
}

// BenchmarkPrefetch pulls an image as containerd does, its config first and then
// three layers at a time, from an upstream that answers after 100 ms.
func BenchmarkPrefetch(b *testing.B) {
	for _, kind := range []string{"off", "manifest"} {
		b.Run(kind, func(b *testing.B) {
			hub := upstreamtest.New(b)
			hub.Fault(upstreamtest.Match{}, upstreamtest.Latency(100*time.Millisecond))
			l := startLarder(b, nil, "LARDER_UPSTREAMS=docker.io="+hub.URL, "LARDER_PREFETCH="+kind)
			fetch := func(path string) {
				resp, err := http.Get("http://" + l.addr + path)
				if err != nil {
					b.Error(err)
					return
				}
				defer resp.Body.Close()
				if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
					b.Error(resp.Status, err)
				}
			}
			asked := 0
			for n := 0; b.Loop(); n++ {
				b.StopTimer()
				var layers [][]byte
				for i := range 9 {
					layer, err := io.ReadAll(upstreamtest.Seeded(uint64(n*100+i), 1<<20))
					if err != nil {
						b.Fatal(err)
					}
					layers = append(layers, layer)
				}
				img := hub.AddImage("library/app", fmt.Sprint(n), layers...)
				hub.Reset()
				b.StartTimer()
				fetch("/v2/library/app/manifests/" + fmt.Sprint(n))
				fetch("/v2/library/app/blobs/" + img.Config.Digest.String())
				queue := make(chan digest.Digest, len(img.Layers))
				for _, d := range img.Layers {
					queue <- d.Digest
				}
				close(queue)
				var clients sync.WaitGroup
				for range 3 {
					clients.Go(func() {
						for d := range queue {
							fetch("/v2/library/app/blobs/" + d.String())
						}
					})
				}
				clients.Wait()
				asked += hub.Count("GET", "/blobs/")
			}
			b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms/pull")
			b.ReportMetric(float64(asked)/float64(b.N), "blobs-asked")
		})
	}
}
