package manifestcache_test

import (
	"bytes"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"larder/manifestcache"
)

// damages are ways to spoil a file.
var damages = map[string]func(path string) error{
	"deleted":   os.Remove,
	"emptied":   func(path string) error { return os.Truncate(path, 0) },
	"cut short": func(path string) error { return os.Truncate(path, 10) },
	"cut by a byte": func(path string) error {
		fi, err := os.Stat(path)
		return errors.Join(err, os.Truncate(path, fi.Size()-1))
	},
	"longer than any manifest": func(path string) error { return os.Truncate(path, 1<<40) },
	"garbage":                  func(path string) error { return os.WriteFile(path, []byte("garbage\n\x00"), 0o600) },
	"null":                     func(path string) error { return os.WriteFile(path, []byte("null\n"), 0o600) },
	"a digest of the wrong kind": func(path string) error {
		return os.WriteFile(path, []byte(`{"reference":"x","descriptor":{"digest":"latest"}}`), 0o600)
	},
	"a path": func(path string) error {
		return os.WriteFile(path, []byte(`{"reference":"x","descriptor":{"digest":"sha256:../../../etc/passwd"}}`), 0o600)
	},
	"a directory": func(path string) error {
		return errors.Join(os.Remove(path), os.MkdirAll(filepath.Join(path, "sub"), 0o700))
	},
	"a named pipe": func(path string) error { return errors.Join(os.Remove(path), syscall.Mkfifo(path, 0o600)) },
	"a link out of the cache": func(path string) error {
		return errors.Join(os.Remove(path), os.Symlink("/etc/passwd", path))
	},
	"a dangling link":  func(path string) error { return errors.Join(os.Remove(path), os.Symlink("nowhere", path)) },
	"a link to itself": func(path string) error { return errors.Join(os.Remove(path), os.Symlink(filepath.Base(path), path)) },
	"without its end of line": func(path string) error {
		data, err := os.ReadFile(path)
		return errors.Join(err, os.WriteFile(path, bytes.ReplaceAll(data, []byte("\n"), nil), 0o600))
	},
}

func TestDamagedManifestIsFetchedAnew(t *testing.T) {
	for name, damage := range damages {
		for _, restart := range []string{"", " before a start", " before a start that is scanned"} {
			t.Run(name+restart, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					dir := t.TempDir()
					c, stop := running(t, dir, config())
					up := newRepository("docker.io/library/alpine")
					blob := digest.FromString("layer")
					doc := up.push(newImage(blob), "latest")
					wantTag(t, c, up, "latest", doc, manifestcache.Miss)
					if err := damage(manifestPath(dir, doc.digest)); err != nil {
						t.Fatal(err)
					}
					switch restart {
					case " before a start":
						c = openCache(t, dir, config())
					case " before a start that is scanned":
						stop()
						c, _ = running(t, dir, config())
						if got := c.Stats(); got.Entries != 0 {
							t.Errorf("%d entries after the scan, want 0", got.Entries)
						}
					}
					up.fail(errDown)
					wantTagError(t, c, up, "latest", errDown)
					wantDigestError(t, c, up, doc.digest, errDown)
					up.fail(nil)
					wantDigest(t, c, up, doc, manifestcache.Miss)
					wantDigest(t, c, up, doc, manifestcache.Hit)
					wantTag(t, c, up, "latest", doc, manifestcache.Revalidated)
					wantRefers(t, c, up, blob, manifestcache.Granted)
				})
			})
		}
	}
}

// A large manifest is checked in its file.
func TestDamagedLargeManifestIsFetchedAnew(t *testing.T) {
	all := maps.Clone(damages)
	all["its last byte"] = func(path string) error {
		data, err := os.ReadFile(path)
		data[len(data)-1] ^= 1
		return errors.Join(err, os.WriteFile(path, data, 0o600))
	}
	for name, damage := range all {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c := openCache(t, dir, config())
			up := newRepository("docker.io/library/alpine")
			doc := up.push(newDocument(`{"x":"` + strings.Repeat("x", 300<<10) + `"}`))
			wantDigest(t, c, up, doc, manifestcache.Miss)
			wantDigest(t, c, up, doc, manifestcache.Hit)
			if err := damage(manifestPath(dir, doc.digest)); err != nil {
				t.Fatal(err)
			}
			wantDigest(t, c, up, doc, manifestcache.Miss)
			wantDigest(t, c, up, doc, manifestcache.Hit)
		})
	}
}

