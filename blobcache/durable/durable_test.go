package durable_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"larder/blobcache/durable"
)

func openRoot(t *testing.T) (*os.Root, string) {
	t.Helper()
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root, dir
}

func TestWriteFileReplacesTheWholeFile(t *testing.T) {
	root, dir := openRoot(t)
	for _, want := range []string{"long first content", "short", ""} {
		if err := durable.WriteFile(root, "tags/ab/abcd", []byte(want)); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(dir, "tags/ab/abcd"))
		if err != nil || string(got) != want {
			t.Errorf("file holds %q, %v; want %q", got, err, want)
		}
	}
	left, err := os.ReadDir(filepath.Join(dir, durable.Temp))
	if err != nil || len(left) != 0 {
		t.Errorf("left in %s: %v, %v; want nothing", durable.Temp, left, err)
	}
}

func TestFilesAreForTheOwnerOnly(t *testing.T) {
	root, dir := openRoot(t)
	if err := durable.WriteFile(root, "sha256/ab/abcd", nil); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]fs.FileMode{"sha256": 0o700, "sha256/ab": 0o700, "sha256/ab/abcd": 0o600} {
		fi, err := os.Stat(filepath.Join(dir, name))
		if err != nil || fi.Mode().Perm() != want {
			t.Errorf("%s: mode %v, %v; want %v", name, fi.Mode().Perm(), err, want)
		}
	}
}

func TestFailedWriteLeavesOldContentAndNoRubbish(t *testing.T) {
	root, dir := openRoot(t)
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := durable.WriteFile(root, "file/name", []byte("x")); err == nil {
		t.Error("no error, though there is a file instead of a directory")
	}
	if got, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(got) != "old" {
		t.Errorf("file holds %q, %v; want what it held", got, err)
	}
	left, err := os.ReadDir(filepath.Join(dir, durable.Temp))
	if err != nil || len(left) != 0 {
		t.Errorf("left in %s: %v, %v; want nothing", durable.Temp, left, err)
	}
}

