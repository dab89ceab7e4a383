package handler

import (
	"context"
	"encoding/json"
	"io"
	"net/url"
	"strings"

	"github.com/opencontainers/go-digest"

	"larder/blobcache"
	"larder/handler/shared"
	"larder/handler/upstream"
	"larder/manifestcache"
)

// What a parent says of a manifest is known to the cache by this only.
var _ manifestcache.Relay = (*upstream.Repository)(nil)

// maxTags bounds what is read of a page of tags; an upstream's may not be larger.
const maxTags = 9 << 20

// Manifest is what a client gets for a reference, a tag or a digest which must be
// valid, but that the last pulls of a rate limit are left to clients. As theirs, it
// is a use of the whole image.
func (h *Handler) Manifest(ctx context.Context, repo *upstream.Repository, reference string) (*manifestcache.Manifest, []byte, error) {
	if err := h.upstreams.Spare(repo.String()); err != nil && !h.knows(repo, reference) && !h.sharesManifest(ctx, repo, reference) {
		return nil, nil, err
	}
	m, err := h.manifest(ctx, repo, reference)
	if err != nil {
		return nil, nil, err
	}
	content, err := h.manifests.Content(m)
	if err != nil {
		return nil, nil, err
	}
	defer content.Close()
	body, err := io.ReadAll(io.LimitReader(content, m.Size))
	return m, body, err
}

// knows reports whether upstream need not be asked for a manifest.
func (h *Handler) knows(repo *upstream.Repository, reference string) bool {
	if !isDigest(reference) {
		return h.manifests.Knows(repo.String(), reference)
	}
	_, ok := h.manifests.Manifest(digest.Digest(reference))
	return ok
}

// sharesManifest reports whether that is because the fleet's store has what it leads to.
func (h *Handler) sharesManifest(ctx context.Context, repo *upstream.Repository, reference string) bool {
	if h.shared == nil {
		return false
	}
	ctx, cancel := context.WithCancel(ctx) // the end of the question
	defer cancel()
	ctx = h.shared.Question(ctx)
	d := digest.Digest(reference)
	if !isDigest(reference) {
		desc, _, ok := h.shared.Tag(ctx, repo.String(), reference)
		if !ok {
			return false
		}
		d = desc.Digest
	}
	_, _, entitled := h.shared.Right(ctx, repo.String(), d)
	if !entitled {
		return false
	}
	_, _, there := h.shared.Manifest(ctx, repo.String(), d)
	return there
}

// manifest is what a client gets for a valid reference.
func (h *Handler) manifest(ctx context.Context, repo *upstream.Repository, reference string) (m *manifestcache.Manifest, err error) {
	if isDigest(reference) {
		m, err = h.manifests.ByDigest(ctx, repo.String(), digest.Digest(reference), repo.Anew())
	} else {
		m, err = h.manifests.ByTag(ctx, repo.String(), reference, repo.Anew())
	}
	if err != nil {
		return nil, err
	}
	if h.renewals.due(m.Digest) {
		h.blobs.Renew(h.manifests.Blobs(m.Digest)) // an image lives and goes as a whole
	}
	return m, nil
}

// isDigest tells valid digests from valid tags.
func isDigest(reference string) bool { return strings.Contains(reference, ":") }

// Fill has a blob of the repository kept that nobody has asked for: see
// blobcache.Cache.Fill.
func (h *Handler) Fill(ctx context.Context, repo *upstream.Repository, d digest.Digest, arrived func(have, size int64)) (blobcache.Outcome, error) {
	for {
		src, _ := h.source(repo.Anew(), d, shared.Whole)
		outcome, err := h.blobs.Fill(ctx, d, src, arrived)
		if !ofOthers(err, repo) {
			return outcome, err
		}
	}
}

// Tags is a page of the repository's tags, as a client gets it, and the query for
// the next one, nil if there is none.
func (h *Handler) Tags(ctx context.Context, repo *upstream.Repository, query url.Values) (tags []string, next url.Values, err error) {
	list, err := h.list(ctx, repo, withQuery("tags/list", query), func(ctx context.Context) (*upstream.Listing, error) {
		return repo.Tags(ctx, query)
	})
	if err != nil {
		return nil, nil, err
	}
	defer list.Content.Close()
	var doc struct{ Tags []string }
	if err := json.NewDecoder(io.LimitReader(list.Content, maxTags)).Decode(&doc); err != nil {
		return nil, nil, err
	}
	if list.Next != "" {
		next, _ = url.ParseQuery(list.Next) // encoded by ourselves
	}
	return doc.Tags, only(next, []string{"n", "last"}), nil
}
