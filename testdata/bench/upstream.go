package main

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
)

// asUpstream as the first argument makes this program the upstream, so that
// its CPU is not counted as that of the clients.
const asUpstream = "upstream"

// knobs are how upstream behaves.
type knobs struct {
	Rate    int64         // bytes a second on one connection; 0: as fast as it goes
	Latency time.Duration // before each answer
}

// count is what was asked of upstream for one repository.
type count struct {
	Heads, Manifests, Blobs int
	Bytes                   int64 // of bodies
}

// add is the sum.
func (c count) add(o count) count {
	return count{c.Heads + o.Heads, c.Manifests + o.Manifests, c.Blobs + o.Blobs, c.Bytes + o.Bytes}
}

// counts are by repository.
type counts map[string]count

// total is that of all repositories.
func (c counts) total() count {
	var sum count
	for _, one := range c {
		sum = sum.add(one)
	}
	return sum
}

// registry is the upstream: a registry that serves a content's tree.
type registry struct {
	root *os.Root

	mu     sync.Mutex // guards those below
	knobs  knobs
	counts counts
}

// serveUpstream serves the tree on addr until the process is killed.
func serveUpstream(addr, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	return http.ListenAndServe(addr, &registry{root: root, counts: counts{}})
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
	var one count
	switch {
	case r.Method == http.MethodHead:
		one.Heads = 1
	case kind == "manifests":
		one.Manifests = 1
	default:
		one.Blobs = 1
	}
	u.mu.Lock()
	knobs := u.knobs
	u.mu.Unlock()
	time.Sleep(knobs.Latency)
	body := &pacedWriter{ResponseWriter: w, rate: knobs.Rate}
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
		u.counts = counts{}
	}
	json.NewEncoder(w).Encode(u.counts)
}

// pacedWriter counts what is sent, and sends no more than rate bytes a second.
type pacedWriter struct {
	http.ResponseWriter
	rate  int64
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
	if p.rate == 0 || !ok {
		n, err := io.Copy(p.ResponseWriter, src)
		p.bytes += n
		return n, err
	}
	const steps = 100 // a second
	start, size := time.Now(), limited.N
	var sent int64
	for sent < size {
		n, err := io.CopyN(p.ResponseWriter, limited.R, min(p.rate/steps, size-sent))
		sent += n
		p.bytes += n
		if err != nil {
			return sent, err
		}
		time.Sleep(time.Until(start.Add(time.Duration(float64(sent) / float64(p.rate) * float64(time.Second)))))
	}
	return sent, nil
}

// upstream is the process, as the benchmark sees it.
type upstream struct{ *process }

// startUpstream serves the tree of a content.
func startUpstream(ctx context.Context, dir string) (*upstream, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	p, err := startProcess(ctx, exec.Command(self, asUpstream, addr, dir), addr, dir+".log")
	if err != nil {
		return nil, fmt.Errorf("upstream: %w", err)
	}
	return &upstream{p}, nil
}

// set turns the knobs and starts counting anew.
func (u *upstream) set(k knobs) error {
	body, err := json.Marshal(k)
	if err != nil {
		return err
	}
	resp, err := http.Post("http://"+u.addr+"/control", "application/json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// counts are those since set.
func (u *upstream) counts() (counts, error) {
	resp, err := http.Get("http://" + u.addr + "/control")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var c counts
	return c, json.NewDecoder(resp.Body).Decode(&c)
}
