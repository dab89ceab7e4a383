package shared

import (
	"bytes"
	"os"
	"sync"
	"testing"
	"time"

	"larder/blobcache"
	"larder/handler/shared/store"
	"larder/handler/shared/storetest"
	"larder/handler/upstream/upstreamtest"
)

// eventually waits until what is done in the background is done.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.After(time.Minute); !done(); {
		select {
		case <-deadline:
			t.Fatalf("not %s after a minute", what)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// realMachine is a node on a real store.
func realMachine(t *testing.T, s store.Store) *machine {
	t.Helper()
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	n := &machine{reach: &reach{Store: s}, size: -1}
	n.cache, err = blobcache.Open(root, blobcache.Config{Connections: 4})
	if err != nil {
		t.Fatal(err)
	}
	n.Tier, n.logs = node(t, nil, func(c *Config) {
		c.Store, c.Open = n.reach, n.open
		c.Timeout = 20 * time.Second // a busy machine is no slow store
	})
	n.sizes = sizes{part: store.MinPart, leased: 1 << 20}
	t.Cleanup(func() { n.cache.Close() })
	return n
}

func TestFleetOnRealStores(t *testing.T) {
	stores := map[string]func(t *testing.T) func() store.Store{
		"file": func(t *testing.T) func() store.Store {
			dir := t.TempDir()
			return func() store.Store {
				s, err := store.Open("file://"+dir, store.Credentials{})
				if err != nil {
					t.Fatal(err)
				}
				return s
			}
		},
		"S3": func(t *testing.T) func() store.Store {
			server := storetest.Gateway(t, upstreamtest.FreeAddr(t))
			return func() store.Store {
				s, err := store.Open(server.WithPrefix("fleet"), server.Credentials)
				if err != nil {
					t.Fatal(err)
				}
				return s
			}
		},
	}
	for name, open := range stores {
		t.Run(name, func(t *testing.T) {
			open := open(t)
			o := newOrigin(12<<20 + 7)
			o.rate = 12 << 20
			nodes := []*machine{realMachine(t, open()), realMachine(t, open()), realMachine(t, open()), realMachine(t, open())}
			pullAll(t, nodes, o)
			o.wantSent(t, int64(len(o.data)))
			look := open()
			defer look.Close()
			eventually(t, "shared", func() bool {
				info, err := look.Head(t.Context(), blobKey(o.digest))
				return err == nil && info.Digest == o.digest && info.Size == int64(len(o.data))
			})
			eventually(t, "tidied up", func() bool {
				for _, prefix := range []string{partsPrefix, leasesPrefix} {
					for item, err := range look.List(t.Context(), prefix) {
						t.Log(item.Key, err)
						return false
					}
				}
				return true
			})
			o.down.Store(true)
			realMachine(t, open()).pull(t, o)
			o.down.Store(false)

			spoilt := bytes.Clone(o.data)
			spoilt[len(spoilt)/2]++
			label := store.Label{Digest: o.digest, Size: int64(len(spoilt))}
			if err := look.Put(t.Context(), blobKey(o.digest), bytes.NewReader(spoilt), label); err != nil {
				t.Fatal(err)
			}
			n := realMachine(t, open())
			if data, err := n.get(o); err == nil {
				t.Errorf("served %d wrong bytes", len(data))
			}
			n.pull(t, o)
			eventually(t, "replaced", func() bool { return n.Stats().Written >= int64(len(o.data)) && n.Stats().Leases == 0 })
			o.down.Store(true)
			realMachine(t, open()).pull(t, o)
		})
	}
}

func TestRealStoreThatStopsInMidPull(t *testing.T) {
	server := storetest.Gateway(t, upstreamtest.FreeAddr(t))
	o := newOrigin(24 << 20)
	o.rate = 12 << 20
	n := realMachine(t, server.Open())
	n.pull(t, o)
	eventually(t, "shared", func() bool { return n.Stats().Leases == 0 })
	sent, _ := o.traffic()
	others := []*machine{realMachine(t, server.Open()), realMachine(t, server.Open())}
	next := []*origin{newOrigin(20 << 20), newOrigin(21 << 20)}
	var all sync.WaitGroup
	for i, n := range others {
		next[i].rate = 20 << 20
		all.Go(func() { n.pull(t, next[i]) })
	}
	eventually(t, "in the middle", func() bool { return others[0].Stats().Written > 0 && others[1].Stats().Written > 0 })
	server.Stop()
	all.Wait()
	for i, o := range next {
		if sent, again := o.traffic(); again != 0 || sent != int64(len(o.data)) {
			t.Errorf("blob %d: upstream has sent %d of %d bytes, %d again", i, sent, len(o.data), again)
		}
	}
	cold := realMachine(t, server.Open())
	if took := cold.pull(t, o); took > timeout+5*time.Second {
		t.Errorf("a store that is stopped cost %v", took)
	}
	if after, _ := o.traffic(); after != 2*sent {
		t.Errorf("upstream has sent %d bytes more, want %d", after-sent, sent)
	}
}
