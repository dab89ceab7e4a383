// Package upstream speaks to registries: which ones there are, how they want to
// be authenticated to, and how manifests, blobs, tags and referrers are asked
// for. Only registries that are listed are ever contacted, and where they
// redirect to.
package upstream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"go.uber.org/zap"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sync/singleflight"
)

const (
	// sessionIdle is how long a handshake is kept without being used.
	sessionIdle = time.Hour

	// maxSessions bounds how many are kept: clients may ask for any name.
	maxSessions = 1024

	// sessionYoung is how old a handshake must be for a 401 or 403 to be
	// blamed on it, and not on the credentials.
	sessionYoung = 10 * time.Second

	// defaultConnections is how many bodies of blobs one registry sends at once.
	defaultConnections = 32

	// retryPause is how long a question waits that is asked a second time.
	retryPause = 300 * time.Millisecond
)

// Keychain says which credentials a registry is shown. It is asked by listed
// host.
type Keychain interface {
	Resolve(ctx context.Context, host string) (authn.Authenticator, error)
}

// Config says whom a Client may contact, and how.
type Config struct {
	Registries []Registry        // at least one; the first is the default
	Keychain   Keychain          // nil: nobody is shown credentials
	Transport  http.RoundTripper // nil: larder's own
	UserAgent  string            // "": larder

	// Connections is how many blobs, or parts of blobs, are received from one
	// registry at a time; more wait for their turn. 0: 32.
	Connections int

	Logger *zap.Logger // nil: none
}

// Client speaks to the listed registries. Its methods may be called by several
// goroutines.
type Client struct {
	cfg     Config
	log     *zap.Logger
	ctx     context.Context // of all handshakes; ends with Close
	cancel  context.CancelCauseFunc
	wg      sync.WaitGroup // the handshakes
	flights singleflight.Group
	count   counters
	bodies  map[string]*semaphore.Weighted // by host; fair: who asks first is first

	mu       sync.Mutex // guards the fields below, and the sessions' used
	sessions map[string]*session
	whole    map[string]bool // hosts that refuse a range from a blob's start
}

// session is what a handshake has led to: a way to ask about one repository.
type session struct {
	http   *http.Client
	puller *remote.Puller
	made   time.Time
	used   time.Time
}

// counters are the answers of each host by status; 0 is none.
type counters struct {
	mu      sync.Mutex
	answers map[string]map[int]int64
}

func (c *counters) answer(host string, status int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.answers[host] == nil {
		c.answers[host] = make(map[int]int64)
	}
	c.answers[host][status]++
}

// Stats is what a client has done since it was made.
type Stats struct {
	Answers  map[string]map[int]int64 // by host and HTTP status; 0: no answer
	Sessions int                      // handshakes kept
}

// New makes a client. It contacts nobody.
func New(cfg Config) (*Client, error) {
	if len(cfg.Registries) == 0 {
		return nil, errors.New("no upstream registry")
	}
	if cfg.Transport == nil {
		cfg.Transport = newTransport()
	}
	if cfg.UserAgent == "" {
		cfg.UserAgent = "larder"
	}
	log := cfg.Logger
	if log == nil {
		log = zap.NewNop()
	}
	c := &Client{cfg: cfg, log: log, sessions: make(map[string]*session), whole: make(map[string]bool), bodies: make(map[string]*semaphore.Weighted)}
	for _, r := range cfg.Registries {
		c.bodies[r.Host] = semaphore.NewWeighted(int64(cmp.Or(cfg.Connections, defaultConnections)))
	}
	c.count.answers = make(map[string]map[int]int64)
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	return c, nil
}

// Close ends running handshakes, waits for them, and closes idle connections.
func (c *Client) Close() error {
	c.mu.Lock() // so that no handshake starts between the cancel and the wait
	c.cancel(ErrClosed)
	c.mu.Unlock()
	c.wg.Wait()
	if t, ok := c.cfg.Transport.(interface{ CloseIdleConnections() }); ok {
		t.CloseIdleConnections()
	}
	return nil
}

// Stats says what the client has done.
func (c *Client) Stats() Stats {
	s := Stats{Answers: make(map[string]map[int]int64)}
	c.count.mu.Lock()
	for host, by := range c.count.answers {
		s.Answers[host] = maps.Clone(by)
	}
	c.count.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	s.Sessions = len(c.sessions)
	return s
}

// Registries are those listed, the default one first.
func (c *Client) Registries() []Registry { return c.cfg.Registries }

// Repository picks the upstream as clients mean it: ns (containerd's ?ns=) if
// not empty, else the first element of name if that is a listed host, else the
// default one. The error is ErrNotListed or ErrName; nobody is contacted.
func (c *Client) Repository(ns, name string) (*Repository, error) {
	registry, name, err := resolve(c.cfg.Registries, ns, name)
	if err != nil {
		return nil, err
	}
	return &Repository{client: c, registry: registry, name: name}, nil
}

