package main

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"larder/handler/shared/store"
	"larder/handler/shared/storetest"
	"larder/handler/upstream/upstreamtest"
	"larder/handler/warm"
)

// fleet is larders that share a store, in front of a registry that a test spoils.
type fleet struct {
	*world  // without a larder of its own
	environ []string
	dir     string            // where the store's objects are files, by their keys
	gateway *storetest.Server // nil: the store is a directory
}

// kinds of stores that a fleet may have.
var fleetStores = []string{"file", "s3"}

// newFleet is a fleet without larders, and an image of layers of these sizes.
func newFleet(t *testing.T, store string, sizes ...int) *fleet {
	t.Helper()
	f := &fleet{world: prepareWorld(t, sizes...)}
	switch store {
	case "file":
		f.dir = t.TempDir()
		f.environ = []string{"LARDER_SHARED=file://" + f.dir}
	case "s3":
		f.gateway = storetest.Gateway(t, freeAddr(t))
		f.dir = f.gateway.Dir
		f.environ = f.through(f.gateway.Endpoint)
	}
	return f
}

// through is the environment of a larder that reaches the gateway at an endpoint.
func (f *fleet) through(endpoint string) []string {
	return []string{
		"LARDER_SHARED=" + strings.Replace(f.gateway.URL, url.QueryEscape(f.gateway.Endpoint), url.QueryEscape(endpoint), 1),
		"LARDER_SHARED_ACCESS_KEY=" + f.gateway.Credentials.AccessKey, "LARDER_SHARED_SECRET_KEY=" + f.gateway.Credentials.SecretKey,
	}
}

// join starts one more larder.
func (f *fleet) join(t *testing.T, environ ...string) *controlled {
	t.Helper()
	w := *f.world
	w.larder = startLarder(t, nil, w.environ(append(append([]string{"LARDER_ADMIN_ADDR=127.0.0.1:0"}, f.environ...), environ...)...)...)
	t.Cleanup(w.client.CloseIdleConnections)
	c := &controlled{world: &w}
	c.findAdmin()
	return c
}

// metric is the sum of a larder's metrics of that name, with labels that contain label.
func (c *controlled) metric(t *testing.T, name, label string) (sum int64) {
	t.Helper()
	_, metrics := ask(t, http.DefaultClient, "GET", "http://"+c.admin+"/metrics", "", "")
	for line := range strings.Lines(metrics) {
		got, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if got, labels, _ := strings.Cut(got, "{"); got == name && strings.Contains(labels, label) {
			v, err := strconv.ParseFloat(value, 64)
			if err != nil {
				t.Fatal(err)
			}
			sum += int64(v)
		}
	}
	return sum
}

// shared waits until a larder has written to the store what it has to.
func (c *controlled) shared(t *testing.T) {
	t.Helper()
	c.settle(t)
	eventually(t, "the store to be written", func() bool {
		return c.metric(t, "larder_shared_queued", "") == 0 && c.metric(t, "larder_shared_leases", "") == 0
	})
}

// object is the file of a blob in the store.
func (f *fleet) object(t *testing.T, d digest.Digest) string {
	t.Helper()
	var found string
	err := filepath.WalkDir(f.dir, func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() && e.Name() == d.Encoded() && strings.Contains(path, "/blobs/") {
			found = path
		}
		return err
	})
	if err != nil || found == "" {
		t.Fatalf("the store has no object of %s (%v)", d, err)
	}
	return found
}

// sent is how many bytes of blobs the registry has sent.
func (f *fleet) sent() (n int64) {
	for _, r := range f.hub.Requests() {
		if strings.Contains(r.Path, "/blobs/") && r.Method == http.MethodGet {
			n += r.Bytes
		}
	}
	return n
}

