package blobcache_test

import (
	"bytes"
	"context"
	"io"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"larder/blobcache"
)

// TestNothingIsRemovedBeforeItIsKnownWhatIsHeld has a full cache.
func TestNothingIsRemovedBeforeItIsKnownWhatIsHeld(t *testing.T) {
	c, err := blobcache.Open(openRoot(t, t.TempDir()), blobcache.Config{MaxSize: blobcache.Limit{Bytes: 500_000}, Pins: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	get := func(fill byte) (digest.Digest, blobcache.Outcome) {
		t.Helper()
		data := bytes.Repeat([]byte{fill}, 200_000)
		d := digest.FromBytes(data)
		b, err := c.Get(t.Context(), d, func(_ context.Context, offset, _ int64) (io.ReadCloser, int64, error) {
			return io.NopCloser(bytes.NewReader(data[offset:])), int64(len(data)), nil
		})
		if err != nil {
			t.Fatal(err)
		}
		defer b.Content.Close()
		if got, err := io.ReadAll(b.Content); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("got %d bytes, %v", len(got), err)
		}
		awaitNoFills(t, c)
		return d, b.Outcome
	}
	first, _ := get(1)
	second, _ := get(2)
	if _, outcome := get(3); outcome != blobcache.Pass {
		t.Errorf("before it is known what is held, a blob for which others would have to go: %v", outcome)
	}
	c.Hold(map[digest.Digest]bool{first: true})
	if _, outcome := get(4); outcome != blobcache.Miss {
		t.Errorf("beside what is held: %v", outcome)
	}
	items := c.Items([]digest.Digest{first, second})
	if !items[0].Whole || !items[0].Held || items[1].Whole || items[1].Held {
		t.Errorf("got %+v", items)
	}
	if s := c.Stats(); s.Held != 1 || s.HeldBytes != 200_000 || s.Evicted != 1 {
		t.Errorf("got %+v", s)
	}
	c.Hold(nil)
	get(5)
	if s := c.Stats(); s.Held != 0 || s.HeldBytes != 0 || c.Items([]digest.Digest{first})[0].Whole {
		t.Errorf("what was released has not gone first: %+v", s)
	}
}

// TestWhatIsHeldExpiresWhenItIsReleased lets a year pass.
func TestWhatIsHeldExpiresWhenItIsReleased(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c, err := blobcache.Open(openRoot(t, dir), blobcache.Config{TTL: time.Hour, Pins: true})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { _ = c.Run(ctx) })
		d := digest.FromString("held")
		outcome, err := c.Fill(t.Context(), d, blobcache.Source{Fetch: func(context.Context, int64, int64) (io.ReadCloser, int64, error) {
			return io.NopCloser(bytes.NewReader([]byte("held"))), 4, nil
		}}, nil)
		if err != nil || outcome != blobcache.Miss {
			t.Fatal(outcome, err)
		}
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if !c.Items([]digest.Digest{d})[0].Whole {
			t.Error("it has expired before it was known what is held")
		}
		c.Hold(map[digest.Digest]bool{d: true})
		time.Sleep(365 * 24 * time.Hour)
		synctest.Wait()
		if item := c.Items([]digest.Digest{d})[0]; !item.Whole || !item.Expires.IsZero() {
			t.Errorf("what is held has expired: %+v", item)
		}
		c.Hold(nil)
		synctest.Wait()
		if c.Items([]digest.Digest{d})[0].Whole {
			t.Error("what was released stays")
		}
		stop()
		running.Wait()
		c.Close()
	})
}

// awaitNoFills waits until what was fetched is in the index, or is not.
func awaitNoFills(t *testing.T, c *blobcache.Cache) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for c.Stats().Fills > 0 {
		select {
		case <-tick.C:
		case <-t.Context().Done():
			t.Fatal("fills that do not end")
		}
	}
}

func openRoot(t *testing.T, dir string) *os.Root {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	return root
}
