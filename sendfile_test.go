package main

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
)

// TestBlobsAndRangesOnDiskAreSentByTheKernel looks at the system calls of a larder that
// is a process, with its own listener and all middlewares: what is sent of a blob on disk
// never comes into its memory, and a range leaves as a whole blob does.
func TestBlobsAndRangesOnDiskAreSentByTheKernel(t *testing.T) {
	t.Parallel()
	requireProgram(t, "strace")
	if err := exec.Command("strace", "-o", os.DevNull, "true").Run(); err != nil {
		skipOrFail(t, "strace does not work: "+err.Error())
	}
	const size, span, ranges = 64 << 20, 64 << 10, 16
	w := newWorld(t, nil, size)
	w.pull(t, "before")
	w.stop(t)
	traces := filepath.Join(t.TempDir(), "trace")
	w.larder = newLarder(t, nil, w.environ("LARDER_CACHE_DIR="+w.cache))
	// With -D, it is larder that is this process's child.
	w.larder.exec(t, exec.Command("strace", "-D", "-ff", "-s0", "-e", "trace=sendfile,write,writev", "-o", traces, os.Args[0]))
	w.waitUntilUp(t)
	t.Cleanup(w.client.CloseIdleConnections)
	w.next(t, appTag) // which says that the repository has the blob
	if a := w.next(t, w.blob()); a.status != http.StatusOK || len(a.body) != size {
		t.Fatalf("got %v", a)
	}
	for i := range ranges {
		first := i * size / ranges
		if a := w.ask(w.blob(), fmt.Sprintf("%d-%d", first, first+span-1)); a.status != http.StatusPartialContent || len(a.body) != span {
			t.Fatalf("a range: got %v", a)
		}
	}
	w.stop(t)
	var sent map[string]int
	eventually(t, "the tracer to be at its end", func() bool {
		sent = traced(t, traces)
		return sent["sendfile"]+sent["write"]+sent["writev"] >= size+ranges*span
	})
	// The start of an answer may leave with its header; log lines are written too.
	if sent["sendfile"] < size+ranges*span-(ranges+1)*4<<10 || sent["write"]+sent["writev"] > 64<<10 {
		t.Errorf("of %d bytes, these were sent: %v", size+ranges*span, sent)
	}
}

// traced is how many bytes each system call has moved, by the files of strace -ff.
func traced(t *testing.T, prefix string) map[string]int {
	t.Helper()
	files, err := filepath.Glob(prefix + ".*")
	if err != nil {
		t.Fatal(err)
	}
	moved := make(map[string]int)
	call := regexp.MustCompile(`(?m)^(\w+)\(.* = (\d+)$`)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range call.FindAllStringSubmatch(string(text), -1) {
			n, err := strconv.Atoi(m[2])
			if err != nil {
				t.Fatal(err)
			}
			moved[m[1]] += n
		}
	}
	return moved
}