func TestSecondLarderPullsWhatTheFirstHasWithUpstreamStopped(t *testing.T) {
	t.Parallel()
	for _, store := range fleetStores {
		t.Run(store, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t, store, 100, 1_000_000, 20_000_000)
			first := f.join(t)
			first.pull(t, "by the first")
			first.shared(t)
			f.hub.Stop()
			second := f.join(t, "LARDER_SHARED_TIMEOUT=20s") // a busy machine is no slow store
			second.next(t, appTag)
			if res, err := http.Head("http://" + second.addr + f.blob()); err != nil || res.StatusCode != http.StatusOK || res.ContentLength != f.img.Layers[0].Size {
				t.Errorf("HEAD of a blob: %v, %v", res, err)
			}
			second.pull(t, "by the second, with the registry stopped")
			second.wantRightCache(t)
			sent := func(c *controlled, outcome string) int64 {
				return c.metric(t, "larder_sent_bytes_total", `kind="blob",outcome="`+outcome+`"`)
			}
			eventually(t, "all bytes to be counted", func() bool { // which is after they were sent
				return sent(first, "miss") >= 21_000_000 && sent(second, "shared") >= 21_000_000
			})
			if ofFirst, ofSecond := sent(first, "shared"), sent(second, "miss"); ofFirst > 0 || ofSecond > 0 {
				t.Errorf("%d bytes of blobs were shared by the first larder, %d missed by the second", ofFirst, ofSecond)
			}
			// What a warm disk has is asked of nobody.
			before := second.metric(t, "larder_shared_requests_total", "")
			for _, path := range second.everything()[1:] {
				second.next(t, path)
			}
			if n := second.metric(t, "larder_shared_requests_total", "") - before; n != 0 {
				t.Errorf("a warm disk asked the store %d times", n)
			}
		})
	}
}

func TestWrongObjectsOfTheStoreAreNotServedAndReplaced(t *testing.T) {
	t.Parallel()
	spoil := map[string]func(content []byte) []byte{
		"cut":   func(content []byte) []byte { return content[:len(content)/2] },
		"other": func(content []byte) []byte { return append([]byte("x"), content[1:]...) },
		"long":  func(content []byte) []byte { return append(content, 'x') },
		"empty": func([]byte) []byte { return nil },
	}
	for _, store := range fleetStores {
		for name, spoil := range spoil {
			t.Run(store+" "+name, func(t *testing.T) {
				t.Parallel()
				f := newFleet(t, store, 1_000_000)
				first := f.join(t)
				first.pull(t, "by the first")
				first.shared(t)
				layer := f.img.Layers[0].Digest
				object := f.object(t, layer)
				content, err := os.ReadFile(object)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(object, spoil(bytes.Clone(content)), 0o600); err != nil {
					t.Fatal(err)
				}
				second := f.join(t)
				second.notFooled(t, f.blob(), "", second.crowd(3, f.blob(), "")...)
				second.pull(t, "with a wrong object in the store")
				second.wantRightCache(t)
				second.shared(t)
				// In a directory, what is behind the blob's bytes is not the same each time.
				if got, err := os.ReadFile(f.object(t, layer)); err != nil || len(got) != len(content) || digest.FromBytes(got[:1_000_000]) != layer {
					t.Errorf("the object was not replaced: %d bytes, %v", len(got), err)
				}
			})
		}
	}
}

func TestKilledLeaseHolderIsSucceeded(t *testing.T) {
	t.Parallel()
	for _, store := range fleetStores {
		t.Run(store, func(t *testing.T) {
			t.Parallel()
			const size = 40_000_000
			f := newFleet(t, store, size)
			f.client.Timeout = 3 * patience
			f.environ = append(f.environ, "LARDER_SHARED_TIMEOUT=20s") // a busy machine makes the store slow
			f.hub.Fault(upstreamtest.Match{Path: "/blobs/" + f.img.Layers[0].Digest.String()}, upstreamtest.Rate(8_000_000))
			holder := execLarder(t, nil, f.world.environ(f.environ...)...)
			holder.waitUntilUp(t)
			w := *f.world
			w.larder = holder
			body, err := holder.open(t.Context(), appTag)
			if err != nil {
				t.Fatal(err)
			}
			body.Body.Close()
			half := make(chan error, 1)
			go func() {
				res, err := holder.open(t.Context(), f.blob())
				if err == nil {
					_, err = io.CopyN(io.Discard, res.Body, size/2)
					res.Body.Close()
				}
				half <- err
			}()
			f.await(t, http.MethodGet, "/blobs/"+f.img.Layers[0].Digest.String(), 1)
			followers := []*controlled{f.join(t), f.join(t), f.join(t)}
			var wg sync.WaitGroup
			for _, c := range followers {
				wg.Go(func() { c.pull(t, "while the lease holder dies") })
			}
			if err := <-half; err != nil {
				t.Error(err)
			}
			if err := holder.kill(); err != nil {
				t.Error(err)
			}
			wg.Wait()
			if n := f.sent(); n > 2*size {
				t.Errorf("the registry has sent %d bytes of a blob of %d", n, size)
			}
			for _, c := range followers {
				c.wantRightCache(t)
			}
		})
	}
}

