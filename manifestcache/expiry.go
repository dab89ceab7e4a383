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
)

// retryRemoval is when a file that could not be removed is tried again.
const retryRemoval = time.Minute

func (c *Cache) schedule(name string, used time.Time) {
	if c.cfg.TTL > 0 {
		c.due.Set(name, used.Add(c.cfg.TTL))
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

// expire is called when the file name may have come to the end of its life.
// Manifests and lists live by their use. Tags and rights live as long as the manifest
// they are about: past their time they count only if upstream can't be asked.
func (c *Cache) expire(name string) (next time.Time, keep bool) {
	d, kind, link := c.subject(name)
	end := c.lists.lastUse(name).Add(c.cfg.TTL)
	c.mu.Lock()
	e := c.manifests[d]
	if e != nil {
		end = e.used.Add(c.cfg.TTL)
	}
	if c.pins.held[d] {
		end = time.Now().Add(c.cfg.TTL) // or when it is released
	}
	c.mu.Unlock()
	if time.Now().Before(end) {
		return end, true
	}
	if kind != "" && e != nil { // the manifest is about to go; then this can
		return time.Now().Add(retryRemoval), true
	}
	if err := c.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.log.Error("expired file not removed; trying again", zap.String("path", name), zap.Error(err))
		c.count.failed.Add(1)
		return time.Now().Add(retryRemoval), true
	}
	switch kind {
	case "":
		c.forget(d)
		c.count.expired.Add(1)
	case listDir:
		c.lists.forget(name)
		_ = c.root.Remove(path.Dir(name)) // unless there are others
	case repositoryDir:
		if r, ok := parseRight(name); ok {
			c.dropRight(r)
		}
	case tagDir:
		if link != nil {
			c.dropTag(link.split())
		}
	}
	return next, false
}

// subject is the manifest that a file is about, and the directory that says in
// what way; "" for the manifest itself. A tag's file has a link, unless it is
// damaged.
func (c *Cache) subject(name string) (d digest.Digest, kind string, l *link) {
	switch dir, _, _ := strings.Cut(name, "/"); dir {
	case tagDir:
		if l, err := c.readLink(name); err == nil {
			return l.Descriptor.Digest, tagDir, l
		}
		return "", tagDir, nil
	case repositoryDir:
		r, _ := parseRight(name)
		return r.digest, repositoryDir, nil
	case listDir:
		return "", listDir, nil
	default:
		d, _ = parseManifestName(name)
		return d, "", nil
	}
}

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
// alone; damaged ones are found when they are read.
func (c *Cache) scan(ctx context.Context) {
	var junk []string
	err := fs.WalkDir(c.root.FS(), ".", func(name string, de fs.DirEntry, err error) error {
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
	})
	if len(junk) > 0 || err != nil {
		c.log.Warn("files in the cache are not manifests; left alone",
			zap.Int("files", len(junk)), zap.Strings("first", junk[:min(len(junk), 3)]), zap.Error(err))
	}
	c.count.scans.Add(1)
}

// found makes one file of the scan known; false if it is not one of the cache's.
func (c *Cache) found(name string, de fs.DirEntry) bool {
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
		if !isTagName(name) {
			return false
		}
		c.foundTag(name)
	case pinDir:
		return true // read already
	case listDir:
		if !isListName(name) {
			return false
		}
		c.useList(name, fi.Size(), past(fi.ModTime()))
		return true
	case repositoryDir:
		if path.Base(name) == nameFile {
			return c.foundName(name)
		}
		r, ok := parseRight(name)
		if !ok {
			return false
		}
		if !c.readRight(r) {
			c.unread.Store(true)
		}
	default:
		d, ok := parseManifestName(name)
		if !ok {
			return false
		}
		c.foundManifest(d)
	}
	c.schedule(name, past(fi.ModTime()))
	return true
}

// foundManifest makes the manifest d known. A damaged one is left for its next
// reader, or its end of life.
func (c *Cache) foundManifest(d digest.Digest) {
	m, mtime, err := c.readManifest(d)
	if err != nil {
		return
	}
	named := namesOf(kindOf(m.MediaType), m.Body)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.add(m, mtime, past(mtime), named)
}

// past is when a file was used: not in the future, where a clock that was wrong
// may have put it.
func past(mtime time.Time) time.Time {
	if now := time.Now(); mtime.After(now) {
		return now
	}
	return mtime
}
