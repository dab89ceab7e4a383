package blobcache_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"larder/blobcache"
)

// source is a blob and what fetching it does. Its calls say what was asked for.
type source struct {
	data   []byte
	digest digest.Digest
	body   func(rest []byte, offset int64) io.Reader // nil: all of it
	size   func() int64                              // nil: the right one
	err    error

	mu    sync.Mutex
	calls []int64 // the offsets
}

func newSource(size int) *source {
	data := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{byte(size), byte(size >> 8), byte(size >> 16)}).Read(data)
	return &source{data: data, digest: digest.FromBytes(data)}
}

func (s *source) fetch(_ context.Context, offset, _ int64) (io.ReadCloser, int64, error) {
	s.mu.Lock()
	s.calls = append(s.calls, offset)
	s.mu.Unlock()
	if s.err != nil {
		return nil, 0, s.err
	}
	size := int64(len(s.data))
	if s.size != nil {
		size = s.size()
	}
	rest := s.data[min(offset, int64(len(s.data))):]
	if s.body == nil {
		return io.NopCloser(bytes.NewReader(rest)), size, nil
	}
	return io.NopCloser(s.body(rest, offset)), size, nil
}

func (s *source) offsets() []int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]int64{}, s.calls...)
}

// noFetch is for blobs that must come from disk.
func noFetch(t *testing.T) blobcache.Fetch {
	return func(context.Context, int64, int64) (io.ReadCloser, int64, error) {
		t.Error("fetched, want it from disk")
		return nil, 0, errors.New("upstream is not to be asked")
	}
}

// gated reads as r does, but holds what is behind the first n bytes back until
// open is closed.
type gated struct {
	r    io.Reader
	n    int64
	open <-chan struct{}
}

func (g *gated) Read(p []byte) (int, error) {
	if g.n <= 0 {
		<-g.open
		return g.r.Read(p)
	}
	n, err := g.r.Read(p[:min(int64(len(p)), g.n)])
	g.n -= int64(n)
	return n, err
}

// gate makes s hold everything behind n bytes of the blob back until the
// returned channel is closed.
func (s *source) gate(n int64) chan struct{} {
	open := make(chan struct{})
	s.body = func(rest []byte, offset int64) io.Reader {
		return &gated{r: bytes.NewReader(rest), n: n - offset, open: open}
	}
	return open
}

func openCache(t testing.TB, dir string, cfg blobcache.Config) *blobcache.Cache {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	c, err := blobcache.Open(root, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func get(t testing.TB, c *blobcache.Cache, s *source) *blobcache.Blob {
	t.Helper()
	b, err := c.Get(t.Context(), s.digest, s.fetch)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Content.Close() })
	return b
}

// wantBlob reads b to its end and compares.
func wantBlob(t testing.TB, b *blobcache.Blob, want []byte, outcome blobcache.Outcome) {
	t.Helper()
	got, err := io.ReadAll(b.Content)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("read %d bytes, %v; want the %d of the blob", len(got), err, len(want))
	}
	if b.Outcome != outcome {
		t.Errorf("outcome %v, want %v", b.Outcome, outcome)
	}
	b.Content.Close()
}

func blobPath(dir string, d digest.Digest) string {
	return filepath.Join(dir, string(d.Algorithm()), d.Encoded()[:2], d.Encoded())
}

func partialPath(dir string, d digest.Digest) string {
	return filepath.Join(dir, "tmp", string(d.Algorithm())+"-"+d.Encoded())
}

// waitIdle returns when no fill is running.
func waitIdle(t testing.TB, c *blobcache.Cache) {
	t.Helper()
	for deadline := time.After(10 * time.Second); c.Stats().Fills > 0; {
		select {
		case <-deadline:
			t.Fatal("a fill is still running after 10s")
		case <-time.After(time.Millisecond):
		}
	}
}

func TestMissIsStoredUnderItsDigestAndThenHit(t *testing.T) {
	for _, size := range []int{0, 1, 100, 64 << 10, 64<<10 + 1, 3 << 20} {
		dir := t.TempDir()
		c := openCache(t, dir, blobcache.Config{})
		s := newSource(size)
		b := get(t, c, s)
		if b.Size != int64(size) {
			t.Errorf("size %d: Size = %d", size, b.Size)
		}
		wantBlob(t, b, s.data, blobcache.Miss)
		waitIdle(t, c)

		b = get(t, c, s)
		if !b.Stored() {
			t.Errorf("size %d: a hit's content is a %T, want a stored file's", size, b.Content)
		}
		wantBlob(t, b, s.data, blobcache.Hit)
		if n := len(s.offsets()); n != 1 {
			t.Errorf("size %d: fetched %d times, want 1", size, n)
		}
		data, err := os.ReadFile(blobPath(dir, s.digest))
		if err != nil || digest.FromBytes(data) != s.digest {
			t.Errorf("size %d: file has digest %v, %v", size, digest.FromBytes(data), err)
		}
		if got, ok := c.Size(s.digest); !ok || got != int64(size) {
			t.Errorf("Size = %d, %v; want %d", got, ok, size)
		}
	}
}

func TestSHA512(t *testing.T) {
	c := openCache(t, t.TempDir(), blobcache.Config{})
	s := newSource(1 << 20)
	s.digest = digest.SHA512.FromBytes(s.data)
	wantBlob(t, get(t, c, s), s.data, blobcache.Miss)
	waitIdle(t, c)
	wantBlob(t, get(t, c, s), s.data, blobcache.Hit)
}

