package store_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"larder/handler/shared/store"
	"larder/handler/shared/storetest"
)

// pattern is a content that is nowhere: each byte follows from its offset.
type pattern struct{ at, size int64 }

func (p *pattern) Read(b []byte) (int, error) {
	if p.at == p.size {
		return 0, io.EOF
	}
	b = b[:min(int64(len(b)), p.size-p.at)]
	for i := range b {
		o := p.at + int64(i)
		b[i] = byte(o*31 + o>>9 + o>>21)
	}
	p.at += int64(len(b))
	return len(b), nil
}

func (p *pattern) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += p.at
	case io.SeekEnd:
		offset += p.size
	}
	p.at = offset
	return offset, nil
}

// TestLargeObjectsPassThrough shows that what is put and read, in several parts of S3,
// is not held in memory.
func TestLargeObjectsPassThrough(t *testing.T) {
	const size, most = 70 << 20, 12 << 20
	whole := sha256.New()
	if _, err := io.Copy(whole, &pattern{size: size}); err != nil {
		t.Fatal(err)
	}
	want := digest.NewDigest(digest.SHA256, whole)
	stores := map[string]func(t *testing.T) store.Store{
		"s3": func(t *testing.T) store.Store {
			gateway := storetest.Gateway(t)
			return open(t, gateway.URL, gateway.Credentials)
		},
		"file": func(t *testing.T) store.Store { return open(t, "file://"+t.TempDir(), store.Credentials{}) },
	}
	for name, openStore := range stores {
		t.Run(name, func(t *testing.T) {
			s := openStore(t)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			if err := s.Put(t.Context(), "large", &pattern{size: size}, store.Label{Digest: want, Size: size}); err != nil {
				t.Fatal(err)
			}
			body, info, err := s.Get(t.Context(), "large", 0, -1)
			if err != nil {
				t.Fatal(err)
			}
			defer body.Close()
			if info.Size != size || info.Length != size || info.Digest != want {
				t.Errorf("info: %+v", info)
			}
			got := sha256.New()
			if _, err := io.Copy(got, body); err != nil {
				t.Fatal(err)
			}
			runtime.ReadMemStats(&after)
			if d := digest.NewDigest(digest.SHA256, got); d != want {
				t.Errorf("got other bytes: %s", d)
			}
			if allocated := after.TotalAlloc - before.TotalAlloc; allocated > most {
				t.Errorf("%d bytes were allocated", allocated)
			} else {
				t.Logf("%d bytes were allocated", allocated)
			}
		})
	}
}

// wantS3Error checks that an error says what an operator needs, and no secret.
func wantS3Error(t *testing.T, what string, err error, code, hint string) {
	t.Helper()
	e, ok := errors.AsType[*store.Error](err)
	if !ok || e.Code != code || !strings.Contains(e.Hint, hint) || hint == "" != (e.Hint == "") {
		t.Errorf("%s: got %v, want the code %s and a hint at %q", what, err, code, hint)
	}
	if err != nil && strings.Contains(err.Error(), "secret-of") {
		t.Errorf("%s: %v says a secret", what, err)
	}
}

func TestS3WrongBucketAndKeys(t *testing.T) {
	gateway := storetest.Gateway(t)
	right := gateway.Credentials
	tests := map[string]struct {
		url        string
		creds      store.Credentials
		code, hint string
	}{
		"bucket":     {strings.Replace(gateway.URL, "bucket", "another", 1), right, "NoSuchBucket", "made first"},
		"access key": {gateway.URL, store.Credentials{AccessKey: "nobody", SecretKey: right.SecretKey}, "XAdminUserNotFound", "not known"}, // versitygw's word for InvalidAccessKeyId
		"secret key": {gateway.URL, store.Credentials{AccessKey: right.AccessKey, SecretKey: "secret-of-another"}, "SignatureDoesNotMatch", "secret key"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s := open(t, test.url, test.creds)
			_, _, err := s.Get(t.Context(), "key", 0, -1)
			wantS3Error(t, "Get", err, test.code, test.hint)
			_, err = s.Create(t.Context(), "key", []byte("x"))
			wantS3Error(t, "Create", err, test.code, test.hint)
			_, err = s.Replace(t.Context(), "key", []byte("x"), "version")
			wantS3Error(t, "Replace", err, test.code, test.hint)
			err = s.Put(t.Context(), "key", strings.NewReader("x"), store.Label{Size: 1})
			wantS3Error(t, "Put", err, test.code, test.hint)
			err = s.Compose(t.Context(), "key", []string{"a", "b"}, store.Label{Size: 1})
			wantS3Error(t, "Compose", err, test.code, test.hint)
			for _, err := range s.List(t.Context(), "") {
				wantS3Error(t, "List", err, test.code, test.hint)
			}
			// A HEAD has no body to say more in.
			if _, err := s.Head(t.Context(), "key"); err == nil {
				t.Error("Head of nothing")
			}
		})
	}
}

