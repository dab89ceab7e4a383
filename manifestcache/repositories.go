package manifestcache

import (
	"crypto/sha256"
	"encoding/hex"
	"path"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"

	"larder/blobcache/compact"
	"larder/blobcache/durable"
	"larder/ttl"
)

const (
	// nameFile says whose a directory of rights is: its own name is a hash.
	nameFile = "name"

	// unnamed begins what stands for the name of a repository whose name is not
	// known, as larder did not always record it. No name begins so.
	unnamed = "_unnamed/"
)

// repository is what is known of one.
type repository struct {
	hash     [sha256.Size]byte // of its name
	name     string            // "": not known
	recorded bool              // name is in its file
	rights   compact.Table[*validation]
	tags     map[string]*tagged
}

// tagged is a tag, with what it pointed at, and when upstream last said so.
type tagged struct {
	repository *repository
	name       string
	manifest   *compact.Digest // which may be that of the manifest's entry
	validated  compact.Time
	place      ttl.Place // in Cache.due
}

// Place implements ttl.Placed.
func (t *tagged) Place() *ttl.Place { return &t.place }

func (t *tagged) file() string        { return tagName(t.repository.name, t.name) }
func (t *tagged) known(c *Cache) bool { return t.repository.tags[t.name] == t }

func (t *tagged) gone(c *Cache) {
	c.mu.Lock()
	c.takeTag(t.repository, t.name)
	c.mu.Unlock()
	c.unlist(t.repository.hash)
}

func (t *tagged) lifeEnds(c *Cache) (end time.Time, held bool) { return c.lifeWith(t.manifest) }

// repository returns what is known of one, of which nothing need be. Needs mu.
func (x *index) repository(hash [sha256.Size]byte) *repository {
	repo := x.repositories[hash]
	if repo == nil {
		repo = &repository{hash: hash, tags: make(map[string]*tagged)}
		x.repositories[hash] = repo
	}
	return repo
}

// right is upstream's word on a right, or nil. Needs mu.
func (x *index) right(r right) *validation {
	if repo := x.repositories[r.repository]; repo != nil {
		return repo.rights.Get(r.digest)
	}
	return nil
}

// called is the name of a repository, or what stands for it.
func (r *repository) called() string {
	if r.name == "" {
		return unnamed + hex.EncodeToString(r.hash[:])
	}
	return r.name
}

// hashOf is the opposite of called.
func hashOf(name string) [sha256.Size]byte {
	if Unnamed(name) {
		hash, _ := hex.DecodeString(strings.TrimPrefix(name, unnamed))
		return [sha256.Size]byte(hash)
	}
	return sha256.Sum256([]byte(name))
}

// Unnamed reports whether name stands for that of a repository whose name is not
// known.
func Unnamed(name string) bool {
	text, ok := strings.CutPrefix(name, unnamed)
	hash, err := hex.DecodeString(text)
	return ok && err == nil && len(hash) == sha256.Size
}

func repositoryName(hash [sha256.Size]byte) string {
	return path.Join(repositoryDir, hex.EncodeToString(hash[:]))
}

func nameOf(hash [sha256.Size]byte) string { return path.Join(repositoryName(hash), nameFile) }

// recordName writes down what a repository is called, unless nothing is left of it.
func (c *Cache) recordName(repository string) {
	hash := sha256.Sum256([]byte(repository))
	defer c.changes.begin(nameOf(hash))()
	c.mu.Lock()
	left := c.repositories[hash] != nil
	c.mu.Unlock()
	if !left {
		return
	}
	err := durable.WriteSoon(c.root, nameOf(hash), []byte(repository)) // half of it has another hash
	if err != nil {
		c.complain("name of a repository not recorded", err, zap.String("repository", repository))
		c.mu.Lock()
		defer c.mu.Unlock()
		if repo := c.repositories[hash]; repo != nil {
			repo.recorded = false
		}
	}
}

