package manifestcache

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"

	"larder/blobcache/compact"
	"larder/ttl"
)

// retryRemoval is when a file that could not be removed is tried again.
const retryRemoval = time.Minute

// expiring is what expires: a manifest, a right, a tag, a list, or a file that could
// not be read.
type expiring interface {
	ttl.Placed
	// file is the name of its file, which is not kept: it takes more than all else.
	// Needs mu.
	file() string
	// known reports whether this is what the index has, and not what it had. Needs mu.
	known(c *Cache) bool
	// lifeEnds is when its life ends unless it is used. If it lives as long as a
	// manifest, it is held as long as that is there. Needs mu.
	lifeEnds(c *Cache) (end time.Time, held bool)
	// gone drops it, whose file has been removed. Needs the change of that.
	gone(c *Cache)
}

// schedule has x, which was used then, looked at in its time.
func (c *Cache) schedule(x expiring, used time.Time) {
	if c.cfg.TTL > 0 {
		c.due.Set(x, used.Add(c.cfg.TTL))
	}
}

// Run finds out what is on disk and then removes what has not been used for
// its time to live, until ctx is done. What Run has not found yet can be asked
// for all the same. It must be called once only.
func (c *Cache) Run(ctx context.Context) error {
	c.scan(ctx)
	if ctx.Err() != nil {
		c.scanErr = ErrClosed
	}
	close(c.scanned)
	c.mu.Lock()
	hashes := slices.Collect(maps.Keys(c.repositories))
	c.mu.Unlock()
	for _, hash := range hashes {
		c.unlist(hash)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx) // it is not known what pins hold
	}
	c.workOutPins()
	var pinning sync.WaitGroup
	pinning.Go(func() { c.keepPins(ctx) })
	defer pinning.Wait()
	return c.due.Run(ctx, c.expire)
}

// expire is called when x may have come to the end of its life. Manifests and lists
// live by their use. Tags and rights live as long as the manifest they are about: past
// their time they count only if upstream can't be asked.
func (c *Cache) expire(x expiring) (next time.Time, keep bool) {
	c.mu.Lock()
	name := x.file()
	c.mu.Unlock()
	defer c.changes.begin(name)()
	if _, ok := x.(*unread); ok && c.read(name) {
		return next, false
	}
	c.mu.Lock()
	known := x.known(c)
	end, held := x.lifeEnds(c)
	c.mu.Unlock()
	switch {
	case !known:
		return next, false
	case time.Now().Before(end):
		return end, true
	case held: // the manifest is about to go; then this can
		return time.Now().Add(retryRemoval), true
	}
	if err := c.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.log.Error("expired file not removed; trying again", zap.String("path", name), zap.Error(err))
		c.count.failed.Add(1)
		return time.Now().Add(retryRemoval), true
	}
	x.gone(c)
	return next, false
}

// lifeWith is the end of life of what lives as long as a manifest. Needs mu.
func (c *Cache) lifeWith(manifest *compact.Digest) (end time.Time, held bool) {
	e := c.manifests.Find(manifest)
	switch {
	case c.pins.held[manifest.Digest()]:
		end = time.Now().Add(c.cfg.TTL) // or when it is released
	case e != nil:
		end = e.used.Time().Add(c.cfg.TTL)
	}
	return end, e != nil
}

// unread is a file that could not be read, by its name. It is read again at the end
// of its life: it may be a good one by then, which is known.
type unread struct {
	name  string
	place ttl.Place
}

func (u *unread) Place() *ttl.Place                       { return &u.place }
func (u *unread) file() string                            { return u.name }
func (u *unread) known(*Cache) bool                       { return true }
func (u *unread) lifeEnds(*Cache) (end time.Time, _ bool) { return end, false }
func (u *unread) gone(*Cache)                             {}

// parseManifestName is the opposite of manifestName.
func parseManifestName(name string) (digest.Digest, bool) {
	algorithm, _, _ := strings.Cut(name, "/")
	d, err := digest.Parse(algorithm + ":" + path.Base(name))
	return d, err == nil && manifestName(d) == name
}

// isTagName reports whether tagName makes such names.
func isTagName(name string) bool {
	hash, err := hex.DecodeString(path.Base(name))
	return err == nil && len(hash) == sha256.Size && tagFile(hash) == name
}

