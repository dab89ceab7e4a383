package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"larder/handler/upstream/upstreamtest"
)

// asLarder in the environment makes the test binary larder.
const asLarder = "TEST_AS_LARDER"

// patience is how long a test waits for what must happen.
const patience = 30 * time.Second

// TestMain lets tests start larder as a process of its own without building it,
// and checks that all of them together have left nothing behind.
func TestMain(m *testing.M) {
	if os.Getenv(asLarder) != "" {
		confine()
		main()
		return
	}
	flag.Parse()
	if n := runtime.GOMAXPROCS(0); flag.Lookup("test.parallel").Value.String() == strconv.Itoa(n) {
		flag.Set("test.parallel", strconv.Itoa(3*n)) // they wait more than they compute
	}
	// These stay, once they are there: a port, and os/signal's goroutine.
	if err := upstreamtest.TakePorts(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGHUP)
	signal.Stop(signals)
	before := takeStock()
	status := m.Run()
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	if err := before.wantNoMore(); err != nil && status == 0 {
		fmt.Fprintln(os.Stderr, "left behind by the tests:", err)
		status = 1
	}
	os.Exit(status)
}

// requireProgram skips t where one of the programs is not installed. With
// LARDER_TEST_CLIENTS=require, as in .ci/run, that is a failure.
func requireProgram(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			skipOrFail(t, name+" is not installed")
		}
	}
}

// requireRoot skips t for users who cannot run containers.
func requireRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		skipOrFail(t, "running containers takes root")
	}
}

func skipOrFail(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("LARDER_TEST_CLIENTS") == "require" {
		t.Fatalf("%s, and LARDER_TEST_CLIENTS=require", why)
	}
	t.Skip(why)
}

// eventually waits until ok says yes.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(patience)
	for !ok() {
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatalf("after %v still waiting for %s", patience, what)
		}
	}
}

// freeAddr is a loopback address that nobody listens on.
func freeAddr(t testing.TB) string { return upstreamtest.FreeAddr(t) }

// shortDir is a temporary directory whose name leaves room for a socket's.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ldr")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// writeFile makes a file with its directories.
func writeFile(t *testing.T, file, content string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// lockedBuffer is what several goroutines may write to while another reads.
type lockedBuffer struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// runCommand runs a program to its end and returns its standard output.
func runCommand(t *testing.T, environ []string, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), environ...)
	cmd.WaitDelay = 5 * time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, &stderr)
	}
	return string(out), err
}

// startDaemon starts a program that runs until the test ends. The end of its output
// is shown if the test failed.
func startDaemon(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	var output lockedBuffer
	cmd := exec.Command(name, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()} // docker-registry would obey REGISTRY_*
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stopProcess(t, cmd)
		if t.Failed() {
			text := output.String()
			t.Logf("%s:\n%s", name, text[max(0, len(text)-2000):])
		}
	})
	return cmd
}

// stopProcess terminates cmd and waits for its end.
func stopProcess(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Error(err)
	}
	kill := time.AfterFunc(patience, func() { cmd.Process.Kill() })
	defer kill.Stop()
	cmd.Wait() // a signal ended it: the error is no news
}

// larder is the program under test: run in this process, or a process.
type larder struct {
	addr    string
	cache   string
	environ []string
	stdout  *lockedBuffer
	stderr  *lockedBuffer

	done   chan struct{} // closed when it ended
	err    error         // how; set before done is closed
	cancel func()        // asks it to end
	kill   func() error  // for a process only
	pid    int           // of the same
}

// newLarder prepares a larder in front of upstreams, the first of which is
// the default one. The environment may override everything.
func newLarder(t testing.TB, upstreams []*testUpstream, environ []string) *larder {
	t.Helper()
	l := &larder{stdout: new(lockedBuffer), stderr: new(lockedBuffer), done: make(chan struct{})}
	var list []string
	for _, u := range upstreams {
		list = append(list, u.host+"=http://"+u.addr)
	}
	l.environ = []string{
		"LARDER_ADMIN_ADDR=",
		"LARDER_CACHE_DIR=" + filepath.Join(t.TempDir(), "cache"),
		"HOME=" + t.TempDir(),
	}
	if len(list) == 0 && !sets(environ, "LARDER_UPSTREAMS") {
		list = []string{"docker.io=http://" + freeAddr(t)}
	}
	if len(list) > 0 {
		l.environ = append(l.environ, "LARDER_UPSTREAMS="+strings.Join(list, ","))
	}
	if !sets(environ, "LARDER_ADDR") {
		l.environ = append(l.environ, "LARDER_ADDR="+freeAddr(t))
	}
	l.environ = append(l.environ, environ...)
	for _, entry := range l.environ {
		if v, ok := strings.CutPrefix(entry, "LARDER_ADDR="); ok {
			l.addr = v
		}
		if v, ok := strings.CutPrefix(entry, "LARDER_CACHE_DIR="); ok {
			l.cache = v
		}
	}
	return l
}

