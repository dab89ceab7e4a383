package shared

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"larder/handler/shared/storetest"
	"larder/manifestcache"
)

func TestWhatIsWrongInTheTierIsNeverServedAndIsReplaced(t *testing.T) {
	img, other := newImage("1"), newImage("2")
	manifest, tag, right := manifestKey(img.digest), tagKey(alpine, "1"), rightKey(alpine, img.digest)
	tests := map[string]struct {
		key    string
		change func(was []byte) []byte
		asked  []string // upstream, for the tag and then for the digest
	}{
		"other bytes":               {manifest, func([]byte) []byte { return encodeManifest(img.mediaType, other.body) }, []string{"HEAD", "GET"}},
		"a bit":                     {manifest, func(b []byte) []byte { b[len(b)-5] ^= 1; return b }, []string{"HEAD", "GET"}},
		"half of the manifest":      {manifest, func(b []byte) []byte { return b[:len(b)/2] }, []string{"HEAD", "GET"}},
		"no manifest":               {manifest, func([]byte) []byte { return nil }, []string{"HEAD", "GET"}},
		"a huge manifest":           {manifest, func(b []byte) []byte { return append(b, make([]byte, maxManifest+maxHeader)...) }, []string{"HEAD", "GET"}},
		"another type":              {manifest, func([]byte) []byte { return encodeManifest("application/vnd.oci.image.index.v1+json", img.body) }, []string{"HEAD", "GET"}},
		"a type that is none":       {manifest, func([]byte) []byte { return encodeManifest("text/html\r\nX-Evil: 1", img.body) }, []string{"HEAD", "GET"}},
		"another tag's link":        {tag, func(b []byte) []byte { return bytes.Replace(b, []byte(":1"), []byte(":2"), 1) }, []string{"HEAD"}},
		"another repository's link": {tag, func(b []byte) []byte { return bytes.Replace(b, []byte(alpine), []byte("docker.io/org/app"), 1) }, []string{"HEAD"}},
		"a link to no digest":       {tag, func(b []byte) []byte { return bytes.Replace(b, []byte("sha256:"), []byte("sha256:../"), 1) }, []string{"HEAD"}},
		"half a link":               {tag, func(b []byte) []byte { return b[:len(b)/2] }, []string{"HEAD"}},
		"a link and more":           {tag, func(b []byte) []byte { return append(b, b...) }, []string{"HEAD"}},
		"a huge link":               {tag, func(b []byte) []byte { return append(b, bytes.Repeat([]byte(" "), maxFact)...) }, []string{"HEAD"}},
		"another repository's right": {right, func(b []byte) []byte {
			return bytes.Replace(b, []byte(alpine), []byte("docker.io/org/app"), 1)
		}, []string{"HEAD"}},
		"another manifest's right": {right, func(b []byte) []byte {
			return bytes.Replace(b, []byte(img.digest), []byte(other.digest), 1)
		}, []string{"HEAD"}},
		"a right to another type": {right, func(b []byte) []byte { return bytes.Replace(b, []byte("manifest.v1"), []byte("index.v1"), 1) }, []string{"HEAD"}},
		"half a right":            {right, func(b []byte) []byte { return b[:len(b)/2] }, []string{"HEAD"}},
	}
	for name, test := range tests {
		for _, reference := range []string{"1", img.digest.String()} {
			bubble(t, name+" for "+reference[:1], func(t *testing.T) {
				m, up := new(storetest.Model), newRegistry()
				up.push(img, "1")
				join(t, m, up, time.Hour, nil).want("1", img, miss)
				up.wantAsked(t, "HEAD", "GET")
				was := objectAt(t, m, test.key)
				overwrite(t, m, test.key, test.change(bytes.Clone(was)))

				b := join(t, m, up, time.Hour, nil)
				got, err := b.pull(reference)
				if err != nil || got.Digest != img.digest || got.MediaType != img.mediaType || !bytes.Equal(got.Body, img.body) {
					t.Fatalf("%v, %v", got, err)
				}
				synctest.Wait()
				asked := test.asked
				switch {
				case reference != "1" && test.key == tag:
					asked = nil
				case reference != "1" && test.key == manifest:
					asked = []string{"GET"}
				}
				up.wantAsked(t, asked...)
				if test.key == tag && reference != "1" {
					return // nobody has looked at it
				}
				if now := objectAt(t, m, test.key); !bytes.Equal(now, was) {
					t.Errorf("in the tier is %q, want again %q", now[:min(len(now), 500)], was)
				}
				up.stop(errDown)
				join(t, m, up, time.Hour, nil).want(reference, img, shared)
			})
		}
	}
}

func TestNodeThatWroteAManifestReplacesIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, up := new(storetest.Model), newRegistry()
		img := up.push(newImage("1"), "1")
		a := join(t, m, up, 0, nil)
		a.want("1", img, miss)
		was := objectAt(t, m, manifestKey(img.digest))
		overwrite(t, m, manifestKey(img.digest), encodeManifest(img.mediaType, newImage("2").body))
		if err := os.RemoveAll(filepath.Join(a.dir, "sha256")); err != nil {
			t.Fatal(err)
		}
		a.want("1", img, miss)
		if now := objectAt(t, m, manifestKey(img.digest)); !bytes.Equal(now, was) {
			t.Errorf("in the tier is %q, want %q", now, was)
		}
	})
}

func TestPullsGoOnWithoutTheTier(t *testing.T) {
	broken := errors.New("connection reset")
	tests := map[string]struct {
		fault   func(op storetest.Op, key string) error
		latency time.Duration
		atMost  time.Duration // for a tag or a digest, beyond what upstream takes
	}{
		"down":           {fault: func(storetest.Op, string) error { return broken }},
		"silent":         {latency: time.Hour, atMost: timeout},
		"slow":           {latency: 900 * time.Millisecond, atMost: timeout},
		"very slow":      {latency: 1900 * time.Millisecond, atMost: timeout},
		"can't be read":  {fault: onlyOf(broken, storetest.Get)},
		"can't be wrote": {fault: onlyOf(broken, storetest.Put, storetest.Create, storetest.Replace, storetest.Delete)},
		"breaks off":     {fault: onlyOf(broken, storetest.Read)},
	}
	for name, test := range tests {
		for tags, tagTTL := range map[string]time.Duration{"always asked about": 0, "fresh for a while": time.Minute} {
			bubble(t, name+", tags are "+tags, func(t *testing.T) {
				var begun atomic.Bool
				m, up := &storetest.Model{}, newRegistry()
				m.Latency = func(storetest.Op) time.Duration {
					if begun.Load() {
						return test.latency
					}
					return 0
				}
				m.Fault = func(op storetest.Op, key string) error {
					if begun.Load() && test.fault != nil {
						return test.fault(op, key)
					}
					return nil
				}
				img := up.push(newImage("1"), "1")
				join(t, m, up, tagTTL, nil).want("1", img, miss)
				begun.Store(true)
				b := join(t, m, up, tagTTL, nil)
				for _, reference := range []string{"1", img.digest.String(), "1"} {
					began := time.Now()
					m, err := b.pull(reference)
					if took := time.Since(began); err != nil || m.Digest != img.digest || took > test.atMost {
						t.Errorf("%s: %v, %v after %v, want an answer in at most %v", reference, m, err, took, test.atMost)
					}
				}
			})
		}
	}
}

func onlyOf(err error, ops ...storetest.Op) func(storetest.Op, string) error {
	return func(op storetest.Op, _ string) error {
		if slices.Contains(ops, op) {
			return err
		}
		return nil
	}
}

func TestNothingOfTheFutureIsFresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, up := new(storetest.Model), newRegistry()
		img := up.push(newImage("1"), "1")
		a := join(t, m, up, time.Hour, nil)
		a.want("1", img, miss)
		up.wantAsked(t, "HEAD", "GET")
		ahead := func(by time.Duration) {
			desc, at, _ := a.tier.Tag(t.Context(), alpine, "1")
			overwrite(t, m, tagKey(alpine, "1"), encode(link{alpine + ":1", desc, at.Add(by)}))
			overwrite(t, m, rightKey(alpine, img.digest), encode(right{alpine, img.digest, img.mediaType, at.Add(by)}))
		}
		ahead(30 * time.Second) // as clocks are
		b := join(t, m, up, time.Hour, nil)
		if got := b.want("1", img, shared); got.Age != 0 {
			t.Errorf("of age %v", got.Age)
		}
		up.wantAsked(t)
		time.Sleep(time.Hour + 30*time.Second)
		b.want("1", img, current)
		up.wantAsked(t, "HEAD")
		ahead(24 * time.Hour)
		c := join(t, m, up, time.Hour, nil)
		c.want(img.digest.String(), img, shared)
		up.wantAsked(t, "HEAD") // the bytes are there all the same
		c.want("1", img, current)
		up.wantAsked(t, "HEAD")
	})
}

