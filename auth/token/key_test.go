package token

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func pkcs8(t *testing.T, private any) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

func keyFile(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "token.key")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAuthoritiesWithTheSameKeyTakeEachOthersTokens(t *testing.T) {
	ec := newECDSA(t)
	sec1, err := x509.MarshalECPrivateKey(ec)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	openssl := "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n" +
		string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1}))
	var opened []*Authority
	for _, content := range []string{pkcs8(t, ec), openssl, "a comment\n" + pkcs8(t, ec), pkcs8(t, ed), pkcs8(t, ed)} {
		a, err := Open(keyFile(t, content))
		if err != nil {
			t.Fatalf("%v with\n%s", err, content)
		}
		opened = append(opened, a)
	}
	for i, a := range opened {
		for j, b := range opened {
			same := (i < 3) == (j < 3)
			if _, err := b.Verify(issue(t, a, "alice", "a/b")); (err == nil) != same {
				t.Errorf("token of %d at %d: %v, want it to be taken: %t", i, j, err, same)
			}
		}
	}
	first, second := authorities(t)["Ed25519"], authorities(t)["Ed25519"]
	if _, err := second.Verify(issue(t, first, "alice", "a/b")); err == nil {
		t.Error("without a file, another process's token is taken")
	}
}

func TestBadKeys(t *testing.T) {
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	weak, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	good := pkcs8(t, newECDSA(t))
	public := func() string {
		der, err := x509.MarshalPKIXPublicKey(newECDSA(t).Public())
		if err != nil {
			t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	}()
	tests := map[string]struct{ content, want string }{
		"empty":       {"", errNoKey.Error()},
		"no PEM":      {"hush", errNoKey.Error()},
		"cut off":     {good[:len(good)/2], errNoKey.Error()},
		"damaged":     {string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("hush")})), errNoKey.Error()},
		"P-384":       {pkcs8(t, p384), errKeyKind.Error()},
		"RSA":         {pkcs8(t, weak), errKeyKind.Error()},
		"public":      {public, errKeyKind.Error()},
		"encrypted":   {string(pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("hush")})), errKeyKind.Error()},
		"far too big": {strings.Repeat("#", maxKeyFile) + "\n" + good, errNoKey.Error()},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			path := keyFile(t, test.content)
			if _, err := Open(path); err == nil || err.Error() != path+": "+test.want {
				t.Errorf("got %v, want %s: %s", err, path, test.want)
			}
		})
	}
	if _, err := Open(filepath.Join(t.TempDir(), "none")); !os.IsNotExist(err) {
		t.Errorf("no file: got %v", err)
	}
	if _, err := Open(good); err == nil || strings.Contains(err.Error(), strings.Split(good, "\n")[1][:10]) {
		t.Errorf("the key in place of its path: got %v, want an error without it", err)
	}
}
