package admin_test

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/zap"

	"larder/blobcache"
	"larder/handler/admin"
	"larder/handler/upstream"
	"larder/manifestcache"
)

// images is how many the large cache has.
const images = 100_000

// BenchmarkLargeCache asks about a cache of 100,000 images of three blobs each,
// two of them of their own, in 1,000 repositories.
func BenchmarkLargeCache(b *testing.B) {
	h := largeCache(b)
	ask(h, "GET", "/cache") // waits until all is known
	for _, bench := range []struct{ name, method, path string }{
		{"First", "GET", "/cache"},
		{"Thousand", "GET", "/cache?n=1000"},
		{"Middle", "GET", "/cache?last=0,docker.io/org/r5@sha256:" + strings.Repeat("f", 64)},
		{"Largest", "GET", "/cache?sort=size"},
		{"Repository", "GET", "/cache/org/r7"},
		{"Image", "GET", "/cache/org/r7:t7"},
		{"Why", "GET", "/why?ref=org/r7:t7"},
		{"Nothing", "POST", "/prune?dry-run=1&older=1h"},
		{"Everything", "POST", "/prune?dry-run=1&all=1"},
		{"Gone", "POST", "/prune?all=1"}, // so that the next time, with -benchtime 2x, there is nothing
	} {
		b.Run(bench.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if w := ask(h, bench.method, bench.path); w.Code != http.StatusOK {
					b.Fatalf("%d %s", w.Code, w.Body)
				}
			}
		})
	}
}

func largeCache(b *testing.B) http.Handler {
	b.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "larder")
	if err != nil {
		dir = b.TempDir()
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	base := blobFile(b, dir, "base")
	for i := range images {
		config, layer := blobFile(b, dir, fmt.Sprint("config", i)), blobFile(b, dir, fmt.Sprint("layer", i))
		body, err := json.Marshal(ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: []ocispec.Descriptor{base, layer}})
		if err != nil {
			b.Fatal(err)
		}
		d := digest.FromBytes(body)
		repository, tag := fmt.Sprintf("docker.io/org/r%d", i%1000), fmt.Sprintf("t%d", i)
		head := fmt.Sprintf(`{"mediaType":%q,"sum":%d,"size":%d}`, ocispec.MediaTypeImageManifest, crc32.ChecksumIEEE([]byte(ocispec.MediaTypeImageManifest)), len(body))
		write(b, dir, "manifests/sha256/"+d.Encoded()[:2]+"/"+d.Encoded(), head+"\n"+string(body))
		hash := digest.FromString(repository).Encoded()
		write(b, dir, "manifests/repositories/"+hash+"/sha256-"+d.Encoded(), ocispec.MediaTypeImageManifest)
		write(b, dir, "manifests/repositories/"+hash+"/name", repository)
		hash = digest.FromString(repository + ":" + tag).Encoded()
		write(b, dir, "manifests/tags/"+hash[:2]+"/"+hash, fmt.Sprintf(`{"reference":%q,"descriptor":{"digest":%q}}`, repository+":"+tag, d))
	}
	return openLarge(b, dir)
}

func blobFile(b *testing.B, dir, content string) ocispec.Descriptor {
	d := digest.FromString(content)
	write(b, dir, "blobs/sha256/"+d.Encoded()[:2]+"/"+d.Encoded(), content)
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: d, Size: int64(len(content))}
}

func write(b *testing.B, dir, name, content string) {
	b.Helper()
	file := filepath.Join(dir, name)
	err := os.WriteFile(file, []byte(content), 0o600)
	if os.IsNotExist(err) {
		if err = os.MkdirAll(filepath.Dir(file), 0o700); err == nil {
			err = os.WriteFile(file, []byte(content), 0o600)
		}
	}
	if err != nil {
		b.Fatal(err)
	}
}

func openLarge(b *testing.B, dir string) http.Handler {
	b.Helper()
	root := func(name string) *os.Root {
		r, err := os.OpenRoot(filepath.Join(dir, name))
		if err != nil {
			b.Fatal(err)
		}
		return r
	}
	list, err := upstream.ParseList("docker.io=http://127.0.0.1:1")
	if err != nil {
		b.Fatal(err)
	}
	upstreams, err := upstream.New(upstream.Config{Registries: list})
	if err != nil {
		b.Fatal(err)
	}
	blobs, err := blobcache.Open(root("blobs"), blobcache.Config{})
	if err != nil {
		b.Fatal(err)
	}
	manifests, err := manifestcache.Open(root("manifests"), manifestcache.Config{})
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(b.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = blobs.Run(ctx) })
	running.Go(func() { _ = manifests.Run(ctx) })
	b.Cleanup(func() {
		stop()
		running.Wait()
		blobs.Close()
		manifests.Close()
	})
	control := &admin.Control{
		Blobs: blobs, Manifests: manifests, Upstreams: upstreams, Denied: func(string) string { return "" }, Logger: zap.NewNop(),
	}
	metrics := admin.NewMetrics("1")
	return admin.New(admin.Config{Metrics: metrics, Ready: func() (string, error) { return "", nil }, Control: control, Hosts: []string{"example.com"}, Protect: func(next http.Handler) http.Handler { return next }})
}
