package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
)

// getToken gets one from a larder, for pulling from repositories.
func getToken(t *testing.T, l *larder, user, pass string, names ...string) string {
	t.Helper()
	resp, body := ask(t, http.DefaultClient, "GET", "http://"+l.addr+"/token?service=larder&scope=repository:"+strings.Join(names, ":pull+repository:")+":pull", user, pass)
	var answer struct{ Token string }
	if err := json.Unmarshal([]byte(body), &answer); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("got %s with %q (%v), want a token", resp.Status, body, err)
	}
	return answer.Token
}

// askWith asks a larder with a token, and returns the status and what is said to
// be wrong with the token.
func askWith(t *testing.T, l *larder, token, path string) (status int, challenge string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+l.addr+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	_, challenge, _ = strings.Cut(resp.Header.Get("WWW-Authenticate"), `,error="`)
	return resp.StatusCode, strings.TrimSuffix(challenge, `"`)
}

// tokenKey is a file with a private key, and the key.
func tokenKey(t *testing.T) (file, content string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	content = string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	return writeFile(t, filepath.Join(t.TempDir(), "token.key"), content), content
}

// TestAnonymousPull has clients that have no password, and one that has.
func TestAnonymousPull(t *testing.T) {
	t.Parallel()
	l := startLocked(t, "LARDER_AUTH=token", "LARDER_ANONYMOUS_PULL=true",
		"LARDER_ACCESS="+writeFile(t, filepath.Join(t.TempDir(), "access"), "anonymous docker.io/library/*\nalice ghcr.io/**\n"))
	check := func(t *testing.T, c testClient) {
		if err := c.pull(t, hubName+":1"); err != nil {
			t.Error(err)
		}
		wantRefused(t, "more than anonymous clients may pull", c.pull(t, ghcrName+":v1"))
	}
	t.Run("crane", func(t *testing.T) {
		check(t, craneClient(l.addr))
		for _, reference := range []string{hubName + ":1", ghcrName + ":v1"} {
			if err := craneClient(l.addr).pullAs(t, &authn.Basic{Username: "alice", Password: "alice's: password"}, reference); err != nil {
				t.Errorf("alice: %v", err)
			}
		}
		wantRefused(t, "with a wrong password", craneClient(l.addr).pullAs(t, &authn.Basic{Username: "alice", Password: "x"}, hubName+":1"), "UNAUTHORIZED")
	})
	t.Run("skopeo", func(t *testing.T) {
		requireProgram(t, "skopeo")
		check(t, &skopeo{home: containersHome(t, l.addr), dir: t.TempDir()})
	})
	t.Run("containerd", func(t *testing.T) {
		requireContainerd(t)
		check(t, newContainerd(t, l.addr, "docker.io", "ghcr.io"))
	})
}

// TestTokenIsForTheNamesThatClientsUse is about names that mean several things,
// or that several names mean.
func TestTokenIsForTheNamesThatClientsUse(t *testing.T) {
	t.Parallel()
	l := startWithUsers(t, nil, "LARDER_AUTH=token", "LARDER_UPSTREAMS=docker.io=http://127.0.0.1:1,ghcr.io=http://127.0.0.1:1",
		"LARDER_ACCESS="+writeFile(t, filepath.Join(t.TempDir(), "access"), "alice docker.io/library/*\nalice ghcr.io/org/*\nbob ghcr.io/bob/**"))
	const none = http.StatusBadGateway // allowed, but the upstream is not there
	alice := func(names ...string) string { return getToken(t, l, "alice", "alice's: password", names...) }
	tests := map[string]struct {
		token, path, challenge string
		status                 int
	}{
		"by its name":                 {alice("library/a"), "/v2/library/a/manifests/1", "", none},
		"short":                       {alice("a"), "/v2/a/manifests/1", "", none},
		"short, with the long scope":  {alice("library/a"), "/v2/a/manifests/1", "insufficient_scope", 401},
		"with its host":               {alice("docker.io/library/a"), "/v2/docker.io/library/a/manifests/1", "", none},
		"another host":                {alice("ghcr.io/org/a"), "/v2/ghcr.io/org/a/manifests/1", "", none},
		"another host, by ns":         {alice("org/a"), "/v2/org/a/manifests/1?ns=ghcr.io", "", none},
		"ns and host in the scope":    {alice("ghcr.io/org/a"), "/v2/org/a/manifests/1?ns=ghcr.io", "insufficient_scope", 401},
		"the name, but not there":     {alice("org/a"), "/v2/org/a/manifests/1", "", 403},
		"the name, not there, by ns":  {alice("org/a"), "/v2/org/a/manifests/1?ns=docker.io", "", 403},
		"nowhere":                     {alice("bob/a"), "/v2/bob/a/manifests/1?ns=ghcr.io", "", 403},
		"bob's":                       {getToken(t, l, "bob", "bob's: password", "bob/a/b"), "/v2/bob/a/b/manifests/1?ns=ghcr.io", "", none},
		"blobs":                       {alice("library/a"), "/v2/library/b/blobs/sha256:" + strings.Repeat("0a", 32), "insufficient_scope", 401},
		"tags":                        {alice("library/a"), "/v2/library/b/tags/list", "insufficient_scope", 401},
		"referrers":                   {alice("library/a"), "/v2/library/b/referrers/sha256:" + strings.Repeat("0a", 32), "insufficient_scope", 401},
		"upstream that is not listed": {alice("quay.io/a/b"), "/v2/quay.io/a/b/manifests/1", "", 404},
		"no name":                     {alice("library/A"), "/v2/library/A/manifests/1", "", 400},
		"no endpoint":                 {alice("library/a"), "/v2/library/a/uploads/1", "", 404},
		"nothing":                     {"x.y.z", "/v2/library/a/uploads/1", "invalid_token", 401},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if status, challenge := askWith(t, l, test.token, test.path); status != test.status || challenge != test.challenge {
				t.Errorf("got %d, error %q; want %d, %q", status, challenge, test.status, test.challenge)
			}
		})
	}
}

