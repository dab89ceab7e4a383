// Package middleware is the named wrappers around the handler, and what they
// and the handler tell each other about a request.
package middleware

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"
)

// Middleware wraps a handler.
type Middleware func(http.Handler) http.Handler

// InitFunc makes a middleware from what it finds in the options. It may be called
// with nothing in them but Settings, to see whether these are right; so it opens
// nothing and starts nothing.
type InitFunc func(Options) (Middleware, error)

// Options is what middlewares may need.
type Options struct {
	Logger  *zap.Logger       // nil: none
	Access  *zap.Logger       // where log's lines go; nil: to Logger
	Audit   *zap.Logger       // where audit's records go; nil: nowhere
	Observe func(Observation) // nil: nobody counts

	// Running is told of a request that begins (1) and ends (-1). It goes with
	// Observe.
	Running func(kind string, delta int)

	// Identify notes what a request is for (see Note), before the first
	// middleware sees it, and returns the context that the request goes on with.
	// nil: the handler does it, and no middleware knows.
	Identify func(ctx context.Context, r *http.Request) context.Context

	// Verify checks what a client signs in with. An error says that it can't
	// now. nil: clients need no password.
	Verify func(ctx context.Context, username, password string) (ok bool, err error)

	// Tokens is for clients that show tokens, and get them at TokenPath with what
	// Verify checks, or without. It takes Identify and MayPull. nil: they show what
	// Verify checks.
	Tokens *Tokens

	// MayPull reports whether a user, "" for one without a name, may have what is
	// in a repository. It takes Identify. nil: everybody may have everything.
	MayPull func(user, repository string) bool

	Limit *LimitCounts // what limit counts; nil: nobody asks

	// Variables are those that begin with VariablePrefix, for Get to make Settings
	// of: the options of the one middleware that is made.
	Variables map[string]string
	Settings  *Settings
}

// Observation is one answered request, for those who count.
type Observation struct {
	Note
	Method   string
	Status   int
	Bytes    int64 // of the body, sent
	Duration time.Duration
	Begun    time.Duration // until the answer began; 0: it did not
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
		"allow":     newAllow,
		"audit":     newAudit,
		"limit":     newLimit,
		"readonly":  newReadonly,
	}}
}

// validName keeps to what can be told from an option in a variable's name.
var validName = regexp.MustCompile(`^[a-z][a-z0-9]*$`)

// Register adds a middleware. A name that is taken is an error.
func (r *Registry) Register(name string, init InitFunc) error {
	if !validName.MatchString(name) || init == nil {
		return fmt.Errorf("a middleware needs a function, and a name of lower-case letters and digits, not %q", name)
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
	m, errs := r.build(name, opts)
	return m, errors.Join(errs...)
}

// build returns every single thing that is wrong.
func (r *Registry) build(name string, opts Options) (Middleware, []error) {
	init, ok := r.inits[name]
	if !ok {
		return nil, []error{fmt.Errorf("unknown middleware %q; there are %s", name, r.names())}
	}
	if opts.Logger == nil {
		opts.Logger = zap.NewNop()
	}
	opts.Settings = newSettings(name, opts.Variables)
	m, err := init(opts)
	errs := opts.Settings.problems()
	if err != nil {
		errs = append(errs, fmt.Errorf("middleware %s: %w", name, err))
	}
	return m, errs
}

func (r *Registry) names() string {
	return strings.Join(slices.Sorted(maps.Keys(r.inits)), ", ")
}

// Check returns all that is wrong with a chain of these names and with the
// variables that are options of middlewares: those of one that is not in the
// chain too, which would mean nothing.
func (r *Registry) Check(variables map[string]string, names ...string) []error {
	var errs []error
	for i, name := range names {
		if slices.Contains(names[:i], name) {
			errs = append(errs, fmt.Errorf("LARDER_MIDDLEWARE: entry %d is there twice", i+1))
			continue
		}
		if _, ok := r.inits[name]; !ok { // which may be a secret in the wrong place
			errs = append(errs, fmt.Errorf("LARDER_MIDDLEWARE: entry %d is no middleware; there are %s", i+1, r.names()))
			continue
		}
		_, problems := r.build(name, Options{Variables: variables})
		errs = append(errs, problems...)
	}
	for _, variable := range slices.Sorted(maps.Keys(variables)) {
		isOption := func(name string) bool { return strings.HasPrefix(variable, optionPrefix(name)) }
		if variables[variable] == "" || slices.ContainsFunc(names, isOption) {
			continue
		}
		all := slices.Sorted(maps.Keys(r.inits))
		if i := slices.IndexFunc(all, isOption); i >= 0 {
			errs = append(errs, fmt.Errorf("%s: set, but LARDER_MIDDLEWARE is without %s", variable, all[i]))
		} else {
			errs = append(errs, fmt.Errorf("%s: no option of a middleware; there are %s", variable, r.names()))
		}
	}
	return errs
}

// Chain wraps h in the named middlewares, the first being the outermost, and in
// what all of them rely on: one Recorder and one Note per request, which says
// what the request is for. An answer that was broken off looks broken to the
// client.
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
		var ctx context.Context = &noted{Context: req.Context(), note: Note{Came: time.Now()}}
		if opts.Identify != nil {
			ctx = opts.Identify(ctx, req)
		}
		h.ServeHTTP(rec, req.WithContext(ctx))
		if rec.Short() {
			panic(http.ErrAbortHandler)
		}
	}), nil
}

// Note is what the handler and the middlewares tell each other about a request.
type Note struct {
	Came time.Time // when the request did

	ID   string // of the request
	User string // who asked, if clients have names; known behind auth

	// What Options.Identify notes: nothing of a request that can't be served.
	Kind       string // "manifest", "blob", "tags", "referrers", "signatures", "catalog", "base"; auth's "token"; "" for none of them
	Upstream   string // a listed host
	Repository string // with its host
	Name       string // the same as the client writes it
	Reference  string // tag or digest

	Outcome string // hit, join, miss, revalidated, stale, shared; denied
	Err     error  // what was behind an error answer
}

// noted is the context of a request with its note. It is context.WithValue's in
// one allocation.
type noted struct {
	context.Context
	note Note
}

type noteKey struct{}

// Value implements context.Context.
func (c *noted) Value(key any) any {
	if key == (noteKey{}) {
		return &c.note
	}
	return c.Context.Value(key)
}

// NoteOf returns the note of the request that ctx is of. It is never nil.
func NoteOf(ctx context.Context) *Note {
	if n, ok := ctx.Value(noteKey{}).(*Note); ok {
		return n
	}
	return new(Note)
}
