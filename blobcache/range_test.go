package blobcache_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"larder/blobcache"
)

// parts is a source whose fetches honour offset and length, and remember what
// was sent.
type parts struct {
	*source
	noRange bool                                      // answers everything with the whole blob
	wrap    func(offset int64, r io.Reader) io.Reader // nil: as it is
	total   func(offset int64) int64                  // nil: the right one

	mu   sync.Mutex
	sent [][2]int64 // from, to
	asks []string
}

func newParts(size int) *parts {
	return &parts{source: newSource(size)}
}

func (p *parts) fetch(ctx context.Context, offset, length int64) (io.ReadCloser, int64, error) {
	size := int64(len(p.data))
	end := size
	if length >= 0 {
		end = min(offset+length, size)
	}
	p.mu.Lock()
	p.asks = append(p.asks, fmt.Sprintf("%d+%d", offset, length))
	p.mu.Unlock()
	if p.noRange {
		if offset > 0 {
			return nil, 0, blobcache.ErrNoRange
		}
		end = size
	}
	if offset >= size {
		return io.NopCloser(bytes.NewReader(nil)), size, nil
	}
	var r io.Reader = &counted{p: p, ctx: ctx, at: offset, end: end}
	if p.wrap != nil {
		r = p.wrap(offset, r)
	}
	if p.total != nil {
		size = p.total(offset)
	}
	return io.NopCloser(r), size, nil
}

// counted gives the bytes of p from at to end.
type counted struct {
	p       *parts
	ctx     context.Context
	at, end int64
}

func (c *counted) Read(b []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, c.ctx.Err()
	}
	n := copy(b[:min(len(b), 64<<10)], c.p.data[c.at:c.end])
	if n == 0 {
		return 0, io.EOF
	}
	c.p.mu.Lock()
	c.p.sent = append(c.p.sent, [2]int64{c.at, c.at + int64(n)})
	c.p.mu.Unlock()
	c.at += int64(n)
	return n, nil
}

// traffic is how many bytes were sent, and how many of them more than once.
func (p *parts) traffic() (sent, again int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	slices.SortFunc(p.sent, func(a, b [2]int64) int { return cmp.Compare(a[0], b[0]) })
	end := int64(0)
	for _, piece := range p.sent {
		sent += int(piece[1] - piece[0])
		again += int(max(min(end, piece[1])-piece[0], 0))
		end = max(end, piece[1])
	}
	return sent, again
}

// readRange gets a part of p and compares it.
func readRange(t *testing.T, c *blobcache.Cache, p *parts, offset, length int64) {
	t.Helper()
	b, err := c.GetRange(t.Context(), p.digest, offset, length, blobcache.Source{Fetch: p.fetch})
	if err != nil {
		t.Errorf("GetRange(%d, %d): %v", offset, length, err)
		return
	}
	defer b.Content.Close()
	if b.Size != int64(len(p.data)) {
		t.Errorf("GetRange(%d, %d): Size %d, want %d", offset, length, b.Size, len(p.data))
	}
	if _, err := b.Content.Seek(offset, io.SeekStart); err != nil {
		t.Error(err)
	}
	end := int64(len(p.data))
	if length >= 0 {
		end = min(offset+length, end)
	}
	got, err := io.ReadAll(io.LimitReader(b.Content, end-offset))
	if err != nil || !bytes.Equal(got, p.data[offset:end]) {
		t.Errorf("GetRange(%d, %d): %d bytes, %v; want those from %d to %d", offset, length, len(got), err, offset, end)
	}
}

func TestRangeOfAMissingBlobFetchesLittleMore(t *testing.T) {
	c := openCache(t, t.TempDir(), blobcache.Config{Connections: 4, Linger: time.Minute})
	p := newParts(40 << 20)
	// As a lazy-pulling snapshotter does: the footer, the table of contents,
	// then chunks here and there.
	ranges := [][2]int64{{40<<20 - 51, 51}, {40<<20 - 90_000, 90_000}, {5 << 20, 100_000}, {5<<20 + 50_000, 80_000}, {20<<20 + 17, 4096}}
	for range 2 { // the second time nothing is fetched
		for _, r := range ranges {
			readRange(t, c, p, r[0], r[1])
		}
	}
	if sent, again := p.traffic(); sent > 600<<10 || again > 0 {
		t.Errorf("fetched %d bytes, %d of them again; want few, none again (%v)", sent, again, p.asks)
	}
	wantBlob(t, getParts(t, c, p), p.data, blobcache.Join)
	if sent, again := p.traffic(); sent != len(p.data) || again > 0 {
		t.Errorf("with the rest: fetched %d bytes, %d of them again; want %d, 0", sent, again, len(p.data))
	}
	waitIdle(t, c)
	wantBlob(t, getParts(t, c, p), p.data, blobcache.Hit)
}

