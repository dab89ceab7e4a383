package blobcache_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"larder/blobcache"
)

// cutAfter breaks every body after n bytes.
func cutAfter(n int64) func([]byte, int64) io.Reader {
	return func(rest []byte, _ int64) io.Reader {
		if int64(len(rest)) <= n {
			return bytes.NewReader(rest)
		}
		return io.MultiReader(bytes.NewReader(rest[:n]), errReader{io.ErrUnexpectedEOF})
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

func TestBrokenBodyIsGoneOnWithWhereItBroke(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := openCache(t, t.TempDir(), blobcache.Config{})
		s := newSource(10 << 20)
		s.body = cutAfter(1 << 20)
		wantBlob(t, get(t, c, s), s.data, blobcache.Miss)
		want := int64(0)
		for _, offset := range s.offsets() {
			if offset != want {
				t.Fatalf("fetched at %v, want every MiB", s.offsets())
			}
			want += 1 << 20
		}
		if got := c.Stats().Fetched; got != 10<<20 {
			t.Errorf("fetched %d bytes, want %d", got, 10<<20)
		}
	})
}

func TestBodyThatEndsEarlyIsGoneOnWith(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := openCache(t, t.TempDir(), blobcache.Config{})
		s := newSource(1 << 20)
		s.body = func(rest []byte, _ int64) io.Reader { return bytes.NewReader(rest[:min(len(rest), 400<<10)]) }
		wantBlob(t, get(t, c, s), s.data, blobcache.Miss)
	})
}

func TestBodyThatStaysBrokenIsGivenUpAndItsBeginningKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := openCache(t, t.TempDir(), blobcache.Config{})
		s := newSource(1 << 20)
		s.body = func(rest []byte, offset int64) io.Reader {
			return cutAfter(300<<10-offset)(rest, offset)
		}
		start := time.Now()
		n, err := io.Copy(io.Discard, get(t, c, s).Content)
		if n != 300<<10 || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("read %d bytes, %v; want %d and %v", n, err, 300<<10, io.ErrUnexpectedEOF)
		}
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("given up after %v, want within 10s", took)
		}
		waitIdle(t, c)
		s.body = nil
		wantBlob(t, get(t, c, s), s.data, blobcache.Miss)
		if got := s.offsets(); got[len(got)-1] != 300<<10 {
			t.Errorf("last fetch at %d, want %d", got[len(got)-1], 300<<10)
		}
	})
}

// TestBlobShorterThanPromisedIsWhatHasArrived has upstream promise more than there
// is, send what there is, and break off for good: the digest says that it is all.
func TestBlobShorterThanPromisedIsWhatHasArrived(t *testing.T) {
	for _, size := range []int{1, 150} {
		synctest.Test(t, func(t *testing.T) {
			dir := t.TempDir()
			c := openCache(t, dir, blobcache.Config{})
			s := newSource(size)
			s.size = func() int64 { return 200 }
			s.body = func(rest []byte, _ int64) io.Reader {
				return io.MultiReader(bytes.NewReader(rest), errReader{io.ErrUnexpectedEOF})
			}
			b := get(t, c, s)
			if b.Size != int64(size) {
				t.Errorf("size %d, want %d", b.Size, size)
			}
			wantBlob(t, b, s.data, blobcache.Miss)
			waitIdle(t, c)
			if kept, err := os.ReadFile(blobPath(dir, s.digest)); err != nil || !bytes.Equal(kept, s.data) {
				t.Errorf("%d bytes are kept (%v), want the %d of the blob", len(kept), err, size)
			}
			wantBlob(t, get(t, c, s), s.data, blobcache.Hit)
		})
	}
}

