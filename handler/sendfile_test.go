package handler_test

import (
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// underStrace in the environment of the test binary is the cache directory and
// the paths that TestWarmBlobUnderStrace is to ask for.
const underStrace = "TEST_LARDER_STRACE"

// requireStrace skips t where strace is not installed or not allowed. With
// LARDER_TEST_CLIENTS=require, as in .ci/run, that is a failure.
func requireStrace(t *testing.T) {
	t.Helper()
	err := exec.Command("strace", "-o", os.DevNull, "true").Run()
	switch {
	case err == nil:
	case os.Getenv("LARDER_TEST_CLIENTS") == "require":
		t.Fatalf("strace: %v, and LARDER_TEST_CLIENTS=require", err)
	default:
		t.Skipf("strace: %v", err)
	}
}

// TestWarmBlobIsSentByTheKernel looks at the system calls: the bytes of a blob
// on disk never come into larder's memory, through all of the middlewares.
func TestWarmBlobIsSentByTheKernel(t *testing.T) {
	requireStrace(t)
	const size = 64 << 20
	l, manifest, blob := warm(t, size, setup{})
	l.close(t)
	traces := filepath.Join(t.TempDir(), "trace")
	cmd := exec.Command("strace", "-ff", "-s0", "-e", "trace=sendfile,write,writev,splice", "-o", traces,
		os.Args[0], "-test.run=^TestWarmBlobUnderStrace$", "-test.count=1", "-test.timeout=30s")
	cmd.Env = append(os.Environ(), underStrace+"="+strings.Join([]string{l.dir, manifest, blob}, " "))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("strace: %v\n%s", err, out)
	}
	calls, bytes := make(map[string]int), make(map[string]int64)
	files, err := filepath.Glob(traces + ".*")
	if err != nil {
		t.Fatal(err)
	}
	call := regexp.MustCompile(`(?m)^(\w+)\(.* = (\d+)$`)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range call.FindAllStringSubmatch(string(text), -1) {
			n, err := strconv.ParseInt(m[2], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			calls[m[1]]++
			bytes[m[1]] += n
		}
	}
	t.Logf("calls %v, bytes %v", calls, bytes)
	if bytes["sendfile"] < size-4<<10 || bytes["write"]+bytes["writev"] > 64<<10 {
		t.Errorf("sendfile sent %d bytes and write %d, want all %d by sendfile", bytes["sendfile"], bytes["write"], size)
	}
}

// TestWarmBlobUnderStrace is what the test above looks at.
func TestWarmBlobUnderStrace(t *testing.T) {
	args := strings.Fields(os.Getenv(underStrace))
	if len(args) != 3 {
		t.Skip("for TestWarmBlobIsSentByTheKernel")
	}
	l := newLarder(t, setup{dir: args[0], logger: toNowhere()})
	go l.manifests.Run(t.Context()) // it says which repository has which manifest
	await(t, "the scan", func() bool { return l.manifests.Stats().Scans == 1 })
	client := &http.Client{Timeout: 20 * time.Second}
	for _, path := range args[1:] {
		res, err := client.Get(l.server.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		n, err := io.Copy(io.Discard, res.Body)
		if err != nil || res.StatusCode != http.StatusOK || n != res.ContentLength {
			t.Fatalf("%s: got %s with %d of %d bytes, %v", path, res.Status, n, res.ContentLength, err)
		}
	}
}
