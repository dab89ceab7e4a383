package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"larder/auth/watched"
)

// writePair writes a certificate with this name and its key into dir.
func writePair(t *testing.T, dir, name string) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{"localhost"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	cert = writeFile(t, filepath.Join(dir, "tls.crt"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	key = writeFile(t, filepath.Join(dir, "tls.key"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})))
	return cert, key
}

// shown is the name in the certificate that a client sees.
func shown(t *testing.T, c *watched.Files[*tls.Certificate]) string {
	t.Helper()
	client, server := net.Pipe()
	defer client.Close()
	defer server.Close()
	conn := tls.Client(client, &tls.Config{InsecureSkipVerify: true})
	done := make(chan error, 1)
	go func() { done <- tls.Server(server, tlsConfig(c, nil)).Handshake() }()
	if err := conn.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return conn.ConnectionState().PeerCertificates[0].Subject.CommonName
}

func TestCertificateIsReadAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.DebugLevel)
		dir := t.TempDir()
		cert, key := writePair(t, dir, "first")
		// date gives both files a time of the bubble's, as a copy that keeps
		// times would.
		date := func(at time.Time) {
			for _, path := range []string{cert, key} {
				if err := os.Chtimes(path, at, at); err != nil {
					t.Fatal(err)
				}
			}
		}
		date(time.Now())
		c, err := openCertificate(cert, key, zap.New(core))
		if err != nil {
			t.Fatal(err)
		}
		want := func(name string, infos, errors int) {
			t.Helper()
			for range 3 {
				time.Sleep(2 * watched.Interval)
				if got := shown(t, c); got != name {
					t.Errorf("clients see %q, want %q", got, name)
				}
			}
			if i, e := logs.FilterLevelExact(zap.InfoLevel).Len(), logs.FilterLevelExact(zap.ErrorLevel).Len(); i != infos || e != errors {
				t.Errorf("%d lines of news and %d of errors, want %d and %d", i, e, infos, errors)
			}
			logs.TakeAll()
		}

		want("first", 0, 0)

		writePair(t, dir, "second")
		date(time.Now())
		want("second", 1, 0)

		writeFile(t, cert, "half of a cert")
		date(time.Now())
		want("second", 0, 1) // one line, not one each second

		writePair(t, dir, "third")
		date(time.Now())
		want("third", 1, 0)

		old, _ := writePair(t, t.TempDir(), "another")
		content, err := os.ReadFile(old)
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, cert, string(content)) // of another key
		date(time.Now())
		want("third", 0, 1)

		if err := os.Remove(cert); err != nil {
			t.Fatal(err)
		}
		want("third", 0, 1)

		writePair(t, dir, "put back")
		date(time.Now().Add(-24 * time.Hour))
		want("put back", 1, 0)
	})
}

func TestCertificateIsLookedAtOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		cert, key := writePair(t, dir, "first")
		c, err := openCertificate(cert, key, zap.NewNop())
		if err != nil {
			t.Fatal(err)
		}
		writePair(t, dir, "second")
		later := time.Now().Add(time.Hour)
		if err := os.Chtimes(cert, later, later); err != nil {
			t.Fatal(err)
		}
		if got := shown(t, c); got != "first" {
			t.Errorf("clients see %q at once, want %q", got, "first")
		}
		time.Sleep(watched.Interval)
		if got := shown(t, c); got != "second" {
			t.Errorf("clients see %q after a second, want %q", got, "second")
		}
	})
}

func TestBadCertificateAtStart(t *testing.T) {
	dir := t.TempDir()
	cert, key := writePair(t, dir, "x")
	for name, paths := range map[string][2]string{
		"no cert":  {filepath.Join(dir, "none"), key},
		"no key":   {cert, filepath.Join(dir, "none")},
		"swapped":  {key, cert},
		"a folder": {dir, key},
	} {
		if _, err := openCertificate(paths[0], paths[1], zap.NewNop()); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
