package manifestcache

import (
	"encoding/json"

	"github.com/opencontainers/go-digest"
)

// BlobSize is how large the blob d is by a manifest that names it, or -1 if none
// that is here says so. Nothing has checked that it is true.
func (c *Cache) BlobSize(d digest.Digest) int64 {
	for _, naming := range c.Naming(d) {
		m := c.Peek(naming)
		if m == nil {
			continue
		}
		if size, ok := sizeIn(m.Body, d); ok {
			return size
		}
	}
	return -1
}

// sizeIn is the size that a manifest gives with the name of a blob.
func sizeIn(body []byte, d digest.Digest) (int64, bool) {
	type sized struct {
		Digest digest.Digest `json:"digest"`
		Size   *int64        `json:"size"`
	}
	var doc struct {
		Config sized   `json:"config"`
		Layers []sized `json:"layers"`
		Blobs  []sized `json:"blobs"`
	}
	if json.Unmarshal(body, &doc) != nil {
		return 0, false
	}
	for _, one := range append(append(doc.Layers, doc.Blobs...), doc.Config) {
		if one.Digest == d && one.Size != nil && *one.Size >= 0 {
			return *one.Size, true
		}
	}
	return 0, false
}
