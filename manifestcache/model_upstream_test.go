package manifestcache_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"larder/blobcache/memory"
	"larder/manifestcache"
)

var tags = []string{"latest", "1.0"}

// mood is how a registry answers.
type mood string

const (
	well    mood = "well"
	down    mood = "down"    // can't answer
	hanging mood = "hanging" // says nothing
	odd     mood = "odd"     // neither yes nor no
	denying mood = "denying" // an explicit no to everything
	lying   mood = "lying"   // sends wrong bytes
)

// modelRepository is one repository: what its registry would say, what that has
// told the cache, and what it was asked.
type modelRepository struct {
	*model
	name      string
	mediaType string

	tags   map[string]document
	has    map[digest.Digest]bool
	mood   mood
	silent bool            // HEADs say no digest
	slow   bool            // answers take their time
	ever   map[string]bool // each tag with a digest, and each digest, that it ever had

	linked  map[string]linked         // by tag: the last yes with all that it takes
	rights  map[digest.Digest]allowed // and no no since
	proven  map[digest.Digest]time.Time
	refused map[digest.Digest]bool

	mu    sync.Mutex // guards what follows, and ever
	gate  chan struct{}
	asked []string
}

type linked struct {
	doc document
	at  time.Time
}

type allowed struct {
	at      time.Time
	removed bool // the file is, by hand; the cache does not know yet
}

func newModelRepository(m *model, name string) *modelRepository {
	return &modelRepository{
		model: m, name: name, mediaType: ocispec.MediaTypeImageManifest, mood: well,
		tags: make(map[string]document), has: make(map[digest.Digest]bool), ever: make(map[string]bool),
		linked: make(map[string]linked), rights: make(map[digest.Digest]allowed),
		proven: make(map[digest.Digest]time.Time), refused: make(map[digest.Digest]bool),
	}
}

// as is a document as this registry describes it.
func (r *modelRepository) as(doc document) document {
	doc.mediaType = r.mediaType
	return doc
}

func (r *modelRepository) push() {
	doc, tag := r.as(r.document()), tags[r.random.IntN(len(tags))]
	r.note("%s: push %s as %s", r.name, doc.digest[:12], tag)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.has[doc.digest], r.ever[doc.digest.String()] = true, true
	r.tags[tag], r.ever[tag+"@"+doc.digest.String()] = doc, true
}

// change is something that happens at the registry.
func (r *modelRepository) change() {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch n := r.random.IntN(16); {
	case n < 4:
		r.mu.Unlock()
		r.push()
		r.mu.Lock()
	case n < 6:
		tag := tags[r.random.IntN(len(tags))]
		r.note("%s: delete %s", r.name, tag)
		delete(r.tags, tag)
	case n < 8: // tags that point at it are then in the air
		d := r.document().digest
		r.note("%s: delete %s", r.name, d[:12])
		delete(r.has, d)
	case n < 11:
		r.mood = well
		r.note("%s: %s", r.name, r.mood)
	case n < 15:
		r.mood = []mood{down, down, hanging, odd, denying, lying}[r.random.IntN(6)]
		r.note("%s: %s", r.name, r.mood)
	default:
		r.silent = !r.silent
		r.note("%s: silent %t", r.name, r.silent)
	}
}

// HeadManifest implements manifestcache.Upstream.
func (r *modelRepository) HeadManifest(ctx context.Context, reference string) (ocispec.Descriptor, error) {
	doc, err := r.answer(ctx, "HEAD", reference)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil || r.silent {
		return ocispec.Descriptor{}, err
	}
	return ocispec.Descriptor{MediaType: doc.mediaType, Digest: doc.digest, Size: int64(len(doc.body))}, nil
}

// GetManifest implements manifestcache.Upstream.
func (r *modelRepository) GetManifest(ctx context.Context, reference string) (ocispec.Descriptor, []byte, error) {
	doc, err := r.answer(ctx, "GET", reference)
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	body := bytes.Clone(doc.body)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mood == lying {
		body[0] ^= 1
	}
	return ocispec.Descriptor{MediaType: doc.mediaType, Digest: doc.digest}, body, nil
}

