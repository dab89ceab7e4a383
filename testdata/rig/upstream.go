package rig

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// AsUpstream as the first argument makes this program the upstream, so that
// its CPU is not counted as that of the clients.
const AsUpstream = "upstream"

// Knobs are how upstream behaves.
type Knobs struct {
	Rate    int64         // bytes a second on one connection; 0: as fast as it goes
	Total   int64         // and on all connections together
	Latency time.Duration // before each answer
}

// Count is what was asked of upstream for one repository.
type Count struct {
	Heads, Manifests, Blobs int
	Bytes                   int64 // of bodies
}

// add is the sum.
func (c Count) add(o Count) Count {
	return Count{c.Heads + o.Heads, c.Manifests + o.Manifests, c.Blobs + o.Blobs, c.Bytes + o.Bytes}
}

// Counts are by repository.
type Counts map[string]Count

// Total is that of all repositories.
func (c Counts) Total() Count {
	var sum Count
	for _, one := range c {
		sum = sum.add(one)
	}
	return sum
}

// registry is the upstream: a registry that serves a content's tree.
type registry struct {
	root *os.Root

	mu     sync.Mutex // guards those below
	knobs  Knobs
	total  *rate.Limiter // of knobs
	counts Counts
}

// ServeUpstream serves the tree on addr until the process is killed.
func ServeUpstream(addr, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	return http.ListenAndServe(addr, &registry{root: root, total: newLimiter(0), counts: Counts{}})
}

// ServeHTTP implements http.Handler.
func (u *registry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/control":
		u.control(w, r)
		return
	case "/v2/":
		w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
		return
	}
	name, kind, digest, ok := u.resolve(r.URL.Path)
	if !ok {
		http.NotFound(w, r)
		return
	}
	f, err := u.root.Open(name)
	if err != nil {
		http.NotFound(w, r)
		return
	}
	defer f.Close()
	h := w.Header()
	h.Set("Docker-Content-Digest", digest)
	h.Set("ETag", `"`+digest+`"`)
	h.Set("Content-Type", "application/octet-stream")
	if kind == "manifests" {
		h.Set("Content-Type", manifestType)
	}
	u.serveFile(w, r, kind, f)
}

// resolve finds the file for a path of the API. A tag is a link to its manifest.
func (u *registry) resolve(p string) (name, kind, digest string, ok bool) {
	dir, digest := path.Split(p)
	kind = path.Base(dir)
	if kind != "manifests" && kind != "blobs" {
		return "", "", "", false
	}
	name = strings.TrimPrefix(p, "/")
	if target, err := u.root.Readlink(name); err == nil {
		digest = target
	}
	return name, kind, digest, true
}

func (u *registry) serveFile(w http.ResponseWriter, r *http.Request, kind string, f *os.File) {
	var one Count
	switch {
	case r.Method == http.MethodHead:
		one.Heads = 1
	case kind == "manifests":
		one.Manifests = 1
	default:
		one.Blobs = 1
	}
	u.mu.Lock()
	knobs, total := u.knobs, u.total
	u.mu.Unlock()
	time.Sleep(knobs.Latency)
	body := &pacedWriter{ResponseWriter: w, rate: knobs.Rate, total: total, ctx: r.Context()}
	// Clients have their last byte before this is counted; whoever reads the
	// counts waits for the peers to settle first.
	defer func() {
		one.Bytes = body.bytes
		repository := strings.TrimPrefix(path.Dir(path.Dir(r.URL.Path)), "/v2/")
		u.mu.Lock()
		u.counts[repository] = u.counts[repository].add(one)
		u.mu.Unlock()
	}()
	http.ServeContent(body, r, "", time.Time{}, f)
}

// control sets the knobs and starts counting anew (POST), or tells the counts.
func (u *registry) control(w http.ResponseWriter, r *http.Request) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if r.Method == http.MethodPost {
		if err := json.NewDecoder(r.Body).Decode(&u.knobs); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		u.total, u.counts = newLimiter(u.knobs.Total), Counts{}
	}
	json.NewEncoder(w).Encode(u.counts)
}

// step is what leaves at once where all connections have a rate together.
const step = 64 << 10

// newLimiter lets bytes go at a rate; 0: as they come.
func newLimiter(bytes int64) *rate.Limiter {
	if bytes == 0 {
		return rate.NewLimiter(rate.Inf, 0)
	}
	return rate.NewLimiter(rate.Limit(bytes), step)
}

// pacedWriter counts what is sent, and sends no more than rate bytes a second, nor more
// than total lets go.
type pacedWriter struct {
	http.ResponseWriter
	ctx   context.Context // of the request
	rate  int64
	total *rate.Limiter
	bytes int64
}

// Write implements io.Writer, for what is no file.
func (p *pacedWriter) Write(b []byte) (int, error) {
	n, err := p.ResponseWriter.Write(b)
	p.bytes += int64(n)
	return n, err
}

// ReadFrom implements io.ReaderFrom. Each step is a sendfile of its own: the
// writer below must see an io.LimitedReader with the file itself in it.
func (p *pacedWriter) ReadFrom(src io.Reader) (int64, error) {
	limited, ok := src.(*io.LimitedReader)
	if !ok || p.rate == 0 && p.total.Limit() == rate.Inf {
		n, err := io.Copy(p.ResponseWriter, src)
		p.bytes += n
		return n, err
	}
	start, size := time.Now(), limited.N
	var sent int64
	for sent < size {
		next := min(p.step(), size-sent)
		if err := p.total.WaitN(p.ctx, int(next)); err != nil {
			return sent, err
		}
		n, err := io.CopyN(p.ResponseWriter, limited.R, next)
		sent += n
		p.bytes += n
		if err != nil {
			return sent, err
		}
		if p.rate > 0 {
			time.Sleep(time.Until(start.Add(time.Duration(float64(sent) / float64(p.rate) * float64(time.Second)))))
		}
	}
	return sent, nil
}

// step is how much leaves at once: on a connection that has a rate of its own, a hundredth
// of what leaves in a second.
func (p *pacedWriter) step() int64 {
	const steps = 100
	if p.rate == 0 {
		return step
	}
	if p.total.Limit() == rate.Inf {
		return p.rate / steps
	}
	return min(step, p.rate/steps)
}

// Upstream is the process, as the benchmark sees it.
type Upstream struct{ *Process }

// StartUpstream serves the tree of a content.
func StartUpstream(ctx context.Context, dir string) (*Upstream, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	addr, err := FreeAddr()
	if err != nil {
		return nil, err
	}
	p, err := StartProcess(ctx, exec.Command(self, AsUpstream, addr, dir), addr, dir+".log")
	if err != nil {
		return nil, fmt.Errorf("upstream: %w", err)
	}
	return &Upstream{p}, nil
}

// Set turns the knobs and starts counting anew.
func (u *Upstream) Set(k Knobs) error {
	body, err := json.Marshal(k)
	if err != nil {
		return err
	}
	resp, err := http.Post("http://"+u.Addr+"/control", "application/json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// Counts are those since set.
func (u *Upstream) Counts() (Counts, error) {
	resp, err := http.Get("http://" + u.Addr + "/control")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var c Counts
	return c, json.NewDecoder(resp.Body).Decode(&c)
}