func TestExplicitRefreshAsksUpstream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, up := &storetest.Model{Latency: func(storetest.Op) time.Duration { return 10 * time.Millisecond }}, newRegistry()
		first := up.push(newImage("1"), "1")
		a, b := join(t, m, up, time.Hour, nil), join(t, m, up, time.Hour, nil)
		a.want("1", first, miss)
		time.Sleep(time.Second)
		second := up.push(newImage("2"), "1")
		up.wantAsked(t, "HEAD", "GET")
		var pull sync.WaitGroup
		pull.Go(func() { b.want("1", first, shared) })
		time.Sleep(time.Millisecond) // it is being asked for
		got, err := b.Revalidate(t.Context(), alpine, "1", up)
		pull.Wait()
		if err != nil || got.Digest != second.digest {
			t.Errorf("%v, %v, want what upstream says now", got, err)
		}
		up.wantAsked(t, "HEAD", "GET")
		time.Sleep(time.Second)
		join(t, m, up, time.Hour, nil).want("1", second, shared)
	})
}

func TestSparedUpstreamIsNotAskedWhatAnotherNodeKnows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, up := new(storetest.Model), newRegistry()
		img := up.push(newImage("1"), "1")
		join(t, m, up, 0, nil).want("1", img, miss)
		up.wantAsked(t, "HEAD", "GET")
		b := join(t, m, up, 0, func(_ *Config, c *manifestcache.Config) {
			c.Spare = func(string) error { return errDown }
		})
		b.want("1", img, stale)
		up.wantAsked(t)
	})
}

func TestOldAnswerOfAnotherNodeIsBetterThanAnOlderOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, up := new(storetest.Model), newRegistry()
		first := up.push(newImage("1"), "1")
		a, b := join(t, m, up, 0, nil), join(t, m, up, 0, nil)
		b.want("1", first, miss)
		time.Sleep(time.Hour)
		second := up.push(newImage("2"), "1")
		a.want("1", second, miss)
		time.Sleep(time.Minute)
		up.stop(errDown)
		if got := b.want("1", second, stale); got.Age != time.Minute {
			t.Errorf("of age %v, want a minute", got.Age)
		}
		if moves := b.Moves(alpine, "1"); len(moves) != 1 || moves[0].From != first.digest {
			t.Errorf("moves %v", moves)
		}
	})
}

func TestLateWriteDoesNotTakeATagBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, up := new(storetest.Model), newRegistry()
		first := up.push(newImage("1"), "1")
		a, b := join(t, m, up, time.Hour, nil), join(t, m, up, time.Hour, nil)
		a.want("1", first, miss)
		_, at, _ := a.tier.Tag(t.Context(), alpine, "1")
		second := up.push(newImage("2"), "1")
		time.Sleep(time.Hour)
		b.want("1", second, miss)
		late := manifestcache.Answer{Repository: alpine, Tag: "1", Validated: at.Add(time.Minute)}
		late.Manifest.Digest, late.Manifest.MediaType = first.digest, first.mediaType
		m.Fault = func(op storetest.Op, key string) error {
			if op == storetest.Get && key == tagKey(alpine, "1") {
				return errDown
			}
			return nil
		}
		a.tier.Said(late) // and can't see that there is a newer one
		synctest.Wait()
		m.Fault = nil
		a.tier.Said(late)
		synctest.Wait()
		if desc, _, ok := a.tier.Tag(t.Context(), alpine, "1"); !ok || desc.Digest != second.digest {
			t.Errorf("the tier has %v, want %s", desc, second.digest)
		}
	})
}

func FuzzWhatIsReadFromTheTier(f *testing.F) {
	img := newImage("1")
	f.Add(encodeManifest(img.mediaType, img.body))
	f.Add([]byte("{}\n{}"))
	f.Add([]byte(`{"mediaType":"a/b"}` + "\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		mediaType, body, err := decodeManifest(data)
		if err != nil {
			return
		}
		if !isMediaType(mediaType) || strings.ContainsAny(mediaType, "\r\n") || len(mediaType) > 255 {
			t.Errorf("media type %q", mediaType)
		}
		again, same, err := decodeManifest(encodeManifest(mediaType, body))
		if err != nil || again != mediaType || digest.FromBytes(same) != digest.FromBytes(body) {
			t.Errorf("%q, %q, %v", again, same, err)
		}
	})
}
