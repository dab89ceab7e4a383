package manifestcache

import (
	"time"

	"larder/blobcache/compact"
	"larder/ttl"
)

// entry is what is known of a manifest.
type entry struct {
	name    compact.Digest
	size    int64
	used    compact.Time
	hits    int64           // answers with it that it did not have to be fetched for
	touched compact.Seconds // the file's mtime
	place   ttl.Place       // in Cache.due
	kind    kind            // as which it names what follows

	number uint32 // among the layers; 0: what it names is not remembered
	blobs  packed // that the manifest names
	lists  packed // the manifests that it names, if it is an index
}

// Name implements compact.Named.
func (e *entry) Name() *compact.Digest { return &e.name }

// Place implements ttl.Placed.
func (e *entry) Place() *ttl.Place { return &e.place }

func (e *entry) file() string        { return manifestName(e.name.Digest()) }
func (e *entry) known(c *Cache) bool { return c.manifests.Find(&e.name) == e }

func (e *entry) lifeEnds(c *Cache) (end time.Time, held bool) {
	end, _ = c.lifeWith(&e.name)
	return end, false
}

func (e *entry) gone(c *Cache) {
	c.forget(e.name.Digest())
	c.count.expired.Add(1)
}

// validation is upstream's word that a repository has a manifest.
type validation struct {
	repository *repository
	manifest   *compact.Digest // which may be that of the manifest's entry
	word
	touched compact.Seconds // the file's mtime
	place   ttl.Place       // in Cache.due
}

// word is what upstream said, and when.
type word struct {
	at        compact.Time
	mediaType string // that the manifest has there; "" if the file does not say
}

// Name implements compact.Named.
func (v *validation) Name() *compact.Digest { return v.manifest }

// Place implements ttl.Placed.
func (v *validation) Place() *ttl.Place { return &v.place }

// right is what it is about.
func (v *validation) right() right { return right{v.repository.hash, v.manifest.Digest()} }

func (v *validation) file() string        { return rightName(v.right()) }
func (v *validation) known(c *Cache) bool { return v.repository.rights.Find(v.manifest) == v }
func (v *validation) gone(c *Cache)       { c.dropRight(v.right()) }

func (v *validation) lifeEnds(c *Cache) (end time.Time, held bool) { return c.lifeWith(v.manifest) }

// covers reports whether upstream's word is about m as it is on disk: another
// repository may have it there as something else.
func (w word) covers(m *Manifest) bool { return w.mediaType == "" || w.mediaType == m.MediaType }

// names reports whether upstream's word is about a manifest that names what one of
// kind k does.
func (w word) names(k kind) bool {
	return k != other && (w.mediaType == "" || kindOf(w.mediaType) == k)
}
