package shared

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/zap"

	"larder/handler/shared/store"
	"larder/handler/upstream"
	"larder/manifestcache"
)

const (
	maxManifest   = 8 << 20   // as upstreams may send
	smallManifest = 256 << 10 // hardly any is larger
	maxHeader     = 4 << 10   // the line before it
	maxFact       = 16 << 10  // what a tag points at, or a right

	// restate is how often at most what is in the tier already is written anew: its
	// lifecycle rules count from there, and its times.
	restate = time.Hour

	// maxClaim is how long others are kept from asking upstream, whatever happens here: a
	// little longer than a question may take.
	maxClaim = 30 * time.Second
)

var errDamaged = errors.New("not what was stored")

var _ manifestcache.Shared = (*Tier)(nil)

// header is the first line of a manifest's object; the exact bytes follow.
type header struct {
	MediaType string `json:"mediaType"`
}

// right is the content of the object that says that a repository has a manifest.
type right struct {
	Repository string        `json:"repository"`
	Digest     digest.Digest `json:"digest"`
	MediaType  string        `json:"mediaType"`
	Validated  time.Time     `json:"validated"`
}

// link is the content of the object that says what a tag points at.
type link struct {
	Reference  string             `json:"reference"`
	Descriptor ocispec.Descriptor `json:"descriptor"`
	Validated  time.Time          `json:"validated"`
}

// Tag implements manifestcache.Shared.
func (t *Tier) Tag(ctx context.Context, repository, tag string) (desc ocispec.Descriptor, validated time.Time, ok bool) {
	ctx, end, ok := t.within(ctx, repository)
	defer end()
	if !ok {
		return desc, validated, false
	}
	l, err := t.readLink(ctx, repository, tag)
	return l.Descriptor, l.Validated, err == nil && !t.stated.isOver(tagKey(repository, tag), l.Validated)
}

func (t *Tier) readLink(ctx context.Context, repository, tag string) (l link, err error) {
	err = t.readFact(ctx, tagKey(repository, tag), &l, func() bool {
		d := l.Descriptor
		return l.Reference == repository+":"+tag && upstream.ValidDigest(d.Digest) && isMediaType(d.MediaType) && 0 <= d.Size && d.Size <= maxManifest
	})
	return l, err
}

// Right implements manifestcache.Shared.
func (t *Tier) Right(ctx context.Context, repository string, d digest.Digest) (mediaType string, validated time.Time, ok bool) {
	ctx, end, ok := t.within(ctx, repository)
	defer end()
	if !ok {
		return "", validated, false
	}
	var r right
	err := t.readFact(ctx, rightKey(repository, d), &r, func() bool {
		return r.Repository == repository && r.Digest == d && isMediaType(r.MediaType)
	})
	return r.MediaType, r.Validated, err == nil && !t.stated.isOver(rightKey(repository, d), r.Validated)
}

// readFact reads a small object that has to be what sound says. What is not is not
// there, and written anew.
func (t *Tier) readFact(ctx context.Context, key string, fact any, sound func() bool) error {
	data, _, err := t.read(ctx, key, maxFact)
	if err == nil && (json.Unmarshal(data, fact) != nil || !sound()) {
		err = errDamaged
	}
	return t.found(key, err)
}

// found is err, which is store.ErrNotExist if what was found is damaged.
func (t *Tier) found(key string, err error) error {
	if errors.Is(err, errDamaged) || errors.Is(err, errTooLarge) {
		t.log.Warn("an object in the shared store is damaged; it is replaced when upstream has answered", zap.String("key", key), zap.Error(err))
		return store.ErrNotExist
	}
	return err
}

// Manifest implements manifestcache.Shared.
func (t *Tier) Manifest(ctx context.Context, repository string, d digest.Digest) (mediaType string, body []byte, ok bool) {
	ctx, end, ok := t.within(ctx, repository)
	defer end()
	if !ok {
		return "", nil, false
	}
	key := manifestKey(d)
	// Whoever asks does not have it: if it is wrong, it has to be written anew.
	t.stated.forget(key)
	data, _, err := t.read(ctx, key, maxHeader+smallManifest)
	if errors.Is(err, errTooLarge) && t.takeRoom(ctx) {
		data, _, err = t.read(ctx, key, maxHeader+maxManifest)
	}
	if err == nil {
		mediaType, body, err = decodeManifest(data)
	}
	return mediaType, body, t.found(key, err) == nil
}

// decodeManifest is the opposite of encodeManifest. Of the bytes it checks what
// upstream's are checked for when they come, which is all but the digest.
func decodeManifest(data []byte) (mediaType string, body []byte, err error) {
	line, body, ok := bytes.Cut(data, []byte("\n"))
	var h header
	if !ok || len(line) > maxHeader || json.Unmarshal(line, &h) != nil || !isMediaType(h.MediaType) {
		return "", nil, errDamaged
	}
	if _, err := upstream.DocumentType(h.MediaType, body); err != nil {
		return "", nil, errDamaged
	}
	return h.MediaType, body, nil
}

func encodeManifest(mediaType string, body []byte) []byte {
	return bytes.Join([][]byte{encode(header{mediaType}), body}, []byte("\n"))
}

func encode(fact any) []byte {
	data, err := json.Marshal(fact)
	if err != nil { // of strings, numbers and times
		panic(err)
	}
	return data
}

// isMediaType reports whether s is a media type as upstreams have them, which has no
// parameters.
func isMediaType(s string) bool {
	kind, sub, ok := strings.Cut(s, "/")
	odd := func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r) }
	return ok && kind != "" && sub != "" && len(s) <= 255 && !strings.ContainsFunc(kind+sub, odd)
}

