package middleware

import (
	"encoding/json"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"larder/auth/token"
	"larder/handler/errcode"
)

// TokenPath is where clients get tokens.
const TokenPath = "/token"

// Tokens is what auth needs for Docker's token protocol,
// https://distribution.github.io/distribution/spec/auth/token/.
type Tokens struct {
	Authority *token.Authority
	Anonymous bool // also for who has no password

	// MayPull reports whether a user may pull from any repository that clients
	// may mean by a name. Which one it is turns out with the request that the
	// token is for: Options.MayPull is asked then.
	MayPull func(user, name string) bool
}

// validHost is what a Host header must be to be repeated: a name or an address,
// and a port.
var validHost = regexp.MustCompile(`^([a-zA-Z0-9_][a-zA-Z0-9_.-]{0,254}|\[[0-9a-fA-F:.]{2,45}\])(:[0-9]{1,5})?$`)

// tokenAuth lets through who shows a token, and gives them out.
type tokenAuth struct {
	Tokens
	verify  verifyFunc
	mayPull func(user, repository string) bool
	next    http.Handler
}

// ServeHTTP implements http.Handler.
func (a *tokenAuth) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var refusal *errcode.Error
	if r.URL.Path == TokenPath {
		refusal = a.issue(w, r)
	} else if refusal = a.check(r); refusal == nil {
		a.next.ServeHTTP(w, r)
	}
	if refusal != nil {
		errcode.Write(w, r, refusal)
	}
}

// check returns why a request may not go on.
func (a *tokenAuth) check(r *http.Request) *errcode.Error {
	note := NoteOf(r.Context())
	scheme, shown, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	switch strings.ToLower(scheme) {
	case "basic": // containerd's hosts.toml can have a mirror sent that
		_, refusal := signIn(r, a.verify)
		if refusal != nil && refusal.Status == http.StatusUnauthorized {
			return challenge(r, "wrong username or password", "")
		}
		return refusal
	case "bearer":
	default:
		return challenge(r, "larder needs a token", "")
	}
	grant, err := a.Authority.Verify(strings.TrimSpace(shown))
	if err != nil {
		note.Err = err
		return challenge(r, "the token is not valid, or not any more", "invalid_token")
	}
	if grant.User != "" {
		note.User = grant.User
	}
	switch {
	case note.Repository == "" || grant.Covers(note.Name):
		return nil
	case !a.mayPull(note.User, note.Repository): // no other token would help
		return denied(note)
	default:
		return challenge(r, "the token is not for this repository", "insufficient_scope")
	}
}

// challenge tells a client where to get a token, and for what. The error is one
// of RFC 6750's, or empty.
func challenge(r *http.Request, message, code string) *errcode.Error {
	if !validHost.MatchString(r.Host) {
		return badRequest("invalid Host header")
	}
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	value := `Bearer realm="` + scheme + "://" + r.Host + TokenPath + `",service="` + token.Service + `"`
	if name := NoteOf(r.Context()).Name; name != "" {
		value += `,scope="` + token.Scope(name) + `"`
	}
	if code != "" {
		value += `,error="` + code + `"`
	}
	return &errcode.Error{
		Status: http.StatusUnauthorized, Code: errcode.Unauthorized, Message: message, Header: http.Header{"Www-Authenticate": {value}},
	}
}

// issue answers with a token for what is asked for, as far as the user may have
// that. It is GET alone: clients that know OAuth's POST go on with GET after a
// 405.
func (a *tokenAuth) issue(w http.ResponseWriter, r *http.Request) *errcode.Error {
	note := NoteOf(r.Context())
	note.Kind = "token"
	if r.Method != http.MethodGet {
		return &errcode.Error{
			Status: http.StatusMethodNotAllowed, Code: errcode.Unsupported, Message: "tokens are given out for GET", Header: http.Header{"Allow": {"GET"}},
		}
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return badRequest("invalid query")
	}
	if slices.ContainsFunc(query["service"], func(s string) bool { return s != token.Service }) {
		return badRequest("larder gives out no tokens for that service")
	}
	names, err := token.Repositories(query["scope"])
	if err != nil {
		return badRequest(err.Error())
	}
	var user string
	if !a.Anonymous || r.Header.Get("Authorization") != "" {
		var refusal *errcode.Error
		if user, refusal = signIn(r, a.verify); refusal != nil {
			return refusal
		}
	}
	names = slices.DeleteFunc(names, func(name string) bool { return !a.MayPull(note.User, name) })
	issued, err := a.Authority.Issue(user, names)
	if err != nil {
		note.Err = err
		return &errcode.Error{Status: http.StatusInternalServerError, Code: errcode.Unknown, Message: "no token could be made"}
	}
	writeToken(w, issued)
	return nil
}

// writeToken gives a token both of the names that it has in the protocol.
func writeToken(w http.ResponseWriter, issued string) {
	body, err := json.Marshal(map[string]any{
		"token": issued, "access_token": issued,
		"expires_in": int(token.Lifetime.Seconds()), "issued_at": time.Now().UTC().Format(time.RFC3339),
	})
	if err != nil {
		panic(err) // three strings and a number
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("Cache-Control", "no-store")
	_, _ = w.Write(body) // a client that has left needs no token
}

func badRequest(message string) *errcode.Error {
	return &errcode.Error{Status: http.StatusBadRequest, Code: errcode.Unsupported, Message: message}
}
