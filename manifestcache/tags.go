package manifestcache

import (
	"context"
	"time"

	"go.uber.org/zap"
)

// ByTag returns what a tag points at. Upstream is asked unless it was within
// TagTTL; many who ask at the same time are one question.
func (c *Cache) ByTag(ctx context.Context, repository, tag string, up Upstream) (*Manifest, error) {
	if c.cfg.TagTTL > 0 {
		if link := c.readTag(repository, tag); link != nil && time.Since(link.validated) < c.cfg.TagTTL {
			right, ok := c.validated(repository, link.Descriptor.Digest)
			if m := c.load(link.Descriptor.Digest); m != nil && ok && right.covers(m) {
				return c.answer(m, Hit, link.validated), nil
			}
		}
	}
	return c.ask(ctx, repository+":"+tag, func(ctx context.Context) (*Manifest, error) {
		return c.revalidate(ctx, repository, tag, up)
	})
}

// revalidate asks upstream what a tag points at now. A HEAD is enough if that
// is on disk, be it the same as before or not.
func (c *Cache) revalidate(ctx context.Context, repository, tag string, up Upstream) (*Manifest, error) {
	if err := c.cfg.Spare(repository); err != nil {
		if m := c.stale(repository, tag, err); m != nil {
			return m, nil
		}
	}
	desc, err := up.HeadManifest(ctx, tag)
	if err != nil {
		return c.withoutAnswer(repository, tag, err)
	}
	if desc.Digest != "" {
		// The media type is upstream's to say, and no digest covers it.
		if m := c.load(desc.Digest); m != nil && m.MediaType == desc.MediaType {
			c.link(repository, tag, m)
			return dated(m, Revalidated, time.Now()), nil
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
		}
		return c.withoutAnswer(repository, tag, err)
	}
	c.link(repository, tag, m)
	return m, nil
}

// withoutAnswer decides what a failed question means for a tag: an upstream
// that can't answer leaves it as it was, a no ends it.
func (c *Cache) withoutAnswer(repository, tag string, err error) (*Manifest, error) {
	if c.cfg.GoneIf(err) {
		c.removeTag(repository, tag)
		return nil, err
	}
	if !c.cfg.StaleIf(err) {
		return nil, err
	}
	if m := c.stale(repository, tag, err); m != nil {
		return m, nil
	}
	return nil, err
}

// stale is what a tag pointed at when upstream last said it, which it can't say
// now because of err. It is nil if that is not known, or not there.
func (c *Cache) stale(repository, tag string, err error) *Manifest {
	m, validated := c.last(repository, tag)
	if m == nil {
		return nil
	}
	c.log.Warn("upstream can't say what a tag points at; answering with what it was",
		zap.String("repository", repository), zap.String("tag", tag), zap.Time("validated", validated), zap.Error(err))
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
	link := c.readTag(repository, tag)
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
