package handler

import (
	"net/http"

	"larder/handler/middleware"
	"larder/handler/upstream"
	"larder/manifestcache"
)

// serveManifest answers with the stored bytes as they are: nothing is converted
// or chosen by what the client accepts.
func (h *Handler) serveManifest(w http.ResponseWriter, r *http.Request, repo *upstream.Repository, rt route) error {
	var m *manifestcache.Manifest
	var err error
	if rt.digest != "" {
		m, err = h.manifests.ByDigest(r.Context(), repo.String(), rt.digest, repo)
	} else {
		m, err = h.manifests.ByTag(r.Context(), repo.String(), rt.reference, repo)
	}
	if err != nil {
		return err
	}
	h.blobs.Renew(h.manifests.Blobs(m.Digest)) // an image lives and goes as a whole
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
