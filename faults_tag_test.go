package main

import (
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"larder/handler/upstream/upstreamtest"
)

// wantTag checks that the tag is answered with the image that it means now.
func (w *world) wantTag(t *testing.T, img upstreamtest.Image, detail string) {
	t.Helper()
	a := w.ask(appTag, "")
	if a.status != http.StatusOK || digest.FromBytes(a.body) != img.Manifest || !strings.HasSuffix(a.header.Get("Cache-Status"), "detail="+detail) {
		t.Errorf("got %v and %q, want %s and %s", a, a.header.Get("Cache-Status"), img.Manifest, detail)
	}
	if stale := a.header.Get("Warning") != ""; stale != (detail == "stale") {
		t.Errorf("got warning %q with %s", a.header.Get("Warning"), detail)
	}
}

func TestTagIsFreshAtOnceWhenUpstreamIsBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil, small)
	w.wantTag(t, w.img, "miss")
	w.hub.Stop()
	w.wantTag(t, w.img, "stale")
	w.hub.Start()
	next := w.hub.AddImage(appName, "1", seeded(t, 7, small))
	w.wantTag(t, next, "miss")
	w.hub.AddManifest(appName, "1", "application/vnd.oci.image.manifest.v1+json", w.img.Body)
	w.wantTag(t, w.img, "revalidated")
	w.hub.Stop()
	w.wantTag(t, w.img, "stale")
}

// TestDeletedTagStaysDeleted asks for it when upstream can't say so again.
func TestDeletedTagStaysDeleted(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(w *world) (over func()){
		"404": func(w *world) func() { w.hub.Delete(appName, "1"); return func() {} },
		"403": func(w *world) func() {
			return w.hub.Fault(upstreamtest.Match{Path: "/manifests/"}, upstreamtest.Status(http.StatusForbidden, nil))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, nil, small)
			w.pull(t, "before")
			over := end(w)
			if a := w.ask(appTag, ""); a.status < 403 || a.status > 404 {
				t.Errorf("got %v, want %s", a, name)
			}
			over()
			w.hub.Stop()
			if a := w.ask(appTag, ""); a.status != http.StatusBadGateway {
				t.Errorf("with upstream gone: got %v, want 502", a)
			}
			for _, path := range w.everything()[1:] {
				if a := w.ask(path, ""); a.status != http.StatusOK || w.lie(path, "", a) != nil {
					t.Errorf("by digest: got %v, want all of it", a)
				}
			}
			wantTrueManifests(t, w.cache)
		})
	}
}

// TestTagThatFlipsDuringAHerd moves a tag to and fro while many ask for it.
// Each of them gets one of the images, whole, and says which.
func TestTagThatFlipsDuringAHerd(t *testing.T) {
	t.Parallel()
	const clients, each = 20, 10
	w := newWorld(t, nil, small)
	other := w.hub.AddImage(appName, "2", seeded(t, 7, small))
	bodies := map[digest.Digest][]byte{w.img.Manifest: w.img.Body, other.Manifest: other.Body}
	var herd sync.WaitGroup
	for range clients {
		herd.Go(func() {
			for range each {
				a := w.ask(appTag, "")
				d := digest.Digest(a.header.Get("Docker-Content-Digest"))
				if a.status != http.StatusOK || string(bodies[d]) != string(a.body) || len(a.body) == 0 {
					t.Errorf("got %v as %s", a, d)
				}
			}
		})
	}
	over := make(chan struct{})
	go func() { herd.Wait(); close(over) }()
	for flip := 0; ; flip++ {
		body := w.img.Body
		if flip%2 == 0 {
			body = other.Body
		}
		w.hub.AddManifest(appName, "1", "application/vnd.oci.image.manifest.v1+json", body)
		select {
		case <-over:
			w.hub.AddManifest(appName, "1", "application/vnd.oci.image.manifest.v1+json", w.img.Body)
			w.recovers(t)
			return
		default:
			w.ask(appTag, "")
		}
	}
}

// TestOneOfSeveralObjectsFails has upstream fail for each object of an image in
// turn. The others are had all the same.
func TestOneOfSeveralObjectsFails(t *testing.T) {
	t.Parallel()
	for i, name := range []string{"tag", "manifest", "config", "first layer", "second layer", "third layer"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, nil, small, usual, 2<<20)
			spoiled := w.everything()[i]
			over := w.hub.Fault(upstreamtest.Match{Path: spoiled}, upstreamtest.Status(http.StatusServiceUnavailable, nil))
			for _, path := range w.everything() {
				a := w.ask(path, "")
				w.notFooled(t, path, "", a)
				// A tag is fetched by the digest that it points at.
				if failed := a.status != http.StatusOK; failed != (path == spoiled || i == 1 && path == appTag) {
					t.Errorf("GET %s: got %v while only %s fails", path, a, spoiled)
				}
			}
			over()
			w.recovers(t)
		})
	}
}
