package upstream

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"go.uber.org/zap"
)

// place is one URL of a registry, and how it fares.
type place struct {
	host        string // the registry's
	url         *url.URL
	parent      bool        // it is no place of the registry's; see Config.Parent
	credentials string      // the host whose credentials are shown here
	whole       atomic.Bool // it refuses a range from a blob's start
	signatures  atomic.Bool // it has said that it has signatures
	quota       quota
	breaker     *breaker
	log         *zap.Logger

	mu           sync.Mutex          // guards what follows
	repositories map[string]*breaker // those that something is wrong with, by name
	asking       map[string]int      // questions without an answer yet, by repository
	peer         string              // what it is called, if it is a larder
	last         Answer
	tokenEnds    time.Time // that of the newest token
}

// Answer is what a place has said to a question, and how soon.
type Answer struct {
	At     time.Time
	Status int
	Took   time.Duration
}

// newPlaces are those of a registry, in the order of its list.
func newPlaces(r Registry, log *zap.Logger) []*place {
	var places []*place
	for _, u := range r.URLs {
		p := newPlace(r.Host, u, log)
		// What a registry may be told, a mirror of it may not.
		if len(r.URLs) > 1 && canonicalHost(u.Host) != r.Host {
			p.credentials = u.Host
		}
		places = append(places, p)
	}
	return places
}

func newPlace(host string, u *url.URL, log *zap.Logger) *place {
	return &place{
		host: host, url: u, credentials: host, breaker: new(breaker), log: log.With(zap.String("upstream", host), zap.String("at", u.Host)),
		repositories: make(map[string]*breaker), asking: make(map[string]int),
	}
}

// key names a repository at the place. Two registries may be at one URL, with
// credentials of their own.
func (p *place) key(repository string) string {
	return p.host + " " + p.url.String() + "/" + repository
}

func (p *place) registry() (name.Registry, error) {
	if p.url.Scheme == "http" {
		return name.NewRegistry(p.url.Host, name.Insecure)
	}
	return name.NewRegistry(p.url.Host)
}

func (p *place) repository(repository string) (name.Repository, error) {
	registry, err := p.registry()
	if err != nil {
		return name.Repository{}, err
	}
	return registry.Repo(strings.Split(repository, "/")...), nil
}

// reference is a tag or a digest there.
func (p *place) reference(repository, s string) (name.Reference, error) {
	repo, err := p.repository(repository)
	if err != nil {
		return nil, err
	}
	if strings.Contains(s, ":") {
		return repo.Digest(s), nil
	}
	return repo.Tag(s), nil
}

// byHealth has those first that nothing is wrong with, else in the order of the
// list.
func byHealth(places []*place) []*place {
	if len(places) == 1 {
		return places
	}
	var well, ill []*place
	for _, p := range places {
		if p.breaker.failing() {
			ill = append(ill, p)
		} else {
			well = append(well, p)
		}
	}
	return slices.Concat(well, ill)
}

// trouble is the breaker of a repository, or nil if nothing is wrong with it.
func (p *place) trouble(repository string) *breaker {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.repositories[repository]
}

// troubled is trouble, but that there is a breaker afterwards.
func (p *place) troubled(repository string) *breaker {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.repositories[repository]
	if b == nil {
		if len(p.repositories) >= maxSessions {
			p.forgetTroubles()
		}
		b = new(breaker)
		p.repositories[repository] = b
	}
	return b
}

// forgetTroubles makes room: what is over goes, and if there is nothing of that
// kind, anything. Needs mu.
func (p *place) forgetTroubles() {
	one := ""
	for repository, b := range p.repositories {
		if one = repository; b.over() {
			delete(p.repositories, repository)
		}
	}
	if len(p.repositories) >= maxSessions {
		delete(p.repositories, one)
	}
}

func (p *place) wellAgain(repository string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.repositories[repository]
	if b == nil {
		return
	}
	if _, forget := b.succeed(); forget {
		delete(p.repositories, repository)
	}
}

// begin asks for leave to put a question. Either refused says why it must not
// be put, or end must be called with what came of it.
func (p *place) begin(repository string) (end func(e *Error), refused *refusal) {
	trouble := p.trouble(repository)
	own, refused := trouble.begin()
	if refused != nil {
		return nil, refused
	}
	probe, refused := p.breaker.begin()
	if refused != nil {
		if own {
			trouble.cancel()
		}
		return nil, refused
	}
	p.count(repository, 1)
	return func(e *Error) {
		p.count(repository, -1)
		p.judge(repository, e)
		// A verdict has ended the probes; a caller who left has not.
		if own {
			trouble.cancel()
		}
		if probe {
			p.breaker.cancel()
		}
	}, nil
}

