package blobcache_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"larder/blobcache"
)

// running opens a cache and runs it until the test, or the returned function,
// stops it.
func running(t *testing.T, dir string, cfg blobcache.Config) (*blobcache.Cache, func()) {
	t.Helper()
	c := openCache(t, dir, cfg)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = c.Run(ctx) })
	wg.Go(func() { _ = c.Scrub(ctx) })
	stop := func() {
		cancel()
		wg.Wait()
		c.Close()
	}
	t.Cleanup(stop)
	return c, stop
}

func exists(t *testing.T, path string) bool {
	t.Helper()
	_, err := os.Stat(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return err == nil
}

func TestBlobExpiresSoLongAfterItsLastUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		c, _ := running(t, dir, blobcache.Config{TTL: 24 * time.Hour})
		s := newSource(1 << 10)
		wantBlob(t, get(t, c, s), s.data, blobcache.Miss)
		for range 5 {
			time.Sleep(23 * time.Hour)
			wantBlob(t, get(t, c, s), s.data, blobcache.Hit)
		}
		time.Sleep(24*time.Hour - time.Second)
		synctest.Wait()
		if !exists(t, blobPath(dir, s.digest)) {
			t.Error("expired a second early")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if exists(t, blobPath(dir, s.digest)) {
			t.Error("still there after its time to live")
		}
		if got := c.Stats(); got.Entries != 0 || got.Expired != 1 {
			t.Errorf("%d entries, %d expired; want 0, 1", got.Entries, got.Expired)
		}
		wantBlob(t, get(t, c, s), s.data, blobcache.Miss)
	})
}

func TestZeroTTLKeepsForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := running(t, t.TempDir(), blobcache.Config{})
		s := newSource(1 << 10)
		wantBlob(t, get(t, c, s), s.data, blobcache.Miss)
		time.Sleep(60 * 24 * time.Hour)
		wantBlob(t, get(t, c, s), s.data, blobcache.Hit)
	})
}

func TestExpirySurvivesARestartAndFollowsTheConfiguredTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		c, stop := running(t, dir, blobcache.Config{TTL: 24 * time.Hour})
		old, used, partial := newSource(1<<10), newSource(2<<10), newSource(3<<10)
		for _, s := range []*source{old, used} {
			wantBlob(t, get(t, c, s), s.data, blobcache.Miss)
		}
		synctest.Wait()
		stop()
		if err := os.WriteFile(partialPath(dir, partial.digest), partial.data[:100], 0o600); err != nil {
			t.Fatal(err)
		}
		// The bubble's clock is not the one that wrote the files' times.
		stored := time.Now()
		for _, path := range []string{blobPath(dir, old.digest), blobPath(dir, used.digest), partialPath(dir, partial.digest)} {
			if err := os.Chtimes(path, stored, stored); err != nil {
				t.Fatal(err)
			}
		}

		time.Sleep(10 * time.Hour)
		c, stop = running(t, dir, blobcache.Config{TTL: 24 * time.Hour})
		synctest.Wait()
		if got := c.Stats(); got.Entries != 2 || got.Bytes != 3<<10 || got.Partials != 1 {
			t.Errorf("found %d entries with %d bytes, %d partials; want 2, %d, 1", got.Entries, got.Bytes, got.Partials, 3<<10)
		}
		wantBlob(t, get(t, c, used), used.data, blobcache.Hit) // writes its mtime, as that is hours old
		time.Sleep(14*time.Hour + time.Second)
		synctest.Wait()
		if exists(t, blobPath(dir, old.digest)) || exists(t, partialPath(dir, partial.digest)) {
			t.Error("unused blob or partial file still there 24h after it was stored")
		}
		stop()

		c, _ = running(t, dir, blobcache.Config{TTL: 100 * time.Hour})
		time.Sleep(80 * time.Hour)
		wantBlob(t, get(t, c, used), used.data, blobcache.Hit)
	})
}

func TestFailedRemovalIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		c, _ := running(t, dir, blobcache.Config{TTL: time.Hour})
		s := newSource(1 << 10)
		wantBlob(t, get(t, c, s), s.data, blobcache.Miss)
		synctest.Wait()
		// A directory that is not empty can't be removed, whoever asks.
		path := blobPath(dir, s.digest)
		if err := errors.Join(os.Remove(path), os.MkdirAll(filepath.Join(path, "sub"), 0o700)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour + 5*time.Minute)
		synctest.Wait()
		if got := c.Stats(); got.ExpireErrors < 3 || got.Expired != 0 {
			t.Errorf("%d errors, %d expired; want several, 0", got.ExpireErrors, got.Expired)
		}
		if err := os.Remove(filepath.Join(path, "sub")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if exists(t, path) || c.Stats().Expired != 1 {
			t.Error("not removed though it can be now")
		}
	})
}

func TestExpiryLeavesReadersAndFillsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		c, _ := running(t, dir, blobcache.Config{TTL: time.Minute, Linger: time.Hour})
		complete, arriving := newSource(1<<20), newSource(2<<20)
		wantBlob(t, get(t, c, complete), complete.data, blobcache.Miss)
		synctest.Wait()
		reader := get(t, c, complete)
		open := arriving.gate(1 << 20)
		slow := get(t, c, arriving)
		time.Sleep(time.Hour)
		synctest.Wait()
		if exists(t, blobPath(dir, complete.digest)) {
			t.Error("unused blob not removed")
		}
		wantBlob(t, reader, complete.data, blobcache.Hit)
		close(open)
		wantBlob(t, slow, arriving.data, blobcache.Miss)
	})
}

func TestJunkIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	junk := []string{
		"README", "sha256/README", "sha256/ab/short", "sha256/ab/../x", "tmp/sha256-nothex", "tmp/other",
		"md5/d4/d41d8cd98f00b204e9800998ecf8427e", "sha256/00/e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
	}
	for _, name := range junk {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte("x"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		c, _ := running(t, dir, blobcache.Config{TTL: time.Second})
		synctest.Wait()
		if got := c.Stats(); got.Scans != 1 || got.Entries != 0 || got.Partials != 0 {
			t.Errorf("%d scans found %d entries, %d partials; want 1, 0, 0", got.Scans, got.Entries, got.Partials)
		}
		time.Sleep(time.Hour)
	})
	for _, name := range junk {
		if !exists(t, filepath.Join(dir, name)) {
			t.Errorf("%s was removed", name)
		}
	}
}
