package shared

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"larder/handler/shared/store"
	"larder/handler/shared/storetest"
)

func TestPruneRemovesWhatIsOldAndWhatIsLeftOver(t *testing.T) {
	d := digest.FromString("x")
	old := []string{blobKey(d), manifestKey(d), rightKey("a/b", d), tagKey("a/b", "latest"), partKey(d, 0), leaseKey("blob x")}
	fresh := digest.FromString("y")
	recent := []string{blobKey(fresh), manifestKey(fresh), rightKey("a/b", fresh), tagKey("a/b", "new"), partKey(fresh, 0), leaseKey("blob y")}
	one := Removed{1, 4}
	all := Pruned{"blobs": one, "manifests": one, "rights": one, "tags": one, "parts": one, "leases": one}
	tests := map[string]struct {
		age    time.Duration // 0: nothing is too old
		really bool
		pruned Pruned
		left   int
	}{
		"old ones":                  {24 * time.Hour, true, all, 7},
		"just to see":               {24 * time.Hour, false, all, 13},
		"nothing is that old":       {100 * time.Hour, true, Pruned{"parts": one, "leases": one}, 11},
		"only what was left behind": {0, true, Pruned{"parts": one, "leases": one}, 11},
	}
	for name, test := range tests {
		bubble(t, name, func(t *testing.T) {
			m := &storetest.Model{}
			tier, _ := node(t, m, nil)
			_, _ = tier.head(t.Context(), "k")
			for _, key := range old {
				put(t, m, key, []byte("1234"))
			}
			time.Sleep(48 * time.Hour)
			for _, key := range recent {
				put(t, m, key, []byte("1234"))
			}
			before := time.Now().Add(-test.age)
			if test.age == 0 {
				before = time.Time{}
			}
			pruned, err := tier.Prune(t.Context(), before, test.really)
			if err != nil || !maps.Equal(pruned, test.pruned) {
				t.Errorf("%v, %v; want %v", pruned, err, test.pruned)
			}
			keys := m.Keys()
			for _, key := range append(recent, versionKey) {
				if !slices.Contains(keys, key) {
					t.Errorf("%s was removed", key)
				}
			}
			if len(keys) != test.left {
				t.Errorf("left: %v", keys)
			}
		})
	}
}

func TestPruneStopsAtAnErrorAndSaysWhatItHasDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &storetest.Model{}
		for _, s := range []string{"a", "b", "c"} {
			put(t, m, blobKey(digest.FromString(s)), []byte("1234"))
		}
		removed := 0
		m.Fault = func(op storetest.Op, key string) error {
			if op == storetest.Delete {
				if removed++; removed == 3 {
					return &store.Error{Op: "delete", Key: key, Code: "AccessDenied", Err: errors.New("denied")}
				}
			}
			return nil
		}
		tier, _ := node(t, m, nil)
		pruned, err := tier.Prune(t.Context(), time.Now().Add(time.Hour), true)
		if err == nil || !strings.Contains(err.Error(), "denied") || pruned["blobs"].Objects != 2 {
			t.Errorf("%v, %v", pruned, err)
		}
		if tier.Stats().ReadsOut != nil {
			t.Error("one failure to remove something is none to read")
		}
	})
}

func TestURLIsOfCompleteBlobsInTheTier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, o, absent := quick(), newOrigin(100<<10), newOrigin(200<<10)
		m.Signed = func(key string) string { return "https://store.example/" + key + "?signed" }
		newMachine(t, m, memoryDir(t), nil).pull(t, o)
		settled()
		n, _ := node(t, m, func(c *Config) { c.Covers = func(r string) bool { return r == repository } })
		for range 5 {
			if url, ok := n.URL(t.Context(), repository, o.digest); !ok || url != m.Signed(blobKey(o.digest)) {
				t.Errorf("%q, %v", url, ok)
			}
		}
		if url, ok := n.URL(t.Context(), "ghcr.io/private/app", o.digest); ok {
			t.Errorf("%q for a repository that is not shared", url)
		}
		if url, ok := n.URL(t.Context(), repository, absent.digest); ok {
			t.Errorf("%q for what is not there", url)
		}
		put(t, m, blobKey(absent.digest), absent.data[1:])
		if info, _ := m.Head(t.Context(), blobKey(absent.digest)); info.Length > 0 {
			n.doubted.add(absent.digest, info.Version)
		}
		if url, ok := n.URL(t.Context(), repository, absent.digest); ok {
			t.Errorf("%q for what is known to be wrong", url)
		}
		heads := m.Count().Requests[storetest.Head]
		_ = m.Delete(t.Context(), blobKey(o.digest))
		time.Sleep(2 * knownFor)
		if url, ok := n.URL(t.Context(), repository, o.digest); ok || m.Count().Requests[storetest.Head] != heads+1 {
			t.Errorf("%q for what was there once", url)
		}
		m.Latency = func(storetest.Op) time.Duration { return time.Hour }
		began := time.Now()
		if _, ok := n.URL(t.Context(), repository, o.digest); ok || time.Since(began) != timeout {
			t.Errorf("a slow store cost %v", time.Since(began))
		}
	})
}
