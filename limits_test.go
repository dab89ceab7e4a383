package main

import (
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"larder/handler/upstream/upstreamtest"
)

// seededBlob adds a blob of size bytes, which no memory holds, to a registry,
// and returns its path.
func seededBlob(t *testing.T, hub *upstreamtest.Registry, seed uint64, size int64) (path string) {
	t.Helper()
	content := upstreamtest.Seeded(seed, size)
	d, err := digest.FromReader(content)
	if err != nil {
		t.Fatal(err)
	}
	hub.AddReader("library/app", d, size, content)
	return "/v2/library/app/blobs/" + d.String()
}

// startLarderFor starts a larder in front of a registry, and returns its admin
// address too.
func startLarderFor(t *testing.T, hub *upstreamtest.Registry, environ ...string) (l *larder, admin string) {
	t.Helper()
	admin = freeAddr(t)
	return startLarder(t, nil, append([]string{"LARDER_UPSTREAMS=docker.io=" + hub.URL, "LARDER_ADMIN_ADDR=" + admin}, environ...)...), admin
}

// pull reads a blob to its end, checks it, and returns how it was answered.
func (l *larder) pull(t *testing.T, path string) (detail string) {
	t.Helper()
	resp, err := l.open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("GET %s: %s", path, resp.Status)
	}
	if err := readBlob(resp.Body, path); err != nil {
		t.Fatalf("GET %s: %v", path, err)
	}
	_, detail, _ = strings.Cut(resp.Header.Get("Cache-Status"), "detail=")
	return detail
}

