package manifestcache_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"larder/blobcache/memory"
	"larder/handler/shared"
	"larder/handler/shared/storetest"
	"larder/manifestcache"
)

// TestRandomInterleavings lets clients, registries, the clock, restarts and hands
// in the directory loose on a cache, and compares each answer with what it has
// to be. A seed that fails can be run alone:
//
//	go test ./manifestcache -run 'TestRandomInterleavings/seed=17$'
func TestRandomInterleavings(t *testing.T) {
	seeds := interleavings
	if testing.Short() {
		seeds = 200
	}
	for seed := range seeds {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			dir := memoryDir(t)
			synctest.Test(t, func(t *testing.T) { newModel(t, uint64(seed), dir).run() })
		})
	}
}

// memoryDir is a directory in memory if there is such a thing.
func memoryDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "larder-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// model is a cache, and some repositories with much in common.
type model struct {
	t            *testing.T
	random       *rand.Rand // of the goroutine that calls run
	dir          string
	cfg          manifestcache.Config
	memory       bool // manifests are kept in memory
	bounded      bool // next to nothing is remembered
	cache        *manifestcache.Cache
	stop         func()
	documents    []document
	blobs        []digest.Digest
	repositories []*modelRepository
	trail        []string // what was done, for who has to find out what went wrong
}

func newModel(t *testing.T, seed uint64, dir string) *model {
	m := &model{t: t, random: rand.New(rand.NewPCG(seed, 0)), dir: dir, cfg: config()}
	m.cfg.StaleIf = func(err error) bool { return errors.Is(err, errDown) || errors.Is(err, manifestcache.ErrDigest) }
	m.cfg.TTL = []time.Duration{0, 0, 2 * time.Hour}[m.random.IntN(3)]
	m.cfg.TagTTL = []time.Duration{0, time.Minute}[m.random.IntN(2)]
	m.memory, m.bounded = m.random.IntN(2) == 0, m.random.IntN(3) == 0
	if m.random.IntN(2) == 0 {
		m.cfg.Shared = downTier(t) // with it, all is as without it
	}
	for i := range 3 {
		m.blobs = append(m.blobs, digest.FromString(fmt.Sprint("blob ", i)))
	}
	m.documents = []document{newImage(m.blobs[0]), newImage(m.blobs[0], m.blobs[1]), newImage(m.blobs[2]), newDocument(`{"manifests":[]}`)}
	m.documents[1].digest = digest.SHA512.FromBytes(m.documents[1].body)
	for i, name := range []string{"docker.io/library/a", "docker.io/library/b", "ghcr.io/library/a"} {
		r := newModelRepository(m, name)
		if i == 2 { // says something else of the same bytes
			r.mediaType = "application/vnd.docker.distribution.manifest.v2+json"
		}
		m.repositories = append(m.repositories, r)
		for range 2 {
			r.push()
		}
	}
	m.open()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("TTL %v, TagTTL %v, shared %v, memory %v, bounded %v\n%s", m.cfg.TTL, m.cfg.TagTTL, m.cfg.Shared != nil, m.memory, m.bounded, m.trail)
		}
	})
	return m
}

// downTier is one of which the store is down.
func downTier(t *testing.T) *shared.Tier {
	tier := shared.New(shared.Config{
		Store:   &storetest.Model{Fault: func(storetest.Op, string) error { return errors.New("connection refused") }},
		Timeout: 2 * time.Second, TagTTL: time.Minute,
	})
	t.Cleanup(func() { tier.Close() })
	return tier
}

func (m *model) note(format string, args ...any) {
	m.trail = append(m.trail, fmt.Sprintf(format, args...)+"\n")
}

func (m *model) open() {
	if m.memory {
		m.cfg.Memory = memory.New(1 << 20)
	}
	m.cache, m.stop = running(m.t, m.dir, m.cfg)
	if m.bounded {
		m.cache.Bound(3, 2, maxRefused)
	}
}

// maxRefused is how many refusals are remembered if next to nothing is.
const maxRefused = 2

func (m *model) document() document { return m.documents[m.random.IntN(len(m.documents))] }

func (m *model) run() {
	for range 10 + m.random.IntN(40) {
		if m.t.Failed() {
			return
		}
		r := m.repositories[m.random.IntN(len(m.repositories))]
		switch n := m.random.IntN(60); {
		case n < 20:
			r.pullTag(tags[m.random.IntN(len(tags))])
		case n < 32:
			r.pullDigest(m.document())
		case n < 44:
			r.change()
		case n < 48:
			time.Sleep(time.Duration(m.random.Int64N(int64(2 * time.Minute))))
		case n < 50:
			time.Sleep(time.Duration(m.random.Int64N(int64(3 * time.Hour))))
		case n < 52:
			m.restart()
		case n < 54:
			m.storm()
		case n < 56:
			r.learn(m.blobs[m.random.IntN(len(m.blobs))])
		default:
			r.damage()
		}
		synctest.Wait()
		m.wantRights()
	}
	for _, r := range m.repositories { // all is well again, at once
		r.mood, r.silent = well, false
		for _, tag := range tags {
			r.pullTag(tag)
		}
		for _, doc := range m.documents {
			r.pullDigest(doc)
		}
	}
	m.wantRights()
}