func TestDamagedTagIsAskedAboutAndWrittenAnew(t *testing.T) {
	for name, damage := range damages {
		if name == "without its end of line" {
			continue // it has none
		}
		t.Run(name, func(t *testing.T) {
			dir, cfg := t.TempDir(), config()
			cfg.TagTTL = time.Hour
			c := openCache(t, dir, cfg)
			up := newRepository("docker.io/library/alpine")
			doc := up.push(newDocument(`{"first":1}`), "latest")
			wantTag(t, c, up, "latest", doc, manifestcache.Miss)
			if err := damage(tagPath(dir, up, "latest")); err != nil {
				t.Fatal(err)
			}
			up.fail(errDown)
			wantTag(t, c, up, "latest", doc, manifestcache.Hit) // what was said is known
			c.Close()
			c = openCache(t, dir, cfg)
			wantTagError(t, c, up, "latest", errDown)
			up.fail(nil)
			wantTag(t, c, up, "latest", doc, manifestcache.Revalidated)
			up.fail(errDown)
			wantTag(t, c, up, "latest", doc, manifestcache.Hit)
		})
	}
}

func TestFlippedBitsAreNoticed(t *testing.T) {
	dir, cfg := t.TempDir(), config()
	cfg.TagTTL = time.Hour
	c := openCache(t, dir, cfg)
	up := newRepository("docker.io/library/alpine")
	doc := up.push(newDocument(`{"first":1}`), "latest")
	wantTag(t, c, up, "latest", doc, manifestcache.Miss)
	for _, path := range []string{manifestPath(dir, doc.digest), tagPath(dir, up, "latest")} {
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		mediaType := bytes.Index(good, []byte(doc.mediaType)) // the one thing no hash covers
		for bit := range 8 * len(good) {
			if at := bit / 8; at >= mediaType && at < mediaType+len(doc.mediaType) {
				continue
			}
			bad := bytes.Clone(good)
			bad[bit/8] ^= 1 << (bit % 8)
			if err := os.WriteFile(path, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			c.Close() // a new one has to read what a tag points at
			c = openCache(t, dir, cfg)
			m, err := c.ByTag(t.Context(), up.name, "latest", up)
			if err != nil || !bytes.Equal(m.Body, doc.body) || m.Digest != doc.digest || m.MediaType != doc.mediaType {
				t.Fatalf("bit %d of %q: %v, %v", bit, good, m, err)
			}
		}
	}
}

func TestTooManyOpenFilesDoNotCostWhatIsStored(t *testing.T) {
	dir, cfg := t.TempDir(), config()
	cfg.TagTTL = time.Hour
	c := openCache(t, dir, cfg)
	up := newRepository("docker.io/library/alpine")
	doc := up.push(newDocument(`{"first":1}`), "latest")
	wantTag(t, c, up, "latest", doc, manifestcache.Miss)

	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Skip(err)
	}
	low := limit
	low.Cur = 3 // standard input, output and error; what is open stays open
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &low); err != nil {
		t.Skip(err)
	}
	up.fail(errDown)
	_, byTag := c.ByTag(t.Context(), up.name, "latest", up)
	_, byDigest := c.ByDigest(t.Context(), up.name, doc.digest, up)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if byTag == nil || byDigest == nil {
		t.Fatalf("by tag %v, by digest %v without a file to open; want errors", byTag, byDigest)
	}
	wantTag(t, c, up, "latest", doc, manifestcache.Hit)
	wantDigest(t, c, up, doc, manifestcache.Hit)
	if got := c.Stats().Damaged; got != 0 {
		t.Errorf("%d damaged, want 0", got)
	}
}

