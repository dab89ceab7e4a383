package upstream

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
)

// Seconds for which a token is good: one that does not say (Docker's token
// specification), and at most.
const (
	usualTokenLife = 60
	maxTokenLife   = 365 * 24 * 60 * 60
)

// tokens makes one request of what many need at the same time. When a token has
// expired, all who show it are refused, one after the other, and ggcr asks for a
// new one for each. Here those who were refused with another token than the last
// one get that.
type tokens struct {
	flights singleflight.Group

	mu       sync.Mutex // guards what follows
	question string     // what the last token was asked for with
	last     *tokenAnswer
}

// tokenAnswer is a token server's answer, to be read by several.
type tokenAnswer struct {
	token  string // "": it is none
	status int
	header http.Header
	body   []byte
	silent bool // there was none, for err
	err    error
}

func (a *tokenAnswer) response(req *http.Request) (_ *http.Response, silent bool, _ error) {
	if a.err != nil {
		return nil, a.silent, a.err
	}
	return &http.Response{
		Status: http.StatusText(a.status), StatusCode: a.status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: a.header.Clone(), Body: io.NopCloser(bytes.NewReader(a.body)), ContentLength: int64(len(a.body)), Request: req,
	}, false, nil
}

// token answers a request for a token. shown is the Authorization of the question
// that was refused.
func (t *wire) token(in *http.Request, shown string, hops []string) (_ *http.Response, silent bool, _ error) {
	question, req, err := tokenQuestion(in)
	if err != nil {
		return nil, false, err
	}
	t.tokens.mu.Lock()
	last := t.tokens.last
	// Who has shown none asks for the first, or for one that ggcr does not keep.
	if last != nil && t.tokens.question == question && shown != "" && shown != "Bearer "+last.token {
		t.tokens.mu.Unlock()
		return last.response(in)
	}
	t.tokens.mu.Unlock()
	flight := t.tokens.flights.DoChan(question, func() (any, error) { return t.fetchToken(req, question, hops), nil })
	select {
	case result := <-flight:
		return result.Val.(*tokenAnswer).response(in)
	case <-in.Context().Done():
		return nil, true, context.Cause(in.Context())
	}
}

// tokenQuestion is all that an answer depends on, and a copy of in to be sent,
// whose body is there still.
func tokenQuestion(in *http.Request) (string, *http.Request, error) {
	req := in.Clone(in.Context())
	question := in.Method + " " + in.URL.String() + "\n" + in.Header.Get("Authorization")
	if in.Body == nil {
		return question, req, nil
	}
	form, err := io.ReadAll(io.LimitReader(in.Body, maxToken))
	in.Body.Close()
	req.Body = io.NopCloser(bytes.NewReader(form))
	return question + "\n" + string(form), req, err
}

// fetchToken asks for a token on the client's own context, so that nobody's
// leaving takes it from others.
func (t *wire) fetchToken(req *http.Request, question string, hops []string) *tokenAnswer {
	c := t.client
	c.mu.Lock()
	if c.ctx.Err() != nil {
		c.mu.Unlock()
		return &tokenAnswer{err: ErrClosed}
	}
	c.wg.Add(1)
	c.mu.Unlock()
	defer c.wg.Done()
	ctx, cancel := context.WithTimeoutCause(c.ctx, answerTimeout, errTimeout)
	defer cancel()
	res, silent, err := t.roundTrip(req.WithContext(ctx), hops)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return &tokenAnswer{silent: silent, err: err}
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body) // limited by roundTrip
	if err != nil {
		return &tokenAnswer{err: err}
	}
	a := &tokenAnswer{status: res.StatusCode, header: res.Header, body: body}
	if life := a.readToken(); a.token != "" {
		t.place.gaveToken(time.Now().Add(life))
		t.tokens.mu.Lock()
		t.tokens.question, t.tokens.last = question, a
		t.tokens.mu.Unlock()
	}
	return a
}

// readToken finds the token, leaves only that, and says for how long it is good. A
// refresh token, which some servers send along, is more than is needed, and ggcr
// would keep it without a lock.
func (a *tokenAnswer) readToken() (life time.Duration) {
	var doc struct {
		Token       string `json:"token,omitempty"`
		AccessToken string `json:"access_token,omitempty"`
	}
	if a.status != http.StatusOK || json.Unmarshal(a.body, &doc) != nil {
		return 0
	}
	if a.token = doc.AccessToken; a.token == "" { // as ggcr prefers it
		a.token = doc.Token
	}
	var expiry struct {
		In int64 `json:"expires_in"`
	}
	if err := json.Unmarshal(a.body, &expiry); err != nil || expiry.In <= 0 {
		expiry.In = usualTokenLife
	}
	if only, err := json.Marshal(doc); err == nil && a.token != "" {
		a.body = only
	}
	return time.Duration(min(expiry.In, maxTokenLife)) * time.Second
}