// restart ends the cache, which a crash would do no worse: all its files are
// whole or not there.
func (m *model) restart() {
	m.note("restart")
	m.stop()
	m.writeFile(filepath.Join(m.dir, "tmp", "left"), []byte("by a crash"))
	for _, doc := range m.documents { // the bubble's clock is not that of the files
		if fi, err := os.Stat(manifestPath(m.dir, doc.digest)); err == nil && fi.ModTime().After(time.Now()) {
			m.must(os.Chtimes(manifestPath(m.dir, doc.digest), time.Now(), time.Now()))
		}
	}
	m.open()
	for _, r := range m.repositories {
		r.reread()
	}
}

// storm has everything happen at the same time. What may be answered is then
// less clear, but for bytes that are wrong and repositories that never had them.
func (m *model) storm() {
	m.note("storm")
	for _, r := range m.repositories {
		r.slow = true
	}
	var clients sync.WaitGroup
	for range 3 + m.random.IntN(10) {
		r := m.repositories[m.random.IntN(len(m.repositories))]
		switch m.random.IntN(6) {
		case 0, 1:
			tag := tags[m.random.IntN(len(tags))]
			clients.Go(func() {
				got, err := m.cache.ByTag(m.t.Context(), r.name, tag, r)
				r.wantPossible(tag, got, err)
			})
		case 2, 3:
			d := m.document().digest
			clients.Go(func() {
				got, err := m.cache.ByDigest(m.t.Context(), r.name, d, r)
				r.wantPossible(d.String(), got, err)
			})
		case 4:
			r.change()
		default:
			time.Sleep(time.Duration(m.random.Int64N(int64(3 * time.Second))))
		}
	}
	clients.Wait()
	for _, r := range m.repositories {
		r.slow = false
	}
	m.restart() // and go on from what is on disk
	for _, r := range m.repositories {
		r.relearn()
	}
}

// wantRights checks whom the cache says that a blob may be given to.
func (m *model) wantRights() {
	for _, r := range m.repositories {
		for _, b := range m.blobs {
			least, most := r.wantRight(b)
			if got := m.cache.Refers(r.name, b); got < least || got > most {
				m.t.Errorf("%s has blob %s: %v, want %v to %v", r.name, b[:12], got, least, most)
			}
		}
	}
}

// fresh reports whether what was validated then is taken for granted.
func (m *model) fresh(at time.Time) bool { return m.cfg.TTL == 0 || time.Since(at) < m.cfg.TTL }

// stored is the media type under which a document is on disk; "" if its file is
// not there, or not what it was.
func (m *model) stored(doc document) string {
	data, err := os.ReadFile(manifestPath(m.dir, doc.digest))
	if err != nil {
		return ""
	}
	line, body, _ := bytes.Cut(data, []byte("\n"))
	var head struct {
		MediaType string
		Sum       uint32
		Size      int
	}
	if json.Unmarshal(line, &head) != nil || head.Sum != crc32.ChecksumIEEE([]byte(head.MediaType)) || head.Size != len(body) || !bytes.Equal(body, doc.body) {
		return ""
	}
	return head.MediaType
}

func (m *model) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Error(err)
	}
}

func (m *model) writeFile(path string, data []byte) {
	m.t.Helper()
	m.must(os.MkdirAll(filepath.Dir(path), 0o700))
	m.must(os.WriteFile(path, data, 0o600))
}

// herd has n clients ask the same at the same time; some of them leave. It
// returns the answers to those who stay, which are one.
func (r *modelRepository) herd(ask func(ctx context.Context) (*manifestcache.Manifest, error)) (got *manifestcache.Manifest, err error) {
	n := 1 + r.random.IntN(4)*r.random.IntN(2)
	leaver, leave := context.WithCancel(r.t.Context())
	r.asked, r.gate = nil, make(chan struct{})
	results := make([]*manifestcache.Manifest, n)
	errs := make([]error, n)
	var clients sync.WaitGroup
	for i := range n {
		ctx := r.t.Context()
		if n > 2 && i == 0 {
			ctx = leaver
		}
		clients.Go(func() { results[i], errs[i] = ask(ctx) })
	}
	synctest.Wait()
	leave()
	synctest.Wait()
	close(r.gate)
	clients.Wait()
	r.gate = nil
	last := n - 1
	for i := range n {
		stays := n <= 2 || i > 0
		if same := errors.Is(errs[i], errs[last]) && (errs[i] == nil) == (errs[last] == nil); stays && (!same || errs[i] == nil && (results[i].Digest != results[last].Digest || results[i].Outcome != results[last].Outcome)) {
			r.t.Errorf("%s: one of a herd got %v, %v, another %v, %v", r.name, results[i], errs[i], results[last], errs[last])
		}
	}
	return results[last], errs[last]
}
