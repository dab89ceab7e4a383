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
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"go.uber.org/zap"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sync/singleflight"
)

const (
	// defaultConnections is how many bodies of blobs one registry sends at once.
	defaultConnections = 32

	// retryPause is how long a question waits that is asked a second time.
	retryPause = 300 * time.Millisecond
)

// Keychain says which credentials a registry is shown. It is asked by listed
// host or, for a mirror of one, by the mirror's.
type Keychain interface {
	Resolve(ctx context.Context, host string) (authn.Authenticator, error)
}

// Config says whom a Client may contact, and how.
type Config struct {
	Registries []Registry        // at least one; the first is the default
	Parent     *url.URL          // another larder, which is asked first about each of them; nil: none
	Keychain   Keychain          // nil: nobody is shown credentials
	Transport  http.RoundTripper // nil: larder's own
	UserAgent  string            // "": larder

	// Connections is how many blobs, or parts of blobs, are received from one
	// registry at a time; more wait for their turn. 0: 32.
	Connections int

	// Floor is how many pulls of a rate limit are kept for what is not cached:
	// see Client.Spare. 0: none.
	Floor int

	Observe func(Observation) // nil: nobody counts

	Logger *zap.Logger // nil: none
}

// Observation is one question at one place, for those who count. It ends with
// the answer, of a blob with its header.
type Observation struct {
	Host string
	Op   string // as in "get manifest"
	Took time.Duration
	// Failure is what became of it in a word, "" for an answer: timeout,
	// unreachable, unasked (the upstream is left alone), ratelimit, denied,
	// notfound, upstream (5xx), wrong (an answer that can't be used), left.
	Failure string
}

// Client speaks to the listed registries. Its methods may be called by several
// goroutines.
type Client struct {
	cfg     Config
	log     *zap.Logger
	hop     string          // larder's name in Via headers
	ctx     context.Context // of all handshakes; ends with Close
	cancel  context.CancelCauseFunc
	wg      sync.WaitGroup // the handshakes
	flights singleflight.Group
	count   counters
	places  map[string][]*place            // by host, in the order of the list; the parent is first
	bodies  map[string]*semaphore.Weighted // by host; fair: who asks first is first
	room    *semaphore.Weighted            // bytes of large documents

	mu       sync.Mutex // guards the fields below, and the sessions' used
	sessions map[string]*session
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
	Places   []Place                  // in the order of the list
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
	c := &Client{
		cfg: cfg, log: log, hop: newHop(), sessions: make(map[string]*session),
		places: make(map[string][]*place), bodies: make(map[string]*semaphore.Weighted),
		room: semaphore.NewWeighted(allRoom),
	}
	parent := new(breaker)
	for _, r := range cfg.Registries {
		if c.places[r.Host] = newPlaces(r, log); cfg.Parent != nil {
			c.places[r.Host] = slices.Insert(c.places[r.Host], 0, newParent(cfg.Parent, r.Host, parent, log))
		}
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
	for _, r := range c.cfg.Registries {
		for _, p := range c.places[r.Host] {
			s.Places = append(s.Places, p.stats())
		}
	}
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
	r := &Repository{client: c, registry: registry, name: name}
	if c.cfg.Parent != nil {
		r.relay = new(relay)
	}
	return r, nil
}

// CheckCredentials makes a handshake with the default registry, wherever it is,
// if there are credentials for it, so that wrong ones are known before the first
// pull.
func (c *Client) CheckCredentials(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, answerTimeout, errTimeout)
	defer cancel()
	r := &Repository{client: c, registry: c.cfg.Registries[0]}
	var errs []error
	for _, p := range r.places() {
		err := c.checkCredentials(ctx, r, p)
		if err != nil && p.parent {
			err = fmt.Errorf("at the parent: %w", err)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (c *Client) checkCredentials(ctx context.Context, r *Repository, p *place) error {
	auth, err := c.credentials(ctx, p)
	if err != nil || auth == authn.Anonymous {
		return err
	}
	s, err := c.handshake(ctx, r, p, auth, nil)
	if err != nil {
		return err
	}
	// With Basic, nobody has been shown the password yet.
	ctx, ex := withExchange(ctx)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url.String()+"/v2/", nil)
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

func (c *Client) credentials(ctx context.Context, p *place) (authn.Authenticator, error) {
	if c.cfg.Keychain == nil {
		return authn.Anonymous, nil
	}
	auth, err := c.cfg.Keychain.Resolve(ctx, p.credentials)
	if err != nil {
		return nil, fmt.Errorf("credentials for %s: %w", p.credentials, discreet(err))
	}
	return auth, nil
}
