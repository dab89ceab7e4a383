package manifestcache

import (
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"larder/blobcache/compact"
)

// blobs makes n digests, each other than all that were made from before.
func blobs(from, n int) (list []digest.Digest) {
	algorithms := []digest.Algorithm{digest.SHA256, digest.SHA256, digest.SHA512, digest.SHA384}
	for i := from; i < from+n; i++ {
		list = append(list, algorithms[i%len(algorithms)].FromString(fmt.Sprint("blob ", i)))
	}
	return list
}

// numbered is a digest of its own for each i.
func numbered(i int) *compact.Digest {
	d := compact.Of(digest.FromString(fmt.Sprint("manifest ", i)))
	return &d
}

func naming(l *layers, d digest.Digest) (list []digest.Digest) {
	for e := range l.naming(d) {
		list = append(list, e.name.Digest())
	}
	slices.Sort(list)
	return list
}

func TestPackedDigestsAreTheSame(t *testing.T) {
	list := blobs(0, 20)
	var got []digest.Digest
	for one := range pack(list).each() {
		got = append(got, unpack(one))
	}
	if !slices.Equal(got, list) {
		t.Errorf("got %v, want %v", got, list)
	}
	for range pack(list).each() {
		break
	}
}

// TestLayersAreThoseOfAMap compares with what needs no thought.
func TestLayersAreThoseOfAMap(t *testing.T) {
	for seed := range uint64(50) {
		random := rand.New(rand.NewPCG(seed, 0))
		l := newLayers()
		all := blobs(0, 40)
		known := make(map[*entry][]digest.Digest)
		for i := range 600 {
			if random.IntN(5) < 3 {
				e := &entry{name: *numbered(i), used: compact.Time(random.Int64N(100))}
				var named names
				for _, b := range all {
					if random.IntN(10) == 0 {
						named.blobs = append(named.blobs, b)
					}
				}
				named.manifests = blobs(1000, random.IntN(3))
				l.add(e, named)
				known[e] = named.blobs
			} else {
				for e := range known { // any
					l.remove(e)
					delete(known, e)
					break
				}
			}
		}
		for _, b := range all {
			var want []digest.Digest
			for e, named := range known {
				if slices.Contains(named, b) {
					want = append(want, e.name.Digest())
				}
			}
			slices.Sort(want)
			if got := naming(l, b); !slices.Equal(got, want) {
				t.Fatalf("seed %d: %s is named by %v, want %v", seed, b, got, want)
			}
		}
		for e := range known {
			l.remove(e)
		}
		if l.held != 0 || l.taken != 0 || len(l.free) != len(l.numbered)-1 {
			t.Fatalf("seed %d: empty, and still %d held, %d slots taken, %d of %d numbers free", seed, l.held, l.taken, len(l.free), len(l.numbered))
		}
	}
}

func TestLeastRecentlyUsedImageIsForgotten(t *testing.T) {
	l := newLayers()
	l.max = 40
	var images []*entry
	for i := range 10 {
		e := &entry{name: *numbered(i), used: compact.Time(i)}
		images = append(images, e)
		if i == 4 {
			images[0].used = 100 // again
		}
		l.add(e, names{blobs: blobs(10*i, 7), manifests: blobs(10*i+7, 3)})
	}
	for i, e := range images {
		kept := i == 0 || i >= 7
		if got := len(naming(l, blobs(10*i, 1)[0])) == 1; got != kept || (e.number != 0) != kept || (e.blobs != "") != kept || (e.lists != "") != kept {
			t.Errorf("image %d is remembered: %t, want %t", i, got, kept)
		}
	}
	if l.held != 40 {
		t.Errorf("%d digests are remembered, want 40", l.held)
	}
}

