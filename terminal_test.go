package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/creack/pty"
)

// onTerminal starts larder with a terminal for its output, and returns what appears
// there.
func onTerminal(t *testing.T, width uint16, environ []string, args ...string) (output *lockedBuffer, cmd *exec.Cmd) {
	t.Helper()
	cmd = exec.Command(os.Args[0], args...)
	cmd.Env = append(environ, asLarder+"=1", "PATH="+os.Getenv("PATH"), "HOME="+t.TempDir())
	terminal, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 24, Cols: width})
	if err != nil {
		t.Fatal(err)
	}
	output = new(lockedBuffer)
	read := make(chan struct{})
	go func() { // ends when nobody has the other end any more
		defer close(read)
		io.Copy(output, terminal)
	}()
	t.Cleanup(func() {
		stopProcess(t, cmd)
		<-read
		terminal.Close()
		if t.Failed() {
			t.Logf("on the terminal:\n%s", output)
		}
	})
	return output, cmd
}

func TestGreetingOnATerminal(t *testing.T) {
	t.Parallel()
	l := newLarder(t, nil, []string{"LARDER_ADMIN_ADDR=" + freeAddr(t), "LARDER_UPSTREAMS=docker.io,ghcr.io=http://127.0.0.1:1", "LARDER_MAX_SIZE=3GiB", "LARDER_SHARED=file:///mnt/larder"})
	output, _ := onTerminal(t, 80, l.environ)
	eventually(t, "the greeting", func() bool { return strings.Contains(output.String(), " doctor\r\n\r\n") })
	_, port, _ := strings.Cut(l.addr, ":")
	_, adminPort, _ := strings.Cut(l.admin(t), ":")
	for _, want := range []string{
		"clients      http://localhost:" + port, "status       http://localhost:" + adminPort + "/",
		"upstreams    docker.io, ghcr.io (http://127.0.0.1:1)", "cache        " + l.cache + ", 0B of 3GiB", "shared       file:///mnt/larder",
		"curl -fsS localhost:" + adminPort + "/setup/containerd.sh | sudo sh", "http://localhost:" + adminPort + "/setup",
		"if something is wrong:       " + os.Args[0] + " doctor\r\n", // as it was called
	} {
		if !strings.Contains(output.String(), want) {
			t.Errorf("it does not say %q", want)
		}
	}
	// And lines for people.
	l.get(t, "/v2/")
	request := regexp.MustCompile(`(?m)^\d\d:\d\d:\d\d\t\S*INFO\S*\thttp\trequest\t`)
	eventually(t, "a line for people", func() bool { return request.MatchString(output.String()) })
}

// Programs that read what larder says get no greeting.
func TestNoGreetingForPrograms(t *testing.T) {
	t.Parallel()
	l := execLarder(t, nil)
	l.waitUntilUp(t)
	l.stop(t)
	for line := range strings.Lines(l.stderr.String()) {
		if !strings.HasPrefix(line, `{"level":`) {
			t.Errorf("this is no JSON: %s", line)
		}
	}
	asked := newLarder(t, nil, []string{"LARDER_LOG_FORMAT=json"})
	output, _ := onTerminal(t, 80, asked.environ)
	asked.waitOn(t)
	eventually(t, "the first line", func() bool { return strings.Contains(output.String(), "larder started") })
	if text := output.String(); !strings.HasPrefix(text, `{"level":`) || strings.Contains(text, "something is wrong") {
		t.Errorf("who wants JSON on a terminal gets %q", text)
	}
}

// waitOn waits for a larder that the test has started itself.
func (l *larder) waitOn(t *testing.T) {
	t.Helper()
	eventually(t, "larder to answer", func() bool {
		resp, err := l.open(t.Context(), "/v2/")
		if err == nil {
			resp.Body.Close()
		}
		return err == nil
	})
}

