package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"larder/handler/upstream/upstreamtest"
)

// What a larder that is the test binary is told by its environment.
const (
	fileLimit = "TEST_FILE_LIMIT" // how many files it may have open
	nobody    = "TEST_NOBODY"     // not to be root
)

// nobodyID is a user and a group who own nothing.
const nobodyID = 65534

// confine takes from this process what the environment says.
func confine() {
	var err error
	if n, _ := strconv.ParseUint(os.Getenv(fileLimit), 10, 32); n > 0 {
		err = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: n, Max: n})
	}
	if os.Getenv(nobody) != "" && os.Geteuid() == 0 {
		err = errors.Join(err, syscall.Setgroups(nil), syscall.Setgid(nobodyID), syscall.Setuid(nobodyID))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
}

// execWorld is a world whose larder is a process.
func execWorld(t *testing.T, environ []string, sizes ...int) *world {
	t.Helper()
	w := prepareWorld(t, sizes...)
	w.exec(t, environ...)
	return w
}

// exec starts a larder as a process.
func (w *world) exec(t *testing.T, environ ...string) {
	t.Helper()
	w.larder = execLarder(t, nil, w.environ(environ...)...)
	w.waitUntilUp(t)
	t.Cleanup(w.client.CloseIdleConnections)
}

// TestFewFiles has more clients at once than larder may have open files. They
// wait or are refused, and what is cached stays so.
func TestFewFiles(t *testing.T) {
	t.Parallel()
	for _, cached := range []bool{false, true} {
		t.Run(fmt.Sprintf("cached %v", cached), func(t *testing.T) {
			t.Parallel()
			w := execWorld(t, []string{fileLimit + "=64", "LARDER_TAG_TTL=1h", "LARDER_LOG_LEVEL=debug"}, usual, usual, usual, 4<<20)
			w.ask(appTag, "")
			if cached {
				w.pull(t, "first")
				w.wantRightCache(t)
				w.hub.Stop()
			}
			var idle []net.Conn
			for range 50 {
				idle = append(idle, w.dial(t))
			}
			var clients sync.WaitGroup
			for i := range 60 {
				path := w.everything()[i%len(w.everything())]
				clients.Go(func() {
					if err := w.lie(path, "", w.ask(path, "")); err != nil {
						t.Errorf("GET %s: the client was fooled: %v", path, err)
					}
				})
			}
			eventually(t, "a lack of files", func() bool { return strings.Contains(w.stderr.String(), "too many open files") })
			for _, conn := range idle {
				conn.Close()
			}
			clients.Wait()
			w.client.CloseIdleConnections()
			if cached {
				w.pull(t, "with upstream gone")
				w.hub.Start()
			}
			w.recovers(t)
		})
	}
}

// TestTerminatedUnderLoad asks larder to end while it is sending.
func TestTerminatedUnderLoad(t *testing.T) {
	t.Parallel()
	const clients = 5
	for name, goesOn := range map[string]bool{"answers that come to their end": true, "answers that do not": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			environ := []string{"LARDER_TAG_TTL=1h", "LARDER_SHUTDOWN_GRACE=20s"}
			if !goesOn {
				environ[1] = "LARDER_SHUTDOWN_GRACE=100ms"
			}
			w := execWorld(t, environ, 4<<20)
			w.ask(appTag, "")
			gate := make(chan struct{})
			over := w.hub.Fault(upstreamtest.Match{Path: w.blob()}, upstreamtest.GateAfter(2<<20, gate))
			answers := make(chan error, clients)
			for range clients {
				begun := make(chan struct{})
				go func() { answers <- coldClient(context.Background(), w.larder, w.blob(), func() { close(begun) }) }()
				<-begun
			}
			w.cancel()
			eventually(t, "new clients to be refused", func() bool { return w.ask("/v2/", "").err != nil })
			if goesOn {
				close(gate)
			}
			for range clients {
				if err := <-answers; (err == nil) != goesOn {
					t.Errorf("a client got %v", err)
				}
			}
			if err := w.wait(t); err != nil {
				t.Errorf("larder ended with %v", err)
			}
			over()
			w.exec(t, "LARDER_CACHE_DIR="+w.cache)
			w.recovers(t)
		})
	}
}