func TestS3BucketRemovedUnderLoad(t *testing.T) {
	gateway := storetest.Gateway(t)
	s := open(t, gateway.URL, gateway.Credentials)
	data := bytes.Repeat([]byte("x"), 1<<20)
	busy := make(chan struct{}, 100)
	var load sync.WaitGroup
	for worker := range 4 {
		load.Go(func() {
			key := "blobs/" + string(rune('a'+worker))
			for {
				err := s.Put(t.Context(), key, bytes.NewReader(data), store.Label{Size: int64(len(data))})
				if err != nil {
					if e, ok := errors.AsType[*store.Error](err); !ok || e.Op != "put" {
						t.Errorf("Put: %v", err)
					}
					return
				}
				body, _, err := s.Get(t.Context(), key, 0, -1)
				if err != nil {
					return
				}
				if got, err := io.ReadAll(body); err == nil && !bytes.Equal(got, data) {
					t.Errorf("a body of %d bytes ended well", len(got))
				}
				body.Close()
				select {
				case busy <- struct{}{}:
				default:
				}
			}
		})
	}
	for range 8 {
		<-busy
	}
	ended := make(chan struct{})
	go func() {
		load.Wait()
		close(ended)
	}()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for removed := false; !removed; { // more than once: a put that was about to write makes it again
		_ = os.RemoveAll(gateway.Dir)
		select {
		case <-ended:
			removed = true
		case <-tick.C:
		}
	}
	if err := os.RemoveAll(gateway.Dir); err != nil {
		t.Fatal(err)
	}
	err := s.Put(t.Context(), "key", bytes.NewReader(data), store.Label{Size: int64(len(data))})
	wantS3Error(t, "Put", err, "NoSuchBucket", "made first")
}

func TestS3GoesAwayAndComesBack(t *testing.T) {
	gateway := storetest.Gateway(t)
	s := open(t, gateway.URL, gateway.Credentials)
	if _, err := s.Create(t.Context(), "key", []byte("x")); err != nil {
		t.Fatal(err)
	}
	gateway.Stop()
	began := time.Now()
	_, err := s.Head(t.Context(), "key")
	wantS3Error(t, "Head", err, "", "nobody listens")
	err = s.Put(t.Context(), "key", strings.NewReader("x"), store.Label{Size: 1})
	wantS3Error(t, "Put", err, "", "nobody listens")
	_, err = s.Create(t.Context(), "key", []byte("x"))
	wantS3Error(t, "Create", err, "", "nobody listens")
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("three refusals took %v", took)
	}
	gateway.Restart()
	if _, err := s.Head(t.Context(), "key"); err != nil {
		t.Error(err)
	}
	if _, err := s.Create(t.Context(), "key", []byte("x")); err != store.ErrChanged {
		t.Errorf("Create of what is there: %v", err)
	}
}

func TestS3SignedURL(t *testing.T) {
	gateway := storetest.Gateway(t)
	s := open(t, gateway.WithPrefix("prefix"), gateway.Credentials)
	if err := s.Put(t.Context(), "blobs/x", strings.NewReader("content"), store.Label{Size: 7}); err != nil {
		t.Fatal(err)
	}
	signed, err := s.SignedURL(t.Context(), "blobs/x", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	get := func(u string) (int, string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, u, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Range", "bytes=3-")
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(body)
	}
	if status, body := get(signed); status != http.StatusPartialContent || body != "tent" {
		t.Errorf("got %d %q", status, body)
	}
	if status, _ := get(strings.Replace(signed, "blobs/x", "blobs/y", 1)); status != http.StatusForbidden {
		t.Errorf("the signature is good for another object: %d", status)
	}
	if !strings.Contains(signed, "X-Amz-Expires=3600") || strings.Contains(signed, gateway.Credentials.SecretKey) {
		t.Errorf("signed: %s", signed)
	}
	if _, err := s.SignedURL(t.Context(), "../x", time.Hour); err == nil {
		t.Error("signed what is elsewhere")
	}
}

func TestS3CloseLeavesNoConnections(t *testing.T) {
	gateway := storetest.Gateway(t)
	before := runtime.NumGoroutine()
	s, err := store.Open(gateway.URL, gateway.Credentials)
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if _, err := s.Head(t.Context(), "key"); err != store.ErrNotExist {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for runtime.NumGoroutine() > before {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%d goroutines are left of a store", runtime.NumGoroutine()-before)
		}
	}
}
