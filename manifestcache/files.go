package manifestcache

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/zap"

	"larder/blobcache/durable"
	"larder/blobcache/memory"
)

// The directory, beside one directory of manifests per digest algorithm:
//
//	tags/ab/abcdef…              what a tag points at; the name is a hash of "repository:tag"
//	repositories/abcdef…/D       the repository (a hash of its name) has the manifest D, as what is
//	                             in the file: its media type, which no digest covers
//	lists/abcdef…/abcdef…        a list of the repository; the name is a hash of its path and query
//	repositories/abcdef…/name    the repository's name
//
// A manifest is one line of JSON, its header, and then its bytes. The mtime of
// a manifest is its last use; that of the others, when upstream last said so.
const (
	tagDir        = "tags"
	repositoryDir = "repositories"
	listDir       = "lists"
)

const (
	// maxManifest bounds what is read of a file that claims to be a manifest; it
	// is above what upstreams may send.
	maxManifest = 9 << 20

	// maxBody is what is held in memory of a manifest: hundreds of clients may be
	// slow to read it. Larger ones are hardly ever seen. They are sent from their
	// files, and nobody looks for what they name.
	maxBody = 256 << 10

	// maxSmall is the file of such a manifest, with its header.
	maxSmall = maxBody + 4<<10
)

// maxUnkept bounds what is held in memory, for as long as clients take to read it, of
// large manifests and lists that the disk has not taken.
const maxUnkept = 16 << 20

var errDamaged = errors.New("not what was stored")

// header is the first line of a manifest's file. The digest covers what follows
// it; the media type, which decides what a client makes of that, has a sum of
// its own.
type header struct {
	MediaType string `json:"mediaType"`
	Sum       uint32 `json:"sum"` // CRC-32 of the media type
	Size      int64  `json:"size"`
}

// manifestName is the name of the file with the manifest d, which must be valid.
func manifestName(d digest.Digest) string {
	return path.Join(string(d.Algorithm()), d.Encoded()[:2], d.Encoded())
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
	m, err := decodeHeader(d, line)
	if err != nil || !ok || m.Size != int64(len(body)) || !has(d, m.MediaType, body) {
		return nil, errDamaged
	}
	m.Body = body
	return m, nil
}

func decodeHeader(d digest.Digest, line []byte) (*Manifest, error) {
	var head header
	if err := json.Unmarshal(line, &head); err != nil || head.MediaType == "" || head.Sum != crc32.ChecksumIEEE([]byte(head.MediaType)) {
		return nil, errDamaged
	}
	return &Manifest{Descriptor: ocispec.Descriptor{MediaType: head.MediaType, Digest: d, Size: head.Size}}, nil
}

// checkManifest is decodeManifest for one that stays in its file.
func (c *Cache) checkManifest(d digest.Digest, r io.Reader) (*Manifest, error) {
	file := bufio.NewReader(r)
	line, err := file.ReadSlice('\n') // without an end: too long for a header
	if err != nil {
		return nil, errDamaged
	}
	m, err := decodeHeader(d, line)
	if err != nil {
		return nil, err
	}
	if m.MediaType == typeSchema1Signed { // the digest is not that of all of it
		c.whole <- struct{}{}
		defer func() { <-c.whole }()
		body, err := io.ReadAll(file)
		if err != nil || m.Size != int64(len(body)) || !has(d, m.MediaType, body) {
			return nil, errDamaged
		}
		return m, nil
	}
	verifier := d.Verifier()
	n, err := io.Copy(verifier, file)
	if err == nil && (n != m.Size || !verifier.Verified()) {
		err = errDamaged
	}
	return m, err
}

// Content is the bytes of m, to be closed by the caller.
func (c *Cache) Content(m *Manifest) (io.ReadSeekCloser, error) {
	if int64(len(m.Body)) == m.Size {
		return c.inMemory(m.Body)
	}
	f, fi, err := c.openFile(manifestName(m.Digest))
	if err != nil {
		return nil, fmt.Errorf("manifest %s: %w", m.Digest, err)
	}
	return &inFile{io.NewSectionReader(f, fi.Size()-m.Size, m.Size), f}, nil
}

// inMemory is content that is not large, or that the disk has not taken.
type inMemory struct {
	memory.Reader
	release func() // nil: it takes no room that has a bound
}

// inMemory opens a body, if it is not large or there is room.
func (c *Cache) inMemory(body []byte) (*inMemory, error) {
	r, n := new(inMemory), int64(len(body))
	r.Reset(body)
	if n <= maxBody {
		return r, nil
	}
	if !c.unkept.TryAcquire(n) {
		return nil, ErrBusy
	}
	r.release = sync.OnceFunc(func() { c.unkept.Release(n) })
	return r, nil
}

// Close implements io.Closer.
func (r *inMemory) Close() error {
	if r.release != nil {
		r.release()
	}
	return nil
}

// inFile is that of one that is.
type inFile struct {
	io.ReadSeeker
	io.Closer
}

// openFile opens a regular file of at most maxManifest bytes.
func (c *Cache) openFile(name string) (*os.File, fs.FileInfo, error) {
	f, fi, err := durable.Open(c.root, name)
	if err == nil && fi.Size() > maxManifest {
		f.Close()
		err = fmt.Errorf("%s: %w", name, errDamaged)
	}
	if err != nil {
		return nil, nil, err
	}
	return f, fi, nil
}

