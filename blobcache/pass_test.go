package blobcache_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"larder/blobcache"
)

func TestBlobThatCanNeverFitIsSharedAndNotKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		cfg := keep(4 << 20)
		cfg.Connections = 4
		c, _ := running(t, dir, cfg)
		small, large := newSource(1<<20), newParts(40<<20)
		store(t, c, small, "", blobcache.Miss)
		before := c.Stats().Fetched
		var clients sync.WaitGroup
		for range 20 {
			clients.Go(func() {
				b, err := c.Get(t.Context(), large.digest, large.fetch)
				if err != nil {
					t.Error(err)
					return
				}
				wantBlob(t, b, large.data, blobcache.Pass)
			})
		}
		clients.Wait()
		synctest.Wait()
		// What other fetchers had on the way when it turned out that nothing is kept
		// comes again: how much that is depends on who runs when.
		if sent, again := large.traffic(); again > 4<<20 {
			t.Errorf("20 clients cost %d bytes, %d of them again", sent, again)
		}
		if s := c.Stats(); s.Passed != 20 || s.Bytes != 1<<20 || s.Reserved != 0 || s.Fetched-before > 44<<20 {
			t.Errorf("afterwards: %+v", s)
		}
		wantKept(t, dir, []*source{small}, large.source)
		if n := held(t, dir); n != 1<<20 {
			t.Errorf("%d bytes are on disk, want those of the small blob", n)
		}
	})
}

func TestPartsOfABlobThatCanNeverFit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := running(t, t.TempDir(), keep(100))
		p := newParts(40 << 20)
		for _, r := range [][2]int64{{0, 10}, {30 << 20, 3 << 20}, {40<<20 - 1, 1}, {5 << 20, 5 << 20}, {39 << 20, -1}, {0, -1}} {
			readRange(t, c, p, r[0], r[1])
		}
		if sent, _ := p.traffic(); sent > (40+10+2*7)<<20 {
			t.Errorf("%d MiB were fetched for 40 + 9 MiB", sent>>20)
		}
		p.noRange = true
		for _, r := range [][2]int64{{0, 10}, {30 << 20, 3 << 20}, {40<<20 - 1, 1}, {0, -1}} {
			readRange(t, c, p, r[0], r[1])
		}
	})
}

// slowly reads the rest of r in pieces with pauses between them.
func slowly(t *testing.T, r io.Reader, piece int, pause time.Duration) []byte {
	var got bytes.Buffer
	for {
		_, err := io.CopyN(&got, r, int64(piece))
		if err == io.EOF {
			return got.Bytes()
		}
		if err != nil {
			t.Error(err)
			return nil
		}
		time.Sleep(pause)
	}
}

func TestSlowReaderOfABlobThatIsNotKeptIsLeftBehindAndServedAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := running(t, t.TempDir(), keep(100))
		p := newParts(10 << 20)
		slow, fast := getParts(t, c, p), getParts(t, c, p)
		var clients sync.WaitGroup
		clients.Go(func() {
			if got := slowly(t, slow.Content, 512<<10, 20*time.Second); !bytes.Equal(got, p.data) {
				t.Errorf("the slow reader got %d bytes, or wrong ones", len(got))
			}
		})
		clients.Go(func() {
			start := time.Now()
			wantBlob(t, fast, p.data, blobcache.Pass)
			if took := time.Since(start); took > time.Minute {
				t.Errorf("the slow reader held the fast one up for %v", took)
			}
		})
		clients.Wait()
		if sent, _ := p.traffic(); sent > 2*10<<20 {
			t.Errorf("%d MiB were fetched, want 20 at most", sent>>20)
		}
	})
}

func TestWrongBlobThatIsNotKeptNeverEnds(t *testing.T) {
	for _, size := range []int{1, 60 << 10, 64<<10 + 1, 5 << 20} {
		synctest.Test(t, func(t *testing.T) {
			c, _ := running(t, t.TempDir(), keep(1))
			bad := newSource(size)
			bad.data[size/2] ^= 1
			b, err := c.Get(t.Context(), bad.digest, bad.fetch)
			if size <= 64<<10 && err == nil {
				t.Errorf("%d wrong bytes were begun", size)
			}
			if err != nil {
				if !errors.Is(err, blobcache.ErrDigest) {
					t.Errorf("%d wrong bytes: %v", size, err)
				}
				return
			}
			defer b.Content.Close()
			got, err := io.ReadAll(b.Content)
			if !errors.Is(err, blobcache.ErrDigest) || len(got) >= size {
				t.Errorf("%d of %d wrong bytes, %v", len(got), size, err)
			}
			if n := c.Stats().Mismatches; n == 0 {
				t.Error("it was not counted")
			}
		})
	}
}

func TestBlobThatIsNotKeptIsGoneOnWithWhereItBroke(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := running(t, t.TempDir(), keep(1))
		p := newParts(5 << 20)
		breaks := 3
		p.wrap = func(_ int64, r io.Reader) io.Reader {
			if breaks--; breaks < 0 {
				return r
			}
			return io.MultiReader(io.LimitReader(r, 1<<20), errReader{errFault})
		}
		wantBlob(t, getParts(t, c, p), p.data, blobcache.Pass)
		if sent, again := p.traffic(); again > 3*64<<10 {
			t.Errorf("%d bytes were sent, %d again", sent, again)
		}
		p.wrap = func(offset int64, r io.Reader) io.Reader {
			if offset > 0 {
				return errReader{errFault}
			}
			return io.MultiReader(io.LimitReader(r, 1<<20), errReader{errFault})
		}
		b := getParts(t, c, p)
		if got, err := io.ReadAll(b.Content); err == nil {
			t.Errorf("%d bytes, and no error from an upstream that always breaks", len(got))
		}
	})
}

func TestFullDiskPassesBlobsOnAndRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		logs, seen := observer.New(zapcore.WarnLevel)
		c, _ := running(t, dir, blobcache.Config{Logger: zap.New(logs)})
		var full atomic.Bool
		c.FailWrites(func() error {
			if full.Load() {
				return syscall.ENOSPC
			}
			return nil
		})
		kept := newSource(1 << 20)
		store(t, c, kept, "", blobcache.Miss)
		full.Store(true)
		for i := range 50 {
			store(t, c, newSource(1<<20+i+1), "", blobcache.Pass)
		}
		if n := len(seen.All()); n == 0 || n > 2 {
			t.Errorf("%d lines were logged in 50 s, want one or two: %v", n, seen.All())
		}
		s := c.Stats()
		if !errors.Is(s.StoreError, syscall.ENOSPC) || s.StoreErrors["ENOSPC"] != 50 || s.Passed != 50 || s.Evicted != 1 {
			t.Errorf("while the disk is full: %+v", s)
		}
		full.Store(false)
		store(t, c, kept, "", blobcache.Miss)
		if s := c.Stats(); s.StoreError != nil || s.Entries != 1 {
			t.Errorf("when there is room again: %+v", s)
		}
		wantKept(t, dir, []*source{kept})
	})
}

func TestDiskThatFillsUpOnTheWayIsNotNoticedByReaders(t *testing.T) {
	for _, connections := range []int{1, 4} {
		synctest.Test(t, func(t *testing.T) {
			dir := t.TempDir()
			c, _ := running(t, dir, blobcache.Config{Connections: connections})
			var writes atomic.Int64
			c.FailWrites(func() error {
				if writes.Add(1) > 50 {
					return syscall.EIO
				}
				return nil
			})
			p := newParts(40 << 20)
			var clients sync.WaitGroup
			for i := range 5 {
				clients.Go(func() {
					b := getParts(t, c, p)
					if got := slowly(t, b.Content, 512<<10, time.Duration(i)*time.Millisecond); !bytes.Equal(got, p.data) {
						t.Errorf("reader %d got %d bytes, or wrong ones", i, len(got))
					}
				})
				clients.Go(func() { readRange(t, c, p, int64(i)*8<<20, 3<<20) })
			}
			clients.Wait()
			synctest.Wait()
			if n := held(t, dir); n != 0 {
				t.Errorf("%d bytes are left of a blob that could not be kept", n)
			}
		})
	}
}

func TestUnusableDirectoryPassesBlobsOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		c, _ := running(t, dir, blobcache.Config{})
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		store(t, c, newSource(1<<20), "", blobcache.Pass)
		for _, size := range []int{0, 100} { // there before it turns out that they can't be kept
			store(t, c, newSource(size), "", blobcache.Miss)
			synctest.Wait()
			if s := c.Stats(); s.StoreError == nil || s.Entries != 0 || s.Fills != 0 {
				t.Errorf("after a blob of %d bytes: %+v", size, s)
			}
		}
		s := newSource(3)
		s.err = errFault
		if _, err := c.Get(t.Context(), s.digest, s.fetch); !errors.Is(err, errFault) {
			t.Errorf("an error of fetch became %v", err)
		}
	})
}

func TestWhatIsNotKeptTakesLittleMemory(t *testing.T) {
	c := openCache(t, t.TempDir(), keep(1))
	p := newParts(64 << 20)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var blobs []*blobcache.Blob
	for range 10 {
		blobs = append(blobs, getParts(t, c, p))
	}
	half := make([]byte, 1<<20)
	for _, b := range blobs {
		if _, err := io.ReadFull(b.Content, half); err != nil {
			t.Fatal(err)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if n := int64(after.HeapAlloc) - int64(before.HeapAlloc); n > 16<<20 {
		t.Errorf("10 readers of a 64 MiB blob take %d MiB of memory", n>>20)
	}
}

func TestPassEndsWithItsReadersContextAndTheCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, stop := running(t, t.TempDir(), keep(1))
		s := newSource(2 << 20)
		open := s.gate(1 << 20)
		ctx, cancel := context.WithCancel(t.Context())
		b, err := c.Get(ctx, s.digest, s.fetch)
		if err != nil {
			t.Fatal(err)
		}
		defer b.Content.Close()
		if _, err := io.CopyN(io.Discard, b.Content, 1<<20-1); err != nil {
			t.Fatal(err)
		}
		cancel()
		if _, err := io.ReadAll(b.Content); !errors.Is(err, context.Canceled) {
			t.Errorf("read after the reader's end: %v", err)
		}
		close(open)
		other := get(t, c, newSource(3<<20))
		stop()
		if _, err := io.ReadAll(other.Content); !errors.Is(err, blobcache.ErrClosed) {
			t.Errorf("read after the cache's end: %v", err)
		}
	})
}
