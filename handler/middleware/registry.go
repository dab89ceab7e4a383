// Package middleware is the named wrappers around the handler, and what they
// and the handler tell each other about a request.
package middleware

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"
)

// Middleware wraps a handler.
type Middleware func(http.Handler) http.Handler

// InitFunc makes a middleware. The error says which option is wrong.
type InitFunc func(Options) (Middleware, error)

// Options is what middlewares may need.
type Options struct {
	Logger  *zap.Logger       // nil: none
	Observe func(Observation) // nil: nobody counts

	// Verify checks what a client signs in with. An error says that it can't
	// now. nil: clients need no password.
	Verify func(ctx context.Context, username, password string) (ok bool, err error)
}

// Observation is one answered request, for those who count.
type Observation struct {
	Note
	Method   string
	Status   int
	Bytes    int64 // of the body, sent
	Duration time.Duration
}

// Registry knows middlewares by name.
type Registry struct {
	inits map[string]InitFunc
}

// Builtin returns a registry with the middlewares that larder comes with.
func Builtin() *Registry {
	return &Registry{inits: map[string]InitFunc{
		"recover":   newRecover,
		"requestid": newRequestID,
		"log":       newLog,
		"metrics":   newMetrics,
		"auth":      newAuth,
		"readonly":  newReadonly,
	}}
}

// Register adds a middleware. A name that is taken is an error.
func (r *Registry) Register(name string, init InitFunc) error {
	if name == "" || init == nil {
		return errors.New("a middleware needs a name and a function")
	}
	if _, ok := r.inits[name]; ok {
		return fmt.Errorf("middleware %q is registered already", name)
	}
	if r.inits == nil {
		r.inits = make(map[string]InitFunc)
	}
	r.inits[name] = init
	return nil
}

// Get makes the middleware with that name.
func (r *Registry) Get(name string, opts Options) (Middleware, error) {
	init, ok := r.inits[name]
	if !ok {
		known := slices.Sorted(maps.Keys(r.inits))
		return nil, fmt.Errorf("unknown middleware %q; there are %s", name, strings.Join(known, ", "))
	}
	if opts.Logger == nil {
		opts.Logger = zap.NewNop()
	}
	m, err := init(opts)
	if err != nil {
		return nil, fmt.Errorf("middleware %s: %w", name, err)
	}
	return m, nil
}

// Chain wraps h in the named middlewares, the first being the outermost, and in
// what all of them rely on: one Recorder and one Note per request. An answer
// that was broken off looks broken to the client.
func (r *Registry) Chain(h http.Handler, opts Options, names ...string) (http.Handler, error) {
	var errs []error
	for _, name := range slices.Backward(names) {
		m, err := r.Get(name, opts)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		h = m(h)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		rec := newRecorder(w, req)
		rec.refuseBody(req)
		h.ServeHTTP(rec, req.WithContext(context.WithValue(req.Context(), noteKey{}, new(Note))))
		if rec.Short() {
			panic(http.ErrAbortHandler)
		}
	}), nil
}

// Note is what the handler tells log and metrics about a request.
type Note struct {
	ID         string // of the request
	User       string // who asked, if clients have names
	Kind       string // "manifest", "blob", "tags", "referrers", "catalog", "base"; "" for none of them
	Upstream   string // a listed host
	Repository string // with its host
	Reference  string // tag or digest
	Outcome    string // hit, join, miss, revalidated, stale; denied
	Err        error  // what was behind an error answer
}

type noteKey struct{}

// NoteOf returns the note of the request that ctx is of. It is never nil.
func NoteOf(ctx context.Context) *Note {
	if n, ok := ctx.Value(noteKey{}).(*Note); ok {
		return n
	}
	return new(Note)
}
