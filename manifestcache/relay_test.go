package manifestcache_test

import (
	"testing"
	"testing/synctest"
	"time"

	"larder/manifestcache"
)

// remembering is an upstream that may be another cache, and not have asked the
// registry.
type remembering struct {
	*repository
	status string
	age    time.Duration
	stale  bool
}

// Relayed implements manifestcache.Relay.
func (r *remembering) Relayed() (string, time.Duration, bool) { return r.status, r.age, r.stale }

// Asking implements manifestcache.Relay.
func (r *remembering) Asking() []string { return nil }

// want asks by tag.
func (r *remembering) want(t *testing.T, c *manifestcache.Cache, want document, outcome manifestcache.Outcome, age time.Duration) {
	t.Helper()
	m, err := c.ByTag(t.Context(), r.name, "1", r)
	if wantManifest(t, m, err, want, outcome); err == nil && m.Age != age {
		t.Errorf("it is %v old, want %v", m.Age, age)
	}
}

func TestWhatAnotherCacheRemembersIsAsOldAsThat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config()
		cfg.TagTTL = time.Hour
		c := openCache(t, t.TempDir(), cfg)
		up := &remembering{newRepository("docker.io/library/alpine"), "larder; hit", 50 * time.Minute, true}
		doc := up.push(newDocument(`{"first":1}`), "1")
		up.want(t, c, doc, manifestcache.Stale, 50*time.Minute)
		time.Sleep(9 * time.Minute)
		up.want(t, c, doc, manifestcache.Hit, 59*time.Minute) // as if it had been asked here then
		time.Sleep(2 * time.Minute)
		up.wantAsked(t, "HEAD 1", "GET "+doc.digest.String())

		up.status, up.age, up.stale = "", 0, false
		m, err := c.ByTag(t.Context(), up.name, "1", up)
		wantManifest(t, m, err, doc, manifestcache.Revalidated)
		if m.Age != 0 || m.Asked.Relayed != "" {
			t.Errorf("got %v, %q of an upstream that has asked", m.Age, m.Asked.Relayed)
		}
	})
}

// Another cache that did not have to ask is no reason to warn, but what it says is as old.
func TestWhatAnotherCacheHasNotAskedAboutIsNotNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config()
		cfg.TagTTL = time.Minute
		c := openCache(t, t.TempDir(), cfg)
		up := &remembering{newRepository("docker.io/library/alpine"), "larder; hit", 50 * time.Second, false}
		old := up.push(newDocument(`{"first":1}`), "1")
		up.want(t, c, old, manifestcache.Miss, 50*time.Second)
		time.Sleep(9 * time.Second)
		up.want(t, c, old, manifestcache.Hit, 59*time.Second)

		up.age = 0
		moved := up.push(newDocument(`{"second":2}`), "1")
		time.Sleep(time.Second)
		up.want(t, c, moved, manifestcache.Miss, 0)
		time.Sleep(time.Minute)
		up.push(old, "1")
		up.age = 2 * time.Minute
		up.want(t, c, moved, manifestcache.Revalidated, time.Minute) // as this cache was told since
	})
}

// What was said here is not forgotten for what somebody else remembers of before.
func TestNewerAnswerIsNotGivenUpForAnOlderOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		c := openCache(t, dir, config())
		up := &remembering{repository: newRepository("docker.io/library/alpine")}
		old := up.push(newDocument(`{"first":1}`), "1")
		moved := up.push(newDocument(`{"second":2}`), "1")
		up.want(t, c, moved, manifestcache.Miss, 0)
		time.Sleep(time.Minute)
		up.push(old, "1")
		up.status, up.age, up.stale = "larder; hit", time.Hour, true
		up.want(t, c, moved, manifestcache.Stale, time.Minute)
		m, err := c.ByTag(t.Context(), up.name, "1", up)
		if err != nil || m.Asked == nil || m.Asked.Relayed != "larder; hit" {
			t.Errorf("got %v, %v, want that another cache was asked", m, err)
		}
		time.Sleep(2 * time.Hour) // now the memory is the newer one
		up.want(t, c, old, manifestcache.Stale, time.Hour)
	})
}

// A right is as old as the word that it rests on, and no older than it was.
func TestRightFromAnotherCachesMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config()
		cfg.TTL = 2 * time.Hour
		c := openCache(t, t.TempDir(), cfg)
		up := &remembering{newRepository("docker.io/library/alpine"), "larder; hit", time.Hour, true}
		doc := up.push(newDocument(`{"first":1}`))
		ask := func(outcome manifestcache.Outcome, asked ...string) {
			t.Helper()
			m, err := c.ByDigest(t.Context(), up.name, doc.digest, up)
			wantManifest(t, m, err, doc, outcome)
			up.wantAsked(t, asked...)
		}
		ask(manifestcache.Stale, "GET "+doc.digest.String())
		time.Sleep(59 * time.Minute)
		ask(manifestcache.Hit)
		time.Sleep(2 * time.Minute)
		ask(manifestcache.Stale, "HEAD "+doc.digest.String()) // it is an hour old again

		up.age, up.stale = 0, false
		time.Sleep(2 * time.Hour)
		ask(manifestcache.Revalidated, "HEAD "+doc.digest.String())
		up.age, up.stale = time.Hour, true
		up.push(doc, "1")
		up.want(t, c, doc, manifestcache.Stale, time.Hour)
		up.wantAsked(t, "HEAD 1")
		time.Sleep(119 * time.Minute)
		ask(manifestcache.Hit)
	})
}

func TestListFromAnotherCachesMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config()
		cfg.ListTTL = time.Minute
		c := openCache(t, t.TempDir(), cfg)
		l := newListing(`{"tags":["1"]}`)
		l.Relayed, l.Age, l.Outcome = "larder; hit", 40*time.Second, manifestcache.Stale
		if got := l.want(t, c, "tags/list", manifestcache.Stale); got.Age != 40*time.Second || got.Asked.Relayed != "larder; hit" {
			t.Errorf("got %v, %q", got.Age, got.Asked.Relayed)
		}
		time.Sleep(19 * time.Second)
		l.want(t, c, "tags/list", manifestcache.Hit)
		time.Sleep(2 * time.Second)
		l.Relayed, l.Age, l.Outcome = "", 0, 0
		if got := l.want(t, c, "tags/list", manifestcache.Miss); got.Age != 0 || got.Asked.Relayed != "" {
			t.Errorf("got %v, %q", got.Age, got.Asked.Relayed)
		}
	})
}
