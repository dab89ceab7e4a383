package main

import (
	"io"
	"io/fs"
	"path/filepath"
	"testing"

	"larder/handler/upstream/upstreamtest"
)

// TestNobodyElseReadsTheCache looks at the modes of all that larder makes, while a
// blob is on its way and when all is there.
func TestNobodyElseReadsTheCache(t *testing.T) {
	t.Parallel()
	w := newWorld(t, []string{"LARDER_TAG_TTL=1h"}, usual, large)
	w.ask(appTag, "")
	gate := make(chan struct{})
	over := w.hub.Fault(upstreamtest.Match{Path: w.blob()}, upstreamtest.GateAfter(usual/2, gate))
	resp, err := w.open(t.Context(), w.blob())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	w.wantPrivate(t, "blobs/tmp/*", 1)
	close(gate)
	over()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Error(err)
	}
	w.pull(t, "all")
	w.wantRightCache(t)
	w.wantPrivate(t, "blobs/sha256/*/*", 3)
}

// wantPrivate checks all modes, and that there are files of this kind.
func (w *world) wantPrivate(t *testing.T, pattern string, least int) {
	t.Helper()
	if files, err := filepath.Glob(filepath.Join(w.cache, pattern)); err != nil || len(files) < least {
		t.Errorf("%s are %q (%v), want %d", pattern, files, err, least)
	}
	err := filepath.WalkDir(w.cache, func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := entry.Info()
		want := fs.FileMode(0o600)
		if entry.IsDir() {
			want = 0o700
		}
		if err == nil && fi.Mode().Perm() != want {
			t.Errorf("%s has mode %v, want %v", file, fi.Mode(), want)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
