package shared

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"larder/handler/shared/storetest"
	"larder/manifestcache"
)

// TestFleetIsNeverWiderOrOlderThanANode lets a few nodes pull from two registries
// that change and fail, over a tier that is slow, fails, forgets and is damaged, and
// checks that each answer is one that upstream has given, to some node, no longer ago
// than a node on its own might still give it.
func TestFleetIsNeverWiderOrOlderThanANode(t *testing.T) {
	seeds := 100
	if testing.Short() {
		seeds = 20
	}
	for seed := range seeds {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { newWorld(t, uint64(seed)).run() })
		})
	}
}

const (
	worldTagTTL = time.Minute
	worldTTL    = time.Hour

	// slack is how long after upstream has said something it may be written down.
	slack = 10 * time.Second
)

type world struct {
	t          *testing.T
	random     *rand.Rand
	store      *storetest.Model
	tagTTL     time.Duration
	images     []document
	registries map[string]*registry
	nodes      map[string][]*larder // by repository
	trouble    atomic.Int32         // of the store: per thousand requests

	mu   sync.Mutex // guards past
	past map[string][]event
}

// event is that upstream begins or ceases to have what a key stands for: a digest in a
// repository, or a tag that points at one.
type event struct {
	at  time.Time
	has bool
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{t: t, random: rand.New(rand.NewPCG(seed, 1)), registries: make(map[string]*registry), nodes: make(map[string][]*larder), past: make(map[string][]event)}
	w.tagTTL = []time.Duration{0, worldTagTTL}[seed%2]
	w.store = &storetest.Model{
		Latency: func(storetest.Op) time.Duration {
			if rand.Int32N(1000) < w.trouble.Load() {
				return time.Duration(rand.Int64N(int64(5 * time.Second)))
			}
			return time.Millisecond
		},
		Fault: func(storetest.Op, string) error {
			if rand.Int32N(1000) < w.trouble.Load() {
				return errDown
			}
			return nil
		},
	}
	for i := range 3 {
		w.images = append(w.images, newImage(fmt.Sprint(i)))
	}
	for _, repository := range []string{alpine, "docker.io/org/private"} {
		r := newRegistry()
		r.latency = 50 * time.Millisecond
		w.registries[repository] = r
		for range 3 {
			w.nodes[repository] = append(w.nodes[repository], join(t, w.store, r, w.tagTTL, func(c *Config, m *manifestcache.Config) {
				m.TTL, c.ManifestTTL = worldTTL, worldTTL
			}))
		}
	}
	return w
}

func (w *world) run() {
	for range 60 {
		repository := []string{alpine, "docker.io/org/private"}[w.random.IntN(2)]
		switch n := w.random.IntN(30); {
		case n < 14:
			w.pull(repository, 1+w.random.IntN(4)*w.random.IntN(2))
		case n < 21:
			w.change(repository)
		case n < 24:
			time.Sleep(time.Duration(w.random.Int64N(int64(2 * worldTagTTL))))
		case n < 25:
			time.Sleep(time.Duration(w.random.Int64N(int64(2 * worldTTL))))
		case n < 27:
			w.trouble.Store([]int32{0, 0, 50, 300, 1000}[w.random.IntN(5)])
		default:
			w.damage()
		}
	}
	w.trouble.Store(0)
	for repository, r := range w.registries { // all is well again, at once
		r.stop(nil)
		w.pull(repository, 6)
	}
}

// change is something that happens at a registry.
func (w *world) change(repository string) {
	r, img := w.registries[repository], w.images[w.random.IntN(len(w.images))]
	tag := []string{"1", "2"}[w.random.IntN(2)]
	w.mu.Lock()
	defer w.mu.Unlock()
	switch n := w.random.IntN(10); {
	case n < 5:
		w.untag(repository, tag)
		r.push(img, tag)
		w.note(repository, img.digest.String(), true)
		w.note(repository, tag+"@"+img.digest.String(), true)
	case n < 6:
		w.untag(repository, tag)
		r.remove(tag)
	case n < 7:
		r.remove(img.digest.String())
		w.note(repository, img.digest.String(), false)
	case n < 8:
		r.stop(errDown)
	default:
		r.stop(nil)
	}
}

