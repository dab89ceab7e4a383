// Package handler answers GET and HEAD under /v2/ as the OCI distribution spec
// says: from the caches what they have, from upstream what they do not. Under
// /extensions/v2/ are signatures, as OpenShift's registry has them.
package handler

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
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

// Config is what a handler answers from. The first three fields are needed.
type Config struct {
	Upstreams *upstream.Client
	Blobs     *blobcache.Cache
	Manifests *manifestcache.Cache

	// Catalog lets clients list the repositories that are cached and that a user,
	// "" for one without a name, may pull. nil: nobody can.
	Catalog func(user, repository string) bool

	// Shared is what the fleet has fetched. nil: this larder is alone.
	Shared *shared.Tier

	// Redirect has clients get blobs from there that are there.
	Redirect bool

	// Prefetch is how long the blobs of an image are fetched before clients ask for
	// them, when they have asked for its manifest. 0: they are not.
	Prefetch time.Duration
}

// Handler is the registry.
type Handler struct {
	upstreams *upstream.Client
	blobs     *blobcache.Cache
	manifests *manifestcache.Cache
	answers   *answers
	renewals  *renewals
	catalog   func(user, repository string) bool
	shared    *shared.Tier // nil: none
	redirect  bool
	received  atomic.Int64 // bytes of blobs, from upstreams

	prefetcher *prefetcher // nil: off
}

// New makes the handler, to be closed. It expects GET and HEAD only (see the
// readonly middleware).
func New(cfg Config) *Handler {
	return &Handler{
		upstreams: cfg.Upstreams, blobs: cfg.Blobs, manifests: cfg.Manifests, catalog: cfg.Catalog, answers: newAnswers(), renewals: newRenewals(),
		shared: cfg.Shared, redirect: cfg.Redirect && cfg.Shared != nil,
		prefetcher: newPrefetcher(cfg.Prefetch),
	}
}

// ServeHTTP answers a request.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if answer := h.upstreams.Answer(r.Header["Via"]); answer != nil {
		w.Header()["Via"] = answer
	}
	t, ok := r.Context().Value(targetKey{}).(*target)
	if !ok {
		t = h.identify(r.Context(), r)
		r = r.WithContext(t)
	}
	if t.kind != kindManifest && t.kind != kindBlob {
		announce(w.Header())
	}
	if err := h.serve(w, r, t); err != nil {
		announce(w.Header())
		h.fail(w, r, t.note, err)
	}
}

// announce says that this is a registry, to whoever asks for that. Content goes
// without: it would be the ninth header, for which their map has to grow.
func announce(header http.Header) { header.Set("Docker-Distribution-Api-Version", "registry/2.0") }

func (h *Handler) serve(w http.ResponseWriter, r *http.Request, t *target) error {
	if t.ns != "" && t.repo != nil {
		w.Header().Set("OCI-Namespace", t.ns)
	}
	switch {
	case t.err != nil:
		return t.err
	case t.kind == kindBase:
		h.serveBase(w, r)
		return nil
	case t.kind == kindCatalog:
		return h.serveCatalog(w, r, t.ns)
	case t.repo.Circular():
		return looped()
	}
	switch t.kind {
	case kindManifest:
		return h.serveManifest(w, r, t.repo, t.route)
	case kindBlob:
		return h.serveBlob(w, r, t.repo, t.digest)
	case kindTags:
		return h.serveTags(w, r, t.repo)
	case kindSignatures:
		return h.serveSignatures(w, r, t.repo, t.digest)
	default:
		return h.serveReferrers(w, r, t.repo, t.digest)
	}
}

// target is what a request is for, or why that can't be. It is the request's
// context too.
type target struct {
	context.Context
	note  *middleware.Note
	began time.Time
	route
	ns   string
	repo *upstream.Repository // nil of kindBase, and if it is not known
	err  error
}

type targetKey struct{}

// Value implements context.Context.
func (t *target) Value(key any) any {
	if key == (targetKey{}) {
		return t
	}
	return t.Context.Value(key)
}

// Identify is the middlewares' Options.Identify: it notes what r is for. The
// context spares ServeHTTP finding out again, and keeps it from finding out
// something else than what the middlewares have allowed.
func (h *Handler) Identify(ctx context.Context, r *http.Request) context.Context {
	return h.identify(ctx, r)
}

func (h *Handler) identify(ctx context.Context, r *http.Request) *target {
	t := &target{Context: ctx, note: middleware.NoteOf(ctx)}
	if t.began = t.note.Came; t.began.IsZero() { // nobody has noted it
		t.began = time.Now()
	}
	t.err = h.route(t, r)
	t.note.Kind = t.kind
	if t.repo != nil {
		t.note.Upstream, t.note.Repository, t.note.Name, t.note.Reference = t.repo.Host(), t.repo.String(), t.name, t.reference
	}
	return t
}

// route finds out what r is for. net/http's own mux can't: repository names have
// slashes in them, so paths are read from the right.
func (h *Handler) route(t *target, r *http.Request) error {
	rt, err := parseRoute(r.URL)
	if err != nil {
		return err
	}
	t.route = rt
	if h.upstreams.Loops(r.Header["Via"]) {
		return looped()
	}
	if t.kind == kindBase {
		return nil
	}
	if t.ns, err = namespace(r.URL); err != nil || t.kind == kindCatalog {
		return err
	}
	repo, err := h.upstreams.Repository(t.ns, t.name)
	switch {
	case errors.Is(err, upstream.ErrNotListed):
		return notListed(t.ns, t.name, err)
	case err != nil:
		return &errcode.Error{Status: http.StatusBadRequest, Code: errcode.NameInvalid, Message: "invalid repository name", Err: err}
	}
	t.repo = repo.Via(r.Header["Via"])
	return nil
}

