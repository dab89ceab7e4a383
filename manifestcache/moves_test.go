package manifestcache_test

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"larder/manifestcache"
)

// TestMovesOfATag are there after a restart, and go with the tag.
func TestMovesOfATag(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		c, stop := running(t, dir, config())
		up := newRepository("docker.io/library/alpine")
		var docs []document
		for i := range 3 {
			doc := up.push(newDocument(fmt.Sprintf(`{"n":%d}`, i)), "latest")
			docs = append(docs, doc)
			for range 2 { // asking again is no move
				if _, err := c.ByTag(t.Context(), up.name, "latest", up); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Hour)
			}
		}
		began := time.Now().Add(-6 * time.Hour)
		want := []manifestcache.Move{{At: began.Add(4 * time.Hour), From: docs[1].digest}, {At: began.Add(2 * time.Hour), From: docs[0].digest}}
		wantMoves := func(want ...manifestcache.Move) {
			t.Helper()
			got := c.Moves(up.name, "latest")
			if len(got) != len(want) {
				t.Fatalf("got %v, want %v", got, want)
			}
			for i := range want {
				if got[i].From != want[i].From || !got[i].At.Equal(want[i].At) {
					t.Errorf("got %v, want %v", got[i], want[i])
				}
			}
		}
		wantMoves(want...)
		stop()
		c, _ = running(t, dir, config())
		wantMoves(want...)
		if moves := c.Moves(up.name, "other"); moves != nil {
			t.Errorf("a tag that is not there: %v", moves)
		}
		up.fail(errGone)
		wantTagError(t, c, up, "latest", errGone)
		wantMoves()
	})
}

func TestMovesAreBoundedAndChecked(t *testing.T) {
	dir := t.TempDir()
	c := openCache(t, dir, config())
	up := newRepository("docker.io/library/alpine")
	for i := range 30 {
		up.push(newDocument(fmt.Sprintf(`{"n":%d}`, i)), "latest")
		if _, err := c.ByTag(t.Context(), up.name, "latest", up); err != nil {
			t.Fatal(err)
		}
	}
	moves := c.Moves(up.name, "latest")
	if last := digest.FromString(`{"n":28}`); len(moves) != 20 || moves[0].From != last {
		t.Errorf("got %d moves, %v", len(moves), moves[0])
	}
	// A hand in the directory.
	path := tagPath(dir, up, "latest")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data = []byte(strings.Replace(string(data), string(moves[0].From), "<script>", 1))
	if err := os.WriteFile(path, data, 0o600); err != nil || !json.Valid(data) {
		t.Fatal(err)
	}
	if moves := c.Moves(up.name, "latest"); len(moves) != 19 {
		t.Errorf("got %d moves, %v", len(moves), moves[0])
	}
}

// TestRevalidateAsksAboutAFreshTag is what ByTag does not.
func TestRevalidateAsksAboutAFreshTag(t *testing.T) {
	cfg := config()
	cfg.TagTTL = time.Hour
	c := openCache(t, t.TempDir(), cfg)
	up := newRepository("docker.io/library/alpine")
	first := up.push(newDocument(`{"n":1}`), "latest")
	wantTag(t, c, up, "latest", first, manifestcache.Miss)
	second := up.push(newDocument(`{"n":2}`), "latest")
	wantTag(t, c, up, "latest", first, manifestcache.Hit)
	m, err := c.Revalidate(t.Context(), up.name, "latest", up)
	wantManifest(t, m, err, second, manifestcache.Miss)
	wantTag(t, c, up, "latest", second, manifestcache.Hit)
}
