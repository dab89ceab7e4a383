package upstream

import (
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// defaultHold is for a 429 that does not say when to ask again: long enough
	// for a burst to be over, short enough not to be noticed in a rollout.
	defaultHold = 30 * time.Second

	// maxHold bounds what a 429 says. Who has no more to give for a day is asked
	// once an hour whether that is still so.
	maxHold = time.Hour

	// defaultWindow is for a quota that does not say for how long it is.
	defaultWindow = time.Hour
	maxWindow     = 24 * time.Hour
)

// errSpared says that an upstream is not asked, to keep what is left of a quota
// for what is not cached.
var errSpared = errors.New("not asked, as the rate limit is nearly used up")

// retryAfter is for how long a 429 wants to be left alone. RFC 9110, section
// 10.2.3: seconds, or a date.
func retryAfter(header http.Header) time.Duration {
	value := header.Get("Retry-After")
	wait := defaultHold
	if n, err := strconv.ParseUint(value, 10, 64); err == nil {
		wait = time.Duration(min(n, uint64(maxHold/time.Second))) * time.Second
	} else if at, err := http.ParseTime(value); err == nil {
		wait = time.Until(at)
	}
	return min(max(wait, time.Second), maxHold)
}

// sourcePattern is an address, perhaps with a prefix's length, or an id.
var sourcePattern = regexp.MustCompile(`^[0-9A-Za-z.:/_-]{1,64}$`)

// Quota is what a registry says of its rate limit, as Docker Hub does. The zero
// Quota: nothing that still counts.
type Quota struct {
	Limit, Remaining int
	Source           string // whose quota it is: an address or a user's id
	Window           time.Duration
	Seen             time.Time
}

// current reports whether the quota says something of now: when its window has
// passed, there may be as much as ever.
func (q Quota) current() bool {
	return !q.Seen.IsZero() && time.Since(q.Seen) < q.Window
}

// quota is the last one seen.
type quota struct {
	mu sync.Mutex // guards q
	q  Quota
}

func (q *quota) get() Quota {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.q.current() {
		return Quota{}
	}
	return q.q
}

// note reads the headers of an answer.
func (q *quota) note(header http.Header) {
	remaining, window, ok := parseQuota(header.Get("RateLimit-Remaining"))
	if !ok {
		return
	}
	limit, limitWindow, _ := parseQuota(header.Get("RateLimit-Limit"))
	if window == 0 {
		window = limitWindow
	}
	if window == 0 {
		window = defaultWindow
	}
	source := header.Get("Docker-RateLimit-Source")
	if !sourcePattern.MatchString(source) {
		source = ""
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.q = Quota{Limit: limit, Remaining: remaining, Source: source, Window: min(window, maxWindow), Seen: time.Now()}
}

// parseQuota reads "100;w=21600": a hundred in six hours.
func parseQuota(s string) (n int, window time.Duration, ok bool) {
	count, params, _ := strings.Cut(s, ";")
	n64, err := strconv.ParseUint(strings.TrimSpace(count), 10, 31)
	if err != nil {
		return 0, 0, false
	}
	for param := range strings.SplitSeq(params, ";") {
		if value, is := strings.CutPrefix(strings.TrimSpace(param), "w="); is {
			if w, err := strconv.ParseUint(value, 10, 31); err == nil {
				window = time.Duration(w) * time.Second
			}
		}
	}
	return int(n64), window, true
}

// Spare says why the registry of a repository, named with its host, should not
// be asked about what is known of it, or nil: less is left of its rate limit than
// Config.Floor. What is not known may be asked for all the same.
func (c *Client) Spare(repository string) error {
	host, _, _ := strings.Cut(repository, "/")
	for _, p := range c.places[host] {
		if open, _ := p.breaker.stats(); open {
			continue // a tag is asked for at the next one
		}
		if q := p.quota.get(); q.current() && q.Remaining < c.cfg.Floor {
			return &Error{Op: opHeadManifest, Repository: repository, unjudged: true, Err: fmt.Errorf("%w: %d of %d are left", errSpared, q.Remaining, q.Limit)}
		}
		return nil
	}
	return nil
}