// parseRight is the opposite of rightName.
func parseRight(name string) (r right, ok bool) {
	repository, err := hex.DecodeString(path.Base(path.Dir(name)))
	if err != nil || len(repository) != len(r.repository) {
		return r, false
	}
	copy(r.repository[:], repository)
	r.digest, err = digest.Parse(strings.Replace(path.Base(name), "-", ":", 1))
	return r, err == nil && rightName(r) == name
}

// scan makes everything on disk known. Files that are not the cache's are left
// alone; damaged ones are found when they are read. Manifests come before the rights
// to them, which then need no digests of their own.
func (c *Cache) scan(ctx context.Context) {
	var junk []string
	look := func(name string, de fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return fs.SkipAll
		}
		if err == nil && de.IsDir() || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			c.unread.Store(true)
		}
		if err != nil || !c.found(name, de) {
			junk = append(junk, name)
		}
		return nil
	}
	err := fs.WalkDir(c.root.FS(), ".", func(name string, de fs.DirEntry, err error) error {
		if name == repositoryDir && de.IsDir() {
			return fs.SkipDir
		}
		return look(name, de, err)
	})
	err = errors.Join(err, fs.WalkDir(c.root.FS(), repositoryDir, look))
	if len(junk) > 0 || err != nil {
		c.log.Warn("files in the cache are not manifests; left alone",
			zap.Int("files", len(junk)), zap.Strings("first", junk[:min(len(junk), 3)]), zap.Error(err))
	}
	c.count.scans.Add(1)
}

// found makes one file of the scan known; false if it is not one of the cache's.
func (c *Cache) found(name string, de fs.DirEntry) (ok bool) {
	if !de.Type().IsRegular() {
		return false
	}
	fi, err := de.Info()
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	switch dir, _, _ := strings.Cut(name, "/"); dir {
	case "tmp":
		return true // being written
	case tagDir:
		ok = isTagName(name)
	case pinDir:
		return true // read already
	case listDir:
		if ok = isListName(name); ok {
			c.foundList(name, fi)
		}
		return ok
	case repositoryDir:
		if path.Base(name) == nameFile {
			return c.foundName(name)
		}
		_, ok = parseRight(name)
	default:
		_, ok = parseManifestName(name)
	}
	if !ok {
		return false
	}
	defer c.changes.begin(name)()
	if ok = c.read(name); !ok && !c.there(name) {
		return true // removed meanwhile
	}
	if !ok {
		c.unread.Store(true)
		c.schedule(&unread{name: name}, past(fi.ModTime()))
	}
	return ok
}

// foundList makes a list known.
func (c *Cache) foundList(name string, fi fs.FileInfo) {
	end := c.changes.begin(name)
	if c.there(name) {
		c.useList(name, fi.Size(), past(fi.ModTime()))
	}
	end()
	c.trimLists(name)
}

// there reports whether there is a file, or may be.
func (c *Cache) there(name string) bool {
	_, err := c.root.Lstat(name)
	return !errors.Is(err, fs.ErrNotExist)
}

// read makes known what a file says of a manifest, a right or a tag. It reports false
// if that can't be read: a damaged one is left for its next reader, or its end of
// life. Needs the change of the file.
func (c *Cache) read(name string) (known bool) {
	switch dir, _, _ := strings.Cut(name, "/"); dir {
	case tagDir:
		return c.foundTag(name)
	case repositoryDir:
		r, _ := parseRight(name)
		return c.readRight(r)
	default:
		d, _ := parseManifestName(name)
		return c.foundManifest(d)
	}
}

// foundManifest makes the manifest d known. Needs the change of its file.
func (c *Cache) foundManifest(d digest.Digest) (known bool) {
	m, mtime, err := c.readManifest(d)
	if err != nil {
		return false
	}
	named := namesOf(kindOf(m.MediaType), m.Body)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.add(m, mtime, past(mtime), named)
	return true
}

// past is when a file was used: not in the future, where a clock that was wrong
// may have put it.
func past(mtime time.Time) time.Time {
	if now := time.Now(); mtime.After(now) {
		return now
	}
	return mtime
}
