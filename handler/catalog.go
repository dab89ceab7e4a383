package handler

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"larder/handler/errcode"
	"larder/handler/middleware"
)

// maxCatalog is how many repositories a page of the catalog has at most.
const maxCatalog = 1000

// serveCatalog answers with the cached repositories that the user may pull, by the
// names that they are pulled by here: with their registry, or without it for who
// says in ns which one it is.
func (h *Handler) serveCatalog(w http.ResponseWriter, r *http.Request, ns string) error {
	if h.catalog == nil {
		return notFound("larder has no catalog; see LARDER_CATALOG")
	}
	query, err := pick(r.URL, "n", "last")
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
	user := middleware.NoteOf(r.Context()).User
	names := h.catalogOf(ns, func(repository string) bool { return h.catalog(user, repository) })
	first, _ := slices.BinarySearch(names, query.Get("last")+"\x00") // the first behind it
	names = names[first:]
	header := w.Header()
	if len(names) > n {
		if names = names[:n]; n > 0 {
			next := url.Values{"n": {strconv.Itoa(n)}, "last": {names[n-1]}}
			header.Set("Link", nextLink(r.URL, next.Encode(), nil))
		}
	}
	body, err := json.Marshal(struct {
		Repositories []string `json:"repositories"`
	}{append([]string{}, names...)})
	if err != nil {
		return err
	}
	middleware.NoteOf(r.Context()).Outcome = "hit"
	header.Set("Cache-Status", statusHit)
	sendDocument(w, r, "application/json", bytes.NewReader(body), int64(len(body)))
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
