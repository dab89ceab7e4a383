package upstream

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

const (
	// sessionIdle is how long a handshake is kept without being used.
	sessionIdle = time.Hour

	// maxSessions bounds how many are kept: clients may ask for any name.
	maxSessions = 1024

	// sessionYoung is how old a handshake must be for a 401 or 403 to be
	// blamed on it, and not on the credentials.
	sessionYoung = 10 * time.Second
)

// session is what a handshake has led to: a way to ask about one repository.
type session struct {
	http   *http.Client
	puller *remote.Puller
	key    string
	place  *place
	made   time.Time
	used   time.Time
}

// session returns the handshake for r at p, making it if there is none. Many who
// need the same one at the same time make one, which no caller's leaving ends.
func (c *Client) session(ctx context.Context, r *Repository, p *place) (*session, error) {
	key := p.key(r.name)
	c.mu.Lock()
	if s := c.sessions[key]; s != nil {
		s.used = time.Now()
		c.mu.Unlock()
		return s, nil
	}
	c.mu.Unlock()
	result := c.flights.DoChan(key, func() (any, error) { return c.newSession(r, p) })
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

func (c *Client) newSession(r *Repository, p *place) (*session, error) {
	c.mu.Lock()
	if c.ctx.Err() != nil {
		c.mu.Unlock()
		return nil, ErrClosed
	}
	// A flight leaves after its session is kept: with the lock held, in neither
	// means that there is none.
	if s := c.sessions[p.key(r.name)]; s != nil {
		s.used = time.Now()
		c.mu.Unlock()
		return s, nil
	}
	c.wg.Add(1)
	c.mu.Unlock()
	defer c.wg.Done()

	ctx, cancel := context.WithTimeoutCause(c.ctx, answerTimeout, errTimeout)
	defer cancel()
	auth, err := c.credentials(ctx, p)
	if err != nil {
		return nil, &Error{Op: opHandshake, Repository: r.String(), Err: err}
	}
	repo, err := p.repository(r.name)
	if err != nil {
		return nil, &Error{Op: opHandshake, Repository: r.String(), Err: err}
	}
	s, err := c.handshake(ctx, r, p, auth, []string{repo.Scope(transport.PullScope)})
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.makeRoom()
	c.sessions[s.key] = s
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
func (c *Client) handshake(ctx context.Context, r *Repository, p *place, auth authn.Authenticator, scopes []string) (*session, error) {
	ctx, ex := withExchange(ctx)
	registry, err := p.registry()
	if err != nil {
		return nil, &Error{Op: opHandshake, Repository: r.String(), Err: err}
	}
	base := transport.NewUserAgent(&wire{client: c, place: p, repository: r.name}, c.cfg.UserAgent)
	rt, err := transport.NewWithContext(ctx, registry, auth, base, scopes)
	if err != nil {
		e := r.failure(ctx, opHandshake, ex, err)
		if e.Status == http.StatusNotFound { // of /v2/: says nothing of the repository
			e.Status, e.Err = 0, errors.New("no registry there: /v2/ is not found")
		}
		return nil, e
	}
	puller, err := remote.NewPuller(remote.WithTransport(rt))
	if err != nil {
		return nil, &Error{Op: opHandshake, Repository: r.String(), Err: err}
	}
	now := time.Now()
	return &session{
		http:   &http.Client{Transport: rt, CheckRedirect: anyRedirect},
		puller: puller,
		key:    p.key(r.name),
		place:  p,
		made:   now,
		used:   now,
	}, nil
}

// drop forgets a handshake, so that the next question makes a new one.
func (c *Client) drop(s *session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sessions[s.key] == s {
		delete(c.sessions, s.key)
	}
}

// noteRefusedPart remembers of a place that it has refused to send a beginning.
func (s *session) noteRefusedPart(offset int64, err error) {
	if offset == 0 && errors.Is(err, ErrNoRange) {
		s.place.whole.Store(true)
	}
}
