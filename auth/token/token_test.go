package token

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

func newECDSA(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return private
}

// authorities has one of each kind of key.
func authorities(t *testing.T) map[string]*Authority {
	t.Helper()
	own, err := New()
	if err != nil {
		t.Fatal(err)
	}
	k, err := keyFrom(newECDSA(t))
	if err != nil {
		t.Fatal(err)
	}
	return map[string]*Authority{"Ed25519": own, "ECDSA": newAuthority(k)}
}

func issue(t *testing.T, a *Authority, user string, repositories ...string) string {
	t.Helper()
	token, err := a.Issue(user, repositories)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func TestTokenSaysWhatItWasIssuedFor(t *testing.T) {
	for name, a := range authorities(t) {
		t.Run(name, func(t *testing.T) {
			g, err := a.Verify(issue(t, a, "alice", "library/alpine", "ghcr.io/org/app"))
			if err != nil {
				t.Fatal(err)
			}
			if g.User != "alice" || !g.Covers("library/alpine") || !g.Covers("ghcr.io/org/app") {
				t.Errorf("got %+v", g)
			}
			for _, other := range []string{"", "library", "library/alpine/x", "alpine", "org/app"} {
				if g.Covers(other) {
					t.Errorf("covers %q", other)
				}
			}
			if g, err := a.Verify(issue(t, a, "")); err != nil || g.User != "" || g.Covers("") {
				t.Errorf("of nobody, for nothing: got %+v, %v", g, err)
			}
		})
	}
}

func TestLargestTokenIsTaken(t *testing.T) {
	a := authorities(t)["ECDSA"]
	var scopes []string
	for i := range maxScopes {
		scopes = append(scopes, Scope(strings.Repeat(string(rune('a'+i)), maxName)))
	}
	names, err := Repositories(scopes)
	if err != nil || len(names) != maxScopes {
		t.Fatalf("%d names, %v", len(names), err)
	}
	if g, err := a.Verify(issue(t, a, "alice", names...)); err != nil || !g.Covers(names[maxScopes-1]) {
		t.Error(err)
	}
}

// TestClaims looks at a token as other programs of the protocol would.
func TestClaims(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := authorities(t)["ECDSA"]
		now := float64(time.Now().Unix())
		token := issue(t, a, "alice", "library/alpine")
		var header, payload map[string]any
		for i, part := range []*map[string]any{&header, &payload} {
			doc, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[i])
			if err == nil {
				err = json.Unmarshal(doc, part)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		want := map[string]any{
			"iss": "larder", "sub": "alice", "aud": []any{"larder"}, "iat": now, "nbf": now, "exp": now + 300, "jti": payload["jti"],
			"access": []any{map[string]any{"type": "repository", "name": "library/alpine", "actions": []any{"pull"}}},
		}
		got, err := json.Marshal(payload)
		if err != nil {
			t.Fatal(err)
		}
		if wanted, _ := json.Marshal(want); string(got) != string(wanted) {
			t.Errorf("got  %s\nwant %s", got, wanted)
		}
		if header["alg"] != "ES256" || header["typ"] != "JWT" || header["kid"] != a.key.id || len(a.key.id) != 16 {
			t.Errorf("header is %v", header)
		}
		other := strings.Split(issue(t, a, "alice", "library/alpine"), ".")[1]
		if id, _ := payload["jti"].(string); id == "" || other == strings.Split(token, ".")[1] {
			t.Errorf("jti %q is no name for one token", id)
		}
	})
}