func getParts(t *testing.T, c *blobcache.Cache, p *parts) *blobcache.Blob {
	t.Helper()
	b, err := c.Get(t.Context(), p.digest, p.fetch)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestLargeBlobIsFetchedInPartsAndEachByteOnce(t *testing.T) {
	for _, size := range []int{1 << 20, 32<<20 - 1, 32 << 20, 32<<20 + 1, 77<<20 + 13} {
		c := openCache(t, t.TempDir(), blobcache.Config{Connections: 4, Linger: time.Minute})
		c.Scarce()
		p := newParts(size)
		wantBlob(t, getParts(t, c, p), p.data, blobcache.Miss)
		if sent, again := p.traffic(); sent != size || again > 0 {
			t.Errorf("size %d: fetched %d bytes, %d of them again (%v)", size, sent, again, p.asks)
		}
		if parts := 1 + max(0, (size-32<<20+8<<20-1)>>23); len(p.asks) != parts {
			t.Errorf("size %d: %d fetches, want %d (%v)", size, len(p.asks), parts, p.asks)
		}
	}
}

func TestFastUpstreamIsAskedByOneConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for took, want := range map[time.Duration]int{0: 1, 20 * time.Millisecond: 4} {
			c := openCache(t, t.TempDir(), blobcache.Config{Connections: 4})
			p := newParts(80 << 20)
			var mu sync.Mutex
			running, most := 0, 0
			fetch := func(ctx context.Context, offset, length int64) (io.ReadCloser, int64, error) {
				body, size, err := p.fetch(ctx, offset, length)
				mu.Lock()
				defer mu.Unlock()
				running++
				most = max(most, running)
				return &pausing{ReadCloser: body, pause: took, done: func() {
					mu.Lock()
					defer mu.Unlock()
					running--
				}}, size, err
			}
			b, err := c.Get(t.Context(), p.digest, fetch)
			if err != nil {
				t.Fatal(err)
			}
			wantBlob(t, b, p.data, blobcache.Miss)
			waitIdle(t, c)
			if most != want {
				t.Errorf("with %v for each piece: up to %d connections, want %d", took, most, want)
			}
			if sent, again := p.traffic(); sent != len(p.data) || again > 0 {
				t.Errorf("fetched %d bytes, %d of them again; want %d, 0", sent, again, len(p.data))
			}
		}
	})
}

// pausing pauses before each Read, and counts as done when it is closed.
type pausing struct {
	io.ReadCloser
	pause time.Duration
	done  func()
}

func (p *pausing) Read(b []byte) (int, error) {
	time.Sleep(p.pause)
	return p.ReadCloser.Read(b)
}

func (p *pausing) Close() error {
	p.done()
	return p.ReadCloser.Close()
}

func TestOneConnectionAsksForNoParts(t *testing.T) {
	c := openCache(t, t.TempDir(), blobcache.Config{Connections: 1, Linger: time.Minute})
	p := newParts(48 << 20)
	wantBlob(t, getParts(t, c, p), p.data, blobcache.Miss)
	if len(p.asks) != 1 || p.asks[0] != "0+-1" {
		t.Errorf("asked for %v, want all of it at once", p.asks)
	}
}

func TestUpstreamWithoutRangesIsFetchedInOneFromTheStart(t *testing.T) {
	c := openCache(t, t.TempDir(), blobcache.Config{Connections: 4, Linger: time.Minute})
	p := newParts(40 << 20)
	p.noRange = true
	wantBlob(t, getParts(t, c, p), p.data, blobcache.Miss)
	if sent, _ := p.traffic(); sent != len(p.data) {
		t.Errorf("fetched %d bytes, want %d", sent, len(p.data))
	}

	p = newParts(2 << 20)
	p.noRange = true
	readRange(t, c, p, 1<<20, 1000)
	readRange(t, c, p, 2<<20-1, 1)
	if sent, again := p.traffic(); sent > len(p.data) || again > 0 {
		t.Errorf("ranges: fetched %d bytes, %d again; want %d at most, once", sent, again, len(p.data))
	}
}