// A blob that all name must not make everything slow, nor be given out for it.
func TestBlobThatVeryManyImagesName(t *testing.T) {
	l := newLayers()
	shared, none := blobs(0, 1), blobs(1, 1)[0]
	var images []*entry
	for i := range 3 * crowd {
		e := &entry{name: *numbered(i)}
		images = append(images, e)
		l.add(e, names{blobs: append(blobs(2+i, 1), shared...)})
	}
	if n := len(naming(l, shared[0])); n != crowd || len(naming(l, none)) != 0 {
		t.Errorf("%d images are known to name the blob, want %d", n, crowd)
	}
	for i, e := range images {
		if got := naming(l, blobs(2+i, 1)[0]); len(got) != 1 || got[0] != e.name.Digest() {
			t.Fatalf("the other blob of image %d is named by %v", i, got)
		}
	}
	for _, e := range images {
		l.remove(e)
	}
	if l.held != 0 || l.taken != 0 {
		t.Errorf("empty, and still %d held, %d slots taken", l.held, l.taken)
	}
}

// grown is by how much the heap grows while make makes something.
func grown(make func() any) int64 {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	made := make()
	runtime.GC()
	runtime.ReadMemStats(&after)
	runtime.KeepAlive(made)
	return int64(after.HeapAlloc) - int64(before.HeapAlloc)
}

// TestRememberedDigestTakes64Bytes measures at sizes between two doublings of a
// table, the worst included.
func TestRememberedDigestTakes64Bytes(t *testing.T) {
	const most = 64
	const layers = 12 // of an image, its config among them
	r := newRight("docker.io/library/alpine", "")
	hash := func(i int) digest.Digest { return digest.FromString(fmt.Sprint(i)) }
	ways := map[string]func(n int) any{
		"named": func(n int) any {
			l := newLayers()
			for i := 0; i < n; i += layers {
				var named names
				for j := range layers {
					named.blobs = append(named.blobs, hash(i+j))
				}
				l.add(new(entry), named)
			}
			return l
		},
		"proven": func(n int) any {
			p := newProofs()
			for i := range n {
				r.digest = hash(i)
				p.prove(p.pair(r))
			}
			return &p
		},
		"refused": func(n int) any {
			p := newProofs()
			for i := range n {
				r.digest = hash(i)
				p.refuse(p.pair(r))
			}
			return &p
		},
	}
	for name, make := range ways {
		for _, n := range []int{98_400, 100_000, 120_000, 150_000, maxNamed} {
			if name == "refused" {
				n = min(n, maxRefused)
			}
			per := float64(grown(func() any { return make(n) })) / float64(n)
			t.Logf("%s, %d: %.1f bytes each", name, n, per)
			if per > most {
				t.Errorf("%s: %d remembered digests take %.1f bytes each, want %d at most", name, n, per, most)
			}
		}
	}
}

// opened is a cache of nothing.
func opened(t *testing.T) *Cache {
	t.Helper()
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	c, err := Open(root, Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// Who asks for blobs of repositories that there are not makes larder remember none.
func TestRefusalMakesNoRepositoryKnown(t *testing.T) {
	c := opened(t)
	c.Bound(maxNamed, maxProven, 0)
	for i := range 10 {
		c.Forget(fmt.Sprint("docker.io/nobody/", i), digest.FromString("blob"))
	}
	if n := len(c.repositories); n != 0 {
		t.Errorf("%d repositories are known, want none", n)
	}
}

// Each answer with an index looks at what it leads to, when nobody else may look at
// anything.
func TestWhatAnIndexLeadsToIsBounded(t *testing.T) {
	c := opened(t)
	index := func(of ...digest.Digest) digest.Digest {
		d := digest.FromString(fmt.Sprint(of))
		c.add(&Manifest{Descriptor: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: d}}, time.Now(), time.Now(), names{manifests: of})
		return d
	}
	var indexes []digest.Digest
	for i := range 10 {
		indexes = append(indexes, index(blobs(i*2000, 2000)...))
	}
	here, absent := c.reach(index(indexes...), nil)
	if len(here) != 11 || len(here)+len(absent) != maxReach {
		t.Errorf("%d manifests that are here and %d that are not are looked at, want 11 and %d in all", len(here), len(absent), maxReach)
	}
}

func BenchmarkNaming(b *testing.B) {
	l := newLayers()
	for i := 0; i < maxNamed; i += 10 {
		l.add(new(entry), names{blobs: blobs(i, 10)})
	}
	d := blobs(12345, 1)[0]
	b.ReportAllocs()
	for b.Loop() {
		for range l.naming(d) {
			break
		}
	}
}
