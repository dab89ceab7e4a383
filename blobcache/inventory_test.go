package blobcache_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"larder/blobcache"
)

func TestItemsAreWhatIsThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := running(t, t.TempDir(), blobcache.Config{TTL: time.Hour})
		whole, parked, coming := newSource(100<<10), newSource(200<<10), newSource(300<<10)
		store(t, c, whole, "", blobcache.Miss)
		used := time.Now().Add(-time.Second)
		parked.body = func(rest []byte, offset int64) io.Reader {
			return io.MultiReader(&sliceReader{rest[:max(70<<10-offset, 0)]}, errReader{io.ErrUnexpectedEOF})
		}
		if b, err := c.Get(t.Context(), parked.digest, parked.fetch); err == nil {
			_, _ = io.ReadAll(b.Content)
			b.Content.Close()
		}
		synctest.Wait()
		time.Sleep(time.Minute) // until it is given up
		open := make(chan struct{})
		coming.body = func(rest []byte, _ int64) io.Reader { return &gated{&sliceReader{rest}, 80 << 10, open} }
		b := get(t, c, coming)
		synctest.Wait()
		got := c.Items([]digest.Digest{coming.digest, digest.FromString("none"), whole.digest, parked.digest})
		if want := (blobcache.Item{Whole: true, Size: 100 << 10, Used: used, Expires: used.Add(time.Hour)}); got[2] != want {
			t.Errorf("whole: %+v, want %+v", got[2], want)
		}
		if p := got[3]; p.Whole || p.Filling || p.Size != 70<<10 || p.Used.IsZero() {
			t.Errorf("parked: %+v", p)
		}
		if f := got[0]; f.Whole || !f.Filling || f.Size < 64<<10 || f.Size > 80<<10 {
			t.Errorf("on its way: %+v", f)
		}
		if got[1] != (blobcache.Item{}) {
			t.Errorf("nothing: %+v", got[1])
		}
		unused := c.Unused(time.Now().Add(time.Second))
		slices.Sort(unused)
		want := []digest.Digest{whole.digest, parked.digest}
		slices.Sort(want)
		if !slices.Equal(unused, want) || len(c.Unused(used)) > 0 {
			t.Errorf("unused %v, want %v", unused, want)
		}
		close(open)
		wantBlob(t, b, coming.data, blobcache.Miss)
	})
}

// sliceReader gives what is in a slice.
type sliceReader struct{ rest []byte }

func (r *sliceReader) Read(p []byte) (int, error) {
	if len(r.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

func TestRemovedBlobIsReadOnAndFetchedAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		c, _ := running(t, dir, blobcache.Config{Quotas: []blobcache.Quota{{Owner: "a", Bytes: 1 << 30}}})
		s := newSource(1 << 20)
		store(t, c, s, "a", blobcache.Miss)
		b := get(t, c, s)
		if freed, err := c.Remove(s.digest); freed != 1<<20 || err != nil {
			t.Errorf("freed %d, %v", freed, err)
		}
		wantBlob(t, b, s.data, blobcache.Hit)
		if stats := c.Stats(); stats.Entries != 0 || stats.Bytes != 0 || held(t, dir) != 0 {
			t.Errorf("left: %+v", stats)
		}
		if owners, err := os.ReadDir(filepath.Join(dir, "owners")); err != nil || len(owners) > 0 {
			t.Errorf("left: %v, %v", owners, err)
		}
		if _, err := c.Remove(s.digest); !errors.Is(err, blobcache.ErrAbsent) {
			t.Errorf("removed twice: %v", err)
		}
		store(t, c, s, "a", blobcache.Miss)
		wantBlob(t, get(t, c, s), s.data, blobcache.Hit)
	})
}

func TestPartOfABlobIsRemovedWithItsExtents(t *testing.T) {
	dir, p := t.TempDir(), newParts(64<<20)
	synctest.Test(t, func(t *testing.T) {
		c, _ := running(t, dir, blobcache.Config{Connections: 4})
		readRange(t, c, p, 40<<20, 1000)
		synctest.Wait()
		time.Sleep(time.Minute)
		synctest.Wait()
		if !exists(t, partialPath(dir, p.digest)) {
			t.Fatal("no part was kept")
		}
		if freed, err := c.Remove(p.digest); err != nil || freed < 1000 || freed > 32<<20 {
			t.Errorf("freed %d, %v", freed, err)
		}
		if left, _ := os.ReadDir(filepath.Join(dir, "tmp")); len(left) > 0 {
			t.Errorf("left %v", left)
		}
	})
}

func TestBlobOnItsWayIsNotRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := running(t, t.TempDir(), blobcache.Config{})
		s := newSource(1 << 20)
		open := make(chan struct{})
		s.body = func(rest []byte, _ int64) io.Reader { return &gated{&sliceReader{rest}, 100 << 10, open} }
		b := get(t, c, s)
		if _, err := c.Remove(s.digest); !errors.Is(err, blobcache.ErrBusy) {
			t.Errorf("got %v, want ErrBusy", err)
		}
		close(open)
		wantBlob(t, b, s.data, blobcache.Miss)
		synctest.Wait()
		if _, err := c.Remove(s.digest); err != nil {
			t.Error(err)
		}
	})
}

func TestBlobThatCannotBeRemovedStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		c, _ := running(t, dir, blobcache.Config{})
		s := newSource(100 << 10)
		store(t, c, s, "", blobcache.Miss)
		if err := errors.Join(os.Remove(blobPath(dir, s.digest)), os.MkdirAll(filepath.Join(blobPath(dir, s.digest), "sub"), 0o700)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Remove(s.digest); err == nil || errors.Is(err, blobcache.ErrAbsent) || errors.Is(err, blobcache.ErrBusy) {
			t.Errorf("got %v, want the disk's error", err)
		}
		if got := c.Stats().Entries; got != 1 {
			t.Errorf("%d entries, want it to be known still", got)
		}
	})
}

// TestRemovalWhileEverybodyReads has readers get blobs while these are removed
// over and over. Each gets all of it, and in the end nothing is on disk that is
// not known.
func TestRemovalWhileEverybodyReads(t *testing.T) {
	dir := t.TempDir()
	c := openCache(t, dir, blobcache.Config{})
	sources := []*source{newSource(10), newSource(80 << 10), newSource(1 << 20)}
	var readers, removers sync.WaitGroup
	stop := make(chan struct{})
	removed := make([]int, len(sources))
	for i, s := range sources {
		for range 3 {
			readers.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					b, err := c.Get(t.Context(), s.digest, s.fetch)
					if err != nil {
						t.Error(err)
						return
					}
					got, err := io.ReadAll(b.Content)
					b.Content.Close()
					if err != nil || digest.FromBytes(got) != s.digest {
						t.Errorf("read %d bytes, %v", len(got), err)
						return
					}
				}
			})
		}
		removers.Go(func() {
			for removed[i] < 20 {
				switch _, err := c.Remove(s.digest); {
				case err == nil:
					removed[i]++
				case !errors.Is(err, blobcache.ErrBusy) && !errors.Is(err, blobcache.ErrAbsent):
					t.Error(err)
					return
				default:
					runtime.Gosched()
				}
			}
		})
	}
	removers.Wait()
	close(stop)
	readers.Wait()
	waitIdle(t, c)
	for _, s := range sources {
		b := get(t, c, s)
		wantBlob(t, b, s.data, b.Outcome)
		waitIdle(t, c)
		if _, err := c.Remove(s.digest); err != nil {
			t.Error(err)
		}
	}
	if got := held(t, dir); got != 0 {
		t.Errorf("%d bytes are left, and not known", got)
	}
}
