package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"larder/blobcache"
)

// tree lists everything below dir with its content.
func tree(t *testing.T, dir string) (list []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		line := strings.TrimPrefix(path, dir)
		if e.Type().IsRegular() {
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += "=" + string(content)
		}
		list = append(list, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestCacheDirIsMadeAndTakenAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b", "cache")
	for range 2 {
		dir, err := openCacheDir(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := dir.usable(); err != nil {
			t.Error(err)
		}
		sub, err := dir.sub("blobs")
		if err != nil {
			t.Fatal(err)
		}
		if err := sub.WriteFile("x", nil, 0o600); err != nil {
			t.Error(err)
		}
		if err := errors.Join(sub.Close(), dir.close()); err != nil {
			t.Error(err)
		}
	}
	if content, err := os.ReadFile(filepath.Join(path, "version")); err != nil || string(content) != "larder 1\n" {
		t.Errorf("version is %q, %v", content, err)
	}
	for name, want := range map[string]fs.FileMode{"": 0o700, "blobs": 0o700, "version": 0o600, "lock": 0o600} {
		if fi, err := os.Stat(filepath.Join(path, name)); err != nil || fi.Mode().Perm() != want {
			t.Errorf("%q has mode %v (%v), want %v", name, fi.Mode(), err, want)
		}
	}
}

func TestForeignCacheDirIsUntouched(t *testing.T) {
	tests := map[string]struct {
		file, content string // that is there
		named         string // in the error
	}{
		"somebody's file":       {"thesis.tex", "x", "thesis.tex"},
		"somebody's directory":  {"src/main.go", "x", "src"},
		"something like larder": {"blobs/sha256/ab/cd", "x", "blobs"},
		"hidden":                {".ssh/id", "x", ".ssh"},
		"a later version":       {"version", "larder 2\n", "larder 2"},
		"somebody's version":    {"version", "1.0.0", "1.0.0"},
		"no version":            {"version", "", "version"},
		"version is a dir":      {"version/x", "", "version"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			path := t.TempDir()
			writeFile(t, filepath.Join(path, test.file), test.content)
			before := tree(t, path)
			dir, err := openCacheDir(path)
			if err == nil {
				dir.close()
				t.Fatal("no error")
			}
			for _, want := range []string{test.named, path, "LARDER_CACHE_DIR"} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got %q, want it to name %s", err, want)
				}
			}
			if after := tree(t, path); !slices.Equal(after, before) {
				t.Errorf("there was %q, now there is %q", before, after)
			}
		})
	}
}

func TestCacheDirThatIsNone(t *testing.T) {
	file := writeFile(t, filepath.Join(t.TempDir(), "file"), "x")
	for _, path := range []string{file, filepath.Join(file, "cache")} {
		if _, err := openCacheDir(path); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("got %v, want an error that names %s", err, file)
		}
	}
	path := t.TempDir()
	dir, err := openCacheDir(path)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.close()
	writeFile(t, filepath.Join(path, "blobs"), "x")
	if _, err := dir.sub("blobs"); err == nil || !strings.Contains(err.Error(), "blobs") {
		t.Errorf("got %v, want an error that names blobs", err)
	}
}

func TestSecondLockIsRefused(t *testing.T) {
	path := t.TempDir()
	first, err := openCacheDir(path)
	if err != nil {
		t.Fatal(err)
	}
	if second, err := openCacheDir(path); err == nil || !strings.Contains(err.Error(), "another larder is using it") {
		t.Errorf("got %v, %v; want a refusal", second, err)
	}
	if err := first.usable(); err != nil {
		t.Errorf("the first one is harmed: %v", err)
	}
	if err := os.Remove(filepath.Join(path, "lock")); err != nil {
		t.Fatal(err)
	}
	if second, err := openCacheDir(path); err == nil || !strings.Contains(err.Error(), "another larder is using it") {
		t.Errorf("without a lock file: got %v, %v; want a refusal", second, err)
	}
	if err := first.close(); err != nil {
		t.Error(err)
	}
	third, err := openCacheDir(path)
	if err != nil {
		t.Fatal(err)
	}
	third.close()
}

// A first start that was cut short has left no version, but perhaps a lock and
// half of a file.
func TestInterruptedFirstStart(t *testing.T) {
	for name, files := range map[string][]string{"lock": {"lock"}, "half a version": {"lock", "tmp/ABC"}, "a file system's own": {"lost+found/x"}} {
		t.Run(name, func(t *testing.T) {
			path := t.TempDir()
			for _, f := range files {
				writeFile(t, filepath.Join(path, f), "")
			}
			dir, err := openCacheDir(path)
			if err != nil {
				t.Fatal(err)
			}
			defer dir.close()
			if err := dir.usable(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestNamedPipesAreNotWaitedFor(t *testing.T) {
	for _, name := range []string{"version", "lock"} {
		path := t.TempDir()
		dir, err := openCacheDir(path)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(path, name)
		if err := errors.Join(dir.close(), os.Remove(file), syscall.Mkfifo(file, 0o600)); err != nil {
			t.Fatal(err)
		}
		opened := make(chan error, 1)
		go func() {
			dir, err := openCacheDir(path)
			if err == nil {
				err = dir.close()
			}
			opened <- err
		}()
		select {
		case err := <-opened:
			if refused := err != nil; refused != (name == "version") {
				t.Errorf("%s: got %v", name, err)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: the start hangs", name)
		}
	}
}

func TestCacheDirThatWentAwayIsNotUsable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cache")
	dir, err := openCacheDir(path)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.close()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	if dir.usable() == nil {
		t.Error("a directory that is gone is usable")
	}
	p := program{dir: dir, blobs: new(blobcache.Cache)}
	if _, err := p.ready(); err == nil {
		t.Error("larder is ready without its directory")
	}
	p.stopping.Store(true)
	if _, err := p.ready(); !errors.Is(err, errShuttingDown) {
		t.Errorf("while stopping, ready is %v", err)
	}
}
