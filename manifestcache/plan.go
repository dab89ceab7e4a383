package manifestcache

import (
	"cmp"
	"crypto/sha256"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"larder/blobcache/compact"
)

// Plan is what would go if an operator had something removed. Nothing has, until
// it is given to Remove.
type Plan struct {
	Tags      []Tag
	Rights    int // of repositories to manifests
	Manifests []Sized
	Blobs     []digest.Digest // that no manifest will name any more

	removal removal
}

// Pinned is what becomes of what pins hold.
type Pinned uint8

// It is left where it is, or goes like all else.
const (
	Spare Pinned = iota
	Include
)

// Sized is a manifest and its size.
type Sized struct {
	Digest digest.Digest
	Size   int64
}

// removal is what is to go, before it is known who else has a use for it.
type removal struct {
	tags   map[tagKey]bool
	rights map[right]bool
	loose  map[digest.Digest]bool // manifests that go unless somebody has them
	forced map[digest.Digest]bool // manifests that go, whoever has them
}

type tagKey struct {
	repository [sha256.Size]byte
	name       string
}

func newRemoval() removal {
	return removal{
		tags: make(map[tagKey]bool), rights: make(map[right]bool),
		loose: make(map[digest.Digest]bool), forced: make(map[digest.Digest]bool),
	}
}

// Empty reports whether nothing would go.
func (p *Plan) Empty() bool { return len(p.Tags) == 0 && p.Rights == 0 && len(p.Manifests) == 0 }

// PlanRepository is for all of a repository.
func (c *Cache) PlanRepository(name string) *Plan {
	c.mu.Lock()
	r, hash := newRemoval(), hashOf(name)
	if repo := c.repositories[hash]; repo != nil {
		for v := range repo.rights.All() {
			r.rights[v.right()] = true
		}
		for tag := range repo.tags {
			r.tags[tagKey{hash, tag}] = true
		}
	}
	p := c.plan(r)
	c.mu.Unlock()
	return p.sorted()
}

// PlanTag is for a tag, and for what only it holds: the manifest that it points
// at, and those which that lists, as far as nothing else in the repository has
// them.
func (c *Cache) PlanTag(repository, tag string) *Plan {
	c.mu.Lock()
	r, hash := newRemoval(), hashOf(repository)
	if repo := c.repositories[hash]; repo != nil {
		if t := repo.tags[tag]; t != nil {
			r.tags[tagKey{hash, tag}] = true
			c.drop(&r, hash, c.branch(t.manifest.Digest()), nil)
		}
	}
	p := c.plan(r)
	c.mu.Unlock()
	return p.sorted()
}

// PlanManifest is for a manifest of a repository, with its tags, and for what
// only it holds there.
func (c *Cache) PlanManifest(repository string, d digest.Digest) *Plan {
	c.mu.Lock()
	r, hash := newRemoval(), hashOf(repository)
	if c.knows(hash, d) {
		c.drop(&r, hash, c.branch(d), map[digest.Digest]bool{d: true})
	}
	p := c.plan(r)
	c.mu.Unlock()
	return p.sorted()
}

// PlanDigest is for a manifest wherever it is, and for what only it holds.
func (c *Cache) PlanDigest(d digest.Digest) *Plan {
	c.mu.Lock()
	r := newRemoval()
	r.forced[d] = true
	for hash := range c.repositories {
		if c.knows(hash, d) {
			c.drop(&r, hash, c.branch(d), r.forced)
		}
	}
	p := c.plan(r)
	c.mu.Unlock()
	return p.sorted()
}

// knows reports whether a repository has the manifest d, or a tag for it. Needs
// mu.
func (x *index) knows(hash [sha256.Size]byte, d digest.Digest) bool {
	repo := x.repositories[hash]
	if repo == nil {
		return false
	}
	name := compact.Of(d)
	for _, t := range repo.tags {
		if *t.manifest == name {
			return true
		}
	}
	return repo.rights.Find(&name) != nil
}

// PlanPrune is for all that was last used before then, of the repositories that
// match. With a nil match it is for what belongs to no repository, too.
func (c *Cache) PlanPrune(match func(repository string) bool, before time.Time, pinned Pinned) *Plan {
	c.mu.Lock()
	names := make(map[[sha256.Size]byte]string, len(c.repositories))
	for hash, repo := range c.repositories {
		names[hash] = repo.called()
	}
	c.mu.Unlock()
	r := newRemoval()
	for hash, name := range names {
		if match == nil || match(name) {
			c.dropUnused(&r, hash, before, pinned)
		}
	}
	c.mu.Lock()
	if match == nil {
		for e := range c.manifests.All() {
			if d := e.name.Digest(); e.used.Time().Before(before) && (pinned == Include || !c.pins.held[d]) {
				r.loose[d] = true
			}
		}
	}
	p := c.plan(r)
	c.mu.Unlock()
	return p.sorted()
}

// dropUnused plans for a repository to lose what was last used before then. One at
// a time, so that nobody waits for all of them.
func (c *Cache) dropUnused(r *removal, hash [sha256.Size]byte, before time.Time, pinned Pinned) {
	c.mu.Lock()
	defer c.mu.Unlock()
	repo := c.repositories[hash]
	if repo == nil {
		return
	}
	old := c.unused(repo, before)
	if pinned == Spare {
		maps.DeleteFunc(old, func(d digest.Digest, _ bool) bool { return c.pins.held[d] })
	}
	for name, t := range repo.tags {
		if old[t.manifest.Digest()] {
			r.tags[tagKey{hash, name}] = true
		}
	}
	c.drop(r, hash, old, nil)
}