func (r *modelRepository) answer(ctx context.Context, method, reference string) (document, error) {
	r.mu.Lock()
	r.asked = append(r.asked, method)
	gate, slow := r.gate, r.slow
	r.mu.Unlock()
	if gate != nil {
		<-gate
	}
	if slow {
		time.Sleep(time.Duration(len(reference)%5) * 700 * time.Millisecond)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch r.mood {
	case hanging:
		r.mu.Unlock()
		<-ctx.Done()
		r.mu.Lock()
		return document{}, errDown
	case down:
		return document{}, errDown
	case odd:
		return document{}, errOther
	case denying:
		return document{}, errGone
	}
	if doc, ok := r.tags[reference]; ok {
		return doc, nil
	}
	for _, doc := range r.documents {
		if doc.digest.String() == reference && r.has[doc.digest] {
			return r.as(doc), nil
		}
	}
	return document{}, errGone
}

// learn is what the handler does after it has asked about a blob.
func (r *modelRepository) learn(b digest.Digest) {
	if r.random.IntN(2) == 0 {
		r.note("%s: has blob %s", r.name, b[:12])
		r.cache.Remember(r.name, b)
		r.proven[b] = time.Now().Truncate(time.Second)
		delete(r.refused, b)
		return
	}
	r.note("%s: has not blob %s", r.name, b[:12])
	r.cache.Forget(r.name, b)
	r.refuse(b)
}

// damage is done by a hand in the directory.
func (r *modelRepository) damage() {
	doc, tag := r.document(), tags[r.random.IntN(len(tags))]
	manifest, link, right := manifestPath(r.dir, doc.digest), tagPath(r.dir, &repository{name: r.name}, tag), rightPath(r.dir, &repository{name: r.name}, doc.digest)
	kind := r.random.IntN(10)
	r.note("%s: damage %d to %s, %s", r.name, kind, doc.digest[:12], tag)
	if kind%2 == 0 { // when the file is next read is then no question
		r.cfg.Memory.Delete(memory.Key{Kind: memory.Manifest, Digest: doc.digest})
	}
	exists := func(path string) bool { fi, err := os.Stat(path); return err == nil && fi.Mode().IsRegular() }
	switch path := []string{manifest, link}[kind%2]; {
	case kind >= 8: // a right can only be taken away
		if exists(right) && r.cfg.TTL == 0 && !r.bounded { // else it might expire, or be revoked, unseen
			a := r.rights[doc.digest]
			a.removed = true
			r.rights[doc.digest] = a
			r.must(os.Remove(right))
		}
		return
	case !exists(path):
		return
	case kind < 2:
		r.must(os.RemoveAll(path))
	case kind < 4:
		data, err := os.ReadFile(path)
		r.must(err)
		if len(data) > 0 {
			data[r.random.IntN(len(data))] ^= 1 << r.random.IntN(7)
		}
		if data = data[:len(data)-r.random.IntN(2)*r.random.IntN(len(data)+1)]; kind == 3 {
			data = append([]byte("x"), data...) // any change to a link but this may leave it one
		}
		r.writeFile(path, data)
	case kind < 6:
		r.must(os.RemoveAll(path))
		r.must(os.MkdirAll(path, 0o700))
	case kind == 6:
		other, err := os.ReadFile(manifestPath(r.dir, r.document().digest))
		if err == nil {
			r.writeFile(path, other)
		}
	default:
		r.swapLinks(path)
	}
	if kind%2 == 1 {
		time.Sleep(r.cfg.TagTTL) // for so long the file is not asked
		r.forgetUnlessWhole(tag, link)
	}
}

// swapLinks puts another tag's file where one is.
func (r *modelRepository) swapLinks(path string) {
	other := r.repositories[r.random.IntN(len(r.repositories))]
	data, err := os.ReadFile(tagPath(r.dir, &repository{name: other.name}, tags[r.random.IntN(len(tags))]))
	if err == nil {
		fi, err := os.Stat(path)
		r.must(err)
		r.writeFile(path, data)
		r.must(os.Chtimes(path, fi.ModTime(), fi.ModTime()))
	}
}

// forgetUnlessWhole drops what is known of a tag if its file does not say it.
func (r *modelRepository) forgetUnlessWhole(tag, path string) {
	data, err := os.ReadFile(path)
	var content struct {
		Reference  string             `json:"reference"`
		Descriptor ocispec.Descriptor `json:"descriptor"`
	}
	if err != nil || json.Unmarshal(data, &content) != nil || content.Reference != r.name+":"+tag || content.Descriptor.Digest != r.linked[tag].doc.digest {
		delete(r.linked, tag)
	}
}

// wantPossible checks an answer that was given while everything changed.
func (r *modelRepository) wantPossible(reference string, got *manifestcache.Manifest, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		known := []error{errDown, errGone, errOther, manifestcache.ErrDigest}
		if !slices.ContainsFunc(known, func(k error) bool { return errors.Is(err, k) }) {
			r.t.Errorf("%s: %v", r.name, err)
		}
		return
	}
	key := got.Digest.String()
	if key != reference {
		key = reference + "@" + key
	}
	if !r.ever[key] || got.Digest.Algorithm().FromBytes(got.Body) != got.Digest || got.MediaType != r.mediaType || got.Size != int64(len(got.Body)) {
		r.t.Errorf("%s: %s is answered with %v", r.name, reference, got)
	}
}
