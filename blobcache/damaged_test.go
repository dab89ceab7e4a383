package blobcache_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"larder/blobcache"
)

// damages is what is done to a file behind the cache's back.
var damages = map[string]func(path string, data []byte) error{
	"flipped": func(path string, data []byte) error {
		bad := bytes.Clone(data)
		bad[len(bad)/2] ^= 1
		return overwrite(path, bad)
	},
	"truncated": func(path string, data []byte) error { return os.Truncate(path, int64(len(data))-1) },
	"extended":  func(path string, data []byte) error { return os.Truncate(path, int64(len(data))+1) },
}

// stored is a cache that has stored a blob, and verified it.
func stored(t *testing.T, size int) (string, *blobcache.Cache, *parts) {
	t.Helper()
	dir := t.TempDir()
	c := openCache(t, dir, blobcache.Config{})
	p := newParts(size)
	wantBlob(t, getParts(t, c, p), p.data, blobcache.Miss)
	waitIdle(t, c)
	return dir, c, p
}

func TestDamagedBlobIsNeverServedWholeAndThenHealed(t *testing.T) {
	for name, damage := range damages {
		for _, when := range []string{"stopped", "running"} {
			for _, size := range []int{10 << 10, 2 << 20} { // held back until it is verified, and not
				t.Run(name+" while "+when, func(t *testing.T) {
					dir, c, p := stored(t, size)
					if when == "stopped" {
						c.Close()
					}
					if err := damage(blobPath(dir, p.digest), p.data); err != nil {
						t.Fatal(err)
					}
					if when == "stopped" {
						c = openCache(t, dir, blobcache.Config{})
					}
					b := getParts(t, c, p)
					got, err := io.ReadAll(b.Content)
					b.Content.Close()
					// The damage may be found before the first byte is read.
					if healed := b.Outcome == blobcache.Miss; healed && (err != nil || !bytes.Equal(got, p.data)) {
						t.Errorf("fetched anew: read %d bytes, %v; want the %d of the blob", len(got), err, size)
					} else if !healed && (size <= 64<<10 || err == nil || int64(len(got)) >= b.Size) {
						t.Errorf("%v: read %d of %d wrong bytes, %v", b.Outcome, len(got), b.Size, err)
					}
					waitIdle(t, c)
					if got := c.Stats().Damaged; got != 1 {
						t.Errorf("%d damaged files counted, want 1", got)
					}
					b = getParts(t, c, p)
					wantBlob(t, b, p.data, b.Outcome)
					waitIdle(t, c)
					wantBlob(t, getParts(t, c, p), p.data, blobcache.Hit)
				})
			}
		}
	}
}

// Power that fails may leave a file of any length: of a small blob, which is not
// waited for, and only of that.
func TestSizeOfASmallBlobIsThatOfTheRightOne(t *testing.T) {
	dir, c, p := stored(t, 10<<10)
	if size, ok := c.Size(p.digest); size != 10<<10 || !ok {
		t.Errorf("stored: size %d, %v", size, ok)
	}
	c.Close()
	for _, scanned := range []bool{false, true} {
		for name, damage := range damages {
			size := func() (int64, bool) {
				c, stop := running(t, dir, blobcache.Config{})
				defer stop()
				for scanned && c.Stats().Scans == 0 {
					runtime.Gosched()
				}
				return c.Size(p.digest)
			}
			path := blobPath(dir, p.digest)
			if err := os.WriteFile(path, p.data, 0o600); err != nil {
				t.Fatal(err)
			}
			if got, ok := size(); got != 10<<10 || !ok {
				t.Errorf("after a start: size %d, %v", got, ok)
			}
			if err := damage(path, p.data); err != nil {
				t.Fatal(err)
			}
			if got, ok := size(); ok {
				t.Errorf("%s (scanned: %v): size %d", name, scanned, got)
			}
		}
	}
}

