package blobcache_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"larder/blobcache"
)

func TestSourceIsToldOnceHowItsFillEnded(t *testing.T) {
	refused := errors.New("refused")
	tests := map[string]struct {
		set  func(*source)
		disk error
		read int64 // before the reader leaves
		want error
	}{
		"on disk":     {read: 1 << 20},
		"wrong bytes": {set: func(s *source) { s.data = bytes.Repeat([]byte("x"), len(s.data)) }, read: 1 << 20, want: blobcache.ErrDigest},
		"refused":     {set: func(s *source) { s.err = refused }, want: refused},
		"not wanted": {set: func(s *source) {
			open := s.gate(5 << 10)
			time.AfterFunc(30*time.Second, func() { close(open) })
		}, want: errAny},
		"disk full": {disk: syscall.ENOSPC, read: 1 << 20, want: errAny},
	}
	for name, test := range tests {
		for _, size := range []int{10 << 10, 300 << 10} {
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					dir := t.TempDir()
					c := openCache(t, dir, blobcache.Config{Linger: time.Second})
					c.FailWrites(func() error { return test.disk })
					s := newSource(size)
					if test.set != nil {
						test.set(s)
					}
					var told []error
					ctx, leave := context.WithTimeout(t.Context(), time.Second)
					defer leave()
					b, err := c.GetRange(ctx, s.digest, 0, -1, blobcache.Source{Fetch: s.fetch, Ended: func(err error) {
						if err == nil && c.Stats().Entries != 1 {
							t.Error("told before the blob is on disk")
						}
						told = append(told, err)
					}})
					if err == nil {
						_, _ = io.CopyN(io.Discard, b.Content, test.read)
						b.Content.Close()
					}
					time.Sleep(time.Minute)
					synctest.Wait()
					switch {
					case len(told) != 1:
						t.Errorf("told %v, want it told once", told)
					case test.want == errAny && told[0] == nil, test.want != errAny && !errors.Is(told[0], test.want):
						t.Errorf("told %v, want %v", told[0], test.want)
					}
				})
			})
		}
	}
}

// Who asks again for what has just failed must not be given the same once more.
func TestSourceIsToldOfAFailureBeforeTheBlobIsFetchedAnew(t *testing.T) {
	for _, size := range []int{10 << 10, 300 << 10} {
		synctest.Test(t, func(t *testing.T) {
			c := openCache(t, t.TempDir(), blobcache.Config{})
			right := newSource(size)
			wrong := newSource(size)
			wrong.data = bytes.Repeat([]byte("x"), size)
			hear := make(chan struct{})
			src := blobcache.Source{Fetch: wrong.fetch, Ended: func(error) { <-hear }}
			b, err := c.GetRange(t.Context(), right.digest, 0, -1, src)
			if err == nil {
				_, err = io.Copy(io.Discard, b.Content)
				b.Content.Close()
			}
			if !errors.Is(err, blobcache.ErrDigest) {
				t.Fatalf("got %v, want %v", err, blobcache.ErrDigest)
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				b, err := c.Get(t.Context(), right.digest, right.fetch)
				if err != nil {
					t.Error(err)
					return
				}
				wantBlob(t, b, right.data, blobcache.Miss)
			}()
			synctest.Wait()
			if n := len(right.offsets()); n > 0 {
				t.Errorf("%d fetches before the source of the failed one was told", n)
			}
			close(hear)
			<-done
		})
	}
}

var errAny = errors.New("any error")

func TestFollowerReadsWhatOthersFetchAndFetchesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := openCache(t, t.TempDir(), blobcache.Config{})
		s := newSource(1 << 20)
		if b, err := c.Follow(t.Context(), s.digest); b != nil || err != nil {
			t.Fatalf("%v, %v: want nothing, as nobody fetches it", b, err)
		}
		open := s.gate(300 << 10)
		first := get(t, c, s)
		follower, err := c.Follow(t.Context(), s.digest)
		if err != nil || follower == nil || follower.Size != 1<<20 {
			t.Fatalf("%v, %v: want what is on its way", follower, err)
		}
		defer follower.Content.Close()
		if _, err := io.CopyN(io.Discard, follower.Content, 200<<10); err != nil {
			t.Fatal(err)
		}
		first.Content.Close() // and yet it goes on, for the follower
		time.Sleep(time.Minute)
		close(open)
		if n, err := io.Copy(io.Discard, follower.Content); n != 1<<20-200<<10 || err != nil {
			t.Errorf("read %d bytes more, %v", n, err)
		}
		synctest.Wait()
		complete, err := c.Follow(t.Context(), s.digest)
		if err != nil || complete == nil {
			t.Fatalf("%v, %v: want the blob that is on disk", complete, err)
		}
		wantBlob(t, complete, s.data, blobcache.Hit)
		if n := len(s.offsets()); n != 1 {
			t.Errorf("%d fetches, want 1", n)
		}
	})
}

func TestFollowerOfASmallBlobAndOfOneThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := openCache(t, t.TempDir(), blobcache.Config{})
		small, wrong := newSource(1000), newSource(1<<20)
		wrong.data = bytes.Clone(wrong.data)
		wrong.data[7]++
		for _, s := range []*source{small, wrong} {
			open := s.gate(500)
			go func() {
				if b, err := c.Get(t.Context(), s.digest, s.fetch); err == nil {
					_, _ = io.Copy(io.Discard, b.Content)
					b.Content.Close()
				}
			}()
			synctest.Wait()
			got := make(chan []byte)
			go func() {
				b, err := c.Follow(t.Context(), s.digest)
				if err != nil {
					t.Error(err)
				}
				data, err := io.ReadAll(b.Content)
				if s == wrong && !errors.Is(err, blobcache.ErrDigest) {
					t.Errorf("read a wrong blob: %v", err)
				}
				b.Content.Close()
				got <- data
			}()
			synctest.Wait()
			close(open)
			if data := <-got; s == small && !bytes.Equal(data, s.data) || s == wrong && len(data) >= len(s.data) {
				t.Errorf("read %d of %d bytes", len(data), len(s.data))
			}
		}
	})
}

// What is not kept is fetched for clients only: nothing may be fetched, nor be passed
// on, for who reads along.
func TestFollowEndsWhenTheBlobIsNotKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := openCache(t, t.TempDir(), blobcache.Config{})
		var full atomic.Bool
		c.FailWrites(func() error {
			if full.Load() {
				return syscall.ENOSPC
			}
			return nil
		})
		s := newSource(2 << 20)
		open := s.gate(1 << 20)
		client, err := c.Get(t.Context(), s.digest, s.fetch)
		if err != nil {
			t.Fatal(err)
		}
		along, err := c.Follow(t.Context(), s.digest)
		if err != nil || along == nil {
			t.Fatalf("a blob on its way: %v, %v", along, err)
		}
		full.Store(true)
		close(open)
		if _, err := io.Copy(io.Discard, along.Content); !errors.Is(err, blobcache.ErrUnkept) {
			t.Errorf("reading along: %v, want %v", err, blobcache.ErrUnkept)
		}
		along.Content.Close()
		if got, err := io.ReadAll(client.Content); err != nil || !bytes.Equal(got, s.data) {
			t.Errorf("the client got %d bytes, %v", len(got), err)
		}
		client.Content.Close()
		if n := len(s.offsets()); n > 2 {
			t.Errorf("fetched %d times", n)
		}
	})
}
