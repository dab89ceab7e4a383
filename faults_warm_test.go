package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"larder/handler/upstream/upstreamtest"
	"larder/handler/warm"
)

// TestUpstreamDiesWhileImagesAreWarmed cuts one layer off for good. What can be had
// is had, what is known is told, and the next order goes on where this one broke off.
func TestUpstreamDiesWhileImagesAreWarmed(t *testing.T) {
	t.Parallel()
	c := newControlled(t, nil, usual, small)
	other := c.hub.AddImage("library/other", "1", seeded(t, 9, usual))
	d := c.img.Layers[0].Digest
	gate := make(chan struct{})
	remove := c.hub.Fault(upstreamtest.Match{Path: d.String()}, upstreamtest.GateAfter(100<<10, gate))
	done := make(chan []warmEvent, 1)
	go func() { done <- c.order(t, "", "other:1\napp:1") }()
	eventually(t, "the other image", func() bool { return c.hasImage(other) && sentOf(c.hub, c.blob()) == 100<<10 })
	c.hub.Stop()
	events := <-done
	s, img := last(events, "docker.io/"+appName+":1")
	if s.State != warm.Failed || s.Done != 1 || s.Failed != 1 || !strings.Contains(img.Error, d.String()) {
		t.Fatalf("got %+v, %+v", s, img)
	}
	// The breaker is open, or will be: nobody waits for it, and what is here is warm.
	s, img = last(c.order(t, "", "other:1"), "docker.io/library/other:1")
	if s.State != warm.Done || !img.Stale || img.Cached == 0 {
		t.Errorf("with upstream gone, what is here: %+v, %+v", s, img)
	}
	for range 6 {
		s, img = last(c.order(t, "", "third:1"), "docker.io/library/third:1")
	}
	if s.State != warm.Failed || !strings.Contains(img.Error, "not asked for another") {
		t.Errorf("with the breaker open: %+v, %+v", s, img)
	}
	remove()
	c.hub.Start()
	eventually(t, "the rest", func() bool {
		s, _ := last(c.order(t, "", "app:1"), "docker.io/"+appName+":1")
		return s.State == warm.Done
	})
	if n := sentOf(c.hub, c.blob()); n > usual+64<<10 {
		t.Errorf("upstream sent %d bytes of a layer of %d", n, usual)
	}
	c.recovers(t)
}

// TestADiskThatIsFullIsNotWarmedThrough orders more than there is room for.
func TestADiskThatIsFullIsNotWarmedThrough(t *testing.T) {
	t.Parallel()
	c := newControlled(t, []string{"LARDER_MAX_SIZE=1MiB"}, small)
	const large = 32 << 20
	img := c.hub.AddImage("library/large", "1", seeded(t, 1, large))
	s, image := last(c.order(t, "", "large:1"), "docker.io/library/large:1")
	if s.State != warm.Failed || !strings.Contains(image.Error, "can't be kept") {
		t.Errorf("got %+v, %+v", s, image)
	}
	if n := sentOf(c.hub, "/v2/library/large/blobs/"+img.Layers[0].Digest.String()); n > large/2 { // what the sockets hold
		t.Errorf("upstream sent %d bytes of what can't be kept", n)
	}
	c.recovers(t)
}