// obstructed is a way to a store that lets so many bytes of its answers through, and
// then none, until it is cut.
type obstructed struct {
	addr    string
	reached chan struct{} // closed when no more bytes come
	cut     func()        // breaks all connections, and lets none be made
}

func obstruct(t *testing.T, target string, after int64) *obstructed {
	t.Helper()
	o := &obstructed{addr: freeAddr(t), reached: make(chan struct{})}
	listener, err := net.Listen("tcp", o.addr)
	if err != nil {
		t.Fatal(err)
	}
	var left atomic.Int64
	left.Store(after)
	stop := sync.OnceFunc(func() { close(o.reached) })
	closed := make(chan struct{})
	var conns sync.WaitGroup
	o.cut = sync.OnceFunc(func() {
		listener.Close()
		close(closed)
		conns.Wait()
	})
	t.Cleanup(o.cut)
	carry := func(client net.Conn) {
		defer client.Close()
		server, err := net.Dial("tcp", target)
		if err != nil {
			return
		}
		defer server.Close()
		conns.Go(func() {
			<-closed
			client.Close()
			server.Close()
		})
		conns.Go(func() { _, _ = io.Copy(struct{ io.Writer }{server}, struct{ io.Reader }{client}) }) // splice would leave pipes
		buf := make([]byte, 32<<10)
		for {
			n, err := server.Read(buf)
			if left.Add(int64(-n)) < 0 {
				stop()
				<-closed
				return
			}
			if _, werr := client.Write(buf[:n]); err != nil || werr != nil {
				return
			}
		}
	}
	conns.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			conns.Go(func() { carry(client) })
		}
	})
	return o
}

func TestStoreThatStopsInMidPull(t *testing.T) {
	t.Parallel()
	const size = 30_000_000
	for name, stop := range map[string]func(s *obstructed){
		"killed":  func(s *obstructed) { s.cut() },
		"stalled": func(s *obstructed) {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t, "s3", size)
			first := f.join(t)
			first.pull(t, "by the first")
			first.shared(t)
			f.hub.Reset()
			way := obstruct(t, f.gateway.Endpoint[len("http://"):], 10_000_000)
			f.environ = f.through("http://" + way.addr)
			second := f.join(t)
			done := make(chan struct{})
			go func() {
				defer close(done)
				second.pull(t, "while the store stops")
			}()
			select {
			case <-way.reached:
			case <-time.After(patience):
				t.Fatal("nothing much came from the store")
			}
			stop(way)
			<-done
			second.settle(t)
			second.wantRightCache(t)
			fromStore := second.metric(t, "larder_shared_read_bytes_total", "")
			if n := f.sent(); n+fromStore > size+size/10 || fromStore < 5_000_000 {
				t.Errorf("%d bytes came from the store and %d from the registry, of a blob of %d", fromStore, n, size)
			}
			way.cut()
		})
	}
}

