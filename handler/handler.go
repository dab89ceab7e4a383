// Package handler answers GET and HEAD under /v2/ as the OCI distribution spec
// says: from the caches what they have, from upstream what they do not.
package handler

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"

	"larder/blobcache"
	"larder/handler/errcode"
	"larder/handler/middleware"
	"larder/handler/upstream"
	"larder/manifestcache"
)

// Config is what a handler answers from. The first three fields are needed.
type Config struct {
	Upstreams *upstream.Client
	Blobs     *blobcache.Cache
	Manifests *manifestcache.Cache

	// Allow is which repositories are served (nil: all), Deny which of them are
	// not.
	Allow, Deny Globs

	Catalog bool // whether clients may list the repositories that are cached

	Logger *zap.Logger // nil: none
}

// Handler is the registry.
type Handler struct {
	upstreams *upstream.Client
	blobs     *blobcache.Cache
	manifests *manifestcache.Cache
	answers   *answers
	allow     Globs
	deny      Globs
	catalog   bool
	log       *zap.Logger
}

// New makes the handler. It expects GET and HEAD only (see the readonly
// middleware).
func New(cfg Config) *Handler {
	log := cfg.Logger
	if log == nil {
		log = zap.NewNop()
	}
	return &Handler{
		upstreams: cfg.Upstreams, blobs: cfg.Blobs, manifests: cfg.Manifests, allow: cfg.Allow, deny: cfg.Deny,
		catalog: cfg.Catalog, answers: newAnswers(), log: log,
	}
}

// ServeHTTP routes a request. net/http's own mux can't: repository names have
// slashes in them, so paths are read from the right.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	if answer := h.upstreams.Answer(r.Header["Via"]); answer != nil {
		w.Header()["Via"] = answer
	}
	note := middleware.NoteOf(r.Context())
	rt, err := parseRoute(r.URL)
	if err == nil {
		note.Kind = rt.kind
		if h.upstreams.Loops(r.Header["Via"]) {
			err = looped()
		} else {
			err = h.serve(w, r, rt, note)
		}
	}
	if err != nil {
		h.fail(w, r, note, err)
	}
}

func (h *Handler) serve(w http.ResponseWriter, r *http.Request, rt route, note *middleware.Note) error {
	if rt.kind == kindBase {
		serveBase(w, r)
		return nil
	}
	if rt.kind == kindCatalog {
		return h.serveCatalog(w, r, h.allowed)
	}
	ns, err := namespace(r.URL)
	if err != nil {
		return err
	}
	repo, err := h.upstreams.Repository(ns, rt.name)
	switch {
	case errors.Is(err, upstream.ErrNotListed):
		return notListed(ns, rt.name, err)
	case err != nil:
		return &errcode.Error{Status: http.StatusBadRequest, Code: errcode.NameInvalid, Message: "invalid repository name", Err: err}
	}
	repo = repo.Via(r.Header["Via"])
	note.Upstream, note.Repository, note.Reference = repo.Host(), repo.String(), rt.reference
	if ns != "" {
		w.Header().Set("OCI-Namespace", ns)
	}
	if !h.allowed(note.Repository) {
		note.Outcome = outcomeDenied
		return &errcode.Error{
			Status: http.StatusForbidden, Code: errcode.Denied, Message: fmt.Sprintf("larder is configured not to serve %s", repo),
		}
	}
	if repo.Circular() {
		return looped()
	}
	switch rt.kind {
	case kindManifest:
		return h.serveManifest(w, r, repo, rt)
	case kindBlob:
		return h.serveBlob(w, r, repo, rt.digest)
	case kindTags:
		return h.serveTags(w, r, repo)
	default:
		return h.serveReferrers(w, r, repo, rt.digest)
	}
}

// outcomeDenied is for repositories that the operator does not want served.
const outcomeDenied = "denied"

// allowed is asked before any cache or upstream is.
func (h *Handler) allowed(repository string) bool {
	return (h.allow == nil || h.allow.Match(repository)) && !h.deny.Match(repository)
}

// The kinds of requests.
const (
	kindBase      = "base"
	kindManifest  = "manifest"
	kindBlob      = "blob"
	kindTags      = "tags"
	kindReferrers = "referrers"
	kindCatalog   = "catalog"
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
	path, ok := strings.CutPrefix(u.EscapedPath(), "/v2")
	if !ok || (path != "" && path[0] != '/') {
		return route{}, notFound("larder answers under /v2/ only")
	}
	if path == "" || path == "/" {
		return route{kind: kindBase}, nil
	}
	if path == "/_catalog" {
		return route{kind: kindCatalog}, nil
	}
	elements := strings.Split(path[1:], "/")
	if strings.Contains(path, "%") {
		for i, e := range elements {
			plain, err := url.PathUnescape(e)
			if err != nil || strings.Contains(plain, "/") {
				return route{}, badName()
			}
			elements[i] = plain
		}
	}
	n := len(elements)
	if n < 3 {
		return route{}, notFound("no such endpoint")
	}
	rt := route{name: strings.Join(elements[:n-2], "/"), reference: elements[n-1]}
	switch elements[n-2] {
	case "manifests":
		rt.kind = kindManifest
	case "blobs":
		rt.kind = kindBlob
	case "referrers":
		rt.kind = kindReferrers
	case "tags":
		if rt.reference != "list" {
			return route{}, notFound("no such endpoint")
		}
		rt.kind, rt.reference = kindTags, ""
		return rt, nil
	default:
		return route{}, notFound("no such endpoint")
	}
	return rt, rt.parseReference()
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
	if err := d.Validate(); err != nil {
		return &errcode.Error{Status: http.StatusBadRequest, Code: errcode.DigestInvalid, Message: "invalid digest", Err: err}
	}
	if a := d.Algorithm(); a != digest.SHA256 && a != digest.SHA512 {
		return &errcode.Error{Status: http.StatusBadRequest, Code: errcode.DigestInvalid, Message: "digest algorithm not supported; use sha256 or sha512"}
	}
	rt.digest = d
	return nil
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
func serveBase(w http.ResponseWriter, r *http.Request) {
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
