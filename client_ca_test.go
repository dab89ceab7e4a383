package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// authority is a CA.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	chain       [][]byte // what its clients show beside their own
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	return (&authority{}).authority(t, name)
}

// authority is one below a, or a root.
func (a *authority) authority(t *testing.T, name string) *authority {
	t.Helper()
	template := &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	sub := &authority{}
	var der []byte
	der, sub.key = a.sign(t, name, template)
	var err error
	if sub.certificate, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	if a.key != nil {
		sub.chain = [][]byte{der}
	}
	return sub
}

// sign completes the template; it signs itself if a has no key.
func (a *authority) sign(t *testing.T, name string, template *x509.Certificate) ([]byte, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber, template.Subject = big.NewInt(time.Now().UnixNano()), pkix.Name{CommonName: name}
	if template.NotAfter.IsZero() {
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	}
	parent, signer := a.certificate, a.key
	if signer == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	return der, key
}

// client is a client's certificate.
func (a *authority) client(t *testing.T, name string, template x509.Certificate) *tls.Certificate {
	t.Helper()
	if template.ExtKeyUsage == nil {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	}
	der, key := a.sign(t, name, &template)
	return &tls.Certificate{Certificate: append([][]byte{der}, a.chain...), PrivateKey: key}
}

func (a *authority) pem() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.certificate.Raw}))
}

// clientWith shows its certificate whoever is said to be trusted. Each request
// has a connection of its own.
func clientWith(t *testing.T, certificate *tls.Certificate) *http.Client {
	if certificate == nil {
		certificate = new(tls.Certificate)
	}
	transport := &http.Transport{
		DisableKeepAlives: true, ForceAttemptHTTP2: true,
		TLSClientConfig: &tls.Config{
			InsecureSkipVerify: true, ClientSessionCache: tls.NewLRUClientSessionCache(0),
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return certificate, nil },
		},
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// startTLS starts a larder that wants certificates signed by ca.
func startTLS(t *testing.T, ca *authority, environ ...string) (l *larder, caFile string) {
	t.Helper()
	cert, key := writePair(t, t.TempDir(), "larder")
	caFile = writeFile(t, filepath.Join(t.TempDir(), "ca.pem"), ca.pem())
	l = runLarder(t, nil, append([]string{"LARDER_TLS_CERT=" + cert, "LARDER_TLS_KEY=" + key, "LARDER_CLIENT_CA=" + caFile}, environ...)...)
	eventually(t, "larder to start", func() bool { return strings.Contains(l.stderr.String(), `"larder started"`) }) // on both of its ports
	return l, caFile
}

// wantAlert checks that TLS ends before anything is asked. What a client sees of
// that depends on whether the alert or the end of the connection comes first.
func wantAlert(t *testing.T, l *larder, client *http.Client) {
	t.Helper()
	if resp, err := client.Get("https://" + l.addr + "/v2/"); err == nil {
		resp.Body.Close()
		t.Errorf("got %s, want to be refused", resp.Status)
	}
}

// users are those of the access log.
func (l *larder) users(t *testing.T) (users []string) {
	t.Helper()
	for line := range strings.Lines(l.stderr.String()) {
		var entry struct{ Msg, User string }
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Fatal(err)
		}
		if entry.Msg == "request" {
			users = append(users, entry.User)
		}
	}
	return users
}

