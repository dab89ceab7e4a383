package manifestcache_test

import (
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"larder/blobcache/memory"
	"larder/manifestcache"
)

// recalled is a cache that has a manifest in memory.
func recalled(t *testing.T, dir string, cfg manifestcache.Config) (*manifestcache.Cache, *repository, document) {
	t.Helper()
	c, _ := running(t, dir, cfg)
	up := newRepository("docker.io/library/alpine")
	doc := up.push(newDocument(`{"first":1}`), "latest")
	wantTag(t, c, up, "latest", doc, manifestcache.Miss)
	if n := cfg.Memory.Stats().Entries; n != 1 {
		t.Errorf("%d manifests in memory, want 1", n)
	}
	return c, up, doc
}

func TestManifestIsAnsweredFromMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, cfg := t.TempDir(), config()
		cfg.Memory = memory.New(1 << 20)
		c, up, doc := recalled(t, dir, cfg)
		path := manifestPath(dir, doc.digest)
		damages := []func() error{
			func() error { return os.WriteFile(path, []byte("something else"), 0o600) },
			func() error { return os.Remove(path) },
		}
		for i, damage := range damages {
			if err := damage(); err != nil {
				t.Fatal(err)
			}
			wantDigest(t, c, up, doc, manifestcache.Hit)
			wantTag(t, c, up, "latest", doc, manifestcache.Revalidated)
			if s := c.Stats(); s.Damaged != min(int64(i), 1) || s.Entries != 1 {
				t.Errorf("%d damaged, %d entries; want %d, 1", s.Damaged, s.Entries, i)
			}
			time.Sleep(time.Hour) // a use is recorded, and the file read
			wantDigest(t, c, up, doc, manifestcache.Miss)
			if _, err := os.Stat(path); err != nil {
				t.Errorf("the file is not healed: %v", err)
			}
		}
	})
}

func TestManifestInMemoryGoesWithItsFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config()
		cfg.TTL, cfg.Memory = 10*time.Hour, memory.New(1<<20)
		c, up, doc := recalled(t, t.TempDir(), cfg)
		time.Sleep(50 * time.Minute)
		before := cfg.Memory.Stats().Hits
		wantDigest(t, c, up, doc, manifestcache.Hit)
		if got := cfg.Memory.Stats().Hits - before; got != 1 {
			t.Errorf("%d hits in memory, want 1", got)
		}
		time.Sleep(9*time.Hour + 30*time.Minute) // since that use
		synctest.Wait()
		if s := c.Stats(); s.Entries != 1 || s.Expired != 0 {
			t.Errorf("%d manifests, %d expired; want 1, 0", s.Entries, s.Expired)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := cfg.Memory.Stats().Entries; n != 0 {
			t.Errorf("%d manifests in memory that have expired", n)
		}
		wantDigest(t, c, up, doc, manifestcache.Miss)
	})
}

// No digest covers the media type: memory has to follow it.
func TestManifestInMemoryIsOfTheTypeThatUpstreamSays(t *testing.T) {
	cfg := config()
	cfg.Memory = memory.New(1 << 20)
	dir := t.TempDir()
	c := openCache(t, dir, cfg)
	first, second := newRepository("docker.io/library/alpine"), newRepository("ghcr.io/library/alpine")
	doc := first.push(newDocument(`{"first":1}`))
	wantDigest(t, c, first, doc, manifestcache.Miss)
	other := doc
	other.mediaType = "application/vnd.docker.distribution.manifest.v2+json"
	second.push(other)
	wantDigest(t, c, second, other, manifestcache.Miss)
	wantDigest(t, c, second, other, manifestcache.Hit)
	cfg.Memory = memory.New(1 << 20)
	c = openCache(t, dir, cfg)
	wantDigest(t, c, second, other, manifestcache.Hit)
	wantDigest(t, c, second, other, manifestcache.Hit)
	if s := cfg.Memory.Stats(); s.Hits != 1 || s.Entries != 1 {
		t.Errorf("%d hits, %d entries in memory; want 1, 1", s.Hits, s.Entries)
	}
}

func BenchmarkRecall(b *testing.B) {
	for name, kept := range map[string]*memory.Cache{"disk": nil, "memory": memory.New(1 << 20)} {
		b.Run(name, func(b *testing.B) {
			root, err := os.OpenRoot(b.TempDir())
			if err != nil {
				b.Fatal(err)
			}
			c, err := manifestcache.Open(root, manifestcache.Config{Memory: kept})
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			up := newRepository("docker.io/library/alpine")
			doc := up.push(newDocument(`{"first":"` + strings.Repeat("x", 2000) + `"}`))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.ByDigest(b.Context(), up.name, doc.digest, up); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
