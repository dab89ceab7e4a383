package memory_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"larder/blobcache/memory"
)

func blob(i int) memory.Key {
	return memory.Key{Kind: memory.Blob, Digest: digest.FromString(fmt.Sprint(i))}
}

func content(n int) memory.Content { return memory.Content{Bytes: make([]byte, n)} }

func has(c *memory.Cache, k memory.Key) bool {
	_, ok := c.Get(k)
	return ok
}

func TestWhatWasUsedLeastRecentlyGoesFirst(t *testing.T) {
	c := memory.New(100 << 10)
	const size = 4 << 10
	n := 0
	for ; c.Stats().Entries == int64(n); n++ {
		has(c, blob(0))
		c.Put(blob(n), content(size))
	}
	if s := c.Stats(); n < 20 || s.Bytes > s.MaxBytes || s.Bytes < s.MaxBytes-2*size {
		t.Errorf("%d entries of %d bytes are %d of %d", s.Entries, size, s.Bytes, s.MaxBytes)
	}
	if !has(c, blob(0)) || has(c, blob(1)) || !has(c, blob(2)) || !has(c, blob(n-1)) {
		t.Error("what went was not what was used least recently")
	}
}

func TestSameKeyTwiceCountsOnce(t *testing.T) {
	c := memory.New(1 << 20)
	c.Put(blob(1), content(10_000))
	c.Put(blob(1), memory.Content{MediaType: "a/b", Bytes: []byte("short")})
	got, ok := c.Get(blob(1))
	if s := c.Stats(); s.Entries != 1 || s.Bytes > 1000 || s.Bytes < 100 || !ok || string(got.Bytes) != "short" || got.MediaType != "a/b" {
		t.Errorf("%v, %v: %+v", got, ok, s)
	}
	c.Delete(blob(1))
	c.Delete(blob(1))
	if s := c.Stats(); s.Entries != 0 || s.Bytes != 0 || has(c, blob(1)) {
		t.Errorf("after Delete: %+v", s)
	}
}

func TestManifestAndBlobOfOneDigestAreTwo(t *testing.T) {
	c := memory.New(1 << 20)
	as := func(kind memory.Kind) memory.Key { return memory.Key{Kind: kind, Digest: digest.FromString("x")} }
	c.Put(as(memory.Manifest), content(1))
	if has(c, as(memory.Blob)) {
		t.Error("a manifest is had as a blob")
	}
	c.Put(as(memory.Blob), content(1))
	c.Delete(as(memory.Manifest))
	if has(c, as(memory.Manifest)) || !has(c, as(memory.Blob)) {
		t.Error("Delete of the manifest is not that alone")
	}
}

func TestTooLargeIsNotKeptNorIsWhatItReplaces(t *testing.T) {
	c := memory.New(160 << 10)
	c.Put(blob(1), content(9<<10))
	c.Put(blob(2), content(1))
	if !has(c, blob(1)) || !c.Fits(9<<10) {
		t.Error("a sixteenth is not kept")
	}
	c.Put(blob(1), content(10<<10))
	if has(c, blob(1)) || !has(c, blob(2)) || c.Fits(10<<10) {
		t.Error("more than a sixteenth is kept, or what was there before")
	}
}

func TestOffKeepsNothing(t *testing.T) {
	for _, c := range []*memory.Cache{nil, memory.New(0)} {
		c.Put(blob(1), content(0))
		c.Delete(blob(1))
		if has(c, blob(1)) || c.Fits(0) || c.Stats().Entries != 0 {
			t.Errorf("%v keeps something", c)
		}
	}
}

func TestWhatWasPutIsKeptAndNotWhatBecomesOfIt(t *testing.T) {
	c := memory.New(1 << 20)
	data := []byte("right")
	c.Put(blob(1), memory.Content{Bytes: data})
	data[0] = 'w'
	if got, _ := c.Get(blob(1)); string(got.Bytes) != "right" {
		t.Errorf("kept %q", got.Bytes)
	}
}

func TestHitsAndMissesAreCounted(t *testing.T) {
	c := memory.New(1 << 20)
	has(c, blob(1))
	c.Put(blob(1), content(1))
	has(c, blob(1))
	has(c, blob(1))
	if s := c.Stats(); s.Hits != 2 || s.Misses != 1 {
		t.Errorf("%d hits, %d misses; want 2, 1", s.Hits, s.Misses)
	}
}

// What is counted is what is taken: neither the bytes that others hold on to
// nor what an entry takes beside its bytes is left out.
func TestCountIsWhatTheHeapGrowsBy(t *testing.T) {
	for _, size := range []int{0, 700, 60 << 10} {
		c := memory.New(64 << 20)
		large := strings.Repeat("x", 4000)
		runtime.GC()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for i := range min(10_000, 32<<20/(size+500)) {
			k := memory.Key{Digest: digest.Digest((digest.FromString(fmt.Sprint(i)).String() + large)[:71])}
			c.Put(k, memory.Content{MediaType: (large + "!")[:50], Bytes: make([]byte, size, size+4000)})
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		grown, counted := int64(after.HeapAlloc)-int64(before.HeapAlloc), c.Stats().Bytes
		if grown > counted*5/4 || grown < counted*3/4 {
			t.Errorf("entries of %d bytes count as %d bytes, and take %d", size, counted, grown)
		}
		runtime.KeepAlive(c)
	}
}

func TestManyAtOnce(t *testing.T) {
	c := memory.New(64 << 10)
	var clients sync.WaitGroup
	for seed := range uint64(8) {
		random := rand.New(rand.NewPCG(seed, 0))
		clients.Go(func() {
			for range 5000 {
				i := random.IntN(60)
				want := bytes.Repeat([]byte{byte(i)}, i*50)
				switch random.IntN(5) {
				case 0:
					c.Put(blob(i), memory.Content{Bytes: want})
				case 1:
					c.Delete(blob(i))
				default:
					if got, ok := c.Get(blob(i)); ok && !bytes.Equal(got.Bytes, want) {
						t.Errorf("got %d bytes, want those of another", len(got.Bytes))
					}
				}
			}
		})
	}
	clients.Wait()
	for i := range 60 {
		c.Delete(blob(i))
	}
	if s := c.Stats(); s.Entries != 0 || s.Bytes != 0 {
		t.Errorf("after all is deleted: %+v", s)
	}
}

func BenchmarkGet(b *testing.B) {
	c := memory.New(1 << 20)
	c.Put(blob(1), content(1000))
	k := blob(1)
	b.ReportAllocs()
	for b.Loop() {
		c.Get(k)
	}
}
