package handler

import (
	"net/http"

	"larder/handler/middleware"
	"larder/handler/upstream"
)

// serveManifest answers with the stored bytes as they are: nothing is converted
// or chosen by what the client accepts.
func (h *Handler) serveManifest(w http.ResponseWriter, r *http.Request, repo *upstream.Repository, rt route) error {
	m, err := h.manifest(r.Context(), repo, rt.reference)
	if err != nil {
		return err
	}
	if r.Method == http.MethodGet {
		h.prefetch(repo, m)
	}
	middleware.NoteOf(r.Context()).Outcome = m.Outcome.String()
	content, err := h.manifests.Content(m)
	if err != nil {
		return err
	}
	defer content.Close()
	header := w.Header()
	contentHeader(header, m.MediaType, m.Digest)
	setStatus(r.Context(), header, repo, story{m.Outcome, m.Age, m.Asked, m.Joined})
	return serveContent(w, r, content, m.Size)
}
