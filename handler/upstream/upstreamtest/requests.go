package upstreamtest

import (
	"context"
	"net/http"
	"net/url"
	"sync/atomic"
)

// A Request is one line of the registry's log.
type Request struct {
	Method string
	Host   string // as the client named the registry
	Path   string
	Query  url.Values
	Header http.Header
	Status int   // 0 until the answer's header has gone out
	Bytes  int64 // of body sent so far
}

// entry is a Request that is still being answered, perhaps.
type entry struct {
	request Request // without Status and Bytes
	status  atomic.Int64
	bytes   atomic.Int64
}

func newEntry(req *http.Request) *entry {
	return &entry{request: Request{
		Method: req.Method,
		Host:   req.Host,
		Path:   req.URL.Path,
		Query:  req.URL.Query(),
		Header: req.Header.Clone(),
	}}
}

// Requests returns the log, oldest first. A request is in it as soon as it has arrived.
func (r *Registry) Requests() []Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	requests := make([]Request, len(r.log))
	for i, e := range r.log {
		requests[i] = e.request
		requests[i].Header = e.request.Header.Clone()
		requests[i].Status = int(e.status.Load())
		requests[i].Bytes = e.bytes.Load()
	}
	return requests
}

// Count says how many requests arrived with this method and a path that contains path.
// Either may be empty: any.
func (r *Registry) Count(method, path string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.count(method, path)
}

// count is Count with mu held.
func (r *Registry) count(method, path string) int {
	m, n := Match{Method: method, Path: path}, 0
	for _, e := range r.log {
		if m.fits(e.request.Method, e.request.Path) {
			n++
		}
	}
	return n
}

// Await returns as soon as Count(method, path) is n or more: with a Gate, a test knows that
// its requests are waiting there.
func (r *Registry) Await(ctx context.Context, method, path string, n int) error {
	for {
		r.mu.Lock()
		enough, logged := r.count(method, path) >= n, r.logged
		r.mu.Unlock()
		if enough {
			return nil
		}
		select {
		case <-logged:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Reset forgets the log.
func (r *Registry) Reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.log = nil
}

// recorder writes into an entry what goes out.
type recorder struct {
	http.ResponseWriter
	*entry
}

func (w *recorder) WriteHeader(status int) {
	w.status.Store(int64(status))
	w.ResponseWriter.WriteHeader(status)
}

// Write counts before it writes: who has read a byte finds it in the log.
func (w *recorder) Write(p []byte) (int, error) {
	w.status.CompareAndSwap(0, http.StatusOK)
	w.bytes.Add(int64(len(p)))
	n, err := w.ResponseWriter.Write(p)
	w.bytes.Add(int64(n - len(p)))
	return n, err
}

// Unwrap gives http.ResponseController its Flush and Hijack.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }
