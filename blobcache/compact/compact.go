// Package compact keeps digests, and finds what has them, in little memory: a cache
// may hold a million blobs.
package compact

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"hash/maphash"
	"iter"
	"time"

	"github.com/opencontainers/go-digest"
)

// Digest is a valid digest as its bytes, half of what it takes as text. The length
// tells the algorithm.
type Digest struct {
	head [32]byte
	rest string // what goes beyond those of SHA-256
}

// Of is d, which must be valid.
func Of(d digest.Digest) Digest {
	var c Digest
	var buf [64]byte
	sum, _ := hex.AppendDecode(buf[:0], []byte(d.Encoded()))
	c.rest = string(sum[copy(c.head[:], sum):])
	return c
}

// Digest is c as text.
func (c *Digest) Digest() digest.Digest {
	algorithm := digest.SHA256
	switch len(c.head) + len(c.rest) {
	case digest.SHA384.Size():
		algorithm = digest.SHA384
	case digest.SHA512.Size():
		algorithm = digest.SHA512
	}
	var buf [len("sha512:") + 2*64]byte
	text := hex.AppendEncode(append(buf[:0], algorithm+":"...), c.head[:])
	return digest.Digest(hex.AppendEncode(text, []byte(c.rest)))
}

// Compare orders digests as their texts are ordered.
func (c *Digest) Compare(other *Digest) int {
	return cmp.Or(cmp.Compare(len(c.rest), len(other.rest)), bytes.Compare(c.head[:], other.head[:]), cmp.Compare(c.rest, other.rest))
}

// BeginsAs reports whether two digests have the same algorithm and the same first
// byte: of very many, one in 256 begins as another.
func (c *Digest) BeginsAs(other *Digest) bool {
	return len(c.rest) == len(other.rest) && c.head[0] == other.head[0]
}

// Time is a time in nanoseconds since 1970, a third of what a time.Time takes. It
// may be in the years from 1678 to 2262.
type Time int64

// TimeOf is t as a Time.
func TimeOf(t time.Time) Time { return Time(t.UnixNano()) }

// Time is t as a time.Time.
func (t Time) Time() time.Time { return time.Unix(0, int64(t)) }

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

// Get returns what has the digest d, which must be valid, or nil.
func (t *Table[E]) Get(d digest.Digest) E {
	var none E
	if t.n == 0 {
		return none
	}
	name := Of(d)
	return t.slots[t.find(&name)]
}

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

// grow keeps a quarter of the slots free, so that ways are short, and no more than
// two fifths.
func (t *Table[E]) grow() {
	if len(t.slots) == 0 {
		t.slots, t.seed = make([]E, 64), maphash.MakeSeed()
		return
	}
	old := *t
	t.slots, t.n = make([]E, len(old.slots)/4*5), 0
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