// unused is what a repository has or has tags for, and was last used before then.
// Needs mu.
func (x *index) unused(repo *repository, before time.Time) map[digest.Digest]bool {
	old := make(map[digest.Digest]bool)
	note := func(name *compact.Digest) {
		if e := x.manifests.Find(name); e == nil || e.used.Time().Before(before) {
			old[name.Digest()] = true
		}
	}
	for v := range repo.rights.All() {
		note(v.manifest)
	}
	for _, t := range repo.tags {
		note(t.manifest)
	}
	return old
}

// branch is d and all that it leads to. Needs mu.
func (x *index) branch(d digest.Digest) map[digest.Digest]bool {
	set := make(map[digest.Digest]bool)
	here, absent := x.reach(d, nil)
	for _, m := range append(here, absent...) {
		set[m] = true
	}
	return set
}

// drop plans for a repository to lose its rights to a set of manifests, with the
// tags that point at them. What else in the repository lists or points at stays,
// unless it is forced. Needs mu.
func (x *index) drop(r *removal, hash [sha256.Size]byte, set, forced map[digest.Digest]bool) {
	repo := x.repositories[hash]
	var stay []*entry
	for v := range repo.rights.All() {
		if e := x.manifests.Find(v.manifest); e != nil && !set[v.manifest.Digest()] {
			stay = append(stay, e)
		}
	}
	for name, t := range repo.tags {
		if d := t.manifest.Digest(); set[d] && !forced[d] && !r.tags[tagKey{hash, name}] {
			delete(set, d)
			if e := x.manifests.Find(t.manifest); e != nil {
				stay = append(stay, e)
			}
		}
	}
	x.spare(set, stay, forced)
	for d := range set {
		if repo.rights.Get(d) != nil {
			r.rights[right{hash, d}] = true
		}
	}
	for name, t := range repo.tags {
		if set[t.manifest.Digest()] {
			r.tags[tagKey{hash, name}] = true
		}
	}
}

// spare takes out of a set what manifests that stay lead to, unless it is
// forced. Needs mu.
func (x *index) spare(set map[digest.Digest]bool, stay []*entry, forced map[digest.Digest]bool) {
	for len(stay) > 0 {
		last := len(stay) - 1
		e := stay[last]
		stay = stay[:last]
		for d := range e.lists.digests() {
			if !set[d] || forced[d] {
				continue
			}
			delete(set, d)
			if e := x.manifests.Get(d); e != nil {
				stay = append(stay, e)
			}
		}
	}
}

// plan finds out what goes with a removal: manifests that nobody who stays has or
// lists, and the blobs that only these name. Needs mu.
func (c *Cache) plan(r removal) *Plan {
	p := &Plan{Rights: len(r.rights), removal: r}
	for key := range r.tags {
		if repo := c.repositories[key.repository]; repo != nil {
			if t := repo.tags[key.name]; t != nil {
				p.Tags = append(p.Tags, c.tag(t))
			}
		}
	}
	gone := c.gone(r)
	named := make(map[digest.Digest]bool)
	for d := range gone {
		e := c.manifests.Get(d)
		p.Manifests = append(p.Manifests, Sized{d, e.size})
		for b := range e.blobs.digests() {
			named[b] = true
		}
	}
	for b := range named {
		if c.namedByGoneOnly(b, gone) {
			p.Blobs = append(p.Blobs, b)
		}
	}
	return p
}

// namedByGoneOnly reports whether no manifest that stays names the blob b, as far
// as is remembered. Needs mu.
func (x *index) namedByGoneOnly(b digest.Digest, gone map[digest.Digest]bool) bool {
	for e := range x.layers.naming(b) {
		if !gone[e.name.Digest()] {
			return false
		}
	}
	return true
}

// sorted brings a plan into order, which takes no lock and a while.
func (p *Plan) sorted() *Plan {
	slices.SortFunc(p.Tags, func(a, b Tag) int {
		return cmp.Or(strings.Compare(a.Repository, b.Repository), strings.Compare(a.Name, b.Name))
	})
	slices.SortFunc(p.Manifests, func(a, b Sized) int { return strings.Compare(string(a.Digest), string(b.Digest)) })
	slices.Sort(p.Blobs)
	return p
}

// gone is the manifests that go with a removal. Needs mu.
func (x *index) gone(r removal) map[digest.Digest]bool {
	gone := make(map[digest.Digest]bool, len(r.rights)+len(r.loose))
	for _, set := range []map[digest.Digest]bool{r.loose, r.forced} {
		for d := range set {
			gone[d] = x.manifests.Get(d) != nil
		}
	}
	for key := range r.rights {
		gone[key.digest] = x.manifests.Get(key.digest) != nil
	}
	var stay []*entry
	for hash, repo := range x.repositories {
		for v := range repo.rights.All() {
			if d := v.manifest.Digest(); gone[d] && !r.forced[d] && !r.rights[right{hash, d}] {
				gone[d] = false
			}
		}
	}
	for e := range x.manifests.All() {
		if !gone[e.name.Digest()] {
			stay = append(stay, e)
		}
	}
	x.spare(gone, stay, r.forced)
	maps.DeleteFunc(gone, func(_ digest.Digest, goes bool) bool { return !goes })
	return gone
}
