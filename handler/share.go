package handler

import (
	"context"
	"io"
	"net/http"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"

	"larder/blobcache"
	"larder/handler/middleware"
	"larder/handler/shared"
	"larder/handler/upstream"
	"larder/manifestcache"
)

// statusRedirect is the Cache-Status of an answer that says where the blob is: no
// more of it was here than that.
const statusRedirect = "larder; hit; detail=redirect"

// shareBlob has a blob of a source fetched for the fleet, or by it. Its size, which is
// looked for when somebody has to fetch it, is what a manifest says. For wrong bytes of
// the fleet's, the source is not to blame. isShared reports whether what has come so far
// was the fleet's.
func (h *Handler) shareBlob(src blobcache.Source, d digest.Digest, wanted shared.Wanted) (_ blobcache.Source, isShared func() bool) {
	var came, asked atomic.Bool // some of it; the source, for some of it
	fetch := func(ctx context.Context, offset, length int64) (io.ReadCloser, int64, error) {
		asked.Store(true)
		return src.Fetch(ctx, offset, length)
	}
	type blob struct {
		fetch blobcache.Fetch
		ended func(error)
		wrong func() bool
	}
	begin := sync.OnceValue(func() (b blob) {
		b.fetch, b.ended, b.wrong = h.shared.Blob(src.Owner, d, h.manifests.BlobSize(d), wanted, fetch)
		return b
	})
	return blobcache.Source{
		Owner: src.Owner,
		Fetch: func(ctx context.Context, offset, length int64) (io.ReadCloser, int64, error) {
			body, size, err := begin().fetch(ctx, offset, length)
			if err == nil {
				came.Store(true)
			}
			return body, size, err
		},
		Ended: func(err error) { begin().ended(err) },
		Wrong: func() {
			if !begin().wrong() {
				src.Wrong()
			}
		},
	}, func() bool { return came.Load() && !asked.Load() }
}

// redirectBlob sends a client to where the fleet has a blob. It is not done if the
// store does not have it, or upstream has to be asked whether the client may.
func (h *Handler) redirectBlob(w http.ResponseWriter, r *http.Request, repo *upstream.Repository, d digest.Digest) (done bool, err error) {
	ctx, late, cancel := patience(r.Context(), repo)
	defer cancel(nil)
	defer late.Stop()
	right := h.manifests.Refers(repo.String(), d)
	if right == manifestcache.Unknown {
		return false, nil // who fetches it finds out
	}
	url, ok := h.shared.URL(ctx, repo.String(), d)
	if !ok {
		return false, nil
	}
	asked, err := h.entitled(ctx, repo, d, right)
	if err != nil {
		return false, err
	}
	middleware.NoteOf(r.Context()).Outcome = "redirect"
	blobHeader(w.Header(), d, statusRedirect)
	setTiming(r.Context(), w.Header(), asked)
	w.Header().Set("Location", url)
	w.Header().Set("Cache-Control", "no-store") // it is a secret for a while
	w.WriteHeader(http.StatusTemporaryRedirect)
	return true, nil
}
