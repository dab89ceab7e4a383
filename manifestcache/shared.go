package manifestcache

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/zap"

	"larder/blobcache/compact"
)

// maxAhead is how far the clocks of caches that share may be apart. What is said to
// have been validated further in the future than that counts for nothing: it would
// stay fresh until this clock is there as well.
const maxAhead = time.Minute

// Shared is what several caches have in common: what upstream has said to any of
// them. Its methods may be called by several goroutines. What they can't find out in
// a short time, or have no business with, is not there. Repositories, tags and digests
// are valid. What Manifest returns need not be what it should.
type Shared interface {
	// Question is a context for all that is asked here for one question: together it
	// takes no longer than is worth waiting for.
	Question(ctx context.Context) context.Context

	// Tag says what a tag pointed at when upstream last told one of the caches, and
	// when that was.
	Tag(ctx context.Context, repository, tag string) (desc ocispec.Descriptor, validated time.Time, ok bool)

	// Right says as what a repository has the manifest d, and when upstream last said
	// that to one of the caches.
	Right(ctx context.Context, repository string, d digest.Digest) (mediaType string, validated time.Time, ok bool)

	// Manifest returns the manifest d for a repository, which need not have it.
	Manifest(ctx context.Context, repository string, d digest.Digest) (mediaType string, body []byte, ok bool)

	// Claim lets one of the caches ask upstream about a reference, a tag or a digest, for
	// all. It returns when that is this one, or when known, which it calls now and then,
	// says that another's answer is there, or when it has waited long enough. done, which
	// is never nil, is to be called when the others need not wait any more. If it is one
	// of those that are asking this cache, that is not waited for: it waits itself.
	Claim(ctx context.Context, repository, reference string, asking []string, known func(context.Context) bool) (done func())

	// Said notes what upstream has said to this cache, and does not wait for that.
	Said(a Answer)

	// Gone notes that upstream has said no to a tag or a digest of a repository. It does
	// not wait for that either.
	Gone(repository, reference string)
}

// Answer is that a repository has a manifest.
type Answer struct {
	Repository string
	Tag        string // that points at it; "": it was its digest that was asked for
	Manifest   ocispec.Descriptor
	Validated  time.Time // when upstream said so
	Fetched    bool      // by this cache: Shared.Manifest had none, or a wrong one

	// Content opens the bytes, if they are still here.
	Content func() (io.ReadSeekCloser, error)

	// Done is what Claim has returned, to be called when the others find this; nil: there
	// was no claim.
	Done func()
}

// tell has the others know what upstream has said in answer to a question, and ends
// its claim.
func (c *Cache) tell(q *questioned, m *Manifest, err error) {
	switch {
	case c.cfg.Shared == nil:
	case err != nil && c.cfg.GoneIf(err):
		c.cfg.Shared.Gone(q.repository, q.reference)
	case err == nil && q.asked && m.Outcome != Stale:
		desc := m.Descriptor
		a := Answer{
			Repository: q.repository, Manifest: desc, Validated: m.validated, Fetched: q.fetched,
			Content: func() (io.ReadSeekCloser, error) { return c.contentOf(desc) },
			Done:    q.done,
		}
		if q.reference != string(m.Digest) {
			a.Tag = q.reference
		}
		c.cfg.Shared.Said(a)
		return
	}
	if q.done != nil {
		q.done()
	}
}

// contentOf opens a manifest that was described so, if it still is what is here.
func (c *Cache) contentOf(desc ocispec.Descriptor) (io.ReadSeekCloser, error) {
	m := c.Peek(desc.Digest)
	if m == nil || m.MediaType != desc.MediaType {
		return nil, fmt.Errorf("manifest %s: %w", desc.Digest, errDamaged)
	}
	return c.Content(m)
}

// claim looks whether something is known or else, if others may be asking upstream for
// it, waits for them or has them wait. A question has one claim at most.
func (c *Cache) claim(ctx context.Context, up *questioned, reference string, known func(context.Context) bool) {
	if known(ctx) || c.cfg.Shared == nil || up.done != nil {
		return
	}
	var asking []string
	if relay, ok := up.Upstream.(Relay); ok {
		asking = relay.Asking()
	}
	up.done = c.cfg.Shared.Claim(ctx, up.repository, reference, asking, known)
}

