package manifestcache

import (
	"crypto/sha256"
	"errors"
	"io/fs"
	"slices"
	"time"

	"go.uber.org/zap"
)

// Remove does what was planned, as far as it is still so, and says what went. The
// blobs are left to the caller. failed is how many files are still there.
func (c *Cache) Remove(planned *Plan) (went *Plan, failed int) {
	c.mu.Lock()
	p := c.plan(planned.removal)
	changed, lost := c.forgetAll(p)
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
	}
	// Not before: it also removes their directories, in which nothing is left then.
	for hash := range changed {
		c.unlist(hash)
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
// that have lost something, and those of them that have no manifest any more. Needs
// mu.
func (c *Cache) forgetAll(p *Plan) (changed map[[sha256.Size]byte]*repository, lost [][sha256.Size]byte) {
	changed = make(map[[sha256.Size]byte]*repository)
	for key := range p.removal.tags {
		if repo := c.repositories[key.repository]; repo != nil {
			delete(repo.tags, key.name)
			changed[key.repository] = repo
		}
	}
	for r := range p.removal.rights {
		if repo := c.repositories[r.repository]; repo != nil {
			delete(repo.rights, r.digest)
			changed[r.repository] = repo
		}
	}
	for _, m := range p.Manifests {
		c.dropManifest(m.Digest)
	}
	if len(changed) > 0 {
		c.repin()
	}
	for hash, repo := range changed {
		if len(repo.rights) == 0 {
			lost = append(lost, hash)
		}
	}
	if len(lost) > 0 {
		c.proofs.forgetRepositories(lost)
	}
	return changed, lost
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
