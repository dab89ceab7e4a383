package blobcache

import (
	"math"
	"math/rand/v2"
	"testing"
)

// naive is a set of bytes as anybody would write it first.
type naive [64]bool

func (n *naive) run(at int64) int64 {
	for at < int64(len(n)) && n[at] {
		at++
	}
	return at
}

func (n *naive) hole(at int64) Extent {
	start := n.run(at)
	for end := start; end < int64(len(n)); end++ {
		if n[end] {
			return Extent{start, end}
		}
	}
	return Extent{start, math.MaxInt64}
}

func (n *naive) before(at int64) int64 {
	for start := at - 1; start >= 0; start-- {
		if n[start] && (start == 0 || !n[start-1]) {
			return n.run(start)
		}
	}
	return 0
}

func TestExtentsAreASetOfBytes(t *testing.T) {
	for seed := range uint64(2000) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		var x extents
		var want naive
		for range rnd.IntN(30) {
			start := rnd.Int64N(64)
			end := start + rnd.Int64N(64-start+1)
			x = x.add(Extent{start, end})
			for i := start; i < end; i++ {
				want[i] = true
			}
			if !x.valid(64) {
				t.Fatalf("seed %d: %v is not a set of separate extents", seed, x)
			}
			var count int64
			for i := range int64(64) {
				if want[i] {
					count++
				}
				if got := x.run(i); got != want.run(i) {
					t.Fatalf("seed %d: run(%d) of %v = %d, want %d", seed, i, x, got, want.run(i))
				}
				if got := x.hole(i); got != want.hole(i) {
					t.Fatalf("seed %d: hole(%d) of %v = %v, want %v", seed, i, x, got, want.hole(i))
				}
				if got := x.before(i); got != want.before(i) {
					t.Fatalf("seed %d: before(%d) of %v = %d, want %d", seed, i, x, got, want.before(i))
				}
			}
			if got := x.bytes(); got != count {
				t.Fatalf("seed %d: bytes of %v = %d, want %d", seed, x, got, count)
			}
		}
	}
}

func TestExtentsOfAFileAreChecked(t *testing.T) {
	for name, x := range map[string]extents{
		"overlapping": {{0, 10}, {5, 20}}, "touching": {{0, 10}, {10, 20}}, "unsorted": {{10, 20}, {0, 5}},
		"empty extent": {{3, 3}}, "backwards": {{5, 3}}, "negative": {{-5, 3}}, "beyond the size": {{0, 101}},
	} {
		if x.valid(100) {
			t.Errorf("%s: %v is taken for valid", name, x)
		}
	}
}

func BenchmarkExtentsGrowingRun(b *testing.B) {
	var x extents
	for i := range int64(1000) {
		x = x.add(Extent{i << 30, i<<30 + 1})
	}
	b.ReportAllocs()
	end := int64(500<<30 + 1)
	for b.Loop() {
		x = x.add(Extent{end, end + 128<<10})
		end += 128 << 10
		if end > 501<<30-1<<20 {
			end = 500<<30 + 1
		}
	}
}
