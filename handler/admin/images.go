package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/docker/go-units"
	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"

	"larder/handler/admin/pages"
	"larder/handler/errcode"
	"larder/handler/upstream"
	"larder/manifestcache"
)

const (
	imagesOnPage  = 50
	tagsOnPage    = 20
	missingOnPage = 5
)

// images is what the images page shows.
func (c *Control) images(ctx context.Context, wanted pages.Search) (*pages.Images, error) {
	s := &search{text: wanted.Text, n: imagesOnPage}
	if err := s.order(c, wanted.Sort); err != nil {
		return nil, readable(err)
	}
	if wanted.Last != "" {
		var err error
		if s.after, err = parsePlace(wanted.Last); err != nil {
			return nil, readable(err)
		}
	}
	found, next, err := c.find(ctx, s)
	if err != nil {
		return nil, readable(err)
	}
	images := new(pages.Images)
	if next != nil {
		images.Next = next.String()
	}
	for _, img := range found {
		images.Images = append(images.Images, c.shown(img))
	}
	return images, nil
}

// shown is an image as the page shows it.
func (c *Control) shown(img image) pages.Image {
	_, err := c.Upstreams.Repository("", img.Repository)
	s := pages.Image{
		Repository: img.Repository, Digest: img.Digest, Size: img.Total, Shared: c.shared(img.Digest), Blobs: img.Blobs,
		MissingCount: img.MissingCount, ManifestCount: img.ManifestCount, Complete: img.Complete,
		Used: img.Used, Expires: img.Expires, Hits: img.Hits, Listed: err == nil,
		Pin: c.pinState(img.Repository, img.Digest.String()),
	}
	for _, m := range img.Manifests {
		if m.Cached && m.Platform != "" {
			s.Platforms = append(s.Platforms, m.Platform)
		}
	}
	for _, m := range img.Missing[:min(len(img.Missing), missingOnPage)] {
		s.Missing = append(s.Missing, pages.Missing{Digest: m.Digest, Have: m.Have, Filling: m.Filling})
	}
	for _, t := range img.Tags[:min(len(img.Tags), tagsOnPage)] {
		s.Tags = append(s.Tags, pages.Tag{
			Name: t.Tag, Reference: img.Repository + ":" + t.Tag, Validated: t.Validated, Moves: c.moves(img.Repository, t.Tag, img.Digest),
			Pin: c.pinState(img.Repository, t.Tag),
		})
	}
	s.MoreTags = img.TagCount - len(s.Tags)
	return s
}

// pinState is whether a tag or a digest of a repository is pinned.
func (c *Control) pinState(repository, reference string) (p pages.Pin) {
	p.ByHand, p.BySetting = c.Manifests.Pinned(repository, reference)
	return p
}

// moves tells how a tag has come to point at d.
func (c *Control) moves(repository, tag string, d digest.Digest) []pages.Move {
	var moves []pages.Move
	for _, m := range c.Manifests.Moves(repository, tag) {
		moves = append(moves, pages.Move{At: m.At, From: m.From, To: d})
		d = m.From
	}
	return moves
}

// shared is how much of an image others need as well.
func (c *Control) shared(d digest.Digest) (n int64) {
	m := c.measure(d)
	own := make(map[digest.Digest]bool)
	for _, d := range m.tree.Manifests {
		own[d] = true
	}
	for i, b := range m.tree.Blobs {
		for _, by := range c.Manifests.Naming(b) {
			if !own[by] {
				n += m.blobs[i].Size
				break
			}
		}
	}
	return n
}

// removeForPage does what the page's button says.
func (c *Control) removeForPage(r *http.Request, reference string) (said string, err error) {
	rep, err := c.removeNamed(r, reference)
	if err != nil {
		return "", readable(err)
	}
	went := rep.body.(*removal)
	said = fmt.Sprintf("%s is removed: %d tags, %d manifests and %d blobs that nothing else needs, %s.",
		reference, went.Count.Tags, went.Count.Manifests, went.Count.Blobs, units.BytesSize(float64(went.Bytes)))
	if went.Busy > 0 {
		said += fmt.Sprintf(" %d blobs stay, as they are being fetched or verified.", went.Busy)
	}
	if went.Failed > 0 {
		return "", fmt.Errorf("%s %d files can't be removed; the log says why", said, went.Failed)
	}
	return said, nil
}

// refresh asks the registry what a tag points at now.
func (c *Control) refresh(r *http.Request, reference string) (said string, err error) {
	t, err := c.parse(reference)
	if err != nil {
		return "", readable(err)
	}
	if t.upstream == nil || t.tag == "" || t.digest != "" {
		return "", fmt.Errorf("%s is no tag of a registry in LARDER_UPSTREAMS", reference)
	}
	if setting := c.Denied(t.repository); setting != "" {
		return "", fmt.Errorf("%s says that %s is not served", setting, t.repository)
	}
	before, known := c.Manifests.Tag(t.repository, t.tag)
	m, err := c.Manifests.Revalidate(r.Context(), t.repository, t.tag, t.upstream.Anew())
	c.Logger.Info("tag asked for, as an operator wants", zap.String("reference", reference), zap.String("client", r.RemoteAddr), zap.Error(err))
	switch {
	case upstream.Refused(err):
		return "", fmt.Errorf("%s is not there any more, and was forgotten: %w", reference, err)
	case err != nil:
		return "", err
	case m.Outcome == manifestcache.Stale:
		return "", fmt.Errorf("%s can't be asked now, or is spared (LARDER_RATELIMIT_FLOOR); %s stays as it was", t.upstream.Host(), reference)
	case known && before.Digest != m.Digest:
		return fmt.Sprintf("%s has moved from %s to %s. What is new is fetched with the next pull.", reference, before.Digest, m.Digest), nil
	default:
		return fmt.Sprintf("%s points at %s still.", reference, m.Digest), nil
	}
}

// readable is an error as a person is told it.
func readable(err error) error {
	if e, ok := errors.AsType[*errcode.Error](err); ok {
		return errors.New(e.Message)
	}
	return err
}
