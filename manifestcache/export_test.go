package manifestcache

// Known is how many repositories something is known of.
func (c *Cache) Known() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.repositories)
}

// Bound makes c remember no more than so many digests that manifests name, blobs
// that upstream has allowed, and blobs that it has refused.
func (c *Cache) Bound(named, proven, refused int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.proofs.maxProven, c.proofs.maxRefused = proven, refused
	for c.layers.max = named; c.layers.held > named; {
		c.layers.remove(c.layers.oldest())
	}
}
