package upstreamtest

import (
	"net/http"
	"slices"
	"strings"
)

// A Match says which requests a fault is for. The zero Match is for all.
type Match struct {
	Method string // "": any
	Path   string // a part of the path, such as "/blobs/" or "/token"; "": any
	Times  int    // for how many requests, then no more; 0: always
}

func (m Match) fits(method, path string) bool {
	return (m.Method == "" || m.Method == method) && strings.Contains(path, m.Path)
}

// A Fault changes how a request is answered. It is a wrapper around the healthy registry, so
// that a test can write its own.
type Fault func(next http.Handler) http.Handler

// fault is some faults together with when they apply.
type fault struct {
	match  Match
	faults []Fault
	used   int
}

// Fault makes requests that fit m suffer all of faults, the first one outermost, until remove
// is called. A request that fits several Matches suffers them all, the oldest outermost; one
// that never gets to a fault because an older one answered (Status, Redirect) is not counted
// by its Times, so that two Status with Times 1 make a sequence.
//
// Faults come before authentication: the 401 of a challenge counts as an answer.
func (r *Registry) Fault(m Match, faults ...Fault) (remove func()) {
	f := &fault{match: m, faults: faults}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults = append(r.faults, f)
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		// A new slice: requests being answered go through the old one.
		r.faults = slices.DeleteFunc(slices.Clone(r.faults), func(g *fault) bool { return g == f })
	}
}

// faulty wraps h in the faults there are.
func (r *Registry) faulty(h http.Handler) http.Handler {
	r.mu.Lock()
	faults := r.faults
	r.mu.Unlock()
	for _, f := range slices.Backward(faults) {
		healthy, broken := h, h
		for _, wrap := range slices.Backward(f.faults) {
			broken = wrap(broken)
		}
		h = http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if r.take(f, req) {
				broken.ServeHTTP(w, req)
				return
			}
			healthy.ServeHTTP(w, req)
		})
	}
	return h
}

// take says whether f is for req, and counts it.
func (r *Registry) take(f *fault, req *http.Request) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !f.match.fits(req.Method, req.URL.Path) || f.match.Times > 0 && f.used >= f.match.Times {
		return false
	}
	f.used++
	return true
}
