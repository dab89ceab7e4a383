package manifestcache_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"larder/manifestcache"
)

func wantRefers(t *testing.T, c *manifestcache.Cache, r *repository, blob digest.Digest, want manifestcache.Right) {
	t.Helper()
	if got := c.Refers(r.name, blob); got != want {
		t.Errorf("%s refers to %s: %v, want %v", r.name, blob, got, want)
	}
}

func TestAnotherRepositoryCostsOneHead(t *testing.T) {
	c := openCache(t, t.TempDir(), config())
	first, second := newRepository("docker.io/library/alpine"), newRepository("quay.io/library/alpine")
	doc := second.push(first.push(newDocument(`{"first":1}`)))
	wantDigest(t, c, first, doc, manifestcache.Miss)
	wantDigest(t, c, second, doc, manifestcache.Revalidated)
	second.wantAsked(t, "HEAD "+doc.digest.String())
	wantDigest(t, c, second, doc, manifestcache.Hit)
	second.wantAsked(t)

	tagged := newRepository("ghcr.io/library/alpine")
	tagged.push(doc, "latest")
	wantTag(t, c, tagged, "latest", doc, manifestcache.Revalidated)
	tagged.wantAsked(t, "HEAD latest")
	wantDigest(t, c, tagged, doc, manifestcache.Hit)
	tagged.wantAsked(t)
}

func TestBytesAreSharedBetweenRepositoriesAndRightsAreNot(t *testing.T) {
	for _, no := range []error{errGone, errDown, errOther} {
		t.Run(no.Error(), func(t *testing.T) {
			c := openCache(t, t.TempDir(), config())
			owner, stranger := newRepository("docker.io/owner/private"), newRepository("docker.io/stranger/x")
			blob := digest.FromString("secret")
			doc := owner.push(newImage(blob))
			wantDigest(t, c, owner, doc, manifestcache.Miss)
			stranger.fail(no)
			for range 2 {
				wantDigestError(t, c, stranger, doc.digest, no)
				stranger.wantAsked(t, "HEAD "+doc.digest.String())
			}
			wantRefers(t, c, stranger, blob, manifestcache.Unknown)
			wantRefers(t, c, owner, blob, manifestcache.Granted)
			wantDigest(t, c, owner, doc, manifestcache.Hit)
		})
	}
}

// A registry that is given a manifest looks for what it names, by its media type.
// What other fields name, or a type that nobody knows, is only claimed.
func TestOnlyWhatATypeNamesGivesARight(t *testing.T) {
	secret := digest.FromString("secret")
	field := fmt.Sprintf(`[{"digest":%q}]`, secret)
	const unknown = "application/vnd.example+json"
	tests := map[string]document{
		"of an image":                 {ocispec.MediaTypeImageManifest, []byte(`{"layers":` + field + `}`), ""},
		"of an artifact":              {"application/vnd.oci.artifact.manifest.v1+json", []byte(`{"blobs":` + field + `}`), ""},
		"no field of an image":        {ocispec.MediaTypeImageManifest, []byte(`{"layers":[],"blobs":` + field + `}`), ""},
		"no field of an index":        {ocispec.MediaTypeImageIndex, []byte(`{"manifests":[],"blobs":` + field + `}`), ""},
		"of a type that nobody knows": {unknown, []byte(`{"layers":` + field + `}`), ""},
	}
	for name, doc := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c := openCache(t, dir, config())
			up := newRepository("docker.io/library/alpine")
			doc.digest = digest.FromBytes(doc.body)
			wantDigest(t, c, up, up.push(doc), manifestcache.Miss)
			want := manifestcache.Unknown
			if name == "of an image" || name == "of an artifact" {
				want = manifestcache.Granted
			}
			wantRefers(t, c, up, secret, want)
			c = openCache(t, dir, config())
			wantDigest(t, c, up, doc, manifestcache.Hit)
			wantRefers(t, c, up, secret, want)
			if blobs := c.Blobs(doc.digest); (len(blobs) == 1) != (want == manifestcache.Granted || doc.mediaType == unknown) {
				t.Errorf("used with it are %v", blobs)
			}
		})
	}
}

