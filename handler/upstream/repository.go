package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/zap"
)

// The values of bodyHeader.
const (
	bodyBlob    = "blob"
	bodyListing = "listing"
)

const (
	opHandshake    = "handshake"
	opHeadManifest = "head manifest"
)

// Repository is one repository of a listed registry.
type Repository struct {
	client   *Client
	registry Registry
	name     string
	hops     []string // see Via
	relay    *relay   // nil: there is no parent
}

// Host is the registry's name.
func (r *Repository) Host() string { return r.registry.Host }

// String is the repository's name with its host, as in docker.io/library/alpine.
func (r *Repository) String() string {
	if r.name == "" { // CheckCredentials asks for none
		return r.registry.Host
	}
	return r.registry.Host + "/" + r.name
}

// HeadManifest describes what reference, a tag or a digest, names now. The
// descriptor is empty if upstream does not answer HEADs as it should.
func (r *Repository) HeadManifest(ctx context.Context, reference string) (ocispec.Descriptor, error) {
	var desc ocispec.Descriptor
	err := r.ask(ctx, opHeadManifest, r.inOrder(reference), func(ctx context.Context, s *session, ex *exchange) error {
		ref, err := s.place.reference(r.name, reference)
		if err != nil {
			return err
		}
		got, err := s.puller.Head(ctx, ref)
		switch status := ex.answerStatus(http.MethodHead); {
		case err == nil:
			desc = ocispec.Descriptor{MediaType: mediaType(string(got.MediaType)), Digest: digest.Digest(got.Digest.String()), Size: got.Size}
		case status == http.StatusOK, status == http.StatusMethodNotAllowed, status == http.StatusNotImplemented:
			return nil // no digest, no length, or no HEADs at all: a GET will tell
		}
		return err
	})
	return desc, err
}

// GetManifest returns the manifest that reference, a tag or a digest, names.
// The descriptor's digest is the one that upstream claims, or empty. A large one
// counts as in memory until ctx ends; see ErrBusy.
func (r *Repository) GetManifest(ctx context.Context, reference string) (ocispec.Descriptor, []byte, error) {
	ctx = r.client.withRoom(ctx)
	var desc ocispec.Descriptor
	var body []byte
	err := r.ask(ctx, "get manifest", r.inOrder(reference), func(ctx context.Context, s *session, _ *exchange) error {
		// Not with the puller, which makes objects of whatever is in there: a
		// hundred bytes for each two, if they are {}.
		res, err := r.send(ctx, s, http.MethodGet, r.path("manifests/"+reference), nil, nil)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		if body, err = readDocument(res.Body, maxDocument); err != nil {
			return err
		}
		desc = ocispec.Descriptor{Size: int64(len(body))}
		if d, err := digest.Parse(res.Header.Get("Docker-Content-Digest")); err == nil {
			desc.Digest = d
		}
		if desc.MediaType, err = DocumentType(res.Header.Get("Content-Type"), body); err != nil {
			return err
		}
		if d, err := digest.Parse(reference); err == nil && d.Algorithm().FromBytes(body) != d && desc.MediaType != signedManifest {
			return errMismatch // another place may have the right one
		}
		return nil
	})
	return desc, body, err
}

// mediaType is a Content-Type without parameters, which no media type of a
// manifest has.
func mediaType(contentType string) string {
	if t, _, _ := mime.ParseMediaType(contentType); t != "" {
		return t
	}
	if contentType == "" {
		return "application/octet-stream"
	}
	return contentType
}

// HeadBlob asks whether the repository has the blob d, and for its size (-1 if
// upstream does not say).
func (r *Repository) HeadBlob(ctx context.Context, d digest.Digest) (size int64, err error) {
	size = -1
	err = r.ask(ctx, "head blob", r.byHealth(), func(ctx context.Context, s *session, _ *exchange) error {
		res, err := r.send(ctx, s, http.MethodHead, r.path("blobs/"+d.String()), nil, http.Header{bodyHeader: {bodyBlob}})
		if err != nil {
			return err
		}
		size = res.ContentLength
		return res.Body.Close()
	})
	if e, ok := errors.AsType[*Error](err); !ok || (e.Status != http.StatusForbidden && e.Status != http.StatusMethodNotAllowed) {
		return size, err
	}
	// Some registries (ECR Public) refuse a blob's HEAD and not its GET.
	body, size, err := r.openBlob(ctx, d, 0, 1, func() {})
	if err == nil {
		body.Close()
	}
	return size, err
}

