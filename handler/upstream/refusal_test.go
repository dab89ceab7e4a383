package upstream_test

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"larder/handler/upstream"
	"larder/handler/upstream/upstreamtest"
)

const via = "1.1 larder-ABCDEFGHIJKLMNOPQRSTUVWXYZ"

// What a parent says no to as a whole, it is not asked anew each time.
func TestParentThatRefusesARepositoryIsLeftAlone(t *testing.T) {
	tests := map[string]struct {
		path  string // below which it refuses
		fault upstreamtest.Fault
		asked []string
	}{
		"password":             {"/" + repoName + "/", upstreamtest.Status(401, nil), []string{"head manifest", "get blob"}},
		"password, when asked": {"/v2/", upstreamtest.Status(403, nil), []string{"head manifest", "get blob"}},
		"denied":               {"/" + repoName + "/", upstreamtest.Status(403, nil), []string{"head manifest", "get blob"}},
		"not listed":           {"/" + repoName + "/", upstreamtest.Status(404, nil), []string{"get manifest", "list tags"}},
		"not listed, HEAD":     {"/" + repoName + "/", upstreamtest.Status(404, http.Header{"Via": {via}}), []string{"head manifest", "head blob"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				core, logs := observer.New(zap.WarnLevel)
				f := newFamily(t, upstream.Config{Logger: zap.New(core)})
				heal := f.parent.Fault(upstreamtest.Match{Path: test.path}, test.fault)
				for range 3 {
					f.parent.Reset()
					for range 5 {
						for _, question := range test.asked {
							ask(t, f.at(t, host), question)
						}
					}
					if n := len(f.parent.Requests()); n == 0 || n > 4 { // perhaps with a handshake, and after it once more
						t.Errorf("the parent got %d requests of %d questions", n, 5*len(test.asked))
					}
					time.Sleep(time.Minute)
				}
				if n := logs.FilterMessage("the parent refuses; the registry is asked about a repository").Len(); n != 1 {
					t.Errorf("log: %v, want one line", logs.All())
				}
				heal()
				f.origin.Reset()
				askAll(t, f.at(t, host))
				f.wantOrigin(t, 0)
			})
		})
	}
}

// That one thing is not there says nothing of others.
func TestParentThatLacksOneThingIsAskedForOthers(t *testing.T) {
	tests := map[string]upstreamtest.Fault{
		"the registry does not have it":  upstreamtest.Status(404, http.Header{"Cache-Status": {theirs}, "Via": {via}}),
		"a cache that is no larder":      writeError(404, "MANIFEST_UNKNOWN"),
		"a cache that says nothing more": writeError(404, ""),
	}
	for name, fault := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFamily(t, upstream.Config{})
				heal := f.parent.Fault(upstreamtest.Match{Path: "/manifests/"}, fault)
				for _, question := range []string{"head manifest", "get manifest"} {
					_ = questions[question](t.Context(), f.at(t, host))
				}
				heal()
				f.origin.Reset()
				askAll(t, f.at(t, host))
				f.wantOrigin(t, 0)
			})
		})
	}
}

// writeError answers with this status and code of an error.
func writeError(status int, code string) upstreamtest.Fault {
	return func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(status)
			if r.Method != http.MethodHead {
				_, _ = w.Write([]byte(`{"errors":[{"code":"` + code + `"}]}`))
			}
		})
	}
}