// onDisk is how many bytes the files in a directory take there.
func onDisk(dir string) (bytes int64) {
	_ = filepath.WalkDir(dir, func(_ string, de fs.DirEntry, err error) error {
		if err != nil || de.IsDir() {
			return nil // it was renamed or removed just now
		}
		if fi, err := de.Info(); err == nil {
			bytes += fi.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return nil
	})
	return bytes
}

// TestThreeTimesTheBudgetGoesThroughAndTheHotBlobsStay pulls 3 GiB through a
// cache of 1 GiB, with 200 MiB among it that are pulled again and again.
func TestThreeTimesTheBudgetGoesThroughAndTheHotBlobsStay(t *testing.T) {
	t.Parallel()
	unit := int64(1 << 20)
	if raced || testing.Short() {
		unit = 1 << 16
	}
	hub := upstreamtest.New(t)
	var hot, cold []string
	for i := range 4 {
		hot = append(hot, seededBlob(t, hub, uint64(i), 50*unit))
	}
	for i := range 28 {
		cold = append(cold, seededBlob(t, hub, uint64(100+i), 100*unit))
	}
	l, _ := startLarderFor(t, hub, fmt.Sprintf("LARDER_MAX_SIZE=%d", 1024*unit))

	stop := make(chan struct{})
	var highest int64
	var watching sync.WaitGroup
	watching.Go(func() {
		for {
			// What is evicted after it was counted, and what comes in its place, are
			// not there at once: only what is there each time counts.
			now := onDisk(filepath.Join(l.cache, "blobs"))
			for range 3 {
				if now > 1024*unit {
					now = min(now, onDisk(filepath.Join(l.cache, "blobs")))
				}
			}
			highest = max(highest, now)
			select {
			case <-time.After(5 * time.Millisecond):
			case <-stop:
				return
			}
		}
	})
	hits, asked := 0, 0
	for i, path := range append(hot, cold...) {
		if got := l.pull(t, path); got != "miss" {
			t.Errorf("blob %d is answered with %s, want miss", i, got)
		}
		if i < len(hot) || i%2 == 0 {
			continue
		}
		for _, path := range hot {
			asked++
			if l.pull(t, path) == "hit" {
				hits++
			}
		}
	}
	close(stop)
	watching.Wait()
	if hits*100 < asked*95 {
		t.Errorf("%d of %d pulls of the hot blobs were hits, want 95 %%", hits, asked)
	}
	if highest > 1024*unit {
		t.Errorf("%d bytes were on disk, want %d at most", highest, 1024*unit)
	}
	t.Logf("%d of %d hits; at most %.1f %% of the budget on disk", hits, asked, float64(highest)/float64(1024*unit)*100)
}

// smallDisk is a directory on a file system of so many bytes.
func smallDisk(t *testing.T, size int64) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Skipf("making a small file system: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func (l *larder) wantReady(t *testing.T, admin, text string) {
	t.Helper()
	resp, err := http.Get("http://" + admin + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(body), text) {
		t.Errorf("readiness is %s %q, %v; want 200 and %q", resp.Status, body, err, text)
	}
}

// TestSmallDisk pulls a blob that is larger than the disk, and others when
// somebody else has filled it.
func TestSmallDisk(t *testing.T) {
	hub := upstreamtest.New(t)
	dir := smallDisk(t, 64<<20)
	l, admin := startLarderFor(t, hub, "LARDER_CACHE_DIR="+filepath.Join(dir, "cache"))
	large := seededBlob(t, hub, 1, 200<<20)
	if got := l.pull(t, large); got != "pass" {
		t.Errorf("a blob that is larger than the disk is answered with %s", got)
	}
	small := []string{seededBlob(t, hub, 2, 4<<20), seededBlob(t, hub, 3, 5<<20), seededBlob(t, hub, 4, 40<<20), seededBlob(t, hub, 5, 30<<20)}
	for i, want := range []string{"miss", "miss", "miss"} {
		if got := l.pull(t, small[i]); got != want {
			t.Errorf("blob %d is answered with %s, want %s", i, got, want)
		}
	}
	// What is still being written can't go for another.
	eventually(t, "the third blob on disk", func() bool { return l.pull(t, small[2]) == "hit" })
	if got := l.pull(t, small[3]); got != "miss" { // the disk has room if older ones go
		t.Errorf("a blob for which there is room is answered with %s", got)
	}
	eventually(t, "the last blob on disk", func() bool { return l.pull(t, small[3]) == "hit" })
	l.wantReady(t, admin, "ok\n")

	fill, err := os.Create(filepath.Join(dir, "somebody's"))
	if err != nil {
		t.Fatal(err)
	}
	defer fill.Close()
	for err == nil {
		_, err = fill.Write(make([]byte, 1<<20))
	}
	next := seededBlob(t, hub, 6, 3<<20)
	if got := l.pull(t, next); got != "miss" { // at the expense of what is cached
		t.Errorf("on a disk that somebody has filled, a blob is answered with %s", got)
	}
	eventually(t, "that blob on disk", func() bool { return l.pull(t, next) == "hit" })
	for err = nil; err == nil; {
		_, err = fill.Write(make([]byte, 64<<10))
	}
	if got := l.pull(t, large); got != "pass" {
		t.Errorf("on a full disk, a large blob is answered with %s", got)
	}
	if err := fill.Truncate(0); err != nil {
		t.Fatal(err)
	}
	if got := l.pull(t, small[3]); got != "miss" && got != "hit" {
		t.Errorf("when there is room again, a blob is answered with %s", got)
	}
	eventually(t, "a blob on disk again", func() bool { return l.pull(t, small[3]) == "hit" })
	l.wantReady(t, admin, "ok\n")
}

// TestReadOnlyDisk takes the right to write away while larder runs.
func TestReadOnlyDisk(t *testing.T) {
	hub := upstreamtest.New(t)
	dir := smallDisk(t, 64<<20)
	l, admin := startLarderFor(t, hub, "LARDER_CACHE_DIR="+filepath.Join(dir, "cache"))
	kept, other := seededBlob(t, hub, 1, 1<<20), seededBlob(t, hub, 2, 2<<20)
	l.pull(t, kept)
	eventually(t, "the blob on disk", func() bool { return l.pull(t, kept) == "hit" })
	image := hub.AddImage("library/app", "1", []byte("layer"))
	remount := func(flags uintptr) {
		t.Helper()
		eventually(t, "nobody to write", func() bool { return syscall.Mount("", dir, "", syscall.MS_REMOUNT|flags, "") == nil })
	}
	remount(syscall.MS_RDONLY)
	for i := range 5 {
		if got := l.pull(t, kept); got != "hit" {
			t.Errorf("what is cached is answered with %s", got)
		}
		if got := l.pull(t, other); got != "pass" {
			t.Errorf("what is not is answered with %s", got)
		}
		if resp, body := l.get(t, "/v2/library/app/manifests/1"); resp.StatusCode != http.StatusOK || digest.FromBytes(body) != image.Manifest {
			t.Errorf("pull %d of a tag: %s", i, resp.Status)
		}
	}
	l.wantReady(t, admin, "read-only file system")
	if n := strings.Count(l.stderr.String(), "read-only file system"); n > 6 {
		t.Errorf("%d lines tell of it, want one for each kind of trouble", n)
	}
	remount(0)
	eventually(t, "blobs to be kept again", func() bool { return l.pull(t, other) == "hit" })
	l.wantReady(t, admin, "ok\n")
}
