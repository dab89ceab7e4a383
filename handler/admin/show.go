package admin

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"larder/handler/errcode"
	"larder/manifestcache"
)

// object is what there is under a digest, whoever has it.
type object struct {
	Digest    digest.Digest `json:"digest"`
	Kind      string        `json:"kind"` // manifest or blob
	MediaType string        `json:"mediaType,omitempty"`
	Size      int64         `json:"size"`
	Complete  bool          `json:"complete"`
	Filling   bool          `json:"filling,omitempty"` // on its way, or being verified

	Repositories    []string `json:"repositories"` // that have it
	RepositoryCount int      `json:"repositoryCount"`

	Used    *time.Time `json:"used"`
	Expires *time.Time `json:"expires"`
}

// show answers GET /cache/<reference> and GET /cache/<digest>.
func (c *Control) show(r *http.Request) (*reply, error) {
	t, err := c.parse(r.PathValue("reference"))
	if err != nil {
		return nil, err
	}
	if t.repository != "" && t.tag == "" && t.digest == "" {
		return c.showRepository(r, t.repository)
	}
	if _, err := parameters(r); err != nil {
		return nil, err
	}
	if err := c.known(r.Context()); err != nil {
		return nil, err
	}
	if t.repository != "" {
		if img, ok := c.image(t); ok {
			if shown, ok := c.describe(img); ok {
				return &reply{body: shown}, nil
			}
		}
		if t.digest == "" || c.Manifests.Refers(t.repository, t.digest) == manifestcache.Unknown {
			return nil, absent(errcode.ManifestUnknown, "not in the cache")
		}
	}
	if o, ok := c.object(t.digest); ok {
		return &reply{body: o}, nil
	}
	return nil, absent(errcode.BlobUnknown, "not in the cache")
}

func (c *Control) showRepository(r *http.Request, repository string) (*reply, error) {
	s, err := c.search(r, "tag", "sort", "n", "last")
	if err != nil {
		return nil, err
	}
	s.repository = func(name string) bool { return name == repository }
	rep, err := c.page(r, s)
	if err == nil && len(rep.body.(page).Images) == 0 && len(s.query) == 0 {
		return nil, absent(errcode.NameUnknown, "nothing of it is in the cache")
	}
	return rep, err
}

// image finds what a reference names, if it is here. A digest wins over a tag, as
// it does for clients.
func (c *Control) image(t target) (manifestcache.Image, bool) {
	d := t.digest
	if d == "" {
		known, ok := c.Manifests.Tag(t.repository, t.tag)
		if !ok {
			return manifestcache.Image{}, false
		}
		d = known.Digest
	}
	images := c.Manifests.Images(t.repository)
	i, ok := slices.BinarySearchFunc(images, d, func(img manifestcache.Image, d digest.Digest) int {
		return strings.Compare(string(img.Digest), string(d))
	})
	if !ok {
		return manifestcache.Image{}, false
	}
	return images[i], true
}

// object shows what there is under a digest, if something is; else a blob of which
// nothing is here.
func (c *Control) object(d digest.Digest) (object, bool) {
	if known, ok := c.Manifests.Manifest(d); ok {
		if m := c.Manifests.Peek(d); m != nil {
			o := object{Digest: d, Kind: "manifest", MediaType: m.MediaType, Size: m.Size, Complete: true}
			o.had(c.Manifests.Having(d))
			o.Used, o.Expires = orNever(known.Used), orNever(known.Expires)
			return o, true
		}
	}
	b := c.Blobs.Items([]digest.Digest{d})[0]
	o := object{Digest: d, Kind: "blob", Size: b.Size, Complete: b.Whole, Filling: b.Filling}
	var names []string
	for _, m := range c.Manifests.Naming(d) {
		names = append(names, c.Manifests.Having(m)...)
	}
	slices.Sort(names)
	o.had(slices.Compact(names))
	o.Used, o.Expires = orNever(b.Used), orNever(b.Expires)
	return o, b.Whole || b.Filling || b.Size > 0
}

func (o *object) had(repositories []string) {
	o.RepositoryCount = len(repositories)
	o.Repositories = append([]string{}, repositories[:min(len(repositories), maxDetails)]...)
}