func TestWrongBytesNeverArriveWholeAndAreNotKept(t *testing.T) {
	wrong := map[string]func(s *source){
		"flipped": func(s *source) {
			s.body = func(rest []byte, _ int64) io.Reader {
				bad := bytes.Clone(rest)
				bad[len(bad)/2] ^= 1
				return bytes.NewReader(bad)
			}
		},
		"flipped in the last byte": func(s *source) {
			s.body = func(rest []byte, _ int64) io.Reader {
				bad := bytes.Clone(rest)
				bad[len(bad)-1] ^= 1
				return bytes.NewReader(bad)
			}
		},
		"of unknown size and too long": func(s *source) {
			s.size = func() int64 { return -1 }
			s.body = func(rest []byte, _ int64) io.Reader {
				return io.MultiReader(bytes.NewReader(rest), strings.NewReader("and more"))
			}
		},
		"short and of that size": func(s *source) {
			s.size = func() int64 { return int64(len(s.data)) - 1 }
			s.body = func(rest []byte, _ int64) io.Reader { return bytes.NewReader(rest[:len(rest)-1]) }
		},
		"of unknown size and flipped": func(s *source) {
			s.size = func() int64 { return -1 }
			s.body = func(rest []byte, _ int64) io.Reader {
				return io.MultiReader(bytes.NewReader(rest[:len(rest)-1]), strings.NewReader("\x00"))
			}
		},
	}
	for name, lie := range wrong {
		for _, size := range []int{1, 4 << 10, 2 << 20} {
			t.Run(name, func(t *testing.T) {
				dir := t.TempDir()
				c := openCache(t, dir, blobcache.Config{})
				s := newSource(size)
				lie(s)
				if b, err := c.Get(t.Context(), s.digest, s.fetch); err == nil {
					got, err := io.ReadAll(b.Content)
					if err == nil || (b.Size >= 0 && int64(len(got)) >= b.Size) {
						t.Errorf("read %d of %d wrong bytes and %v", len(got), b.Size, err)
					}
					b.Content.Close()
				}
				waitIdle(t, c)
				for _, path := range []string{blobPath(dir, s.digest), partialPath(dir, s.digest)} {
					if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
						t.Errorf("%s is there (%v)", path, err)
					}
				}
				s.size, s.body = nil, nil
				wantBlob(t, get(t, c, s), s.data, blobcache.Miss)
			})
		}
	}
}

func TestSmallWrongBlobIsAnErrorOfGet(t *testing.T) {
	c := openCache(t, t.TempDir(), blobcache.Config{})
	s := newSource(1 << 10)
	s.digest = digest.FromString("something else")
	if _, err := c.Get(t.Context(), s.digest, s.fetch); !errors.Is(err, blobcache.ErrDigest) {
		t.Errorf("Get: %v, want %v", err, blobcache.ErrDigest)
	}
	if got := c.Stats().Mismatches; got != 1 {
		t.Errorf("%d mismatches counted, want 1", got)
	}
}

// stalled is a body that gives n bytes and then nothing until its fetch is
// given up; gone is told when that was.
func stalled(s *source, n int64, gone chan<- time.Time) blobcache.Fetch {
	return func(ctx context.Context, offset, length int64) (io.ReadCloser, int64, error) {
		_, size, err := s.fetch(ctx, offset, length)
		return io.NopCloser(io.MultiReader(bytes.NewReader(s.data[offset:n]), readFunc(func([]byte) (int, error) {
			<-ctx.Done()
			gone <- time.Now()
			return 0, ctx.Err()
		}))), size, err
	}
}

type readFunc func(p []byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

func TestFillLingersThenParksAndIsResumed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		c := openCache(t, dir, blobcache.Config{Linger: 30 * time.Second})
		s := newSource(1 << 20)
		gone := make(chan time.Time, 1)
		b, err := c.Get(t.Context(), s.digest, stalled(s, 300<<10, gone))
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		b.Content.Close()
		left := time.Now()

		time.Sleep(20 * time.Second)
		b, err = c.Get(t.Context(), s.digest, noFetch(t)) // within the linger: the same fill
		if err != nil || b.Outcome != blobcache.Join {
			t.Fatalf("Get = %v, want a join", err)
		}
		time.Sleep(20 * time.Second)
		b.Content.Close()
		if got, want := (<-gone).Sub(left), 70*time.Second; got != want {
			t.Errorf("fetch given up after %v, want %v", got, want)
		}
		synctest.Wait()
		if got := c.Stats(); got.Fills != 0 || got.Partials != 1 || got.PartialBytes != 300<<10 {
			t.Errorf("%d fills, %d partials with %d bytes; want 0, 1, %d", got.Fills, got.Partials, got.PartialBytes, 300<<10)
		}
		wantBlob(t, get(t, c, s), s.data, blobcache.Miss)
		if got := s.offsets(); got[len(got)-1] != 300<<10 {
			t.Errorf("resumed at %v, want %d", got, 300<<10)
		}
		waitIdle(t, c)
		if got := c.Stats(); got.Partials != 0 || got.Entries != 1 {
			t.Errorf("%d partials, %d entries; want 0, 1", got.Partials, got.Entries)
		}
	})
}

