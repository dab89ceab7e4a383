package blobcache_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"larder/blobcache"
)

// obstacles are what a hand in the directory may put where a file should be.
func obstacles(outside string) map[string]func(path string) error {
	return map[string]func(path string) error{
		"directory":      func(path string) error { return os.Mkdir(path, 0o700) },
		"full directory": func(path string) error { return os.MkdirAll(filepath.Join(path, "a", "b"), 0o700) },
		"named pipe":     func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"link out":       func(path string) error { return os.Symlink(outside, path) },
		"link to itself": func(path string) error { return os.Symlink(filepath.Base(path), path) },
	}
}

// within fails the test if do hangs.
func within(t *testing.T, limit time.Duration, do func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		do()
	}()
	select {
	case <-done:
	case <-time.After(limit):
		t.Fatalf("hangs for %v", limit)
	}
}

func TestWhatStandsInTheWayOfABlobMakesWay(t *testing.T) {
	p := newParts(1 << 20)
	ways := map[string]func(dir string) string{
		"blob":              func(dir string) string { return blobPath(dir, p.digest) },
		"partial file":      func(dir string) string { return partialPath(dir, p.digest) },
		"extents":           func(dir string) string { return partialPath(dir, p.digest) + ".extents" },
		"directory of them": func(dir string) string { return filepath.Join(dir, "tmp") },
	}
	for way, path := range ways {
		outside := t.TempDir()
		for what, put := range obstacles(outside) {
			t.Run(what+" as "+way, func(t *testing.T) {
				p := &parts{source: p.source}
				dir, c := leftover(t, p, p.data[:1<<19], "")
				obstacle := path(dir)
				if err := errors.Join(os.RemoveAll(obstacle), os.MkdirAll(filepath.Dir(obstacle), 0o700), put(obstacle)); err != nil {
					t.Fatal(err)
				}
				within(t, 10*time.Second, func() {
					c.Size(p.digest)
					wantBlob(t, getParts(t, c, p), p.data, blobcache.Miss)
				})
				waitIdle(t, c)
				wantBlob(t, getParts(t, c, p), p.data, blobcache.Hit)
				if left, err := os.ReadDir(filepath.Join(dir, "tmp")); err != nil || slices.ContainsFunc(left, func(de os.DirEntry) bool { return de.Name() != "a" }) {
					t.Errorf("left in tmp: %v, %v", left, err)
				}
				if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
					t.Errorf("written elsewhere: %v, %v", left, err)
				}
			})
		}
	}
}

func TestJoiningAFillWhoseFileWasReplacedStartsAnew(t *testing.T) {
	for what, put := range obstacles(t.TempDir()) {
		t.Run(what, func(t *testing.T) {
			dir := t.TempDir()
			c := openCache(t, dir, blobcache.Config{})
			s := newSource(1 << 20)
			open := s.gate(1 << 19)
			get(t, c, s)
			close(open) // for the next; the first fill may be complete by then, or not
			path := partialPath(dir, s.digest)
			replace := func() error { return errors.Join(os.RemoveAll(path), put(path)) }
			err := replace()
			for tries := 0; err != nil && tries < 100; tries++ { // the first fill may be in the way
				err = replace()
			}
			if err != nil {
				t.Fatal(err)
			}
			within(t, 10*time.Second, func() {
				b := get(t, c, s)
				wantBlob(t, b, s.data, b.Outcome)
				waitIdle(t, c)
				b = get(t, c, s)
				wantBlob(t, b, s.data, b.Outcome)
			})
		})
	}
}

func TestTmpRemovedUnderARunningCacheIsMadeAgain(t *testing.T) {
	dir, c, _ := stored(t, 1<<20)
	if err := os.RemoveAll(filepath.Join(dir, "tmp")); err != nil {
		t.Fatal(err)
	}
	p := newParts(1<<20 + 1)
	wantBlob(t, getParts(t, c, p), p.data, blobcache.Miss)
	waitIdle(t, c)
	wantBlob(t, getParts(t, c, p), p.data, blobcache.Hit)
}

func TestWhatIsNoFileHoldsNoScrub(t *testing.T) {
	for what, put := range obstacles(t.TempDir()) {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dir := t.TempDir()
				scrub := filepath.Join(dir, "scrub")
				if err := put(scrub); err != nil {
					t.Fatal(err)
				}
				c, stop := running(t, dir, blobcache.Config{ScrubInterval: time.Minute})
				s := newSource(1 << 20)
				wantBlob(t, get(t, c, s), s.data, blobcache.Miss)
				synctest.Wait()
				if err := errors.Join(os.Remove(blobPath(dir, s.digest)), put(blobPath(dir, s.digest))); err != nil {
					t.Fatal(err)
				}
				time.Sleep(10 * time.Minute)
				stop()
				if fi, err := os.Lstat(scrub); err != nil || !fi.Mode().IsRegular() {
					t.Errorf("progress is in %v, %v; want a file", fi, err)
				}
			})
		})
	}
}

func TestLeftoversOfAKillAreRemovedAtStart(t *testing.T) {
	dir := t.TempDir()
	openCache(t, dir, blobcache.Config{}).Close()
	partial, alone := newSource(1), newSource(2)
	const extents = `{"size":2,"extents":[{"start":0,"end":1}]}`
	for path, content := range map[string]string{
		partialPath(dir, partial.digest):               "x",
		partialPath(dir, partial.digest) + ".extents":  extents,
		partialPath(dir, partial.digest) + ".extents~": extents,
		partialPath(dir, alone.digest) + ".extents":    extents,
		partialPath(dir, alone.digest) + ".extents~":   extents,
		filepath.Join(dir, "tmp", "ABCDEFGH~"):         "half",
		filepath.Join(dir, "tmp", "somebody's"):        "x",
		filepath.Join(dir, "tmp", "notes.extents"):     "x",
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	openCache(t, dir, blobcache.Config{})
	left, err := os.ReadDir(filepath.Join(dir, "tmp"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, de := range left {
		names = append(names, de.Name())
	}
	name := filepath.Base(partialPath(dir, partial.digest))
	want := []string{name, name + ".extents", "somebody's", "notes.extents"}
	slices.Sort(names)
	if slices.Sort(want); !slices.Equal(names, want) {
		t.Errorf("left in tmp: %q, want %q", names, want)
	}
}
