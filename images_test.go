package main

import (
	"archive/tar"
	"bytes"
	"crypto/rand"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// greeting is what the bootable image prints.
const greeting = "hello from larder\n"

// helloBinary is a static program that prints the greeting.
var helloBinary = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "hello")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	binary := filepath.Join(dir, "hello")
	cmd := exec.Command("go", "build", "-buildvcs=false", "-ldflags=-s -w", "-o", binary, "./testdata/hello")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off")
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		return nil, err
	}
	return os.ReadFile(binary)
})

// layeredImage is an image of n layers that unpack.
func layeredImage(t *testing.T, n int) v1.Image {
	t.Helper()
	var layers []v1.Layer
	for range n {
		layers = append(layers, randomLayer(t, 64<<10, types.DockerLayer))
	}
	return newImage(t, layers...)
}

// flatImage is an image of one blob of size random bytes, which does not unpack.
func flatImage(t *testing.T, size int) v1.Image {
	t.Helper()
	content := make([]byte, size)
	rand.Read(content)
	return newImage(t, static.NewLayer(content, types.DockerUncompressedLayer))
}

// bootableImage is an image that prints the greeting, with Docker's media types.
func bootableImage(t *testing.T) v1.Image {
	t.Helper()
	return newImage(t, randomLayer(t, 256<<10, types.DockerLayer), helloLayer(t, types.DockerLayer))
}

// multiArchIndex is an index of a bootable image for this architecture and one of
// some other, with OCI's media types.
func multiArchIndex(t *testing.T) v1.ImageIndex {
	t.Helper()
	other := "arm64"
	if runtime.GOARCH == other {
		other = "amd64"
	}
	here := ociImage(newImage(t, helloLayer(t, types.OCILayer), randomLayer(t, 128<<10, types.OCILayer)))
	there := ociImage(imageFor(t, other, randomLayer(t, 128<<10, types.OCILayer)))
	index := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: there, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: other}}},
		mutate.IndexAddendum{Add: here, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}}},
	)
	return mutate.IndexMediaType(index, types.OCIImageIndex)
}

// newImage is made of layers for this architecture.
func newImage(t *testing.T, layers ...v1.Layer) v1.Image {
	t.Helper()
	return imageFor(t, runtime.GOARCH, layers...)
}

// imageFor is made of layers and runs /hello.
func imageFor(t *testing.T, architecture string, layers ...v1.Layer) v1.Image {
	t.Helper()
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{
		OS:           "linux",
		Architecture: architecture,
		RootFS:       v1.RootFS{Type: "layers"},
		Config:       v1.Config{Cmd: []string{"/hello"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if img, err = mutate.AppendLayers(img, layers...); err != nil {
		t.Fatal(err)
	}
	return img
}

func ociImage(img v1.Image) v1.Image {
	return mutate.ConfigMediaType(mutate.MediaType(img, types.OCIManifestSchema1), types.OCIConfigJSON)
}

func randomLayer(t *testing.T, size int64, mediaType types.MediaType) v1.Layer {
	t.Helper()
	layer, err := random.Layer(size, mediaType)
	if err != nil {
		t.Fatal(err)
	}
	return layer
}

func helloLayer(t *testing.T, mediaType types.MediaType) v1.Layer {
	t.Helper()
	requireProgram(t, "go")
	binary, err := helloBinary()
	if err != nil {
		t.Fatalf("build hello: %v", err)
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	if err := w.WriteHeader(&tar.Header{Name: "hello", Mode: 0o755, Size: int64(len(binary))}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(binary); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil }
	layer, err := tarball.LayerFromOpener(open, tarball.WithMediaType(mediaType))
	if err != nil {
		t.Fatal(err)
	}
	return layer
}

// digestOf is the digest that reference@digest takes.
func digestOf(t *testing.T, what interface{ Digest() (v1.Hash, error) }) string {
	t.Helper()
	h, err := what.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return h.String()
}

// layerOf is the digest and the size of an image's first layer.
func layerOf(t *testing.T, img v1.Image) (d string, size int64) {
	t.Helper()
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	return m.Layers[0].Digest.String(), m.Layers[0].Size
}