func TestLardersThatShareAKeyTakeEachOthersTokens(t *testing.T) {
	t.Parallel()
	key, _ := tokenKey(t)
	one := startWithUsers(t, nil, "LARDER_AUTH=token", "LARDER_TOKEN_KEY="+key)
	other := startWithUsers(t, nil, "LARDER_AUTH=token", "LARDER_TOKEN_KEY="+key)
	alone := startWithUsers(t, nil, "LARDER_AUTH=token")
	for _, from := range []*larder{one, other, alone} {
		token := getToken(t, from, "alice", "alice's: password", "a/b")
		for _, to := range []*larder{one, other, alone} {
			want := http.StatusUnauthorized
			if from == to || from != alone && to != alone {
				want = http.StatusOK
			}
			if status, _ := askWith(t, to, token, "/v2/"); status != want {
				t.Errorf("token of %s at %s: %d, want %d", from.addr, to.addr, status, want)
			}
		}
	}
}

// TestLarderSignsInToALarder is a node's before one that many nodes share.
func TestLarderSignsInToALarder(t *testing.T) {
	t.Parallel()
	for mode, environ := range signInModes {
		t.Run(mode, func(t *testing.T) {
			central := startLocked(t, environ...)
			for pass, denied := range map[string]bool{"alice's: password": false, "wrong": true} {
				node := startLarder(t, nil, "LARDER_UPSTREAMS=docker.io=http://"+central.addr, "LARDER_USERNAME=alice", "LARDER_PASSWORD="+pass)
				if err := craneClient(node.addr).pull(t, hubName+":1"); (err != nil) != denied {
					t.Errorf("with password %q: %v, want denied: %t", pass, err, denied)
				}
				if denied {
					wantDenied(t, node, "/v2/library/larder-test-hello/manifests/1")
				}
			}
		})
	}
}

// TestAccessIsAskedForEachRequest changes the rules while a token is in use.
func TestAccessIsAskedForEachRequest(t *testing.T) {
	t.Parallel()
	rules := writeFile(t, filepath.Join(t.TempDir(), "access"), "* docker.io/**\n")
	l := startWithUsers(t, nil, "LARDER_AUTH=token", "LARDER_ACCESS="+rules)
	token := getToken(t, l, "alice", "alice's: password", "a/b")
	status := func() int {
		status, _ := askWith(t, l, token, "/v2/a/b/manifests/1")
		return status
	}
	if got := status(); got != http.StatusBadGateway {
		t.Fatalf("got %d, want 502: it is allowed, and there is no upstream", got)
	}
	writeFile(t, rules, "bob docker.io/**\n")
	eventually(t, "the token to be refused", func() bool { return status() == http.StatusForbidden })
	writeFile(t, rules, "alice docker.io/**\nbob\n")
	eventually(t, "a word about the bad line", func() bool {
		return status() == http.StatusForbidden && strings.Contains(l.stderr.String(), "access file changed and can't be used") && strings.Contains(l.stderr.String(), "line 2: ")
	})
	writeFile(t, rules, "alice docker.io/**\n")
	eventually(t, "the token to be taken again", func() bool { return status() == http.StatusBadGateway })
}

// TestAccessOfCertificates has no passwords: who asks is in the certificate.
func TestAccessOfCertificates(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t, "ca")
	l, _ := startTLS(t, ca, "LARDER_ACCESS="+writeFile(t, filepath.Join(t.TempDir(), "access"), "node-1 docker.io/a/*\n* docker.io/b/*\nanonymous docker.io/c/*"))
	for name, allowed := range map[string]string{"node-1": "abc", "node-2": "bc", "*": "bc", "anonymous": "bc", "": "c"} {
		client := clientWith(t, ca.client(t, name, x509.Certificate{}))
		for _, org := range []string{"a", "b", "c", "d"} {
			want := http.StatusForbidden
			if strings.Contains(allowed, org) {
				want = http.StatusBadGateway
			}
			if resp, body := ask(t, client, "GET", "https://"+l.addr+"/v2/"+org+"/x/manifests/1", "", ""); resp.StatusCode != want {
				t.Errorf("%q asks for %s/x: %s with %s, want %d", name, org, resp.Status, body, want)
			}
		}
	}
}

