package manifestcache

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io/fs"
	"path"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"
)

const (
	// touchAtMost is how often a use or a validation is written to disk as the
	// file's mtime, and therefore what a crash may take from its life.
	touchAtMost = time.Hour

	// maxProven bounds how many blobs are remembered that upstream allowed
	// though no manifest names them. Forgetting one costs a HEAD.
	maxProven = 100_000
)

// Right is what is known of a repository's right to a blob.
type Right uint8

const (
	Unknown   Right = iota // upstream has to be asked
	Unrenewed              // it had it, but upstream was not asked for long
	Granted
)

// right is a repository, by the hash of its name, and what it has.
type right struct {
	repository [sha256.Size]byte
	digest     digest.Digest
}

func newRight(repository string, d digest.Digest) right {
	return right{repository: sha256.Sum256([]byte(repository)), digest: d}
}

// index is what is known of the files, and rebuilt from them.
type index struct {
	manifests map[digest.Digest]*entry
	namedBy   map[digest.Digest][]digest.Digest // blob to the manifests that name it
	proven    map[right]time.Time               // repository has blob, says upstream
	refused   map[right]bool                    // it has not, whatever its manifests name

	repositories map[[sha256.Size]byte]*repository // by the hash of their names
}

type entry struct {
	size    int64
	used    time.Time
	touched time.Time       // the file's mtime
	hits    int64           // answers with it that it did not have to be fetched for
	blobs   []digest.Digest // that the manifest names
	lists   []digest.Digest // the manifests that it names, if it is an index
}

// validation is upstream's word that a repository has a manifest.
type validation struct {
	at, touched time.Time
	mediaType   string // that the manifest has there; "" if the file does not say
}

// covers reports whether upstream's word is about m as it is on disk: another
// repository may have it there as something else.
func (v validation) covers(m *Manifest) bool { return v.mediaType == "" || v.mediaType == m.MediaType }

func newIndex() index {
	return index{
		manifests: make(map[digest.Digest]*entry),
		namedBy:   make(map[digest.Digest][]digest.Digest),
		proven:    make(map[right]time.Time),
		refused:   make(map[right]bool),

		repositories: make(map[[sha256.Size]byte]*repository),
	}
}

// Refers says whether some cached manifest of the repository names the blob d,
// or upstream has allowed it.
func (c *Cache) Refers(repository string, d digest.Digest) Right {
	r := newRight(repository, d)
	c.mu.Lock()
	defer c.mu.Unlock()
	best := Unknown
	if c.refused[r] {
		return best
	}
	if at, ok := c.proven[r]; ok {
		best = c.judge(at)
	}
	for _, manifest := range c.namedBy[d] {
		if best == Granted {
			break
		}
		if v := c.right(right{r.repository, manifest}); v != nil {
			best = max(best, c.judge(v.at))
		}
	}
	return best
}

func (c *Cache) judge(validated time.Time) Right {
	if c.fresh(validated) {
		return Granted
	}
	return Unrenewed
}

// Remember notes that upstream has the blob d in the repository, now.
func (c *Cache) Remember(repository string, d digest.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.proven) >= maxProven {
		clear(c.proven)
	}
	r := newRight(repository, d)
	c.proven[r] = time.Now()
	delete(c.refused, r)
}

// Forget notes that upstream says that the blob d is not in the repository, or
// not for us: from now on it is asked, whatever manifests name.
func (c *Cache) Forget(repository string, d digest.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := newRight(repository, d)
	delete(c.proven, r)
	if len(c.refused) < maxProven {
		c.refused[r] = true
	}
}

// fresh reports whether what was validated then need not be asked for yet.
func (c *Cache) fresh(validated time.Time) bool {
	return c.cfg.TTL == 0 || time.Since(validated) < c.cfg.TTL
}

