package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	"go.uber.org/zap"

	"larder/blobcache"
	"larder/handler/errcode"
	"larder/handler/shared"
	"larder/handler/upstream"
	"larder/handler/warm"
	"larder/manifestcache"
)

// Control shows what is in the cache, and removes what an operator wants to be rid
// of. All of it is needed but Shared. The caches must be running: what is asked for before
// they know what is on disk waits for that.
type Control struct {
	Blobs     *blobcache.Cache
	Manifests *manifestcache.Cache
	Upstreams *upstream.Client
	Warmer    *warm.Warmer
	Shared    *shared.Tier // nil: this larder is alone

	// Addr is where clients ask larder, as "127.0.0.1:5000".
	Addr string
	// Denied is the name of the setting by which a repository is not served, or "".
	Denied func(repository string) (setting string)
	// Pins are the patterns of images that are pinned by the configuration.
	Pins []string
	// Glob reads a pattern of repositories' names.
	Glob func(pattern string) (match func(repository string) bool, err error)

	// Others answer beside it, by pattern.
	Others map[string]http.Handler

	Logger *zap.Logger
}

// register adds what Control answers. It is not for pages, be they larder's own:
// nothing is removed for them here.
func (c *Control) register(mux *http.ServeMux) {
	for path, m := range map[string]methods{
		"/cache":                {http.MethodGet: c.list},
		"/cache/{reference...}": {http.MethodGet: c.show, http.MethodDelete: c.remove},
		"/prune":                {http.MethodPost: c.prune},
		"/why":                  {http.MethodGet: c.why},
		"/pin":                  {http.MethodGet: c.pins},
		"/pin/{reference...}":   {http.MethodGet: c.showPin, http.MethodPut: c.pin, http.MethodDelete: c.unpin},
		"/warm":                 {http.MethodGet: c.warmJobs, http.MethodPost: c.warm},
		"/warm/{id}":            {http.MethodGet: c.warmJob, http.MethodDelete: c.stopWarming},
	} {
		mux.Handle(path, m)
	}
	for pattern, h := range c.Others {
		mux.Handle(pattern, h)
	}
}

// reply is an answer that is not an error: a status, 200 if it is 0, and what
// is sent as JSON.
type reply struct {
	status int
	body   any
	next   string // where the next page is

	stream http.HandlerFunc // answers in its own way; nil: all of the above counts
}

// methods answers the requests for one path, in JSON.
type methods map[string]func(r *http.Request) (*reply, error)

// ServeHTTP implements http.Handler.
func (m methods) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	ask, ok := m[method]
	if !ok {
		errcode.Write(w, r, &errcode.Error{
			Status: http.StatusMethodNotAllowed, Code: errcode.Unsupported, Message: "no such method here",
			Header: http.Header{"Allow": {strings.Join(slices.Sorted(maps.Keys(m)), ", ")}},
		})
		return
	}
	if method != http.MethodGet && fromPage(r) {
		errcode.Write(w, r, &errcode.Error{Status: http.StatusForbidden, Code: errcode.Denied, Message: "not for pages in a browser"})
		return
	}
	rep, err := ask(r)
	if err != nil {
		fail(w, r, err)
		return
	}
	if rep.stream != nil {
		rep.stream(w, r)
		return
	}
	var body bytes.Buffer
	encoder := json.NewEncoder(&body)
	encoder.SetEscapeHTML(false) // nothing here is read as HTML
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(rep.body); err != nil {
		fail(w, r, err)
		return
	}
	h := w.Header()
	if rep.next != "" {
		h.Set("Link", "<"+rep.next+`>; rel="next"`)
	}
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(body.Len()))
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(max(rep.status, http.StatusOK))
	if r.Method != http.MethodHead {
		_, _ = body.WriteTo(w) // a client that has left needs no answer
	}
}

func fail(w http.ResponseWriter, r *http.Request, err error) {
	e, ok := errors.AsType[*errcode.Error](err)
	if !ok {
		e = &errcode.Error{Status: http.StatusInternalServerError, Code: errcode.Unknown, Message: "internal error"}
	}
	errcode.Write(w, r, e)
}

func bad(code errcode.Code, format string, args ...any) error {
	return &errcode.Error{Status: http.StatusBadRequest, Code: code, Message: fmt.Sprintf(format, args...)}
}

func absent(code errcode.Code, format string, args ...any) error {
	return &errcode.Error{Status: http.StatusNotFound, Code: code, Message: fmt.Sprintf(format, args...)}
}

// parameters are those of a request. One that is not known, or is there twice, is
// an error: what is removed must not hang on a misspelling.
func parameters(r *http.Request, known ...string) (url.Values, error) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, bad(errcode.Unsupported, "invalid query")
	}
	for name, values := range query {
		if !slices.Contains(known, name) {
			return nil, bad(errcode.Unsupported, "unknown parameter %.100q; there are %s", name, strings.Join(known, ", "))
		}
		if len(values) > 1 || values[0] == "" {
			return nil, bad(errcode.Unsupported, "%s is there more than once, or empty", name)
		}
	}
	return query, nil
}

// flag is the parameter of that name, which is a yes or a no.
func flag(query url.Values, name string) (bool, error) {
	if !query.Has(name) {
		return false, nil
	}
	yes, err := strconv.ParseBool(query.Get(name))
	if err != nil {
		return false, bad(errcode.Unsupported, "%s is neither 1 nor 0", name)
	}
	return yes, nil
}

// known waits until it is known what is on disk.
func (c *Control) known(ctx context.Context) error {
	if err := c.Blobs.Scanned(ctx); err != nil {
		return err
	}
	return c.Manifests.Scanned(ctx)
}

// target is what a reference names.
type target struct {
	repository string // as the caches call it; "": only a digest
	tag        string
	digest     digest.Digest
	upstream   *upstream.Repository // nil: of no registry that is listed (any more)
}

// parse reads a reference in any form that clients may write.
func (c *Control) parse(reference string) (target, error) {
	if d, err := digest.Parse(reference); err == nil {
		return target{digest: d}, nil
	}
	name, tag, d, err := upstream.SplitReference(c.withoutOwn(reference))
	if err != nil {
		return target{}, bad(errcode.NameInvalid, "not a reference like docker.io/library/alpine:3.20, nor a digest")
	}
	t := target{repository: name, tag: tag, digest: d}
	t.upstream, err = c.Upstreams.Repository("", name)
	switch {
	case errors.Is(err, upstream.ErrName) && !manifestcache.Unnamed(name):
		return target{}, bad(errcode.NameInvalid, "invalid repository name")
	case err == nil:
		t.repository = t.upstream.String()
	}
	return t, nil
}

// withoutOwn takes larder's own address off a reference, as in
// localhost:5000/library/alpine.
func (c *Control) withoutOwn(reference string) string {
	first, rest, ok := strings.Cut(strings.TrimPrefix(reference, "docker://"), "/")
	if !ok {
		return reference
	}
	host, port, err := net.SplitHostPort(first)
	ownHost, ownPort, ownErr := net.SplitHostPort(c.Addr)
	ip := net.ParseIP(host)
	if err != nil || ownErr != nil || port != ownPort || host != "localhost" && host != ownHost && (ip == nil || !ip.IsLoopback()) {
		return reference
	}
	for _, r := range c.Upstreams.Registries() {
		if r.Host == first {
			return reference
		}
	}
	return rest
}
