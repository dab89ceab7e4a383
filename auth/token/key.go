package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/golang-jwt/jwt/v5"
)

// maxKeyFile bounds the file of a key.
const maxKeyFile = 64 << 10

var (
	errKeyKind = errors.New("neither an ECDSA key with the curve P-256 nor an Ed25519 key")
	errNoKey   = errors.New("no private key in PEM form")
)

// key signs tokens. Its algorithm is fixed with it.
type key struct {
	private crypto.Signer
	method  jwt.SigningMethod
	id      string // in the header of each token: all with the same key have the same
}

// newKey makes one that lives as long as the process.
func newKey() (key, error) {
	_, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return key{}, err
	}
	return keyFrom(private)
}

func keyFrom(private any) (key, error) {
	var k key
	switch p := private.(type) {
	case *ecdsa.PrivateKey:
		if p.Curve != elliptic.P256() {
			return key{}, errKeyKind
		}
		k = key{private: p, method: jwt.SigningMethodES256}
	case ed25519.PrivateKey:
		k = key{private: p, method: jwt.SigningMethodEdDSA}
	default:
		return key{}, errKeyKind
	}
	der, err := x509.MarshalPKIXPublicKey(k.private.Public())
	if err != nil {
		return key{}, err
	}
	sum := sha256.Sum256(der)
	k.id = base64.RawURLEncoding.EncodeToString(sum[:12])
	return k, nil
}

// readKey shows in its errors nothing of a key, also if that is where its path
// should be.
func readKey(path string) (key, error) {
	if strings.Contains(path, "-----BEGIN") {
		return key{}, errors.New("is a key, not the path of a file with one")
	}
	file, err := os.Open(path)
	if err != nil {
		return key{}, err
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, maxKeyFile))
	if err != nil {
		return key{}, err
	}
	k, err := parseKey(content)
	if err != nil {
		return key{}, fmt.Errorf("%s: %w", path, err)
	}
	return k, nil
}

// parseKey takes the first private key, which OpenSSL writes behind the
// parameters of its curve.
func parseKey(content []byte) (key, error) {
	for {
		var block *pem.Block
		if block, content = pem.Decode(content); block == nil {
			return key{}, errNoKey
		}
		var private any
		var err error
		switch block.Type {
		case "PRIVATE KEY":
			private, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			private, err = x509.ParseECPrivateKey(block.Bytes)
		case "EC PARAMETERS":
			continue
		default:
			return key{}, errKeyKind
		}
		if err != nil {
			return key{}, errNoKey // what is wrong with it tells something of it
		}
		return keyFrom(private)
	}
}