// untag notes that a tag is about to point at something else. Needs mu.
func (w *world) untag(repository, tag string) {
	for _, img := range w.images {
		w.note(repository, tag+"@"+img.digest.String(), false)
	}
}

func (w *world) note(repository, key string, has bool) {
	key = repository + " " + key
	w.past[key] = append(w.past[key], event{time.Now(), has})
}

// had reports whether upstream had something at some moment between two.
func (w *world) had(repository, key string, from, to time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	has := false
	for _, e := range w.past[repository+" "+key] {
		if e.at.After(to) {
			break
		}
		if e.at.After(from) && has {
			return true
		}
		has = e.has
		if has && !e.at.Before(from) {
			return true
		}
	}
	return has
}

// damage changes something in the tier that no node would.
func (w *world) damage() {
	keys := slices.DeleteFunc(w.store.Keys(), func(key string) bool { return key == versionKey })
	if len(keys) == 0 {
		return
	}
	key, other := keys[w.random.IntN(len(keys))], keys[w.random.IntN(len(keys))]
	quiet := w.trouble.Swap(0)
	defer w.trouble.Store(quiet)
	content := w.content(key)
	switch w.random.IntN(4) {
	case 0:
		_ = w.store.Delete(w.t.Context(), key)
	case 1:
		if len(content) > 0 {
			content[w.random.IntN(len(content))] ^= 1 << w.random.IntN(7)
		}
		put(w.t, w.store, key, content)
	case 2:
		put(w.t, w.store, key, content[:len(content)/2])
	default: // what is another's, but for a lease or what can't be told from it
		if strings.HasPrefix(other, repositoriesPrefix) || strings.HasPrefix(key, leasesPrefix) {
			put(w.t, w.store, key, w.content(other))
		}
	}
}

func (w *world) content(key string) []byte {
	return objectAt(w.t, w.store, key)
}

// pull has n clients ask at about the same time.
func (w *world) pull(repository string, n int) {
	var clients sync.WaitGroup
	for range n {
		l := w.nodes[repository][w.random.IntN(3)]
		reference := []string{"1", "1", "2", w.images[w.random.IntN(3)].digest.String()}[w.random.IntN(4)]
		late := time.Duration(w.random.Int64N(int64(200 * time.Millisecond)))
		clients.Go(func() {
			time.Sleep(late)
			w.check(repository, l, reference)
		})
	}
	clients.Wait()
}

func (w *world) check(repository string, l *larder, reference string) {
	began := time.Now()
	m, err := l.pullFrom(repository, reference)
	now := time.Now()
	if now.Sub(began) > 3*time.Second {
		w.t.Errorf("%s %s took %v", repository, reference, now.Sub(began))
	}
	if err != nil {
		if !errors.Is(err, errDown) && !errors.Is(err, errGone) {
			w.t.Errorf("%s %s: %v", repository, reference, err)
		}
		return
	}
	key, life := reference, worldTTL
	if reference != string(m.Digest) {
		key, life = reference+"@"+string(m.Digest), w.tagTTL
	}
	validated := now.Add(-m.Age)
	switch i := slices.IndexFunc(w.images, func(d document) bool { return d.digest == m.Digest }); {
	case i < 0 || digest.FromBytes(m.Body) != m.Digest || m.MediaType != w.images[i].mediaType:
		w.t.Errorf("%s %s: %s %s %q", repository, reference, m.Digest, m.MediaType, m.Body)
	case m.Outcome != stale && m.Age > 0 && m.Age >= life+now.Sub(began):
		w.t.Errorf("%s %s: %v, %v old", repository, reference, m.Outcome, m.Age)
	case !w.had(repository, key, validated.Add(-slack), validated) &&
		// To have a tag that points at it is to have it.
		(key != reference || !w.had(repository, "1@"+reference, validated.Add(-slack), validated) && !w.had(repository, "2@"+reference, validated.Add(-slack), validated)):
		w.t.Errorf("%s %s: %v, %s, which upstream did not have %v ago: %v", repository, reference, m.Outcome, m.Digest, m.Age, w.past[repository+" "+key])
	}
}
