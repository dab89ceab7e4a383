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
		if !c.unlink(tagName(t.Repository, t.Name)) {
			failed++
		}
	}
	for r := range p.removal.rights {
		if !c.unlink(rightName(r)) {
			failed++
		}
	}
	// Not before: it also removes their directories, in which nothing is left then.
	for hash := range changed {
		c.unlist(hash)
	}
	p.Manifests = slices.DeleteFunc(p.Manifests, func(m Sized) bool {
		if c.unlink(manifestName(m.Digest)) {
			return false
		}
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
			c.takeTag(repo, key.name)
			changed[key.repository] = repo
		}
	}
	for r := range p.removal.rights {
		if repo := c.repositories[r.repository]; repo != nil {
			c.takeRight(repo, r.digest)
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
		if repo.rights.Len() == 0 {
			lost = append(lost, hash)
		}
	}
	if len(lost) > 0 {
		c.proofs.forgetRepositories(lost)
	}
	return changed, lost
}

// unlink removes a file; false if it is still there, and known again.
func (c *Cache) unlink(name string) bool {
	if err := c.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.log.Error("file not removed, as an operator wants", zap.String("path", name), zap.Error(err))
		if !c.read(name) {
			c.schedule(&unread{name: name}, time.Now())
		}
		return false
	}
	return true
}
