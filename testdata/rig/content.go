// Package rig is what benchmark programs have in common: an upstream whose speed and
// distance can be set, clients that check every byte, processes and what they take.
package rig

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

// Content is what there is to pull in one case: a tree of files at the paths of
// the registry's API. Upstream and the static nginx serve it. The bytes follow
// from the seed, and are the same in each run.
type Content struct {
	Dir  string
	rand *rand.ChaCha8
	maps [][]byte
	Size int64 // of all objects
}

// NewContent is empty, and its tree will be in dir.
func NewContent(dir string) *Content {
	return &Content{Dir: dir, rand: rand.NewChaCha8([32]byte{'b', 'e', 'n', 'c', 'h'})}
}

// Object is a blob or a manifest.
type Object struct {
	path   string // of the API
	Digest string
	data   []byte
}

// Blob adds a blob of random bytes to the repository.
func (c *Content) Blob(repository string, size int64) (Object, error) {
	data := make([]byte, size)
	c.rand.Read(data)
	o, err := c.add(repository, "blobs", data)
	if err != nil || size < mapped {
		return o, err
	}
	f, err := os.Open(filepath.Join(c.Dir, o.path))
	if err != nil {
		return Object{}, err
	}
	defer f.Close()
	o.data, err = syscall.Mmap(int(f.Fd()), 0, int(size), syscall.PROT_READ, syscall.MAP_SHARED|syscall.MAP_POPULATE)
	if err != nil {
		return Object{}, fmt.Errorf("map %s: %w", f.Name(), err)
	}
	c.maps = append(c.maps, o.data)
	return o, nil
}

// Blobs adds n blobs of one size.
func (c *Content) Blobs(repository string, n int, size int64) ([]Object, error) {
	all := make([]Object, n)
	for i := range all {
		var err error
		if all[i], err = c.Blob(repository, size); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// Manifest adds an image of these blobs, the first of which is its config, and
// lets the tag point at it.
func (c *Content) Manifest(repository, tag string, blobs []Object) (byTag, byDigest Object, err error) {
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
			image.Config = descriptor{"application/vnd.oci.image.config.v1+json", b.Digest, len(b.data)}
			continue
		}
		image.Layers = append(image.Layers, descriptor{"application/vnd.oci.image.layer.v1.tar+gzip", b.Digest, len(b.data)})
	}
	data, err := json.MarshalIndent(image, "", "  ")
	if err != nil {
		return Object{}, Object{}, err
	}
	if byDigest, err = c.add(repository, "manifests", data); err != nil {
		return Object{}, Object{}, err
	}
	byTag = byDigest
	byTag.path = "/v2/" + repository + "/manifests/" + tag
	return byTag, byDigest, os.Symlink(byDigest.Digest, filepath.Join(c.Dir, byTag.path))
}

// add writes one file.
func (c *Content) add(repository, kind string, data []byte) (Object, error) {
	sum := sha256.Sum256(data)
	o := Object{Digest: "sha256:" + hex.EncodeToString(sum[:]), data: data}
	c.Size += int64(len(data))
	o.path = "/v2/" + repository + "/" + kind + "/" + o.Digest
	name := filepath.Join(c.Dir, o.path)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return Object{}, err
	}
	return o, os.WriteFile(name, data, 0o644)
}

// Remove gives back the memory and the disk. No object's data may be used
// after that.
func (c *Content) Remove() {
	for _, m := range c.maps {
		syscall.Munmap(m)
	}
	os.RemoveAll(c.Dir)
}
