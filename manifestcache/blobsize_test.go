package manifestcache_test

import (
	"fmt"
	"testing"

	"github.com/opencontainers/go-digest"

	"larder/manifestcache"
)

func TestBlobSizeIsWhatAManifestSays(t *testing.T) {
	c := openCache(t, t.TempDir(), config())
	config, layer, unsized, negative := digest.FromString("config"), digest.FromString("layer"), digest.FromString("unsized"), digest.FromString("negative")
	up := newRepository("docker.io/library/a")
	doc := up.push(newDocument(fmt.Sprintf(
		`{"config":{"digest":%q,"size":12},"layers":[{"digest":%q,"size":5000000000},{"digest":%q},{"digest":%q,"size":-1}]}`, config, layer, unsized, negative)))
	if got := c.BlobSize(layer); got != -1 {
		t.Errorf("before the manifest is here: got %d, want -1", got)
	}
	wantDigest(t, c, up, doc, manifestcache.Miss)
	for d, want := range map[digest.Digest]int64{config: 12, layer: 5_000_000_000, unsized: -1, negative: -1, digest.FromString("other"): -1} {
		if got := c.BlobSize(d); got != want {
			t.Errorf("%s: got %d, want %d", d, got, want)
		}
	}
}