func TestPartialFileOfAnEarlierProcess(t *testing.T) {
	s := newSource(1 << 20)
	down := errors.New("upstream is down")
	tests := map[string]struct {
		partial []byte
		err     error
		offsets []int64
		fails   bool // the first time
	}{
		"is gone on with":                      {partial: s.data[:700<<10], offsets: []int64{700 << 10}},
		"complete needs no bytes":              {partial: s.data, offsets: []int64{1 << 20}},
		"complete needs no upstream":           {partial: s.data, err: down, offsets: []int64{1 << 20}},
		"longer than the blob is thrown away":  {partial: append(bytes.Clone(s.data), 'x'), offsets: []int64{1<<20 + 1, 0}},
		"empty is nothing":                     {partial: nil, offsets: []int64{0}},
		"wrong is thrown away after one error": {partial: make([]byte, 300<<10), offsets: []int64{300 << 10}, fails: true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			openCache(t, dir, blobcache.Config{}).Close()
			if err := os.WriteFile(partialPath(dir, s.digest), tt.partial, 0o600); err != nil {
				t.Fatal(err)
			}
			c, _ := running(t, dir, blobcache.Config{})
			if err := c.Scanned(t.Context()); err != nil {
				t.Fatal(err)
			}
			c.Doubt(s.digest) // is about whole blobs
			if doubted := c.Stats().Doubted; doubted != 0 {
				t.Errorf("%d blobs are in doubt, and there is none", doubted)
			}
			s := &source{data: s.data, digest: s.digest, err: tt.err}
			if tt.fails {
				b, err := c.Get(t.Context(), s.digest, s.fetch)
				if err == nil { // else it was found out before the first byte was read
					var n int64
					if n, err = io.Copy(io.Discard, b.Content); n >= b.Size {
						t.Errorf("read %d bytes, want fewer than %d", n, b.Size)
					}
					b.Content.Close()
				}
				if !errors.Is(err, blobcache.ErrDigest) {
					t.Errorf("got %v, want %v", err, blobcache.ErrDigest)
				}
				waitIdle(t, c)
				wantBlob(t, get(t, c, s), s.data, blobcache.Miss)
				return
			}
			wantBlob(t, get(t, c, s), s.data, blobcache.Miss)
			if got := s.offsets(); len(got) != len(tt.offsets) || got[0] != tt.offsets[0] {
				t.Errorf("fetched at %v, want %v", got, tt.offsets)
			}
			waitIdle(t, c)
			wantBlob(t, get(t, c, s), s.data, blobcache.Hit)
		})
	}
}

func TestCloseEndsFillsAndKeepsWhatArrived(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		c := openCache(t, dir, blobcache.Config{Linger: time.Hour})
		s := newSource(1 << 20)
		b, err := c.Get(t.Context(), s.digest, stalled(s, 300<<10, make(chan time.Time, 1)))
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if n, err := io.Copy(io.Discard, b.Content); n != 300<<10 || !errors.Is(err, blobcache.ErrClosed) {
			t.Errorf("reader got %d bytes, %v; want %d, %v", n, err, 300<<10, blobcache.ErrClosed)
		}
		b.Content.Close()
		if fi, err := os.Stat(partialPath(dir, s.digest)); err != nil || fi.Size() != 300<<10 {
			t.Errorf("partial file: %v, want %d bytes", err, 300<<10)
		}
		if _, err := c.Get(t.Context(), s.digest, s.fetch); !errors.Is(err, blobcache.ErrClosed) {
			t.Errorf("Get of a closed cache: %v, want %v", err, blobcache.ErrClosed)
		}
	})
}

