package middleware_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"go.uber.org/zap"

	"larder/handler/middleware"
)

// mark is a middleware that notes its name on the way in and on the way out.
func mark(name string, trail *[]string) middleware.InitFunc {
	return func(middleware.Options) (middleware.Middleware, error) {
		return func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				*trail = append(*trail, "into "+name)
				next.ServeHTTP(w, r)
				*trail = append(*trail, "out of "+name)
			})
		}, nil
	}
}

func TestChainOrder(t *testing.T) {
	var trail []string
	var r middleware.Registry // the zero one is empty, and works
	for _, name := range []string{"a", "b", "c"} {
		if err := r.Register(name, mark(name, &trail)); err != nil {
			t.Fatal(err)
		}
	}
	h := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { trail = append(trail, "handler") })
	tests := map[string]struct{ names, want []string }{
		"none":     {nil, []string{"handler"}},
		"order":    {[]string{"b", "a"}, []string{"into b", "into a", "handler", "out of a", "out of b"}},
		"repeated": {[]string{"c", "c"}, []string{"into c", "into c", "handler", "out of c", "out of c"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			trail = nil
			chained, err := r.Chain(h, middleware.Options{}, test.names...)
			if err != nil {
				t.Fatal(err)
			}
			chained.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
			if !slices.Equal(trail, test.want) {
				t.Errorf("got %q, want %q", trail, test.want)
			}
		})
	}
}

func TestRegisterRefuses(t *testing.T) {
	r := middleware.Builtin()
	ok := mark("x", new([]string))
	for name, init := range map[string]middleware.InitFunc{"": ok, "new": nil, "auth": ok, "my_own": ok, "Mine": ok, "9": ok, "a b": ok} {
		if err := r.Register(name, init); err == nil {
			t.Errorf("Register(%q) has no error", name)
		}
	}
	if err := r.Register("x", ok); err != nil {
		t.Error(err)
	}
	if err := r.Register("x", ok); err == nil || !strings.Contains(err.Error(), `"x"`) {
		t.Errorf("got error %v, want one that names x", err)
	}
	if _, err := middleware.Builtin().Get("x", middleware.Options{}); err == nil {
		t.Error("one registry's middleware is in another")
	}
}

func TestUnknownMiddlewareListsTheKnown(t *testing.T) {
	_, err := middleware.Builtin().Get("gzip", middleware.Options{})
	if err == nil {
		t.Fatal("no error")
	}
	for _, name := range []string{`"gzip"`, "allow, audit, auth, limit, log, metrics, readonly, recover, requestid"} {
		if !strings.Contains(err.Error(), name) {
			t.Errorf("got %q, want it to have %s", err, name)
		}
	}
	_, err = middleware.Builtin().Chain(http.NotFoundHandler(), middleware.Options{}, "gzip", "log", "brotli")
	if err == nil || !strings.Contains(err.Error(), "gzip") || !strings.Contains(err.Error(), "brotli") {
		t.Errorf("got %v, want both unknown ones", err)
	}
}

func TestOptionsReachTheMiddleware(t *testing.T) {
	r := middleware.Builtin()
	var got middleware.Options
	err := r.Register("mine", func(opts middleware.Options) (middleware.Middleware, error) {
		got = opts
		return func(h http.Handler) http.Handler { return h }, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Get("mine", middleware.Options{}); err != nil || got.Logger == nil {
		t.Errorf("logger is %v (%v), want one that does nothing", got.Logger, err)
	}
	log := zap.NewExample()
	if _, err := r.Get("mine", middleware.Options{Logger: log, Verify: everybody}); err != nil || got.Logger != log || got.Verify == nil {
		t.Errorf("got %+v (%v), want what was given", got, err)
	}

	broken := errors.New("no such file")
	if err := r.Register("broken", func(middleware.Options) (middleware.Middleware, error) { return nil, broken }); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Get("broken", middleware.Options{}); !errors.Is(err, broken) || !strings.Contains(err.Error(), "broken") {
		t.Errorf("got %v, want the middleware's error with its name", err)
	}
}

// What a request is for is known before the first middleware, and found out once.
func TestIdentify(t *testing.T) {
	type key struct{}
	identified := 0
	identify := func(ctx context.Context, r *http.Request) context.Context {
		identified++
		middleware.NoteOf(ctx).Repository = "docker.io" + r.URL.Path
		return context.WithValue(ctx, key{}, r.URL.Path)
	}
	r := middleware.Builtin()
	if err := r.Register("first", func(middleware.Options) (middleware.Middleware, error) {
		return func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				if got := middleware.NoteOf(req.Context()).Repository; got != "docker.io/a" {
					t.Errorf("the first middleware knows %q", got)
				}
				next.ServeHTTP(w, req)
			})
		}, nil
	}); err != nil {
		t.Fatal(err)
	}
	reached := false
	h, err := r.Chain(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		reached = req.Context().Value(key{}) == "/a"
	}), middleware.Options{Identify: identify}, "first", "auth", "allow")
	if err != nil {
		t.Fatal(err)
	}
	h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/a", nil))
	if !reached || identified != 1 {
		t.Errorf("the handler has the context: %t; identified %d times, want once", reached, identified)
	}
}

func TestNoteIsOfTheRequest(t *testing.T) {
	if middleware.NoteOf(context.Background()) == nil {
		t.Error("no note outside a request, want an empty one")
	}
	var notes []*middleware.Note
	h, err := middleware.Builtin().Chain(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		n := middleware.NoteOf(r.Context())
		notes = append(notes, n)
		n.Outcome = "hit"
	}), middleware.Options{Observe: func(o middleware.Observation) {
		if o.Outcome != "hit" {
			t.Errorf("observed outcome %q, want that of the handler", o.Outcome)
		}
	}}, "metrics")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
	}
	if notes[0] == notes[1] {
		t.Error("two requests share a note")
	}
}
