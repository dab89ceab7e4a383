package manifestcache

import (
	"crypto/sha256"
	"errors"
	"io/fs"
	"maps"
	"slices"
	"time"

	"go.uber.org/zap"
)

// Remove does what was planned, as far as it is still so, and says what went. The
// blobs are left to the caller. failed is how many files are still there.
func (c *Cache) Remove(planned *Plan) (went *Plan, failed int) {
	c.mu.Lock()
	p := c.plan(planned.removal)
	lost := c.forgetAll(p)
	c.mu.Unlock()
	p.sorted()
	for _, hash := range lost {
		c.removeListsOf(hash)
	}
	for _, t := range p.Tags {
		name := tagName(t.Repository, t.Name)
		if !c.unlink(name) {
			c.foundTag(name)
			failed++
		}
	}
	for r := range p.removal.rights {
		if !c.unlink(rightName(r)) {
			c.readRight(r)
			failed++
		}
		c.unlist(r.repository)
	}
	for key := range p.removal.tags {
		c.unlist(key.repository)
	}
	p.Manifests = slices.DeleteFunc(p.Manifests, func(m Sized) bool {
		name := manifestName(m.Digest)
		if c.unlink(name) {
			return false
		}
		c.foundManifest(m.Digest)
		failed++
		return true
	})
	return p, failed
}

// forgetAll takes what a plan has out of the index. It returns the repositories
// that have no manifest any more. Needs mu.
func (c *Cache) forgetAll(p *Plan) (lost [][sha256.Size]byte) {
	emptied := make(map[[sha256.Size]byte]bool)
	for key := range p.removal.tags {
		if repo := c.repositories[key.repository]; repo != nil {
			delete(repo.tags, key.name)
			emptied[key.repository] = len(repo.rights) == 0
		}
	}
	for r := range p.removal.rights {
		if repo := c.repositories[r.repository]; repo != nil {
			delete(repo.rights, r.digest)
			emptied[r.repository] = len(repo.rights) == 0
		}
	}
	for _, m := range p.Manifests {
		c.dropManifest(m.Digest)
	}
	maps.DeleteFunc(emptied, func(_ [sha256.Size]byte, empty bool) bool { return !empty })
	lost = slices.Collect(maps.Keys(emptied))
	if len(lost) > 0 {
		c.proofs.forgetRepositories(lost)
	}
	return lost
}

// unlink removes a file; false if it is still there.
func (c *Cache) unlink(name string) bool {
	c.due.Delete(name)
	if err := c.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.log.Error("file not removed, as an operator wants", zap.String("path", name), zap.Error(err))
		c.schedule(name, time.Now())
		return false
	}
	return true
}