func TestUpstreamThatRefusesRangesIsAskedForAll(t *testing.T) {
	c := openCache(t, t.TempDir(), blobcache.Config{Connections: 4, Linger: time.Minute})
	p := newParts(2 << 20)
	fetch := func(ctx context.Context, offset, length int64) (io.ReadCloser, int64, error) {
		if offset > 0 || length >= 0 {
			return nil, 0, blobcache.ErrNoRange
		}
		return p.fetch(ctx, offset, length)
	}
	b, err := c.Get(t.Context(), p.digest, fetch)
	if err != nil {
		t.Fatal(err)
	}
	wantBlob(t, b, p.data, blobcache.Miss)
}

// Chunks are asked for open-ended, read for one chunk's length and hung up on,
// high offsets before low ones: containerd's concurrent layer fetch.
func TestContainerdsParallelFetchCostsTheBlobOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := openCache(t, t.TempDir(), blobcache.Config{Connections: 4, Linger: 30 * time.Second})
		p := newParts(50 << 20)
		const chunk = 4 << 20
		var wg sync.WaitGroup
		slots := make(chan struct{}, 5)
		for i := (len(p.data) - 1) / chunk; i >= 0; i-- {
			slots <- struct{}{}
			wg.Go(func() {
				defer func() { <-slots }()
				offset := int64(i) * chunk
				b, err := c.GetRange(t.Context(), p.digest, offset, -1, blobcache.Source{Fetch: p.fetch})
				if err != nil {
					t.Error(err)
					return
				}
				defer b.Content.Close()
				_, _ = b.Content.Seek(offset, io.SeekStart)
				want := p.data[offset:min(offset+chunk, int64(len(p.data)))]
				got := make([]byte, len(want))
				if _, err := io.ReadFull(b.Content, got); err != nil || !bytes.Equal(got, want) {
					t.Errorf("chunk %d: %v", i, err)
				}
			})
		}
		wg.Wait()
		synctest.Wait()
		if sent, again := p.traffic(); sent != len(p.data) || again > 0 {
			t.Errorf("fetched %d bytes, %d of them again; want %d, once", sent, again, len(p.data))
		}
	})
}

func TestRestartFetchesJustTheHoles(t *testing.T) {
	dir := t.TempDir()
	c := openCache(t, dir, blobcache.Config{Connections: 4, Linger: time.Minute})
	p := newParts(40 << 20)
	for _, offset := range []int64{3 << 20, 17 << 20, 39 << 20} {
		readRange(t, c, p, offset, 500_000)
	}
	c.Close()
	c = openCache(t, dir, blobcache.Config{Connections: 4, Linger: time.Minute})
	readRange(t, c, p, 17<<20, 500_000)
	wantBlob(t, getParts(t, c, p), p.data, blobcache.Join)
	if sent, again := p.traffic(); sent != len(p.data) || again > 0 {
		t.Errorf("fetched %d bytes, %d of them again; want %d, once", sent, again, len(p.data))
	}
	waitIdle(t, c)
	c.Close()
	for _, dir := range []string{filepath.Join(dir, "tmp")} {
		left, err := os.ReadDir(dir)
		if err != nil || len(left) > 0 {
			t.Errorf("left in tmp: %v, %v", left, err)
		}
	}
}

