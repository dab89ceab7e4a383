package manifestcache

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"path"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/zap"

	"larder/blobcache/durable"
)

// The directory, beside one directory of manifests per digest algorithm:
//
//	tags/ab/abcdef…              what a tag points at; the name is a hash of "repository:tag"
//	repositories/abcdef…/D       the repository (a hash of its name) has the manifest D, as what is
//	                             in the file: its media type, which no digest covers
//	repositories/abcdef…/name    the repository's name
//
// A manifest is one line of JSON, its header, and then its bytes. The mtime of
// a manifest is its last use; that of the others, when upstream last said so.
const (
	tagDir        = "tags"
	repositoryDir = "repositories"
)

// maxManifest bounds what is read of a file that claims to be a manifest; it is
// above what upstreams may send.
const maxManifest = 9 << 20

var errDamaged = errors.New("not what was stored")

// header is the first line of a manifest's file. The digest covers what follows
// it; the media type, which decides what a client makes of that, has a sum of
// its own.
type header struct {
	MediaType string `json:"mediaType"`
	Sum       uint32 `json:"sum"` // CRC-32 of the media type
	Size      int64  `json:"size"`
}

// link is the content of a tag's file.
type link struct {
	Reference  string             `json:"reference"` // the name is a hash
	Descriptor ocispec.Descriptor `json:"descriptor"`

	validated time.Time
}

// manifestName is the name of the file with the manifest d, which must be valid.
func manifestName(d digest.Digest) string {
	return path.Join(string(d.Algorithm()), d.Encoded()[:2], d.Encoded())
}

func tagName(repository, tag string) string {
	sum := sha256.Sum256([]byte(repository + ":" + tag))
	return tagFile(sum[:])
}

func tagFile(hash []byte) string {
	name := hex.EncodeToString(hash)
	return path.Join(tagDir, name[:2], name)
}

func rightName(r right) string {
	return path.Join(repositoryName(r.repository), string(r.digest.Algorithm())+"-"+r.digest.Encoded())
}

// encodeManifest is the file of m.
func encodeManifest(m *Manifest) []byte {
	head, err := json.Marshal(header{MediaType: m.MediaType, Sum: crc32.ChecksumIEEE([]byte(m.MediaType)), Size: m.Size})
	if err != nil {
		panic(err) // a string and a number
	}
	return bytes.Join([][]byte{head, m.Body}, []byte("\n"))
}

// decodeManifest is the opposite of encodeManifest. It checks everything: the
// bytes it returns are those of d.
func decodeManifest(d digest.Digest, data []byte) (*Manifest, error) {
	line, body, ok := bytes.Cut(data, []byte("\n"))
	var head header
	if err := json.Unmarshal(line, &head); err != nil || !ok || head.Size != int64(len(body)) || head.MediaType == "" {
		return nil, errDamaged
	}
	if d.Algorithm().FromBytes(body) != d || head.Sum != crc32.ChecksumIEEE([]byte(head.MediaType)) {
		return nil, errDamaged
	}
	return &Manifest{Descriptor: ocispec.Descriptor{MediaType: head.MediaType, Digest: d, Size: head.Size}, Body: body}, nil
}

// decodeTag reads the content of a tag's file.
func decodeTag(data []byte) (*link, error) {
	var l link
	if err := json.Unmarshal(data, &l); err != nil {
		return nil, err
	}
	if err := l.Descriptor.Digest.Validate(); err != nil {
		return nil, err
	}
	return &l, nil
}

// readLink reads a tag's file.
func (c *Cache) readLink(name string) (*link, error) {
	data, mtime, err := c.readFile(name)
	if err != nil {
		return nil, err
	}
	l, err := decodeTag(data)
	if err == nil {
		l.validated = mtime
	}
	return l, err
}

// readFile reads a regular file of at most maxManifest bytes.
func (c *Cache) readFile(name string) ([]byte, time.Time, error) {
	f, err := c.root.Open(name)
	if err != nil {
		return nil, time.Time{}, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, time.Time{}, err
	}
	if !fi.Mode().IsRegular() || fi.Size() > maxManifest {
		return nil, time.Time{}, fmt.Errorf("%s: %w", name, errDamaged)
	}
	data := make([]byte, fi.Size())
	if n, err := f.ReadAt(data, 0); n < len(data) {
		return nil, time.Time{}, err
	}
	return data, fi.ModTime(), nil
}

// saysNothing reports whether err is about this process, and no reason to think
// ill of the file.
func saysNothing(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, fs.ErrClosed)
}

// load reads the manifest d from disk and notes the use. It returns nil if the
// manifest has to be fetched; a damaged file is removed.
func (c *Cache) load(d digest.Digest) *Manifest {
	name := manifestName(d)
	data, mtime, err := c.readFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		c.forget(d)
		return nil
	}
	if saysNothing(err) {
		c.log.Error("manifest can't be read now", zap.Stringer("digest", d), zap.Error(err))
		return nil
	}
	var m *Manifest
	if err == nil {
		m, err = decodeManifest(d, data)
	}
	if err != nil {
		c.count.damaged.Add(1)
		c.log.Error("manifest file is damaged; fetching the manifest again", zap.Stringer("digest", d), zap.Error(err))
		if err := c.root.RemoveAll(name); err != nil {
			c.log.Error("damaged manifest file not removed", zap.Stringer("digest", d), zap.Error(err))
		}
		c.forget(d)
		return nil
	}
	c.use(m, mtime)
	return m
}

// store writes m to disk. A disk that can't be written costs the next caller a
// question to upstream; this one has its manifest.
func (c *Cache) store(m *Manifest) {
	if err := durable.WriteFile(c.root, manifestName(m.Digest), encodeManifest(m)); err != nil {
		c.disk.Error("manifest not stored", zap.Stringer("digest", m.Digest), zap.Error(err))
		return
	}
	c.use(m, time.Now())
}

// readTag returns what a tag pointed at when upstream last said so, or nil.
func (c *Cache) readTag(repository, tag string) *link {
	l, err := c.readLink(tagName(repository, tag))
	if errors.Is(err, fs.ErrNotExist) {
		c.dropTag(repository, tag)
		return nil
	}
	if saysNothing(err) {
		c.log.Error("tag can't be read now", zap.String("repository", repository), zap.String("tag", tag), zap.Error(err))
		return nil
	}
	if err == nil && l.Reference != repository+":"+tag {
		err = errDamaged // another tag's
	}
	if err != nil {
		c.count.damaged.Add(1)
		c.log.Error("tag file is damaged; asking upstream", zap.String("repository", repository), zap.String("tag", tag), zap.Error(err))
		c.removeTag(repository, tag)
		return nil
	}
	return l
}

// link records that upstream says that a tag points at m, now.
func (c *Cache) link(repository, tag string, m *Manifest) {
	c.validate(repository, m)
	name, now := tagName(repository, tag), time.Now()
	old := c.readTag(repository, tag)
	var err error
	if old == nil || old.Descriptor.Digest != m.Digest {
		data, _ := json.Marshal(link{Reference: repository + ":" + tag, Descriptor: m.Descriptor})
		err = durable.WriteFile(c.root, name, data)
	}
	if err == nil {
		err = c.root.Chtimes(name, now, now)
	}
	if err != nil {
		c.disk.Error("tag not stored", zap.String("repository", repository), zap.String("tag", tag), zap.Error(err))
		c.removeTag(repository, tag) // what it says is not true any more
		return
	}
	c.noteTag(repository, tag, m.Digest, now)
	c.schedule(name, now)
}

func (c *Cache) removeTag(repository, tag string) {
	name := tagName(repository, tag)
	c.due.Delete(name)
	if err := c.root.RemoveAll(name); err != nil {
		c.log.Error("tag not removed", zap.String("repository", repository), zap.String("tag", tag), zap.Error(err))
	}
	c.dropTag(repository, tag)
}