func TestSmallBlobIsWrittenInPlaceOfALink(t *testing.T) {
	dir := t.TempDir()
	c := openCache(t, dir, blobcache.Config{})
	p := newParts(10 << 10)
	other := filepath.Join(dir, "other")
	asked, open := make(chan struct{}), make(chan struct{})
	p.wrap = func(_ int64, r io.Reader) io.Reader {
		close(asked)
		return &gated{r: r, n: 1000, open: open}
	}
	var client sync.WaitGroup
	client.Go(func() { wantBlob(t, getParts(t, c, p), p.data, blobcache.Miss) })
	<-asked // what was there before has been looked at
	if err := errors.Join(os.WriteFile(other, nil, 0o600), os.Symlink("../other", partialPath(dir, p.digest))); err != nil {
		t.Fatal(err)
	}
	close(open)
	client.Wait()
	waitIdle(t, c)
	if got, err := os.ReadFile(other); err != nil || len(got) > 0 {
		t.Errorf("the link's target has %d bytes, %v", len(got), err)
	}
	wantBlob(t, getParts(t, c, p), p.data, blobcache.Hit)
}

func TestStoredBlobIsVerifiedOnceAProcess(t *testing.T) {
	for _, size := range []int{0, 1, 64 << 10, 2 << 20} {
		dir, c, p := stored(t, size)
		c.Close()
		c = openCache(t, dir, blobcache.Config{})
		for i := range 2 {
			b, err := c.Get(t.Context(), p.digest, noFetch(t))
			if err != nil {
				t.Fatal(err)
			}
			if b.Stored() != (i == 1) {
				t.Errorf("size %d: content of Get %d is a %T", size, i+1, b.Content)
			}
			wantBlob(t, b, p.data, blobcache.Hit)
			waitIdle(t, c)
		}
	}
}

func TestGetOfAFillWhoseFileIsGoneEndsWithItsContext(t *testing.T) {
	dir := t.TempDir()
	c := openCache(t, dir, blobcache.Config{})
	s := newSource(1 << 20)
	open := s.gate(1 << 19)
	first := get(t, c, s)
	if err := os.Remove(partialPath(dir, s.digest)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		b, err := c.Get(ctx, s.digest, s.fetch)
		if err == nil {
			b.Content.Close()
		}
		ended <- err
	}()
	select {
	case err := <-ended:
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Error("Get goes on 5s after its context has ended")
	}
	close(open)
	first.Content.Close()
	waitIdle(t, c)
	b := get(t, c, s)
	wantBlob(t, b, s.data, b.Outcome)
}

func TestFileCutShortInFlightIsNotTheEndOfTheBlob(t *testing.T) {
	dir := t.TempDir()
	c := openCache(t, dir, blobcache.Config{})
	s := newSource(1 << 20)
	s.size = func() int64 { return -1 }
	open := s.gate(1 << 19)
	b := get(t, c, s)
	if _, err := io.ReadFull(b.Content, make([]byte, 1<<18)); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(partialPath(dir, s.digest), 10); err != nil {
		t.Fatal(err)
	}
	if n, err := b.Content.Read(make([]byte, 10)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("read %d bytes, %v; want an error that is not io.EOF", n, err)
	}
	b.Content.Close()
	close(open)
}

