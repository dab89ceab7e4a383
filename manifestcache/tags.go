package manifestcache

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"path"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/zap"
)

// ByTag returns what a tag points at. Upstream is asked unless it was within
// TagTTL; many who ask at the same time are one question.
func (c *Cache) ByTag(ctx context.Context, repository, tag string, up Upstream) (*Manifest, error) {
	if c.cfg.TagTTL > 0 {
		if d, validated := c.pointsAt(repository, tag); within(c.cfg.TagTTL, validated) {
			right, ok := c.validated(repository, d)
			if m := c.load(d); m != nil && ok && right.covers(m) {
				return c.answer(m, Hit, validated), nil
			}
		}
	}
	return c.ask(ctx, repository, tag, up, func(ctx context.Context, up *questioned) (*Manifest, error) {
		if c.cfg.Shared != nil && c.cfg.TagTTL > 0 {
			if m := c.follow(ctx, tag, up); m != nil {
				return m, nil
			}
		}
		return c.revalidate(ctx, repository, tag, up)
	})
}

// revalidate asks upstream what a tag points at now. A HEAD is enough if that
// is on disk, be it the same as before or not.
func (c *Cache) revalidate(ctx context.Context, repository, tag string, up *questioned) (*Manifest, error) {
	if err := c.cfg.Spare(repository); err != nil {
		if m := c.stale(ctx, tag, up, err); m != nil {
			return m, nil
		}
	}
	desc, err := up.HeadManifest(ctx, tag)
	if err != nil {
		return c.withoutAnswer(ctx, tag, up, err)
	}
	if m := c.newer(repository, tag, up); m != nil {
		return m, nil
	}
	if desc.Digest != "" {
		if m := c.described(ctx, desc, up); m != nil {
			m = up.dated(m, up.confirmed())
			up.Known = c.link(repository, tag, m, m.validated)
			return m, nil
		}
	}
	reference := tag
	if desc.Digest != "" {
		reference = desc.Digest.String()
	}
	m, err := c.fetch(ctx, repository, reference, up)
	if err != nil {
		if desc.Digest != "" && c.cfg.GoneIf(err) { // it was the manifest that was asked for
			c.revoke(repository, desc.Digest)
			if c.cfg.Shared != nil {
				c.cfg.Shared.Gone(repository, desc.Digest.String())
			}
		}
		return c.withoutAnswer(ctx, tag, up, err)
	}
	up.Known = c.link(repository, tag, m, m.validated)
	return m, nil
}

// newer is what a tag pointed at when upstream was last asked from here, if that is
// newer than what another cache remembers, or nil.
func (c *Cache) newer(repository, tag string, up *questioned) *Manifest {
	if up.age == 0 {
		return nil
	}
	m, validated := c.last(repository, tag)
	if m == nil || time.Since(validated) > up.age {
		return nil
	}
	up.Known = true
	return dated(m, up.outcome(up.confirmed()), validated)
}

// described is the manifest that upstream has described, if it need not be fetched
// from there.
func (c *Cache) described(ctx context.Context, desc ocispec.Descriptor, up *questioned) (m *Manifest) {
	c.claim(ctx, up, desc.Digest.String(), func(ctx context.Context) bool {
		// The media type is upstream's to say, and no digest covers it.
		m = c.loadShared(ctx, desc.Digest, up, func(m *Manifest) bool { return m.MediaType == desc.MediaType })
		return m != nil
	})
	return m
}

// withoutAnswer decides what a failed question means for a tag: an upstream
// that can't answer leaves it as it was, a no ends it.
func (c *Cache) withoutAnswer(ctx context.Context, tag string, up *questioned, err error) (*Manifest, error) {
	if c.cfg.GoneIf(err) {
		c.endTag(up.repository, tag)
		return nil, err
	}
	if !c.cfg.StaleIf(err) {
		return nil, err
	}
	if m := c.stale(ctx, tag, up, err); m != nil {
		return m, nil
	}
	return nil, err
}

// stale is what a tag pointed at when upstream last said it, which it can't say
// now because of err. It is nil if that is not known, or not there.
func (c *Cache) stale(ctx context.Context, tag string, up *questioned, err error) (m *Manifest) {
	var validated time.Time
	if c.cfg.Shared != nil {
		m, validated = c.latest(ctx, tag, up, func(time.Time) bool { return true })
	}
	if m == nil {
		m, validated = c.last(up.repository, tag)
	}
	if m == nil {
		return nil
	}
	c.log.Warn("upstream can't say what a tag points at; answering with what it was",
		zap.String("repository", up.repository), zap.String("tag", tag), zap.Time("validated", validated), zap.Error(err))
	return dated(m, Stale, validated)
}

// Knows reports whether the tag could be answered if upstream could not.
func (c *Cache) Knows(repository, tag string) bool {
	m, _ := c.last(repository, tag)
	return m != nil
}

