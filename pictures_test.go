package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"larder/handler/upstream/upstreamtest"
)

// TestPictures takes those in docs/screenshots anew, of a larder with something of
// everything, if LARDER_TEST_SCREENSHOTS says where to. It is busy before for as long as
// LARDER_TEST_SCREENSHOTS_AFTER says, so that the charts of the last hour have something.
func TestPictures(t *testing.T) {
	dir := os.Getenv("LARDER_TEST_SCREENSHOTS")
	if dir == "" {
		t.Skip("LARDER_TEST_SCREENSHOTS is not set")
	}
	f := newFleet(t, "s3")
	for name, value := range map[string]string{"RateLimit-Limit": "200;w=21600", "RateLimit-Remaining": "163;w=21600", "Docker-RateLimit-Source": "203.0.113.7"} {
		f.hub.Fault(upstreamtest.Match{Path: "/manifests/"}, upstreamtest.SetHeader(name, value))
	}
	f.hub.RequireBearer("", "", 0)
	s := &shop{fleet: f, base: seeded(t, 1, 3<<20), images: make(map[string]upstreamtest.Image)}
	for i, ref := range []string{"library/alpine:3.20", "library/alpine:3.21", "library/nginx:1.29", "library/redis:8", "grafana/grafana:12.1", "prom/prometheus:v3.5"} {
		s.add(t, ref, i+10)
	}
	other := f.join(t)
	s.take(t, other, "library/nginx:1.29")
	other.shared(t)
	c := f.join(t, "LARDER_UPSTREAMS=docker.io="+f.hub.URL+",ghcr.io="+f.hub.URL+",quay.io=http://127.0.0.1:1",
		"LARDER_MAX_SIZE=64MiB", "LARDER_FETCH_CONNECTIONS=1", "LARDER_USERNAME=alice", "LARDER_PASSWORD=secret")
	call[any](t, c, http.MethodPut, "/pin/docker.io/library/alpine:3.20", http.StatusOK)
	s.take(t, c, "")
	busy, _ := time.ParseDuration(os.Getenv("LARDER_TEST_SCREENSHOTS_AFTER"))
	s.keepBusy(t, c, busy)
	s.add(t, "library/redis:8", 99) // it moves
	s.take(t, c, "library/")
	for range 2 {
		c.ask("/v2/quay.io/org/tool/manifests/2", "")
	}
	c.shared(t)
	release := s.startFills(t, c)
	defer release()

	b := newBrowser(t)
	b.open(t, "http://"+c.admin+"/")
	b.until(t, `document.querySelectorAll("#fills svg").length === 2 && document.querySelectorAll("#fills rect").length > 2`)
	b.shoot(t, dir, "status", 1560)
	b.open(t, "http://"+c.admin+"/images?q=library/")
	b.until(t, `document.querySelectorAll("table.images tbody tr").length > 5`)
	eval[bool](t, b, `document.querySelectorAll(".moves, details ul").forEach((list) => { list.parentElement.open = true; }) === undefined`)
	b.shoot(t, dir, "images", 900)
}

// shop is a fleet whose registry has images with a layer in common, by their references.
type shop struct {
	*fleet
	base   []byte
	images map[string]upstreamtest.Image
}

func (s *shop) add(t *testing.T, ref string, seed int) {
	t.Helper()
	name, tag, _ := strings.Cut(ref, ":")
	s.images[ref] = s.hub.AddImage(name, tag, s.base, seeded(t, seed, (seed*7%5+1)<<20))
}

// take pulls the images whose references begin so.
func (s *shop) take(t *testing.T, c *controlled, prefix string) {
	t.Helper()
	for ref, img := range s.images {
		if name, tag, _ := strings.Cut(ref, ":"); strings.HasPrefix(ref, prefix) {
			c.takeImage(t, name, tag, img)
		}
	}
}

// keepBusy pulls some images every other second. One of them has a successor now and then.
func (s *shop) keepBusy(t *testing.T, c *controlled, busy time.Duration) {
	t.Helper()
	again := time.NewTicker(2 * time.Second)
	defer again.Stop()
	for begun, i := time.Now(), 0; time.Since(begun) < busy; i++ {
		if i%9 == 0 {
			delete(s.images, fmt.Sprintf("org/app:1.%d", i/9-1))
			s.add(t, fmt.Sprintf("org/app:1.%d", i/9), 1000+i)
		}
		for ref := range s.images {
			if rand.Float64() < 0.3+0.25*math.Sin(time.Since(begun).Minutes()/3) {
				s.take(t, c, ref)
			}
		}
		<-again.C
	}
}

// startFills has two blobs begin to come, one of them in parts, and stop until release.
func (s *shop) startFills(t *testing.T, c *controlled) (release func()) {
	t.Helper()
	half := s.hub.AddImage("library/rust", "1.90", seeded(t, 50, 16<<20), seeded(t, 51, 12<<20))
	c.want(t, "/v2/library/rust/manifests/1.90", http.StatusOK, nil)
	held := make(chan struct{})
	s.hub.Fault(upstreamtest.Match{Path: half.Layers[0].Digest.String(), Times: 1}, upstreamtest.GateAfter(6<<20, held))
	s.hub.Fault(upstreamtest.Match{Path: half.Layers[1].Digest.String()}, upstreamtest.GateAfter(1<<20, held))
	for _, n := range []int64{5 << 20, 1 << 20} {
		sip(t, c, "/v2/library/rust/blobs/"+half.Layers[0].Digest.String(), n)
	}
	var parts sync.WaitGroup
	for _, from := range []int{0, 5 << 20, 9 << 20} {
		parts.Go(func() {
			c.ask("/v2/library/rust/blobs/"+half.Layers[1].Digest.String(), fmt.Sprintf("%d-%d", from, from+2<<20))
		})
	}
	return func() {
		close(held)
		parts.Wait()
	}
}

// takeImage pulls an image.
func (c *controlled) takeImage(t *testing.T, name, tag string, img upstreamtest.Image) {
	t.Helper()
	c.want(t, "/v2/"+name+"/manifests/"+tag, http.StatusOK, img.Body)
	for range 2 {
		for _, blob := range append(img.Layers, img.Config) {
			c.want(t, "/v2/"+name+"/blobs/"+blob.Digest.String(), http.StatusOK, nil)
		}
	}
}
