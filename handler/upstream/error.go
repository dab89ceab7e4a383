package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

var (
	errTimeout  = errors.New("no answer in time")
	errStalled  = errors.New("no byte in time")
	errTooLarge = errors.New("answer is too large")
	errEncoding = errors.New("answer is compressed though that was not asked for")
	errForeign  = errors.New("credentials are not for that host")
	errScheme   = errors.New("upstream is configured with another scheme")
	errRedirect = errors.New("redirect refused")
	errMismatch = errors.New("answer has another digest")

	// codePattern is the form of the specification's error codes; upstream's own
	// words do not get into an Error.
	codePattern = regexp.MustCompile(`^[A-Z][A-Z0-9_]{0,63}$`)
	urlPattern  = regexp.MustCompile(`[a-zA-Z0-9+.-]*://\S*|\?\S*|(?s:\n.*)`)

	// ErrNoRange says that upstream does not give the part of a blob that was
	// asked for. It may give all of it.
	ErrNoRange = errors.New("upstream does not give the part that was asked for")

	// ErrClosed says that the client was closed before upstream had answered.
	ErrClosed = errors.New("upstream client closed")
)

// Error is what a registry answered, or that it did not.
type Error struct {
	Op         string // as in "get manifest"
	Repository string // with its host
	Status     int    // 0: no answer, or none that could be used
	Code       string // the first of the answer's error codes, if it has one
	Header     http.Header
	Err        error // why there is no answer; nil if there is one

	began    time.Time     // when the question was put, or the handshake for it was begun
	hold     time.Duration // a 429: for how long
	silent   bool          // a connection gave no answer
	unjudged bool          // nobody was asked, or the caller has left
}

// Error says what was asked of whom and what came of it. It holds no URL: these
// may be signed.
func (e *Error) Error() string {
	s := e.Op + " of " + e.Repository + ": "
	switch {
	case e.Status == 0, errors.Is(e.Err, errUnasked):
		return s + e.Err.Error()
	case e.Code != "":
		return fmt.Sprintf("%supstream answered %d %s", s, e.Status, e.Code)
	default:
		return fmt.Sprintf("%supstream answered %d", s, e.Status)
	}
}

// Unwrap returns why there is no answer.
func (e *Error) Unwrap() error { return e.Err }

// Timeout reports whether upstream took too long.
func (e *Error) Timeout() bool {
	if e.Status == http.StatusGatewayTimeout || errors.Is(e.Err, errTimeout) || errors.Is(e.Err, errStalled) || errors.Is(e.Err, context.DeadlineExceeded) {
		return true
	}
	ne, ok := errors.AsType[net.Error](e.Err)
	return ok && ne.Timeout()
}

// Unreachable reports whether err is that upstream could not answer (no answer
// that can be used, 5xx, 429), as opposed to a no.
func Unreachable(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && (e.Status == 0 || e.Status >= 500 || e.Status == http.StatusTooManyRequests) && !errors.Is(err, ErrClosed)
}

// Unasked reports whether err is that upstream is left alone for now.
func Unasked(err error) bool { return errors.Is(err, errUnasked) }

// Refused reports whether err is upstream's explicit no: not there, or not for
// us.
func Refused(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && (e.Status == http.StatusNotFound || e.denied())
}

func (e *Error) denied() bool {
	return e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden
}

// passing reports whether asking again soon may help. What took long does not.
func (e *Error) passing() bool {
	switch e.Status {
	case 0:
		return !e.Timeout() && !errors.Is(e.Err, errForeign) && !errors.Is(e.Err, errTooLarge) && !errors.Is(e.Err, errEncoding) && !errors.Is(e.Err, errRedirect) && !errors.Is(e.Err, ErrClosed) && !errors.Is(e.Err, ErrBusy) && !errors.Is(e.Err, errUnasked) && !errors.Is(e.Err, ErrNoRange) && !errors.Is(e.Err, errDocument)
	case http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable:
		return e.Header.Get("Retry-After") == ""
	}
	return false
}