// CheckCredentials makes a handshake with the default registry if there are
// credentials for it, so that wrong ones are known before the first pull.
func (c *Client) CheckCredentials(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, answerTimeout, errTimeout)
	defer cancel()
	registry := c.cfg.Registries[0]
	auth, err := c.credentials(ctx, registry)
	if err != nil || auth == authn.Anonymous {
		return err
	}
	r := &Repository{client: c, registry: registry}
	s, err := c.handshake(ctx, r, auth, nil)
	if err != nil {
		return err
	}
	// With Basic, nobody has been shown the password yet.
	ctx, ex := withExchange(ctx)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, registry.URL.String()+"/v2/", nil)
	if err != nil {
		return err
	}
	res, err := s.http.Do(req)
	if err == nil {
		err = transport.CheckError(res, http.StatusOK)
		res.Body.Close()
	}
	if err != nil {
		return r.failure(ctx, "credentials check", ex, err)
	}
	return nil
}

func (c *Client) credentials(ctx context.Context, registry Registry) (authn.Authenticator, error) {
	if c.cfg.Keychain == nil {
		return authn.Anonymous, nil
	}
	auth, err := c.cfg.Keychain.Resolve(ctx, registry.Host)
	if err != nil {
		return nil, fmt.Errorf("credentials for %s: %w", registry.Host, discreet(err))
	}
	return auth, nil
}

// session returns the handshake for r, making it if there is none. Many who
// need the same one at the same time make one, which no caller's leaving ends.
func (c *Client) session(ctx context.Context, r *Repository) (*session, error) {
	key := r.String()
	c.mu.Lock()
	if s := c.sessions[key]; s != nil {
		s.used = time.Now()
		c.mu.Unlock()
		return s, nil
	}
	c.mu.Unlock()
	result := c.flights.DoChan(key, func() (any, error) { return c.newSession(r) })
	select {
	case res := <-result:
		if res.Err != nil {
			return nil, res.Err
		}
		return res.Val.(*session), nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (c *Client) newSession(r *Repository) (*session, error) {
	c.mu.Lock()
	if c.ctx.Err() != nil {
		c.mu.Unlock()
		return nil, ErrClosed
	}
	// A flight leaves after its session is kept: with the lock held, in neither
	// means that there is none.
	if s := c.sessions[r.String()]; s != nil {
		s.used = time.Now()
		c.mu.Unlock()
		return s, nil
	}
	c.wg.Add(1)
	c.mu.Unlock()
	defer c.wg.Done()

	ctx, cancel := context.WithTimeoutCause(c.ctx, answerTimeout, errTimeout)
	defer cancel()
	auth, err := c.credentials(ctx, r.registry)
	if err != nil {
		return nil, &Error{Op: "handshake", Repository: r.String(), Err: err}
	}
	repo, err := r.ggcr()
	if err != nil {
		return nil, &Error{Op: "handshake", Repository: r.String(), Err: err}
	}
	s, err := c.handshake(ctx, r, auth, []string{repo.Scope(transport.PullScope)})
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.makeRoom()
	c.sessions[r.String()] = s
	return s, nil
}

// makeRoom forgets the handshakes that were not used for long and, if there are
// too many all the same, the one unused for longest. Needs mu.
func (c *Client) makeRoom() {
	oldest := ""
	for key, s := range c.sessions {
		switch {
		case time.Since(s.used) > sessionIdle:
			delete(c.sessions, key)
		case oldest == "" || s.used.Before(c.sessions[oldest].used):
			oldest = key
		}
	}
	if len(c.sessions) >= maxSessions {
		delete(c.sessions, oldest)
	}
}

// handshake pings the registry and gets the token that it asks for.
func (c *Client) handshake(ctx context.Context, r *Repository, auth authn.Authenticator, scopes []string) (*session, error) {
	ctx, ex := withExchange(ctx)
	registry, err := r.registry.ggcr()
	if err != nil {
		return nil, &Error{Op: "handshake", Repository: r.String(), Err: err}
	}
	base := transport.NewUserAgent(&wire{registry: r.registry, next: c.cfg.Transport, count: &c.count}, c.cfg.UserAgent)
	rt, err := transport.NewWithContext(ctx, registry, auth, base, scopes)
	if err != nil {
		e := r.failure(ctx, "handshake", ex, err)
		if e.Status == http.StatusNotFound { // of /v2/: says nothing of the repository
			e.Status, e.Err = 0, errors.New("no registry there: /v2/ is not found")
		}
		return nil, e
	}
	puller, err := remote.NewPuller(remote.WithTransport(rt))
	if err != nil {
		return nil, &Error{Op: "handshake", Repository: r.String(), Err: err}
	}
	now := time.Now()
	return &session{
		http:   &http.Client{Transport: rt, CheckRedirect: anyRedirect},
		puller: puller,
		made:   now,
		used:   now,
	}, nil
}

// sendsOnlyWhole reports whether the host has refused to send the beginning of a
// blob, as some do if there is less of it than was asked for. It is then asked
// for all.
func (c *Client) sendsOnlyWhole(host string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.whole[host]
}

func (c *Client) noteOnlyWhole(host string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.whole[host] = true
}

// drop forgets a handshake, so that the next question makes a new one.
func (c *Client) drop(r *Repository, s *session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sessions[r.String()] == s {
		delete(c.sessions, r.String())
	}
}

func (r Registry) ggcr() (name.Registry, error) {
	if r.URL.Scheme == "http" {
		return name.NewRegistry(r.URL.Host, name.Insecure)
	}
	return name.NewRegistry(r.URL.Host)
}