// The kinds of requests.
const (
	kindBase       = "base"
	kindManifest   = "manifest"
	kindBlob       = "blob"
	kindTags       = "tags"
	kindReferrers  = "referrers"
	kindSignatures = "signatures"
	kindCatalog    = "catalog"
)

// route is what a path asks for. Its reference has the form of a tag or digest;
// the name is checked when the upstream's host is off it.
type route struct {
	kind      string
	name      string
	reference string
	digest    digest.Digest // of reference, if that is one
}

// parseRoute reads the path of u from the right. Elements may be
// percent-encoded, as some clients do with a digest's colon; slashes may not.
func parseRoute(u *url.URL) (route, error) {
	path, isExtension := strings.CutPrefix(u.EscapedPath(), "/extensions")
	path, ok := strings.CutPrefix(path, "/v2")
	switch {
	case !ok, path != "" && path[0] != '/':
		return route{}, notFound("larder answers under /v2/ only")
	case isExtension:
	case path == "", path == "/":
		return route{kind: kindBase}, nil
	case path == "/_catalog":
		return route{kind: kindCatalog}, nil
	}
	path, err := plainPath(strings.TrimPrefix(path, "/"))
	if err != nil {
		return route{}, err
	}
	rest, reference, ok := cutLast(path)
	name, verb, isRoute := cutLast(rest)
	if !ok || !isRoute {
		return route{}, notFound("no such endpoint")
	}
	rt := route{name: name, reference: reference}
	switch {
	case isExtension && verb == "signatures":
		rt.kind = kindSignatures
	case isExtension:
		return route{}, notFound("no such endpoint")
	case verb == "manifests":
		rt.kind = kindManifest
	case verb == "blobs":
		rt.kind = kindBlob
	case verb == "referrers":
		rt.kind = kindReferrers
	case verb == "tags" && rt.reference == "list":
		rt.kind, rt.reference = kindTags, ""
		return rt, nil
	default:
		return route{}, notFound("no such endpoint")
	}
	return rt, rt.parseReference()
}

// plainPath is a path without percent-encoding. Names and digests of it are kept
// in places; the request, whose query may be long, must not be kept with them.
func plainPath(path string) (string, error) {
	if !strings.Contains(path, "%") {
		return strings.Clone(path), nil
	}
	plain, err := url.PathUnescape(path)
	if err != nil || strings.Count(plain, "/") > strings.Count(path, "/") {
		return "", badName()
	}
	return plain, nil
}

// cutLast cuts the last element off a path.
func cutLast(path string) (before, element string, ok bool) {
	i := strings.LastIndexByte(path, '/')
	if i < 0 {
		return "", path, false
	}
	return path[:i], path[i+1:], true
}

// parseReference checks a reference by the grammar of the OCI distribution spec
// before anything else touches it.
func (rt *route) parseReference() error {
	if rt.kind == kindManifest && !strings.Contains(rt.reference, ":") {
		if !upstream.ValidTag(rt.reference) {
			return &errcode.Error{Status: http.StatusBadRequest, Code: errcode.TagInvalid, Message: "invalid tag"}
		}
		return nil
	}
	d := digest.Digest(rt.reference)
	if upstream.ValidDigest(d) {
		rt.digest = d
		return nil
	}
	if err := d.Validate(); err != nil {
		return &errcode.Error{Status: http.StatusBadRequest, Code: errcode.DigestInvalid, Message: "invalid digest", Err: err}
	}
	return &errcode.Error{Status: http.StatusBadRequest, Code: errcode.DigestInvalid, Message: "digest algorithm not supported; use sha256 or sha512"}
}

// namespace is the host that containerd says the request is for, as in
// ?ns=docker.io.
func namespace(u *url.URL) (string, error) {
	if u.RawQuery == "" {
		return "", nil
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil || len(query["ns"]) > 1 {
		return "", &errcode.Error{Status: http.StatusBadRequest, Code: errcode.NameInvalid, Message: "invalid query", Err: err}
	}
	return query.Get("ns"), nil
}

// serveBase tells clients that this is a registry.
func (h *Handler) serveBase(w http.ResponseWriter, r *http.Request) {
	if h.upstreams.AnnouncesSignatures() {
		w.Header().Set("X-Registry-Supports-Signatures", "1")
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", "2")
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		_, _ = w.Write([]byte("{}")) // a client that has left needs no answer
	}
}

func notFound(message string) error {
	return &errcode.Error{Status: http.StatusNotFound, Code: errcode.Unsupported, Message: message}
}

// notListed names the host, for the operator to add it or not. What is no host
// may be a URL with a password in it, and is not repeated.
func notListed(ns, name string, err error) error {
	host := ns
	if host == "" {
		host, _, _ = strings.Cut(name, "/")
	}
	message := fmt.Sprintf("larder does not mirror %.255q", host)
	if strings.ContainsAny(host, "@/?#% ") {
		message = "larder does not mirror that: it is no host"
	}
	return &errcode.Error{Status: http.StatusNotFound, Code: errcode.NameUnknown, Message: message, Err: err}
}

func looped() error {
	return &errcode.Error{
		Status: http.StatusLoopDetected, Code: errcode.Unavailable,
		Message: "larder is asked by itself: one of its upstreams leads back to it; see LARDER_UPSTREAMS",
	}
}

func badName() error {
	return &errcode.Error{Status: http.StatusBadRequest, Code: errcode.NameInvalid, Message: "invalid repository name"}
}