// sets reports whether an environment sets a variable.
func sets(environ []string, name string) bool {
	return slices.ContainsFunc(environ, func(entry string) bool { return strings.HasPrefix(entry, name+"=") })
}

// runLarder calls run, which need not succeed.
func runLarder(t testing.TB, upstreams []*testUpstream, environ ...string) *larder {
	t.Helper()
	l := newLarder(t, upstreams, environ)
	ctx, cancel := context.WithCancel(context.Background())
	l.cancel = cancel
	go func() {
		defer close(l.done)
		l.err = run(ctx, l.environ, l.stdout, l.stderr)
	}()
	l.stopAtEnd(t)
	return l
}

// startLarder returns a larder that answers.
func startLarder(t testing.TB, upstreams []*testUpstream, environ ...string) *larder {
	t.Helper()
	l := runLarder(t, upstreams, environ...)
	l.waitUntilUp(t)
	return l
}

// execLarder starts larder as a process, which need not succeed.
func execLarder(t testing.TB, upstreams []*testUpstream, environ ...string) *larder {
	t.Helper()
	l := newLarder(t, upstreams, environ)
	l.exec(t, exec.Command(os.Args[0]))
	return l
}

// exec starts larder with a command that becomes it.
func (l *larder) exec(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	cmd.Env = append(l.environ, asLarder+"=1", "PATH="+os.Getenv("PATH"))
	cmd.Stdout, cmd.Stderr = l.stdout, l.stderr
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	l.cancel = func() { cmd.Process.Signal(syscall.SIGTERM) }
	l.kill, l.pid = cmd.Process.Kill, cmd.Process.Pid
	go func() {
		defer close(l.done)
		l.err = cmd.Wait()
	}()
	l.stopAtEnd(t)
}

func (l *larder) stopAtEnd(t testing.TB) {
	t.Cleanup(func() {
		l.cancel()
		if l.wait(t); t.Failed() {
			t.Logf("larder ended with %v:\n%s", l.err, l.stderr)
		}
	})
}

// wait waits until larder ended and returns why.
func (l *larder) wait(t testing.TB) error {
	t.Helper()
	select {
	case <-l.done:
		return l.err
	case <-time.After(patience):
		if l.kill != nil {
			l.kill()
		}
		t.Fatalf("larder still runs after %v", patience)
		return nil
	}
}

// stop ends larder in good order.
func (l *larder) stop(t testing.TB) {
	t.Helper()
	l.cancel()
	if err := l.wait(t); err != nil {
		t.Fatalf("larder ended with %v", err)
	}
}

func (l *larder) waitUntilUp(t testing.TB) {
	t.Helper()
	eventually(t, "larder to answer", func() bool {
		select {
		case <-l.done:
			t.Fatalf("larder ended with %v", l.err)
		default:
		}
		if strings.HasSuffix(l.addr, ":0") && !l.findAddr() {
			return false
		}
		resp, err := http.Get("http://" + l.addr + "/v2/")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

// findAddr sets addr to where larder says that it listens, if it has said so.
func (l *larder) findAddr() bool {
	_, line, _ := strings.Cut(l.stderr.String(), `"msg":"larder started"`)
	_, line, _ = strings.Cut(line, `"addr":"`)
	addr, _, ok := strings.Cut(line, `"`)
	if ok {
		l.addr = addr
	}
	return ok
}

// get asks larder for a path and reads the whole answer.
func (l *larder) get(t testing.TB, path string) (*http.Response, []byte) {
	t.Helper()
	resp, err := l.open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("GET %s: %v", path, err)
	}
	return resp, body
}

// open asks larder for a path and leaves the body to the caller.
func (l *larder) open(ctx context.Context, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+l.addr+path, nil)
	if err != nil {
		return nil, err
	}
	return http.DefaultClient.Do(req)
}

// errorCode is the code in an OCI error document.
func errorCode(t *testing.T, body []byte) string {
	t.Helper()
	var doc struct {
		Errors []struct{ Code string }
	}
	if err := json.Unmarshal(body, &doc); err != nil || len(doc.Errors) == 0 {
		t.Fatalf("got body %q, want an OCI error (%v)", body, err)
	}
	return doc.Errors[0].Code
}