func TestStoreRedirects(t *testing.T) {
	t.Parallel()
	f := newFleet(t, "s3", 1_000_000)
	c := f.join(t, "LARDER_REDIRECT=true")
	c.pull(t, "before it is in the store")
	c.shared(t)
	c.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	a := c.ask(f.blob(), "")
	if a.status != http.StatusTemporaryRedirect || a.header.Get("Cache-Control") != "no-store" {
		t.Fatalf("got %v, want a redirect", a)
	}
	res, err := http.Get(a.header.Get("Location"))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if got, err := digest.FromReader(res.Body); got != f.img.Layers[0].Digest {
		t.Errorf("the signed URL leads to %s, %v: %s", got, err, res.Status)
	}
	// Who may not have it is not sent there.
	if a := c.ask(strings.Replace(f.blob(), appName, "org/other", 1), ""); a.status != http.StatusNotFound {
		t.Errorf("another repository: %v", a)
	}
	c.client.CheckRedirect = nil
	c.pull(t, "by way of the store")
}

func TestRedirectToAWrongObjectEnds(t *testing.T) {
	t.Parallel()
	for _, what := range []string{"wrong", "wrong, and not in the cache", "gone"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t, "s3", 1_000_000)
			c := f.join(t, "LARDER_REDIRECT=true")
			c.pull(t, "before it is in the store")
			c.shared(t)
			if what != "wrong" {
				c = f.join(t, "LARDER_REDIRECT=true")
			}
			c.pull(t, "by way of the store")
			object := f.object(t, f.img.Layers[0].Digest)
			if what == "gone" {
				if err := os.Remove(object); err != nil {
					t.Fatal(err)
				}
			} else if err := os.WriteFile(object, bytes.Repeat([]byte("x"), 1_000_000), 0o600); err != nil { // its label stays
				t.Fatal(err)
			}
			right := func() bool { return digest.FromBytes(c.ask(f.blob(), "").body) == f.img.Layers[0].Digest }
			for n := 0; !right(); n++ {
				if n == 3 {
					t.Fatal("it is never right")
				}
			}
			eventually(t, "the object to be replaced", func() bool {
				data, err := os.ReadFile(object)
				return err == nil && digest.FromBytes(data) == f.img.Layers[0].Digest
			})
		})
	}
}

// The last pulls of a rate limit are for clients: what the store has takes none.
func TestWarmingFromTheStoreTakesNothingOfTheRateLimit(t *testing.T) {
	t.Parallel()
	f := newFleet(t, "file", usual)
	first := f.join(t)
	first.pull(t, "by the first")
	first.shared(t)
	f.hub.AddImage("library/other", "1", seeded(t, 1, small))
	f.hub.Fault(upstreamtest.Match{}, upstreamtest.SetHeader("ratelimit-remaining", "1;w=21600"))
	second := f.join(t, "LARDER_SHARED_TIMEOUT=20s")                                     // a busy machine is no slow store
	if a := second.ask("/v2/library/other/manifests/1", ""); a.status != http.StatusOK { // which tells of the limit
		t.Fatalf("got %v", a)
	}
	f.hub.Reset()
	for _, reference := range []string{"app:1", "app@" + f.img.Manifest.String()} {
		if s, img := last(second.order(t, "", reference), "docker.io/library/"+reference); s.State != warm.Done {
			t.Errorf("%s: %+v, %+v", reference, s, img)
		}
	}
	if s, img := last(second.order(t, "", "other:2"), "docker.io/library/other:2"); s.State != warm.Failed || !strings.Contains(img.Error, "rate limit") {
		t.Errorf("what nobody has: %+v, %+v", s, img)
	}
	for _, req := range f.hub.Requests() {
		if strings.Contains(req.Path, "/manifests/") || strings.Contains(req.Path, "/blobs/") {
			t.Errorf("the registry was asked: %s %s", req.Method, req.Path)
		}
	}
	second.wantRightCache(t)
}

func TestPrivateRepositoriesStayOutOfTheStore(t *testing.T) {
	t.Parallel()
	f := newFleet(t, "file", 1_000_000)
	c := f.join(t, "LARDER_SHARED_ONLY=docker.io/org/**")
	c.pull(t, "of what is not shared")
	c.shared(t)
	if n := c.metric(t, "larder_shared_requests_total", ""); n != 0 {
		t.Errorf("the store was asked %d times", n)
	}
}

