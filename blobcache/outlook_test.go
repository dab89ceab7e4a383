package blobcache_test

import (
	"io"
	"testing"
	"testing/synctest"
	"time"

	"larder/blobcache"
)

// TestFillsTellHowFarTheyAre has a fill go on where another has stopped.
func TestFillsTellHowFarTheyAre(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := running(t, t.TempDir(), blobcache.Config{})
		s := newSource(300 << 10)
		s.body = func(rest []byte, offset int64) io.Reader {
			return io.MultiReader(&sliceReader{rest[:max(100<<10-offset, 0)]}, errReader{io.ErrUnexpectedEOF})
		}
		b := get(t, c, s)
		_, _ = io.ReadAll(b.Content)
		b.Content.Close()
		time.Sleep(time.Minute) // until it is given up
		if fills := c.Fills(); len(fills) != 0 {
			t.Errorf("parked: %+v", fills)
		}
		open := make(chan struct{})
		s.body = func(rest []byte, _ int64) io.Reader { return &gated{&sliceReader{rest}, 80 << 10, open} }
		began := time.Now()
		blob, err := c.GetRange(t.Context(), s.digest, 0, -1, blobcache.Source{Fetch: s.fetch, Owner: "docker.io/library/app"})
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		time.Sleep(time.Second)
		fills := c.Fills()
		if len(fills) != 1 {
			t.Fatalf("%d fills, want one", len(fills))
		}
		f := fills[0]
		if f.Digest != s.digest || f.Owner != "docker.io/library/app" || !f.Began.Equal(began) || f.Size != 300<<10 || f.Readers != 1 || f.Stored {
			t.Errorf("got %+v", f)
		}
		if len(f.Have) != 1 || f.Have[0].Start != 0 || f.Have[0].End != 100<<10+f.Brought || f.Brought <= 0 || f.Brought > 80<<10 {
			t.Errorf("it has %v, of which %d are new", f.Have, f.Brought)
		}
		close(open)
		wantBlob(t, blob, s.data, blobcache.Miss)
		synctest.Wait()
		if fills := c.Fills(); len(fills) != 0 {
			t.Errorf("complete: %+v", fills)
		}
	})
}

func TestNextAndGoneAreInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := keep(4 << 20)
		cfg.TTL = time.Hour
		c, _ := running(t, t.TempDir(), cfg)
		a, b, d := newSource(1<<20), newSource(1<<20+1), newSource(1<<20+2)
		for _, s := range []*source{a, b, d} {
			store(t, c, s, "", blobcache.Miss)
		}
		store(t, c, a, "", blobcache.Hit)
		wantNext := func(n int, want ...*source) {
			t.Helper()
			next := c.Next(n)
			if len(next) != len(want) {
				t.Fatalf("got %+v", next)
			}
			for i, e := range next {
				if e.Digest != want[i].digest || e.Size != int64(len(want[i].data)) || !e.Expires.Equal(e.Used.Add(time.Hour)) || i > 0 && e.Used.Before(next[i-1].Used) {
					t.Errorf("%d: %+v", i, e)
				}
			}
		}
		wantNext(10, b, d, a)
		wantNext(2, b, d)
		used := c.Next(1)[0].Used
		e := newSource(1<<20 + 3)
		store(t, c, e, "", blobcache.Miss)
		if gone := c.Gone(); len(gone) != 1 || gone[0].Digest != b.digest || gone[0].Why != blobcache.Evicted || gone[0].Size != 1<<20+1 || !gone[0].Used.Equal(used) {
			t.Errorf("evicted: %+v", gone)
		}
		if _, err := c.Remove(d.digest); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		gone := c.Gone()
		if len(gone) != 4 || gone[0].Digest != e.digest || gone[0].Why != blobcache.Expired || gone[1].Digest != a.digest || gone[2].Why != blobcache.Removed || gone[2].Digest != d.digest || gone[3].Digest != b.digest {
			t.Errorf("in the end: %+v", gone)
		}
		wantNext(10)
		for i := range 30 {
			store(t, c, newSource(1000+i), "", blobcache.Miss)
		}
		time.Sleep(2 * time.Hour)
		if n := len(c.Gone()); n != 20 {
			t.Errorf("%d are remembered", n)
		}
	})
}
