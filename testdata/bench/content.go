package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
)

// manifestType is the media type of all manifests here.
const manifestType = "application/vnd.oci.image.manifest.v1+json"

// mapped is from what size on a blob's bytes are those of its file, mapped into
// memory, and not a copy.
const mapped = 1 << 20

// content is what there is to pull in one case: a tree of files at the paths of
// the registry's API. Upstream and the static nginx serve it. The bytes follow
// from the seed, and are the same in each run.
type content struct {
	dir  string
	rand *rand.ChaCha8
	maps [][]byte
	size int64 // of all objects
}

func newContent(dir string) *content {
	return &content{dir: dir, rand: rand.NewChaCha8([32]byte{'b', 'e', 'n', 'c', 'h'})}
}

// object is a blob or a manifest.
type object struct {
	path   string // of the API
	digest string
	data   []byte
}

// blob adds a blob of random bytes to the repository.
func (c *content) blob(repository string, size int64) (object, error) {
	data := make([]byte, size)
	c.rand.Read(data)
	o, err := c.add(repository, "blobs", data)
	if err != nil || size < mapped {
		return o, err
	}
	f, err := os.Open(filepath.Join(c.dir, o.path))
	if err != nil {
		return object{}, err
	}
	defer f.Close()
	o.data, err = syscall.Mmap(int(f.Fd()), 0, int(size), syscall.PROT_READ, syscall.MAP_SHARED|syscall.MAP_POPULATE)
	if err != nil {
		return object{}, fmt.Errorf("map %s: %w", f.Name(), err)
	}
	c.maps = append(c.maps, o.data)
	return o, nil
}

// blobs adds n blobs of one size.
func (c *content) blobs(repository string, n int, size int64) ([]object, error) {
	all := make([]object, n)
	for i := range all {
		var err error
		if all[i], err = c.blob(repository, size); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// manifest adds an image of these blobs, the first of which is its config, and
// lets the tag point at it.
func (c *content) manifest(repository, tag string, blobs []object) (byTag, byDigest object, err error) {
	type descriptor struct {
		MediaType string `json:"mediaType"`
		Digest    string `json:"digest"`
		Size      int    `json:"size"`
	}
	image := struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Config        descriptor   `json:"config"`
		Layers        []descriptor `json:"layers"`
	}{SchemaVersion: 2, MediaType: manifestType}
	for i, b := range blobs {
		if i == 0 {
			image.Config = descriptor{"application/vnd.oci.image.config.v1+json", b.digest, len(b.data)}
			continue
		}
		image.Layers = append(image.Layers, descriptor{"application/vnd.oci.image.layer.v1.tar+gzip", b.digest, len(b.data)})
	}
	data, err := json.MarshalIndent(image, "", "  ")
	if err != nil {
		return object{}, object{}, err
	}
	if byDigest, err = c.add(repository, "manifests", data); err != nil {
		return object{}, object{}, err
	}
	byTag = byDigest
	byTag.path = "/v2/" + repository + "/manifests/" + tag
	return byTag, byDigest, os.Symlink(byDigest.digest, filepath.Join(c.dir, byTag.path))
}

// add writes one file.
func (c *content) add(repository, kind string, data []byte) (object, error) {
	sum := sha256.Sum256(data)
	o := object{digest: "sha256:" + hex.EncodeToString(sum[:]), data: data}
	c.size += int64(len(data))
	o.path = "/v2/" + repository + "/" + kind + "/" + o.digest
	name := filepath.Join(c.dir, o.path)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return object{}, err
	}
	return o, os.WriteFile(name, data, 0o644)
}

// remove gives back the memory and the disk. No object's data may be used
// after that.
func (c *content) remove() {
	for _, m := range c.maps {
		syscall.Munmap(m)
	}
	os.RemoveAll(c.dir)
}
