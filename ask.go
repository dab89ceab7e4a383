package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
)

// errNoAdmin says that a command has nobody to ask.
var errNoAdmin = errors.New("LARDER_ADMIN_ADDR is empty: there is no listener to ask")

// errLogin says what a listener wants that has answered 401.
var errLogin = errors.New("the admin listener wants a password: set LARDER_ADMIN_LOGIN to user:password")

// askAdmin sends a request to the admin listener of the larder that this
// configures. No proxy sees it, nor where a redirect leads: it has a password.
func (c *config) askAdmin(ctx context.Context, method, path string, query url.Values, body io.Reader) (*http.Response, error) {
	if c.AdminAddr == "" {
		return nil, errNoAdmin
	}
	u := url.URL{Scheme: "http", Host: reachable(c.AdminAddr), Path: path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, err
	}
	if user, password, ok := strings.Cut(c.AdminLogin, ":"); ok {
		req.SetBasicAuth(user, password)
	}
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, fmt.Errorf("no larder answers at LARDER_ADMIN_ADDR: %w", err)
	}
	if resp.StatusCode == http.StatusUnauthorized {
		return nil, errors.Join(errLogin, resp.Body.Close())
	}
	return resp, nil
}

// reachable is an address to connect to, for one to listen on.
func reachable(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if ip := net.ParseIP(host); err == nil && (host == "" || ip.IsUnspecified()) {
		return net.JoinHostPort("localhost", port)
	}
	return addr
}
