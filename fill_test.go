package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"
)

// bigBlob pushes an image of one blob of size bytes, lets larder know its
// manifest, and returns the path of the blob.
func bigBlob(t *testing.T, u *testUpstream, l *larder, size int) (img v1.Image, path string) {
	t.Helper()
	img = flatImage(t, size)
	u.push(t, "library/larder-test-hello:1", img)
	if resp, body := l.get(t, "/v2/library/larder-test-hello/manifests/1"); resp.StatusCode != http.StatusOK {
		t.Fatalf("got %s with %q", resp.Status, body)
	}
	d, _ := layerOf(t, img)
	return img, "/v2/library/larder-test-hello/blobs/" + d
}

// readBlob reads a body to its end and checks it.
func readBlob(body io.Reader, path string) error {
	v := digest.Digest(path[strings.LastIndex(path, "/")+1:]).Verifier()
	n, err := io.Copy(v, body)
	if err != nil {
		return fmt.Errorf("after %d bytes: %w", n, err)
	}
	if !v.Verified() {
		return fmt.Errorf("%d bytes have another digest", n)
	}
	return nil
}

// coldClient reads a blob; joined is told when its first bytes are there.
func coldClient(ctx context.Context, l *larder, path string, joined func()) error {
	told := sync.OnceFunc(joined)
	defer told() // whoever waits for all must not wait for ever
	resp, err := l.open(ctx, path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	var first strings.Builder
	if _, err := io.CopyN(&first, resp.Body, 1); err != nil {
		return err
	}
	told()
	return readBlob(io.MultiReader(strings.NewReader(first.String()), resp.Body), path)
}

// TestFiftyColdClientsOneGet has fifty clients ask at once for a blob that
// upstream does not finish before each has its beginning.
func TestFiftyColdClientsOneGet(t *testing.T) {
	t.Parallel()
	hub := newUpstream(t, "docker.io")
	l := startLarder(t, []*testUpstream{hub})
	_, path := bigBlob(t, hub, l, 4<<20)
	release := hub.hold(64 << 10)
	defer release()

	var joined, ended sync.WaitGroup
	for i := range 50 {
		joined.Add(1)
		ended.Go(func() {
			if err := coldClient(t.Context(), l, path, joined.Done); err != nil {
				t.Errorf("client %d: %v", i, err)
			}
		})
	}
	joined.Wait()
	hub.wantExchanges(t, "^GET "+path, 1, 1)
	release()
	ended.Wait()
	hub.wantExchanges(t, path, 1, 1)
}

// TestFirstClientLeavesOthersStay cancels the client that started the fill.
func TestFirstClientLeavesOthersStay(t *testing.T) {
	t.Parallel()
	hub := newUpstream(t, "docker.io")
	l := startLarder(t, []*testUpstream{hub})
	_, path := bigBlob(t, hub, l, 4<<20)
	release := hub.hold(64 << 10)
	defer release()

	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	first := make(chan error, 1)
	started := make(chan struct{})
	go func() { first <- coldClient(ctx, l, path, func() { close(started) }) }()
	<-started

	var joined, ended sync.WaitGroup
	for i := range 49 {
		joined.Add(1)
		ended.Go(func() {
			if err := coldClient(t.Context(), l, path, joined.Done); err != nil {
				t.Errorf("client %d: %v", i, err)
			}
		})
	}
	joined.Wait()
	leave()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("the first client got %v, want context canceled", err)
	}
	release()
	ended.Wait()
	hub.wantExchanges(t, path, 1, 1)
}

// TestKillDuringFillThenResume kills larder, with no chance to tidy up, when
// it has the first half of a blob.
func TestKillDuringFillThenResume(t *testing.T) {
	t.Parallel()
	const size, half, slack = 16 << 20, 8 << 20, 1 << 20
	hub := newUpstream(t, "docker.io")
	l := execLarder(t, []*testUpstream{hub})
	l.waitUntilUp(t)
	img, path := bigBlob(t, hub, l, size)
	release := hub.hold(half)
	defer release()

	resp, err := l.open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.CopyN(io.Discard, resp.Body, half); err != nil {
		t.Fatal(err)
	}
	if err := l.kill(); err != nil {
		t.Fatal(err)
	}
	l.wait(t)
	wantTrueNames(t, l.cache)
	release()

	again := execLarder(t, []*testUpstream{hub}, "LARDER_CACHE_DIR="+l.cache)
	again.waitUntilUp(t)
	if err := craneClient(again.addr).pull(t, hubName+"@"+digestOf(t, img)); err != nil {
		t.Fatal(err)
	}
	hub.wantExchanges(t, "^GET "+path+" 206 bytes=0-", 1, 1)
	hub.wantExchanges(t, "^GET "+path+" 206 bytes=[1-9]", 1, 1)
	var sent int64
	for _, e := range hub.exchanges("^GET " + path) {
		sent += e.sent.Load()
	}
	if sent > size+slack {
		t.Errorf("upstream sent %d bytes of a blob of %d", sent, size)
	}
	d := digest.Digest(filepath.Base(path))
	eventually(t, "the blob under its name", func() bool {
		_, err := os.Stat(filepath.Join(l.cache, "blobs", d.Algorithm().String(), d.Encoded()[:2], d.Encoded()))
		return err == nil
	})
	wantTrueNames(t, l.cache)
}

// wantTrueNames checks that every blob in a cache has the digest of its name.
func wantTrueNames(t *testing.T, cache string) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(cache, "blobs"), func(file string, entry fs.DirEntry, err error) error {
		if entry != nil && entry.IsDir() && entry.Name() == "tmp" {
			return fs.SkipDir
		}
		if err != nil || entry.IsDir() || entry.Name() == "scrub" { // how far scrubbing has come
			return err
		}
		algorithm := filepath.Base(filepath.Dir(filepath.Dir(file)))
		d := digest.NewDigestFromEncoded(digest.Algorithm(algorithm), entry.Name())
		if err := d.Validate(); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := readBlob(f, "/"+d.String()); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
