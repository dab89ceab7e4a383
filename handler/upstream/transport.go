package upstream

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/publicsuffix"
)

const (
	dialTimeout = 10 * time.Second

	// answerTimeout bounds one question, handshake and retries included, until
	// the answer's headers are there: containerd gives up after 30 s.
	answerTimeout = 20 * time.Second

	// stallTimeout is how long a blob's body may give no byte.
	stallTimeout = 25 * time.Second

	maxRedirects = 10
	maxDocument  = 8 << 20  // a manifest
	maxListing   = 4 << 20  // tags, referrers
	maxToken     = 64 << 10 // anything else: pings, tokens
)

// bodyHeader marks a request whose answer has a limit of its own. It is for
// the transport below and never leaves it.
const bodyHeader = "X-Larder-Body"

// acceptManifests are all the types that a manifest may have: upstream is asked
// with all of them, whatever the client accepts, so that an answer does not
// depend on who asked first.
var acceptManifests = strings.Join([]string{
	"application/vnd.oci.image.index.v1+json",
	"application/vnd.oci.image.manifest.v1+json",
	"application/vnd.oci.artifact.manifest.v1+json",
	"application/vnd.docker.distribution.manifest.list.v2+json",
	"application/vnd.docker.distribution.manifest.v2+json",
	"application/vnd.docker.distribution.manifest.v1+prettyjws;q=0.5",
	"application/vnd.docker.distribution.manifest.v1+json;q=0.5",
	"*/*;q=0.1",
}, ", ")

// newTransport makes the connections of a client. Bodies come as they are sent
// (no compression is asked for), over HTTP/1.1: many blobs on one HTTP/2
// connection would share its one window.
func newTransport() *http.Transport {
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout:    dialTimeout,
		DisableCompression:     true,
		MaxIdleConnsPerHost:    32,
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		ReadBufferSize:         64 << 10,
	}
}

// exchange is what a question's caller learns of the answer beside ggcr's
// result. It travels in the context.
type exchange struct {
	began time.Time
	hops  []string // who has passed the question on

	mu     sync.Mutex // guards what follows
	method string
	status int
	header http.Header
	err    error
	silent bool   // err is that of a connection
	shown  string // the last question's Authorization
}

type exchangeKey struct{}

func withExchange(ctx context.Context) (context.Context, *exchange) {
	ex := &exchange{began: time.Now()}
	return context.WithValue(ctx, exchangeKey{}, ex), ex
}

func (ex *exchange) record(method string, res *http.Response, silent bool, err error) {
	ex.mu.Lock()
	defer ex.mu.Unlock()
	ex.silent = silent
	if ex.err = err; err == nil {
		ex.method, ex.status, ex.header = method, res.StatusCode, res.Header
	}
}

// show notes the credentials of a question that is about to be sent.
func (ex *exchange) show(authorization string) {
	ex.mu.Lock()
	defer ex.mu.Unlock()
	ex.shown = authorization
}

func (ex *exchange) hasShown() string {
	ex.mu.Lock()
	defer ex.mu.Unlock()
	return ex.shown
}

// answerStatus is 0 if the last answer was to another method, as a token's is
// behind a HEAD.
func (ex *exchange) answerStatus(method string) int {
	ex.mu.Lock()
	defer ex.mu.Unlock()
	if ex.method != method {
		return 0
	}
	return ex.status
}

// failure is why the last request had no answer, if it had none, and whether that
// is because nobody answered.
func (ex *exchange) failure() (err error, silent bool) {
	ex.mu.Lock()
	defer ex.mu.Unlock()
	return ex.err, ex.silent
}

func (ex *exchange) answerHeader() http.Header {
	ex.mu.Lock()
	defer ex.mu.Unlock()
	return ex.header
}

// wire is below ggcr's handshake and above the connections. It sees every
// request that is meant for one repository of one place, for its token server, or
// for where these redirect: the place to decide what may leave.
type wire struct {
	client     *Client
	place      *place
	repository string
	tokens     tokens
}

// RoundTrip implements http.RoundTripper.
func (t *wire) RoundTrip(in *http.Request) (*http.Response, error) {
	ex, ok := in.Context().Value(exchangeKey{}).(*exchange)
	if !ok {
		_, ex = withExchange(in.Context())
	}
	var res *http.Response
	var silent bool
	var err error
	if asked(in, t.repository) {
		ex.show(in.Header.Get("Authorization"))
		res, silent, err = t.roundTrip(in, ex.hops)
	} else {
		res, silent, err = t.token(in, ex.hasShown(), ex.hops)
	}
	ex.record(in.Method, res, silent, err)
	return res, err
}