func TestFirstBytesAreReadBeforeTheLastArrive(t *testing.T) {
	c := openCache(t, t.TempDir(), blobcache.Config{})
	s := newSource(1 << 20)
	open := s.gate(300 << 10)
	b := get(t, c, s)
	first := make([]byte, 300<<10)
	if _, err := io.ReadFull(b.Content, first); err != nil || !bytes.Equal(first, s.data[:len(first)]) {
		t.Fatalf("first bytes: %v", err)
	}
	if size, ok := c.Size(s.digest); !ok || size != 1<<20 {
		t.Errorf("Size in flight = %d, %v; want %d", size, ok, 1<<20)
	}
	close(open)
	wantBlob(t, b, s.data[300<<10:], blobcache.Miss)
}

func TestJoinersShareOneFetchAndOutliveItsStarter(t *testing.T) {
	c := openCache(t, t.TempDir(), blobcache.Config{})
	s := newSource(2 << 20)
	open := s.gate(1 << 20)

	ctx, leave := context.WithCancel(t.Context())
	starter, err := c.Get(ctx, s.digest, s.fetch)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	joined := make(chan struct{}, 50)
	for range 50 {
		wg.Go(func() {
			b, err := c.Get(t.Context(), s.digest, noFetch(t))
			joined <- struct{}{}
			if err != nil {
				t.Error(err)
				return
			}
			wantBlob(t, b, s.data, blobcache.Join)
		})
	}
	for range 50 {
		<-joined
	}
	leave()
	if _, err := io.Copy(io.Discard, starter.Content); !errors.Is(err, context.Canceled) {
		t.Errorf("starter's read after it left: %v, want %v", err, context.Canceled)
	}
	starter.Content.Close()
	close(open)
	wg.Wait()
	if got := c.Stats(); got.Misses != 1 || got.Joins != 50 || got.Fetched != 2<<20 {
		t.Errorf("misses %d, joins %d, fetched %d; want 1, 50, %d", got.Misses, got.Joins, got.Fetched, 2<<20)
	}
}

func TestManyAskingAtOnceFetchOnce(t *testing.T) {
	c := openCache(t, t.TempDir(), blobcache.Config{})
	for round := range 50 {
		s := newSource(100<<10 + round)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				b, err := c.Get(t.Context(), s.digest, s.fetch)
				if err != nil {
					t.Error(err)
					return
				}
				got, err := io.ReadAll(b.Content)
				if err != nil || !bytes.Equal(got, s.data) {
					t.Errorf("read %d bytes, %v", len(got), err)
				}
				b.Content.Close()
			})
		}
		wg.Wait()
		if n := len(s.offsets()); n != 1 {
			t.Fatalf("round %d: fetched %d times, want 1", round, n)
		}
	}
}

func TestReaderThatDoesNotReadHoldsNobody(t *testing.T) {
	c := openCache(t, t.TempDir(), blobcache.Config{})
	s := newSource(8 << 20)
	slow := get(t, c, s)
	wantBlob(t, get(t, c, s), s.data, blobcache.Join)
	wantBlob(t, slow, s.data, blobcache.Miss)
}

func TestSizeUnknownUntilTheEnd(t *testing.T) {
	c := openCache(t, t.TempDir(), blobcache.Config{})
	s := newSource(1 << 20)
	s.size = func() int64 { return -1 }
	open := s.gate(1 << 19)
	b := get(t, c, s)
	if b.Size != -1 {
		t.Errorf("Size = %d, want -1", b.Size)
	}
	if _, ok := c.Size(s.digest); ok {
		t.Error("Size is known, want not")
	}
	close(open)
	wantBlob(t, b, s.data, blobcache.Miss)
	waitIdle(t, c)
	if b := get(t, c, s); b.Size != 1<<20 || b.Outcome != blobcache.Hit {
		t.Errorf("afterwards: size %d, %v; want %d, hit", b.Size, b.Outcome, 1<<20)
	}
}

func TestFetchErrorIsGetsError(t *testing.T) {
	dir := t.TempDir()
	c := openCache(t, dir, blobcache.Config{})
	s := newSource(1 << 20)
	s.err = errors.New("404")
	if _, err := c.Get(t.Context(), s.digest, s.fetch); !errors.Is(err, s.err) {
		t.Errorf("Get: %v, want %v", err, s.err)
	}
	waitIdle(t, c)
	if _, err := os.Stat(partialPath(dir, s.digest)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("empty partial file left: %v", err)
	}
	s.err = nil
	wantBlob(t, get(t, c, s), s.data, blobcache.Miss)
}

func TestDamagedFilesAreFetchedAnew(t *testing.T) {
	damage := map[string]func(path string) error{
		"truncated": func(path string) error { return os.Truncate(path, 10) },
		"emptied":   func(path string) error { return os.Truncate(path, 0) },
		"deleted":   os.Remove,
		"a directory": func(path string) error {
			return errors.Join(os.Remove(path), os.MkdirAll(filepath.Join(path, "sub"), 0o700))
		},
		"a link out of the cache": func(path string) error {
			return errors.Join(os.Remove(path), os.Symlink("/etc/passwd", path))
		},
		"a dangling link": func(path string) error {
			return errors.Join(os.Remove(path), os.Symlink("nowhere", path))
		},
	}
	for name, do := range damage {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c := openCache(t, dir, blobcache.Config{})
			s := newSource(100 << 10)
			wantBlob(t, get(t, c, s), s.data, blobcache.Miss)
			waitIdle(t, c)
			if err := do(blobPath(dir, s.digest)); err != nil {
				t.Fatal(err)
			}
			wantBlob(t, get(t, c, s), s.data, blobcache.Miss)
			waitIdle(t, c)
			wantBlob(t, get(t, c, s), s.data, blobcache.Hit)
		})
	}
}
