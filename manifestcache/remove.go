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
	unlink := func(name string, again func() bool) (gone bool) {
		gone, ok := c.unlink(name, again)
		if !ok {
			failed++
		}
		return gone
	}
	for _, t := range p.Tags {
		unlink(tagName(t.Repository, t.Name), func() bool {
			repo := c.repositories[hashOf(t.Repository)]
			return repo != nil && repo.tags[t.Name] != nil
		})
	}
	for r := range p.removal.rights {
		unlink(rightName(r), func() bool { return c.right(r) != nil })
	}
	// Not before: it also removes their directories, in which nothing is left then.
	for hash := range changed {
		c.unlist(hash)
	}
	p.Manifests = slices.DeleteFunc(p.Manifests, func(m Sized) bool {
		return !unlink(manifestName(m.Digest), func() bool { return c.manifests.Get(m.Digest) != nil })
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

// unlink removes the file of what was taken out of the index, unless that is in it
// again, as somebody has pulled it meanwhile. If it is not ok, it is still there
// otherwise, and known again. again is called with mu.
func (c *Cache) unlink(name string, again func() bool) (gone, ok bool) {
	defer c.changes.begin(name)()
	c.mu.Lock()
	pulled := again()
	c.mu.Unlock()
	if pulled {
		return false, true
	}
	if err := c.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.log.Error("file not removed, as an operator wants", zap.String("path", name), zap.Error(err))
		if !c.read(name) {
			c.schedule(&unread{name: name}, time.Now())
		}
		return false, false
	}
	return true, true
}
