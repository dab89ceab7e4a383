package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// larder is one that runs.
type larder struct {
	cmd         *exec.Cmd
	addr, admin string
	began       time.Time
	log         bytes.Buffer
	client      http.Client
}

// start starts larder on a cache directory. It has no upstream, and asks for none:
// what it is asked for is there.
func start(ctx context.Context, binary, dir string, environ ...string) (*larder, error) {
	l := &larder{cmd: exec.CommandContext(ctx, binary)}
	var err error
	if l.addr, err = freeAddr(); err != nil {
		return nil, err
	}
	if l.admin, err = freeAddr(); err != nil {
		return nil, err
	}
	l.cmd.Env = append([]string{
		"LARDER_ADDR=" + l.addr, "LARDER_ADMIN_ADDR=" + l.admin, "LARDER_CACHE_DIR=" + dir,
		"LARDER_UPSTREAMS=" + host + "=http://127.0.0.1:1", "LARDER_TAG_TTL=240h", "LARDER_MIN_FREE=0", "LARDER_LOG_LEVEL=error",
	}, environ...)
	l.cmd.Stderr = &l.log
	l.began = time.Now()
	return l, l.cmd.Start()
}

// freeAddr is an address that nobody listened on just now.
func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// stop ends it, gracefully, and fails if it had anything to complain about.
func (l *larder) stop() error {
	l.client.CloseIdleConnections()
	err := l.cmd.Process.Signal(syscall.SIGTERM)
	if err := errors.Join(err, l.cmd.Wait()); err != nil {
		return fmt.Errorf("larder: %w\n%s", err, l.log.String())
	}
	if l.log.Len() > 0 {
		return fmt.Errorf("larder complains: %s", l.log.String())
	}
	return nil
}

// get asks for what has the given digest, and fails unless it gets that.
func (l *larder) get(path, digest string) error {
	resp, err := l.client.Get("http://" + l.addr + path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK || sum(body) != digest {
		return fmt.Errorf("%s: %s, %.100q", path, resp.Status, body)
	}
	return nil
}

// firstAnswer waits until a request gets its right answer; how long that took is
// counted from the start of the process.
func (l *larder) firstAnswer(r request) (time.Duration, error) {
	for {
		err := l.get(r.path, r.digest)
		took := time.Since(l.began)
		if err == nil {
			return took, nil
		}
		if !errors.Is(err, syscall.ECONNREFUSED) || took > time.Minute {
			return 0, err
		}
		time.Sleep(200 * time.Microsecond)
	}
}

func (l *larder) admins(path string) ([]byte, error) {
	resp, err := l.client.Get("http://" + l.admin + path)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", path, resp.Status)
	}
	return io.ReadAll(resp.Body)
}

// metric is the value of one, by its name and labels.
func (l *larder) metric(name string) (int, error) {
	text, err := l.admins("/metrics")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			return int(v), err
		}
	}
	return 0, fmt.Errorf("no metric %s", name)
}

// scanned waits until larder knows all that is on disk, and fails if that is not
// what there should be.
func (l *larder) scanned(t *tree) error {
	resp, err := l.client.Get("http://" + l.admin + "/cache/" + host + "/none") // its 404 comes then
	if err != nil {
		return err
	}
	resp.Body.Close()
	for name, want := range map[string]int{
		`larder_cache_entries{kind="blob"}`: t.blobs, `larder_cache_entries{kind="manifest"}`: t.images,
	} {
		if n, err := l.metric(name); err != nil || n != want {
			return errors.Join(err, fmt.Errorf("%s is %d and not %d", name, n, want))
		}
	}
	return nil
}

// heap is what is alive on the Go heap, and the CPU that finding out took: that of
// a garbage collection.
func (l *larder) heap() (bytes int, gc time.Duration, err error) {
	before, err := l.cpu()
	if err != nil {
		return 0, 0, err
	}
	if _, err := l.admins("/debug/pprof/heap?gc=1"); err != nil {
		return 0, 0, err
	}
	after, err := l.cpu()
	if err != nil {
		return 0, 0, err
	}
	text, err := l.admins("/debug/vars")
	if err != nil {
		return 0, 0, err
	}
	var vars struct {
		Memstats struct{ HeapAlloc int } `json:"memstats"`
	}
	err = json.Unmarshal(text, &vars)
	return vars.Memstats.HeapAlloc, after - before, err
}

func (l *larder) proc(name string) string {
	return filepath.Join("/proc", strconv.Itoa(l.cmd.Process.Pid), name)
}

// rss is what of the process is in memory, and is not a file's.
func (l *larder) rss() (bytes int, err error) {
	status, err := os.ReadFile(l.proc("status"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == "VmRSS:" {
			kib, err := strconv.Atoi(fields[1])
			return kib << 10, err
		}
	}
	return 0, errors.New("no VmRSS")
}

// cpu is the time that all threads have had, to the nanosecond.
func (l *larder) cpu() (total time.Duration, err error) {
	threads, err := filepath.Glob(l.proc("task/*/schedstat"))
	if err != nil {
		return 0, err
	}
	for _, name := range threads {
		text, err := os.ReadFile(name)
		if err != nil {
			return 0, err
		}
		var ns int64
		if _, err := fmt.Sscan(string(text), &ns); err != nil {
			return 0, err
		}
		total += time.Duration(ns)
	}
	return total, nil
}
