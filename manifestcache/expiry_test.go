package manifestcache_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"larder/manifestcache"
)

func exists(t *testing.T, path string) bool {
	t.Helper()
	_, err := os.Stat(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return err == nil
}

func TestManifestExpiresWithItsTagsAndRights(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, cfg := t.TempDir(), config()
		cfg.TTL = 24 * time.Hour
		c, _ := running(t, dir, cfg)
		up, other := newRepository("docker.io/library/alpine"), newRepository("quay.io/library/alpine")
		blob := digest.FromString("layer")
		doc := other.push(up.push(newImage(blob), "latest", "3.20"))
		wantTag(t, c, up, "latest", doc, manifestcache.Miss)
		wantTag(t, c, up, "3.20", doc, manifestcache.Revalidated)
		wantDigest(t, c, other, doc, manifestcache.Revalidated)
		all := len(files(t, dir)) // a manifest, 2 tags, 2 rights, 2 names
		time.Sleep(24*time.Hour - time.Second)
		synctest.Wait()
		if got := files(t, dir); all != 7 || len(got) != all {
			t.Errorf("%d files, left a second early: %v", all, got)
		}
		time.Sleep(2*time.Minute + time.Second)
		synctest.Wait()
		if got := files(t, dir); len(got) != 0 {
			t.Errorf("left after their time to live: %v", got)
		}
		wantRefers(t, c, up, blob, manifestcache.Unknown)
		if got := c.Stats(); got.Entries != 0 || got.Bytes != 0 || got.Expired != 1 {
			t.Errorf("stats %+v", got)
		}
		up.fail(errDown)
		wantTagError(t, c, up, "latest", errDown)
		up.fail(nil)
		wantTag(t, c, up, "latest", doc, manifestcache.Miss)
	})
}

func TestWhatIsUsedIsKept(t *testing.T) {
	uses := map[string]func(*testing.T, *manifestcache.Cache, *repository, document){
		"by tag": func(t *testing.T, c *manifestcache.Cache, up *repository, doc document) {
			wantTag(t, c, up, "latest", doc, manifestcache.Revalidated)
		},
		"by tag, upstream down": func(t *testing.T, c *manifestcache.Cache, up *repository, doc document) {
			up.fail(errDown)
			wantTag(t, c, up, "latest", doc, manifestcache.Stale)
		},
		"by digest": func(t *testing.T, c *manifestcache.Cache, up *repository, doc document) {
			m, err := c.ByDigest(t.Context(), up.name, doc.digest, up)
			if err != nil || m.Outcome == manifestcache.Miss {
				t.Errorf("%v, %v; want it from disk", m, err)
			}
		},
		"by another repository": func(t *testing.T, c *manifestcache.Cache, _ *repository, doc document) {
			other := newRepository("quay.io/library/alpine")
			wantTag(t, c, other, "latest", other.push(doc, "latest"), manifestcache.Revalidated)
		},
	}
	for name, use := range uses {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dir, cfg := t.TempDir(), config()
				cfg.TTL = 24 * time.Hour
				c, _ := running(t, dir, cfg)
				up := newRepository("docker.io/library/alpine")
				doc := up.push(newDocument(`{"first":1}`), "latest")
				wantTag(t, c, up, "latest", doc, manifestcache.Miss)
				for range 5 {
					time.Sleep(23 * time.Hour)
					use(t, c, up, doc)
				}
				time.Sleep(23 * time.Hour)
				synctest.Wait()
				for _, path := range []string{manifestPath(dir, doc.digest), tagPath(dir, up, "latest"), rightPath(dir, up, doc.digest)} {
					if !exists(t, path) {
						t.Errorf("%s is gone", path)
					}
				}
				up.fail(errDown)
				wantTag(t, c, up, "latest", doc, manifestcache.Stale)
				time.Sleep(25 * time.Hour)
				synctest.Wait()
				if got := files(t, dir); len(got) != 0 {
					t.Errorf("left after their time to live: %v", got)
				}
			})
		})
	}
}

func TestZeroTTLKeepsForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := running(t, t.TempDir(), config())
		up := newRepository("docker.io/library/alpine")
		doc := up.push(newDocument(`{"first":1}`), "latest")
		wantTag(t, c, up, "latest", doc, manifestcache.Miss)
		time.Sleep(60 * 24 * time.Hour)
		up.fail(errDown)
		wantTag(t, c, up, "latest", doc, manifestcache.Stale)
	})
}

