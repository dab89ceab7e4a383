package manifestcache_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"larder/manifestcache"

	"github.com/opencontainers/go-digest"
)

func TestTagIsAskedAboutEachTimeButSentOnce(t *testing.T) {
	c := openCache(t, t.TempDir(), config())
	up := newRepository("docker.io/library/alpine")
	doc := up.push(newDocument(`{"first":1}`), "3.20", "latest")
	wantTag(t, c, up, "3.20", doc, manifestcache.Miss)
	up.wantAsked(t, "HEAD 3.20", "GET "+doc.digest.String())
	wantTag(t, c, up, "3.20", doc, manifestcache.Revalidated)
	up.wantAsked(t, "HEAD 3.20")
	wantTag(t, c, up, "latest", doc, manifestcache.Revalidated)
	up.wantAsked(t, "HEAD latest")
	wantDigest(t, c, up, doc, manifestcache.Hit)
	up.wantAsked(t)
	got := c.Stats()
	if got.Misses != 1 || got.Revalidated != 2 || got.Hits != 1 || got.Entries != 1 || got.Bytes != int64(len(doc.body)) {
		t.Errorf("stats %+v", got)
	}
}

func TestDigestIsFetchedOnce(t *testing.T) {
	c := openCache(t, t.TempDir(), config())
	up := newRepository("docker.io/library/alpine")
	doc := up.push(newDocument(`{"first":1}`))
	wantDigest(t, c, up, doc, manifestcache.Miss)
	up.wantAsked(t, "GET "+doc.digest.String())
	up.fail(errDown)
	wantDigest(t, c, up, doc, manifestcache.Hit)
	up.wantAsked(t)
}

func TestTagIsNotAskedAboutWithinItsTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, cfg := t.TempDir(), config()
		cfg.TagTTL = time.Hour
		c, _ := running(t, dir, cfg)
		up := newRepository("docker.io/library/alpine")
		doc := up.push(newDocument(`{"first":1}`), "3.20")
		wantTag(t, c, up, "3.20", doc, manifestcache.Miss)
		up.wantAsked(t, "HEAD 3.20", "GET "+doc.digest.String())
		for range 2 {
			time.Sleep(time.Hour - time.Second)
			m, err := c.ByTag(t.Context(), up.name, "3.20", up)
			wantManifest(t, m, err, doc, manifestcache.Hit)
			if m.Age != time.Hour-time.Second {
				t.Errorf("age of a hit %v, want %v", m.Age, time.Hour-time.Second)
			}
			up.wantAsked(t)
			time.Sleep(time.Second)
			m, err = c.ByTag(t.Context(), up.name, "3.20", up)
			wantManifest(t, m, err, doc, manifestcache.Revalidated)
			if m.Age != 0 {
				t.Errorf("age when just revalidated %v, want 0", m.Age)
			}
			up.wantAsked(t, "HEAD 3.20")
		}
		if err := os.Remove(manifestPath(dir, doc.digest)); err != nil {
			t.Fatal(err)
		}
		wantTag(t, c, up, "3.20", doc, manifestcache.Miss)
	})
}

func TestMovedTagIsFetchedAndMovedBackIsNot(t *testing.T) {
	c := openCache(t, t.TempDir(), config())
	up := newRepository("docker.io/library/alpine")
	first := up.push(newDocument(`{"first":1}`), "latest")
	wantTag(t, c, up, "latest", first, manifestcache.Miss)
	second := up.push(newDocument(`{"second":2}`), "latest")
	up.wantAsked(t, "HEAD latest", "GET "+first.digest.String())
	wantTag(t, c, up, "latest", second, manifestcache.Miss)
	up.wantAsked(t, "HEAD latest", "GET "+second.digest.String())
	up.push(first, "latest")
	wantTag(t, c, up, "latest", first, manifestcache.Revalidated)
	up.wantAsked(t, "HEAD latest")
	up.fail(errDown)
	wantTag(t, c, up, "latest", first, manifestcache.Stale)
}

func TestHeadWithoutDigestCostsAGetByTag(t *testing.T) {
	for _, claim := range []string{"says the digest", "says nothing"} {
		t.Run("GET "+claim, func(t *testing.T) {
			c := openCache(t, t.TempDir(), config())
			up := newRepository("quay.io/a/b")
			up.silent = true
			if claim == "says nothing" {
				up.lie = func(d document) document { d.digest = ""; return d }
			}
			doc := up.push(newDocument(`{"first":1}`), "latest")
			for range 2 {
				wantTag(t, c, up, "latest", doc, manifestcache.Miss)
				up.wantAsked(t, "HEAD latest", "GET latest")
			}
			wantDigest(t, c, up, doc, manifestcache.Hit)
			up.fail(errDown)
			wantTag(t, c, up, "latest", doc, manifestcache.Stale)
		})
	}
}

