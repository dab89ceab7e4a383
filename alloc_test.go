package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime"
	"testing"

	"github.com/opencontainers/go-digest"

	"larder/blobcache"
)

// zeros is a body of zero bytes that come in pieces of at most 128 KiB.
type zeros struct{ left int64 }

func (z *zeros) Read(p []byte) (int, error) {
	if z.left == 0 {
		return 0, io.EOF
	}
	n := min(int64(len(p)), 128<<10, z.left)
	clear(p[:n])
	z.left -= n
	return int(n), nil
}

// BenchmarkFillAllocs fills a cache with a blob that comes in pieces of 128 KiB,
// with a reader that follows, and counts allocations for each piece.
func BenchmarkFillAllocs(b *testing.B) {
	const size, piece = 256 << 20, 128 << 10
	d, err := digest.FromReader(&zeros{size})
	if err != nil {
		b.Fatal(err)
	}
	fetch := func(_ context.Context, offset, length int64) (io.ReadCloser, int64, error) {
		if length < 0 {
			length = size
		}
		return io.NopCloser(&zeros{min(length, size-offset)}), size, nil
	}
	for _, connections := range []int{1, 4} {
		b.Run(fmt.Sprintf("connections=%d", connections), func(b *testing.B) {
			var before, after runtime.MemStats
			var objects, bytes uint64
			buf := make([]byte, piece)
			for b.Loop() {
				root, err := os.OpenRoot(b.TempDir())
				if err != nil {
					b.Fatal(err)
				}
				c, err := blobcache.Open(root, blobcache.Config{Connections: connections})
				if err != nil {
					b.Fatal(err)
				}
				runtime.ReadMemStats(&before)
				blob, err := c.Get(b.Context(), d, fetch)
				if err != nil {
					b.Fatal(err)
				}
				if n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{blob.Content}, buf); n != size || err != nil {
					b.Fatalf("got %d bytes (%v), want %d", n, err, size)
				}
				runtime.ReadMemStats(&after)
				blob.Content.Close()
				if err := c.Close(); err != nil {
					b.Fatal(err)
				}
				objects += after.Mallocs - before.Mallocs
				bytes += after.TotalAlloc - before.TotalAlloc
			}
			pieces := float64(b.N) * size / piece
			report(b, map[string]float64{"allocs/128KiB": float64(objects) / pieces, "B/128KiB": float64(bytes) / pieces})
		})
	}
}