// The same bytes may be an image in one repository, and anything in another, which
// is not asked for layers then.
func TestTypeElsewhereGivesNoRightHere(t *testing.T) {
	for _, first := range []string{"owner", "stranger"} {
		c := openCache(t, t.TempDir(), config())
		owner, stranger := newRepository("docker.io/owner/private"), newRepository("docker.io/stranger/x")
		secret := digest.FromString("secret")
		doc := owner.push(newImage(secret))
		other := stranger.push(document{"application/vnd.example+json", doc.body, doc.digest})
		pull := map[string]func(){
			"owner":    func() { wantDigest(t, c, owner, doc, manifestcache.Miss) },
			"stranger": func() { wantDigest(t, c, stranger, other, manifestcache.Miss) },
		}
		pull[first]()
		delete(pull, first)
		for _, next := range pull {
			next()
		}
		wantRefers(t, c, stranger, secret, manifestcache.Unknown)
		if first == "stranger" {
			wantRefers(t, c, owner, secret, manifestcache.Granted)
		}
	}
}

func TestHeadThatDoesNotTellCostsAGet(t *testing.T) {
	c := openCache(t, t.TempDir(), config())
	first, second := newRepository("docker.io/library/alpine"), newRepository("quay.io/library/alpine")
	doc := second.push(first.push(newDocument(`{"first":1}`)))
	wantDigest(t, c, first, doc, manifestcache.Miss)
	second.silent = true
	wantDigest(t, c, second, doc, manifestcache.Miss)
	second.wantAsked(t, "HEAD "+doc.digest.String(), "GET "+doc.digest.String())
	wantDigest(t, c, second, doc, manifestcache.Hit)
	second.wantAsked(t)
}

func TestOldRightIsAskedAbout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config()
		cfg.TTL = 24 * time.Hour
		c, _ := running(t, t.TempDir(), cfg)
		up := newRepository("docker.io/library/alpine")
		blob := digest.FromString("layer")
		doc := up.push(newImage(blob))
		wantDigest(t, c, up, doc, manifestcache.Miss)
		time.Sleep(24*time.Hour - time.Second)
		wantDigest(t, c, up, doc, manifestcache.Hit)
		wantRefers(t, c, up, blob, manifestcache.Granted)
		up.wantAsked(t, "GET "+doc.digest.String())
		time.Sleep(time.Second)
		wantRefers(t, c, up, blob, manifestcache.Unrenewed)

		up.fail(errDown)
		m, err := c.ByDigest(t.Context(), up.name, doc.digest, up)
		wantManifest(t, m, err, doc, manifestcache.Stale)
		if m.Age != 24*time.Hour {
			t.Errorf("age %v, want 24h", m.Age)
		}
		up.wantAsked(t, "HEAD "+doc.digest.String())
		wantRefers(t, c, up, blob, manifestcache.Unrenewed)
		up.fail(errOther)
		wantDigestError(t, c, up, doc.digest, errOther)
		up.wantAsked(t, "HEAD "+doc.digest.String())

		up.fail(nil)
		wantDigest(t, c, up, doc, manifestcache.Revalidated)
		up.wantAsked(t, "HEAD "+doc.digest.String())
		wantDigest(t, c, up, doc, manifestcache.Hit)
		wantRefers(t, c, up, blob, manifestcache.Granted)
		up.wantAsked(t)
	})
}

func TestRightThatCannotBeHeadedIsStaleOrRevokedByItsGet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config()
		cfg.TTL = 24 * time.Hour
		c, _ := running(t, t.TempDir(), cfg)
		up := newRepository("docker.io/library/alpine")
		up.silent = true
		blob := digest.FromString("layer")
		doc := up.push(newImage(blob))
		wantDigest(t, c, up, doc, manifestcache.Miss)
		time.Sleep(23 * time.Hour)
		wantDigest(t, c, up, doc, manifestcache.Hit)
		time.Sleep(time.Hour)
		up.get = errDown
		wantDigest(t, c, up, doc, manifestcache.Stale)
		up.get = errGone
		wantDigestError(t, c, up, doc.digest, errGone)
		wantRefers(t, c, up, blob, manifestcache.Unknown)
		up.get = errDown
		wantDigestError(t, c, up, doc.digest, errDown)
	})
}

func TestRevokedIsNotStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, cfg := t.TempDir(), config()
		cfg.TTL = 24 * time.Hour
		c, stop := running(t, dir, cfg)
		up, other := newRepository("docker.io/library/alpine"), newRepository("docker.io/library/busybox")
		blob := digest.FromString("layer")
		doc := other.push(up.push(newImage(blob)))
		wantDigest(t, c, up, doc, manifestcache.Miss)
		time.Sleep(23 * time.Hour)
		wantDigest(t, c, other, doc, manifestcache.Revalidated)
		time.Sleep(2 * time.Hour)
		up.fail(errGone)
		wantDigestError(t, c, up, doc.digest, errGone)
		wantRefers(t, c, up, blob, manifestcache.Unknown)
		wantRefers(t, c, other, blob, manifestcache.Granted)
		wantDigest(t, c, other, doc, manifestcache.Hit)

		up.fail(errDown)
		wantDigestError(t, c, up, doc.digest, errDown)
		stop()
		c, _ = running(t, dir, cfg)
		wantDigestError(t, c, up, doc.digest, errDown)
		wantRefers(t, c, up, blob, manifestcache.Unknown)
		wantDigest(t, c, other, doc, manifestcache.Hit)
	})
}

func TestRefusedIsNotServedBecauseAnotherRepositoryBroughtItBack(t *testing.T) {
	dir := t.TempDir()
	c := openCache(t, dir, config())
	up, other := newRepository("docker.io/library/alpine"), newRepository("docker.io/library/busybox")
	doc := other.push(up.push(newDocument(`{"first":1}`)))
	wantDigest(t, c, up, doc, manifestcache.Miss)
	if err := os.Remove(manifestPath(dir, doc.digest)); err != nil {
		t.Fatal(err)
	}
	up.fail(errGone)
	wantDigestError(t, c, up, doc.digest, errGone)
	wantDigest(t, c, other, doc, manifestcache.Miss)
	wantDigestError(t, c, up, doc.digest, errGone)
}

func TestRefusedBlobStaysRefusedWhateverElseIsAskedFor(t *testing.T) {
	c := openCache(t, t.TempDir(), config())
	up := newRepository("docker.io/library/alpine")
	blob := digest.FromString("layer")
	doc := up.push(newImage(blob))
	wantDigest(t, c, up, doc, manifestcache.Miss)
	for i := range 100_000 { // as many as are remembered
		c.Forget(up.name, digest.FromString(fmt.Sprint(i)))
	}
	wantRefers(t, c, up, blob, manifestcache.Granted)
	c.Forget(up.name, blob)
	wantRefers(t, c, up, blob, manifestcache.Unknown)
}

func TestRefersFollowsTheManifestsThereAre(t *testing.T) {
	dir := t.TempDir()
	c := openCache(t, dir, config())
	up, other := newRepository("docker.io/library/alpine"), newRepository("docker.io/library/busybox")
	shared, only := digest.FromString("shared"), digest.FromString("only")
	first := up.push(newImage(shared, only, shared), "first")
	second := up.push(newImage(shared), "second")
	wantRefers(t, c, up, shared, manifestcache.Unknown)
	wantTag(t, c, up, "first", first, manifestcache.Miss)
	wantTag(t, c, up, "second", second, manifestcache.Miss)
	wantRefers(t, c, up, shared, manifestcache.Granted)
	wantRefers(t, c, up, only, manifestcache.Granted)
	wantRefers(t, c, other, shared, manifestcache.Unknown)
	wantRefers(t, c, up, first.digest, manifestcache.Unknown)

	if err := os.Remove(manifestPath(dir, first.digest)); err != nil {
		t.Fatal(err)
	}
	up.fail(errDown)
	wantDigestError(t, c, up, first.digest, errDown) // finds out
	wantRefers(t, c, up, shared, manifestcache.Granted)
	wantRefers(t, c, up, only, manifestcache.Unknown)
	if got := c.Stats(); got.Entries != 1 || got.Damaged != 0 {
		t.Errorf("%d entries, %d damaged; want 1, 0", got.Entries, got.Damaged)
	}
}