// Claim implements manifestcache.Shared.
func (t *Tier) Claim(ctx context.Context, repository, reference string, asking []string, known func(context.Context) bool) (done func()) {
	ctx, end, ok := t.within(ctx, repository)
	defer end()
	if !ok {
		return func() {}
	}
	l, _ := t.claimOrWait(ctx, about(repository, reference), asking, func(ctx context.Context) (bool, error) { return known(ctx), nil })
	if l == nil {
		return func() {}
	}
	keeping, enough := context.WithTimeout(t.ctx, maxClaim)
	t.start(func() { l.keep(keeping) })
	return sync.OnceFunc(func() {
		enough()
		l.release()
	})
}

// about is what a question is about, as leases have it.
func about(repository, reference string) string {
	if strings.Contains(reference, ":") { // no tag has one
		return repository + "@" + reference
	}
	return repository + ":" + reference
}

// Said implements manifestcache.Shared.
func (t *Tier) Said(a manifestcache.Answer) {
	done := a.Done
	if done == nil {
		done = func() {}
	}
	if !t.covers(a.Repository) || !isMediaType(a.Manifest.MediaType) || !t.isNew(a) {
		done()
		return
	}
	reference := a.Tag
	if reference == "" {
		reference = a.Manifest.Digest.String()
	}
	t.answers.add(about(a.Repository, reference), item{func(ctx context.Context) error { return t.writeAnswer(ctx, a) }, done})
}

// isNew reports whether anything of an answer has to be written.
func (t *Tier) isNew(a manifestcache.Answer) bool {
	d := a.Manifest.Digest
	return t.stated.due(manifestKey(d), a.Manifest.MediaType, restate) ||
		t.stated.due(rightKey(a.Repository, d), a.Manifest.MediaType, t.restateRight()) ||
		a.Tag != "" && t.stated.due(tagKey(a.Repository, a.Tag), d.String(), t.restateTag())
}

// restateRight is how often a right is written that has been confirmed.
func (t *Tier) restateRight() time.Duration {
	if t.cfg.ManifestTTL > 0 {
		return min(restate, t.cfg.ManifestTTL/10)
	}
	return restate
}

// restateTag is the same for a tag. If others take it for as long as it is fresh, they
// have to know each time.
func (t *Tier) restateTag() time.Duration {
	if t.cfg.TagTTL > 0 {
		return 0
	}
	return restate
}

// writeAnswer writes what upstream has said, in the order in which nobody finds what
// leads to nothing.
func (t *Tier) writeAnswer(ctx context.Context, a manifestcache.Answer) error {
	d := a.Manifest.Digest
	if err := t.writeManifest(ctx, a); err != nil {
		return err
	}
	r := right{a.Repository, d, a.Manifest.MediaType, a.Validated.UTC()}
	if err := t.state(ctx, rightKey(a.Repository, d), r.MediaType, t.restateRight(), encode(r)); err != nil || a.Tag == "" {
		return err
	}
	// It may have waited, and another node have heard of a move since.
	was, err := t.readLink(ctx, a.Repository, a.Tag)
	switch {
	case err == nil && was.Validated.After(a.Validated) && !was.Validated.After(time.Now()):
		return nil
	case err != nil && !errors.Is(err, store.ErrNotExist): // then it may be so
		return err
	}
	desc := ocispec.Descriptor{MediaType: a.Manifest.MediaType, Digest: d, Size: a.Manifest.Size}
	l := link{a.Repository + ":" + a.Tag, desc, a.Validated.UTC()}
	return t.state(ctx, tagKey(a.Repository, a.Tag), d.String(), t.restateTag(), encode(l))
}

// writeManifest writes a manifest, unless it is there. One that this node had to fetch
// was not, or was wrong.
func (t *Tier) writeManifest(ctx context.Context, a manifestcache.Answer) error {
	key, mediaType := manifestKey(a.Manifest.Digest), a.Manifest.MediaType
	if !t.stated.due(key, mediaType, restate) {
		return nil
	}
	if !a.Fetched {
		_, err := t.head(ctx, key)
		if err == nil {
			t.stated.note(key, mediaType, time.Now())
		}
		if !errors.Is(err, store.ErrNotExist) {
			return err
		}
	}
	content, err := a.Content()
	if err != nil {
		return nil // it was evicted meanwhile, or the disk is full: the rest is true all the same
	}
	defer content.Close()
	body, err := io.ReadAll(io.LimitReader(content, maxManifest+1))
	if err != nil || len(body) > maxManifest {
		return err
	}
	return t.state(ctx, key, mediaType, restate, encodeManifest(mediaType, body))
}

// state writes an object that says so, if this is due.
func (t *Tier) state(ctx context.Context, key, says string, every time.Duration, data []byte) error {
	if !t.stated.due(key, says, every) {
		return nil
	}
	err := t.put(ctx, key, bytes.NewReader(data), store.Label{Size: int64(len(data))})
	if err == nil {
		t.stated.note(key, says, time.Now())
	}
	return err
}

// Gone implements manifestcache.Shared.
func (t *Tier) Gone(repository, reference string) {
	if !t.covers(repository) {
		return
	}
	key := tagKey(repository, reference)
	if d := digest.Digest(reference); upstream.ValidDigest(d) {
		key = rightKey(repository, d)
	}
	at, again := time.Now(), true
	t.stated.note(key, "", at)
	t.answers.add(about(repository, reference), item{func(ctx context.Context) error {
		t.stated.note(key, "", at) // another answer may have been on its way to the store
		err := t.remove(ctx, key)
		if again && err != nil && !errors.Is(err, errOut) { // others would go on with it: once more, when the store is back
			again, err = false, errOut
		}
		return err
	}, func() {}})
}
