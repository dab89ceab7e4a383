package manifestcache_test

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"larder/manifestcache"
)

func TestRememberedLayersAreBoundedAndCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := running(t, t.TempDir(), config())
		c.Bound(4, 10, 10)
		up := newRepository("docker.io/library/alpine")
		var blobs []digest.Digest
		var images []document
		for i := range 3 {
			blobs = append(blobs, digest.FromString(fmt.Sprint("layer ", i)))
			images = append(images, up.push(newImage(blobs[i], digest.FromString(fmt.Sprint("config ", i)))))
		}
		pull := func(i int, want manifestcache.Outcome) {
			t.Helper()
			wantDigest(t, c, up, images[i], want)
			time.Sleep(time.Second)
		}
		pull(0, manifestcache.Miss)
		pull(1, manifestcache.Miss)
		pull(0, manifestcache.Hit)
		pull(2, manifestcache.Miss)
		for i, want := range []manifestcache.Right{manifestcache.Granted, manifestcache.Unknown, manifestcache.Granted} {
			wantRefers(t, c, up, blobs[i], want)
		}
		if got := c.Blobs(images[1].digest); len(got) != 0 {
			t.Errorf("the blobs of an image that is forgotten are %v", got)
		}
		pull(1, manifestcache.Hit) // it is remembered again
		wantRefers(t, c, up, blobs[1], manifestcache.Granted)
		wantRefers(t, c, up, blobs[0], manifestcache.Unknown)
		if got := c.Blobs(images[1].digest); len(got) != 2 || !slices.Contains(got, blobs[1]) {
			t.Errorf("the blobs of an image are %v", got)
		}
		if s := c.Stats(); s.Remembered != 4 || s.RememberedHits != 3 || s.RememberedMisses != 2 {
			t.Errorf("%d remembered, %d hits, %d misses; want 4, 3, 2", s.Remembered, s.RememberedHits, s.RememberedMisses)
		}
	})
}

func TestRememberedLayersAreRebuiltFromDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		c, stop := running(t, dir, config())
		up := newRepository("docker.io/library/alpine")
		blob := digest.SHA512.FromString("layer")
		image := up.push(newImage(blob, digest.FromString("config")))
		wantDigest(t, c, up, image, manifestcache.Miss)
		stop()
		c, _ = running(t, dir, config())
		wantRefers(t, c, up, blob, manifestcache.Granted)
		if got := c.Blobs(image.digest); len(got) != 2 || !slices.Contains(got, blob) || c.Stats().Remembered != 2 {
			t.Errorf("the blobs of the image are %v, %d are remembered", got, c.Stats().Remembered)
		}
	})
}

func TestProvenBlobsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := running(t, t.TempDir(), config())
		c.Bound(10, 4, 10)
		up := newRepository("docker.io/library/alpine")
		blob := func(i int) digest.Digest { return digest.FromString(fmt.Sprint(i)) }
		for i := range 10 {
			c.Remember(up.name, blob(i))
			time.Sleep(time.Second)
			wantRefers(t, c, up, blob(0), manifestcache.Granted) // it is in use
			if s := c.Stats(); s.Remembered > 4 {
				t.Fatalf("%d are remembered, want 4 at most", s.Remembered)
			}
		}
		for i := range 10 {
			want := manifestcache.Unknown
			if i == 0 || i > 6 {
				want = manifestcache.Granted
			}
			wantRefers(t, c, up, blob(i), want)
		}
	})
}

// What upstream has refused is never given out because others were refused too.
func TestRefusalIsNotForgottenForAnother(t *testing.T) {
	dir := t.TempDir()
	c := openCache(t, dir, config())
	c.Bound(100, 10, 2)
	up, other := newRepository("docker.io/library/alpine"), newRepository("docker.io/library/busybox")
	var blobs []digest.Digest
	var images []document
	for i := range 5 {
		blobs = append(blobs, digest.FromString(fmt.Sprint("layer ", i)))
		images = append(images, other.push(up.push(newImage(blobs[i]))))
		wantDigest(t, c, up, images[i], manifestcache.Miss)
		wantDigest(t, c, other, images[i], manifestcache.Revalidated)
	}
	for range 2 {
		for _, b := range blobs[:4] {
			c.Forget(up.name, b)
		}
	}
	for i, b := range blobs {
		want := manifestcache.Unknown
		if i == 4 {
			want = manifestcache.Granted
		}
		wantRefers(t, c, up, b, want)
		wantRefers(t, c, other, b, manifestcache.Granted)
	}
	for i, image := range images { // without room for the no, the manifest's word is taken back
		if _, err := os.Stat(rightPath(dir, up, image.digest)); (err == nil) != (i < 2 || i == 4) {
			t.Errorf("right to image %d: %v", i, err)
		}
	}
	c.Remember(up.name, blobs[2])
	wantRefers(t, c, up, blobs[2], manifestcache.Granted)
	wantDigest(t, c, up, images[3], manifestcache.Revalidated) // upstream's newer word
	wantRefers(t, c, up, blobs[3], manifestcache.Granted)
}

// Nobody knows what a forgotten manifest names: it may be what was refused.
func TestRefusalWithoutRoomEndsTheRightToForgottenManifestsToo(t *testing.T) {
	c := openCache(t, t.TempDir(), config())
	up := newRepository("docker.io/library/alpine")
	blob := digest.FromString("layer")
	image := up.push(newImage(blob))
	wantDigest(t, c, up, image, manifestcache.Miss)
	c.Bound(0, 10, 0)
	c.Forget(up.name, blob)
	c.Bound(10, 10, 0)
	up.fail(errDown)
	wantDigestError(t, c, up, image.digest, errDown)
	wantRefers(t, c, up, blob, manifestcache.Unknown)
}

// Clients choose the names of repositories: a no must not make them known.
func TestRefusalOfNobodysBlobTakesNoMemory(t *testing.T) {
	c := openCache(t, t.TempDir(), config())
	c.Bound(10, 10, 0)
	for i := range 10 {
		c.Forget(fmt.Sprint("docker.io/library/", i), digest.FromString("layer"))
	}
	if n := c.Known(); n != 0 {
		t.Errorf("%d repositories are known, want none", n)
	}
}