func TestRefersTakesTheBestRight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config()
		cfg.TTL = 24 * time.Hour
		c, _ := running(t, t.TempDir(), cfg)
		up := newRepository("docker.io/library/alpine")
		blob := digest.FromString("layer")
		first, second := up.push(newImage(blob)), up.push(newImage(blob, digest.FromString("another")))
		wantDigest(t, c, up, first, manifestcache.Miss)
		time.Sleep(23 * time.Hour)
		wantDigest(t, c, up, first, manifestcache.Hit)
		wantDigest(t, c, up, second, manifestcache.Miss)
		time.Sleep(2 * time.Hour)
		wantRefers(t, c, up, blob, manifestcache.Granted) // by the second
		time.Sleep(21*time.Hour + 30*time.Minute)
		wantDigest(t, c, up, second, manifestcache.Hit)
		time.Sleep(time.Hour)
		wantRefers(t, c, up, blob, manifestcache.Unrenewed)
		c.Remember(up.name, blob)
		wantRefers(t, c, up, blob, manifestcache.Granted)
	})
}

func TestRememberedBlobIsGrantedForTheTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config()
		cfg.TTL = 24 * time.Hour
		c, _ := running(t, t.TempDir(), cfg)
		up, other := newRepository("docker.io/library/alpine"), newRepository("docker.io/library/busybox")
		blob := digest.FromString("layer")
		c.Remember(up.name, blob)
		wantRefers(t, c, up, blob, manifestcache.Granted)
		wantRefers(t, c, other, blob, manifestcache.Unknown)
		wantRefers(t, c, up, digest.FromString("another"), manifestcache.Unknown)
		time.Sleep(24*time.Hour - time.Second)
		wantRefers(t, c, up, blob, manifestcache.Granted)
		time.Sleep(time.Second)
		wantRefers(t, c, up, blob, manifestcache.Unrenewed)
		c.Remember(up.name, blob)
		wantRefers(t, c, up, blob, manifestcache.Granted)
	})
}

func TestRightsOfForeverAreNotAskedAbout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := running(t, t.TempDir(), config())
		up := newRepository("docker.io/library/alpine")
		blob := digest.FromString("layer")
		doc := up.push(newImage(blob))
		wantDigest(t, c, up, doc, manifestcache.Miss)
		time.Sleep(60 * 24 * time.Hour)
		up.fail(errors.New("not to be asked"))
		wantDigest(t, c, up, doc, manifestcache.Hit)
		wantRefers(t, c, up, blob, manifestcache.Granted)
	})
}

func TestRightThatIsNoFileIsAskedAboutAndWrittenAnew(t *testing.T) {
	for _, name := range []string{"a directory", "a named pipe", "a link out of the cache", "a link to itself"} {
		t.Run(name, func(t *testing.T) {
			dir, cfg := t.TempDir(), config()
			c := openCache(t, dir, cfg)
			up := newRepository("docker.io/library/alpine")
			doc := up.push(newDocument(`{"first":1}`))
			wantDigest(t, c, up, doc, manifestcache.Miss)
			c.Close()
			right, err := filepath.Glob(filepath.Join(dir, "repositories", "*", "sha256-*"))
			if err != nil || len(right) != 1 {
				t.Fatalf("%v are its files (%v)", right, err)
			}
			if err := damages[name](right[0]); err != nil {
				t.Fatal(err)
			}
			c = openCache(t, dir, cfg)
			wantDigest(t, c, up, doc, manifestcache.Revalidated)
			c.Close()
			up.fail(errDown)
			wantDigest(t, openCache(t, dir, cfg), up, doc, manifestcache.Hit)
		})
	}
}

func TestRenewedRightSurvivesARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, cfg := t.TempDir(), config()
		cfg.TTL = 24 * time.Hour
		c, stop := running(t, dir, cfg)
		up := newRepository("docker.io/library/alpine")
		doc := up.push(newDocument(`{"first":1}`))
		wantDigest(t, c, up, doc, manifestcache.Miss)
		time.Sleep(23 * time.Hour)
		wantDigest(t, c, up, doc, manifestcache.Hit)
		time.Sleep(time.Hour)
		wantDigest(t, c, up, doc, manifestcache.Revalidated)
		stop()
		time.Sleep(12 * time.Hour)
		for _, open := range []func() *manifestcache.Cache{
			func() *manifestcache.Cache { return openCache(t, dir, cfg) },
			func() *manifestcache.Cache { c, _ := running(t, dir, cfg); return c },
		} {
			m, err := open().ByDigest(t.Context(), up.name, doc.digest, up)
			wantManifest(t, m, err, doc, manifestcache.Hit)
			if m.Age != 12*time.Hour {
				t.Errorf("age %v, want 12h", m.Age)
			}
		}
	})
}
