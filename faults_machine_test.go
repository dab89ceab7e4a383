package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"larder/handler/upstream/upstreamtest"
)

// secret is in a file that is not larder's.
const secret = "the contents of /etc/shadow"

// damages are done to a file of the cache behind larder's back.
func damages() map[string]func(t *testing.T, file string) error {
	replace := func(file string, with func() error) error { return errors.Join(os.Remove(file), with()) }
	edit := func(file string, change func([]byte) []byte) error {
		content, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		return os.WriteFile(file, change(content), 0o600)
	}
	return map[string]func(t *testing.T, file string) error{
		"deleted": func(_ *testing.T, file string) error { return os.Remove(file) },
		"emptied": func(_ *testing.T, file string) error { return os.Truncate(file, 0) },
		"cut": func(_ *testing.T, file string) error {
			return edit(file, func(b []byte) []byte { return b[:len(b)/2] })
		},
		"grown": func(_ *testing.T, file string) error {
			return edit(file, func(b []byte) []byte { return append(b, 'x') })
		},
		"one byte": func(_ *testing.T, file string) error {
			return edit(file, func(b []byte) []byte { b[len(b)/2] ^= 0xff; return b })
		},
		"first byte, and its time as before": func(_ *testing.T, file string) error {
			fi, err := os.Stat(file)
			if err != nil {
				return err
			}
			err = edit(file, func(b []byte) []byte { b[0] ^= 0xff; return b })
			return errors.Join(err, os.Chtimes(file, fi.ModTime(), fi.ModTime()))
		},
		"zeros": func(_ *testing.T, file string) error {
			return edit(file, func(b []byte) []byte { return make([]byte, len(b)) })
		},
		"another file under its name": func(t *testing.T, file string) error {
			other := writeFile(t, filepath.Join(t.TempDir(), "x"), strings.Repeat("x", 1000))
			return os.Rename(other, file)
		},
		"a directory": func(_ *testing.T, file string) error {
			return replace(file, func() error { return os.Mkdir(file, 0o700) })
		},
		"a directory with something in it": func(_ *testing.T, file string) error {
			return replace(file, func() error { return os.MkdirAll(filepath.Join(file, "a", "b"), 0o700) })
		},
		"a named pipe": func(_ *testing.T, file string) error {
			return replace(file, func() error { return syscall.Mkfifo(file, 0o600) })
		},
		"a link to a secret": func(t *testing.T, file string) error {
			target := writeFile(t, filepath.Join(t.TempDir(), "secret"), secret)
			return replace(file, func() error { return os.Symlink(target, file) })
		},
		"a relative link": func(t *testing.T, file string) error {
			return replace(file, func() error { return os.Symlink("../../../version", file) })
		},
		"a link to itself": func(_ *testing.T, file string) error {
			return replace(file, func() error { return os.Symlink(filepath.Base(file), file) })
		},
		"a link to nothing": func(_ *testing.T, file string) error {
			return replace(file, func() error { return os.Symlink("nothing", file) })
		},
	}
}

// TestFilesAreDamaged damages each kind of file, under a running larder and
// before a start. Nobody is fooled, though upstream is gone; and when upstream is
// back, everything is right again.
func TestFilesAreDamaged(t *testing.T) {
	t.Parallel()
	kinds := map[string]func(w *world) string{
		"blob":       func(w *world) string { return storedFile(w.cache, "blobs", w.img.Layers[0].Digest) },
		"small blob": func(w *world) string { return storedFile(w.cache, "blobs", w.img.Config.Digest) },
		"manifest":   func(w *world) string { return storedFile(w.cache, "manifests", w.img.Manifest) },
		"tag":        func(w *world) string { return filepath.Join(w.cache, "manifests", "tags", "*", "*") },
		"right":      func(w *world) string { return filepath.Join(w.cache, "manifests", "repositories", "*", "sha256-*") },
		"name":       func(w *world) string { return filepath.Join(w.cache, "manifests", "repositories", "*", "name") },
	}
	for kind, pattern := range kinds {
		for name, damage := range damages() {
			if kind == "right" && (name == "one byte" || name == "first byte, and its time as before") {
				continue // it has none
			}
			for _, when := range []string{"running", "running and in memory", "before a start"} {
				if when == "running and in memory" && kind != "manifest" {
					continue // a blob that is asked for so often is doubted
				}
				t.Run(kind+"/"+name+"/"+when, func(t *testing.T) {
					t.Parallel()
					environ := []string{"LARDER_TAG_TTL=1h"}
					if kind == "tag" {
						environ = nil
					}
					if when == "running" {
						environ = append(environ, "LARDER_MEMORY=0")
					}
					w := newWorld(t, environ, usual)
					w.pull(t, "before the damage")
					w.wantRightCache(t)
					if when == "before a start" {
						w.stop(t)
					}
					file, err := filepath.Glob(pattern(w))
					if err != nil || len(file) != 1 {
						t.Fatalf("%v are its files (%v)", file, err)
					}
					if err := damage(t, file[0]); err != nil {
						t.Fatal(err)
					}
					if when == "before a start" {
						w.restart(t, environ...)
					}
					over := w.hub.Fault(upstreamtest.Match{}, upstreamtest.ResetConnection())
					for _, path := range w.everything() {
						w.notFooled(t, path, "", w.ask(path, ""))
					}
					if when == "running and in memory" {
						w.pull(t, "from memory")
						w.stop(t)
						w.restart(t, environ...)
					}
					over()
					w.recovers(t)
				})
			}
		}
	}
}