// failed reports whether upstream, or who it redirects to, had no answer. A loop
// is none of its faults.
func (e *Error) failed() bool {
	return e.Status == 0 && (e.silent || e.Timeout()) || e.Status >= 500 && e.Status != http.StatusLoopDetected && !errors.Is(e.Err, ErrNoRange)
}

// kind is the Failure of an Observation. e may be nil.
func (e *Error) kind() string {
	switch {
	case e == nil:
		return ""
	case errors.Is(e.Err, errUnasked):
		return "unasked"
	case e.Status == http.StatusTooManyRequests:
		return "ratelimit"
	case e.Status == http.StatusNotFound:
		return "notfound"
	case e.denied():
		return "denied"
	case e.unjudged:
		return "left"
	case e.Timeout():
		return "timeout"
	case e.Status >= 500:
		return "upstream"
	case e.silent:
		return "unreachable"
	default:
		return "wrong"
	}
}

// of is a copy for the verdict on a question that began then, and whose caller
// may have left before anybody could know what would have become of it. The Error
// itself may be that of others, too, who wait for the same handshake.
func (e *Error) of(began time.Time, left bool) *Error {
	own := *e
	if began.Before(own.began) {
		own.began = began
	}
	own.unjudged = own.unjudged || left
	return &own
}

// cause is the reason in short, for others who are not answered because of it.
func (e *Error) cause() error {
	switch {
	case e.Status == http.StatusGatewayTimeout:
		return errTimeout
	case e.Status != 0:
		return fmt.Errorf("upstream answered %d", e.Status)
	}
	return e.Err
}

// failure makes an Error of what ggcr or net/http say went wrong.
func (r *Repository) failure(ctx context.Context, op string, ex *exchange, err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	e := &Error{Op: op, Repository: r.String(), began: ex.began}
	answer, answered := errors.AsType[*transport.Error](err)
	switch {
	case answered && asked(answer.Request, r.name):
		e.Status, e.Header = answer.StatusCode, ex.answerHeader()
		if errors.Is(err, ErrNoRange) {
			e.Err = ErrNoRange
		}
		if len(answer.Errors) > 0 && codePattern.MatchString(string(answer.Errors[0].Code)) {
			e.Code = string(answer.Errors[0].Code)
		}
	case answered: // a token server: whatever it says, it says nothing of the manifest or blob
		e.Op = "authentication for " + op
		if s := answer.StatusCode; s == http.StatusUnauthorized || s == http.StatusForbidden || s == http.StatusTooManyRequests || s >= 500 {
			e.Status, e.Header = s, ex.answerHeader()
		} else {
			e.Err = fmt.Errorf("token server answered %d", s)
		}
	default:
		e.Err = discreet(err)
		if wireErr, silent := ex.failure(); wireErr != nil { // ggcr may tell of its try with https instead
			e.Err, e.silent = discreet(wireErr), silent
		}
		if cause := context.Cause(ctx); cause != nil {
			e.Err = cause
		}
	}
	if e.Status == http.StatusTooManyRequests {
		e.hold = retryAfter(e.Header)
		e.Header = e.Header.Clone()
		e.Header.Set("Retry-After", seconds(e.hold))
	}
	return e
}

// asked reports whether req is the question or a ping, or where these were
// redirected, and not a token's request, which may be below /v2/ as well.
func asked(req *http.Request, repository string) bool {
	if req == nil {
		return true
	}
	req, _ = first(req)
	path, _ := strings.CutPrefix(req.URL.Path, "/extensions")
	return req.URL.Path == "/v2/" || strings.HasPrefix(path, "/v2/"+repository+"/")
}

// discreet drops URLs and queries, which may be signed, and further lines, which
// may be a token server's answer, from what net/http and ggcr say.
func discreet(err error) error {
	err = withoutURL(err)
	text := err.Error()
	if clean := urlPattern.ReplaceAllString(text, "[…]"); clean != text {
		return errors.New(clean)
	}
	return err
}

// withoutURL drops the URL that net/http puts into its errors.
func withoutURL(err error) error {
	for {
		e, ok := err.(*url.Error)
		if !ok {
			return err
		}
		err = e.Err
	}
}
