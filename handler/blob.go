package handler

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"larder/blobcache"
	"larder/handler/errcode"
	"larder/handler/middleware"
	"larder/handler/shared"
	"larder/handler/upstream"
	"larder/manifestcache"
)

// firstByte is how long a client waits for a blob to begin: containerd gives up
// after 30 s. The fill goes on and may be there for the client's next try.
const firstByte = 25 * time.Second

// serveBlob answers with a blob that the repository has. Bytes are shared
// between repositories, rights are not: a blob is given out if a cached
// manifest of the repository names it or upstream has it there.
func (h *Handler) serveBlob(w http.ResponseWriter, r *http.Request, repo *upstream.Repository, d digest.Digest) error {
	if r.Method == http.MethodHead {
		ctx, late, cancel := patience(r.Context(), repo)
		defer cancel(nil)
		defer late.Stop()
		return h.headBlob(ctx, w, r, repo, d)
	}
	a, isWhole := whole(r, d)
	odd := isWhole && h.answers.again(a)
	if h.redirect && !odd { // or what is there may be wrong, or gone
		done, err := h.redirectBlob(w, r, repo, d)
		if done && isWhole {
			h.answers.given(a)
		}
		if done || err != nil {
			return err
		}
	}
	if odd {
		h.blobs.Doubt(d)
	}
	blob, err := h.blobs.Open(d)
	right := manifestcache.Unknown
	if blob != nil {
		right = h.manifests.Refers(repo.String(), d)
	}
	if err == nil && right != manifestcache.Granted {
		ctx, late, cancel := patience(r.Context(), repo)
		defer cancel(nil)
		blob, err = h.waitForBlob(ctx, r, repo, d, blob, right)
		late.Stop()
	}
	if err != nil {
		return err
	}
	defer blob.Content.Close()
	err = sendBlob(w, r, repo, d, blob)
	if h.redirect && odd && err == nil && blob.Outcome == blobcache.Hit { // right, and here
		h.shared.Doubt(repo.String(), d)
	}
	if isWhole && err == nil && r.Context().Err() == nil {
		h.answers.given(a)
	}
	return err
}

// patience is a context that ends when a client would give up, unless late is
// stopped: then something has come.
func patience(ctx context.Context, repo *upstream.Repository) (_ context.Context, late *time.Timer, cancel context.CancelCauseFunc) {
	ctx, cancel = context.WithCancelCause(ctx)
	late = time.AfterFunc(firstByte, func() {
		cancel(&errcode.Error{Status: http.StatusGatewayTimeout, Code: errcode.Unavailable, Message: repo.Host() + " sends nothing"})
	})
	return ctx, late, cancel
}

// waitForBlob opens what is not at hand, or not known to be the repository's.
func (h *Handler) waitForBlob(
	ctx context.Context, r *http.Request, repo *upstream.Repository, d digest.Digest, blob *blobcache.Blob, right manifestcache.Right,
) (*blobcache.Blob, error) {
	if blob != nil {
		asked, err := h.entitled(ctx, repo, d, right)
		if err != nil {
			blob.Content.Close()
			return nil, err
		}
		blob.Waited += asked
		return blob, nil
	}
	offset, length := firstRange(r)
	blob, err := h.getBlob(ctx, repo, d, offset, length)
	if err == nil && blob.Size < 0 && offset > 0 {
		// A part of a blob of unknown size can't be told from the whole.
		blob.Content.Close()
		return h.getBlob(ctx, repo, d, 0, -1)
	}
	return blob, err
}

// sendBlob answers with an open blob.
func sendBlob(w http.ResponseWriter, r *http.Request, repo *upstream.Repository, d digest.Digest, blob *blobcache.Blob) error {
	middleware.NoteOf(r.Context()).Outcome = blob.Outcome.String()
	blobHeader(w.Header(), d, relayed(repo, blobStatus(blob)))
	setTiming(r.Context(), w.Header(), blob.Waited)
	if blob.Size < 0 && !r.ProtoAtLeast(1, 1) {
		// Without a length and without chunks, a broken answer would look whole.
		return &errcode.Error{
			Status: http.StatusHTTPVersionNotSupported, Code: errcode.Unsupported,
			Message: repo.Host() + " does not say how large this blob is; ask again when it is cached, or with HTTP/1.1",
		}
	}
	if blob.Size < 0 {
		serveUnsized(w, blob.Content)
		return nil
	}
	return serveContent(w, r, blob.Content, blob.Size)
}

// getBlob opens the blob for who wants length bytes (-1: all) from offset, and
// makes sure that it is the repository's.
func (h *Handler) getBlob(ctx context.Context, repo *upstream.Repository, d digest.Digest, offset, length int64) (*blobcache.Blob, error) {
	wanted := shared.Part
	if offset == 0 && length < 0 {
		wanted = shared.Whole
	}
	src, isShared := h.source(repo, d, wanted)
	for {
		blob, err := h.blobs.GetRange(ctx, d, offset, length, src)
		if ofOthers(err, repo) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if blob.Outcome == blobcache.Miss && isShared() {
			blob.Outcome = blobcache.Shared
		}
		asked, err := h.entitled(ctx, repo, d, h.manifests.Refers(repo.String(), d))
		if err != nil {
			blob.Content.Close()
			return nil, err
		}
		blob.Waited += asked
		return blob, nil
	}
}

// ofOthers reports whether what was joined is a fill for another repository: what
// upstream says about that one means nothing here.
func ofOthers(err error, repo *upstream.Repository) bool {
	e, ok := errors.AsType[*upstream.Error](err)
	return ok && e.Repository != repo.String()
}

