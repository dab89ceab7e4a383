package shared

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"larder/blobcache"
	"larder/handler/shared/store"
	"larder/handler/shared/storetest"
)

func TestLeaseThatCannotBeReadCostsNoMoreThanTheTimeout(t *testing.T) {
	for name, garbage := range map[string]bool{"it is refused": false, "it is too large": true} {
		bubble(t, name, func(t *testing.T) {
			m, o := quick(), newOrigin(2<<20)
			key := leaseKey("blob " + o.digest.String())
			content := `{"holder":"?"}`
			if garbage {
				content = string(make([]byte, maxLease+1))
			} else {
				m.Fault = func(op storetest.Op, at string) error {
					if op == storetest.Get && at == key {
						return &store.Error{Op: "get", Key: key, Err: errors.New("access denied")}
					}
					return nil
				}
			}
			put(t, m, key, []byte(content))
			n := newMachine(t, m, memoryDir(t), nil)
			if took := n.pull(t, o); took > timeout+longPause+100*time.Millisecond {
				t.Errorf("took %v", took)
			}
		})
	}
}

func TestManifestWithAWrongSizeFailsNoPull(t *testing.T) {
	for _, size := range []int64{0, 1, 700 << 10, 20 << 20, 1 << 40} {
		bubble(t, fmt.Sprint(size), func(t *testing.T) {
			m, o := quick(), newOrigin(36<<20)
			o.rate = 12 << 20
			first, second := newMachine(t, m, memoryDir(t), nil), newMachine(t, m, memoryDir(t), nil)
			first.size, second.size = size, size
			first.pull(t, o)
			settled()
			second.pull(t, o)
		})
	}
}

func TestWrongObjectIsReplacedByWhoKeepsNoBlob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, o := quick(), newOrigin(2<<20)
		newMachine(t, m, memoryDir(t), nil).pull(t, o)
		settled()
		wrong := bytes.Clone(o.data)
		wrong[1<<20]++
		if err := m.Put(context.Background(), blobKey(o.digest), bytes.NewReader(wrong), store.Label{Digest: o.digest, Size: int64(len(wrong))}); err != nil {
			t.Fatal(err)
		}
		full := newMachineWith(t, m, memoryDir(t), blobcache.Config{MaxSize: blobcache.Limit{Bytes: 1 << 20}}, nil)
		if data, err := full.get(o); err == nil || len(data) == len(o.data) {
			t.Errorf("pulled %d bytes, %v", len(data), err)
		}
		full.pull(t, o)
	})
}

func TestPartsThatWereNotReadAreNotMadeABlobOf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, o := quick(), newOrigin(2<<20)
		o.rate = 512 << 10
		dead := newMachine(t, m, memoryDir(t), nil)
		go func() { _, _ = dead.get(o) }()
		time.Sleep(3 * time.Second)
		dead.reach.dead.Store(true)
		spoilt := bytes.Clone(o.data[:256<<10])
		spoilt[5]++
		put(t, m, partKey(o.digest, 0), spoilt)

		dir := memoryDir(t)
		before := newMachine(t, quick(), dir, nil) // which has had some of it from upstream
		go func() { _, _ = before.get(o) }()
		time.Sleep(time.Second)
		before.cache.Close()
		next := newMachine(t, m, dir, nil)
		next.pull(t, o)
		settled()
		if s := next.Stats(); s.TakenOver != 1 {
			t.Errorf("stats: %+v", s)
		}
		wantShared(t, m, o)
	})
}

func TestNobodyIsSentToAnObjectThatSomebodyElseHasPut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, o := quick(), newOrigin(1000)
		m.Signed = func(key string) string { return key }
		n := newMachine(t, m, memoryDir(t), nil)
		put(t, m, blobKey(o.digest), o.data[:500]) // without a digest
		n.upload(o.digest)                         // which finds that it is there
		settled()
		if url, ok := n.URL(t.Context(), repository, o.digest); ok {
			t.Errorf("sent to %s", url)
		}
	})
}
