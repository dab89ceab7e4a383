package handler

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"larder/blobcache"
	"larder/handler/errcode"
	"larder/handler/middleware"
	"larder/handler/upstream"
	"larder/manifestcache"
)

// fail answers with an error. It is the only place where errors become
// statuses.
func (h *Handler) fail(w http.ResponseWriter, r *http.Request, note *middleware.Note, err error) {
	if r.Context().Err() != nil {
		// The client left. One that has only stopped sending must not take
		// net/http's empty 200 for an answer.
		panic(http.ErrAbortHandler)
	}
	note.Err = err
	errcode.Write(w, r, h.answer(note, err))
}

func (h *Handler) answer(note *middleware.Note, err error) *errcode.Error {
	if e, ok := errors.AsType[*errcode.Error](err); ok {
		return e
	}
	if e, ok := errors.AsType[*upstream.Error](err); ok && !errors.Is(err, upstream.ErrClosed) {
		return fromUpstream(note, e)
	}
	e := &errcode.Error{Status: http.StatusInternalServerError, Code: errcode.Unknown, Message: "internal error; see larder's log", Err: err}
	switch {
	case errors.Is(err, blobcache.ErrDigest), errors.Is(err, manifestcache.ErrDigest):
		e.Status, e.Code = http.StatusBadGateway, errcode.Unavailable
		e.Message = note.Upstream + " sent other bytes than were asked for"
	case errors.Is(err, io.ErrUnexpectedEOF):
		e.Status, e.Code, e.Message = http.StatusBadGateway, errcode.Unavailable, note.Upstream+" sends less than it promises"
	case errors.Is(err, manifestcache.ErrBusy):
		e.Status, e.Code, e.Message = http.StatusServiceUnavailable, errcode.Unavailable, "larder can't keep this, and passes on as much of the kind as it has room for"
		e.Header = http.Header{"Retry-After": {"5"}}
	case errors.Is(err, blobcache.ErrClosed), errors.Is(err, manifestcache.ErrClosed), errors.Is(err, upstream.ErrClosed), errors.Is(err, context.Canceled):
		e.Status, e.Code, e.Message = http.StatusServiceUnavailable, errcode.Unavailable, "larder is shutting down"
		e.Header = http.Header{"Retry-After": {"5"}}
	}
	return e
}

// fromUpstream says what an upstream's answer, or the lack of one, means for a
// client. A 401 becomes a 403: the client can't satisfy upstream's challenge,
// and must not be made to send its own credentials here.
func fromUpstream(note *middleware.Note, u *upstream.Error) *errcode.Error {
	e := &errcode.Error{Status: http.StatusBadGateway, Code: errcode.Unavailable, Err: u}
	switch {
	case u.Status == http.StatusNotFound:
		e.Status, e.Code, e.Message = http.StatusNotFound, unknown(note.Kind, u.Code), "not known to "+note.Upstream
		if u.Header != nil { // who has this larder for a parent need not ask the registry, too
			e.Header = http.Header{"Cache-Status": {"larder; fwd=uri-miss; fwd-status=404"}}
		}
	case u.Status == http.StatusUnauthorized, u.Status == http.StatusForbidden:
		e.Status, e.Code = http.StatusForbidden, errcode.Denied
		e.Message = fmt.Sprintf("%s denies larder access to %s", note.Upstream, note.Repository)
	case u.Status == http.StatusTooManyRequests:
		e.Status, e.Code, e.Message = http.StatusTooManyRequests, errcode.TooManyRequests, note.Upstream+" limits how often larder may ask"
	case u.Status == http.StatusLoopDetected:
		e.Status, e.Message = http.StatusLoopDetected, note.Upstream+" leads back to larder; see LARDER_UPSTREAMS"
	case errors.Is(u.Err, upstream.ErrBusy):
		e.Status, e.Message = http.StatusServiceUnavailable, "larder passes on as many large documents as it has room for"
		e.Header = http.Header{"Retry-After": {"5"}}
	case u.Timeout():
		e.Status, e.Message = http.StatusGatewayTimeout, note.Upstream+" does not answer in time"
	case u.Status != 0:
		e.Message = fmt.Sprintf("%s answers %d", note.Upstream, u.Status)
	default:
		e.Message = note.Upstream + " gives no answer that can be used"
	}
	if after := u.Header.Get("Retry-After"); after != "" && (u.Status == 0 || u.Status == http.StatusTooManyRequests) {
		e.Header = http.Header{"Retry-After": {after}}
	}
	return e
}

// unknown is the code for a 404.
func unknown(kind, code string) errcode.Code {
	switch kind {
	case kindBlob:
		return errcode.BlobUnknown
	case kindManifest:
		if code == string(errcode.NameUnknown) {
			return errcode.NameUnknown
		}
		return errcode.ManifestUnknown
	case kindReferrers, kindSignatures:
		// Not NAME_UNKNOWN: oras takes that for a missing repository and does
		// not try the fallback tag.
		return errcode.Unsupported
	default:
		return errcode.NameUnknown
	}
}