// validated is what upstream last said of the manifest d in the repository, if
// that was a yes.
func (c *Cache) validated(repository string, d digest.Digest) (validation, bool) {
	r := newRight(repository, d)
	c.mu.Lock()
	v := c.right(r)
	if v != nil {
		defer c.mu.Unlock()
		return *v, true
	}
	c.mu.Unlock()
	if c.isKnown() || !c.readRight(r) {
		return validation{}, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if v = c.right(r); v == nil {
		return validation{}, false // revoked meanwhile
	}
	return *v, true
}

// readRight makes known what a file says of a right, unless more is known. It
// reports whether there is such a file.
func (c *Cache) readRight(r right) bool {
	mediaType, mtime, err := c.readFile(rightName(r))
	if err != nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if rights := c.repository(r.repository).rights; rights[r.digest] == nil {
		rights[r.digest] = &validation{at: mtime, touched: mtime, mediaType: string(mediaType)}
	}
	return true
}

// validate records that upstream says that the repository has m, now.
func (c *Cache) validate(repository string, m *Manifest) {
	r, now := newRight(repository, m.Digest), time.Now()
	c.mu.Lock()
	repo := c.repository(r.repository)
	name := !repo.recorded
	repo.name, repo.recorded = repository, true
	v := repo.rights[m.Digest]
	if v == nil {
		v = new(validation)
		repo.rights[m.Digest] = v
	}
	write := now.Sub(v.touched) >= c.touchEvery() || v.mediaType != m.MediaType
	if write {
		v.touched = now
	}
	v.at, v.mediaType = now, m.MediaType
	c.mu.Unlock()
	if name {
		c.recordName(repository)
	}
	if write {
		c.recordRight(repository, r, m.MediaType, now)
	}
}

func (c *Cache) recordRight(repository string, r right, mediaType string, now time.Time) {
	name := rightName(r)
	err := c.root.MkdirAll(path.Dir(name), 0o700)
	if err == nil {
		err = c.root.WriteFile(name, []byte(mediaType), 0o600) // half of it is no type of any manifest
	}
	if err == nil {
		err = c.root.Chtimes(name, now, now)
	}
	if err != nil {
		c.disk.Warn("right of a repository not recorded", zap.String("repository", repository), zap.Stringer("digest", r.digest), zap.Error(err))
	}
	c.schedule(name, now)
}

// revoke records that the repository does not have the manifest d any more.
func (c *Cache) revoke(repository string, d digest.Digest) {
	r := newRight(repository, d)
	c.due.Delete(rightName(r))
	if err := c.root.RemoveAll(rightName(r)); err != nil {
		c.log.Error("right of a repository not removed", zap.String("repository", repository), zap.Stringer("digest", d), zap.Error(err))
	}
	c.dropRight(r)
}

func (c *Cache) touchEvery() time.Duration {
	if c.cfg.TTL > 0 {
		return min(touchAtMost, c.cfg.TTL/10)
	}
	return touchAtMost
}

// use notes that m, whose file has the given mtime, is used now.
func (c *Cache) use(m *Manifest, mtime time.Time) {
	now, name := time.Now(), manifestName(m.Digest)
	c.mu.Lock()
	e := c.manifests[m.Digest]
	if e == nil {
		c.mu.Unlock()
		named := namesOf(m.Body)
		c.mu.Lock()
		e = c.add(m, mtime, named)
		c.schedule(name, now)
	}
	touch := c.usedAt(e, now)
	c.mu.Unlock()
	if touch {
		c.touch(m.Digest, now)
	}
}

// usedAt notes a use of e, and reports whether it is to be written to disk.
// Needs mu.
func (c *Cache) usedAt(e *entry, now time.Time) (touch bool) {
	e.used = now
	if touch = now.Sub(e.touched).Abs() >= c.touchEvery(); touch {
		e.touched = now
	}
	return touch
}

func (c *Cache) touch(d digest.Digest, now time.Time) {
	if err := c.root.Chtimes(manifestName(d), now, now); err != nil && !errors.Is(err, fs.ErrNotExist) { // removed meanwhile
		c.disk.Warn("use of a manifest not recorded; it may expire early", zap.Error(err))
	}
}

// Blobs lists the blobs of the image d, or of all images that the index d lists,
// as far as their manifests are cached. This is a use of these manifests.
func (c *Cache) Blobs(d digest.Digest) []digest.Digest {
	now := time.Now()
	var blobs, touch []digest.Digest
	c.mu.Lock()
	here, _ := c.reach(d)
	for _, d := range here {
		e := c.manifests[d]
		if c.usedAt(e, now) {
			touch = append(touch, d)
		}
		blobs = append(blobs, e.blobs...)
	}
	c.mu.Unlock()
	for _, d := range touch {
		c.touch(d, now)
	}
	return blobs
}

// add makes m, which names others, known unless it is. Needs mu.
func (c *Cache) add(m *Manifest, mtime time.Time, named names) *entry {
	if e := c.manifests[m.Digest]; e != nil {
		return e
	}
	e := &entry{size: m.Size, used: mtime, touched: mtime, blobs: named.blobs, lists: named.manifests}
	c.manifests[m.Digest] = e
	for _, b := range e.blobs {
		c.namedBy[b] = append(c.namedBy[b], m.Digest)
	}
	return e
}

// forget drops what is known of the manifest d, whose file is gone.
func (c *Cache) forget(d digest.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.manifests[d] != nil {
		c.dropManifests(map[digest.Digest]bool{d: true})
		c.due.Delete(manifestName(d))
	}
}

// dropManifests takes manifests out of the index. Many at once, as others may
// name the same blobs: a list of these is gone through once. Needs mu.
func (x *index) dropManifests(gone map[digest.Digest]bool) {
	named := make(map[digest.Digest]bool)
	for d := range gone {
		if e := x.manifests[d]; e != nil {
			delete(x.manifests, d)
			for _, b := range e.blobs {
				named[b] = true
			}
		}
	}
	for b := range named {
		var others []digest.Digest
		for _, m := range x.namedBy[b] {
			if !gone[m] {
				others = append(others, m)
			}
		}
		if x.namedBy[b] = others; len(others) == 0 {
			delete(x.namedBy, b)
		}
	}
}

// names is what a manifest names.
type names struct{ blobs, manifests []digest.Digest }

// namesOf lists what a manifest of any kind names, each once.
func namesOf(body []byte) names {
	type named struct {
		Digest digest.Digest `json:"digest"`
	}
	var doc struct {
		Config    named   `json:"config"`
		Layers    []named `json:"layers"`
		Blobs     []named `json:"blobs"` // artifact manifests
		Manifests []named `json:"manifests"`
		FSLayers  []struct {
			BlobSum digest.Digest `json:"blobSum"`
		} `json:"fsLayers"` // Docker's schema 1
	}
	if json.Unmarshal(body, &doc) != nil {
		return names{}
	}
	blobs := append(append(doc.Layers, doc.Blobs...), doc.Config)
	for _, l := range doc.FSLayers {
		blobs = append(blobs, named{l.BlobSum})
	}
	once := func(all []named) (list []digest.Digest) {
		seen := make(map[digest.Digest]bool, len(all))
		for _, n := range all {
			if n.Digest.Validate() == nil && !seen[n.Digest] {
				seen[n.Digest] = true
				list = append(list, n.Digest)
			}
		}
		return list
	}
	return names{once(blobs), once(doc.Manifests)}
}
