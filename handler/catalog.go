package handler

import (
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"larder/handler/errcode"
	"larder/handler/middleware"
	"larder/handler/upstream"
)

// maxCatalog is how many repositories a page of the catalog has at most.
const maxCatalog = 1000

// serveCatalog answers with the cached repositories that visible does not hide,
// by the names that they are pulled by here: with their registry, or without it
// for who says in ns which one it is.
func (h *Handler) serveCatalog(w http.ResponseWriter, r *http.Request, visible func(repository string) bool) error {
	if !h.catalog {
		return notFound("larder has no catalog; see LARDER_CATALOG")
	}
	query, err := pick(r.URL, "n", "last")
	if err != nil {
		return err
	}
	ns, err := namespace(r.URL)
	if err != nil {
		return err
	}
	n := maxCatalog
	if query.Has("n") {
		if n, err = strconv.Atoi(query.Get("n")); err != nil || n < 0 {
			return &errcode.Error{Status: http.StatusBadRequest, Code: errcode.Unsupported, Message: "n is not a number"}
		}
		n = min(n, maxCatalog)
	}
	if err := h.manifests.Scanned(r.Context()); err != nil {
		return err
	}
	names := h.catalogOf(ns, visible)
	first, _ := slices.BinarySearch(names, query.Get("last")+"\x00") // the first behind it
	names = names[first:]
	list := &upstream.Listing{ContentType: "application/json"}
	if len(names) > n {
		if names = names[:n]; n > 0 {
			list.Next = url.Values{"n": {strconv.Itoa(n)}, "last": {names[n-1]}}
		}
	}
	list.Body, err = json.Marshal(struct {
		Repositories []string `json:"repositories"`
	}{append([]string{}, names...)})
	if err != nil {
		return err
	}
	w.Header().Set("Cache-Status", "larder; hit; detail=hit")
	middleware.NoteOf(r.Context()).Outcome = "hit"
	writeListing(w, r, list)
	return nil
}

// catalogOf lists what is cached and can be pulled, in order.
func (h *Handler) catalogOf(ns string, visible func(repository string) bool) []string {
	var names []string
	for _, name := range h.manifests.Repositories() {
		repo, err := h.upstreams.Repository("", name)
		if err != nil || repo.String() != name || !visible(name) { // of a registry that is not listed any more
			continue
		}
		if ns != "" {
			in, err := h.upstreams.Repository(ns, strings.TrimPrefix(name, repo.Host()+"/"))
			if err != nil || in.String() != name {
				continue
			}
			name = strings.TrimPrefix(name, repo.Host()+"/")
		}
		names = append(names, name)
	}
	return names
}
