package upstream_test

import (
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"larder/handler/upstream"
	"larder/handler/upstream/upstreamtest"
)

func TestRelayedIsWhatTheParentSays(t *testing.T) {
	long := strings.Repeat("larder; hit, ", 8) + "larder; hit"
	tests := map[string]struct {
		header http.Header
		status string
		age    time.Duration
		stale  bool
	}{
		"none":           {http.Header{}, "", 0, false},
		"hit":            {http.Header{"Cache-Status": {"larder; hit; detail=hit"}}, "larder; hit; detail=hit", 0, false},
		"two lines":      {http.Header{"Cache-Status": {"a; hit", `"b c"; fwd=miss`}}, `a; hit, "b c"; fwd=miss`, 0, false},
		"stale":          {http.Header{"Cache-Status": {"larder; fwd=stale; ttl=-90"}, "Age": {"90"}}, "larder; fwd=stale; ttl=-90", 90 * time.Second, true},
		"kept":           {http.Header{"Cache-Status": {"larder; fwd=stale; ttl=-90, larder; hit"}, "Age": {"90"}}, "larder; fwd=stale; ttl=-90, larder; hit", 90 * time.Second, false},
		"odd age":        {http.Header{"Age": {"-90"}}, "", 0, false},
		"large age":      {http.Header{"Age": {"99999999999999999999"}}, "", 0, false},
		"no list":        {http.Header{"Cache-Status": {"larder; hit; <script>"}}, "", 0, false},
		"inner list":     {http.Header{"Cache-Status": {"(larder)"}}, "", 0, false},
		"number":         {http.Header{"Cache-Status": {"12; hit"}}, "", 0, false},
		"too long":       {http.Header{"Cache-Status": {`larder; detail="` + strings.Repeat("x", 1024) + `"`}}, "", 0, false},
		"too many":       {http.Header{"Cache-Status": {long}}, "", 0, false},
		"as many as can": {http.Header{"Cache-Status": {strings.TrimPrefix(long, "larder; hit, ")}}, strings.TrimPrefix(long, "larder; hit, "), 0, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFamily(t, upstream.Config{})
				for name, values := range test.header {
					for _, v := range values {
						f.parent.Fault(upstreamtest.Match{Path: "/manifests/"}, addHeader(name, v))
					}
				}
				r := f.at(t, host)
				ask(t, r, "head manifest")
				if status, age, stale := r.Relayed(); status != test.status || age != test.age || stale != test.stale {
					t.Errorf("got %q, %v, %v; want %q, %v, %v", status, age, stale, test.status, test.age, test.stale)
				}
				if status, age, _ := r.Anew().Relayed(); status != "" || age != 0 {
					t.Errorf("got %q, %v of what was not asked", status, age)
				}
			})
		})
	}
}

// addHeader adds a line to the answer's header.
func addHeader(name, value string) upstreamtest.Fault {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Add(name, value)
			next.ServeHTTP(w, r)
		})
	}
}

// What a registry says of its own caches is nothing that a client asked for.
func TestRegistrysCacheStatusIsNotRelayed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFamily(t, upstream.Config{})
		f.parent.Stop()
		f.origin.Fault(upstreamtest.Match{}, addHeader("Cache-Status", "cdn; hit"), addHeader("Age", "90"))
		r := f.at(t, host)
		ask(t, r, "head manifest")
		if status, age, _ := r.Relayed(); status != "" || age != 0 {
			t.Errorf("got %q, %v", status, age)
		}
	})
}