func TestHelpExplainsEveryVariable(t *testing.T) {
	var out bytes.Buffer
	if err := help([]string{
		"LARDER_TAG_TTL=5m", "LARDER_USERNAME=alice", "LARDER_PASSWORD=hush", "LARDER_BLOB_TTL=", "LARDER_LOG_LEVEL=hush2",
		"LARDER_CACHE_DIR=/c\x1b[31m", "LARDER_ADMIN_ADDR=", "PATH=/bin", "LARDER_UPSTREAMS=docker.io,https://u:hush3@ghcr.io", "LARDER_NOBODY=hush4",
	}, &out); err != nil {
		t.Fatal(err)
	}
	text := out.String()
	var known []string
	for _, topic := range topics(readme) {
		if topic.name == "" || !strings.Contains(text, "\n"+strings.ToUpper(topic.name)+"\n") {
			t.Errorf("no topic %q", topic.name)
		}
		for _, v := range topic.variables {
			known = append(known, v.names...)
		}
	}
	for f := range reflect.TypeFor[config]().Fields() {
		name := f.Tag.Get("env")
		if name != "" && (!slices.Contains(known, name) || !strings.Contains(text, name)) {
			t.Errorf("%s is not explained", name)
		}
		holds := regexp.MustCompile(`_(PASSWORD|LOGIN|SECRET)$`).MatchString(name)
		if holds && !isSecret(name) {
			t.Errorf("%s would be shown", name)
		}
	}
	for _, want := range []string{
		"LARDER_TAG_TTL (default: 0s)\n", "* now LARDER_TAG_TTL is 5m", "* now LARDER_USERNAME is alice", "* now LARDER_PASSWORD is set, and not shown",
		"* now LARDER_LOG_LEVEL is wrong", "* now LARDER_UPSTREAMS is wrong", `* now LARDER_CACHE_DIR is "/c\x1b[31m"`, `* now LARDER_ADMIN_ADDR is ""`,
		"docker.io=https://mirror.example|https://registry-1.docker.io", "docker.io/library/*,ghcr.io/org/**.", "larder doctor",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("it does not say %q", want)
		}
	}
	for _, not := range []string{"hush", "now LARDER_BLOB_TTL", "`", "](", "\x1b"} {
		if strings.Contains(text, not) {
			t.Errorf("it says %q", not)
		}
	}
	for line := range strings.Lines(text) {
		if n := len([]rune(strings.TrimSuffix(line, "\n"))); n > defaultWidth {
			t.Errorf("a line of %d: %s", n, line)
		}
	}
}

func TestHelpIsAsWideAsTheTerminal(t *testing.T) {
	t.Parallel()
	output, cmd := onTerminal(t, 60, nil, "help")
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the end of it", func() bool { return strings.Contains(output.String(), "LARDER_SHUTDOWN_GRACE") })
	longest := 0
	_, variables, _ := strings.Cut(output.String(), "explain the commands and the variables")
	for line := range strings.Lines(variables) {
		if line = strings.TrimRight(line, "\r\n"); strings.HasPrefix(line, "    ") && strings.Contains(line[6:], " ") {
			longest = max(longest, len([]rune(line)))
		}
	}
	if longest > 60 || longest < 50 {
		t.Errorf("the longest line has %d, of 60", longest)
	}
}

func TestCommandLine(t *testing.T) {
	for _, args := range [][]string{{"frobnicate"}, {"--frob"}, {"version", "now"}, {""}} {
		var out bytes.Buffer
		err := command(t.Context(), args, nil, &out, &out)
		if exitStatus(err) != 2 || !errors.Is(err, errUsage) || out.Len() > 0 {
			t.Errorf("%q: %v, status %d, %s", args, err, exitStatus(err), &out)
			continue
		}
		for _, name := range []string{"demo", "doctor", "health", "version", "help"} {
			if !strings.Contains(err.Error(), name) {
				t.Errorf("%q: %v does not name %s", args, err, name)
			}
		}
	}
	for _, args := range [][]string{{"help"}, {"-h"}, {"help", "warm"}, {"warm", "-h"}, {"doctor", "--help"}} {
		var out bytes.Buffer
		if err := command(t.Context(), args, nil, &out, io.Discard); err != nil || !strings.HasPrefix(out.String(), usage) {
			t.Errorf("%q: %v, %s", args, err, &out)
		}
	}
	if err := command(t.Context(), []string{"warm", "alpine"}, []string{"LARDER_ADMIN_ADDR=" + freeAddr(t)}, io.Discard, io.Discard); err == nil || !strings.Contains(err.Error(), "LARDER_ADMIN_ADDR") {
		t.Errorf("warm without a larder says %v", err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "frobnicate")
	cmd.Env = []string{asLarder + "=1", "HOME=" + t.TempDir()}
	out, err := cmd.CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 2 || !strings.Contains(string(out), `"frobnicate"`) {
		t.Errorf("got %v: %s", err, out)
	}
}