// OpenBlob opens the blob d at offset, for length bytes (-1: to the end). size
// is that of the whole blob, or -1 if upstream does not say. From offset 0 the
// body may be longer than length; other parts that can't be had are
// ErrNoRange. The body fails when no byte arrives for long, and must be closed
// for others to have its connection.
func (r *Repository) OpenBlob(ctx context.Context, d digest.Digest, offset, length int64) (io.ReadCloser, int64, error) {
	bodies := r.client.bodies[r.registry.Host]
	if err := bodies.Acquire(ctx, 1); err != nil {
		return nil, 0, context.Cause(ctx)
	}
	return r.openBlob(ctx, d, offset, length, sync.OnceFunc(func() { bodies.Release(1) }))
}

// openBlob is OpenBlob without waiting for a turn; release ends it.
func (r *Repository) openBlob(ctx context.Context, d digest.Digest, offset, length int64, release func()) (io.ReadCloser, int64, error) {
	// The request lives as long as its body, its timeout only until the
	// answer: ask's own context would end with it.
	ctx, cancel := context.WithCancelCause(ctx)
	var body io.ReadCloser
	var size int64
	err := r.askUntilAnswered(ctx, "get blob", r.byHealth(), func(ctx context.Context, s *session, _ *exchange) error {
		res, err := r.sendForPart(ctx, s, d, offset, length)
		if err != nil {
			return err
		}
		stall := time.AfterFunc(stallTimeout, func() { cancel(errStalled) })
		stall.Stop()
		watched := &watchedBody{body: res.Body, ctx: ctx, cancel: cancel, stall: stall, release: release, broke: s.place.breaker.stumble}
		var placed io.Reader
		placed, size, err = placeBody(watched, res, offset, length)
		if err != nil {
			res.Body.Close()
			s.noteRefusedPart(offset, err)
			return err
		}
		body = &readCloser{placed, watched}
		return nil
	})
	if err != nil {
		release()
		cancel(err)
		return nil, 0, err
	}
	return body, size, nil
}

// sendForPart asks for the part of a blob. From the start it is the whole blob
// where the place has refused to send a beginning, as some do if there is less of
// the blob than was asked for.
func (r *Repository) sendForPart(ctx context.Context, s *session, d digest.Digest, offset, length int64) (*http.Response, error) {
	header := http.Header{bodyHeader: {bodyBlob}}
	rng := rangeHeader(offset, length)
	if offset == 0 && s.place.whole.Load() {
		rng = ""
	}
	if rng != "" {
		header.Set("Range", rng)
	}
	res, err := r.send(ctx, s, http.MethodGet, r.path("blobs/"+d.String()), nil, header, http.StatusPartialContent, http.StatusRequestedRangeNotSatisfiable)
	if e, ok := errors.AsType[*transport.Error](err); ok && rng != "" && (e.StatusCode == http.StatusBadRequest || e.StatusCode == http.StatusNotImplemented) {
		err = fmt.Errorf("%w: %w", ErrNoRange, err) // so some say that they know no ranges
		s.noteRefusedPart(offset, err)
	}
	return res, err
}

// path is that of something in the repository.
func (r *Repository) path(below string) string { return "/v2/" + r.name + "/" + below }

// send makes one request of a session and expects 200, or one of also.
func (r *Repository) send(ctx context.Context, s *session, method, path string, query url.Values, header http.Header, also ...int) (*http.Response, error) {
	u := *s.place.url
	u.Path, u.RawQuery = path, query.Encode()
	req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		return nil, err
	}
	maps.Copy(req.Header, header)
	res, err := s.http.Do(req)
	if err != nil {
		return nil, err
	}
	if err := transport.CheckError(res, append(also, http.StatusOK)...); err != nil {
		res.Body.Close()
		return nil, err
	}
	return res, nil
}

