package middleware_test

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"go.uber.org/zap"

	"larder/handler/middleware"
)

// byPath is as the handler identifies requests, but simpler.
func byPath(ctx context.Context, r *http.Request) context.Context {
	middleware.NoteOf(ctx).Repository = strings.TrimPrefix(r.URL.Path, "/")
	return ctx
}

func TestAllow(t *testing.T) {
	var asked []string
	reached := false
	s, logs := serve(t, func(http.ResponseWriter, *http.Request) { reached = true }, middleware.Options{
		Identify: byPath, Verify: everybody,
		MayPull: func(user, repository string) bool {
			asked = append(asked, user+" "+repository)
			return repository == "docker.io/"+user
		},
	}, "log", "auth", "allow")
	for path, want := range map[string]struct {
		status int
		asked  string
	}{
		"/docker.io/user":  {200, "user docker.io/user"},
		"/docker.io/other": {403, "user docker.io/other"},
		"/":                {200, ""}, // of no repository
	} {
		asked, reached = nil, false
		res, body, err := get(t, s.URL+path, "Authorization: Basic dXNlcjpwYXNz")
		if err != nil || res.StatusCode != want.status || strings.Join(asked, ";") != want.asked || reached != (want.status == 200) {
			t.Errorf("%s: got %v, %v, asked %q, handler reached: %t", path, res, err, asked, reached)
		}
		if denied := strings.Contains(body, `"DENIED"`) && strings.Contains(body, "docker.io/other"); denied != (want.status == 403) {
			t.Errorf("%s: got %s", path, body)
		}
	}
	s.Close()
	if n := logs.FilterField(zap.String("outcome", "denied")).Len(); n != 1 {
		t.Errorf("%d lines with outcome denied, want 1", n)
	}
}

// Rules that nobody can apply must not look as if they were.
func TestAllowNeedsToKnowTheRepository(t *testing.T) {
	opts := middleware.Options{MayPull: func(string, string) bool { return false }}
	if _, err := middleware.Builtin().Get("allow", opts); err == nil {
		t.Error("no error")
	}
}
