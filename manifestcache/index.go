package manifestcache

import (
	"crypto/sha256"
	"errors"
	"io/fs"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"

	"larder/blobcache/compact"
	"larder/blobcache/durable"
)

// touchAtMost is how often a use or a validation is written to disk as the
// file's mtime, and therefore what a crash may take from its life.
const touchAtMost = time.Hour

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

// index is what is known of the files, and rebuilt from them, and what upstream
// has said beside.
type index struct {
	manifests compact.Table[*entry]
	bytes     int64   // of the manifests
	layers    *layers // what they name
	proofs    proofs

	repositories map[[sha256.Size]byte]*repository // by the hash of their names
}

func newIndex() index {
	return index{
		layers: newLayers(),
		proofs: newProofs(),

		repositories: make(map[[sha256.Size]byte]*repository),
	}
}

// Refers says whether some cached manifest of the repository names the blob d,
// which must be valid, or upstream has allowed it. Unknown may also mean that it
// was forgotten.
func (c *Cache) Refers(repository string, d digest.Digest) Right {
	r := newRight(repository, d)
	k := c.proofs.pair(r)
	c.mu.Lock()
	best := c.best(r, k)
	c.mu.Unlock()
	if best == Granted {
		c.count.remembered.Add(1)
	} else {
		c.count.unremembered.Add(1)
	}
	return best
}

