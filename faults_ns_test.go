package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
)

// silentListener counts those who connect. Nobody should.
func silentListener(t *testing.T) (addr string, connected *atomic.Int64) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	connected = new(atomic.Int64)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			connected.Add(1)
			conn.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-ended
	})
	return l.Addr().String(), connected
}

// send writes a request as it is, and reads the answer to it.
func (w *world) send(t *testing.T, request string) answer {
	t.Helper()
	conn := w.dial(t)
	if _, err := io.WriteString(conn, request); err != nil {
		return answer{err: err}
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return answer{err: err}
	}
	defer resp.Body.Close()
	a := answer{status: resp.StatusCode, header: resp.Header}
	a.body, a.err = io.ReadAll(resp.Body)
	return a
}

// TestNobodyElseIsEverDialled names hosts that are not listed wherever a request
// can name one.
func TestNobodyElseIsEverDialled(t *testing.T) {
	t.Parallel()
	addr, connected := silentListener(t)
	_, port, _ := net.SplitHostPort(addr)
	targets := map[string]string{
		"ns":                       "/v2/library/app/manifests/1?ns=" + addr,
		"ns, URL":                  "/v2/library/app/manifests/1?ns=http://" + addr,
		"ns, path":                 "/v2/library/app/manifests/1?ns=" + addr + "/docker.io",
		"ns, host name":            "/v2/library/app/manifests/1?ns=localhost:" + port,
		"ns, IPv6":                 "/v2/library/app/manifests/1?ns=[::1]:" + port,
		"ns, IPv4 as IPv6":         "/v2/library/app/manifests/1?ns=[::ffff:127.0.0.1]:" + port,
		"ns, number":               "/v2/library/app/manifests/1?ns=2130706433:" + port,
		"ns, short address":        "/v2/library/app/manifests/1?ns=127.1:" + port,
		"ns, userinfo":             "/v2/library/app/manifests/1?ns=docker.io@" + addr,
		"ns, userinfo, escaped":    "/v2/library/app/manifests/1?ns=docker.io%40" + url.QueryEscape(addr),
		"ns, fragment":             "/v2/library/app/manifests/1?ns=" + addr + "%23docker.io",
		"ns, query":                "/v2/library/app/manifests/1?ns=" + addr + "%3Fdocker.io",
		"ns, NUL":                  "/v2/library/app/manifests/1?ns=" + addr + "%00docker.io",
		"ns, newline":              "/v2/library/app/manifests/1?ns=docker.io%0d%0aHost:%20" + addr,
		"ns, list":                 "/v2/library/app/manifests/1?ns=docker.io," + addr,
		"ns, space":                "/v2/library/app/manifests/1?ns=docker.io%20" + addr,
		"ns twice":                 "/v2/library/app/manifests/1?ns=docker.io&ns=" + addr,
		"ns twice, other order":    "/v2/library/app/manifests/1?ns=" + addr + "&ns=docker.io",
		"ns, another port":         "/v2/library/app/manifests/1?ns=docker.io:" + port,
		"ns, a dot behind":         "/v2/library/app/manifests/1?ns=docker.io.",
		"ns, sub-domain":           "/v2/library/app/manifests/1?ns=evil.docker.io",
		"ns, metadata service":     "/v2/library/app/manifests/1?ns=169.254.169.254",
		"ns of a blob":             "/v2/library/app/blobs/sha256:" + strings.Repeat("a", 64) + "?ns=" + addr,
		"ns of tags":               "/v2/library/app/tags/list?ns=" + addr,
		"ns of referrers":          "/v2/library/app/referrers/sha256:" + strings.Repeat("a", 64) + "?ns=" + addr,
		"path":                     "/v2/" + addr + "/library/app/manifests/1",
		"path, host name":          "/v2/localhost:" + port + "/library/app/manifests/1",
		"path, escaped":            "/v2/127.0.0.1%3A" + port + "/library/app/manifests/1",
		"path, userinfo":           "/v2/docker.io@" + addr + "/library/app/manifests/1",
		"path, up":                 "/v2/library/../../" + addr + "/app/manifests/1",
		"path, up, escaped":        "/v2/library/%2e%2e/%2e%2e/" + addr + "/manifests/1",
		"path, two slashes":        "//" + addr + "/v2/library/app/manifests/1",
		"absolute form":            "http://" + addr + "/v2/evil.example/app/manifests/1",
		"absolute form, no larder": "http://" + addr + "/",
	}
	for name, target := range targets {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, nil, small)
			a := w.send(t, "GET "+target+" HTTP/1.1\r\nHost: "+addr+"\r\nX-Forwarded-Host: "+addr+"\r\nConnection: close\r\n\r\n")
			if a.err != nil || a.status < 400 {
				t.Errorf("got %v, want a refusal", a)
			}
			if n := connected.Load(); n > 0 {
				t.Errorf("%d connections to a host that is not listed", n)
			}
			if got := w.hub.Requests(); len(got) > 0 {
				t.Errorf("the listed upstream was asked %s %s", got[0].Method, got[0].Path)
			}
			w.recovers(t)
		})
	}
	for _, method := range []string{"CONNECT", "OPTIONS", "TRACE", "POST", "PUT", "PATCH", "DELETE"} {
		t.Run(method, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, nil, small)
			target := appTag
			if method == "CONNECT" {
				target = addr
			}
			a := w.send(t, fmt.Sprintf("%s %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", method, target, addr))
			if a.err == nil && a.status < 400 {
				t.Errorf("got %v, want a refusal", a)
			}
			if connected.Load() > 0 || len(w.hub.Requests()) > 0 {
				t.Error("somebody was asked")
			}
			w.recovers(t)
		})
	}
}
