package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"github.com/docker/go-units"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/sync/errgroup"
	"golang.org/x/term"
	"golang.org/x/time/rate"
)

const demoRepository = "/demo/app:latest" // after the address of the upstream or of larder

// demoPull is what one pull took, counted at both ends of larder.
type demoPull struct {
	name             string
	received         int64 // bytes of bodies that reached the client
	upstream         int64 // bytes of bodies that the upstream sent
	upstreamRequests int64
	took             time.Duration
}

// String is a line of the table whose head runDemo prints.
func (p demoPull) String() string {
	return fmt.Sprintf("%-17s%14s%12s%10.2f%10.1f%19d", p.name, units.HumanSize(float64(p.upstream)),
		units.HumanSize(float64(max(0, p.received-p.upstream))), p.took.Seconds(), float64(p.received)/1e6/p.took.Seconds(), p.upstreamRequests)
}

// demo shows what larder does to people without a registry at hand.
func demo(ctx context.Context, stdout, stderr io.Writer) error {
	_, err := runDemo(ctx, []int{4 << 20, 8 << 20, 20 << 20, 32 << 20}, 25_000_000, stdout, stderr)
	return err
}

// runDemo pulls an image with layers of these sizes cold, warm and without
// its upstream, which sends bandwidth bytes a second, and prints a line each.
func runDemo(ctx context.Context, layers []int, bandwidth int, stdout, stderr io.Writer) (pulls []demoPull, err error) {
	upstream, err := startDemoUpstream(ctx, bandwidth)
	if err != nil {
		return nil, err
	}
	defer upstream.stop()
	digest, err := upstream.fill(ctx, layers)
	if err != nil {
		return nil, fmt.Errorf("fill the upstream: %w", err)
	}
	addr, err := freePort(ctx, "127.0.0.1:5000")
	if err != nil {
		return nil, err
	}
	stop, err := startTemporary(ctx, addr, []string{"LARDER_UPSTREAMS=demo.example=http://" + upstream.addr}, stderr)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()

	size := 0
	for _, length := range layers {
		size += length
	}
	fmt.Fprintf(stdout, "An image of %d layers, %s; an upstream that sends %s/s; larder on %s in front of it.\n\n"+
		"%-17s%14s%12s%10s%10s%19s\n", len(layers), units.HumanSize(float64(size)), units.HumanSize(float64(bandwidth)), addr,
		"pull", "from upstream", "from cache", "seconds", "MB/s", "upstream requests")
	for _, name := range []string{"cold", "warm", "upstream stopped"} {
		if name == "upstream stopped" {
			upstream.stop()
		}
		client, done := newDemoClient(ctx, name, int64(size), stdout)
		pull, err := client.measure(ctx, name, addr, digest, upstream)
		done()
		if err != nil {
			return pulls, fmt.Errorf("pull (%s): %w", name, err)
		}
		fmt.Fprintln(stdout, pull)
		pulls = append(pulls, pull)
	}
	fmt.Fprint(stdout, `
Next: start larder without arguments, which puts it in front of Docker Hub, then
  docker pull localhost:5000/library/alpine
README.md says how to make it the mirror of containerd, docker, podman and BuildKit.
`)
	return pulls, nil
}

// demoClient pulls as container runtimes do, and counts what it receives.
type demoClient struct {
	received atomic.Int64
	progress func(bytes int)
}

// newDemoClient returns a client with a progress bar if stdout is a terminal;
// done takes the bar away again.
func newDemoClient(ctx context.Context, name string, size int64, stdout io.Writer) (c *demoClient, done func()) {
	file, ok := stdout.(*os.File)
	if !ok || !term.IsTerminal(int(file.Fd())) {
		return &demoClient{progress: func(int) {}}, func() {}
	}
	bars := mpb.NewWithContext(ctx, mpb.WithOutput(file), mpb.WithWidth(40), mpb.WithRefreshRate(50*time.Millisecond))
	bar := bars.AddBar(size, mpb.BarRemoveOnComplete(), mpb.PrependDecorators(decor.Name(name, decor.WC{W: 17, C: decor.DindentRight})),
		mpb.AppendDecorators(decor.Counters(decor.SizeB1000(0), "% .1f / % .1f")))
	return &demoClient{progress: bar.IncrBy}, func() {
		bar.Abort(true)
		bars.Wait()
	}
}

// RoundTrip refuses https, which ggcr tries first: larder's listener is plain.
func (c *demoClient) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "http" {
		return nil, errors.New("http only")
	}
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.TeeReader(resp.Body, c), resp.Body}
	}
	return resp, err
}

// Write counts what was received.
func (c *demoClient) Write(p []byte) (int, error) {
	c.received.Add(int64(len(p)))
	c.progress(len(p))
	return len(p), nil
}

// measure pulls and says what that took. Nobody else uses upstream meanwhile.
func (c *demoClient) measure(ctx context.Context, name, addr string, digest v1.Hash, upstream *demoUpstream) (demoPull, error) {
	upstream.sent.Store(0)
	upstream.requests.Store(0)
	start := time.Now()
	err := c.pull(ctx, addr, digest)
	return demoPull{name, c.received.Load(), upstream.sent.Load(), upstream.requests.Load(), time.Since(start)}, err
}