// best is the best right to a blob that anything says. Needs mu.
func (c *Cache) best(r right, k pair) Right {
	best := Unknown
	if _, no := c.proofs.refused[k]; no {
		return best
	}
	if at, ok := c.proofs.proof(k); ok {
		best = c.judge(at)
	}
	repo := c.repositories[r.repository]
	if repo == nil {
		return best
	}
	for e := range c.layers.naming(r.digest) {
		if best == Granted {
			break
		}
		if v := repo.rights.Find(&e.name); v != nil && v.names(e.kind) {
			best = max(best, c.judge(v.at.Time()))
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
	k := c.proofs.pair(newRight(repository, d))
	c.mu.Lock()
	defer c.mu.Unlock()
	c.proofs.prove(k)
}

// Forget notes that upstream says that the blob d, which must be valid, is not in
// the repository, or not for us: from now on it is asked, whatever manifests name.
// A no is not forgotten for another: if there are too many, the repository loses its
// right to the manifests that name the blob, or may, so that none of them says yes.
func (c *Cache) Forget(repository string, d digest.Digest) {
	r := newRight(repository, d)
	k := c.proofs.pair(r)
	var naming []digest.Digest
	c.mu.Lock()
	if repo := c.repositories[r.repository]; !c.proofs.refuse(k) && repo != nil {
		blob := appendPacked(nil, d)
		for v := range repo.rights.All() {
			if e := c.manifests.Find(v.manifest); e == nil || e.number == 0 || e.blobs.has(blob) {
				naming = append(naming, v.manifest.Digest())
			}
		}
	}
	c.mu.Unlock()
	for _, m := range naming {
		c.revoke(repository, m)
	}
}

// fresh reports whether what was validated then need not be asked for yet.
func (c *Cache) fresh(validated time.Time) bool {
	return c.cfg.TTL == 0 || within(c.cfg.TTL, validated)
}

// within reports whether what was validated then is not older than d, and not of
// the future either: a clock that has gone back must not make it last.
func within(d time.Duration, validated time.Time) bool {
	age := time.Since(validated)
	return 0 <= age && age < d
}

// validated is what upstream last said of the manifest d in the repository, if
// that was a yes.
func (c *Cache) validated(repository string, d digest.Digest) (word, bool) {
	r := newRight(repository, d)
	c.mu.Lock()
	v := c.right(r)
	if v != nil {
		defer c.mu.Unlock()
		return v.word, true
	}
	c.mu.Unlock()
	if c.isKnown() || !c.findRight(r) {
		return word{}, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if v = c.right(r); v == nil {
		return word{}, false // revoked meanwhile
	}
	return v.word, true
}

// findRight is readRight for who does not change the file.
func (c *Cache) findRight(r right) bool {
	defer c.changes.begin(rightName(r))()
	return c.readRight(r)
}

// readRight makes known what a file says of a right, unless more is known. It
// reports whether there is such a file. Needs the change of it.
func (c *Cache) readRight(r right) bool {
	mediaType, mtime, err := c.readFile(rightName(r))
	if err != nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.right(r) == nil {
		v := c.addRight(c.repository(r.repository), r.digest)
		v.at, v.touched, v.mediaType = compact.TimeOf(mtime), compact.SecondsOf(mtime), shared(string(mediaType))
		c.schedule(v, past(mtime))
	}
	return true
}

// addRight makes known that a repository has the manifest d. When upstream said so is
// the caller's to say. Needs mu.
func (x *index) addRight(repo *repository, d digest.Digest) *validation {
	v := &validation{repository: repo, manifest: x.name(d)}
	repo.rights.Put(v)
	return v
}

// name is the digest of a manifest, in memory once for all who refer to it. Needs mu.
func (x *index) name(d digest.Digest) *compact.Digest {
	name := compact.Of(d)
	if e := x.manifests.Find(&name); e != nil {
		return &e.name
	}
	return &name
}

// validate records that upstream says that the repository has m, now.
func (c *Cache) validate(repository string, m *Manifest) {
	r := newRight(repository, m.Digest)
	defer c.changes.begin(rightName(r))()
	now := time.Now()
	c.mu.Lock()
	repo := c.repository(r.repository)
	name := !repo.recorded
	repo.name, repo.recorded = repository, true
	v := repo.rights.Get(m.Digest)
	if v == nil {
		v = c.addRight(repo, m.Digest)
		c.pinMoved(repository, string(m.Digest))
	}
	write := now.Sub(v.touched.Time()).Abs() >= c.touchEvery() || v.mediaType != m.MediaType
	v.at, v.mediaType = compact.TimeOf(now), shared(m.MediaType)
	if write {
		v.touched = compact.SecondsOf(now)
		c.schedule(v, now)
	}
	c.mu.Unlock()
	if name {
		c.recordName(repository)
	}
	if write {
		c.recordRight(repository, r, m.MediaType, now)
	}
}

// recordRight needs the change of the file.
func (c *Cache) recordRight(repository string, r right, mediaType string, now time.Time) {
	name := rightName(r)
	err := durable.WriteSoon(c.root, name, []byte(mediaType)) // half of it is no type of any manifest
	if err == nil {
		err = c.root.Chtimes(name, now, now)
	}
	if err != nil {
		c.complain("right of a repository not recorded", err, zap.String("repository", repository), zap.Stringer("digest", r.digest))
	}
}

// revoke records that the repository does not have the manifest d any more.
func (c *Cache) revoke(repository string, d digest.Digest) {
	r := newRight(repository, d)
	defer c.changes.begin(rightName(r))()
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

// use notes that m, whose file has the given mtime, is used now. Needs the change of
// that.
func (c *Cache) use(m *Manifest, mtime time.Time) {
	now := time.Now()
	c.mu.Lock()
	e := c.manifests.Get(m.Digest)
	if k := kindOf(m.MediaType); e == nil || e.number == 0 || e.kind != k {
		c.mu.Unlock()
		named := namesOf(k, m.Body)
		c.mu.Lock()
		e = c.add(m, mtime, now, named)
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
	e.used = compact.TimeOf(now)
	if touch = c.touchDue(e, now); touch {
		e.touched = compact.SecondsOf(now)
	}
	return touch
}

// touchDue reports whether a use of e now would be written to disk. Needs mu.
func (c *Cache) touchDue(e *entry, now time.Time) bool {
	return now.Sub(e.touched.Time()).Abs() >= c.touchEvery()
}

func (c *Cache) touch(d digest.Digest, now time.Time) {
	if err := c.root.Chtimes(manifestName(d), now, now); err != nil && !errors.Is(err, fs.ErrNotExist) { // removed meanwhile
		c.complain("use of a manifest not recorded; it may expire early", err)
	}
}

// Blobs lists the blobs of the image d, or of all images that the index d lists,
// as far as their manifests are cached, and what they name is remembered. This is
// a use of these manifests.
func (c *Cache) Blobs(d digest.Digest) []digest.Digest {
	now := time.Now()
	var blobs, touch []digest.Digest
	c.mu.Lock()
	here, _ := c.reach(d, nil)
	for _, d := range here {
		e := c.manifests.Get(d)
		if c.usedAt(e, now) {
			touch = append(touch, d)
		}
		for b := range e.blobs.digests() {
			blobs = append(blobs, b)
		}
	}
	c.mu.Unlock()
	for _, d := range touch {
		c.touch(d, now)
	}
	return blobs
}

// add makes m known, which names others and was last used then, and remembered
// what it names as what it is, unless that is so. Needs mu.
func (c *Cache) add(m *Manifest, mtime, used time.Time, named names) *entry {
	e, kind := c.manifests.Get(m.Digest), kindOf(m.MediaType)
	if e == nil {
		e = &entry{name: compact.Of(m.Digest), size: m.Size, touched: compact.SecondsOf(mtime)}
		c.manifests.Put(e)
		c.schedule(e, used)
		c.bytes += e.size
		if c.pins.held[m.Digest] {
			c.repin() // now it is known what it leads to
		}
	}
	if e.number != 0 && e.kind != kind { // upstream has changed its mind
		c.layers.remove(e)
	}
	if e.number == 0 {
		e.kind = kind
		e.used = max(e.used, compact.TimeOf(used))
		c.layers.add(e, named)
	}
	return e
}

// forget drops what is known of the manifest d, whose file is gone. Needs the change
// of that.
func (c *Cache) forget(d digest.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dropManifest(d)
}

// dropManifest takes a manifest out of the index, if it is there. Needs mu.
func (c *Cache) dropManifest(d digest.Digest) {
	e := c.manifests.Get(d)
	if e == nil {
		return
	}
	c.manifests.Delete(e)
	c.bytes -= e.size
	c.cfg.Memory.Delete(memoryKey(d))
	c.due.Delete(e)
	if e.number != 0 {
		c.layers.remove(e)
	}
}
