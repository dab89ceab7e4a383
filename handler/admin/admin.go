// Package admin answers what operators and their tools ask: health, readiness,
// metrics and profiles, what is in the cache and why; and it removes what they
// want to be rid of. It is served on a listener of its own, never on that
// of the registry.
package admin

import (
	"io"
	"net/http"
	"net/http/pprof"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"larder/handler/middleware"
)

// New makes the handler. ready says why larder should not be sent requests, or
// nil; upstreams have no part in that, as larder is there for when they are
// down. What is less bad than that is a detail. Everything but these two is
// behind protect.
func New(metrics *Metrics, ready func() (detail string, err error), control *Control, protect middleware.Middleware) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		switch detail, err := ready(); {
		case err != nil:
			answer(w, http.StatusServiceUnavailable, err.Error())
		case detail != "":
			answer(w, http.StatusOK, "ok, but "+detail)
		default:
			answer(w, http.StatusOK, "ok")
		}
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /debug/vars", metrics.serveVars)
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	control.register(mux)
	protected := protect(mux)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/healthz" || r.URL.Path == "/readyz" {
			mux.ServeHTTP(w, r)
			return
		}
		protected.ServeHTTP(w, r)
	})
}

func answer(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text+"\n") // a client that has left needs no answer
}
