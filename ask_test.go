package main

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestDoctorSignsIn to a larder that wants a password of operators.
func TestDoctorSignsIn(t *testing.T) {
	t.Parallel()
	l := startLarder(t, nil, "LARDER_ADMIN_ADDR="+freeAddr(t), "LARDER_ADMIN_HTPASSWD="+passwordFile(t, "op", "s3cret"))
	const without = "this report is made without it"
	var stdout, stderr bytes.Buffer
	_ = examineAll(t.Context(), l.environ, &stdout, &stderr) // of an upstream that there may not be
	if !strings.Contains(stderr.String(), "LARDER_ADMIN_LOGIN") || !strings.Contains(stderr.String(), without) {
		t.Errorf("without a password: %s", &stderr)
	}
	stdout.Reset()
	stderr.Reset()
	_ = examineAll(t.Context(), append(l.environ, "LARDER_ADMIN_LOGIN=op:s3cret"), &stdout, &stderr)
	if stderr.Len() > 0 || !strings.Contains(stdout.String(), "ok       listener admin") || strings.Contains(stdout.String(), "s3cret") {
		t.Errorf("with one: %s%s", &stderr, &stdout)
	}
}

// TestPasswordStaysWithTheAdminListener, wherever that leads.
func TestPasswordStaysWithTheAdminListener(t *testing.T) {
	t.Parallel()
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { t.Errorf("asked: %s %s", r.Method, r.Header) }))
	defer elsewhere.Close()
	there := httptest.NewServer(http.RedirectHandler(elsewhere.URL+"/warm", http.StatusTemporaryRedirect))
	defer there.Close()
	environ := []string{"LARDER_ADMIN_ADDR=" + there.Listener.Addr().String(), "LARDER_ADMIN_LOGIN=op:s3cret", "LARDER_CACHE_DIR=" + t.TempDir()}
	var out bytes.Buffer
	if err := command(t.Context(), []string{"warm", "app:1"}, environ, &out, &out); err == nil {
		t.Errorf("warmed, with %s", &out)
	}
}