func TestNamesCannotLeaveTheRoot(t *testing.T) {
	root, dir := openRoot(t)
	outside := t.TempDir()
	if err := os.Symlink(outside, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"../out", "link/out"} {
		if err := durable.WriteFile(root, name, []byte("x")); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if left, _ := os.ReadDir(outside); len(left) != 0 {
		t.Errorf("written outside of the root: %v", left)
	}
}

func TestCommitKeepsOpenFilesReadable(t *testing.T) {
	root, _ := openRoot(t)
	f, err := root.Create("partial")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	reader, err := root.Open("partial")
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	if _, err := f.WriteString("layer"); err != nil {
		t.Fatal(err)
	}
	if err := durable.Commit(root, f, "partial", "sha256/ab/abcd"); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(" and more"); err != nil {
		t.Fatal(err)
	}
	got := new(bytes.Buffer)
	if _, err := got.ReadFrom(reader); err != nil || got.String() != "layer and more" {
		t.Errorf("reader got %q, %v", got, err)
	}
	if _, err := root.Stat("partial"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("old name: %v, want that it does not exist", err)
	}
}

func TestCleanRemovesWhatACrashLeft(t *testing.T) {
	root, dir := openRoot(t)
	if err := durable.WriteFile(root, "kept", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, durable.Temp, "torn"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := durable.Clean(root); err != nil {
		t.Fatal(err)
	}
	if _, err := root.Stat(filepath.Join(durable.Temp, "torn")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("torn file: %v, want that it does not exist", err)
	}
	if _, err := root.Stat("kept"); err != nil {
		t.Error(err)
	}
	if err := durable.WriteFile(root, "later", []byte("x")); err != nil {
		t.Error(err)
	}
}

// obstacles are what a hand in the directory may put where a file should be.
func obstacles(t *testing.T) map[string]func(path string) error {
	elsewhere := filepath.Join(t.TempDir(), "elsewhere")
	if err := os.WriteFile(elsewhere, []byte("somebody's"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if got, err := os.ReadFile(elsewhere); err != nil || string(got) != "somebody's" {
			t.Errorf("the file outside of the root holds %q, %v", got, err)
		}
	})
	return map[string]func(path string) error{
		"nothing":         os.RemoveAll,
		"directory":       func(path string) error { return os.Mkdir(path, 0o700) },
		"full directory":  func(path string) error { return os.MkdirAll(filepath.Join(path, "a", "b"), 0o700) },
		"named pipe":      func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"link out":        func(path string) error { return os.Symlink(elsewhere, path) },
		"link to itself":  func(path string) error { return os.Symlink(filepath.Base(path), path) },
		"link to nothing": func(path string) error { return os.Symlink("nothing", path) },
	}
}

func TestWhatIsNoFileIsReplacedByOne(t *testing.T) {
	write := map[string]func(root *os.Root) error{
		"WriteFile": func(root *os.Root) error { return durable.WriteFile(root, "tmp/name", []byte("x")) },
		"WriteSoon": func(root *os.Root) error { return durable.WriteSoon(root, "tmp/name", []byte("x")) },
		"OpenTemp": func(root *os.Root) error {
			f, fi, err := durable.OpenTemp(root, "tmp/name")
			if err != nil {
				return err
			}
			if fi.Size() != 0 {
				return fmt.Errorf("it has %d bytes", fi.Size())
			}
			_, err = f.WriteString("x")
			return errors.Join(err, f.Close())
		},
	}
	for how, write := range write {
		for what, put := range obstacles(t) {
			for _, where := range []string{"tmp/name", "tmp"} {
				if where == "tmp" && how != "OpenTemp" && !strings.Contains(what, "directory") {
					continue // OpenTemp sees to that
				}
				t.Run(how+"/"+what+" as "+where, func(t *testing.T) {
					root, dir := openRoot(t)
					path := filepath.Join(dir, where)
					if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
						t.Fatal(err)
					}
					if err := put(path); err != nil {
						t.Fatal(err)
					}
					if err := write(root); err != nil {
						t.Fatal(err)
					}
					if got, _, err := durable.ReadFile(root, "tmp/name", 1); err != nil || string(got) != "x" {
						t.Errorf("afterwards it holds %q, %v", got, err)
					}
				})
			}
		}
	}
}

func TestOnlyRegularFilesAreRead(t *testing.T) {
	for what, put := range obstacles(t) {
		root, dir := openRoot(t)
		if err := put(filepath.Join(dir, "name")); err != nil {
			t.Fatal(err)
		}
		if got, _, err := durable.ReadFile(root, "name", 100); err == nil {
			t.Errorf("%s: read %q", what, got)
		}
		if _, _, err := durable.Open(root, "name"); errors.Is(err, durable.ErrNotFile) != (what == "named pipe" || strings.Contains(what, "directory")) {
			t.Errorf("%s: %v", what, err)
		}
	}
	root, _ := openRoot(t)
	if err := durable.WriteFile(root, "name", []byte("long")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := durable.ReadFile(root, "name", 3); !errors.Is(err, durable.ErrNotFile) {
		t.Errorf("one byte more than may be: %v", err)
	}
}

// TestDirectoryThatGoesAgainIsMadeAgain writes while somebody removes directories
// that are empty.
func TestDirectoryThatGoesAgainIsMadeAgain(t *testing.T) {
	root, _ := openRoot(t)
	for i := range 1000 {
		var removing sync.WaitGroup
		removing.Go(func() {
			for range 3 {
				_ = root.Remove("a") // not while there is something in it
			}
		})
		err := durable.WriteSoon(root, "a/b", []byte{1})
		removing.Wait()
		if err := errors.Join(err, root.RemoveAll("a")); err != nil {
			t.Fatalf("write %d: %v", i, err)
		}
	}
}