func TestPruneOfTheStore(t *testing.T) {
	t.Parallel()
	for _, store := range fleetStores {
		t.Run(store, func(t *testing.T) {
			t.Parallel()
			type pruned struct {
				DryRun  bool
				Bytes   int64
				Removed map[string]struct{ Objects, Bytes int64 }
			}
			f := newFleet(t, store, 1_000_000, 10)
			c := f.join(t)
			c.pull(t, "at first")
			c.shared(t)
			for _, query := range []string{"", "&older=0s", "&older=x", "&all=x", "&repository=a", "&older=1h&older=1h"} {
				if resp, body := ask(t, http.DefaultClient, "POST", "http://"+c.admin+"/prune?tier=shared"+query, "", ""); resp.StatusCode != http.StatusBadRequest {
					t.Errorf("%q: %s with %s", query, resp.Status, body)
				}
			}
			if p := call[pruned](t, c, "POST", "/prune?tier=shared&older=1h", http.StatusOK); p.Bytes != 0 || len(p.Removed) != 0 {
				t.Errorf("what is young went: %+v", p)
			}
			dry := call[pruned](t, c, "POST", "/prune?tier=shared&all=1&dry-run=1", http.StatusOK)
			if !dry.DryRun || dry.Removed["blobs"].Objects != 3 || dry.Removed["blobs"].Bytes < 1_000_010 || dry.Removed["manifests"].Objects != 1 || dry.Removed["tags"].Objects != 1 {
				t.Errorf("what would go: %+v", dry)
			}
			if p := call[pruned](t, c, "POST", "/prune?tier=shared&all=1", http.StatusOK); p.Bytes != dry.Bytes {
				t.Errorf("%+v went, of %+v", p, dry)
			}
			if p := call[pruned](t, c, "POST", "/prune?tier=shared&all=1", http.StatusOK); p.Bytes != 0 {
				t.Errorf("%+v was left", p)
			}
			c.pull(t, "after the prune")
		})
	}
}

// Whatever is wrong with the store, pulls go on, and the log says what to look at.
func TestStoreThatIsOfNoUse(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		kind  string
		spoil func(t *testing.T, f *fleet) []string
		hint  string
	}{
		"wrong keys": {"s3", func(_ *testing.T, f *fleet) []string {
			return append(f.environ, "LARDER_SHARED_SECRET_KEY=wrong")
		}, "key"},
		"no such bucket": {"s3", func(_ *testing.T, f *fleet) []string {
			return append(f.environ, "LARDER_SHARED="+strings.Replace(f.gateway.URL, "s3://bucket", "s3://other-bucket", 1))
		}, "bucket"},
		"nobody there": {"s3", func(_ *testing.T, f *fleet) []string { f.gateway.Stop(); return f.environ }, "refused"},
		"another version": {"file", func(t *testing.T, f *fleet) []string {
			other, err := store.Open("file://"+f.dir, store.Credentials{})
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			if _, err := other.Create(t.Context(), "version", []byte("larder 2\n")); err != nil {
				t.Fatal(err)
			}
			return f.environ
		}, "larder 2"},
		"no directory": {"file", func(_ *testing.T, f *fleet) []string {
			return []string{"LARDER_SHARED=file://" + filepath.Join(f.dir, "not", "there")}
		}, "not"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t, test.kind, 1_000_000, 5_000_000)
			f.environ = test.spoil(t, f)
			c := f.join(t)
			c.pull(t, "without a store")
			c.wantRightCache(t)
			log := c.stderr.String()
			said := 0
			for line := range strings.Lines(log) {
				if strings.Contains(line, `"logger":"shared"`) && !strings.Contains(line, `"level":"info"`) {
					said++
					if !strings.Contains(line, test.hint) {
						t.Errorf("the log says %s", line)
					}
				}
			}
			if said != 1 {
				t.Errorf("%d lines of the log are about the store, want one", said)
			}
			if strings.Contains(log, "secret-of-the-tests") {
				t.Error("a secret is in the log")
			}
		})
	}
}