// pull reads all of the image at addr, three layers at a time, and checks
// every digest.
func (c *demoClient) pull(ctx context.Context, addr string, digest v1.Hash) error {
	ref, err := name.ParseReference(addr+demoRepository, name.Insecure)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(3)
	img, err := remote.Image(ref, remote.WithContext(ctx), remote.WithTransport(c))
	if err != nil {
		return err
	}
	if got, err := img.Digest(); err != nil || got != digest {
		return errors.Join(fmt.Errorf("digest of the manifest is %v, want %v", got, digest), err)
	}
	if _, err := img.RawConfigFile(); err != nil {
		return err
	}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	for _, layer := range layers {
		group.Go(func() error {
			content, err := layer.Compressed()
			if err != nil {
				return err
			}
			defer content.Close()
			_, err = io.Copy(io.Discard, content) // to the end, where ggcr compares the digest
			return err
		})
	}
	return group.Wait()
}

// demoUpstream is a registry in memory with little bandwidth, all of which it
// counts.
type demoUpstream struct {
	addr           string
	registry       http.Handler
	limiter        *rate.Limiter // of what is sent
	stop           func()        // may be called twice
	sent, requests atomic.Int64
}

func startDemoUpstream(ctx context.Context, bandwidth int) (*demoUpstream, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	quiet := log.New(io.Discard, "", 0)
	u := &demoUpstream{
		addr:     listener.Addr().String(),
		registry: registry.New(registry.Logger(quiet)),
		limiter:  rate.NewLimiter(rate.Limit(bandwidth), 64<<10),
	}
	server := &http.Server{Handler: u, ErrorLog: quiet, ReadHeaderTimeout: 10 * time.Second}
	ended := make(chan struct{})
	go func() { // ends when stop, which waits for it, closes the server
		defer close(ended)
		server.Serve(listener)
	}()
	u.stop = func() {
		server.Close()
		<-ended
	}
	return u, nil
}

// ServeHTTP answers from the registry, at the speed that is left.
func (u *demoUpstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	u.requests.Add(1)
	if r.Method == http.MethodHead { // net/http drops what is written: nothing to count
		u.registry.ServeHTTP(w, r)
		return
	}
	u.registry.ServeHTTP(&demoSender{w, r.Context(), u}, r)
}

// demoSender is the way of one answer through the bottleneck.
type demoSender struct {
	http.ResponseWriter
	ctx      context.Context // of the request
	upstream *demoUpstream
}

// Write waits for its turn, a piece at a time so that many can share.
func (s *demoSender) Write(p []byte) (written int, err error) {
	for written < len(p) && err == nil {
		piece := p[written:min(len(p), written+s.upstream.limiter.Burst())]
		if err = s.upstream.limiter.WaitN(s.ctx, len(piece)); err != nil {
			break
		}
		// Counted before: who has a byte of it finds it counted.
		s.upstream.sent.Add(int64(len(piece)))
		var n int
		n, err = s.ResponseWriter.Write(piece)
		s.upstream.sent.Add(int64(n - len(piece)))
		written += n
	}
	return written, err
}

// fill puts an image with random layers of these sizes into the registry.
func (u *demoUpstream) fill(ctx context.Context, layers []int) (digest v1.Hash, err error) {
	ref, err := name.ParseReference(u.addr+demoRepository, name.Insecure)
	if err != nil {
		return v1.Hash{}, err
	}
	img := empty.Image
	for _, length := range layers {
		content := make([]byte, length)
		rand.Read(content) // never fails
		img, err = mutate.AppendLayers(img, static.NewLayer(content, types.DockerUncompressedLayer))
		if err != nil {
			return v1.Hash{}, err
		}
	}
	client, _ := newDemoClient(ctx, "", 0, io.Discard)
	if err := remote.Write(ref, img, remote.WithContext(ctx), remote.WithTransport(client)); err != nil {
		return v1.Hash{}, err
	}
	return img.Digest()
}

// startTemporary runs larder at an address with a cache of its own. stop ends it and
// removes that cache.
func startTemporary(ctx context.Context, addr string, environ []string, stderr io.Writer) (stop func() error, err error) {
	dir, err := os.MkdirTemp("", "larder-")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	ended := make(chan error, 1)
	go func() { // ends with ctx; stop waits for it
		err := run(ctx, append(environ, "LARDER_ADDR="+addr, "LARDER_ADMIN_ADDR=", "LARDER_CACHE_DIR="+dir,
			"LARDER_LOG_LEVEL=error", "LARDER_SHUTDOWN_GRACE=1s"), io.Discard, stderr)
		cancel(errors.New("larder ended")) // or the wait for its answer would go on
		ended <- err
	}()
	stop = func() error {
		cancel(nil)
		return errors.Join(<-ended, os.RemoveAll(dir))
	}
	if err := awaitLarder(ctx, addr); err != nil {
		return nil, errors.Join(err, stop())
	}
	return stop, nil
}

// freePort is a loopback address, or another one if that is taken. The listener
// is closed again as run makes its own; if somebody else is faster, run says so.
func freePort(ctx context.Context, addr string) (string, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", addr)
	if err != nil {
		listener, err = config.Listen(ctx, "tcp", "127.0.0.1:0")
	}
	if err != nil {
		return "", err
	}
	return listener.Addr().String(), listener.Close()
}

// awaitLarder returns once larder answers.
func awaitLarder(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 10*time.Second, errors.New("larder does not answer on "+addr))
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/v2/", nil)
		if err != nil {
			return err
		}
		if resp, err := http.DefaultTransport.RoundTrip(req); err == nil {
			return resp.Body.Close()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