// places are all of the registry's, in the order of the list.
func (r *Repository) places() []*place { return r.client.places[r.registry.Host] }

// byHealth are the places for what is the same everywhere: bytes by digest.
func (r *Repository) byHealth() []*place { return byHealth(r.places()) }

// inOrder are the places for a manifest. What a tag means now, the first that
// answers says.
func (r *Repository) inOrder(reference string) []*place {
	if strings.Contains(reference, ":") {
		return r.byHealth()
	}
	return r.places()
}

// question is one attempt to get an answer.
type question func(ctx context.Context, s *session, ex *exchange) error

// ask puts a question whose answer is complete when it returns.
func (r *Repository) ask(ctx context.Context, op string, places []*place, q question) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	return r.askUntilAnswered(ctx, op, places, q)
}

// askUntilAnswered puts a question to one place after the other until one
// answers it; q's context lives on then. If none does, the last of the list
// decides what that means: a mirror need not have everything, and a no is one
// only if the registry behind the mirrors says so, itself or by way of a parent.
func (r *Repository) askUntilAnswered(ctx context.Context, op string, places []*place, q question) error {
	deadline := time.Now().Add(answerTimeout)
	listed := r.places()
	var verdict *Error
	for i, p := range places {
		began, others := time.Now(), len(places)-i-1
		end, refused := p.begin(r.name)
		var e *Error
		if refused != nil {
			e = r.refuse(op, refused)
		} else {
			e = r.askAt(ctx, p, op, time.Until(deadline)/time.Duration(1+others), others == 0, q)
			end(e)
		}
		r.observe(op, began, e)
		if e == nil {
			return nil
		}
		if verdict == nil || p == listed[len(listed)-1] {
			verdict = e
		}
		if ctx.Err() != nil || r.settles(ctx, p, e) {
			return e
		}
		if others > 0 {
			r.client.log.Debug("asking upstream elsewhere", zap.Error(e))
		}
	}
	return verdict
}

func (r *Repository) observe(op string, began time.Time, e *Error) {
	if observe := r.client.cfg.Observe; observe != nil {
		observe(Observation{Host: r.Host(), Op: op, Took: time.Since(began), Failure: e.kind()})
	}
}

// askAt puts a question at one place, a second time if that may help: after a
// fault that passes, if there is nobody else to ask, or with a new handshake if an
// old one is refused. The context that q is given ends when there is no answer in
// time, but not afterwards.
func (r *Repository) askAt(parent context.Context, p *place, op string, timeout time.Duration, last bool, q question) *Error {
	began := time.Now()
	placeCtx, cancel := context.WithCancelCause(parent)
	timer := time.AfterFunc(timeout, func() { cancel(errTimeout) })
	defer timer.Stop()
	for attempt := 1; ; attempt++ {
		ctx, ex := withExchange(placeCtx)
		ex.hops = r.hops
		s, err := r.client.session(ctx, r, p)
		if err == nil {
			err = q(ctx, s, ex)
		}
		if err == nil {
			if r.relay != nil && p.parent {
				r.relay.note(p, ex.answerHeader())
			}
			return nil
		}
		e := r.failure(ctx, op, ex, err)
		refused := e.denied() && s != nil && time.Since(s.made) > sessionYoung
		if refused {
			r.client.drop(s)
		}
		again := attempt == 1 && (refused || last && e.passing()) && ctx.Err() == nil
		if again {
			r.client.log.Debug("asking upstream again", zap.Error(e))
			select {
			case <-time.After(retryPause):
				continue
			case <-ctx.Done():
			}
		}
		cancel(nil)
		return e.of(began, parent.Err() != nil)
	}
}

// rangeHeader is empty for the whole blob.
func rangeHeader(offset, length int64) string {
	switch {
	case length >= 0:
		return "bytes=" + strconv.FormatInt(offset, 10) + "-" + strconv.FormatInt(offset+length-1, 10)
	case offset > 0:
		return "bytes=" + strconv.FormatInt(offset, 10) + "-"
	default:
		return ""
	}
}