// forge signs what a mallory would like to be signed.
func forge(t *testing.T, method jwt.SigningMethod, private any, header, payload map[string]any) string {
	t.Helper()
	forged := jwt.NewWithClaims(method, jwt.MapClaims(payload))
	maps.Copy(forged.Header, header)
	token, err := forged.SignedString(private)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func TestForgedTokensAreRefused(t *testing.T) {
	for kind, a := range authorities(t) {
		good := func() map[string]any {
			now := time.Now().Unix()
			return map[string]any{
				"iss": issuer, "sub": "alice", "aud": Service, "iat": now, "nbf": now, "exp": now + 60,
				"access": []access{{repositoryType, "library/alpine", []string{pull}}},
			}
		}
		with := func(name string, value any) map[string]any {
			payload := good()
			if payload[name] = value; value == nil {
				delete(payload, name)
			}
			return payload
		}
		kid := map[string]any{"kid": a.key.id}
		sign := func(payload map[string]any) string { return forge(t, a.key.method, a.key.private, kid, payload) }
		if _, err := a.Verify(sign(good())); err != nil { // or the rest would show nothing
			t.Fatal(err)
		}
		public, err := x509.MarshalPKIXPublicKey(a.key.private.Public())
		if err != nil {
			t.Fatal(err)
		}
		publicPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})
		token := sign(good())
		parts := strings.Split(token, ".")
		changed := func(i int, from, to string) string {
			doc, err := base64.RawURLEncoding.DecodeString(parts[i])
			if err != nil || !strings.Contains(string(doc), from) {
				t.Fatalf("no %s in %s (%v)", from, doc, err)
			}
			p := slices.Clone(parts)
			p[i] = base64.RawURLEncoding.EncodeToString([]byte(strings.Replace(string(doc), from, to, 1)))
			return strings.Join(p, ".")
		}
		mallory := newECDSA(t)
		other := authorities(t)[kind]
		now := time.Now().Unix()
		tests := map[string]string{
			"user changed":           changed(1, "alice", "admin"),
			"repository changed":     changed(1, "library/alpine", "library/secret"),
			"algorithm changed":      changed(0, a.key.method.Alg(), "HS256"),
			"algorithm emptied":      changed(0, a.key.method.Alg(), ""),
			"no signature":           parts[0] + "." + parts[1] + ".",
			"two parts":              parts[0] + "." + parts[1],
			"four parts":             token + "." + parts[2],
			"cut off":                token[:len(token)-4],
			"one bit":                flipped(token),
			"padded":                 token + "=",
			"zero signature":         parts[0] + "." + parts[1] + "." + base64.RawURLEncoding.EncodeToString(make([]byte, 64)),
			"nothing":                "",
			"dots":                   "..",
			"huge":                   strings.Repeat("a.", maxSize),
			"none":                   forge(t, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, kid, good()),
			"none, signed":           forge(t, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, kid, good()) + parts[2],
			"HS256, key in DER":      forge(t, jwt.SigningMethodHS256, public, kid, good()),
			"HS256, key in PEM":      forge(t, jwt.SigningMethodHS256, publicPEM, kid, good()),
			"other key, its kid":     forge(t, other.key.method, other.key.private, map[string]any{"kid": other.key.id}, good()),
			"other key":              forge(t, other.key.method, other.key.private, kid, good()),
			"other kind of key":      forge(t, jwt.SigningMethodES256, mallory, kid, good()),
			"key comes along":        forge(t, jwt.SigningMethodES256, mallory, map[string]any{"kid": a.key.id, "jwk": jwk(mallory)}, good()),
			"no kid":                 forge(t, a.key.method, a.key.private, nil, good()),
			"kid is no text":         forge(t, a.key.method, a.key.private, map[string]any{"kid": []string{a.key.id}}, good()),
			"expired":                sign(with("exp", now-30)),
			"never expires":          sign(with("exp", nil)),
			"expiry is text":         sign(with("exp", "tomorrow")),
			"not yet":                sign(with("nbf", now+30)),
			"valid since ever":       sign(with("nbf", nil)),
			"other audience":         sign(with("aud", "registry.example")),
			"no audience":            sign(with("aud", nil)),
			"other issuer":           sign(with("iss", "registry.example")),
			"no issuer":              sign(with("iss", nil)),
			"access is no list":      sign(with("access", "*")),
			"signature in other JWT": strings.Join([]string{parts[0], strings.Split(sign(with("sub", "admin")), ".")[1], parts[2]}, "."),
		}
		for name, token := range tests {
			t.Run(kind+"/"+name, func(t *testing.T) {
				if g, err := a.Verify(token); err == nil || g != nil {
					t.Errorf("taken, with %+v", g)
				}
			})
		}
		if _, err := a.Verify(tests["huge"]); !errors.Is(err, ErrTooLarge) {
			t.Errorf("huge: got %v, want %v", err, ErrTooLarge)
		}
	}
}

// flipped has one bit of the signature changed that counts.
func flipped(token string) string {
	at := len(token) - 20
	c := byte('A')
	if token[at] == c {
		c = 'B'
	}
	return token[:at] + string(c) + token[at+1:]
}

// jwk is a public key as a header may hold it.
func jwk(k *ecdsa.PrivateKey) map[string]any {
	point, err := k.PublicKey.Bytes()
	if err != nil {
		return nil
	}
	return map[string]any{
		"kty": "EC", "crv": "P-256", "x": base64.RawURLEncoding.EncodeToString(point[1:33]), "y": base64.RawURLEncoding.EncodeToString(point[33:]),
	}
}

// TestForgingByHand does without the library what it might not let anybody do.
func TestForgingByHand(t *testing.T) {
	a := authorities(t)["ECDSA"]
	parts := strings.Split(issue(t, a, "alice", "library/alpine"), ".")
	public, err := x509.MarshalPKIXPublicKey(a.key.private.Public())
	if err != nil {
		t.Fatal(err)
	}
	for _, alg := range []string{"none", "None", "NONE", "HS256", "HS512", "ES256 ", "EdDSA"} {
		header := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"` + alg + `","kid":"` + a.key.id + `","typ":"JWT"}`))
		h := hmac.New(sha256.New, public)
		h.Write([]byte(header + "." + parts[1]))
		for _, signature := range []string{"", parts[2], base64.RawURLEncoding.EncodeToString(h.Sum(nil))} {
			_, err := a.Verify(header + "." + parts[1] + "." + signature)
			if err == nil || !strings.Contains(err.Error(), "signing method") { // refused before anything is computed with it
				t.Errorf("algorithm %q with signature %q: got %v", alg, signature, err)
			}
		}
	}
}

func TestTokenIsOfItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := authorities(t)["ECDSA"]
		token := issue(t, a, "alice", "library/alpine")
		time.Sleep(Lifetime + leeway - time.Second)
		if _, err := a.Verify(token); err != nil {
			t.Errorf("within the leeway: %v", err)
		}
		time.Sleep(2 * time.Second)
		if _, err := a.Verify(token); !errors.Is(err, jwt.ErrTokenExpired) {
			t.Errorf("after it: got %v, want %v", err, jwt.ErrTokenExpired)
		}
	})
}

// TestPushIsNotTaken is of tokens that larder does not issue, but whoever shares
// its key might.
func TestPushIsNotTaken(t *testing.T) {
	a := authorities(t)["Ed25519"]
	now := time.Now().Unix()
	for name, entry := range map[string]access{
		"push":    {repositoryType, "a/b", []string{"push"}},
		"all":     {repositoryType, "a/b", []string{"*"}},
		"catalog": {"registry", "a/b", []string{pull}},
	} {
		token := forge(t, a.key.method, a.key.private, map[string]any{"kid": a.key.id}, map[string]any{
			"iss": issuer, "aud": Service, "nbf": now, "exp": now + 60, "access": []access{entry},
		})
		if g, err := a.Verify(token); err != nil || g.Covers("a/b") {
			t.Errorf("%s: %+v, %v", name, g, err)
		}
	}
}
