package handler

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"github.com/opencontainers/go-digest"

	"larder/handler/errcode"
	"larder/handler/middleware"
	"larder/handler/upstream"
	"larder/manifestcache"
)

// maxQuery bounds what is passed on of a listing's query.
const maxQuery = 1024

// serveTags answers with upstream's list of tags; n and last are passed on.
func (h *Handler) serveTags(w http.ResponseWriter, r *http.Request, repo *upstream.Repository) error {
	query, err := pick(r.URL, "n", "last")
	if err != nil {
		return err
	}
	if n := query.Get("n"); n != "" {
		if v, err := strconv.Atoi(n); err != nil || v < 0 {
			return &errcode.Error{Status: http.StatusBadRequest, Code: errcode.Unsupported, Message: "n is not a number"}
		}
	}
	err = h.serveList(w, r, repo, withQuery("tags/list", query), func(ctx context.Context) (*upstream.Listing, error) {
		return repo.Tags(ctx, query)
	}, "n", "last")
	if upstream.Refused(err) { // which is about the repository, not the page
		h.manifests.ForgetLists(repo.String())
	}
	return err
}

// serveReferrers answers with upstream's list of what refers to a manifest. An
// upstream without the referrers API has a 404, which clients take as a hint to
// try the fallback tag.
func (h *Handler) serveReferrers(w http.ResponseWriter, r *http.Request, repo *upstream.Repository, d digest.Digest) error {
	// Pages after the first are asked for with whatever upstream's Link says.
	query := r.URL.Query()
	query.Del("ns")
	if len(query.Encode()) > maxQuery {
		return &errcode.Error{Status: http.StatusBadRequest, Code: errcode.Unsupported, Message: "query is too long"}
	}
	err := h.serveList(w, r, repo, withQuery("referrers/"+d.String(), query), func(ctx context.Context) (*upstream.Listing, error) {
		return repo.Referrers(ctx, d, query)
	})
	if upstream.Unreachable(err) && h.manifests.Knows(repo.String(), fallbackTag(d)) {
		// A 404 is never remembered. But a fallback tag that was pulled is a sign
		// of one, and clients go on to it from a 404 only: not from a 502, which
		// is what they get if nothing is known, lest "no answer" look like "no
		// signatures".
		return &errcode.Error{
			Status: http.StatusNotFound, Code: errcode.Unsupported, Err: err,
			Message: "what refers to this is listed by the tag " + fallbackTag(d) + ", as far as larder knows",
		}
	}
	return err
}

// fallbackTag is the tag of an index of what refers to d, where registries have no
// referrers API: OCI distribution spec, "Referrers Tag Schema".
func fallbackTag(d digest.Digest) string {
	const maxEncoded = 64 // of the digest's hex
	return string(d.Algorithm()) + "-" + d.Encoded()[:min(len(d.Encoded()), maxEncoded)]
}

// serveSignatures answers with the signatures that upstream keeps of a manifest.
func (h *Handler) serveSignatures(w http.ResponseWriter, r *http.Request, repo *upstream.Repository, d digest.Digest) error {
	return h.serveList(w, r, repo, "signatures/"+d.String(), func(ctx context.Context) (*upstream.Listing, error) {
		return repo.Signatures(ctx, d)
	})
}

func withQuery(path string, query url.Values) string {
	if len(query) == 0 {
		return path
	}
	return path + "?" + query.Encode()
}

// serveList sends a page and says where the next one is: here, and not where
// upstream says. Only the named parameters are taken from upstream's link; all, if
// none are named.
func (h *Handler) serveList(w http.ResponseWriter, r *http.Request, repo *upstream.Repository, name string, fetch func(context.Context) (*upstream.Listing, error), params ...string) error {
	list, err := h.list(r.Context(), repo, name, fetch)
	if err != nil {
		return err
	}
	defer list.Content.Close()
	middleware.NoteOf(r.Context()).Outcome = list.Outcome.String()
	header := w.Header()
	if list.Filters != "" {
		header.Set("OCI-Filters-Applied", list.Filters)
	}
	if list.Next != "" {
		header.Set("Link", nextLink(r.URL, list.Next, params))
	}
	setStatus(r.Context(), header, repo, story{list.Outcome, list.Age, list.Asked, list.Joined})
	sendDocument(w, r, list.ContentType, list.Content, list.Size)
	return nil
}

// list gets a page from the cache, or from upstream.
func (h *Handler) list(ctx context.Context, repo *upstream.Repository, name string, fetch func(context.Context) (*upstream.Listing, error)) (*manifestcache.List, error) {
	return h.manifests.List(ctx, repo.String(), name, func(ctx context.Context) (*manifestcache.List, error) {
		l, err := fetch(ctx)
		if err != nil {
			return nil, err
		}
		list := &manifestcache.List{ContentType: l.ContentType, Filters: l.Filters, Next: l.Next.Encode(), Body: l.Body, Relayed: l.Relayed, Age: l.Age}
		if l.Stale {
			list.Outcome = manifestcache.Stale
		}
		return list, nil
	})
}

// sendDocument sends a list.
func sendDocument(w http.ResponseWriter, r *http.Request, contentType string, body io.Reader, size int64) {
	header := w.Header()
	header.Set("Content-Type", contentType)
	header.Set("Content-Length", strconv.FormatInt(size, 10))
	header.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		_, _ = io.CopyN(w, body, size) // a client that has left needs no list
	}
}

// nextLink points to the page behind the one at u that upstream's query is for.
func nextLink(u *url.URL, query string, params []string) string {
	next, _ := url.ParseQuery(query) // encoded by ourselves
	if len(params) > 0 {
		next = only(next, params)
	}
	next.Del("ns")
	if ns := u.Query().Get("ns"); ns != "" {
		next.Set("ns", ns)
	}
	link := url.URL{Path: u.Path, RawQuery: next.Encode()}
	return "<" + link.String() + `>; rel="next"`
}

// pick takes the named parameters out of a query.
func pick(u *url.URL, params ...string) (url.Values, error) {
	query := only(u.Query(), params)
	if len(query.Encode()) > maxQuery {
		return nil, &errcode.Error{Status: http.StatusBadRequest, Code: errcode.Unsupported, Message: "query is too long"}
	}
	return query, nil
}

// only is what a query says of the parameters.
func only(query url.Values, params []string) url.Values {
	some := url.Values{}
	for _, p := range params {
		if v := query.Get(p); v != "" {
			some.Set(p, v)
		}
	}
	return some
}
