package main

import (
	"errors"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// wantRefusal checks that run returned, and that its error names all of these.
func wantRefusal(t *testing.T, l *larder, names ...string) {
	t.Helper()
	err := l.wait(t)
	if err == nil {
		t.Fatal("larder ended without an error")
	}
	for _, name := range names {
		if !strings.Contains(err.Error(), name) {
			t.Errorf("got error %q, want one that names %s", err, name)
		}
	}
}

// wantExit checks that the process ended with a code and said all of these.
func wantExit(t *testing.T, l *larder, code int, names ...string) {
	t.Helper()
	err := l.wait(t)
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != code {
		t.Errorf("larder ended with %v, want exit status %d", err, code)
	}
	for _, name := range names {
		if !strings.Contains(l.stderr.String(), name) {
			t.Errorf("got message %q, want one that names %s", l.stderr, name)
		}
	}
}

func TestSecondLarderRefuses(t *testing.T) {
	t.Parallel()
	first := startLarder(t, nil)
	wantRefusal(t, runLarder(t, nil, "LARDER_CACHE_DIR="+first.cache), first.cache)
	wantExit(t, execLarder(t, nil, "LARDER_CACHE_DIR="+first.cache), 1, first.cache)
	first.waitUntilUp(t)
	first.stop(t)
	startLarder(t, nil, "LARDER_CACHE_DIR="+first.cache)
}

func TestPortInUse(t *testing.T) {
	t.Parallel()
	for _, variable := range []string{"LARDER_ADDR", "LARDER_ADMIN_ADDR"} {
		t.Run(variable, func(t *testing.T) {
			t.Parallel()
			taken, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer taken.Close()
			addr := taken.Addr().String()
			wantRefusal(t, runLarder(t, nil, variable+"="+addr), addr)
			wantExit(t, execLarder(t, nil, variable+"="+addr), 1, addr)
		})
	}
}

func TestUnwritableDirectory(t *testing.T) {
	t.Parallel()
	// Root may write to any directory, but not to a file's children.
	file := writeFile(t, filepath.Join(t.TempDir(), "file"), "")
	dir := filepath.Join(file, "cache")
	wantRefusal(t, runLarder(t, nil, "LARDER_CACHE_DIR="+dir), file)
	wantExit(t, execLarder(t, nil, "LARDER_CACHE_DIR="+dir), 1, file)
}

func TestForeignDirectoryIsLeftAlone(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "thesis.tex"), "\\end{document}")
	wantRefusal(t, runLarder(t, nil, "LARDER_CACHE_DIR="+dir), dir)
	if files, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(files) != 1 {
		t.Errorf("got files %v (%v), want what was there", files, err)
	}
}

func TestBadConfigurationNamesEveryVariable(t *testing.T) {
	t.Parallel()
	environ := []string{
		"LARDER_UPSTREAMS=docker.io=ftp://example.com",
		"LARDER_BLOB_TTL=a week",
		"LARDER_MANIFEST_TTL=-1h",
		"LARDER_TAG_TTL=soon",
		"LARDER_LOG_LEVEL=loud",
		"LARDER_LOG_FORMAT=poem",
		"LARDER_SHUTDOWN_GRACE=20",
		"LARDER_TLS_CERT=/cert/without/a/key",
	}
	var names []string
	for _, entry := range environ {
		name, _, _ := strings.Cut(entry, "=")
		names = append(names, name)
	}
	wantRefusal(t, runLarder(t, nil, environ...), names...)
	wantExit(t, execLarder(t, nil, environ...), 2, names...)
}

func TestUnknownVariableWarns(t *testing.T) {
	t.Parallel()
	l := startLarder(t, nil, "LARDER_UPSTREAM=ghcr.io", "LARDER_PORT_5000_TCP=tcp://10.0.0.1:5000")
	l.stop(t)
	warning := regexp.MustCompile(`(?im)^.*LARDER_UPSTREAM\b.*$`).FindString(l.stderr.String())
	if !regexp.MustCompile(`(?i)did.you.mean.*LARDER_UPSTREAMS\b`).MatchString(warning) {
		t.Errorf("got %q, want a warning that asks: did you mean LARDER_UPSTREAMS", warning)
	}
}

func TestStartsWithUpstreamDown(t *testing.T) {
	t.Parallel()
	hub := newUpstream(t, "docker.io")
	hub.push(t, "library/larder-test-hello:1", layeredImage(t, 2))
	hub.push(t, "library/larder-test-hello:2", layeredImage(t, 2))
	first := startLarder(t, []*testUpstream{hub})
	if err := craneClient(first.addr).pull(t, hubName+":1"); err != nil {
		t.Fatal(err)
	}
	first.stop(t)
	hub.stop()

	l := startLarder(t, []*testUpstream{hub}, "LARDER_CACHE_DIR="+first.cache)
	if err := craneClient(l.addr).pull(t, hubName+":1"); err != nil {
		t.Errorf("pull what is cached: %v", err)
	}
	resp, body := l.get(t, "/v2/library/larder-test-hello/manifests/2")
	if resp.StatusCode != http.StatusBadGateway {
		t.Fatalf("got %s with %q, want 502", resp.Status, body)
	}
	if got := errorCode(t, body); got != "UNAVAILABLE" {
		t.Errorf("got code %s, want UNAVAILABLE", got)
	}

	hub.start(t)
	if err := craneClient(l.addr).pull(t, hubName+":2"); err != nil {
		t.Errorf("pull after upstream came back: %v", err)
	}
}
