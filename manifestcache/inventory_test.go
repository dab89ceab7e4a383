package manifestcache_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"larder/manifestcache"
)

func TestNamesOfRepositoriesAreRecorded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, cfg := t.TempDir(), config()
		cfg.TTL = 24 * time.Hour
		c, stop := running(t, dir, cfg)
		up := newRepository("docker.io/library/a")
		doc := up.push(newDocument(`{"first":1}`))
		wantDigest(t, c, up, doc, manifestcache.Miss)
		stop()
		c, stop = running(t, dir, cfg)
		wantRepositories(t, c, up.name)
		stop()
		// An older larder has written no name, and a crash perhaps half of one.
		file := filepath.Join(filepath.Dir(rightPath(dir, up, doc.digest)), "name")
		for name, damage := range map[string]func() error{
			"none": func() error { return os.Remove(file) },
			"half": func() error { return os.WriteFile(file, []byte("docker.io/li"), 0o600) },
		} {
			if err := damage(); err != nil {
				t.Fatal(err)
			}
			age(t, dir)
			c, stop = running(t, dir, cfg)
			unnamed := "_unnamed/" + digest.FromString(up.name).Encoded()
			wantRepositories(t, c, unnamed)
			if !manifestcache.Unnamed(unnamed) || len(c.Images(unnamed)) != 1 || len(c.PlanRepository(unnamed).Manifests) != 1 {
				t.Errorf("%s: %s can't be looked at", name, unnamed)
			}
			up.asked = nil
			wantDigest(t, c, up, doc, manifestcache.Hit)
			time.Sleep(25 * time.Hour) // a hit does not say that upstream knows of it
			wantDigest(t, c, up, doc, manifestcache.Miss)
			wantRepositories(t, c, up.name)
			if got, err := os.ReadFile(file); err != nil || string(got) != up.name {
				t.Errorf("%s: the name on disk is %q, %v", name, got, err)
			}
			stop()
		}
		age(t, dir)
		c, _ = running(t, dir, cfg)
		time.Sleep(25 * time.Hour)
		synctest.Wait()
		wantRepositories(t, c)
		if left, err := os.ReadDir(filepath.Join(dir, "repositories")); err != nil || len(left) > 0 {
			t.Errorf("left when all has expired: %v, %v", left, err)
		}
	})
}

// A repository is not forgotten because it is not known what it has.
func TestNameIsKeptWhileRightsCannotBeRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		c, stop := running(t, dir, config())
		up := newRepository("docker.io/library/a")
		doc := up.push(newDocument(`{"first":1}`))
		wantDigest(t, c, up, doc, manifestcache.Miss)
		stop()
		right := rightPath(dir, up, doc.digest)
		if err := os.WriteFile(right, make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		running(t, dir, config())
		if name, err := os.ReadFile(filepath.Join(filepath.Dir(right), "name")); err != nil || string(name) != up.name {
			t.Errorf("the name is %q, %v", name, err)
		}
	})
}

// While larder stops, it still answers with what it has not come to look at.
func TestRightsAreReadWhenTheScanWasCutShort(t *testing.T) {
	dir := t.TempDir()
	c := openCache(t, dir, config())
	up := newRepository("docker.io/library/a")
	doc := up.push(newDocument(`{"first":1}`))
	wantDigest(t, c, up, doc, manifestcache.Miss)
	c.Close()
	c = openCache(t, dir, config())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Run(ctx); err == nil {
		t.Error("Run has gone on to its end")
	}
	up.fail(errDown)
	wantDigest(t, c, up, doc, manifestcache.Hit)
	if err := c.Scanned(t.Context()); !errors.Is(err, manifestcache.ErrClosed) {
		t.Errorf("%v for who wants to know what is on disk", err)
	}
}

