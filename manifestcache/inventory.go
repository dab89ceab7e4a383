package manifestcache

import (
	"context"
	"errors"
	"io/fs"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"larder/blobcache/compact"
)

// Image is a manifest, or an index, that a repository has and that is here.
type Image struct {
	Repository string
	Digest     digest.Digest
	Tags       []Tag // in the order of their names
	Size       int64
	Validated  time.Time // when upstream last said that the repository has it
	Used       time.Time
	Expires    time.Time // zero: never
	Hits       int64     // answers with it that it was not fetched for, since Open
	Listed     bool      // by an index of the repository that is here
	Held       bool      // a pin holds it
}

// Tag is what a tag pointed at when upstream last said so.
type Tag struct {
	Repository, Name string
	Digest           digest.Digest
	Validated        time.Time
	Fresh            bool // upstream is not asked about it yet
}

func (c *Cache) tag(t *tagged) Tag {
	validated := t.validated.Time()
	return Tag{t.repository.called(), t.name, t.manifest.Digest(), validated, within(c.cfg.TagTTL, validated)}
}

// Scanned waits until all that is on disk is known. The error is ErrClosed if Run
// had to end before.
func (c *Cache) Scanned(ctx context.Context) error {
	select {
	case <-c.scanned:
		return c.scanErr
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Repositories lists those that have a manifest which is here, in order. Some may
// be Unnamed.
func (c *Cache) Repositories() []string {
	var names []string
	c.mu.Lock()
	for _, repo := range c.repositories {
		for v := range repo.rights.All() {
			if c.manifests.Find(v.manifest) != nil {
				names = append(names, repo.called())
				break
			}
		}
	}
	c.mu.Unlock()
	slices.Sort(names)
	return names
}

// Images lists what a repository has, in the order of the digests.
func (c *Cache) Images(repository string) []Image {
	c.mu.Lock()
	repo := c.repositories[hashOf(repository)]
	if repo == nil {
		c.mu.Unlock()
		return nil
	}
	listed := make(map[digest.Digest]bool)
	images := make([]Image, 0, repo.rights.Len())
	at := make(map[digest.Digest]int, repo.rights.Len())
	for v := range repo.rights.All() {
		e := c.manifests.Find(v.manifest)
		if e == nil {
			continue
		}
		for m := range e.lists.digests() {
			listed[m] = true
		}
		img := c.image(e)
		img.Repository, img.Validated = repository, v.at.Time()
		at[img.Digest] = len(images)
		images = append(images, img)
	}
	for _, t := range repo.tags {
		if i, ok := at[t.manifest.Digest()]; ok {
			images[i].Tags = append(images[i].Tags, c.tag(t))
		}
	}
	c.mu.Unlock()
	for i := range images {
		images[i].Listed = listed[images[i].Digest]
		slices.SortFunc(images[i].Tags, func(a, b Tag) int { return strings.Compare(a.Name, b.Name) })
	}
	slices.SortFunc(images, func(a, b Image) int { return strings.Compare(string(a.Digest), string(b.Digest)) })
	return images
}

// image is what is known of a manifest, whoever has it. Needs mu.
func (c *Cache) image(e *entry) Image {
	img := Image{Digest: e.name.Digest(), Size: e.size, Used: e.used.Time(), Hits: e.hits}
	img.Held = c.pins.held[img.Digest]
	if c.cfg.TTL > 0 && !img.Held {
		img.Expires = img.Used.Add(c.cfg.TTL)
	}
	return img
}

// Manifest is what is known of the manifest d, whoever has it, if it is here.
func (c *Cache) Manifest(d digest.Digest) (Image, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.manifests.Get(d)
	if e == nil {
		return Image{}, false
	}
	return c.image(e), true
}

// Tag is what a tag points at, if that is known.
func (c *Cache) Tag(repository, name string) (Tag, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	repo := c.repositories[hashOf(repository)]
	if repo == nil {
		return Tag{}, false
	}
	t := repo.tags[name]
	if t == nil {
		return Tag{}, false
	}
	return c.tag(t), true
}

// Right says whether upstream has said that the repository has the manifest d,
// and when.
func (c *Cache) Right(repository string, d digest.Digest) (right Right, validated time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v := c.right(newRight(repository, d))
	if v == nil {
		return Unknown, time.Time{}
	}
	return c.judge(v.at.Time()), v.at.Time()
}

// Having lists the repositories that have the manifest d, in order.
func (c *Cache) Having(d digest.Digest) []string {
	var names []string
	c.mu.Lock()
	name := compact.Of(d)
	for _, repo := range c.repositories {
		if repo.rights.Find(&name) != nil {
			names = append(names, repo.called())
		}
	}
	c.mu.Unlock()
	slices.Sort(names)
	return names
}

// Naming lists the manifests that name the blob d, in order.
func (c *Cache) Naming(d digest.Digest) []digest.Digest {
	var manifests []digest.Digest
	c.mu.Lock()
	for e := range c.layers.naming(d) {
		manifests = append(manifests, e.name.Digest())
	}
	c.mu.Unlock()
	slices.Sort(manifests)
	return manifests
}

// Named reports whether some manifest names the blob d.
func (c *Cache) Named(d digest.Digest) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for range c.layers.naming(d) {
		return true
	}
	return false
}

// maxDepth is how many indexes may be in one another for Tree to read what was
// forgotten of them.
const maxDepth = 4

// Tree is all that a manifest leads to, each once.
type Tree struct {
	Manifests []digest.Digest // those that are here, the manifest itself first
	Absent    []digest.Digest // those that are listed, and not here
	Blobs     []digest.Digest // that Manifests name
	Size      int64           // of Manifests
}

// Tree lists what the manifest d leads to. It is no use of it. What was forgotten
// is read, and not remembered: it was forgotten for others, which are used.
func (c *Cache) Tree(d digest.Digest) Tree {
	read := make(map[digest.Digest]names)
	for depth := 0; ; depth++ {
		t, forgotten := c.tree(d, read)
		if len(forgotten) == 0 || depth == maxDepth {
			return t
		}
		for _, m := range forgotten {
			read[m] = c.readNames(m)
		}
	}
}

// readNames reads what the manifest d names, if it is here.
func (c *Cache) readNames(d digest.Digest) names {
	m := c.Peek(d)
	if m == nil {
		return names{}
	}
	return namesOf(kindOf(m.MediaType), m.Body)
}

// tree is Tree, but for what those name that are forgotten and not read.
func (c *Cache) tree(d digest.Digest, read map[digest.Digest]names) (t Tree, forgotten []digest.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t.Manifests, t.Absent = c.reach(d, read)
	seen := make(map[digest.Digest]bool)
	for _, m := range t.Manifests {
		e := c.manifests.Get(m)
		t.Size += e.size
		if _, ok := read[m]; e.number == 0 && !ok {
			forgotten = append(forgotten, m)
		}
		blobs, _ := e.named(read[m])
		for b := range blobs {
			if !seen[b] {
				seen[b] = true
				t.Blobs = append(t.Blobs, b)
			}
		}
	}
	return t, forgotten
}

// maxReach bounds how many manifests are looked at for one. An index lists some
// dozens; but one that lists others may lead to all that are remembered.
const maxReach = 10_000

// reach lists the manifests that d leads to, itself first: those that are here,
// and those that are only listed. There may be more than maxReach. read is what
// forgotten ones name, as far as that is known. Needs mu.
func (x *index) reach(d digest.Digest, read map[digest.Digest]names) (here, absent []digest.Digest) {
	todo := []digest.Digest{d}
	for seen := map[digest.Digest]bool{d: true}; len(todo) > 0; {
		d, todo = todo[0], todo[1:]
		e := x.manifests.Get(d)
		if e == nil {
			absent = append(absent, d)
			continue
		}
		here = append(here, d)
		_, lists := e.named(read[d])
		for m := range lists {
			if !seen[m] && len(seen) < maxReach {
				seen[m] = true
				todo = append(todo, m)
			}
		}
	}
	return here, absent
}

// named is what a manifest names: if it was forgotten, what was read. Needs mu.
func (e *entry) named(read names) (blobs, manifests iter.Seq[digest.Digest]) {
	if e.number == 0 {
		return slices.Values(read.blobs), slices.Values(read.manifests)
	}
	return e.blobs.digests(), e.lists.digests()
}

// Peek reads the manifest d, which is no use of it; nil if it is not here. A large
// one has no Body.
func (c *Cache) Peek(d digest.Digest) *Manifest {
	m, _, err := c.readManifest(d)
	if errors.Is(err, fs.ErrNotExist) {
		c.missed(d)
	}
	if err != nil {
		return nil
	}
	return m
}

// missed forgets the manifest d if somebody has taken its file away.
func (c *Cache) missed(d digest.Digest) {
	name := manifestName(d)
	defer c.changes.begin(name)()
	if !c.there(name) {
		c.forget(d)
	}
}

// answered counts an answer.
func (c *Cache) answered(m *Manifest) {
	c.count.outcomes[m.Outcome].Add(1)
	if m.Outcome == Miss {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.manifests.Get(m.Digest); e != nil {
		e.hits++
	}
}
