package admin

import (
	"cmp"
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"larder/blobcache"
	"larder/handler/errcode"
	"larder/manifestcache"
)

const (
	// usualPage and maxPage are how many images an answer has.
	usualPage = 100
	maxPage   = 1000

	// maxDetails bounds the lists within an answer; beside each is how much there
	// is in all.
	maxDetails = 100
)

// image is an image, or an index of images, in a repository.
type image struct {
	Repository string        `json:"repository"`
	Digest     digest.Digest `json:"digest"`
	MediaType  string        `json:"mediaType"`
	Tags       []tag         `json:"tags"`
	TagCount   int           `json:"tagCount"`

	Size     int64 `json:"size"`     // of the manifest
	Total    int64 `json:"total"`    // of that and all that it leads to, as far as it is here
	Complete bool  `json:"complete"` // of an index: at least one image is here, and none in part

	Manifests     []listed  `json:"manifests,omitempty"` // that an index lists
	ManifestCount int       `json:"manifestCount,omitempty"`
	Blobs         int       `json:"blobs"`
	Missing       []missing `json:"missing"` // of Blobs
	MissingCount  int       `json:"missingCount"`

	Validated time.Time  `json:"validated"` // when the registry last said that the repository has it
	Used      time.Time  `json:"used"`
	Expires   *time.Time `json:"expires"` // when the first part of it does, if it is not used until then
	Hits      int64      `json:"hits"`    // since larder was started
	Pinned    bool       `json:"pinned"`  // a pin holds it
}

type tag struct {
	Tag       string    `json:"tag"`
	Validated time.Time `json:"validated"`
}

// listed is an entry of an index.
type listed struct {
	Digest    digest.Digest `json:"digest"`
	MediaType string        `json:"mediaType"`
	Platform  string        `json:"platform,omitempty"`
	Cached    bool          `json:"cached"`
}

// missing is a blob of which not all is here.
type missing struct {
	Digest  digest.Digest `json:"digest"`
	Have    int64         `json:"have"`
	Filling bool          `json:"filling,omitempty"`
}

// page is some images, and where more are.
type page struct {
	Images []image `json:"images"`
	Next   string  `json:"next,omitempty"`
}

// list answers GET /cache.
func (c *Control) list(r *http.Request) (*reply, error) {
	s, err := c.search(r, "repository", "tag", "sort", "n", "last")
	if err != nil {
		return nil, err
	}
	return c.page(r, s)
}

// search is which images are wanted, in which order, and how many.
type search struct {
	repository func(name string) bool // nil: all
	tag        string
	text       string                          // a part of repository:tag
	weigh      func(manifestcache.Image) int64 // nil: the order is that of the names
	after      *place
	n          int
	query      url.Values
}

// place is where an image stands in the order: what is lighter comes first.
type place struct {
	weight     int64
	repository string
	digest     digest.Digest
}

func (a place) compare(b place) int {
	return cmp.Or(cmp.Compare(a.weight, b.weight), strings.Compare(a.repository, b.repository), strings.Compare(string(a.digest), string(b.digest)))
}

func (a place) String() string {
	return strconv.FormatInt(a.weight, 10) + "," + a.repository + "@" + string(a.digest)
}

func parsePlace(s string) (*place, error) {
	weight, rest, _ := strings.Cut(s, ",")
	repository, d, ok := strings.Cut(rest, "@")
	n, err := strconv.ParseInt(weight, 10, 64)
	if err != nil || !ok || digest.Digest(d).Validate() != nil {
		return nil, bad(errcode.Unsupported, "last is not from the next of an earlier answer")
	}
	return &place{n, repository, digest.Digest(d)}, nil
}