// last is what a tag pointed at when upstream last said it, and when that was. It
// is nil if that is not known, or not there.
func (c *Cache) last(repository, tag string) (_ *Manifest, validated time.Time) {
	link := c.findTag(repository, tag)
	if link == nil {
		return nil, time.Time{}
	}
	right, ok := c.validated(repository, link.Descriptor.Digest)
	if !ok {
		return nil, time.Time{} // upstream has said no to the manifest itself
	}
	m := c.load(link.Descriptor.Digest)
	if m == nil || !right.covers(m) {
		return nil, time.Time{}
	}
	return m, link.validated
}

// Revalidate is ByTag, but that upstream is asked however lately it was.
func (c *Cache) Revalidate(ctx context.Context, repository, tag string, up Upstream) (*Manifest, error) {
	for {
		m, err := c.ask(ctx, repository, tag, up, func(ctx context.Context, up *questioned) (*Manifest, error) {
			return c.revalidate(ctx, repository, tag, up)
		})
		if err != nil || !m.Joined || m.Asked == nil || !m.Asked.Unasked {
			return m, err
		}
		// It was ByTag that was joined, which has not asked upstream.
	}
}

// maxMoves bounds what is remembered of where a tag has pointed.
const maxMoves = 20

// Move is that upstream said of a tag that it points at something else than From,
// which it had pointed at when upstream was asked before.
type Move struct {
	At   time.Time     `json:"at"`
	From digest.Digest `json:"from"`
}

// Moves lists how a tag has come to point at what it does, the newest first.
func (c *Cache) Moves(repository, tag string) []Move {
	l, err := c.readLink(tagName(repository, tag))
	if err != nil || l.Reference != repository+":"+tag {
		return nil
	}
	return slices.DeleteFunc(l.Moves, func(m Move) bool { return m.From.Validate() != nil })
}

// link is the content of a tag's file.
type link struct {
	Reference  string             `json:"reference"` // the name is a hash
	Descriptor ocispec.Descriptor `json:"descriptor"`
	Moves      []Move             `json:"moves,omitempty"`

	validated time.Time
}

func tagName(repository, tag string) string {
	sum := sha256.Sum256([]byte(repository + ":" + tag))
	return tagFile(sum[:])
}

func tagFile(hash []byte) string {
	name := hex.EncodeToString(hash)
	return path.Join(tagDir, name[:2], name)
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

// findTag is readTag for who does not change the file.
func (c *Cache) findTag(repository, tag string) *link {
	defer c.changes.begin(tagName(repository, tag))()
	return c.readTag(repository, tag)
}

// readTag returns what a tag pointed at when upstream last said so, or nil. Needs the
// change of its file.
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

// pointsAt is what a tag pointed at when upstream last said so, and when that was; the
// zero time if that is not known. Whoever changes or removes the file notes it in the
// index.
func (c *Cache) pointsAt(repository, tag string) (d digest.Digest, validated time.Time) {
	hash := sha256.Sum256([]byte(repository))
	c.mu.Lock()
	if repo := c.repositories[hash]; repo != nil {
		if t := repo.tags[tag]; t != nil {
			defer c.mu.Unlock()
			return t.manifest.Digest(), t.validated.Time()
		}
	}
	c.mu.Unlock()
	if l := c.findTag(repository, tag); l != nil {
		return l.Descriptor.Digest, l.validated
	}
	return "", time.Time{}
}

// link records that upstream said then, which is now as a rule, that a tag points at
// m. It reports whether it was known to point at anything before.
func (c *Cache) link(repository, tag string, m *Manifest, now time.Time) (known bool) {
	c.validate(repository, m, now)
	name := tagName(repository, tag)
	defer c.changes.begin(name)()
	old := c.readTag(repository, tag)
	var err error
	if old == nil || old.Descriptor.Digest != m.Digest {
		l := link{Reference: repository + ":" + tag, Descriptor: m.Descriptor}
		if old != nil {
			l.Moves = append([]Move{{now.UTC().Truncate(time.Second), old.Descriptor.Digest}}, old.Moves...)
			l.Moves = l.Moves[:min(len(l.Moves), maxMoves)]
		}
		data, _ := json.Marshal(l)
		err = c.write(name, data)
	}
	if err == nil {
		err = c.root.Chtimes(name, now, now)
	}
	if err != nil {
		c.complain("tag not stored", err, zap.String("repository", repository), zap.String("tag", tag))
		c.removeTag(repository, tag) // what it says is not true any more
		return old != nil
	}
	c.noteTag(repository, tag, m.Digest, now)
	return old != nil
}

// endTag is removeTag for who does not change the file otherwise.
func (c *Cache) endTag(repository, tag string) {
	defer c.changes.begin(tagName(repository, tag))()
	c.removeTag(repository, tag)
}

// removeTag needs the change of the file.
func (c *Cache) removeTag(repository, tag string) {
	name := tagName(repository, tag)
	if err := c.root.RemoveAll(name); err != nil {
		c.log.Error("tag not removed", zap.String("repository", repository), zap.String("tag", tag), zap.Error(err))
	}
	c.dropTag(repository, tag)
}
