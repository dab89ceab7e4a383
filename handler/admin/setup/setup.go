// Package setup writes the configuration of clients: that larder is their mirror, at
// the address by which they ask for it. It is served beside the rest of what is for
// operators.
package setup

import (
	"bytes"
	"cmp"
	_ "embed" // the page and the scripts
	"errors"
	"fmt"
	htmltemplate "html/template"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"text/template"

	"larder/handler/upstream"
)

// Config is what clients have to know of larder.
type Config struct {
	Registries []upstream.Registry // those listed, the default one first
	Addr       string              // where clients are answered, as "127.0.0.1:5000"
	TLS        bool                // they are, by HTTPS
	SignIn     bool                // with a password or a certificate only
}

//go:embed page.html
var pageHTML string

//go:embed page.txt
var pageText string

// errHost says that a Host header is none that a client can be sent to.
var errHost = errors.New("the Host header is neither a name nor an address")

// setup answers below /setup.
type setup struct {
	cfg  Config
	html *htmltemplate.Template
	text *template.Template
}

// Handler answers GET /setup with a page, or text for who does not want HTML, and
// GET /setup/… with the files that it shows.
func Handler(cfg Config) http.Handler {
	s := &setup{
		cfg:  cfg,
		html: htmltemplate.Must(htmltemplate.New("page").Parse(pageHTML)),
		text: template.Must(template.New("page").Parse(pageText)),
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /setup", s.page)
	mux.HandleFunc("GET /setup/{$}", s.page)
	mux.HandleFunc("GET /setup/{file...}", s.file)
	return mux
}

// target is where clients are to look for larder, and how.
type target struct {
	Config
	Addr  string // of larder, as "localhost:5000"
	Admin string // where the page is, as "localhost:5001"
	// Fallback is that the registry itself is asked for what larder does not give.
	Fallback bool
	// Here is that nobody on another machine can reach larder.
	Here bool
}

// URL is larder's.
func (t *target) URL() string {
	if t.TLS {
		return "https://" + t.Addr
	}
	return "http://" + t.Addr
}

// target is where the client that asks is to look for larder.
func (s *setup) target(r *http.Request) (*target, error) {
	host, err := hostOf(r.Host)
	if err != nil {
		return nil, err
	}
	fallback, err := strconv.ParseBool(cmp.Or(r.URL.Query().Get("fallback"), "true"))
	if err != nil {
		return nil, errors.New("fallback is neither true nor false")
	}
	bound, port, err := net.SplitHostPort(s.cfg.Addr)
	if err != nil {
		return nil, err
	}
	t := &target{Config: s.cfg, Fallback: fallback}
	t.Admin = host
	if p := (&url.URL{Host: r.Host}).Port(); p != "" {
		t.Admin = net.JoinHostPort(host, p)
	}
	if ip, err := netip.ParseAddr(bound); err == nil && !ip.IsUnspecified() {
		t.Here = ip.IsLoopback()
		if host != "localhost" || !t.Here {
			host = bound // it answers there, and nowhere else
		}
	}
	t.Addr = net.JoinHostPort(host, port)
	return t, nil
}

// namePattern is that of hosts' names. No character of it means anything in TOML,
// YAML, JSON, HTML or to a shell.
var namePattern = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9._-]{0,251}[a-zA-Z0-9])?$`)

// hostOf is the name or the address in a Host header. All interfaces are no address
// to connect to.
func hostOf(header string) (string, error) {
	host := (&url.URL{Host: header}).Hostname()
	ip, err := netip.ParseAddr(host)
	switch {
	case err == nil && ip.IsUnspecified():
		return "localhost", nil
	case err == nil && ip.Zone() == "":
		return host, nil
	case err != nil && namePattern.MatchString(host):
		return strings.ToLower(host), nil
	}
	return "", errHost
}

// forWhom is where r is to lead clients, and their files. It refuses r otherwise.
func (s *setup) forWhom(w http.ResponseWriter, r *http.Request) (t *target, clients []client, ok bool) {
	t, err := s.target(r)
	if err != nil {
		refuse(w, http.StatusBadRequest, err)
		return nil, nil, false
	}
	if clients, err = t.clients(); err != nil {
		refuse(w, http.StatusInternalServerError, err)
		return nil, nil, false
	}
	return t, clients, true
}

// page answers GET /setup.
func (s *setup) page(w http.ResponseWriter, r *http.Request) {
	t, clients, ok := s.forWhom(w, r)
	if !ok {
		return
	}
	w.Header().Set("Vary", "Accept")
	kind := "text/plain; charset=utf-8"
	var execute func(io.Writer, any) error = s.text.Execute
	if strings.Contains(r.Header.Get("Accept"), "text/html") {
		kind, execute = "text/html; charset=utf-8", s.html.Execute
	}
	var body bytes.Buffer
	err := execute(&body, struct {
		*target
		Clients []client
	}{t, clients})
	if err != nil {
		refuse(w, http.StatusInternalServerError, err)
		return
	}
	write(w, http.StatusOK, kind, body.Bytes())
}

// file answers GET /setup/<file>.
func (s *setup) file(w http.ResponseWriter, r *http.Request) {
	t, clients, ok := s.forWhom(w, r)
	if !ok {
		return
	}
	for _, c := range clients {
		if c.Script != "" && c.Script == r.PathValue("file") {
			write(w, http.StatusOK, "text/plain; charset=utf-8", t.script(c))
			return
		}
		for _, f := range c.Files {
			if f.Name != "" && f.Name == r.PathValue("file") {
				write(w, http.StatusOK, "text/plain; charset=utf-8", []byte(f.Content))
				return
			}
		}
	}
	refuse(w, http.StatusNotFound, fmt.Errorf("no such file; %s/setup has them all", t.Admin))
}

func refuse(w http.ResponseWriter, status int, err error) {
	write(w, status, "text/plain; charset=utf-8", []byte(err.Error()+"\n"))
}

func write(w http.ResponseWriter, status int, kind string, body []byte) {
	h := w.Header()
	h.Set("Content-Type", kind)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store") // it depends on Host
	w.WriteHeader(status)
	_, _ = w.Write(body) // a client that has left needs no answer
}
