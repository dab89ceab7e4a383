package shared

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"larder/handler/shared/storetest"
	"larder/manifestcache"
)

// For short.
const (
	hit     = manifestcache.Hit
	miss    = manifestcache.Miss
	stale   = manifestcache.Stale
	shared  = manifestcache.SharedHit
	current = manifestcache.Revalidated
)

func TestNodePullsWhatAnotherHasCachedWithUpstreamStopped(t *testing.T) {
	for name, tagTTL := range map[string]time.Duration{"tags are asked about each time": 0, "tags are fresh for a while": time.Minute} {
		bubble(t, name, func(t *testing.T) {
			m, up := new(storetest.Model), newRegistry()
			amd, arm := up.push(newImage("amd")), up.push(newImage("arm"))
			large := up.push(newDocument(ocispec.MediaTypeImageManifest, `{"layers":[],"annotations":{"a":"`+strings.Repeat("x", 1<<20)+`"}}`))
			index := up.push(newIndex(amd, arm, large), "3.20")
			first := join(t, m, up, tagTTL, nil)
			first.want("3.20", index, miss)
			first.want(amd.digest.String(), amd, miss)
			first.want(large.digest.String(), large, miss)
			time.Sleep(30 * time.Second)

			up.stop(errDown)
			second := join(t, m, up, tagTTL, nil)
			outcome := shared
			if tagTTL == 0 {
				outcome = stale
			}
			if got := second.want("3.20", index, outcome); got.Age != 30*time.Second {
				t.Errorf("tag of age %v, want that of the first node's", got.Age)
			}
			second.want(index.digest.String(), index, hit)
			if got := second.want(amd.digest.String(), amd, shared); got.Age != 30*time.Second {
				t.Errorf("right of age %v, want that of the first node's", got.Age)
			}
			second.want(amd.digest.String(), amd, hit)
			second.want(large.digest.String(), large, shared)
			second.wantError(arm.digest.String(), errDown) // no node was told that the repository has it

			before := requests(m)
			second.want(amd.digest.String(), amd, hit)
			if tagTTL > 0 {
				second.want("3.20", index, hit)
			}
			if n := requests(m) - before; n > 0 {
				t.Errorf("%d requests to the tier for what is on disk", n)
			}
		})
	}
}

func TestAnswerOfOneNodeServesTheFleetWithinTagTTL(t *testing.T) {
	const ttl = 6 * time.Minute
	synctest.Test(t, func(t *testing.T) {
		m, up := new(storetest.Model), newRegistry()
		img := up.push(newImage("1"), "1")
		a, b, c, d := join(t, m, up, ttl, nil), join(t, m, up, ttl, nil), join(t, m, up, ttl, nil), join(t, m, up, ttl, nil)
		a.want("1", img, miss)
		up.wantAsked(t, "HEAD", "GET")
		time.Sleep(2 * ttl / 3)
		b.want("1", img, shared)
		time.Sleep(ttl/3 - time.Nanosecond)
		b.want("1", img, hit)
		if got := c.want("1", img, shared); got.Age != ttl-time.Nanosecond {
			t.Errorf("of age %v, want that of the only answer", got.Age)
		}
		up.wantAsked(t)
		time.Sleep(time.Nanosecond)
		b.want("1", img, current) // for all
		up.wantAsked(t, "HEAD")
		a.want("1", img, shared)
		c.want("1", img, shared)
		d.want("1", img, shared)
		up.wantAsked(t)
	})
}

func TestTagIsAskedAboutEachTimeWithoutTagTTLButSentOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, up := new(storetest.Model), newRegistry()
		img := up.push(newImage("1"), "1")
		a, b := join(t, m, up, 0, nil), join(t, m, up, 0, nil)
		a.want("1", img, miss)
		up.wantAsked(t, "HEAD", "GET")
		b.want("1", img, shared)
		up.wantAsked(t, "HEAD")
		before := requests(m)
		for range 10 {
			a.want("1", img, current)
			b.want("1", img, current)
			time.Sleep(time.Minute)
		}
		if n := requests(m) - before; n > 0 {
			t.Errorf("%d requests to the tier about what has not changed", n)
		}
		time.Sleep(time.Hour)
		a.want("1", img, current)
		up.stop(errDown)
		if got := join(t, m, up, 0, nil).want("1", img, stale); got.Age != 0 {
			t.Errorf("of age %v, but it was confirmed just now", got.Age)
		}
	})
}

