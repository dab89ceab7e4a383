package middleware

import (
	"cmp"
	"crypto/rand"
	"errors"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"larder/handler/errcode"
)

// maxRequestID bounds the request ids that are taken over from clients.
const maxRequestID = 128

// newRecover turns a panic into a 500, or a broken connection if an answer has
// begun. http.ErrAbortHandler is for net/http.
func newRecover(opts Options) (Middleware, error) {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer func() {
				p := recover()
				if p == nil {
					return
				}
				if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
					panic(http.ErrAbortHandler)
				}
				note := NoteOf(r.Context())
				opts.Logger.Error("request panicked", zap.Any("panic", p), zap.String("id", note.ID), zap.String("user", note.User),
					zap.String("path", r.URL.Path), zap.ByteString("stack", debug.Stack()))
				if rec, ok := w.(*Recorder); ok && rec.status != 0 {
					panic(http.ErrAbortHandler)
				}
				errcode.Write(w, r, &errcode.Error{
					Status: http.StatusInternalServerError, Code: errcode.Unknown, Message: "internal error; see larder's log",
				})
			}()
			next.ServeHTTP(w, r)
		})
	}, nil
}

// newRequestID gives each request an id, or takes over the client's.
func newRequestID(Options) (Middleware, error) {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			id := r.Header.Get("X-Request-Id")
			if !validRequestID(id) {
				id = rand.Text()
			}
			NoteOf(r.Context()).ID = id
			w.Header().Set("X-Request-Id", id)
			next.ServeHTTP(w, r)
		})
	}, nil
}

func validRequestID(id string) bool {
	for _, c := range []byte(id) {
		if c <= ' ' || c > '~' || c == '"' || c == '\\' {
			return false
		}
	}
	return id != "" && len(id) <= maxRequestID
}

// newLog writes one line for each request: paths, never queries or headers.
func newLog(opts Options) (Middleware, error) {
	log := cmp.Or(opts.Access, opts.Logger)
	// Fields take more memory than all else of a small answer.
	pool := sync.Pool{New: func() any { return new([]zap.Field) }}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer func() {
				ce := log.Check(zapcore.InfoLevel, "request")
				if ce == nil {
					return
				}
				fields := pool.Get().(*[]zap.Field)
				*fields = accessFields((*fields)[:0], w, r, time.Since(NoteOf(r.Context()).Came))
				ce.Write(*fields...)
				clear(*fields)
				pool.Put(fields)
			}()
			next.ServeHTTP(w, r)
		})
	}, nil
}

func accessFields(fields []zap.Field, w http.ResponseWriter, r *http.Request, took time.Duration) []zap.Field {
	n := NoteOf(r.Context())
	fields = append(fields,
		zap.String("id", n.ID), zap.String("client", r.RemoteAddr), zap.String("method", r.Method),
		zap.String("path", r.URL.Path), zap.Duration("took", took))
	if rec, ok := w.(*Recorder); ok {
		fields = append(fields, zap.Int("status", rec.Status()), zap.Int64("bytes", rec.bytes))
		if rec.Short() {
			fields = append(fields, zap.Bool("broken", true))
		}
	}
	if n.User != "" {
		fields = append(fields, zap.String("user", n.User))
	}
	if n.Repository != "" {
		fields = append(fields, zap.String("repository", n.Repository), zap.String("reference", n.Reference))
	}
	if n.Outcome != "" {
		fields = append(fields, zap.String("outcome", n.Outcome))
	}
	if n.Err != nil {
		fields = append(fields, zap.Error(n.Err))
	}
	return fields
}

// newMetrics tells Options.Observe of each request.
func newMetrics(opts Options) (Middleware, error) {
	if opts.Running == nil {
		opts.Running = func(string, int) {}
	}
	return func(next http.Handler) http.Handler {
		if opts.Observe == nil {
			return next
		}
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			note := NoteOf(r.Context())
			kind := note.Kind // of which auth may make another
			opts.Running(kind, 1)
			defer func() {
				opts.Running(kind, -1)
				o := Observation{Note: *note, Method: r.Method, Duration: time.Since(note.Came)}
				if rec, ok := w.(*Recorder); ok {
					o.Status, o.Bytes = rec.Status(), rec.bytes
					if !rec.first.IsZero() {
						o.Begun = rec.first.Sub(note.Came)
					}
				}
				opts.Observe(o)
			}()
			next.ServeHTTP(w, r)
		})
	}, nil
}

// outcomeDenied is for repositories that the operator does not want served.
const outcomeDenied = "denied"

// newAllow refuses what Options.MayPull does, before any cache or upstream is
// asked. What is in no repository is the handler's.
func newAllow(opts Options) (Middleware, error) {
	if opts.MayPull != nil && opts.Identify == nil {
		return nil, errors.New("nobody says which repository a request is for")
	}
	return func(next http.Handler) http.Handler {
		if opts.MayPull == nil {
			return next
		}
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			note := NoteOf(r.Context())
			if note.Repository != "" && !opts.MayPull(note.User, note.Repository) {
				errcode.Write(w, r, denied(note))
				return
			}
			next.ServeHTTP(w, r)
		})
	}, nil
}

func denied(note *Note) *errcode.Error {
	note.Outcome = outcomeDenied
	message := "larder is configured not to serve " + note.Repository
	if note.User != "" {
		message += " to this user"
	}
	return &errcode.Error{Status: http.StatusForbidden, Code: errcode.Denied, Message: message}
}

// newReadonly refuses everything but GET and HEAD.
func newReadonly(Options) (Middleware, error) {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodGet && r.Method != http.MethodHead {
				errcode.Write(w, r, &errcode.Error{
					Status: http.StatusMethodNotAllowed, Code: errcode.Unsupported, Message: "larder is a cache: it can be read, not written",
					Header: http.Header{"Allow": {"GET, HEAD"}},
				})
				return
			}
			next.ServeHTTP(w, r)
		})
	}, nil
}
