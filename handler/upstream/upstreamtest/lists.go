package upstreamtest

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// EnableReferrers switches on the referrers API, which otherwise is 404.
func (r *Registry) EnableReferrers() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.referrers = true
}

// EnableSignatures switches on OpenShift's signature extension, and the header where the
// registry is pinged that says so. Otherwise it is 404.
func (r *Registry) EnableSignatures() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.signatures = true
}

// SetPageSize makes lists of tags and referrers have n entries on a page, at most.
func (r *Registry) SetPageSize(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.page = n
}

// AddSignature adds a signature of a manifest, for the signature extension.
func (r *Registry) AddSignature(repository string, d digest.Digest, signature []byte) {
	body := r.marshal(struct {
		SchemaVersion int    `json:"schemaVersion"`
		Name          string `json:"name"`
		Type          string `json:"type"`
		Content       []byte `json:"content"`
	}{2, d.String() + "@" + digest.FromBytes(signature).Encoded()[:32], "atomic", signature})
	r.change(repository, func(repo *contents) { repo.signatures[d] = append(repo.signatures[d], body) })
}

func (r *Registry) announce(h http.Header) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.signatures {
		h.Set("X-Registry-Supports-Signatures", "1")
	}
}

func (r *Registry) pageSize() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.page
}

func (r *Registry) serveTags(w http.ResponseWriter, req *http.Request, name string) {
	var tags []string
	if !r.look(w, req, name, func(repo *contents) { tags = slices.Sorted(maps.Keys(repo.tags)) }) {
		return
	}
	tags, ok := page(w, req, r.pageSize(), tags, func(tag string) string { return tag })
	if !ok {
		return
	}
	writeJSON(w, req, http.StatusOK, "application/json", struct {
		Name string   `json:"name"`
		Tags []string `json:"tags"`
	}{name, append([]string{}, tags...)})
}

// page cuts out of a sorted list what the query's n and last ask for, no more than limit
// (0: all), and links to what is next.
func page[T any](w http.ResponseWriter, req *http.Request, limit int, list []T, name func(T) string) ([]T, bool) {
	query := req.URL.Query()
	if last := query.Get("last"); last != "" {
		i, found := slices.BinarySearchFunc(list, last, func(e T, last string) int { return cmp.Compare(name(e), last) })
		if found {
			i++
		}
		list = list[i:]
	}
	n := cmp.Or(limit, len(list))
	if query.Has("n") {
		asked, err := strconv.Atoi(query.Get("n"))
		if err != nil || asked < 0 {
			writeError(w, req, http.StatusBadRequest, "PAGINATION_NUMBER_INVALID", "n is not a number")
			return nil, false
		}
		n = min(n, asked)
	}
	if 0 < n && n < len(list) {
		query.Set("last", name(list[n-1]))
		w.Header().Set("Link", fmt.Sprintf(`<%s?%s>; rel="next"`, req.URL.Path, query.Encode()))
	}
	return list[:min(n, len(list))], true
}

func (r *Registry) serveReferrers(w http.ResponseWriter, req *http.Request, name string, subject digest.Digest) {
	r.mu.Lock()
	enabled := r.referrers
	r.mu.Unlock()
	if !enabled {
		writeError(w, req, http.StatusNotFound, "UNSUPPORTED", "no referrers API")
		return
	}
	if err := subject.Validate(); err != nil {
		writeError(w, req, http.StatusBadRequest, "DIGEST_INVALID", err.Error())
		return
	}
	index := ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{},
	}
	ok := r.look(w, req, name, func(repo *contents) { index.Manifests = repo.referrers(subject) })
	if !ok {
		return
	}
	if t := req.URL.Query().Get("artifactType"); t != "" {
		w.Header().Set("OCI-Filters-Applied", "artifactType")
		index.Manifests = slices.DeleteFunc(index.Manifests, func(d ocispec.Descriptor) bool { return d.ArtifactType != t })
	}
	index.Manifests, ok = page(w, req, r.pageSize(), index.Manifests, func(d ocispec.Descriptor) string { return d.Digest.String() })
	if !ok {
		return
	}
	writeJSON(w, req, http.StatusOK, ocispec.MediaTypeImageIndex, index)
}

// referrers describes the manifests whose subject is this one, in the order of their digests.
func (c *contents) referrers(subject digest.Digest) []ocispec.Descriptor {
	descriptors := []ocispec.Descriptor{}
	for _, d := range slices.Sorted(maps.Keys(c.manifests)) {
		m := c.manifests[d]
		if m.refers.Subject == nil || m.refers.Subject.Digest != subject {
			continue
		}
		descriptors = append(descriptors, ocispec.Descriptor{
			MediaType:    m.mediaType,
			Digest:       d,
			Size:         int64(len(m.body)),
			ArtifactType: cmp.Or(m.refers.ArtifactType, m.refers.Config.MediaType),
			Annotations:  m.refers.Annotations,
		})
	}
	return descriptors
}

func (r *Registry) serveSignatures(w http.ResponseWriter, req *http.Request, name string, d digest.Digest) {
	r.mu.Lock()
	enabled := r.signatures
	r.mu.Unlock()
	if !enabled {
		writeError(w, req, http.StatusNotFound, "UNSUPPORTED", "no signatures")
		return
	}
	signatures := []json.RawMessage{}
	var found bool
	ok := r.look(w, req, name, func(repo *contents) {
		_, found = repo.manifests[d]
		signatures = append(signatures, repo.signatures[d]...)
	})
	if !ok {
		return
	}
	if !found {
		writeError(w, req, http.StatusNotFound, "SIGNATURE_NOT_EXISTS", "no manifest "+d.String())
		return
	}
	writeJSON(w, req, http.StatusOK, "application/json", struct {
		Signatures []json.RawMessage `json:"signatures"`
	}{signatures})
}