func TestClientsNeedACertificate(t *testing.T) {
	t.Parallel()
	ca, other := newAuthority(t, "ca"), newAuthority(t, "ca")
	l, _ := startTLS(t, ca, "LARDER_LOG_LEVEL=debug")
	past := x509.Certificate{NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour)}
	tests := map[string]struct {
		certificate *tls.Certificate
		welcome     bool
	}{
		"none":              {nil, false},
		"wrong CA":          {other.client(t, "wrong", x509.Certificate{}), false},
		"its own":           {(&authority{}).client(t, "own", x509.Certificate{}), false},
		"expired":           {ca.client(t, "expired", past), false},
		"not yet":           {ca.client(t, "early", x509.Certificate{NotBefore: time.Now().Add(time.Hour), NotAfter: time.Now().Add(2 * time.Hour)}), false},
		"for servers":       {ca.client(t, "server", x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}), false},
		"by wrong sub-CA":   {other.authority(t, "sub").client(t, "wrong sub", x509.Certificate{}), false},
		"not its key":       {&tls.Certificate{Certificate: ca.client(t, "stolen", x509.Certificate{}).Certificate, PrivateKey: other.key}, false},
		"right":             {ca.client(t, "node-1", x509.Certificate{}), true},
		"right, by sub-CA":  {ca.authority(t, "sub").client(t, "node-2", x509.Certificate{}), true},
		"right, odd a name": {ca.client(t, "no\nde\x00\"", x509.Certificate{}), true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			client := clientWith(t, test.certificate)
			if !test.welcome {
				wantAlert(t, l, client)
				return
			}
			for range 2 {
				if resp, body := ask(t, client, "GET", "https://"+l.addr+"/v2/", "", ""); resp.StatusCode != http.StatusOK || resp.ProtoMajor != 2 {
					t.Errorf("got %s %s with %q, want 200 in HTTP/2", resp.Proto, resp.Status, body)
				}
			}
		})
	}
	if resp, err := http.Get("http://" + l.addr + "/v2/"); err == nil {
		resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest {
			t.Errorf("without TLS: %s, want 400", resp.Status)
		}
	}
	if users := l.users(t); len(users) != 6 {
		t.Errorf("requests of %q, want two of each that is welcome", users)
	}
	if log := l.stderr.String(); !strings.Contains(log, `"user":"node-1"`) || !strings.Contains(log, `"user":"no\nde\u0000\""`) {
		t.Errorf("users are not the certificates' names")
	}
}

func TestCertificateAndPassword(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t, "ca")
	l, _ := startTLS(t, ca, "LARDER_HTPASSWD="+passwordFile(t, "alice", "wonderland"))
	wantAlert(t, l, clientWith(t, nil))
	client := clientWith(t, ca.client(t, "node-1", x509.Certificate{}))
	url := "https://" + l.addr + "/v2/"
	if resp, _ := ask(t, client, "GET", url, "", ""); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("without a password: %s, want 401", resp.Status)
	}
	if resp, _ := ask(t, client, "GET", url, "alice", "wonderland"); resp.StatusCode != http.StatusOK {
		t.Errorf("with a password: %s, want 200", resp.Status)
	}
	if users := strings.Join(l.users(t), " "); users != "node-1 alice" {
		t.Errorf("users are %q, want the certificate's name until there is a better one", users)
	}
}

func TestClientCAIsReadAgain(t *testing.T) {
	t.Parallel()
	first, second := newAuthority(t, "first"), newAuthority(t, "second")
	l, file := startTLS(t, first)
	old, young := clientWith(t, first.client(t, "old", x509.Certificate{})), clientWith(t, second.client(t, "young", x509.Certificate{}))
	welcome := func(c *http.Client) bool {
		resp, err := c.Get("https://" + l.addr + "/v2/")
		if err != nil {
			return false
		}
		return resp.Body.Close() == nil && resp.StatusCode == http.StatusOK
	}
	if !welcome(old) || welcome(young) {
		t.Error("want the first CA's client alone to be welcome")
	}
	writeFile(t, file, first.pem()+second.pem())
	eventually(t, "the second CA's client to be welcome", func() bool { return welcome(young) })
	if !welcome(old) {
		t.Error("the first CA's client is not welcome any more")
	}
	writeFile(t, file, second.pem())
	eventually(t, "the first CA's client to be refused", func() bool { return !welcome(old) })
	writeFile(t, file, "no certificate")
	eventually(t, "a word about the bad file", func() bool {
		return welcome(young) && strings.Contains(l.stderr.String(), "client CA changed and can't be used")
	})
}

func TestBadClientCAAtStart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cert, key := writePair(t, dir, "larder")
	for name, file := range map[string]string{"none": filepath.Join(dir, "none"), "a key": key, "a folder": dir} {
		t.Run(name, func(t *testing.T) {
			l := runLarder(t, nil, "LARDER_TLS_CERT="+cert, "LARDER_TLS_KEY="+key, "LARDER_CLIENT_CA="+file)
			wantRefusal(t, l, "LARDER_CLIENT_CA", file)
		})
	}
}

func TestHealthOfALarderThatWantsCertificates(t *testing.T) {
	t.Parallel()
	l, _ := startTLS(t, newAuthority(t, "ca"))
	if err := health(t.Context(), l.environ); err != nil {
		t.Error(err)
	}
	l.stop(t)
	if err := health(t.Context(), l.environ); err == nil {
		t.Error("a larder that is not there is well")
	}
}
