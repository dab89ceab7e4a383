package compact_test

import (
	_ "crypto/sha512" // for its digests
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"larder/blobcache/compact"
)

func digests(n int) (list []digest.Digest) {
	for i := range n {
		of := []digest.Algorithm{digest.SHA256, digest.SHA384, digest.SHA512}[i%3]
		list = append(list, of.FromString(fmt.Sprint(i)))
	}
	return list
}

func TestDigestIsWhatItWasMadeOf(t *testing.T) {
	for _, d := range digests(300) {
		c := compact.Of(d)
		if got := c.Digest(); got != d {
			t.Errorf("Of(%s) is %s", d, got)
		}
	}
}

func TestDigestsAreInTheOrderOfTheirTexts(t *testing.T) {
	texts := digests(300)
	list := make([]compact.Digest, len(texts))
	for i, d := range texts {
		list[i] = compact.Of(d)
	}
	slices.Sort(texts)
	slices.SortFunc(list, func(a, b compact.Digest) int { return a.Compare(&b) })
	for i, c := range list {
		if c.Digest() != texts[i] {
			t.Fatalf("number %d is %s, want %s", i, c.Digest(), texts[i])
		}
		if i == 0 {
			continue
		}
		const algorithmAndByte = len("sha256:") + 2
		alike := strings.HasPrefix(string(texts[i]), string(texts[i-1][:algorithmAndByte]))
		if got := c.BeginsAs(&list[i-1]); got != alike {
			t.Errorf("%s begins as %s: %v", texts[i], texts[i-1], got)
		}
	}
}

func TestTimeIsWhatItWasMadeOf(t *testing.T) {
	for _, at := range []time.Time{time.Now(), time.Unix(0, 0), time.Date(1901, 1, 2, 3, 4, 5, 6, time.UTC)} {
		if got := compact.TimeOf(at).Time(); !got.Equal(at) {
			t.Errorf("%v has become %v", at, got)
		}
	}
}

func TestSecondsAreOfTheirYears(t *testing.T) {
	now := time.Now()
	for at, want := range map[time.Time]time.Time{
		now:                     now.Truncate(time.Second),
		time.Unix(0, 0):         time.Unix(0, 0),
		time.Unix(-1, 0):        time.Unix(0, 0),
		time.Unix(1<<32-1, 999): time.Unix(1<<32-1, 0),
		time.Unix(1<<32, 0):     time.Unix(1<<32-1, 0),
		{}:                      time.Unix(0, 0),
		time.Unix(1<<62, 0):     time.Unix(1<<32-1, 0),
	} {
		if got := compact.SecondsOf(at).Time(); !got.Equal(want) {
			t.Errorf("%v has become %v, want %v", at, got, want)
		}
	}
}

// thing has a digest.
type thing struct{ name compact.Digest }

func (t *thing) Name() *compact.Digest { return &t.name }

// TestTableFindsWhatIsInIt does at random what a map does too.
func TestTableFindsWhatIsInIt(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	names := digests(2000)
	var table compact.Table[*thing]
	want := make(map[digest.Digest]*thing)
	if table.Get(names[0]) != nil {
		t.Error("an empty table has something")
	}
	for step := range 40_000 {
		d := names[random.IntN(len(names))]
		if phase := step / 10_000 % 2; random.IntN(4) == phase*2 { // it grows, and shrinks, and grows
			table.Delete(&thing{compact.Of(d)}) // has the digest, and is not in it
			if e := want[d]; e != nil {
				table.Delete(e)
				delete(want, d)
			}
		} else if e := (&thing{compact.Of(d)}); phase == 0 || random.IntN(8) == 0 {
			table.Put(e)
			want[d] = e
		} else if old := want[d]; old != nil {
			table.Delete(old)
			delete(want, d)
		}
		if got := table.Get(d); got != want[d] || table.Len() != len(want) {
			t.Fatalf("step %d: Get(%s) = %p of %d, want %p of %d", step, d, got, table.Len(), want[d], len(want))
		}
	}
	for _, d := range names {
		if got := table.Get(d); got != want[d] {
			t.Errorf("Get(%s) = %p, want %p", d, got, want[d])
		}
	}
	n := 0
	for e := range table.All() {
		if n++; want[e.name.Digest()] != e {
			t.Errorf("%s is listed", e.name.Digest())
		}
	}
	if n != len(want) {
		t.Errorf("%d are listed, want %d", n, len(want))
	}
}

// TestNothingHasWhatIsNoDigest asks for what comes from outside.
func TestNothingHasWhatIsNoDigest(t *testing.T) {
	var table compact.Table[*thing]
	d := digest.FromString("")
	e := &thing{compact.Of(d)}
	table.Put(e)
	for _, no := range []digest.Digest{"", ":", "sha256", "sha256:", "sha256:00", d[:len(d)-1], d[:len(d)-2], d + "z", d + digest.Digest(strings.Repeat("00", 100))} {
		if got := table.Get(no); got != nil {
			t.Errorf("%q is found", no)
		}
	}
	if table.Get(d) != e {
		t.Error("what is there is not found")
	}
}