func TestWrongPartSpoilsTheBlobAndTheNextTimeItIsAskedForInOne(t *testing.T) {
	dir := t.TempDir()
	c := openCache(t, dir, blobcache.Config{Connections: 4, Linger: time.Minute})
	p := newParts(64 << 20)
	p.wrap = func(offset int64, r io.Reader) io.Reader {
		if offset == 40<<20 {
			return io.MultiReader(io.LimitReader(zeros{}, 1000), skip(r, 1000))
		}
		return r
	}
	b := getParts(t, c, p)
	n, err := io.Copy(io.Discard, b.Content)
	if !errors.Is(err, blobcache.ErrDigest) || n >= int64(len(p.data)) {
		t.Errorf("read %d bytes, %v; want fewer than %d and %v", n, err, len(p.data), blobcache.ErrDigest)
	}
	b.Content.Close()
	waitIdle(t, c)
	if got := c.Stats().Mismatches; got != 1 {
		t.Errorf("%d mismatches, want 1", got)
	}
	if _, err := os.Stat(partialPath(dir, p.digest)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("partial file is there: %v", err)
	}
	p.asks = nil
	wantBlob(t, getParts(t, c, p), p.data, blobcache.Miss)
	if len(p.asks) != 1 || p.asks[0] != "0+-1" {
		t.Errorf("asked for %v, want all of it at once", p.asks)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func skip(r io.Reader, n int64) io.Reader {
	_, _ = io.CopyN(io.Discard, r, n)
	return r
}

func TestAnotherTotalInAPartSpoilsTheFill(t *testing.T) {
	c := openCache(t, t.TempDir(), blobcache.Config{Connections: 4, Linger: time.Minute})
	p := newParts(64 << 20)
	p.total = func(offset int64) int64 {
		if offset > 32<<20 {
			return int64(len(p.data)) + 1
		}
		return int64(len(p.data))
	}
	b, err := c.Get(t.Context(), p.digest, p.fetch)
	if err != nil {
		return // so soon
	}
	if n, err := io.Copy(io.Discard, b.Content); err == nil || n >= b.Size {
		t.Errorf("read %d bytes and %v of a blob of two sizes", n, err)
	}
	b.Content.Close()
}

func TestBrokenConnectionsAreDoneWithout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := openCache(t, t.TempDir(), blobcache.Config{Connections: 4, Linger: time.Minute})
		p := newParts(80 << 20)
		p.wrap = func(offset int64, r io.Reader) io.Reader {
			if offset%(8<<20) == 0 && offset > 0 { // every part breaks after a MiB
				return io.MultiReader(io.LimitReader(r, 1<<20), errReader{io.ErrUnexpectedEOF})
			}
			return r
		}
		wantBlob(t, getParts(t, c, p), p.data, blobcache.Miss)
		if sent, again := p.traffic(); again > 0 {
			t.Errorf("fetched %d bytes, %d of them again", sent, again)
		}
	})
}

func TestReaderFarAheadGetsItsOwnFetcher(t *testing.T) {
	c := openCache(t, t.TempDir(), blobcache.Config{Connections: 1, Linger: time.Minute})
	p := newParts(30 << 20)
	hold := make(chan struct{})
	p.wrap = func(offset int64, r io.Reader) io.Reader {
		if offset == 0 {
			return &gated{r: r, n: 1 << 20, open: hold}
		}
		return r
	}
	b := getParts(t, c, p)           // is stuck at 1 MiB
	readRange(t, c, p, 20<<20, 1000) // does not wait for it
	close(hold)
	wantBlob(t, b, p.data, blobcache.Miss)
	if _, again := p.traffic(); again > 2<<20 {
		t.Errorf("%d bytes were fetched again", again)
	}
}

func TestManyRandomRangesFetchNoByteTwice(t *testing.T) {
	c := openCache(t, t.TempDir(), blobcache.Config{Connections: 4, Linger: time.Minute})
	p := newParts(32 << 20)
	var wg sync.WaitGroup
	for client := range 16 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(client), 7))
			for range 100 {
				readRange(t, c, p, rnd.Int64N(32<<20-64<<10), 64<<10)
			}
		})
	}
	wg.Wait()
	if sent, again := p.traffic(); again > 0 {
		t.Errorf("fetched %d bytes, %d of them again", sent, again)
	}
}

func TestRangeBehindTheEndKnowsTheSize(t *testing.T) {
	c := openCache(t, t.TempDir(), blobcache.Config{Connections: 4, Linger: time.Minute})
	p := newParts(2 << 20)
	b, err := c.GetRange(t.Context(), p.digest, 5<<20, 10, blobcache.Source{Fetch: p.fetch})
	if err != nil || b.Size != 2<<20 {
		t.Fatalf("GetRange: %v; want a blob of %d bytes", err, 2<<20)
	}
	b.Content.Close()
}