// TestCertificateAndToken: who asks is in the token, and in the certificate for
// one that is nobody's.
func TestCertificateAndToken(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t, "ca")
	l, _ := startTLS(t, ca, "LARDER_HTPASSWD="+passwordFile(t, "alice", "wonderland"), "LARDER_AUTH=token", "LARDER_ANONYMOUS_PULL=true",
		"LARDER_ACCESS="+writeFile(t, filepath.Join(t.TempDir(), "access"), "node-1 docker.io/node/*\nalice docker.io/alice/*"))
	node, other := clientWith(t, ca.client(t, "node-1", x509.Certificate{})), clientWith(t, ca.client(t, "node-2", x509.Certificate{}))
	get := func(client *http.Client, user string) string {
		_, body := ask(t, client, "GET", "https://"+l.addr+"/token?scope=repository:node/x:pull+repository:alice/x:pull", user, "wonderland")
		var answer struct{ Token string }
		if err := json.Unmarshal([]byte(body), &answer); err != nil {
			t.Fatal(err)
		}
		return answer.Token
	}
	pull := func(client *http.Client, token, repository string) int {
		req, err := http.NewRequestWithContext(t.Context(), "GET", "https://"+l.addr+"/v2/"+repository+"/manifests/1", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	anonymous, alice := get(node, ""), get(node, "alice")
	for what, test := range map[string]struct{ got, want int }{
		"the node's":                    {pull(node, anonymous, "node/x"), 502},
		"the node's, alice's":           {pull(node, anonymous, "alice/x"), 403},
		"alice's":                       {pull(node, alice, "alice/x"), 502},
		"alice's, the node's":           {pull(node, alice, "node/x"), 403},
		"the node's, with another node": {pull(other, anonymous, "node/x"), 403},
		"alice's, with another node":    {pull(other, alice, "alice/x"), 502},
	} {
		if test.got != test.want {
			t.Errorf("%s: %d, want %d", what, test.got, test.want)
		}
	}
}

func TestBadAccessAndKeyEndTheStart(t *testing.T) {
	t.Parallel()
	key, content := tokenKey(t)
	rules := writeFile(t, filepath.Join(t.TempDir(), "access"), "alice docker.io/**\nbob quay.io/**\ncarol\n")
	tests := map[string]struct {
		environ []string
		names   []string
	}{
		"bad rules":        {[]string{"LARDER_ACCESS=" + rules}, []string{"LARDER_ACCESS", rules, "line 2: begins with no host", "line 3: "}},
		"no rules":         {[]string{"LARDER_ACCESS=/none"}, []string{"LARDER_ACCESS", "/none"}},
		"no key":           {[]string{"LARDER_AUTH=token", "LARDER_ANONYMOUS_PULL=true", "LARDER_TOKEN_KEY=/none"}, []string{"LARDER_TOKEN_KEY", "/none"}},
		"not a key":        {[]string{"LARDER_AUTH=token", "LARDER_ANONYMOUS_PULL=true", "LARDER_TOKEN_KEY=" + rules}, []string{"LARDER_TOKEN_KEY", rules, "PEM"}},
		"the key, no file": {[]string{"LARDER_AUTH=token", "LARDER_ANONYMOUS_PULL=true", "LARDER_TOKEN_KEY=" + content}, []string{"LARDER_TOKEN_KEY", "is a key"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			l := execLarder(t, nil, test.environ...)
			wantExit(t, l, 2, test.names...)
			if secret := strings.Split(content, "\n")[1]; strings.Contains(l.stderr.String(), secret) {
				t.Error("the key is shown")
			}
		})
	}
	l := startWithUsers(t, nil, "LARDER_AUTH=token", "LARDER_TOKEN_KEY="+key, "LARDER_LOG_LEVEL=debug")
	token := getToken(t, l, "alice", "alice's: password", "a/b")
	askWith(t, l, token, "/v2/a/b/manifests/1")
	askWith(t, l, token+"x", "/v2/a/b/manifests/1")
	ask(t, http.DefaultClient, "GET", "http://"+l.addr+"/token", "alice", "hush")
	l.stop(t)
	for what, secret := range map[string]string{
		"key": strings.Split(content, "\n")[1], "claims": strings.Split(token, ".")[1], "signature": strings.Split(token, ".")[2], "password": "alice's", "wrong password": "hush",
	} {
		if strings.Contains(l.stderr.String(), secret) {
			t.Errorf("the %s is in the log", what)
		}
	}
}
