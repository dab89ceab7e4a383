package main

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// What there is for each image: its blobs, its manifest, its repository's right to
// that, and a tag.
const (
	blobsPerImage   = 10
	entriesPerImage = blobsPerImage + 3
	tagsPerImages   = 20 // of one repository

	// warmImages are those whose blobs are right, to be asked for.
	warmImages = 30

	// warmSize and coldSize are the sizes of blobs that are, or are not, asked for.
	warmSize, coldSize = 4 << 10, 64

	// maxLinks is how many names a file may have; ext4 allows 65,000.
	maxLinks = 60_000

	host      = "registry.test"
	mediaType = "application/vnd.oci.image.manifest.v1+json"
)

// tree is a cache directory. Blobs that nobody asks for are links to a few files,
// as larder does not read them when it scans; they are cheaper to make, and a time
// can be set for many at once.
type tree struct {
	dir     string // the cache directory
	sources string // what it links to
	entries int
	images  int
	blobs   int
	due     int // how many blobs can be made to expire: see age
}

func newTree(dir string, entries int) *tree {
	t := &tree{dir: filepath.Join(dir, "cache"), sources: filepath.Join(dir, "sources"), entries: entries}
	t.images = entries / entriesPerImage
	t.blobs = entries - 3*t.images
	t.due = min(100_000, t.blobs/4)
	return t
}

func (t *tree) warm() int { return warmImages * blobsPerImage }

// cold is how many blobs are neither asked for nor due.
func (t *tree) cold() int { return t.blobs - t.warm() - t.due }

// bytes is what all blobs take.
func (t *tree) bytes() int { return t.warm()*warmSize + (t.blobs-t.warm())*coldSize }

// make makes what is not there yet.
func (t *tree) make() error {
	if err := os.MkdirAll(t.dir, 0o700); err != nil {
		return err
	}
	if err := os.MkdirAll(t.sources, 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(t.dir, "version"), []byte("larder 1\n"), 0o600); err != nil {
		return err
	}
	for i := 0; i <= t.blobs; i += maxLinks / 2 {
		for _, kind := range []string{"due", "cold"} {
			if err := create(t.source(kind, i), make([]byte, coldSize)); err != nil {
				return err
			}
		}
	}
	if err := create(t.source("right", 0), []byte(mediaType)); err != nil {
		return err
	}
	if err := t.makeDirs(); err != nil {
		return err
	}
	return errors.Join(each(t.images, t.makeImage), each(t.blobs, t.makeBlob))
}

