package blobcache_test

import (
	"bytes"
	"io"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"larder/blobcache"
	"larder/blobcache/memory"
)

// recalled is a cache that has a small blob in memory.
func recalled(t *testing.T, dir string, cfg blobcache.Config) (*blobcache.Cache, *source) {
	t.Helper()
	c, _ := running(t, dir, cfg)
	s := newSource(64 << 10)
	store(t, c, s, "", blobcache.Miss)
	if n := cfg.Memory.Stats().Entries; n != 0 {
		t.Errorf("%d blobs in memory that nobody has asked for again", n)
	}
	store(t, c, s, "", blobcache.Hit)
	if n := cfg.Memory.Stats().Entries; n != 1 {
		t.Errorf("%d blobs in memory, want 1", n)
	}
	return c, s
}

func TestSmallBlobIsAnsweredFromMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		c, s := recalled(t, dir, blobcache.Config{Memory: memory.New(4 << 20)})
		for name, damage := range damages {
			if err := damage(blobPath(dir, s.digest), s.data); err != nil {
				t.Fatal(name, err)
			}
			store(t, c, s, "", blobcache.Hit)
		}
		if err := os.Remove(blobPath(dir, s.digest)); err != nil {
			t.Fatal(err)
		}
		b, err := c.Get(t.Context(), s.digest, noFetch(t))
		if err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		size, seekErr := b.Content.Seek(0, io.SeekEnd)
		_, _ = b.Content.Seek(100, io.SeekStart)
		n, err := b.Content.(interface {
			SendTo(w io.Writer, n int64) (int64, error)
		}).SendTo(&got, 1000)
		if rest, _ := io.ReadAll(b.Content); seekErr != nil || err != nil || n != 1000 || size != b.Size || !bytes.Equal(append(got.Bytes(), rest...), s.data[100:]) {
			t.Errorf("sent %d bytes, %v; the end is at %d, %v", n, err, size, seekErr)
		}
		if size, ok := c.Size(s.digest); !ok || size != b.Size {
			t.Errorf("size %d, %v", size, ok)
		}
		if err := b.Content.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestLargeBlobIsNotKeptInMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kept := memory.New(4 << 20)
		c, _ := running(t, t.TempDir(), blobcache.Config{Memory: kept})
		s := newSource(64<<10 + 1)
		store(t, c, s, "", blobcache.Miss)
		b := get(t, c, s)
		if !b.Stored() || kept.Stats().Entries != 0 {
			t.Errorf("content is a %T, %d blobs in memory", b.Content, kept.Stats().Entries)
		}
		b.Content.Close()
	})
}

func TestMemoryGoesWithTheFile(t *testing.T) {
	tests := map[string]struct {
		cfg  blobcache.Config
		does func(t *testing.T, dir string, c *blobcache.Cache, s *source)
		next blobcache.Outcome
	}{
		"expired": {blobcache.Config{TTL: time.Hour}, func(_ *testing.T, _ string, _ *blobcache.Cache, _ *source) {
			time.Sleep(2 * time.Hour)
		}, blobcache.Miss},
		"evicted": {keep(100 << 10), func(t *testing.T, _ string, c *blobcache.Cache, _ *source) {
			store(t, c, newSource(90<<10), "", blobcache.Miss)
		}, blobcache.Miss},
		"rotten": {blobcache.Config{ScrubInterval: time.Hour}, func(t *testing.T, dir string, _ *blobcache.Cache, s *source) {
			rot(t, blobPath(dir, s.digest))
			time.Sleep(3 * time.Hour)
		}, blobcache.Miss},
		"in doubt": {blobcache.Config{}, func(_ *testing.T, _ string, c *blobcache.Cache, s *source) {
			c.Doubt(s.digest)
		}, blobcache.Hit},
		"in doubt and gone": {blobcache.Config{}, func(t *testing.T, dir string, c *blobcache.Cache, s *source) {
			if err := os.Remove(blobPath(dir, s.digest)); err != nil {
				t.Error(err)
			}
			c.Doubt(s.digest)
		}, blobcache.Miss},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dir := t.TempDir()
				test.cfg.Memory = memory.New(4 << 20)
				c, s := recalled(t, dir, test.cfg)
				test.does(t, dir, c, s)
				synctest.Wait()
				if n := test.cfg.Memory.Stats().Entries; n != 0 {
					t.Errorf("%d blobs in memory", n)
				}
				store(t, c, s, "", test.next)
				wantKept(t, dir, []*source{s})
			})
		})
	}
}

func TestFileOfWhatIsInMemoryIsLookedAtWhenAUseIsRecorded(t *testing.T) {
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dir := t.TempDir()
				c, s := recalled(t, dir, blobcache.Config{Memory: memory.New(4 << 20)})
				path := blobPath(dir, s.digest)
				if err := damage(path, s.data); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Hour)
				if b, err := c.Get(t.Context(), s.digest, s.fetch); err == nil { // it may find the damage itself
					got, err := io.ReadAll(b.Content)
					b.Content.Close()
					if err == nil && !bytes.Equal(got, s.data) {
						t.Errorf("%v: all %d bytes of a wrong blob", b.Outcome, len(got))
					}
				}
				synctest.Wait()
				b := get(t, c, s)
				wantBlob(t, b, s.data, b.Outcome)
				synctest.Wait()
				if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, s.data) {
					t.Errorf("the file is not healed: %d bytes, %v", len(got), err)
				}
			})
		})
	}
}

func TestUseInMemoryIsAUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kept := memory.New(4 << 20)
		c, s := recalled(t, t.TempDir(), blobcache.Config{TTL: 10 * time.Hour, Memory: kept})
		time.Sleep(50 * time.Minute)
		before := kept.Stats().Hits
		store(t, c, s, "", blobcache.Hit)
		if got := kept.Stats().Hits - before; got != 1 {
			t.Errorf("%d hits in memory, want 1", got)
		}
		time.Sleep(9*time.Hour + 30*time.Minute) // since then
		synctest.Wait()
		store(t, c, s, "", blobcache.Hit)
	})
}

func BenchmarkSmallHit(b *testing.B) {
	for name, kept := range map[string]*memory.Cache{"disk": nil, "memory": memory.New(64 << 20)} {
		b.Run(name, func(b *testing.B) {
			c := openCache(b, b.TempDir(), blobcache.Config{TTL: time.Hour, Memory: kept})
			s := newSource(2 << 10)
			drain(b, c, s)
			waitIdle(b, c)
			buf := make([]byte, len(s.data))
			b.ReportAllocs()
			for b.Loop() {
				blob, err := c.Get(b.Context(), s.digest, s.fetch)
				if err != nil || blob.Outcome != blobcache.Hit {
					b.Fatal(blob, err)
				}
				if _, err := io.ReadFull(blob.Content, buf); err != nil {
					b.Fatal(err)
				}
				blob.Content.Close()
			}
		})
	}
}