func TestMoveAndEndOfATagReachTheFleet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, up := new(storetest.Model), newRegistry()
		first := up.push(newImage("1"), "latest")
		a, b := join(t, m, up, time.Minute, nil), join(t, m, up, time.Minute, nil)
		a.want("latest", first, miss)
		b.want("latest", first, shared)
		second := up.push(newImage("2"), "latest")
		time.Sleep(time.Minute)
		a.want("latest", second, miss)
		b.want("latest", second, shared)
		if moves := b.Moves(alpine, "latest"); len(moves) != 1 || moves[0].From != first.digest {
			t.Errorf("moves %v", moves)
		}

		up.remove("latest")
		time.Sleep(time.Minute)
		a.wantError("latest", errGone)
		if exists(m, tagKey(alpine, "latest")) {
			t.Error("the tier still has a tag that upstream has not")
		}
		up.stop(errDown)
		join(t, m, up, time.Minute, nil).wantError("latest", errDown)
		b.want("latest", second, stale) // nobody has told it

		up.stop(nil)
		up.remove(second.digest.String())
		time.Sleep(8 * 24 * time.Hour) // rights are to be renewed
		a.wantError(second.digest.String(), errGone)
		if exists(m, rightKey(alpine, second.digest)) {
			t.Error("the tier still has a right that upstream has taken back")
		}
	})
}

func TestTagDoesNotOutliveTheRightToItsManifest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, up := new(storetest.Model), newRegistry()
		img := up.push(newImage("1"), "1")
		a := join(t, m, up, time.Hour, nil)
		a.want("1", img, miss)
		up.remove("1")
		a.tier.Gone(alpine, img.digest.String()) // as a node says that upstream has lost it
		synctest.Wait()
		if !exists(m, tagKey(alpine, "1")) {
			t.Fatal("the tag is not in the tier")
		}
		join(t, m, up, time.Hour, nil).wantError("1", errGone)
	})
}

func TestWhatAnotherNodeHeardBeforeIsNoNews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, up := new(storetest.Model), newRegistry()
		img := up.push(newImage("1"), "1", "2")
		a, b := join(t, m, up, time.Hour, nil), join(t, m, up, time.Hour, nil)
		a.want("1", img, miss)
		a.want("2", img, current)
		time.Sleep(50 * time.Minute)
		if _, err := b.Revalidate(t.Context(), alpine, "1", up); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		heard := time.Now()
		time.Sleep(time.Minute)
		if got := b.want("2", img, shared); got.Age != 51*time.Minute {
			t.Errorf("of age %v, want that of what upstream told the other node", got.Age)
		}
		if _, at := b.Right(alpine, img.digest); !at.Equal(heard) {
			t.Errorf("the right is of %v, want %v, when upstream last said so", at, heard)
		}
	})
}

func TestRightsAreNotSharedMoreWidelyThanOnOneNode(t *testing.T) {
	const private = "docker.io/org/private"
	synctest.Test(t, func(t *testing.T) {
		m, theirs, ours := new(storetest.Model), newRegistry(), newRegistry()
		img := theirs.push(newImage("secret"), "1")
		a := join(t, m, theirs, time.Hour, nil)
		a.wantFrom(private, "1", img, miss)

		b := join(t, m, ours, time.Hour, nil)
		b.wantError(img.digest.String(), errGone)
		ours.wantAsked(t, "HEAD") // the bytes are in the tier, which is no right to them
		b.wantError("1", errGone)

		ours.push(img, "1")
		c := join(t, m, ours, time.Hour, nil)
		c.want(img.digest.String(), img, shared)
		ours.wantAsked(t, "HEAD", "HEAD") // b's, for the tag, and c's
		if got := c.Stats(); got.Fetched != 0 {
			t.Errorf("fetched %d bytes that are in the tier", got.Fetched)
		}
	})
}

func TestManifestIsWhatTheRepositoryHasItAs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, theirs, ours := new(storetest.Model), newRegistry(), newRegistry()
		img := theirs.push(newDocument(ocispec.MediaTypeImageManifest, `{"layers":[]}`), "1")
		join(t, m, theirs, time.Hour, nil).wantFrom("ghcr.io/a/b", "1", img, miss)
		docker := img
		docker.mediaType = "application/vnd.docker.distribution.manifest.v2+json"
		ours.push(docker, "1")
		a := join(t, m, ours, time.Hour, nil)
		a.want("1", docker, miss)
		join(t, m, theirs, time.Hour, nil).wantFrom("ghcr.io/a/b", "1", img, miss)
	})
}

