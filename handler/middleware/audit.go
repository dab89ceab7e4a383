package middleware

import (
	"net/http"
	"strings"
	"time"

	"go.uber.org/zap"
)

// newAudit records in Options.Audit who was given what: when an answer begins,
// before any of it leaves, so that nobody has a byte without a record of it, and
// when it has ended. /v2/ and what can't be anything are not recorded.
func newAudit(opts Options) (Middleware, error) {
	return func(next http.Handler) http.Handler {
		if opts.Audit == nil {
			return next
		}
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			rec, ok := w.(*Recorder)
			if kind := NoteOf(r.Context()).Kind; !ok || kind == "" || kind == kindBase {
				next.ServeHTTP(w, r)
				return
			}
			a := &audited{log: opts.Audit, rec: rec, r: r}
			rec.onStart = a.begin
			whole := false
			defer func() { a.end(whole) }()
			next.ServeHTTP(w, r)
			whole = true
		})
	}, nil
}

// kindBase is the kind of /v2/.
const kindBase = "base"

// audited is a request that is recorded.
type audited struct {
	log   *zap.Logger
	rec   *Recorder
	r     *http.Request
	begun bool
}

func (a *audited) begin() {
	a.begun = true
	a.log.Info("begin", a.fields()...)
}

// end records how it ended; whole is false if a panic ended it.
func (a *audited) end(whole bool) {
	if !a.begun {
		a.begin() // each end has one
	}
	a.log.Info("end", append(a.fields(), zap.Int64("bytes", a.rec.bytes), zap.String("verdict", a.verdict(whole)))...)
}

func (a *audited) fields() []zap.Field {
	n := NoteOf(a.r.Context())
	fields := append(make([]zap.Field, 0, 16),
		zap.String("id", n.ID), zap.String("client", a.r.RemoteAddr), zap.String("user", n.User),
		zap.String("method", a.r.Method), zap.String("kind", n.Kind),
		zap.String("host", n.Upstream), zap.String("repository", n.Repository), zap.String("reference", n.Reference), zap.String("digest", a.digest(n)),
		zap.Int("status", a.rec.Status()), zap.String("outcome", n.Outcome), zap.Duration("seconds", time.Since(n.Came)))
	if n.Repository == "" {
		fields = append(fields, zap.String("path", a.r.URL.Path)) // of what is not mirrored
	}
	return fields
}

// digest is what the answer says, or else the request.
func (a *audited) digest(n *Note) string {
	if d := a.rec.Header().Get("Docker-Content-Digest"); d != "" || !strings.Contains(n.Reference, ":") {
		return d
	}
	return n.Reference
}

// verdict is the end in one word.
func (a *audited) verdict(whole bool) string {
	switch status := a.rec.Status(); {
	case status == StatusLeft:
		return "left"
	case !whole, a.rec.Short():
		return "broken"
	case status < 400:
		return "served"
	case status == http.StatusNotFound:
		return "absent"
	case status < 500:
		return "refused"
	default:
		return "failed"
	}
}
