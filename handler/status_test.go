package handler_test

import (
	"context"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"larder/handler/shared"
	"larder/handler/shared/storetest"
	"larder/handler/upstream/upstreamtest"
)

// parameters are those of RFC 9211 that larder uses, with the values that it does.
var parameters = regexp.MustCompile(`^(hit|fwd=(uri-miss|stale)|fwd-status=[1-5][0-9][0-9]|stored|collapsed|ttl=-?[0-9]+|detail=[a-z]+)$`)

// wantGrammar checks Cache-Status for what RFC 9211 says of every one: a request was
// a hit or was forwarded, and what came of that is said of those that were.
func wantGrammar(t *testing.T, a answer) {
	t.Helper()
	all := strings.Split(a.Header.Get("Cache-Status"), "; ")
	var names []string
	for _, p := range all[1:] {
		name, _, _ := strings.Cut(p, "=")
		if !parameters.MatchString(p) || slices.Contains(names, name) {
			t.Errorf("parameter %q in Cache-Status %q", p, all)
		}
		names = append(names, name)
	}
	forwarded := slices.Contains(names, "fwd")
	if all[0] != "larder" || forwarded == slices.Contains(names, "hit") {
		t.Errorf("Cache-Status %q, want larder, and one of hit and fwd", all)
	}
	for _, name := range []string{"fwd-status", "stored", "collapsed"} {
		if slices.Contains(names, name) && !forwarded {
			t.Errorf("Cache-Status %q has %s of what was not forwarded", all, name)
		}
	}
}

func TestCacheStatusTellsWhatHappened(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLarder(t, setup{pipe: true})
		layer := random(t, 1, 1000)
		img := l.hub.AddImage("a/b", "1", layer)
		l.hub.AddBlob("other/one", layer)
		tag, blob, otherBlob := manifestPath("a/b", "1"), blobPath("a/b", img.Layers[0].Digest), blobPath("other/one", img.Layers[0].Digest)
		l.hub.Fault(upstreamtest.Match{Path: "/other/one/"}, upstreamtest.Latency(time.Millisecond))
		next := func(after time.Duration, method, path, want string) {
			t.Helper()
			time.Sleep(after)
			a := l.record(t.Context(), method, path)
			a.want(t, "Cache-Status", want)
			wantGrammar(t, a)
		}
		next(0, "GET", tag, "larder; fwd=uri-miss; fwd-status=200; stored; detail=miss")
		next(0, "GET", tag, "larder; fwd=stale; fwd-status=200; detail=revalidated")
		next(0, "HEAD", blob, "larder; fwd=uri-miss; detail=miss")
		next(0, "GET", blob, "larder; fwd=uri-miss; stored; detail=miss")
		synctest.Wait()
		next(0, "GET", blob, "larder; hit; detail=hit")
		next(0, "HEAD", otherBlob, "larder; fwd=stale; detail=hit")
		l.manifests.Forget("docker.io/other/one", img.Layers[0].Digest)
		next(0, "GET", otherBlob, "larder; fwd=stale; detail=hit")
		next(0, "GET", otherBlob, "larder; hit; detail=hit")
		next(0, "GET", "/v2/a/b/tags/list", "larder; fwd=uri-miss; fwd-status=200; stored; detail=miss")
		next(0, "GET", "/v2/a/b/tags/list", "larder; fwd=stale; fwd-status=200; stored; detail=miss")

		l.hub.AddImage("a/b", "1", random(t, 2, 1000))
		next(0, "GET", tag, "larder; fwd=stale; fwd-status=200; stored; detail=miss")
		heal := l.hub.Fault(upstreamtest.Match{Path: "/manifests/"}, upstreamtest.Status(http.StatusServiceUnavailable, http.Header{"Retry-After": {"1"}}))
		next(90*time.Second, "GET", tag, "larder; fwd=stale; fwd-status=503; ttl=-90; detail=stale")
		heal()
		l.hub.Fault(upstreamtest.Match{Path: "/"}, upstreamtest.StallHeaders())
		next(30*time.Second, "GET", tag, "larder; fwd=stale; ttl=-140; detail=stale") // after 20 s in vain
		next(0, "GET", tag, "larder; hit; ttl=-140; detail=stale")                    // upstream is left alone
	})
}

func TestCacheStatusOfWhatNodesShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		place := new(storetest.Model)
		tag := manifestPath("a/b", "1")
		join := func(tagTTL time.Duration) (l *larder, digest string) {
			tier := shared.New(shared.Config{Store: place, Timeout: time.Second, TagTTL: tagTTL})
			ctx, stop := context.WithCancel(t.Context())
			var running sync.WaitGroup
			running.Go(func() { _ = tier.Run(ctx) })
			l = newLarder(t, setup{pipe: true, tagTTL: tagTTL, shared: tier})
			t.Cleanup(func() {
				stop()
				running.Wait()
				tier.Close()
			})
			return l, manifestPath("a/b", l.hub.AddImage("a/b", "1", random(t, 1, 1000)).Manifest.String())
		}
		next := func(l *larder, path, want string) {
			t.Helper()
			a := l.record(t.Context(), "GET", path)
			a.want(t, "Cache-Status", want)
			wantGrammar(t, a)
			synctest.Wait()
		}
		first, digest := join(time.Minute)
		next(first, tag, "larder; fwd=uri-miss; fwd-status=200; stored; detail=miss")

		second, _ := join(time.Minute)
		second.hub.Fault(upstreamtest.Match{Path: "/manifests/"}, upstreamtest.Status(http.StatusServiceUnavailable, http.Header{"Retry-After": {"1"}}))
		next(second, tag, "larder; fwd=uri-miss; stored; detail=shared")
		next(second, tag, "larder; hit; detail=hit")
		third, _ := join(time.Minute)
		next(third, digest, "larder; fwd=uri-miss; stored; detail=shared")
		next(third, tag, "larder; fwd=uri-miss; detail=shared") // as for the tag, nothing was here

		always, _ := join(0)
		next(always, tag, "larder; fwd=uri-miss; fwd-status=200; stored; detail=shared")
		next(always, tag, "larder; fwd=stale; fwd-status=200; detail=revalidated")

		time.Sleep(time.Minute)
		next(first, tag, "larder; fwd=stale; fwd-status=200; detail=revalidated")
		next(third, tag, "larder; fwd=stale; detail=shared")
	})
}

func TestCacheStatusOfWhoJoins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLarder(t, setup{pipe: true})
		img := l.hub.AddImage("a/b", "1", random(t, 1, 1000))
		l.hub.Fault(upstreamtest.Match{}, upstreamtest.Latency(time.Second))
		for path, want := range map[string][2]string{
			manifestPath("a/b", "1"):              {"larder; fwd=uri-miss; fwd-status=200; stored; detail=miss", "larder; fwd=uri-miss; fwd-status=200; stored; collapsed; detail=miss"},
			"/v2/a/b/tags/list":                   {"larder; fwd=uri-miss; fwd-status=200; stored; detail=miss", "larder; fwd=uri-miss; fwd-status=200; stored; collapsed; detail=miss"},
			blobPath("a/b", img.Layers[0].Digest): {"larder; fwd=uri-miss; stored; detail=miss", "larder; fwd=uri-miss; collapsed; detail=join"},
		} {
			var both sync.WaitGroup
			for i := range want {
				both.Go(func() {
					time.Sleep(time.Duration(i) * 10 * time.Millisecond)
					l.record(t.Context(), "GET", path).want(t, "Cache-Status", want[i])
				})
			}
			both.Wait()
		}
	})
}

func TestServerTimingSaysWhatTookTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLarder(t, setup{pipe: true, tagTTL: time.Minute})
		img := l.hub.AddImage("a/b", "1", random(t, 1, 1000))
		tag, blob := manifestPath("a/b", "1"), blobPath("a/b", img.Layers[0].Digest)
		l.record(t.Context(), "GET", manifestPath("a/b", "none")) // the handshake is over
		l.hub.Fault(upstreamtest.Match{}, upstreamtest.Latency(250*time.Millisecond))
		for _, step := range []struct {
			path, want string
		}{
			{tag, "cache;dur=0.000, upstream;dur=500.000, total;dur=500.000"}, // HEAD and GET
			{tag, ""},
			{blob, "cache;dur=0.000, upstream;dur=250.000, total;dur=250.000"},
			{blob, ""},
			{"/v2/a/b/tags/list", "cache;dur=0.000, upstream;dur=250.000, total;dur=250.000"},
		} {
			l.record(t.Context(), "GET", step.path).want(t, "Server-Timing", step.want)
			synctest.Wait()
		}
		time.Sleep(time.Minute)
		l.record(t.Context(), "GET", tag).want(t, "Server-Timing", "cache;dur=0.000, upstream;dur=250.000, total;dur=250.000")

		time.Sleep(time.Minute)
		var joined answer
		var one sync.WaitGroup
		one.Go(func() { l.record(t.Context(), "GET", tag) })
		time.Sleep(200 * time.Millisecond)
		joined = l.record(t.Context(), "GET", tag)
		one.Wait()
		joined.want(t, "Server-Timing", "cache;dur=0.000, upstream;dur=50.000, total;dur=50.000")
	})
}
