package blobcache_test

import (
	"bytes"
	"context"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"larder/blobcache"
)

// keep is how large a cache may be.
func keep(bytes int64) blobcache.Config {
	return blobcache.Config{MaxSize: blobcache.Limit{Bytes: bytes}}
}

// store gets the whole of s for an owner and waits until it is on disk, or not
// kept; a second later something else may be used.
func store(t *testing.T, c *blobcache.Cache, s *source, owner string, want blobcache.Outcome) {
	t.Helper()
	b, err := c.GetRange(t.Context(), s.digest, 0, -1, blobcache.Source{Fetch: s.fetch, Owner: owner})
	if err != nil {
		t.Fatal(err)
	}
	wantBlob(t, b, s.data, want)
	synctest.Wait()
	time.Sleep(time.Second)
}

// usedAgo makes the file of s look as if it was last used that long ago: files
// are not written by the clock of the test.
func usedAgo(t *testing.T, path string, ago time.Duration) {
	t.Helper()
	at := time.Now().Add(-ago)
	if err := os.Chtimes(path, at, at); err != nil {
		t.Fatal(err)
	}
}

// wantKept checks which of the sources are on disk.
func wantKept(t *testing.T, dir string, kept []*source, gone ...*source) {
	t.Helper()
	for _, s := range kept {
		if !exists(t, blobPath(dir, s.digest)) {
			t.Errorf("blob of %d bytes is gone", len(s.data))
		}
	}
	for _, s := range gone {
		if exists(t, blobPath(dir, s.digest)) {
			t.Errorf("blob of %d bytes is still there", len(s.data))
		}
	}
}

// held is what the files of a cache add up to.
func held(t *testing.T, dir string) (bytes int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, de fs.DirEntry, err error) error {
		if err != nil || de.IsDir() || filepath.Base(filepath.Dir(path)) == "owners" {
			return err
		}
		fi, err := de.Info()
		if err == nil {
			bytes += fi.Size()
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	return bytes
}

func TestLeastRecentlyUsedBlobMakesRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		c, _ := running(t, dir, keep(4<<20))
		a, b, d, e := newSource(1<<20), newSource(1<<20+1), newSource(1<<20+2), newSource(1<<20+3)
		for _, s := range []*source{a, b, d} {
			store(t, c, s, "", blobcache.Miss)
		}
		store(t, c, a, "", blobcache.Hit)
		store(t, c, e, "", blobcache.Miss)
		wantKept(t, dir, []*source{a, d, e}, b)
		if s := c.Stats(); s.Evicted != 1 || s.EvictedBytes != 1<<20+1 || s.Bytes != held(t, dir) || s.Bytes > 4<<20 || s.Expired != 0 {
			t.Errorf("after one too many: %+v", s)
		}
		store(t, c, b, "", blobcache.Miss)
		wantKept(t, dir, []*source{a, e, b}, d)
	})
}

func TestRoomIsMadeBeforeTheFirstByteIsWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		c, _ := running(t, dir, keep(4<<20))
		old, large := newSource(2<<20), newSource(3<<20)
		store(t, c, old, "", blobcache.Miss)
		open := large.gate(100 << 10)
		b := get(t, c, large)
		synctest.Wait()
		wantKept(t, dir, nil, old)
		if s := c.Stats(); s.Reserved != 3<<20 || s.Bytes != 0 {
			t.Errorf("while it comes %d bytes are reserved and %d kept, want 3 MiB and none", s.Reserved, s.Bytes)
		}
		close(open)
		wantBlob(t, b, large.data, blobcache.Miss)
		synctest.Wait()
		if s := c.Stats(); s.Reserved != 0 || s.Bytes != 3<<20 {
			t.Errorf("afterwards %d bytes are reserved and %d kept, want none and 3 MiB", s.Reserved, s.Bytes)
		}
	})
}

func TestOfAPartOnlyThePartCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		c, stop := running(t, dir, keep(40<<20))
		old, large := newSource(20<<20), newParts(100<<20)
		store(t, c, old, "", blobcache.Miss)
		readRange(t, c, large, 90<<20, 1000)
		synctest.Wait()
		time.Sleep(time.Second)
		wantKept(t, dir, []*source{old})
		if s := c.Stats(); s.Partials != 1 || s.PartialBytes == 0 || s.PartialBytes > 1<<20 {
			t.Errorf("a part of 1000 bytes counts as %d, %d times", s.PartialBytes, s.Partials)
		}
		before := c.Stats().PartialBytes
		stop()
		usedAgo(t, partialPath(dir, large.digest), time.Second)
		c, _ = running(t, dir, keep(40<<20))
		synctest.Wait()
		if s := c.Stats(); s.PartialBytes != before {
			t.Errorf("after a restart the part counts as %d, want %d", s.PartialBytes, before)
		}
		store(t, c, newSource(30<<20), "", blobcache.Miss)
		wantKept(t, dir, nil, old)
		store(t, c, newSource(39<<20+1), "", blobcache.Miss)
		if exists(t, partialPath(dir, large.digest)) || exists(t, partialPath(dir, large.digest)+".extents") || c.Stats().Partials != 0 {
			t.Error("a part that was in the way is still there")
		}
	})
}