// sender is what the program's one http.ResponseWriter does with content that
// is still arriving.
type sender struct {
	http.ResponseWriter
	sends *atomic.Int64
}

func (s sender) ReadFrom(src io.Reader) (int64, error) {
	limited := src.(*io.LimitedReader)
	if to, ok := limited.R.(interface {
		SendTo(io.Writer, int64) (int64, error)
	}); ok {
		s.sends.Add(1)
		return to.SendTo(s.ResponseWriter, limited.N)
	}
	return io.Copy(s.ResponseWriter, src)
}

func TestServeContentOfABlobInFlight(t *testing.T) {
	c := openCache(t, t.TempDir(), blobcache.Config{})
	s := newSource(4 << 20)
	open := s.gate(1 << 20)
	var sends atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := c.Get(r.Context(), s.digest, s.fetch)
		if err != nil {
			t.Error(err)
			return
		}
		defer b.Content.Close()
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(sender{w, &sends}, r, "", time.Time{}, b.Content)
	}))
	t.Cleanup(srv.Close)
	var wg sync.WaitGroup
	for _, rng := range []struct {
		header     string
		start, end int
	}{{"", 0, 4 << 20}, {"bytes=100-", 100, 4 << 20}, {"bytes=2000000-2999999", 2000000, 3000000}, {"bytes=-1", 4<<20 - 1, 4 << 20}} {
		wg.Go(func() {
			req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL, nil)
			if rng.header != "" {
				req.Header.Set("Range", rng.header)
			}
			res, err := srv.Client().Do(req)
			if err != nil {
				t.Error(err)
				return
			}
			defer res.Body.Close()
			got, err := io.ReadAll(res.Body)
			if err != nil || !bytes.Equal(got, s.data[rng.start:rng.end]) {
				t.Errorf("Range %q: %d bytes, %v; want those from %d to %d", rng.header, len(got), err, rng.start, rng.end)
			}
		})
	}
	if err := waitJoins(t, c, 3); err != nil {
		t.Error(err)
	}
	close(open)
	wg.Wait()
	if n := sends.Load(); n != 4 {
		t.Errorf("%d answers were sent from the file, want 4", n)
	}
}

func waitJoins(t *testing.T, c *blobcache.Cache, n int64) error {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for c.Stats().Joins < n {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
	return nil
}

// TestFillOfWhatIsNotThereAnyMore has somebody spoil a file that larder has verified.
func TestFillOfWhatIsNotThereAnyMore(t *testing.T) {
	spoil := map[string]func(path string) error{
		"removed": os.Remove,
		"cut":     func(path string) error { return os.Truncate(path, 0) },
		"zeros":   func(path string) error { return os.WriteFile(path, make([]byte, 1<<10), 0o600) },
	}
	for name, spoil := range spoil {
		for _, restarted := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				dir := t.TempDir()
				c := openCache(t, dir, blobcache.Config{})
				s := newSource(1 << 10)
				wantBlob(t, get(t, c, s), s.data, blobcache.Miss)
				waitIdle(t, c)
				if err := spoil(blobPath(dir, s.digest)); err != nil {
					t.Fatal(err)
				}
				if restarted {
					c.Close()
					c = openCache(t, dir, blobcache.Config{})
				}
				outcome, err := c.Fill(t.Context(), s.digest, blobcache.Source{Fetch: s.fetch}, nil)
				if outcome != blobcache.Miss || err != nil {
					t.Errorf("got %v, %v; want it to be fetched anew", outcome, err)
				}
				if kept, err := os.ReadFile(blobPath(dir, s.digest)); err != nil || !bytes.Equal(kept, s.data) {
					t.Errorf("%d bytes are kept (%v), want the %d of the blob", len(kept), err, len(s.data))
				}
			})
		}
	}
}
