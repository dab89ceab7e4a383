package doctor

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Registry is the name of the listener that clients pull from.
const Registry = "registry"

// Listener is where larder answers, or is going to.
type Listener struct {
	Name     string // Registry, or another
	Variable string // by which it is set
	URL      string // to ask, as http://127.0.0.1:5000/v2/
	// Running is that larder runs, and must answer.
	Running bool
	// Certificate is that it answers only who shows one, which nobody does here.
	Certificate bool
}

// newHTTP is a client for larder itself: no proxy, any certificate, no redirects.
func newHTTP() *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			TLSClientConfig:   insecure(),
			DisableKeepAlives: true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// insecure takes any certificate: it is this machine that is asked.
func insecure() *tls.Config { return &tls.Config{InsecureSkipVerify: true} }

func (cfg Config) listeners(ctx context.Context) []Check {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	checks := make([]Check, len(cfg.Listeners))
	var wg sync.WaitGroup
	for i, l := range cfg.Listeners {
		wg.Go(func() { checks[i] = l.check(ctx) })
	}
	wg.Wait()
	return checks
}

func (l Listener) check(ctx context.Context) Check {
	c := Check{Name: "listener " + l.Name, Status: OK}
	began := time.Now()
	status, isLarder, err := l.ask(ctx)
	switch {
	case err == nil && isLarder:
		c.Detail = fmt.Sprintf("%s answers (%d)", l.URL, status)
		c.Steps = []Step{step("answer", time.Since(began))}
	case err == nil:
		c.Status, c.Detail = Failed, fmt.Sprintf("%s answers %d, and is not larder", l.URL, status)
		c.Do = "Another program has that port: stop it, or give larder another one with " + l.Variable + "."
	case !l.Running && errors.Is(err, syscall.ECONNREFUSED):
		c.Status, c.Detail = Skipped, "larder is not running; the port of "+l.URL+" is free"
	default:
		c.Status, c.Detail = Failed, fmt.Sprintf("%s: %v", l.URL, err)
		c.Do = "Look at larder's log, and at what else listens there (ss -ltnp); " + l.Variable + " says where larder does."
	}
	return c
}

// ask reports what answers, if something does.
func (l Listener) ask(ctx context.Context) (status int, isLarder bool, err error) {
	if l.Certificate {
		return http.StatusUnauthorized, true, l.connect(ctx)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, l.URL, nil)
	if err != nil {
		return 0, false, err
	}
	res, err := newHTTP().Do(req)
	if err != nil {
		return 0, false, withoutURL(err)
	}
	defer res.Body.Close()
	switch {
	case res.StatusCode == http.StatusUnauthorized:
		isLarder = strings.Contains(res.Header.Get("WWW-Authenticate"), "larder")
	case l.Name == Registry: // many things answer 200
		isLarder = res.StatusCode == http.StatusOK && res.Header.Get("Docker-Distribution-Api-Version") != ""
	default:
		isLarder = res.StatusCode == http.StatusOK
	}
	return res.StatusCode, isLarder, nil
}

// connect gets as far as one can without a certificate.
func (l Listener) connect(ctx context.Context) error {
	u, err := url.Parse(l.URL)
	if err != nil {
		return err
	}
	dialer := &tls.Dialer{Config: insecure()}
	conn, err := dialer.DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return err
	}
	return conn.Close()
}

// withoutURL drops the URL that net/http puts into its errors: it is said already.
func withoutURL(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	return err
}