func TestBlobsOnTheirWayAreNotEvictedAndOpenOnesReadOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		c, _ := running(t, dir, keep(4<<20))
		old, coming, next := newSource(2<<20), newSource(2<<20+1), newSource(1<<20)
		store(t, c, old, "", blobcache.Miss)
		reading := get(t, c, old)
		time.Sleep(time.Second)
		open := coming.gate(1)
		first := get(t, c, coming)
		store(t, c, next, "", blobcache.Miss)
		wantKept(t, dir, []*source{next}, old)
		wantBlob(t, reading, old.data, blobcache.Hit)
		close(open)
		wantBlob(t, first, coming.data, blobcache.Miss)
		synctest.Wait()
		wantKept(t, dir, []*source{next, coming})
	})
}

func TestQuotaEvictsItsOwnersOldestAndNoOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		cfg := blobcache.Config{Quotas: []blobcache.Quota{{Owner: "docker.io", Bytes: 5 << 20}, {Owner: "docker.io/library", Bytes: 2<<20 + 10}}}
		c, stop := running(t, dir, cfg)
		ghcr, app := newSource(9<<20), newSource(2<<20)
		library := []*source{newSource(1 << 20), newSource(1<<20 + 1), newSource(1<<20 + 2)}
		libraries := newSource(1<<20 + 3) // not the same word
		store(t, c, ghcr, "ghcr.io/org/app", blobcache.Miss)
		store(t, c, app, "docker.io/org/app", blobcache.Miss)
		store(t, c, library[0], "docker.io/library/alpine", blobcache.Miss)
		store(t, c, library[1], "docker.io/library/busybox", blobcache.Miss)
		stop()
		for i, s := range []*source{library[1], library[0], app, ghcr} {
			usedAgo(t, blobPath(dir, s.digest), time.Duration(i)*time.Minute)
		}
		c, stop = running(t, dir, cfg) // it is still known whose they are
		synctest.Wait()
		store(t, c, library[2], "docker.io/library/alpine", blobcache.Miss)
		wantKept(t, dir, []*source{ghcr, app, library[1], library[2]}, library[0])
		store(t, c, libraries, "docker.io/libraries/x", blobcache.Miss)
		wantKept(t, dir, []*source{ghcr, library[1], library[2], libraries}, app)
		store(t, c, newSource(3<<20), "docker.io/library/large", blobcache.Pass)
		wantKept(t, dir, []*source{ghcr, library[1], library[2], libraries})
		stop()
		for i, s := range []*source{libraries, library[1], library[2]} {
			usedAgo(t, blobPath(dir, s.digest), time.Duration(i)*time.Minute)
		}
		cfg.Quotas[0].Bytes = 1<<20 + 3
		_, _ = running(t, dir, cfg)
		synctest.Wait()
		wantKept(t, dir, []*source{ghcr, libraries}, library...)
	})
}

// Whose a blob is stays known if larder is told to stop before it has looked at it.
func TestOwnersOutliveAScanThatWasCutShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		cfg := blobcache.Config{Quotas: []blobcache.Quota{{Owner: "a", Bytes: 1 << 30}}}
		c, stop := running(t, dir, cfg)
		store(t, c, newSource(1<<20), "a", blobcache.Miss)
		stop()
		c = openCache(t, dir, cfg)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := c.Run(ctx); err == nil {
			t.Error("Run has gone on to its end")
		}
		if owners, err := os.ReadDir(filepath.Join(dir, "owners")); err != nil || len(owners) != 1 {
			t.Errorf("owners %v, %v; want one", owners, err)
		}
	})
}

func TestLowerBudgetCountsFromTheStartOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		c, stop := running(t, dir, blobcache.Config{})
		old, young := newSource(2<<20), newSource(1<<20)
		store(t, c, old, "", blobcache.Miss)
		store(t, c, young, "", blobcache.Miss)
		stop()
		usedAgo(t, blobPath(dir, old.digest), time.Minute)
		usedAgo(t, blobPath(dir, young.digest), 0)
		_, _ = running(t, dir, keep(2<<20))
		synctest.Wait()
		wantKept(t, dir, []*source{young}, old)
	})
}

func TestImageIsRenewedAsAWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		cfg := keep(4 << 20)
		cfg.TTL = 24 * time.Hour
		c, stop := running(t, dir, cfg)
		layer, other, config := newSource(1<<20), newSource(1<<20+1), newSource(1<<10)
		for _, s := range []*source{layer, config, other} {
			store(t, c, s, "", blobcache.Miss)
		}
		time.Sleep(23 * time.Hour)
		c.Renew([]digest.Digest{layer.digest, config.digest, newSource(7).digest})
		stop()
		usedAgo(t, blobPath(dir, other.digest), 23*time.Hour)
		c, _ = running(t, dir, cfg) // it was written to disk, too
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		wantKept(t, dir, []*source{layer, config}, other)
		store(t, c, other, "", blobcache.Miss)
		c.Renew([]digest.Digest{layer.digest, config.digest})
		time.Sleep(time.Second)
		store(t, c, newSource(2<<20), "", blobcache.Miss)
		wantKept(t, dir, []*source{layer, config}, other)
	})
}

func TestRenewalIsNoProofOfAFileThatWasChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		c, _ := running(t, dir, blobcache.Config{})
		s := newSource(1 << 20)
		store(t, c, s, "", blobcache.Miss)
		wrong := append([]byte{}, s.data...)
		wrong[5] ^= 1
		if err := overwrite(blobPath(dir, s.digest), wrong); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Hour)
		c.Renew([]digest.Digest{s.digest})
		b := get(t, c, s)
		if got, err := io.ReadAll(b.Content); err == nil && !bytes.Equal(got, s.data) {
			t.Errorf("read all %d bytes of a changed blob", len(got))
		}
		b.Content.Close()
		synctest.Wait()
		if s := c.Stats(); s.Damaged != 1 {
			t.Errorf("%d files were found to be damaged, want 1", s.Damaged)
		}
	})
}

func TestSpaceIsLeftToOthers(t *testing.T) {
	dir := t.TempDir()
	c := openCache(t, dir, blobcache.Config{MinFree: blobcache.Limit{Percent: 100}})
	s := newSource(1 << 20)
	wantBlob(t, get(t, c, s), s.data, blobcache.Pass)
	waitIdle(t, c)
	if n := held(t, dir); n != 0 {
		t.Errorf("%d bytes are kept on a disk that is to be left free", n)
	}
	if err := os.Remove(partialPath(dir, s.digest)); err == nil {
		t.Error("a file is left")
	}
}

func TestLimitIsTheLesserOfBytesAndShare(t *testing.T) {
	for _, test := range []struct {
		limit blobcache.Limit
		want  int64
	}{
		{blobcache.Limit{}, 0},
		{blobcache.Limit{Bytes: 5}, 5},
		{blobcache.Limit{Percent: 80}, 800},
		{blobcache.Limit{Bytes: 100, Percent: 5}, 50},
		{blobcache.Limit{Bytes: 40, Percent: 5}, 40},
		{blobcache.Limit{Percent: 0.01}, 1}, // of very little there is no none
	} {
		if got := test.limit.Of(1000); got != test.want {
			t.Errorf("%+v of 1000 bytes is %d, want %d", test.limit, got, test.want)
		}
	}
}

func TestABlobWaitsForRoomThatIsBeingSettled(t *testing.T) {
	for name, tt := range map[string]struct {
		size    int
		settles bool // in time
		want    blobcache.Outcome
		takes   time.Duration // what is passed on waits a little for more readers
	}{
		"room in a moment": {2 << 20, true, blobcache.Miss, 0},
		"room too late":    {2 << 20, false, blobcache.Pass, time.Second + 250*time.Millisecond},
		"can never fit":    {4 << 20, false, blobcache.Pass, 250 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, _ := running(t, t.TempDir(), keep(3<<20))
				first, second := newSource(2<<20), newSource(tt.size+1)
				open := make(chan struct{})
				b, err := c.Get(t.Context(), first.digest, func(ctx context.Context, offset, length int64) (io.ReadCloser, int64, error) {
					body, size, err := first.fetch(ctx, offset, length)
					return closeLater{body, open}, size, err
				})
				if err != nil {
					t.Fatal(err)
				}
				wantBlob(t, b, first.data, blobcache.Miss) // it has arrived; its fill goes on
				done := make(chan struct{})
				start := time.Now()
				go func() {
					defer close(done)
					b := get(t, c, second)
					wantBlob(t, b, second.data, tt.want)
				}()
				synctest.Wait()
				if tt.settles {
					close(open)
				}
				<-done
				if took := time.Since(start); took != tt.takes {
					t.Errorf("took %v, want %v", took, tt.takes)
				}
				if !tt.settles {
					close(open)
				}
			})
		})
	}
}