// What a wrong clock has put into the future is not newer than what upstream says now.
func TestClockThatHasGoneBackHidesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, cfg := t.TempDir(), config()
		cfg.TTL = 24 * time.Hour
		c, stop := running(t, dir, cfg)
		up := newRepository("docker.io/library/a")
		doc := up.push(newDocument(`{"first":1}`), "latest")
		wantTag(t, c, up, "latest", doc, manifestcache.Miss)
		stop()
		future := time.Now().Add(30 * 24 * time.Hour)
		right := rightPath(dir, up, doc.digest)
		for _, path := range []string{tagPath(dir, up, "latest"), right} {
			if err := os.Chtimes(path, future, future); err != nil {
				t.Fatal(err)
			}
		}
		c, _ = running(t, dir, cfg)
		wantDigest(t, c, up, doc, manifestcache.Revalidated)
		if fi, err := os.Stat(right); err != nil || !fi.ModTime().Equal(time.Now()) {
			t.Errorf("the right is of %v (%v), want now", fi.ModTime(), err)
		}
		moved := up.push(newDocument(`{"second":2}`), "latest")
		wantTag(t, c, up, "latest", moved, manifestcache.Miss)
		if tag, ok := c.Tag(up.name, "latest"); !ok || tag.Digest != moved.digest || !tag.Validated.Equal(time.Now()) {
			t.Errorf("the tag is %+v, want %s", tag, moved.digest)
		}
	})
}

// age makes files as old as the bubble, whose clock is not the one that wrote
// them.
func age(t *testing.T, dir string) {
	t.Helper()
	for _, name := range files(t, dir) {
		if err := os.Chtimes(filepath.Join(dir, name), time.Now(), time.Now()); err != nil {
			t.Fatal(err)
		}
	}
}

func wantRepositories(t *testing.T, c *manifestcache.Cache, want ...string) {
	t.Helper()
	if got := c.Repositories(); !slices.Equal(got, want) {
		t.Errorf("repositories %q, want %q", got, want)
	}
}

func TestInventory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := stocked(t)
		pulled := time.Now()
		time.Sleep(time.Hour)
		wantTag(t, s.Cache, s.a, "1", s.app, manifestcache.Revalidated)
		wantDigest(t, s.Cache, s.a, s.app, manifestcache.Hit)
		wantRepositories(t, s.Cache, s.a.name, s.b.name)
		listed := make(map[string]manifestcache.Image)
		for _, img := range s.Images(s.a.name) {
			listed[s.names[img.Digest]] = img
		}
		app := listed["app"]
		if len(listed) != 4 || !listed["arm"].Listed || !listed["shared"].Listed || listed["index"].Listed || app.Listed {
			t.Errorf("listed %+v", listed)
		}
		if len(app.Tags) != 2 || app.Tags[0].Name != "1" || app.Tags[1].Name != "2" || !app.Tags[0].Validated.Equal(time.Now()) || !app.Tags[1].Validated.Equal(pulled) {
			t.Errorf("tags %+v", app.Tags)
		}
		// The pull of 2 was answered with what 1 had brought.
		if app.Hits != 3 || !app.Used.Equal(time.Now()) || !app.Expires.Equal(time.Now().Add(24*time.Hour)) || app.Size != int64(len(s.app.body)) {
			t.Errorf("app is %+v", app)
		}
		tree := s.Tree(s.index.digest)
		if len(tree.Manifests) != 3 || tree.Manifests[0] != s.index.digest || len(tree.Absent) != 0 || len(tree.Blobs) != 2 ||
			tree.Size != int64(len(s.index.body)+len(s.arm.body)+len(s.shared.body)) {
			t.Errorf("tree %+v", tree)
		}
		if used := s.Images(s.a.name)[0].Used; s.Peek(s.index.digest) == nil || !s.Images(s.a.name)[0].Used.Equal(used) {
			t.Error("looking is a use")
		}
		if got := s.Having(s.shared.digest); !slices.Equal(got, []string{s.a.name, s.b.name}) {
			t.Errorf("%v have what is shared", got)
		}
		if err := os.Remove(manifestPath(s.dir, s.arm.digest)); err != nil {
			t.Fatal(err)
		}
		if m := s.Peek(s.arm.digest); m != nil {
			t.Errorf("got %v of a file that is gone", m)
		}
		if tree := s.Tree(s.index.digest); !slices.Equal(tree.Absent, []digest.Digest{s.arm.digest}) {
			t.Errorf("absent are %v", tree.Absent)
		}
	})
}
