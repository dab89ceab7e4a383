package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"larder/handler/upstream/upstreamtest"
)

// generator fills one repository with one of everything.
type generator struct {
	t    *testing.T
	reg  *upstreamtest.Registry
	name string
}

// generateRegistry has in one repository all that the OCI specifications allow, and
// what Docker's have left.
func generateRegistry(t *testing.T, name string) *upstreamtest.Registry {
	t.Helper()
	reg := upstreamtest.New(t)
	reg.EnableReferrers()
	reg.EnableSignatures()
	reg.SetPageSize(5)
	for _, algorithm := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		g := &generator{t, reg, name}
		g.fill(algorithm)
	}
	return reg
}

func (g *generator) fill(a digest.Algorithm) {
	image := g.image(a, "image-"+string(a), g.blob(a, 100_000), g.blob(a, 0), g.blob(a, 1), g.blob(a, 70_000))
	other := g.image(a, "", g.blob(a, 10))
	inner := g.index(a, "", image)
	outer := g.index(a, "nested-"+string(a), inner, other, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: a.FromString("not there"), Size: 9})
	g.add(a, "docker-list-"+string(a), "application/vnd.docker.distribution.manifest.list.v2+json", map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.list.v2+json", "manifests": []ocispec.Descriptor{other},
	})
	// An index of layers, as BuildKit's cache was.
	g.index(a, "cache-"+string(a), g.blob(a, 5000))
	// A manifest of 4 MiB.
	g.manifest(a, "large-"+string(a), ocispec.Manifest{
		MediaType: ocispec.MediaTypeImageManifest, Config: g.empty(a), Layers: []ocispec.Descriptor{},
		Annotations: map[string]string{"large": strings.Repeat("x", 4<<20)},
	})
	g.add(a, "unheard-of-"+string(a), "application/vnd.unheard-of.v1+json", map[string]any{"layers": []ocispec.Descriptor{g.blob(a, 2000)}, "é": "\u00e9\u0000"})
	g.reg.AddManifestWith(a, g.name, "binary-"+string(a), "application/vnd.unheard-of.v1+cbor", []byte("\xa1\x00\xff"))
	g.schema1(a)
	for _, subject := range []ocispec.Descriptor{image, outer} {
		for i := range 7 { // more than a page
			g.artifact(a, fmt.Sprintf("application/vnd.example.%d", i%3), subject, g.blob(a, 3000+i))
		}
		signature := g.artifact(a, "application/vnd.cncf.notary.signature", subject, g.blob(a, 2100))
		g.artifact(a, "application/vnd.example.of-a-signature", signature) // referrers have referrers
		g.add(a, "", "application/vnd.oci.artifact.manifest.v1+json", map[string]any{
			"mediaType": "application/vnd.oci.artifact.manifest.v1+json", "artifactType": "a/b", "blobs": []ocispec.Descriptor{g.blob(a, 77)}, "subject": subject,
		})
		g.cosign(a, subject)
	}
	// What is signed need not be there yet.
	g.artifact(a, "application/vnd.example.early", ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: a.FromString("to come"), Size: 7})
	for i := range 12 {
		g.reg.AddManifestWith(a, g.name, fmt.Sprintf("v%s.%d_x", a[3:], i), ocispec.MediaTypeImageManifest, g.marshal(map[string]any{"schemaVersion": 2, "n": i}))
	}
	g.reg.AddSignature(g.name, image.Digest, []byte("a simple signature"))
}

// blob is one of n bytes that nothing else has, unless it has none.
func (g *generator) blob(a digest.Algorithm, n int) ocispec.Descriptor {
	data := make([]byte, n)
	if _, err := upstreamtest.Seeded(uint64(n), int64(n)).Read(data); err != nil && n > 0 {
		g.t.Fatal(err)
	}
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: g.reg.AddBlobWith(a, g.name, data), Size: int64(n)}
}

// empty is the empty config.
func (g *generator) empty(a digest.Algorithm) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeEmptyJSON, Digest: g.reg.AddBlobWith(a, g.name, []byte("{}")), Size: 2}
}

func (g *generator) marshal(v any) []byte {
	g.t.Helper()
	body, err := json.Marshal(v)
	if err != nil {
		g.t.Fatal(err)
	}
	return body
}

func (g *generator) add(a digest.Algorithm, tag, mediaType string, v any) ocispec.Descriptor {
	g.t.Helper()
	body := g.marshal(v)
	return ocispec.Descriptor{MediaType: mediaType, Digest: g.reg.AddManifestWith(a, g.name, tag, mediaType, body), Size: int64(len(body))}
}

func (g *generator) manifest(a digest.Algorithm, tag string, m ocispec.Manifest) ocispec.Descriptor {
	g.t.Helper()
	m.Versioned = specs.Versioned{SchemaVersion: 2}
	return g.add(a, tag, m.MediaType, m)
}

func (g *generator) image(a digest.Algorithm, tag string, layers ...ocispec.Descriptor) ocispec.Descriptor {
	g.t.Helper()
	config := g.blob(a, 321)
	config.MediaType = ocispec.MediaTypeImageConfig
	return g.manifest(a, tag, ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: layers})
}

func (g *generator) index(a digest.Algorithm, tag string, children ...ocispec.Descriptor) ocispec.Descriptor {
	g.t.Helper()
	return g.add(a, tag, ocispec.MediaTypeImageIndex, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: children,
	})
}

// artifact refers to a subject, with the empty config.
func (g *generator) artifact(a digest.Algorithm, artifactType string, subject ocispec.Descriptor, layers ...ocispec.Descriptor) ocispec.Descriptor {
	g.t.Helper()
	if len(layers) == 0 {
		layers = []ocispec.Descriptor{g.empty(a)}
	}
	return g.manifest(a, "", ocispec.Manifest{
		MediaType: ocispec.MediaTypeImageManifest, ArtifactType: artifactType, Config: g.empty(a), Layers: layers, Subject: &subject,
	})
}

// cosign adds the tags that cosign has for a signature, an attestation and an SBOM,
// and the fallback tag of a registry without referrers.
func (g *generator) cosign(a digest.Algorithm, subject ocispec.Descriptor) {
	g.t.Helper()
	tag := string(a) + "-" + subject.Digest.Encoded()[:64]
	for i, suffix := range []string{".sig", ".att", ".sbom"} {
		g.image(a, tag+suffix, g.blob(a, 400+i))
	}
	g.index(a, tag, g.artifact(a, "application/vnd.example.fallback", subject))
}

// schema1 adds a signed manifest, whose digest is that of what was signed.
func (g *generator) schema1(a digest.Algorithm) {
	const tail = "\n}"
	begin := fmt.Sprintf("{\n   \"schemaVersion\": 1,\n   \"fsLayers\": [{\"blobSum\": %q}]", g.blob(a, 999).Digest)
	protected := base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"formatLength":%d,"formatTail":"Cn0"}`, len(begin)))
	body := fmt.Sprintf("%s,\n   \"signatures\": [{\"signature\": \"s\", \"protected\": %q}]%s", begin, protected, tail)
	g.reg.AddManifestAs(g.name, "schema1-"+string(a), a.FromString(begin+tail), "application/vnd.docker.distribution.manifest.v1+prettyjws", []byte(body))
}
