package upstreamtest

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// tokenPath is where tokens are given out, on the registry's own port: go-containerregistry
// refuses a realm on another loopback port.
const tokenPath = "/token"

// auth is who may read. The zero auth lets everybody in.
type auth struct {
	scheme         string // "", "Basic" or "Bearer"
	user, password string
	life           time.Duration    // of a token; 0: for ever
	tokens         map[string]grant // by the token itself
}

// grant is what a token is good for.
type grant struct {
	repositories []string // that it may pull from
	expires      time.Time
}

// RequireBasic lets only this user in, by Basic authentication.
func (r *Registry) RequireBasic(user, password string) {
	r.setAuth(auth{scheme: "Basic", user: user, password: password})
}

// RequireBearer lets only those in who have a token of this registry, good for the repository
// they read and no older than life (0: for ever). GET /token gives them to the user, or to
// anybody if user is "". Earlier tokens are forgotten.
func (r *Registry) RequireBearer(user, password string, life time.Duration) {
	r.setAuth(auth{scheme: "Bearer", user: user, password: password, life: life, tokens: make(map[string]grant)})
}

func (r *Registry) setAuth(a auth) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.auth = a
}

// ExpireTokens makes every token given out so far an expired one.
func (r *Registry) ExpireTokens() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.auth.tokens)
}

// authorize says whether req may read the repository ("" for none), or answers 401.
func (r *Registry) authorize(w http.ResponseWriter, req *http.Request, repository string) bool {
	r.mu.Lock()
	scheme, problem := r.auth.scheme, r.auth.check(req, repository)
	r.mu.Unlock()
	if problem == "" {
		return true
	}
	challenge := `Basic realm="upstreamtest"`
	if scheme == "Bearer" {
		challenge = fmt.Sprintf(`Bearer realm="%s%s",service="%s"`, r.URL, tokenPath, r.host)
		if repository != "" {
			challenge += fmt.Sprintf(`,scope="%s"`, scopeOf(repository))
		}
		if problem != "no_token" {
			challenge += fmt.Sprintf(`,error="%s"`, problem)
		}
	}
	w.Header().Set("WWW-Authenticate", challenge)
	writeError(w, req, http.StatusUnauthorized, "UNAUTHORIZED", problem)
	return false
}

// check returns what is wrong with the credentials of req, in the words of RFC 6750; "" is
// nothing.
func (a auth) check(req *http.Request, repository string) (problem string) {
	switch a.scheme {
	case "Basic":
		if !a.isUser(req) {
			return "invalid_credentials"
		}
	case "Bearer":
		token, ok := strings.CutPrefix(req.Header.Get("Authorization"), "Bearer ")
		if !ok {
			return "no_token"
		}
		g, ok := a.tokens[token]
		if !ok || a.life != 0 && !time.Now().Before(g.expires) {
			return "invalid_token"
		}
		if repository != "" && !slices.Contains(g.repositories, repository) {
			return "insufficient_scope"
		}
	}
	return ""
}

func (a auth) isUser(req *http.Request) bool {
	user, password, ok := req.BasicAuth()
	return ok && user == a.user && password == a.password
}

// serveToken gives out a token, as the distribution project's token specification says.
func (r *Registry) serveToken(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	a := r.auth
	r.mu.Unlock()
	query := req.URL.Query()
	switch {
	case a.scheme != "Bearer":
		writeError(w, req, http.StatusNotFound, "NAME_UNKNOWN", "no tokens here")
		return
	case a.user != "" && !a.isUser(req):
		w.Header().Set("WWW-Authenticate", `Basic realm="upstreamtest"`)
		writeError(w, req, http.StatusUnauthorized, "UNAUTHORIZED", "wrong user or password")
		return
	case query.Get("service") != r.host:
		writeError(w, req, http.StatusBadRequest, "DENIED", "tokens are for service "+r.host)
		return
	}
	var g grant
	for scope := range strings.FieldsSeq(strings.Join(query["scope"], " ")) {
		repository, ok := pullScope(scope)
		if !ok {
			writeError(w, req, http.StatusBadRequest, "DENIED", "no rights to "+scope)
			return
		}
		g.repositories = append(g.repositories, repository)
	}
	now := time.Now()
	g.expires = now.Add(a.life)
	token := rand.Text()
	r.mu.Lock()
	a.tokens[token] = g
	r.mu.Unlock()
	writeJSON(w, req, http.StatusOK, "application/json", struct {
		Token     string    `json:"token"`
		ExpiresIn int       `json:"expires_in,omitempty"`
		IssuedAt  time.Time `json:"issued_at"`
	}{token, int(a.life.Seconds()), now.UTC()})
}

func scopeOf(repository string) string { return "repository:" + repository + ":pull" }

// pullScope returns the repository that scope is for, if it asks for pull, alone or among
// other actions.
func pullScope(scope string) (repository string, ok bool) {
	rest, ok := strings.CutPrefix(scope, "repository:")
	i := strings.LastIndex(rest, ":")
	if !ok || i < 0 || !slices.Contains(strings.Split(rest[i+1:], ","), "pull") {
		return "", false
	}
	return rest[:i], true
}