// roundTrip sends a request, if it may leave. silent is that it has and there was
// no answer.
func (t *wire) roundTrip(in *http.Request, hops []string) (_ *http.Response, silent bool, _ error) {
	if err := t.allow(in); err != nil {
		return nil, false, err
	}
	question, redirects := first(in)
	limit := int64(maxToken)
	req := in.Clone(in.Context())
	if t.place.parent && redirects == 0 && asked(in, t.repository) {
		withNamespace(req.URL, t.place.host)
	}
	switch kind := req.Header.Get(bodyHeader); {
	case kind == bodyBlob:
		limit = -1
	case kind == bodyListing:
		limit = maxListing
	case strings.Contains(question.URL.Path, "/manifests/"):
		limit = maxDocument
		req.Header.Set("Accept", acceptManifests)
	}
	req.Header.Del(bodyHeader)
	req.Header.Set("Via", t.client.viaHeader(hops))
	req.Header.Del("Referer") // it would name the registry to a redirect's target

	began := time.Now()
	res, err := t.client.cfg.Transport.RoundTrip(req)
	if err != nil {
		t.client.count.answer(t.place.host, 0)
		return nil, true, err
	}
	t.client.count.answer(t.place.host, res.StatusCode)
	if redirects == 0 && asked(in, t.repository) {
		t.place.answered(res, time.Since(began))
	}
	if encoding := res.Header.Get("Content-Encoding"); encoding != "" && encoding != "identity" && req.Method != http.MethodHead && res.StatusCode < http.StatusMultipleChoices {
		res.Body.Close()
		return nil, false, errEncoding
	}
	if res.StatusCode >= http.StatusBadRequest { // the status counts, however much is said about it
		res.Body = &readCloser{io.LimitReader(res.Body, maxToken), res.Body}
	} else if limit >= 0 && req.Method != http.MethodHead {
		if res.ContentLength > limit {
			res.Body.Close()
			return nil, false, errTooLarge
		}
		body := &limitedBody{ReadCloser: res.Body, left: limit, small: limit}
		if room, ok := in.Context().Value(roomKey{}).(*room); ok {
			body.small, body.grow = smallDocument, func() error { return room.take(in.Context(), limit) }
		}
		res.Body = body
	}
	return res, false, nil
}

// allow refuses what must not leave. ggcr tries https before http, follows any
// realm with the password, and checks IP literals only; here the rule is that a
// secret goes to its registry's own site and nowhere else.
func (t *wire) allow(req *http.Request) error {
	origin := t.place.url
	if req.URL.Scheme != "http" && req.URL.Scheme != "https" {
		return errRedirect
	}
	if req.URL.Host == origin.Host && req.URL.Scheme != origin.Scheme && req.Response == nil {
		return errScheme
	}
	question, redirects := first(req)
	if redirects > maxRedirects {
		return errRedirect
	}
	if question.URL.Path == "/v2/" && origin.Scheme == "https" && req.URL.Scheme == "http" {
		return errScheme // whoever answers there could name any realm
	}
	authorization := req.Header.Get("Authorization")
	secret := req.Method == http.MethodPost || authorization != "" && !strings.HasPrefix(authorization, "Bearer ")
	if secret && redirects > 0 && !asked(req, t.repository) {
		return fmt.Errorf("%w: the token server of %s sends a password elsewhere", errRedirect, t.place.host)
	}
	if secret && !sameSite(req.URL, origin) && (t.place.parent || !t.client.trusts(req.URL, origin)) {
		return fmt.Errorf("%w: %s asks for a token at %s", errForeign, t.place.host, req.URL.Hostname())
	}
	return nil
}

// trusts reports whether u is at a listed registry, and named over a connection
// that nobody else can have spoken on.
func (c *Client) trusts(u, origin *url.URL) bool {
	if u.Scheme != "https" || origin.Scheme != "https" {
		return false
	}
	return slices.ContainsFunc(c.cfg.Registries, func(r Registry) bool {
		return slices.ContainsFunc(r.URLs, func(listed *url.URL) bool { return listed.Scheme == u.Scheme && listed.Host == u.Host })
	})
}

// sameSite reports whether u is at the origin itself or, if both are on https, at
// a host of the same registrable domain, as auth.docker.io is for
// registry-1.docker.io.
func sameSite(u, origin *url.URL) bool {
	if u.Scheme == origin.Scheme && u.Host == origin.Host {
		return true
	}
	if u.Scheme != "https" || origin.Scheme != "https" || net.ParseIP(u.Hostname()) != nil {
		return false
	}
	site, err := publicsuffix.EffectiveTLDPlusOne(u.Hostname())
	if err != nil {
		return false
	}
	own, err := publicsuffix.EffectiveTLDPlusOne(origin.Hostname())
	return err == nil && site == own
}

// first follows redirects back to the request that was made, and counts them.
func first(req *http.Request) (_ *http.Request, redirects int) {
	for req.Response != nil && req.Response.Request != nil {
		req = req.Response.Request
		redirects++
	}
	return req, redirects
}

// anyRedirect leaves redirects to wire, which sees those of ggcr's own clients,
// too. Credentials are put on each hop anew, by host.
func anyRedirect(*http.Request, []*http.Request) error { return nil }

// readCloser is a body of which only a part is read.
type readCloser struct {
	io.Reader
	io.Closer
}

// limitedBody fails, rather than ends, behind its limit. One that is not small
// has to be let grow.
type limitedBody struct {
	io.ReadCloser
	left, small int64
	grow        func() error
}

// Read implements io.Reader.
func (b *limitedBody) Read(p []byte) (int, error) {
	if b.left < 0 {
		return 0, errTooLarge
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left+1)])
	if b.left -= int64(n); b.left < 0 {
		return n - 1, errTooLarge
	}
	if b.small -= int64(n); b.small < 0 {
		if err := b.grow(); err != nil {
			return 0, err
		}
	}
	return n, err
}

// watchedBody is a blob's body. It ends the request when no byte arrives for
// stallTimeout.
type watchedBody struct {
	body   io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	stall  *time.Timer

	release func() // for others to open bodies
	broke   func() // called when the body fails
}

// Read implements io.Reader.
func (b *watchedBody) Read(p []byte) (int, error) {
	b.stall.Reset(stallTimeout)
	n, err := b.body.Read(p)
	b.stall.Stop() // the time that the reader takes is its own
	if err != nil && err != io.EOF {
		if cause := context.Cause(b.ctx); cause != nil {
			err = cause
		}
		if b.ctx.Err() == nil || err == errStalled {
			b.broke()
		}
		err = discreet(err)
	}
	return n, err
}

// Close ends the request, whatever is left of it.
func (b *watchedBody) Close() error {
	b.stall.Stop()
	b.cancel(nil)
	b.release()
	return b.body.Close()
}
