package blobcache_test

import (
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"larder/blobcache"
)

// rot changes a byte of a file, and nothing of what the file system says of it
// but the time of the change.
func rot(t *testing.T, path string) {
	t.Helper()
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := overwrite(path, data); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, fi.ModTime(), fi.ModTime()); err != nil {
		t.Fatal(err)
	}
}

func TestEachBlobIsReadAgainOnceInAnInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		c, stop := running(t, dir, blobcache.Config{})
		var blobs []*source
		for i := range 10 {
			blobs = append(blobs, newSource(1<<20+i))
			store(t, c, blobs[i], "", blobcache.Miss)
		}
		stop()
		c, _ = running(t, dir, blobcache.Config{ScrubInterval: 100 * time.Hour, ScrubRate: 1 << 20})
		var before int64
		for round := range 3 {
			for step := range 10 {
				time.Sleep(10 * time.Hour)
				synctest.Wait()
				n := c.Stats().Scrubbed
				if n-before > 3 {
					t.Errorf("round %d, step %d: %d blobs were read in a tenth of the interval", round, step, n-before)
				}
				before = n
			}
		}
		if n := c.Stats().Scrubbed; n < 29 || n > 31 {
			t.Errorf("10 blobs were read %d times in 3 intervals", n)
		}
	})
}

func TestRottenBlobIsThrownAwayAndFetchedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		c, _ := running(t, dir, blobcache.Config{ScrubInterval: time.Hour})
		synctest.Wait()
		good, bad := newSource(1<<20), newSource(1<<20+1)
		store(t, c, good, "", blobcache.Miss)
		store(t, c, bad, "", blobcache.Miss)
		rot(t, blobPath(dir, bad.digest))
		time.Sleep(2 * time.Hour) // there was nothing to read in the first
		synctest.Wait()
		wantKept(t, dir, []*source{good}, bad)
		if s := c.Stats(); s.Damaged != 1 || s.Entries != 1 {
			t.Errorf("%d damaged, %d left; want 1, 1", s.Damaged, s.Entries)
		}
		store(t, c, bad, "", blobcache.Miss)
		store(t, c, good, "", blobcache.Hit)
	})
}

func TestScrubbingGoesOnWhereTheLastProcessWas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		c, stop := running(t, dir, blobcache.Config{})
		for i := range 10 {
			store(t, c, newSource(1<<20+i), "", blobcache.Miss)
		}
		stop()
		cfg := blobcache.Config{ScrubInterval: 10 * time.Hour}
		c, stop = running(t, dir, cfg)
		var scrubbed int64
		for range 10 { // restarted each hour
			time.Sleep(time.Hour)
			stop()
			scrubbed += c.Stats().Scrubbed
			c, stop = running(t, dir, cfg)
			synctest.Wait()
		}
		if scrubbed < 10 || scrubbed > 11 {
			t.Errorf("10 blobs were read %d times in one interval with 10 restarts", scrubbed)
		}
	})
}

func TestScrubbedBlobNeedsNoOtherLook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		c, stop := running(t, dir, blobcache.Config{})
		s := newSource(1 << 20)
		store(t, c, s, "", blobcache.Miss)
		stop()
		c, _ = running(t, dir, blobcache.Config{ScrubInterval: time.Hour})
		synctest.Wait()
		b := get(t, c, s)
		if !b.Stored() {
			t.Errorf("a blob that was scrubbed is opened as a %T", b.Content)
		}
		b.Content.Close()
		c.Doubt(s.digest)
		c.Doubt(digest.FromString("another"))
		b = get(t, c, s)
		if b.Stored() {
			t.Error("a blob that is in doubt is given out as it is")
		}
		wantBlob(t, b, s.data, blobcache.Hit)
	})
}

func TestNoScrubbingWithoutAnInterval(t *testing.T) {
	c := openCache(t, t.TempDir(), blobcache.Config{})
	if err := c.Scrub(t.Context()); err != nil {
		t.Error(err)
	}
}
