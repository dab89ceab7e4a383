package manifestcache_test

import (
	"errors"
	"testing"

	"larder/manifestcache"
)

func TestSparedUpstreamIsAskedAboutWhatIsNotKnownOnly(t *testing.T) {
	const name = "docker.io/library/alpine"
	spared := false
	cfg := config()
	cfg.Spare = func(repository string) error {
		if repository != name {
			t.Errorf("spares %q", repository)
		}
		if spared {
			return errors.New("little is left")
		}
		return nil
	}
	c := openCache(t, t.TempDir(), cfg)
	up := newRepository(name)
	known := up.push(newDocument(`{"first":1}`), "known")
	wantTag(t, c, up, "known", known, manifestcache.Miss)
	up.wantAsked(t, "HEAD known", "GET "+known.digest.String())

	spared = true
	wantTag(t, c, up, "known", known, manifestcache.Stale)
	up.wantAsked(t)
	fresh := up.push(newDocument(`{"second":2}`), "fresh", "known")
	wantTag(t, c, up, "fresh", fresh, manifestcache.Miss)
	up.wantAsked(t, "HEAD fresh", "GET "+fresh.digest.String())
	wantTag(t, c, up, "known", known, manifestcache.Stale)

	spared = false
	wantTag(t, c, up, "known", fresh, manifestcache.Revalidated)
}