// leftover is a new cache of a directory with a partial file of p, and with
// extents beside it if there are any.
func leftover(t *testing.T, p *parts, partial []byte, extents string) (string, *blobcache.Cache) {
	t.Helper()
	dir := t.TempDir()
	openCache(t, dir, blobcache.Config{}).Close()
	err := os.WriteFile(partialPath(dir, p.digest), partial, 0o600)
	if extents != "" {
		err = errors.Join(err, os.WriteFile(partialPath(dir, p.digest)+".extents", []byte(extents), 0o600))
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir, openCache(t, dir, blobcache.Config{Connections: 4})
}

func TestPartialLongerThanTheBlobIsStartedOver(t *testing.T) {
	p := newParts(1 << 20)
	p.noRange = true
	_, c := leftover(t, p, append(bytes.Clone(p.data), "more"...), "")
	wantBlob(t, getParts(t, c, p), p.data, blobcache.Miss)
}

func TestUnusableExtentsCostTheirBytesAndNothingElse(t *testing.T) {
	for _, extents := range []string{
		"x", "{}", "null", `{"size":-1,"extents":[{"start":0,"end":10}]}`, `{"size":1048576,"extents":[{"start":-5,"end":10}]}`,
		`{"size":1048576,"extents":[{"start":0,"end":9999999}]}`, `{"size":1048576,"extents":[{"start":9,"end":9}]}`,
	} {
		p := newParts(1 << 20)
		dir, c := leftover(t, p, p.data[:1<<19], extents)
		wantBlob(t, getParts(t, c, p), p.data, blobcache.Miss)
		waitIdle(t, c)
		if left, err := os.ReadDir(dir + "/tmp"); err != nil || len(left) > 0 {
			t.Errorf("%s: left in tmp: %v, %v", extents, left, err)
		}
	}
}

func TestFileLongerThanItsExtentsIsStoredAsLongAsTheBlob(t *testing.T) {
	p := newParts(1 << 20)
	dir, c := leftover(t, p, append(bytes.Clone(p.data), "more"...), `{"size":1048576,"extents":[{"start":500,"end":600}]}`)
	wantBlob(t, getParts(t, c, p), p.data, blobcache.Miss)
	waitIdle(t, c)
	if fi, err := os.Stat(blobPath(dir, p.digest)); err != nil || fi.Size() != 1<<20 {
		t.Errorf("stored: %v, want %d bytes", fi, 1<<20)
	}
}

// An open-ended reader waits for upstream's word, however much is on disk.
func TestOpenEndedRangeOfALeftoverAsksUpstream(t *testing.T) {
	p := newParts(20 << 20)
	_, c := leftover(t, p, p.data[:10<<20], `{"size":20971520,"extents":[{"start":2097152,"end":10485760}]}`)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	b, err := c.GetRange(ctx, p.digest, 3<<20, -1, blobcache.Source{Fetch: p.fetch})
	if err != nil {
		t.Fatal(err)
	}
	b.Content.Close()
}

func TestEmptyRangeOfAMissingBlob(t *testing.T) {
	c := openCache(t, t.TempDir(), blobcache.Config{Connections: 4})
	p := newParts(2 << 20)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	b, err := c.GetRange(ctx, p.digest, 0, 0, blobcache.Source{Fetch: p.fetch})
	if err != nil {
		t.Fatal(err)
	}
	b.Content.Close()
}

// Nobody says how large the blob is: the end of a part is not that of the blob.
func TestPartsOfABlobOfUnknownSize(t *testing.T) {
	c := openCache(t, t.TempDir(), blobcache.Config{Connections: 4})
	p := newParts(2 << 20)
	p.total = func(int64) int64 { return -1 }
	b, err := c.GetRange(t.Context(), p.digest, 0, 1000, blobcache.Source{Fetch: p.fetch})
	if err != nil {
		t.Fatal(err)
	}
	wantBlob(t, b, p.data, blobcache.Miss)
}

// A second answer of an upstream without ranges brings bytes that have been
// hashed already: wrong ones must not take their place.
func TestWhatHasArrivedIsNotOverwritten(t *testing.T) {
	c := openCache(t, t.TempDir(), blobcache.Config{Connections: 4})
	p := newParts(1 << 20)
	p.noRange = true
	first := true
	p.wrap = func(_ int64, r io.Reader) io.Reader {
		if first {
			first = false
			return io.MultiReader(io.LimitReader(r, 200<<10-1), errReader{io.ErrUnexpectedEOF})
		}
		return io.MultiReader(io.LimitReader(zeros{}, 200<<10-1), skip(r, 200<<10-1))
	}
	wantBlob(t, getParts(t, c, p), p.data, blobcache.Miss)
	waitIdle(t, c)
	wantBlob(t, getParts(t, c, p), p.data, blobcache.Hit)
}