// follow is what a tag points at, if others have heard that of late. It is nil if
// upstream has to be asked, for all if possible.
func (c *Cache) follow(ctx context.Context, tag string, up *questioned) (m *Manifest) {
	c.claim(ctx, up, tag, func(ctx context.Context) bool {
		latest, validated := c.latest(ctx, tag, up, func(validated time.Time) bool { return within(c.cfg.TagTTL, validated) })
		if latest != nil {
			m = dated(latest, up.known(), validated)
		}
		return latest != nil
	})
	return m
}

// latest is what a tag pointed at when upstream last said it to anybody, and when
// that was. It is nil if that is not known, or not there, or not new enough. What
// others know is then known here as well, as of then.
func (c *Cache) latest(ctx context.Context, tag string, up *questioned, enough func(time.Time) bool) (_ *Manifest, validated time.Time) {
	var d digest.Digest
	if l := c.findTag(up.repository, tag); l != nil {
		d, validated = l.Descriptor.Digest, l.validated
	}
	desc, at, ok := c.cfg.Shared.Tag(ctx, up.repository, tag)
	if at, ok = notAhead(at, ok); ok && at.After(validated) {
		d, validated, up.others = desc.Digest, at, true
	}
	if validated.IsZero() || !enough(validated) {
		return nil, validated
	}
	right, ok := c.latestRight(ctx, d, up, func(word) bool { return true })
	if !ok {
		return nil, validated // upstream has said no to the manifest itself
	}
	m := c.loadShared(ctx, d, up, right.covers)
	if m != nil && up.others {
		up.Known = c.link(up.repository, tag, m, validated)
	}
	return m, validated
}

// entitled is the manifest d, if others have heard of late that the repository has it.
// It is nil if upstream has to be asked, for all if possible.
func (c *Cache) entitled(ctx context.Context, d digest.Digest, up *questioned) (m *Manifest) {
	fresh := func(w word) bool { return c.fresh(w.at.Time()) }
	c.claim(ctx, up, string(d), func(ctx context.Context) bool {
		right, ok := c.latestRight(ctx, d, up, fresh)
		if !ok || !fresh(right) {
			return false
		}
		if m = c.loadShared(ctx, d, up, right.covers); m == nil {
			return false
		}
		c.validate(up.repository, m, right.at.Time())
		m = dated(m, up.known(), right.at.Time())
		return true
	})
	return m
}

// latestRight is the latest of what this cache and others know of the repository's
// right to the manifest d. Others are not asked if what this one knows is enough.
func (c *Cache) latestRight(ctx context.Context, d digest.Digest, up *questioned, enough func(word) bool) (right word, ok bool) {
	right, ok = c.validated(up.repository, d)
	if c.cfg.Shared == nil || ok && enough(right) {
		return right, ok
	}
	mediaType, at, there := c.cfg.Shared.Right(ctx, up.repository, d)
	if at, there = notAhead(at, there); there && (!ok || at.After(right.at.Time())) {
		right, ok, up.others = word{compact.TimeOf(at), mediaType}, true, true
	}
	return right, ok
}

// notAhead is when something was validated, by a clock that may be a little ahead.
func notAhead(validated time.Time, ok bool) (time.Time, bool) {
	return past(validated), ok && time.Until(validated) < maxAhead
}

// loadShared is load, or else takes the manifest d from what is shared, if that is one
// that is wanted.
func (c *Cache) loadShared(ctx context.Context, d digest.Digest, up *questioned, wanted func(*Manifest) bool) *Manifest {
	if m := c.load(d); m != nil && wanted(m) {
		return m
	}
	if c.cfg.Shared == nil {
		return nil
	}
	mediaType, body, ok := c.cfg.Shared.Manifest(ctx, up.repository, d)
	if !ok {
		return nil
	}
	m := &Manifest{Descriptor: ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(body))}, Body: body}
	if !has(d, mediaType, body) {
		c.count.mismatches.Add(1)
		c.log.Error("a wrong manifest is shared; asking upstream", zap.String("repository", up.repository), zap.Stringer("digest", d))
		return nil
	}
	if !wanted(m) {
		return nil
	}
	up.taken = true
	c.keep(m, up)
	return m
}

// keep stores what upstream has sent, or others have.
func (c *Cache) keep(m *Manifest, up *questioned) {
	if up.Stored = c.store(m); up.Stored && m.Size > maxBody {
		m.Body = nil
	}
}
