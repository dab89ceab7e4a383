package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// auditRecord is a line of the audit log.
type auditRecord struct {
	Event, Time, ID, Client, User, Method, Kind, Host, Repository, Reference, Digest, Outcome, Verdict, Path string

	Status  int
	Bytes   int64
	Seconds float64
}

// auditRecords reads a log, each line of which must be a record.
func auditRecords(t *testing.T, log string) (records []auditRecord) {
	t.Helper()
	for line := range strings.Lines(log) {
		var r auditRecord
		if err := json.Unmarshal([]byte(line), &r); err != nil || !strings.HasSuffix(line, "\n") || r.Time == "" || r.ID == "" {
			t.Errorf("%q is no record (%v)", line, err)
		}
		records = append(records, r)
	}
	return records
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	content, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// wantPairs checks that each record has its other half, and returns the ends.
func wantPairs(t *testing.T, records []auditRecord) (ends []auditRecord) {
	t.Helper()
	begun := make(map[string]auditRecord)
	for _, r := range records {
		begin, ok := begun[r.ID]
		switch {
		case r.Event == "begin" && !ok:
			begun[r.ID] = r
		case r.Event == "end" && ok && begin.User == r.User && begin.Repository == r.Repository && begin.Digest == r.Digest && begin.Status == r.Status:
			delete(begun, r.ID)
			ends = append(ends, r)
		default:
			t.Errorf("%+v does not go with %+v", r, begin)
		}
	}
	if len(begun) > 0 {
		t.Errorf("without an end: %v", begun)
	}
	return ends
}

func TestAuditLogOfAPull(t *testing.T) {
	t.Parallel()
	hub := newUpstream(t, "docker.io")
	img := layeredImage(t, 2)
	hub.push(t, "library/larder-test-hello:1", img)
	file := writeFile(t, filepath.Join(t.TempDir(), "audit.json"), `{"event":"begin","time":"then","id":"before"}`+"\n"+`{"event":"end","time":"then","id":"before"}`+"\n")
	l := startLarder(t, []*testUpstream{hub}, "LARDER_AUDIT_LOG="+file, "LARDER_LOG_LEVEL=error")
	if err := craneClient(l.addr).pull(t, hubName+":1"); err != nil {
		t.Fatal(err)
	}
	l.stop(t)
	ends := wantPairs(t, auditRecords(t, readFile(t, file)))
	seen := make(map[string]int64)
	for _, r := range ends[1:] { // the first was there before
		if r.Host != "docker.io" || r.Repository != "docker.io/library/larder-test-hello" || r.Verdict != "served" || r.Outcome == "" || r.Method != "HEAD" && r.Bytes == 0 ||
			!strings.HasPrefix(r.Client, "127.0.0.1:") || r.Seconds <= 0 || r.Status != http.StatusOK {
			t.Errorf("recorded %+v", r)
		}
		seen[r.Kind+" "+r.Digest] += r.Bytes
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, layer := range layers {
		if size, err := layer.Size(); err != nil || seen["blob "+digestOf(t, layer)] != size {
			t.Errorf("a layer of %d bytes (%v) is not among %v", size, err, seen)
		}
	}
	if seen["manifest "+digestOf(t, img)] == 0 {
		t.Errorf("the manifest is not among %v", seen)
	}
	if strings.Contains(l.stderr.String(), "request") {
		t.Errorf("the access log is not hidden: %s", l.stderr)
	}
}

func TestAuditLogOnStdout(t *testing.T) {
	t.Parallel()
	l := execLarder(t, nil, "LARDER_AUDIT_LOG=stdout", "LARDER_LOG_LEVEL=error", "LARDER_DENY=docker.io/org/**", "LARDER_HTPASSWD="+passwordFile(t, "user", "hush"))
	url := "http://" + l.addr + "/v2/"
	eventually(t, "larder to answer", func() bool {
		resp, err := http.Get(url)
		if err != nil {
			return false
		}
		resp.Body.Close()
		return true
	})
	// A name that would be a record of its own, if it were written as it is.
	forged := `evil.example/%0a%7b%22event%22:%22end%22%7d%0a/manifests/1`
	for path, user := range map[string]string{"org/a/manifests/1": "user", "org/a/blobs/sha256:" + strings.Repeat("0a", 32): "", forged: "user", "": "user"} {
		ask(t, http.DefaultClient, "GET", url+path+"?token=hush", user, "hush")
	}
	l.stop(t)
	ends := wantPairs(t, auditRecords(t, l.stdout.String()))
	got := make(map[string]auditRecord)
	for _, r := range ends {
		got[fmt.Sprint(r.Kind, " ", r.Status)] = r
	}
	if r := got["manifest 403"]; r.User != "user" || r.Verdict != "refused" || r.Outcome != "denied" || r.Repository != "docker.io/org/a" || r.Reference != "1" {
		t.Errorf("of what is denied: %+v", r)
	}
	if r := got["blob 401"]; r.User != "" || r.Verdict != "refused" || r.Repository != "docker.io/org/a" || r.Digest != "sha256:"+strings.Repeat("0a", 32) {
		t.Errorf("without a password: %+v", r)
	}
	if r := got["manifest 404"]; r.Verdict != "absent" && r.Verdict != "refused" || !strings.Contains(r.Path, "\n{") {
		t.Errorf("of what is not mirrored: %+v", r)
	}
	if len(ends) != 3 || strings.Contains(l.stdout.String(), "hush") {
		t.Errorf("recorded %s", l.stdout)
	}
}

func TestNoAuditLogUnlessAsked(t *testing.T) {
	t.Parallel()
	l := startLarder(t, nil)
	l.get(t, "/v2/a/manifests/1")
	l.stop(t)
	if l.stdout.String() != "" {
		t.Errorf("recorded %s", l.stdout)
	}
}

// TestAuditLogIsRotated renames the file of a larder that is busy, as logrotate
// does. Each record is in one of the files.
func TestAuditLogIsRotated(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "audit.json")
	l := execLarder(t, nil, "LARDER_AUDIT_LOG="+file, "LARDER_DENY=docker.io/a/b")
	l.waitUntilUp(t)
	if info, err := os.Stat(file); err != nil || info.Mode() != 0o600 {
		t.Errorf("got %v, %v; want it private", info.Mode(), err)
	}
	stop := make(chan struct{})
	asked := make(chan int, 4)
	var wg sync.WaitGroup
	for range cap(asked) {
		wg.Go(func() {
			n := 0
			defer func() { asked <- n }()
			for ; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				if resp, _ := ask(t, http.DefaultClient, "GET", "http://"+l.addr+"/v2/a/b/manifests/1", "", ""); resp.StatusCode != http.StatusForbidden {
					t.Errorf("got %s", resp.Status)
				}
			}
		})
	}
	for i := range 3 {
		eventually(t, "records", func() bool { return len(readFile(t, file)) > 10_000 })
		if err := os.Rename(file, fmt.Sprint(file, ".", i)); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(l.pid, syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		eventually(t, "a new file", func() bool { _, err := os.Stat(file); return err == nil })
	}
	close(stop)
	wg.Wait()
	l.stop(t)
	var all strings.Builder
	for i := range 3 {
		all.WriteString(readFile(t, fmt.Sprint(file, ".", i)))
	}
	ends := wantPairs(t, auditRecords(t, all.String()+readFile(t, file)))
	requests := 0
	for range cap(asked) {
		requests += <-asked
	}
	if len(ends) != requests || requests == 0 {
		t.Errorf("%d requests are recorded, of %d", len(ends), requests)
	}
}

// What can't be opened anew is gone on with.
func TestAuditLogThatCannotBeRotated(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "logs")
	file := writeFile(t, filepath.Join(dir, "audit.json"), "")
	l := execLarder(t, nil, "LARDER_AUDIT_LOG="+file, "LARDER_DENY=docker.io/a/b")
	l.waitUntilUp(t)
	if err := os.Rename(dir, dir+".old"); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(l.pid, syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "larder to say so", func() bool { return strings.Contains(l.stderr.String(), "going on with the old file") })
	l.get(t, "/v2/a/b/manifests/1")
	l.stop(t)
	if ends := wantPairs(t, auditRecords(t, readFile(t, filepath.Join(dir+".old", "audit.json")))); len(ends) != 1 {
		t.Errorf("recorded %v", ends)
	}
}

