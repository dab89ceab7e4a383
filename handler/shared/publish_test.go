package shared

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"larder/blobcache"
	"larder/handler/shared/store"
	"larder/handler/shared/storetest"
)

type nopCloser struct{ io.ReadSeeker }

func (nopCloser) Close() error { return nil }

// publish starts a publisher of a blob that is all there, in four parts.
func publish(t *testing.T, m *storetest.Model) (*Tier, *publisher, digest.Digest) {
	t.Helper()
	data := bytes.Repeat([]byte("larder"), 1000)
	tier, _ := node(t, m, func(c *Config) {
		c.Open = func(context.Context, digest.Digest) (io.ReadSeekCloser, int64, error) {
			return nopCloser{bytes.NewReader(data)}, int64(len(data)), nil
		}
	})
	tier.sizes = sizes{part: 1500, leased: 1}
	l, err := newWatch(tier, "blob").claim(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	d := digest.FromBytes(data)
	p := newPublisher(tier, d, l, func(int64) bool { return true })
	tier.start(p.run)
	return tier, p, d
}

func TestBlobIsPublishedWhenItIsCommittedAndNotBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := quick()
		_, p, d := publish(t, m)
		time.Sleep(commitPatience / 2)
		want := []string{leaseKey("blob"), partKey(d, 0), partKey(d, 1), partKey(d, 2), partKey(d, 3), versionKey}
		if keys := m.Keys(); !slices.Equal(keys, want) {
			t.Errorf("before it is committed, the store has %v, want %v", keys, want)
		}
		p.end(nil)
		settled()
		if keys := m.Keys(); !slices.Equal(keys, []string{blobKey(d), versionKey}) {
			t.Errorf("the store has %v", keys)
		}
	})
}

func TestPartsOfAWrongBlobAreRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := quick()
		_, p, _ := publish(t, m)
		time.Sleep(commitPatience / 2)
		p.end(blobcache.ErrDigest)
		settled()
		if keys := m.Keys(); !slices.Equal(keys, []string{versionKey}) {
			t.Errorf("the store has %v", keys)
		}
	})
}

func TestTierThatIsClosedGivesItsLeasesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := quick()
		tier, _, _ := publish(t, m)
		time.Sleep(commitPatience / 2)
		if err := tier.Close(); err != nil {
			t.Fatal(err)
		}
		other, _ := node(t, m, nil)
		w := newWatch(other, "blob")
		if err := w.look(t.Context()); err != nil || !w.isFree() || w.record.Parts != 4 {
			t.Errorf("%v: %+v, want it free with what is there", err, w.record)
		}
	})
}

func TestBlobThatCanNotBeComposedIsUploaded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := quick()
		m.Fault = func(op storetest.Op, key string) error {
			if op == storetest.Compose {
				return &store.Error{Op: "compose", Key: key, Err: errors.New("not implemented")}
			}
			return nil
		}
		_, p, d := publish(t, m)
		time.Sleep(commitPatience / 2)
		p.end(nil)
		settled()
		if info, err := m.Head(t.Context(), blobKey(d)); err != nil || info.Digest != d {
			t.Errorf("%+v, %v", info, err)
		}
		if keys := m.Keys(); !slices.Equal(keys, []string{blobKey(d), versionKey}) {
			t.Errorf("the store has %v", keys)
		}
	})
}

func TestBlobThatIsNotCommittedIsNotWaitedForEndlessly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := quick()
		tier, p, d := publish(t, m)
		time.Sleep(2 * commitPatience)
		w := newWatch(tier, "blob")
		if err := w.look(t.Context()); err != nil || !w.isFree() || tier.Stats().Leases != 0 {
			t.Errorf("%v: the lease is held: %+v", err, w.record)
		}
		p.end(nil) // after all
		settled()
		if info, err := m.Head(t.Context(), blobKey(d)); err != nil || info.Digest != d {
			t.Errorf("%+v, %v", info, err)
		}
	})
}
