package upstreamtest

import (
	"bytes"
	_ "crypto/sha256" // the digest algorithms, for every importer
	_ "crypto/sha512"
	"encoding/binary"
	"encoding/json"
	"io"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// contents is what one repository holds.
type contents struct {
	blobs     map[digest.Digest]blob
	manifests map[digest.Digest]manifest
	tags      map[string]digest.Digest

	signatures map[digest.Digest][]json.RawMessage // of the extension, by manifest
}

type blob struct {
	size    int64
	content io.ReaderAt
}

type manifest struct {
	mediaType string
	body      []byte
	refers    ocispec.Manifest // what it says of a subject
}

// An Image is what AddImage made.
type Image struct {
	Manifest digest.Digest
	Body     []byte // of the manifest
	Config   ocispec.Descriptor
	Layers   []ocispec.Descriptor
}

// change calls do with the repository of this name, new if need be, and mu held.
func (r *Registry) change(name string, do func(*contents)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	repo := r.repositories[name]
	if repo == nil {
		repo = &contents{
			blobs:     make(map[digest.Digest]blob),
			manifests: make(map[digest.Digest]manifest),
			tags:      make(map[string]digest.Digest),

			signatures: make(map[digest.Digest][]json.RawMessage),
		}
		r.repositories[name] = repo
	}
	do(repo)
}

// AddBlob adds data to a repository under its sha256 digest. It keeps data, not a copy.
func (r *Registry) AddBlob(repository string, data []byte) digest.Digest {
	return r.AddBlobWith(digest.SHA256, repository, data)
}

// AddBlobWith is AddBlob with another digest algorithm.
func (r *Registry) AddBlobWith(algorithm digest.Algorithm, repository string, data []byte) digest.Digest {
	d := algorithm.FromBytes(data)
	r.AddReader(repository, d, int64(len(data)), bytes.NewReader(data))
	return d
}

// AddReader adds a blob that is read from content when asked for: one that is too large for
// memory, or one that is not what its digest d says.
func (r *Registry) AddReader(repository string, d digest.Digest, size int64, content io.ReaderAt) {
	r.change(repository, func(repo *contents) { repo.blobs[d] = blob{size, content} })
}

// AddManifest adds body under its sha256 digest and lets tag mean it; tag "" is no tag. The
// body may be anything, and is served with exactly this media type.
func (r *Registry) AddManifest(repository, tag, mediaType string, body []byte) digest.Digest {
	return r.AddManifestWith(digest.SHA256, repository, tag, mediaType, body)
}

// AddManifestWith is AddManifest with another digest algorithm.
func (r *Registry) AddManifestWith(algorithm digest.Algorithm, repository, tag, mediaType string, body []byte) digest.Digest {
	d := algorithm.FromBytes(body)
	r.AddManifestAs(repository, tag, d, mediaType, body)
	return d
}

// AddManifestAs is AddManifest under a digest that is not the body's: of a signed manifest
// of schema 1, say.
func (r *Registry) AddManifestAs(repository, tag string, d digest.Digest, mediaType string, body []byte) {
	m := manifest{mediaType: mediaType, body: body}
	_ = json.Unmarshal(body, &m.refers) // anything may be there
	r.change(repository, func(repo *contents) {
		repo.manifests[d] = m
		if tag != "" {
			repo.tags[tag] = d
		}
	})
}

// AddImage adds an OCI image of these layers, with a config, and lets tag mean it; tag "" is
// no tag. The same layers make the same image.
func (r *Registry) AddImage(repository, tag string, layers ...[]byte) Image {
	var img Image
	config := ocispec.Image{
		Platform: ocispec.Platform{Architecture: "amd64", OS: "linux"},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{}},
	}
	img.Layers = []ocispec.Descriptor{}
	for _, data := range layers {
		d := r.AddBlob(repository, data)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, d)
		img.Layers = append(img.Layers, ocispec.Descriptor{
			MediaType: ocispec.MediaTypeImageLayer, Digest: d, Size: int64(len(data)),
		})
	}
	body := r.marshal(config)
	img.Config = ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageConfig, Digest: r.AddBlob(repository, body), Size: int64(len(body)),
	}
	img.Body = r.marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    img.Config,
		Layers:    img.Layers,
	})
	img.Manifest = r.AddManifest(repository, tag, ocispec.MediaTypeImageManifest, img.Body)
	return img
}

func (r *Registry) marshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		r.tb.Fatalf("upstreamtest: %v", err)
	}
	return b
}

// Delete removes a tag (the manifest stays), or the manifest of a digest with its tags, or
// the blob of a digest.
func (r *Registry) Delete(repository, reference string) {
	d := digest.Digest(reference)
	r.change(repository, func(repo *contents) {
		delete(repo.tags, reference)
		delete(repo.manifests, d)
		delete(repo.blobs, d)
		for tag, meant := range repo.tags {
			if meant == d {
				delete(repo.tags, tag)
			}
		}
	})
}

// Seeded returns size bytes that look random and depend on seed alone. It holds none of them,
// so it suits AddReader; its Read (io.ReadAll, digest.FromReader) starts at the front.
func Seeded(seed uint64, size int64) *io.SectionReader {
	return io.NewSectionReader(seeded(seed), 0, size)
}

// seeded is an endless content: word i is the i-th output of splitmix64.
type seeded uint64

func (s seeded) ReadAt(p []byte, off int64) (int, error) {
	n := len(p)
	var word [8]byte
	for len(p) > 0 {
		z := uint64(s) + (uint64(off)/8+1)*0x9e3779b97f4a7c15
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		z ^= z >> 31
		if off%8 == 0 && len(p) >= 8 {
			binary.LittleEndian.PutUint64(p, z)
			p, off = p[8:], off+8
			continue
		}
		binary.LittleEndian.PutUint64(word[:], z)
		m := copy(p, word[off%8:])
		p, off = p[m:], off+int64(m)
	}
	return n, nil
}