// TestSecondLarderHarmsNoFill starts another larder on the same directory in the
// middle of a blob.
func TestSecondLarderHarmsNoFill(t *testing.T) {
	t.Parallel()
	w := execWorld(t, []string{"LARDER_TAG_TTL=1h"}, 4<<20)
	w.ask(appTag, "")
	gate := make(chan struct{})
	over := w.hub.Fault(upstreamtest.Match{Path: w.blob()}, upstreamtest.GateAfter(2<<20, gate))
	begun, answer := make(chan struct{}), make(chan error, 1)
	go func() { answer <- coldClient(context.Background(), w.larder, w.blob(), func() { close(begun) }) }()
	<-begun
	wantExit(t, execLarder(t, nil, w.environ("LARDER_CACHE_DIR="+w.cache)...), 1, w.cache)
	close(gate)
	if err := <-answer; err != nil {
		t.Errorf("the client got %v", err)
	}
	over()
	w.recovers(t)
}

// TestPermissionDenied takes from larder, which is not root, the right to parts
// of its cache, under way or before a start.
func TestPermissionDenied(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		file   func(w *world) string
		mode   fs.FileMode
		served bool // with upstream there
	}{
		"read-only blobs":        {func(w *world) string { return filepath.Join(w.cache, "blobs", "sha256") }, 0o500, true},
		"read-only manifests":    {func(w *world) string { return filepath.Join(w.cache, "manifests", "sha256") }, 0o500, true},
		"read-only tags":         {func(w *world) string { return filepath.Join(w.cache, "manifests", "tags") }, 0o500, true},
		"read-only beginnings":   {func(w *world) string { return filepath.Join(w.cache, "blobs", "tmp") }, 0o500, false},
		"no blobs":               {func(w *world) string { return filepath.Join(w.cache, "blobs", "sha256") }, 0, false},
		"no manifests":           {func(w *world) string { return filepath.Join(w.cache, "manifests", "sha256") }, 0, true},
		"no rights":              {func(w *world) string { return filepath.Join(w.cache, "manifests", "repositories") }, 0, true},
		"one blob is unreadable": {func(w *world) string { return storedFile(w.cache, "blobs", w.img.Layers[0].Digest) }, 0, true},
		"one manifest is":        {func(w *world) string { return storedFile(w.cache, "manifests", w.img.Manifest) }, 0, true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := shortDir(t)
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if os.Geteuid() == 0 {
				if err := os.Chown(dir, nobodyID, nobodyID); err != nil {
					t.Fatal(err)
				}
			}
			environ := []string{nobody + "=1", "HOME=" + dir, "LARDER_CACHE_DIR=" + filepath.Join(dir, "cache")}
			w := execWorld(t, environ, usual)
			w.pull(t, "before")
			w.wantRightCache(t)
			next := w.hub.AddImage(appName, "2", seeded(t, 3, usual))
			file := test.file(w)
			fi, err := os.Stat(file)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(file, test.mode); err != nil {
				t.Fatal(err)
			}
			for _, path := range append(w.everything(), appPath+"blobs/"+next.Layers[0].Digest.String()) {
				a := w.ask(path, "")
				w.notFooled(t, path, "", a)
				if test.served && !a.whole() {
					t.Errorf("GET %s: got %v, want it served", path, a)
				}
			}
			if err := os.Chmod(file, fi.Mode().Perm()); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
			w.recovers(t)
		})
	}
}

// TestJunk starts on a cache with very many files that are not larder's.
func TestJunk(t *testing.T) {
	t.Parallel()
	n := 100_000
	if testing.Short() {
		n = 10_000
	}
	dir, err := os.MkdirTemp("/dev/shm", "larder") // in memory, where it is had quickly
	if err != nil {
		dir = t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	w := newWorld(t, []string{"LARDER_TAG_TTL=1h", "LARDER_CACHE_DIR=" + filepath.Join(dir, "cache")}, usual)
	w.pull(t, "before")
	w.stop(t)
	var junk []string
	for i := range n {
		if i%1000 == 0 {
			junk = append(junk, filepath.Join(w.cache, []string{"blobs/sha256", "manifests/tags", "blobs/tmp", "junk"}[i/1000%4], fmt.Sprintf("junk%d", i)))
			if err := os.MkdirAll(junk[len(junk)-1], 0o700); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(junk[len(junk)-1], strconv.Itoa(i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w.restart(t, "LARDER_TAG_TTL=1h")
	w.hub.Stop()
	w.pull(t, "with upstream gone")
	eventually(t, "a warning", func() bool { return strings.Contains(w.stderr.String(), "left alone") })
	w.stop(t)
	left := 0
	for _, dir := range junk {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Error(err)
		}
		left += len(entries)
	}
	if left != n {
		t.Errorf("%d files are left that are not larder's, want %d", left, n)
	}
	if warnings := strings.Count(w.stderr.String(), `"level":"warn"`); warnings > 2 {
		t.Errorf("got %d warnings, want one for each cache", warnings)
	}
}
