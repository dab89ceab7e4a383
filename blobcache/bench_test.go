package blobcache_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"larder/blobcache"
)

// drain reads the blob to its end, in the pieces that a client's buffers take.
func drain(tb testing.TB, c *blobcache.Cache, s *source) {
	b, err := c.Get(tb.Context(), s.digest, s.fetch)
	if err != nil {
		tb.Error(err)
		return
	}
	defer b.Content.Close()
	// A plain Writer, as io.Discard would choose its own, small pieces.
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{b.Content}, make([]byte, 256<<10))
	if n != int64(len(s.data)) || err != nil {
		tb.Errorf("read %d bytes, %v; want %d", n, err, len(s.data))
	}
}

func BenchmarkHit(b *testing.B) {
	c := openCache(b, b.TempDir(), blobcache.Config{TTL: time.Hour})
	s := newSource(1 << 20)
	drain(b, c, s)
	waitIdle(b, c)
	b.ReportAllocs()
	for b.Loop() {
		blob, err := c.Get(b.Context(), s.digest, s.fetch)
		if err != nil || blob.Outcome != blobcache.Hit {
			b.Fatal(blob, err)
		}
		blob.Content.Close()
	}
}

func BenchmarkMiss(b *testing.B) {
	s := newSource(64 << 20)
	for _, readers := range []int{1, 8} {
		b.Run(fmt.Sprintf("readers=%d", readers), func(b *testing.B) {
			dir := b.TempDir()
			c := openCache(b, dir, blobcache.Config{Linger: time.Minute})
			b.SetBytes(int64(len(s.data)))
			b.ReportAllocs()
			for b.Loop() {
				var wg sync.WaitGroup
				for range readers {
					wg.Go(func() { drain(b, c, s) })
				}
				wg.Wait()
				b.StopTimer()
				waitIdle(b, c)
				if err := os.Remove(blobPath(dir, s.digest)); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			if got := c.Stats(); got.Misses*int64(len(s.data)) != got.Fetched {
				b.Errorf("%d bytes fetched in %d misses", got.Fetched, got.Misses)
			}
		})
	}
}

// BenchmarkJoin100 is 100 clients that ask for a blob of which half has
// arrived, and read all of it.
func BenchmarkJoin100(b *testing.B) {
	const clients, size = 100, 4 << 20
	dir := b.TempDir()
	c := openCache(b, dir, blobcache.Config{Linger: time.Minute})
	s := newSource(size)
	b.SetBytes(clients * size)
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		open := s.gate(size / 2)
		starter, err := c.Get(b.Context(), s.digest, s.fetch)
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		var wg sync.WaitGroup
		for range clients {
			wg.Go(func() { drain(b, c, s) })
		}
		close(open)
		wg.Wait()
		b.StopTimer()
		starter.Content.Close()
		waitIdle(b, c)
		if err := os.Remove(blobPath(dir, s.digest)); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// BenchmarkStart starts a cache that holds 100,000 blobs.
func BenchmarkStart(b *testing.B) {
	const blobs = 100_000
	dir := b.TempDir()
	var d digest.Digest
	for i := range blobs {
		content := fmt.Appendf(nil, "blob %d", i)
		d = digest.FromBytes(content)
		path := blobPath(dir, d)
		err := os.WriteFile(path, content, 0o600)
		if os.IsNotExist(err) {
			if err = os.MkdirAll(filepath.Dir(path), 0o700); err == nil {
				err = os.WriteFile(path, content, 0o600)
			}
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	start := func(b *testing.B) (*blobcache.Cache, func()) {
		c := openCache(b, dir, blobcache.Config{TTL: time.Hour})
		ctx, cancel := context.WithCancel(b.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = c.Run(ctx) })
		return c, func() {
			cancel()
			wg.Wait()
			c.Close()
		}
	}
	b.Run("Scan", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			c, stop := start(b)
			for c.Stats().Scans == 0 {
				<-time.After(5 * time.Millisecond)
			}
			b.StopTimer()
			if got := c.Stats().Entries; got != blobs {
				b.Errorf("found %d blobs, want %d", got, blobs)
			}
			stop()
			b.StartTimer()
		}
	})
	b.Run("FirstAnswer", func(b *testing.B) {
		for b.Loop() {
			c, stop := start(b)
			blob, err := c.Get(b.Context(), d, nil)
			if err != nil || blob.Outcome != blobcache.Hit {
				b.Fatal(blob, err)
			}
			b.StopTimer()
			blob.Content.Close()
			stop()
			b.StartTimer()
		}
	})
}

// pattern is an endless blob that needs next to no memory.
type pattern struct {
	block  []byte
	offset int64
}

func newPattern(offset int64) *pattern {
	block := make([]byte, 100_003)
	for i := range block {
		block[i] = byte(i * i >> 7)
	}
	return &pattern{block, offset}
}

func (p *pattern) Read(b []byte) (int, error) {
	n := copy(b, p.block[p.offset%int64(len(p.block)):])
	p.offset += int64(n)
	return n, nil
}

func TestMemoryDoesNotGrowWithTheBlob(t *testing.T) {
	if testing.Short() {
		t.Skip("writes 512 MiB")
	}
	const size, most = 512 << 20, 8 << 20
	d, err := digest.FromReader(io.LimitReader(newPattern(0), size))
	if err != nil {
		t.Fatal(err)
	}
	fetch := func(_ context.Context, offset, _ int64) (io.ReadCloser, int64, error) {
		return io.NopCloser(io.LimitReader(newPattern(offset), size-offset)), size, nil
	}
	c := openCache(t, t.TempDir(), blobcache.Config{})
	var before, now runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	b, err := c.Get(t.Context(), d, fetch)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Content.Close()
	for read := int64(0); read < size; {
		n, err := io.CopyN(io.Discard, b.Content, 32<<20)
		if read += n; err != nil {
			t.Fatalf("after %d bytes: %v", read, err)
		}
		runtime.ReadMemStats(&now)
		if grown := int64(now.HeapAlloc) - int64(before.HeapAlloc); grown > most {
			t.Fatalf("heap grew by %d bytes within the first %d, want at most %d", grown, read, most)
		}
	}
}