func TestUnwritableDirectoryCostsQuestionsNotAnswers(t *testing.T) {
	dir := t.TempDir()
	c := openCache(t, dir, config())
	for _, name := range []string{"sha256", "tags", "repositories"} { // whoever asks, a file is no directory
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	up := newRepository("docker.io/library/alpine")
	doc := up.push(newDocument(`{"first":1}`), "latest")
	for range 2 {
		wantTag(t, c, up, "latest", doc, manifestcache.Miss)
		wantDigest(t, c, up, doc, manifestcache.Miss)
	}
}

func TestEverythingIsThereAfterARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, cfg := t.TempDir(), config()
		cfg.TTL, cfg.TagTTL = 24*time.Hour, time.Hour
		c, stop := running(t, dir, cfg)
		up := newRepository("docker.io/library/alpine")
		blob := digest.FromString("layer")
		doc := up.push(newImage(blob), "latest", "old")
		wantTag(t, c, up, "old", doc, manifestcache.Miss)
		time.Sleep(time.Hour)
		wantTag(t, c, up, "latest", doc, manifestcache.Revalidated)
		wide := newDocument(`{"wide":1}`)
		wide.digest = digest.SHA512.FromBytes(wide.body)
		wantDigest(t, c, up, up.push(wide), manifestcache.Miss)
		stop()
		up.fail(errDown)

		c = openCache(t, dir, cfg) // not scanned
		wantTag(t, c, up, "latest", doc, manifestcache.Hit)
		wantTag(t, c, up, "old", doc, manifestcache.Stale)
		wantDigest(t, c, up, doc, manifestcache.Hit)
		wantDigest(t, c, up, wide, manifestcache.Hit)
		wantDigestError(t, c, newRepository("docker.io/library/other"), doc.digest, errGone)
		c.Close()

		c, _ = running(t, dir, cfg)
		wantRefers(t, c, up, blob, manifestcache.Granted)
		if got := c.Stats(); got.Entries != 2 || got.Bytes != int64(len(doc.body)+len(wide.body)) || got.Scans != 1 {
			t.Errorf("stats %+v", got)
		}
		wantTag(t, c, up, "latest", doc, manifestcache.Hit)
		wantTag(t, c, up, "old", doc, manifestcache.Stale)
		wantDigest(t, c, up, doc, manifestcache.Hit)
		wantDigest(t, c, up, wide, manifestcache.Hit)
	})
}

func TestJunkIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	hex := digest.FromString("").Encoded()
	junk := []string{
		"README", "sha256/README", "sha256/ab/short", "sha256/00/" + hex, "sha256/" + hex, "md5/d4/d41d8cd98f00b204e9800998ecf8427e",
		"tags/README", "tags/ab/short", "tags/00/" + hex, "tags/" + hex, "tags/" + hex[:2] + "/" + strings.ToUpper(hex),
		"repositories/README", "repositories/short/sha256-" + hex, "repositories/" + hex + "/README", "repositories/" + hex + "/md5-" + hex[:32],
	}
	damaged := "sha256/" + hex[:2] + "/" + hex // which is no junk, and expires
	for _, name := range append(junk, damaged) {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte("x"), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"sha256/ab/link", "tags/link", "repositories/link"} {
		if err := os.Symlink("../README", filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		junk = append(junk, name)
	}
	synctest.Test(t, func(t *testing.T) {
		now := time.Now() // the bubble's clock is not the one that wrote them
		for _, name := range files(t, dir) {
			if err := os.Chtimes(filepath.Join(dir, name), now, now); err != nil && !strings.HasSuffix(name, "link") {
				t.Fatal(err)
			}
		}
		cfg := config()
		cfg.TTL = time.Hour
		core, log := observer.New(zap.WarnLevel)
		cfg.Logger = zap.New(core)
		c, _ := running(t, dir, cfg)
		if all := log.All(); len(all) != 1 || all[0].ContextMap()["files"] != int64(len(junk)) {
			t.Errorf("logged %v, want one line about %d files", all, len(junk))
		}
		if got := c.Stats(); got.Scans != 1 || got.Entries != 0 {
			t.Errorf("%d scans found %d entries; want 1, 0", got.Scans, got.Entries)
		}
		time.Sleep(3 * time.Hour)
	})
	got := files(t, dir)
	slices.Sort(junk)
	slices.Sort(got)
	if !slices.Equal(got, junk) {
		t.Errorf("left %q\nwant %q", got, junk)
	}
}

func TestUnfinishedWritesAreRemovedAtTheStart(t *testing.T) {
	dir := t.TempDir()
	left := filepath.Join(dir, "tmp", "XYZ")
	if err := errors.Join(os.MkdirAll(filepath.Dir(left), 0o700), os.WriteFile(left, []byte("half"), 0o600)); err != nil {
		t.Fatal(err)
	}
	openCache(t, dir, config())
	if got := files(t, dir); len(got) != 0 {
		t.Errorf("left %v", got)
	}
}