func TestManyAskingAtOnceAreOneQuestionThatOutlivesTheFirst(t *testing.T) {
	type ask func(context.Context, *manifestcache.Cache, *repository, document) (*manifestcache.Manifest, error)
	tests := map[string]struct {
		ask  ask
		want []string
	}{
		"tag": {func(ctx context.Context, c *manifestcache.Cache, r *repository, _ document) (*manifestcache.Manifest, error) {
			return c.ByTag(ctx, r.name, "latest", r)
		}, []string{"HEAD latest", "GET %s"}},
		"digest": {func(ctx context.Context, c *manifestcache.Cache, r *repository, d document) (*manifestcache.Manifest, error) {
			return c.ByDigest(ctx, r.name, d.digest, r)
		}, []string{"GET %s"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := openCache(t, t.TempDir(), config())
				up := newRepository("docker.io/library/alpine")
				doc := up.push(newDocument(`{"first":1}`), "latest")
				up.gate = make(chan struct{})

				ctx, leave := context.WithCancelCause(t.Context())
				left := errors.New("the first caller left")
				var wg sync.WaitGroup
				wg.Go(func() {
					if _, err := test.ask(ctx, c, up, doc); !errors.Is(err, left) {
						t.Errorf("the caller who left got %v, want %v", err, left)
					}
				})
				synctest.Wait() // upstream is being asked
				for range 49 {
					wg.Go(func() {
						m, err := test.ask(t.Context(), c, up, doc)
						wantManifest(t, m, err, doc, manifestcache.Miss)
					})
				}
				synctest.Wait() // all wait
				leave(left)
				synctest.Wait()
				close(up.gate)
				wg.Wait()
				for i := range test.want {
					test.want[i] = strings.ReplaceAll(test.want[i], "%s", doc.digest.String())
				}
				up.wantAsked(t, test.want...)
			})
		})
	}
}

func TestDifferentQuestionsDoNotWaitForEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := openCache(t, t.TempDir(), config())
		slow, fast := newRepository("docker.io/library/alpine"), newRepository("docker.io/library/busybox")
		doc := fast.push(slow.push(newDocument(`{"first":1}`), "latest"), "latest")
		slow.gate = make(chan struct{})
		done := make(chan struct{})
		go func() {
			defer close(done)
			wantTag(t, c, slow, "latest", doc, manifestcache.Revalidated) // by then it is there
		}()
		synctest.Wait()
		wantTag(t, c, fast, "latest", doc, manifestcache.Miss)
		close(slow.gate)
		<-done
	})
}

func TestOldAnswerIsForUpstreamsThatCannotAnswerOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := running(t, t.TempDir(), config())
		up := newRepository("docker.io/library/alpine")
		doc := up.push(newDocument(`{"first":1}`), "latest")
		wantTag(t, c, up, "latest", doc, manifestcache.Miss)
		time.Sleep(50 * time.Hour)
		up.fail(errDown)
		m, err := c.ByTag(t.Context(), up.name, "latest", up)
		wantManifest(t, m, err, doc, manifestcache.Stale)
		if m.Age != 50*time.Hour {
			t.Errorf("age %v, want 50h", m.Age)
		}
		up.fail(errOther)
		wantTagError(t, c, up, "latest", errOther)

		up.fail(nil)
		up.push(newDocument(`{"second":2}`), "latest")
		up.get = errDown // it can be described, but not had
		wantTag(t, c, up, "latest", doc, manifestcache.Stale)

		up.fail(errGone)
		wantTagError(t, c, up, "latest", errGone)
		up.fail(errDown)
		wantTagError(t, c, up, "latest", errDown)
		if got := c.Stats().Stale; got != 2 {
			t.Errorf("%d stale, want 2", got)
		}
	})
}

func TestErrorsOfUpstreamComeOutUnchanged(t *testing.T) {
	none := manifestcache.Config{}
	for name, cfg := range map[string]manifestcache.Config{"zero": none, "full": config()} {
		for _, fail := range []error{errDown, errGone, errOther, fmt.Errorf("context of upstream's own: %w", context.Canceled)} {
			t.Run(name+" "+fail.Error(), func(t *testing.T) {
				c := openCache(t, t.TempDir(), cfg)
				up := newRepository("docker.io/library/alpine")
				doc := up.push(newDocument(`{"first":1}`), "latest")
				up.fail(fail)
				wantTagError(t, c, up, "latest", fail)
				wantDigestError(t, c, up, doc.digest, fail)
				up.fail(nil)
				up.get = fail
				wantTagError(t, c, up, "latest", fail)
			})
		}
	}
	c := openCache(t, t.TempDir(), none) // knows no error that is better answered
	up := newRepository("docker.io/library/alpine")
	doc := up.push(newDocument(`{"first":1}`), "latest")
	wantTag(t, c, up, "latest", doc, manifestcache.Miss)
	up.fail(errDown)
	wantTagError(t, c, up, "latest", errDown)
}