// TestPartialFilesAreDamaged damages what a stopped larder has left of a blob
// that it had not got yet.
func TestPartialFilesAreDamaged(t *testing.T) {
	t.Parallel()
	for name, damage := range damages() {
		for what, size := range map[string]int{"beginning": usual, "parts": large, "extents": large} {
			t.Run(what+"/"+name, func(t *testing.T) {
				t.Parallel()
				w := newWorld(t, []string{"LARDER_TAG_TTL=1h"}, size)
				w.ask(appTag, "")
				over := w.hub.Fault(upstreamtest.Match{Path: w.blob()}, upstreamtest.GateAfter(int64(size)/5, nil))
				leaveInTheMiddle(t, w, 1)
				d := w.img.Layers[0].Digest
				file := filepath.Join(w.cache, "blobs", "tmp", d.Algorithm().String()+"-"+d.Encoded())
				eventually(t, "bytes to damage", func() bool {
					fi, err := os.Stat(file)
					return err == nil && fi.Size() >= int64(size)/5
				})
				if w.stop(t); what == "extents" {
					file += ".extents"
				}
				over()
				if err := damage(t, file); err != nil {
					t.Fatal(err)
				}
				w.restart(t, "LARDER_TAG_TTL=1h")
				a := w.ask(w.blob(), "")
				w.notFooled(t, w.blob(), "", a)
				w.recovers(t)
			})
		}
	}
}

// TestWhatLarderWritesStaysInItsDirectory puts links where larder writes.
func TestWhatLarderWritesStaysInItsDirectory(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"blobs/tmp", "blobs/sha256", "manifests/tmp", "manifests/sha256", "manifests/tags", "manifests/repositories"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, nil, usual)
			outside := t.TempDir()
			link := filepath.Join(w.cache, name)
			if err := errors.Join(os.RemoveAll(link), os.Symlink(outside, link)); err != nil {
				t.Fatal(err)
			}
			for _, path := range w.everything() {
				w.notFooled(t, path, "", w.ask(path, ""))
			}
			if left := tree(t, outside); len(left) > 0 {
				t.Errorf("larder has written %q elsewhere", left)
			}
			if err := errors.Join(os.RemoveAll(link), os.MkdirAll(link, 0o700)); err != nil {
				t.Fatal(err)
			}
			w.recovers(t)
		})
	}
}

// TestVersionAndLockAreDamaged takes from larder what it holds its directory by.
func TestVersionAndLockAreDamaged(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"version", "lock"} {
		for how, damage := range damages() {
			if name == "lock" && (strings.Contains(how, "byte") || how == "cut") {
				continue // it has none
			}
			t.Run(name+"/"+how, func(t *testing.T) {
				t.Parallel()
				w := newWorld(t, []string{"LARDER_TAG_TTL=1h"}, small)
				w.pull(t, "before")
				file := filepath.Join(w.cache, name)
				if err := damage(t, file); err != nil {
					t.Fatal(err)
				}
				w.recovers(t) // the directory is held already
				w.stop(t)
				again := runLarder(t, nil, w.environ("LARDER_CACHE_DIR="+w.cache)...)
				if name == "version" {
					wantRefusal(t, again, w.cache)
				}
				if how == "a link to a secret" {
					if content, err := os.ReadFile(file); string(content) != secret {
						t.Errorf("the secret is %q now (%v)", content, err)
					}
				}
				wantTrueNames(t, w.cache)
			})
		}
	}
}
