package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestClockJumps starts larder when the clock has been set: what is in its cache
// seems to be from long ago, or from the future. A tag that has moved meanwhile is
// seen, and whatever a client gets is right.
func TestClockJumps(t *testing.T) {
	t.Parallel()
	const years = 10 * 365 * 24 * time.Hour
	for name, by := range map[string]time.Duration{
		"forwards by years": -years, "forwards by a minute": -time.Minute, "backwards by two hours": 2 * time.Hour, "backwards by years": years,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, []string{"LARDER_TAG_TTL=30s"}, small, usual)
			w.pull(t, "before")
			w.wantRightCache(t)
			w.stop(t)
			at := time.Now().Add(by)
			err := filepath.WalkDir(w.cache, func(file string, entry fs.DirEntry, err error) error {
				if err != nil {
					return err
				}
				return os.Chtimes(file, at, at)
			})
			if err != nil {
				t.Fatal(err)
			}
			w.restart(t, "LARDER_TAG_TTL=30s", "LARDER_SCRUB_RATE=0")
			w.pull(t, "after the jump")
			next := w.hub.AddImage(appName, "2", seeded(t, 7, small))
			w.stop(t)
			w.hub.AddManifest(appName, "1", "application/vnd.oci.image.manifest.v1+json", next.Body)
			if err := os.Chtimes(tagFile(t, w.cache), at, at); err != nil {
				t.Fatal(err)
			}
			w.restart(t, "LARDER_TAG_TTL=30s")
			w.wantTag(t, next, "miss")
			w.hub.AddManifest(appName, "1", "application/vnd.oci.image.manifest.v1+json", w.img.Body)
			w.stop(t)
			w.restart(t)
			w.recovers(t)
		})
	}
}

// tagFile is the only one.
func tagFile(t *testing.T, cache string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(cache, "manifests/tags/*/*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("tags are in %q (%v), want one file", files, err)
	}
	return files[0]
}