func TestWhatIsListedIsWarmFromTheStart(t *testing.T) {
	t.Parallel()
	w := prepareWorld(t, usual, small)
	file := writeFile(t, filepath.Join(t.TempDir(), "list"), "app:1 # ours\n")
	c := &controlled{world: w}
	w.larder = startLarder(t, nil, w.environ("LARDER_ADMIN_ADDR=127.0.0.1:0", "LARDER_WARM=@"+file)...)
	c.findAdmin()
	c.wantRightCache(t)
	next := c.hub.AddImage("library/next", "1", seeded(t, 5, small))
	writeFile(t, file, "app:1\nquay.io/next:1\n") // wrong: what was before stays
	eventually(t, "the complaint", func() bool {
		return strings.Contains(c.stderr.String(), "list of what to warm changed and can't be used")
	})
	if err := os.WriteFile(file, []byte("app:1\nnext:1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the next image", func() bool { return c.hasImage(next) })
	if n := c.hub.Count("GET", "/blobs/"); n != 5 {
		t.Errorf("upstream was asked for blobs %d times", n)
	}
	c.hub.Stop()
	c.pull(t, "with upstream gone")
}

func TestAListThatIsWrongEndsTheStart(t *testing.T) {
	t.Parallel()
	file := writeFile(t, filepath.Join(t.TempDir(), "list"), "App:1")
	for _, value := range []string{"App:1", "alpine,quay.io/org/app", "@" + file, file, "@/nowhere", "./nowhere"} {
		l := runLarder(t, nil, "LARDER_WARM="+value)
		if err := l.wait(t); err == nil || !strings.Contains(err.Error(), "LARDER_WARM") || exitStatus(err) != 2 {
			t.Errorf("%s: larder ended with %v", value, err)
		}
	}
}

// TestWarmCommand asks a larder, which wants a password, as its users do.
func TestWarmCommand(t *testing.T) {
	t.Parallel()
	admin := freeAddr(t)
	w := newWorld(t, []string{"LARDER_ADMIN_ADDR=" + admin, "LARDER_ADMIN_HTPASSWD=" + passwordFile(t, "op", "s3cret")}, usual, small)
	environ := []string{"LARDER_ADMIN_ADDR=" + admin, "LARDER_ADMIN_LOGIN=op:s3cret", "HOME=" + t.TempDir()}
	larder := func(ctx context.Context, environ []string, args ...string) (string, error) {
		var out bytes.Buffer
		err := command(ctx, append([]string{"warm"}, args...), environ, &out, io.Discard)
		return out.String(), err
	}
	out, err := larder(t.Context(), environ, "app:1", "library/nobody:1")
	if !errors.Is(err, errNotWarmed) || exitStatus(err) != 1 || !strings.Contains(out, "docker.io/library/app:1: warm, 320") ||
		!strings.Contains(out, "docker.io/library/nobody:1: failed: ") || !strings.Contains(out, "1 of 2 warm") {
		t.Errorf("got %v and\n%s", err, out)
	}
	if out, err := larder(t.Context(), environ, "-platform", "all", "app:1"); err != nil || !strings.Contains(out, "0B fetched") {
		t.Errorf("got %v and\n%s", err, out)
	}
	if out, err := larder(t.Context(), environ, "--detach", "app:1"); err != nil || out != "job 3 goes on; see http://"+admin+"/warm/3\n" {
		t.Errorf("detached: %v and\n%s", err, out)
	}
	for says, args := range map[string][]string{
		"entry 1": {"App:1"}, "platform": {"-platform", "x", "app:1"}, "wrong command line": {"-x"}, "takes references": {},
	} {
		if out, err := larder(t.Context(), environ, args...); err == nil || !strings.Contains(err.Error(), says) || out != "" {
			t.Errorf("%v: got %v and %s", args, err, out)
		}
	}
	if _, err := larder(t.Context(), environ[:1], "app:1"); err == nil || !strings.Contains(err.Error(), "LARDER_ADMIN_LOGIN") {
		t.Errorf("without a password: %v", err)
	}
	if _, err := larder(t.Context(), []string{"LARDER_ADMIN_ADDR="}, "app:1"); err == nil || !strings.Contains(err.Error(), "LARDER_ADMIN_ADDR") {
		t.Errorf("without a listener: %v", err)
	}
	// An interrupt stops what was begun.
	w.hub.AddImage("library/slow", "1", seeded(t, 7, usual))
	w.hub.Fault(upstreamtest.Match{Path: "/slow/blobs/"}, upstreamtest.StallAfter(100))
	ctx, interrupt := context.WithCancel(t.Context())
	go func() {
		_ = w.hub.Await(ctx, "GET", "/slow/blobs/", 1)
		interrupt()
	}()
	if _, err := larder(ctx, environ, "slow:1"); err == nil || exitStatus(err) != 1 || !strings.Contains(err.Error(), "is kept") {
		t.Errorf("interrupted: %v", err)
	}
	eventually(t, "the job to be stopped", func() bool {
		_, text := ask(t, http.DefaultClient, "GET", "http://"+admin+"/metrics", "op", "s3cret")
		return strings.Contains(text, "\nlarder_warm_jobs 0\n") && strings.Contains(text, "\nlarder_warm_images_total{state=\"stopped\"} 1\n")
	})
	w.stop(t)
	if _, err := larder(t.Context(), environ, "app:1"); err == nil || exitStatus(err) != 1 {
		t.Errorf("without a larder: %v", err)
	}
}
