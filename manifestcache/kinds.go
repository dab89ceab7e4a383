package manifestcache

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// The media types of manifests that image-spec has no names for.
const (
	typeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	typeDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	typeSchema1        = "application/vnd.docker.distribution.manifest.v1+json"
	typeSchema1Signed  = "application/vnd.docker.distribution.manifest.v1+prettyjws"
	typeArtifact       = "application/vnd.oci.artifact.manifest.v1+json"
	typeORASArtifact   = "application/vnd.cncf.oras.artifact.manifest.v1+json"
)

// kind is in which fields a manifest names others.
type kind uint8

const (
	other kind = iota // not known: in any of them
	image
	list
	artifact
	schema1
)

func kindOf(mediaType string) kind {
	switch mediaType {
	case ocispec.MediaTypeImageManifest, typeDockerManifest:
		return image
	case ocispec.MediaTypeImageIndex, typeDockerList:
		return list
	case typeArtifact, typeORASArtifact:
		return artifact
	case typeSchema1, typeSchema1Signed:
		return schema1
	default:
		return other
	}
}

// shared is the media type without the memory of a document that it is read from,
// if it is one of those that nearly all manifests have.
func shared(mediaType string) string {
	for _, known := range [...]string{ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex, typeDockerManifest, typeDockerList} {
		if mediaType == known {
			return known
		}
	}
	return mediaType
}

// names is what a manifest names, each once.
type names struct{ blobs, manifests []digest.Digest }

// named is a descriptor, of which only the name counts.
type named struct {
	Digest digest.Digest `json:"digest"`
	URLs   []string      `json:"urls"`
}

// namesOf lists what a manifest of some kind names. A registry looks at no other
// fields when it is given a manifest, and not for what is kept elsewhere, so that
// these may not give a right to anything; neither may any of a kind that it does
// not know. Of a large manifest, nothing is read.
func namesOf(k kind, body []byte) names {
	var doc struct {
		Config    named   `json:"config"`
		Layers    []named `json:"layers"`
		Blobs     []named `json:"blobs"`
		Manifests []named `json:"manifests"`
		FSLayers  []struct {
			BlobSum digest.Digest `json:"blobSum"`
		} `json:"fsLayers"`
	}
	if len(body) > maxBody || json.Unmarshal(body, &doc) != nil {
		return names{}
	}
	ofImage := append(doc.Layers, doc.Config)
	var fsLayers []named
	for _, l := range doc.FSLayers {
		fsLayers = append(fsLayers, named{Digest: l.BlobSum})
	}
	switch k {
	case image:
		return names{blobs: distinct(ofImage)}
	case list:
		return names{manifests: distinct(doc.Manifests)}
	case artifact:
		return names{blobs: distinct(doc.Blobs)}
	case schema1:
		return names{blobs: distinct(fsLayers)}
	default:
		return names{blobs: distinct(slices.Concat(ofImage, doc.Blobs, fsLayers)), manifests: distinct(doc.Manifests)}
	}
}

func distinct(all []named) (list []digest.Digest) {
	seen := make(map[digest.Digest]bool)
	for _, n := range all {
		if n.Digest.Validate() == nil && len(n.URLs) == 0 && !seen[n.Digest] {
			seen[n.Digest] = true
			list = append(list, n.Digest)
		}
	}
	return list
}

// has reports whether d is the digest of a manifest.
func has(d digest.Digest, mediaType string, body []byte) bool {
	if d.Algorithm().FromBytes(body) == d {
		return true
	}
	signed, ok := signedPart(mediaType, body)
	return ok && d.Algorithm().FromBytes(signed) == d
}

// canonicalDigest is the digest of a manifest that nobody has said one of.
func canonicalDigest(mediaType string, body []byte) digest.Digest {
	if signed, ok := signedPart(mediaType, body); ok {
		return digest.FromBytes(signed)
	}
	return digest.FromBytes(body)
}

// maxSignatures is how many signatures of a manifest must agree on what was signed.
// There is one, as a rule, and the first decides; but a document may have millions.
const maxSignatures = 16

// signedPart is what a signed manifest of Docker's schema 1 was before it was
// signed, which is what its digest is of: its first formatLength bytes and then
// formatTail, as its signatures say. Between these there must be the signatures
// and nothing else, for no digest covers it.
func signedPart(mediaType string, body []byte) (signed []byte, ok bool) {
	if mediaType != typeSchema1Signed {
		return nil, false
	}
	var doc struct {
		Signatures [maxSignatures]struct {
			Protected string `json:"protected"`
		} `json:"signatures"`
	}
	if json.Unmarshal(body, &doc) != nil {
		return nil, false
	}
	type format struct {
		Length int    `json:"formatLength"`
		Tail   string `json:"formatTail"`
	}
	var all format
	for i, s := range doc.Signatures {
		if i > 0 && s.Protected == "" {
			continue
		}
		var one format
		text, err := decodeBase64(s.Protected)
		if err != nil || json.Unmarshal(text, &one) != nil || i > 0 && one != all {
			return nil, false
		}
		all = one
	}
	tail, err := decodeBase64(all.Tail)
	if err != nil || all.Length <= 0 || all.Length > len(body) || !signaturesAlone(body[all.Length:]) {
		return nil, false
	}
	signed = slices.Concat(body[:all.Length], tail)
	return signed, json.Valid(signed)
}

// signaturesAlone reports whether rest, the end of a JSON object, adds signatures
// to it and nothing else.
func signaturesAlone(rest []byte) bool {
	rest, ok := bytes.CutPrefix(bytes.TrimSpace(rest), []byte(","))
	d := json.NewDecoder(bytes.NewReader(slices.Concat([]byte("{"), rest)))
	d.DisallowUnknownFields()
	var added struct {
		Signatures json.RawMessage `json:"signatures"`
	}
	if !ok || d.Decode(&added) != nil {
		return false
	}
	_, err := d.Token()
	return err == io.EOF
}

// decodeBase64 reads what JOSE (RFC 7515) has without padding, and some have with it.
func decodeBase64(s string) ([]byte, error) {
	return base64.RawURLEncoding.DecodeString(strings.TrimRight(s, "="))
}
