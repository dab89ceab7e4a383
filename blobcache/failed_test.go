package blobcache_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"larder/blobcache"
)

// closeLater holds the end of a body back until open is closed.
type closeLater struct {
	io.Reader
	open <-chan struct{}
}

func (c closeLater) Close() error {
	<-c.open
	return nil
}

func TestAFailedFillsErrorIsForThoseWhoWereThere(t *testing.T) {
	for _, size := range []int{1 << 10, 1 << 20} { // held back until it is right, and not
		synctest.Test(t, func(t *testing.T) {
			c := openCache(t, t.TempDir(), blobcache.Config{})
			s := newSource(size)
			gate, open := make(chan struct{}), make(chan struct{})
			wrong := func(context.Context, int64, int64) (io.ReadCloser, int64, error) {
				last := bytes.NewReader([]byte{s.data[size-1] ^ 1})
				r := io.MultiReader(bytes.NewReader(s.data[:size-1]), &gated{r: last, open: gate})
				return closeLater{r, open}, int64(size), nil
			}
			errs := make(chan error, 2)
			for range 2 {
				go func() {
					b, err := c.Get(t.Context(), s.digest, wrong)
					if err == nil {
						_, err = io.Copy(io.Discard, b.Content)
						b.Content.Close()
					}
					errs <- err
				}()
			}
			synctest.Wait()
			close(gate)
			for range 2 {
				if err := <-errs; !errors.Is(err, blobcache.ErrDigest) {
					t.Errorf("who was there got %v, want %v", err, blobcache.ErrDigest)
				}
			}
			later := make(chan *blobcache.Blob)
			go func() { // while the failed fill is still there
				b, err := c.Get(t.Context(), s.digest, s.fetch)
				if err != nil {
					t.Errorf("who came later got %v", err)
				}
				later <- b
			}()
			synctest.Wait()
			if n := c.Stats().Fills; n != 1 {
				t.Errorf("%d fills, want the failed one", n)
			}
			close(open)
			if b := <-later; b != nil {
				wantBlob(t, b, s.data, blobcache.Miss)
			}
		})
	}
}

func TestRefusalInTheMiddleEndsABlobAtOnce(t *testing.T) {
	for name, cfg := range map[string]blobcache.Config{"kept": {}, "passed on": keep(1)} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := openCache(t, t.TempDir(), cfg)
				s := newSource(1 << 20)
				s.body = cutAfter(300 << 10)
				asked := 0
				start := time.Now()
				b, err := c.Get(t.Context(), s.digest, func(ctx context.Context, offset, length int64) (io.ReadCloser, int64, error) {
					if asked++; asked > 1 {
						return nil, 0, fmt.Errorf("%w: 404", blobcache.ErrRefused)
					}
					return s.fetch(ctx, offset, length)
				})
				if err != nil {
					t.Fatal(err)
				}
				n, err := io.Copy(io.Discard, b.Content)
				b.Content.Close()
				if n != 300<<10 || !errors.Is(err, blobcache.ErrRefused) {
					t.Errorf("read %d bytes, %v; want %d, %v", n, err, 300<<10, blobcache.ErrRefused)
				}
				if took := time.Since(start); asked != 2 || took > time.Second { // after one break, a pause
					t.Errorf("asked %d times in %v; want twice, at once", asked, took)
				}
			})
		})
	}
}