func TestRepositoryThatIsNotCoveredMakesNoRequest(t *testing.T) {
	for name, tagTTL := range map[string]time.Duration{"tags are asked about each time": 0, "tags are fresh for a while": time.Minute} {
		bubble(t, name, func(t *testing.T) {
			m, up := new(storetest.Model), newRegistry()
			img := up.push(newImage("1"), "1")
			a := join(t, m, up, tagTTL, func(c *Config, _ *manifestcache.Config) {
				c.Covers = func(repository string) bool { return repository == "docker.io/library/other" }
			})
			a.want("1", img, miss)
			time.Sleep(time.Hour)
			a.want("1", img, current)
			up.stop(errDown)
			time.Sleep(time.Hour)
			a.want("1", img, stale)
			up.stop(errGone)
			a.wantError("1", errGone)
			a.wantError(newImage("2").digest.String(), errGone)
			if n := requests(m); n > 0 {
				t.Errorf("%d requests to the tier", n)
			}
		})
	}
}

func TestColdHerdCostsUpstreamLittle(t *testing.T) {
	const nodes = 50
	img := newImage("1")
	tests := map[string]struct {
		reference   string
		tagTTL      time.Duration
		put         time.Duration // to write an object
		heads, gets int           // at most
	}{
		"tag":                        {"1", time.Minute, 5 * time.Millisecond, 1, 1},
		"tag that is always current": {"1", 0, 5 * time.Millisecond, nodes, 1},
		"digest":                     {img.digest.String(), time.Minute, 5 * time.Millisecond, 0, 1},
		"tag, slow to write":         {"1", time.Minute, 120 * time.Millisecond, 1, 1},
	}
	for name, test := range tests {
		bubble(t, name, func(t *testing.T) {
			m, up := new(storetest.Model), newRegistry()
			m.Latency = func(op storetest.Op) time.Duration {
				if op == storetest.Put {
					return test.put
				}
				return 5 * time.Millisecond
			}
			up.latency = 150 * time.Millisecond
			up.push(img, "1")
			var fleet []*larder
			for range nodes {
				fleet = append(fleet, join(t, m, up, test.tagTTL, nil))
			}
			pull := func(heads, gets int) {
				t.Helper()
				began := time.Now()
				var all sync.WaitGroup
				for _, l := range fleet {
					all.Go(func() {
						if got, err := l.pull(test.reference); err != nil || got.Digest != img.digest {
							t.Errorf("%v, %v", got, err)
						}
					})
				}
				all.Wait()
				if took := time.Since(began); took > timeout {
					t.Errorf("took %v", took)
				}
				if h, g := up.count("HEAD"), up.count("GET"); h > heads || g > gets {
					t.Errorf("%d HEADs and %d GETs, want at most %d and %d", h, g, heads, gets)
				}
				time.Sleep(5 * time.Second)
			}
			pull(test.heads, test.gets)
			time.Sleep(test.tagTTL) // all have it, and want to know whether it is current
			pull(2*test.heads, test.gets)
			for _, key := range m.Keys() {
				if strings.HasPrefix(key, leasesPrefix) {
					t.Errorf("%s is still there", key)
				}
			}
		})
	}
}

// What it has said takes the place of what it was about to write: the claim of that is
// over all the same.
func TestClaimEndsWithAnAnswerThatIsNotWritten(t *testing.T) {
	for name, second := range map[string]func(l *larder, up *registry){
		"the same again": func(l *larder, _ *registry) {
			if _, err := l.Revalidate(l.t.Context(), alpine, "1", l.up); err != nil {
				l.t.Error(err)
			}
		},
		"a no": func(l *larder, up *registry) {
			up.remove("1")
			if _, err := l.Revalidate(l.t.Context(), alpine, "1", l.up); !errors.Is(err, errGone) {
				l.t.Error(err)
			}
		},
	} {
		bubble(t, name, func(t *testing.T) {
			m, up := new(storetest.Model), newRegistry()
			a := join(t, m, up, time.Minute, nil)
			m.Latency = func(op storetest.Op) time.Duration {
				if op == storetest.Put {
					return time.Second
				}
				return 0
			}
			up.push(newImage("0"), "0")
			up.push(newImage("1"), "1")
			for _, tag := range []string{"0", "1"} { // the second waits for the first to be written
				if _, err := a.pull(tag); err != nil {
					t.Fatal(err)
				}
			}
			second(a, up)
			time.Sleep(10 * time.Second)
			for _, key := range m.Keys() {
				if strings.HasPrefix(key, leasesPrefix) {
					t.Errorf("%s is still there", key)
				}
			}
		})
	}
}

func TestNodeThatGotNoAnswerKeepsNobodyWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, up := new(storetest.Model), newRegistry()
		up.stop(errDown)
		for range 3 {
			l := join(t, m, up, time.Minute, nil)
			began := time.Now()
			l.wantError("1", errDown)
			l.wantError(newImage("1").digest.String(), errDown)
			if took := time.Since(began); took > 0 {
				t.Errorf("took %v", took)
			}
		}
	})
}
