package manifestcache

import (
	"encoding/json"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// kind is how a manifest is read, which depends on its media type.
type kind uint8

const (
	unread kind = iota
	image
	list
	artifact
	schema1
)

func kindOf(mediaType string) kind {
	switch mediaType {
	case ocispec.MediaTypeImageManifest, "application/vnd.docker.distribution.manifest.v2+json":
		return image
	case ocispec.MediaTypeImageIndex, "application/vnd.docker.distribution.manifest.list.v2+json":
		return list
	case "application/vnd.oci.artifact.manifest.v1+json":
		return artifact
	case "application/vnd.docker.distribution.manifest.v1+json", "application/vnd.docker.distribution.manifest.v1+prettyjws":
		return schema1
	default:
		return unread
	}
}

// names is what a manifest names.
type names struct{ blobs, manifests []digest.Digest }

// named is a descriptor, of which only the name counts.
type named struct {
	Digest digest.Digest `json:"digest"`
	URLs   []string      `json:"urls"`
}

// namesOf lists what a manifest names, each once. That is a right to the blobs,
// and counts only in those places where a registry makes sure that they are in
// the repository, which depends on the media type and excludes what is kept
// elsewhere.
func namesOf(m *Manifest) names {
	var doc struct {
		Config    named   `json:"config"`
		Layers    []named `json:"layers"`
		Blobs     []named `json:"blobs"`
		Manifests []named `json:"manifests"`
		FSLayers  []struct {
			BlobSum digest.Digest `json:"blobSum"`
		} `json:"fsLayers"`
	}
	if m.Size > maxBody || json.Unmarshal(m.Body, &doc) != nil {
		return names{}
	}
	switch kindOf(m.MediaType) {
	case image:
		return names{blobs: once(append(doc.Layers, doc.Config))}
	case list:
		return names{manifests: once(doc.Manifests)}
	case artifact:
		return names{blobs: once(doc.Blobs)}
	case schema1:
		var blobs []named
		for _, l := range doc.FSLayers {
			blobs = append(blobs, named{Digest: l.BlobSum})
		}
		return names{blobs: once(blobs)}
	default:
		return names{}
	}
}

func once(all []named) (list []digest.Digest) {
	seen := make(map[digest.Digest]bool)
	for _, n := range all {
		if n.Digest.Validate() == nil && len(n.URLs) == 0 && !seen[n.Digest] {
			seen[n.Digest] = true
			list = append(list, n.Digest)
		}
	}
	return list
}
