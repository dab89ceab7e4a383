package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const (
	tokenService = "registry"
	tokenIssuer  = "larder-test"
)

// tokenMode says who gets tokens.
type tokenMode int

const (
	anonymousPull tokenMode = iota // everybody for pulling, like Docker Hub
	passwordOnly
)

// tokenServer gives out what docker-registry's token authentication accepts.
type tokenServer struct {
	mode        tokenMode
	key         *ecdsa.PrivateKey
	der         []byte
	certificate string // its file
}

func newTokenServer(t *testing.T, mode tokenMode) *tokenServer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: tokenIssuer},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	file := writeFile(t, filepath.Join(t.TempDir(), "cert.pem"),
		string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	return &tokenServer{mode: mode, key: key, der: der, certificate: file}
}

// tokenAccess is one element of a token's claim of that name.
type tokenAccess struct {
	Type    string   `json:"type"`
	Name    string   `json:"name"`
	Actions []string `json:"actions"`
}

// ServeHTTP answers GET /token?service=…&scope=repository:NAME:pull,push.
func (s *tokenServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	user, pass, given := r.BasicAuth()
	known := given && user == username && pass == password
	if !known && (given || s.mode != anonymousPull) {
		http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"wrong password"}]}`, http.StatusUnauthorized)
		return
	}
	granted := []tokenAccess{}
	for _, scopes := range r.URL.Query()["scope"] {
		for scope := range strings.FieldsSeq(scopes) {
			if p := strings.Split(scope, ":"); len(p) == 3 {
				granted = append(granted, tokenAccess{Type: p[0], Name: p[1], Actions: s.allowed(p[2], known)})
			}
		}
	}
	token, err := s.sign(user, granted)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	json.NewEncoder(w).Encode(map[string]any{"token": token, "expires_in": 300})
}

func (s *tokenServer) allowed(actions string, known bool) []string {
	if known {
		return strings.Split(actions, ",")
	}
	return []string{"pull"}
}

// sign makes a JSON web token as distribution/docs/spec/auth/jwt.md has it.
func (s *tokenServer) sign(user string, granted []tokenAccess) (string, error) {
	now := time.Now()
	header := map[string]any{"typ": "JWT", "alg": "ES256", "x5c": []string{base64.StdEncoding.EncodeToString(s.der)}}
	claims := map[string]any{
		"iss": tokenIssuer, "aud": tokenService, "sub": user, "jti": rand.Text(), "access": granted,
		"iat": now.Unix(), "nbf": now.Add(-time.Minute).Unix(), "exp": now.Add(5 * time.Minute).Unix(),
	}
	var parts []string
	for _, part := range []any{header, claims} {
		doc, err := json.Marshal(part)
		if err != nil {
			return "", err
		}
		parts = append(parts, base64.RawURLEncoding.EncodeToString(doc))
	}
	sum := sha256.Sum256([]byte(strings.Join(parts, ".")))
	r, v, err := ecdsa.Sign(rand.Reader, s.key, sum[:])
	if err != nil {
		return "", err
	}
	signature := append(r.FillBytes(make([]byte, 32)), v.FillBytes(make([]byte, 32))...)
	return strings.Join(append(parts, base64.RawURLEncoding.EncodeToString(signature)), "."), nil
}
