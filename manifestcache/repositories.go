package manifestcache

import (
	"crypto/sha256"
	"encoding/hex"
	"path"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"

	"larder/blobcache/durable"
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
	name     string // "": not known
	recorded bool   // name is in its file
	rights   map[digest.Digest]*validation
	tags     map[string]tagged
}

// tagged is what a tag pointed at, and when upstream last said so.
type tagged struct {
	digest    digest.Digest
	validated time.Time
}

// repository returns what is known of one, of which nothing need be. Needs mu.
func (x *index) repository(hash [sha256.Size]byte) *repository {
	repo := x.repositories[hash]
	if repo == nil {
		repo = &repository{rights: make(map[digest.Digest]*validation), tags: make(map[string]tagged)}
		x.repositories[hash] = repo
	}
	return repo
}

// right is upstream's word on a right, or nil. Needs mu.
func (x *index) right(r right) *validation {
	if repo := x.repositories[r.repository]; repo != nil {
		return repo.rights[r.digest]
	}
	return nil
}

// called is the name of a repository, or what stands for it.
func (r *repository) called(hash [sha256.Size]byte) string {
	if r.name == "" {
		return unnamed + hex.EncodeToString(hash[:])
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

// recordName writes down what a repository is called.
func (c *Cache) recordName(repository string) {
	hash := sha256.Sum256([]byte(repository))
	err := durable.WriteSoon(c.root, path.Join(repositoryName(hash), nameFile), []byte(repository)) // half of it has another hash
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
	if name != path.Join(repositoryName(hash), nameFile) {
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

// noteTag makes known what upstream says that a tag points at.
func (c *Cache) noteTag(repository, tag string, d digest.Digest, validated time.Time) {
	hash := sha256.Sum256([]byte(repository))
	c.mu.Lock()
	defer c.mu.Unlock()
	repo := c.repository(hash)
	repo.name = repository
	if repo.tags[tag].digest != d {
		c.pinMoved(repository, tag)
	}
	repo.tags[tag] = tagged{d, validated}
}

// dropTag drops what is known of a tag, whose file is gone.
func (c *Cache) dropTag(repository, tag string) {
	hash := sha256.Sum256([]byte(repository))
	c.mu.Lock()
	if repo := c.repositories[hash]; repo != nil {
		if _, ok := repo.tags[tag]; ok {
			delete(repo.tags, tag)
			c.pinMoved(repository, tag)
		}
	}
	c.mu.Unlock()
	c.unlist(hash)
}

// foundTag makes known what a file says of a tag, unless more is known. A damaged
// one is left for its next reader.
func (c *Cache) foundTag(name string) {
	l, err := c.readLink(name)
	if err != nil {
		return
	}
	repository, tag := l.split()
	if tagName(repository, tag) != name {
		return
	}
	hash := sha256.Sum256([]byte(repository))
	c.mu.Lock()
	defer c.mu.Unlock()
	repo := c.repository(hash)
	if repo.name == "" {
		repo.name = strings.Clone(repository)
	}
	if _, ok := repo.tags[tag]; ok {
		return
	}
	d := l.Descriptor.Digest
	if e := c.manifests[d]; e != nil {
		d = e.digest // the same, and not in memory twice
	}
	repo.tags[strings.Clone(tag)] = tagged{d, l.validated}
}

// dropRight drops what is known of a right, whose file is gone or about to go.
func (c *Cache) dropRight(r right) {
	c.mu.Lock()
	if repo := c.repositories[r.repository]; repo != nil {
		if repo.rights[r.digest] != nil {
			delete(repo.rights, r.digest)
			c.pinMoved(repo.called(r.repository), string(r.digest))
		}
	}
	c.mu.Unlock()
	c.unlist(r.repository)
}

// unlist forgets a repository of which nothing is left. What can't be removed
// then is found by the next scan, which does this for all. Until it is known what
// is on disk, it can't be known what is left.
func (c *Cache) unlist(hash [sha256.Size]byte) {
	c.mu.Lock()
	repo := c.repositories[hash]
	empty := repo != nil && len(repo.rights) == 0 && len(repo.tags) == 0 && c.isKnown()
	if empty {
		delete(c.repositories, hash)
	}
	c.mu.Unlock()
	if !empty {
		return
	}
	_ = c.root.Remove(path.Join(repositoryName(hash), nameFile))
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
