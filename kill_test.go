package main

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"larder/handler/upstream/upstreamtest"
)

// TestKilledFiftyTimes kills larder at random moments under load, again and again
// on the same cache, while the tag moves to a new image for each life.
func TestKilledFiftyTimes(t *testing.T) {
	t.Parallel()
	const lives = 50
	w := prepareWorld(t)
	w.hub.Fault(upstreamtest.Match{Path: "/blobs/"}, upstreamtest.Rate(100<<20))
	huge := seeded(t, 1_000_000, large)
	var images []upstreamtest.Image
	for life := range lives {
		layers := [][]byte{seeded(t, life, usual), seeded(t, lives+life, 5<<20), huge}
		img := w.hub.AddImage(appName, "1", layers...)
		for i, layer := range img.Layers {
			w.layers[layer.Digest] = layers[i]
		}
		before := w.img
		w.img = img
		images = append(images, img)

		cache := ""
		if life > 0 {
			cache = w.cache
		}
		w.relive(t, cache)
		if life > 0 {
			path := appPath + "manifests/" + before.Manifest.String()
			if a := w.ask(path, ""); a.status != http.StatusOK || w.lie(path, "", a) != nil {
				t.Errorf("after %d kills: got %v for a manifest", life, a)
			}
			path = appPath + "blobs/" + before.Config.Digest.String()
			if a := w.ask(path, ""); a.status != http.StatusOK || w.lie(path, "", a) != nil {
				t.Errorf("after %d kills: got %v for a blob", life, a)
			}
		}
		w.killUnderLoad(t, before)
	}

	w.relive(t, w.cache)
	paths := make(map[string]bool) // the huge layer is in all of them
	for _, img := range images {
		w.img = img
		for _, path := range w.everything()[1:] {
			paths[path] = true
		}
	}
	for _, when := range []string{"in the end", "with upstream gone"} {
		for path := range paths {
			if a := w.ask(path, ""); a.status != http.StatusOK || w.lie(path, "", a) != nil {
				t.Errorf("%s: GET %s: got %v", when, path, a)
			}
		}
		w.hub.Stop()
	}
	w.wantRightCache(t)
	w.stop(t)
	wantNothingTemporary(t, w.cache)
}

// relive starts larder as a process, on the cache of an earlier one if there is
// one.
func (w *world) relive(t *testing.T, cache string) {
	t.Helper()
	var environ []string
	if cache != "" {
		environ = append(environ, "LARDER_CACHE_DIR="+cache)
	}
	w.exec(t, environ...)
}

// killUnderLoad has clients pull this image and what is left of the one before,
// whole and in parts, until larder is killed in the middle of it.
func (w *world) killUnderLoad(t *testing.T, before upstreamtest.Image) {
	t.Helper()
	killed := make(chan struct{})
	var clients sync.WaitGroup
	paths := w.everything()
	for _, layer := range before.Layers {
		paths = append(paths, appPath+"blobs/"+layer.Digest.String())
	}
	for i, path := range paths {
		ranges := ""
		if strings.Contains(path, "/blobs/") && w.layers[w.digestAt(path)] != nil && i%2 == 1 {
			ranges = fmt.Sprintf("%d-%d", 100<<10, 200<<10)
		}
		clients.Go(func() {
			for {
				select {
				case <-killed:
					return
				default:
				}
				if err := w.lie(path, ranges, w.ask(path, ranges)); err != nil {
					t.Errorf("GET %s: the client was fooled: %v", path, err)
				}
			}
		})
	}
	<-time.After(time.Duration(rand.N(120)) * time.Millisecond)
	if err := w.kill(); err != nil {
		t.Error(err)
	}
	close(killed)
	clients.Wait()
	<-w.done
}

// wantNothingTemporary checks that nothing unfinished is left in a cache all of
// which was pulled. A kill may leave the list of extents of a blob that has its
// name already, or of one that was about to be written: some bytes, and used by
// nobody.
func wantNothingTemporary(t *testing.T, cache string) {
	t.Helper()
	for _, dir := range []string{"tmp", "blobs/tmp", "manifests/tmp"} {
		left, err := filepath.Glob(filepath.Join(cache, dir, "*"))
		left = slices.DeleteFunc(left, func(file string) bool { return strings.HasSuffix(strings.TrimSuffix(file, "~"), ".extents") })
		if err != nil || len(left) > 0 {
			t.Errorf("left in %s: %v, %v", dir, left, err)
		}
	}
	entries, err := os.ReadDir(cache)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		switch e.Name() {
		case "version", "lock", "tmp", "blobs", "manifests":
		default:
			t.Errorf("left: %s", e.Name())
		}
	}
}
