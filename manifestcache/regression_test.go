package manifestcache_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"larder/manifestcache"
)

func TestFlippedBitInTheMediaTypeIsNoticed(t *testing.T) {
	dir := t.TempDir()
	c := openCache(t, dir, config())
	up := newRepository("docker.io/library/alpine")
	doc := up.push(newDocument(`{"first":1}`))
	wantDigest(t, c, up, doc, manifestcache.Miss)
	path := manifestPath(dir, doc.digest)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, bytes.Replace(data, []byte("v1+json"), []byte("v1+jsoo"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	wantDigest(t, c, up, doc, manifestcache.Miss)
}

func TestRevokedDigestIsNotStaleByTagEither(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config()
		cfg.TTL = 24 * time.Hour
		c, _ := running(t, t.TempDir(), cfg)
		up := newRepository("docker.io/library/alpine")
		doc := up.push(newDocument(`{"first":1}`), "latest")
		wantTag(t, c, up, "latest", doc, manifestcache.Miss)
		time.Sleep(23 * time.Hour)
		wantDigest(t, c, up, doc, manifestcache.Hit)
		time.Sleep(2 * time.Hour)
		up.fail(errGone)
		wantDigestError(t, c, up, doc.digest, errGone)
		up.fail(errDown)
		wantTagError(t, c, up, "latest", errDown)
	})
}

// A disk that can't be written must not bring back what upstream has replaced.
func TestTagThatCannotBeStoredIsForgotten(t *testing.T) {
	dir := t.TempDir()
	c := openCache(t, dir, config())
	up := newRepository("docker.io/library/alpine")
	one := up.push(newDocument(`{"first":1}`), "latest")
	wantTag(t, c, up, "latest", one, manifestcache.Miss)
	tmp := filepath.Join(dir, "tmp")
	if err := errors.Join(os.RemoveAll(tmp), os.WriteFile(tmp, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	two := up.push(newDocument(`{"second":2}`), "latest")
	wantTag(t, c, up, "latest", two, manifestcache.Miss)
	up.fail(errDown)
	wantTagError(t, c, up, "latest", errDown)
}