// readFile reads a regular file that should be a small one.
func (c *Cache) readFile(name string) ([]byte, time.Time, error) {
	data, fi, err := durable.ReadFile(c.root, name, maxSmall)
	if err != nil {
		return nil, time.Time{}, err
	}
	return data, fi.ModTime(), nil
}

func readAll(f *os.File, fi fs.FileInfo) ([]byte, error) {
	data := make([]byte, fi.Size())
	if n, err := f.ReadAt(data, 0); n < len(data) {
		return nil, err
	}
	return data, nil
}

// readManifest reads and checks the manifest d.
func (c *Cache) readManifest(d digest.Digest) (m *Manifest, mtime time.Time, err error) {
	f, fi, err := c.openFile(manifestName(d))
	if err != nil {
		return nil, time.Time{}, err
	}
	defer f.Close()
	if fi.Size() > maxSmall {
		m, err = c.checkManifest(d, f)
		return m, fi.ModTime(), err
	}
	data, err := readAll(f, fi)
	if err == nil {
		m, err = decodeManifest(d, data)
	}
	return m, fi.ModTime(), err
}

// saysNothing reports whether err is about this process, and no reason to think
// ill of the file.
func saysNothing(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, fs.ErrClosed)
}

// load takes the manifest d from memory, or reads it from disk once for all who need
// it at the same time, and notes the use. It returns nil if the manifest has to be
// fetched; a damaged file is removed.
func (c *Cache) load(d digest.Digest) *Manifest {
	if m := c.recall(d); m != nil {
		return m
	}
	loaded, _, _ := c.loads.Do(string(d), func() (any, error) { return c.loadFile(d), nil })
	m := loaded.(*Manifest)
	if m == nil {
		return nil
	}
	own := *m
	return &own
}

// loadFile is load from disk. What it finds there that the index does not know is
// known from then on.
func (c *Cache) loadFile(d digest.Digest) *Manifest {
	defer c.changes.begin(manifestName(d))()
	m, mtime, err := c.readManifest(d)
	if errors.Is(err, fs.ErrNotExist) {
		c.forget(d)
		return nil
	}
	if saysNothing(err) {
		c.log.Error("manifest can't be read now", zap.Stringer("digest", d), zap.Error(err))
		return nil
	}
	if err != nil {
		c.count.damaged.Add(1)
		c.log.Error("manifest file is damaged; fetching the manifest again", zap.Stringer("digest", d), zap.Error(err))
		if err := c.root.RemoveAll(manifestName(d)); err != nil {
			c.log.Error("damaged manifest file not removed", zap.Stringer("digest", d), zap.Error(err))
		}
		c.forget(d)
		return nil
	}
	c.use(m, mtime)
	c.memorize(m)
	return m
}

// memoryKey is the key of the manifest d in the memory. What is under it was
// verified, and goes with what is known of the file.
func memoryKey(d digest.Digest) memory.Key {
	return memory.Key{Kind: memory.Manifest, Digest: d}
}

// recall takes the manifest d from memory, or returns nil. What may have become
// of its file is no matter; but when a use is to be written to it, or what it names
// was forgotten, it is read.
func (c *Cache) recall(d digest.Digest) *Manifest {
	now := time.Now()
	c.mu.Lock()
	e := c.manifests.Get(d)
	if e == nil || e.number == 0 || c.touchDue(e, now) {
		c.mu.Unlock()
		return nil
	}
	kept, ok := c.cfg.Memory.Get(memoryKey(d))
	if ok {
		c.usedAt(e, now)
	}
	c.mu.Unlock()
	if !ok {
		return nil
	}
	return &Manifest{
		Descriptor: ocispec.Descriptor{MediaType: kept.MediaType, Digest: d, Size: int64(len(kept.Bytes))},
		Body:       kept.Bytes,
	}
}

// memorize keeps m in memory, unless it is large or was taken out of the index
// meanwhile. Needs the change of its file.
func (c *Cache) memorize(m *Manifest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.manifests.Get(m.Digest) != nil && m.Size <= maxBody {
		c.cfg.Memory.Put(memoryKey(m.Digest), memory.Content{MediaType: m.MediaType, Bytes: m.Body})
	}
}

// store writes m to disk. A disk that can't be written costs the next caller a
// question to upstream; this one has its manifest.
func (c *Cache) store(m *Manifest) (stored bool) {
	defer c.changes.begin(manifestName(m.Digest))()
	if err := c.write(manifestName(m.Digest), encodeManifest(m)); err != nil {
		c.complain("manifest not stored", err, zap.Stringer("digest", m.Digest))
		return false
	}
	c.use(m, time.Now())
	c.memorize(m)
	return true
}

func (c *Cache) write(name string, data []byte) error {
	began := time.Now()
	err := durable.WriteFile(c.root, name, data)
	if c.cfg.Observe != nil {
		c.cfg.Observe("commit", time.Since(began))
	}
	return err
}

// complain logs what is wrong with the disk, once a minute at most.
func (c *Cache) complain(message string, err error, fields ...zap.Field) {
	c.disk.Error(message, append(fields, zap.Error(err))...)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.storeErrs[durable.Kind(err)]++
}
