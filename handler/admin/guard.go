package admin

import (
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"

	"larder/handler/admin/pages"
	"larder/handler/errcode"
)

// guard refuses what somebody else's page has a browser send here. What no browser
// sends, as curl or a probe, passes, unless it asks for a name that leads here and
// is not known.
//
// http.CrossOriginProtection is about methods that change something only; here
// nothing is for other pages to read either.
type guard struct {
	names []string // by which this may be asked, beside addresses and localhost
	token string   // that larder's own pages show
}

// wrap has requests pass the guard before next. What has no policy of its own is not
// to be shown in a page, nor to load anything.
func (g *guard) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Security-Policy", "default-src 'none'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if why := g.refuse(w, r); why != "" {
			errcode.Write(w, r, &errcode.Error{Status: http.StatusForbidden, Code: errcode.Denied, Message: why})
			return
		}
		next.ServeHTTP(w, r)
	})
}

// refuse says why r is refused, or "".
func (g *guard) refuse(w http.ResponseWriter, r *http.Request) string {
	reading := r.Method == http.MethodGet || r.Method == http.MethodHead
	origin, site := r.Header.Get("Origin"), r.Header.Get("Sec-Fetch-Site")
	switch {
	case !g.knows(r.Host):
		return fmt.Sprintf("asked by a name that is not known to be larder's: %.100q; list it in LARDER_ADMIN_HOSTS if it is", r.Host)
	case origin != "" && !sameOrigin(origin, r.Host):
		return "not for pages of other origins"
	case site == "" || site == "same-origin" || site == "none":
	case !linked(r):
		return "not for pages of other sites"
	}
	if fromPage(r) && !reading && !pages.HasToken(w, r, g.token) {
		return "not for pages in a browser, but those of larder's that have been loaded since it was started"
	}
	return ""
}

// linked reports whether r is what a link on another site's page leads to. That may be
// a page, but not in a frame, and nothing that costs something, as a profile or
// /doctor do.
func linked(r *http.Request) bool {
	page := r.URL.Path == "/" || r.URL.Path == "/images" || r.URL.Path == "/setup"
	return page && r.Method == http.MethodGet && r.Header.Get("Sec-Fetch-Mode") == "navigate" && r.Header.Get("Sec-Fetch-Dest") == "document"
}

// fromPage reports whether a page in a browser sends r.
func fromPage(r *http.Request) bool {
	return r.Header.Get("Origin") != "" || r.Header.Get("Sec-Fetch-Site") != ""
}

// knows reports whether this may be asked by that Host. Whoever has a domain can let
// it lead here and have a page there read what is here: an address can't be had like
// that, nor can localhost. HTTP/1.0 has no Host, and browsers do not speak it.
func (g *guard) knows(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.TrimSuffix(strings.ToLower(strings.Trim(host, "[]")), ".")
	if host == "" || host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	address, _, _ := strings.Cut(host, "%")
	if net.ParseIP(address) != nil {
		return true
	}
	for _, name := range g.names {
		if strings.EqualFold(name, host) {
			return true
		}
	}
	return false
}

// sameOrigin reports whether a page of the origin is one of host's. Its scheme does
// not count: TLS may end at a proxy.
func sameOrigin(origin, host string) bool {
	u, err := url.Parse(origin)
	return err == nil && u.Host != "" && strings.EqualFold(u.Host, host)
}