func (c *Control) search(r *http.Request, known ...string) (*search, error) {
	query, err := parameters(r, known...)
	if err != nil {
		return nil, err
	}
	s := &search{tag: query.Get("tag"), n: usualPage, query: query}
	if query.Has("repository") {
		if s.repository, err = c.matcher(query.Get("repository")); err != nil {
			return nil, err
		}
	}
	if _, err := path.Match(s.tag, ""); err != nil {
		return nil, bad(errcode.TagInvalid, "tag is not a pattern like 3.*")
	}
	if err := s.order(c, query.Get("sort")); err != nil {
		return nil, err
	}
	if query.Has("n") {
		if s.n, err = strconv.Atoi(query.Get("n")); err != nil || s.n < 1 || s.n > maxPage {
			return nil, bad(errcode.Unsupported, "n is not a number from 1 to %d", maxPage)
		}
	}
	if query.Has("last") {
		if s.after, err = parsePlace(query.Get("last")); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// order sets the order: what is found first.
func (s *search) order(c *Control, sort string) error {
	switch sort {
	case "", "name":
	case "size":
		s.weigh = func(img manifestcache.Image) int64 { return -c.measure(img.Digest).total }
	case "used":
		s.weigh = func(img manifestcache.Image) int64 { return img.Used.UnixNano() }
	default:
		return bad(errcode.Unsupported, "sort is not one of name, size, used")
	}
	return nil
}

// matcher reads what repositories are meant: a pattern, or a name as clients may
// write it.
func (c *Control) matcher(pattern string) (func(name string) bool, error) {
	if !strings.Contains(pattern, "*") {
		if repo, err := c.Upstreams.Repository("", c.withoutOwn(pattern)); err == nil {
			return func(name string) bool { return name == repo.String() }, nil
		}
	}
	match, err := c.Glob(pattern)
	if err != nil {
		return nil, bad(errcode.NameInvalid, "repository is %s", err)
	}
	return match, nil
}

// page answers with the page that is searched for.
func (c *Control) page(r *http.Request, s *search) (*reply, error) {
	found, next, err := c.find(r.Context(), s)
	if err != nil {
		return nil, err
	}
	answer := page{Images: append([]image{}, found...)}
	if next != nil {
		s.query.Set("last", next.String())
		answer.Next = (&url.URL{Path: r.URL.Path, RawQuery: s.query.Encode()}).String()
	}
	return &reply{body: answer, next: answer.Next}, nil
}

// find lists what is searched for, and where more is, if there is more. What an
// image consists of is looked at for those in the list only, unless they are in the
// order of size.
func (c *Control) find(ctx context.Context, s *search) (images []image, next *place, err error) {
	if err := c.known(ctx); err != nil {
		return nil, nil, err
	}
	var found []place
	at := make(map[place]manifestcache.Image)
	cut := func(most int) {
		slices.SortFunc(found, place.compare)
		for _, p := range found[min(most, len(found)):] {
			delete(at, p)
		}
		found = found[:min(most, len(found))]
	}
	for _, name := range c.Manifests.Repositories() {
		if s.repository != nil && !s.repository(name) || s.weigh == nil && s.after != nil && name < s.after.repository {
			continue
		}
		for _, img := range c.Manifests.Images(name) {
			if !s.wants(img) {
				continue
			}
			p := place{0, name, img.Digest}
			if s.weigh != nil {
				p.weight = s.weigh(img)
			}
			if s.after != nil && p.compare(*s.after) <= 0 {
				continue
			}
			at[p] = img
			if found = append(found, p); len(found) > 2*s.n {
				cut(s.n + 1)
			}
		}
		if s.weigh == nil && len(found) > s.n {
			break
		}
		if ctx.Err() != nil {
			return nil, nil, ctx.Err()
		}
	}
	cut(s.n + 1)
	if len(found) > s.n {
		found = found[:s.n]
		next = &found[s.n-1]
	}
	for _, p := range found {
		if img, ok := c.describe(at[p]); ok {
			images = append(images, img)
		}
	}
	return images, next, nil
}

// wants reports whether an image is searched for. What an index lists is shown
// with the index, unless it has a tag of its own.
func (s *search) wants(img manifestcache.Image) bool {
	isText := func(t manifestcache.Tag) bool { return strings.Contains(img.Repository+":"+t.Name, s.text) }
	if !strings.Contains(img.Repository, s.text) && !slices.ContainsFunc(img.Tags, isText) {
		return false
	}
	if s.tag == "" {
		return !img.Listed || len(img.Tags) > 0
	}
	return slices.ContainsFunc(img.Tags, func(t manifestcache.Tag) bool {
		ok, _ := path.Match(s.tag, t.Name)
		return ok
	})
}

// measurement is what an image comes to.
type measurement struct {
	tree  manifestcache.Tree
	blobs []blobcache.Item // of tree.Blobs
	total int64            // bytes that are here
}

func (c *Control) measure(d digest.Digest) measurement {
	m := measurement{tree: c.Manifests.Tree(d)}
	m.blobs = c.Blobs.Items(m.tree.Blobs)
	m.total = m.tree.Size
	for _, b := range m.blobs {
		m.total += b.Size
	}
	return m
}

// document is what matters here of manifests and indexes.
type document struct {
	Config    ocispec.Descriptor   `json:"config"`
	Layers    []ocispec.Descriptor `json:"layers"`
	Manifests []ocispec.Descriptor `json:"manifests"`
}

// describe shows an image; false if it is not here any more.
func (c *Control) describe(from manifestcache.Image) (image, bool) {
	body := c.Manifests.Peek(from.Digest)
	if body == nil {
		return image{}, false
	}
	m := c.measure(from.Digest)
	img := image{
		Repository: from.Repository, Digest: from.Digest, MediaType: body.MediaType, Size: from.Size, Total: m.total,
		Tags: []tag{}, TagCount: len(from.Tags), Blobs: len(m.blobs), Missing: []missing{},
		Validated: second(from.Validated), Used: second(from.Used), Hits: from.Hits, Pinned: from.Held,
	}
	for _, t := range from.Tags[:min(len(from.Tags), maxDetails)] {
		img.Tags = append(img.Tags, tag{t.Name, second(t.Validated)})
	}
	expires := from.Expires
	for i, b := range m.blobs {
		if !b.Whole {
			if img.MissingCount++; img.MissingCount <= maxDetails {
				img.Missing = append(img.Missing, missing{m.tree.Blobs[i], b.Size, b.Filling})
			}
		} else if expires.IsZero() || !b.Expires.IsZero() && b.Expires.Before(expires) {
			expires = b.Expires
		}
	}
	img.Expires = orNever(expires)
	var doc document
	_ = json.Unmarshal(body.Body, &doc) // what is no JSON lists nothing
	img.list(doc.Manifests, m.tree)
	img.Complete = img.MissingCount == 0 && (len(doc.Manifests) == 0 || len(m.tree.Manifests) > 1)
	return img, true
}

// list shows what an index lists.
func (img *image) list(manifests []ocispec.Descriptor, tree manifestcache.Tree) {
	img.ManifestCount = len(manifests)
	for _, m := range manifests[:min(len(manifests), maxDetails)] {
		l := listed{Digest: m.Digest, MediaType: m.MediaType, Cached: slices.Contains(tree.Manifests, m.Digest)}
		if p := m.Platform; p != nil {
			l.Platform = strings.TrimSuffix(p.OS+"/"+p.Architecture+"/"+p.Variant, "/")
		}
		img.Manifests = append(img.Manifests, l)
	}
}

// second is t as it is shown.
func second(t time.Time) time.Time { return t.UTC().Truncate(time.Second) }

// orNever is nil for the zero time.
func orNever(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return new(second(t))
}
