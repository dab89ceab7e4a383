package storetest

import (
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"larder/handler/shared/store"
)

// patience is how long a gateway may take to start.
const patience = 20 * time.Second

// Server is an S3 server of its own process, with one bucket.
type Server struct {
	URL         string // s3://bucket?…, to which a prefix may be added with WithPrefix
	Endpoint    string // http://host:port
	Bucket      string
	Dir         string // where the bucket's objects are files, by their keys
	Credentials store.Credentials

	t       testing.TB
	address string
	root    string
	process *exec.Cmd // nil: not running
}

// Gateway starts versitygw on a loopback address. Where it is not installed t is
// skipped; with LARDER_TEST_CLIENTS=require, as in .ci/run, that is a failure.
func Gateway(t testing.TB) *Server {
	t.Helper()
	if _, err := exec.LookPath("versitygw"); err != nil {
		if os.Getenv("LARDER_TEST_CLIENTS") == "require" {
			t.Fatal("versitygw is not installed, and LARDER_TEST_CLIENTS=require")
		}
		t.Skip("versitygw is not installed")
	}
	s := &Server{
		Bucket:      "bucket",
		Credentials: store.Credentials{AccessKey: "access", SecretKey: "secret-of-the-tests"},
		t:           t,
		address:     freeAddress(t),
		root:        t.TempDir(),
	}
	s.Endpoint = "http://" + s.address
	s.URL = s.WithPrefix("")
	s.Dir = filepath.Join(s.root, s.Bucket)
	if err := os.Mkdir(s.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s.Restart()
	t.Cleanup(s.Stop)
	return s
}

// WithPrefix is the URL of what is below a prefix.
func (s *Server) WithPrefix(prefix string) string {
	query := url.Values{"endpoint": {s.Endpoint}, "region": {"us-east-1"}}
	return "s3://" + s.Bucket + "/" + prefix + "?" + query.Encode()
}

// Open returns the store at URL, until the test ends.
func (s *Server) Open() store.Store {
	s.t.Helper()
	return open(s.t, s.URL, s.Credentials)
}

func open(t testing.TB, rawURL string, creds store.Credentials) store.Store {
	t.Helper()
	opened, err := store.Open(rawURL, creds)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := opened.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return opened
}

// Stop kills the server, with all requests that it is about to answer.
func (s *Server) Stop() {
	if s.process == nil {
		return
	}
	if err := s.process.Process.Kill(); err != nil {
		s.t.Error(err)
	}
	_ = s.process.Wait() // killed
	s.process = nil
}

// Restart starts the server at the same address with the same objects.
func (s *Server) Restart() {
	s.t.Helper()
	s.Stop()
	s.process = exec.Command("versitygw", "--port", s.address, "--keep-alive", "--quiet",
		"--access", s.Credentials.AccessKey, "--secret", s.Credentials.SecretKey, "posix", s.root)
	s.process.Stderr = s.t.Output()
	if err := s.process.Start(); err != nil {
		s.process = nil
		s.t.Fatal(err)
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for timeout := time.After(patience); ; {
		conn, err := net.Dial("tcp", s.address)
		if err == nil {
			conn.Close()
			return
		}
		select {
		case <-tick.C:
		case <-timeout:
			s.t.Fatalf("versitygw does not listen on %s: %v", s.address, err)
		}
	}
}

func freeAddress(t testing.TB) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}