// answered notes what an answer to a question or a ping tells of the place: that
// somebody is there, and perhaps how much may still be asked.
func (p *place) answered(res *http.Response, took time.Duration) {
	if res.StatusCode < http.StatusInternalServerError {
		if closed, _ := p.breaker.succeed(); closed {
			p.log.Info("upstream answers again")
		}
	}
	p.quota.note(res.Header)
	if ping := res.Request != nil && res.Request.URL.Path == "/v2/"; ping && (res.StatusCode == http.StatusOK || res.StatusCode == http.StatusUnauthorized) {
		p.signatures.Store(res.Header.Get(signaturesHeader) == "1")
	}
	names := hops(res.Header["Via"])
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last = Answer{time.Now(), res.StatusCode, took}
	if len(names) > 0 {
		p.peer = names[len(names)-1]
	}
}

// gaveToken notes until when the newest token is good.
func (p *place) gaveToken(end time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tokenEnds = end
}

func (p *place) count(repository string, questions int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.asking[repository] += questions; p.asking[repository] == 0 {
		delete(p.asking, repository)
	}
}

// waitsFor reports whether one of these larders is asked about the repository
// here just now.
func (p *place) waitsFor(names []string, repository string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asking[repository] > 0 && slices.Contains(names, p.peer)
}

// judge decides whom a question's end speaks against. No answer at all, or none
// that a handshake can go on with, is the place's fault, unless it has answered
// somebody since. What is left, a 5xx about one thing or a silence of where it
// redirects to, is the repository's alone, so that one broken thing takes
// nothing from others. All other answers are those of a healthy upstream.
func (p *place) judge(repository string, e *Error) {
	switch {
	case e == nil:
		p.wellAgain(repository)
	case e.unjudged:
	case e.hold > 0:
		p.troubled(repository).hold(e.hold)
		p.log.Warn("upstream limits how often it may be asked", zap.String("repository", repository), zap.Duration("for", e.hold))
	case p.parent && e.refuses():
		if p.troubled(repository).avoid(refusedFor, e.cause()) {
			p.log.Warn("the parent refuses; the registry is asked about a repository", zap.String("repository", repository), zap.Error(e))
		}
	case !e.failed():
		p.wellAgain(repository)
	case e.Status == 0 || e.Op == opHandshake:
		believed, opened := p.breaker.fail(e)
		if opened {
			p.log.Warn("upstream is left alone", zap.Duration("for", firstRest), zap.Error(e))
		}
		if !believed {
			p.failOne(repository, e)
		}
	default:
		p.failOne(repository, e)
	}
}

func (p *place) failOne(repository string, e *Error) {
	if _, opened := p.troubled(repository).fail(e); opened {
		p.log.Warn("upstream is left alone about a repository", zap.String("repository", repository), zap.Duration("for", firstRest), zap.Error(e))
	}
}

// Place is how one URL of a registry fares.
type Place struct {
	Host, URL string
	Parent    bool  // it is not the registry's, but a larder that is asked first
	Open      bool  // it is left alone after it has failed
	Trips     int64 // how often that has begun
	Held      int   // repositories that are left alone, for failures or 429
	Quota     Quota

	Failures int           // since it last answered
	Rest     time.Duration // for how long it is left alone; 0: it is not
	Cause    error         // why, or why it last failed; nil: neither

	Last      Answer    // the newest; zero: none yet
	TokenEnds time.Time // when the newest token expires; zero: there was none
}

func (p *place) stats() Place {
	s := Place{Host: p.host, URL: p.url.String(), Parent: p.parent, Quota: p.quota.get()}
	s.Open, s.Trips = p.breaker.stats()
	s.Failures, s.Cause = p.breaker.row()
	if refused := p.breaker.peek(); refused != nil {
		s.Rest, s.Cause = refused.left, refused.cause
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	s.Last, s.TokenEnds = p.last, p.tokenEnds
	for _, b := range p.repositories {
		if open, _ := b.stats(); open {
			s.Held++
		}
	}
	return s
}
