package durable_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
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
	if err := os.MkdirAll(filepath.Join(dir, "name", "is a directory"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := durable.WriteFile(root, "name", []byte("x")); err == nil {
		t.Error("no error, though name is a directory")
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
