package shared

import (
	"bytes"
	"testing"
	"time"

	"larder/handler/shared/store"
	"larder/handler/shared/storetest"
	"larder/handler/upstream/upstreamtest"
	"larder/manifestcache"
)

func TestTagsAndManifestsOnRealStores(t *testing.T) {
	places := map[string]func(t *testing.T) (url string, c store.Credentials){
		"file": func(t *testing.T) (string, store.Credentials) { return "file://" + t.TempDir(), store.Credentials{} },
		"S3": func(t *testing.T) (string, store.Credentials) {
			server := storetest.Gateway(t, upstreamtest.FreeAddr(t))
			return server.WithPrefix("fleet"), server.Credentials
		},
	}
	for name, place := range places {
		t.Run(name, func(t *testing.T) {
			url, credentials := place(t)
			open := func() store.Store {
				s, err := store.Open(url, credentials)
				if err != nil {
					t.Fatal(err)
				}
				return s
			}
			up := newRegistry()
			another := func() *larder {
				return start(t, nil, up, time.Hour, func(c *Config, _ *manifestcache.Config) { c.Store = open() })
			}
			wantAll := func(l *larder, outcome manifestcache.Outcome, docs ...document) {
				t.Helper()
				for i, doc := range docs {
					reference := doc.digest.String()
					if i == 0 {
						reference = "1"
					}
					if m, err := l.pull(reference); err != nil || m.Outcome != outcome || !bytes.Equal(m.Body, doc.body) || m.MediaType != doc.mediaType {
						t.Errorf("%s: %+v, %v; want %v", reference, m, err, outcome)
					}
				}
			}
			img := up.push(newImage("1"))
			index := up.push(newIndex(img), "1")
			first := another()
			wantAll(first, miss, index, img)
			look := open()
			defer look.Close()
			written := func(key string) func() bool {
				return func() bool { _, err := look.Head(t.Context(), key); return err == nil }
			}
			eventually(t, "shared", written(rightKey(alpine, img.digest))) // last of all
			eventually(t, "shared", written(tagKey(alpine, "1")))
			up.stop(errDown)
			wantAll(another(), shared, index, img)

			wrong := encodeManifest(img.mediaType, newImage("2").body)
			if err := look.Put(t.Context(), manifestKey(img.digest), bytes.NewReader(wrong), store.Label{Size: int64(len(wrong))}); err != nil {
				t.Fatal(err)
			}
			up.stop(nil)
			second := another()
			if m, err := second.pull(img.digest.String()); err != nil || m.Outcome != miss || !bytes.Equal(m.Body, img.body) {
				t.Errorf("%+v, %v; want what upstream has", m, err)
			}
			eventually(t, "replaced", func() bool {
				_, body, ok := second.tier.Manifest(t.Context(), alpine, img.digest)
				return ok && bytes.Equal(body, img.body)
			})
			first.tier.Gone(alpine, "1")
			eventually(t, "removed", func() bool { return !written(tagKey(alpine, "1"))() })
		})
	}
}
