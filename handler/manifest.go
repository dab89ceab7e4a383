package handler

import (
	"fmt"
	"net/http"
	"strconv"
	"time"

	"larder/handler/middleware"
	"larder/handler/upstream"
	"larder/manifestcache"
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
	header.Set("Content-Type", m.MediaType)
	header.Set("Docker-Content-Digest", m.Digest.String())
	header.Set("ETag", `"`+m.Digest.String()+`"`)
	header.Set("X-Content-Type-Options", "nosniff")
	setStatus(header, repo, m.Outcome, m.Age)
	return serveContent(w, r, content, m.Size)
}

// setStatus says how an answer came about (RFC 9211) and, if it is an old one, that
// it is.
func setStatus(header http.Header, repo *upstream.Repository, outcome manifestcache.Outcome, age time.Duration) {
	status := "larder; fwd=uri-miss; stored; detail=miss"
	switch outcome {
	case manifestcache.Hit:
		status = "larder; hit; detail=hit"
	case manifestcache.Revalidated:
		status = "larder; fwd=stale; fwd-status=200; detail=revalidated"
	case manifestcache.Stale:
		status = fmt.Sprintf("larder; hit; ttl=-%d; detail=stale", int64(age/time.Second))
		header.Set("Age", strconv.FormatInt(int64(age/time.Second), 10))
		header.Set("Warning", fmt.Sprintf(`299 - "%s can't be asked; larder answers with what it last said, %s ago"`,
			repo.Host(), age.Round(time.Second)))
	}
	header.Set("Cache-Status", status)
}