// foundName makes known what a repository is called; false if the file is not
// one of the cache's. A damaged one is written anew.
func (c *Cache) foundName(name string) bool {
	var hash [sha256.Size]byte
	text, err := hex.DecodeString(path.Base(path.Dir(name)))
	if err != nil || len(text) != len(hash) {
		return false
	}
	copy(hash[:], text)
	if name != nameOf(hash) {
		return false
	}
	content, _, err := c.readFile(name)
	if err != nil || sha256.Sum256(content) != hash {
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	repo := c.repository(hash)
	repo.name, repo.recorded = string(content), true
	return true
}

// split is the repository and the tag that a link is about.
func (l *link) split() (repository, tag string) {
	i := max(strings.LastIndexByte(l.Reference, ':'), 0)
	return l.Reference[:i], strings.TrimPrefix(l.Reference[i:], ":")
}

// noteTag makes known what upstream says that a tag points at. Needs the change of
// its file.
func (c *Cache) noteTag(repository, tag string, d digest.Digest, validated time.Time) {
	hash := sha256.Sum256([]byte(repository))
	c.mu.Lock()
	defer c.mu.Unlock()
	repo := c.repository(hash)
	repo.name = repository
	if t := repo.tags[tag]; t == nil || t.manifest.Digest() != d {
		c.pinMoved(repository, tag)
	}
	c.putTag(repo, tag, d, validated)
}

// putTag makes known what a tag points at. Needs mu.
func (c *Cache) putTag(repo *repository, tag string, d digest.Digest, validated time.Time) {
	t := repo.tags[tag]
	if t == nil {
		t = &tagged{repository: repo, name: strings.Clone(tag)}
		repo.tags[t.name] = t
	}
	t.manifest, t.validated = c.name(d), compact.TimeOf(validated)
	c.schedule(t, past(validated))
}

// takeTag drops what is known of a tag. Needs mu.
func (c *Cache) takeTag(repo *repository, tag string) {
	if t := repo.tags[tag]; t != nil {
		delete(repo.tags, tag)
		c.due.Delete(t)
		c.pinMoved(repo.called(), tag)
	}
}

// takeRight drops what is known of a right to the manifest d. Needs mu.
func (c *Cache) takeRight(repo *repository, d digest.Digest) {
	if v := repo.rights.Get(d); v != nil {
		repo.rights.Delete(v)
		c.due.Delete(v)
		c.pinMoved(repo.called(), string(d))
	}
}

// dropTag drops what is known of a tag, whose file is gone. Needs the change of that.
func (c *Cache) dropTag(repository, tag string) {
	hash := sha256.Sum256([]byte(repository))
	c.mu.Lock()
	if repo := c.repositories[hash]; repo != nil {
		c.takeTag(repo, tag)
	}
	c.mu.Unlock()
	c.unlist(hash)
}

// foundTag makes known what a file says of a tag, unless more is known. It reports
// false if that can't be read. Needs the change of it.
func (c *Cache) foundTag(name string) (known bool) {
	l, err := c.readLink(name)
	if err != nil {
		return false
	}
	repository, tag := l.split()
	if tagName(repository, tag) != name {
		return false
	}
	hash := sha256.Sum256([]byte(repository))
	c.mu.Lock()
	defer c.mu.Unlock()
	repo := c.repository(hash)
	if repo.name == "" {
		repo.name = strings.Clone(repository)
	}
	if repo.tags[tag] == nil {
		c.putTag(repo, tag, l.Descriptor.Digest, l.validated)
	}
	return true
}

// dropRight drops what is known of a right, whose file is gone. Needs the change of
// that.
func (c *Cache) dropRight(r right) {
	c.mu.Lock()
	if repo := c.repositories[r.repository]; repo != nil {
		c.takeRight(repo, r.digest)
	}
	c.mu.Unlock()
	c.unlist(r.repository)
}

// unlist forgets a repository of which nothing is left. What can't be removed
// then is found by the next scan, which does this for all. Until it is known what
// is on disk, it can't be known what is left.
func (c *Cache) unlist(hash [sha256.Size]byte) {
	if !c.isKnown() {
		return
	}
	defer c.changes.begin(nameOf(hash))()
	c.mu.Lock()
	repo := c.repositories[hash]
	empty := repo == nil || repo.rights.Len() == 0 && len(repo.tags) == 0
	if empty {
		delete(c.repositories, hash)
	}
	c.mu.Unlock()
	if !empty {
		return
	}
	_ = c.root.Remove(nameOf(hash))
	_ = c.root.Remove(repositoryName(hash)) // somebody's who has put more there
}

// isKnown reports whether what is not known of rights is not on disk either.
func (c *Cache) isKnown() bool {
	select {
	case <-c.scanned:
		return c.scanErr == nil && !c.unread.Load()
	default:
		return false
	}
}
