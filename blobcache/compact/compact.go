// Package compact keeps digests, and finds what has them, in little memory: a cache
// may hold a million blobs.
package compact

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"hash/maphash"
	"iter"
	"math"
	"strings"
	"time"
	"unique"

	"github.com/opencontainers/go-digest"
)

// Digest is a valid digest as its bytes, half of what it takes as text. The length
// tells the algorithm.
type Digest struct {
	head [32]byte
	rest unique.Handle[string] // what goes beyond those of SHA-256; zero: nothing
}

// Of is d. What is no digest becomes one that nothing has.
func Of(d digest.Digest) Digest {
	var c Digest
	var buf [64]byte
	_, encoded, _ := strings.Cut(string(d), ":")
	if len(encoded) > 2*len(buf) {
		encoded = ""
	}
	sum, err := hex.AppendDecode(buf[:0], []byte(encoded))
	if err != nil || len(sum) < len(c.head) {
		return Digest{rest: unique.Make("no digest: " + string(d))}
	}
	if rest := sum[copy(c.head[:], sum):]; len(rest) > 0 {
		c.rest = unique.Make(string(rest))
	}
	return c
}

// tail is what goes beyond the bytes of SHA-256.
func (c *Digest) tail() string {
	if c.rest == (unique.Handle[string]{}) {
		return ""
	}
	return c.rest.Value()
}

// Digest is c as text.
func (c *Digest) Digest() digest.Digest {
	algorithm, tail := digest.SHA256, c.tail()
	switch len(c.head) + len(tail) {
	case digest.SHA384.Size():
		algorithm = digest.SHA384
	case digest.SHA512.Size():
		algorithm = digest.SHA512
	}
	var buf [len("sha512:") + 2*64]byte
	text := hex.AppendEncode(append(buf[:0], algorithm+":"...), c.head[:])
	return digest.Digest(hex.AppendEncode(text, []byte(tail)))
}

// Compare orders digests as their texts are ordered.
func (c *Digest) Compare(other *Digest) int {
	mine, others := c.tail(), other.tail()
	return cmp.Or(cmp.Compare(len(mine), len(others)), bytes.Compare(c.head[:], other.head[:]), cmp.Compare(mine, others))
}

// BeginsAs reports whether two digests have the same algorithm and the same first
// byte: of very many, one in 256 begins as another.
func (c *Digest) BeginsAs(other *Digest) bool {
	return len(c.tail()) == len(other.tail()) && c.head[0] == other.head[0]
}

// Time is a time in nanoseconds since 1970, a third of what a time.Time takes. It
// may be in the years from 1678 to 2262.
type Time int64

// TimeOf is t as a Time.
func TimeOf(t time.Time) Time { return Time(t.UnixNano()) }

// Time is t as a time.Time.
func (t Time) Time() time.Time { return time.Unix(0, int64(t)) }

// Seconds is a time in seconds since 1970, rounded down, half of what a Time takes. It
// may be in the years from 1970 to 2106; others are taken for the nearest.
type Seconds uint32

// SecondsOf is t as Seconds.
func SecondsOf(t time.Time) Seconds { return Seconds(max(0, min(t.Unix(), math.MaxUint32))) }

// Time is s as a time.Time.
func (s Seconds) Time() time.Time { return time.Unix(int64(s), 0) }

// Named is what has a digest that does not change.
type Named interface {
	comparable
	Name() *Digest
}

// Table finds things by their digest. It takes a pointer for each and half as much
// room again, where a map would have all digests twice. The zero Table is empty.
type Table[E Named] struct {
	// slots has a place for each. What does not find its place free takes the next.
	slots []E
	n     int
	seed  maphash.Seed
}

// Get returns what has the digest d, or nil.
func (t *Table[E]) Get(d digest.Digest) E {
	name := Of(d)
	return t.Find(&name)
}

// Find is Get for a digest that is compact already.
func (t *Table[E]) Find(name *Digest) E {
	var none E
	if t.n == 0 {
		return none
	}
	return t.slots[t.find(name)]
}

// Len is how many there are.
func (t *Table[E]) Len() int { return t.n }

// Put adds e, in place of what has the same digest.
func (t *Table[E]) Put(e E) {
	if t.n >= len(t.slots)/4*3 {
		t.grow()
	}
	var none E
	at := t.find(e.Name())
	if t.slots[at] == none {
		t.n++
	}
	t.slots[at] = e
}

// Delete takes e out, if it is there. What has gone on from its place to find one
// moves back, as nothing else would find it any more.
func (t *Table[E]) Delete(e E) {
	var none E
	if t.n == 0 {
		return
	}
	free := t.find(e.Name())
	if t.slots[free] != e {
		return
	}
	for i := t.next(free); t.slots[i] != none; i = t.next(i) {
		if t.way(t.home(t.slots[i].Name()), i) >= t.way(free, i) {
			t.slots[free], free = t.slots[i], i
		}
	}
	t.slots[free] = none
	t.n--
}

// All lists them, in no order. The table must not change meanwhile.
func (t *Table[E]) All() iter.Seq[E] {
	return func(yield func(E) bool) {
		var none E
		for _, e := range t.slots {
			if e != none && !yield(e) {
				return
			}
		}
	}
}

// grow keeps a quarter of the slots free, so that ways are short, and of many no
// more than two fifths.
func (t *Table[E]) grow() {
	if len(t.slots) == 0 {
		t.slots, t.seed = make([]E, 8), maphash.MakeSeed()
		return
	}
	old := *t
	t.slots, t.n = make([]E, len(old.slots)/4*5&^3+4), 0
	for e := range old.All() {
		t.Put(e)
	}
}

// find is the slot of a digest, or the free one where it would be.
func (t *Table[E]) find(name *Digest) int {
	var none E
	i := t.home(name)
	for t.slots[i] != none && *t.slots[i].Name() != *name {
		i = t.next(i)
	}
	return i
}

// home is where the way of a digest begins. Who makes blobs can't choose it.
func (t *Table[E]) home(name *Digest) int {
	hash := uint32(maphash.Bytes(t.seed, name.head[:]))
	return int(uint64(hash) * uint64(len(t.slots)) >> 32)
}

func (t *Table[E]) next(i int) int { return (i + 1) % len(t.slots) }

// way is how far it is from one slot to another.
func (t *Table[E]) way(from, to int) int { return (to - from + len(t.slots)) % len(t.slots) }
