package blobcache

import (
	"math"
	"slices"
	"sort"
)

// Extent is the bytes from Start up to, and without, End.
type Extent struct {
	Start int64 `json:"start"`
	End   int64 `json:"end"`
}

// extents is a set of bytes: sorted, disjoint and not touching each other.
type extents []Extent

// at is the index of the first extent that ends behind offset.
func (x extents) at(offset int64) int {
	return sort.Search(len(x), func(i int) bool { return x[i].End > offset })
}

// run is the end of the bytes that follow offset without a hole; offset itself
// if it is in one.
func (x extents) run(offset int64) int64 {
	if i := x.at(offset); i < len(x) && x[i].Start <= offset {
		return x[i].End
	}
	return offset
}

// hole is the first hole at or behind offset; its end is math.MaxInt64 if
// nothing follows.
func (x extents) hole(offset int64) Extent {
	offset = x.run(offset)
	if i := x.at(offset); i < len(x) {
		return Extent{offset, x[i].Start}
	}
	return Extent{offset, math.MaxInt64}
}

// before is the end of the last extent that starts before offset, 0 if there
// is none.
func (x extents) before(offset int64) int64 {
	i := sort.Search(len(x), func(i int) bool { return x[i].Start >= offset })
	if i == 0 {
		return 0
	}
	return x[i-1].End
}

// end is where the last one ends, 0 if there is none.
func (x extents) end() int64 { return x.before(math.MaxInt64) }

// add returns the set with the bytes of e in it. It changes x.
func (x extents) add(e Extent) extents {
	if e.Start >= e.End {
		return x
	}
	// Everything that e overlaps or touches becomes one with it.
	i := sort.Search(len(x), func(i int) bool { return x[i].End >= e.Start })
	j := i
	for ; j < len(x) && x[j].Start <= e.End; j++ {
		e.Start, e.End = min(e.Start, x[j].Start), max(e.End, x[j].End)
	}
	if j == i+1 { // the usual case, a run that grows: nothing moves
		x[i] = e
		return x
	}
	return slices.Replace(x, i, j, e)
}

// bytes is how many there are.
func (x extents) bytes() (n int64) {
	for _, e := range x {
		n += e.End - e.Start
	}
	return n
}

// valid reports whether x, which was read from a file, is a set within size.
func (x extents) valid(size int64) bool {
	last := int64(-1)
	for _, e := range x {
		if e.Start <= last || e.End <= e.Start || e.End > size {
			return false
		}
		last = e.End
	}
	return true
}
