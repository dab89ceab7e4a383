package history

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"larder/blobcache"
	"larder/handler/middleware"
	"larder/handler/upstream"
	"larder/manifestcache"
)

const (
	maxFailures = 20
	maxMessage  = 400 // bytes of an error that are shown
)

// Failure is an answer that was an error, and all that were like it.
type Failure struct {
	Last       time.Time
	Count      int64
	Status     int
	Kind       string
	Upstream   string
	Repository string
	Reference  string // of the last one
	Message    string
	Remedy     string // what an operator can do
}

// addFailure remembers an error, unless it is none of larder's, the registry's or
// the operator's: a client that has left, that is asked to sign in, or that wants
// what there is not.
func (h *History) addFailure(now time.Time, o middleware.Observation) {
	switch o.Status {
	case http.StatusUnauthorized, http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusRequestedRangeNotSatisfiable, middleware.StatusLeft:
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	f := Failure{Count: 1}
	if i := slices.IndexFunc(h.failures, func(f Failure) bool {
		return f.Status == o.Status && f.Kind == o.Kind && f.Upstream == o.Upstream && f.Repository == o.Repository
	}); i >= 0 {
		f.Count += h.failures[i].Count
		h.failures = slices.Delete(h.failures, i, i+1)
	}
	f.Last, f.Status, f.Kind, f.Upstream, f.Repository, f.Reference = now, o.Status, o.Kind, o.Upstream, o.Repository, o.Reference
	f.Message, f.Remedy = message(o), remedy(o)
	h.failures = slices.Insert(h.failures, 0, f)
	h.failures = h.failures[:min(len(h.failures), maxFailures)]
}

func message(o middleware.Observation) string {
	text := http.StatusText(o.Status)
	if o.Err != nil {
		text = o.Err.Error()
	} else if o.Outcome == "denied" {
		text = "this user may not have this repository"
	}
	if len(text) > maxMessage {
		text = text[:maxMessage] + "…"
	}
	return strings.ToValidUTF8(text, "\uFFFD")
}

// remedy is what an operator can do about an error.
func remedy(o middleware.Observation) string {
	if e, ok := errors.AsType[*upstream.Error](o.Err); ok && !errors.Is(o.Err, upstream.ErrClosed) {
		return remedyUpstream(o.Upstream, e)
	}
	switch {
	case o.Outcome == "denied":
		return "LARDER_ALLOW, LARDER_DENY or LARDER_ACCESS says so; /why?ref= and the reference tells which."
	case errors.Is(o.Err, blobcache.ErrDigest), errors.Is(o.Err, manifestcache.ErrDigest):
		return "Look for a proxy on the way to " + o.Upstream + " that changes what it passes on. Nothing wrong was kept or given out."
	case errors.Is(o.Err, blobcache.ErrClosed), errors.Is(o.Err, manifestcache.ErrClosed), errors.Is(o.Err, upstream.ErrClosed):
		return "None is needed: larder was about to stop."
	case o.Status == http.StatusServiceUnavailable, o.Status == http.StatusTooManyRequests:
		return "Too much is asked for at once: see LARDER_MIDDLEWARE_LIMIT_RUNNING, and whether the cache's disk can be written."
	case o.Status == http.StatusLoopDetected:
		return "LARDER_UPSTREAMS leads back to this larder, perhaps through another one: name the registry itself."
	case o.Status < http.StatusInternalServerError:
		return "The client asks for what can't be: look at the name and the tag in its configuration."
	default:
		return "See the line in larder's log with this repository and status."
	}
}

// remedyUpstream is that for an error of the registry that is called host.
func remedyUpstream(host string, e *upstream.Error) string {
	switch {
	case e.Status == http.StatusUnauthorized, e.Status == http.StatusForbidden:
		return fmt.Sprintf("Check the credentials for %s: LARDER_USERNAME and LARDER_PASSWORD for the default upstream, else its entry in Docker's config.json. Or the repository is private, or not there.", host)
	case e.Status == http.StatusTooManyRequests:
		return fmt.Sprintf("Sign in to %s, as its limit is then higher; a longer LARDER_TAG_TTL asks it less often. larder asks again by itself when it may.", host)
	case e.Status == http.StatusLoopDetected:
		return "LARDER_UPSTREAMS leads back to this larder: name the registry itself."
	case errors.Is(e, upstream.ErrBusy):
		return "None is needed: many large manifests were passed on at once."
	case e.Timeout():
		return fmt.Sprintf("%s is slow, or a firewall swallows what is sent to it: try curl -v https://%s/v2/ here, and look at HTTPS_PROXY and NO_PROXY.", host, host)
	case e.Status >= http.StatusInternalServerError:
		return fmt.Sprintf("%s has trouble; larder asks again by itself. What is cached is served meanwhile. A mirror in LARDER_UPSTREAMS would be asked instead.", host)
	default:
		return fmt.Sprintf("Look at the way to %s: its name (DNS), its port, its certificate (SSL_CERT_FILE), HTTPS_PROXY. What is cached is served meanwhile.", host)
	}
}
