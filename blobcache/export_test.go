package blobcache

// Shrink makes c plan for blobs as if they were 256 times as large. It has to
// be called before anything else is.
func (c *Cache) Shrink() {
	c.sizes = sizes{segment >> 8, beginning >> 8, granule >> 8, firstPart >> 8, near >> 8, saveEvery >> 8, whole >> 5}
}
