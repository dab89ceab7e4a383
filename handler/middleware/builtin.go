package middleware

import (
	"crypto/rand"
	"errors"
	"net/http"
	"runtime/debug"
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
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			start := time.Now()
			defer func() {
				if ce := opts.Logger.Check(zapcore.InfoLevel, "request"); ce != nil {
					ce.Write(accessFields(w, r, time.Since(start))...)
				}
			}()
			next.ServeHTTP(w, r)
		})
	}, nil
}

func accessFields(w http.ResponseWriter, r *http.Request, took time.Duration) []zap.Field {
	n := NoteOf(r.Context())
	fields := make([]zap.Field, 0, 16)
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
	return func(next http.Handler) http.Handler {
		if opts.Observe == nil {
			return next
		}
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			start := time.Now()
			defer func() {
				o := Observation{Note: *NoteOf(r.Context()), Method: r.Method, Duration: time.Since(start)}
				if rec, ok := w.(*Recorder); ok {
					o.Status, o.Bytes = rec.Status(), rec.bytes
				}
				opts.Observe(o)
			}()
			next.ServeHTTP(w, r)
		})
	}, nil
}

// newAuth asks clients for a name and a password, if Options.Verify is there to
// check them. It covers /v2/ too, which is how clients find out. RFC 7617. A
// client with a certificate has the name in that until then.
func newAuth(opts Options) (Middleware, error) {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
				NoteOf(r.Context()).User = r.TLS.PeerCertificates[0].Subject.CommonName
			}
			if opts.Verify == nil {
				next.ServeHTTP(w, r)
				return
			}
			username, password, ok := r.BasicAuth()
			var err error
			if ok {
				ok, err = opts.Verify(r.Context(), username, password)
			}
			switch {
			case ok:
				NoteOf(r.Context()).User = username
				next.ServeHTTP(w, r)
			case err != nil:
				NoteOf(r.Context()).Err = err
				errcode.Write(w, r, unverified(r))
			default:
				errcode.Write(w, r, &errcode.Error{
					Status: http.StatusUnauthorized, Code: errcode.Unauthorized, Message: "larder needs a username and a password",
					Header: http.Header{"Www-Authenticate": {`Basic realm="larder", charset="UTF-8"`}},
				})
			}
		})
	}, nil
}

// unverified is for a client whose password can't be checked now.
func unverified(r *http.Request) *errcode.Error {
	if r.Context().Err() != nil {
		panic(http.ErrAbortHandler) // it left
	}
	return &errcode.Error{
		Status: http.StatusTooManyRequests, Code: errcode.TooManyRequests, Message: "larder is busy checking passwords",
		Header: http.Header{"Retry-After": {"1"}},
	}
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
				note.Outcome = outcomeDenied
				errcode.Write(w, r, &errcode.Error{
					Status: http.StatusForbidden, Code: errcode.Denied, Message: "larder is configured not to serve " + note.Repository,
				})
				return
			}
			next.ServeHTTP(w, r)
		})
	}, nil
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
