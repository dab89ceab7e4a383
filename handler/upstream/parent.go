package upstream

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/dunglas/httpsfv"
	"github.com/google/go-containerregistry/pkg/authn"
	"go.uber.org/zap"
)

const (
	// maxCacheStatus bounds what is passed on of a Cache-Status.
	maxCacheStatus = 1 << 10

	// distrust is how long a parent is not asked about a repository of which it has
	// sent wrong bytes.
	distrust = 10 * time.Minute

	// refusedFor is how long it is not asked about one that it has refused: each question
	// would cost a little, but that may soon be mended.
	refusedFor = time.Minute
)

// ParseParent reads where a parent is: a larder that is asked before the registries.
// Its errors show nothing that may hold a password.
func ParseParent(s string) (*url.URL, error) {
	if u, err := url.Parse(strings.TrimSpace(s)); err == nil && u.User != nil {
		return nil, errors.New("it holds credentials; docker login puts them into Docker's config.json")
	}
	return parseURL("the parent", s)
}

// newParent is the parent as the first place of a registry. How it fares is one
// thing, whatever it is asked about: its silence costs one timeout, not one for
// each registry.
func newParent(u *url.URL, host string, b *breaker, log *zap.Logger) *place {
	p := newPlace(host, u, log)
	p.parent, p.credentials, p.breaker = true, u.Host, b
	return p
}

// withNamespace says which registry a question to the parent is about, as
// containerd does.
func withNamespace(u *url.URL, host string) {
	query := u.Query()
	query.Set("ns", host)
	u.RawQuery = query.Encode()
}

// settles reports whether what a place has said is final, though it is not the last
// one: a parent's 404 that it has from the registry. To ask there once more would
// only double it. With credentials that the parent may not have, a registry may say
// something else; a 404 of the parent's own, that it does not list the registry,
// say, and its other noes mean nothing here.
func (r *Repository) settles(ctx context.Context, p *place, e *Error) bool {
	if !p.parent || e.Status != http.StatusNotFound || !forwarded(e.Header["Cache-Status"], e.Status) {
		return false
	}
	places := r.places()
	auth, err := r.client.credentials(ctx, places[len(places)-1])
	return err == nil && auth == authn.Anonymous
}

// forwarded reports whether who has answered says that this was the status of the
// one that it has asked itself.
func forwarded(values []string, status int) bool {
	list := cacheStatus(values)
	if list == nil {
		return false
	}
	said, ok := list[len(list)-1].(httpsfv.Item).Params.Get("fwd-status")
	return ok && said == int64(status)
}

// cacheStatus reads a Cache-Status (RFC 9211), who is nearest last. It is nil if it
// is none, or has more than larders may be in a row.
func cacheStatus(values []string) httpsfv.List {
	size := 0
	for _, v := range values {
		size += len(v) + len(", ")
	}
	if size > maxCacheStatus {
		return nil
	}
	list, err := httpsfv.UnmarshalList(values)
	if err != nil || len(list) == 0 || len(list) > maxHops {
		return nil
	}
	for _, member := range list {
		item, ok := member.(httpsfv.Item)
		if !ok {
			return nil
		}
		switch item.Value.(type) {
		case httpsfv.Token, string:
		default:
			return nil
		}
	}
	return list
}

// refuses reports whether a no is about all of a repository, or about who asks, and not
// about one thing that is not there. A larder that answers a HEAD has no room for the
// code: what is not there for others it says that it has asked for.
func (e *Error) refuses() bool {
	switch {
	case e.denied():
		return true
	case e.Status != http.StatusNotFound, forwarded(e.Header["Cache-Status"], e.Status):
		return false
	default:
		return e.Code == "NAME_UNKNOWN" || e.Code == "" && len(hops(e.Header["Via"])) > 0
	}
}

// relay is what a parent has said of its answers to the questions of one Repository.
type relay struct {
	mu     sync.Mutex // guards what follows
	place  *place     // nil: it has answered none
	status string     // the Cache-Status of the first; "": it has none
	age    time.Duration
	stale  bool
}

// note reads the first answer.
func (n *relay) note(p *place, header http.Header) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.place != nil {
		return
	}
	n.place = p
	values := header["Cache-Status"]
	if list := cacheStatus(values); list != nil {
		n.status = strings.Join(values, ", ")
		ttl, _ := list[len(list)-1].(httpsfv.Item).Params.Get("ttl")
		left, ok := ttl.(int64)
		n.stale = ok && left < 0
	}
	// Seconds, RFC 9111. It is since the registry was asked, if it was not for this.
	if age, err := strconv.ParseUint(header.Get("Age"), 10, 31); err == nil {
		n.age = time.Duration(age) * time.Second
	}
}

// Relayed is what the parent has said of the first answer it gave to a question of
// this Repository: its Cache-Status, how long ago the registry has said what the
// answer says, if it was not asked, and whether that is because it could not be. It
// is "", 0 and false if the parent has not answered.
func (r *Repository) Relayed() (status string, age time.Duration, stale bool) {
	if r.relay == nil {
		return "", 0, false
	}
	r.relay.mu.Lock()
	defer r.relay.mu.Unlock()
	return r.relay.status, r.relay.age, r.relay.stale
}

// Anew is the same repository, of which no question was asked yet: see Relayed.
func (r *Repository) Anew() *Repository {
	if r.relay == nil {
		return r
	}
	anew := *r
	anew.relay = new(relay)
	return &anew
}

// Distrust says that a blob had wrong bytes. If the parent has sent any of them, it
// is not asked about the repository for a while.
func (r *Repository) Distrust() {
	if r.relay == nil {
		return
	}
	r.relay.mu.Lock()
	p := r.relay.place
	r.relay.mu.Unlock()
	if p != nil {
		p.troubled(r.name).avoid(distrust, errMismatch)
		p.log.Error("the parent has sent wrong bytes; it is left alone about a repository", zap.String("repository", r.name), zap.Duration("for", distrust))
	}
}
