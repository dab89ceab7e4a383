package main

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// execHandedDown starts larder as a process as systemd does: with sockets, whose
// names are a list with colons.
func execHandedDown(t *testing.T, upstreams []*testUpstream, names string, sockets []*os.File, environ ...string) *larder {
	t.Helper()
	l := newLarder(t, upstreams, append([]string{"LISTEN_FDNAMES=" + names, "LISTEN_FDS=" + string('0'+rune(len(sockets)))}, environ...))
	cmd := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ exec "$0"`, os.Args[0])
	cmd.ExtraFiles = sockets
	l.exec(t, cmd)
	return l
}

// handDown opens a socket that somebody else may accept from.
func handDown(t *testing.T) (file *os.File, addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if file, err = l.(*net.TCPListener).File(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return file, l.Addr().String()
}

func TestSocketsOfSystemd(t *testing.T) {
	t.Parallel()
	hub := newUpstream(t, "docker.io")
	hub.push(t, "library/larder-test-hello:1", layeredImage(t, 2))
	registry, addr := handDown(t)
	admin, adminAddr := handDown(t)
	notified := filepath.Join(shortDir(t), "notify")
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notified, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notify.Close()
	early, err := net.Dial("tcp", addr) // before there is a larder
	if err != nil {
		t.Fatal(err)
	}
	defer early.Close()

	// Nobody could listen where the variables say.
	l := execHandedDown(t, []*testUpstream{hub}, "admin:registry", []*os.File{admin, registry},
		"LARDER_ADDR="+addr, "LARDER_ADMIN_ADDR="+adminAddr, "NOTIFY_SOCKET="+notified)
	wantNotice(t, notify, "READY=1")
	wantStatus(t, early, "/v2/", http.StatusOK)
	if err := craneClient(addr).pull(t, hubName+":1"); err != nil {
		t.Error(err)
	}
	admins, err := net.Dial("tcp", adminAddr)
	if err != nil {
		t.Fatal(err)
	}
	defer admins.Close()
	wantStatus(t, admins, "/metrics", http.StatusOK)
	l.stop(t)
	wantNotice(t, notify, "STOPPING=1")

	late, err := net.Dial("tcp", addr) // after it
	if err != nil {
		t.Fatalf("the socket is gone with larder: %v", err)
	}
	defer late.Close()
	execHandedDown(t, []*testUpstream{hub}, "registry", []*os.File{registry}, "LARDER_CACHE_DIR="+l.cache)
	wantStatus(t, late, "/v2/", http.StatusOK)
}

// TestUnixSocketOfSystemd has clients reach larder by a file, as behind a proxy on the
// same machine.
func TestUnixSocketOfSystemd(t *testing.T) {
	t.Parallel()
	name := filepath.Join(shortDir(t), "registry")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	socket, err := listener.File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	l := newLarder(t, nil, []string{"LISTEN_FDNAMES=registry", "LISTEN_FDS=1"})
	cmd := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ exec "$0"`, os.Args[0])
	cmd.ExtraFiles = []*os.File{socket}
	l.exec(t, cmd)
	conn, err := net.Dial("unix", name)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	wantStatus(t, conn, "/v2/", http.StatusOK)
}

// wantNotice waits for what larder tells systemd next.
func wantNotice(t *testing.T, from net.Conn, want string) {
	t.Helper()
	text := make([]byte, 1024)
	from.SetReadDeadline(time.Now().Add(patience))
	n, err := from.Read(text)
	if got, _, _ := strings.Cut(string(text[:n]), "\n"); err != nil || got != want {
		t.Errorf("systemd is told %q (%v), want %s", text[:n], err, want)
	}
}

// wantStatus asks on a connection that is there already.
func wantStatus(t *testing.T, conn net.Conn, path string, want int) {
	t.Helper()
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, "GET "+path+" HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != want {
		t.Errorf("GET %s: got %s, want %d", path, res.Status, want)
	}
}

func TestSocketsThatMeanNothing(t *testing.T) {
	t.Parallel()
	socket, _ := handDown(t)
	datagrams, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer datagrams.Close()
	packets, err := datagrams.File()
	if err != nil {
		t.Fatal(err)
	}
	defer packets.Close()
	for name, test := range map[string]struct {
		names   string
		sockets []*os.File
		environ string
		named   string
	}{
		"another name":     {"larder.socket", []*os.File{socket}, "", `"larder.socket"`},
		"no name":          {"", []*os.File{socket}, "", "FileDescriptorName="},
		"the same twice":   {"registry:registry", []*os.File{socket, socket}, "", "two of that name"},
		"admin is off":     {"admin", []*os.File{socket}, "LARDER_ADMIN_ADDR=", "LARDER_ADMIN_ADDR"},
		"not for requests": {"registry", []*os.File{packets}, "", `"registry"`},
	} {
		t.Run(name, func(t *testing.T) {
			l := execHandedDown(t, nil, test.names, test.sockets, "LARDER_ADMIN_ADDR="+freeAddr(t), test.environ)
			wantExit(t, l, 2, test.named)
		})
	}
}