func TestExpirySurvivesARestartAndFollowsTheConfiguredTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, cfg := t.TempDir(), config()
		cfg.TTL = 24 * time.Hour
		c, stop := running(t, dir, cfg)
		up := newRepository("docker.io/library/alpine")
		old, used, broken := up.push(newDocument(`{"old":1}`), "old"), up.push(newDocument(`{"used":1}`), "used"), up.push(newDocument(`{"broken":1}`), "broken")
		for tag, doc := range map[string]document{"old": old, "used": used, "broken": broken} {
			wantTag(t, c, up, tag, doc, manifestcache.Miss)
		}
		stop()
		if err := os.WriteFile(manifestPath(dir, broken.digest), []byte("garbage"), 0o600); err != nil {
			t.Fatal(err)
		}
		// The bubble's clock is not the one that wrote the manifests' times.
		stored := time.Now()
		for _, name := range files(t, dir) {
			if err := os.Chtimes(filepath.Join(dir, name), stored, stored); err != nil {
				t.Fatal(err)
			}
		}

		time.Sleep(10 * time.Hour)
		c, stop = running(t, dir, cfg)
		wantDigest(t, c, up, used, manifestcache.Hit) // writes its mtime, as that is hours old
		time.Sleep(14*time.Hour + 3*time.Minute)
		synctest.Wait()
		for tag, doc := range map[string]document{"old": old, "broken": broken} {
			for _, path := range []string{manifestPath(dir, doc.digest), tagPath(dir, up, tag), rightPath(dir, up, doc.digest)} {
				if exists(t, path) {
					t.Errorf("%s: %s is still there 24h after it was stored", tag, path)
				}
			}
		}
		stop()

		cfg.TTL = 100 * time.Hour
		c, _ = running(t, dir, cfg)
		time.Sleep(80 * time.Hour)
		up.fail(errDown)
		wantTag(t, c, up, "used", used, manifestcache.Stale)
		wantDigest(t, c, up, used, manifestcache.Stale) // asked 104 hours ago
	})
}

// A file that can't be read at the start has a life like others; but not if a good one
// has taken its place meanwhile.
func TestDamagedFileThatWasReplacedLivesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, cfg := t.TempDir(), config()
		cfg.TTL = 24 * time.Hour
		c, stop := running(t, dir, cfg)
		up := newRepository("docker.io/library/alpine")
		left, replaced := up.push(newDocument(`{"left":1}`), "left"), up.push(newDocument(`{"replaced":1}`), "replaced")
		of := func(tag string, doc document) []string {
			return []string{manifestPath(dir, doc.digest), tagPath(dir, up, tag), rightPath(dir, up, doc.digest)}
		}
		wantTag(t, c, up, "left", left, manifestcache.Miss)
		wantTag(t, c, up, "replaced", replaced, manifestcache.Miss)
		stop()
		for _, path := range append(of("left", left), of("replaced", replaced)...) {
			garbage := make([]byte, 300<<10) // more than is read of any of them
			if err := errors.Join(os.WriteFile(path, garbage, 0o600), os.Chtimes(path, time.Now(), time.Now())); err != nil {
				t.Fatal(err)
			}
		}

		c, _ = running(t, dir, cfg)
		time.Sleep(12 * time.Hour)
		wantTag(t, c, up, "replaced", replaced, manifestcache.Miss)
		time.Sleep(12*time.Hour + 3*time.Minute)
		synctest.Wait()
		for _, path := range of("left", left) {
			if exists(t, path) {
				t.Errorf("%s is still there", path)
			}
		}
		for _, path := range of("replaced", replaced) {
			if !exists(t, path) {
				t.Errorf("%s is gone", path)
			}
		}
		up.fail(errDown)
		wantTag(t, c, up, "replaced", replaced, manifestcache.Stale)
		time.Sleep(24*time.Hour + 3*time.Minute) // from that, which was a use
		synctest.Wait()
		for _, path := range of("replaced", replaced) {
			if exists(t, path) {
				t.Errorf("%s is there for ever", path)
			}
		}
	})
}

func TestFailedRemovalIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, cfg := t.TempDir(), config()
		cfg.TTL = time.Hour
		c, _ := running(t, dir, cfg)
		up := newRepository("docker.io/library/alpine")
		doc := up.push(newDocument(`{"first":1}`), "latest")
		wantTag(t, c, up, "latest", doc, manifestcache.Miss)
		// A directory that is not empty can't be removed, whoever asks.
		paths := []string{manifestPath(dir, doc.digest), tagPath(dir, up, "latest"), rightPath(dir, up, doc.digest)}
		for _, path := range paths {
			if err := errors.Join(os.Remove(path), os.MkdirAll(filepath.Join(path, "sub"), 0o700)); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Hour + 5*time.Minute)
		synctest.Wait()
		if got := c.Stats(); got.ExpireErrors < 3 || got.Expired != 0 {
			t.Errorf("%d errors, %d expired; want several, 0", got.ExpireErrors, got.Expired)
		}
		for _, path := range paths {
			if err := os.Remove(filepath.Join(path, "sub")); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		for _, path := range paths {
			if exists(t, path) {
				t.Errorf("%s is not removed though it can be now", path)
			}
		}
		if got := c.Stats().Expired; got != 1 {
			t.Errorf("%d expired, want 1", got)
		}
	})
}