// each calls do with 0 to n-1, a few at a time.
func each(n int, do func(i int) error) error {
	var next, failed atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, runtime.NumCPU())
	for w := range errs {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n && failed.Load() == 0; i = int(next.Add(1)) - 1 {
				if errs[w] = do(i); errs[w] != nil {
					failed.Add(1)
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (t *tree) makeDirs() error {
	for _, parent := range []string{"blobs/sha256", "manifests/sha256", "manifests/tags"} {
		for i := range 256 {
			if err := os.MkdirAll(filepath.Join(t.dir, parent, fmt.Sprintf("%02x", i)), 0o700); err != nil {
				return err
			}
		}
	}
	for i := 0; i < t.images; i += tagsPerImages {
		name := host + "/" + repository(i)
		dir := filepath.Join(t.dir, "manifests/repositories", sum([]byte(name)))
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		if err := create(filepath.Join(dir, "name"), []byte(name)); err != nil {
			return err
		}
	}
	return nil
}

// source is the file that blob i links to, of those that are due or cold.
func (t *tree) source(kind string, i int) string {
	return filepath.Join(t.sources, fmt.Sprintf("%s-%d", kind, i/(maxLinks/2)))
}

func (t *tree) blobFile(digest string) string {
	return filepath.Join(t.dir, "blobs/sha256", digest[:2], digest)
}

func (t *tree) makeBlob(i int) error {
	name := t.blobFile(blobDigest(i))
	if i < t.warm() {
		return create(name, blobContent(i))
	}
	kind := "cold"
	if i < t.warm()+t.due {
		kind = "due"
	}
	return link(t.source(kind, i), name)
}

// blobContent is the content of a warm blob. Their digests begin with 0, and no
// others do: scrubbing goes in the order of digests, and comes to these first.
func blobContent(i int) []byte {
	content := make([]byte, warmSize)
	binary.BigEndian.PutUint64(content, uint64(i))
	for nonce := uint64(0); ; nonce++ {
		binary.BigEndian.PutUint64(content[8:], nonce)
		if sum(content)[0] == '0' {
			return content
		}
	}
}

func blobDigest(i int) string {
	if i < warmImages*blobsPerImage {
		return sum(blobContent(i))
	}
	for nonce := 0; ; nonce++ {
		if d := sum(fmt.Appendf(nil, "%d %d", i, nonce)); d[0] != '0' {
			return d
		}
	}
}

func repository(image int) string { return fmt.Sprintf("team/app-%d", image/tagsPerImages) }
func tag(image int) string        { return fmt.Sprintf("v1.0.%d", image%tagsPerImages) }

type descriptor struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int    `json:"size"`
}

// manifest is that of an image, which names its blobs.
func manifest(image int) []byte {
	var doc struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Config        descriptor   `json:"config"`
		Layers        []descriptor `json:"layers"`
	}
	doc.SchemaVersion, doc.MediaType = 2, mediaType
	for i := range blobsPerImage {
		d := descriptor{"application/vnd.oci.image.layer.v1.tar+gzip", "sha256:" + blobDigest(image*blobsPerImage+i), coldSize}
		if image < warmImages {
			d.Size = warmSize
		}
		if i == 0 {
			d.MediaType = "application/vnd.oci.image.config.v1+json"
			doc.Config = d
		} else {
			doc.Layers = append(doc.Layers, d)
		}
	}
	return encode(doc)
}

func (t *tree) makeImage(i int) error {
	body := manifest(i)
	digest := sum(body)
	head := encode(map[string]any{"mediaType": mediaType, "sum": crc32.ChecksumIEEE([]byte(mediaType)), "size": len(body)})
	manifests := filepath.Join(t.dir, "manifests")
	if err := create(filepath.Join(manifests, "sha256", digest[:2], digest), append(append(head, '\n'), body...)); err != nil {
		return err
	}
	name := host + "/" + repository(i)
	right := filepath.Join(manifests, "repositories", sum([]byte(name)), "sha256-"+digest)
	if err := create(right, []byte(mediaType)); err != nil {
		return err
	}
	reference := name + ":" + tag(i)
	hash := sum([]byte(reference))
	return create(filepath.Join(manifests, "tags", hash[:2], hash), encode(map[string]any{
		"reference": reference, "descriptor": descriptor{mediaType, "sha256:" + digest, len(body)},
	}))
}

// age sets the last use of the blobs that can be due, and of those that are cold.
func (t *tree) age(due, cold time.Time) error {
	for i := 0; i <= t.blobs; i += maxLinks / 2 {
		if err := errors.Join(os.Chtimes(t.source("due", i), due, due), os.Chtimes(t.source("cold", i), cold, cold)); err != nil {
			return err
		}
	}
	return nil
}

// left is how many blobs are left of those that are links. To ask larder would take
// time from what is measured.
func (t *tree) left() (n int, err error) {
	for i := 0; i <= t.blobs; i += maxLinks / 2 {
		for _, kind := range []string{"due", "cold"} {
			fi, err := os.Stat(t.source(kind, i))
			if err != nil {
				return 0, err
			}
			n += int(fi.Sys().(*syscall.Stat_t).Nlink) - 1
		}
	}
	return n, nil
}

// await waits until so many, or fewer, are left, and returns how many.
func (t *tree) await(ctx context.Context, n int) (left int, err error) {
	for began := time.Now(); ; {
		if left, err = t.left(); err != nil || left <= n {
			return left, err
		}
		if time.Since(began) > 2*time.Minute {
			return left, fmt.Errorf("%d blobs are left and not %d after two minutes", left, n)
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return left, context.Cause(ctx)
		}
	}
}

func sum(data []byte) string {
	s := sha256.Sum256(data)
	return hex.EncodeToString(s[:])
}

func encode(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // strings and numbers
	}
	return data
}

// create makes a file, unless there is one.
func create(name string, data []byte) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}

func link(source, name string) error {
	if err := os.Link(source, name); !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}
