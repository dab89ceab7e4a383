// Package upstreamtest is a registry under a test's control: it counts, delays, cuts and lies.
//
// It serves real bytes under real digests as the OCI distribution specification says, and
// does what a Fault tells it to where a Match says so. It is the only fake in larder's tests.
package upstreamtest

import (
	"context"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
	"testing"
)

// pipeURL is the address of a registry without sockets. go-containerregistry speaks plain
// http to names below .localhost without being asked to.
const pipeURL = "http://upstream.localhost"

// A Registry is an OCI registry that does what a test wants. Everything on it may be called
// at any time from any goroutine, except that Start and Stop must not run at once.
type Registry struct {
	// URL is where the registry is, without a slash at the end. It stays the same over Stop and Start.
	URL string

	tb      testing.TB
	host    string // of URL, with port; the service in bearer challenges
	pipes   bool
	serving sync.WaitGroup // the accept loop and the requests being answered

	mu           sync.Mutex // guards all below
	server       *http.Server
	pipe         *pipeListener      // nil when stopped, or on sockets
	stop         context.CancelFunc // ends the context of every request; nil when stopped
	repositories map[string]*contents
	faults       []*fault
	log          []*entry
	logged       chan struct{} // closed and replaced when log grows
	auth         auth
	strict       bool // manifests only to those who accept their type
	referrers    bool
	signatures   bool
	page         int // how much a page of a list has, at most; 0: all
}

// New starts a registry on a loopback port that stops with the test.
func New(tb testing.TB) *Registry {
	tb.Helper()
	return start(&Registry{tb: tb})
}

// NewPipe starts a registry without sockets, for bubbles of testing/synctest, which must
// call it inside the bubble. Its name resolves nowhere: reach it by Transport or DialContext.
func NewPipe(tb testing.TB) *Registry {
	tb.Helper()
	return start(&Registry{tb: tb, pipes: true, URL: pipeURL, host: pipeURL[len("http://"):]})
}

func start(r *Registry) *Registry {
	r.tb.Helper()
	r.repositories = make(map[string]*contents)
	r.logged = make(chan struct{})
	r.Start()
	r.tb.Cleanup(r.Stop)
	return r
}

// Start brings a stopped registry back at the same address, with all it had.
func (r *Registry) Start() {
	r.tb.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stop != nil {
		return
	}
	l, err := r.listen()
	if err != nil {
		r.tb.Fatalf("upstreamtest: %v", err)
	}
	var ctx context.Context
	ctx, r.stop = context.WithCancel(context.Background())
	server := &http.Server{
		Handler:     http.HandlerFunc(r.serve),
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	r.server = server
	r.serving.Go(func() { server.Serve(l) }) // until Stop closes it
}

// listen is called with mu held.
func (r *Registry) listen() (net.Listener, error) {
	if r.pipes {
		r.pipe = newPipeListener()
		return r.pipe, nil
	}
	if r.host != "" {
		return net.Listen("tcp", r.host)
	}
	l := listenAnywhere(r.tb)
	r.host = l.Addr().String() // never written again: they are read without mu
	r.URL = "http://" + r.host
	return l, nil
}

// Stop makes the registry go away: open connections are closed, new ones refused. No
// request is being answered any more when it returns.
func (r *Registry) Stop() {
	r.mu.Lock()
	server := r.server
	if r.stop != nil {
		r.stop() // with mu held, so that begin lets nobody in afterwards
	}
	r.server, r.pipe, r.stop = nil, nil, nil
	r.mu.Unlock()

	if server != nil {
		server.Close()
	}
	r.serving.Wait()
}

// DialContext connects to the registry whatever addr says, so that a test can give the
// registry any name.
func (r *Registry) DialContext(ctx context.Context, _, addr string) (net.Conn, error) {
	if !r.pipes {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", r.host)
	}
	r.mu.Lock()
	pipe := r.pipe
	r.mu.Unlock()
	if pipe == nil {
		return nil, refused(addr)
	}
	return pipe.dial(ctx, addr)
}

// Transport returns a new transport whose every connection goes to the registry. It leaves
// bodies as they are (no compression).
func (r *Registry) Transport() *http.Transport {
	t := &http.Transport{DialContext: r.DialContext, DisableCompression: true}
	r.tb.Cleanup(t.CloseIdleConnections)
	return t
}

// serve is the one way into the registry: log, then faults, then what a healthy registry does.
func (r *Registry) serve(w http.ResponseWriter, req *http.Request) {
	e, ok := r.begin(req)
	if !ok {
		panic(http.ErrAbortHandler)
	}
	defer r.serving.Done()
	r.faulty(http.HandlerFunc(r.answer)).ServeHTTP(&recorder{w, e}, req)
}

// begin logs a request, unless its connection belongs to a registry that was stopped.
func (r *Registry) begin(req *http.Request) (*entry, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if req.Context().Err() != nil {
		return nil, false
	}
	r.serving.Add(1)
	e := newEntry(req)
	r.log = append(r.log, e)
	close(r.logged)
	r.logged = make(chan struct{})
	return e, true
}

func refused(addr string) error {
	return &net.OpError{Op: "dial", Net: "pipe", Err: os.NewSyscallError("connect "+addr, syscall.ECONNREFUSED)}
}
