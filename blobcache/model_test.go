package blobcache_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"larder/blobcache"
	"larder/blobcache/memory"
)

// errStuck ends what would wait for ever.
var errStuck = errors.New("stuck")

// TestRandomInterleavings lets clients, faults, the clock, restarts, crashes
// and hands in the directory loose on a cache. A seed that fails can be run
// alone:
//
//	go test ./blobcache -run 'TestRandomInterleavings/seed=17$'
func TestRandomInterleavings(t *testing.T) {
	seeds := interleavings
	if testing.Short() {
		seeds = 300
	}
	for seed := range seeds {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			dir := memoryDir(t)
			synctest.Test(t, func(t *testing.T) { newModel(t, uint64(seed), dir).run() })
		})
	}
}

// memoryDir is a directory in memory if there is such a thing: ten thousand
// tests must not wait for a disk.
func memoryDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "larder-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// model is a cache, its clients and its upstream.
type model struct {
	t       *testing.T
	random  *rand.Rand // of the goroutine that calls run
	base    string
	dir     string
	cfg     blobcache.Config
	large   bool // blobs, and what is fetched at once, are as in life
	memory  bool // small blobs are kept in memory
	crashes int64
	cache   *blobcache.Cache
	stop    func()
	blobs   []*modelBlob

	clients  sync.WaitGroup
	truthful atomic.Bool // upstream has no faults any more
	full     atomic.Bool // the disk is
}

// owners are for whom blobs are kept.
var owners = []string{"", "one", "two/a", "two/b"}

func newModel(t *testing.T, seed uint64, base string) *model {
	m := &model{t: t, random: rand.New(rand.NewPCG(seed, 0)), base: base, dir: filepath.Join(base, "0"), large: seed%500 == 0}
	m.cfg.Linger = []time.Duration{0, time.Second, 30 * time.Second}[m.random.IntN(3)]
	m.cfg.TTL = []time.Duration{0, 0, 2 * time.Hour}[m.random.IntN(3)]
	m.cfg.Connections = []int{1, 4}[m.random.IntN(2)]
	m.memory = m.random.IntN(2) == 0
	m.cfg.ScrubInterval = []time.Duration{0, time.Minute, 10 * time.Hour}[m.random.IntN(3)]
	if !m.large && m.random.IntN(3) == 0 {
		m.cfg.MaxSize.Bytes = 1 + m.random.Int64N(500_000)
	}
	if !m.large && m.random.IntN(4) == 0 {
		m.cfg.Quotas = []blobcache.Quota{{Owner: "two", Bytes: 1 + m.random.Int64N(400_000)}, {Owner: "two/b", Bytes: 100_000}}
	}
	if err := os.Mkdir(m.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range 1 + m.random.IntN(3) {
		b := m.newBlob(seed<<2 | uint64(i))
		if slices.ContainsFunc(m.blobs, func(o *modelBlob) bool { return o.digest == b.digest }) {
			continue // there is only one of size 0
		}
		m.blobs = append(m.blobs, b)
	}
	m.open()
	return m
}

func (m *model) open() {
	if m.memory {
		m.cfg.Memory = memory.New(1 << 20)
	}
	m.cache, m.stop = running(m.t, m.dir, m.cfg)
	if !m.large {
		m.cache.Shrink()
	}
	m.cache.FailWrites(func() error {
		if m.full.Load() {
			return syscall.ENOSPC
		}
		return nil
	})
	synctest.Wait()
}

func (m *model) run() {
	for range 6 + m.random.IntN(24) {
		b := m.blobs[m.random.IntN(len(m.blobs))]
		m.wantWithinBudget()
		switch n := m.random.IntN(41); {
		case n < 20:
			m.startClient(b)
		case n < 23:
			m.startChunks(b)
		case n < 30:
			time.Sleep(time.Duration(m.random.Int64N(int64(20 * time.Second))))
		case n < 32:
			time.Sleep(time.Duration(m.random.Int64N(int64(5 * time.Hour))))
		case n < 36:
			m.restart()
		case n < 37 && m.mayBeFull():
			m.full.Store(!m.full.Load())
		case !b.gentle:
			synctest.Wait() // until all others wait: nothing happens beside this
			b.damage(blobPath(m.dir, b.digest))
		}
	}
	m.clients.Wait()
	time.Sleep(m.cfg.Linger + time.Minute) // for the fills that nobody wants
	m.truthful.Store(true)
	m.full.Store(false)
	if m.random.IntN(2) == 0 || m.memory { // what is in memory says nothing of its file
		m.restart()
	}
	for _, b := range m.blobs {
		b.wantAfterAll()
	}
	synctest.Wait()
	m.stop()
	m.wantCleanDirectory()
	for _, b := range m.blobs {
		if n := b.open.Load(); n != 0 {
			m.t.Errorf("%d bodies were not closed", n)
		}
	}
}

// mayBeFull reports whether no blob is one of which everything must be kept.
func (m *model) mayBeFull() bool {
	return !slices.ContainsFunc(m.blobs, func(b *modelBlob) bool { return b.gentle })
}

// wantWithinBudget checks what the cache says of itself, unless somebody has
// made its files larger.
func (m *model) wantWithinBudget() {
	s := m.cache.Stats()
	if slices.ContainsFunc(m.blobs, func(b *modelBlob) bool { return b.wrong.Load() }) {
		return
	}
	if held := s.Bytes + s.PartialBytes + s.Reserved; s.MaxBytes > 0 && held > s.MaxBytes {
		m.t.Errorf("%d bytes are kept (%d partial, %d reserved), want %d at most", held, s.PartialBytes, s.Reserved, s.MaxBytes)
	}
}

// restart closes the cache, while it is in use, and opens it again; or it lets
// it crash, and goes on with what was on disk.
func (m *model) restart() {
	synctest.Wait()
	if m.random.IntN(2) == 0 {
		m.crashes++
		m.dir = filepath.Join(m.base, fmt.Sprint(m.crashes))
		if err := os.CopyFS(m.dir, os.DirFS(filepath.Join(m.base, fmt.Sprint(m.crashes-1)))); err != nil {
			m.t.Error(err)
		}
	}
	m.stop()
	for _, b := range m.blobs {
		if b.gentle {
			continue
		}
		partial := partialPath(m.dir, b.digest)
		for _, path := range []string{blobPath(m.dir, b.digest), partial, partial + ".extents"} {
			if m.random.IntN(4) == 0 {
				b.damage(path)
			}
		}
	}
	m.open()
}

// startClient starts a client of b. It ends by itself.
func (m *model) startClient(b *modelBlob) {
	c := &client{modelBlob: b, cache: m.cache, random: rand.New(rand.NewPCG(m.random.Uint64(), 0)), length: -1, limit: -1, owner: owners[m.random.IntN(len(owners))]}
	size := int64(len(b.data))
	switch m.random.IntN(5) {
	case 0: // a part
		c.began = m.random.Int64N(size + 1)
		c.length = m.random.Int64N(size-c.began+1) / (1 + m.random.Int64N(20))
		c.limit = c.length
	case 1: // open-ended
		c.began = m.random.Int64N(size + 1)
	case 2: // the last bytes
		c.began = max(size-1-m.random.Int64N(10_000), 0)
		c.length = size - c.began
	case 3:
		if m.random.IntN(4) == 0 { // what isn't there
			c.began = size + m.random.Int64N(100_000)
		}
	}
	m.clients.Go(c.run)
}

// startChunks starts clients as containerd does: high offsets before low ones,
// each open-ended, and hung up on after its chunk.
func (m *model) startChunks(b *modelBlob) {
	chunk := int64(len(b.data))/(2+m.random.Int64N(8)) + 1
	for offset := int64(len(b.data)) / chunk * chunk; offset >= 0; offset -= chunk {
		c := &client{modelBlob: b, cache: m.cache, random: rand.New(rand.NewPCG(m.random.Uint64(), 0)), began: offset, length: -1, limit: chunk}
		m.clients.Go(c.run)
		if m.random.IntN(2) == 0 {
			synctest.Wait()
		}
	}
}

// client reads a blob.
type client struct {
	*modelBlob
	cache         *blobcache.Cache
	random        *rand.Rand
	began, length int64 // what it asks for
	limit         int64 // how much it reads, -1: to the end
	owner         string

	blob    *blobcache.Blob
	damages int64 // of its blob, before it asked
	start   int64 // where it began to read without a gap
	offset  int64
	bad     bool // it has had a wrong byte since start
}

func (c *client) run() {
	ctx, cancel := context.WithTimeoutCause(c.t.Context(), 100*time.Hour, errStuck)
	defer cancel()
	if c.random.IntN(3) == 0 {
		ctx, cancel = context.WithTimeout(ctx, time.Duration(c.random.Int64N(int64(time.Minute))))
		defer cancel()
	}
	c.damages = c.damaged.Load()
	var err error
	if c.blob, err = c.cache.GetRange(ctx, c.digest, c.began, c.length, blobcache.Source{Fetch: c.fetch, Owner: c.owner}); err != nil {
		c.wantError(err)
		return
	}
	defer c.blob.Content.Close()
	if c.blob.Size != int64(len(c.data)) && c.blob.Size != -1 && !c.wrong.Load() {
		c.t.Errorf("size %d, want %d", c.blob.Size, len(c.data))
	}
	if c.blob.Size >= 0 && c.random.IntN(2) == 0 {
		if _, err := c.blob.Content.Seek(0, io.SeekEnd); err != nil {
			c.t.Error(err)
		}
		c.seek(0)
	}
	if c.began > 0 && (c.blob.Size < 0 || !c.seek(c.began)) {
		return
	}
	for !c.step() {
	}
}

func (c *client) seek(offset int64) bool {
	if got, err := c.blob.Content.Seek(offset, io.SeekStart); got != offset || err != nil {
		c.t.Errorf("seek to %d: %d, %v", offset, got, err)
		return false
	}
	if offset != c.offset {
		c.start, c.offset, c.bad = offset, offset, false
	}
	return true
}

// step does one thing, and reports whether the client is done.
func (c *client) step() bool {
	length := 1 + c.random.Int64N(int64(12*c.pieces))
	switch n := c.random.IntN(60); {
	case n == 0, c.limit >= 0 && c.offset >= c.began+c.limit:
		return true // leaves early
	case n < 3:
		time.Sleep(time.Duration(c.random.Int64N(int64(10 * time.Second))))
		return false
	case n < 5 && c.blob.Size >= 0 && c.limit < 0:
		return !c.seek(c.random.Int64N(int64(len(c.data)) + 10))
	case c.limit >= 0:
		length = min(length, c.began+c.limit-c.offset)
	}
	var buf bytes.Buffer
	var err error
	s, ok := c.blob.Content.(interface {
		SendTo(w io.Writer, n int64) (int64, error)
	})
	if ok && c.random.IntN(2) == 0 {
		_, err = s.SendTo(&buf, length)
	} else {
		p := make([]byte, length)
		var n int
		n, err = c.blob.Content.Read(p)
		buf.Write(p[:n])
	}
	return c.got(buf.Bytes(), err)
}

// got checks what a read has brought, and reports whether it was the end.
func (c *client) got(p []byte, err error) bool {
	size := int64(len(c.data))
	if len(p) > 0 {
		end := c.offset + int64(len(p))
		if end > size || !bytes.Equal(p, c.data[c.offset:end]) {
			c.bad = true
		}
		c.offset = end
	}
	if c.bad && !c.wrong.Load() {
		c.t.Errorf("%v: wrong bytes before %d of %d", c.blob.Outcome, c.offset, size)
		return true
	}
	// What is done to a file while it is read is no cache's fault.
	whole := c.start == 0 && c.damages == c.damaged.Load()
	if whole && c.bad && (errors.Is(err, io.EOF) || c.blob.Size >= 0 && c.offset >= c.blob.Size) {
		c.t.Errorf("%v: all %d bytes of a wrong blob, %v", c.blob.Outcome, c.offset, err)
	}
	if err == nil {
		return false
	}
	if !errors.Is(err, io.EOF) {
		c.wantError(err)
	} else if c.offset < size && (whole || !c.wrong.Load()) {
		c.t.Errorf("%v: end of file at %d, size %d", c.blob.Outcome, c.offset, size)
	}
	return true
}

// wantError checks that err is one that a client may see.
func (b *modelBlob) wantError(err error) {
	for _, may := range []error{errFault, io.ErrUnexpectedEOF, blobcache.ErrClosed, fs.ErrClosed, context.DeadlineExceeded} {
		if errors.Is(err, may) {
			return
		}
	}
	if !b.wrong.Load() || errors.Is(err, errStuck) {
		b.t.Errorf("%v (no range: %v, no size: %v)", err, b.noRange, b.shy)
	}
}

// wantAfterAll checks that an upstream without faults is enough.
func (b *modelBlob) wantAfterAll() {
	var err error
	tries := 1
	if b.wrong.Load() {
		tries = 2 // the first may find out that what was kept is wrong
	}
	for range tries {
		var blob *blobcache.Blob
		if blob, err = b.cache.Get(b.t.Context(), b.digest, b.fetch); err == nil {
			var got []byte
			got, err = io.ReadAll(blob.Content)
			blob.Content.Close()
			if err == nil && !bytes.Equal(got, b.data) {
				b.t.Errorf("%v: %d wrong bytes, size %d", blob.Outcome, len(got), len(b.data))
			}
		}
		if err == nil {
			break
		}
	}
	if err != nil {
		b.t.Errorf("upstream has no faults (it lied: %v), but: %v", b.liar, err)
	}
	lost := b.crashes * int64(16<<10+5*b.pieces) // what arrived after the extents were last written
	whole := 2 << 10
	if b.large { // and what arrives within saveAtMost, which here may be all
		lost, whole = b.crashes*int64(len(b.data)), 64<<10
	}
	if again := b.sentAgain(); b.gentle && again > lost && len(b.data) > whole { // of a small one nothing is kept
		b.t.Errorf("%d bytes of %d were fetched again, want %d at most", again, len(b.data), lost)
	}
}

// wantCleanDirectory checks that each file has the digest it is named after,
// and that there are no other files.
func (m *model) wantCleanDirectory() {
	err := filepath.WalkDir(m.dir, func(path string, de fs.DirEntry, err error) error {
		if err != nil || de.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if filepath.Base(filepath.Dir(path)) == "owners" {
			return m.wantOwned(de.Name(), err)
		}
		if path == filepath.Join(m.dir, "scrub") {
			return err
		}
		if digest.FromBytes(data).Encoded() != de.Name() {
			m.t.Errorf("left in %s: %d bytes with another digest", path, len(data))
		}
		return err
	})
	if err != nil {
		m.t.Error(err)
	}
}

// wantOwned checks that there is a blob for the file that says whose it is.
func (m *model) wantOwned(name string, err error) error {
	algorithm, hex, _ := strings.Cut(name, "-")
	if _, err := os.Stat(filepath.Join(m.dir, algorithm, hex[:2], hex)); err != nil {
		m.t.Errorf("an owner of nothing: %v", err)
	}
	return err
}
