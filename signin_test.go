package main

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
)

// signInModes are the ways in which clients sign in to larder.
var signInModes = map[string][]string{"basic": nil, "token": {"LARDER_AUTH=token"}}

// startLocked starts a larder that wants alice or bob, of whom alice may have
// everything and bob what is at Docker Hub. Two upstreams have an image each.
func startLocked(t *testing.T, environ ...string) *larder {
	t.Helper()
	upstreams := []*testUpstream{newUpstream(t, "docker.io"), newUpstream(t, "ghcr.io")}
	upstreams[0].push(t, "library/larder-test-hello:1", layeredImage(t, 2))
	upstreams[1].push(t, "larder-test/multi:v1", multiArchIndex(t))
	return startWithUsers(t, upstreams, append([]string{
		"LARDER_ACCESS=" + writeFile(t, filepath.Join(t.TempDir(), "access"), "alice **\nbob docker.io/library/*\n"),
	}, environ...)...)
}

// startWithUsers starts a larder of which all but its health is locked.
func startWithUsers(t *testing.T, upstreams []*testUpstream, environ ...string) *larder {
	t.Helper()
	var passwords strings.Builder
	for _, user := range []string{"alice", "bob"} {
		line, err := os.ReadFile(passwordFile(t, user, user+"'s: password"))
		if err != nil {
			t.Fatal(err)
		}
		passwords.Write(line)
	}
	l := runLarder(t, upstreams, append([]string{"LARDER_HTPASSWD=" + writeFile(t, filepath.Join(t.TempDir(), "htpasswd"), passwords.String())}, environ...)...)
	eventually(t, "larder to answer", func() bool { return health(t.Context(), l.environ) == nil })
	return l
}

// wantRefused checks that a client has failed, and has said why.
func wantRefused(t *testing.T, what string, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: no error", what)
		return
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%s: got %v, want %q", what, err, word)
		}
	}
}

// signInClient is a client with a command for signing in.
type signInClient interface {
	testClient
	login(t *testing.T, addr, user, pass string) (stdout string, err error)
}

// testSignIn signs in with a right password and a wrong one, and pulls from two
// upstreams, one of them through a mirror with a path.
func testSignIn(t *testing.T, newClient func(t *testing.T, addr string) signInClient) {
	for mode, environ := range signInModes {
		t.Run(mode, func(t *testing.T) {
			l := startLocked(t, environ...)
			c := newClient(t, l.addr)
			wantRefused(t, "pull without signing in", c.pull(t, hubName+":1"))
			_, err := c.login(t, l.addr, "alice", "wrong")
			wantRefused(t, "wrong password", err, "invalid username/password")
			wantRefused(t, "pull after that", c.pull(t, hubName+":1"))
			out, err := c.login(t, l.addr, "alice", "alice's: password")
			if err != nil || out != "Login Succeeded!\n" {
				t.Fatalf("sign in: got %q, %v", out, err)
			}
			for _, reference := range []string{hubName + ":1", ghcrName + ":v1"} {
				if err := c.pull(t, reference); err != nil {
					t.Error(err)
				}
			}
			bob := newClient(t, l.addr)
			if out, err := bob.login(t, l.addr, "bob", "bob's: password"); err != nil {
				t.Fatalf("bob signs in: got %q, %v", out, err)
			}
			if err := bob.pull(t, hubName+":1"); err != nil {
				t.Errorf("bob pulls what he may: %v", err)
			}
			wantRefused(t, "bob pulls what he may not", bob.pull(t, ghcrName+":v1"), "denied")
			if tokens := strings.Contains(l.stderr.String(), `"path":"/token","took"`); tokens != (mode == "token") {
				t.Errorf("tokens were asked for: %t", tokens)
			}
		})
	}
}

func TestSkopeoSignsIn(t *testing.T) {
	t.Parallel()
	requireProgram(t, "skopeo")
	testSignIn(t, func(t *testing.T, addr string) signInClient {
		return &skopeo{home: containersHome(t, addr), dir: t.TempDir()}
	})
}

func TestPodmanSignsIn(t *testing.T) {
	t.Parallel()
	requireProgram(t, "podman", "runc", "conmon")
	requireRoot(t)
	testSignIn(t, func(t *testing.T, addr string) signInClient {
		return &podman{home: containersHome(t, addr), dir: shortDir(t)}
	})
}

func TestCraneSignsIn(t *testing.T) {
	t.Parallel()
	for mode, environ := range signInModes {
		t.Run(mode, func(t *testing.T) {
			l := startLocked(t, environ...)
			c := craneClient(l.addr)
			wantRefused(t, "anonymous", c.pull(t, hubName+":1"), "UNAUTHORIZED")
			wantRefused(t, "wrong password", c.pullAs(t, &authn.Basic{Username: "alice", Password: "wrong"}, hubName+":1"), "UNAUTHORIZED")
			alice, bob := &authn.Basic{Username: "alice", Password: "alice's: password"}, &authn.Basic{Username: "bob", Password: "bob's: password"}
			for _, reference := range []string{hubName + ":1", ghcrName + ":v1"} {
				if err := c.pullAs(t, alice, reference); err != nil {
					t.Error(err)
				}
			}
			if err := c.pullAs(t, bob, hubName+":1"); err != nil {
				t.Error(err)
			}
			wantRefused(t, "bob pulls what he may not", c.pullAs(t, bob, ghcrName+":v1"), "DENIED")
		})
	}
}

func TestContainerdSignsIn(t *testing.T) {
	t.Parallel()
	requireContainerd(t)
	for mode, environ := range signInModes {
		t.Run(mode, func(t *testing.T) {
			l := startLocked(t, environ...)
			c := newContainerd(t, l.addr, "docker.io", "ghcr.io")
			wantRefused(t, "anonymous", c.pull(t, hubName+":1"))
			wantRefused(t, "wrong password", c.pullAs(t, "alice:wrong", hubName+":1"), "401")
			wantRefused(t, "bob pulls what he may not", c.pullAs(t, "bob:bob's: password", ghcrName+":v1"), "403")
			c.sendHeader(t, l.addr, "ghcr.io", "Basic "+base64.StdEncoding.EncodeToString([]byte("alice:alice's: password")))
			if err := c.pull(t, ghcrName+":v1"); err != nil {
				t.Errorf("with a header in hosts.toml: %v", err)
			}
			if err := c.pullAs(t, "bob:bob's: password", hubName+":1"); err != nil {
				t.Error(err)
			}
			if err := c.pullAs(t, "alice:alice's: password", hubName+":1"); err != nil {
				t.Error(err)
			}
			if tokens := strings.Contains(l.stderr.String(), `"path":"/token","took"`); tokens != (mode == "token") {
				t.Errorf("tokens were asked for: %t", tokens)
			}
		})
	}
}