func TestWrongManifestIsNeitherAnsweredNorKept(t *testing.T) {
	other := newDocument(`{"other":1}`)
	lies := map[string]func(document) document{
		"another body":             func(d document) document { d.body = other.body; return d },
		"another document":         func(document) document { return other },
		"a shorter body":           func(d document) document { d.body = d.body[1:]; return d },
		"nothing":                  func(d document) document { d.body = nil; return d },
		"no digest and other body": func(d document) document { return document{d.mediaType, other.body, ""} },
	}
	for name, lie := range lies {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c := openCache(t, dir, config())
			up := newRepository("docker.io/library/alpine")
			doc := up.push(newDocument(`{"first":1}`), "latest")
			up.lie = lie
			wantTagError(t, c, up, "latest", manifestcache.ErrDigest)
			wantDigestError(t, c, up, doc.digest, manifestcache.ErrDigest)
			if got := c.Stats(); got.Mismatches != 2 || got.Entries != 0 {
				t.Errorf("%d mismatches, %d entries; want 2, 0", got.Mismatches, got.Entries)
			}
			if got := files(t, dir); len(got) != 0 {
				t.Errorf("kept %v", got)
			}
			up.lie = nil
			wantTag(t, c, up, "latest", doc, manifestcache.Miss)
		})
	}
	t.Run("by tag, against its own claim", func(t *testing.T) {
		c := openCache(t, t.TempDir(), config())
		up := newRepository("docker.io/library/alpine")
		up.push(newDocument(`{"first":1}`), "latest")
		up.silent, up.lie = true, lies["another body"]
		wantTagError(t, c, up, "latest", manifestcache.ErrDigest)
	})
}

func TestEveryByteAndTheMediaTypeAreKept(t *testing.T) {
	mediaTypes := []string{
		ocispec.MediaTypeImageIndex, "application/vnd.docker.distribution.manifest.v1+prettyjws",
		`application/json; charset=`, `application/json;charset="utf-8"; a=<&>`, "text/plain; x=\tü", "x",
	}
	bodies := []string{
		"", "\n", "\n\n{}\n\n", "{}\r\n", "not JSON", "\x00\xff\xfe", `{"a": "\u003c"}`, " { \"b\":1,\t\"a\":2 } ",
		strings.Repeat("x\n", 128<<10), strings.Repeat("x\n", 1<<20),
	}
	dir := t.TempDir()
	c := openCache(t, dir, config())
	up := newRepository("docker.io/library/alpine")
	for i, mediaType := range mediaTypes {
		for j, body := range bodies {
			doc := newDocument(body)
			doc.mediaType = mediaType
			for _, algorithm := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
				doc.digest = algorithm.FromString(body)
				tag := fmt.Sprintf("%d-%d-%s", i, j, algorithm)
				up.push(doc, tag)
				_ = os.Remove(manifestPath(dir, doc.digest))
				wantTag(t, c, up, tag, doc, manifestcache.Miss)
				wantTag(t, c, up, tag, doc, manifestcache.Revalidated)
				wantDigest(t, c, up, doc, manifestcache.Hit)
			}
		}
	}
	if got := c.Stats(); got.Damaged != 0 || got.Mismatches != 0 {
		t.Errorf("%d damaged, %d mismatches; want none", got.Damaged, got.Mismatches)
	}
}

func TestCloseEndsQuestions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := openCache(t, t.TempDir(), config())
		up := newRepository("docker.io/library/alpine")
		doc := up.push(newDocument(`{"first":1}`), "latest")
		up.gate = make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() { wantTagError(t, c, up, "latest", manifestcache.ErrClosed) })
		wg.Go(func() { wantDigestError(t, c, up, doc.digest, manifestcache.ErrClosed) })
		synctest.Wait()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		wg.Wait()
		up.asked = nil
		wantTagError(t, c, up, "latest", manifestcache.ErrClosed)
		wantDigestError(t, c, up, doc.digest, manifestcache.ErrClosed)
		up.wantAsked(t)
	})
}
