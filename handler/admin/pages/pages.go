// Package pages shows larder to people with a browser: how it fares, live, and what
// is in the cache. Pages work without JavaScript; with it, what changes is sent to
// them once a second. Everything that they show is escaped by html/template, and
// they may load and run nothing but what is embedded here.
package pages

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"html/template"
	"net/http"
	"path"
	"strconv"
	"sync"
	"time"
)

//go:embed *.html *.css *.js
var files embed.FS

// policy lets a page load what is served here and nothing else, and run no script
// and take no style that is written into it.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"

// TokenField is the form field that says that a page of larder's own sends the
// form. Scripts say it in a header.
const (
	TokenField  = "token"
	TokenHeader = "X-Csrf-Token"
)

// Config is where pages have from what they show. Status and Images are needed.
type Config struct {
	Token  string // the value of TokenField
	Status func() *Status
	Images func(ctx context.Context, s Search) (*Images, error)

	// Delete and Refresh do what the buttons of those names say to a reference, and
	// tell what came of it. The error's text is shown.
	Delete  func(r *http.Request, reference string) (said string, err error)
	Refresh func(r *http.Request, reference string) (said string, err error)

	// Pin pins a reference, or unpins it. nil: there is no such button.
	Pin func(ctx context.Context, reference string, pinned bool) error
}

// Handler answers requests for pages. Run must be running for them to be live.
type Handler struct {
	cfg       Config
	templates *template.Template
	notices   notices
	over      chan struct{} // closed when Run ends

	mu        sync.Mutex // guards what follows
	listeners int
	current   *fragments
	changed   chan struct{} // closed and replaced when current is
}

// New makes the pages.
func New(cfg Config) *Handler {
	return &Handler{
		cfg:       cfg,
		templates: template.Must(template.New("").Funcs(functions()).ParseFS(files, "*.html")),
		over:      make(chan struct{}),
		changed:   make(chan struct{}),
	}
}

// Register adds the pages to mux.
func (p *Handler) Register(mux *http.ServeMux) {
	mux.HandleFunc("GET /{$}", p.status)
	mux.HandleFunc("GET /events", p.events)
	mux.HandleFunc("GET /images", p.images)
	mux.HandleFunc("POST /images/delete", p.act(p.delete))
	mux.HandleFunc("POST /images/refresh", p.act(p.refresh))
	if p.cfg.Pin != nil {
		mux.HandleFunc("POST /images/pin", p.act(p.pin))
	}
	for _, name := range []string{"style.css", "live.js"} {
		mux.Handle("GET /static/"+name, static(name))
	}
}

// static serves an embedded file. Browsers ask each time whether it is still the
// same, so that a new larder has new pages at once.
func static(name string) http.Handler {
	content, err := files.ReadFile(name)
	if err != nil {
		panic(err) // it is embedded
	}
	sum := sha256.Sum256(content)
	tag := `"` + hex.EncodeToString(sum[:8]) + `"`
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		secure(w.Header())
		w.Header().Set("Cache-Control", "no-cache")
		w.Header().Set("ETag", tag)
		http.ServeContent(w, r, path.Base(name), time.Time{}, bytes.NewReader(content))
	})
}

// secure sets what every answer to a browser has.
func secure(h http.Header) {
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "same-origin") // without any, a form's Origin would be null
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
}

// show answers with a page.
func (p *Handler) show(w http.ResponseWriter, r *http.Request, status int, name string, data any) {
	var body bytes.Buffer
	if err := p.templates.ExecuteTemplate(&body, name, data); err != nil {
		panic(err) // the templates are embedded, and tested
	}
	h := w.Header()
	secure(h)
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Length", strconv.Itoa(body.Len()))
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = body.WriteTo(w) // a client that has left needs no page
	}
}
