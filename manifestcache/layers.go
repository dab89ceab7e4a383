package manifestcache

import (
	"encoding/hex"
	"hash/maphash"
	"iter"

	"github.com/opencontainers/go-digest"
)

const (
	// maxNamed bounds how many digests are remembered that manifests name. Half a
	// million are those of some 40,000 images, and take 32 MB at most. The blobs of
	// one that is forgotten cost a HEAD each, until it is asked for again.
	maxNamed = 500_000

	// sample is how many manifests are looked at for one that was used long ago.
	sample = 16

	// crowd is how many manifests may name one blob: an empty config, say, that
	// all artifacts share. Of more it is not remembered, as the way to one's place
	// would be long; that too costs a HEAD.
	crowd = 1000
)

// layers remembers which manifests name a blob, and what else they name, of the
// manifests that were used most recently. That is as good as approximately: of a
// sample, the least recently used goes first. Nothing here rests on hashes alone:
// who is found by one is asked for the digest itself.
type layers struct {
	max  int
	held int // digests that are remembered
	hand int // where the last sample ended

	numbered []*entry // by number; 0 is nobody's
	free     []uint32 // numbers that are nobody's any more

	// slots is a hash table with a place for each blob of each manifest. What does
	// not find its place free takes the next.
	slots []slot
	taken int
	seed  maphash.Seed
}

// slot says that the manifest of that number names a blob with that hash. That
// these are eight bytes is why there is no map here.
type slot struct{ hash, number uint32 }

func newLayers() *layers {
	return &layers{max: maxNamed, numbered: make([]*entry, 1), slots: make([]slot, 64), seed: maphash.MakeSeed()}
}

// add remembers what e names, which others may be forgotten for.
func (l *layers) add(e *entry, named names) {
	if n := len(l.free); n > 0 {
		e.number, l.free = l.free[n-1], l.free[:n-1]
	} else {
		e.number = uint32(len(l.numbered))
		l.numbered = append(l.numbered, nil)
	}
	l.numbered[e.number] = e
	e.blobs, e.lists = pack(named.blobs), pack(named.manifests)
	l.held += len(named.blobs) + len(named.manifests)
	for blob := range e.blobs.each() {
		l.insert(slot{l.hash(blob), e.number})
	}
	for l.held > l.max {
		l.remove(l.oldest())
	}
}

// remove forgets what e names.
func (l *layers) remove(e *entry) {
	for blob := range e.blobs.each() {
		l.delete(slot{l.hash(blob), e.number})
		l.held--
	}
	for range e.lists.each() {
		l.held--
	}
	l.numbered[e.number] = nil
	l.free = append(l.free, e.number)
	e.number, e.blobs, e.lists = 0, "", ""
}

// oldest finds the least recently used of the next manifests. There must be one.
func (l *layers) oldest() (old *entry) {
	for looked, steps := 0, 0; looked < sample && steps < len(l.numbered); steps++ {
		l.hand = (l.hand + 1) % len(l.numbered)
		e := l.numbered[l.hand]
		if e == nil {
			continue
		}
		if looked++; old == nil || e.used < old.used {
			old = e
		}
	}
	return old
}

// naming lists the manifests that name the blob d, which must be valid.
func (l *layers) naming(d digest.Digest) iter.Seq[*entry] {
	return func(yield func(*entry) bool) {
		var buf [maxPacked]byte // this is what each blob that is given out takes
		blob := appendPacked(buf[:0], d)
		hash := uint32(maphash.Bytes(l.seed, blob))
		for i := l.home(hash); l.slots[i].number != 0; i = l.next(i) {
			if l.slots[i].hash != hash {
				continue
			}
			if e := l.numbered[l.slots[i].number]; e.blobs.has(blob) && !yield(e) {
				return
			}
		}
	}
}

// insert keeps a quarter of the slots free, so that ways are short, and no more
// than two fifths.
func (l *layers) insert(s slot) {
	if l.taken+1 > len(l.slots)/4*3 {
		old := l.slots
		l.slots, l.taken = make([]slot, len(old)/4*5), 0
		for _, s := range old {
			if s.number != 0 {
				l.place(s)
			}
		}
	}
	l.place(s)
}

func (l *layers) place(s slot) {
	same := 0
	i := l.home(s.hash)
	for ; l.slots[i].number != 0; i = l.next(i) {
		if l.slots[i].hash != s.hash {
			continue
		}
		if same++; same == crowd {
			return
		}
	}
	l.slots[i] = s
	l.taken++
}

// delete frees the slot of s, if there is one. What has gone on from there to
// find a place moves back, as nothing else would find it any more.
func (l *layers) delete(s slot) {
	i := l.home(s.hash)
	for ; l.slots[i] != s; i = l.next(i) {
		if l.slots[i].number == 0 {
			return
		}
	}
	for j := l.next(i); l.slots[j].number != 0; j = l.next(j) {
		if l.way(l.home(l.slots[j].hash), j) >= l.way(i, j) {
			l.slots[i], i = l.slots[j], j
		}
	}
	l.slots[i] = slot{}
	l.taken--
}

func (l *layers) hash(blob string) uint32 { return uint32(maphash.String(l.seed, blob)) }

// home is where the way of a hash begins.
func (l *layers) home(hash uint32) int { return int(uint64(hash) * uint64(len(l.slots)) >> 32) }

func (l *layers) next(i int) int { return (i + 1) % len(l.slots) }

// way is how far it is from one slot to another.
func (l *layers) way(from, to int) int { return (to - from + len(l.slots)) % len(l.slots) }

// packed is a list of digests: of each its length, which tells the algorithm, and
// its bytes.
type packed string

// maxPacked is what one digest takes at most.
const maxPacked = 1 + 64

func pack(list []digest.Digest) packed {
	var b []byte
	for _, d := range list {
		b = appendPacked(b, d)
	}
	return packed(b)
}

func appendPacked(b []byte, d digest.Digest) []byte {
	encoded := d.Encoded()
	b, _ = hex.AppendDecode(append(b, byte(len(encoded)/2)), []byte(encoded)) // it is valid
	return b
}

// each lists the digests, each as a list of one.
func (p packed) each() iter.Seq[string] {
	return func(yield func(string) bool) {
		for len(p) > 0 {
			n := 1 + int(p[0])
			if !yield(string(p[:n])) {
				return
			}
			p = p[n:]
		}
	}
}

// digests lists them.
func (p packed) digests() iter.Seq[digest.Digest] {
	return func(yield func(digest.Digest) bool) {
		for one := range p.each() {
			if !yield(unpack(one)) {
				return
			}
		}
	}
}

// has reports whether one is in the list, which is such a list of one.
func (p packed) has(one []byte) bool {
	for d := range p.each() {
		if d == string(one) {
			return true
		}
	}
	return false
}

// unpack is the digest in a list of one.
func unpack(one string) digest.Digest {
	algorithm := digest.SHA256
	switch len(one) - 1 {
	case digest.SHA384.Size():
		algorithm = digest.SHA384
	case digest.SHA512.Size():
		algorithm = digest.SHA512
	}
	var buf [len("sha512:") + 2*64]byte
	return digest.Digest(hex.AppendEncode(append(buf[:0], algorithm+":"...), []byte(one[1:])))
}