func TestAuditLogThatCannotBeOpened(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"/none/audit.json", t.TempDir(), t.TempDir() + "/"} {
		wantExit(t, execLarder(t, nil, "LARDER_AUDIT_LOG="+path), 2, "LARDER_AUDIT_LOG", path)
	}
}

// A disk that is full costs records, of which larder tells, and no pulls.
func TestAuditLogThatCannotBeWritten(t *testing.T) {
	t.Parallel()
	hub := newUpstream(t, "docker.io")
	hub.push(t, "library/larder-test-hello:1", layeredImage(t, 2))
	l := startLarder(t, []*testUpstream{hub}, "LARDER_AUDIT_LOG=/dev/full")
	for range 3 {
		if err := craneClient(l.addr).pull(t, hubName+":1"); err != nil {
			t.Error(err)
		}
	}
	l.stop(t)
	if n := strings.Count(l.stderr.String(), "audit records are lost"); n != 1 {
		t.Errorf("%d lines tell of it, want 1: %s", n, l.stderr)
	}
}

// A pipe that is full, as nobody reads it, costs records as well.
func TestAuditLogThatNobodyReads(t *testing.T) {
	t.Parallel()
	pipe := filepath.Join(t.TempDir(), "audit")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	reader, err := os.OpenFile(pipe, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	l := startLarder(t, nil, "LARDER_AUDIT_LOG="+pipe, "LARDER_DENY=docker.io/a/b")
	client := &http.Client{Timeout: patience / 2}
	for range 200 {
		if resp, _ := ask(t, client, "GET", "http://"+l.addr+"/v2/a/b/manifests/1", "", ""); resp.StatusCode != http.StatusForbidden {
			t.Fatalf("got %s", resp.Status)
		}
	}
	l.stop(t)
	if !strings.Contains(l.stderr.String(), "audit records are lost") {
		t.Errorf("nothing tells of it: %s", l.stderr)
	}
	reader.Close()
	wantExit(t, execLarder(t, nil, "LARDER_AUDIT_LOG="+pipe), 2, "LARDER_AUDIT_LOG", pipe)
}

// An answer that the end of larder cuts short has an end all the same.
func TestAuditLogOfAnAnswerCutShort(t *testing.T) {
	t.Parallel()
	hub := newUpstream(t, "docker.io")
	file := filepath.Join(t.TempDir(), "audit.json")
	l := startLarder(t, []*testUpstream{hub}, "LARDER_AUDIT_LOG="+file, "LARDER_SHUTDOWN_GRACE=10ms")
	_, path := bigBlob(t, hub, l, 4<<20)
	release := hub.hold(64 << 10)
	defer release()
	var cut []io.Closer
	for range 20 {
		resp, err := l.open(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		cut = append(cut, resp.Body)
	}
	l.stop(t)
	for _, body := range cut {
		body.Close()
	}
	broken := 0
	for _, r := range wantPairs(t, auditRecords(t, readFile(t, file))) {
		if r.Kind == "blob" && r.Verdict == "broken" && r.Bytes > 0 {
			broken++
		}
	}
	if broken != len(cut) || strings.Contains(l.stderr.String(), "audit records are lost") {
		t.Errorf("%d answers are recorded as broken, want %d", broken, len(cut))
	}
}

// halfWriter has room for some bytes, and then for more.
type halfWriter struct {
	bytes.Buffer
	room int
}

func (w *halfWriter) Write(p []byte) (int, error) {
	n, _ := w.Buffer.Write(p[:min(len(p), w.room)])
	w.room -= n
	if n < len(p) {
		return n, io.ErrShortWrite
	}
	return n, nil
}

// A record that is on disk in part does not spoil the next one.
func TestTornAuditRecord(t *testing.T) {
	core, logs := observer.New(zap.InfoLevel)
	w := &halfWriter{room: 5}
	a, err := openAudit("stdout", w, zap.New(core))
	if err != nil {
		t.Fatal(err)
	}
	for i, record := range []string{"first\n", "lost\n", "second\n", "third\n"} {
		if i == 2 {
			w.room = 100
		}
		if n, err := a.Write([]byte(record)); n != len(record) || err != nil {
			t.Errorf("got %d, %v; want no error, ever", n, err)
		}
	}
	if got := w.String(); got != "first\nsecond\nthird\n" {
		t.Errorf("written %q", got)
	}
	if n := logs.FilterField(zap.Error(errors.New(io.ErrShortWrite.Error()))).Len(); n != 1 {
		t.Errorf("logged %v, want one line", logs.All())
	}
}
