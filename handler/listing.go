package handler

import (
	"net/http"
	"net/url"
	"strconv"

	"github.com/opencontainers/go-digest"

	"larder/handler/errcode"
	"larder/handler/middleware"
	"larder/handler/upstream"
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
	list, err := repo.Tags(r.Context(), query)
	if err != nil {
		return err
	}
	serveListing(w, r, list, "n", "last")
	return nil
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
	list, err := repo.Referrers(r.Context(), d, query)
	if err != nil {
		return err
	}
	if list.Filters != "" {
		w.Header().Set("OCI-Filters-Applied", list.Filters)
	}
	serveListing(w, r, list)
	return nil
}

// serveListing sends a page of upstream's.
func serveListing(w http.ResponseWriter, r *http.Request, list *upstream.Listing, params ...string) {
	w.Header().Set("Cache-Status", "larder; fwd=request; detail=miss")
	middleware.NoteOf(r.Context()).Outcome = "miss"
	writeListing(w, r, list, params...)
}

// writeListing sends a page and says where the next one is: here, and not where
// upstream says. Only the named parameters are taken from upstream's link; all,
// if none are named.
func writeListing(w http.ResponseWriter, r *http.Request, list *upstream.Listing, params ...string) {
	header := w.Header()
	if list.Next != nil {
		next := list.Next
		if len(params) > 0 {
			next = url.Values{}
			for _, p := range params {
				if v := list.Next.Get(p); v != "" {
					next.Set(p, v)
				}
			}
		}
		next.Del("ns")
		if ns := r.URL.Query().Get("ns"); ns != "" {
			next.Set("ns", ns)
		}
		link := url.URL{Path: r.URL.Path, RawQuery: next.Encode()}
		header.Set("Link", "<"+link.String()+`>; rel="next"`)
	}
	header.Set("Content-Type", list.ContentType)
	header.Set("Content-Length", strconv.Itoa(len(list.Body)))
	header.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		_, _ = w.Write(list.Body) // a client that has left needs no list
	}
}

// pick takes the named parameters out of a query.
func pick(u *url.URL, params ...string) (url.Values, error) {
	from, to := u.Query(), url.Values{}
	for _, p := range params {
		if v := from.Get(p); v != "" {
			to.Set(p, v)
		}
	}
	if len(to.Encode()) > maxQuery {
		return nil, &errcode.Error{Status: http.StatusBadRequest, Code: errcode.Unsupported, Message: "query is too long"}
	}
	return to, nil
}
