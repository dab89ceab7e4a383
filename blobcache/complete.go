package blobcache

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"
)

// Open opens a blob that is at hand, or returns nil.
func (c *Cache) Open(d digest.Digest) (*Blob, error) {
	if blob := c.recall(d); blob != nil {
		return blob, nil
	}
	known := c.lookup(d)
	if known == nil {
		return nil, nil
	}
	return c.openComplete(d, known)
}

// openComplete opens a blob that is on disk and that this process has verified,
// of which known is what lookup says. It returns neither blob nor error if a fill
// has to see to it.
func (c *Cache) openComplete(d digest.Digest, known *entry) (*Blob, error) {
	f, fi := c.takeIdle(known)
	var err error
	if f == nil {
		f, fi, err = c.open(blobName(d))
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c.forget(d, known)
		return nil, nil
	case tooManyFiles(err):
		return nil, fmt.Errorf("open blob %s: %w", d, err)
	case err != nil:
		c.discard(d, known, err)
		return nil, nil
	}
	if !c.use(d, known, fi) {
		f.Close()
		return nil, nil
	}
	if fi.Size() <= small && c.cfg.Memory.Fits(fi.Size()) {
		return c.memorize(d, known, f, fi), nil
	}
	c.count.outcomes[Hit].Add(1)
	content := &storedContent{cache: c, digest: d, opened: idleFile{entry: known, file: f}, size: fi.Size()}
	return &Blob{Content: content, Size: content.size, Outcome: Hit}, nil
}

// discard removes what has a blob's name and can't be a blob, so that the blob
// is fetched again. While it can't be removed, the blob is passed on.
func (c *Cache) discard(d digest.Digest, e *entry, err error) {
	c.log.Error("blob file is damaged; fetching the blob again", zap.Stringer("digest", d), zap.Error(err))
	err = c.root.RemoveAll(blobName(d))
	if err != nil {
		c.complain("damaged blob file not removed", err)
	}
	c.mu.Lock()
	if delete(c.stuck, d); err != nil {
		c.stuck[d] = true
	}
	c.mu.Unlock()
	c.forget(d, e)
}

// unstick notes that the wrong file of d could be removed after all.
func (c *Cache) unstick(d digest.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.stuck, d)
}
