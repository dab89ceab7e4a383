package blobcache

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"

	"larder/blobcache/durable"
)

// maxExtents bounds what is read of a file that claims to be extents: those of
// 100 GB in crumbs are less.
const maxExtents = 64 << 20

// partialExtents is the content of the file beside a partial file that is more
// than a beginning. Without one, what is in the partial file is its beginning.
type partialExtents struct {
	Size    int64   `json:"size"` // -1: not known
	Extents extents `json:"extents"`
}

// errExtents says that recorded extents can't be true.
var errExtents = errors.New("extents are damaged")

// usable reports whether p can be true of a file of the given size.
func (p partialExtents) usable(size int64) bool {
	if p.Size >= 0 {
		size = min(size, p.Size)
	}
	return p.Size >= -1 && len(p.Extents) > 0 && p.Extents.valid(size)
}

// takeUp opens the partial file, if there is one, and finds out what an earlier
// fill has left in it.
func (f *fill) takeUp() error {
	name := partialName(f.digest)
	if _, err := f.cache.root.Lstat(name); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	file, fi, err := durable.OpenTemp(f.cache.root, name)
	if err != nil {
		return fmt.Errorf("%w: %w", errStore, err)
	}
	f.file, f.info = file, fi
	left, err := f.cache.readExtents(f.digest, fi.Size())
	kept := err == nil
	switch {
	case errors.Is(err, fs.ErrNotExist):
		left = partialExtents{Size: -1, Extents: extents{}.add(Extent{0, fi.Size()})}
	case errors.Is(err, errExtents): // what is in the file can't be known
		left, kept = partialExtents{Size: -1}, true
		if err := f.file.Truncate(0); err != nil {
			return fmt.Errorf("%w: %w", errStore, err)
		}
	case err != nil:
		return fmt.Errorf("%w: %w", errStore, err)
	}
	f.mu.Lock()
	f.size, f.have, f.scattered = left.Size, left.Extents, kept
	n := left.Extents.bytes()
	f.arrived, f.taken, f.room, f.left = n, n, n, n
	f.mu.Unlock()
	f.cache.holdAtLeast(f, n)
	return nil
}

// readExtents reads what is in the partial file of d, which is of the given size.
// The error is fs.ErrNotExist if that is just a beginning.
func (c *Cache) readExtents(d digest.Digest, size int64) (partialExtents, error) {
	data, _, err := durable.ReadFile(c.root, partialName(d)+extentsSuffix, maxExtents)
	if errors.Is(err, fs.ErrNotExist) || tooManyFiles(err) {
		return partialExtents{}, err
	}
	var left partialExtents
	if err != nil || json.Unmarshal(data, &left) != nil || !left.usable(size) {
		return partialExtents{}, errExtents
	}
	return left, nil
}

// tooManyFiles reports whether err says nothing about the file that was to be
// opened.
func tooManyFiles(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
}

// save writes the extents beside the file, if the file's length does not say as
// much. A crash can't leave extents that are not in the file: they were written
// before. (Power may fail and take what was written; the digest tells.)
func (f *fill) save() error {
	f.saving.Lock()
	defer f.saving.Unlock()
	f.mu.Lock()
	if !f.scattered {
		f.mu.Unlock()
		return nil
	}
	data, err := json.Marshal(partialExtents{Size: f.size, Extents: f.have})
	before := f.unsaved
	f.mu.Unlock()
	if err != nil {
		return err
	}
	if err := durable.WriteSoon(f.cache.root, partialName(f.digest)+extentsSuffix, data); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.unsaved = max(f.unsaved-before, 0) // others went on meanwhile
	f.saved = time.Now()
	return nil
}

// removePartial removes what is left of a fill's file and its extents, in this
// order: without them, the file would be taken for a beginning.
func (c *Cache) removePartial(d digest.Digest) error {
	name := partialName(d)
	if err := c.root.RemoveAll(name); err != nil {
		return err
	}
	return c.root.RemoveAll(name + extentsSuffix)
}

// sweep removes what a kill has left in partialDir that no fill goes on with:
// files half written, and extents without the file that they are about. It must
// not run beside fills.
func (c *Cache) sweep() {
	files, err := fs.ReadDir(c.root.FS(), partialDir)
	there := make(map[string]bool)
	for _, de := range files {
		there[de.Name()] = true // before its extents, by name
		of, isExtents := strings.CutSuffix(de.Name(), extentsSuffix)
		_, ours := parseFlatName(of)
		unfinished := strings.HasSuffix(de.Name(), durable.Unfinished) && de.Type().IsRegular()
		if unfinished || isExtents && ours && !there[of] {
			err = errors.Join(err, c.root.RemoveAll(path.Join(partialDir, de.Name())))
		}
	}
	if err != nil {
		c.log.Warn("leftovers of partial blobs not removed", zap.Error(err))
	}
}
