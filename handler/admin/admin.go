// Package admin answers what operators and their tools ask: health, readiness,
// metrics and profiles, what is in the cache and why; and it removes what they
// want to be rid of. It is served on a listener of its own, never on that
// of the registry.
package admin

import (
	"context"
	"crypto/rand"
	"io"
	"net/http"
	"net/http/pprof"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"larder/handler/admin/pages"
	"larder/handler/middleware"
)

// Config is what the handler answers from. The first four fields are needed.
type Config struct {
	Metrics *Metrics
	Control *Control

	// Ready says why larder should not be sent requests, or nil; upstreams have no
	// part in that, as larder is there for when they are down. What is less bad than
	// that is a detail.
	Ready func() (detail string, err error)

	// Protect is around everything but health and readiness.
	Protect middleware.Middleware

	// Hosts are the names by which this may be asked, beside addresses and localhost.
	Hosts []string

	// What the status page tells of larder itself.
	Version  string
	Chain    []string // the middlewares, outermost first
	Settings []pages.Setting
}

// Handler answers operators.
type Handler struct {
	http.Handler
	pages *pages.Handler
}

// Run keeps pages up to date until ctx is done, and ends what they listen to then.
// It must be called once only.
func (h *Handler) Run(ctx context.Context) { h.pages.Run(ctx) }

// New makes the handler.
func New(cfg Config) *Handler {
	guard := &guard{names: cfg.Hosts, token: rand.Text()}
	observer := &observer{cfg: cfg}
	shown := pages.New(pages.Config{
		Token: guard.token, Status: observer.status, Images: cfg.Control.images,
		Delete: cfg.Control.removeForPage, Refresh: cfg.Control.refresh, Pin: cfg.Control.Pin,
	})
	mux := http.NewServeMux()
	shown.Register(mux)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		switch detail, err := cfg.Ready(); {
		case err != nil:
			answer(w, http.StatusServiceUnavailable, err.Error())
		case detail != "":
			answer(w, http.StatusOK, "ok, but "+detail)
		default:
			answer(w, http.StatusOK, "ok")
		}
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(cfg.Metrics.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /debug/vars", cfg.Metrics.serveVars)
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	cfg.Control.register(mux)
	protected := cfg.Protect(mux)
	return &Handler{pages: shown, Handler: guard.wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/healthz" || r.URL.Path == "/readyz" {
			mux.ServeHTTP(w, r)
			return
		}
		protected.ServeHTTP(w, r)
	}))}
}

func answer(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text+"\n") // a client that has left needs no answer
}