// source is where a blob of the repository comes from, for who wants that much of it.
// When it has begun to come, isShared reports whether it does from the fleet's store.
func (h *Handler) source(repo *upstream.Repository, d digest.Digest, wanted shared.Wanted) (src blobcache.Source, isShared func() bool) {
	src = blobcache.Source{Fetch: h.fetch(repo, d), Owner: repo.String(), Wrong: repo.Distrust}
	if h.shared == nil {
		return src, func() bool { return false }
	}
	return h.shareBlob(src, d, wanted)
}

// fetch gets a blob from upstream.
func (h *Handler) fetch(repo *upstream.Repository, d digest.Digest) blobcache.Fetch {
	return func(ctx context.Context, offset, length int64) (io.ReadCloser, int64, error) {
		body, size, err := repo.OpenBlob(ctx, d, offset, length)
		h.learn(repo, d, err)
		switch {
		case errors.Is(err, upstream.ErrNoRange):
			return nil, 0, fmt.Errorf("%w: %w", blobcache.ErrNoRange, err)
		case upstream.Refused(err):
			return nil, 0, fmt.Errorf("%w: %w", blobcache.ErrRefused, err)
		case errors.Is(err, io.EOF):
			return nil, 0, broken(repo.String(), err)
		case err != nil:
			return nil, 0, err
		}
		return &upstreamBody{body, repo.String(), &h.received}, size, nil
	}
}

// upstreamBody makes what breaks it an error of upstream's, for which a client
// that has been promised nothing yet gets a proper answer.
type upstreamBody struct {
	io.ReadCloser
	repository string
	received   *atomic.Int64
}

// Read implements io.Reader.
func (b *upstreamBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.received.Add(int64(n))
	if err != nil && err != io.EOF {
		err = broken(b.repository, err)
	}
	return n, err
}

// Received is how many bytes of blobs have come from upstreams.
func (h *Handler) Received() int64 { return h.received.Load() }

// broken is upstream's error for a connection that broke. net/http calls one
// that was closed without an answer io.EOF, which for a blob means that this was
// all of it.
func broken(repository string, err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return &upstream.Error{Op: "read blob", Repository: repository, Err: err}
}

// entitled asks upstream whether the repository has the blob, unless its right says
// so; asked is how long that took. What was known once is good enough if upstream
// can't answer.
func (h *Handler) entitled(
	ctx context.Context, repo *upstream.Repository, d digest.Digest, right manifestcache.Right,
) (asked time.Duration, err error) {
	if right == manifestcache.Granted {
		return 0, nil
	}
	began := time.Now()
	_, err = repo.HeadBlob(ctx, d)
	asked = time.Since(began)
	h.learn(repo, d, err)
	switch {
	case err == nil, upstream.Unreachable(err) && h.onceHad(ctx, repo, d, right):
		return asked, nil
	default:
		return asked, err
	}
}

// onceHad reports whether the repository had the blob when upstream was last asked.
// Right after a start, the manifest that says so may be on disk and not known yet:
// that is waited for, as nobody else can say it now.
func (h *Handler) onceHad(ctx context.Context, repo *upstream.Repository, d digest.Digest, right manifestcache.Right) bool {
	if right == manifestcache.Unknown && h.manifests.Scanned(ctx) == nil {
		right = h.manifests.Refers(repo.String(), d)
	}
	return right != manifestcache.Unknown
}

// learn remembers what upstream has said about a blob in a repository, if it has
// said something.
func (h *Handler) learn(repo *upstream.Repository, d digest.Digest, err error) {
	switch {
	case err == nil:
		h.manifests.Remember(repo.String(), d)
	case upstream.Refused(err):
		h.manifests.Forget(repo.String(), d)
	}
}

// headBlob answers without ever starting a fill.
func (h *Handler) headBlob(ctx context.Context, w http.ResponseWriter, r *http.Request, repo *upstream.Repository, d digest.Digest) error {
	size, cached := h.blobs.Size(d)
	right := h.manifests.Refers(repo.String(), d)
	var asked time.Duration
	outcome := blobcache.Hit
	if !cached || right != manifestcache.Granted {
		began := time.Now()
		upstreamSize, err := repo.HeadBlob(ctx, d)
		asked = time.Since(began)
		h.learn(repo, d, err)
		switch {
		case err == nil && !cached:
			size, outcome = upstreamSize, blobcache.Miss
		case err == nil:
		case !upstream.Unreachable(err) || !h.onceHad(ctx, repo, d, right):
			return err
		case !cached && h.shared != nil:
			var there bool
			if size, there = h.shared.Size(ctx, repo.String(), d); !there {
				return err
			}
			outcome = blobcache.Shared
		case !cached:
			return err
		}
	}
	middleware.NoteOf(r.Context()).Outcome = outcome.String()
	blobHeader(w.Header(), d, relayed(repo, headStatus(outcome, asked)))
	setTiming(r.Context(), w.Header(), asked)
	if size < 0 {
		w.WriteHeader(http.StatusOK)
		return nil
	}
	return serveContent(w, r, io.NewSectionReader(nil, 0, size), size) // of a HEAD nothing is read
}

func blobHeader(header http.Header, d digest.Digest, status string) {
	contentHeader(header, "application/octet-stream", d)
	header["Cache-Status"] = []string{status}
}

// serveUnsized sends a blob whose size upstream does not say. What goes wrong
// breaks the connection, so that no client takes a part for the whole.
func serveUnsized(w http.ResponseWriter, content io.Reader) {
	w.WriteHeader(http.StatusOK)
	if _, err := io.Copy(w, content); err != nil {
		panic(http.ErrAbortHandler)
	}
}
