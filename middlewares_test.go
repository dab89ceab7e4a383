package main

import (
	"net/http"
	"strings"
	"testing"
)

func TestMiddlewareIsChosen(t *testing.T) {
	t.Parallel()
	l := startLarder(t, nil, "LARDER_MIDDLEWARE=recover,readonly")
	resp, _ := l.get(t, "/v2/")
	if resp.Header.Get("X-Request-Id") != "" || strings.Contains(l.stderr.String(), `"msg":"request"`) {
		t.Errorf("got %v and the log %s; want neither an id nor a line", resp.Header, l.stderr)
	}
	if status := l.send(t, "PUT /v2/ HTTP/1.1\r\nHost: x"); status != http.StatusMethodNotAllowed {
		t.Errorf("PUT: %d, want 405", status)
	}
}

func TestBadMiddlewareEndsTheStart(t *testing.T) {
	t.Parallel()
	environ := []string{
		"LARDER_MIDDLEWARE=recover,gzip,readonly", "LARDER_MIDDLEWARE_RECOVER_HARD=1", "LARDER_MIDDLEWARE_AUTH_REALM=x", "LARDER_MIDDLEWARE_BROTLI_LEVEL=11",
		"LARDER_DENY=docker.io/a/b", "LARDER_TAG_TTL=soon",
	}
	wantExit(t, execLarder(t, nil, environ...), 2,
		"entry 2", "requestid", "LARDER_MIDDLEWARE_RECOVER_HARD", "LARDER_MIDDLEWARE_AUTH_REALM", "LARDER_MIDDLEWARE_BROTLI_LEVEL", "without allow", "LARDER_TAG_TTL")
}
