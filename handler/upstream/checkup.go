package upstream

import (
	"context"
	"crypto/tls"
	"net/http"
	"net/http/httptrace"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// StepName is a part of a Checkup.
type StepName string

// The steps of a Checkup, in their order. On a connection that there is already, or
// by way of a proxy, some are not taken, or are the proxy's.
const (
	StepCredentials StepName = "credentials" // looking them up
	StepResolve     StepName = "resolve"
	StepConnect     StepName = "connect"
	StepTLS         StepName = "tls"
	StepAnswer      StepName = "answer"  // to /v2/
	StepSignIn      StepName = "sign in" // a token, and a question with it
)

// Step is one that was taken.
type Step struct {
	Name StepName
	Took time.Duration
}

// Checkup is how one URL of a registry answers when it is asked for that.
type Checkup struct {
	Host, URL string
	Parent    bool // it is the parent's, and of no registry
	Steps     []Step

	Failed StepName // the step that did not succeed; "": none
	Err    error    // why

	Credentials bool          // some are shown
	Dated       bool          // it said what time it is
	Skew        time.Duration // and was that much ahead; to the second
	Quota       Quota
}

// CheckUp asks the parent and every URL of every registry at the same time, as pulls
// would do, but with no regard to how they have fared before. known, which may be
// nil, is a repository whose tag its registry is asked about with a HEAD: some tell
// of rate limits only then. Others are signed in to if there are credentials for them.
func (c *Client) CheckUp(ctx context.Context, known *Repository, tag string) []*Checkup {
	var list []*Checkup
	var wg sync.WaitGroup
	for i, registry := range c.cfg.Registries {
		r, question := &Repository{client: c, registry: registry}, "/v2/"
		if known != nil && known.registry.Host == registry.Host {
			r.name, question = known.name, "/v2/"+known.name+"/manifests/"+tag
		}
		for _, p := range c.places[registry.Host] {
			if p.parent && i > 0 {
				continue // it is one
			}
			checkup := &Checkup{Host: p.host, URL: p.url.String(), Parent: p.parent}
			list = append(list, checkup)
			wg.Go(func() { // ends when ctx does, at the latest
				r, question := r, question
				if p.parent {
					r, question = &Repository{client: c, registry: Registry{Host: p.url.Host}}, "/v2/" // what it has is its own affair
				}
				checkup.Failed, checkup.Err = c.checkUp(ctx, checkup, r, p, question)
				checkup.Quota = p.quota.get()
			})
		}
	}
	wg.Wait()
	return list
}

func (c *Client) checkUp(ctx context.Context, checkup *Checkup, r *Repository, p *place, question string) (StepName, error) {
	auth, err := c.credentials(ctx, p)
	if err != nil {
		return StepCredentials, err
	}
	checkup.Credentials = auth != authn.Anonymous
	t := new(tracer)
	header, err := c.ping(ctx, r, p, t)
	var failed StepName
	checkup.Steps, failed = t.steps()
	if date, dateErr := http.ParseTime(header.Get("Date")); dateErr == nil {
		checkup.Dated, checkup.Skew = true, time.Until(date).Round(time.Second)
	}
	if err != nil {
		return failed, err
	}
	if !checkup.Credentials && question == "/v2/" {
		return "", nil // a token for nothing in particular is more than some give
	}
	began := time.Now()
	if err := c.signIn(ctx, r, p, auth, question); err != nil {
		return StepSignIn, err
	}
	checkup.Steps = append(checkup.Steps, Step{StepSignIn, time.Since(began)})
	return "", nil
}

// ping asks without credentials whether there is a registry.
func (c *Client) ping(ctx context.Context, r *Repository, p *place, t *tracer) (http.Header, error) {
	ctx, ex := withExchange(httptrace.WithClientTrace(ctx, t.trace()))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url.String()+"/v2/", nil)
	if err != nil {
		return nil, err
	}
	client := &http.Client{
		Transport:     transport.NewUserAgent(&wire{client: c, place: p, repository: r.name}, c.cfg.UserAgent),
		CheckRedirect: anyRedirect,
	}
	t.began = time.Now()
	res, err := client.Do(req)
	if err == nil {
		err = transport.CheckError(res, http.StatusOK, http.StatusUnauthorized)
		res.Body.Close()
	}
	if err != nil {
		return ex.answerHeader(), r.failure(ctx, "check", ex, err)
	}
	return res.Header, nil
}

// signIn asks a question with the credentials that pulls have. That there is no such
// tag is an answer.
func (c *Client) signIn(ctx context.Context, r *Repository, p *place, auth authn.Authenticator, question string) error {
	method := http.MethodGet
	var scopes []string
	if r.name != "" {
		repo, err := p.repository(r.name)
		if err != nil {
			return err
		}
		method, scopes = http.MethodHead, []string{repo.Scope(transport.PullScope)}
	}
	s, err := c.handshake(ctx, r, p, auth, scopes)
	if err != nil {
		return err
	}
	ctx, ex := withExchange(ctx)
	req, err := http.NewRequestWithContext(ctx, method, p.url.String()+question, nil)
	if err != nil {
		return err
	}
	res, err := s.http.Do(req)
	if err == nil {
		err = transport.CheckError(res, http.StatusOK, http.StatusNotFound)
		res.Body.Close()
	}
	if err != nil {
		return r.failure(ctx, "check", ex, err)
	}
	return nil
}

// tracer notes when the parts of the first question came to their ends.
type tracer struct {
	began time.Time

	mu                                sync.Mutex // guards what follows: dialling may outlive the question
	resolving, connecting, encrypting bool       // begun
	resolved, connected, encrypted    time.Time
	answered                          time.Time
}

func (t *tracer) trace() *httptrace.ClientTrace {
	note := func(change func()) {
		t.mu.Lock()
		defer t.mu.Unlock()
		change()
	}
	done := func(at *time.Time, err error) {
		note(func() {
			if err == nil && at.IsZero() {
				*at = time.Now()
			}
		})
	}
	return &httptrace.ClientTrace{
		DNSStart:             func(httptrace.DNSStartInfo) { note(func() { t.resolving = true }) },
		DNSDone:              func(info httptrace.DNSDoneInfo) { done(&t.resolved, info.Err) },
		ConnectStart:         func(_, _ string) { note(func() { t.connecting = true }) },
		ConnectDone:          func(_, _ string, err error) { done(&t.connected, err) },
		TLSHandshakeStart:    func() { note(func() { t.encrypting = true }) },
		TLSHandshakeDone:     func(_ tls.ConnectionState, err error) { done(&t.encrypted, err) },
		GotFirstResponseByte: func() { done(&t.answered, nil) },
	}
}

// steps are those that succeeded, and the one that did not, if one did not.
func (t *tracer) steps() (steps []Step, failed StepName) {
	t.mu.Lock()
	defer t.mu.Unlock()
	last := t.began
	for _, part := range []struct {
		name  StepName
		begun bool
		done  time.Time
	}{
		{StepResolve, t.resolving, t.resolved},
		{StepConnect, t.connecting, t.connected},
		{StepTLS, t.encrypting, t.encrypted},
		{StepAnswer, true, t.answered},
	} {
		switch {
		case !part.begun:
		case part.done.IsZero():
			return steps, part.name
		default:
			steps = append(steps, Step{part.name, part.done.Sub(last)})
			last = part.done
		}
	}
	return steps, StepAnswer // whatever it said
}
